"""Whether the map lies on the object. Maps and boolean masks are `[..., H, W]` of the same size. Higher is better."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_cam.errors import OptionError
from hf_cam.metrics.registry import metric


@metric("energy-inside", "energy inside", paper="Wang et al., CVPR Workshops 2020, arXiv:1910.01279")
def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of the map's sum that lies inside the mask, in [0, 1]; 0 for a map of zeros.

    The energy-based pointing game of Score-CAM. A uniform map scores the mask's share of the image.

    >>> energy_inside(torch.tensor([[1.0, 3.0]]), torch.tensor([[False, True]]))
    tensor(0.7500)
    """
    maps, masks = _checked(maps, masks)
    total = maps.sum((-2, -1))
    return (maps * masks).sum((-2, -1)) / torch.where(total > 0, total, torch.ones_like(total))


@metric("pointing-game", "pointing game", paper="Zhang et al., ECCV 2016, arXiv:1608.00507")
def peak_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """1 if the map's highest value lies inside the mask, else 0; a map of zeros has no peak and scores 0.

    The pointing game without its margin; the first of several equal peaks in reading order counts.

    >>> peak_inside(torch.tensor([[1.0, 3.0]]), torch.tensor([[False, True]]))
    tensor(1.)
    """
    maps, masks = _checked(maps, masks)
    peaks = maps.flatten(-2).argmax(-1, keepdim=True)
    inside = masks.flatten(-2).gather(-1, peaks).squeeze(-1)
    return (inside & maps.flatten(-2).any(-1)).float()


@metric("average-precision", "average precision", paper="area under the precision-recall curve; no paper")
def average_precision(maps: Tensor, masks: Tensor) -> Tensor:
    """The area under the precision-recall curve, with the map as a score for each pixel, in [0, 1].

    Pixels of equal value count together, so a uniform map scores the mask's share of the image.

    >>> average_precision(torch.tensor([[0.1, 0.9, 0.8]]), torch.tensor([[False, True, False]]))
    tensor(1.)
    """
    maps, masks = _checked(maps, masks)
    flat, truth = maps.reshape(-1, maps.shape[-2] * maps.shape[-1]), masks.reshape(-1, maps.shape[-2] * maps.shape[-1])
    return torch.stack([_one(scores, inside) for scores, inside in zip(flat, truth, strict=True)]).reshape(
        maps.shape[:-2]
    )


@metric("iou", "foreground IoU", paper="the foreground's part of the mean IoU of Chefer et al., arXiv:2012.09838")
def intersection_over_union(maps: Tensor, masks: Tensor) -> Tensor:
    """The intersection over union of the mask and the pixels above the map's own mean, in [0, 1].

    >>> intersection_over_union(torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[False, True, False]]))
    tensor(0.5000)
    """
    maps, masks = _checked(maps, masks)
    return _overlap(_above_mean(maps), masks).to(maps.dtype)


@metric("mean-iou", "mean IoU", paper="Chefer et al., CVPR 2021, arXiv:2012.09838")
def mean_intersection_over_union(maps: Tensor, masks: Tensor) -> Tensor:
    """The mean of the intersections over union of foreground and background, for the map thresholded at its own mean.

    Of each image by itself; the paper first adds up the intersections and unions of all images.

    >>> mean_intersection_over_union(torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[False, True, False]]))
    tensor(0.5000)
    """
    maps, masks = _checked(maps, masks)
    shown = _above_mean(maps)
    return ((_overlap(shown, masks) + _overlap(~shown, ~masks)) / 2).to(maps.dtype)


@metric("pixel-accuracy", "pixel accuracy", paper="Chefer et al., CVPR 2021, arXiv:2012.09838")
def pixel_accuracy(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of pixels on which the mask agrees with the map thresholded at its own mean, in [0, 1].

    >>> pixel_accuracy(torch.tensor([[0.0, 1.0, 1.0, 0.0]]), torch.tensor([[False, True, False, False]]))
    tensor(0.7500)
    """
    maps, masks = _checked(maps, masks)
    return (_above_mean(maps) == masks).to(maps.dtype).mean((-2, -1))


def grid_mosaics(pixels: Tensor, quadruples: Sequence[Sequence[int]]) -> Tensor:
    """2 x 2 mosaics for the grid pointing game of Rao et al. (Towards Better Understanding Attribution Methods, CVPR
    2022, arXiv:2205.10435): each explained class occurs in only one quarter.

    Args:
        pixels: `[B, C, H, W]`, images of different classes.
        quadruples: Four indices of images per mosaic: top left, top right, bottom left, bottom right.

    Returns:
        `[M, C, 2 H, 2 W]`.

    >>> grid_mosaics(torch.arange(4.0).reshape(4, 1, 1, 1), [[0, 1, 2, 3]])[0, 0]
    tensor([[0., 1.],
            [2., 3.]])
    """
    if any(len(four) != 4 for four in quadruples):
        raise OptionError("each mosaic needs the indices of exactly four images")
    tiles = torch.stack([pixels[list(four)] for four in quadruples])
    return torch.cat([torch.cat([tiles[:, 0], tiles[:, 1]], -1), torch.cat([tiles[:, 2], tiles[:, 3]], -1)], -2)


def grid_pointing_game(maps: Tensor, quarters: Tensor) -> Tensor:
    """The share of the map's sum that lies in the explained quarter of the mosaic, in [0, 1]; chance is 1/4.

    Args:
        maps: `[B, 2 H, 2 W]`, non-negative.
        quarters: `[B]`, 0 to 3 in reading order.

    >>> grid_pointing_game(torch.tensor([[[0.0, 3.0], [1.0, 0.0]]]), torch.tensor([1]))
    tensor([0.7500])
    """
    height, width = maps.shape[-2] // 2, maps.shape[-1] // 2
    masks = torch.zeros(maps.shape, dtype=torch.bool, device=maps.device)
    for mask, quarter in zip(masks, quarters.tolist(), strict=True):
        top, left = quarter // 2 * height, quarter % 2 * width
        mask[top : top + height, left : left + width] = True
    return energy_inside(maps, masks)


def _overlap(shown: Tensor, masks: Tensor) -> Tensor:
    """The intersection over union; 0 if both are empty."""
    return (shown & masks).sum((-2, -1)) / (shown | masks).sum((-2, -1)).clamp_min(1)


def _above_mean(maps: Tensor) -> Tensor:
    """Where a map exceeds its mean; nowhere if it is the same everywhere, whichever way its mean is rounded."""
    return (maps > maps.mean((-2, -1), keepdim=True)) & (maps > maps.amin((-2, -1), keepdim=True))


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
            f"maps and masks must have the same shape [..., H, W], got {tuple(maps.shape)} and {tuple(masks.shape)}"
        )
    if masks.dtype != torch.bool:
        raise OptionError(f"masks must be boolean, got {masks.dtype}")
    if not maps.isfinite().all() or (maps < 0).any():
        raise OptionError("maps must be finite and non-negative")
    return (maps if maps.dtype == torch.float64 else maps.float()), masks
