"""How far a map can be trusted: the measures of one picture as plots, in words, as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from hf_cam import Evaluation
from hf_cam.comparison import quick_methods
from hf_cam.evaluation.table import Record, in_steps
from hf_cam.methods import get_method
from hf_cam.metrics import BASELINES, get_metric
from hf_cam.metrics.trial import PERCENTILES

RANDOM = "noise"
"""The random map, as the library names it."""
OWN = "this map"
NAMES = {RANDOM: "random map", "sobel": "edges", "centred-gaussian": "centre"}
"""What the page calls the library's baseline maps."""
MEANINGS = {
    RANDOM: "noise, independent of the picture and of the model",
    "sobel": "the outlines in the picture, whatever the model",
    "centred-gaussian": "a spot in the middle, where most photographs have their subject",
}
LINES = {**NAMES, RANDOM: "random"}
"""What the plots call them: all names fit into one row on a telephone."""
MAPS = {OWN: "#6366f1", "random": "#8b93a1", "edges": "#e07b00", "centre": "#0f9d8a"}
"""The lines of the plots and their colours, which differ for the colour-blind too."""


def plots_of(table: Evaluation) -> dict[str, pd.DataFrame]:
    """The score over a share of the pixels, for the map and the baselines measured so far: a frame per metric."""
    return {metric: _frame(metric, table.records) for metric in table.metrics}


def _frame(metric: str, records: Sequence[Record]) -> pd.DataFrame:
    """A plot's points: numbers, and a row without numbers for each map that is yet to be measured.

    The browser takes the axes' types and the legend's names from the first frame that it is given, and keeps them.
    """
    points = [
        (round(x, 3), y, LINES.get(record.map, OWN))
        for record in records
        if metric in record.scores
        for x, y in line_of(metric, record.curves)
    ]
    missing = [(math.nan, math.nan, name) for name in MAPS if name not in {name for _, _, name in points}]
    frame = pd.DataFrame([*points, *missing], columns=["pixels", "score", "map"])
    return frame.astype({"pixels": float, "score": float})


def line_of(metric: str, curves: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    """The points of a metric's curve: a share of the pixels in [0, 1], and the score there.

    ROAD's score is half the difference between imputing the least and the most important pixels.
    """
    if metric != "road":
        values = curves[{"insertion": "inserted", "deletion": "deleted"}[metric]]
        return [(i / (len(values) - 1), value) for i, value in enumerate(values)]
    return [
        (1 - percentile / 100, (least - most) / 2)
        for percentile, most, least in zip(PERCENTILES, curves["most_first"], curves["least_first"], strict=True)
    ][::-1]


def direction(metric: str) -> str:
    """Which scores of a metric are good."""
    return "higher is better" if get_metric(metric).higher_is_better else "lower is better"


def lead(metric: str, table: Evaluation) -> dict[str, float]:
    """By how much the map's score is better than each baseline's, negative where it is worse; by the baseline's id."""
    scores = {record.map: record.scores[metric] for record in table.records if metric in record.scores}
    own = [score for name, score in scores.items() if name not in BASELINES]
    sign = 1 if get_metric(metric).higher_is_better else -1
    return {name: sign * (own[0] - score) for name, score in scores.items() if name in BASELINES and own}


def findings_of(table: Evaluation) -> list[str]:
    """One sentence per metric that was measured for all maps: which baselines the map beats, and which not."""
    return [_finding(metric, leads) for metric in table.metrics if len(leads := lead(metric, table)) == len(BASELINES)]


def _finding(metric: str, leads: Mapping[str, float]) -> str:
    beaten = [NAMES[name] for name, difference in leads.items() if difference > 0]
    others = [NAMES[name] for name, difference in leads.items() if difference <= 0]
    name = get_metric(metric).name
    head = f"**{name[0].upper()}{name[1:]}**, {direction(metric)}: this map "
    if not others:
        return head + f"is better than {_listed(beaten)}."
    worse = f"is no better than {_listed(others)}"
    return head + (f"is better than {_listed(beaten)}, but {worse}." if beaten else f"{worse}.")


def _listed(names: Sequence[str]) -> str:
    *most, last = [f"the {name}" for name in names]
    return f"{', '.join(most)} and {last}" if most else last


def explained_baselines() -> str:
    """What the baseline maps are, in a sentence."""
    named = "; ".join(f"**{name}**: {MEANINGS[map_]}" for map_, name in NAMES.items())
    return f"The baselines are made without the model, so a map of what the model looked at should beat them. {named}."


def _head(metric: str, table: Evaluation) -> str:
    record = get_metric(metric)
    return f"{record.name}{in_steps(metric, table.steps)} {'↑' if record.higher_is_better else '↓'}"


def table_of(table: Evaluation) -> str:
    """Markdown with one line per map, the best first; arrows show which direction is better."""
    records = {record.map: record for record in table.records}
    heads = [_head(name, table) for name in table.metrics]
    lines = ["| map | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for row in table.rows:
        scores = records[row.map].scores
        cells = [f"{scores[name]:.3f}" if name in scores else "…" for name in table.metrics]
        lines.append("| " + " | ".join([map_name(row.map), *cells]) + " |")
    return "\n".join(lines)


def map_name(name: str) -> str:
    """A method's name, or what the page calls a baseline."""
    return get_method(name).name if name in quick_methods() else NAMES.get(name, name)


def map_id(name: str) -> str:
    """What the API calls a map: a method's id, or a baseline's."""
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
