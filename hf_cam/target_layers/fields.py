"""The parts of a model's output that can be differentiated, and a scalar of each, for any head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hf_cam.outputs import are_levels, parts_of

_FIELDS = (
    "logits", "logits_per_image", "class_logits", "pred_logits", "predicted_depth", "image_embeds", "pooler_output"
)  # fmt: skip


def _likeliest(name: str | int) -> int:
    if name in _FIELDS:
        return _FIELDS.index(str(name))
    return 2 if "logits" in str(name) else len(_FIELDS)


def fields(output: Any) -> list[Tensor]:
    """The tensors of an output that can serve as scores, most likely first; the next is used if one is constant.

    Single numbers, such as a loss, come last; of the levels of a backbone, the deepest comes first.
    """
    return sorted(_usable(output), key=lambda field: field.ndim == 0)


def _usable(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.requires_grad and output.is_floating_point() and output.numel() else []
    parts = parts_of(output) or {}
    names = sorted(parts, key=_likeliest)
    return [field for name in (reversed(names) if are_levels(parts, 1) else names) for field in _usable(parts[name])]


def scores(output: Any) -> Iterator[Tensor]:
    """Scalars to differentiate, for any head: for each field of the output, the sum of the best classes' scores."""
    return (score(field) for field in fields(output))


def score(scores: Tensor) -> Tensor:
    """The score of the best class, summed over all other axes; infinite entries, which mask a class, are left out."""
    scores = scores.reshape(-1) if scores.ndim == 0 else scores
    finite = scores.where(scores.isfinite(), torch.finfo(scores.dtype).min)
    best = finite.amax(dim=1 if scores.ndim >= 4 else -1)
    return best.where(best > torch.finfo(scores.dtype).min, 0).float().sum()
