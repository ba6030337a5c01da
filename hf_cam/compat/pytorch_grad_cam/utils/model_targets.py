"""grad-cam's targets: callables from the output for one image, or for a batch, to what is explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou


class ClassifierOutputTarget:
    """The score of one class.

    >>> ClassifierOutputTarget(2)(torch.tensor([0.0, 1.0, 5.0]))
    tensor(5.)
    """

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        """Of `[K]` a scalar, of `[B, K]` one per image."""
        return model_output[..., self.category]


class ClassifierOutputSoftmaxTarget(ClassifierOutputTarget):
    """The probability of one class. Its gradient vanishes where the model is certain, so prefer the score."""

    def __call__(self, model_output: Tensor) -> Tensor:
        """Of `[K]` a scalar, of `[B, K]` one per image."""
        return model_output.softmax(-1)[..., self.category]


class ClassifierOutputReST(ClassifierOutputTarget):
    """The score of one class plus the logarithm of its probability (arXiv:2501.06261)."""

    def __call__(self, model_output: Tensor) -> Tensor:
        """Of `[K]` a scalar, of `[B, K]` one per image."""
        return model_output[..., self.category] + functional.log_softmax(model_output, -1)[..., self.category]


class BinaryClassifierOutputTarget:
    """The one score of a binary classifier, negated for every category but 1."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        """Of the shape of the output."""
        return model_output if self.category == 1 else -model_output


class SoftmaxOutputTarget:
    """All probabilities: for metrics and for methods that read no target."""

    def __call__(self, model_output: Tensor) -> Tensor:
        """Of the shape of the output."""
        return model_output.softmax(-1)


class RawScoresOutputTarget:
    """The output itself: for metrics, for methods that read no target, and for models with one score."""

    def __call__(self, model_output: Tensor) -> Tensor:
        """Of the shape of the output."""
        return model_output


class SemanticSegmentationTarget:
    """The scores of one class, summed over a mask.

    Args:
        category: The class.
        mask: `[H, W]`, of the size of the output.
    """

    def __init__(self, category: int, mask: np.ndarray) -> None:
        self.category, self.mask = category, torch.from_numpy(mask)

    def __call__(self, model_output: Tensor) -> Tensor:
        """The scalar, from `[K, H, W]`."""
        return (model_output[self.category] * self.mask.to(model_output.device)).sum()


class FasterRCNNBoxScoreTarget:
    """How well given boxes are still found: the overlap plus the score of each box's nearest detection of its label.

    Args:
        labels: One per box.
        bounding_boxes: `[N, 4]`, or N arrays `[4]`, as left, top, right, bottom.
        iou_threshold: A box whose nearest detection overlaps no more than this counts nothing.
    """

    def __init__(self, labels: Sequence[int], bounding_boxes: Sequence[Any], iou_threshold: float = 0.5) -> None:
        self.labels, self.bounding_boxes, self.iou_threshold = labels, bounding_boxes, iou_threshold

    def __call__(self, model_outputs: Mapping[str, Tensor]) -> Tensor:
        """`[1]`, from torchvision's record of one image."""
        boxes, labels, scores = (model_outputs[name] for name in ("boxes", "labels", "scores"))
        total = boxes.new_zeros(1)
        if not len(boxes):
            return total
        for box, label in zip(self.bounding_boxes, self.labels, strict=True):
            [overlaps] = box_iou(torch.as_tensor(box).to(boxes)[None], boxes)
            nearest = overlaps.argmax()
            if overlaps[nearest] > self.iou_threshold and labels[nearest] == label:
                total = total + overlaps[nearest] + scores[nearest]
        return total


class FinerWeightedTarget:
    """How far a class exceeds its rivals, weighted by their probabilities (arXiv:2501.11309).

    Args:
        main_category: The class.
        comparison_categories: The rivals.
        alpha: Their weight.
    """

    def __init__(self, main_category: int, comparison_categories: Sequence[int], alpha: float) -> None:
        self.main_category, self.comparison_categories, self.alpha = main_category, comparison_categories, alpha

    def __call__(self, model_output: Tensor) -> Tensor:
        """Of `[K]` a scalar, of `[B, K]` one per image."""
        rivals = list(self.comparison_categories)
        weights = model_output.softmax(-1)[..., rivals]
        differences = model_output[..., self.main_category, None] - self.alpha * model_output[..., rivals]
        return (weights * differences).sum(-1) / (weights.sum(-1) + 1e-9)
