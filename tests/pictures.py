"""Pictures that several files of tests look at, and the plainest ways to make tensors of them; none is square."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE = (64, 96)
"""Height and width: a swap of the two would be seen."""


def pictures(count: int = 2, size: tuple[int, int] = SIZE, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal noise `[count, 3, height, width]`, the same at every call."""
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)


def noise(height: int = 70, width: int = 130, seed: int = 0) -> Image.Image:
    """Noise as an RGB picture."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def to_tensor(image: Image.Image) -> Tensor:
    """The simplest processor: `[3, height, width]` in [0, 1], of the image's own size."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def resized(size: tuple[int, int] = SIZE) -> Callable[[Image.Image], Tensor]:
    """The processor that brings every picture to this height and width."""
    return lambda image: to_tensor(image.resize(size[::-1]))
