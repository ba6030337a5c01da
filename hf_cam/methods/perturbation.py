"""Methods that remove channels, or mask the image by a single channel, and measure the score."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_cam.methods.registry import method


@method(
    "ablationcam",
    name="AblationCAM",
    paper="Desai and Ramaswamy, Ablation-CAM, WACV 2020, pp. 972-980",
    summary="Channels weighted by how far the score falls without them; reruns only the part behind the target layer.",
    departure=(
        "The fall of the score is divided by its absolute value, so that a negative logit does not invert the map."
    ),
)
def ablationcam(activations: Tensor, ablated_scores: Tensor) -> Tensor:
    """`w_c a_c` with `w_c = (y - y_without_c) / |y|`, where y is the target's value; 0 if y is 0.

    The paper divides by y, which is positive there. A logit may be negative, and its sign would then invert every
    weight, so that the map would show evidence against the class. The method assumes non-negative activations; on
    signed ones (behind a layer norm, in ConvNeXt) it localises no better than random weights.
    """
    value = ablated_scores[:, :1]
    weights = (value - ablated_scores[:, 1:]) / torch.where(value == 0, torch.ones_like(value), value.abs())
    return _per_channel(torch.where(value == 0, torch.zeros_like(weights), weights), activations) * activations


@method(
    "scorecam",
    name="ScoreCAM",
    paper="Wang et al., Score-CAM, CVPR Workshops 2020, arXiv:1910.01279",
    summary="Channels weighted by the score of the image masked by each of them.",
    departure=(
        "Channels are weighted by the softmax over channels of the target's value, as in the paper; the authors' "
        "code weights with the class probability itself."
    ),
)
def scorecam(activations: Tensor, masked_scores: Tensor) -> Tensor:
    """`w_c a_c`, where w is the softmax over channels of the target's value for the image masked by each channel.

    A constant channel shows nothing of the image and gets weight 0.
    """
    constant = activations.flatten(2).amax(2) == activations.flatten(2).amin(2)
    weights = masked_scores.softmax(1)
    return _per_channel(torch.where(constant, torch.zeros_like(weights), weights), activations) * activations


def _per_channel(weights: Tensor, activations: Tensor) -> Tensor:
    return weights.reshape(*weights.shape, *[1] * (activations.ndim - 2))
