"""Examples of concepts: the parts of images in which they are strongest, and maps of where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from hf_cam.data.sources import Source
from hf_cam.discovery.factors import Basis
from hf_cam.discovery.looking import Looker
from hf_cam.discovery.sampling import Sample, Tell
from hf_cam.discovery.views import Box, around, name_of, open_image
from hf_cam.images.drawing import overlay
from hf_cam.images.geometry import Geometry
from hf_cam.images.pages import resized, small

EXAMPLES = 6
"""Examples of each concept, at most."""


@dataclass(frozen=True, eq=False)
class Example:
    """A part of an image in which a concept is strong.

    Args:
        image: The name of the image: its path, or its number in the data.
        box: `(x0, y0, x1, y1)`: the part, in the image's pixels.
        strength: How strong the concept is there, in (0, 1], relative to its strongest cell.
        crop: The part, small.
        map: The whole image, small, with the concept's map over it.
    """

    image: str
    box: Box
    strength: float
    crop: Image.Image = field(repr=False)
    map: Image.Image = field(repr=False)


def maps_of(cells: np.ndarray, basis: Basis, peaks: np.ndarray) -> np.ndarray:
    """`[k, h, w]` float32 in [0, 1]: the strengths of the concepts in `[C, h, w]`, relative to their peaks `[k]`."""
    channels, rows, columns = cells.shape
    strengths = basis.coefficients(cells.reshape(channels, -1).T) / np.where(peaks > 0, peaks, 1.0)
    return strengths.T.reshape(-1, rows, columns).clip(0, 1).astype(np.float32)


def examples_of(looker: Looker, source: Source, sample: Sample, basis: Basis, tell: Tell) -> list[tuple[Example, ...]]:
    """For each concept its examples, the strongest first.

    They are found among the images on which importance is measured and those with the strongest sampled cells.
    """
    strengths = sample.strengths(basis)
    peaks = strengths.max(0)
    images = {index for index, *_ in sample.scored}
    for own in strengths.T:
        images.update(_strongest(own, sample.images_of))
    shown: dict[int, tuple[np.ndarray, Geometry]] = {}
    for done, index in enumerate(sorted(images), 1):
        [seen] = looker.see([open_image(source, index)])
        shown[index] = maps_of(seen.cells, basis, peaks), seen.geometry
        tell("images searched for examples", done, len(images))
    chosen = [_best({index: maps[concept] for index, (maps, _) in shown.items()}) for concept in range(len(basis))]
    made: dict[tuple[int, int], Example] = {}
    for index in sorted({index for own in chosen for index in own}):
        picture, (maps, geometry) = open_image(source, index), shown[index]
        for concept in (concept for concept, own in enumerate(chosen) if index in own):
            made[concept, index] = _example(name_of(source, index), picture, maps[concept], geometry)
    return [tuple(made[concept, index] for index in own) for concept, own in enumerate(chosen)]


def _strongest(strengths: np.ndarray, images_of: np.ndarray) -> list[int]:
    """The images that the largest strengths are from."""
    return list(dict.fromkeys(images_of[np.argsort(-strengths, kind="stable")].tolist()))[:EXAMPLES]


def _best(maps: Mapping[int, np.ndarray]) -> list[int]:
    """The images whose maps have the highest peaks above 0."""
    order = sorted(maps, key=lambda index: -float(maps[index].max()))
    return [index for index in order if maps[index].any()][:EXAMPLES]


def _example(name: str, picture: Image.Image, cells: np.ndarray, geometry: Geometry) -> Example:
    """The part round the strongest cell of a map `[h, w]`, and the map over the picture."""
    row, column = np.unravel_index(int(cells.argmax()), cells.shape)
    box = around((int(row), int(column)), (cells.shape[0], cells.shape[1]), geometry)
    shown = small(picture)
    heat = resized(geometry.to_image(torch.from_numpy(cells)).numpy(), shown)
    return Example(name, box, float(cells.max()), small(picture.crop(box)), overlay(shown, heat))
