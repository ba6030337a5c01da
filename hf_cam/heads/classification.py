"""Classifiers of images and of videos: single-label, multi-label, binary, regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from hf_cam.errors import TargetError
from hf_cam.heads.base import Head, custom
from hf_cam.heads.establish import plain_rows, reading_of
from hf_cam.heads.registry import register_head
from hf_cam.heads.subjects import PROBABILITY, Subject
from hf_cam.images.geometry import Geometry
from hf_cam.readings import AS_LOGITS, Reading, probabilities_of
from hf_cam.request import Request
from hf_cam.targets import BinaryLogit, BoxSide, ClassLogit, entries_of
from hf_cam.threads import cached_property

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
        order, scores = reading.on_host(output)
        if order.ndim != 1 or not len(order):
            raise TargetError(
                f"the model's logits for one image have the shape {tuple(order.shape)}, not [classes]; "
                "pass target= as a callable from one sample's output to a scalar"
            )
        if len(scores) == 1:
            return [self._single(reading, float(order[0]), float(scores[0]), request)]
        best = order.topk(min(request.top_k or 1, len(scores))).indices.tolist()
        return self._several(reading, best, scores, request)

    def subjects_of_batch(
        self, outputs: Any, requests: Sequence[Request], geometries: Sequence[Geometry]
    ) -> list[list[Subject]]:
        """What to explain in each image of a batch; of plain logits, all at once."""
        own = type(self).subjects is ClassificationHead.subjects and all(_names_one(one.target) for one in requests)
        if not own or (found := plain_rows(self.loaded, outputs, len(requests))) is None:
            return super().subjects_of_batch(outputs, requests, geometries)
        reading, logits = found
        scores = probabilities_of(logits, "logits", exclusive=reading.exclusive, axis=1)
        count = max(request.top_k or 1 for request in requests)
        best = logits.topk(min(count, logits.shape[1]), dim=1).indices.tolist()
        return [
            self._several(reading, mine[: request.top_k or 1], own_scores, request)
            for mine, own_scores, request in zip(best, scores, requests, strict=True)
        ]

    def _several(self, reading: Reading, best: Sequence[int], scores: Tensor, request: Request) -> list[Subject]:
        """The caller's class, or else the best ones.

        Args:
            reading: How the scores are read.
            best: The classes with the highest scores.
            scores: `[K]`, on the CPU.
            request: The caller's request.
        """
        chosen = best if request.target is None else [self._index(request, len(scores))]
        self._check_names(len(scores), request)
        found = []
        for index in chosen:
            score, name = float(scores[index]), self._name(index, len(scores), request)
            flags = _flags(reading, score)
            kind = PREDICTED_VALUE if reading.scale == "values" else PROBABILITY
            found.append(Subject(ClassLogit(index, reading), name, score, flags=flags, score_kind=kind))
        return found

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
        if names and self._last(names) >= count and names != self.loaded.traits.id2label:
            raise TargetError(
                f"labels= names the classes {min(names)} to {max(names)}, but the model returns {count} scores, "
                "counted from 0; pass one name per score, or a dict from index to name"
            )

    def _name(self, index: int, count: int, request: Request) -> str:
        """The name of a class; its index if the names do not fit the model's scores."""
        names = self.classes(request)
        return names.get(index, str(index)) if not names or self._last(names) < count else str(index)

    def _last(self, names: Mapping[int, str]) -> int:
        """The highest index of a class that has a name."""
        return self._last_of_own if names is self.loaded.id2label else max(names)

    @cached_property
    def _last_of_own(self) -> int:
        return max(self.loaded.id2label)

    def _single(self, reading: Reading, logit: float, score: float, request: Request) -> Subject:
        """A single score: a value, or the positive class against the negative one, which may have a name of its own."""
        names, target = self.classes(request), request.target
        negative, label = (names[0], names[1]) if set(names) == {0, 1} else (None, names.get(0, "0"))
        if reading.scale == "values":
            return Subject(ClassLogit(0, reading), label, score, score_kind=PREDICTED_VALUE)
        if target is None:
            positive = logit >= 0
        elif isinstance(target, BinaryLogit):
            positive = target.positive
        else:
            index = self._index(request, 1 if negative is None else 2)
            positive = negative is None or index == 1
        name = label if positive else negative or f"not {label}"
        chosen = score if positive else 1 - score
        known = negative or reading.scale != "logits" or self.loaded.output != "auto" or self.loaded.traits.problem_type
        flags = _flags(reading, score) if known else (UNDECLARED,)
        return Subject(BinaryLogit(positive, reading), name, chosen, flags=flags, score_kind=PROBABILITY)


def _names_one(target: Any) -> bool:
    """Whether a target is nothing or one class, by its index or label."""
    return target is None or (not callable(target) and not isinstance(target, BoxSide) and entries_of(target) is None)


def _flags(reading: Reading, score: float) -> tuple[str, ...]:
    """A warning if a probability is so close to 0 or 1 that its number is 0 or 1, and no gradient passes it."""
    saturated = reading.scale not in ("logits", "values") and score in (0.0, 1.0)
    return (SATURATED,) if saturated else ()
