"""Where an image processor puts each pixel, read off test pictures whose layout survives what it does to colours.

Whatever a processor does to brightness and contrast, it does it to a pattern of two colours and to its negative: the
sign of their difference changes at the pattern's edges, and nowhere else.
"""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import product

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from hf_cam.errors import ModelError
from hf_cam.images.geometry import Axis, Geometry, placed
from hf_cam.images.patterns import PALETTES, Colour, Pattern, checkerboard, random_blocks
from hf_cam.images.rules import Reading, Rule
from hf_cam.layouts import Size

Preprocess = Callable[[list[Image.Image]], Tensor]
"""Images to pixel values `[B, ..., H, W]`."""

STRIPES = (20, 12, 7, 5, 60, 180)
"""How many per axis, tried in turn: fewer for coarse inputs, more where most of the picture is cropped away."""
BLOCKS = 10
"""How many of the second pattern the model's input shows along each axis, where it is fine enough."""
FINEST_GRID = 28
"""Cells along the model's input on the finest grids in use (patches of 8 in 224 pixels)."""
LEGIBLE = 2.5
"""Model pixels per stripe below which edges merge."""
TINY, THIN = 8, 8
"""Pixels along an axis, and times that the other is longer, beyond which too little may be left to read off."""
SEEN = 0.2
"""Share of the input that has to differ between a pattern and its negative, lest other colours show more."""
VISIBLE = 0.1
"""Share of the strongest difference from which a pixel counts as dark or light."""
WRONG, PARTS = 0.01, 4
"""Share of the pixels, in each of 4 x 4 parts of the input, that may show another block than they should."""
REPEATS, REPEATS_OF_RANDOM = 8, 48

DOOR = "explain what it returns with hf_cam.GradCAM(model)(pixel_values)"
RANDOM = (
    "the image processor is random: it prepares the same picture differently each time, so that no map can be put back "
    f"onto it; pass a deterministic one, as for evaluation, or {DOOR}"
)
BLIND = f"the image processor returns the same values for a picture and its negative; {DOOR}"
OTHERWISE = (
    "the image processor does not just resize, crop, pad, mirror or turn a picture by right angles, or does so by what "
    f"the picture shows; {DOOR}"
)


def repeatable(preprocess: Preprocess, image_size: Size, least: int = REPEATS) -> bool:
    """Whether a processor prepares the same picture in the same way each time.

    Args:
        preprocess: The processor, as a function of a list of images.
        image_size: Height and width of the picture.
        least: How often it is asked again, if it draws no numbers from the global random generators.
    """
    picture = checkerboard(image_size, STRIPES[0]).pictures()[0]
    with random_state_kept() as used:
        first = _called(preprocess, picture)
        for count in range(REPEATS_OF_RANDOM):
            if count >= least and not used():
                return True
            again = _called(preprocess, picture)
            if again.shape != first.shape or not _alike(again, first):
                return False
    return True


def _alike(left: Tensor, right: Tensor) -> bool:
    """Equal up to rounding, as on an accelerator."""
    if torch.equal(left, right):
        return True
    left, right = left.nan_to_num(0.0, 0.0, 0.0), right.nan_to_num(0.0, 0.0, 0.0)
    return bool((left - right).abs().max() <= 1e-3 * (right.max() - right.min()))


@contextmanager
def random_state_kept() -> Iterator[Callable[[], bool]]:
    """Put the global random generators back afterwards; yields whether any was used since."""
    python, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    before = _random_state()
    try:
        yield lambda: _random_state() != before
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002
        torch.set_rng_state(tensors)


def _random_state() -> tuple[object, ...]:
    arrays = np.random.get_state(legacy=False)  # noqa: NPY002 -- the generator that augmentations draw from
    return random.getstate(), pickle.dumps(arrays), torch.get_rng_state().numpy().tobytes()


def located(preprocess: Preprocess, image_size: Size, rules: Sequence[Rule]) -> Iterator[Reading]:
    """The geometries that explain how a checkerboard comes out, the likeliest first.

    Args:
        preprocess: The processor.
        image_size: Height and width of the image.
        rules: To guess by, where the image is too small or too thin to read a geometry off.

    Raises:
        ModelError: the processor cannot prepare test pictures, makes the same of one and its negative, or makes them
            too small to tell.
    """
    for stripes in STRIPES:
        pattern = checkerboard(image_size, stripes)
        difference = differences(preprocess, pattern)
        yield from (found for found in _candidates(difference, pattern) if shows(difference, pattern, found.geometry))
    if min(image_size) < TINY or max(image_size) > THIN * min(image_size):
        size = prepared_size(preprocess, image_size)
        yield from (Reading(rule.predict(image_size, size), math.inf) for rule in rules)


