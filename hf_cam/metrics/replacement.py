"""Ways to take pixels out of an image: each leaves something else in their place, and none is neutral.

Imputation redraws a mark of even colour from what is left of it, the mean leaves a patch that can be seen, and another
image brings in things of its own. What holds under all of them is due to the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hf_cam.metrics.imputation import impute
from hf_cam.metrics.measurements import blur

Replacement = Callable[[Tensor, Tensor], Tensor]
"""`(pixels [1, C, H, W], missing [N, H, W] booleans) -> [N, C, H, W]`."""


def by_neighbours(seed: int = 0) -> Replacement:
    """Imputation from the surroundings, with a little noise; see `impute`."""
    return lambda pixels, missing: impute(
        pixels.float().expand(len(missing), -1, -1, -1), missing, noise=0.01, seed=seed
    ).to(pixels)


def by_mean(pixels: Tensor, missing: Tensor) -> Tensor:
    """The image's mean colour.

    >>> by_mean(torch.tensor([[[[0.0, 2.0, 4.0]]]]), torch.tensor([[[True, False, False]]]))
    tensor([[[[2., 2., 4.]]]])
    """
    return torch.where(missing[:, None], pixels.mean((-2, -1), keepdim=True), pixels)


def by_blur(pixels: Tensor, missing: Tensor) -> Tensor:
    """The image itself, blurred."""
    return torch.where(missing[:, None], blur(pixels), pixels)


def by_others(others: Sequence[Tensor]) -> Replacement:
    """The pixels at the same places of other images, taken in turn.

    Args:
        others: `[3, h, w]` each, in any units: they are resized and get each channel's mean and deviation from the
            image that is changed, so that they need not be prepared for the model.
    """

    def replace(pixels: Tensor, missing: Tensor) -> Tensor:
        drawn = torch.cat([_alike(other.to(pixels.device), pixels) for other in others])
        turn = torch.arange(len(missing), device=pixels.device) % len(drawn)
        return torch.where(missing[:, None], drawn[turn], pixels)

    return replace


def _alike(other: Tensor, pixels: Tensor) -> Tensor:
    """Another image `[3, h, w]` with the size, mean and deviation of `pixels`, `[1, C, H, W]`."""
    resized = functional.interpolate(other[None].float(), pixels.shape[-2:], mode="bilinear", antialias=True)
    channels = resized if pixels.shape[1] == resized.shape[1] else resized.mean(1, keepdim=True)
    deviation, mean = torch.std_mean(channels, (-2, -1), keepdim=True)
    own_deviation, own_mean = torch.std_mean(pixels.float(), (-2, -1), keepdim=True)
    return ((channels - mean) / deviation.clamp_min(1e-6) * own_deviation + own_mean).to(pixels)
