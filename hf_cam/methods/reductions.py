"""How channels become one map: `[B, C, *space] -> [B, *space]`."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_sum(contributions: Tensor) -> Tensor:
    """The sum over channels.

    >>> channel_sum(torch.ones(1, 3, 2, 2)).tolist()
    [[[3.0, 3.0], [3.0, 3.0]]]
    """
    return contributions.sum(1)


def first_component(contributions: Tensor) -> Tensor:
    """Each cell's coordinate on the first principal component of the cells' channel vectors.

    The vectors `[cells, C]` are centred for the decomposition and the uncentred ones projected on it, as the reference
    implementation does. A singular vector's sign is arbitrary; here the strongest cells (by Euclidean norm) are
    positive. The decomposition is that of the smaller Gram matrix, [cells, cells] or [C, C].

    >>> first_component(torch.zeros(1, 3, 2, 2)).abs().max()
    tensor(0.)
    """
    vectors = contributions.flatten(2).transpose(1, 2)
    centred = vectors - vectors.mean(1, keepdim=True)
    if centred.shape[1] < centred.shape[2]:
        direction = centred.mT @ torch.linalg.eigh(centred @ centred.mT).eigenvectors[..., -1:]
    else:
        direction = torch.linalg.eigh(centred.mT @ centred).eigenvectors[..., -1:]
    length = direction.norm(dim=1, keepdim=True)
    direction = direction / torch.where(length > 0, length, torch.ones_like(length))
    projected = (vectors @ direction).squeeze(-1)
    strength = vectors.norm(dim=-1)
    agreement = ((strength - strength.mean(1, keepdim=True)) * projected).sum(1, keepdim=True)
    signed = torch.where(agreement < 0, -projected, projected)
    return signed.reshape(len(signed), *contributions.shape[2:])
