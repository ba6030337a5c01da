"""Groups of images of one class that the model treats alike: SpRAy, Lapuschkin et al., arXiv:1902.10178."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.sparse.csgraph import laplacian
from sklearn.cluster import SpectralClustering
from sklearn.metrics import pairwise_distances_argmin
from sklearn.neighbors import kneighbors_graph

FEWEST = 16
"""Images of a class from which on they are grouped."""
MOST = 6
"""The largest number of groups per class."""
SIDE = 8
"""Maps are compared at this many rows and columns."""
NEIGHBORS = 8
COMPARED = 1500
"""So many images are compared with each other; the rest of a class joins the nearest group."""
FAINT = 1e-5
"""An affinity of all images to each other, so that their graph is connected."""
CLEAR_GAP = 0.1
"""The least gap in the eigenvalues that separates groups."""


@dataclass(frozen=True, eq=False)
class Strategy:
    """A group of images of one predicted class whose maps are alike.

    Args:
        label: The predicted class.
        share: Of the images with this prediction.
        accuracy: The share of right predictions among them.
        map: Their mean, `[G, G]` in [0, 1], over the frame.
        spread: The mean deviation of the maps from it, in [0, 1].
        members: Positions of the images in the audit's rows.
        nearest: Those of them that are closest to the mean, first the closest.
    """

    label: str
    share: float
    accuracy: float
    map: np.ndarray
    spread: float
    members: tuple[int, ...]
    nearest: tuple[int, ...]


def strategies(
    label: str, maps: np.ndarray, right: Sequence[bool], positions: Sequence[int], seed: int = 0
) -> list[Strategy]:
    """The groups among the images of one predicted class, the largest first.

    Args:
        label: The class.
        maps: `[N, G, G]`, over the images' frames.
        right: Whether each prediction is right.
        positions: The images' positions in the audit's rows.
        seed: Of the clustering.
    """
    features = _features(maps)
    groups = _groups(features, seed)
    found = []
    for group in range(groups.max() + 1):
        own = np.flatnonzero(groups == group)
        mean = maps[own].mean(0)
        distances = np.linalg.norm(features[own] - features[own].mean(0), axis=1)
        found.append(
            Strategy(
                label,
                len(own) / len(maps),
                float(np.mean(np.asarray(right)[own])),
                mean / max(float(mean.max()), 1e-12),
                float(np.abs(maps[own] - mean).mean()),
                tuple(positions[int(i)] for i in own),
                tuple(positions[int(own[i])] for i in distances.argsort()),
            )
        )
    return sorted(found, key=lambda one: -one.share)


def unusual(maps: np.ndarray) -> np.ndarray:
    """How far each map lies from its nearest neighbours, `[N]`: the images to look at first."""
    features = _features(maps)
    if len(features) < 2:
        return np.zeros(len(features))
    count = min(NEIGHBORS, len(features) - 1)
    distances = kneighbors_graph(features, count, mode="distance")
    return np.asarray(distances.sum(1)).ravel() / count


def _features(maps: np.ndarray) -> np.ndarray:
    """`[N, SIDE * SIDE]`: each map by area at few cells, with the sum of one."""
    small = np.stack([cv2.resize(np.float32(one), (SIDE, SIDE), interpolation=cv2.INTER_AREA) for one in maps])
    flat = small.reshape(len(maps), -1)
    return np.asarray(flat / np.maximum(flat.sum(1, keepdims=True), 1e-12))


def _groups(features: np.ndarray, seed: int) -> np.ndarray:
    """The group of each image, `[N]`, in as many groups as the eigengap of the neighbours' graph shows."""
    count = len(features)
    if count > COMPARED:
        drawn = np.random.default_rng(seed).choice(count, COMPARED, replace=False)
        own = _groups(features[drawn], seed)
        centers = np.stack([features[drawn][own == group].mean(0) for group in range(own.max() + 1)])
        return np.asarray(pairwise_distances_argmin(features, centers))
    if count < FEWEST or np.ptp(features, 0).max() < 1e-6:
        return np.zeros(count, int)
    graph = kneighbors_graph(features, min(NEIGHBORS, count - 1), include_self=False).toarray()
    affinity = 0.5 * (graph + graph.T) + FAINT
    values = np.linalg.eigvalsh(laplacian(affinity, normed=True))[: MOST + 1]
    gaps = np.diff(values)
    groups = int(gaps.argmax()) + 1 if gaps.max() >= CLEAR_GAP else 1
    if groups == 1:
        return np.zeros(count, int)
    found = SpectralClustering(groups, affinity="precomputed", random_state=seed).fit_predict(affinity)
    return np.asarray(np.unique(found, return_inverse=True)[1])
