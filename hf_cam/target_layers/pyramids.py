"""Sequences of tokens that hold several scales one after the other, as encoders with deformable attention return."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from hf_cam.errors import LayoutError
from hf_cam.layouts import Size, one_each


@dataclass(frozen=True)
class Level:
    """One scale of a sequence `[B, sum of h * w, C]` that holds several, each in raster order.

    The number of tokens must be that of all scales, so that a picture of another size, or another sequence, is never
    cut at the wrong places.

    Args:
        strides: Of every scale, in pixels of the model's input and in the order of the sequence; all scales round the
            same way, up or down.
        index: Which scale.

    >>> import torch
    >>> Level((8, 16, 32), 1).to_spatial(torch.zeros(2, 96 + 24 + 6, 16), image_size=(64, 96)).shape
    torch.Size([2, 16, 4, 6])
    """

    strides: tuple[int, ...]
    index: int

    def __post_init__(self) -> None:
        """Refuse strides that are none, and a level that is not among them."""
        if not self.strides or any(stride < 1 for stride in self.strides) or not 0 <= self.index < len(self.strides):
            raise LayoutError(f"a level needs the strides of all levels and its own index, got {self}")

    def sizes(self, tokens: int, image_size: Size) -> list[Size]:
        """Rows and columns of every scale in a sequence of so many tokens, for an input of `image_size`.

        Raises:
            LayoutError: the scales of that input have another number of cells.
        """
        counts = []
        for rounded in (math.ceil, math.floor):
            sizes = [(rounded(image_size[0] / stride), rounded(image_size[1] / stride)) for stride in self.strides]
            counts.append(sum(rows * columns for rows, columns in sizes))
            if counts[-1] == tokens:
                return sizes
        raise LayoutError(
            f"{tokens} tokens are not the {' or '.join(map(str, dict.fromkeys(counts)))} cells of scales with the "
            f"strides {', '.join(map(str, self.strides))} for a {image_size[0]} x {image_size[1]} input"
        )

    def span(self, tokens: int, image_size: Size) -> slice:
        """Where the scale's tokens stand in the sequence.

        Raises:
            LayoutError: see `sizes`.
        """
        cells = [rows * columns for rows, columns in self.sizes(tokens, image_size)]
        return slice(sum(cells[: self.index]), sum(cells[: self.index + 1]))

    def to_spatial(self, activations: Tensor, image_size: Size, images: int | None = None) -> Tensor:
        """The scale as `[B, C, h, w]`, cut from the whole sequence `[B, sum of h * w, C]`; a view where possible.

        Raises:
            LayoutError: the shape does not fit, or there is not one sequence per image.
        """
        if activations.ndim != 3:
            raise LayoutError(f"expected a sequence [B, tokens, C] of several scales, got {tuple(activations.shape)}")
        tokens = activations.shape[1]
        rows, columns = self.sizes(tokens, image_size)[self.index]
        cells = activations[:, self.span(tokens, image_size)]
        return one_each(cells.transpose(1, 2).unflatten(2, (rows, columns)), images)


def strides_of(sizes: Sequence[Size], image_size: Size) -> tuple[int, ...] | None:
    """The strides with which an input of this size is cut into scales of these sizes; None if there are none.

    Of several strides that fit, one that divides the input without rest is taken, else a power of two, else the least.

    >>> strides_of([(13, 19), (7, 10)], image_size=(100, 150))
    (8, 16)
    >>> strides_of([(10, 13)], image_size=(100, 150)) is None
    True
    """
    for rounded in (math.ceil, math.floor):
        found = [_stride(size, image_size, rounded) for size in sizes]
        if None not in found:
            return tuple(stride for stride in found if stride is not None)
    return None


def _stride(size: Size, image_size: Size, rounded: Callable[[float], int]) -> int | None:
    longest = max(image_size) + 1
    fitting = [
        stride
        for stride in range(1, longest)
        if (rounded(image_size[0] / stride), rounded(image_size[1] / stride)) == size
    ]
    exact = [stride for stride in fitting if image_size == (size[0] * stride, size[1] * stride)]
    powers = [stride for stride in fitting if stride & (stride - 1) == 0]
    return next(iter((*exact, *powers, *fitting)), None)
