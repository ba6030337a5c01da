"""Reductions of channels to one map: `[B, C, *space] -> [B, *space]`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ROUNDING = 1e-6  # of float32 sums, relative
EVEN = 0.01
"""Relative deviation up to which cells are equally strong: bfloat16 leaves less of it behind a LayerNorm."""
FEW_CELLS = 8
"""Up to this many cells, ARPACK finds no component."""


def channel_sum(contributions: Tensor) -> Tensor:
    """The sum over channels.

    >>> channel_sum(torch.ones(1, 3, 2, 2)).tolist()
    [[[3.0, 3.0], [3.0, 3.0]]]
    """
    return contributions.sum(1)


def strongest(contributions: Tensor) -> Tensor:
    """The largest absolute value over channels.

    >>> strongest(torch.tensor([[[[1.0]], [[-2.0]]]])).tolist()
    [[[2.0]]]
    """
    return contributions.abs().amax(1)


def first_component(contributions: Tensor) -> Tensor:
    """Each cell's coordinate on the first principal component of the cells' channel vectors.

    The vectors `[cells, C]` are centred, as in the reference implementation. A singular vector's sign is arbitrary;
    here the strongest cells (by Euclidean norm before centring) are positive or, if all are equally strong, the few
    that stand out. The smaller Gram matrix is decomposed, `[cells, cells]` or `[C, C]`.

    >>> first_component(torch.zeros(1, 3, 2, 2)).abs().max()
    tensor(0.)
    """
    return signed(*_principal(contributions), contributions)


def first_component_by_extreme(contributions: Tensor) -> Tensor:
    """`first_component` with the sign that makes its larger extreme positive (Seg-Eigen-CAM, eq. 13)."""
    return signed_by_extreme(_principal(contributions)[0], contributions)


def signed(projected: Tensor, strength: Tensor, contributions: Tensor) -> Tensor:
    """Coordinates `[B, cells]` of either sign as `[B, *space]`, with the sign of `first_component`.

    Args:
        projected: The coordinates.
        strength: `[B, cells]`: the norms of the cells' vectors.
        contributions: `[B, C, *space]`, whose shape is taken.
    """
    return _turned(projected, _is_upside_down(projected, strength), contributions)


def signed_by_extreme(projected: Tensor, contributions: Tensor) -> Tensor:
    """Coordinates of either sign as `[B, *space]`, with the sign that makes the larger extreme positive."""
    return _turned(projected, (projected.amax(1) < -projected.amin(1))[:, None], contributions)


def first_kernel_component(contributions: Tensor, kernel: str = "sigmoid", gamma: float | None = None) -> Tensor:
    """The first component of scikit-learn's `KernelPCA` of the cells' centred channel vectors, for each image.

    A kernel's coordinates have no unit, so they are scaled to the norm of the cells' own vectors.

    Args:
        contributions: `[B, C, *space]`.
        kernel: "linear", "poly", "rbf", "sigmoid" or "cosine".
        gamma: Coefficient of the kernel; 1 / C by default.
    """
    from sklearn.decomposition import KernelPCA

    vectors = contributions.flatten(2).transpose(1, 2)
    centred = (vectors - vectors.mean(1, keepdim=True)).detach().double().cpu().numpy()
    centred[np.abs(centred) <= ROUNDING * float(vectors.detach().abs().max())] = (
        0  # cells that are all alike have no direction
    )
    found = []
    for cells in centred:
        # ARPACK computes one component without the others; the seed fixes the vector that it starts from.
        solver = "arpack" if len(cells) > FEW_CELLS else "dense"
        analysis = KernelPCA(n_components=1, kernel=kernel, gamma=gamma, eigen_solver=solver, random_state=0)
        found.append(analysis.fit_transform(cells)[:, 0] if cells.any() else np.zeros(len(cells)))
    projected = torch.from_numpy(np.stack(found))
    lengths = torch.from_numpy(np.linalg.norm(centred, axis=(1, 2)))
    scale = lengths / projected.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    projected = (projected * scale[:, None]).to(contributions)
    return signed(projected, vectors.norm(dim=-1), contributions)


def _principal(contributions: Tensor) -> tuple[Tensor, Tensor]:
    """The cells' coordinates on the first principal component, of either sign, and their norms, both `[B, cells]`."""
    vectors = contributions.flatten(2).transpose(1, 2)
    centred = vectors - vectors.mean(1, keepdim=True)
    if centred.shape[1] < centred.shape[2]:
        value, vector = first_eigenpair(centred @ centred.mT)
        length = torch.where(value > 0, value.clamp_min(torch.finfo(value.dtype).tiny).sqrt(), 0)
        projected = vector * length
    else:
        _, vector = first_eigenpair(centred.mT @ centred)
        projected = (centred @ vector[..., None]).squeeze(-1)
    return projected, vectors.norm(dim=-1)


def first_eigenpair(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue `[B, 1]` and its eigenvector `[B, n]` of symmetric matrices `[B, n, n]`.

    They can be differentiated once, by first-order perturbation theory: torch's own derivative of `eigh` is NaN where
    any two of the other eigenvalues are equal.

    >>> value, vector = first_eigenpair(torch.diag(torch.tensor([1.0, 3.0, 1.0]))[None])
    >>> value.tolist(), vector.abs().tolist()
    ([[3.0]], [[0.0, 1.0, 0.0]])
    """
    values, vectors = torch.linalg.eigh(matrix.detach())
    value, vector, others = values[..., -1:], vectors[..., -1], vectors[..., :-1]
    if not matrix.requires_grad:
        return value, vector
    image = (matrix @ vector[..., None]).squeeze(-1)
    gaps = value - values[..., :-1]
    distinct = gaps > ROUNDING * value.abs()
    inverse = torch.where(distinct, 1 / torch.where(distinct, gaps, torch.ones_like(gaps)), torch.zeros_like(gaps))
    turned = (others @ (inverse[..., None] * (others.mT @ image[..., None]))).squeeze(-1)
    return (image * vector).sum(-1, keepdim=True), vector + turned - turned.detach()


def _turned(projected: Tensor, upside_down: Tensor, contributions: Tensor) -> Tensor:
    return torch.where(upside_down, -projected, projected).reshape(-1, *contributions.shape[2:])


def _is_upside_down(projected: Tensor, strength: Tensor) -> Tensor:
    """`[B, 1]`: whether the weak cells of `[B, cells]` are positive or, if all are equally strong, the majority."""
    mean = strength.mean(1, keepdim=True)
    differs = (strength - mean).norm(dim=1) > EVEN * strength.norm(dim=1)
    agreement = torch.nn.functional.cosine_similarity(strength - mean, projected, dim=1, eps=0).nan_to_num()
    # Behind a LayerNorm all cells are equally strong; the cells that stand out are then the minority.
    skewness = projected.pow(3).sum(1)
    return torch.where(differs & (agreement.abs() > 0.2), agreement, skewness).lt(0)[:, None]
