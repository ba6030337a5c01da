"""One pass over a data set: cells sampled from its views, and the images on which importance is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from hf_cam.data.sources import Source
from hf_cam.discovery.factors import Basis
from hf_cam.discovery.looking import Looker, Seen
from hf_cam.discovery.views import CELLS, Box, Reservoir, crop_boxes, cropped, readable
from hf_cam.errors import ImageError, TargetError
from hf_cam.heads import Subject

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Sample:
    """What is kept of a data set.

    Args:
        cells: `[N, C]`.
        scores: `[N, K]` float16: those of the view that each cell is from.
        images_of: `[N]`: the number in the data of the image that each cell is from.
        scored: The images on which importance is measured: their numbers, what is asked of them, and the label of what
            the model finds in them.
        target: The label of what is asked for; empty if that differs from image to image.
        images: The number of images that were taken.
        notes: What a reader must know first.
    """

    cells: np.ndarray = field(repr=False)
    scores: np.ndarray = field(repr=False)
    images_of: np.ndarray = field(repr=False)
    scored: tuple[tuple[int, Subject, str], ...] = field(repr=False)
    target: str
    images: int
    notes: tuple[str, ...]

    def strengths(self, basis: Basis) -> np.ndarray:
        """`[N, k]`: how much of each concept lies in each cell."""
        return basis.coefficients(self.cells)


def sampled(
    looker: Looker,
    source: Source,
    target: Any,
    crops: int,
    samples: int,
    scored: int,
    batch_size: int,
    seed: int,
    tell: Tell,
) -> Sample:
    """The sample of a data set, which is read once, batch by batch.

    Raises:
        ImageError: fewer than two images can be read.
        TargetError: the target is found in fewer than two images.
    """
    rng = np.random.default_rng(seed)
    cells = Reservoir(samples, np.random.default_rng((seed, 1)))
    subjects = Reservoir(scored, np.random.default_rng((seed, 2)))
    errors, taken, labels, seen = list[str](), list[str](), dict[str, None](), 0
    for start in range(0, len(source), batch_size):
        chunk = range(start, min(start + batch_size, len(source)))
        images = list(readable(source, chunk, errors))
        seen += len(images)
        for (index, image), view in zip(images, looker.see([image for _, image in images], target), strict=True):
            labels[view.found.label] = None
            if target is not None and not callable(target) and view.found.label != view.asked.label:
                continue
            taken.append(view.asked.label)
            subjects.add([(index, view.asked, view.found.label)])
            boxes = crop_boxes(image.size, crops, rng)
            for one in _views(looker, image, boxes, view, batch_size):
                cells.add(list(_drawn(one, index, rng)))
        tell("images", chunk.stop, len(source))
    _check_enough(seen, taken, target, labels, errors)
    vectors, scores, images_of = zip(*cells.rows, strict=True)
    return Sample(
        np.stack(vectors),
        np.stack(scores),
        np.array(images_of),
        tuple(subjects.rows),
        "" if target is None else taken[0],
        len(taken),
        _notes(errors, len(source)),
    )


def _views(looker: Looker, image: Image.Image, boxes: list[Box], whole: Seen, batch_size: int) -> Iterator[Seen]:
    """What the model sees in the whole image, which is known, and in the crops."""
    yield whole
    for start in range(1, len(boxes), batch_size):
        yield from looker.see([cropped(image, box) for box in boxes[start : start + batch_size]])


def _drawn(seen: Seen, index: int, rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """Rows of a few cells of a view, drawn among those that the image fills."""
    _, *grid = seen.cells.shape
    filled = np.flatnonzero(seen.geometry.filled((grid[0], grid[1])).numpy() > 0)
    cells, scores = seen.cells.reshape(len(seen.cells), -1), seen.scores.astype(np.float16)
    for cell in rng.choice(filled, min(CELLS, len(filled)), replace=False):
        yield cells[:, cell].copy(), scores, index


def _check_enough(seen: int, taken: list[str], target: Any, labels: dict[str, None], errors: list[str]) -> None:
    if seen < 2:
        why = f"; the first that cannot: {errors[0]}" if errors else ""
        raise ImageError(f"concepts take two images that can be read, and {seen} can{why}")
    if len(taken) < 2:
        found = ", ".join(repr(label) for label in list(labels)[:4])
        raise TargetError(
            f"the model finds {target!r} in {len(taken)} of {seen} images, and concepts take two; it finds {found}"
            + (" and others" if len(labels) > 4 else "")
        )


def _notes(errors: list[str], count: int) -> tuple[str, ...]:
    return (f"{len(errors)} of {count} images could not be read; the first: {errors[0]}",) if errors else ()
