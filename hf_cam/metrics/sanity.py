"""Whether the map depends on what it claims to explain: the model's weights and the target."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_cam.metrics.coherence import correlation
from hf_cam.metrics.registry import metric

PAPER = "Adebayo et al., NeurIPS 2018, arXiv:1810.03292"


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of two maps, `[..., H, W]` to `[...]` in [-1, 1]; equal values share their mean rank.

    >>> rank_correlation(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[0.0, 5.0, 6.0]]))
    tensor(1.0000)
    """
    return correlation(_mean_ranks(a)[..., None, :], _mean_ranks(b)[..., None, :])


@metric("model-randomization", "model randomization", range=(-1, 1), higher_is_better=False, paper=PAPER)
def model_randomization(maps: Tensor, randomized_maps: Tensor) -> Tensor:
    """The rank correlation of the map with the map after the model's weights have been shuffled.

    A value near 1 means that the map shows the image, not the model.
    """
    return rank_correlation(maps, randomized_maps)


@metric("target-randomization", "target randomization", range=(-1, 1), higher_is_better=False, paper=PAPER)
def target_randomization(maps: Tensor, other_maps: Tensor) -> Tensor:
    """The rank correlation of the map with the map of another target; 1 means that the target makes no difference."""
    return rank_correlation(maps, other_maps)


def _mean_ranks(maps: Tensor) -> Tensor:
    flat = maps.flatten(-2).double()
    rows = []
    for row in flat.reshape(-1, flat.shape[-1]):
        _, place, counts = row.unique(return_inverse=True, return_counts=True)
        ends = counts.cumsum(0).to(row)
        rows.append((ends - (counts.to(row) - 1) / 2)[place])
    return torch.stack(rows).reshape(flat.shape).to(maps.dtype if maps.is_floating_point() else torch.float32)
