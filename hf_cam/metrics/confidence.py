"""Changes in the model's confidence when it sees only what the map shows: the image multiplied by the map."""

from __future__ import annotations

from torch import Tensor

from hf_cam.metrics.registry import metric

PAPER = "Chattopadhyay et al. (Grad-CAM++), WACV 2018, arXiv:1710.11063"


@metric("confidence-change", "confidence change", range=(-1, 1), paper=PAPER)
def confidence_change(scores: Tensor, kept_scores: Tensor) -> Tensor:
    """The confidence for the image multiplied by the map, minus the confidence for the image itself.

    In [-1, 1] for a probability. Confidence drop and confidence increase are derived from it.
    """
    return kept_scores - scores


@metric("confidence-drop", "confidence drop", higher_is_better=False, paper=PAPER)
def confidence_drop(scores: Tensor, kept_scores: Tensor) -> Tensor:
    """The fall in confidence when the image is multiplied by the map; 0 if the confidence rises.

    `max(0, y - y_kept)`, as in the reference implementation; the paper divides by `y`.
    """
    return (scores - kept_scores).clamp_min(0)


@metric("confidence-increase", "confidence increase", paper=PAPER)
def confidence_increase(scores: Tensor, kept_scores: Tensor) -> Tensor:
    """1 if the confidence rises when the image is multiplied by the map, else 0; its mean is a rate."""
    return (kept_scores > scores).to(scores.dtype)
