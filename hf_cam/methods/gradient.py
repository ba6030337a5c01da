"""Methods that weight the activations by the target's gradient. Activations and gradients are `[B, C, *space]`."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_cam.methods.registry import method


@method(
    "gradcam",
    name="GradCAM",
    paper="Selvaraju et al., Grad-CAM, ICCV 2017, arXiv:1610.02391",
    summary="Channels weighted by the spatial mean of their gradient.",
)
def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """`mean(g_c) a_c`: each channel weighted by the spatial mean of its gradient."""
    return _spatial_mean(gradients) * activations


@method(
    "hirescam",
    name="HiResCAM",
    paper="Draelos and Carin, HiResCAM, arXiv:2011.08891",
    summary="Gradient times activation, cell by cell; exact if pooling and a linear head follow.",
)
def hirescam(activations: Tensor, gradients: Tensor) -> Tensor:
    """`g_c a_c`: if pooling and a linear head follow, the contributions sum to the logit minus its bias."""
    return gradients * activations


@method(
    "gradcam-elementwise",
    name="GradCAMElementWise",
    paper="a variant of Grad-CAM without the average; no paper",
    summary="Positive part of gradient times activation, summed over channels.",
    unsigned="it keeps positive contributions alone",
)
def gradcam_elementwise(activations: Tensor, gradients: Tensor) -> Tensor:
    """`relu(g_c a_c)`: only contributions in favour of the target, for each cell and channel."""
    return (gradients * activations).clamp_min(0)


@method(
    "gradcam++",
    name="GradCAMPlusPlus",
    paper="Chattopadhyay et al., Grad-CAM++, WACV 2018, arXiv:1710.11063",
    summary="Channels weighted by their positive gradients, so that several instances count equally.",
    departure=(
        "A term of 1e-6 keeps the quotient of equation 19 finite, as in grad-cam; it outweighs the small squared "
        "gradients of ViTs."
    ),
    unsigned="it keeps positive gradients alone",
)
def gradcam_plusplus(activations: Tensor, gradients: Tensor) -> Tensor:
    """`w_c a_c` with `w_c = sum(alpha relu(g_c))` and `alpha = g^2 / (2 g^2 + sum(a_c) g^3)` (eq. 19).

    The equation assumes an exponential of the score, whose higher derivatives are powers of the first. `alpha` is 0
    where the gradient is 0; the small term that keeps the quotient finite comes from the reference implementation.
    """
    return plusplus_weights(activations, gradients) * activations


@method(
    "xgradcam",
    name="XGradCAM",
    paper="Fu et al., Axiom-based Grad-CAM, BMVC 2020, arXiv:2008.02312",
    summary="Channels weighted by the mean of their gradient, which is itself weighted by the activation.",
    departure="A channel whose activations sum to 0 gets weight 0, where the equation divides by 0.",
)
def xgradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """`w_c a_c` with `w_c = sum(g_c a_c) / sum(a_c)`, 0 for a channel whose activations sum to 0."""
    return xgradcam_weights(activations, gradients) * activations


@method(
    "shapleycam",
    name="ShapleyCAM",
    paper="Cai, CAMs as Shapley Value-based Explainers, The Visual Computer 2025, arXiv:2501.06261",
    summary="Grad-CAM with the curvature of the score taken into account.",
    departure=(
        "The target is the caller's, by default the class logit; the paper also proposes ReST, a residual softmax "
        "of it."
    ),
)
def shapleycam(activations: Tensor, gradients: Tensor, curvature: Tensor) -> Tensor:
    """`w_c a_c` with `w_c = mean(g_c - (H a)_c / 2)`, from the target's second-order expansion at the activations."""
    return _spatial_mean(gradients - curvature / 2) * activations


@method(
    "fullgrad",
    name="FullGrad",
    paper="Srinivas and Fleuret, Full-Gradient Representation, NeurIPS 2019, arXiv:1905.00780",
    summary="Input and every bias, each times its gradient; covers all layers, regardless of the target layer.",
    departure="Biases behind the pooling have no place in the picture and are left out; no smoothing follows.",
    unsigned="it sums absolute values",
)
def fullgrad(gradient_terms: Tensor) -> Tensor:
    """The terms of the full-gradient decomposition: the input's and one per bias, as large as the model's input."""
    return gradient_terms


@method(
    "layercam",
    name="LayerCAM",
    paper="Jiang et al., LayerCAM, IEEE TIP 2021, doi:10.1109/TIP.2021.3089943",
    summary="Cells weighted by their own positive gradient; suits early layers too.",
    unsigned="it keeps positive gradients alone",
)
def layercam(activations: Tensor, gradients: Tensor) -> Tensor:
    """`relu(g_c) a_c`: each cell weighted by its own positive gradient, which suits early layers too."""
    return gradients.clamp_min(0) * activations


@method(
    "randomcam",
    name="RandomCAM",
    paper="a baseline; no paper",
    summary="Random channel weights, the baseline that any method must beat.",
)
def randomcam(activations: Tensor, seed: int = 0) -> Tensor:
    """`w_c a_c` with w uniform in [-1, 1], the same for every image of a batch and every run with the same seed."""
    generator = torch.Generator().manual_seed(int(seed))
    weights = 2 * torch.rand(activations.shape[1], generator=generator, dtype=torch.float64) - 1
    return weights.to(activations).reshape(1, -1, *[1] * (activations.ndim - 2)) * activations


def plusplus_weights(activations: Tensor, gradients: Tensor) -> Tensor:
    """`[B, C, 1, 1]`: `sum(alpha relu(g_c))`, see `gradcam_plusplus`."""
    squared = gradients.square()
    denominator = 2 * squared + _spatial_sum(activations) * squared * gradients + 1e-6
    alpha = torch.where(gradients != 0, squared / denominator, torch.zeros_like(gradients))
    return _spatial_sum(alpha * gradients.clamp_min(0))


def xgradcam_weights(activations: Tensor, gradients: Tensor) -> Tensor:
    """`[B, C, 1, 1]`: `sum(g_c a_c) / sum(a_c)`, see `xgradcam`."""
    total = _spatial_sum(activations)
    weights = _spatial_sum(gradients * activations) / torch.where(total == 0, torch.ones_like(total), total)
    return torch.where(total == 0, torch.zeros_like(weights), weights)


def _spatial_mean(tensor: Tensor) -> Tensor:
    return tensor.mean(tuple(range(2, tensor.ndim)), keepdim=True)


def _spatial_sum(tensor: Tensor) -> Tensor:
    return tensor.sum(tuple(range(2, tensor.ndim)), keepdim=True)
