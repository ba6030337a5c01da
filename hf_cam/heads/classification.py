"""Classifiers of images and of videos: single-label, multi-label, binary, regression."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from hf_cam.errors import TargetError
from hf_cam.heads.base import Head, custom
from hf_cam.heads.establish import reading_of
from hf_cam.heads.registry import register_head
from hf_cam.heads.subjects import PROBABILITY, Subject
from hf_cam.images.geometry import Geometry
from hf_cam.readings import AS_LOGITS, Reading
from hf_cam.request import Request
from hf_cam.targets import BinaryLogit, ClassLogit

SATURATED = "probability saturated"
UNDECLARED = "single number read as a logit; output= declares it"
PREDICTED_VALUE = "predicted value"


@register_head("classification", tasks=["IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION"])
class ClassificationHead(Head):
    """Class logits: those of the highest classes, or that of the class that the caller names.

    Where the model returns probabilities, the scores are its own, and what is differentiated is the log-probability of
    the class after a softmax, or its log-odds after a sigmoid. A single score belongs to a binary classifier (its sign
    is flipped for the negative class) or, if `output="regression"` or the config's `problem_type` declares it, is the
    predicted value itself.
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
        reading = reading_of(self.loaded, output) if target is None else self._reading(output, target)
        order, scores = reading.logits(output).detach(), reading.scores(output).detach()
        if order.ndim != 1 or not len(order):
            raise TargetError(
                f"the model's logits for one image have the shape {tuple(order.shape)}, not [classes]; "
                "pass target= as a callable from one sample's output to a scalar"
            )
        count = len(scores)
        if count == 1:
            return [self._single(reading, output, request)]
        best = order.topk(min(request.top_k or 1, count)).indices.tolist()
        chosen = best if target is None else [self._index(request, count)]
        self._check_names(count, request)
        return [
            Subject(
                ClassLogit(index, reading),
                self._name(index, count, request),
                float(scores[index]),
                flags=_flags(reading, scores[index]),
                score_kind=PROBABILITY,
            )
            for index in chosen
        ]

    def _reading(self, output: Any, target: Any) -> Reading:
        """The reading of a caller's own target, unless it is the default one."""
        own = target.reading if isinstance(target, ClassLogit | BinaryLogit) else AS_LOGITS
        return reading_of(self.loaded, output) if own == AS_LOGITS else own

    def _index(self, request: Request, count: int) -> int:
        """The index of the class that the caller asks for, which must be one of the model's scores."""
        target = request.target
        index = target.index if isinstance(target, ClassLogit) else self.index(request)
        if index >= count:
            called = self.classes(request).get(index)
            raise TargetError(
                f"class {index}{f' ({called[:60]!r})' if called else ''} does not exist: the model returns {count} "
                f"score{'s' * (count != 1)}, counted from 0; label names must count like them (labels=)"
            )
        return index

    def _check_names(self, count: int, request: Request) -> None:
        """Refuse names of the caller's that do not fit the model's scores; those of a config are then not used."""
        names = self.classes(request)
        if names and max(names) >= count and names != self.loaded.traits.id2label:
            raise TargetError(
                f"labels= names the classes {min(names)} to {max(names)}, but the model returns {count} scores, "
                "counted from 0; pass one name per score, or a dict from index to name"
            )

    def _name(self, index: int, count: int, request: Request) -> str:
        """The name of a class; its index if the names do not fit the model's scores."""
        names = self.classes(request)
        return names.get(index, str(index)) if not names or max(names) < count else str(index)

    def _single(self, reading: Reading, output: Any, request: Request) -> Subject:
        """A single score: a value, or the positive class against the negative one, which may have a name of its own."""
        names, target = self.classes(request), request.target
        negative, label = (names[0], names[1]) if set(names) == {0, 1} else (None, names.get(0, "0"))
        if reading.scale == "values":
            return Subject(
                ClassLogit(0, reading), label, float(reading.values(output).detach()[0]), score_kind=PREDICTED_VALUE
            )
        score = reading.scores(output).detach()[0]
        share = float(score)
        if target is None:
            positive = float(reading.logits(output).detach()[0]) >= 0
        elif isinstance(target, BinaryLogit):
            positive = target.positive
        else:
            index = self._index(request, 1 if negative is None else 2)
            positive = negative is None or index == 1
        name = label if positive else negative or f"not {label}"
        chosen = share if positive else 1 - share
        known = negative or reading.scale != "logits" or self.loaded.output != "auto" or self.loaded.traits.problem_type
        flags = _flags(reading, score) if known else (UNDECLARED,)
        return Subject(BinaryLogit(positive, reading), name, chosen, flags=flags, score_kind=PROBABILITY)


def _flags(reading: Reading, score: Tensor) -> tuple[str, ...]:
    """A warning if a probability is so close to 0 or 1 that its number is 0 or 1, and no gradient passes it."""
    saturated = reading.scale != "logits" and (float(score) in (0.0, 1.0))
    return (SATURATED,) if saturated else ()