def second_look(preprocess: Preprocess, image_size: Size) -> Callable[[Geometry, Colour], bool]:
    """A function of a geometry and a colour: whether random blocks in a rim of it come out where the geometry says."""

    @cache
    def seen(blocks: Size, rim: Colour) -> tuple[Pattern, Tensor]:
        pattern = random_blocks(image_size, blocks, rim)
        return pattern, differences(preprocess, pattern)

    def confirms(geometry: Geometry, rim: Colour) -> bool:
        upright = geometry.unswapped()
        rows, columns = (
            max(1, round(min(BLOCKS, side / LEGIBLE) * abs(axis.scale) * length / side))
            for axis, length, side in zip(
                (upright.rows, upright.columns), upright.image_size, upright.model_size, strict=True
            )
        )
        pattern, difference = seen((rows, columns), rim)
        return shows(difference, pattern, geometry)

    return confirms


def differences(preprocess: Preprocess, pattern: Pattern) -> Tensor:
    """What a processor makes of a pattern less what it makes of its negative, `[C, h, w]`.

    Raises:
        ModelError: it cannot prepare them, or makes the same of both.
    """
    for palette in PALETTES:
        shown, negative = (_called(preprocess, picture) for picture in pattern.pictures(palette))
        if shown.shape != negative.shape:
            raise ModelError(OTHERWISE)
        difference = (shown - negative).reshape(-1, *_size(shown))
        if not math.isfinite(float(difference.sum())):
            difference = difference.nan_to_num(0.0, 0.0, 0.0)
        if difference[:, ::4, ::4].ne(0).float().mean() > SEEN:
            break
    if not float(difference.abs().sum()):
        raise ModelError(BLIND)
    height, width = _size(difference)
    if min(height, width) < min(STRIPES) * LEGIBLE:
        raise ModelError(
            f"the image processor makes {height} x {width} pixels of a picture (the last axes of [C, H, W]), too few "
            f"to tell where it puts what; {DOOR}"
        )
    return difference


def _size(picture: Tensor) -> Size:
    return picture.shape[-2], picture.shape[-1]


def _called(preprocess: Preprocess, picture: Image.Image) -> Tensor:
    """What a processor makes of one picture, `[..., h, w]`."""
    try:
        prepared: Tensor = preprocess([picture])[0].detach().cpu().float()
    except Exception as error:
        raise ModelError(
            f"the image processor fails on a test picture that would show where it puts each pixel: {error}; {DOOR}"
        ) from error
    if prepared.ndim < 2:
        raise ModelError(f"the image processor returns no rows and columns, but {prepared.ndim} axes; {DOOR}")
    return prepared


def prepared_size(preprocess: Preprocess, image_size: Size) -> Size:
    """Height and width of what a processor makes of an image of a size."""
    height, width = image_size
    prepared = _called(preprocess, Image.new("RGB", (width, height)))
    return _size(prepared)


def shows(difference: Tensor, pattern: Pattern, geometry: Geometry) -> bool:
    """Whether every channel that has dark and light shows each block of a pattern where a geometry puts it.

    Pixels within half a cell of a block's edge do not count, a channel may be inverted, and padding may be of one
    colour, go on with the image's border or mirror it.

    Args:
        difference: `[C, h, w]`, of the pattern and its negative.
        pattern: What the processor got.
        geometry: To be tested.
    """
    if geometry.model_size != _size(difference):
        return False
    upright = difference.mT if geometry.swapped else difference
    return any(_shows(upright, pattern, geometry, mirrored) for mirrored in (False, True))


def _shows(difference: Tensor, pattern: Pattern, geometry: Geometry, mirrored: bool) -> bool:
    rows, columns = (
        pattern.along(edges, axis, side, _half_cell(side), mirrored=mirrored)
        for edges, axis, side in zip(
            (pattern.rows, pattern.columns), (geometry.rows, geometry.columns), difference.shape[-2:], strict=True
        )
    )
    light = torch.from_numpy(pattern.light[np.ix_(rows.shown, columns.shown)])
    padding = torch.from_numpy(rows.padding[:, None] | columns.padding)
    if not light.numel() or bool(padding.all()):
        return False
    values = difference[:, torch.from_numpy(rows.pixels)][:, :, torch.from_numpy(columns.pixels)]
    strengths = values.abs().amax((1, 2), keepdim=True)
    strong = (strengths > VISIBLE * strengths.max()).flatten()
    values = values[strong] / strengths[strong]
    clear = values.abs() > VISIBLE
    judged = (clear & ~padding).sum((1, 2)) > (~padding).sum() / 2  # others show edges alone, or nothing
    worst = functional.adaptive_avg_pool2d(_wrong(values, clear, light, padding).float(), PARTS)[judged]
    return len(worst) > 0 and float(worst.max()) <= WRONG


