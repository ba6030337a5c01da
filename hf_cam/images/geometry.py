"""Between the pixels of the caller's image and the pixels that the model gets, measured on its own image processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from hf_cam.errors import ModelError
from hf_cam.layouts import Size

# Not black and white: resampling in 8 bits overshoots by a little, and is clipped there.
DARK, LIGHT = 32, 223

Preprocess = Callable[[list[Image.Image]], Tensor]
"""Images to pixel values `[B, C, H, W]`."""


@dataclass(frozen=True)
class Axis:
    """`model = scale * image + offset` along one axis, in pixel centres (the first pixel of either lies at 0)."""

    scale: float
    offset: float


@dataclass(frozen=True)
class Geometry:
    """How a processor puts an image of one size into the model's input.

    Args:
        image_size: Height and width of the caller's image.
        model_size: Height and width of the model's input.
        rows, columns: The affine map of each axis.
        seen: `(top, left, bottom, right)` in the model's input: the half-open box that the image fills; what lies
            outside is padding.
    """

    image_size: Size
    model_size: Size
    rows: Axis
    columns: Axis
    seen: tuple[int, int, int, int]

    def to_image(self, maps: Tensor) -> Tensor:
        """Maps on any grid over the model's input, `[..., h, w]`, in the image's pixels `[..., H, W]`, bilinear.

        Image pixels that the model never saw (cropped away) get 0.
        """
        top, left, bottom, right = self.seen
        y, inside_y = _positions(self.rows, self.image_size[0], self.model_size[0], top, bottom)
        x, inside_x = _positions(self.columns, self.image_size[1], self.model_size[1], left, right)
        grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1)[None].to(maps)
        flat = maps.reshape(1, -1, *maps.shape[-2:])
        drawn = functional.grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=False)
        inside = (inside_y[:, None] & inside_x[None, :]).to(maps)
        return (drawn[0] * inside).reshape(*maps.shape[:-2], *self.image_size)

    def visible(self) -> np.ndarray:
        """`[H, W]` booleans: the image pixels that the model saw."""
        return self.to_image(torch.ones(1, 1, dtype=torch.float32)).numpy() > 0

    def to_model(self, x: float, y: float) -> tuple[float, float]:
        """An image position in the model's pixels."""
        return self.columns.scale * x + self.columns.offset, self.rows.scale * y + self.rows.offset

    def to_grid(self, x: float, y: float, grid: Size) -> tuple[int, int] | None:
        """Row and column of the cell that holds an image position, in a grid over the model's input.

        None where the model never saw it.
        """
        column, row = self.to_model(x, y)
        top, left, bottom, right = self.seen
        if not (left - 0.5 <= column < right and top - 0.5 <= row < bottom):
            return None
        cell = (row + 0.5) / self.model_size[0] * grid[0], (column + 0.5) / self.model_size[1] * grid[1]
        return min(int(max(cell[0], 0)), grid[0] - 1), min(int(max(cell[1], 0)), grid[1] - 1)

    def mask_to_grid(self, mask: np.ndarray, grid: Size) -> Tensor:
        """A mask `[H, W]` over the image as booleans `[h, w]` over the model's input: cells that it fills by half.

        A mask too small for that keeps the cells that it touches at all.
        """
        height, width = self.model_size
        y = (torch.arange(height, dtype=torch.float64) - self.rows.offset) / (self.rows.scale or 1)
        x = (torch.arange(width, dtype=torch.float64) - self.columns.offset) / (self.columns.scale or 1)
        rows, columns = y.round().long(), x.round().long()
        inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & ((columns >= 0) & (columns < mask.shape[1]))
        picked = torch.from_numpy(np.ascontiguousarray(mask))[rows.clamp(0, mask.shape[0] - 1)]
        filled = (picked[:, columns.clamp(0, mask.shape[1] - 1)] & inside).float()
        shares = functional.interpolate(filled[None, None], size=grid, mode="area")[0, 0]
        return shares >= 0.5 if (shares >= 0.5).any() else shares > 0

    def box_to_image(self, box: Sequence[float], *, of_seen: bool) -> tuple[float, float, float, float]:
        """A detector's box `(centre x, centre y, width, height)` as `(x0, y0, x1, y1)` in the image's pixels, clipped.

        Args:
            box: In shares of the model's input, or, `of_seen`, of the part of it that the image fills.
            of_seen: See `box`.
        """
        top, left, bottom, right = self.seen if of_seen else (0, 0, *self.model_size)
        x, y, width, height = (float(value) for value in box)
        x0, x1 = (left + (x + side * width / 2) * (right - left) for side in (-1, 1))
        y0, y1 = (top + (y + side * height / 2) * (bottom - top) for side in (-1, 1))
        columns, rows = self.columns, self.rows
        xs = sorted(_edge(value, columns, self.image_size[1]) for value in (x0, x1))
        ys = sorted(_edge(value, rows, self.image_size[0]) for value in (y0, y1))
        return xs[0], ys[0], xs[1], ys[1]


