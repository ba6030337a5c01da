"""Classifiers of images and of videos: single-label, multi-label, binary, regression."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from hf_cam.errors import TargetError
from hf_cam.heads.base import Head, Subject, custom
from hf_cam.heads.registry import register_head
from hf_cam.images.geometry import Geometry
from hf_cam.outputs import probabilities, row_of
from hf_cam.request import Request
from hf_cam.targets import BinaryLogit, ClassLogit


@register_head("classification", tasks=["IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION"])
class ClassificationHead(Head):
    """Class logits: those of the highest classes, or that of the class that the caller names.

    A single logit belongs to a binary classifier (its sign is flipped for the negative class) or, if the config has
    `problem_type="regression"`, is the predicted value itself.
    """

    task: ClassVar[str] = "image-classification"

    def check(self, request: Request) -> None:
        """Refuse a target that is not a class."""
        super().check(request)
        if request.target is not None and not callable(request.target):
            self.index(request)

    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """The caller's class, or else the `top_k` highest ones (by default one)."""
        del geometry
        target = request.target
        if callable(target) and not isinstance(target, ClassLogit | BinaryLogit):
            return [custom(target)]
        logits = self._logits(output)
        if len(logits) == 1:
            return [self._single(logits, request)]
        scores = probabilities(logits.detach(), self.loaded.traits.problem_type)
        if target is None:
            best = logits.detach().topk(min(request.top_k or 1, len(logits))).indices.tolist()
        else:
            best = [target.index if isinstance(target, ClassLogit) else self.index(request)]
        return [Subject(ClassLogit(index), self.label(index, request), float(scores[index])) for index in best]

    def _logits(self, output: Any) -> Tensor:
        logits = row_of(output)
        if logits.ndim != 1 or len(logits) == 0:
            raise TargetError(
                f"the model's logits for one image have the shape {tuple(logits.shape)}, not [classes]; "
                "pass target= as a callable from one sample's output to a scalar"
            )
        return logits

    def _single(self, logits: Tensor, request: Request) -> Subject:
        value, label, target = float(logits.detach()[0]), self.label(0, request), request.target
        if self.loaded.traits.problem_type == "regression":
            return Subject(ClassLogit(0), label, value)
        positive = value >= 0 if target is None else getattr(target, "positive", True)
        score = float(probabilities(logits.detach() if positive else -logits.detach())[0])
        return Subject(BinaryLogit(positive), label if positive else f"not {label}", score)
