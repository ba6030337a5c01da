"""grad-cam's door to guided backpropagation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_cam.cam import checked_pixels
from hf_cam.guided import GuidedBackprop


class GuidedBackpropReLUModel:
    """Guided backpropagation for the first image of a batch (Springenberg et al., arXiv:1412.6806).

    No module of the model is replaced, and every activation function is guided, whichever module calls it.

    Args:
        model: The model.
        device: Where the pictures are moved to; by default where the model is. The model is not moved.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> GuidedBackpropReLUModel(net)(torch.rand(1, 3, 6, 8), target_category=1).shape
    (6, 8, 3)
    """

    def __init__(self, model: nn.Module, device: Any = None) -> None:
        self.model = model
        self.device = next(model.parameters()).device if device is None else torch.device(device)

    def forward(self, input_img: Tensor) -> Any:
        """The model's own output."""
        return self.model(input_img)

    def __call__(self, input_img: Tensor, target_category: int | None = None) -> np.ndarray:
        """The guided gradient `[H, W, C]` of the first image, signed.

        Args:
            input_img: `[B, C, H, W]`.
            target_category: The class; None for the image's top class.

        Raises:
            OptionError: `input_img` is no batch of floating images.
        """
        input_img = checked_pixels(input_img, {}, "input_img")
        targets = None if target_category is None else _logit(int(target_category))
        found = GuidedBackprop(self.model)(input_img[:1].detach().to(self.device), targets)
        return found[0].permute(1, 2, 0).cpu().numpy()


def _logit(category: int) -> Any:
    return lambda output: output.reshape(-1)[category]
