"""Many runs of a model, as many at once as the device's memory holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

AT_ONCE, AT_ONCE_ON_CPU = 64, 4  # processors lose more by leaving their caches than they win by a large batch


def images_at_once(device: torch.device) -> int:
    """How many images a forward takes where nobody says."""
    return AT_ONCE_ON_CPU if device.type == "cpu" else AT_ONCE


def in_chunks(count: int, size: int, run: Callable[[int, int], Tensor]) -> Tensor:
    """`run(start, stop)` over a range, put together again; chunks are halved where the memory does not hold them.

    Args:
        count: The length of the range.
        size: That of a chunk, to begin with.
        run: From a part of the range to one row for each of its members, `[stop - start, ...]`.

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
    """Whether a device ran out of memory: only CUDA has an exception of its own for it."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in words or "can't allocate memory" in words
