"""The package grad-cam, which hf-cam is compared with: its classes, and how they are called."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

CLASSES = {
    "gradcam": "GradCAM",
    "hirescam": "HiResCAM",
    "gradcam-elementwise": "GradCAMElementWise",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "shapleycam": "ShapleyCAM",
    "segeigencam": "SegEigenCAM",
    "ablationcam": "AblationCAM",
    "refinecam": "RefineCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "kpcacam": "KPCA_CAM",
}
"""The class of each method that computes the same, up to the sign of a component. FEM and Score-CAM differ."""
OF_EITHER_SIGN = {"eigencam", "eigengradcam", "kpcacam"}
"""Components whose sign the package leaves to the decomposition."""
OF_SEVERAL_RUNS = {"ablationcam", "refinecam"}
"""These rerun the model, or read several layers."""


class Logits(nn.Module):
    """The tensor in place of the record: what the package understands."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.net(pixel_values).logits


def package() -> Any:
    """`pytorch_grad_cam` itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own, about numpy and torch
        return importlib.import_module("pytorch_grad_cam")


def class_targets(classes: Iterable[int]) -> list[Any]:
    """Its target for each image's class."""
    kind = importlib.import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    return [kind(index) for index in classes]


def let_go(cam: Any) -> None:
    """What it does with these on leaving fails on views, such as any `reshape_transform` returns."""
    cam.activations_and_grads.activations = cam.activations_and_grads.gradients = []
