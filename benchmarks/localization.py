"""How well each method's map lies on the object that it explains, in scenes whose masks are known.

    python -m benchmarks.localization [--models vit convnext ...] [--methods gradcam legrad:start_layer=-2 ...]
                                      [--seed 3] [--scenes 200] [--slow-scenes 10] [--records FILE] [--print]
                                      [--wide] [--markdown PAGE MARK]

A method may carry options, `METHOD:NAME=VALUE,...`. For every scene of the test split and every label in it, each
method explains that label's logit, for CLIP the prompt "a sneaker", for a detector its surest object of the class and
for a segmenter the region of the class; an object that the model does not find counts as a map with no energy. The map
is compared with the mask of that label: energy inside, peak inside and average precision, each with its mean and
standard error over all labels. For comparison, the table includes baseline maps (noise, a centred Gaussian, Sobel
edges), grad-cam's Grad-CAM on the same layer if Grad-CAM is measured, and the mask's share of the image, which is the
expected score of an uninformative map. The word "budget" stands for all methods that take at most 100 forwards; others
are measured if they are named, on the first `--slow-scenes` scenes only. A row of fewer scenes than the others states
their number, and Grad-CAM has a row for the same scenes.

The scores of each scene are appended to a file as they are made (by default `runs/localization.jsonl`), and what the
file has is not measured again: a run can be stopped, and continued with other models, methods or seeds. `--print` only
prints what is there. Prints Markdown: one row per model and map, or with `--wide` one row per map and one column per
model; `--markdown` writes it into a page, between two marks.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from transformers.utils import logging

from benchmarks.grad_cam import Logits, class_targets, let_go, package
from benchmarks.localized import (
    BASELINES,
    METRICS,
    NO_MODEL,
    SHARE,
    Found,
    Located,
    Mapper,
    Numbered,
    append,
    each,
    is_defined,
    mapper_of,
    measured,
    parsed,
    pending,
    read,
)
from benchmarks.pages import write
from benchmarks.scenes import Scene, scenes
from hf_cam import list_methods
from hf_cam.cam import CAM
from hf_cam.heads import ClassificationHead, head_kind
from hf_cam.methods import get_method
from hf_cam.methods.registry import BUDGET, methods_within
from hf_cam.models.loading import LoadedModel, load

MODELS = ("convnext", "vit", "dinov2", "swin", "clip", "detr", "segformer", "maskformer")
GRAD_CAM = "grad-cam's GradCAM"
WITHIN = "budget"
"""The word for all methods within the budget."""
RECORDS = Path("runs/localization.jsonl")
QUOTED = 3
"""The seed of the scenes whose figures are quoted; defaults are chosen on those of seed 1."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--methods", nargs="+", default=[WITHIN])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=QUOTED)
    parser.add_argument("--slow-scenes", type=int, default=10, help="for methods that take more than 100 forwards")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--print", action="store_true", help="measure nothing")
    parser.add_argument("--wide", action="store_true", help="one column per model")
    parser.add_argument("--markdown", nargs=2, metavar=("PAGE", "MARK"), help="also write the table into this page")
    options = parser.parse_args()
    methods = list(
        dict.fromkeys(chain(*(methods_within(BUDGET) if one == WITHIN else [one] for one in options.methods)))
    )
    logging.disable_progress_bar()
    if not options.print:
        drawn = scenes("test", options.scenes, seed=options.seed)
        for model in (NO_MODEL, *options.models):
            measure(model, methods, drawn, options.seed, options.slow_scenes, options.records)
    found = of_scenes(read(options.records), options.seed, options.scenes)
    text = (wide if options.wide else table)(found, options.models, methods, options.seed)
    print(text)
    if options.markdown:
        page, mark = options.markdown
        write(Path(page), mark, text)


def measure(
    model: str, methods: Sequence[str], drawn: Sequence[Scene], seed: int, slow_scenes: int, records: Path
) -> None:
    """Append what the file lacks of one model."""
    found = read(records)
    for name, mapper in mappers(model, methods):
        own = drawn[:slow_scenes] if is_slow(name) else drawn
        left = pending(found, (model, name, seed), own)
        if left and (model, name, seed) not in found and not is_defined(mapper, left[0]):
            continue
        append(records, measured((model, name, seed), mapper, left))


