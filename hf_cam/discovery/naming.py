"""Names of concepts, from the scores of the views in which they are strong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

SHOWN = 3
"""The classes or prompts that are listed for a concept."""


def rises(strengths: np.ndarray, scores: np.ndarray, names: Mapping[int, str]) -> list[tuple[str, float]]:
    """The classes whose mean score, weighted by a concept's strengths, is most above the plain mean, and by how much.

    Args:
        strengths: `[N]`, non-negative: of the concept in each sampled cell.
        scores: `[N, K]`: of the view that each cell is from.
        names: Of the classes; an index without a name stands for itself.

    >>> rises(np.array([1.0, 0.0]), np.array([[0.9, 0.1], [0.5, 0.5]]), {0: "cat", 1: "dog"})[0]
    ('cat', 0.2)
    """
    scores = scores.astype(np.float64)
    total = float(strengths.sum())
    above = (strengths @ scores / total if total > 0 else scores.mean(0)) - scores.mean(0)
    best = np.argsort(-above, kind="stable")[:SHOWN]
    return [(names.get(int(index), str(index)), round(float(above[index]), 4)) for index in best]


def unique(names: Sequence[str]) -> list[str]:
    """The names, numbered where several are the same.

    >>> unique(["coat", "shirt", "coat"])
    ['coat 1', 'shirt', 'coat 2']
    """
    several, used = Counter(names), Counter[str]()
    made = []
    for name in names:
        used[name] += 1
        made.append(f"{name} {used[name]}" if several[name] > 1 else name)
    return made
