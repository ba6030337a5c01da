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

    The vectors `[cells, C]` are centred, as in the reference implementation. A singular vector's sign is arbitrary;
    here the strongest cells (by Euclidean norm, before centring) are positive, or the few where all are equally strong.
    The decomposition is that of the smaller Gram matrix, [cells, cells] or [C, C].

    >>> first_component(torch.zeros(1, 3, 2, 2)).abs().max()
    tensor(0.)
    """
    vectors = contributions.flatten(2).transpose(1, 2)
    centred = vectors - vectors.mean(1, keepdim=True)
    if centred.shape[1] < centred.shape[2]:
        values, bases = torch.linalg.eigh(centred @ centred.mT)
        projected = bases[..., -1] * values[..., -1:].clamp_min(0).sqrt()
    else:
        projected = (centred @ torch.linalg.eigh(centred.mT @ centred).eigenvectors[..., -1:]).squeeze(-1)
    signed = torch.where(_is_upside_down(projected, vectors.norm(dim=-1)), -projected, projected)
    return signed.reshape(len(signed), *contributions.shape[2:])


def _is_upside_down(projected: Tensor, strength: Tensor) -> Tensor:
    """`[B, 1]`: whether the weak cells are positive in `[B, cells]`, or the many where all are equally strong."""
    strength = strength - strength.mean(1, keepdim=True)
    agreement = torch.nn.functional.cosine_similarity(strength, projected, dim=1, eps=0).nan_to_num()
    # Behind a LayerNorm all cells are equally strong; what stands out is then what few cells share.
    skewness = projected.pow(3).sum(1)
    return torch.where(agreement.abs() > 0.2, agreement, skewness).lt(0)[:, None]
