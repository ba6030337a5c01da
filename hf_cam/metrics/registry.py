"""The one table of metrics: `evaluate`, the command and the documentation all read it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hf_cam.errors import OptionError, nearest

EVIDENCE = {
    "maps": "the map `[B, H, W]` in [0, 1]",
    "masks": "where the thing is, `[B, H, W]` booleans",
    "scores": "the model's confidence in the target, `[B]`",
    "kept_scores": "the same of the image multiplied by the map, `[B]`",
    "most_first": "the same with the most relevant pixels imputed, one a percentile, `[B, P]`",
    "least_first": "the same with the least relevant pixels imputed, `[B, P]`",
    "inserted": "the same while pixels are uncovered, the most relevant first, `[B, S + 1]`",
    "deleted": "the same while pixels are blanked, the most relevant first, `[B, S + 1]`",
    "deleted_last": "the same while pixels are blanked, the least relevant first, `[B, S + 1]`",
    "group_relevance": "the map's sum over each of K groups of pixels of falling relevance, `[B, K]`",
    "group_scores": "the same confidence with each group replaced alone, `[B, K]`",
    "kept_maps": "the map of the image multiplied by the map, `[B, H, W]`",
    "noisy_maps": "maps of the image with noise added, `[N, B, H, W]`",
    "randomized_maps": "the map after the model's weights were shuffled, `[B, H, W]`",
    "other_maps": "the map of another target, `[B, H, W]`",
    "attributions": "signed attributions, `[B, ...]`",
    "difference": "the target's value less its value on the baseline, `[B]`",
}
"""What metrics are functions of, by the names of their parameters."""

_registry: dict[str, Metric] = {}


@dataclass(frozen=True)
class Metric:
    """One judge of maps.

    Args:
        id: The name in `evaluate(metrics=...)`.
        name: As a table's heading.
        compute: Pure function of the evidence to one score a map, `[B]`; its parameters name the evidence.
        range: Lowest and highest score, for a confidence in [0, 1].
        higher_is_better: None where neither is better.
        paper: Authors, venue and arXiv id.
    """

    id: str
    name: str
    compute: Callable[..., Tensor] = field(repr=False)
    range: tuple[float, float]
    higher_is_better: bool | None
    paper: str

    @property
    def needs(self) -> tuple[str, ...]:
        """The evidence that it needs, by the names in `EVIDENCE`."""
        parameters = inspect.signature(self.compute).parameters.values()
        return tuple(parameter.name for parameter in parameters if parameter.default is parameter.empty)

    @property
    def summary(self) -> str:
        """One sentence."""
        return " ".join((inspect.getdoc(self.compute) or "").split("\n\n")[0].split())


def metric(
    metric_id: str,
    name: str,
    *,
    range: tuple[float, float] = (0, 1),  # noqa: A002  (the field's own name)
    higher_is_better: bool | None = True,
    paper: str,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a pure function as a metric; the function itself stays as it is."""

    def add(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        register(Metric(metric_id, name, compute, range, higher_is_better, paper))
        return compute

    return add


def register(record: Metric) -> Metric:
    """Add a metric to the registry.

    Raises:
        OptionError: the id is taken or malformed, or the function needs evidence that does not exist.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", record.id):
        raise OptionError(f"{record.id!r} is no metric id: lower-case letters, digits and '-' only")
    if record.id in _registry:
        raise OptionError(f"a metric {record.id!r} is registered already")
    if unknown := set(record.needs) - set(EVIDENCE):
        raise OptionError(f"{record.id!r} needs {sorted(unknown)}; evidence is one of {', '.join(EVIDENCE)}")
    _registry[record.id] = record
    return record


def get_metric(metric_id: Any) -> Metric:
    """The metric of this id.

    Raises:
        OptionError: there is none; the nearest ids are named.
    """
    if not isinstance(metric_id, str) or metric_id not in _registry:
        raise OptionError(f"no metric {metric_id!r}; nearest: {nearest(str(metric_id), _registry)}")
    return _registry[metric_id]


def list_metrics() -> list[str]:
    """The ids of all metrics, in the order of registration.

    >>> "insertion" in list_metrics()
    True
    """
    return list(_registry)
