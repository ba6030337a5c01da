"""Detectors: one class logit per query that found an object."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from hf_cam.capture.inputs import Shared
from hf_cam.devices.transfer import on_host
from hf_cam.errors import TargetError, brief
from hf_cam.heads.base import Head, custom, numbers_of, overlaps
from hf_cam.heads.registry import register_head
from hf_cam.heads.similarity import given_prompts, sentence
from hf_cam.heads.subjects import PROBABILITY, Box, Subject
from hf_cam.images.geometry import Geometry
from hf_cam.outputs import BOXES, LOGITS, detections_of, field_of, upright
from hf_cam.request import Request
from hf_cam.targets import BoxLogit, ListedBox, QueryBox, QueryLogit, Target, index_of, side_of

NOT_SURE = "below the threshold"
SAME_OBJECT = 0.7
"""Boxes of one class with a larger overlap (IoU) count as one object found twice."""
ON_OBJECT = 0.5
"""The least overlap (IoU) of a predicted box or segment with the true one."""


@dataclass(frozen=True)
class Detections:
    """The predictions of all queries of a detector for one image.

    Args:
        scores: `[Q, K]` in [0, 1], without the class "no object".
        boxes: One per query, in the image's pixels.
    """

    scores: Tensor
    boxes: list[Box]

    def best(self, query: int) -> int:
        """The most likely class of a query.

        Raises:
            TargetError: there is no such query.
        """
        if not 0 <= query < len(self.boxes):
            raise TargetError(f"no query {query}; the model has {len(self.boxes)}")
        return int(self.scores[query].argmax())

    def score_at(self, box: Box, index: int) -> float:
        """The highest score of a class among the boxes that lie on this one (an IoU of `ON_OBJECT` or more); else 0."""
        if not self.boxes:
            return 0.0
        there = overlaps(box, self.boxes) >= ON_OBJECT
        return float(self.scores[there, index].max()) if there.any() else 0.0


@register_head("detection", tasks=["OBJECT_DETECTION"])
class DetectionHead(Head):
    """The class logit of each kept query; two objects of one class get different maps, as they have different queries.

    A target is a label (for its objects), the index of a query, a pixel `(x, y)` or a box `(x0, y0, x1, y1)` in the
    image (for the object there), `hf_cam.targets.BoxSide` (why the box ends there), `hf_cam.targets.SumOf` (several
    objects in one map) or any callable.
    """

    task: ClassVar[str] = "object-detection"
    # Grad-CAM's weights, the gradient averaged over space, are nearly the same for two objects of one class.
    method: ClassVar[str | None] = "hirescam"
    threshold: ClassVar[float | None] = 0.5
    """Default for requests without a threshold."""
    places: ClassVar[tuple[int, ...]] = (2, 4)
    also: ClassVar[str] = ", a pixel (x, y), a box (x0, y0, x1, y1)"

    def check(self, request: Request) -> None:
        """Refuse an unknown label."""
        super().check(request)
        target = request.target
        if target is None or callable(target) or _place(target) is not None or index_of(target) is not None:
            return
        self.index(request)

    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """The kept detections, most confident first; if none passes the threshold, the most confident one, flagged."""
        target = request.target
        if callable(target) and not isinstance(target, QueryLogit | QueryBox):
            return [custom(target)]
        found = self._detections(output, request, geometry)
        if isinstance(target, QueryLogit | QueryBox):
            chosen = [(target.query, found.best(target.query))]
        elif (place := _place(target)) is not None:
            query = _query_at(found, place)
            chosen = [(query, found.best(query))]
        elif (query_index := index_of(target)) is not None:
            chosen = [(query_index, found.best(query_index))]
        else:
            chosen = self._kept(found, request)
        return [self._subject(found, query, index, request) for query, index in chosen]

    def detections(self, output: Any, request: Request, geometry: Geometry) -> Detections:
        """The predictions for one image, whether they pass the threshold or not."""
        return self._detections(output, request, geometry)

    def _detections(self, output: Any, request: Request, geometry: Geometry) -> Detections:
        return Detections(self.scores(output, request), self._boxes(output, geometry))

    def scores(self, output: Any, request: Request) -> Tensor:
        """The scores of all queries, `[Q, K]`.

        Softmax heads (DETR) have a class "no object" after the labels; sigmoid heads (Deformable DETR, ...) do not.
        """
        logits = on_host(field_of(output, LOGITS)).float()
        classes, count = self.classes(request), logits.shape[-1]
        if not classes and not self.loaded.traits.is_transformers:
            raise TargetError(
                f"{self.model_name} returns {count} scores per query, and whether the last is 'no object' is open: "
                f"pass labels= to hf_cam.explain, {count - 1} names if it is, {count} if not, or target= as a callable"
            )
        softmax = bool(classes) and count == len(classes) + 1
        return logits.softmax(-1)[:, :-1] if softmax else logits.sigmoid()

    def target(self, query: int, index: int, request: Request) -> Target:
        """The scalar for one query and one class."""
        del request
        return QueryLogit(query, index)

    def side(self, target: Target, side: str) -> Target:
        """The coordinate of a side of the box of a query or of a listed detection."""
        if isinstance(target, QueryLogit | QueryBox):
            return QueryBox(target.query, side_of(side))
        if isinstance(target, BoxLogit):
            return ListedBox(target.box, target.label, side_of(side), target.read)
        return super().side(target, side)

    def _finds_box(self, target: Any) -> bool:
        return super()._finds_box(target) or isinstance(target, QueryLogit | QueryBox)

    def _boxes(self, output: Any, geometry: Geometry) -> list[Box]:
        # Models that take a mask of the padding give boxes as shares of the rest.
        of_seen = self.loaded.traits.accepts("pixel_mask")
        boxes = upright(on_host(field_of(output, BOXES)).float()).tolist()
        return [geometry.box_to_image(box, of_seen=of_seen) for box in boxes]

    def _kept(self, found: Detections, request: Request) -> list[tuple[int, int]]:
        """Queries and classes that pass the threshold, only those of the caller's label if there is one."""
        scores, classes = found.scores.max(-1)
        if request.target is not None:
            index = self.index(request)
            scores, classes = found.scores[:, index], torch.full_like(classes, index)
        order = batched_nms(torch.tensor(found.boxes), scores, classes, SAME_OBJECT)
        kept = [query for query in order.tolist() if scores[query] >= self.kept_from(request)]
        return [(query, int(classes[query])) for query in request.first(kept) or order[:1].tolist()]

    def _subject(self, found: Detections, query: int, index: int, request: Request) -> Subject:
        score = float(found.scores[query, index])
        callers = request.target if callable(request.target) else None
        return Subject(
            callers or self.target(query, index, request),
            self.label(index, request),
            score,
            found.boxes[query],
            flags=() if score >= self.kept_from(request) else (NOT_SURE,),
            score_kind=PROBABILITY,
        )


