"""Does the map of `method="auto"` lie on the object?

    python -m benchmarks.default_maps [--models vit detr ...] [--seed 3] [--scenes 200] [--records FILE]
                                      [--markdown PAGE]

First table, from the records of `python -m benchmarks.localization`: is the energy inside the mask at least twice the
mask's share of the image, and higher than that of every baseline map? An object that the model does not find counts as
a map with no energy. Second table, for detectors: in scenes with two objects of one class, both detected, does the map
of one have at least twice as much energy in its own box as in the other's? Prints Markdown; `--markdown` writes it into
a page, between its marks.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from benchmarks.localization import MODELS, QUOTED, RECORDS, of_scenes, scores_of
from benchmarks.localized import BASELINES, NO_MODEL, SHARE, Found, read
from benchmarks.pages import write
from benchmarks.scenes import LABELS, Scene, scenes
from hf_cam.explainer import Explainer
from hf_cam.explanation import Explanation
from hf_cam.heads.base import overlaps
from hf_cam.metrics import energy_inside
from hf_cam.models.loading import load

DETECTORS = ("detr",)
FOUND = 0.5
"""The lowest overlap between a detection's box and an object's at which the object counts as found."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=QUOTED)
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--markdown", type=Path, help="the page to write the tables into")
    options = parser.parse_args()
    logging.disable_progress_bar()
    found = of_scenes(read(options.records), options.seed, options.scenes)
    lines = [*verdicts(found, options.models, options.seed), ""]
    drawn = scenes("test", options.scenes, seed=options.seed)
    detectors = [model for model in options.models if model in DETECTORS]
    text = "\n".join([*lines, *(twin_rows(detectors, drawn) if detectors else ())])
    print(text)
    if options.markdown:
        write(options.markdown, "default maps", text)


def verdicts(found: Found, models: Sequence[str], seed: int) -> Iterator[str]:
    """Whether each model's default map lies on the object, on the scenes of which there are records."""
    yield "| model | auto | scenes | energy inside | twice the mask's share | best baseline | verdict |"
    yield "|---|---|--:|--:|--:|--:|---|"
    for model in models:
        method = Explainer(load(f"demo:{model}")).cam.method.id
        own = found.get((model, method, seed))
        if own is None:
            continue
        count = len(own)
        energy, twice, best = (
            energy_of(found, (model, method, seed), count),
            2 * energy_of(found, (NO_MODEL, SHARE, seed), count),
            max(energy_of(found, (NO_MODEL, name, seed), count) for name in BASELINES if name != SHARE),
        )
        met = verdict(energy >= twice and energy > best)
        yield f"| {model} | {method} | {count} | {energy:.3f} | {twice:.3f} | {best:.3f} | {met} |"


def energy_of(found: Found, key: tuple[str, str, int], scenes: int) -> float:
    """The mean energy inside the mask in the first scenes."""
    return float(scores_of(found[key], scenes)[:, 0].mean())


def twin_rows(models: Sequence[str], drawn: Sequence[Scene]) -> Iterator[str]:
    """Whether the maps of two objects of one class differ."""
    yield "| model | auto | maps | energy in its own box | in the other's box | maps with twice as much | verdict |"
    yield "|---|---|--:|--:|--:|--:|---|"
    for model in models:
        explainer = Explainer(load(f"demo:{model}"))
        found = [twin for scene in drawn for twin in twins(explainer, scene)]
        if not found:
            yield f"| {model} | {explainer.cam.method.id} | 0 | | | | no two detected objects of one class |"
            continue
        own, others = (np.mean([getattr(twin, name) for twin in found]) for name in ("own", "other"))
        apart = np.mean([twin.own >= 2 * twin.other for twin in found])
        yield (
            f"| {model} | {explainer.cam.method.id} | {len(found)} | {own:.3f} | {others:.3f} | {apart:.0%} | "
            f"{verdict(own >= 2 * others)} |"
        )


def verdict(met: bool) -> str:
    return "met" if met else "NOT MET"


@dataclass(frozen=True)
class Twin:
    """Energy of one object's map in its own box and in that of another object of its class."""

    own: float
    other: float


def twins(explainer: Explainer, scene: Scene) -> Iterator[Twin]:
    """One record per ordered pair of detected objects of one class."""
    if len(set(scene.labels)) == len(scene.labels):
        return
    [detections] = explainer([Image.fromarray(scene.image)])
    found = [
        (label, box, detected(detections, label, box)) for label, box in zip(scene.labels, scene.boxes, strict=True)
    ]
    for (label, box, one), (other_label, other_box, other) in itertools.permutations(found, 2):
        if label == other_label and one is not None and other is not None:
            yield Twin(*(energy_in(one.heatmap, edges) for edges in (box, other_box)))


def detected(detections: Sequence[Explanation], label: int, box: np.ndarray) -> Explanation | None:
    """The detection of an object, if there is one."""
    own = [one for one in detections if one.label == LABELS[label] and not one.flags and one.box is not None]
    fit = overlaps(tuple(box.tolist()), [one.box for one in own if one.box]) if own else torch.zeros(1)
    return own[int(fit.argmax())] if fit.max() >= FOUND else None


def energy_in(heatmap: np.ndarray, box: np.ndarray) -> float:
    mask = torch.zeros(heatmap.shape, dtype=torch.bool)
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    mask[y0:y1, x0:x1] = True
    return float(energy_inside(torch.from_numpy(heatmap), mask))


if __name__ == "__main__":
    main()
