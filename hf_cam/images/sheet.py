"""Several pictures on one labelled sheet: captions above pictures of any sizes, and a legend below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from hf_cam.images.lettering import length, shortened, write
from hf_cam.images.style import Style, bar

TILE, TALLEST, MARGIN = 320, 400, 12
"""The width of a picture, the height to which taller ones are shrunk, and the distance between two."""
TITLE, DETAIL, LEADING = 17, 13, 1.35
"""Sizes of the first line of a caption and of the others, and the distance of lines as a multiple of these."""
PAPER, INK, SOFT, WARNING = "white", (29, 33, 41), (99, 106, 118), (166, 84, 12)
BAR = (220, 12)
"""Width and height of the legend's colours."""
HIGHEST = "1: the peak of each map"


@dataclass(frozen=True)
class Tile:
    """A picture with its caption.

    Args:
        picture: The picture.
        title: The first line.
        details: Further lines.
        warnings: Lines in another colour.
    """

    picture: Image.Image
    title: str
    details: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[tuple[str, int, tuple[int, int, int]]]:
        """The lines of the caption, each with its size and colour."""
        return [
            (self.title, TITLE, INK),
            *((line, DETAIL, SOFT) for line in self.details),
            *((line, DETAIL, WARNING) for line in self.warnings),
        ]


def balanced(count: int) -> int:
    """The number of columns with which `count` pictures fill a sheet that is wider than high.

    >>> [balanced(count) for count in (1, 2, 7, 20)]
    [1, 2, 4, 5]
    """
    rows = max(1, round(math.sqrt(count / 1.5)))
    return -(-count // rows)


def sheet(tiles: Sequence[Tile], columns: int, legend: Style | None = None) -> Image.Image:
    """Pictures row by row, each scaled to the width of a column below its caption.

    A row is as high as its highest picture; very tall pictures become narrower instead.

    Args:
        tiles: At least one.
        columns: How many stand in a row.
        legend: The style of the colours that a legend below explains; None for no legend.
    """
    columns = min(columns, len(tiles))
    pictures = [_fitted(tile.picture) for tile in tiles]
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    captions = [max(_height(tiles[i]) for i in row) for row in rows]
    heights = [caption + max(pictures[i].height for i in row) for row, caption in zip(rows, captions, strict=True)]
    below = MARGIN + BAR[1] + DETAIL if legend else 0
    width = columns * (TILE + MARGIN) + MARGIN
    page = Image.new("RGB", (width, sum(heights) + MARGIN * (len(rows) + 1) + below), PAPER)
    top = MARGIN
    for row, caption, height in zip(rows, captions, heights, strict=True):
        for column, i in enumerate(row):
            left = MARGIN + column * (TILE + MARGIN)
            _write(page, tiles[i], (left, top))
            page.paste(pictures[i], (left, top + caption), pictures[i] if pictures[i].mode == "RGBA" else None)
        top += height + MARGIN
    if legend:
        _explain_colours(page, legend, top)
    return page


def _fitted(picture: Image.Image) -> Image.Image:
    factor = min(TILE / picture.width, TALLEST / picture.height)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC)


def _height(tile: Tile) -> int:
    return round(sum(size * LEADING for _, size, _ in tile.lines())) + DETAIL // 3


def _write(page: Image.Image, tile: Tile, corner: tuple[int, int]) -> None:
    draw, (left, top) = ImageDraw.Draw(page), corner
    below = float(top)
    for text, size, colour in tile.lines():
        write(draw, (left, below), shortened(text, size, TILE), size, colour)
        below += size * LEADING


def _explain_colours(page: Image.Image, style: Style, top: int) -> None:
    """Write what the colours stand for."""
    draw, low = ImageDraw.Draw(page), f"{style.scale.low:g}"
    left = MARGIN + round(length(low, DETAIL)) + DETAIL // 2
    size = (min(BAR[0], page.width // 3), BAR[1])
    middle = top + BAR[1] / 2
    write(draw, (MARGIN, middle), low, DETAIL, SOFT, "lm")
    page.paste(bar(style, size, across=True), (left, top))
    right = left + size[0] + DETAIL // 2
    write(draw, (right, middle), shortened(HIGHEST, DETAIL, page.width - right), DETAIL, SOFT, "lm")
