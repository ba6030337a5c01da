"""Whether a model recognizes what an image is labelled with: its class, or the marked object at its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_cam.auditing.cases import Box, Case, Opened
from hf_cam.errors import OptionError, TargetError
from hf_cam.heads import Head
from hf_cam.heads.classification import ClassificationHead
from hf_cam.heads.detection import ON_OBJECT, DetectionHead
from hf_cam.heads.establish import reading_of
from hf_cam.heads.segmentation import MaskHead, SemanticHead
from hf_cam.heads.similarity import PromptHead
from hf_cam.images.geometry import Geometry
from hf_cam.outputs import similarities_of
from hf_cam.request import Request


@dataclass(frozen=True)
class Recognized:
    """What a model says about one class in one image.

    Args:
        score: How sure it is, in [0, 1]; of a detector or segmenter, at the object's place.
        right: Whether it gives the image this class, or finds an object of it there.
    """

    score: float
    right: bool


@dataclass(frozen=True, eq=False)
class Shown:
    """An image as the model gets it.

    Args:
        case: Where it comes from.
        opened: The image, with what marks its object.
        pixels: `[1, C, h, w]`, on the model's device.
        geometry: Where the image lies in them.
        label: Its class.
        right: Whether the model gives it this class, or finds the object of this class in it.
    """

    case: Case
    opened: Opened
    pixels: Tensor
    geometry: Geometry
    label: int
    right: bool = True

    def mask(self, region: np.ndarray) -> Tensor:
        """A region `[H, W]` of the image in the model's pixels, `[h, w]` booleans."""
        height, width = self.geometry.model_size
        return self.geometry.mask_to_grid(region, (height, width)) if region.any() else torch.zeros(height, width) > 0

    @property
    def object(self) -> np.ndarray:
        """The marked object, `[H, W]` booleans; nothing where none is marked."""
        height, width = self.opened.image.height, self.opened.image.width
        return np.zeros((height, width), bool) if self.opened.inside is None else self.opened.inside


Recognizer = Callable[[Any, Any, Shown, Request], Recognized]
"""`(head, output for the image or a variant of it, the image, request) -> what the model says`."""


def class_scores(head: Head, output: Any) -> Tensor:
    """`[K]` in [0, 1]: the scores of the classes or prompts in one sample's output, two for a binary classifier."""
    if isinstance(head, PromptHead):
        return similarities_of(output).float().softmax(-1)
    scores = reading_of(head.loaded, output).scores(output).float()
    return torch.stack([1 - scores[0], scores[0]]) if len(scores) == 1 else scores


def by_class(head: ClassificationHead, output: Any, one: Shown, request: Request) -> Recognized:
    """The probability of the class, of a classifier."""
    scores = class_scores(head, output)
    return Recognized(float(scores[one.label]), int(scores.argmax()) == one.label)


def by_prompt(head: PromptHead, output: Any, one: Shown, request: Request) -> Recognized:
    """The share of the class's prompt."""
    shares = class_scores(head, output)
    return Recognized(float(shares[one.label]), int(shares.argmax()) == one.label)


def by_box(head: DetectionHead, output: Any, one: Shown, request: Request) -> Recognized:
    """The score of the surest box of the class on the object, which is found from the detector's threshold on."""
    try:
        found = head.detections(output, request, one.geometry)
    except TargetError:  # the detector lists nothing
        return Recognized(0.0, False)
    score = found.score_at(box_in_pixels(one.opened), one.label)
    return Recognized(score, score >= head.kept_from(request))


def by_region(head: SemanticHead, output: Any, one: Shown, request: Request) -> Recognized:
    """The mean probability of the class over the object, which is found if no other class has a higher mean logit."""
    found = head.class_maps(output)
    region = one.geometry.mask_to_grid(marked(one.opened), found.grid)
    index = int(found.logits[:, region].mean(1).argmax()) if region.any() else -1
    return Recognized(float(found.scores[one.label][region].mean()) if region.any() else 0.0, index == one.label)


def by_segment(head: MaskHead, output: Any, one: Shown, request: Request) -> Recognized:
    """The score of the surest segment of the class on the object (an IoU of 0.5 or more)."""
    found = head.segments(output, request)
    region = one.geometry.mask_to_grid(marked(one.opened), (found.shares.shape[1], found.shares.shape[2]))
    covered = found.shares >= 0.5
    joint = (covered & region).sum((1, 2)) / (covered | region).sum((1, 2)).clamp_min(1)
    there = (joint >= ON_OBJECT) & (torch.tensor(found.classes) == one.label)
    score = max((score for score, on in zip(found.scores, there.tolist(), strict=True) if on), default=0.0)
    return Recognized(score, score >= head.kept_from(request))


BY_HEAD: dict[type[Head], Recognizer] = {
    ClassificationHead: by_class,
    PromptHead: by_prompt,
    DetectionHead: by_box,
    SemanticHead: by_region,
    MaskHead: by_segment,
}
LOCATING = (DetectionHead, SemanticHead, MaskHead)
"""Heads that recognize an object at its place, so that each image needs its box or mask."""


def recognizer_of(head: Head) -> Recognizer:
    """How a head recognizes.

    Raises:
        OptionError: an audit does not take such models.
    """
    found = next((recognize for kind, recognize in BY_HEAD.items() if isinstance(head, kind)), None)
    if found is None or head.loaded.takes_videos:
        raise OptionError(
            "an audit takes classifiers of images, models that compare them with prompts, detectors and segmenters, "
            f"not {head.model_name}"
        )
    if "regression" in (head.loaded.output, head.loaded.traits.problem_type):
        raise OptionError(f"an audit compares classes, but {head.model_name} predicts values")
    return found


def box_in_pixels(opened: Opened) -> Box:
    """The object's box `(x0, y0, x1, y1)` in the image's pixels."""
    (x0, y0, x1, y1), (width, height) = opened.box, opened.image.size
    return x0 * width, y0 * height, x1 * width, y1 * height


def marked(opened: Opened) -> np.ndarray:
    """The object's pixels, `[H, W]` booleans.

    Raises:
        OptionError: nothing marks it.
    """
    if opened.inside is None or not opened.inside.any():
        raise OptionError("the object has no box or mask; an audit of a detector or segmenter needs boxes= or masks=")
    return opened.inside


def target_of(head: Head, opened: Opened) -> Any:
    """What the map of an image explains: the object at its place, or None for the most likely class."""
    if not isinstance(head, LOCATING):
        return None
    inside = marked(opened)
    return box_in_pixels(opened) if isinstance(head, DetectionHead) else inside
