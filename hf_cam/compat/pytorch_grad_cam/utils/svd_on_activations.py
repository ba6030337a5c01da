"""Principal components of activations, as arrays; each sign is fixed by hf-cam, where grad-cam's is arbitrary."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hf_cam.methods.reductions import first_component, first_component_by_extreme, first_kernel_component


def get_2d_projection(activation_batch: np.ndarray) -> np.ndarray:
    """The first principal component of `[B, C, *space]`, as `[B, *space]` in float32; NaN counts as 0."""
    return _projected(first_component, activation_batch)


def get_2d_projection_with_sign_correction(activation_batch: np.ndarray) -> np.ndarray:
    """The same with its larger extreme positive (Seg-Eigen-CAM, eq. 13)."""
    return _projected(first_component_by_extreme, activation_batch)


def get_2d_projection_kernel(
    activation_batch: np.ndarray, kernel: str = "sigmoid", gamma: float | None = None
) -> np.ndarray:
    """The first component of a kernel principal component analysis, scaled to the length of the vectors."""
    return _projected(partial(first_kernel_component, kernel=kernel, gamma=gamma), activation_batch)


def _projected(reduce: Callable[[Tensor], Tensor], batch: np.ndarray) -> np.ndarray:
    finite = torch.from_numpy(np.where(np.isnan(batch), 0, batch))
    return reduce(finite).float().numpy()
