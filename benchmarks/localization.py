"""How well each method's map lies on the object that it explains, in scenes whose masks are known.

    python -m benchmarks.localization [--models vit convnext ...] [--methods gradcam legrad:start_layer=-2 ...]
                                      [--scenes 200] [--seed 1] [--slow-scenes 20] [--verdicts | --table]

A method may carry options, `METHOD:NAME=VALUE,...`.

For every scene of the test split and every label in it, each method explains that label's logit. The map is compared
with the mask of that label: energy inside, peak inside and average precision, each with its mean and standard error
over all labels. For comparison, the table includes baseline maps (noise, a centred Gaussian, Sobel edges), grad-cam's
Grad-CAM on the same layer, and the mask's share of the image, which is the expected score of an uninformative map.
Score-CAM runs a whole forward pass for every channel and label, 50 to 100 times what the others take, so it is
measured on the first scenes only, as its row states, together with Grad-CAM on the same scenes. Prints Markdown.

Two more tables give verdicts on `method="auto"`; `--verdicts` prints only these, and `--table` leaves them out. For
each model: is the energy inside the mask at least twice the mask's share of the image, and higher than that of every
baseline? (An object that the model does not find counts as a map with no energy.) For detectors: in scenes with two
objects of one class, both detected, does the map of one have at least twice as much energy in its own box as in the
other's?
"""

from __future__ import annotations

import argparse
import ast
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from benchmarks.scenes import LABELS, Scene, scenes
from hf_cam import list_methods
from hf_cam.errors import MethodError, TargetError
from hf_cam.explainer import Explainer
from hf_cam.explanation import Explanation
from hf_cam.heads import ClassificationHead, PromptHead, head_kind
from hf_cam.heads.base import overlaps
from hf_cam.methods import get_method
from hf_cam.methods.registry import BUDGET
from hf_cam.metrics import average_precision, centred_gaussian, energy_inside, noise, peak_inside, sobel_edges
from hf_cam.models.loading import LoadedModel, load

MODELS = ("convnext", "vit", "dinov2", "swin", "clip", "detr", "segformer", "maskformer")
DETECTORS = ("detr",)
FOUND = 0.5
"""The lowest overlap between a detection's box and an object's at which the object counts as found."""
Case = tuple[Scene, int]
"""A scene, and the label of an object in it."""
Mapper = Callable[[Scene, int], np.ndarray]
"""Maps a scene and a label to a heatmap `[H, W]` in [0, 1]."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=[*list_methods()])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slow-scenes", type=int, default=20, help="for methods that run one forward pass per channel")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--verdicts", action="store_true", help="omit the table of methods")
    only.add_argument("--table", action="store_true", help="omit the verdicts")
    options = parser.parse_args()
    logging.disable_progress_bar()
    drawn = scenes("test", options.scenes, seed=options.seed)
    truth, few = labelled(drawn), labelled(drawn[: options.slow_scenes])
    print(f"{len(drawn)} scenes with {len(truth)} labels, seed {options.seed}\n")
    if not options.verdicts:
        print_methods(options.models, options.methods, truth, few, options.slow_scenes)
    if options.table:
        return
    print_verdicts(options.models, truth)
    print_twins([model for model in options.models if model in DETECTORS], drawn)


def print_methods(
    models: Sequence[str], methods: Sequence[str], truth: Sequence[Case], few: Sequence[Case], slow_scenes: int
) -> None:
    slow = [method for method in methods if not get_method(parsed(method)[0]).fits(BUDGET)]
    print("| model | map | energy inside | peak inside | average precision | CPU ms per map |")
    print("|---|---|--:|--:|--:|--:|")
    share = share_of(truth)
    print(f"| none | mask's share of the image | {share:.3f} | {share:.3f} | {share:.3f} | |")
    for name, mapper in baselines():
        print(row("none", name, mapper, truth), flush=True)
    for model in models:
        loaded = load(f"demo:{model}")
        quick = [method for method in methods if method not in slow and defined(loaded, method, truth[0])]
        references = reference_of(loaded) if head_kind(loaded.model) is ClassificationHead else ()
        for name, mapper in (*methods_of(loaded, quick), *references):
            print(row(model, name, mapper, truth), flush=True)
        for name, mapper in methods_of(loaded, [*slow, "gradcam"] if slow else []):
            print(row(model, f"{name}, first {slow_scenes} scenes", mapper, few), flush=True)


def print_verdicts(models: Sequence[str], truth: Sequence[Case]) -> None:
    """Whether each model's default map lies on the object."""
    twice = 2 * share_of(truth)
    name, best = max(((name, energy_of(mapper, truth)) for name, mapper in baselines()), key=lambda pair: pair[1])
    print(f"\n| model | auto | energy inside | twice the mask's share | best baseline ({name}) | verdict |")
    print("|---|---|--:|--:|--:|---|")
    for model in models:
        loaded = load(f"demo:{model}")
        method = Explainer(loaded).cam.method.id
        [(_, mapper)] = methods_of(loaded, ["auto"])
        energy = energy_of(mapper, truth)
        met = verdict(energy >= twice and energy > best)
        print(f"| {model} | {method} | {energy:.3f} | {twice:.3f} | {best:.3f} | {met} |", flush=True)


