"""The spatial layout of an activation: its axes, the tokens around its grid, and its conversion to `[B, C, h, w]`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hf_cam.errors import LayoutError

NCHW = "b c h w"
NHWC = "b h w c"
TOKENS = "b (h w) c"
NCDHW = "b c d h w"
TIME_FIRST = "b (t h w) c"
TIME_LAST = "b (h w t) c"
BY_FRAME = "(b t) (h w) c"
BY_PLACE = "(b h w) t c"
MAPS = (NCHW, NHWC, NCDHW)
VIDEO = (TIME_FIRST, TIME_LAST, BY_FRAME, BY_PLACE)
AXES = (*MAPS, TOKENS, *VIDEO)
PREFIXES = (0, 1, 2, 5, 9)
"""Common numbers of class, distillation and register tokens before a grid."""

Size = tuple[int, int]


class Spatial(Protocol):
    """Anything that converts an activation to spatial form."""

    def to_spatial(self, activations: Tensor, image_size: Size) -> Tensor:
        """`[B, C, h, w]` (`[B, C, t, h, w]` for a video), for a model input of `image_size` (height, width)."""
        ...


@dataclass(frozen=True)
class Layout:
    """The layout of one layer's output.

    Args:
        axes: "b c h w" (channels first), "b h w c" (channels last), "b (h w) c" (tokens in raster order) or "b c d h w"
            (volumes of any depth). For videos: "b (t h w) c" (frame by frame), "b (h w t) c" (place by place),
            "(b h w) t c" (one sample per place) or "(b t) (h w) c" (one sample per frame of a single video).
        prefix: Tokens before the grid: class, distillation and register tokens.
        suffix: Tokens after the grid, such as YOLOS's detection tokens; None for padding of any length (needs a patch).
        patch: Height and width in input pixels of the model's smallest cell; the cells of a token grid then have that
            size times a power of two, and the cells of a map its aspect ratio. None for any stride that is the same
            along both axes.
        square: True if the model itself mixes up its cells unless the picture is square.
    """

    axes: str
    prefix: int = 0
    suffix: int | None = 0
    patch: Size | None = None
    square: bool = False

    def __post_init__(self) -> None:
        """Refuse a layout that no activation can have."""
        if self.axes not in AXES:
            raise LayoutError(f"unknown axes {self.axes!r}; choose from {', '.join(map(repr, AXES))}")
        if self.axes in MAPS and (self.prefix or self.suffix != 0):
            raise LayoutError(f"a prefix or suffix of tokens needs the axes {TOKENS!r}, not {self.axes!r}")
        if self.patch is None and (self.axes in VIDEO or self.suffix is None):
            raise LayoutError(f"a layout {self.axes!r} with frames or padding needs the size of a patch")

    def grid(self, shape: Iterable[int], image_size: Size) -> Size:
        """Rows and columns of cells in an activation of this shape, for an input of `image_size` (height, width).

        >>> Layout("b (h w) c", prefix=1, patch=(16, 16)).grid((1, 1 + 6 * 4, 768), image_size=(96, 64))
        (6, 4)

        Raises:
            LayoutError: the number of axes or tokens does not fit, or the picture has to be square and is not.
        """
        shape = tuple(shape)
        if self.square and image_size[0] != image_size[1]:
            raise LayoutError(
                f"this model mixes up rows and columns of a picture that is not square, and got one of "
                f"{image_size[0]} x {image_size[1]}; resize it to a square first"
            )
        expected = {NCHW: 4, NHWC: 4, NCDHW: 5}.get(self.axes, 3)
        if len(shape) != expected:
            raise LayoutError(f"expected {expected} axes ({self.axes}), got shape {shape}")
        if self.axes in MAPS:
            grid = (shape[1], shape[2]) if self.axes == NHWC else (shape[-2], shape[-1])
            high, wide = self.patch or (1, 1)
            if not same_stride(grid, (image_size[0] * wide, image_size[1] * high)):
                raise LayoutError(
                    f"read as {self.axes}, the shape {shape} has {grid[0]} x {grid[1]} cells, which no common stride "
                    f"gives for a {image_size[0]} x {image_size[1]} input"
                )
            return grid
        if self.axes in VIDEO or self.suffix is None:
            return self._cut(shape, image_size)
        cells = shape[1] - self.prefix - self.suffix
        grids = token_grids(cells, image_size, self.patch)
        if len(grids) != 1:
            why = f"fit {len(grids)} grids ({', '.join(f'{h} x {w}' for h, w in grids)})" if grids else "fit no grid"
            raise LayoutError(
                f"{shape[1]} tokens = {self.prefix} prefix + {cells} cells + {self.suffix} suffix: {cells} cells {why} "
                f"of a {image_size[0]} x {image_size[1]} input"
                + (f" in patches of {self.patch[0]} x {self.patch[1]}" if self.patch else "")
            )
        return grids[0]

    def _cut(self, shape: tuple[int, ...], image_size: Size) -> Size:
        """The grid of patches if the number of tokens does not determine it, because of frames or padding."""
        assert self.patch is not None
        rows, columns = image_size[0] // self.patch[0], image_size[1] // self.patch[1]
        tokens = shape[0] if self.axes == BY_PLACE else shape[1] - self.prefix - (self.suffix or 0)
        left = tokens % (rows * columns) if self.axes in VIDEO else min(tokens - rows * columns, 0)
        if not rows * columns or left or tokens < 1 or (self.axes == BY_FRAME and tokens != rows * columns):
            raise LayoutError(
                f"read as {self.axes}, the shape {shape} holds no whole number of grids of {rows} x {columns} patches, "
                f"into which a {image_size[0]} x {image_size[1]} input is cut"
            )
        return rows, columns

    def to_spatial(self, activations: Tensor, image_size: Size) -> Tensor:
        """The activation as `[B, C, h, w]`, or `[B, C, t, h, w]` for a video; a view where possible.

        Raises:
            LayoutError: the shape does not fit this layout for an input of `image_size` (height, width).
        """
        height, width = self.grid(activations.shape, image_size)
        if self.axes in (NCHW, NCDHW):
            return activations
        if self.axes == NHWC:
            return activations.permute(0, 3, 1, 2)
        if self.axes == BY_PLACE:
            return activations.reshape(-1, height, width, *activations.shape[1:]).permute(0, 4, 3, 1, 2)
        end = activations.shape[1] - self.suffix if self.suffix is not None else self.prefix + height * width
        cells = activations[:, self.prefix : end]
        if self.axes == TIME_FIRST:
            return cells.reshape(len(cells), -1, height, width, cells.shape[2]).permute(0, 4, 1, 2, 3)
        if self.axes == TIME_LAST:
            return cells.reshape(len(cells), height, width, -1, cells.shape[2]).permute(0, 4, 3, 1, 2)
        if self.axes == BY_FRAME:
            return cells.reshape(1, -1, height, width, cells.shape[2]).permute(0, 4, 1, 2, 3)
        return cells.transpose(1, 2).reshape(len(cells), -1, height, width)


@dataclass(frozen=True)
class Reshape:
    """A layout given by the caller as a function, `activation -> [B, C, h, w]`."""

    function: Callable[[Tensor], Tensor]

    def to_spatial(self, activations: Tensor, image_size: Size) -> Tensor:
        """Call the function and check that its result is spatial."""
        spatial = self.function(activations)
        if not isinstance(spatial, Tensor) or spatial.ndim not in (4, 5) or len(spatial) != len(activations):
            got = tuple(spatial.shape) if isinstance(spatial, Tensor) else type(spatial).__name__
            raise LayoutError(
                f"reshape must return a tensor [B, C, h, w] with B = {len(activations)}, got {got} "
                f"from {tuple(activations.shape)}"
            )
        return spatial


@dataclass(frozen=True)
class AnyLayout:
    """A layout inferred from the shape of each activation, for a layer that the caller chose.

    Args:
        prefixes: Numbers of prefix tokens to try, most likely first.
        patch: The model's patch in pixels, if known.
    """

    prefixes: tuple[int, ...] = PREFIXES
    patch: Size | None = None

    def to_spatial(self, activations: Tensor, image_size: Size) -> Tensor:
        """The activation in the first layout that fits; raises `LayoutError` if none does."""
        return self.reading(activations.shape, image_size).to_spatial(activations, image_size)

    def reading(self, shape: Iterable[int], image_size: Size) -> Layout:
        """The first layout that fits an activation of this shape.

        Raises:
            LayoutError: none fits.
        """
        shape = tuple(shape)
        readings = read_layouts(shape, image_size, prefixes=self.prefixes, patch=self.patch)
        if not readings:
            raise LayoutError(f"no layout of the shape {shape} fits a {image_size[0]} x {image_size[1]} input")
        return readings[0]


def token_grids(cells: int, image_size: Size, patch: Size | None = None) -> list[Size]:
    """Every grid of exactly `cells` cells that an input of `image_size` (height, width) can be cut into.

    A stride is the patch times a power of two (or any whole number of pixels if no patch is known), and both axes
    round the same way, down (cropped) or up (padded).

    >>> token_grids(24, image_size=(96, 64))
    [(6, 4)]
    """
    found: dict[Size, None] = {}
    for rows_stride, columns_stride in _strides(image_size, patch):
        for rounded in (math.floor, math.ceil):
            rows, columns = rounded(image_size[0] / rows_stride), rounded(image_size[1] / columns_stride)
            if rows * columns == cells > 0:
                found[rows, columns] = None
    return list(found)


def _strides(image_size: Size, patch: Size | None) -> Iterator[tuple[int, int]]:
    if patch is None:
        yield from ((stride, stride) for stride in range(1, max(image_size) + 1))
        return
    rows, columns = patch
    while rows <= 2 * image_size[0] and columns <= 2 * image_size[1]:
        yield rows, columns
        rows, columns = 2 * rows, 2 * columns


def read_layouts(
    shape: Iterable[int], image_size: Size, *, prefixes: Iterable[int] = PREFIXES, patch: Size | None = None
) -> list[Layout]:
    """Every layout that an activation of this shape can have, most likely first.

    Args:
        shape: Shape of the activation, batch first.
        image_size: Height and width of the model's input, in pixels.
        prefixes: Numbers of prefix tokens to try, in this order.
        patch: The model's patch in pixels, if known.

    >>> [layout.axes for layout in read_layouts((1, 512, 7, 10), image_size=(224, 320))]
    ['b c h w']
    """
    shape = tuple(shape)
    if len(shape) == 4:
        by_axes = {NCHW: (shape[2], shape[3]), NHWC: (shape[1], shape[2])}
        return [Layout(axes) for axes, grid in by_axes.items() if same_stride(grid, image_size)]
    if len(shape) == 5:
        return [Layout(NCDHW)] if same_stride((shape[3], shape[4]), image_size) else []
    if len(shape) != 3:
        return []
    tokens = (Layout(TOKENS, prefix=prefix, patch=patch) for prefix in prefixes)
    return [layout for layout in tokens if len(token_grids(shape[1] - layout.prefix, image_size, patch)) == 1]


def same_stride(grid: Size, image_size: Size) -> bool:
    """True if one stride, up to a border of one cell, explains both axes of the grid."""
    (rows, columns), (height, width) = grid, image_size
    if not (1 <= rows <= height and 1 <= columns <= width):
        return False
    lowest = max(height / (rows + 1), width / (columns + 1))
    highest = min(height / max(rows - 1, 0.5), width / max(columns - 1, 0.5))
    return lowest <= highest
