"""Words and their places in a text, from the ids that a model wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hf_cam.errors import TargetError, brief

ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Kana and Han characters, which are written without blanks between words: each counts as one."""
WORD = re.compile(rf"[{ALONE}]|(?:(?![{ALONE}])\w)+(?:['\u2019\-](?:(?![{ALONE}])\w)+)*")


@dataclass(frozen=True)
class Word:
    """One word of an answer.

    Args:
        label: The word.
        span: Its start and end in the text.
        tokens: The indices of its tokens in the answer.
    """

    label: str
    span: tuple[int, int]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Text:
    """An answer and its words.

    Args:
        text: The answer.
        words: In its order.
    """

    text: str
    words: tuple[Word, ...]


def text_of(tokens: Tensor, tokenizer: Any) -> Text:
    """The text of ids `[T]` and its words; punctuation belongs to none.

    Each token ends where the text of the tokens up to it ends, so that no token is looked for in the text.
    """
    ids = tokens.tolist()
    ends = [0]
    for count in range(1, len(ids) + 1):
        ends.append(max(ends[-1], len(_decoded(ids[:count], tokenizer))))
    full = _decoded(ids, tokenizer)
    shift = len(full) - len(full.lstrip())
    text = full.strip()
    words = [
        Word(one[0], one.span(), _covering(ends, one.start() + shift, one.end() + shift)) for one in WORD.finditer(text)
    ]
    return Text(text, tuple(word for word in words if word.tokens))


def _decoded(ids: Sequence[int], tokenizer: Any) -> str:
    decoded: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return decoded.rstrip("\ufffd")  # half a character, which the next token completes


def _covering(ends: Sequence[int], start: int, end: int) -> tuple[int, ...]:
    """The tokens that share a character with a span."""
    return tuple(i for i, (first, last) in enumerate(pairwise(ends)) if first < end and last > start)


def tokens_of(answer: str, tokenizer: Any) -> Tensor:
    """The ids `[T]` of a text that the model is forced to write.

    Raises:
        TargetError: the tokenizer does not know a word of it, or turns it into another text.
    """
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    again = _decoded(ids, tokenizer)
    if not ids or tokenizer.unk_token_id in ids or _plain(again) != _plain(answer):
        raise TargetError(
            f"the model's tokenizer reads answer={brief(answer)} as {brief(again)}, so its words cannot be told apart; "
            "use words of its vocabulary"
        )
    return torch.tensor(ids)


def _plain(text: str) -> str:
    """A text without blanks and case."""
    return "".join(text.split()).casefold()


def words_named(text: Text, target: Any, *, finished: bool = True) -> list[Word]:
    """The words of an answer that a caller's word, phrase or regular expression names.

    Args:
        text: The answer.
        target: The word; case does not matter.
        finished: Whether the model ended the answer itself.

    Raises:
        TargetError: it was not said; the message quotes the answer.
    """
    if not isinstance(target, str) or not target.strip():
        raise TargetError(
            f"the target of a generated answer must be one of its words, a regular expression or a pair of words to "
            f"contrast, not {brief(target)}"
        )
    spans = [one.span() for one in _pattern(target).finditer(text.text)]
    named = [word for word in text.words if any(word.span[0] < end and word.span[1] > start for start, end in spans)]
    if not named:
        cut = "" if finished else " and was cut off; generate={'max_new_tokens': 200} lets it go on"
        raise TargetError(f"the model did not write {brief(target)}; its answer is {_quoted(text.text)}{cut}")
    return named


def _pattern(target: str) -> re.Pattern[str]:
    for form in (target, re.escape(target)):
        try:
            return re.compile(rf"(?<!\w)(?:{form})(?!\w)", re.IGNORECASE)
        except re.error:
            continue
    raise TargetError(f"{brief(target)} is neither a word nor a regular expression")


def contrasted(
    text: Text, pair: tuple[str, str], tokens: Tensor, tokenizer: Any, *, finished: bool
) -> tuple[Word, int, int, int]:
    """Two continuations at one place: the word that was said there, the row, and the two tokens to compare.

    Args:
        text: The answer.
        pair: The word that is explained, and the one that it is contrasted with; one of them was said.
        tokens: `[T]` ids of the answer.
        tokenizer: Of the model.
        finished: Whether the model ended the answer itself.

    Returns:
        The word, the index of its first differing token, and the ids of the first and of the second word there.

    Raises:
        TargetError: neither was said, or both begin with the same tokens.
    """
    said = next((one for one in pair if _pattern(one).search(text.text)), None)
    [word, *_] = words_named(text, pair[0] if said is None else said, finished=finished)
    own = [int(tokens[at]) for at in word.tokens]
    blank = word.span[0] > 0 and text.text[word.span[0] - 1].isspace()
    other = _continued(pair[1] if said == pair[0] else pair[0], own, blank, tokenizer)
    for at, mine, theirs in zip(word.tokens, own, other, strict=False):
        if mine != theirs:
            return (word, at, mine, theirs) if said == pair[0] else (word, at, theirs, mine)
    raise TargetError(
        f"{brief(pair[0])} and {brief(pair[1])} begin with the same tokens, so there is nothing to contrast"
    )


def _continued(other: str, own: Sequence[int], blank: bool, tokenizer: Any) -> list[int]:
    """The ids of another word at the same place: with the blank before it, if that is part of its first token."""
    forms = [f" {other}", other] if blank else [other]
    for form in forms:
        ids: list[int] = tokenizer(form, add_special_tokens=False)["input_ids"]
        if ids and tokenizer.decode(ids[:1]).strip():
            return ids
    raise TargetError(f"the model's tokenizer has no tokens for {brief(other)}")


def _quoted(answer: str) -> str:
    return f'"{answer}"' if len(answer) <= 200 else f'"{answer[:150]} ... {answer[-40:]}"'
