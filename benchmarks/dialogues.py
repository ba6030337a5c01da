"""Questions about scenes and their true answers, in which every noun and colour is traced to the item that it names.

A dialogue reads as LLaVA's do: the picture comes first, then the question, then the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import transformers as hf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from benchmarks.scenes import COLORS, LABELS, Scene, phrase

Kind = Literal["noun", "colour"]

APART = 6.0
"""Pixels between the centres of two neighbours, from which their order from left to right is clear."""

IMAGE = "<image>"
PROMPT = "USER: {image}\n{question} ASSISTANT:"
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'user' %} {% else %}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""LLaVA 1.5's format of a chat."""

DESCRIBE = ("What is in the picture?", "Describe the picture.", "What do you see?")
COLOUR = ("What colour is the {}?", "What color is the {}?")
SIDE = ("What is on the {}?",)
COUNT = ("How many items are there?", "How many items?")
NUMBERS = ("one", "two", "three", "four")
PLAIN = "grey"
"""What an untinted item is called if its colour is asked for; captions do not mention it."""


@dataclass(frozen=True)
class Mention:
    """Characters `start` to `end` of an answer name the scene's item number `item`, or its colour."""

    start: int
    end: int
    item: int
    kind: Kind


@dataclass(frozen=True)
class Dialogue:
    """One question about a scene, its answer, and the words of the answer that name an item."""

    question: str
    answer: str
    mentions: tuple[Mention, ...] = ()

    @property
    def prompt(self) -> str:
        """What the model reads before its answer, with the placeholder of the picture."""
        return PROMPT.format(image=IMAGE, question=self.question)


Piece = str | tuple[str, int, Kind]
"""Part of an answer: plain text, or a word with the item that it names."""


def dialogue(question: str, pieces: Iterable[Piece]) -> Dialogue:
    """Join pieces of an answer, with a capital at its start and a full stop at its end.

    >>> dialogue("What is on the left?", ["a ", ("bag", 2, "noun")])
    Dialogue(question='What is on the left?', answer='A bag.', mentions=(Mention(start=2, end=5, item=2, kind='noun'),))
    """
    answer, mentions = "", []
    for piece in pieces:
        text, *named = (piece,) if isinstance(piece, str) else piece
        if named:
            mentions.append(Mention(len(answer), len(answer) + len(text), *named))
        answer += text
    return Dialogue(question, f"{answer[:1].upper()}{answer[1:]}.", tuple(mentions))


def from_left(scene: Scene) -> list[int]:
    """The scene's items from left to right, by the centres of their boxes."""
    return np.argsort(scene.boxes[:, 0] + scene.boxes[:, 2], kind="stable").tolist()


def in_clear_order(scene: Scene) -> bool:
    """Whether all neighbours are at least `APART` pixels apart from left to right."""
    centres = np.sort((scene.boxes[:, 0] + scene.boxes[:, 2]) / 2)
    return bool((np.diff(centres) >= APART).all())


def named(scene: Scene, item: int) -> list[Piece]:
    """The words for one item: an article, its colour unless it is untinted, and its noun."""
    label, color = LABELS[scene.labels[item]], COLORS[scene.colors[item]]
    article = phrase(scene.labels[item], scene.colors[item]).split()[0]
    tint: list[Piece] = [(color, item, "colour"), " "] if color else []
    return [f"{article} ", *tint, (label, item, "noun")]


def describe(scene: Scene, rng: np.random.Generator) -> Dialogue:
    """What is in the picture: every item, from left to right."""
    pieces: list[Piece] = []
    order = from_left(scene)
    for place, item in enumerate(order):
        if place:
            pieces.append(" and " if place == len(order) - 1 else ", ")
        pieces += named(scene, item)
    return dialogue(str(rng.choice(DESCRIBE)), pieces)


def colour(scene: Scene, rng: np.random.Generator) -> Dialogue:
    """The colour of an item whose noun fits no other item; if there is none, what is on one side."""
    single = [i for i, label in enumerate(scene.labels) if scene.labels.count(label) == 1]
    if not single:
        return side(scene, rng)
    item = int(rng.choice(single))
    label, color = LABELS[scene.labels[item]], COLORS[scene.colors[item]] or PLAIN
    pieces: list[Piece] = ["the ", (label, item, "noun"), " is ", (color, item, "colour")]
    return dialogue(str(rng.choice(COLOUR)).format(label), pieces)


