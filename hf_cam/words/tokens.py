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
from hf_cam.targets import entries_of
from hf_cam.threads import unwarned

ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Kana and Han characters, which are written without blanks between words: each counts as one."""
MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0903\u093a-\u094f\u0981-\u0983\u09bc-\u09cd"
    "\u0a01-\u0a03\u0a3c-\u0a4d\u0a81-\u0a83\u0abc-\u0acd\u0b01-\u0b03\u0b3c-\u0b4d\u0b82\u0bbe-\u0bcd\u0c00-\u0c04\u0c3c-\u0c4d\u0c81-\u0c83"
    "\u0cbc-\u0ccd\u0d00-\u0d03\u0d3b-\u0d4d\u0d81-\u0d83\u0dca-\u0ddf\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece"
    "\u0f71-\u0f84\u102b-\u103e\u17b4-\u17d3\u200c\u200d"
)
"""Marks that belong to the letter before them, among them the vowels of Indic scripts; `\\w` leaves them out."""
LETTER = rf"(?:(?![{ALONE}])[\w{MARKS}])"
WORD = re.compile(rf"[{ALONE}]|(?:(?![{ALONE}])\w){LETTER}*(?:['\u2019\-]{LETTER}+)*")


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


def readings_of(answer: str, tokenizer: Any, prompt: str = "") -> list[Tensor]:
    """The ids `[T]` by which a model may write a text that it is forced to write: with and without a blank before it.

    Args:
        answer: The text.
        tokenizer: Of the model.
        prompt: What precedes it; its end decides how some tokenizers read the first word.

    Raises:
        TargetError: the answer has no word, or the tokenizer does not know one, or turns it into another text.
    """
    if not WORD.search(answer):
        raise TargetError(f"answer={brief(answer)} has no word to explain; pass a text such as 'a red cup'")
    forms = [_ids(answer, tokenizer), _ids(f" {answer}", tokenizer)]
    if prompt and (before := _ids(prompt, tokenizer)):
        joint = (_ids(f"{prompt}{blank}{answer}", tokenizer) for blank in ("", " "))
        forms += [ids[len(before) :] for ids in joint if ids[: len(before)] == before]
    kept: list[list[int]] = []
    for ids in forms:
        if ids and ids not in kept and _reads(ids, answer, tokenizer):
            kept.append(ids)
    if not kept:
        raise TargetError(
            f"the model's tokenizer reads answer={brief(answer)} as {brief(_decoded(forms[0], tokenizer))}, so its "
            "words cannot be told apart; use words of its vocabulary"
        )
    return [torch.tensor(ids) for ids in kept]


def _ids(text: str, tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _reads(ids: Sequence[int], answer: str, tokenizer: Any) -> bool:
    """Whether ids stand for a text, but for blanks and case."""
    return tokenizer.unk_token_id not in ids and _plain(_decoded(ids, tokenizer)) == _plain(answer)


def _plain(text: str) -> str:
    """A text without blanks and case."""
    return "".join(text.split()).casefold()


def check_target(target: Any) -> None:
    """Refuse what names no words of an answer, before there is one.

    Args:
        target: None, a word, a phrase or a regular expression, a list of these, or a pair of words to contrast.

    Raises:
        TargetError: it is something else.
    """
    if isinstance(target, tuple):
        if len(target) != 2 or not all(isinstance(one, str) and one.strip() for one in target):
            raise TargetError(f"a contrast takes two words, such as ('red', 'blue'), not {brief(target)}")
        if target[0].strip() == target[1].strip():
            raise TargetError(f"a contrast takes two different words, such as ('red', 'blue'), not {brief(target)}")
        return
    for one in entries_of(target) or [target]:
        if isinstance(one, tuple):
            raise TargetError(f"a contrast is explained alone: pass target={brief(one)}, and others in further calls")
        if one is not None and (not isinstance(one, str) or not one.strip()):
            raise TargetError(
                f"the target of a generated answer must be one of its words, a regular expression or a pair of words "
                f"to contrast, not {brief(one)}"
            )


def words_named(text: Text, target: str, *, finished: bool = True) -> list[Word]:
    """The words of an answer that a caller's word, phrase or regular expression names.

    Args:
        text: The answer.
        target: The word; case does not matter.
        finished: Whether the model ended the answer itself.

    Raises:
        TargetError: it was not said; the message quotes the answer.
    """
    spans = [one.span() for one in _pattern(target).finditer(text.text)]
    named = [word for word in text.words if any(word.span[0] < end and word.span[1] > start for start, end in spans)]
    if not named and target in text.text:
        raise TargetError(f"{brief(target)} is no word of the answer {_quoted(text.text)}, which target= must name")
    if not named:
        cut = "" if finished else " and was cut off; generate={'max_new_tokens': 200} lets it go on"
        raise TargetError(f"the model did not write {brief(target)}; its answer is {_quoted(text.text)}{cut}")
    return named


FLAGS = re.compile(r"(?:\(\?[aimsux]+\))?")
"""Flags at the start of a regular expression, where alone they may stand."""


def _pattern(target: str) -> re.Pattern[str]:
    """The regular expression that finds whole words; a text that is none stands for itself."""
    flags = FLAGS.match(target)[0]  # type: ignore[index]
    try:
        with unwarned():  # of forms whose meaning may change one day
            re.compile(target)
            return re.compile(rf"{flags}(?<!\w)(?:{target[len(flags) :]})(?!\w)", re.IGNORECASE)
    except (re.error, OverflowError, RecursionError):
        return re.compile(rf"(?<!\w)(?:{re.escape(target)})(?!\w)", re.IGNORECASE)


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
    said = next((one for one in pair if _pattern(one).search(text.text)), pair[0])
    words = words_named(text, said, finished=finished)
    words = [word for word in words if word.span[0] < _pattern(said).search(text.text).end()]  # type: ignore[union-attr]
    places = list(dict.fromkeys(at for word in words for at in word.tokens))
    own = [int(tokens[at]) for at in places]
    other = _continued(pair[1] if said == pair[0] else pair[0], said, own, tokenizer)
    for at, mine, theirs in zip(places, own, other, strict=False):
        if mine != theirs:
            word = next(one for one in words if at in one.tokens)
            return (word, at, mine, theirs) if said == pair[0] else (word, at, theirs, mine)
    raise TargetError(
        f"{brief(pair[0])} and {brief(pair[1])} begin with the same tokens, so there is nothing to contrast"
    )


def _continued(other: str, said: str, own: Sequence[int], tokenizer: Any) -> list[int]:
    """The ids of another word at the same place: with the blank before it, if the word that was said has one there."""
    forms = sorted((" ", ""), key=lambda blank: _ids(f"{blank}{said}", tokenizer)[:1] != list(own[:1]))
    for blank in forms:
        ids = _ids(f"{blank}{other}", tokenizer)
        if ids and tokenizer.unk_token_id not in ids and tokenizer.decode(ids[:1]).strip():
            return ids
    raise TargetError(f"the model's tokenizer has no tokens for {brief(other)}")


def _quoted(answer: str) -> str:
    return f'"{answer}"' if len(answer) <= 200 else f'"{answer[:150]} ... {answer[-40:]}"'
