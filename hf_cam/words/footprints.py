"""Where in the picture each cell lies: the raster that agrees with a measurement, or what bars of noise show.

Two pictures, each disturbed where the other is not, tell most rasters apart. Where they do not, bars of noise follow.
"""

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

FIELDS = np.array([[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]], bool)
"""The fields of a picture that are disturbed first; no mirror image or turn of it agrees in more than 10 of the 16."""
FAINT, MIDDLE = np.uint8(6), np.uint8(128)
"""Levels of 255 by which each pixel elsewhere moves to the middle: every cell reacts that sees any of the picture."""
FEWEST = 32
"""Cells from which on the fields tell rasters apart."""
APART = 0.75
"""Correlation from which a raster agrees with the fields, and the largest share of it that any other may have."""
LOCAL = 0.6
"""Locality from which the cells of a sequence are those of a grid."""
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

    def __len__(self) -> int:
        """How many cells there are."""
        return len(self.down)

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
class Fields:
    """How the cells react to two pictures that are disturbed in `FIELDS` and in all other fields.

    Args:
        contrasts: `[n]` in [-1, 1]: 1 for a cell that reacts to the first picture alone, -1 to the second alone. The
            reactions are squared, as those to two parts of a picture add up.
    """

    contrasts: Tensor = field(repr=False)

    def __len__(self) -> int:
        """How many cells there are."""
        return len(self.contrasts)

    @property
    def locality(self) -> float:
        """1 if a cell reacts to one of both pictures, 0 if to both alike; the median of all cells."""
        clear = self.contrasts.abs()
        return float((2 * clear / (1 + clear)).median())


@dataclass(frozen=True, eq=False)
class Footprints:
    """Where in the picture each cell lies.

    Args:
        image_size: Height and width of the picture.
        seen: What was measured; with fields alone, there is a raster.
        grid: Rows and columns of the raster that agrees with the measurement; None where none does.
        geometry: Of the raster's canvas.
        prefix: Cells before those of the raster, such as a class token, which have no place.
    """

    image_size: Size
    seen: Bars | Fields = field(repr=False)
    grid: Size | None = None
    geometry: Geometry | None = field(default=None, repr=False)
    prefix: int = 0

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return len(self.seen)

    def painted(self, weights: Tensor) -> Tensor:
        """Weights of the cells, `[T, n]`, as maps `[T, H, W]` over the picture."""
        weights = weights.float().cpu()
        if self.grid is not None and self.geometry is not None:
            return self.geometry.to_image(self.on_grid(weights))
        height, width = self.image_size
        rows, columns = (
            functional.interpolate(shares[:, None], size=side, mode="linear")[:, 0]
            for shares, side in zip(self._shares, (height, width), strict=True)
        )
        return torch.einsum("tn,nh,nw->thw", weights, rows, columns)

    def on_grid(self, weights: Tensor) -> Tensor:
        """Weights of the cells, `[T, n]`, on the raster, `[T, h, w]`; without one, on a grid of the bars."""
        weights = weights.float().cpu()
        if self.grid is not None:
            rastered: Tensor = weights[:, self.prefix :].unflatten(1, self.grid)
            return rastered
        return torch.einsum("tn,nh,nw->thw", weights, *self._shares)

    @property
    def _shares(self) -> tuple[Tensor, Tensor]:
        """Each cell's footprint along the rows and along the columns."""
        assert isinstance(self.seen, Bars)
        return self.seen.rows, self.seen.columns

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


def fields_of(first: Tensor, second: Tensor, clean: Tensor) -> Fields:
    """How the cells react.

    Args:
        first, second: Their states with the two pictures of `chequered`, `[n, D]`.
        clean: Those with the picture itself.
    """
    one, other = ((states - clean).square().sum(-1) for states in (first, second))
    return Fields(((one - other) / (one + other).clamp_min(torch.finfo(one.dtype).tiny)).cpu())


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
    picture: Image.Image,
    read: Read,
    clean: Tensor,
    fields: Fields,
    geometry: Callable[[], Geometry | None],
    *,
    fine: bool = True,
) -> Footprints:
    """Where each cell lies: on a raster if one agrees with the fields or with coarse bars, else as fine bars show.

    Args:
        picture, read, clean: See `measured`.
        fields: The reactions to the pictures of `chequered`.
        geometry: How the processor puts the picture on a canvas; None where that is not known.
        fine: Whether fine bars are measured; if not, coarse ones have to do.
    """
    size = (picture.height, picture.width)
    if (found := in_fields(size, fields, geometry)) is not None:
        return found
    coarse = Footprints(size, measured(picture, read, clean, COARSE))
    if (found := on_raster(coarse, geometry)) is not None:
        return found
    return replace(coarse, seen=measured(picture, read, clean, FINE)) if fine else coarse


