"""How the target's value changes when the picture is multiplied by its map."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from hf_cam.compat.pytorch_grad_cam.metrics.perturbation_confidence import PerturbationConfidenceMetric


def multiply_tensor_with_cam(input_tensor: Tensor, cam: Tensor) -> Tensor:
    """The preprocessed picture times its map."""
    return input_tensor * cam


class CamMultImageConfidenceChange(PerturbationConfidenceMetric):
    """The value for the picture times its map, less that for the picture."""

    def __init__(self) -> None:
        super().__init__(multiply_tensor_with_cam)


class DropInConfidence(CamMultImageConfidenceChange):
    """How far the value falls; 0 where it rises."""

    def __call__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """One value per image."""
        found: np.ndarray = np.maximum(-super().__call__(*args, **kwargs), 0)
        return found


class IncreaseInConfidence(CamMultImageConfidenceChange):
    """1 where the value rises, else 0."""

    def __call__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """One value per image."""
        found: np.ndarray = np.asarray(super().__call__(*args, **kwargs) > 0, np.float32)
        return found
