"""Whether the regions that a map marks are those that the model's score depends on: regions, effects and a verdict.

A region is necessary if the score falls without it, and sufficient if the score stays with it alone. A cue that is
there twice is sufficient but not necessary, and part of a wide cue is neither. What every region of the cue has is a
share of the score: what it adds on average to random parts of the image, few and many (Shapley, 1953). These shares add
up to the effect of the whole image, so that an even one is the region's share of the area. A map is judged by two
regions: the spot of its peak, which it shows first, and its strongest pixels, which may lie at several places.

Specks all over an image are a share of nearly everything in it, and hiding them changes nearly everything, whatever
they mark. So a map of specks is judged by its mean over squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hf_cam.metrics.order import ranks

Verdict = Literal["supports", "undecided", "contradicts"]

LATTICE = (2, 3)
"""Rows and columns of the lattice of places to which a region is shifted."""
BLOCKS = (4, 6)
"""Rows and columns of the blocks that random parts of the image consist of."""
MUCH, LITTLE, LEAST = 1.75, 1.3, 0.3
"""Of shares of the score, as multiples of the share of the area: from which a region counts, below which it does not,
and the least that is read, so that a region that lowers the score does not undo all that the other adds."""
SPOT = (0.01, 0.03)
"""The least share of the image that counts as the spot of a map's peak, and the largest of cells that tie."""
SPECK, SQUARE = 20, 8
"""The sides of the squares in which the strongest pixels must lie, or else are averaged: divisors of the image's."""
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


