"""Methods that remove channels, or mask the image by a single channel, and measure the score."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_cam.methods.registry import method

POSITIVE_WEIGHTS = "its weights are a softmax, none of which is negative"


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
    signed ones (behind a layer norm, in ConvNeXt) it localizes no better than random weights.
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
    unsigned=POSITIVE_WEIGHTS,
)
def scorecam(activations: Tensor, masked_scores: Tensor) -> Tensor:
    """`w_c a_c`, where w is the softmax over channels of the target's value for the image masked by each channel.

    A constant channel shows nothing of the image and gets weight 0.
    """
    return _by_softmax(masked_scores, activations)


@method(
    "sscam",
    name="SSCAM",
    paper="Wang et al., SS-CAM, arXiv:2006.14255",
    summary="Score-CAM with the scores averaged over channels to which noise was added.",
    unsigned=POSITIVE_WEIGHTS,
)
def sscam(activations: Tensor, noisy_masked_scores: Tensor) -> Tensor:
    """`w_c a_c` as in Score-CAM, with scores that are averaged over noisy activations (the paper's first variant)."""
    return _by_softmax(noisy_masked_scores, activations)


@method(
    "iscam",
    name="ISCAM",
    paper="Naidu et al., IS-CAM, arXiv:2010.03023",
    summary="Score-CAM with the scores averaged over masks that grow from black to the full mask.",
    unsigned=POSITIVE_WEIGHTS,
)
def iscam(activations: Tensor, scaled_masked_scores: Tensor) -> Tensor:
    """`w_c a_c` as in Score-CAM, with scores that are averaged over the masks times `i / N`, i = 1, ..., N."""
    return _by_softmax(scaled_masked_scores, activations)


@method(
    "recipro-cam",
    name="ReciproCAM",
    paper="Byun and Lee, Recipro-CAM, CVPR Workshops 2024, arXiv:2209.14074",
    summary="How confident the part behind the target layer is of each cell alone, without gradients.",
    unsigned="the lowest score is its zero",
)
def reciprocam(cell_scores: Tensor) -> Tensor:
    """`y_n - min(y)`, where y_n is the target's probability, if it has one, when only the cell n is kept.

    In a transformer the class token and its like are kept as well. Scores that differ by rounding alone are no
    evidence.
    """
    space = tuple(range(2, cell_scores.ndim))
    least, most = cell_scores.amin(space, keepdim=True), cell_scores.amax(space, keepdim=True)
    rounding = 8 * torch.finfo(cell_scores.dtype).eps * torch.maximum(least.abs(), most.abs())
    return torch.where(most - least <= rounding, 0, cell_scores - least)


def _by_softmax(scores: Tensor, activations: Tensor) -> Tensor:
    """The activations weighted by the softmax of the scores over channels; constant channels get weight 0."""
    constant = activations.flatten(2).amax(2) == activations.flatten(2).amin(2)
    weights = scores.softmax(1)
    return _per_channel(torch.where(constant, torch.zeros_like(weights), weights), activations) * activations


def _per_channel(weights: Tensor, activations: Tensor) -> Tensor:
    return weights.reshape(*weights.shape, *[1] * (activations.ndim - 2))
