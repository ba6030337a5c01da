"""The baseline that every table needs."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_cam.methods.registry import Method, register


def randomcam(activations: Tensor, seed: int = 0) -> Tensor:
    """`w_c a_c`, w uniform in [-1, 1]: the same weights for each image of a batch, and for each run of one seed."""
    generator = torch.Generator().manual_seed(seed)
    weights = 2 * torch.rand(activations.shape[1], generator=generator, dtype=torch.float64) - 1
    return weights.to(activations).reshape(1, -1, *[1] * (activations.ndim - 2)) * activations


RANDOMCAM = register(
    Method(
        id="randomcam",
        name="RandomCAM",
        contributions=randomcam,
        paper="a baseline; no paper",
        summary="Random channel weights: what any method must beat.",
    )
)