def print_twins(models: Sequence[str], drawn: Sequence[Scene]) -> None:
    """Whether the maps of two objects of one class differ."""
    if not models:
        return
    print("\n| model | auto | maps | energy in its own box | in the other's box | maps with twice as much | verdict |")
    print("|---|---|--:|--:|--:|--:|---|")
    for model in models:
        explainer = Explainer(load(f"demo:{model}"))
        found = [twin for scene in drawn for twin in twins(explainer, scene)]
        if not found:
            print(f"| {model} | {explainer.cam.method.id} | 0 | | | | no two detected objects of one class |")
            continue
        own, others = (np.mean([getattr(twin, name) for twin in found]) for name in ("own", "other"))
        apart = np.mean([twin.own >= 2 * twin.other for twin in found])
        print(
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


def share_of(truth: Sequence[Case]) -> float:
    """The mean share of the image that the masks cover."""
    return float(np.mean([mask_of(scene, label).mean() for scene, label in truth]))


def energy_of(mapper: Mapper, truth: Sequence[Case]) -> float:
    """The mean energy inside the mask."""
    return float(np.mean([judge(mapper(scene, label), mask_of(scene, label))[0] for scene, label in truth]))


def labelled(drawn: Sequence[Scene]) -> list[Case]:
    return [(scene, label) for scene in drawn for label in sorted(set(scene.labels))]


def row(model: str, name: str, mapper: Mapper, truth: Sequence[Case]) -> str:
    started = time.process_time()
    maps = [mapper(scene, label) for scene, label in truth]
    milliseconds = (time.process_time() - started) / len(truth) * 1000
    scores = np.array([judge(found, mask_of(scene, label)) for found, (scene, label) in zip(maps, truth, strict=True)])
    cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(scores.mean(0), errors(scores), strict=True)]
    return f"| {model} | {name} | {' | '.join(cells)} | {milliseconds:.0f} |"


def errors(scores: np.ndarray) -> np.ndarray:
    """The standard errors of the columns' means."""
    return scores.std(0, ddof=1) / len(scores) ** 0.5


def judge(found: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    maps, masks = torch.from_numpy(np.ascontiguousarray(found)), torch.from_numpy(mask)
    return tuple(float(metric(maps, masks)) for metric in (energy_inside, peak_inside, average_precision))


def mask_of(scene: Scene, label: int) -> np.ndarray:
    return scene.classes == 1 + label


def baselines() -> Iterator[tuple[str, Mapper]]:
    seeds = itertools.count()
    yield "noise", lambda scene, _: noise(_pixels(scene), next(seeds))[0].numpy()
    yield "centred Gaussian", lambda scene, _: centred_gaussian(_pixels(scene))[0].numpy()
    yield "Sobel edges", lambda scene, _: sobel_edges(_pixels(scene))[0].numpy()


def _pixels(scene: Scene) -> Tensor:
    return torch.from_numpy(scene.image).permute(2, 0, 1)[None] / 255


def parsed(method: str) -> tuple[str, dict[str, Any]]:
    """The id and the options of `METHOD:NAME=VALUE,...`."""
    name, _, rest = method.partition(":")
    return name, {key: literal(value) for key, value in (one.split("=") for one in rest.split(",") if one)}


def literal(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def asked(loaded: LoadedModel, label: int) -> dict[str, Any]:
    """Arguments that ask a model for a label: CLIP through a prompt, other models through the label itself."""
    if head_kind(loaded.model) is PromptHead:
        return {"text": f"{'an' if LABELS[label][0] in 'aeiou' else 'a'} {LABELS[label]}"}
    return {"target": LABELS[label]}


def defined(loaded: LoadedModel, method: str, case: Case) -> bool:
    """Whether a method is defined for a model."""
    scene, label = case
    method, options = parsed(method)
    explainer = Explainer(loaded, method)
    try:
        list(explainer([Image.fromarray(scene.image)], method_options=options, **asked(loaded, label)))
    except MethodError:
        return False
    except TargetError:
        return True
    return True


def methods_of(loaded: LoadedModel, methods: Sequence[str]) -> Iterator[tuple[str, Mapper]]:
    for method in methods:
        name, options = parsed(method)
        explain = partial(Explainer(loaded, name), method_options=options)

        def explained(scene: Scene, label: int, explain: Callable[..., Any] = explain) -> np.ndarray:
            try:
                [found] = explain([Image.fromarray(scene.image)], **asked(loaded, label))
            except TargetError:  # a segmenter that does not find the class has no map for it
                return np.zeros(scene.classes.shape, np.float32)
            return found[0].heatmap

        yield method, explained


def reference_of(loaded: LoadedModel) -> Iterator[tuple[str, Mapper]]:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from hf_cam.cam import CAM

    class Logits(torch.nn.Module):
        def forward(self, pixel_values: Tensor) -> Tensor:
            return loaded.model(pixel_values).logits

    adapter = CAM(loaded.model).adapter
    layer = loaded.model.get_submodule(adapter.layers[0])
    net = Logits()
    net.inner = loaded.model

    def explained(scene: Scene, label: int) -> np.ndarray:
        pixels = loaded.pixel_values([Image.fromarray(scene.image)])
        size = (pixels.shape[-2], pixels.shape[-1])
        with (
            warnings.catch_warnings(action="ignore"),
            pytorch_grad_cam.GradCAM(net, [layer], lambda t: adapter.to_spatial(t, size)) as cam,
        ):
            found = cam(input_tensor=pixels, targets=[ClassifierOutputTarget(label)])[0]
            cam.activations_and_grads.activations = cam.activations_and_grads.gradients = []
        return np.clip(cv2.resize(found, scene.classes.shape[::-1]), 0, 1)

    yield "grad-cam's GradCAM", explained


if __name__ == "__main__":
    main()
