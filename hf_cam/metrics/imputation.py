"""Noisy linear imputation: missing pixels become the weighted mean of their neighbours, plus a little noise.

Every image and mask of a call is a linear system on one grid. On an accelerator all of them are solved at once, by
conjugate gradients with a multigrid cycle as preconditioner. On the CPU a sparse factorisation is faster; the pixels
are ordered by nested dissection once for all of them, which is most of its price elsewhere.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hf_cam.layouts import Size

STEPS = 200
TOLERANCE = 1e-5
LEAF = 32
EDGE, CORNER = 1 / 6, 1 / 12
"""Weights of the four neighbours at an edge and the four at a corner."""


def impute(pixels: Tensor, missing: Tensor, noise: float = 0.01, seed: int = 0) -> Tensor:
    """Fill missing pixels from their surroundings, so that their place carries no information of its own.

    Each missing pixel `x_i` solves `sum_j w_ij (x_i - x_j) = 0` over its eight neighbours, w = 1/6 along an edge and
    1/12 across a corner: Rong et al. (ROAD), arXiv:2202.00449. Where a whole image is missing, its mean stays.

    Args:
        pixels: `[N, C, H, W]`.
        missing: `[N, H, W]` booleans.
        noise: Standard deviation of what is added to missing pixels.
        seed: Of the noise.

    >>> row = torch.tensor([[[[0.0, 9.0, 1.0]]]])
    >>> impute(row, torch.tensor([[[False, True, False]]]), noise=0)
    tensor([[[[0.0000, 0.5000, 1.0000]]]])
    """
    unknown = missing[:, None].to(pixels.dtype)
    means = pixels.mean((-2, -1), keepdim=True)
    known = torch.where(missing[:, None], means, pixels)
    # The solution is looked for as a difference to the mean, which is what stays where nothing is known.
    right = _neighbours((known - means) * (1 - unknown)) * unknown
    solve = factorized if pixels.device.type == "cpu" else iterated
    filled = means + solve(right.float(), unknown.float()).to(pixels)
    if noise:
        generator = torch.Generator().manual_seed(seed)
        filled = filled + noise * torch.randn(pixels.shape[1:], generator=generator).to(pixels)
    return torch.where(missing[:, None], filled, pixels)


def _neighbours(values: Tensor) -> Tensor:
    """The weighted sum over the eight neighbours of each pixel; there is nothing beyond the border."""
    rows = functional.pad(values, (0, 0, 1, 1))
    vertical = rows[..., :-2, :] + 2 * values + rows[..., 2:, :]
    columns = functional.pad(vertical, (1, 1))
    return (columns[..., :-2] + 2 * vertical + columns[..., 2:] - 4 * values) * CORNER


def iterated(right: Tensor, unknown: Tensor) -> Tensor:
    """The `x` with `(D - W) x = right` on unknown pixels and 0 elsewhere, D the sum of each pixel's weights.

    Args:
        right: `[N, C, H, W]`.
        unknown: `[N, 1, H, W]`, ones and zeros.
    """
    levels = _levels(unknown)
    x, residual = torch.zeros_like(right), right
    limit = TOLERANCE * _norm(right)
    direction, before = torch.zeros_like(right), torch.ones_like(limit)
    for _ in range(STEPS):
        improved = _cycle(residual, levels)
        now = _dot(residual, improved)
        direction = improved + now / before * direction
        image = _apply(direction, *levels[0])
        step = now / _positive(_dot(direction, image))
        x, residual, before = x + step * direction, residual - step * image, _positive(now)
        if (_norm(residual) <= limit).all():
            break
    return x


def _levels(unknown: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Unknown pixels and weights' sums on finer to coarser grids; a coarse cell is unknown where all four of it are."""
    levels = []
    while True:
        levels.append((unknown, _neighbours(torch.ones_like(unknown[:1]))))
        height, width = unknown.shape[-2:]
        if min(height, width) < 4:
            return levels
        padded = functional.pad(unknown, (0, width % 2, 0, height % 2), mode="replicate")
        unknown = -functional.max_pool2d(-padded, 2)


