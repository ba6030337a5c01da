"""Attention as one forward of an unmodified model computed it: queries, keys, values, weights and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hf_cam.capture.guard import kept
from hf_cam.layouts import Size
from hf_cam.maps import at_least_float32
from hf_cam.threads import cached_property


@dataclass(frozen=True, eq=False)
class Attention:
    """One call of attention, exactly as the model made it; q and k already include rotary positions, biases and norms.

    Args:
        layer: Dotted name of the module that made the call.
        query, key, value: `[B, heads, N, d]`, `[B, heads, M, d]`, `[B, heads, M, d]`.
        output: `[B, heads, N, d]`, the input of the output projection; connected to the graph.
        scale: Factor applied to the products of queries and keys.
        mask: Added to these products, like relative position biases; if boolean, it marks the ones to keep.
        computed: The weights themselves, where the model computes them step by step.
        gradient: Gradient of a target with respect to the output.
    """

    layer: str
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    scale: float = 1.0
    mask: Tensor | None = None
    computed: Tensor | None = None
    gradient: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """`softmax(scale q k^T + mask)`, `[B, heads, N, M]` in float32 or better; recomputed on each access."""
        if self.computed is not None:
            return at_least_float32(kept(self.computed))
        scores: Tensor = (at_least_float32(kept(self.query)) * self.scale) @ at_least_float32(kept(self.key)).mT
        if self.mask is not None:
            mask = kept(self.mask)
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return scores.softmax(-1)

    @property
    def weight_gradients(self) -> Tensor:
        """`dL/dA = (dL/dO) V^T`, `[B, heads, N, M]` in float32 or better; recomputed on each access."""
        return at_least_float32(self.output_gradient) @ at_least_float32(kept(self.value)).mT

    @property
    def output_gradient(self) -> Tensor:
        """`dL/dO`; zeros if the target does not depend on this call."""
        return torch.zeros_like(self.output) if self.gradient is None else self.gradient

    def images(self) -> Iterator[Attention]:
        """The same call, one image at a time, because the weights of one image fit in the CPU cache."""
        batch = len(self.query)

        def cut(tensor: Tensor | None, index: int) -> Tensor | None:
            return tensor if tensor is None or len(tensor) != batch else tensor[index : index + 1]

        for index in range(batch):
            part = slice(index, index + 1)
            yield replace(
                self,
                query=self.query[part],
                key=self.key[part],
                value=self.value[part],
                output=self.output[part],
                mask=self.mask if self.mask is None or self.mask.ndim < 4 else cut(self.mask, index),
                computed=cut(self.computed, index),
                gradient=cut(self.gradient, index),
            )

    @property
    def is_square(self) -> bool:
        """Whether there are as many queries as keys."""
        return self.query.shape[2] == self.key.shape[2]


@dataclass(frozen=True)
class Cells:
    """Which tokens are cells of the picture: `prefix` other tokens precede the grid, and any number may follow it."""

    prefix: int
    grid: Size

    def __call__(self, tokens: Tensor) -> Tensor:
        """`[..., N]` to `[..., h, w]`."""
        rows, columns = self.grid
        return tokens[..., self.prefix : self.prefix + rows * columns].reshape(*tokens.shape[:-1], rows, columns)


@dataclass(frozen=True)
class AttentionTrace:
    """How attention carried the picture to the output, for one target per image.

    Args:
        encoder: Self-attention over the cells, first layer first.
        decoder: Pairs of the queries' self-attention and their cross-attention to the cells.
        pool: The call in which a single query reads the cells, if the model pools by attention.
        cells: Which tokens of the encoder are cells.
    """

    encoder: tuple[Attention, ...]
    decoder: tuple[tuple[Attention, Attention], ...]
    pool: Attention | None
    cells: Cells

    @property
    def calls(self) -> tuple[Attention, ...]:
        """All calls, in the order of the forward."""
        return (*self.encoder, *(call for pair in self.decoder for call in pair), *((self.pool,) if self.pool else ()))

    @property
    def last(self) -> Attention:
        """The call whose output the head reads token by token."""
        return self.calls[-1]

    def with_gradients(self, gradients: Sequence[Tensor | None]) -> AttentionTrace:
        """The same trace with a target's gradient at the output of each call, in the order of `calls`."""
        given = [replace(call, gradient=gradient) for call, gradient in zip(self.calls, gradients, strict=True)]
        first, rest = given[: len(self.encoder)], given[len(self.encoder) :]
        pairs = tuple(zip(rest[0 : 2 * len(self.decoder) : 2], rest[1 : 2 * len(self.decoder) : 2], strict=True))
        return AttentionTrace(tuple(first), pairs, rest[-1] if self.pool else None, self.cells)

    @cached_property
    def readers(self) -> Tensor:
        """`[B, N]`: weights of the rows of the last call that the target reads; they sum to one for each image.

        The gradient shows which these are: the row of the class token, of a detected query or of the pool, or all
        cells equally if the head takes their mean. If the head reads both cells and prefix tokens (DINOv2), only the
        prefix tokens count, because they gather the picture.
        """
        read = self.last.output_gradient.abs().amax((1, 3)) > 0
        if not self.decoder and self.pool is None:
            front = read.clone()
            front[:, self.cells.prefix :] = False
            read = torch.where(front.any(1, keepdim=True), front, read)
        weights = at_least_float32(read.to(self.last.output))
        return weights / weights.sum(1, keepdim=True).clamp_min(1)


@dataclass(frozen=True)
class Readouts:
    """The readouts of the target from each layer of an encoder, made one at a time, when a method asks for them.

    Args:
        layers: Their number.
        read: From a layer's index, and the index of another prompt to read in place of the target if there is one, to
            the attention through which the readout runs, with its gradient there: the layer's own call, or the pool's
            call on its tokens.
        cells: Which of the keys are cells.
    """

    layers: int
    read: Callable[[int, int | None], Attention] = field(repr=False)
    cells: Cells
