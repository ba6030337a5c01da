"""The signals and reductions of methods as operations that every runtime has, without a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_cam.exporting.pooled_head import PooledHead
from hf_cam.maps import at_least_float32
from hf_cam.methods.options import picked
from hf_cam.methods.reductions import (
    channel_sum,
    first_component,
    first_component_by_extreme,
    signed,
    signed_by_extreme,
)
from hf_cam.methods.registry import Method, same_target, without_rounding
from hf_cam.methods.reruns import cell_weights
from hf_cam.target_layers.pooled import before_pooling
from hf_cam.target_layers.stages import target_layers

WIDE = 256
"""So many channels count as more than the cells, where the number of cells is open."""
SQUARINGS, STEPS = 20, 4
"""How often the Gram matrix is squared, which leaves its largest component alone, and steps that mend the rounding."""


@dataclass(frozen=True)
class Layer:
    """The output of one target layer, and what follows it.

    Args:
        cells: `[B, C, h, w]`.
        index: `[B]`: the class of each image.
        head: What follows, if it reads the mean over all cells alone.
        exclusive: Whether exactly one class applies to an image.
    """

    cells: Tensor
    index: Tensor
    head: PooledHead | None
    exclusive: bool = True

    @property
    def means(self) -> Tensor:
        """`[B, C]`: over all cells."""
        return self.cells.flatten(2).mean(2)


def activations(layer: Layer) -> Tensor:
    """The output of the layer."""
    return layer.cells


def class_weights(layer: Layer) -> Tensor:
    """`[B, C]`: the row of the class in the linear layer."""
    assert layer.head is not None
    return layer.head.weight[layer.index]


def gradients(layer: Layer) -> Tensor:
    """`[B, C, h, w]`: the derivative of the logit, the same in every cell."""
    assert layer.head is not None
    rows, columns = layer.cells.shape[2:]
    each = layer.head.gradient(layer.means, layer.index) / (rows * columns)
    return each[..., None, None].expand(-1, -1, rows, columns)


def cell_scores(layer: Layer, gaussian: bool = True) -> Tensor:
    """`[B, 1, h, w]`: the class's probability when only one cell is kept, for each cell."""
    assert layer.head is not None
    rows, columns = layer.cells.shape[2:]
    weights = cell_weights((rows, columns), gaussian).to(layer.cells)
    means = weights @ layer.cells.flatten(2).mT / (rows * columns)
    logits = at_least_float32(layer.head.logits(means))
    shares = logits.softmax(-1) if layer.exclusive else logits.sigmoid()
    own = shares.gather(2, layer.index[:, None, None].expand(-1, rows * columns, 1))
    return own.mT.reshape(-1, 1, rows, columns)


SIGNALS: Mapping[str, Callable[..., Tensor]] = {
    "activations": activations,
    "class_weights": class_weights,
    "gradients": gradients,
    "cell_scores": cell_scores,
}


def largest_component(contributions: Tensor) -> tuple[Tensor, Tensor]:
    """The cells' coordinates on the first principal component, of either sign, and their norms, both `[B, cells]`.

    As `hf_cam.methods.reductions.first_component` takes them, but by squaring the Gram matrix in place of a
    decomposition, which ONNX does not have.
    """
    vectors = contributions.flatten(2).mT
    centred = vectors - vectors.mean(1, keepdim=True)
    cells, channels = centred.shape[1:]
    if channels > WIDE if isinstance(cells, torch.SymInt) else cells < channels:
        gram = centred @ centred.mT
        direction = _dominant(gram)
        length = (direction.mT @ gram @ direction).clamp_min(0).sqrt()
        projected = (direction * length).squeeze(-1)
    else:
        projected = (centred @ _dominant(centred.mT @ centred)).squeeze(-1)
    return projected, vectors.norm(dim=-1)


def _dominant(gram: Tensor) -> Tensor:
    """`[B, n, 1]`: the eigenvector of the largest eigenvalue of positive matrices `[B, n, n]`; zeros of a zero one."""
    tiny = torch.finfo(gram.dtype).tiny
    scaled = power = gram / gram.abs().amax((1, 2), keepdim=True).clamp_min(tiny)
    for _ in range(SQUARINGS // 2):
        power = power @ power
        power = power @ power
        power = power / power.abs().amax((1, 2), keepdim=True).clamp_min(tiny)
    longest = power.diagonal(dim1=1, dim2=2).argmax(1)
    vector = power.gather(2, longest[:, None, None].expand(-1, gram.shape[1], 1))
    for _ in range(STEPS):
        vector = scaled @ vector
        vector = vector / vector.norm(dim=1, keepdim=True).clamp_min(tiny)
    return vector


def _first_component(contributions: Tensor) -> Tensor:
    return signed(*largest_component(contributions), contributions)


def _first_by_extreme(contributions: Tensor) -> Tensor:
    return signed_by_extreme(largest_component(contributions)[0], contributions)


REDUCTIONS: Mapping[Callable[..., Tensor], Callable[[Tensor], Tensor]] = {
    channel_sum: channel_sum,
    first_component: _first_component,
    first_component_by_extreme: _first_by_extreme,
}


def is_closed(method: Method) -> bool:
    """Whether all that a method needs has a closed form behind a pooled head.

    Not a method with a seed: an exported model would draw other numbers in each run.
    """
    one_layer = method.layers in (target_layers, before_pooling) and "seed" not in method.options
    known = set(method.needs) <= set(SIGNALS) and method.reduce in REDUCTIONS
    return known and one_layer and method.retarget is same_target


def needs_head(method: Method) -> bool:
    """Whether a method needs more than the activations."""
    return set(method.needs) != {"activations"}


def raw_map(method: Method, layer: Layer, options: Mapping[str, Any]) -> Tensor:
    """`[B, h, w]`, non-negative, as `Method.map` gives it."""
    signals = {name: at_least_float32(SIGNALS[name](layer, **picked(options, SIGNALS[name]))) for name in method.needs}
    contributions = method.contributions(**signals, **picked(options, method.contributions))
    return without_rounding(REDUCTIONS[method.reduce](contributions).clamp_min(0), contributions, layer.cells.dtype)
