"""Where evidence lies in the images of one class, and which regions come under suspicion."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from hf_cam.auditing.asking import Asker, falls, stays
from hf_cam.auditing.cases import Box, box_of
from hf_cam.auditing.recognition import Shown
from hf_cam.auditing.regions import GRID, Border, Place, area, blobs, grown, overlap, peak_blob, to_frame
from hf_cam.layouts import Size
from hf_cam.methods.masking import Window, windows

NOTED = 0.5
"""The share of the strongest effect from which on a square's neighbourhood is looked at more closely."""
TELLING = 0.5
"""The effect of hiding its strongest square up to which the evidence of an image may lie in several places, each of
which suffices."""
COARSE = 4
"""The side of the squares that hide parts of an image, as a divisor of its shorter side."""
WIDTHS = (0.25, 0.17, 0.12, 0.08, 0.05)
"""The widths of a border that are tried, as shares of the shorter side."""
KEPT = 0.85
"""A region may shrink as long as hiding it has this share of its first effect."""
FIXED = 0.25
"""The least mean effect of a place's strongest cell, as a share of the mean of the images' own strongest cells."""
LARGEST = 0.5
"""A place covers at most this share of the frame."""
STRIP = 0.5
"""The share of an edge from which a place along it counts as that edge."""
PEAK = 0.9
"""The share of its peak from which evidence counts as the strongest."""
PLACES = 4
"""How many places per class are tested."""


@dataclass(frozen=True, eq=False)
class Scan:
    """What hiding squares of an image does to its class.

    Args:
        one: The image.
        effect: `[H, W]` in [0, 1], in its pixels: the mean effect of the squares that each lies in.
    """

    one: Shown
    effect: np.ndarray

    @property
    def framed(self) -> np.ndarray:
        """The effect over the image's frame, `[GRID, GRID]`."""
        return to_frame(self.effect)

    def region(self, share: float = 0.5) -> np.ndarray:
        """The connected region above a share of the peak that holds it, `[H, W]` booleans."""
        return peak_blob(self.effect, share)


