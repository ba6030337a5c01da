"""Write the table of docs/metrics.md from the registry: python docs/make_metrics.py."""

from __future__ import annotations

from pathlib import Path

from hf_cam.metrics import get_metric, list_metrics
from hf_cam.metrics.registry import MEASUREMENTS, Metric

PAGE = Path(__file__).with_name("metrics.md")
HEAD = """# Metrics

Written by `python docs/make_metrics.py` from the registry that `hf_cam.evaluate(metrics=...)` reads. Each metric is a
pure function of the measurements that its parameters name; `hf_cam.metrics.Trial(maps, Scorer(model, inputs, targets))
.measure("road", "insertion")` makes them, in batches, seeded, on the model's device. A function of your own is
registered by `@hf_cam.metric(id, name, paper=...)`. The confidence is the probability of a class, a prompt's share
among several prompts, and of any other target (a lone prompt, a detection, a segment) the target's own value, which a
range below may not hold.

"""
SANITY = """## Sanity of the methods

Does a map depend on what the model learnt, and on what was asked? Written by `python -m benchmarks.sanity`: the small
trained ViT and ConvNeXt of this package, the maps of one class, after all weights were shuffled (each parameter within
itself, so that it keeps its distribution), and of another class. A method that ignores the target says so in
`hf-cam methods` and in `get_method(...).ignores_target`; one that goes by the tokens that the target reads, and on a
classifier these are the same for every class, in `.ignores_class`. Grad-CAM and its kin on an untrained network draw
what an untrained network computes: what matters is that nothing near 1 stays of the map.

"""
START, END = "<!-- sanity -->", "<!-- end of sanity -->"


def page() -> str:
    lines = [HEAD + "| id | range | better | what it measures | needs | paper |", "|---|---|---|---|---|---|"]
    lines += [line(get_metric(name)) for name in list_metrics()]
    lines += ["", "## Measurements", "", "| name | what it is |", "|---|---|"]
    lines += [f"| `{one.name}` | {one.meaning} |" for one in MEASUREMENTS.records().values()]
    lines += ["", "Beside every score stand maps that see no model: `noise`, `centred-gaussian` and `sobel`."]
    lines += ["`grid_mosaics` and `grid_pointing_game` play the grid pointing game (chance 1/4), arXiv:2205.10435."]
    lines += ["", SANITY + measured()]
    return "\n".join(lines) + "\n"


def measured() -> str:
    """What `benchmarks.sanity` wrote into the page, marks included."""
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(START) : text.index(END) + len(END)] if START in text else f"{START}\n\n{END}"


def line(metric: Metric) -> str:
    better = {True: "higher", False: "lower", None: "neither"}[metric.higher_is_better]
    low, high = (f"{end:g}" for end in metric.range)
    interval = f"[{low}, {high}]" if high != "inf" else f"[{low}, ∞)"
    needs = ", ".join(f"`{name}`" for name in metric.needs)
    return f"| `{metric.id}` | {interval} | {better} | {metric.summary} | {needs} | {metric.paper} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
