"""How well maps lie on the objects of scenes with known masks: records in a file that grows piece by piece."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.scenes import LABELS, Scene
from hf_cam.errors import MethodError, TargetError
from hf_cam.explainer import Explainer
from hf_cam.explanation import Explanation
from hf_cam.heads import PromptHead, head_kind
from hf_cam.metrics import average_precision, centred_gaussian, energy_inside, noise, peak_inside, sobel_edges
from hf_cam.models.loading import LoadedModel

METRICS = ("energy inside", "peak inside", "average precision")
NO_MODEL, SHARE = "none", "mask's share of the image"
AT_ONCE = 8
"""Scenes per forward."""
Numbered = tuple[int, Scene]
"""A scene and its number in its sequence."""
Mapper = Callable[[Sequence[Numbered]], list[list[np.ndarray]]]
"""Of each scene, one heatmap `[H, W]` in [0, 1] per label, in the order of `labels_of`."""


@dataclass(frozen=True)
class Located:
    """What one method's maps of one scene score: one row of `METRICS` per label.

    Args:
        model, map: The demo model, and the method with its options or the baseline map.
        seed, scene: Of the sequence of scenes, and the place in it.
        scores: `[labels, 3]`.
        seconds: Processor time per map.
    """

    model: str
    map: str
    seed: int
    scene: int
    scores: list[list[float]]
    seconds: float


Key = tuple[str, str, int]
"""Model, map and seed."""
Found = dict[Key, dict[int, Located]]
"""The records of each key, by scene."""


def read(path: Path) -> Found:
    """All records of a file; none if there is no such file."""
    found: Found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        record = Located(**json.loads(line))
        found.setdefault((record.model, record.map, record.seed), {})[record.scene] = record
    return found


def pending(found: Found, key: Key, drawn: Sequence[Scene]) -> list[Numbered]:
    """The scenes of which there is no record yet."""
    return [(number, scene) for number, scene in enumerate(drawn) if number not in found.get(key, {})]


def measured(key: Key, mapper: Mapper, scenes: Sequence[Numbered]) -> Iterator[Located]:
    """One record per scene, in batches."""
    model, name, seed = key
    for start in range(0, len(scenes), AT_ONCE):
        batch = scenes[start : start + AT_ONCE]
        started = time.process_time()
        maps = mapper(batch)
        seconds = (time.process_time() - started) / sum(map(len, maps))
        for (number, scene), own in zip(batch, maps, strict=True):
            scores = [
                judge(found, scene.classes == 1 + label) for found, label in zip(own, labels_of(scene), strict=True)
            ]
            yield Located(model, name, seed, number, scores, round(seconds, 4))


def append(path: Path, records: Iterator[Located]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for record in records:
            print(json.dumps(asdict(record)), file=file, flush=True)


def judge(found: np.ndarray, mask: np.ndarray) -> list[float]:
    maps, masks = torch.from_numpy(np.ascontiguousarray(found)), torch.from_numpy(mask)
    return [round(float(metric(maps, masks)), 5) for metric in (energy_inside, peak_inside, average_precision)]


def labels_of(scene: Scene) -> list[int]:
    return sorted(set(scene.labels))


# Maps ----------------------------------------------------------------------------------------------------------------


def each(draw: Callable[[Numbered, int], np.ndarray]) -> Mapper:
    """A mapper from a function of a scene and a label."""
    return lambda batch: [[draw(one, label) for label in labels_of(one[1])] for one in batch]


def pixels_of(scene: Scene) -> Tensor:
    return torch.from_numpy(scene.image).permute(2, 0, 1)[None] / 255


BASELINES: dict[str, Mapper] = {
    SHARE: each(lambda one, _: np.ones(one[1].classes.shape, np.float32)),
    "noise": each(lambda one, label: noise(pixels_of(one[1]), one[0] * len(LABELS) + label)[0].numpy()),
    "centred Gaussian": each(lambda one, _: centred_gaussian(pixels_of(one[1]))[0].numpy()),
    "Sobel edges": each(lambda one, _: sobel_edges(pixels_of(one[1]))[0].numpy()),
}
"""Maps that do not depend on a model; a constant one scores the share of the image that the mask covers."""


def parsed(method: str) -> tuple[str, dict[str, Any]]:
    """The id and the options of `METHOD:NAME=VALUE,...`."""
    name, _, rest = method.partition(":")
    return name, {key: literal(value) for key, value in (one.split("=") for one in rest.split(",") if one)}


def literal(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def prompt(label: int) -> str:
    return f"{'an' if LABELS[label][0] in 'aeiou' else 'a'} {LABELS[label]}"


def mapper_of(loaded: LoadedModel, method: str) -> Mapper:
    """The maps of a method: of the label's prompt for CLIP, else of the label itself."""
    name, options = parsed(method)
    explain = partial(Explainer(loaded, name), method_options=options)
    asks = head_kind(loaded.model) is PromptHead
    words: Callable[[int], str] = prompt if asks else LABELS.__getitem__
    prompts = {"text": [prompt(label) for label in range(len(LABELS))]} if asks else {}

    def maps(scenes: Sequence[Scene], labels: Sequence[Sequence[int]]) -> list[list[np.ndarray]]:
        """In one batch if the model finds every label, else apart; a label that it does not find has an empty map."""
        named = [[words(label) for label in own] for own in labels]
        images = [Image.fromarray(scene.image) for scene in scenes]
        try:
            found = explain(images, target=named, batch_size=len(images), **prompts)
            return [firsts(*one) for one in zip(found, named, strict=True)]
        except TargetError:
            if len(scenes) > 1:
                return [maps([scene], [own])[0] for scene, own in zip(scenes, labels, strict=True)]
            if len(labels[0]) > 1:
                return [[maps(scenes, [[label]])[0][0] for label in labels[0]]]
            return [[np.zeros(scenes[0].classes.shape, np.float32)]]

    return lambda batch: maps([scene for _, scene in batch], [labels_of(scene) for _, scene in batch])


def firsts(found: Sequence[Explanation], names: Sequence[str]) -> list[np.ndarray]:
    """The first map of each name: of the surest detection where there are several."""
    maps: Mapping[str, np.ndarray] = {one.label: one.heatmap for one in reversed(found)}
    return [maps[name] for name in names]


def is_defined(mapper: Mapper, one: Numbered) -> bool:
    try:
        mapper([one])
    except MethodError:
        return False
    return True
