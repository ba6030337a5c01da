"""Regions of images: a place of the frame, its border, or what differs from image to image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from hf_cam.auditing.cases import WHOLE, Box, Opened
from hf_cam.layouts import Size

GRID = 24
"""Rows and columns of the maps that are compared between images, whatever the images' sizes."""


@dataclass(frozen=True)
class Place:
    """A box at a fixed place of the frame, in shares of it."""

    box: Box

    def mask(self, size: Size, frame: Box = WHOLE) -> np.ndarray:
        """Its pixels, `[H, W]` booleans, in an image of this size whose frame is this box of it.

        >>> Place((0.0, 0.0, 0.5, 0.5)).mask((2, 4)).astype(int)
        array([[1, 1, 0, 0],
               [0, 0, 0, 0]])
        """
        x0, y0, x1, y1 = within(self.box, frame)
        marked = np.zeros(size, bool)
        (top, bottom), (left, right) = _pixels(y0, y1, size[0]), _pixels(x0, x1, size[1])
        marked[top:bottom, left:right] = True
        return marked


def grown(place: Place, by: float = 1 / GRID) -> Place:
    """The place with its sides moved outwards: a mark could be imputed again from a rim that is left of it.

    >>> grown(Place((0.0, 0.5, 0.25, 0.75)), 0.25)
    Place(box=(0.0, 0.25, 0.5, 1.0))
    """
    x0, y0, x1, y1 = place.box
    return Place((max(0.0, x0 - by), max(0.0, y0 - by), min(1.0, x1 + by), min(1.0, y1 + by)))


@dataclass(frozen=True)
class Border:
    """A ring along the edge of the frame, as wide as this share of the frame's shorter side."""

    width: float

    def mask(self, size: Size, frame: Box = WHOLE) -> np.ndarray:
        """Its pixels, `[H, W]` booleans.

        >>> int(Border(0.25).mask((4, 5)).sum())
        14
        """
        outer = Place(WHOLE).mask(size, frame)
        rows, columns = np.flatnonzero(outer.any(1)), np.flatnonzero(outer.any(0))
        wide = max(1, round(self.width * min(len(rows), len(columns))))
        inner = outer.copy()
        inner[rows[0] + wide : rows[-1] + 1 - wide, columns[0] + wide : columns[-1] + 1 - wide] = False
        return inner


def within(box: Box, frame: Box) -> Box:
    """A box in shares of a frame, in shares of the image that the frame lies in."""
    x0, y0, x1, y1 = frame
    width, height = x1 - x0, y1 - y0
    return x0 + box[0] * width, y0 + box[1] * height, x0 + box[2] * width, y0 + box[3] * height


def _pixels(first: float, last: float, length: int) -> tuple[int, int]:
    start = min(max(round(first * length), 0), length - 1)
    return start, min(max(round(last * length), start + 1), length)


def to_frame(values: np.ndarray, frame: Box = WHOLE, grid: int = GRID) -> np.ndarray:
    """A map `[H, W]` over an image as `[grid, grid]` over its frame, by area.

    >>> to_frame(np.ones((30, 50), np.float32)).shape
    (24, 24)
    """
    cut = values
    if frame != WHOLE:
        marked = Place(WHOLE).mask((values.shape[0], values.shape[1]), frame)
        rows, columns = marked.any(1), marked.any(0)
        cut = values[np.ix_(rows, columns)]
    return np.asarray(cv2.resize(np.float32(cut), (grid, grid), interpolation=cv2.INTER_AREA))


def blobs(values: np.ndarray, share: float = 0.5) -> list[np.ndarray]:
    """The connected regions of a map `[h, w]` above a share of its peak, as booleans, the one with most mass first."""
    if values.max() <= 0:
        return []
    count, numbered = cv2.connectedComponents(np.uint8(values >= share * values.max()), connectivity=4)
    found = [numbered == index for index in range(1, count)]
    return sorted(found, key=lambda marked: -float(values[marked].sum()))


def peak_blob(values: np.ndarray, share: float = 0.5) -> np.ndarray:
    """The connected region above a share of the peak that holds the peak, `[h, w]` booleans."""
    top = np.unravel_index(values.argmax(), values.shape)
    return next((marked for marked in blobs(values, share) if marked[top]), np.zeros(values.shape, bool))


def area(box: Box) -> float:
    """Its share of the frame."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    shared = area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))
    return shared / (area(one) + area(other) - shared) if shared else 0.0


def elsewhere(
    marked: np.ndarray, rng: np.random.Generator, tries: int = 64, spared: np.ndarray | None = None
) -> np.ndarray:
    """The same shape at another place, wrapped round the edges: of `tries` random ones the one that overlaps least.

    Args:
        marked: `[H, W]` booleans.
        rng: Where the places are drawn from.
        tries: How many places are tried.
        spared: `[H, W]` booleans: what the shape must not cover either, and is cut off where it does.
    """
    avoided = marked if spared is None else marked | spared
    best, least = marked, np.inf
    for _ in range(tries):
        shift = int(rng.integers(marked.shape[0])), int(rng.integers(marked.shape[1]))
        moved = np.roll(marked, shift, (0, 1))
        shared = int((moved & avoided).sum())
        if shared < least:
            best, least = moved, shared
        if not shared:
            break
    return best if spared is None else best & ~spared


def inside_share(regions: Sequence[np.ndarray], opened: Sequence[Opened]) -> np.ndarray:
    """Of each region, the share of its pixels that lies on the object, `[N]`; nan without mask or box."""
    return np.array(
        [
            np.nan if one.inside is None or not region.any() else float(one.inside[region].mean())
            for region, one in zip(regions, opened, strict=True)
        ]
    )


def inside_anywhere(region: np.ndarray, opened: Opened) -> np.ndarray:
    """The share of a region `[H, W]` on the object, at every place to which it can be moved, wrapped round the edges.

    >>> from PIL import Image
    >>> left = np.array([[True, False, False]])
    >>> inside_anywhere(left, Opened(Image.new("RGB", (3, 1)), np.array([[False, True, True]]))).round(6) + 0.0
    array([[0., 1., 1.]])
    """
    assert opened.inside is not None
    shape = np.fft.rfft2(region.astype(np.float64)), np.fft.rfft2(opened.inside.astype(np.float64))
    shared = np.fft.irfft2(np.conj(shape[0]) * shape[1], s=region.shape) / region.sum()
    return np.asarray(shared.clip(0, 1))
