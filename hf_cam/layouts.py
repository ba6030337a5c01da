"""The spatial layout of an activation: its axes, the tokens around its grid, and its conversion to `[B, C, h, w]`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from hf_cam.doors import blaming
from hf_cam.errors import LayoutError

NCHW = "b c h w"
NHWC = "b h w c"
TOKENS = "b (h w) c"
TOKENS_FIRST = "(h w) b c"
NCDHW = "b c d h w"
TIME_FIRST = "b (t h w) c"
TIME_LAST = "b (h w t) c"
BY_FRAME = "(b t) (h w) c"
BY_PLACE = "(b h w) t c"
NCHW_BY_VIEW = "(b t) c h w"
NHWC_BY_VIEW = "(b t) h w c"
FOLDED = (NCHW_BY_VIEW, NHWC_BY_VIEW, BY_FRAME)
"""Frames or views of an image one after the other in the batch axis."""
MAPS = (NCHW, NHWC, NCDHW, NCHW_BY_VIEW, NHWC_BY_VIEW)
VIDEO = (TIME_FIRST, TIME_LAST, BY_FRAME, BY_PLACE)
AXES = (*MAPS, TOKENS, TOKENS_FIRST, *VIDEO)
PREFIXES = (0, 1, 2, 5, 9)
"""Common numbers of class, distillation and register tokens before a grid."""

Size = tuple[int, int]


class Spatial(Protocol):
    """Anything that converts an activation to spatial form."""

    def to_spatial(self, activations: Tensor, image_size: Size, images: int | None = None) -> Tensor:
        """`[B, C, h, w]` (`[B, C, t, h, w]` for a video or several views), for a model input of this height and width.

        Args:
            activations: What a layer returned.
            image_size: Height and width of the model's input, in pixels.
            images: B, the number of images in the batch, which is checked; None if it is not known.

        Raises:
            LayoutError: the shape does not fit, or there is not one grid per image.
        """
        ...


@dataclass(frozen=True)
class Layout:
    """The layout of one layer's output.

    Args:
        axes: "b c h w" (channels first), "b h w c" (channels last), "b (h w) c" (tokens in raster order), "(h w) b c"
            (the same with tokens first, as in `nn.Transformer`) or "b c d h w" (volumes of any depth). For videos:
            "b (t h w) c" (frame by frame), "b (h w t) c" (place by place), "(b h w) t c" (one sample per place). For
            frames or views folded into the batch, image by image: "(b t) (h w) c", "(b t) c h w" or "(b t) h w c".
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
        if self.patch is None and (self.axes in (TIME_FIRST, TIME_LAST, BY_PLACE) or self.suffix is None):
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
        expected = {NCHW: 4, NHWC: 4, NCDHW: 5, NCHW_BY_VIEW: 4, NHWC_BY_VIEW: 4}.get(self.axes, 3)
        if len(shape) != expected:
            raise LayoutError(f"expected {expected} axes ({self.axes}), got shape {shape}")
        if self.axes in MAPS:
            grid = (shape[1], shape[2]) if self.axes in (NHWC, NHWC_BY_VIEW) else (shape[-2], shape[-1])
            high, wide = self.patch or (1, 1)
            if not same_stride(grid, (image_size[0] * wide, image_size[1] * high)):
                raise LayoutError(
                    f"read as {self.axes}, the shape {shape} has {grid[0]} x {grid[1]} cells, which no common stride "
                    f"gives for a {image_size[0]} x {image_size[1]} input"
                )
            return grid
        if self.suffix is None or (self.axes in VIDEO and self.patch is not None):
            return self._cut(shape, image_size)
        tokens = shape[self.token_axis]
        cells = tokens - self.prefix - self.suffix
        grids = token_grids(cells, image_size, self.patch)
        if len(grids) != 1:
            why = f"fit {len(grids)} grids ({', '.join(f'{h} x {w}' for h, w in grids)})" if grids else "fit no grid"
            raise LayoutError(
                f"{tokens} tokens = {self.prefix} prefix + {cells} cells + {self.suffix} suffix: {cells} cells {why} "
                f"of a {image_size[0]} x {image_size[1]} input"
                + (f" in patches of {self.patch[0]} x {self.patch[1]}" if self.patch else "")
            )
        return grids[0]

    def _cut(self, shape: tuple[int, ...], image_size: Size) -> Size:
        """The grid of patches if the number of tokens does not determine it, because of frames or padding."""
        assert self.patch is not None
        rows, columns = image_size[0] // self.patch[0], image_size[1] // self.patch[1]
        tokens = shape[0] if self.axes == BY_PLACE else shape[self.token_axis] - self.prefix - (self.suffix or 0)
        left = tokens % (rows * columns) if self.axes in VIDEO else min(tokens - rows * columns, 0)
        if not rows * columns or left or tokens < 1 or (self.axes == BY_FRAME and tokens != rows * columns):
            raise LayoutError(
                f"read as {self.axes}, the shape {shape} holds no whole number of grids of {rows} x {columns} patches, "
                f"into which a {image_size[0]} x {image_size[1]} input is cut"
            )
        return rows, columns

    @property
    def token_axis(self) -> int:
        """Which axis of an activation of tokens counts them."""
        return 0 if self.axes == TOKENS_FIRST else 1

    def to_spatial(self, activations: Tensor, image_size: Size, images: int | None = None) -> Tensor:
        """The activation as `[B, C, h, w]`, or `[B, C, t, h, w]` for a video or several views; a view where possible.

        Args:
            activations: What a layer returned.
            image_size: Height and width of the model's input, in pixels.
            images: B, the number of images in the batch, which is checked; None if it is not known.

        Raises:
            LayoutError: the shape does not fit this layout, or there is not one grid per image.
        """
        grid = self.grid(activations.shape, image_size)
        if self.axes not in FOLDED:
            return one_each(self._unfolded(activations, grid), images)
        images = images or 1
        if len(activations) % images:
            raise LayoutError(f"{len(activations)} frames or views are no multiple of {images} images")
        cells = replace(self, axes=_OF_ONE_VIEW[self.axes])._unfolded(activations, grid)  # noqa: SLF001
        views = len(cells) // images
        return cells.reshape(images, views, *cells.shape[1:]).transpose(1, 2)

    def _unfolded(self, activations: Tensor, grid: Size) -> Tensor:
        height, width = grid
        if self.axes in (NCHW, NCDHW):
            return activations
        if self.axes == NHWC:
            return activations.permute(0, 3, 1, 2)
        if self.axes == BY_PLACE:
            return activations.reshape(-1, height, width, *activations.shape[1:]).permute(0, 4, 3, 1, 2)
        tokens = activations.transpose(0, 1) if self.axes == TOKENS_FIRST else activations
        end = tokens.shape[1] - self.suffix if self.suffix is not None else self.prefix + height * width
        cells = tokens[:, self.prefix : end]
        if self.axes == TIME_FIRST:
            return cells.reshape(len(cells), -1, height, width, cells.shape[2]).permute(0, 4, 1, 2, 3)
        if self.axes == TIME_LAST:
            return cells.reshape(len(cells), height, width, -1, cells.shape[2]).permute(0, 4, 3, 1, 2)
        return cells.transpose(1, 2).reshape(cells.shape[0], -1, height, width)  # len() would fix an exported batch


