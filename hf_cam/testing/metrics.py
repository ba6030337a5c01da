"""The laws of metrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hf_cam.metrics import Metric, Scorer, Trial, confidence, get_metric
from hf_cam.targets import ClassLogit
from hf_cam.testing.laws import require

SIZE = (24, 32)
PATCH = (slice(6, 12), slice(4, 14))
"""What the model of the trials reads, and nothing else."""
SLACK = 1e-5
OF_A_METHOD = {"attributions", "difference"}
"""Measurements that no map gives: they come from the method itself."""


class PatchReader(nn.Module):
    """A classifier by construction: class 1 is "the patch is bright", whatever else the picture holds."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([-4.0, 4.0]))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits `[B, 2]`, from `[B, 3, H, W]`."""
        seen = pixel_values[(..., *PATCH)].mean((1, 2, 3))
        return self.scale * (seen[:, None] - 0.5)


def check_metric(metric: str | Metric) -> list[str]:
    """Check a registered metric against the laws that all of them obey.

    - Its record is whole: a name, a paper, a sentence, and a range with a lower and a higher end.
    - It gives one finite score per map, inside its range.
    - A map's score does not depend on the maps beside it, and one seed gives the same scores again.
    - Where it has a direction, a map of exactly what the model reads scores no worse than its inverse.

    Args:
        metric: Its id, or the record.

    Returns:
        The maps that it was tried on; none where it is a function of what no trial measures, and its record alone was
        checked.

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
    require(record.range[0] < record.range[1], record.id, "its range must have a lower and a higher end")
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
    require(torch.allclose(_scores(metric, maps), found, atol=SLACK), metric.id, "one seed must give the same scores")
    alone = torch.cat([_scores(metric, maps[i : i + 1]) for i in range(len(maps))])
    require(torch.allclose(alone, found, atol=1e-3), metric.id, "a score must not depend on the maps beside it")


def _maps() -> dict[str, Tensor]:
    """Maps `[2, H, W]` of two pictures: what the model reads, noise, and all but what it reads."""
    right = torch.full((2, *SIZE), 0.02)
    right[(..., *PATCH)] = 1.0
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, *SIZE, generator=generator).expand(2, -1, -1)
    return {"right": right, "noise": noise, "inverse": 1 - right}


def _scores(metric: Metric, maps: Tensor) -> Tensor:
    pixels = torch.full((len(maps), 3, *SIZE), 0.05)
    pixels[(..., *PATCH)] = 1.0
    scorer = Scorer(PatchReader(), {"pixel_values": pixels}, [confidence(ClassLogit(1))] * len(maps))
    masks = torch.zeros(len(maps), *SIZE, dtype=torch.bool)
    masks[(..., *PATCH)] = True
    return Trial(maps, scorer, masks=masks, explain=_explains(maps), explain_other=_explains(1 - maps)).measure(
        metric.id
    )[metric.id]


def _explains(maps: Tensor) -> Callable[[Tensor], Tensor]:
    """A method that shows the same whatever the picture."""
    return lambda pixels: maps[:1].expand(len(pixels), -1, -1)
