"""Normalize, resize and fuse raw maps: pure functions on tensors `[..., h, w]`, or `[..., d, h, w]` for volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

MODES = {2: "bilinear", 3: "trilinear"}


def at_least_float32(tensor: Tensor) -> Tensor:
    """The same values in float32, or in float64 if they are already, for sums that 16 bits cannot hold.

    >>> at_least_float32(torch.ones(2, dtype=torch.float16)).dtype
    torch.float32
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def normalize(maps: Tensor, sides: int = 2) -> Tensor:
    """Scale each map to [0, 1] by its own minimum and maximum; a constant map carries no evidence and becomes zeros.

    Args:
        maps: `[..., h, w]`, finite.
        sides: Number of spatial axes, which come last.

    >>> normalize(torch.tensor([[1.0, 3.0]]))
    tensor([[0., 1.]])
    >>> normalize(torch.full((1, 2), 7.0))
    tensor([[0., 0.]])
    """
    space = tuple(range(-sides, 0))
    low, high = maps.amin(space, keepdim=True), maps.amax(space, keepdim=True)
    span = high - low
    # If the span is within rounding error, the map is constant, and scaling it would only show noise.
    flat = span <= 8 * torch.finfo(maps.dtype).eps * torch.maximum(high.abs(), low.abs())
    return (maps - low) / torch.where(flat, torch.full_like(span, torch.inf), span)


def normalize_signed(maps: Tensor, sides: int = 2) -> Tensor:
    """Scale each map to [-1, 1] by its largest absolute value; zero stays zero.

    Args:
        maps: `[..., h, w]`, finite.
        sides: Number of spatial axes, which come last.

    >>> normalize_signed(torch.tensor([[-4.0, 0.0, 2.0]])).tolist()
    [[-1.0, 0.0, 0.5]]
    """
    peak = maps.abs().amax(tuple(range(-sides, 0)), keepdim=True)
    return maps / torch.where(peak > 0, peak, torch.ones_like(peak))


def in_boxes(maps: Tensor, boxes: Sequence[Sequence[float]]) -> Tensor:
    """Each map stretched to [0, 1] inside each box for itself, and 0 outside; where boxes overlap, the larger value.

    Args:
        maps: `[..., H, W]`, finite.
        boxes: `(x0, y0, x1, y1)` in pixels; a pixel that a box only touches belongs to it.

    >>> in_boxes(torch.tensor([[0.0, 0.2, 0.4, 9.0]]), [(1, 0, 3, 1)])
    tensor([[0., 0., 1., 0.]])
    """
    found = torch.zeros_like(maps)
    for x0, y0, x1, y1 in boxes:
        rows, columns = slice(max(0, math.floor(y0)), math.ceil(y1)), slice(max(0, math.floor(x0)), math.ceil(x1))
        inside = maps[..., rows, columns]
        if inside.numel():
            found[..., rows, columns] = torch.maximum(found[..., rows, columns], normalize(inside))
    return found


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps `[..., h, w]` to `[..., *size]`, linearly with half-pixel centres (OpenCV's `INTER_LINEAR`)."""
    space = len(size)
    flat = maps.reshape(-1, 1, *maps.shape[-space:])
    resized = functional.interpolate(flat, size=tuple(size), mode=MODES[space], align_corners=False)
    return resized.reshape(*maps.shape[:-space], *size)


def fuse_mean(layers: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """One map in [0, 1] at `size` from the raw maps of one or several layers, `[..., h, w]` each.

    Each is normalized on its own grid (so that no layer outweighs another), enlarged and averaged.
    """
    if len(layers) == 1:
        return normalize(resize(normalize(layers[0], len(size)), size), len(size))
    return normalize(_enlarged(layers, size).mean(0), len(size))


def fuse_product(layers: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Like `fuse_mean`, but the product: what all layers agree on, with the resolution of the finest.

    Maps are normalized again after enlarging, so that each factor reaches 0 somewhere.
    """
    return normalize(normalize(_enlarged(layers, size), len(size)).prod(0), len(size))


def fuse_signed(layers: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Like `fuse_mean`, but one map in [-1, 1], each layer scaled by its largest absolute value."""
    enlarged = [resize(normalize_signed(maps, len(size)), size) for maps in layers]
    return normalize_signed(torch.stack(enlarged).mean(0), len(size))


def _enlarged(layers: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    return torch.stack([resize(normalize(maps, len(size)), size) for maps in layers])