def side(scene: Scene, rng: np.random.Generator) -> Dialogue:
    """The item on the left or right."""
    where = rng.choice(("left", "right"))
    item = from_left(scene)[0 if where == "left" else -1]
    return dialogue(str(rng.choice(SIDE)).format(where), [*named(scene, item), f" is on the {where}"])


def count(scene: Scene, rng: np.random.Generator) -> Dialogue:
    """The number of items."""
    number = len(scene.labels)
    pieces = ["there is one item" if number == 1 else f"there are {NUMBERS[number - 1]} items"]
    return dialogue(str(rng.choice(COUNT)), pieces)


ASKED: tuple[Callable[[Scene, np.random.Generator], Dialogue], ...] = (describe, colour, side, count)
"""One function for each kind of question."""


def dialogues(scene: Scene, rng: np.random.Generator) -> tuple[Dialogue, ...]:
    """One dialogue of each kind about a scene."""
    return tuple(ask(scene, rng) for ask in ASKED)


def captions(drawn: Iterable[Scene]) -> list[tuple[Scene, Dialogue]]:
    """Every scene whose order is clear, with its description as the answer to the first wording of the question."""
    rng = np.random.default_rng(0)
    return [(scene, replace(describe(scene, rng), question=DESCRIBE[0])) for scene in drawn if in_clear_order(scene)]


# Tokens.

WORD = r" ?[A-Za-z-]+| ?[0-9]+| ?[^\sA-Za-z0-9-]+|\s+"
OTHERS = ("item", "items", "there", "is", "are", "one", "a", "an", "and", "the", "on", "left", "right")
SPECIAL = ("<pad>", "<s>", "</s>", IMAGE)


@lru_cache(maxsize=1)
def word_tokenizer() -> hf.PreTrainedTokenizerFast:
    """A byte-level tokenizer with one token per word of the dialogues, which spells out all other words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([_every_text()], trainer)
    # The trainer numbers the letters in an order of its own: here they are sorted, so that the ids never change.
    learned = json.loads(tokenizer.to_str())["model"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [token for token in sorted(learned["vocab"], key=learned["vocab"].get) if token not in letters]
    vocab = {token: i for i, token in enumerate([*SPECIAL, *letters, *words])}
    tokenizer.model = models.BPE(vocab=vocab, merges=[tuple(merge) for merge in learned["merges"]])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=512,
    )


def _every_text() -> str:
    """A text with every word of the dialogues, each after the characters that can stand before it."""
    colors = (PLAIN, *filter(None, COLORS))
    words = [*LABELS, *colors, *NUMBERS, *OTHERS]
    asked = [text.format("bag") for text in (*DESCRIBE, *COLOUR, *SIDE, *COUNT)]
    answers = "A. An. The. There."
    tokens = re.findall(WORD, " ".join([*(f"\n{text} ASSISTANT: {answers}" for text in asked), *words, "USER: , ? ."]))
    return "".join(token for token in tokens for _ in range(2))


def answer_ids(tokenizer: hf.PreTrainedTokenizerFast, answer: str) -> list[int]:
    """The tokens of an answer as they follow the prompt, with the end of the turn."""
    return [*tokenizer(f" {answer}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def prompt_ids(tokenizer: hf.PreTrainedTokenizerFast, asked: Sequence[Dialogue]) -> tuple[list[int], list[list[int]]]:
    """The tokens before the picture, which all prompts share, and those after it, of each dialogue."""
    ids = tokenizer([one.prompt for one in asked])["input_ids"]
    place = ids[0].index(tokenizer.convert_tokens_to_ids(IMAGE))
    return ids[0][:place], [one[place + 1 :] for one in ids]


def named_tokens(tokenizer: hf.PreTrainedTokenizerFast, asked: Dialogue) -> list[tuple[Mention, list[int]]]:
    """The tokens of each mention, counted from the end of the answer: 1 is the last."""
    offsets = tokenizer(f" {asked.answer}", add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [
        (one, [len(offsets) - i for i, (start, end) in enumerate(offsets) if start <= one.end and end > one.start + 1])
        for one in asked.mentions
    ]
