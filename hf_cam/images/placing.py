"""One processor's geometries, measured where they have to be and predicted where a rule was seen to hold."""

from __future__ import annotations

import math
from typing import Any

from hf_cam.errors import ModelError
from hf_cam.images.geometry import Geometry
from hf_cam.images.measuring import (
    OTHERWISE,
    RANDOM,
    REPEATS,
    REPEATS_OF_RANDOM,
    Preprocess,
    located,
    prepared_size,
    random_state_kept,
    repeatable,
    second_look,
)
from hf_cam.images.patterns import BLACK, WHITE
from hf_cam.images.rules import Reading, Rule, alike, general_rules, resized_size, rules_of
from hf_cam.layouts import Size

SAMPLE = frozenset(4**power for power in range(16))
"""Of the predictions, those that are measured all the same."""


class Geometries:
    """The geometries of one processor by the image's size.

    A size is predicted where all rules that fit what was measured so far put it in the same place, and where they were
    seen to hold for a size of its kind: measured, and found where they predicted it. The first prediction, the fourth,
    the sixteenth and so on are measured all the same.
    """

    def __init__(self) -> None:
        self._known: dict[Size, Geometry] = {}
        self._readings: list[Reading] = []
        self._rules: list[Rule] = []
        self._kinds: set[Any] = set()
        self._predictions = 0
        self._random = False

    def of(self, preprocess: Preprocess, image_size: Size, model_size: Size | None = None) -> Geometry:
        """The geometry of images of a size.

        Args:
            preprocess: The processor, always the same, as a function of a list of images.
            image_size: Height and width of the image.
            model_size: Of what the processor made of it, where that is known.

        Raises:
            ModelError: the processor is random, places pictures by what they show, or does more than an affine map
                along the axes undoes to within half a cell.
        """
        found = self._known.get(image_size)
        if found is None or model_size not in (None, found.model_size):
            with random_state_kept():
                predicted = None if found else self._predicted(preprocess, image_size, model_size)
                found = predicted or self._found(preprocess, image_size)
            self._known[image_size] = found
        if model_size not in (None, found.model_size):
            raise ModelError(OTHERWISE)
        return found

    def _predicted(self, preprocess: Preprocess, image_size: Size, model_size: Size | None) -> Geometry | None:
        """What all rules say, or None."""
        if not self._rules:
            return None
        size = model_size or self._constant_size() or prepared_size(preprocess, image_size)
        first, *others = (rule.spans(image_size, size) for rule in self._rules)
        predicted = self._rules[0].predict(image_size, size)
        if _kind(predicted) not in self._kinds or not all(alike(first, other) for other in others):
            return None
        self._predictions += 1
        return None if self._predictions in SAMPLE else predicted

    def _constant_size(self) -> Size | None:
        """The size of the model's input, where images of different proportions came out in the same."""
        measured = [reading.geometry for reading in self._readings]
        sizes = {found.model_size for found in measured}
        proportions = [found.image_size[0] / found.image_size[1] for found in measured]
        return sizes.pop() if len(sizes) == 1 and max(proportions) > 1.2 * min(proportions) else None

    def _found(self, preprocess: Preprocess, image_size: Size) -> Geometry:
        """Measured, and exactly as a rule says where one fits."""
        reading = self._read(preprocess, image_size)
        if math.isinf(reading.slack):
            return reading.geometry
        self._readings.append(reading)
        before, self._rules = self._rules, [rule for rule in self._rules if rule.fits(reading)]
        if not self._rules:
            self._rules = rules_of(self._readings)
            if before:  # what they predicted is in doubt
                self._known = {found.geometry.image_size: found.geometry for found in self._readings}
        size = reading.geometry.model_size
        found = self._rules[0].predict(image_size, size) if self._rules else reading.geometry
        self._kinds.add(_kind(found))
        return found

    def _read(self, preprocess: Preprocess, image_size: Size) -> Reading:
        """What a checkerboard shows and a rule foretold, or else a second pattern confirms."""
        if not self._readings:
            self._check_repeatable(preprocess, image_size, REPEATS)
        confirms = second_look(preprocess, image_size)
        rims = (BLACK,) if self._readings else (BLACK, WHITE)
        for reading in located(preprocess, image_size, [*self._rules, *general_rules()]):
            foretold = math.isfinite(reading.slack) and any(rule.fits(reading) for rule in self._rules)
            if foretold or all(confirms(reading.geometry, rim) for rim in rims):
                return reading
        self._check_repeatable(preprocess, image_size, REPEATS_OF_RANDOM)
        raise ModelError(OTHERWISE)

    def _check_repeatable(self, preprocess: Preprocess, image_size: Size, least: int) -> None:
        """Refuse a random processor, from then on whatever it happens to answer."""
        self._random = self._random or not repeatable(preprocess, image_size, least)
        if self._random:
            raise ModelError(RANDOM)


def _kind(geometry: Geometry) -> tuple[Any, ...]:
    """What sizes share that a processor may treat alike: proportions, and what is enlarged, cropped or padded."""
    height, width = geometry.image_size
    short, long = sorted(geometry.image_size)
    sides, resized = geometry.unswapped().model_size, resized_size(geometry)
    return (
        height < width,
        height == width,
        (long // short).bit_length(),
        *(image > model for image, model in zip(geometry.image_size, sides, strict=True)),
        *(round(side - length) > 0 for side, length in zip(sides, resized, strict=True)),
        *(round(side - length) < 0 for side, length in zip(sides, resized, strict=True)),
    )