def is_scattered(saliency: Tensor, share: float) -> bool:
    """Whether the strongest pixels of a map `[H, W]` are specks: most lie in no square of a twentieth of its side.

    >>> noise = torch.rand(64, 96, generator=torch.Generator().manual_seed(0))
    >>> blob = torch.zeros(64, 96)
    >>> blob[20:40, 30:50] = 1
    >>> is_scattered(noise, 0.03), is_scattered(blob, 0.03)
    (True, False)
    """
    values, side = saliency.cpu().numpy(), max(2, min(saliency.shape) // SPECK)
    # Equal values are one region, of which the strongest would be a random choice.
    marked = np.uint8(values >= np.sort(values, axis=None)[-max(1, round(share * values.size))])
    kept = cv2.morphologyEx(marked, cv2.MORPH_OPEN, np.ones((side, side), np.uint8))
    return bool(kept.sum() < marked.sum() / 2)


def gathered(saliency: Tensor) -> Tensor:
    """A map `[H, W]` averaged over squares of an eighth of its shorter side around each pixel."""
    side = max(2, min(saliency.shape) // SQUARE)
    return torch.from_numpy(cv2.blur(saliency.float().cpu().numpy(), (side, side))).to(saliency.device)


def spot(raw: Tensor, saliency: Tensor, seed: int = 0) -> Tensor:
    """Where a map has its peak, `[H, W]` booleans: the cell that holds it, or the strongest 1% if cells are smaller.

    Args:
        raw: The map on the model's grid, `[h, w]`; cells that tie count together, unless they are more than 3%.
        saliency: The map as large as the model's input, `[H, W]`.
        seed: Seed for ties of pixels.

    >>> raw = torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    >>> spot(raw, raw.repeat_interleave(2, 0).repeat_interleave(2, 1)).int()
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1],
            [0, 0, 0, 0],
            [0, 0, 0, 0]], dtype=torch.int32)
    """
    least, most = SPOT
    highest = (raw >= raw.max() * (1 - 1e-6)).float()[None, None].to(saliency.device)
    cells = functional.interpolate(highest, tuple(saliency.shape), mode="nearest")[0, 0].bool()
    fits = least <= cells.float().mean() <= max(most, 1 / raw.numel())
    return cells if fits else strongest(saliency, [least], seed)[0]


def elsewhere(region: Tensor) -> Tensor:
    """The region `[H, W]` shifted to the other places of a lattice, wrapping round the border: `[D, H, W]`."""
    sides, (rows, columns) = region.shape, LATTICE
    steps = [(row / rows, column / columns) for row in range(rows) for column in range(columns)][1:]
    return torch.stack([region.roll((round(y * sides[0]), round(x * sides[1])), (0, 1)) for y, x in steps])


def backgrounds(size: Sequence[int], count: int, seed: int = 0) -> Tensor:
    """What is missing of an image where a region is added to it: `[count, H, W]` booleans, of random blocks.

    The k-th lacks about `(k + 1/2) / count` of the blocks, so that the parts are small and large alike.

    >>> backgrounds((8, 12), 4).float().mean((1, 2)).tolist()
    [0.125, 0.375, 0.625, 0.875]
    """
    blocks = BLOCKS[0] * BLOCKS[1]
    orders = torch.rand(count, blocks, generator=torch.Generator().manual_seed(seed)).argsort(1).argsort(1)
    missing = orders < (blocks * (torch.arange(count) + 0.5) / count)[:, None].round()
    return functional.interpolate(missing.view(count, 1, *BLOCKS).float(), tuple(size), mode="nearest")[:, 0].bool()


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


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of an image with regions replaced, in K ways.

    Args:
        score: Of the image itself, `[]`.
        blank: Without any of the image, `[K]`.
        without, alone: Without the peak and the top of the map, and with nothing else, `[K, 2]`.
        without_elsewhere, alone_elsewhere: The same for D regions elsewhere, `[D]`, the d-th in way d mod K.
        areas: The shares of the image of the spot and of the peak, `[2]`.
        added, lacking: Of N random parts of the image with the spot and without it, and with the peak and without it,
            `[K, N, 2]`.
        scattered: Whether the map's strongest pixels are specks, so that these regions are those of its mean over
            squares.
    """

    score: Tensor
    blank: Tensor
    without: Tensor
    alone: Tensor
    without_elsewhere: Tensor
    alone_elsewhere: Tensor
    areas: Tensor
    added: Tensor
    lacking: Tensor
    scattered: bool = False

    @property
    def finite(self) -> bool:
        """Whether all scores are."""
        drawn = (self.without_elsewhere, self.alone_elsewhere, self.added, self.lacking)
        return all(bool(one.isfinite().all()) for one in (self.score, self.blank, self.without, self.alone, *drawn))

    def usable(self, least: float = RESPONSE) -> list[int]:
        """The ways to replace the whole image that lower the score by at least this much."""
        return (self.score - self.blank >= least).nonzero()[:, 0].tolist()

    def necessity_and_sufficiency(self, ways: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of the peak and the top, `[2]` each: means over these ways."""
        necessary, sufficient = effects(self.score, self.blank[ways, None], self.without[ways], self.alone[ways])
        return necessary.mean(0), sufficient.mean(0)

    def elsewhere(self, ways: Sequence[int]) -> float:
        """The larger of necessity and sufficiency of as many pixels elsewhere: the mean over places and these ways."""
        way = torch.arange(len(self.without_elsewhere)) % len(self.blank)
        own = torch.isin(way, torch.tensor(ways)).nonzero()[:, 0]
        drawn = effects(self.score, self.blank[way[own]], self.without_elsewhere[own], self.alone_elsewhere[own])
        return float(torch.maximum(*drawn).mean())

    def contributions(self, ways: Sequence[int]) -> Tensor:
        """The shares of the whole image's effect that spot and peak add to random parts, `[2]`: means over the ways."""
        span = (self.score - self.blank[ways])[:, None, None]
        return ((self.added[ways] - self.lacking[ways]) / span).clamp(-1, 1).mean((0, 1))

    def excess(self, ways: Sequence[int]) -> float:
        """How many times an even share the spot and the peak have, in these ways."""
        return excess(self.contributions(ways), self.areas)

    def agreement(self, ways: Sequence[int], verdict: Verdict) -> int:
        """How many of these ways lead to the verdict by themselves."""
        return sum(verdict_of(self.excess([way])) == verdict for way in ways)

    def verdict(self, ways: Sequence[int]) -> Verdict:
        """The verdict of these ways together, or "undecided" if fewer than two thirds of them agree with it."""
        found = verdict_of(self.excess(ways))
        return found if 3 * self.agreement(ways, found) >= 2 * len(ways) else "undecided"


def excess(contributions: Tensor, areas: Tensor) -> float:
    """How many times an even share of the score regions have: the geometric mean, each at least 0.3.

    So a map does not pass whose peak lies beside what counts, nor one that shows little of it.

    >>> excess(torch.tensor([0.5, 0.25]), torch.tensor([0.03125, 0.0625]))
    8.0
    >>> round(excess(torch.tensor([-0.1, 0.25]), torch.tensor([0.03125, 0.0625])), 2)
    1.1
    """
    return float((contributions / areas).double().clamp_min(LEAST).prod() ** (1 / len(areas)))


def verdict_of(excess: float) -> Verdict:
    """What the shares of a map's regions say of it, as multiples of their shares of the area.

    They support the map from 1.75 on, and contradict it below 1.3. The values and `LEAST` leave room to every goal of
    `benchmarks/planted.py` on the corner mark, the stamp, the band and the twins of seed 0.

    >>> verdict_of(10.0), verdict_of(1.5), verdict_of(0.3)
    ('supports', 'undecided', 'contradicts')
    """
    if excess >= MUCH:
        return "supports"
    return "contradicts" if excess < LITTLE else "undecided"


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