def mappers(model: str, methods: Sequence[str]) -> Iterator[tuple[str, Mapper]]:
    if model == NO_MODEL:
        yield from BASELINES.items()
        return
    loaded = load(f"demo:{model}")
    for method in methods:
        yield method, mapper_of(loaded, method)
    if "gradcam" in methods and head_kind(loaded.model) is ClassificationHead:
        yield GRAD_CAM, grad_cam_of(loaded)


def is_slow(name: str) -> bool:
    method, options = parsed(name)
    return method in list_methods() and not get_method(method).fits(BUDGET, **options)


def grad_cam_of(loaded: LoadedModel) -> Mapper:
    """grad-cam's Grad-CAM at the same layer."""
    adapter = CAM(loaded.model).adapter
    layer = loaded.model.get_submodule(adapter.layers[0])

    def explained(one: Numbered, label: int) -> np.ndarray:
        pixels = loaded.pixel_values([Image.fromarray(one[1].image)])
        size = (pixels.shape[-2], pixels.shape[-1])
        with (
            warnings.catch_warnings(action="ignore"),
            package().GradCAM(Logits(loaded.model), [layer], lambda t: adapter.to_spatial(t, size)) as cam,
        ):
            found = cam(input_tensor=pixels, targets=class_targets([label]))[0]
            let_go(cam)
        return np.clip(cv2.resize(found, one[1].classes.shape[::-1]), 0, 1)

    return each(explained)


# Tables --------------------------------------------------------------------------------------------------------------


def of_scenes(found: Found, seed: int, scenes: int) -> Found:
    """The records of the first scenes of a seed."""
    cut = {key: {n: one for n, one in own.items() if n < scenes} for key, own in found.items() if key[2] == seed}
    return {key: own for key, own in cut.items() if own}


def scores_of(own: dict[int, Located], scenes: int) -> np.ndarray:
    """The scores `[labels, metrics]` of the first scenes."""
    return np.concatenate([np.array(own[number].scores) for number in sorted(own) if number < scenes])


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def shown(values: np.ndarray) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:.3f} ± {error:.3f}"


def headline(found: Found, seed: int) -> str:
    """The number of scenes and labels."""
    most = max(found.values(), key=len)
    return f"{len(most)} scenes of seed {seed} with {len(scores_of(most, len(most)))} labels"


def table(found: Found, models: Sequence[str], methods: Sequence[str], seed: int) -> str:
    """One row per model and map."""
    lines = [headline(found, seed), "", f"| model | map | {' | '.join(METRICS)} | CPU ms per map |"]
    lines.append("|---|---|--:|--:|--:|--:|")
    most = max(len(own) for own in found.values())
    for model in (NO_MODEL, *models):
        named = [*BASELINES] if model == NO_MODEL else [*methods, GRAD_CAM]
        rows = {name: own for name in named if (own := found.get((model, name, seed)))}
        for name, own in rows.items():
            lines.append(row(model, name, own, most))
        counts = sorted({len(own) for own in rows.values() if len(own) < most})
        if len(rows.get("gradcam", ())) == most:
            lines += [row(model, "gradcam", rows["gradcam"], most, fewer) for fewer in counts]
    return "\n".join(lines)


def row(model: str, name: str, own: dict[int, Located], most: int, scenes: int | None = None) -> str:
    count = scenes or len(own)
    scores = scores_of(own, count)
    milliseconds = np.mean([one.seconds for one in own.values()]) * 1000
    title = name if count == most else f"{name}, first {count} scenes"
    if name == SHARE:  # of a constant map, only the energy means something
        scores = scores[:, [0, 0, 0]]
    return f"| {model} | {title} | {' | '.join(map(shown, scores.T))} | {milliseconds:.0f} |"


def wide(found: Found, models: Sequence[str], methods: Sequence[str], seed: int) -> str:
    """One row per map, with energy inside and average precision per model."""
    lines = [headline(found, seed) + ", energy inside / average precision", "", f"| map | {' | '.join(models)} |"]
    lines.append("|---|" + "--:|" * len(models))
    for name in methods:
        cells = [found.get((model, name, seed)) for model in models]
        pairs = [
            f"{shown(scores_of(own, 10**6)[:, 0])} / {shown(scores_of(own, 10**6)[:, 2])}" if own else "not defined"
            for own in cells
        ]
        lines.append(f"| {name} | {' | '.join(pairs)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