def scan(asker: Asker, one: Shown) -> Scan:
    """Hide squares of an image side by side, and then those between them where that had an effect.

    Where hiding one does little, since a part of the evidence is enough for the model, what a square does alone, with
    all else hidden, counts too.
    """
    size = one.geometry.model_size
    patch = max(2, min(size) // COARSE)
    coarse, effect_of = windows(size, patch, patch), _hidden
    effects = _hidden(asker, one, coarse)
    if max(effects) < TELLING and not asker.locates:
        effect_of = _hidden_or_alone
        effects = [*map(max, effects, _alone(asker, one, coarse))]
    reached = torch.zeros(size, dtype=torch.bool)
    for at, effect in zip(coarse, effects, strict=True):
        reached[at] |= bool(effect >= NOTED * max(effects))
    between = [at for at in windows(size, patch, max(1, patch // 2)) if at not in coarse and reached[at].any()]
    if max(effects) > 0 and between:
        coarse, effects = [*coarse, *between], [*effects, *effect_of(asker, one, between)]
    total, count = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for at, effect in zip(coarse, effects, strict=True):
        total[at] += effect
        count[at] += 1
    drawn = one.geometry.to_image((total / count).float()[None])[0]
    return Scan(one, drawn.numpy())


def _hidden(asker: Asker, one: Shown, squares: Sequence[Window]) -> list[float]:
    """The effect of each square."""
    kept = context(asker, one)
    found: list[float] = falls(asker, one, [_square(one.geometry.model_size, *at) & kept for at in squares]).tolist()
    return found


def _alone(asker: Asker, one: Shown, squares: Sequence[Window]) -> list[float]:
    """How much of the evidence each square is with all else hidden."""
    found: list[float] = stays(asker, one, [_square(one.geometry.model_size, *at) for at in squares]).tolist()
    return found


def _hidden_or_alone(asker: Asker, one: Shown, squares: Sequence[Window]) -> list[float]:
    """The larger of the two."""
    return [*map(max, _hidden(asker, one, squares), _alone(asker, one, squares))]


def context(asker: Asker, one: Shown) -> Tensor:
    """What may be hidden, `[h, w]` booleans: all but the object where the model finds it at its place."""
    return ~one.mask(one.object) if asker.locates else torch.ones(one.geometry.model_size, dtype=torch.bool)


def _square(size: Size, rows: slice, columns: slice) -> Tensor:
    marked = torch.zeros(size, dtype=torch.bool)
    marked[rows, columns] = True
    return marked


def mean_effect(scans: Sequence[Scan], frames: Sequence[Box]) -> np.ndarray:
    """The mean over the images' frames, `[GRID, GRID]`."""
    return np.asarray(np.mean([to_frame(one.effect, frame) for one, frame in zip(scans, frames, strict=True)], 0))


def places(scans: Sequence[Scan], frames: Sequence[Box]) -> list[Place]:
    """Boxes where the evidence of several images lies, largest effect first."""
    mean = mean_effect(scans, frames)
    own = np.mean([one.effect.max() for one in scans])
    found = []
    for marked in blobs(mean):
        box = box_of(marked)
        if mean[marked].max() >= FIXED * own and area(box) <= LARGEST:
            found.append(Place(box))
    return found[:PLACES]


def agreement(scans: Sequence[Scan], frames: Sequence[Box], place: Place) -> float:
    """Whether the evidence in a place lies at one position of the frame, or wherever an object happens to lie.

    The mean intersection over union of the images' evidence, over the pairs of those whose strongest evidence touches
    the place, in [0, 1]; 0 for fewer than two. Along an edge of the frame, evidence may lie anywhere: only its distance
    from the edge counts.

    Args:
        scans: Of the images.
        frames: Of each.
        place: The box.
    """
    framed = [to_frame(one.effect, frame) for one, frame in zip(scans, frames, strict=True)]
    inside = place.mask((GRID, GRID))
    marked = [peak_blob(one) for one in framed if (peak_blob(one, PEAK) & inside).any()]
    x0, y0, x1, y1 = place.box
    if max(x1 - x0, y1 - y0) >= STRIP:
        lies = x1 - x0 >= y1 - y0
        if (y0 == 0 or y1 == 1) if lies else (x0 == 0 or x1 == 1):
            marked = [np.asarray(one.any(1 if lies else 0)) for one in marked]
    pairs = [(one & other).sum() / (one | other).sum() for one, other in combinations(marked, 2)]
    return float(np.mean(pairs)) if pairs else 0.0


class Shrinking:
    """How small a region may become before hiding it loses its effect on some images.

    Args:
        asker: The model.
        images: On which it is measured.
        frames: Of each.
    """

    def __init__(self, asker: Asker, images: Sequence[Shown], frames: Sequence[Box]) -> None:
        self.asker, self.images, self.frames = asker, images, frames

    def effect(self, region: Place | Border) -> float:
        """The mean effect of hiding the region."""
        return float(self.effects([region])[0])

    def effects(self, regions: Sequence[Place | Border]) -> np.ndarray:
        """The mean effect of each, `[R]`: of hiding it, and of hiding all else, which has none if it is the evidence.

        Hiding a part of a mark may do as much as hiding all of it, but a part alone is not what the model knows.
        """
        found = []
        for one, frame in zip(self.images, self.frames, strict=True):
            size = one.opened.image.height, one.opened.image.width
            kept = context(self.asker, one)
            masks = [one.mask(region.mask(size, frame)) for region in regions]
            hidden, alone = falls(self.asker, one, [*(m & kept for m in masks), *(~m & kept for m in masks)]).chunk(2)
            found.append(((hidden + 1 - alone) / 2).numpy())
        return np.asarray(np.mean(found, 0))

    def box(self, place: Place) -> Place:
        """The place, a cell larger, each side then moved inwards as far as the effect stays, and half a cell back.

        A side within a cell of the frame's edge lies on it: a strip of a mark that is left there would be enough to
        impute the mark from.
        """
        step = 1 / GRID
        current = grown(place, step).box
        enough = KEPT * self.effect(Place(current))
        for side in range(4):
            tried = [box for box in (_moved(current, side, k * step) for k in range(1, GRID)) if area(box) > 0]
            tried = [box for box in tried if min(box[2] - box[0], box[3] - box[1]) >= step][: GRID // 2]
            if not tried:
                continue
            far = bisect_left(tried, True, key=lambda box: self.effect(Place(box)) < enough)
            current = tried[far - 1] if far else current
        return replace(place, box=_snapped(grown(Place(current), step / 2).box, step))

    def border(self) -> tuple[Border, float]:
        """The narrowest border that keeps the effect of the widest, and that effect."""
        rings = [Border(width) for width in WIDTHS]
        effects = self.effects(rings)
        enough = KEPT * effects.max()
        index = max(k for k, effect in enumerate(effects) if effect >= enough)
        return rings[index], float(effects[index])


def _snapped(box: Box, step: float) -> Box:
    x0, y0, x1, y1 = box
    return (
        0.0 if x0 < step else x0,
        0.0 if y0 < step else y0,
        1.0 if x1 > 1 - step else x1,
        1.0 if y1 > 1 - step else y1,
    )


def _moved(box: Box, side: int, by: float) -> Box:
    sides = list(box)
    sides[side] += by if side < 2 else -by
    return sides[0], sides[1], sides[2], sides[3]


def distinct(found: Sequence[Place]) -> list[Place]:
    """The places without those that mostly repeat an earlier one."""
    kept: list[Place] = []
    for place in found:
        if all(overlap(place.box, other.box) < 0.5 for other in kept):
            kept.append(place)
    return kept