def _edge(value: float, axis: Axis, length: int) -> float:
    """An edge between the model's pixels as one between the image's; pixel centres lie half a pixel off either."""
    position = (value - 0.5 - axis.offset) / (axis.scale or 1) + 0.5
    return min(max(position, 0.0), float(length))


def _positions(axis: Axis, length: int, side: int, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Where each image pixel lies along the grid, in grid_sample's [-1, 1], and whether the model saw it."""
    model = axis.scale * torch.arange(length, dtype=torch.float64) + axis.offset
    slack = 1e-3 + abs(axis.scale) / 2  # a pixel of the image counts as seen where any part of it was
    seen = (model >= first - 0.5 - slack) & (model <= last - 0.5 + slack)
    return (2 * model + 1) / side - 1, seen


def measure(preprocess: Preprocess, image_size: Size) -> Geometry:
    """Send pictures of known values through a processor and read off where each pixel went.

    A dark and a light picture tell each input pixel's own scaling (and which pixels are padding: those do not change);
    ramps between these greys, undone by it, tell which image column and row each input pixel shows. Each ramp goes
    X

    Args:
        preprocess: The processor, as a function of a list of images.
        image_size: Height and width of the caller's image.

    Raises:
        ModelError: what the processor does is not an affine map along the axes.
    """
    height, width = image_size
    pictures = [
        np.full(image_size, DARK, np.uint8),
        np.full(image_size, LIGHT, np.uint8),
        (rising := _ramp(width, height)),
        DARK + LIGHT - rising,
        (downward := np.ascontiguousarray(_ramp(height, width).T)),
        DARK + LIGHT - downward,
    ]
    values = preprocess([Image.fromarray(picture).convert("RGB") for picture in pictures]).double()
    dark, light, right, left, down, up = (
        picture.mean(0) for picture in values
    )  # channels share the geometry, in any order
    gain = light - dark
    shown = gain.abs() > 0.5 * gain.abs().max()
    if not shown.any() or gain.abs().max() == 0:
        raise ModelError("the image processor returns the same values for a dark and a light picture")
    rows_shown, columns_shown = shown.any(1).nonzero().flatten(), shown.any(0).nonzero().flatten()
    top, bottom = int(rows_shown[0]), int(rows_shown[-1]) + 1
    first, last = int(columns_shown[0]), int(columns_shown[-1]) + 1
    safe = torch.where(shown, gain, torch.ones_like(gain))
    columns = _line((right - dark + light - left) / 2 / safe, shown, 0, width)
    rows = _line((down - dark + light - up) / 2 / safe, shown, 1, height)
    return Geometry(image_size, (values.shape[-2], values.shape[-1]), rows, columns, (top, first, bottom, last))


def _ramp(length: int, repeats: int) -> np.ndarray:
    """`[repeats, length]` greys that rise along the last axis.

    256 levels are too few for a wide image; each line rounds at its own threshold, so that their mean is exact.
    """
    exact = np.linspace(DARK, LIGHT, length)
    whole = np.floor(exact)
    thresholds = 1 - np.arange(1, repeats + 1) * 0.618034 % 1  # golden ratio: even, whichever lines survive resizing
    return whole.astype(np.uint8) + ((exact - whole).astype(np.float32) > thresholds.astype(np.float32)[:, None])


def _line(values: Tensor, shown: Tensor, average: int, length: int) -> Axis:
    """Fit `image position = slope * model position + intercept` to one ramp, and turn it round.

    Args:
        values: `[H, W]`, the ramp as the processor returned it, its dark end at 0 and its light end at 1.
        shown: `[H, W]`, the input pixels that are no padding.
        average: The axis of `values` that the ramp does not run along.
        length: Of the image's axis, in pixels.
    """
    counts = shown.sum(average)
    positions = counts.nonzero().flatten().numpy().astype(float)
    profile = ((values * shown).sum(average)[counts > 0] / counts[counts > 0]).numpy()
    if length == 1:
        return Axis(0.0, float(positions.mean()))
    if len(positions) == 1:  # the whole axis in one pixel: its middle lies there
        return Axis(1 / length, float(positions[0]) - (length - 1) / length / 2)
    image = profile * (length - 1)
    slope, intercept = np.polyfit(positions, image, 1)
    # An enlarged ramp is flat beyond the centres of its outermost pixels: fit again to what lies between them.
    margin = max(0.5, abs(slope))
    inner = (image > margin) & (image < length - 1 - margin)
    if inner.sum() >= max(4, len(image) // 3):
        slope, intercept = np.polyfit(positions[inner], image[inner], 1)
    else:
        inner = np.ones_like(inner)
    error = np.abs(slope * positions[inner] + intercept - image[inner]).max()
    if abs(slope) < 1e-6 or error > max(1.0, 2 * abs(slope), 0.02 * length):
        raise ModelError("the image processor moves pixels in a way that is no resizing, cropping or padding")
    return Axis(float(1 / slope), float(-intercept / slope))
