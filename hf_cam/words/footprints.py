"""Where in the picture each cell lies: measured with bars of noise, or the raster that agrees with the measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from hf_cam.errors import HFCamError
from hf_cam.images.geometry import Axis, Geometry, placed
from hf_cam.layouts import Size

Read = Callable[[Image.Image], Tensor]
"""From a picture of the same size to the states of its cells, `[n, D]`."""

COARSE, FINE = 4, 8
"""Bars per axis that are tried first, and those that are measured where no raster agrees."""
GRAIN = 32
"""Blocks of noise along the longer side of a picture, at most."""
IN_ORDER = 0.9
"""Correlation along each axis from which a raster agrees with the measured positions."""

ONE_PLACE = 0.05
"""Spread of centres, in shares of the picture, up to which they count as one place."""


@dataclass(frozen=True, eq=False)
class Bars:
    """How the cells react to bars of noise across the picture.

    Args:
        down: `[n, R]` reactions to each of R horizontal bars.
        across: `[n, C]` reactions to each of C vertical bars.
    """

    down: Tensor = field(repr=False)
    across: Tensor = field(repr=False)

    @property
    def locality(self) -> float:
        """1 if each cell reacts to few bars, 0 if to all alike, as the queries of a resampler do."""
        both = torch.cat([_local(self.down), _local(self.across)])
        return float(both.mean())

    def centres(self) -> tuple[Tensor, Tensor]:
        """The row and the column of each cell's centre, `[n]` each, as shares of the picture in [0, 1]."""
        rows, columns = (
            shares @ ((torch.arange(shares.shape[1]) + 0.5) / shares.shape[1]) for shares in (self.rows, self.columns)
        )
        return rows, columns

    @property
    def rows(self) -> Tensor:
        """`[n, R]`: each cell's footprint along the rows; sums to 1, or to 0 for a cell that reacts to nothing."""
        return shares_of(self.down)

    @property
    def columns(self) -> Tensor:
        """`[n, C]`: the same along the columns."""
        return shares_of(self.across)


@dataclass(frozen=True, eq=False)
class Footprints:
    """Where in the picture each cell lies.

    Args:
        image_size: Height and width of the picture.
        bars: What was measured.
        grid: Rows and columns of the raster that agrees with the measurement; None where none does.
        geometry: Of the raster's canvas.
        prefix: Cells before those of the raster, such as a class token, which have no place.
    """

    image_size: Size
    bars: Bars = field(repr=False)
    grid: Size | None = None
    geometry: Geometry | None = field(default=None, repr=False)
    prefix: int = 0

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return len(self.bars.down)

    def painted(self, weights: Tensor) -> Tensor:
        """Weights of the cells, `[T, n]`, as maps `[T, H, W]` over the picture."""
        weights = weights.float().cpu()
        if self.grid is not None and self.geometry is not None:
            return self.geometry.to_image(self.on_grid(weights))
        height, width = self.image_size
        rows, columns = (
            functional.interpolate(shares[:, None], size=side, mode="linear")[:, 0]
            for shares, side in ((self.bars.rows, height), (self.bars.columns, width))
        )
        return torch.einsum("tn,nh,nw->thw", weights, rows, columns)

    def on_grid(self, weights: Tensor) -> Tensor:
        """Weights of the cells, `[T, n]`, on the raster, `[T, h, w]`; without one, on a grid of the bars."""
        weights = weights.float().cpu()
        if self.grid is not None:
            rastered: Tensor = weights[:, self.prefix :].unflatten(1, self.grid)
            return rastered
        return torch.einsum("tn,nh,nw->thw", weights, self.bars.rows, self.bars.columns)

    def heatmap(self, weights: Tensor, height: float) -> np.ndarray:
        """The map `[H, W]` of weights `[n]`, float32 in [0, 1], stretched so that its highest value is `height`."""
        drawn = self.painted(weights[None])[0]
        peak = float(drawn.max())
        found: np.ndarray = (drawn * (height / peak if peak > 0 else 0)).clamp(0, 1).numpy()
        return found

    def __str__(self) -> str:
        """The raster, or how the places were found, in words."""
        if self.grid is not None:
            return f"a raster of {self.grid[0]} x {self.grid[1]} cells"
        return f"{self.cells} cells, each where bars of noise show it"


def shares_of(reactions: Tensor) -> Tensor:
    """Each cell's footprint along one axis, from its reactions `[n, bars]`: above their median, squared, normalized.

    >>> shares_of(torch.tensor([[1.0, 3.0, 1.0, 1.0]]))
    tensor([[0., 1., 0., 0.]])
    """
    above = (reactions - reactions.median(1, keepdim=True).values).clamp_min(0).square()
    return above / above.sum(1, keepdim=True).clamp_min(torch.finfo(above.dtype).tiny)


def halved(picture: Image.Image, read: Read, clean: Tensor, other: Tensor) -> Bars:
    """Two bars per axis from two runs: the half that is not disturbed is what is left of the whole.

    What two halves do to a cell points in different directions, so that the squares of the reactions add up.

    Args:
        picture, read, clean: See `measured`.
        other: The cells' states with all of the picture disturbed, `[n, D]`.
    """
    whole_ = (other - clean).norm(dim=-1)

    def reactions(axis: int) -> Tensor:
        first = (read(disturbed(picture, bars_along(picture, axis, 2)[0])) - clean).norm(dim=-1)
        return torch.stack([first, (whole_.square() - first.square()).clamp_min(0).sqrt()], 1).cpu()

    return Bars(reactions(0), reactions(1))


