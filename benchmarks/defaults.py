"""Which method serves each family best: the measurement behind `method="auto"`.

    python -m benchmarks.defaults [--models vit convnext ...] [--scenes 16] [--folder FOLDER] [--out docs/defaults.md]

Every method that does not run one forward pass per channel, including those for transformers, explains one item in each
scene (test split, seed 2) with the small trained models of this package, and the top class of the photographs with
demo:imagenet. What is explained depends on the head: a class, a prompt ("a bag"), the region of a class, the detection
or the segment of one object. The method with the best mean rank over ROAD, insertion minus deletion and, if masks are
known, average precision is chosen among the methods that meet three conditions: the map depends on the class and on the
weights (shuffling them must lower the rank correlation below 0.9); the method costs at most twice as much as Grad-CAM;
and, image by image, it beats Grad-CAM by two standard errors in at least one metric and is worse by one in none. If no
method does, Grad-CAM is chosen. Writes Markdown, and prints what `method="auto"` uses. `--folder` keeps the records, so
that a run can be resumed; the tables of models that are not named stay as they are.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.scenes import LABELS, Scene, phrase, scenes
from hf_cam.evaluation.bench import evaluate
from hf_cam.evaluation.samples import Sample
from hf_cam.evaluation.table import Evaluation, Row, in_steps
from hf_cam.explainer import Explainer
from hf_cam.images.reading import load_image
from hf_cam.interfaces.demo import PHOTOGRAPHS
from hf_cam.methods import get_method
from hf_cam.methods.registry import BUDGET, methods_within
from hf_cam.metrics import BASELINES, get_metric
from hf_cam.models.loading import load

MODELS = ("convnext", "vit", "dinov2", "swin", "imagenet", "clip", "segformer", "detr", "maskformer")
ASKED = ("road", "insertion-deletion")
MASKED = "average-precision"
SANITY, SAME = "model-randomization", 0.9
COST = 2.0
"""The highest cost of a default, as a multiple of Grad-CAM's."""
SHUFFLED = 4
CALLS = 5
"""The number of images on which the cost is measured."""
START, END = "<!-- measured -->", "<!-- end -->"


@dataclass(frozen=True)
class Family:
    """A model, the method chosen by the measurement, the one that `method="auto"` uses, and the section of the page."""

    model: str
    chosen: str
    auto: str
    page: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--methods", nargs="+", default=methods_within(BUDGET))
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--folder", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--out", type=Path, default=Path("docs/defaults.md"))
    options = parser.parse_args()
    drawn = scenes("test", options.scenes, seed=2)
    for model in options.models:
        family = measured(model, samples_of(model, drawn), options.methods, options.folder)
        write(options.out, family)
        print(f"{model}: {family.chosen}, auto uses {family.auto}", flush=True)


def measured(model: str, samples: Sequence[Sample], methods: Sequence[str], folder: Path) -> Family:
    judged = (*ASKED, *((MASKED,) if samples[0].mask is not None else ()))
    found = evaluate(f"demo:{model}", samples, methods=methods, metrics=judged, resume=folder / f"{model}.jsonl")
    sane = evaluate(
        f"demo:{model}",
        samples[:SHUFFLED],
        methods=[name for name in methods if name not in found.skipped],
        metrics=[SANITY],
        baselines=False,
        resume=folder / f"{model}-sanity.jsonl",
    )
    correlations = {row.map: row.means[SANITY] for row in sane.rows}
    chosen, table = ranked(found, judged, correlations, costs(model, samples[:CALLS], [row.map for row in found.rows]))
    auto = Explainer(load(f"demo:{model}"), "auto").cam.method.id
    page = f"### {model}\n\n{len(samples)} images, {WHAT[model]}; layer `{layer_of(found)}`"
    if found.skipped:
        page += f". Not defined here: {', '.join(found.skipped)}"
    page += f"\n\n{table}"
    for name in sorted({chosen, auto} - {"gradcam"}):
        page += f"\n\n{name} minus Grad-CAM, image by image: {differences(found, name, judged)}"
    return Family(model, chosen, auto, page)


def costs(model: str, samples: Sequence[Sample], maps: Sequence[str]) -> dict[str, float]:
    """The median processor time of an explanation in milliseconds, per method; baselines are omitted."""
    loaded = load(f"demo:{model}")
    found = {}
    for method in maps:
        if method in BASELINES:
            continue
        explainer = Explainer(loaded, method)
        times = []
        for sample in (samples[0], *samples):
            started = time.process_time()
            next(explainer([load_image(sample.image)], target=sample.target, text=sample.text))
            times.append(time.process_time() - started)
        found[method] = float(np.median(times[1:])) * 1000
    return found


def samples_of(model: str, drawn: Sequence[Scene]) -> list[Sample]:
    if model == "imagenet":
        return [Sample(photograph.image(), photograph.name) for photograph in PHOTOGRAPHS]
    return [SAMPLES.get(model, of_class)(scene, str(index)) for index, scene in enumerate(drawn)]


def of_class(scene: Scene, name: str) -> Sample:
    """The class of the first item: the logit of a classifier, the region of a segmenter."""
    label = scene.labels[0]
    return Sample(scene.image, name, scene.classes == 1 + label, LABELS[label])


