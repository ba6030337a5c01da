"""Methods that weigh the activations by the target's gradient. Activations and gradients are `[B, C, *space]`."""

from __future__ import annotations

from torch import Tensor

from hf_cam.methods.registry import Method, register


def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """`mean(g_c) a_c`: each channel weighed by its gradient's mean over space."""
    return _spatial_mean(gradients) * activations


def hirescam(activations: Tensor, gradients: Tensor) -> Tensor:
    """`g_c a_c`: no averaging, so on a pooling and linear head the contributions sum to the logit less its bias."""
    return gradients * activations


def layercam(activations: Tensor, gradients: Tensor) -> Tensor:
    """`relu(g_c) a_c`: each cell weighed by its own positive gradient, good in early layers too."""
    return gradients.clamp_min(0) * activations


def _spatial_mean(tensor: Tensor) -> Tensor:
    return tensor.mean(tuple(range(2, tensor.ndim)), keepdim=True)


GRADCAM = register(
    Method(
        id="gradcam",
        name="GradCAM",
        contributions=gradcam,
        paper="Selvaraju et al., Grad-CAM, ICCV 2017, arXiv:1610.02391",
        summary="Channels weighed by the spatial mean of their gradient.",
    )
)
HIRESCAM = register(
    Method(
        id="hirescam",
        name="HiResCAM",
        contributions=hirescam,
        paper="Draelos and Carin, HiResCAM, arXiv:2011.08891",
        summary="Gradient times activation, cell by cell; exact on pooling and linear heads.",
    )
)
LAYERCAM = register(
    Method(
        id="layercam",
        name="LayerCAM",
        contributions=layercam,
        paper="Jiang et al., LayerCAM, IEEE TIP 2021, doi:10.1109/TIP.2021.3089943",
        summary="Cells weighed by their own positive gradient; fit for early layers.",
    )
)
