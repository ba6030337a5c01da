"""Views of the images of a data set: each image itself and random crops of it, and cells sampled from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_cam.data.explain import as_source
from hf_cam.data.sources import Listed, Source, source_of
from hf_cam.errors import HFCamError
from hf_cam.images.geometry import Geometry
from hf_cam.images.reading import load_image
from hf_cam.zoo.scenes import CHEATER, cheater_scenes

Box = tuple[int, int, int, int]
"""`(x0, y0, x1, y1)` in an image's pixels."""

SMALLEST = 1 / 3
"""The shortest side of a crop, and the side of an example, relative to the image's."""
CELLS = 4
"""Cells drawn from each view."""


def images_of(data: Any, column: str | None = None, split: str | None = None) -> Source:
    """The images of a data set in any form that `hf_cam.audit` or `hf_cam.explain_dataset` takes.

    Labels are passed over.

    Raises:
        ImageError: there are none, or the data cannot be read.
        OptionError: the data is of another kind.
    """
    if isinstance(data, str) and data == CHEATER:
        data = cheater_scenes()
    if isinstance(data, list | tuple):
        return source_of([_unlabelled(entry) for entry in data])
    return source_of(data, column=column, split=split)


def _unlabelled(entry: Any) -> Any:
    """The image of an entry `(image, label)` or `{"image": ..., ...}` of a list."""
    if isinstance(entry, tuple | list) and len(entry) == 2:
        return entry[0]
    return entry["image"] if isinstance(entry, Mapping) and "image" in entry else entry


def open_image(source: Source, index: int) -> Image.Image:
    """An image of the data, upright and in RGB.

    Raises:
        ImageError: it cannot be read.
    """
    return load_image(as_source(source.at(index)["image"]))


def name_of(source: Source, index: int) -> str:
    """The name of an image: its path, or its number in the data."""
    name = source.key(index)
    if isinstance(source, Listed) or not hasattr(source, "root"):
        return name
    return str(Path(source.root or "") / name)


def readable(source: Source, order: Sequence[int], errors: list[str]) -> Iterator[tuple[int, Image.Image]]:
    """Number and picture of each image that can be read, in this order; the errors of the others are noted."""
    for index in order:
        try:
            yield index, open_image(source, index)
        except HFCamError as error:
            errors.append(str(error))


def crop_boxes(size: tuple[int, int], count: int, rng: np.random.Generator) -> list[Box]:
    """The whole image of this size (width, height), and `count` crops of its shape, a third of its sides or more.

    >>> crop_boxes((96, 64), 0, np.random.default_rng(0))
    [(0, 0, 96, 64)]
    """
    width, height = size
    boxes: list[Box] = [(0, 0, width, height)]
    for share in rng.uniform(SMALLEST, 1, count):
        across, down = max(1, round(width * share)), max(1, round(height * share))
        left, top = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
        boxes.append((left, top, left + across, top + down))
    return boxes


def cropped(image: Image.Image, box: Box) -> Image.Image:
    """The crop, enlarged to the size of the image."""
    if box == (0, 0, *image.size):
        return image
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def around(cell: tuple[int, int], grid: tuple[int, int], geometry: Geometry) -> Box:
    """The part of an image round a cell: a third of the image's sides, moved so that it lies within the image.

    Args:
        cell: Row and column of the cell.
        grid: Rows and columns of the grid over the model's input.
        geometry: How the image lies in the model's input.
    """
    (row, column), (rows, columns) = cell, grid
    if geometry.swapped:
        geometry, row, column, rows, columns = geometry.unswapped(), column, row, columns, rows
    height, width = geometry.image_size
    y = geometry.rows.to_image((row + 0.5) / rows * geometry.model_size[0] - 0.5) + 0.5
    x = geometry.columns.to_image((column + 0.5) / columns * geometry.model_size[1] - 0.5) + 0.5
    across, down = max(1, round(width * SMALLEST)), max(1, round(height * SMALLEST))
    left = min(max(round(x - across / 2), 0), width - across)
    top = min(max(round(y - down / 2), 0), height - down)
    return left, top, left + across, top + down


@dataclass
class Reservoir:
    """A uniform sample of bounded size from a stream of cells.

    Every cell gets a random key, and those with the largest keys stay, so that the sample does not depend on how the
    stream is cut into batches.

    Args:
        size: How many cells it holds at most.
        rng: Draws the keys.
    """

    size: int
    rng: np.random.Generator
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0))
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Take more rows into account."""
        keys = np.concatenate([self.keys, self.rng.random(len(rows))])
        every = [*self.rows, *rows]
        stay = np.sort(np.argsort(-keys, kind="stable")[: self.size])
        self.keys, self.rows = keys[stay], [every[index] for index in stay]