def measured(picture: Image.Image, read: Read, clean: Tensor, bars: int) -> Bars:
    """The reactions of the cells to so many bars along each axis.

    Args:
        picture: The caller's.
        read: The cells' states, from a picture.
        clean: The same for the picture itself, `[n, D]`.
        bars: Per axis.
    """

    def reactions(axis: int) -> Tensor:
        found = [(read(disturbed(picture, bar)) - clean).norm(dim=-1) for bar in bars_along(picture, axis, bars)]
        return torch.stack(found, 1).cpu()

    return Bars(reactions(0), reactions(1))


def footprints_of(
    picture: Image.Image, read: Read, clean: Tensor, geometry: Callable[[], Geometry | None]
) -> Footprints:
    """Where each cell lies: on a raster if one agrees with a coarse measurement, else as a fine one shows.

    Args:
        picture, read, clean: See `measured`.
        geometry: How the processor puts the picture on a canvas; None where that is not known.
    """
    size = (picture.height, picture.width)
    coarse = Footprints(size, measured(picture, read, clean, COARSE))
    if (found := on_raster(coarse, geometry)) is not None:
        return found
    return replace(coarse, bars=measured(picture, read, clean, FINE))


def on_raster(found: Footprints, geometry: Callable[[], Geometry | None]) -> Footprints | None:
    """The same cells on the raster that agrees with the measurement; None if none does.

    The raster fills the canvas onto which the processor puts the picture, or the picture itself.
    """
    (rows, columns), bars = found.bars.centres(), found.bars.down.shape[1]
    fits = [
        (_agreement(rows[prefix:], columns[prefix:], grid, bars), grid, prefix)
        for prefix in range(min(2, found.cells))
        for grid in _grids(found.cells - prefix)
    ]
    agreement, grid, prefix = max(fits)
    if agreement < IN_ORDER:
        return None
    rows, columns = rows[prefix:], columns[prefix:]
    places = [one for one in (_given(geometry), whole(found.image_size)) if one is not None]
    best = min(places, key=lambda one: _distance(rows, columns, grid, one))
    return replace(found, grid=grid, geometry=best, prefix=prefix)


def whole(image_size: Size) -> Geometry:
    """The geometry of a canvas that the picture fills, squashed or not."""
    return placed(image_size, image_size, Axis(1.0, 0.0), Axis(1.0, 0.0))


def bars_along(picture: Image.Image, axis: int, count: int) -> list[tuple[slice, slice]]:
    """`count` equal bars across a picture, horizontal ones along axis 0."""
    side = picture.height if axis == 0 else picture.width
    edges = np.linspace(0, side, count + 1).round().astype(int)
    parts = [slice(int(first), int(last)) for first, last in pairwise(edges)]
    return [(part, slice(None)) if axis == 0 else (slice(None), part) for part in parts]


def blank(picture: Image.Image) -> Image.Image:
    """A picture of the same size, all in the mean colour."""
    mean = np.array(picture.convert("RGB")).reshape(-1, 3).mean(0).round().astype(int)
    return Image.new("RGB", picture.size, tuple(mean.tolist()))


def disturbed(picture: Image.Image, part: tuple[slice, slice] | None = None, seed: int = 0) -> Image.Image:
    """The picture with a part of it, or all, replaced by blocks of noise."""
    pixels = np.array(picture)
    height, width = pixels.shape[:2]
    block = -(-max(height, width) // GRAIN)
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // block), -(-width // block), 3), np.uint8)
    noise = coarse.repeat(block, 0).repeat(block, 1)[:height, :width]
    where = part or (slice(None), slice(None))
    pixels[where] = noise[where]
    return Image.fromarray(pixels)


def _local(reactions: Tensor) -> Tensor:
    reacting = reactions[reactions.amax(1) > 0]
    return 1 - reacting.median(1).values / reacting.amax(1)


def _grid_centres(grid: Size) -> tuple[Tensor, Tensor]:
    """Row and column of the centre of each cell of a raster, `[n]` each, in shares of its canvas."""
    rows, columns = ((torch.arange(side) + 0.5) / side for side in grid)
    return rows.repeat_interleave(grid[1]), columns.repeat(grid[0])


def _at_one_place(centres: Tensor) -> float:
    return float(centres.std(correction=0) < ONE_PLACE)


def _grids(cells: int) -> list[Size]:
    """Rows and columns of every raster of so many cells."""
    return [(height, cells // height) for height in range(1, cells + 1) if cells % height == 0]


def _agreement(rows: Tensor, columns: Tensor, grid: Size, bars: int) -> float:
    """The lower of the correlations along the axes; along an axis of one cell, all must lie at one place."""
    return min(
        _correlation(measured, _within_bars(expected, bars)) if side > 1 else _at_one_place(measured)
        for measured, expected, side in zip((rows, columns), _grid_centres(grid), grid, strict=True)
    )


def _within_bars(shares: Tensor, bars: int) -> Tensor:
    """The centres of the bars that positions in [0, 1] lie in."""
    return ((shares * bars).floor() + 0.5) / bars


def _correlation(one: Tensor, other: Tensor) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / (one.norm() * other.norm()).clamp_min(1e-12))


def _distance(rows: Tensor, columns: Tensor, grid: Size, geometry: Geometry) -> float:
    """Mean distance between the measured centres and those of the raster on a canvas, in shares of the picture."""
    total = 0.0
    for measured, expected, axis, image, model in zip(
        (rows, columns), _grid_centres(grid), (geometry.rows, geometry.columns), geometry.image_size,
        geometry.model_size, strict=True,
    ):  # fmt: skip
        inside = (axis.to_image(expected * model - 0.5) + 0.5) / image
        total += float((inside.clamp(0, 1) - measured).abs().mean())
    return total


def _given(geometry: Callable[[], Geometry | None]) -> Geometry | None:
    """The canvas's geometry where it can be measured and its axes run along the picture's."""
    try:
        found = geometry()
    except HFCamError:
        return None
    return None if found is None or found.swapped else found