def _query_at(found: Detections, place: tuple[float, ...]) -> int:
    """The query of the most confident object at a pixel, or of the best match for a box.

    Raises:
        TargetError: there is no box at that place.
    """
    if len(place) == 4:
        fit = overlaps(place, found.boxes)  # type: ignore[arg-type]
    else:
        x, y = place
        fit = torch.tensor([float(x0 <= x <= x1 and y0 <= y <= y1) for x0, y0, x1, y1 in found.boxes])
    if not fit.any():
        where = f"the pixel ({place[0]:g}, {place[1]:g})" if len(place) == 2 else f"the box {place}"
        surest = ", ".join(f"{side:.0f}" for side in found.boxes[int(found.scores.amax(-1).argmax())])
        raise TargetError(f"the model predicts no box at {where}; its surest box is ({surest})")
    return int((fit * found.scores.amax(-1)).argmax())


def _place(target: Any) -> tuple[float, ...] | None:
    """The numbers of a pixel or a box; None if the target is neither."""
    if (box := numbers_of(target, 4)) is not None and not (box[0] < box[2] and box[1] < box[3]):
        raise TargetError(f"a box is (left, top, right, bottom) in pixels of the image, got {brief(target)}")
    return numbers_of(target, 2) or box


@register_head(
    "listed-detection",
    models=["torchvision.models.detection.*"],
    when=lambda traits: not traits.class_name.startswith("Backbone"),
)
class ListedDetectionHead(DetectionHead):
    """Detectors that return a list of boxes, labels and scores instead of queries, such as torchvision's.

    An index as target is the position of a detection in that list, most confident first.
    """

    def check(self, request: Request) -> None:
        """Refuse a label if the labels have no names."""
        if isinstance(request.target, str) and _place(request.target) is None and not self.classes(request):
            raise TargetError(
                f"{self.model_name} has no label names; pass a pixel, a box or a detection's index, or names as labels="
            )
        super().check(request)

    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """The kept detections, most confident first."""
        if callable(request.target) and not isinstance(request.target, QueryLogit):
            return [custom(request.target)]
        listed = {name: on_host(one) for name, one in self.listed(output).items()}
        if not len(listed["scores"]):
            raise TargetError(f"{self.model_name} finds nothing in this image")
        found = []
        for subject in super().subjects(listed, request, geometry):
            query = subject.target
            assert isinstance(query, QueryLogit)
            assert isinstance(query.index, int)
            found.append(replace(subject, target=self.target_of(output, listed, query.query, query.index)))
        return found

    def detections(self, output: Any, request: Request, geometry: Geometry) -> Detections:
        """The listed objects."""
        return self._detections(self.listed(output), request, geometry)

    def target_of(self, output: Any, listed: dict[str, Tensor], position: int, label: int) -> Target:
        """The scalar for one entry of the list."""
        del output
        x0, y0, x1, y1 = listed["boxes"][position].tolist()
        return BoxLogit((x0, y0, x1, y1), label)

    def listed(self, output: Any) -> dict[str, Tensor]:
        """The record of boxes `[N, 4]`, labels and scores in one sample's output.

        Raises:
            TargetError: there is none.
        """
        found = detections_of(output)
        if found is None:
            raise TargetError(f"the output of {self.model_name} holds no boxes with scores; pass target= as a callable")
        return found

    def scores(self, output: Any, request: Request) -> Tensor:
        """Each detection's score in the column of its class, `[N, K]`."""
        scores, labels = on_host(output["scores"]).float(), on_host(output["labels"]).long()
        count = max(int(labels.max()), *self.classes(request), 0) + 1
        return torch.zeros(len(scores), count).scatter_(1, labels[:, None], scores[:, None])

    def _kept(self, found: Detections, request: Request) -> list[tuple[int, int]]:
        if request.target is not None and not found.scores[:, self.index(request)].any():
            raise TargetError(
                f"{self.model_name} finds no {self.label(self.index(request), request)[:60]!r} in this image"
            )
        return super()._kept(found, request)

    def _boxes(self, output: Any, geometry: Geometry) -> list[Box]:
        height, width = geometry.model_size
        return [
            geometry.box_to_image(
                ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height), of_seen=False
            )
            for x0, y0, x1, y1 in on_host(output["boxes"]).float().tolist()
        ]


