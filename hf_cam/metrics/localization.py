"""Does the map lie on the thing? Maps and masks are `[..., H, W]` of one size; a mask is boolean. Higher is better."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_cam.errors import OptionError


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of the map's sum that lies inside the mask, in [0, 1]; 0 for a map of zeros.

    The energy-based pointing game of Wang et al. (Score-CAM, CVPR Workshops 2020, arXiv:1910.01279). An even map scores
    the share that the mask has of the image.

    >>> energy_inside(torch.tensor([[1.0, 3.0]]), torch.tensor([[False, True]]))
    tensor(0.7500)
    """
    maps, masks = _checked(maps, masks)
    total = maps.sum((-2, -1))
    return (maps * masks).sum((-2, -1)) / torch.where(total > 0, total, torch.ones_like(total))


def peak_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """1 where the map's highest value lies inside the mask, else 0; a map of zeros has no peak and gets 0.

    The pointing game of Zhang et al. (Top-down Neural Attention, ECCV 2016, arXiv:1608.00507), without its margin.

    >>> peak_inside(torch.tensor([[1.0, 3.0]]), torch.tensor([[False, True]]))
    tensor(1.)
    """
    maps, masks = _checked(maps, masks)
    peaks = maps.flatten(-2).argmax(-1, keepdim=True)
    inside = masks.flatten(-2).gather(-1, peaks).squeeze(-1)
    return (inside & maps.flatten(-2).any(-1)).float()


def average_precision(maps: Tensor, masks: Tensor) -> Tensor:
    """The area under the precision-recall curve of the map as a score for each pixel, in [0, 1].

    Pixels of one value count together, so that an even map scores the share that the mask has of the image.

    >>> average_precision(torch.tensor([[0.1, 0.9, 0.8]]), torch.tensor([[False, True, False]]))
    tensor(1.)
    """
    maps, masks = _checked(maps, masks)
    flat, truth = maps.reshape(-1, maps.shape[-2] * maps.shape[-1]), masks.reshape(-1, maps.shape[-2] * maps.shape[-1])
    return torch.stack([_one(scores, inside) for scores, inside in zip(flat, truth, strict=True)]).reshape(
        maps.shape[:-2]
    )


def _one(scores: Tensor, inside: Tensor) -> Tensor:
    ordered, order = scores.sort(descending=True)
    hits = inside[order].cumsum(0).double()
    last_of_value = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool, device=scores.device)])
    ranks = torch.arange(1, len(scores) + 1, device=scores.device)[last_of_value]
    hits = hits[last_of_value]
    gained = torch.diff(hits, prepend=hits.new_zeros(1))
    return ((gained * hits / ranks).sum() / hits[-1].clamp_min(1)).to(scores.dtype)


def _checked(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    if maps.shape != masks.shape or maps.ndim < 2:
        raise OptionError(
            f"maps and masks have one shape [..., H, W], got {tuple(maps.shape)} and {tuple(masks.shape)}"
        )
    if masks.dtype != torch.bool:
        raise OptionError(f"masks are boolean, got {masks.dtype}")
    if not maps.isfinite().all() or (maps < 0).any():
        raise OptionError("maps are finite and not negative")
    return (maps if maps.dtype == torch.float64 else maps.float()), masks
