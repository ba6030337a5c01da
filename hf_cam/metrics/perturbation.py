"""Metrics that remove pixels in the map's order: the more relevant they are, the more the confidence should fall."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_cam.metrics.registry import metric

ROAD = "Rong et al., ICML 2022, arXiv:2202.00449"
RISE = "Petsiuk et al. (RISE), BMVC 2018, arXiv:1806.07421"
CHEFER = "Chefer et al., CVPR 2021, arXiv:2012.09838"


@metric("road", "ROAD", range=(-0.5, 0.5), paper=f"ROADCombined of the package grad-cam, from the curves of {ROAD}")
def road_combined(most_first: Tensor, least_first: Tensor) -> Tensor:
    """Half the difference between the confidence without the least and without the most relevant pixels.

    Averaged over the percentiles: `mean_p (y_least - y_most) / 2`, in [-0.5, 0.5]; a random map scores 0. The paper
    reports the two curves; halving their difference is the package grad-cam's.
    """
    return (least_first - most_first).mean(1) / 2


@metric("road-most", "ROAD, most relevant first", range=(-1, 1), higher_is_better=False, paper=ROAD)
def road_most(scores: Tensor, most_first: Tensor) -> Tensor:
    """The change in confidence when the most relevant pixels are imputed, averaged over the percentiles."""
    return most_first.mean(1) - scores


@metric("road-least", "ROAD, least relevant first", range=(-1, 1), paper=ROAD)
def road_least(scores: Tensor, least_first: Tensor) -> Tensor:
    """The change in confidence when the least relevant pixels are imputed, averaged over the percentiles."""
    return least_first.mean(1) - scores


@metric("insertion", "insertion", paper=RISE)
def insertion(inserted: Tensor) -> Tensor:
    """The area under the confidence curve as the pixels of a blurred image are uncovered, the most relevant first.

    Scores depend on the number of steps; RISE takes one per row of pixels (`steps="rise"`), from an image blurred with
    the same Gaussian, cut off at 11 x 11 pixels.
    """
    return area(inserted)


@metric("deletion", "deletion", higher_is_better=False, paper=RISE)
def deletion(deleted: Tensor) -> Tensor:
    """The area under the confidence curve as pixels are blanked, the most relevant first.

    Scores depend on the number of steps; RISE takes one per row of pixels (`steps="rise"`).
    """
    return area(deleted)


@metric("insertion-deletion", "insertion - deletion", range=(-1, 1), paper=RISE)
def insertion_less_deletion(inserted: Tensor, deleted: Tensor) -> Tensor:
    """Insertion minus deletion, as one figure for both; a map of random order scores about 0."""
    return area(inserted) - area(deleted)


@metric("perturbation-positive", "perturbation AUC +", higher_is_better=False, paper=CHEFER)
def perturbation_positive(tenths_first: Tensor) -> Tensor:
    """The area under the confidence curve from one to nine tenths of the pixels blanked, the most relevant first.

    The paper's nine points, with the confidence in place of its accuracy; divided by the length of the interval.
    """
    return area(tenths_first)


@metric("perturbation-negative", "perturbation AUC -", paper=CHEFER)
def perturbation_negative(tenths_last: Tensor) -> Tensor:
    """The area under the confidence curve from one to nine tenths of the pixels blanked, the least relevant first.

    The paper's nine points, with the confidence in place of its accuracy; divided by the length of the interval.
    """
    return area(tenths_last)


@metric("saco", "SaCo", range=(-1, 1), paper="Wu et al., CVPR 2024, arXiv:2404.01415")
def saco(scores: Tensor, group_relevance: Tensor, group_scores: Tensor) -> Tensor:
    """Whether replacing the groups of pixels that the map ranks as more relevant costs more confidence.

    For each pair of groups, their difference in relevance counts as positive if the drops in confidence have the same
    order, else as negative. The total is divided by the sum of the absolute differences; a uniform map scores 0.
    """
    drops = scores[:, None] - group_scores
    first, second = torch.triu_indices(drops.shape[1], drops.shape[1], offset=1, device=drops.device)
    gaps = group_relevance[:, first] - group_relevance[:, second]
    agree = torch.where(drops[:, first] >= drops[:, second], gaps, -gaps).sum(1)
    total = gaps.abs().sum(1)
    return agree / torch.where(total > 0, total, torch.ones_like(total))


def area(curves: Tensor) -> Tensor:
    """The area under curves over [0, 1] by the trapezoid rule, `[..., S + 1]` to `[...]`.

    >>> area(torch.tensor([1.0, 0.5, 0.0]))
    tensor(0.5000)
    """
    return torch.trapezoid(curves, dim=-1) / (curves.shape[-1] - 1)
