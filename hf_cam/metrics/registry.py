"""The one table of metrics: `evaluate`, the command and the documentation all read it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from hf_cam.errors import OptionError
from hf_cam.registry import Registry

if TYPE_CHECKING:
    from hf_cam.metrics.trial import Trial

Compute = TypeVar("Compute", bound=Callable[..., Tensor])
Provider = TypeVar("Provider", bound="Callable[[Trial], Mapping[str, Tensor]]")


@dataclass(frozen=True)
class Measurement:
    """An input of metrics: a metric gets it by a parameter of this name.

    Args:
        name: The name of the parameter.
        meaning: What it is, with its shape, for the tables.
        provide: From a trial to this measurement and those that are computed with it, by name.
    """

    name: str
    meaning: str
    provide: Callable[[Trial], Mapping[str, Tensor]] = field(repr=False)

    @property
    def id(self) -> str:
        """The name."""
        return self.name

    @property
    def source(self) -> Callable[..., Any]:
        """The function that provides it."""
        return self.provide


MEASUREMENTS = Registry[Measurement]("measurement", OptionError, r"[a-z][a-z0-9_]*")


def measurement(**meanings: str) -> Callable[[Provider], Provider]:
    """Register a function of a `Trial` that returns measurements by name; the function is returned unchanged.

    Args:
        meanings: What each measurement is, with its shape, by its name.

    >>> MEASUREMENTS.get("scores").meaning
    "the model's confidence in the target, `[B]`"
    """

    def add(provide: Provider) -> Provider:
        for name, meaning in meanings.items():
            MEASUREMENTS.add(Measurement(name, meaning, provide))
        return provide

    return add


@dataclass(frozen=True)
class Metric:
    """One judge of maps.

    Args:
        id: The name in `evaluate(metrics=...)`.
        name: As a table's heading.
        compute: Pure function of measurements to one score per map, `[B]`; its parameters without a default name them.
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
    def source(self) -> Callable[..., Any]:
        """The function that it is registered for."""
        return self.compute

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the measurements that it is a function of."""
        parameters = inspect.signature(self.compute).parameters.values()
        return tuple(parameter.name for parameter in parameters if parameter.default is parameter.empty)

    @property
    def summary(self) -> str:
        """One sentence."""
        return " ".join((inspect.getdoc(self.compute) or "").split("\n\n")[0].split())


def _check_measurements(metric: Metric) -> None:
    for name in metric.needs:
        try:
            MEASUREMENTS.get(name)
        except OptionError as error:
            raise OptionError(f"{metric.id!r} needs {name!r}: {error}") from error


METRICS = Registry[Metric]("metric", OptionError, r"[a-z][a-z0-9-]*", _check_measurements)


def metric(
    metric_id: str,
    name: str,
    *,
    range: tuple[float, float] = (0, 1),  # noqa: A002  (the field's own name)
    higher_is_better: bool | None = True,
    paper: str,
    replace: bool = False,
) -> Callable[[Compute], Compute]:
    """Register a pure function of measurements as a metric; the function is returned unchanged.

    Args:
        metric_id: The name in `evaluate(metrics=...)`.
        name, range, higher_is_better, paper: See `Metric`.
        replace: Replace a metric of the same id from another place too.

    Raises:
        OptionError: the id is malformed or taken, or the function needs a measurement that does not exist.
    """

    def add(compute: Compute) -> Compute:
        register(Metric(metric_id, name, compute, range, higher_is_better, paper), replace)
        return compute

    return add


def register(record: Metric, replace: bool = False) -> Metric:
    """Add a metric to the registry and return it; registering it again from the same place replaces it.

    Args:
        record: The record.
        replace: Replace a metric of the same id from another place too.

    Raises:
        OptionError: the id is malformed or taken, or the function needs a measurement that does not exist.
    """
    return METRICS.add(record, replace)


def get_metric(metric_id: Any) -> Metric:
    """The metric of this id.

    Raises:
        OptionError: there is none; the nearest ids are named.
    """
    return METRICS.get(metric_id)


def list_metrics() -> list[str]:
    """The ids of all metrics, in the order of registration.

    >>> "insertion" in list_metrics()
    True
    """
    return list(METRICS.records())