_OF_ONE_VIEW = {NCHW_BY_VIEW: NCHW, NHWC_BY_VIEW: NHWC, BY_FRAME: TOKENS}


def one_each(spatial: Tensor, images: int | None) -> Tensor:
    """The same tensor `[B, C, *space]`, once B is known to be the number of images.

    Raises:
        LayoutError: it is not.
    """
    if images is not None and len(spatial) != images:
        raise LayoutError(
            f"there are {len(spatial)} grids for {images} image{'s' * (images != 1)}: the axis that should count the "
            "images counts tokens, or also windows, tiles or views"
        )
    return spatial


def images_axis(layout: Spatial, activations: Tensor, image_size: Size, images: int) -> int:
    """Which axis of a layer's output counts the images and nothing else; values marked by image tell.

    >>> images_axis(Layout(TOKENS_FIRST), torch.zeros(24, 2, 8), image_size=(96, 64), images=2)
    1

    Raises:
        LayoutError: none does.
    """
    marks = torch.arange(images, device=activations.device, dtype=torch.float32)
    for axis in range(min(2, activations.ndim)):
        if activations.shape[axis] == images:
            marked = marks.view(-1, *[1] * (activations.ndim - 1)).movedim(0, axis).expand(activations.shape)
            spatial = layout.to_spatial(marked, image_size, images)
            if (spatial - marks.view(-1, *[1] * (spatial.ndim - 1))).abs().max() < 0.25:  # reshape= may interpolate
                return axis
    raise LayoutError(f"no axis of {tuple(activations.shape)} counts the images alone, so none can be run by itself")


