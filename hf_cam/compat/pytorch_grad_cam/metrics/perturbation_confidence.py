"""How a target's value changes when the picture is changed along its map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call, model_inputs_of
from hf_cam.errors import TargetError
from hf_cam.models.traits import unwrap
from hf_cam.outputs import sample_of

Perturbation = Callable[[Tensor, Tensor], Tensor]
"""From a picture `[C, H, W]` and a map `[H, W]` to the changed picture."""
PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)


class PerturbationConfidenceMetric:
    """The change of the targets' values when each picture is perturbed along its map.

    Args:
        perturbation: From a picture and its map to the changed picture.
    """

    def __init__(self, perturbation: Perturbation) -> None:
        self.perturbation = perturbation

    def __call__(
        self,
        input_tensor: Tensor,
        cams: np.ndarray,
        targets: Sequence[Callable[[Any], Tensor]],
        model: nn.Module,
        return_visualization: bool = False,
        return_diff: bool = True,
    ) -> Any:
        """One value per image, or one vector where a target returns a vector.

        Args:
            input_tensor: `[B, C, H, W]`.
            cams: `[B, H, W]`.
            targets: One per image.
            model: The model.
            return_visualization: Also return the changed pictures.
            return_diff: False returns the values themselves, not their difference to the clean picture's.

        Raises:
            TargetError: the number of targets is not the number of images.
        """
        maps = torch.as_tensor(np.asarray(cams)).to(input_tensor.device)
        changed = torch.stack([self.perturbation(one, own) for one, own in zip(input_tensor, maps, strict=True)])
        found = values_of(model, changed, targets)
        found = found - values_of(model, input_tensor, targets) if return_diff else found
        return (found, changed) if return_visualization else found


def values_of(model: nn.Module, pixels: Tensor, targets: Sequence[Callable[[Any], Tensor]]) -> np.ndarray:
    """The targets' values for a batch, in float32.

    Raises:
        TargetError: the number of targets is not the number of images.
    """
    if len(targets) != len(pixels):
        raise TargetError(f"{len(targets)} targets for {len(pixels)} images: targets= takes one per image")
    with borrowed(unwrap(model)) as module, torch.no_grad():
        outputs = call(module, model_inputs_of(model, pixels, {}))
        samples = [sample_of(outputs, index, len(pixels)) for index in range(len(pixels))]
        found = [target(one).cpu().numpy() for target, one in zip(targets, samples, strict=True)]
        return np.asarray(found, np.float32)


class RemoveMostRelevantFirst:
    """Hand the pixels of the highest values to an imputer.

    Args:
        percentile: The share of the pixels that stay, in percent; "auto" for Otsu's threshold.
        imputer: From a picture and a mask, 1 where a pixel stays, to the changed picture.
    """

    def __init__(self, percentile: float | str, imputer: Perturbation) -> None:
        self.percentile, self.imputer = percentile, imputer

    def __call__(self, input_tensor: Tensor, mask: Tensor) -> Tensor:
        """The changed picture, from `[C, H, W]` and a map `[H, W]` in [0, 1]."""
        values = mask.cpu().numpy()
        if isinstance(self.percentile, str):
            _, kept = cv2.threshold((values * 255).astype(np.uint8), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        else:
            kept = np.float32(values < np.percentile(values, self.percentile))
        return self.imputer(input_tensor, torch.from_numpy(kept).to(mask.device))


class RemoveLeastRelevantFirst(RemoveMostRelevantFirst):
    """Hand the pixels of the lowest values to an imputer."""

    def __call__(self, input_tensor: Tensor, mask: Tensor) -> Tensor:
        """The changed picture, from `[C, H, W]` and a map `[H, W]` in [0, 1]."""
        return super().__call__(input_tensor, 1 - mask)


class AveragerAcrossThresholds:
    """The mean of a metric over several percentiles.

    Args:
        imputer: From a percentile to the metric.
        percentiles: The percentiles.
    """

    def __init__(self, imputer: Callable[[Any], Any], percentiles: Sequence[float] = PERCENTILES) -> None:
        self.imputer, self.percentiles = imputer, percentiles

    def __call__(
        self, input_tensor: Tensor, cams: np.ndarray, targets: Sequence[Callable[[Any], Tensor]], model: nn.Module
    ) -> np.ndarray:
        """One value per image."""
        each = [self.imputer(percentile)(input_tensor, cams, targets, model) for percentile in self.percentiles]
        found: np.ndarray = np.mean(np.asarray(each, np.float32), axis=0)
        return found
