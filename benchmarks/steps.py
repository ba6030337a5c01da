"""How many steps insertion and deletion need: the measurement behind the default of `steps=`.

    python -m benchmarks.steps [--models vit convnext ...] [--scenes 20] [--seed 1] [--methods gradcam ...]
                               [--folder FOLDER] [--markdown docs/metrics.md]

The curves of every method's maps are computed with one step per row of pixels, as RISE does, and read at fewer steps.
For each number of steps and each metric the table shows in how many images the best map still scores higher than the
second best, where one step per row puts at least 0.01 between them; how many of the pairs of methods that one step per
row tells apart, by two standard errors of their difference image by image, are still told apart in the same order; and
how far the mean scores are from those with one step per row. Prints Markdown, and the fewest steps from which on the
first is at least 0.9, the second at least 0.8 and the last at most 0.01 for both metrics, over the images and pairs of
all models, since a model alone has only a few; `--markdown` writes both into the page. `--folder` keeps the curves of
each model, which are not computed again there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from benchmarks.pages import write
from benchmarks.scenes import Scene, scenes
from hf_cam.cam import CAM
from hf_cam.metrics import Scorer, Trial, area
from hf_cam.models.loading import LoadedModel, load
from hf_cam.targets import ClassLogit, ClassProbability

MODELS = ("vit", "dinov2", "convnext", "swin")
METHODS = ("gradcam", "layercam", "gradcam++", "eigencam", "fullgrad", "legrad", "gradeclip")
CURVES = {"insertion": "inserted", "deletion": "deleted"}
GAP = 0.01
"""The smallest difference of two maps that is to be seen."""
BEST, PAIRS, OFF = 0.9, 0.8, 0.01
"""The lowest shares of images and pairs in the same order, and the largest distance of the scores."""


@dataclass(frozen=True)
class Curves:
    """The curves `[images, rows + 1]` of each method and metric."""

    found: dict[tuple[str, str], np.ndarray]
    methods: tuple[str, ...]

    @property
    def rows(self) -> int:
        return next(iter(self.found.values())).shape[1] - 1

    def scores(self, metric: str, steps: int) -> dict[str, np.ndarray]:
        """The scores per image, by method, at a number of steps that divides the rows."""
        thin = {name: self.found[metric, name][:, :: self.rows // steps] for name in self.methods}
        sign = 1 if metric == "insertion" else -1
        return {name: sign * area(torch.from_numpy(curve)).numpy() for name, curve in thin.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/steps"))
    parser.add_argument("--markdown", type=Path, help="the page to write the table into")
    options = parser.parse_args()
    logging.disable_progress_bar()
    drawn = scenes("test", options.scenes, seed=options.seed)
    table = ["| model | metric | steps | best map above the second | pairs told apart | scores off by |"]
    table.append("|---|---|--:|--:|--:|--:|")
    lines: dict[tuple[str, int], list[Line]] = {}
    for model in options.models:
        path = options.folder / f"{model}, {options.scenes} scenes of seed {options.seed}.npz"
        if not path.exists():
            save(path, measured(load(f"demo:{model}"), options.methods, drawn))
        curves = kept(path)
        counts = [steps for steps in range(4, curves.rows + 1) if curves.rows % steps == 0]
        for metric in CURVES:
            for n in counts:
                lines.setdefault((metric, n), []).append(compared(curves, metric, n))
    together = {key: Line.of_all(several) for key, several in lines.items() if len(several) == len(options.models)}
    table += [f"| all | {metric} | {n} | {line.cells()} |" for (metric, n), line in together.items()]
    counts = sorted({n for _, n in together})
    good = [all(together[metric, n].suffices for metric in CURVES) for n in counts]
    enough = next(counts[i] for i in range(len(counts)) if all(good[i:]))
    for metric in CURVES:
        own = zip(options.models, lines[metric, enough], strict=True)
        table += [f"| {model} | {metric} | {enough} | {line.cells()} |" for model, line in own]
    text = f"{len(drawn)} scenes, the class of the first item:\n\n" + "\n".join(table)
    text += f"\n\nThe fewest steps that suffice for both metrics: {enough}."
    print(text)
    if options.markdown:
        write(options.markdown, "steps", text)


def measured(loaded: LoadedModel, methods: Sequence[str], drawn: Sequence[Scene]) -> Curves:
    """The curves with one step per row of pixels."""
    cams = {name: CAM(loaded.model, name) for name in methods}
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for scene in drawn:
        pixels, label = loaded.pixel_values([Image.fromarray(scene.image)]), scene.labels[0]
        scorer = Scorer(loaded.model, {"pixel_values": pixels}, [ClassProbability(label)])
        for name, cam in list(cams.items()):
            try:
                trial = Trial(cam(pixels, ClassLogit(label)), scorer, steps="rise")
            except ValueError:  # not defined for the model
                del cams[name]
                continue
            for metric, curve in CURVES.items():
                found.setdefault((metric, name), []).append(trial.value(curve)[0].numpy())
    return Curves({key: np.stack(curves) for key, curves in found.items()}, tuple(cams))


def save(path: Path, curves: Curves) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{f"{metric} {method}": curve for (metric, method), curve in curves.found.items()})


def kept(path: Path) -> Curves:
    """The curves of a file that `save` wrote."""
    with np.load(path) as arrays:
        found = {tuple(name.split(" ", 1)): arrays[name] for name in arrays.files}
    return Curves(found, tuple(dict.fromkeys(method for _, method in found)))


@dataclass(frozen=True)
class Line:
    """One number of steps, compared with one per row: images and pairs in the same order, and how many there are."""

    best: int
    images: int
    pairs_kept: int
    pairs: int
    off: float

    @classmethod
    def of_all(cls, lines: Sequence[Line]) -> Line:
        """Over the images and pairs of several models."""
        best, images, pairs_kept, pairs = (
            sum(getattr(line, name) for line in lines) for name in ("best", "images", "pairs_kept", "pairs")
        )
        return cls(best, images, pairs_kept, pairs, max(line.off for line in lines))

    def cells(self) -> str:
        return f"{share(self.best, self.images)} | {share(self.pairs_kept, self.pairs)} | {self.off:.3f}"

    @property
    def suffices(self) -> bool:
        same = self.best >= BEST * self.images and self.pairs_kept >= PAIRS * self.pairs
        return same and self.off <= OFF


def share(part: int, whole: int) -> str:
    """Such as "0.80 (4 of 5)".

    >>> share(4, 5)
    '0.80 (4 of 5)'
    """
    return f"{part / whole:.2f} ({part} of {whole})" if whole else "-"


def compared(curves: Curves, metric: str, steps: int) -> Line:
    scores, finest = curves.scores(metric, steps), curves.scores(metric, curves.rows)
    own, full = (np.stack([found[name] for name in curves.methods]) for found in (scores, finest))
    [second, best], images = full.argsort(0)[-2:], np.arange(full.shape[1])
    seen = full[best, images] - full[second, images] >= GAP
    above = (own[best, images] > own[second, images])[seen]
    told = [pair for pair in combinations(curves.methods, 2) if apart(finest, pair)]
    kept = [apart(scores, pair) == apart(finest, pair) for pair in told]
    off = float(np.abs(own.mean(1) - full.mean(1)).max())
    return Line(int(above.sum()), len(above), sum(kept), len(kept), off)


def apart(scores: dict[str, np.ndarray], pair: tuple[str, str]) -> int:
    """1 or -1 if the first or the second method of a pair is better by two standard errors, else 0."""
    mean, error = difference(scores[pair[0]], scores[pair[1]])
    return int(np.sign(mean)) if abs(mean) >= 2 * error else 0


def difference(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The mean difference image by image, and its standard error."""
    gaps = one - other
    return float(gaps.mean()), float(gaps.std(ddof=1) / len(gaps) ** 0.5)


if __name__ == "__main__":
    main()