def _apply(x: Tensor, unknown: Tensor, weights: Tensor) -> Tensor:
    return (weights * x - _neighbours(x)) * unknown


def _cycle(residual: Tensor, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One symmetric multigrid cycle: smooth, correct on the coarser grid, smooth."""
    unknown, weights = levels[0]
    relaxed = 0.8 * unknown / weights
    x = relaxed * residual
    if len(levels) == 1:
        for _ in range(8):
            x = x + relaxed * (residual - _apply(x, unknown, weights))
        return x
    height, width = residual.shape[-2:]
    left = functional.pad(residual - _apply(x, unknown, weights), (0, width % 2, 0, height % 2))
    coarse = _cycle(4 * functional.avg_pool2d(left, 2) * levels[1][0], levels[1:])
    fine = coarse.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., :height, :width]
    x = x + fine * unknown
    return x + relaxed * (residual - _apply(x, unknown, weights))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1), keepdim=True)


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()


def _positive(values: Tensor) -> Tensor:
    """The values, 1 in place of those that are 0: a system that is solved already."""
    return torch.where(values > 0, values, torch.ones_like(values))


def factorized(right: Tensor, unknown: Tensor) -> Tensor:
    """The same as `iterated`, by a sparse LU factorisation for each mask."""
    found = torch.zeros_like(right)
    weights = _neighbours(torch.ones_like(unknown[:1]))[0, 0].numpy()
    for one, values, mask in zip(found, right, unknown[:, 0].numpy() > 0, strict=True):
        if mask.all():
            continue  # nothing is known: the mean stays
        if mask.any():
            one[:, torch.from_numpy(mask)] = torch.from_numpy(_factorized(values.numpy()[:, mask], mask, weights))
    return found


def _factorized(right: np.ndarray, mask: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`[C, n]` for the n unknown pixels of one mask."""
    from scipy.sparse import csc_matrix
    from scipy.sparse.linalg import splu

    order = np.argsort(_dissection(mask.shape)[mask])
    count = len(order)
    places = np.empty(count, np.int64)
    places[order] = np.arange(count)
    numbers = np.full(mask.shape, -1)
    numbers[mask] = places
    rows, columns, values = [places], [places], [weights[mask]]
    for down, right_by, weight in ((0, 1, EDGE), (1, 0, EDGE), (1, 1, CORNER), (1, -1, CORNER)):
        height, width = mask.shape
        here = numbers[: height - down, max(0, -right_by) : width - max(0, right_by)]
        there = numbers[down:, max(0, right_by) : width - max(0, -right_by)]
        both = (here >= 0) & (there >= 0)
        rows += [here[both], there[both]]
        columns += [there[both], here[both]]
        values += [np.full(2 * both.sum(), -weight)]
    entries = (np.concatenate(values).astype(np.float32), (np.concatenate(rows), np.concatenate(columns)))
    matrix = csc_matrix(entries, shape=(count, count))
    factors = splu(matrix, permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    solution: np.ndarray = factors.solve(np.ascontiguousarray(right.T[order]))[places].T
    return solution


@lru_cache(maxsize=8)
def _dissection(size: Size) -> np.ndarray:
    """Each pixel's place in an order that keeps the factors of a grid sparse: halves first, the line between last."""
    order = np.empty(size, np.int64)
    parts, last = [(0, size[0], 0, size[1])], size[0] * size[1]
    while parts:
        top, bottom, left, right = parts.pop()
        height, width = bottom - top, right - left
        if height * width <= LEAF:
            line = order[top:bottom, left:right]
        elif height >= width:
            middle = (top + bottom) // 2
            line = order[middle : middle + 1, left:right]
            parts += [(top, middle, left, right), (middle + 1, bottom, left, right)]
        else:
            middle = (left + right) // 2
            line = order[top:bottom, middle : middle + 1]
            parts += [(top, bottom, left, middle), (top, bottom, middle + 1, right)]
        last -= line.size
        line[...] = np.arange(last, last + line.size).reshape(line.shape)
    return order
