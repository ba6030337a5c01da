"""The laws of metrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hf_cam.capture.guard import borrowed
from hf_cam.metrics import Metric, Scorer, Trial, confidence, get_metric
from hf_cam.targets import ClassLogit
from hf_cam.testing.laws import require

SIZE = (24, 32)
PATCH = (slice(6, 12), slice(4, 14))
"""The only part of a picture that the model of the checks reads."""
SLACK = 1e-5
OF_A_METHOD = {"attributions", "difference"}
"""Measurements that come from the method itself, not from its maps."""


class PatchReader(nn.Module):
    """A classifier whose class 1 means that `PATCH` is bright, whatever else the picture contains."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([-4.0, 4.0]))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits `[B, 2]`, from `[B, 3, H, W]`."""
        seen = pixel_values[(..., *PATCH)].mean((1, 2, 3))
        return self.scale * (seen[:, None] - 0.5)


def check_metric(metric: str | Metric) -> list[str]:
    """Check a registered metric against the laws that all metrics must obey.

    - Its record is complete: a name, a paper, a docstring, and a range whose lower end is below its upper end.
    - It gives one finite score per map, within its range.
    - A map's score does not depend on the other maps of the batch, and the same seed gives the same scores.
    - If it has a direction, a map of exactly what the model reads scores no worse than its inverse.

    Args:
        metric: Its id or its record.

    Returns:
        The names of the maps that it was checked on; empty if it needs measurements that only a method can give, and
        only its record was checked.

    Raises:
        LawError: a law does not hold.
        OptionError: there is no such metric.

    >>> check_metric("deletion")
    ['right', 'noise', 'inverse']
    """
    record = get_metric(metric) if isinstance(metric, str) else metric
    require(get_metric(record.id) == record, record.id, "the registry must hold this record under its id")
    require(record.name and record.paper, record.id, "it must have a name and a paper")
    require(record.summary.endswith("."), record.id, "its function's docstring must begin with a sentence")
    require(record.range[0] < record.range[1], record.id, "the lower end of its range must be below the upper end")
    if not OF_A_METHOD.isdisjoint(record.needs):
        return []
    scores = {name: _scores(record, maps) for name, maps in _maps().items()}
    for name, found in scores.items():
        _check_scores(record, _maps()[name], found)
    if record.higher_is_better is not None:
        sign = 1 if record.higher_is_better else -1
        right, inverse = (sign * scores[name].mean() for name in ("right", "inverse"))
        require(right >= inverse - SLACK, record.id, "what the model reads must score no worse than its inverse")
    return list(scores)


def _check_scores(metric: Metric, maps: Tensor, found: Tensor) -> None:
    low, high = metric.range
    require(found.shape == (len(maps),), metric.id, f"it must give one score per map, got {tuple(found.shape)}")
    require(found.isfinite().all(), metric.id, "its scores must be finite")
    inside = (found >= low - SLACK).all() and (found <= high + SLACK).all()
    require(inside, metric.id, f"its scores must lie in [{low}, {high}], got {found.tolist()}")
    require(
        torch.allclose(_scores(metric, maps), found, atol=SLACK), metric.id, "a seed must always give the same scores"
    )
    alone = torch.cat([_scores(metric, maps[i : i + 1]) for i in range(len(maps))])
    require(torch.allclose(alone, found, atol=1e-3), metric.id, "a score must not depend on other maps of the batch")


def _maps() -> dict[str, Tensor]:
    """Maps `[2, H, W]` of two pictures: what the model reads, noise, and everything but what it reads."""
    right = torch.full((2, *SIZE), 0.02)
    right[(..., *PATCH)] = 1.0
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, *SIZE, generator=generator).expand(2, -1, -1)
    return {"right": right, "noise": noise, "inverse": 1 - right}


def _scores(metric: Metric, maps: Tensor) -> Tensor:
    pixels = torch.full((len(maps), 3, *SIZE), 0.05)
    pixels[(..., *PATCH)] = 1.0
    reader = PatchReader()
    scorer = Scorer(reader, {"pixel_values": pixels}, [confidence(ClassLogit(1))] * len(maps))
    masks = torch.zeros(len(maps), *SIZE, dtype=torch.bool)
    masks[(..., *PATCH)] = True
    explain, other = _explains(reader, maps), _explains(reader, 1 - maps)
    trial = Trial(maps, scorer, masks=masks, explain=explain, explain_other=other)
    return trial.measure(metric.id)[metric.id]


def _explains(model: nn.Module, maps: Tensor) -> Callable[[Tensor], Tensor]:
    """A method that gives the same map for every picture."""

    def explain(pixels: Tensor) -> Tensor:
        with borrowed(model):
            return maps[:1].expand(len(pixels), -1, -1)

    return explain
