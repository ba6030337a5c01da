"""Metrics of maps, which are pure functions with a range, a direction and a paper, and their registry.

`Trial(maps, Scorer(model, inputs, targets)).measure("road", "insertion")` computes them and the measurements they need.
"""

from hf_cam.metrics.baselines import BASELINES, centred_gaussian, noise, sobel_edges

# The order of these imports is the order of the tables: measurements come before the metrics that need them.
from hf_cam.metrics.measurements import shuffled_weights  # isort: skip
from hf_cam.metrics.confidence import confidence_change, confidence_drop, confidence_increase  # isort: skip
from hf_cam.metrics.perturbation import (  # isort: skip
    area,
    deletion,
    insertion,
    insertion_less_deletion,
    perturbation_negative,
    perturbation_positive,
    road_combined,
    road_least,
    road_most,
    saco,
)
from hf_cam.metrics.coherence import (  # isort: skip
    arcc,
    coherency,
    completeness_error,
    complexity,
    correlation,
    entropy,
    max_sensitivity,
)
from hf_cam.metrics.localization import (  # isort: skip
    average_precision,
    energy_inside,
    grid_mosaics,
    grid_pointing_game,
    intersection_over_union,
    mean_intersection_over_union,
    peak_inside,
    pixel_accuracy,
)
from hf_cam.metrics.sanity import (  # isort: skip
    model_randomization,
    rank_correlation,
    target_randomization,
)
from hf_cam.metrics.imputation import impute
from hf_cam.metrics.order import ranks
from hf_cam.metrics.registry import Measurement, Metric, get_metric, list_metrics, measurement, metric, register
from hf_cam.metrics.trial import Scorer, Trial
from hf_cam.targets import confidence

__all__ = [
    "BASELINES",
    "Measurement",
    "Metric",
    "Scorer",
    "Trial",
    "arcc",
    "area",
    "average_precision",
    "centred_gaussian",
    "coherency",
    "completeness_error",
    "complexity",
    "confidence",
    "confidence_change",
    "confidence_drop",
    "confidence_increase",
    "correlation",
    "deletion",
    "energy_inside",
    "entropy",
    "get_metric",
    "grid_mosaics",
    "grid_pointing_game",
    "impute",
    "insertion",
    "insertion_less_deletion",
    "intersection_over_union",
    "list_metrics",
    "max_sensitivity",
    "mean_intersection_over_union",
    "measurement",
    "metric",
    "model_randomization",
    "noise",
    "peak_inside",
    "perturbation_negative",
    "perturbation_positive",
    "pixel_accuracy",
    "rank_correlation",
    "ranks",
    "register",
    "road_combined",
    "road_least",
    "road_most",
    "saco",
    "shuffled_weights",
    "sobel_edges",
    "target_randomization",
]
