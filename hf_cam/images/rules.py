"""Rules by which processors size and place pictures: what was measured at some sizes predicts the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from hf_cam.images.geometry import Axis, Geometry, placed
from hf_cam.layouts import Size

Sides = tuple[float, float]
"""Height and width, not always whole."""

Resizing = Callable[[Size, Size], Sides]
"""From the image's size and the model's input to the size that the image takes in it."""

Rounding = Callable[[float], float]

ALIKE = 0.5
"""Model pixels by which the rules that fit may differ from each other at a size that is predicted."""


@dataclass(frozen=True)
class Reading:
    """A geometry as it was measured.

    Args:
        geometry: Where the image was found.
        slack: Model pixels by which it may be off; infinite where it is a guess that the test pictures do not
            contradict.
    """

    geometry: Geometry
    slack: float


@dataclass(frozen=True)
class Rule:
    """How a processor places pictures of all sizes.

    Args:
        resizing: How large they become.
        margin: From the space that is left along an axis, negative where it is cropped, to the part of it in front.
        mirrored: Whether the image's rows and its columns run backwards.
        swapped: As in `Geometry`.
    """

    resizing: Resizing
    margin: Rounding
    mirrored: tuple[bool, bool] = (False, False)
    swapped: bool = False

    def predict(self, image_size: Size, model_size: Size) -> Geometry:
        """The geometry of an image of one size in a model's input of another."""
        sides = self._sides(model_size)
        rows, columns = map(_axis, self.spans(image_size, model_size), image_size, sides, self.mirrored)
        return placed(image_size, model_size, rows, columns, swapped=self.swapped)

    def spans(self, image_size: Size, model_size: Size) -> tuple[Sides, Sides]:
        """Where the image's rows and columns begin and end, before they are mirrored; outside the input if cropped."""
        height, width = self._sides(model_size)
        rows, columns = self.resizing(image_size, (height, width))
        top, left = self.margin(height - rows), self.margin(width - columns)
        return (top, top + rows), (left, left + columns)

    def _sides(self, model_size: Size) -> Size:
        return model_size[::-1] if self.swapped else model_size

    def error(self, reading: Reading) -> float:
        """How far off a reading is from what is predicted, in model pixels."""
        measured = reading.geometry
        return apart(measured, self.predict(measured.image_size, measured.model_size))

    def fits(self, reading: Reading) -> bool:
        """Whether a reading is what is predicted, as nearly as could be measured."""
        return self.error(reading) <= reading.slack


def _axis(span: Sides, length: int, side: int, mirrored: bool) -> Axis:
    """The axis of an image of `length` pixels that spans a part of a model's input of `side` pixels."""
    begin, end = span
    scale = (end - begin) / length
    offset = begin + (scale - 1) / 2
    return Axis(-scale, side - 1 - offset) if mirrored else Axis(scale, offset)


def general_rules() -> list[Rule]:
    """Rules that name no length: the image fills the input, fits into it or covers it, either way round."""
    mirrored = ((False, False), (False, True), (True, False), (True, True))
    ways = product((False, True), mirrored, (_half, _none, _all))
    resizings = (_filling, _scaled(min, _near), _scaled(max, _near))
    return [Rule(resizing, margin, way, swapped) for swapped, way, margin in ways for resizing in resizings]


def rules_of(readings: Sequence[Reading]) -> list[Rule]:
    """The rules that put every image where it was measured, the closest to the last reading first."""
    first = readings[0].geometry
    mirrored = (first.rows.scale < 0, first.columns.scale < 0)
    rules = [
        Rule(resizing, margin, mirrored, first.swapped)
        for resizing, margin in product(_resizings([reading.geometry for reading in readings]), MARGINS)
    ]
    fitting = [rule for rule in rules if all(map(rule.fits, readings))]
    return sorted(fitting, key=lambda rule: round(rule.error(readings[-1]), 1))


def apart(left: Geometry, right: Geometry) -> float:
    """The distance in model pixels at which two geometries put an image's pixels, at most, where the first shows it."""
    if (left.model_size, left.swapped) != (right.model_size, right.swapped):
        return math.inf
    left, right = left.unswapped(), right.unswapped()
    top, first, bottom, last = left.seen
    distances = [
        abs(right_axis.to_model(left_axis.to_image(edge - 0.5)) - (edge - 0.5))
        for left_axis, right_axis, edges in (
            (left.rows, right.rows, (top, bottom)),
            (left.columns, right.columns, (first, last)),
        )
        for edge in edges
    ]
    return max(distances)


def alike(left: tuple[Sides, Sides], right: tuple[Sides, Sides]) -> bool:
    """Whether two predictions of where an image lies differ by half a model pixel at most."""
    return all(
        abs(a - b) <= ALIKE for ours, theirs in zip(left, right, strict=True) for a, b in zip(ours, theirs, strict=True)
    )


def resized_size(geometry: Geometry) -> Sides:
    """The height and width that an image has in the model's input, with what is cropped away."""
    height, width = geometry.image_size
    return abs(geometry.rows.scale) * height, abs(geometry.columns.scale) * width


def _none(space: float) -> float:
    del space
    return 0.0


def _half(space: float) -> float:
    return math.trunc(space / 2)


def _all(space: float) -> float:
    return space


MARGINS: tuple[Rounding, ...] = (
    _none,
    _half,
    lambda space: math.floor(space / 2),
    lambda space: math.ceil(space / 2),
    lambda space: round(space / 2),
    lambda space: space / 2,
    _all,
)
"""All behind, half on either side, all in front."""


def _down(side: float) -> float:
    return max(1, int(side))


def _near(side: float) -> float:
    return max(1, round(side))


def _resizings(measured: Sequence[Geometry]) -> Iterator[Resizing]:
    """The ways to resize, with the lengths that were met."""
    met = [resized_size(geometry) for geometry in measured]
    height, width = (round(side) for side in met[0])
    yield _filling
    yield lambda image, model: (height, width)
    yield lambda image, model: image
    shortest, longest = round(max(map(min, met))), round(max(map(max, met)))
    for bounds in ((shortest, math.inf), (math.inf, longest), (shortest, longest)):
        for roundings in ((_down, _down), (_near, _down), (_near, _near), (float, float)):
            yield _bounded(*bounds, *roundings)
    for rounding in (_down, _near, float):
        yield _scaled(min, rounding)
        yield _scaled(max, rounding)


def _filling(image: Size, model: Size) -> Sides:
    del image
    return model


def _bounded(shortest: float, longest: float, of_short: Rounding, of_long: Rounding) -> Resizing:
    """In proportion: the shorter side has one length, or less where the longer side would exceed another."""

    def resized(image: Size, model: Size) -> Sides:
        del model
        short, long = min(image), max(image)
        exact = shortest if shortest * long / short <= longest else longest * short / long
        sides = of_short(exact), of_long(exact * long / short)
        return sides if image[0] <= image[1] else sides[::-1]

    return resized


def _scaled(choose: Callable[[float, float], float], rounding: Rounding) -> Resizing:
    """In proportion: as large as fits into the model's input (`min`), or as covers it (`max`)."""

    def resized(image: Size, model: Size) -> Sides:
        scale = choose(model[0] / image[0], model[1] / image[1])
        return rounding(scale * image[0] + 1e-9), rounding(scale * image[1] + 1e-9)

    return resized
