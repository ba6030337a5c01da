"""ARCC: the harmonic mean of coherency, simplicity and ROAD (Domeniconi et al., arXiv:2605.14641)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_cam.compat.pytorch_grad_cam.metrics.road import ROADCombined
from hf_cam.metrics.coherence import correlation

TINY = 1e-8
PERCENTILES = (20, 40, 60, 80)
CAMMethod = Callable[..., np.ndarray]
"""Any of this package's methods: from `input_tensor=` and `targets=` to maps."""


def batch_pearson_coherency(A: np.ndarray, B: np.ndarray) -> np.ndarray:  # noqa: N803 - grad-cam's names
    """The correlation of each pair of maps in `[B, H, W]`, in [-1, 1]; 0 for a constant map."""
    return correlation(torch.from_numpy(np.float32(A)), torch.from_numpy(np.float32(B))).numpy()


class Complexity:
    """The mean of each map, in [0, 1]: how much of the picture it marks."""

    def __call__(self, grayscale_cams: np.ndarray) -> np.ndarray:
        """One value per image."""
        found: np.ndarray = np.abs(grayscale_cams).reshape(len(grayscale_cams), -1).mean(1)
        return found


class Coherency:
    """How well a map agrees with the map of the picture times that map, in [0, 1]."""

    def __call__(
        self,
        input_tensor: Tensor,
        grayscale_cams: np.ndarray,
        targets: Sequence[Callable[[Any], Tensor]],
        model: nn.Module,
        base_method: CAMMethod,
    ) -> np.ndarray:
        """One value per image."""
        del model  # the method has its own
        mixed = input_tensor * torch.from_numpy(grayscale_cams)[:, None].to(input_tensor)
        again = base_method(input_tensor=mixed, targets=targets)
        return (batch_pearson_coherency(again, grayscale_cams) + 1) / 2


class ARCC:
    """The harmonic mean of coherency, 1 - complexity and twice ROAD, in [0, 1].

    Args:
        base_method: The method that made the maps.
        road_percentiles: The percentiles of ROAD.
    """

    def __init__(self, base_method: CAMMethod, road_percentiles: Sequence[float] = PERCENTILES) -> None:
        self.base_method = base_method
        self.complexity, self.coherency, self.road = Complexity(), Coherency(), ROADCombined(road_percentiles)

    def __call__(
        self,
        input_tensor: Tensor,
        grayscale_cams: np.ndarray,
        targets: Sequence[Callable[[Any], Tensor]],
        model: nn.Module,
    ) -> np.ndarray:
        """One value per image."""
        parts = (
            self.coherency(input_tensor, grayscale_cams, targets, model, self.base_method),
            1 - self.complexity(grayscale_cams),
            (2 * self.road(input_tensor, grayscale_cams, targets, model)).clip(0, 1),
        )
        return np.asarray(3 / sum(1 / (part + TINY) for part in parts))
