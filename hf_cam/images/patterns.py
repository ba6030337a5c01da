"""Test pictures of dark and light blocks, and where a geometry says that the blocks come out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from hf_cam.images.geometry import Axis
from hf_cam.layouts import Size

Colour = tuple[int, int, int]
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
DARK, LIGHT = (16, 8, 104), (104, 252, 248)
"""Far apart in grey and in green; both low in red and both high in blue, for processors that fold the levels over."""
PALETTES = ((DARK, LIGHT), (BLACK, WHITE))
"""Of patterns, tried in turn where a processor sees no difference."""
RIM = 0.06
"""Width of a rim in shares of the picture's length: a scan has one, and processors that look for what is in it cut it
off."""
SEEDS = (60, 97)
"""Of the widths of stripes: tried out to be unlike each other and themselves, whichever way round and shifted."""
MOST = 128
"""Pixels per axis that are looked at, evenly spaced where there are more."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Which blocks of a pattern one axis of the model's input shows.

    Args:
        pixels: Those of the axis that lie well within a block.
        shown: The block that each of them shows.
        padding: Which of them lie beyond the image.
    """

    pixels: np.ndarray
    shown: np.ndarray
    padding: np.ndarray


@dataclass(frozen=True, eq=False)
class Pattern:
    """Dark and light blocks that fill a picture.

    Args:
        rows, columns: Edges of the blocks along each axis in pixels, from 0 to the picture's length.
        light: `[len(rows) - 1, len(columns) - 1]` booleans.
        rim: The colour of the outermost of several blocks, in the negative too; they are as the others where not given.
    """

    rows: np.ndarray
    columns: np.ndarray
    light: np.ndarray
    rim: Colour | None = None

    def pictures(self, palette: tuple[Colour, Colour] = PALETTES[0]) -> tuple[Image.Image, Image.Image]:
        """The pattern in a dark and a light colour, and its negative."""
        return self._drawn(palette), self._drawn(palette[::-1])

    def _drawn(self, palette: tuple[Colour, ...]) -> Image.Image:
        colours = np.array(palette, np.uint8)[self.light.astype(int)]
        if self.rim is not None and len(self.rows) > 2:
            colours[[0, -1]] = self.rim
        if self.rim is not None and len(self.columns) > 2:
            colours[:, [0, -1]] = self.rim
        lines = colours.repeat(np.diff(self.columns), 1)
        return Image.fromarray(lines.repeat(np.diff(self.rows), 0))

    def along(self, edges: np.ndarray, axis: Axis, side: int, margin: float, *, mirrored: bool) -> Blocks:
        """The blocks that an axis of the model's input shows; those of a rim, and padding behind it, are left out.

        Args:
            edges: `rows` or `columns`.
            axis: The image's axis in the model's input.
            side: Of the model's input.
            margin: How many model pixels from a block's edge are well within it: a quarter of the block at most, and a
                third of a pixel of an enlarged image at least.
            mirrored: Whether padding goes on with the image mirrored, rather than with its outermost pixels.
        """
        length = int(edges[-1])
        image = axis.to_image(np.arange(side, dtype=float)) + 0.5
        beyond = np.maximum(-image, image - length)
        folded = np.abs((image + length) % (2 * length) - length) if mirrored else image.clip(0, length)
        shown = (np.searchsorted(edges, folded, side="right") - 1).clip(0, len(edges) - 2)
        first, last = edges[shown], edges[shown + 1]
        depth = np.minimum(folded - first, last - folded)
        if not mirrored:
            depth = np.maximum(depth, beyond)
        scale = abs(axis.scale)
        least = np.maximum(np.minimum(margin, (last - first) * scale / 4), scale / 3 if scale > 1 else 0)
        named = depth * scale >= least
        if self.rim is not None and len(edges) > 2:
            named &= (shown > 0) & (shown < len(edges) - 2)
        pixels = np.flatnonzero(named)
        pixels = pixels[:: -(-len(pixels) // MOST) or 1]
        return Blocks(pixels, shown[pixels], beyond[pixels] > 0)


def checkerboard(image_size: Size, stripes: int) -> Pattern:
    """Stripes of irregular widths along both axes, light where only one of the two is."""
    rows, columns = (_irregular(length, stripes, seed) for length, seed in zip(image_size, SEEDS, strict=True))
    light = np.add.outer(np.arange(len(rows) - 1), np.arange(len(columns) - 1)) % 2 > 0
    return Pattern(rows, columns, light)


def random_blocks(image_size: Size, blocks: Size, rim: Colour) -> Pattern:
    """Blocks of about one size, half of them light, within a rim.

    Which are light is random, but more are towards the last row and column: a processor that centres a picture on what
    is bright in it moves the pattern one way and its negative the other.
    """
    rows, columns = (_framed(length, count) for length, count in zip(image_size, blocks, strict=True))
    weights = np.add.outer(np.linspace(0, 1, len(rows) - 1), np.linspace(0, 1, len(columns) - 1))
    weights += 2 * np.random.default_rng(7).random(weights.shape)
    light = weights > np.median(weights)
    return Pattern(rows, columns, light, rim if min(image_size) * RIM >= 1 else None)


def _framed(length: int, blocks: int) -> np.ndarray:
    """Edges from 0 to `length`, evenly spaced but for the first and last; of one block these two alone."""
    if blocks == 1:
        return np.array([0, length])
    rim = int(length * RIM)
    inner = np.linspace(rim, length - rim, min(blocks, length - 2 * rim) + 1)
    return np.unique(np.array([0, *inner.round(), length], int))


def _irregular(length: int, stripes: int, seed: int) -> np.ndarray:
    """Edges from 0 to `length`, no two neighbouring distances alike."""
    widths = 1 + 2 * np.random.default_rng(seed).random(max(1, min(stripes, (2 * length + 2) // 3)))
    ends = np.append(0, widths.cumsum()) / widths.sum() * length
    return np.unique(ends.round().astype(int))
