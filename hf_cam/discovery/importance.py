"""How much each concept matters for the model's value: total Sobol indices in each of some images, and their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_cam.data.sources import Source
from hf_cam.discovery.factors import Basis
from hf_cam.discovery.looking import Looker
from hf_cam.discovery.sampling import Tell
from hf_cam.discovery.sobol import designs, exchanged, interval, total_indices
from hf_cam.discovery.views import open_image
from hf_cam.heads import Subject


@dataclass(frozen=True, eq=False)
class Importance:
    """The total Sobol indices of k concepts in N images.

    Args:
        values: `[N, k]`.
        mean, low, high: `[k]`: their mean over the images, and its 95% interval.
        by_class: For the label of each class that the model finds, the mean over its images, `[k]`.
    """

    values: np.ndarray = field(repr=False)
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    by_class: Mapping[str, np.ndarray]


def importance_of(
    looker: Looker,
    source: Source,
    scored: Sequence[tuple[int, Subject, str]],
    basis: Basis,
    count: int,
    seed: int,
    tell: Tell,
) -> Importance:
    """The importance of the concepts in these images of the data, with designs of `count` points."""
    first, second = designs(count, len(basis), seed)
    kept = np.concatenate([first, *exchanged(first, second)])
    rows = []
    for done, (index, subject, _) in enumerate(scored, 1):
        values = looker.values(open_image(source, index), subject.target, basis, kept)
        rows.append(total_indices(values[:count], values[count:].reshape(len(basis), count)))
        tell("images scored", done, len(scored))
    values = np.stack(rows)
    low, high = interval(values, seed)
    labels = np.array([label for *_, label in scored])
    by_class = {str(label): values[labels == label].mean(0) for label in dict.fromkeys(labels.tolist())}
    return Importance(values, values.mean(0), low, high, by_class)