@dataclass(frozen=True)
class Reshape:
    """A layout given by the caller as a function, `activation -> [B, C, h, w]`."""

    function: Callable[[Tensor], Tensor]

    def to_spatial(self, activations: Tensor, image_size: Size, images: int | None = None) -> Tensor:
        """Call the function and check that its result is spatial, with one grid per image."""
        images = len(activations) if images is None else images
        with blaming("reshape=", LayoutError):
            spatial = self.function(activations)
        if not isinstance(spatial, Tensor) or spatial.ndim not in (4, 5) or len(spatial) != images:
            got = tuple(spatial.shape) if isinstance(spatial, Tensor) else type(spatial).__name__
            raise LayoutError(
                f"reshape must return a tensor [B, C, h, w] with B = {images}, got {got} "
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

    def to_spatial(self, activations: Tensor, image_size: Size, images: int | None = None) -> Tensor:
        """The activation in the first layout that fits; raises `LayoutError` if none does."""
        return self.reading(activations.shape, image_size, images).to_spatial(activations, image_size, images)

    def reading(self, shape: Iterable[int], image_size: Size, images: int | None = None) -> Layout:
        """The first layout that fits an activation of this shape, for a batch of `images` images.

        Raises:
            LayoutError: none fits.
        """
        shape = tuple(shape)
        readings = read_layouts(shape, image_size, prefixes=self.prefixes, patch=self.patch, images=images)
        if not readings:
            raise LayoutError(why_unread(shape, image_size, images))
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
    shape: Iterable[int],
    image_size: Size,
    *,
    prefixes: Iterable[int] = PREFIXES,
    patch: Size | None = None,
    images: int | None = None,
) -> list[Layout]:
    """Every layout that an activation of this shape can have, most likely first.

    Args:
        shape: Shape of the activation.
        image_size: Height and width of the model's input, in pixels.
        prefixes: Numbers of prefix tokens to try, in this order.
        patch: The model's patch in pixels, if known.
        images: Number of images in the batch; by default the length of the first axis.

    >>> [layout.axes for layout in read_layouts((1, 512, 7, 10), image_size=(224, 320))]
    ['b c h w']
    >>> [layout.axes for layout in read_layouts((70, 2, 512), image_size=(224, 320), images=2)]
    ['(h w) b c']
    """
    shape = tuple(shape)
    batch_first = images is None or shape[:1] == (images,)
    if len(shape) == 4 and batch_first:
        by_axes = {NCHW: (shape[2], shape[3]), NHWC: (shape[1], shape[2])}
        fitting = {axes: grid for axes, grid in by_axes.items() if same_stride(grid, image_size)}
        return [Layout(axes) for axes in sorted(fitting, key=lambda axes: _stretch(fitting[axes], image_size))]
    if len(shape) == 5 and batch_first:
        return [Layout(NCDHW)] if same_stride((shape[3], shape[4]), image_size) else []
    if len(shape) != 3:
        return []
    orders = [TOKENS] * batch_first + [TOKENS_FIRST] * (images is not None and shape[1] == images)
    tokens = (Layout(axes, prefix=prefix, patch=patch) for axes in orders for prefix in prefixes)
    return [
        layout
        for layout in tokens
        if len(token_grids(shape[layout.token_axis] - layout.prefix, image_size, patch)) == 1
    ]


def _stretch(grid: Size, image_size: Size) -> float:
    """How much the strides of the two axes differ, as a rounded share."""
    rows, columns = image_size[0] / grid[0], image_size[1] / grid[1]
    return round(abs(rows - columns) / max(rows, columns), 2)


def why_unread(shape: Iterable[int], image_size: Size, images: int | None = None) -> str:
    """Why no layout fits an activation of this shape, as a clause.

    >>> why_unread((18, 64, 7, 7), image_size=(224, 224), images=2)
    'no axis of the shape (18, 64, 7, 7) counts just the 2 images: windows, tiles or views lie in the first'
    """
    shape = tuple(shape)
    if images is not None and images not in shape[: 2 if len(shape) == 3 else 1]:
        counted = f"the {images} images" if images > 1 else "the one image"
        folded = len(shape) > 2 and shape[0] % images == 0
        why = ": windows, tiles or views lie in the first" if folded else ""
        return f"no axis of the shape {shape} counts just {counted}{why}"
    return f"no layout of the shape {shape} fits a {image_size[0]} x {image_size[1]} input"


def same_stride(grid: Size, image_size: Size) -> bool:
    """True if one stride, up to a border of one cell, explains both axes of the grid."""
    (rows, columns), (height, width) = grid, image_size
    if not (1 <= rows <= height and 1 <= columns <= width):
        return False
    lowest = max(height / (rows + 1), width / (columns + 1))
    highest = min(height / max(rows - 1, 0.5), width / max(columns - 1, 0.5))
    return lowest <= highest
