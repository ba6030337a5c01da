"""Total Sobol indices by Jansen's estimator, and how sure their mean is."""

from __future__ import annotations

import numpy as np
from scipy.stats import qmc

LEVEL = 0.95
RESAMPLED = 1000


def designs(count: int, factors: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two independent designs `[N, k]` in [0, 1], the halves of a scrambled Sobol sequence in `2 k` dimensions.

    Args:
        count: N, a power of two.
        factors: k.
        seed: Seed of the scrambling.

    >>> first, second = designs(4, 3)
    >>> first.shape, second.shape
    ((4, 3), (4, 3))
    """
    points = qmc.Sobol(2 * factors, rng=np.random.default_rng(seed)).random_base2(count.bit_length() - 1)
    return points[:, :factors], points[:, factors:]


def exchanged(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`[k, N, k]`: for each factor, the first design with that factor's column from the second one.

    >>> exchanged(np.zeros((1, 2)), np.ones((1, 2))).tolist()
    [[[1.0, 0.0]], [[0.0, 1.0]]]
    """
    factors = first.shape[1]
    return np.where(np.eye(factors, dtype=bool)[:, None], second, first)


def total_indices(values: np.ndarray, exchanged_values: np.ndarray) -> np.ndarray:
    """The total Sobol index of each factor, `[k]`: the share of the variance that would go if it were known last.

    `S_i = sum_j (f(A)_j - f(A_B^i)_j)^2 / (2 N var f(A))`, Jansen's estimator (Computer Physics Communications 1999);
    zeros where the values do not vary.

    Args:
        values: `[N]`: the function on the first design.
        exchanged_values: `[k, N]`: the function where one column comes from the second design; see `exchanged`.

    >>> first, second = designs(1024, 2)
    >>> def f(x):
    ...     return 2 * x[..., 0] + x[..., 1]
    >>> total_indices(f(first), f(exchanged(first, second))).round(2).tolist()
    [0.8, 0.2]
    """
    variance = float(values.var())
    largest = float(np.abs(values).max(initial=0.0))
    if variance <= (1e-7 * largest) ** 2:  # within the rounding error of float32 outputs
        return np.zeros(len(exchanged_values))
    found: np.ndarray = ((values - exchanged_values) ** 2).mean(1) / (2 * variance)
    return found


def interval(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of the means of `[N, k]` over its rows, `[k]` each: percentiles of the means of resampled rows.

    >>> low, high = interval(np.array([[1.0], [1.0]]))
    >>> low.tolist(), high.tolist()
    ([1.0], [1.0])
    """
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLED, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high
