"""The local engine: rows in memory, while the pictures of the next batches are decoded in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from hf_cam.data.explain import Explain
from hf_cam.data.rows import Row
from hf_cam.data.sources import ASKED, Source
from hf_cam.errors import HFCamError
from hf_cam.models.loading import Picture

AHEAD = 2
"""Batches of pictures that are decoded ahead of the model."""

Waiting = tuple[int, dict[str, Any], Future[Any]]
"""The index of an image, what is asked of it, and its picture."""


def explained_rows(source: Source, indices: Iterable[int], explain: Explain) -> Iterator[Row]:
    """Rows of these images in order, in memory, with their names as "path".

    Args:
        source: From `hf_cam.data.sources.source_of`.
        indices: Of the images.
        explain: What explains them.

    >>> from hf_cam.data.sources import source_of
    >>> from sklearn.datasets import load_sample_image
    >>> [row] = explained_rows(source_of([load_sample_image("flower.jpg")]), [0], Explain("demo:imagenet"))
    >>> row["path"], row["map"].size, row["geometry"]["image_size"]
    ('00000000', 49, [427, 640])
    """
    return (row for row, _ in explained(source, indices, explain))


def explained(
    source: Source, indices: Iterable[int], explain: Explain
) -> Generator[tuple[Row, Picture | HFCamError], None, None]:
    """Like `explained_rows`, with each row its picture, or the error in its place."""
    explain.load()
    size, waiting = explain.batch_size, deque[Waiting]()
    with ThreadPoolExecutor(min(size, max(1, (os.cpu_count() or 2) - 1))) as pool:
        try:
            for index in indices:
                entry = source.at(index)
                waiting.append((index, entry, pool.submit(explain.opened, entry.pop("image"))))
                if len(waiting) >= (AHEAD + 1) * size:
                    yield from _batch(source, explain, [waiting.popleft() for _ in range(size)])
            while waiting:
                yield from _batch(source, explain, [waiting.popleft() for _ in range(min(size, len(waiting)))])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _batch(source: Source, explain: Explain, members: Sequence[Waiting]) -> Iterator[tuple[Row, Picture | HFCamError]]:
    pictures = [picture.result() for _, _, picture in members]
    asked = {
        name: [entry.get(name) for _, entry, _ in members]
        for name in ASKED
        if any(entry.get(name) is not None for _, entry, _ in members)
    }
    rows = explain.rows(pictures, asked.get("target"), asked.get("text"))
    for (index, _, _), row, picture in zip(members, rows, pictures, strict=True):
        yield {"path": source.key(index), **row}, picture
