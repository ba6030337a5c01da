"""Many variants of an image in batches, as large as the device's memory allows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

AT_ONCE, AT_ONCE_ON_CPU = 64, 4  # on a CPU a large batch leaves the cache, which costs more than it saves


def images_at_once(device: torch.device) -> int:
    """The default number of images per forward."""
    return AT_ONCE_ON_CPU if device.type == "cpu" else AT_ONCE


def in_chunks(count: int, size: int, run: Callable[[int, int], Tensor]) -> Tensor:
    """The concatenated results of `run(start, stop)` over a range; chunks are halved if they do not fit in memory.

    Args:
        count: The length of the range.
        size: The length of a chunk at the beginning.
        run: From a part of the range to one row per member, `[stop - start, ...]`.

    >>> in_chunks(5, 2, lambda start, stop: torch.arange(start, stop))
    tensor([0, 1, 2, 3, 4])
    """
    found, start = [], 0
    while start < count:
        try:
            found.append(run(start, min(start + size, count)))
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            size //= 2
            torch.cuda.empty_cache()
        else:
            start += size
    return torch.cat(found)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device ran out of memory; only CUDA has an exception type of its own for it."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in words or "can't allocate memory" in words
