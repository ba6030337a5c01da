"""Methods that decompose the activations into components."""

from __future__ import annotations

from torch import Tensor

from hf_cam.methods.reductions import first_component
from hf_cam.methods.registry import Method, register


def eigencam(activations: Tensor) -> Tensor:
    """`a_c`, whose first principal component is the map; the target plays no part."""
    return activations


EIGENCAM = register(
    Method(
        id="eigencam",
        name="EigenCAM",
        contributions=eigencam,
        reduce=first_component,
        paper="Muhammad and Yeasin, Eigen-CAM, IJCNN 2020, arXiv:2008.00299",
        summary="First principal component of the activations; the same for every target.",
    )
)
