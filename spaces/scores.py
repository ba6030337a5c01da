"""How far a map can be trusted: the evaluation of one picture as plots, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from hf_cam import Evaluation
from hf_cam.comparison import quick_methods
from hf_cam.evaluation.table import in_steps
from hf_cam.methods import get_method
from hf_cam.metrics import get_metric
from hf_cam.metrics.trial import PERCENTILES

RANDOM = "noise"
"""The random map, as the library names it."""
MAPS = {"this map": "#6366f1", "random map": "#94a3b8"}
"""The lines of the plots and their colours."""
LINES = ("inserted", "deleted", "road")
"""The plots of the score over a share of the pixels."""


def plots_of(table: Evaluation, method: str) -> dict[str, pd.DataFrame]:
    """The method's map beside the random one: a frame for each of `LINES`, and one named "drop"."""
    names = dict(zip((method, RANDOM), MAPS, strict=True))
    shown = {names[record.map]: record for record in table.records if record.map in names}
    lines = {name: lines_of(record.curves) for name, record in shown.items()}
    frames = {
        plot: pd.DataFrame(
            [(round(x, 3), y, name) for name in shown for x, y in lines[name][plot]],
            columns=["pixels", "score", "map"],
        )
        for plot in LINES
    }
    drops = [(name, record.scores["confidence-drop"]) for name, record in shown.items()]
    return {**frames, "drop": pd.DataFrame(drops, columns=["map", "drop"])}


def lines_of(curves: Mapping[str, Sequence[float]]) -> dict[str, list[tuple[float, float]]]:
    """The points of each of `LINES`: a share of the pixels in [0, 1], and the score there.

    ROAD's score is half the difference between imputing the least and the most important pixels.
    """
    road = [
        (1 - percentile / 100, (least - most) / 2)
        for percentile, most, least in zip(PERCENTILES, curves["most_first"], curves["least_first"], strict=True)
    ]
    return {"inserted": _evenly(curves["inserted"]), "deleted": _evenly(curves["deleted"]), "road": road[::-1]}


def _evenly(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(i / (len(values) - 1), value) for i, value in enumerate(values)]


def _head(metric: str, table: Evaluation) -> str:
    record = get_metric(metric)
    return f"{record.name}{in_steps(metric, table.steps)} {'↑' if record.higher_is_better else '↓'}"


def table_of(table: Evaluation) -> str:
    """Markdown with one line per map, the best first; arrows show which direction is better."""
    records = {record.map: record for record in table.records}
    heads = [_head(name, table) for name in table.metrics]
    lines = ["| map | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for row in table.rows:
        cells = [f"{records[row.map].scores[name]:.3f}" for name in table.metrics]
        lines.append("| " + " | ".join([map_name(row.map), *cells]) + " |")
    return "\n".join(lines)


def map_name(name: str) -> str:
    """A method's name, or a baseline's."""
    return get_method(name).name if name in quick_methods() else map_id(name)


def map_id(name: str) -> str:
    """What the page calls a map: a method's id, or a baseline's."""
    return "random" if name == RANDOM else name


def json_of(table: Evaluation) -> dict[str, Any]:
    """Scores and curves by map, for programs."""
    return {
        map_id(record.map): {
            "scores": dict(record.scores),
            "curves": {name: [float(value) for value in values] for name, values in record.curves.items()},
        }
        for record in table.records
    }
