"""Words of answers as tokenizers read them: forced texts, contrasts, scripts; and which models are asked for words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import hf_cam
from hf_cam.errors import TargetError
from hf_cam.words.answer import Answer
from hf_cam.words.tokens import WORD, contrasted, readings_of, text_of
from hf_cam.words.writing import written
from tests.writers import (
    QUESTION,
    blip2,
    byte_level_tokenizer,
    llava_processor,
    photograph,
    tiny_llava,
    tokenizer,
)


def test_a_forced_answer_begins_as_the_model_itself_finds_likelier() -> None:
    tokens = byte_level_tokenizer()
    plain, blank = readings_of("a red cup", tokens)
    assert [tokens.decode(one) for one in (plain, blank)] == ["a red cup", " a red cup"]
    model, processor = tiny_llava(vocab_size=len(tokens)), llava_processor()
    inputs = dict(processor(text=[f"<image>{QUESTION}"], images=[photograph()], return_tensors="pt"))
    chosen = []
    for sign in (1, -1):
        model.lm_head.weight.data *= sign
        text = written(model, inputs, {}, [plain, blank])
        chosen.append(int(text.tokens[0]))
        assert text.logits[0, chosen[-1]] == max(text.logits[0, int(one[0])] for one in (plain, blank))
    assert set(chosen) == {int(plain[0]), int(blank[0])}


def test_an_answer_reads_as_it_goes_on_after_the_prompt() -> None:
    class Continuing:
        """Joins the last letter of a prompt and the first of an answer into one token each, but after a line's end."""

        unk_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(one) + (1000 if i == 0 else 0) for i, one in enumerate(text)]}

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(chr(int(one) % 1000) for one in ids)

    found = [one.tolist() for one in readings_of("cup", Continuing(), "say:")]
    assert [ord(one) for one in "cup"] in found
    assert [ord("c") + 1000, ord("u"), ord("p")] in found


@pytest.mark.parametrize("answer", ["", "  ", "...", "?!"])
def test_an_answer_without_a_word_is_refused(answer: str) -> None:
    with pytest.raises(TargetError, match=r"has no word to explain|a text for the model to write"):
        hf_cam.explain(photograph(), tiny_llava(), processor=llava_processor(), text=QUESTION, answer=answer)


CONTRASTS = [
    ("a red cup", ("red", "bag"), "red", True),
    (" red cup", ("red", "bag"), "red", True),
    ("red cup", ("red", "bag"), "red", False),
    ("a red cup", ("red cup", "red bag"), "cup", True),
]


@pytest.mark.parametrize(("answer", "pair", "word", "blank"), CONTRASTS)
def test_a_contrast_compares_tokens_that_fit_the_same_place(
    answer: str, pair: tuple[str, str], word: str, blank: bool
) -> None:
    tokens = byte_level_tokenizer()
    ids = torch.tensor(tokens(answer)["input_ids"])
    found, at, mine, theirs = contrasted(text_of(ids, tokens), pair, ids, tokens, finished=True)
    assert found.label == word
    assert mine == ids[at]
    assert [tokens.decode([one]).startswith(" ") for one in (mine, theirs)] == [blank, blank]


SCRIPTS = [
    ("un café noir", ["un", "café", "noir"]),
    ("un cafe\u0301", ["un", "cafe\u0301"]),
    ("यह हिन्दी है", ["यह", "हिन्दी", "है"]),
    ("das Straßenschild", ["das", "Straßenschild"]),
    ("don't stop-motion", ["don't", "stop-motion"]),
    ("猫と犬", ["猫", "と", "犬"]),
    ("🙂 ok", ["ok"]),
]


@pytest.mark.parametrize(("text", "words"), SCRIPTS, ids=[text for text, _ in SCRIPTS])
def test_words_of_other_scripts_are_whole(text: str, words: list[str]) -> None:
    assert [one[0] for one in WORD.finditer(text)] == words
    tokens = byte_level_tokenizer()
    assert [one.label for one in text_of(torch.tensor(tokens(text)["input_ids"]), tokens).words] == words


def test_a_target_that_is_no_word_of_the_answer_is_refused_for_that() -> None:
    with pytest.raises(TargetError, match=r"',' is no word of the answer \"a red cup , and"):
        hf_cam.explain(
            photograph(), tiny_llava(), processor=llava_processor(), text=QUESTION, answer="a red cup , and", target=","
        )


def test_blip2_with_its_whole_processor_is_asked_for_words() -> None:
    model, processor = blip2()
    found = hf_cam.explain(photograph(), model, processor=processor, text=QUESTION, answer="a red cup")
    assert isinstance(found, Answer)
    assert [word.label for word in found] == ["a", "red", "cup"]
    assert found[0].heatmap.shape == (60, 90)


def test_blip2_still_scores_a_whole_answer_by_a_method_for_images() -> None:
    model, processor = blip2()
    found = hf_cam.explain(photograph(), model, processor=processor, text=QUESTION, target="red cup", method="gradcam")
    assert not isinstance(found, Answer)
    assert [one.label for one in found] == ["red cup"]


SETTINGS: list[dict[str, Any]] = [
    {"num_beams": 2, "max_new_tokens": 4},
    {"do_sample": True, "max_new_tokens": 4},
    {"max_length": 50},
    {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 3},
    {"return_dict_in_generate": False, "max_new_tokens": 3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_of_the_generation_reach_it(settings: dict[str, Any]) -> None:
    words = {"suppress_tokens": [0, 1, 2, 3, 4], **settings}
    found = hf_cam.explain(photograph(), tiny_llava(), processor=llava_processor(), text=QUESTION, generate=words)
    assert found.answer
    assert all(np.isfinite(word.heatmap).all() for word in found)
    assert tokenizer()(found.answer)["input_ids"]
