"""How far a map moves when the image hardly does."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_cam.metrics.registry import metric


@metric(
    "max-sensitivity",
    "max-sensitivity",
    range=(0, float("inf")),
    higher_is_better=False,
    paper="Yeh et al., NeurIPS 2019, arXiv:1901.09392",
)
def max_sensitivity(maps: Tensor, noisy_maps: Tensor) -> Tensor:
    """The largest change of the map under small noise, `max_n |m_n - m| / |m|`, of the maps' Euclidean norms."""
    change: Tensor = (noisy_maps - maps).flatten(2).norm(dim=2).amax(0)
    size = maps.flatten(1).norm(dim=1)
    return torch.div(change, size.clamp_min(1e-12))