def _wrong(values: Tensor, clear: Tensor, light: Tensor, padding: Tensor) -> Tensor:
    """Pixels that show another block than they should, `[C, n, m]`.

    Args:
        values: `[C, n, m]`, above 0 where a channel is light; or dark, all over an inverted channel.
        clear: `[C, n, m]`, which of them are far enough from 0 to tell.
        light: `[n, m]`, what they should show.
        padding: `[n, m]`, which of them lie beyond the image, where one colour is as right as what `light` says.
    """
    lit = values > 0
    differing = (lit != light) & clear
    inverted = (differing & ~padding).sum((1, 2)) > (clear & ~padding).sum((1, 2)) / 2
    wrong = differing ^ (clear & inverted[:, None, None])
    lights, darks = ((chosen & clear & padding).sum((1, 2)) for chosen in (lit, ~lit))
    plain = (lights == 0) | (darks == 0)
    return wrong & ~(padding & plain[:, None, None])


def _half_cell(side: int) -> float:
    """Model pixels by which a map may be off."""
    return max(0.75, side / FINEST_GRID / 2)


def _candidates(difference: Tensor, pattern: Pattern) -> Iterator[Reading]:
    """Geometries that take a checkerboard's edges to where the signs change; the closest first, swapped ones last."""
    image_size = (int(pattern.rows[-1]), int(pattern.columns[-1]))
    profiles = _profiles(difference)
    for swapped in (False, True):
        down, across = profiles[::-1] if swapped else profiles
        pairs = product(_axes(down, pattern.rows)[:3], _axes(across, pattern.columns)[:3])
        for (row_error, rows), (column_error, columns) in sorted(pairs, key=lambda pair: pair[0][0] + pair[1][0]):
            geometry = placed(image_size, _size(difference), rows, columns, swapped=swapped)
            yield Reading(geometry, 0.15 + 0.4 * min(max(row_error, column_error), 0.5))


def _profiles(difference: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Down the rows and across the columns: the checkerboard's two factors, in its strongest channel."""
    strongest = difference[int(difference.abs().sum((1, 2)).argmax())]
    across = strongest[int(strongest.square().sum(1).argmax())]
    for _ in range(2):
        down = strongest @ across
        across = down @ strongest
    return (down / down.abs().max()).numpy(), (across / across.abs().max()).numpy()


def _axes(profile: np.ndarray, edges: np.ndarray) -> list[tuple[float, Axis]]:
    """Axes that take the edges of stripes to the changes of sign in a profile, the closest first, with their errors.

    Neighbours stay neighbours: the longest run of edges that fits a line is the image, a rest is padding that mirrors
    it. Fewer than four say too little.
    """
    drawn, found = edges[1:-1] - 0.5, _changes(profile)
    longest = min(len(drawn), len(found))
    if len(found) * LEGIBLE > len(profile):
        return []
    for length in range(longest, max(4, longest // 2) - 1, -1):
        fits = [
            _fit(line[i : i + length], found[j : j + length])
            for line in (drawn, drawn[::-1])
            for i, j in _runs(len(drawn), len(found), length)
        ]
        if close := [fit for fit in fits if fit[0] <= _half_cell(len(profile))]:
            return sorted(close, key=lambda fit: fit[0])
    return []


def _runs(drawn: int, found: int, length: int) -> list[tuple[int, int]]:
    """Where runs of `length` start in two sequences, shifted against each other, that are as long as they can be."""
    starts = [(i, 0) for i in range(drawn)] + [(0, j) for j in range(1, found)]
    return [(i, j) for i, j in starts if min(drawn - i, found - j) == length]


def _fit(image: np.ndarray, model: np.ndarray) -> tuple[float, Axis]:
    """The line through pairs of positions, and how far the worst lies off it."""
    centred = image - image.mean()
    scale = float(centred @ model / (centred @ centred))
    axis = Axis(scale, float(model.mean() - scale * image.mean()))
    return float(np.abs(axis.to_model(image) - model).max()), axis


def _changes(profile: np.ndarray) -> np.ndarray:
    """The positions at which a profile changes its sign."""
    clear = np.flatnonzero(np.abs(profile) > VISIBLE)
    before, after = clear[:-1], clear[1:]
    changes = profile[before] * profile[after] < 0
    before, after = before[changes], after[changes]
    found: np.ndarray = before + (after - before) * profile[before] / (profile[before] - profile[after])
    return found
