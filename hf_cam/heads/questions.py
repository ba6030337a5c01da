"""Visual question answering: the logit of an answer from a list, or the likelihood of a generated answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import Shared, model_inputs_of
from hf_cam.errors import TargetError, brief
from hf_cam.heads.base import behind_picture, custom
from hf_cam.heads.classification import ClassificationHead
from hf_cam.heads.registry import register_head
from hf_cam.heads.subjects import Subject
from hf_cam.images.geometry import Geometry
from hf_cam.request import Request
from hf_cam.targets import SumOf, is_ready

LONGEST_ANSWER = 10
IGNORED = -100  # the label that transformers' losses ignore
GIVEN_ANSWER = "the model's answer"
ANSWER_SHARE = "geometric mean of the tokens' probabilities"
DECODER = ("decoder_input_ids", "decoder_attention_mask")


@register_head("questions", tasks=["VISUAL_QUESTION_ANSWERING"])
class QuestionHead(ClassificationHead):
    """A question about the image; the target is an answer, by default the model's own."""

    task: ClassVar[str] = "visual-question-answering"
    takes_text: ClassVar[bool] = True

    def check(self, request: Request) -> None:
        """Refuse a request without a question."""
        if not request.text:
            raise TargetError(f'{self.model_name} answers questions: pass text=, such as "what colour is the cup?"')
        super().check(request)

    def given(self, inputs: Mapping[str, Any]) -> tuple[Request, Mapping[str, Any]]:
        """The answer to the question that the caller tokenized."""
        return Request(text=("the question",), top_k=1), inputs

    def rounds(self, request: Request, pictures: Mapping[str, Tensor]) -> list[Request]:
        """One request per question."""
        del pictures
        return [replace(request, text=(question,)) for question in request.text]

    def inputs(self, request: Request) -> Mapping[str, Any]:
        """The tokenized question, once per image."""
        return {name: Shared(value, each=True) for name, value in self.loaded.tokens(list(request.text)).items()}


@dataclass(frozen=True)
class AnswerLikelihood:
    """The mean log-probability of an answer's tokens, for a model that runs with the answer as `labels`.

    Args:
        answer: The text of the answer.
    """

    answer: str

    def __call__(self, output: Any) -> Tensor:
        """The scalar: the negative loss."""
        loss: Tensor = -output["loss"]
        return loss


@register_head("written-answers", tasks=["VISUAL_QUESTION_ANSWERING"], when=lambda traits: traits.writes)
class WrittenAnswerHead(QuestionHead):
    """Models that generate their answers (BLIP, BLIP-2): how likely the answer is, given the image."""

    alone: ClassVar[bool] = True  # the loss is a mean over the batch

    def check(self, request: Request) -> None:
        """Refuse a target that is not a text."""
        if request.target is not None and not isinstance(request.target, str) and not callable(request.target):
            raise TargetError(f"the target of {self.model_name} must be an answer as text, not {brief(request.target)}")
        super().check(replace(request, target=None))

    def check_one(self, request: Request) -> None:
        """Refuse a sum of answers, each of which takes a forward of its own."""
        if isinstance(request.target, SumOf) and not is_ready(request.target):
            raise TargetError(
                f"{self.model_name} reads each answer in a forward of its own, so answers have no sum; pass them as a "
                "list for one map each"
            )
        super().check_one(request)

    def given(self, inputs: Mapping[str, Any]) -> tuple[Request, Mapping[str, Any]]:
        """The answer in the caller's `labels`, or else the one that the model generates, as labels of the forward."""
        if len(inputs["pixel_values"]) > 1:
            raise TargetError(f"{self.model_name} scores the answers of a batch together: pass one image at a time")
        question = {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
        if "input_ids" not in question:
            raise TargetError(f"{self.model_name} answers questions: pass the tokens of one as input_ids=")
        request = Request(GIVEN_ANSWER, text=("the question",))
        if "labels" in inputs:
            return request, inputs
        written = self._generated(inputs["pixel_values"], question).to(question["input_ids"].device)
        answer = written[written != self.loaded.traits.read("image_token_index", -1)][None]  # no second picture
        if not answer.numel():
            raise TargetError(f"{self.model_name} generates no answer; pass the tokens of one as labels=")
        others = {name: value for name, value in inputs.items() if name not in (*question, *DECODER)}
        return request, {**others, **self._joined(question, answer)}

    def rounds(self, request: Request, pictures: Mapping[str, Tensor]) -> list[Request]:
        """One request per question and answer; if the caller gives no answer, the model first generates one."""
        asked = [one for single in request.singly() for one in super(WrittenAnswerHead, self).rounds(single, pictures)]
        return [self._answered(one, pictures) if one.target is None else one for one in asked]

    def inputs(self, request: Request) -> Mapping[str, Any]:
        """The tokenized question, and the answer as labels."""
        question = self._question(request)
        if not isinstance(request.target, str):
            return {name: Shared(value) for name, value in question.items()}
        joined = self._joined(question, self.loaded.tokens([request.target])["input_ids"])
        return {name: Shared(value) for name, value in joined.items()}

    def _joined(self, question: Mapping[str, Tensor], answer: Tensor) -> dict[str, Tensor]:
        """The inputs of a question and its answer, `[1, L]` each."""
        if not self._reads_on():
            return {**question, "labels": answer}
        ids = question["input_ids"]
        return {
            "input_ids": torch.cat([ids, answer], 1),
            "attention_mask": torch.ones(1, ids.shape[1] + answer.shape[1], dtype=torch.long),
            "labels": torch.cat([torch.full_like(ids, IGNORED), answer], 1),
        }

    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """The answer; its score is the geometric mean of the probabilities of its tokens."""
        del geometry
        if not isinstance(request.target, str):
            return [custom(request.target)]
        score = math.exp(-float(output["loss"].detach()))
        return [Subject(AnswerLikelihood(request.target), request.target, score, score_kind=ANSWER_SHARE)]

    def _answered(self, request: Request, pictures: Mapping[str, Tensor]) -> Request:
        """The same request with the model's own answer as target."""
        written = self._generated(pictures["pixel_values"], self._question(request))
        answer = self.loaded.text_processor.decode(written, skip_special_tokens=True).strip()
        if not answer:
            raise TargetError(f"{self.model_name} generates no answer; pass one as target=")
        return replace(request, target=answer)

    def _generated(self, pixels: Tensor, question: Mapping[str, Tensor]) -> Tensor:
        """The tokens of the answer that the model generates, `[L]`."""
        module = self.loaded.module
        inputs = model_inputs_of(module, pixels, question)
        with borrowed(module) as replica, torch.no_grad():
            [written] = replica.generate(**inputs, max_new_tokens=LONGEST_ANSWER)  # type: ignore[operator]
        tokens: Tensor = written
        return tokens

    def _question(self, request: Request) -> dict[str, Tensor]:
        """The tokens of the question, after the placeholders for the image (BLIP-2)."""
        return behind_picture(self.loaded.tokens(list(request.text)), self.loaded.traits)

    def _reads_on(self) -> bool:
        """Whether the language model reads question and answer as one sequence."""
        return bool(self.loaded.traits.read("use_decoder_only_language_model"))
