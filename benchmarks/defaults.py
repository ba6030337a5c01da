"""Which method serves each family best: the measurement behind `method="auto"`.

    python -m benchmarks.defaults [--models vit convnext ...] [--scenes 16] [--folder FOLDER] [--out docs/defaults.md]

Every quick method explains one label of each scene (test split, seed 2) to the small trained models of this package,
and the top class of the photographs to demo:imagenet. A method is chosen by its mean rank over ROAD, insertion less
deletion and, where masks are known, average precision, among the methods whose map depends on the target and on the
weights (shuffling the weights must take the rank correlation below 0.9), that cost at most twice Grad-CAM, and that
beat Grad-CAM image by image: by two standard errors in one metric, and by one standard error worse in none. Where none
does, Grad-CAM it is. Writes Markdown; `--folder` keeps the records, so that a run can be resumed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.scenes import Scene, scenes
from hf_cam.comparison import quick_methods
from hf_cam.demo import PHOTOGRAPHS
from hf_cam.evaluation import Evaluation, Row, Sample, evaluate
from hf_cam.methods import get_method
from hf_cam.metrics import BASELINES, get_metric

MODELS = ("convnext", "vit", "dinov2", "swin", "imagenet")
ASKED = ("road", "insertion-deletion")
MASKED = "average-precision"
SANITY, SAME = "model-randomization", 0.9
COST = 2.0
"""Of a default, over Grad-CAM's: a heatmap at the price of an inference."""
SHUFFLED = 4
START, END = "<!-- measured -->", "<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=quick_methods())
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--folder", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--out", type=Path, default=Path("docs/defaults.md"))
    options = parser.parse_args()
    drawn = [sample(scene, i) for i, scene in enumerate(scenes("test", options.scenes, seed=2))]
    photographs = [Sample(photograph.image(), photograph.name) for photograph in PHOTOGRAPHS]
    chosen, tables = {}, []
    for model in options.models:
        samples = photographs if model == "imagenet" else drawn
        judged = (*ASKED, *((MASKED,) if model != "imagenet" else ()))
        run = options.folder / model
        found = evaluate(
            f"demo:{model}", samples, methods=options.methods, metrics=judged, resume=run.with_suffix(".jsonl")
        )
        sane = evaluate(
            f"demo:{model}",
            samples[:SHUFFLED],
            methods=[name for name in options.methods if name not in found.skipped],
            metrics=[SANITY],
            baselines=False,
            resume=options.folder / f"{model}-sanity.jsonl",
        )
        correlations = {row.map: row.means[SANITY] for row in sane.rows}
        chosen[model], table = ranked(found, judged, correlations)
        tables.append(f"### {model}\n\n{len(samples)} images; layer `{layer_of(found)}`\n\n{table}")
        print(f"{model}: {chosen[model]}", flush=True)
    write(options.out, chosen, tables)


def sample(scene: Scene, index: int) -> Sample:
    label = scene.labels[0]
    return Sample(scene.image, str(index), scene.classes == 1 + label, label)


def ranked(found: Evaluation, judged: Sequence[str], correlations: dict[str, float]) -> tuple[str, str]:
    """The method of the best mean rank, and the table."""
    rows = found.rows
    places = {row.map: 0.0 for row in rows}
    for metric in judged:
        sign = 1 if get_metric(metric).higher_is_better else -1
        values = np.array([sign * row.means[metric] for row in rows])
        for row, value in zip(rows, values, strict=True):
            places[row.map] += ((values > value).sum() + ((values == value).sum() + 1) / 2) / len(judged)
    rows.sort(key=lambda row: places[row.map])
    limit = COST * next(row.milliseconds for row in rows if row.map == "gradcam")
    sane = [row.map for row in rows if is_sane(row.map, correlations) and row.milliseconds <= limit]
    beating = [name for name in sane if beats(found, name, judged)]
    best = (beating or ["gradcam"])[0]
    lines = ["| map | mean rank | " + " | ".join(judged) + " | same after shuffling the weights | ms |"]
    lines.append("|---|--:|" + "--:|" * (len(judged) + 2))
    lines += [line(row, places[row.map], judged, correlations, row.map == best) for row in rows]
    return best, "\n".join(lines)


def beats(found: Evaluation, name: str, judged: Sequence[str], reference: str = "gradcam") -> bool:
    """Whether a method is better than the reference by more than chance, image by image."""
    own, other = ({r.image: r.scores for r in found.records if r.map == map_} for map_ in (name, reference))
    gains = []
    for metric in judged:
        sign = 1 if get_metric(metric).higher_is_better else -1
        differences = np.array([sign * (scores[metric] - other[image][metric]) for image, scores in own.items()])
        gains.append(differences.mean() / max(differences.std(ddof=1) / len(differences) ** 0.5, 1e-6))
    return max(gains) > 2 and min(gains) > -1


def is_sane(name: str, correlations: dict[str, float]) -> bool:
    if name in BASELINES or name == "randomcam" or name not in correlations:
        return False
    return not get_method(name).ignores_target and correlations[name] < SAME


def line(row: Row, place: float, judged: Sequence[str], correlations: dict[str, float], best: bool) -> str:
    name = f"**{row.map}**" if best else row.map
    cells = [f"{row.means[metric]:.3f} ± {row.errors[metric]:.3f}" for metric in judged]
    shuffled = f"{correlations[row.map]:.2f}" if row.map in correlations else ""
    return f"| {name} | {place:.1f} | " + " | ".join(cells) + f" | {shuffled} | {row.milliseconds:.0f} |"


def layer_of(found: Evaluation) -> str:
    return next(", ".join(row.layers) for row in found.rows if row.layers)


def write(path: Path, chosen: dict[str, str], tables: Sequence[str]) -> None:
    """Put the tables between the marks of the page; the words around them stay."""
    before, rest = path.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    body = f"\n\n`{json.dumps(chosen)}`\n\n" + "\n\n".join(tables) + "\n\n"
    path.write_text(before + START + body + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
