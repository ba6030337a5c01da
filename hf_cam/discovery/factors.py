"""Non-negative factorization of vectors that may be signed: a basis of concepts, and how much of each is where."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import nnls

from hf_cam.errors import OptionError

PASSES, CHANGE = 1000, 1e-3
"""How long the factorization goes on at most, and the change of its error at which it stops."""


@dataclass(frozen=True, eq=False)
class Basis:
    """The concepts as directions of a layer's channels.

    Args:
        parts: `[k, C]`, non-negative; or `[k, 2 C]` for signed activations, whose negative halves follow the positive
            ones. The rows have length 1.
        signed: Whether they do.
    """

    parts: np.ndarray = field(repr=False)
    signed: bool

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def vectors(self) -> np.ndarray:
        """`[k, C]`: what one unit of each concept adds to the activations of a cell."""
        if not self.signed:
            return self.parts
        positive, negative = np.split(self.parts, 2, axis=1)
        difference: np.ndarray = positive - negative
        return difference

    def coefficients(self, cells: np.ndarray) -> np.ndarray:
        """`[N, k]`, non-negative: how much of each concept lies in cells `[N, C]`; the exact least-squares solution."""
        orthogonal, triangular = np.linalg.qr(self.parts.T.astype(np.float64))
        return np.stack([nnls(triangular, cell)[0] for cell in halves(cells, self.signed) @ orthogonal])


def halves(cells: np.ndarray, signed: bool) -> np.ndarray:
    """`[N, C]` as non-negative numbers: itself, or its positive and its negative part side by side, `[N, 2 C]`.

    >>> halves(np.array([[1.0, -2.0]]), signed=True).tolist()
    [[1.0, 0.0, 0.0, 2.0]]
    """
    cells = np.asarray(cells, np.float64)
    return np.concatenate([cells.clip(0), (-cells).clip(0)], 1) if signed else cells.clip(0)


def basis_of(cells: np.ndarray, components: int, seed: int = 0) -> tuple[Basis, float]:
    """The basis of scikit-learn's `NMF` of cells `[N, C]`, and the error of the reconstruction relative to their norm.

    Raises:
        OptionError: there are fewer cells or channels than components, or all cells are zero.
    """
    from sklearn.decomposition import NMF

    signed = bool((cells < 0).any())
    parts = halves(cells, signed)
    if components > min(parts.shape):
        raise OptionError(
            f"components must be at most {min(parts.shape)}, for {parts.shape[0]} sampled cells of "
            f"{cells.shape[1]} channels, got {components}"
        )
    norm = float(np.linalg.norm(parts))
    if norm == 0:
        raise OptionError("the layer's activations are zero everywhere, so they have no concepts; name another layer")
    factorization = NMF(components, init="nndsvda", random_state=seed, max_iter=PASSES, tol=CHANGE)
    strengths = factorization.fit_transform(parts)
    found = factorization.components_
    error = float(np.linalg.norm(parts - strengths @ found)) / norm
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return Basis(found / np.where(lengths > 0, lengths, 1.0), signed), error
