"""Between the pixels of the caller's image and the pixels that the model gets: the record and its maths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hf_cam.layouts import Size

Position = TypeVar("Position", float, np.ndarray, Tensor)


@dataclass(frozen=True)
class Axis:
    """`model = scale * image + offset` along one axis, in pixel centres (the first pixel of either lies at 0).

    Args:
        scale: Model pixels per image pixel, negative where the processor mirrors; never 0.
        offset: The model's position of the image's first pixel.
    """

    scale: float
    offset: float

    def to_model(self, image: Position) -> Position:
        """A position in the image as one in the model's input."""
        return self.scale * image + self.offset

    def to_image(self, model: Position) -> Position:
        """A position in the model's input as one in the image."""
        return (model - self.offset) / self.scale


@dataclass(frozen=True)
class Geometry:
    """How a processor puts an image of one size into the model's input.

    Args:
        image_size: Height and width of the caller's image.
        model_size: Height and width of the model's input.
        rows, columns: The affine map of the image's rows and of its columns.
        seen: `(top, left, bottom, right)` in the model's input: the half-open box that the image fills; what lies
            outside is padding.
        swapped: True where the image's rows run along the model's columns (a picture that is transposed or turned).
    """

    image_size: Size
    model_size: Size
    rows: Axis
    columns: Axis
    seen: tuple[int, int, int, int]
    swapped: bool = False

    def to_image(self, maps: Tensor) -> Tensor:
        """Maps on any grid over the model's input, `[..., h, w]`, in the image's pixels `[..., H, W]`, bilinear.

        Image pixels that the model never saw (cropped away) get 0.
        """
        if self.swapped:
            return self.unswapped().to_image(maps.mT)
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

    def filled(self, grid: Size) -> Tensor:
        """`[h, w]` in [0, 1]: the share of each cell of a grid over the model's input that the image fills."""
        top, left, bottom, right = self.seen
        rows, columns = (
            functional.interpolate(((at >= first) & (at < last)).float()[None, None], size=cells, mode="area")[0, 0]
            for first, last, at, cells in (
                (top, bottom, torch.arange(self.model_size[0]), grid[0]),
                (left, right, torch.arange(self.model_size[1]), grid[1]),
            )
        )
        return rows[:, None] * columns

    def to_model(self, x: float, y: float) -> tuple[float, float]:
        """An image position `(x, y)` in the model's pixels, column first."""
        column, row = self.columns.to_model(x), self.rows.to_model(y)
        return (row, column) if self.swapped else (column, row)

    def from_model(self, x: float, y: float) -> tuple[float, float]:
        """The inverse of `to_model`.

        >>> geometry = placed((4, 6), (8, 16), Axis(2.0, 0.5), Axis(2.0, 2.5))
        >>> geometry.from_model(*geometry.to_model(3.0, 1.5))
        (3.0, 1.5)
        """
        column, row = (y, x) if self.swapped else (x, y)
        return self.columns.to_image(column), self.rows.to_image(row)

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
        if self.swapped:
            return self.unswapped().mask_to_grid(mask, grid[::-1]).T
        height, width = self.model_size
        rows = self.rows.to_image(torch.arange(height, dtype=torch.float64)).round().long()
        columns = self.columns.to_image(torch.arange(width, dtype=torch.float64)).round().long()
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
        x, y, width, height = (float(value) for value in box)
        if self.swapped:
            return self.unswapped().box_to_image((y, x, height, width), of_seen=of_seen)
        top, left, bottom, right = self.seen if of_seen else (0, 0, *self.model_size)
        x0, x1 = (left + (x + side * width / 2) * (right - left) for side in (-1, 1))
        y0, y1 = (top + (y + side * height / 2) * (bottom - top) for side in (-1, 1))
        xs = sorted(_edge(value, self.columns, self.image_size[1]) for value in (x0, x1))
        ys = sorted(_edge(value, self.rows, self.image_size[0]) for value in (y0, y1))
        return xs[0], ys[0], xs[1], ys[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers from which `from_dict` makes it again; axes are `[scale, offset]`."""
        return {
            "image_size": list(self.image_size),
            "model_size": list(self.model_size),
            "rows": [self.rows.scale, self.rows.offset],
            "columns": [self.columns.scale, self.columns.offset],
            "seen": list(self.seen),
            "swapped": self.swapped,
        }

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> Geometry:
        """The geometry that `to_dict` described.

        >>> geometry = placed((4, 6), (8, 16), Axis(2.0, 0.5), Axis(2.0, 2.5))
        >>> Geometry.from_dict(geometry.to_dict()) == geometry
        True
        """
        image_size, model_size, seen = (
            tuple(map(int, described[name])) for name in ("image_size", "model_size", "seen")
        )
        rows, columns = (Axis(*map(float, described[name])) for name in ("rows", "columns"))
        swapped = bool(described["swapped"])
        return cls(cast("Size", image_size), cast("Size", model_size), rows, columns, cast("Any", seen), swapped)

    def unswapped(self) -> Geometry:
        """The same for an input along whose axes the image's own run: the transposed one, where they are swapped."""
        if not self.swapped:
            return self
        top, left, bottom, right = self.seen
        return replace(self, model_size=self.model_size[::-1], seen=(left, top, right, bottom), swapped=False)


def placed(image_size: Size, model_size: Size, rows: Axis, columns: Axis, *, swapped: bool = False) -> Geometry:
    """The geometry of two axes; the image fills what its first and last pixels reach.

    >>> placed((4, 6), (8, 16), Axis(2.0, 0.5), Axis(2.0, 2.5)).seen
    (0, 2, 8, 14)
    """
    height, width = model_size[::-1] if swapped else model_size
    top, bottom = _filled(rows, image_size[0], height)
    left, right = _filled(columns, image_size[1], width)
    seen = (left, top, right, bottom) if swapped else (top, left, bottom, right)
    return Geometry(image_size, model_size, rows, columns, seen, swapped)


def _filled(axis: Axis, length: int, side: int) -> tuple[int, int]:
    """The half-open range of the model's pixels that an image's axis of `length` pixels fills, one at least."""
    ends = sorted(axis.to_model(edge) + 0.5 for edge in (-0.5, length - 0.5))
    first = min(max(round(ends[0]), 0), side - 1)
    return first, min(max(round(ends[1]), first + 1), side)


def _edge(value: float, axis: Axis, length: int) -> float:
    """An edge between the model's pixels as one between the image's; pixel centres lie half a pixel off either."""
    return min(max(axis.to_image(value - 0.5) + 0.5, 0.0), float(length))


def _positions(axis: Axis, length: int, side: int, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Where each image pixel lies along the grid, in grid_sample's [-1, 1], and whether the model saw it."""
    model = axis.scale * torch.arange(length, dtype=torch.float64) + axis.offset
    slack = abs(axis.scale) / 2 - 1e-3  # a pixel of the image counts as seen where any part of it was
    seen = (model >= first - 0.5 - slack) & (model <= last - 0.5 + slack)
    return (2 * model + 1) / side - 1, seen
