"""Baseline maps, which do not depend on the model and which any method must beat. All are `[B, H, W]` in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from hf_cam.layouts import Size
from hf_cam.maps import normalize


def noise(pixels: Tensor, seed: int = 0) -> Tensor:
    """Uniform noise, different for each image."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(pixels), *pixels.shape[-2:], generator=generator).to(pixels.device)


def centred_gaussian(pixels: Tensor) -> Tensor:
    """`exp(-2 r^2)`, r = 1 at the middle of each side: most photographs have their subject in the middle."""
    return gaussian((pixels.shape[-2], pixels.shape[-1])).to(pixels.device).repeat(len(pixels), 1, 1)


def gaussian(size: Size) -> Tensor:
    """The centred Gaussian of one image, `[H, W]`."""
    rows, columns = (torch.linspace(-1, 1, side) for side in size)
    return torch.exp(-2 * (rows[:, None] ** 2 + columns[None] ** 2))


def sobel_edges(pixels: Tensor) -> Tensor:
    """The edge strength of each image, `[B, C, H, W]` to `[B, H, W]`."""
    grey = functional.pad(pixels.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="reflect")
    ramp, bell = torch.tensor([-1.0, 0.0, 1.0]).to(grey), torch.tensor([1.0, 2.0, 1.0]).to(grey)
    kernels = torch.stack([bell[:, None] * ramp, ramp[:, None] * bell])[:, None]
    return normalize(functional.conv2d(grey, kernels).norm(dim=1))


BASELINES: dict[str, Callable[..., Tensor]] = {
    "noise": noise,
    "centred-gaussian": centred_gaussian,
    "sobel": sobel_edges,
}
