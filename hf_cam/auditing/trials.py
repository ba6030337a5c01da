"""Does the model read a region? It is shown images without it, and without another region of the same shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy.stats import binomtest, false_discovery_control
from torch import Tensor
from torch.nn import functional

from hf_cam.auditing.asking import Asker, replacements
from hf_cam.auditing.recognition import Shown
from hf_cam.auditing.regions import elsewhere

Verdict = Literal["reads it", "does not", "undecided"]
Regions = Callable[[Shown], np.ndarray]
"""The region of an image, `[H, W]` booleans."""

LEVEL = 0.05
CLEAR = 0.1
"""The least fall in accuracy, beyond that of another region of the same shape, that counts as reading."""
PASTED = 3
"""On how many images of other classes each region is put."""


@dataclass(frozen=True)
class Trial:
    """What removing a region did to N held-out images that the model had recognized.

    Args:
        images: N.
        drop: The share of them whose class changes, under most of the ways to replace pixels.
        interval: Its 95 % confidence interval (Wilson).
        elsewhere: The same share for a region of the same shape at another place.
        follows: The share of images of other classes that take on the class if the region is put on them.
        follows_elsewhere: The same for a region of the same shape.
        p: That the region changes the class more often than the other one does, if it did not (McNemar's exact test).
        pasted: Whether it was put on images of other classes.
    """

    images: int
    drop: float
    interval: tuple[float, float]
    elsewhere: float
    follows: float
    follows_elsewhere: float
    p: float
    pasted: bool = True

    @property
    def verdict(self) -> Verdict:
        """What follows, once `p` is corrected."""
        if self.p < LEVEL and self.drop - self.elsewhere >= CLEAR:
            return "reads it"
        return "does not" if self.interval[1] - self.elsewhere < 2 * CLEAR else "undecided"


def tried(asker: Asker, images: Sequence[Shown], others: Sequence[Shown], regions: Regions, seed: int = 0) -> Trial:
    """Remove a region from each image, and put it on images of other classes.

    Args:
        asker: The model.
        images: Of one class, recognized.
        others: Images of other classes, from which pixels come and on which regions are put.
        regions: The region of each image.
        seed: Seed of the places elsewhere and of the noise.
    """
    rng = np.random.default_rng(seed)
    flips = np.zeros((2, len(images)), bool)
    follow = np.zeros((2, len(images)))
    for index, one in enumerate(images):
        region = regions(one)
        spared = one.object if asker.locates and not (region & one.object).any() else None
        pair = [one.mask(region), one.mask(elsewhere(region, rng, spared=spared))]
        lent = min(PASTED, len(others))
        turn = [_as_large(others[(index * PASTED + k) % len(others)].pixels, one.pixels) for k in range(lent)]
        flips[:, index], follow[:, index] = _effects(asker, one, turn, torch.stack(pair), seed)
    return summary(flips, follow, pasted=bool(others) and not asker.locates)


def _as_large(pixels: Tensor, like: Tensor) -> Tensor:
    """Pixels `[1, C, h, w]` at the size of others, which a processor may leave to each image."""
    if pixels.shape == like.shape:
        return pixels
    return functional.interpolate(pixels, size=like.shape[-2:], mode="bilinear", antialias=True)


def _effects(
    asker: Asker, one: Shown, others: Sequence[Tensor], missing: Tensor, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of each region `[M, h, w]`, whether most replacements change the class, and how many of the others take it on."""
    missing = missing.to(one.pixels.device)
    removed = [way(one.pixels, missing) for way in replacements(others[0] if others else None, seed).values()]
    # What lies on images with another object at that place says nothing of the context of this one.
    onto = [] if asker.locates else others
    pasted = [torch.where(missing[:, None], one.pixels, other) for other in onto]
    _, found = asker.answers(torch.cat([*removed, *pasted]), one)
    kept, taken = found.reshape(-1, len(missing)).float().tensor_split([len(removed)])
    return (kept.mean(0) < 0.5).numpy(), taken.mean(0).numpy() if pasted else np.zeros(len(missing))


def summary(flips: np.ndarray, follow: np.ndarray, *, pasted: bool = True) -> Trial:
    """The trial of these outcomes.

    Args:
        flips: `[2, N]` booleans: whether the class of each image changed without the region, and without another one.
        follow: `[2, N]` in [0, 1]: the shares of others that took on the class.
        pasted: Whether there were any others.

    >>> summary(np.array([[True] * 9 + [False], [False] * 10]), np.zeros((2, 10))).drop
    0.9
    """
    count = flips.shape[1]
    if not count:
        return Trial(0, 0.0, (0.0, 1.0), 0.0, 0.0, 0.0, 1.0, pasted)
    more, fewer = int((flips[0] & ~flips[1]).sum()), int((flips[1] & ~flips[0]).sum())
    p = float(binomtest(more, more + fewer, 0.5, alternative="greater").pvalue) if more + fewer else 1.0
    low, high = binomtest(int(flips[0].sum()), count).proportion_ci(method="wilson")
    (drop, other), (follows, others) = flips.mean(1).tolist(), follow.mean(1).tolist()
    return Trial(count, drop, (float(low), float(high)), other, follows, others, p, pasted)


def corrected(trials: Sequence[Trial]) -> list[Trial]:
    """The trials with `p` corrected for their number (Benjamini and Hochberg).

    >>> one = summary(np.array([[True] * 5, [False] * 5]), np.zeros((2, 5)))
    >>> corrected([one, replace(one, p=1.0)])[0].p
    0.0625
    """
    if not trials:
        return []
    adjusted = false_discovery_control([trial.p for trial in trials])
    return [replace(trial, p=float(p)) for trial, p in zip(trials, adjusted, strict=True)]
