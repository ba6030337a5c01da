"""Do attributions add up to what they explain?"""

from __future__ import annotations

from torch import Tensor

from hf_cam.metrics.registry import metric


@metric(
    "completeness-error",
    "completeness error",
    range=(0, float("inf")),
    higher_is_better=False,
    paper="Sundararajan et al., ICML 2017, arXiv:1703.01365",
)
def completeness_error(attributions: Tensor, difference: Tensor) -> Tensor:
    """How far the attributions' sum misses the change of the target that they explain, relative to it.

    `|sum(a) - d| / |d|` of signed attributions that were not normalised, d the target's value less its value on the
    baseline that the method's axiom names.
    """
    return (attributions.flatten(1).sum(1) - difference).abs() / difference.abs().clamp_min(1e-12)
