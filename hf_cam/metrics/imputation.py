"""Noisy linear imputation: missing pixels become the weighted mean of their neighbours, plus a little noise.

Each image and mask of a call gives a linear system on the same grid. All systems are solved together by conjugate
gradients with a multigrid cycle as preconditioner; on the CPU a few at a time, because data that leave the cache cost
more than the arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

STEPS = 100
TOLERANCE = 1e-5
SWEEPS = 3
COARSEST = 64
"""Largest number of cells of a grid on which the system is inverted directly."""
CPU_VALUES = 2**19
"""Number of pixel values that are solved for together on the CPU."""


def impute(pixels: Tensor, missing: Tensor, noise: float = 0.01, seed: int = 0) -> Tensor:
    """Fill missing pixels from their surroundings, so that their positions carry no information of their own.

    Each missing pixel `x_i` solves `sum_j w_ij (x_i - x_j) = 0` over its eight neighbours, with w = 1/6 along an edge
    and 1/12 across a corner: Rong et al. (ROAD), arXiv:2202.00449. An image that is missing entirely becomes its mean.

    Args:
        pixels: `[N, C, H, W]`.
        missing: `[N, H, W]` booleans.
        noise: Standard deviation of the noise added to missing pixels.
        seed: Seed of the noise.

    >>> row = torch.tensor([[[[0.0, 9.0, 1.0]]]])
    >>> impute(row, torch.tensor([[[False, True, False]]]), noise=0)
    tensor([[[[0.0000, 0.5000, 1.0000]]]])
    """
    unknown = missing[:, None].to(pixels.dtype)
    means = pixels.mean((-2, -1), keepdim=True)
    known = torch.where(missing[:, None], means, pixels)
    # Solving for the difference from the mean leaves the mean where nothing is known.
    right = _around((known - means) * (1 - unknown)) * unknown
    filled = means + solve(right.float(), unknown.float()).to(pixels)
    if noise:
        generator = torch.Generator().manual_seed(seed)
        filled = filled + noise * torch.randn(pixels.shape[1:], generator=generator).to(pixels)
    return torch.where(missing[:, None], filled, pixels)


def solve(right: Tensor, unknown: Tensor) -> Tensor:
    """The `x` with `(D - W) x = right` on unknown pixels and 0 elsewhere, where D is the sum of each pixel's weights.

    The residual falls to `TOLERANCE` of the right side's norm; where nothing is known, both `right` and `x` are 0.

    Args:
        right: `[N, C, H, W]`, 0 on known pixels; in units of 1/12, so that an edge weighs 2 and a corner 1.
        unknown: `[N, 1, H, W]`, ones and zeros.
    """
    some = len(right) if right.device.type != "cpu" else max(1, CPU_VALUES // right[0].numel())
    parts = zip(right.split(some), unknown.split(some), strict=True)
    return torch.cat([_solved(*part) for part in parts]) if len(right) else right


def _around(values: Tensor) -> Tensor:
    """Twice the sum of the four neighbours at edges plus the sum of the four at corners; 0 beyond the border."""
    padded = functional.pad(values, (1, 1, 1, 1))
    columns = (padded[..., :-2, :] + padded[..., 2:, :]).add_(padded[..., 1:-1, :], alpha=2)
    found = (columns[..., :-2] + columns[..., 2:]).add_(columns[..., 1:-1], alpha=2)
    return found.sub_(values, alpha=4)


def _solved(right: Tensor, unknown: Tensor) -> Tensor:
    """Conjugate gradients, starting from 0. All buffers are local, so they are reused in place."""
    levels = _levels(unknown)
    weights = _weights(unknown)
    x, residual = torch.zeros_like(right), right.clone()
    limit = TOLERANCE * _norm(right)
    direction, before = torch.zeros_like(right), torch.ones_like(limit)
    for _ in range(STEPS):
        improved = _cycle(residual, levels)
        now = _dot(residual, improved)
        direction = direction.mul_(now / before).add_(improved)
        image = (weights * direction).sub_(_around(direction)).mul_(unknown)
        step = now / _positive(_dot(direction, image))
        x.addcmul_(step, direction)
        residual.addcmul_(step, image, value=-1)
        before = _positive(now)
        if (_norm(residual) <= limit).all():
            break
    return x


def _weights(unknown: Tensor) -> Tensor:
    """The sum of each pixel's weights, `[1, 1, H, W]`: 12 except at the border."""
    return _around(torch.ones_like(unknown[:1]))


def _levels(unknown: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The unknown cells of each grid, finest first, and the inverse that solves for them.

    A coarse cell is unknown if all four of its finer cells are. The inverse is taken of each cell's weights,
    `[N, 1, H, W]`, and on the coarsest grid of the whole system, `[N, H W, H W]`.
    """
    levels = []
    while unknown[0].numel() > COARSEST:
        levels.append((unknown, unknown / _weights(unknown)))
        height, width = unknown.shape[-2:]
        padded = functional.pad(unknown, (0, width % 2, 0, height % 2), mode="replicate")
        unknown = -functional.max_pool2d(-padded, 2)
    return [*levels, (unknown, _inverse(unknown))]


def _inverse(unknown: Tensor) -> Tensor:
    cells = unknown[0].numel()
    each = torch.eye(cells).to(unknown).reshape(cells, 1, *unknown.shape[-2:])
    system = (_weights(unknown) * each - _around(each)).reshape(cells, cells)
    own = unknown.reshape(-1, cells)
    both = own[:, :, None] * own[:, None]
    # Without a known cell, the system does not determine the mean; a small value on the diagonal does.
    inverse: Tensor = torch.linalg.inv(system * both + torch.diag_embed(1 - own + 1e-4))
    return inverse * both


def _cycle(residual: Tensor, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One symmetric multigrid cycle: smooth, correct on the coarser grid, smooth.

    A sweep sets each unknown cell to the mean of its neighbours. For these weights this is the best Jacobi smoother:
    the eigenvalues of the fast modes lie between 2/3 and 4/3.
    """
    unknown, inverse = levels[0]
    if len(levels) == 1:
        return (residual.flatten(2) @ inverse).view_as(residual)
    x = inverse * residual
    for _ in range(SWEEPS - 1):
        x = _around(x).add_(residual).mul_(inverse)
    left = _around(x).add_(residual).sub_(_weights(unknown) * x).mul_(unknown)
    coarse = _cycle(_halved(left) * levels[1][0], levels[1:])
    height, width = residual.shape[-2:]
    x.addcmul_(coarse.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., :height, :width], unknown)
    for _ in range(SWEEPS):
        x = _around(x).add_(residual).mul_(inverse)
    return x


def _halved(values: Tensor) -> Tensor:
    """Sums of 2 x 2 cells."""
    height, width = values.shape[-2:]
    padded = functional.pad(values, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else values
    rows = padded[..., 0::2, :] + padded[..., 1::2, :]
    return rows[..., 0::2] + rows[..., 1::2]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1), keepdim=True)


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()


def _positive(values: Tensor) -> Tensor:
    """The values, with 0 replaced by 1; a system that is already solved gives 0."""
    return torch.where(values > 0, values, torch.ones_like(values))
