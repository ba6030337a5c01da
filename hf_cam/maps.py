"""From raw maps to pictures' worth of numbers: normalise, resize, fuse. Pure functions on `[..., h, w]` tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hf_cam.layouts import Size


def normalize(maps: Tensor) -> Tensor:
    """Stretch each map to [0, 1] by its own minimum and maximum; a constant map carries no evidence and becomes zeros.

    Args:
        maps: `[..., h, w]`, finite.

    >>> normalize(torch.tensor([[1.0, 3.0]]))
    tensor([[0., 1.]])
    >>> normalize(torch.full((1, 2), 7.0))
    tensor([[0., 0.]])
    """
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low
    # A span within the rounding error of its ends is a constant map, and stretching it would show noise.
    flat = span <= 8 * torch.finfo(maps.dtype).eps * torch.maximum(high.abs(), low.abs())
    return torch.where(flat, torch.zeros_like(maps), (maps - low) / torch.where(flat, torch.ones_like(span), span))


def resize(maps: Tensor, size: Size) -> Tensor:
    """Bilinear, half-pixel centres (the same as OpenCV's `INTER_LINEAR`): `[..., h, w]` to `[..., *size]`."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    resized = functional.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return resized.reshape(*maps.shape[:-2], *size)


def fuse_mean(layers: Sequence[Tensor], size: Size) -> Tensor:
    """One map in [0, 1] at `size` from the raw maps of one or several layers, `[..., h, w]` each.

    Each is normalised on its own grid (so that no layer drowns another), enlarged and averaged.
    """
    return normalize(torch.stack([resize(normalize(maps), size) for maps in layers]).mean(0))


def fuse_product(layers: Sequence[Tensor], size: Size) -> Tensor:
    """Like `fuse_mean`, but multiplied: what every layer agrees on, as fine as the finest of them."""
    return normalize(torch.stack([resize(normalize(maps), size) for maps in layers]).prod(0))
