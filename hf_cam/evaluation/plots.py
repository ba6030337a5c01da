"""Charts of an evaluation: bars of the metrics, and curves of the confidence as pixels are removed or added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_cam.errors import OptionError
from hf_cam.evaluation.table import Evaluation, in_steps
from hf_cam.metrics import BASELINES, get_metric
from hf_cam.metrics.trial import PERCENTILES

PANELS = {
    "inserted": "insertion: share of pixels uncovered",
    "deleted": "deletion: share of pixels blanked",
    "most_first": "ROAD: share imputed, most relevant first",
    "least_first": "ROAD: share imputed, least relevant first",
}


def draw_bars(table: Evaluation, path: str | Path) -> Path:
    """One panel per metric, one bar per map with its standard error; baselines are grey, and the best map is on top.

    Raises:
        OptionError: matplotlib is not installed.
    """
    rows = table.rows[::-1]
    maps = [row.map for row in rows]
    names = [row.map if maps.count(row.map) == 1 else f"{row.map}, {' + '.join(row.layers)}" for row in rows]
    figure, axes = _axes(len(table.metrics), height=1.2 + 0.26 * len(rows))
    for index, (axis, metric) in enumerate(zip(axes, table.metrics, strict=True)):
        values = [row.means.get(metric, 0.0) for row in rows]
        errors = [row.errors.get(metric, 0.0) for row in rows]
        colours = ["#b8bcc4" if row.map in (*BASELINES, "randomcam") else "#2f6fb3" for row in rows]
        axis.barh(range(len(rows)), values, xerr=errors, color=colours, ecolor="#555b66")
        axis.axvline(0, color="#1d2129", linewidth=0.8)
        better = get_metric(metric).higher_is_better
        direction = "" if better is None else ", higher is better" if better else ", lower is better"
        axis.set_title(metric + in_steps(metric, table.steps) + direction, fontsize=9)
        axis.set_yticks(range(len(rows)), names if index == 0 else [""] * len(rows), fontsize=8)
        axis.margins(y=0.01)
    return _save(figure, path)


def draw_curves(table: Evaluation, path: str | Path, count: int = 6) -> Path | None:
    """The mean confidence along each sweep, for the best `count` maps and the baselines; None if none was measured.

    Raises:
        OptionError: matplotlib is not installed.
    """
    measured = [name for name in PANELS if any(name in record.curves for record in table.records)]
    if not measured:
        return None
    shown = [row for row in table.rows if row.map not in BASELINES][:count]
    shown += [row for row in table.rows if row.map in BASELINES]
    figure, axes = _axes(len(measured), height=4.2)
    for axis, name in zip(axes, measured, strict=True):
        for row in shown:
            curves = [r.curves[name] for r in table.records if (r.map, r.layers) == (row.map, row.layers)]
            values = mean_curve(curves)
            style = {"linestyle": "--", "color": GREYS[row.map]} if row.map in BASELINES else {}
            axis.plot(_shares(name, len(values)), values, label=row.map, **style)
        axis.set_title(PANELS[name], fontsize=9)
        axis.set_ylabel("confidence" if axis is axes[0] else "")
    axes[-1].legend(fontsize=7)
    return _save(figure, path)


def mean_curve(curves: Sequence[Sequence[float]]) -> np.ndarray:
    """The mean of curves over the same range, of which each may have a number of points of its own."""
    longest = max(map(len, curves))
    places = np.linspace(0, 1, longest)
    spread = [np.interp(places, np.linspace(0, 1, len(curve)), curve) for curve in curves]
    return np.asarray(np.mean(spread, axis=0))


GREYS: Mapping[str, str] = dict(zip(BASELINES, ("#9aa0a8", "#70757d", "#b9bec6"), strict=True))


def _shares(name: str, count: int) -> np.ndarray:
    if name in ("most_first", "least_first"):
        return 1 - np.asarray(PERCENTILES) / 100
    return np.linspace(0, 1, count)


def _axes(count: int, height: float) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError('charts need matplotlib; install it with: pip install "hf-cam[evaluate]"') from error
    figure = Figure(figsize=(3.4 * count + 1, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, squeeze=False)[0]
    return figure, list(axes)


def _save(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
