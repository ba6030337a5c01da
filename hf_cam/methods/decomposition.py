"""Methods that decompose the activations into components."""

from __future__ import annotations

from torch import Tensor

from hf_cam.methods.reductions import first_component, first_component_by_extreme, first_kernel_component
from hf_cam.methods.registry import method
from hf_cam.target_layers.pooled import before_pooling


@method(
    "eigencam",
    name="EigenCAM",
    reduce=first_component,
    paper="Muhammad and Yeasin, Eigen-CAM, IJCNN 2020, arXiv:2008.00299",
    summary="First principal component of the activations.",
)
def eigencam(activations: Tensor) -> Tensor:
    """`a_c`, whose first principal component is the map; it does not depend on the target."""
    return activations


@method(
    "eigengradcam",
    name="EigenGradCAM",
    reduce=first_component,
    paper="Eigen-CAM (arXiv:2008.00299) on gradient times activation; no paper of its own",
    summary="First principal component of gradient times activation.",
)
def eigengradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """`g_c a_c`, whose first principal component is the map."""
    return gradients * activations


@method(
    "segeigencam",
    name="SegEigenCAM",
    reduce=first_component_by_extreme,
    paper="Chung and Ying, Seg-Eigen-CAM, Applied Sciences 2025, 15(13), 7562, doi:10.3390/app15137562",
    summary="First principal component of absolute gradient times activation.",
)
def segeigencam(activations: Tensor, gradients: Tensor) -> Tensor:
    """`|g_c| a_c`, whose first principal component is the map, with its larger extreme positive (eqs. 10 and 13)."""
    return gradients.abs() * activations


@method(
    "kpcacam",
    name="KPCACAM",
    reduce=first_kernel_component,
    paper="Karmani et al., KPCA-CAM, MMSP 2024, arXiv:2410.00267",
    summary="First component of a kernel principal component analysis of the activations.",
)
def kpcacam(activations: Tensor) -> Tensor:
    """`a_c`, whose first kernel principal component is the map; it does not depend on the target."""
    return activations


@method(
    "fem",
    name="FEM",
    paper="Fuad et al., Features Understanding in 3D CNNs, IPTA 2020, doi:10.1109/IPTA50016.2020.9286629",
    summary="Channels weighted by the share of their cells that stand out, without gradients.",
)
def fem(activations: Tensor, k: float = 2.0) -> Tensor:
    """`w_c a_c`, where w is the share of a channel's cells that exceed its mean by k standard deviations."""
    space = tuple(range(2, activations.ndim))
    mean, deviation = activations.mean(space, keepdim=True), activations.std(space, correction=0, keepdim=True)
    return (activations > mean + k * deviation).to(activations.dtype).mean(space, keepdim=True) * activations


@method(
    "cam",
    name="ClassActivationMap",
    layers=before_pooling,
    layer_forwards=1.0,
    paper="Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016, arXiv:1512.04150",
    summary="Channels weighted by the class's row of the last linear layer; needs a mean over all cells before it.",
)
def class_activation_map(activations: Tensor, class_weights: Tensor) -> Tensor:
    """`w_c a_c`: the terms of the logit, which is their mean over the cells plus the bias."""
    return class_weights.reshape(*class_weights.shape, *(1,) * (activations.ndim - 2)) * activations
