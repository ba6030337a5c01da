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
    departure=(
        "The channel vectors are centred before the decomposition, as in grad-cam, and the sign is fixed; the "
        "paper does neither."
    ),
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
    departure="Centred and signed as 'eigencam' is.",
    unsigned="the sign of a principal component is a convention",
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
    departure="Centred as 'eigencam' is.",
    unsigned="the sign of a principal component is a convention",
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
    departure="The kernel's centred component, scaled to the length of the vectors, with the sign of 'eigencam'.",
)
def kpcacam(activations: Tensor) -> Tensor:
    """`a_c`, whose first kernel principal component is the map; it does not depend on the target."""
    return activations


@method(
    "fem",
    name="FEM",
    paper="Fuad et al., Features Understanding in 3D CNNs, IPTA 2020, doi:10.1109/IPTA50016.2020.9286629",
    summary="Where channels exceed their mean by k standard deviations, weighted by that mean; without gradients.",
    departure="None, but the paper assumes ReLUs; elsewhere, channels of negative mean count against their cells.",
)
def fem(activations: Tensor, k: float = 2.0) -> Tensor:
    """`mean(a_c) [a_c > mean(a_c) + k std(a_c)]`: binary maps of the cells that stand out, weighted by the mean.

    The package grad-cam computes `mean([a_c > mean(a_c) + k std(a_c)]) a_c` instead: the activations themselves,
    weighted by the share of the cells that stand out, so that cells below the threshold show too. The paper assumes
    non-negative activations; where they are signed, a channel with a negative mean counts against its cells.
    """
    space = tuple(range(2, activations.ndim))
    mean, deviation = activations.mean(space, keepdim=True), activations.std(space, correction=0, keepdim=True)
    return mean * (activations > mean + k * deviation).to(activations.dtype)


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
