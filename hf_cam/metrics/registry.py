"""The registry of metrics, which `evaluate`, the command and the documentation all read."""

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
    """An argument of metrics, passed to each metric with a parameter of this name.

    Args:
        name: Name of the parameter.
        meaning: A description with the shape, for the tables.
        provide: Computes it from a trial, together with the measurements that come from the same function, by name.
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
        """The function that computes it."""
        return self.provide


MEASUREMENTS = Registry[Measurement]("measurement", OptionError, r"[a-z][a-z0-9_]*")


def measurement(**meanings: str) -> Callable[[Provider], Provider]:
    """Register a function of a `Trial` that returns measurements by name; the function is returned unchanged.

    Args:
        meanings: A description of each measurement, with its shape, by name.

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
    """One metric of maps.

    Args:
        id: The name in `evaluate(metrics=...)`.
        name: The heading in tables.
        compute: Pure function from measurements to one score per map, `[B]`; its parameters without a default name the
            measurements.
        range: Lowest and highest score, for a confidence in [0, 1].
        higher_is_better: None if neither direction is better.
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
        """The registered function."""
        return self.compute

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the measurements that it needs."""
        parameters = inspect.signature(self.compute).parameters.values()
        return tuple(parameter.name for parameter in parameters if parameter.default is parameter.empty)

    @property
    def summary(self) -> str:
        """The first paragraph of the function's docstring."""
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
        replace: Also replace a metric of the same id that comes from elsewhere.

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
        replace: Also replace a metric of the same id that comes from elsewhere.

    Raises:
        OptionError: the id is malformed or taken, or the function needs a measurement that does not exist.
    """
    return METRICS.add(record, replace)


def get_metric(metric_id: Any) -> Metric:
    """The metric of this id.

    Raises:
        OptionError: there is none; the message names the nearest ids.
    """
    return METRICS.get(metric_id)


def list_metrics() -> list[str]:
    """The ids of all metrics, in the order of registration.

    >>> "insertion" in list_metrics()
    True
    """
    return list(METRICS.records())
