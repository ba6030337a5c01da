"""How a heatmap is drawn: opacity, colours, contour lines and the legend; pure functions on pictures and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

import cv2
import numpy as np
from PIL import Image, ImageDraw

from hf_cam.errors import OptionError, brief, nearest
from hf_cam.images.colours import DEFAULT_COLORMAP, DIVERGING, table_of
from hf_cam.images.lettering import length, write

QUARTERS = (0.25, 0.5, 0.75)
"""Where contour lines are drawn if no levels are given, as parts of the peak."""
RIM, PAPER, INK = (20, 20, 20, 255), (255, 255, 255), (40, 44, 52)
NARROW, WIDE, FADES = 14, 22, 0.5
"""Widths of the bar of colours in small and in large pictures; and the value below which colours fade."""


class Drawing(TypedDict, total=False):
    """Settings of a picture beside opacity and colours; see `hf_cam.overlay`."""

    even: bool
    contours: bool | float | Sequence[float]
    colorbar: bool
    transparent: bool


@dataclass(frozen=True)
class Scale:
    """The range of the values.

    Args:
        low: The value that the first colour stands for; the last stands for 1.
        colormap: The colours where none are named.
        ticks: The values that the legend names, from the highest to the lowest.
    """

    low: float
    colormap: str
    ticks: tuple[float, ...]

    def share(self, values: np.ndarray | float) -> np.ndarray:
        """Values as places between the first colour, 0, and the last, 1."""
        return np.clip((np.asarray(values) - self.low) / (1 - self.low), 0, 1)


UNSIGNED = Scale(0.0, DEFAULT_COLORMAP, (1.0, 0.5, 0.0))
SIGNED = Scale(-1.0, DIVERGING, (1.0, 0.0, -1.0))


@dataclass(frozen=True)
class Style:
    """How a heatmap is drawn over an image.

    Args:
        alpha: Opacity of the colours in [0, 1].
        colormap: A name or a constant; see `hf_cam.images.colours.table_of`.
        even: Whether all pixels have this opacity; if not, it falls to 0 below half of the peak.
        contours: Whether to draw contour lines at the quarters of the peak, or the values at which to draw them.
        colorbar: Whether to add a legend at the right.
        transparent: Whether to draw the colours alone, without the image.
        scale: The range of the values.

    Raises:
        OptionError: a setting has an invalid value.
    """

    alpha: float = 0.5
    colormap: str | int = DEFAULT_COLORMAP
    even: bool = False
    contours: bool | float | Sequence[float] = False
    colorbar: bool = False
    transparent: bool = False
    scale: Scale = UNSIGNED

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        if not _is_number(self.alpha) or not 0 <= self.alpha <= 1:
            raise OptionError(f"alpha must lie in [0, 1], got {brief(self.alpha)}")
        for name in ("even", "colorbar", "transparent"):
            if not isinstance(wanted := getattr(self, name), bool | np.bool_):
                raise OptionError(f"{name} must be True or False, got {brief(wanted)}")
        low = self.scale.low
        if not all(_is_number(level) and low < level < 1 for level in self.levels):
            raise OptionError(
                f"contours must be True or values between {low:g} and 1, such as [0.5], got {brief(self.contours)}"
            )
        table_of(self.colormap)

    @classmethod
    def of(cls, alpha: float, colormap: str | int | None, scale: Scale, drawing: Mapping[str, Any]) -> Style:
        """A style from a caller's arguments.

        Raises:
            OptionError: a setting does not exist or has an invalid value.

        >>> Style.of(0.5, None, UNSIGNED, {"contours": [0.5]}).levels
        (0.5,)
        """
        known = [*Drawing.__annotations__, "alpha", "colormap"]
        for name in drawing:
            if name not in Drawing.__annotations__:
                raise OptionError(f"a picture has no setting {brief(name)}; nearest: {nearest(name, known)}")
        return cls(alpha, scale.colormap if colormap is None else colormap, scale=scale, **drawing)

    @property
    def levels(self) -> tuple[Any, ...]:
        """The values at which contour lines are drawn."""
        given = self.contours
        if isinstance(given, bool | np.bool_):
            below = tuple(-level for level in QUARTERS) if self.scale.low < 0 else ()
            return (*QUARTERS, *below) if given else ()
        return tuple(given) if isinstance(given, list | tuple | np.ndarray) else (given,)

    def plain(self) -> Style:
        """The same without a legend, for one of several pictures that share it."""
        return replace(self, colorbar=False)


SETTINGS = tuple(field.name for field in fields(Style) if field.name != "scale")


def coloured(picture: Image.Image, values: np.ndarray, style: Style) -> Image.Image:
    """The values in colours over a picture of the same size, or without it, in RGBA, on a transparent ground."""
    levels = np.rint(style.scale.share(values) * 255).astype(np.uint8)
    colours = np.take(table_of(style.colormap), levels, axis=0)  # four times as fast as indexing
    opacity = _opacity(values, style)
    if style.transparent:
        opacity = np.where(values == 0, 0, opacity)
        return Image.fromarray(np.dstack([colours, np.rint(opacity * 255).astype(np.uint8)]), "RGBA")
    mixed = np.array(picture, np.float32)
    mixed *= (1 - opacity)[..., None]
    mixed += opacity[..., None] * colours
    return Image.fromarray(np.rint(mixed, out=mixed).astype(np.uint8))


def _opacity(values: np.ndarray, style: Style) -> np.ndarray:
    if style.even:
        return np.full(values.shape, float(style.alpha))
    opacity: np.ndarray = style.alpha * np.clip(np.abs(values) / FADES, 0, 1)
    return opacity


def with_contours(drawn: Image.Image, values: np.ndarray, style: Style) -> Image.Image:
    """The lines where the values cross the levels of a style, each in the level's colour with a dark rim."""
    if not style.levels:
        return drawn
    canvas, table = np.array(drawn), table_of(style.colormap)
    thickness = max(2, round(min(drawn.size) / 200))
    for level in sorted(style.levels, key=abs):
        above = values >= level if level > 0 or style.scale.low == 0 else values <= level
        lines, _ = cv2.findContours(above.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        colour = (*(int(part) for part in table[round(float(style.scale.share(level)) * 255)]), 255)
        cv2.drawContours(canvas, lines, -1, RIM, thickness + 2)
        cv2.drawContours(canvas, lines, -1, colour, thickness)
    return Image.fromarray(canvas)


def with_bar(drawn: Image.Image, style: Style) -> Image.Image:
    """The picture with the legend at its right: the colours as they are drawn, and the values that they stand for."""
    if not style.colorbar:
        return drawn
    size = max(8, min(18, drawn.height // 12))
    width = NARROW if drawn.height < 200 else WIDE
    text = max(round(length(_number(tick), size)) for tick in style.scale.ticks)
    sheet = Image.new(
        "RGBA" if drawn.mode == "RGBA" else "RGB", (drawn.width + width + text + 3 * size, drawn.height), PAPER
    )
    sheet.paste(drawn, (0, 0))
    left, margin = drawn.width + size, size // 2 + 1
    height = max(2, drawn.height - 2 * margin)
    sheet.paste(bar(style, (width, height)).convert(sheet.mode), (left, margin))
    draw = ImageDraw.Draw(sheet)
    ticks = style.scale.ticks if height > 3 * size else (style.scale.ticks[0], style.scale.ticks[-1])
    for tick in ticks:
        y = margin + (1 - float(style.scale.share(tick))) * (height - 1)
        write(draw, (left + width + size // 2, y), _number(tick), size, INK, "lm")
    return sheet


def bar(style: Style, size: tuple[int, int], *, across: bool = False) -> Image.Image:
    """The colours of a style over white, from the lowest value at the bottom to the highest at the top.

    Args:
        style: The style.
        size: Width and height.
        across: Whether the values grow from left to right instead.
    """
    count = size[0] if across else size[1]
    values = style.scale.low + (1 - style.scale.low) * np.linspace(0, 1, count)
    strip = values[None] if across else values[::-1, None]
    strip = np.broadcast_to(strip, size[::-1])
    # Fully opaque at the peak, so that the colours can be told apart; where they fade over the image, they fade here.
    shown = replace(style, alpha=1.0, transparent=False, contours=False)
    frame = coloured(Image.new("RGB", size, PAPER), strip, shown)
    ImageDraw.Draw(frame).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=INK)
    return frame


def _number(tick: float) -> str:
    return f"{tick:g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
