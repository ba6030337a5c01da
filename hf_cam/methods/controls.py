"""What the attention methods can be told: which heads, layers and queries count, and how heads become one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from hf_cam.capture.attention import Attention, AttentionTrace
from hf_cam.errors import OptionError, brief
from hf_cam.maps import at_least_float32

Item = TypeVar("Item")
Fusion = Literal["mean", "max", "min"]
Chosen = int | Sequence[int] | None
"""One or several of them by number; None for all."""

FUSIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda heads: heads.mean(1),
    "max": lambda heads: heads.amax(1),
    "min": lambda heads: heads.amin(1),
}


@dataclass(frozen=True)
class Heads:
    """How the heads of a call of attention become one matrix.

    Args:
        head: The heads that count.
        fusion: Their mean, or the largest or smallest value of each entry.
        discard_ratio: The share of the entries of the fused matrix, its smallest, that are set to zero.

    Raises:
        OptionError: a setting is out of range.

    >>> two = torch.tensor([[[[1.0, 4.0]], [[3.0, 2.0]]]])
    >>> Heads()(two).tolist(), Heads(1)(two).tolist(), Heads(fusion="max", discard_ratio=0.5)(two).tolist()
    ([[[2.0, 3.0]]], [[[3.0, 2.0]]], [[[0.0, 4.0]]])
    """

    head: Chosen = None
    fusion: Fusion = "mean"
    discard_ratio: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that fit no model."""
        if self.fusion not in FUSIONS:
            raise OptionError(f"head_fusion must be 'mean', 'max' or 'min', got {brief(self.fusion)}")
        if not 0 <= self.discard_ratio < 1:
            raise OptionError(f"discard_ratio must lie in [0, 1), got {brief(self.discard_ratio)}")

    def __call__(self, heads: Tensor) -> Tensor:
        """`[B, heads, N, M] -> [B, N, M]`."""
        matrix = FUSIONS[self.fusion](self.of(heads))
        gone = int(self.discard_ratio * matrix[0].numel())
        smallest = matrix.flatten(1).topk(gone, largest=False).indices
        return matrix.flatten(1).scatter(1, smallest, 0).reshape(matrix.shape) if gone else matrix

    def of(self, heads: Tensor) -> Tensor:
        """Those of `[B, heads, N, M]` that count.

        Raises:
            OptionError: the call has no such head.
        """
        if self.head is None:
            return heads
        count, wanted = heads.shape[1], [self.head] if isinstance(self.head, int) else list(self.head)
        if not wanted or not all(0 <= one < count for one in wanted):
            raise OptionError(f"head must name some of the heads 0 to {count - 1}, got {brief(self.head)}")
        return heads[:, wanted]


def in_range(calls: Sequence[Item], start_layer: int, end_layer: int | None) -> Sequence[Item]:
    """The layers from one to another, which is left out, as in a slice.

    Raises:
        OptionError: there is none.
    """
    found = calls[start_layer:end_layer]
    if not found:
        raise OptionError(
            f"no layer lies between start_layer={start_layer} and end_layer={end_layer}; there are {len(calls)}"
        )
    return found


def rows_read(trace: AttentionTrace, query: Chosen, call: Attention | None = None) -> Tensor:
    """`[B, N]`: the weights of the rows of a call that are read; they sum to one for each image.

    Args:
        trace: The trace.
        query: The number of one row, or `(row, column)` of a cell; None for the rows that the target reads.
        call: The call; the last one where not given.

    Raises:
        OptionError: the call has no such row, or none that the target reads token by token.
    """
    read = trace.last if call is None else call
    count = read.query.shape[2]
    if query is not None:
        found = torch.zeros(len(read.query), count, device=read.query.device)
        found[:, _row(trace, read, query)] = 1
        return found.to(at_least_float32(read.output).dtype)
    if trace.readers.shape[1] != count:
        raise OptionError(
            f"the target does not read the {count} tokens of {read.layer!r} one by one; name one of them as query="
        )
    return trace.readers


def _row(trace: AttentionTrace, read: Attention, query: int | Sequence[int]) -> int:
    count = read.query.shape[2]
    if isinstance(query, int):
        if not 0 <= query < count:
            raise OptionError(f"query must be one of the tokens 0 to {count - 1} of {read.layer!r}, got {query}")
        return query
    if not any(read is one for one in trace.encoder):
        raise OptionError(f"the queries of {read.layer!r} are no cells; name one of them by its number")
    rows, columns = trace.cells.grid
    if len(query) != 2 or not (0 <= query[0] < rows and 0 <= query[1] < columns):
        raise OptionError(f"query must be (row, column) of a cell of the {rows} x {columns} grid, got {brief(query)}")
    return trace.cells.prefix + query[0] * columns + query[1]