def in_fields(image_size: Size, fields: Fields, geometry: Callable[[], Geometry | None]) -> Footprints | None:
    """The cells on the raster that agrees with the fields; None if none does, or if it is not clear which.

    Args:
        image_size: Height and width of the picture.
        fields: The cells' reactions.
        geometry: How the processor puts the picture on a canvas; None where that is not known.
    """
    if len(fields) < FEWEST or fields.locality < LOCAL:
        return None
    canvases = _canvases(image_size, geometry)
    fits = [
        max(
            (_correlation(fields.contrasts[prefix:], _expected(grid, canvas)), -number, grid, prefix)
            for number, canvas in enumerate(canvases)
        )
        for grid, prefix in _rasters(len(fields))
    ]
    (agreement, number, grid, prefix), *others = sorted(fits, reverse=True)
    if not agreement >= APART or any(other > APART * agreement for other, *_ in others):
        return None
    return Footprints(image_size, fields, grid, canvases[-number], prefix)


def on_raster(found: Footprints, geometry: Callable[[], Geometry | None]) -> Footprints | None:
    """The same cells on the raster that agrees with the bars; None if none does.

    The raster fills the canvas onto which the processor puts the picture, or the picture itself.
    """
    assert isinstance(found.seen, Bars)
    (rows, columns), bars = found.seen.centres(), found.seen.down.shape[1]
    agreement, grid, prefix = max(
        (_agreement(rows[prefix:], columns[prefix:], grid, bars), grid, prefix)
        for grid, prefix in _rasters(found.cells)
    )
    if not agreement >= IN_ORDER:
        return None
    rows, columns = rows[prefix:], columns[prefix:]
    best = min(_canvases(found.image_size, geometry), key=lambda one: _distance(rows, columns, grid, one))
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


def chequered(picture: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The picture with `FIELDS` replaced by blocks of noise, and with all other fields; the rest hardly changes.

    >>> [one.getpixel((0, 0)) for one in chequered(Image.new("RGB", (8, 8)))]
    [(6, 6, 6), (95, 130, 194)]
    """
    pixels = np.array(picture)
    noise, faint = _noise(pixels.shape, 0), np.where(pixels < MIDDLE, pixels + FAINT, pixels - FAINT)
    first, second = faint.copy(), faint
    rows, columns = (bars_along(picture, axis, len(FIELDS)) for axis in (0, 1))
    for (row, column), inside in np.ndenumerate(FIELDS):
        part = rows[row][0], columns[column][1]
        (first if inside else second)[part] = noise[part]
    return Image.fromarray(first), Image.fromarray(second)


def blank(picture: Image.Image) -> Image.Image:
    """A picture of the same size, all in the mean colour."""
    mean = np.array(picture.convert("RGB")).reshape(-1, 3).mean(0).round().astype(int)
    return Image.new("RGB", picture.size, tuple(mean.tolist()))


def disturbed(picture: Image.Image, part: tuple[slice, slice] | None = None, seed: int = 0) -> Image.Image:
    """The picture with a part of it, or all, replaced by blocks of noise."""
    pixels = np.array(picture)
    where = part or (slice(None), slice(None))
    pixels[where] = _noise(pixels.shape, seed)[where]
    return Image.fromarray(pixels)


def _noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Blocks of noise, uint8 `[H, W, 3]`."""
    height, width = shape[:2]
    block = -(-max(height, width) // GRAIN)
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // block), -(-width // block), 3), np.uint8)
    return coarse.repeat(block, 0).repeat(block, 1)[:height, :width]


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


def _rasters(cells: int) -> list[tuple[Size, int]]:
    """Every raster of so many cells, or of all but one that precedes them."""
    return [(grid, prefix) for prefix in range(min(2, cells)) for grid in _grids(cells - prefix)]


def _canvases(image_size: Size, geometry: Callable[[], Geometry | None]) -> list[Geometry]:
    """What a raster may fill: the processor's canvas, or the picture."""
    return [one for one in (_given(geometry), whole(image_size)) if one is not None]


def _expected(grid: Size, canvas: Geometry) -> Tensor:
    """The contrasts `[n]` of the cells of a raster, by the shares of each that lie in one field and another."""
    rows, columns = (
        _overlaps(axis.to_image(torch.linspace(0, model, side + 1) - 0.5).add(0.5) / image)
        for axis, side, model, image in zip(
            (canvas.rows, canvas.columns), grid, canvas.model_size, canvas.image_size, strict=True
        )
    )
    return (rows @ torch.from_numpy(np.where(FIELDS, 1.0, -1.0)).float() @ columns.T).flatten()


def _overlaps(edges: Tensor) -> Tensor:
    """Which share of each interval between edges `[n + 1]` lies in each bar of [0, 1], `[n, bars]`."""
    starts, ends = torch.minimum(edges[:-1], edges[1:]), torch.maximum(edges[:-1], edges[1:])
    bars = torch.linspace(0, 1, len(FIELDS) + 1)
    inside = torch.minimum(ends[:, None], bars[1:]) - torch.maximum(starts[:, None], bars[:-1])
    return inside.clamp_min(0) / (ends - starts)[:, None]


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
