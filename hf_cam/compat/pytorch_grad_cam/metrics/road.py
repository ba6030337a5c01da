"""ROAD: remove pixels along a map, impute them from their surroundings, and debias (Rong et al., arXiv:2202.00449)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from hf_cam.compat.pytorch_grad_cam.metrics.perturbation_confidence import (
    PERCENTILES,
    AveragerAcrossThresholds,
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
)
from hf_cam.metrics.imputation import impute


class NoisyLinearImputer:
    """Missing pixels become the weighted mean of their neighbours, plus noise of a fixed seed.

    Args:
        noise: Standard deviation of the noise.
        seed: Its seed; grad-cam draws from torch's global generator.
    """

    def __init__(self, noise: float = 0.01, seed: int = 0) -> None:
        self.noise, self.seed = noise, seed

    def __call__(self, img: Tensor, mask: Tensor) -> Tensor:
        """The picture `[C, H, W]` with the pixels imputed at which the mask `[H, W]` is 0."""
        return impute(img[None], mask[None] == 0, self.noise, self.seed)[0]


class ROADMostRelevantFirst(PerturbationConfidenceMetric):
    """The change of the value when the most relevant pixels are imputed.

    Args:
        percentile: The share of the pixels that stay, in percent.
    """

    def __init__(self, percentile: float | str = 80) -> None:
        super().__init__(RemoveMostRelevantFirst(percentile, NoisyLinearImputer()))


class ROADLeastRelevantFirst(PerturbationConfidenceMetric):
    """The change of the value when the least relevant pixels are imputed.

    Args:
        percentile: The share of the pixels that stay, in percent.
    """

    def __init__(self, percentile: float | str = 20) -> None:
        super().__init__(RemoveLeastRelevantFirst(percentile, NoisyLinearImputer()))


class ROADMostRelevantFirstAverage(AveragerAcrossThresholds):
    """The mean of `ROADMostRelevantFirst` over several percentiles."""

    def __init__(self, percentiles: Sequence[float] = PERCENTILES) -> None:
        super().__init__(ROADMostRelevantFirst, percentiles)


class ROADLeastRelevantFirstAverage(AveragerAcrossThresholds):
    """The mean of `ROADLeastRelevantFirst` over several percentiles."""

    def __init__(self, percentiles: Sequence[float] = PERCENTILES) -> None:
        super().__init__(ROADLeastRelevantFirst, percentiles)


class ROADCombined:
    """Half the difference of the two averages: higher for a map whose order of the pixels is the model's."""

    def __init__(self, percentiles: Sequence[float] = PERCENTILES) -> None:
        self.percentiles = percentiles
        self.morf_averager = ROADMostRelevantFirstAverage(percentiles)
        self.lerf_averager = ROADLeastRelevantFirstAverage(percentiles)

    def __call__(
        self, input_tensor: Tensor, cams: np.ndarray, targets: Sequence[Callable[[Any], Tensor]], model: nn.Module
    ) -> np.ndarray:
        """One value per image."""
        given = (input_tensor, cams, targets, model)
        found: np.ndarray = (self.lerf_averager(*given) - self.morf_averager(*given)) / 2
        return found
