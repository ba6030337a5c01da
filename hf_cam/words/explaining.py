"""A question about pictures in, the model's answer with one map per word out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hf_cam.capture.guard import borrowed
from hf_cam.check import Origin
from hf_cam.errors import ImageError, TargetError, brief
from hf_cam.explanation import AGAINST_PICTURE, NO_EVIDENCE, WITHOUT_PICTURE, Explanation
from hf_cam.heads.subjects import PROBABILITY
from hf_cam.images.videos import Video
from hf_cam.models.loading import LoadedModel
from hf_cam.request import Request
from hf_cam.targets import entries_of
from hf_cam.words.answer import Answer
from hf_cam.words.footprints import Footprints, blank, disturbed
from hf_cam.words.locate import Known, Located, expected, known_of, located
from hf_cam.words.methods import WORD_METHODS
from hf_cam.words.place import kept_at
from hf_cam.words.prompts import Prompt, prompt_of
from hf_cam.words.removal import evidence_of, readings_without
from hf_cam.words.scores import Score, WordScore
from hf_cam.words.settings import settings_of
from hf_cam.words.tokens import Text, Word, check_target, contrasted, readings_of, text_of, words_named
from hf_cam.words.weighing import Question, Weighed, weighed
from hf_cam.words.writing import (
    Written,
    answer_rows,
    cache_holds,
    cached_inputs,
    check_length,
    whole_inputs,
    written,
)

Pictures = Image.Image | Video | tuple[Image.Image, ...]
"""What one question is about: a picture, several, or the frames of a video."""

CUT_OFF = "the answer was cut off"
FAINT = 0.05
"""Share of a probability below which a word hardly depends on the picture: its map is not stretched to [0, 1]."""
SHARE = "share of the two words"


@dataclass(frozen=True, eq=False)
class Asked:
    """What is explained of an answer.

    Args:
        text: The answer.
        words: Its words to explain.
        score: Of its tokens.
        contrast: The tokens' ids if two words are contrasted: at which token, the one, the other.
    """

    text: Text
    words: tuple[Word, ...]
    score: Score
    contrast: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class WordExplainer:
    """Explains the words that a vision-language model writes.

    Args:
        loaded: The model with its processor.
        method: An id of `hf_cam.words.methods.list_word_methods()`, or "auto".
    """

    loaded: LoadedModel
    method: str = "auto"

    def __post_init__(self) -> None:
        """Refuse a method that does not exist.

        Raises:
            MethodError: naming the nearest ones.
        """
        if self.method != "auto":
            WORD_METHODS.get(self.method)

    def __call__(self, pictures: Pictures, request: Request) -> Answer:
        """The answer about one picture, or about several together.

        Raises:
            TargetError: a target was not said, or the model writes nothing; or, before it runs, the target is no word,
                there are several questions, or the text is too long.
            ImageError: there is no picture.
            OptionError: a setting of the generation has an invalid value.
            ModelError: the processor fails, or where the picture enters the model cannot be established.
        """
        shown = listed(pictures)
        check_target(request.target)
        settings = settings_of(request.generate)
        prompt = prompt_of(self.loaded.processor, _one_question(request.text), len(shown), request.messages)
        tokenizer = self.loaded.processor.tokenizer
        forced = [] if request.answer is None else readings_of(request.answer, tokenizer, prompt.text)
        with borrowed(self.loaded.module) as replica:
            prepare = _Prepare(prompt, self.loaded)
            inputs = prepare(shown)
            check_length(replica, inputs, forced)
            with kept_at(replica, expected(self._known, shown, inputs)) as entered:
                text = written(replica, inputs, settings, forced)
            asked = _asked(text, request.target, tokenizer)
            places = located(self._known, replica, prepare, shown, inputs, *entered)
            question = _question(self._known, replica, prepare, shown, inputs, text, asked, places)
            found, without = weighed(self.method, question), readings_without(self._known, question)
        recipe = _Recipe(self.loaded, prompt, shown, request, asked, replace(text, logits=text.logits[:0], cache=None))
        return Answer(
            _explanations(asked, text, found, without, places, pictures, recipe),
            answer=asked.text.text,
            image=shown[0],
            model=self.loaded.traits.name_or_path or self.loaded.traits.class_name,
        )

    def located(self, pictures: Pictures, question: str = "What is in the picture?") -> list[Located]:
        """Where the cells of each picture enter the language model, and where they lie in the picture.

        Raises:
            ModelError: the processor fails, or that cannot be established; with the reason.
        """
        shown = listed(pictures)
        prepare = _Prepare(prompt_of(self.loaded.processor, question, len(shown)), self.loaded)
        with borrowed(self.loaded.module) as replica:
            return located(self._known, replica, prepare, shown, prepare(shown))

    @property
    def _known(self) -> Known:
        return known_of(self.loaded.module, self.loaded.processor)


@dataclass(frozen=True, eq=False)
class _Prepare:
    """The model's inputs for pictures, on its device and in its dtype."""

    prompt: Prompt
    loaded: LoadedModel

    def __call__(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        weight = self.loaded.traits.weight
        made = self.prompt(pictures)
        if weight is None:
            return made
        return {
            name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            for name, value in made.items()
            if not self.loaded.traits.swallows(name)
        }


@dataclass(frozen=True, eq=False)
class _Recipe:
    """How to make again what the words were explained from, so that none of them holds the inputs."""

    loaded: LoadedModel
    prompt: Prompt
    pictures: Sequence[Image.Image]
    request: Request
    asked: Asked
    text: Written

    def origin(self, word: Word, raw: np.ndarray) -> Origin:
        """The origin of a word, whose inputs are those of a forward over prompt and answer."""
        inputs = whole_inputs(self.loaded.module, _Prepare(self.prompt, self.loaded)(self.pictures), self.text)
        other = None if self.asked.contrast is None else self.asked.contrast[2]
        target = WordScore(self.asked.text.text, tuple(self.asked.score.tokens.tolist()), word.tokens, other)
        shown = torch.from_numpy(raw / max(float(raw.max()), np.finfo(raw.dtype).tiny))
        return Origin(self.loaded.model, inputs, target, shown, self.loaded.processor, self.request)


def listed(pictures: Pictures) -> tuple[Image.Image, ...]:
    """The pictures of one question.

    Raises:
        ImageError: there is none.
    """
    if isinstance(pictures, Video):
        return tuple(pictures.frames)
    listed = pictures if isinstance(pictures, tuple) else (pictures,)
    if not listed:
        raise ImageError("a question is about at least one picture; the tuple of its pictures is empty")
    return listed


def _one_question(texts: Sequence[str]) -> str:
    if len(texts) > 1:
        raise TargetError(
            f"a vision-language model answers one question at a time, got {len(texts)}; explain each in a call of its "
            "own, or join them into one text"
        )
    return "".join(texts)


def _asked(text: Written, target: Any, tokenizer: Any) -> Asked:
    """The words to explain: all, those that the targets name, or one that is contrasted with another."""
    said, score = text_of(text.tokens, tokenizer), Score(text.tokens)
    if isinstance(target, tuple):
        word, *contrast = contrasted(said, target, text.tokens, tokenizer, finished=text.finished)
        at, mine, theirs = contrast
        other = replace(word, label=f"{target[0]}, not {target[1]}", tokens=(at,))
        tokens = text.tokens.clone()
        tokens[at] = mine
        return Asked(said, (other,), Score(tokens, {at: theirs}), (at, mine, theirs))
    if target is None:
        return Asked(said, said.words, score)
    named = [
        word
        for one in entries_of(target) or [target]
        for word in (said.words if one is None else words_named(said, one, finished=text.finished))
    ]
    return Asked(said, tuple(dict.fromkeys(named)), score)


def _question(
    known: Known,
    replica: nn.Module,
    prepare: _Prepare,
    shown: Sequence[Image.Image],
    inputs: Mapping[str, Any],
    text: Written,
    asked: Asked,
    places: Sequence[Located],
) -> Question:
    """All words of the answer, or the one contrast, over the cells of all pictures in turn."""
    place = replace(places[0].place, cells=torch.cat([one.place.cells for one in places]))
    words = asked.words if asked.contrast else asked.text.words
    if not words:
        raise TargetError(f"the answer {brief(asked.text.text)} has no word to explain; ask another question")
    return Question(
        replica, place, asked.score, [word.tokens for word in words], answer_rows(len(text.tokens)),
        length=text.prompt.shape[1] + len(text.tokens) - 1,
        whole=partial(whole_inputs, replica, inputs, text),
        noisy=lambda: whole_inputs(replica, prepare([disturbed(one) for one in shown]), text),
        blank=lambda: _as_written(known, replica, prepare([blank(one) for one in shown]), text),
        cached=_cut(known, replica, inputs, text),
        known=text.logits,
    )  # fmt: skip


def _cut(
    known: Known, replica: nn.Module, inputs: Mapping[str, Any], text: Written
) -> Callable[..., Mapping[str, Any] | None]:
    """The inputs of forwards on the generation's cache, or None where these predict other words than the generation."""
    if known.cache_holds is None:
        known.cache_holds = cache_holds(replica, inputs)
    return partial(cached_inputs, replica, inputs, text) if known.cache_holds else lambda before=None: None


def _as_written(known: Known, replica: nn.Module, inputs: Mapping[str, Any], text: Written) -> Mapping[str, Any]:
    """The inputs of a forward that reads the text behind another picture, in the way in which it was written."""
    again = written(replica, inputs, {}, [text.tokens]) if known.cache_holds else text
    return _cut(known, replica, inputs, again)() or whole_inputs(replica, inputs, text)


def _explanations(
    asked: Asked,
    text: Written,
    found: Weighed,
    without: Sequence[Tensor],
    places: Sequence[Located],
    pictures: Pictures,
    recipe: _Recipe,
) -> list[Explanation]:
    """Word by word; of several pictures one after the other."""
    parts = found.weights.split([one.footprints.cells for one in places], 1)
    cells = [(one.footprints, part) for one, part in zip(places, parts, strict=True)]
    rows = list(range(len(found.weights)))
    if not asked.contrast:
        rows = [asked.text.words.index(word) for word in asked.words]
    likely, *unseen = (
        torch.tensor([_probability(word, asked, asked.score.probabilities(logits), logits) for word in asked.words])
        for logits in (found.logits, *without)
    )
    evidence = evidence_of(likely, unseen).tolist()
    last = asked.text.words[-1]
    return [
        Explanation(
            label=word.label,
            score=float(likely[at]),
            heatmap=heatmap,
            raw=raw,
            method=found.method,
            layers=(places[0].place.module,),
            image=picture,
            flags=flags,
            frames=frames,
            score_kind=SHARE if asked.contrast else PROBABILITY,
            origin=cast("Origin", partial(recipe.origin, word, raw)),
            span=word.span,
            evidence=evidence[at],
        )
        for at, (row, word) in enumerate(zip(rows, asked.words, strict=True))
        for flags in [
            _flags(
                float(likely[at]),
                [float(one[at]) for one in unseen],
                found.weights[row],
                cut=not text.finished and word is last,
            )
        ]
        for picture, frames, heatmap, raw in _drawn(
            [(footprints, part[row]) for footprints, part in cells],
            evidence[at] if WITHOUT_PICTURE in flags else 1.0,
            pictures,
        )
    ]


Drawing = tuple[Image.Image, tuple[Image.Image, ...], Any, np.ndarray]
"""A picture, its frames, what draws the heatmap, and the map on its own grid."""


def _drawn(cells: Sequence[tuple[Footprints, Tensor]], height: float, pictures: Pictures) -> list[Drawing]:
    """Each picture with its frames, the heatmap, drawn when it is read, and the map on its grid; on one scale.

    Args:
        cells: Where the cells of each picture lie, and their weights.
        height: Of the peak of all heatmaps.
        pictures: What the question was about.
    """
    raw = [footprints.on_grid(weights[None])[0].numpy() for footprints, weights in cells]
    peak = max(float(one.max()) for one in raw)
    draw = [
        partial(footprints.heatmap, weights.clone(), height * float(one.max()) / peak if peak > 0 else 0.0)
        for (footprints, weights), one in zip(cells, raw, strict=True)
    ]
    if isinstance(pictures, Video):
        frames = tuple(pictures.frames)
        return [(frames[0], frames, partial(_stacked, draw), np.stack(raw))]
    return [(one, (), heatmap, grid) for one, heatmap, grid in zip(listed(pictures), draw, raw, strict=True)]


def _stacked(draw: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
    return np.stack([one() for one in draw])


def _probability(word: Word, asked: Asked, probabilities: Tensor, logits: Tensor) -> float:
    """Of the word, the product of its tokens'; of a contrast, the share that the one has of both."""
    if asked.contrast is None:
        return float(probabilities[list(word.tokens)].prod())
    at, mine, theirs = asked.contrast
    return float(torch.sigmoid(logits[at, mine].float() - logits[at, theirs].float()))


def _flags(likely: float, unseen: Sequence[float], weights: Tensor, *, cut: bool) -> tuple[str, ...]:
    """What is to be said of a word, from its probability with the picture and in the readings without it."""
    if not weights.any():
        depends = NO_EVIDENCE
    elif min(unseen) * (1 - FAINT) > likely:
        depends = AGAINST_PICTURE
    else:
        depends = "" if max(unseen) < likely * (1 - FAINT) else WITHOUT_PICTURE
    return tuple(filter(None, (depends, CUT_OFF if cut else "")))