@register_head("prompt-detection", tasks=["ZERO_SHOT_OBJECT_DETECTION"])
class PromptDetectionHead(DetectionHead):
    """Detectors that look for what the prompts name (OWL-ViT, OWLv2): the classes are the prompts."""

    task: ClassVar[str] = "zero-shot-object-detection"
    takes_text: ClassVar[bool] = True
    threshold: ClassVar[float | None] = 0.1

    def given(self, inputs: Mapping[str, Any]) -> tuple[Request, Mapping[str, Any]]:
        """The surest object, of those that the caller's tokenized prompts name."""
        prompts = given_prompts(inputs)
        return Request(text=prompts[: max(1, len(prompts) // len(inputs["pixel_values"]))], top_k=1), inputs

    def classes(self, request: Request) -> Mapping[int, str]:
        """The prompts."""
        return dict(enumerate(request.text))

    def check(self, request: Request) -> None:
        """Refuse a request without prompts."""
        if not request.text:
            raise TargetError(
                f'{self.model_name} looks for what prompts name: pass text=, such as ["a cat", "a remote control"]'
            )
        super().check(request)

    def inputs(self, request: Request) -> Mapping[str, Any]:
        """The tokenized prompts, once per image."""
        tokens = self.loaded.tokens([sentence(prompt) for prompt in request.text])
        return {name: Shared(value, each=True) for name, value in tokens.items()}

    def scores(self, output: Any, request: Request) -> Tensor:
        """The scores of all candidates, `[Q, P]`."""
        return on_host(field_of(output, LOGITS)).float()[:, : len(request.text)].sigmoid()


@register_head(
    "phrase-detection", tasks=["ZERO_SHOT_OBJECT_DETECTION"], when=lambda traits: traits.accepts("token_type_ids")
)
class PhraseDetectionHead(PromptDetectionHead):
    """Grounding detectors (Grounding DINO): all prompts form one text; a prompt's logit is the mean over its tokens."""

    threshold: ClassVar[float | None] = 0.25

    def given(self, inputs: Mapping[str, Any]) -> tuple[Request, Mapping[str, Any]]:
        """The surest object, of those that the caller's tokenized text names."""
        count = len(_phrases(inputs["input_ids"][0].tolist(), BORDERS))
        return Request(text=tuple(f"phrase {index}" for index in range(count)), top_k=1), inputs

    def inputs(self, request: Request) -> Mapping[str, Any]:
        """One tokenized text, "a cat. a dog.", once per image."""
        return {name: Shared(value, each=True) for name, value in self._tokens(request).items()}

    def scores(self, output: Any, request: Request) -> Tensor:
        """The scores of all queries, `[Q, P]`: the highest score among the tokens of each prompt."""
        tokens = on_host(field_of(output, LOGITS)).float().sigmoid()
        return torch.stack([tokens[:, list(span)].amax(-1) for span in self._spans(request)], -1)

    def target(self, query: int, index: int, request: Request) -> Target:
        """The mean logit of the prompt's tokens."""
        return QueryLogit(query, self._spans(request)[index])

    def _tokens(self, request: Request) -> dict[str, Tensor]:
        return self.loaded.tokens([_joined(request.text)])

    def _spans(self, request: Request) -> list[tuple[int, ...]]:
        """The positions of each prompt's tokens; full stops and special tokens separate the prompts."""
        if (given := self.loaded.given.get("input_ids")) is not None:
            return _phrases(given[0].tolist(), BORDERS)
        [tokens] = self._tokens(request)["input_ids"].tolist()
        tokenizer = self.loaded.text_processor
        return _phrases(tokens, {*tokenizer.all_special_ids, tokenizer.convert_tokens_to_ids(".")})


BORDERS = (101, 102, 1012, 1029)
"""[CLS], [SEP], "." and "?" of BERT's vocabulary, at which these models themselves part a text."""


def _phrases(tokens: Sequence[int], borders: Collection[int]) -> list[tuple[int, ...]]:
    """The positions of the tokens between borders."""
    spans: list[list[int]] = [[]]
    for position, token in enumerate(tokens):
        if token not in borders:
            spans[-1].append(position)
        elif spans[-1]:
            spans.append([])
    return [tuple(span) for span in spans if span]


def _joined(prompts: Sequence[str]) -> str:
    return ". ".join(prompt.strip().lower().replace(".", " ") for prompt in prompts) + "."


@register_head(
    "task-detection", tasks=["ZERO_SHOT_OBJECT_DETECTION"], when=lambda traits: traits.accepts("classes_input_ids")
)
class TaskDetectionHead(PromptDetectionHead):
    """OmDet-Turbo: the prompts and a sentence that names the task."""

    threshold: ClassVar[float | None] = 0.3

    def given(self, inputs: Mapping[str, Any]) -> tuple[Request, Mapping[str, Any]]:
        """The surest object, of those that the caller's tokenized classes name."""
        count = int(inputs["classes_structure"][0])
        return Request(text=tuple(f"prompt {index}" for index in range(count)), top_k=1), inputs

    def inputs(self, request: Request) -> Mapping[str, Any]:
        """The tokens of the task and of each prompt, once per image."""
        task = self.loaded.tokens([f"Detect {', '.join(request.text)}."])
        classes = self.loaded.tokens(list(request.text))
        parts = {f"tasks_{name}": value for name, value in task.items()}
        parts |= {f"classes_{name}": value for name, value in classes.items()}
        parts["classes_structure"] = torch.tensor([len(request.text)])
        return {name: Shared(value, each=True) for name, value in parts.items()}
