"""Words of generative vision-language models: the front door, and the maths against independent computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hf_cam
from hf_cam.errors import HFCamError, ImageError, OptionError, TargetError
from hf_cam.words.answer import Answer
from hf_cam.words.tokens import text_of, words_named
from tests.unchanged import half_frozen, unchanged
from tests.writers import QUESTION, llava_processor, photograph, tiny_llava, tokenizer

ANSWER = "a red cup and a kettle"


@pytest.fixture(scope="module")
def llava() -> tuple[nn.Module, Any]:
    return tiny_llava(), llava_processor()


def explained(llava: tuple[nn.Module, Any], **settings: Any) -> Answer:
    model, processor = llava
    return hf_cam.explain(
        photograph(), model, processor=processor, **{"text": QUESTION, "generate": {"max_new_tokens": 8}} | settings
    )


def test_each_word_gets_its_place_its_probability_and_a_map_in_the_pictures_pixels(llava: Any) -> None:
    words = explained(llava)
    assert isinstance(words, Answer)
    for word in words:
        start, end = word.span or (0, 0)
        assert words.answer[start:end] == word.label
        assert word.heatmap.shape == (60, 90)
        assert 0 < word.score < 1
        assert word.heatmap.max() == pytest.approx(1)
    assert max(word.evidence or 0 for word in words) == 1


def test_the_model_is_left_as_it_was(llava: Any) -> None:
    model = half_frozen(tiny_llava(1))
    with unchanged(model):
        explained((model, llava[1]))
    with unchanged(model), pytest.raises(TargetError):
        explained((model, llava[1]), target="lighthouse")


def eager_rows(model: nn.Module, processor: Any, answer: str) -> Tensor:
    """`[T, 36]`: gradient times attention by a backward per word on eager attention over prompt and answer."""
    model.set_attn_implementation("eager")
    prompt = processor(text=[f"<image>{QUESTION}"], images=[photograph()], return_tensors="pt")
    tokens = processor.tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([prompt["input_ids"], tokens], 1)
    first = prompt["input_ids"].shape[1]
    cells = (ids[0] == 4).nonzero()[:, 0]
    out = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=prompt["pixel_values"],
        output_attentions=True,
    )
    found = []
    for t, token in enumerate(tokens[0]):
        score = out.logits[0, first + t - 1].log_softmax(-1)[token]
        gradients = torch.autograd.grad(score, out.attentions, retain_graph=True)
        row = first + t - 1
        parts = [
            (a * g)[0, :, row][:, cells].clamp_min(0).sum(0) for a, g in zip(out.attentions, gradients, strict=True)
        ]
        found.append(torch.stack(parts).sum(0))
    return torch.stack(found).detach()


def test_one_backward_on_the_cache_gives_what_a_backward_per_word_gives_on_eager_attention(llava: Any) -> None:
    words = explained(llava, answer=ANSWER)
    expected = eager_rows(tiny_llava(), llava[1], ANSWER)
    sums = torch.tensor([word.raw.sum() for word in words])
    assert len(words) == 6
    for word, row in zip(words, expected, strict=True):
        cells = torch.from_numpy(word.raw)[5::10, 7::15].flatten()  # the centres of the 6 x 6 cells
        assert torch.corrcoef(torch.stack([cells, row]))[0, 1] > 0.99
    assert torch.allclose(sums / sums.max(), expected.sum(1) / expected.sum(1).max(), rtol=0.05)


def test_a_disturbed_box_of_the_picture_changes_the_maps_there(llava: Any) -> None:
    from hf_cam.words.footprints import disturbed
    from hf_cam.words.locate import _known

    explained(llava)
    [[place]] = _known[llava[0]].located.values()
    assert place.footprints.grid == (6, 6)
    assert str(place).startswith("in the sequence: 36 cells")
    assert np.any(np.array(disturbed(photograph())) != np.array(photograph()))


def test_a_target_picks_the_words_that_were_said(llava: Any) -> None:
    assert [word.label for word in explained(llava, answer=ANSWER, target="Cup")] == ["cup"]
    assert [word.label for word in explained(llava, answer=ANSWER, target="k.*e")] == ["kettle"]
    assert [word.label for word in explained(llava, answer=ANSWER, target="red cup")] == ["red", "cup"]
    both = explained(llava, answer=ANSWER, target=["kettle", "red"])
    assert [word.label for word in both] == ["kettle", "red"]


def test_the_map_of_a_word_does_not_depend_on_the_other_words_that_are_picked(llava: Any) -> None:
    [alone] = explained(llava, answer=ANSWER, target="cup")
    among = next(word for word in explained(llava, answer=ANSWER) if word.label == "cup")
    assert np.allclose(alone.heatmap, among.heatmap)
    assert alone.evidence == among.evidence


def test_a_pair_contrasts_two_words_at_one_place(llava: Any) -> None:
    [one] = explained(llava, answer=ANSWER, target=("red", "blue"))
    [other] = explained(llava, answer=ANSWER, target=("blue", "red"))
    assert one.label == "red, not blue"
    assert one.span == other.span == (2, 5)
    assert one.score + other.score == pytest.approx(1)
    assert not np.allclose(one.heatmap, other.heatmap)


@pytest.mark.parametrize("method", ["word-relevance", "word-gradient-x-input", "attention-contrast", "tam"])
def test_every_method_gives_each_word_a_map(llava: Any, method: str) -> None:
    model, processor = llava
    words = hf_cam.explain(photograph(), model, processor=processor, text=QUESTION, answer=ANSWER, method=method)
    assert {word.method for word in words} == {method}
    assert all(np.isfinite(word.heatmap).all() for word in words)
    assert any(word.heatmap.max() > 0 for word in words)


BAD = [
    ({"text": None}, TargetError, "answers a question: pass text="),
    ({"text": " "}, TargetError, "not empty"),
    ({"answer": "a green lighthouse"}, TargetError, "use words of its vocabulary"),
    ({"answer": ANSWER, "target": "bag"}, TargetError, 'its answer is "a red cup and a kettle"'),
    ({"target": "bag", "generate": {"max_new_tokens": 2}}, TargetError, "was cut off"),
    ({"answer": ANSWER, "target": ("bag", "lamp")}, TargetError, "did not write"),
    ({"answer": ANSWER, "target": 3}, TargetError, "one of its words"),
    ({"top_k": 2}, OptionError, "does not apply to the words"),
    ({"generate": 3}, OptionError, "generate must be a dict"),
    ({"method": "tan"}, HFCamError, "no method"),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_requests_are_refused_in_one_sentence(llava: Any, settings: Any, error: Any, message: str) -> None:
    with unchanged(llava[0]), pytest.raises(error, match=message):
        explained(llava, **settings)


def test_no_picture_and_no_model_are_named(llava: Any) -> None:
    with pytest.raises(OptionError, match="misses the picture"):
        hf_cam.explain(model=llava[0], text=QUESTION)
    with pytest.raises(OptionError, match="misses the model"):
        hf_cam.explain(photograph())
    with pytest.raises(ImageError, match="hold no picture"):
        hf_cam.explain(model=llava[0], messages=[{"role": "user", "content": "what?"}])


def test_a_classifier_has_no_use_for_an_answer() -> None:
    with pytest.raises(OptionError, match="writes no text"):
        hf_cam.explain(photograph(), "demo:imagenet", answer="a cup")


def test_words_and_punctuation_are_told_apart() -> None:
    words = tokenizer()
    text = text_of(torch.tensor(words("a red cup , and a bag .")["input_ids"]), words)
    assert [word.label for word in text.words] == ["a", "red", "cup", "and", "a", "bag"]
    assert [word.tokens for word in text.words] == [(0,), (1,), (2,), (4,), (5,), (6,)]
    assert [word.label for word in words_named(text, "a")] == ["a", "a"]
