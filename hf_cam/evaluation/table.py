"""The results of an evaluation: one record per map, one row per method and layer, and the table of rows."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_cam.errors import OptionError
from hf_cam.metrics import BASELINES, get_metric
from hf_cam.metrics.trial import RISE, STEPS, Steps


@dataclass(frozen=True)
class Record:
    """One map of one image: the id of its method or baseline, its layers, scores, seconds and curves.

    The fingerprint stands for everything that the scores depend on; it is empty if the evaluation has no file.
    """

    image: str
    map: str
    layers: tuple[str, ...]
    scores: Mapping[str, float]
    seconds: float
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)
    fingerprint: str = field(default="", repr=False)


@dataclass(frozen=True)
class Row:
    """One row of the table: a method on its layers, with the mean and standard error of each metric."""

    map: str
    layers: tuple[str, ...]
    count: int
    means: Mapping[str, float]
    errors: Mapping[str, float]
    milliseconds: float


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Args:
        records: One per map and image.
        metrics: The ids of the metrics, in the order of the columns.
        skipped: Methods that are not defined for this model, one of the layers or one of the images, with the reason.
        resumed: How many of the records were read from the file of an earlier run.
        steps: Number of steps of the insertion and deletion curves, or "rise" for one per row of pixels.
    """

    records: tuple[Record, ...] = field(repr=False)
    metrics: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    resumed: int = 0
    steps: Steps = STEPS

    @property
    def rows(self) -> list[Row]:
        """One row per method and layer, sorted by the first metric that has a direction, best first."""
        groups: dict[tuple[str, tuple[str, ...]], list[Record]] = {}
        for record in self.records:
            groups.setdefault((record.map, record.layers), []).append(record)
        found = [_row(*key, members, self.metrics) for key, members in groups.items()]
        return sorted(found, key=self._order) if self.metrics else found

    def _order(self, row: Row) -> float:
        judge = next((name for name in self.metrics if get_metric(name).higher_is_better is not None), self.metrics[0])
        sign = -1 if get_metric(judge).higher_is_better else 1
        return sign * row.means[judge] if np.isfinite(row.means.get(judge, np.nan)) else np.inf

    def best(self, metric: str) -> Row:
        """The best row by one metric, without baselines and means that are not finite.

        Raises:
            OptionError: the metric was not measured, or no mean is finite.
        """
        judge = get_metric(metric)
        measured = [row for row in self.rows if metric in row.means and row.map not in BASELINES]
        if not measured:
            raise OptionError(f"{metric!r} was not measured; measured were: {', '.join(self.metrics)}")
        candidates = [row for row in measured if np.isfinite(row.means[metric])]
        if not candidates:
            raise OptionError(
                f"{metric!r} is not finite for any method: the model returns such values for changed images; run it in "
                "a wider dtype, or leave those images out"
            )
        sign = 1 if judge.higher_is_better else -1
        return max(candidates, key=lambda row: sign * row.means[metric])

    def to_markdown(self) -> str:
        """The table as Markdown: mean ± standard error, with an arrow at each metric for which direction is better."""
        heads, *rows = self._cells()
        words = len(heads) - len(self.metrics) - 1
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * words + "--:|" * (len(self.metrics) + 1)]
        return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])

    def _repr_html_(self) -> str:
        """The table, which notebooks show."""
        heads, *rows = ([html.escape(cell) for cell in row] for row in self._cells())
        head = "".join(f"<th>{cell}</th>" for cell in heads)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _cells(self) -> list[list[str]]:
        """The table as text, the headings first; layers and numbers of images have a column only if they differ."""
        rows = self.rows
        names = len({row.layers for row in rows if row.layers}) > 1
        counts = len({row.count for row in rows}) > 1
        measured = [_heading(metric, self.steps) for metric in self.metrics]
        found = [["map", *["layers"] * names, *["images"] * counts, *measured, "ms per map"]]
        for row in rows:
            words = [row.map, *[", ".join(row.layers)] * names, *[str(row.count)] * counts]
            found.append([*words, *(_cell(row, metric) for metric in self.metrics), f"{row.milliseconds:.0f}"])
        return found

    def to_csv(self, path: str | Path | None = None) -> str:
        """The table as CSV; also written to `path` if given."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self._dicts()[0]) if self.records else ["map"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._dicts())
        if path is not None:
            Path(path).write_text(text.getvalue(), encoding="utf-8")
        return text.getvalue()

    def to_pandas(self) -> Any:
        """The table as a `pandas.DataFrame`.

        Raises:
            OptionError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise OptionError('to_pandas() needs pandas; install it with: pip install "hf-cam[evaluate]"') from error
        return pd.DataFrame(self._dicts())

    def _dicts(self) -> list[dict[str, Any]]:
        return [
            {
                "map": row.map,
                "layers": " ".join(row.layers),
                "images": row.count,
                **({"steps": self.steps} if any(in_steps(metric, self.steps) for metric in self.metrics) else {}),
                **{
                    name: value
                    for metric in self.metrics
                    for name, value in (
                        (metric, row.means.get(metric)),
                        (f"{metric} error", row.errors.get(metric)),
                    )
                },
                "milliseconds": row.milliseconds,
            }
            for row in self.rows
        ]


def _row(name: str, layers: tuple[str, ...], members: Sequence[Record], metrics: Sequence[str]) -> Row:
    means, errors = {}, {}
    for metric in metrics:
        values = np.array([record.scores[metric] for record in members if metric in record.scores])
        if len(values):
            means[metric] = float(values.mean())
            errors[metric] = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    milliseconds = float(np.median([record.seconds for record in members])) * 1000
    return Row(name, layers, len(members), means, errors, milliseconds)


def in_steps(metric: str, steps: Steps) -> str:
    """How many steps a metric of the insertion or deletion curves took, in brackets; empty for other metrics.

    >>> in_steps("insertion", 10), in_steps("deletion", "rise"), in_steps("road", 10)
    (' (10 steps)', ' (a step per row)', '')
    """
    if not {"inserted", "deleted"} & set(get_metric(metric).needs):
        return ""
    return " (a step per row)" if steps == RISE else f" ({steps} steps)"


def _heading(metric: str, steps: Steps) -> str:
    better = get_metric(metric).higher_is_better
    return metric + in_steps(metric, steps) + ("" if better is None else " ↑" if better else " ↓")


def _cell(row: Row, metric: str) -> str:
    return f"{row.means[metric]:.3f} ± {row.errors[metric]:.3f}" if metric in row.means else ""
