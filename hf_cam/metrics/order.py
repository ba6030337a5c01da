"""The order of the pixels by decreasing relevance, in which they are removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ranks(maps: Tensor, seed: int = 0) -> Tensor:
    """The place of each pixel in the order of decreasing relevance, `[..., H, W]` in 0 ... H W - 1.

    Pixels of equal value are ordered at random, reproducibly for each seed, because a map must not gain from the
    positions of pixels that it does not distinguish.

    >>> ranks(torch.tensor([[0.1, 0.9], [0.5, 0.2]]))
    tensor([[3, 0],
            [1, 2]])
    """
    flat = maps.reshape(-1, maps.shape[-2] * maps.shape[-1])
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(flat.shape[1], generator=generator).to(maps.device)
    order = shuffled[flat[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    places = torch.empty_like(order)
    places.scatter_(1, order, torch.arange(flat.shape[1], device=maps.device).expand_as(order).contiguous())
    return places.reshape(maps.shape)


def kept_above(percentiles: Sequence[float], pixels: int) -> list[int]:
    """How many pixels lie below each percentile; the others are imputed.

    >>> kept_above([20, 80], pixels=101)
    [20, 80]
    """
    positions = [percentile / 100 * (pixels - 1) for percentile in percentiles]
    return [
        int(-(-position // 1)) if abs(position - round(position)) > 1e-6 else round(position) for position in positions
    ]
