"""Whether the regions that a map marks are those that the model's score depends on: regions, effects and a verdict.

A region is necessary if the score falls without it, and sufficient if the score stays with it alone. Either will do: a
cue that is there twice is sufficient but not necessary, and one half of a cue may be necessary but not sufficient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_cam.metrics.order import ranks

Verdict = Literal["supports", "undecided", "contradicts"]

LATTICE = (3, 4)
"""Rows and columns of the lattice of places to which a region is shifted."""
ENOUGH, FAINT, AHEAD = 0.25, 0.1, 0.15
"""Effects, as a share of what replacing the whole image costs: a substantial one, almost none, a clear difference."""
OWN_SHARE = 0.25
"""How much of the region's effect its own strongest part must have."""
RESPONSE = 0.5
"""The least fall of the score, without any of the image, that effects can be measured against."""


def strongest(saliency: Tensor, shares: Sequence[float], seed: int = 0) -> Tensor:
    """The strongest pixels of a map, `[R, H, W]` booleans for R shares of the map's pixels; ties are random.

    >>> strongest(torch.tensor([[0.1, 0.9], [0.5, 0.2]]), [0.25, 0.5]).int()
    tensor([[[0, 1],
             [0, 0]],
    <BLANKLINE>
            [[0, 1],
             [1, 0]]], dtype=torch.int32)
    """
    places = ranks(saliency, seed)
    return torch.stack([places < max(1, round(share * saliency.numel())) for share in shares])


def elsewhere(region: Tensor) -> Tensor:
    """The region `[H, W]` shifted to the other places of a lattice, wrapping round the border: `[D, H, W]`."""
    sides, (rows, columns) = region.shape, LATTICE
    steps = [(row / rows, column / columns) for row in range(rows) for column in range(columns)][1:]
    return torch.stack([region.roll((round(y * sides[0]), round(x * sides[1])), (0, 1)) for y, x in steps])


def effects(score: Tensor, blank: Tensor, without: Tensor, alone: Tensor) -> tuple[Tensor, Tensor]:
    """Necessity `(y - y_without) / (y - y_blank)` and sufficiency `(y_alone - y_blank) / (y - y_blank)`, in [-1, 1].

    Args:
        score: y, the score of the image.
        blank: The score without any of the image, lower than `score`.
        without: The scores without the regions, of any shape that goes with `blank`.
        alone: The scores with nothing but the regions.

    >>> both = effects(torch.tensor(4.0), torch.tensor(-4.0), torch.tensor([4.0, -4.0]), torch.tensor([-4.0, 0.0]))
    >>> [each.tolist() for each in both]
    [[0.0, 1.0], [0.0, 0.5]]
    """
    span = score - blank
    return ((score - without) / span).clamp(-1, 1), ((alone - blank) / span).clamp(-1, 1)


@dataclass(frozen=True)
class Effects:
    """Of one map: the larger of necessity and sufficiency for each region, as a share of the whole image's effect.

    Args:
        peak: The map's strongest few pixels.
        top: The map's strongest pixels, which include those of the peak.
        typical: The mean over as many pixels elsewhere, in the same shape.
        best: The largest among them.
    """

    peak: float
    top: float
    typical: float
    best: float


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of an image with regions replaced, in K ways.

    Args:
        score: Of the image itself, `[]`.
        blank: Without any of the image, `[K]`.
        without, alone: Without the peak and the top of the map, and with nothing else, `[K, 2]`.
        without_elsewhere, alone_elsewhere: The same for D regions elsewhere, `[D]`, the d-th in way d mod K.
    """

    score: Tensor
    blank: Tensor
    without: Tensor
    alone: Tensor
    without_elsewhere: Tensor
    alone_elsewhere: Tensor

    def usable(self, least: float = RESPONSE) -> list[int]:
        """The ways to replace the whole image that lower the score by at least this much."""
        return (self.score - self.blank >= least).nonzero()[:, 0].tolist()

    def necessity_and_sufficiency(self, ways: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of the peak and the top, `[2]` each: means over these ways."""
        necessary, sufficient = effects(self.score, self.blank[ways, None], self.without[ways], self.alone[ways])
        return necessary.mean(0), sufficient.mean(0)

    def effects(self, ways: Sequence[int]) -> Effects:
        """The effects as these ways of replacing show them."""
        peak, top = torch.maximum(*self.necessity_and_sufficiency(ways)).tolist()
        way = torch.arange(len(self.without_elsewhere)) % len(self.blank)
        own = torch.isin(way, torch.tensor(ways)).nonzero()[:, 0]
        drawn = effects(self.score, self.blank[way[own]], self.without_elsewhere[own], self.alone_elsewhere[own])
        others = torch.maximum(*drawn)
        return Effects(peak, top, float(others.mean()), float(others.max()))

    def agreement(self, ways: Sequence[int], verdict: Verdict) -> int:
        """How many of these ways lead to the verdict by themselves."""
        return sum(verdict_of(self.effects([way])) == verdict for way in ways)

    def verdict(self, ways: Sequence[int]) -> Verdict:
        """The verdict of these ways together, or "undecided" if fewer than two thirds of them agree with it."""
        found = verdict_of(self.effects(ways))
        return found if 3 * self.agreement(ways, found) >= 2 * len(ways) else "undecided"


def verdict_of(found: Effects) -> Verdict:
    """What the effects say of the map.

    It "supports" the map if its strongest pixels have a substantial effect, clearly larger than as many pixels
    elsewhere, of which their own strongest part has its share. It "contradicts" the map if the peak has almost none and
    either its surroundings have none, or some other region has a substantial one.

    >>> verdict_of(Effects(peak=0.9, top=1.0, typical=0.1, best=0.3))
    'supports'
    >>> verdict_of(Effects(peak=0.0, top=0.0, typical=0.1, best=0.9))
    'contradicts'
    >>> verdict_of(Effects(peak=0.2, top=0.3, typical=0.25, best=0.5))
    'undecided'
    """
    if found.top >= ENOUGH and found.top - found.typical >= AHEAD and found.peak >= OWN_SHARE * found.top:
        return "supports"
    if found.peak < FAINT and (found.top < FAINT or max(found.top, found.best) >= ENOUGH):
        return "contradicts"
    return "undecided"


def ends_at_windows(raw: Tensor, window: int | None) -> bool:
    """Whether a map `[h, w]` ends in a straight line at a border of the windows in which its model attends.

    That is a border, also of shifted windows, where three quarters of the cells beside each other differ by more than
    half of the map's range.

    >>> ends_at_windows(torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 3), window=4)
    True
    >>> ends_at_windows(torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3), window=4)
    False
    """
    if window is None or window < 2 or raw.ndim != 2 or not raw.numel():
        return False
    half, (low, high) = window // 2, raw.aminmax()
    for steps in (raw.diff(dim=1), raw.diff(dim=0).T):
        steep = steps.abs() > (high - low) / 2
        if (steep[:, half - 1 :: half].float().mean(0) >= 0.75).any():
            return True
    return False
