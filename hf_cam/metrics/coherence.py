"""Coherence of a map: ARCC and its parts, stability under noise, and completeness of attributions."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_cam.metrics.perturbation import road_combined
from hf_cam.metrics.registry import metric

PAPER = "Domeniconi et al. (RefineCAM), arXiv:2605.14641, after Poppi et al., CVPR Workshops 2021, arXiv:2104.10252"


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of two maps, `[..., H, W]` to `[...]` in [-1, 1]; 0 if one of them is constant.

    >>> correlation(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]]))
    tensor(1.0000)
    """
    a, b = _centred(a), _centred(b)
    scale = a.norm(dim=-1) * b.norm(dim=-1)
    return (a * b).sum(-1) / torch.where(scale > 0, scale, torch.ones_like(scale))


def _centred(maps: Tensor) -> Tensor:
    """The values less their mean, `[..., H, W]` to `[..., N]`; zeros of a constant map, whose mean may be rounded."""
    values = maps.flatten(-2)
    low, high = values.aminmax(dim=-1, keepdim=True)
    return torch.where(low == high, 0, values - values.mean(-1, keepdim=True))


@metric("coherency", "coherency", paper=PAPER)
def coherency(maps: Tensor, kept_maps: Tensor) -> Tensor:
    """The correlation of the map with the map of the image multiplied by it, rescaled from [-1, 1] to [0, 1]."""
    return (correlation(maps, kept_maps) + 1) / 2


@metric("complexity", "complexity", higher_is_better=False, paper=PAPER)
def complexity(maps: Tensor) -> Tensor:
    """The mean of the map: how much of the image it shows, in [0, 1]."""
    return maps.abs().mean((-2, -1))


@metric(
    "entropy",
    "entropy",
    range=(0, float("inf")),
    higher_is_better=False,
    paper="Bhatt et al., IJCAI 2020, arXiv:2005.00631",
)
def entropy(maps: Tensor) -> Tensor:
    """The entropy of the pixels' shares of the map's sum, in nats: 0 for one pixel, log(H W) for a uniform map.

    A map of zeros scores 0.

    >>> entropy(torch.tensor([[[0.0, 3.0]], [[2.0, 2.0]]]))
    tensor([0.0000, 0.6931])
    """
    flat = maps.flatten(-2).abs()
    total = flat.sum(-1, keepdim=True)
    shares: Tensor = torch.special.entr(flat / torch.where(total > 0, total, torch.ones_like(total)))
    return shares.sum(-1)


@metric("arcc", "ARCC", paper=PAPER)
def arcc(maps: Tensor, kept_maps: Tensor, most_first: Tensor, least_first: Tensor) -> Tensor:
    """The harmonic mean of coherency, 1 - complexity and twice ROAD (0 if negative); 0 if any of them is 0.

    Report the parts as well.
    """
    road = (2 * road_combined(most_first, least_first)).clamp(0, 1)
    parts = torch.stack([coherency(maps, kept_maps), 1 - complexity(maps), road]).clamp_min(0)
    return 3 / (1 / parts.clamp_min(1e-8)).sum(0)


@metric(
    "max-sensitivity",
    "max-sensitivity",
    range=(0, float("inf")),
    higher_is_better=False,
    paper="Yeh et al., NeurIPS 2019, arXiv:1901.09392",
)
def max_sensitivity(maps: Tensor, noisy_maps: Tensor) -> Tensor:
    """The largest change of the map under small noise, `max_n |m_n - m| / |m|`, in Euclidean norms."""
    change: Tensor = (noisy_maps - maps).flatten(2).norm(dim=2).amax(0)
    size = maps.flatten(1).norm(dim=1)
    return torch.div(change, size.clamp_min(1e-12))


@metric(
    "completeness-error",
    "completeness error",
    range=(0, float("inf")),
    higher_is_better=False,
    paper="Sundararajan et al., ICML 2017, arXiv:1703.01365",
)
def completeness_error(attributions: Tensor, difference: Tensor) -> Tensor:
    """The error of the attributions' sum, as a share of the change in the target that they explain.

    `|sum(a) - d| / |d|` for signed attributions without normalization, where d is the target's value minus its value
    on the baseline that the method's axiom names.
    """
    return (attributions.flatten(1).sum(1) - difference).abs() / difference.abs().clamp_min(1e-12)
