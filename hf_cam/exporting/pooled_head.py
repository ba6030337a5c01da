"""Heads that read the mean over all cells: their logits and gradients in closed form, established by a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_cam.capture.capture import Capture, capture
from hf_cam.capture.inputs import picture_size
from hf_cam.models.traits import unwrap
from hf_cam.outputs import class_logits
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.pooled import linear_calls

TOLERANCE = 1e-4
CLASSES = 3
"""Of so many classes, the gradient is compared with autograd's."""


@dataclass(frozen=True)
class PooledHead:
    """`logits = W norm(mean over cells) + b`, with a layer norm or none.

    Args:
        weight: `[K, C]`.
        bias: `[K]`, or None.
        norm: `(scale, shift, epsilon)` of the layer norm; None if there is none.
    """

    weight: Tensor
    bias: Tensor | None
    norm: tuple[Tensor | None, Tensor | None, float] | None = None

    def logits(self, means: Tensor) -> Tensor:
        """`[..., K]` of means over all cells, `[..., C]`."""
        if self.norm is not None:
            scale, shift, epsilon = self.norm
            means = functional.layer_norm(means, means.shape[-1:], scale, shift, epsilon)
        return functional.linear(means, self.weight, self.bias)

    def gradient(self, means: Tensor, index: Tensor) -> Tensor:
        """`[B, C]`: the derivative of one logit per image, `index [B]`, with respect to the means, `[B, C]`.

        Behind a layer norm it is `(g - mean(g) - x mean(g x)) / deviation`, with the row `g` of the weight times the
        scale, and the normalized means `x`.
        """
        row = self.weight[index]
        if self.norm is None:
            return row
        scale, _, epsilon = self.norm
        row = row if scale is None else row * scale
        centred = means - means.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
        normalized = centred / deviation
        along = (row * normalized).mean(-1, keepdim=True)
        return (row - row.mean(-1, keepdim=True) - normalized * along) / deviation


def pooled_head(model: nn.Module, adapter: Adapter, inputs: Mapping[str, Any]) -> PooledHead | None:
    """The head behind the first target layer, if it reads the mean over all cells and nothing else.

    Its logits and gradients agree with those of the model on these inputs.

    Args:
        model: A classifier; it is left unchanged.
        adapter: Where its target layer is.
        inputs: The named inputs of a few images.
    """
    with capture(model, adapter.layers[:1], inputs, storing=(linear_calls,)) as captured:
        calls = captured.watched[linear_calls]
        if not calls:
            return None
        activation = captured.activations[0]
        cells = adapter.spatial(activation, picture_size(inputs), adapter.layers[0], images=len(inputs["pixel_values"]))
        if cells.ndim != 4:
            return None
        last: nn.Linear = calls[-1].module
        for norm in _norms(unwrap(model), cells.shape[1]):
            head = PooledHead(last.weight.detach(), None if last.bias is None else last.bias.detach(), norm)
            if last.weight.shape[1] == cells.shape[1] and _agrees(head, captured, adapter, cells, picture_size(inputs)):
                return head
    return None


def _norms(module: nn.Module, channels: int) -> Iterator[tuple[Tensor | None, Tensor | None, float] | None]:
    """None, and the layer norms over so many channels, the last ones first."""
    yield None
    for child in reversed([*module.modules()]):
        if isinstance(child, nn.LayerNorm) and tuple(child.normalized_shape) == (channels,):
            scale, shift = (None if one is None else one.detach() for one in (child.weight, child.bias))
            yield scale, shift, float(child.eps)


def _agrees(head: PooledHead, captured: Capture, adapter: Adapter, cells: Tensor, size: tuple[int, int]) -> bool:
    """Whether the logits are the model's, and their gradients those of autograd."""
    expected, means = class_logits(captured.outputs), cells.flatten(2).mean(2)
    if not _near(head.logits(means), expected):
        return False
    for index in range(min(CLASSES, expected.shape[1])):
        [gradient] = captured.gradients(expected[:, index].sum())
        spatial = adapter.spatial(gradient, size, adapter.layers[0], images=len(cells))
        own = head.gradient(means, torch.full((len(cells),), index, device=cells.device)) / cells[0, 0].numel()
        if not _near(own[..., None, None].expand_as(spatial), spatial):
            return False
    return True


def _near(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return bool(((found - expected).abs() <= TOLERANCE * scale).all())
