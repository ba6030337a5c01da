"""Write docs/metrics.md from the registry: `python docs/make_metrics.py`."""

from __future__ import annotations

from pathlib import Path

from hf_cam.metrics import get_metric, list_metrics
from hf_cam.metrics.registry import MEASUREMENTS, Metric

PAGE = Path(__file__).with_name("metrics.md")
HEAD = """# Metrics

Written by `python docs/make_metrics.py` from the registry that `hf_cam.evaluate(metrics=...)` reads. Each metric is a
pure function of the measurements that its parameters name; `hf_cam.metrics.Trial(maps, Scorer(model, inputs, targets))
.measure("road", "insertion")` computes them in batches, seeded, on the model's device. To register a function of your
own, use `@hf_cam.metric(id, name, paper=...)`. The confidence is the probability of a class or the share of a prompt
among several. For any other target (a single prompt, a detection, a segment) it is the target's own value, so the
scores can lie outside the ranges below.

"""
SANITY = """## Sanity of the methods

Does a map depend on what the model has learned, and on the target? The table is written by
`python -m benchmarks.sanity` with the small trained ViT and ConvNeXt bundled with this package. It compares the map of
one class with the map after all weights have been shuffled (within each parameter, so that its distribution stays the
same) and with the map of another class. A value near 1 in the first comparison would mean that the map does not depend
on the weights. Methods that ignore the target are marked in `hf-cam methods` and by `get_method(...).ignores_target`.
Methods that depend only on which tokens the target reads give the same map for every class of a classifier, and are
marked by `.ignores_class`.

"""
STEPS = """## Steps of insertion and deletion

RISE takes one step per row of pixels, which costs as many forwards; `steps=` of `evaluate`, `tune` and `Trial`, and
`--steps` of the command, set the number, and "rise" stands for one per row. Scores at different numbers of steps
cannot be compared, so every table states it. The default is the fewest steps that meet three conditions, measured by
`python -m benchmarks.steps` against one step per row: where that puts at least 0.01 between an image's best and second
best map, they keep their order in 0.9 of the images; of the pairs of methods that it tells apart by two standard
errors, 0.8 are still told apart; and the mean scores are off by at most 0.01. The first two are judged over all models
together, since few images of one model have such a gap.

"""
BASELINES = "`evaluate` also scores the baseline maps `noise`, `centred-gaussian` and `sobel`, which ignore the model."
GRID_GAME = "`grid_mosaics` and `grid_pointing_game` implement the grid pointing game (chance: 1/4), arXiv:2205.10435."


def page() -> str:
    lines = [HEAD + "| id | range | better | what it measures | needs | paper |", "|---|---|---|---|---|---|"]
    lines += [line(get_metric(name)) for name in list_metrics()]
    lines += ["", "## Measurements", "", "| name | what it is |", "|---|---|"]
    lines += [f"| `{one.name}` | {one.meaning} |" for one in MEASUREMENTS.records().values()]
    lines += ["", BASELINES, GRID_GAME]
    lines += ["", STEPS + measured("steps")]
    lines += ["", SANITY + measured("sanity")]
    return "\n".join(lines) + "\n"


def measured(name: str) -> str:
    """A table that a benchmark wrote into the page, including its marks."""
    text = PAGE.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    return text[text.index(start) : text.index(end) + len(end)] if start in text else f"{start}\n\n{end}"


def line(metric: Metric) -> str:
    better = {True: "higher", False: "lower", None: "neither"}[metric.higher_is_better]
    low, high = (f"{end:g}" for end in metric.range)
    interval = f"[{low}, {high}]" if high != "inf" else f"[{low}, ∞)"
    needs = ", ".join(f"`{name}`" for name in metric.needs)
    return f"| `{metric.id}` | {interval} | {better} | {metric.summary} | {needs} | {metric.paper} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
