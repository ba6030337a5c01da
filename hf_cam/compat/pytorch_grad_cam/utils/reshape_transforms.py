"""grad-cam's functions that give activations two axes of space; hf-cam infers them where none is given."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional


def fasterrcnn_reshape_transform(x: Mapping[str, Tensor]) -> Tensor:
    """The absolute activations of a pyramid's levels on the grid of the level "pool", side by side."""
    size = x["pool"].shape[-2:]
    return torch.cat([functional.interpolate(level.abs(), size, mode="bilinear") for level in x.values()], 1)


def swinT_reshape_transform(tensor: Tensor, height: int = 7, width: int = 7) -> Tensor:  # noqa: N802 - grad-cam's name
    """Tokens `[B, height * width, C]` as `[B, C, height, width]`.

    >>> swinT_reshape_transform(torch.zeros(2, 12, 8), 3, 4).shape
    torch.Size([2, 8, 3, 4])
    """
    return tensor.reshape(len(tensor), height, width, tensor.shape[-1]).permute(0, 3, 1, 2)


def vit_reshape_transform(tensor: Tensor, height: int = 14, width: int = 14) -> Tensor:
    """Tokens `[B, 1 + height * width, C]` as `[B, C, height, width]`, without the first."""
    return swinT_reshape_transform(tensor[:, 1:], height, width)
