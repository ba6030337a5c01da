"""How much each cell of the picture contributed to each word, by a method and the signals that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.local_rules import LocalRules
from hf_cam.errors import MethodError, ModelError
from hf_cam.words.entry import entry_of
from hf_cam.words.methods import WORD_METHODS, WordMethod, joined
from hf_cam.words.place import Place
from hf_cam.words.readout import readout_of
from hf_cam.words.rows import Rows, recorded_rows
from hf_cam.words.scores import Score
from hf_cam.words.writing import Written, cached_inputs, whole_inputs

DEFAULT = "word-relevance"
ELSEWHERE = "word-gradient-x-input"
"""The default where the picture's cells are not in the language model's own sequence, or its attention is not seen."""
ALIKE = 0.02
"""Largest difference of probabilities at which two forwards count as the same."""


@dataclass(frozen=True, eq=False)
class Weighed:
    """The weights of the picture's cells.

    Args:
        weights: `[words, n]`, at least 0.
        logits: `[T, V]` at the rows that predict the tokens.
        method: The id of the method.
    """

    weights: Tensor
    logits: Tensor = field(repr=False)
    method: str


@dataclass(frozen=True, eq=False)
class Question:
    """What is explained, on one replica.

    Args:
        model: A replica.
        inputs: The prompt and the picture.
        text: What the model wrote.
        place: Where the picture's cells enter.
        score: Of the text's tokens.
        words: The indices of each word's tokens.
    """

    model: nn.Module
    inputs: Mapping[str, Any] = field(repr=False)
    text: Written
    place: Place
    score: Score
    words: Sequence[Sequence[int]]


def weighed(method: str, question: Question) -> Weighed:
    """The weights by a method; "auto" takes the default, or gradient x input where that is not defined.

    Raises:
        MethodError: there is no such method, or it is not defined here.
        NoGradientError: no gradient reaches the picture's cells.
    """
    record = WORD_METHODS.get(DEFAULT if method == "auto" else method)
    if method == "auto" and question.place.kind != "in the sequence":
        record = WORD_METHODS.get(ELSEWHERE)
    try:
        return _weighed(record, question)
    except MethodError:
        if method != "auto" or record.id == ELSEWHERE:
            raise
    return _weighed(WORD_METHODS.get(ELSEWHERE), question)


def _weighed(method: WordMethod, question: Question) -> Weighed:
    [signal] = method.needs
    if signal in ("entry", "relevance_entry"):
        inputs = whole_inputs(question.model, question.inputs, question.text)
        with LocalRules("halved") if signal == "relevance_entry" else nullcontext():
            entry = entry_of(question.model, inputs, question.score, question.place, question.words)
            _check(entry.logits, question.text)
            return Weighed(method.weights(entry).cpu(), entry.logits, method.id)
    if question.place.kind != "in the sequence":
        raise MethodError(
            f"{method.id!r} needs the picture's cells in the language model's own sequence, but this model's are "
            f"{question.place.kind}; {ELSEWHERE!r} takes them there"
        )
    if signal == "readout":
        inputs = whole_inputs(question.model, question.inputs, question.text)
        found: Any = readout_of(question.model, inputs, question.score.tokens, question.place.cells)
    else:
        found = _rows(question, differentiate=signal == "gradient_rows")
    return Weighed(joined(method.weights(found).cpu(), question.words), found.logits, method.id)


def _rows(question: Question, *, differentiate: bool) -> Rows:
    """The rows from the generation's cache, if they predict what the model wrote; else from one forward over it all."""
    text, tokens = question.text, len(question.text.tokens)
    length = text.prompt.shape[1] + tokens - 1
    cached = cached_inputs(question.model, question.inputs, text)
    if cached is not None:
        rows = recorded_rows(
            question.model, cached, question.score, question.place.cells,
            queries=tokens, keys=length, differentiate=differentiate,
        )  # fmt: skip
        if rows.calls and agree(rows.logits, text):
            return rows
    inputs = whole_inputs(question.model, question.inputs, text)
    rows = recorded_rows(
        question.model, inputs, question.score, question.place.cells,
        queries=length, keys=length, differentiate=differentiate,
    )  # fmt: skip
    _check(rows.logits, text)
    if not rows.calls:
        raise MethodError(
            f"no call of attention over the whole sequence was seen in {type(question.model).__name__}; "
            f"{ELSEWHERE!r} needs none"
        )
    return rows


def agree(logits: Tensor, text: Written) -> bool:
    """Whether logits `[T, V]` predict the tokens as the generation did."""
    count = min(len(text.logits), len(logits))
    tokens = text.tokens[:count, None].to(logits.device)
    one = logits[:count].float().softmax(1).gather(1, tokens)
    other = text.logits[:count].to(logits.device).softmax(1).gather(1, tokens)
    return bool(((one - other).abs() <= ALIKE + ALIKE * other).all())


def _check(logits: Tensor, text: Written) -> None:
    """Refuse a forward that predicts other words than were written.

    Raises:
        ModelError: it does.
    """
    if not torch.isfinite(logits).all():
        raise ModelError("the model's logits are not finite; run it in a wider dtype")
    if not agree(logits, text):
        raise ModelError(
            "the model predicts other words in one forward over prompt and answer than it wrote, so no gradient of "
            "what it wrote can be taken"
        )
