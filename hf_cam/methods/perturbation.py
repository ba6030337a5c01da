"""Methods that take channels away or show them alone, and see what becomes of the score."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_cam.methods.registry import method


@method(
    "ablationcam",
    name="AblationCAM",
    paper="Desai and Ramaswamy, Ablation-CAM, WACV 2020, pp. 972-980",
    summary="Channels weighed by how far the score falls without them; only the tail of the model is rerun.",
)
def ablationcam(activations: Tensor, ablated_scores: Tensor) -> Tensor:
    """`w_c a_c` with `w_c = (y - y_without_c) / |y|`, y the target's value; 0 where y is.

    The paper divides by y, which is positive there. A logit may be negative, and then that sign would turn every weight
    round: what speaks against the class would light up. The method is made for activations that are not negative;
    on signed ones (behind a layer norm, in ConvNeXt) it localises no better than random weights.
    """
    value = ablated_scores[:, :1]
    weights = (value - ablated_scores[:, 1:]) / torch.where(value == 0, torch.ones_like(value), value.abs())
    return _per_channel(torch.where(value == 0, torch.zeros_like(weights), weights), activations) * activations


@method(
    "scorecam",
    name="ScoreCAM",
    paper="Wang et al., Score-CAM, CVPR Workshops 2020, arXiv:1910.01279",
    summary="Channels weighed by the score of the image seen through them alone.",
)
def scorecam(activations: Tensor, masked_scores: Tensor) -> Tensor:
    """`w_c a_c`, w the softmax over channels of the target's value on the image masked by the channel.

    A channel that is the same everywhere shows nothing and counts for nothing.
    """
    constant = activations.flatten(2).amax(2) == activations.flatten(2).amin(2)
    weights = masked_scores.softmax(1)
    return _per_channel(torch.where(constant, torch.zeros_like(weights), weights), activations) * activations


def _per_channel(weights: Tensor, activations: Tensor) -> Tensor:
    return weights.reshape(*weights.shape, *[1] * (activations.ndim - 2))