def of_prompt(scene: Scene, name: str) -> Sample:
    """The share of the first item's prompt among the prompts of four labels."""
    first = scene.labels[0]
    prompts = [phrase((first + step) % len(LABELS), 0) for step in range(4)]
    return Sample(scene.image, name, scene.classes == 1 + first, prompts[0], prompts)


def of_box(scene: Scene, name: str) -> Sample:
    """The detection of the first item; the mask covers this item only, not others of its class."""
    return Sample(scene.image, name, scene.instances == 1, tuple(map(float, scene.boxes[0])))


def of_mask(scene: Scene, name: str) -> Sample:
    return Sample(scene.image, name, scene.instances == 1, scene.instances == 1)


SAMPLES: Mapping[str, Callable[[Scene, str], Sample]] = {"clip": of_prompt, "detr": of_box, "maskformer": of_mask}
WHAT = {
    **dict.fromkeys(MODELS, "the class of one item"),
    "imagenet": "the top class",
    "clip": "the prompt that names one item's class, among four",
    "segformer": "the region of one item's class",
    "detr": "the detection of one item",
    "maskformer": "the segment of one item",
}


def ranked(
    found: Evaluation, judged: Sequence[str], correlations: dict[str, float], milliseconds: dict[str, float]
) -> tuple[str, str]:
    """The eligible method with the best mean rank, and the table."""
    rows = found.rows
    places = {row.map: 0.0 for row in rows}
    for metric in judged:
        sign = 1 if get_metric(metric).higher_is_better else -1
        values = np.array([sign * row.means[metric] for row in rows])
        for row, value in zip(rows, values, strict=True):
            places[row.map] += ((values > value).sum() + ((values == value).sum() + 1) / 2) / len(judged)
    rows.sort(key=lambda row: places[row.map])
    limit = COST * milliseconds["gradcam"]
    sane = [row.map for row in rows if is_sane(row.map, correlations) and milliseconds[row.map] <= limit]
    beating = [name for name in sane if beats(found, name, judged)]
    best = (beating or ["gradcam"])[0]
    heads = [metric + in_steps(metric, found.steps) for metric in judged]
    lines = ["| map | mean rank | " + " | ".join(heads) + " | correlation after shuffling the weights | CPU ms |"]
    lines.append("|---|--:|" + "--:|" * (len(judged) + 2))
    lines += [line(row, places[row.map], judged, correlations, milliseconds, row.map == best) for row in rows]
    return best, "\n".join(lines)


def beats(found: Evaluation, name: str, judged: Sequence[str]) -> bool:
    """Whether a method is significantly better than Grad-CAM, image by image."""
    gains = []
    for metric in judged:
        sign = 1 if get_metric(metric).higher_is_better else -1
        mean, error = difference(found, name, metric)
        gains.append(sign * mean / max(error, 1e-6))
    return max(gains) > 2 and min(gains) > -1


def difference(found: Evaluation, name: str, metric: str, reference: str = "gradcam") -> tuple[float, float]:
    """A method's score minus the reference's on the same images: mean and standard error."""
    own, other = ({r.image: r.scores[metric] for r in found.records if r.map == map_} for map_ in (name, reference))
    values = np.array([score - other[image] for image, score in own.items()])
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def differences(found: Evaluation, name: str, judged: Sequence[str]) -> str:
    pairs = [(metric, *difference(found, name, metric)) for metric in judged]
    return ", ".join(f"{metric} {mean:+.3f} ± {error:.3f}" for metric, mean, error in pairs) + "."


def is_sane(name: str, correlations: dict[str, float]) -> bool:
    if name in BASELINES or name == "randomcam" or name not in correlations:
        return False
    return not get_method(name).ignores_class and correlations[name] < SAME


def line(
    row: Row,
    place: float,
    judged: Sequence[str],
    correlations: dict[str, float],
    milliseconds: dict[str, float],
    best: bool,
) -> str:
    name = f"**{row.map}**" if best else row.map
    cells = [f"{row.means[metric]:.3f} ± {row.errors[metric]:.3f}" for metric in judged]
    shuffled = f"{correlations[row.map]:.2f}" if row.map in correlations else ""
    cost = f"{milliseconds[row.map]:.0f}" if row.map in milliseconds else ""
    return f"| {name} | {place:.1f} | " + " | ".join(cells) + f" | {shuffled} | {cost} |"


def layer_of(found: Evaluation) -> str:
    return next(", ".join(row.layers) for row in found.rows if row.map == "gradcam")


def write(path: Path, family: Family) -> None:
    """Replace a model's table between the marks of the page; the rest of the page stays as it is."""
    before, rest = path.read_text(encoding="utf-8").split(START)
    body, after = rest.split(END)
    head, *sections = body.split("\n### ")
    pages = {section.split("\n")[0]: f"### {section.strip()}" for section in sections}
    chosen = json.loads(head.strip().strip("`"))
    pages[family.model], chosen[family.model] = family.page, family.chosen
    names = [model for model in MODELS if model in pages]
    listed = json.dumps({name: chosen[name] for name in names})
    body = f"\n\n`{listed}`\n\n" + "\n\n".join(pages[name] for name in names) + "\n\n"
    path.write_text(before + START + body + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
