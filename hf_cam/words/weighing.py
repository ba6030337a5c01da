"""How much each cell of the picture contributed to each word, by a method and the signals that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from hf_cam.words.writing import alike, answer_rows, decodes

DEFAULT = "word-contribution"
ELSEWHERE = "word-gradient-x-input"
"""The default where the picture's cells are not in the language model's own sequence, or its attention is not seen."""


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
        place: Where the picture's cells enter.
        score: Of the tokens.
        words: The indices of each word's tokens.
        rows: `[T]` the rows that predict the tokens in a forward over the whole text, counted from its last position.
        length: Of the whole text.
        whole: The inputs of a forward over the whole text.
        noisy: Those of the same with noise in place of the picture.
        blank: Those of the same with its mean colour in place of the picture.
        cached: Those of a forward over the rows alone, or over all from a position on, on a cache, which the next call
            cuts; or None.
        known: `[t, V]` logits that the first t tokens were written with; None if they are not known.
    """

    model: nn.Module
    place: Place
    score: Score
    words: Sequence[Sequence[int]]
    rows: Tensor
    length: int
    whole: Callable[[], Mapping[str, Any]]
    noisy: Callable[[], Mapping[str, Any]]
    blank: Callable[[], Mapping[str, Any]]
    cached: Callable[..., Mapping[str, Any] | None] = field(default=lambda before=None: None)
    known: Tensor | None = field(default=None, repr=False)

    @property
    def within_text(self) -> bool:
        """Whether the picture's cells are among the positions that write the text."""
        return self.place.kind == "in the sequence" and not decodes(self.model)


def weighed(method: str, question: Question) -> Weighed:
    """The weights by a method; "auto" takes the default, or gradient x input where that is not defined.

    Raises:
        MethodError: there is no such method, or it is not defined here.
        NoGradientError: no gradient reaches the picture's cells.
    """
    record = WORD_METHODS.get(DEFAULT if method == "auto" else method)
    if method == "auto" and not question.within_text:
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
        with LocalRules("halved") if signal == "relevance_entry" else nullcontext():
            entry = entry_of(
                question.model, question.whole(), question.score, question.place, question.words, question.rows
            )
            _check(entry.logits, question)
            return Weighed(method.weights(entry).cpu(), entry.logits, method.id)
    if not question.within_text:
        raise MethodError(
            f"{method.id!r} needs the picture's cells among the positions that write the text, but this model's are "
            f"elsewhere ({question.place}); {ELSEWHERE!r} takes them there"
        )
    if signal == "readout":
        cells, tokens = question.place.cells, question.score.tokens
        found: Any = readout_of(question.model, question.whole(), tokens, cells, question.rows)
    else:
        found = _rows(question, signal)
    weights = joined(method.weights(found).cpu(), question.words)
    return Weighed(weights.clamp_min(0), found.logits, method.id)


def _rows(question: Question, signal: str) -> Rows:
    """The rows from the generation's cache, if they predict what the model wrote; else from one forward over it all."""
    cells, count = question.place.cells, question.score.count

    def recorded(inputs: Mapping[str, Any], rows: Tensor, queries: int) -> Rows:
        return recorded_rows(
            question.model, inputs, question.score, cells, rows=rows, queries=queries, keys=question.length,
            rules=LocalRules("frozen") if signal == "linear_rows" else nullcontext(),
            differentiate=signal != "attention_rows",
        )  # fmt: skip

    if (cached := question.cached()) is not None:
        found = recorded(cached, answer_rows(count), count)
        if found.calls and agree(found.logits, question):
            return found
    found = recorded(question.whole(), question.rows, question.length)
    _check(found.logits, question)
    if not found.calls:
        raise MethodError(
            f"no call of attention over the whole sequence was seen in {type(question.model).__name__}; "
            f"{ELSEWHERE!r} needs none"
        )
    return found


def agree(logits: Tensor, question: Question) -> bool:
    """Whether logits `[T, V]` predict the tokens as they were written."""
    return question.known is None or alike(logits, question.known, question.score.tokens)


def _check(logits: Tensor, question: Question) -> None:
    """Refuse a forward that predicts other words than were written.

    Raises:
        ModelError: it does.
    """
    if not torch.isfinite(logits).all():
        raise ModelError("the model's logits are not finite; run it in a wider dtype")
    if not agree(logits, question):
        raise ModelError(
            "the model predicts other words in one forward over prompt and answer than it wrote, so no gradient of "
            "what it wrote can be taken"
        )
