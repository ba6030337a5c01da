"""How far a word depends on the picture: against attention masked by hand, other pictures, and models that leak it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import hf_cam
from benchmarks.scenes import scenes
from benchmarks.words import depending
from hf_cam.explanation import AGAINST_PICTURE, WITHOUT_PICTURE
from hf_cam.models.loading import load
from hf_cam.words.answer import Answer
from hf_cam.words.locate import known_of
from tests.writers import QUESTION, llava_processor, photograph, tiny_llava

ANSWER = "a red cup and a kettle"


@pytest.fixture(scope="module")
def processor() -> Any:
    return llava_processor()


def explained(model: nn.Module, processor: Any, **settings: Any) -> Answer:
    return hf_cam.explain(photograph(), model, processor=processor, **{"text": QUESTION, "answer": ANSWER} | settings)


def read_by_hand(model: Any, processor: Any) -> tuple[Tensor, Tensor]:
    """The probabilities of the answer's words with the picture, `[6]`, and without, `[2, 6]`, in float64.

    Without the picture is with a mask over its cells, and with its mean colour in its place.
    """
    model = model.double()
    model.set_attn_implementation("eager")
    tokens = processor.tokenizer(ANSWER, add_special_tokens=False, return_tensors="pt")["input_ids"]

    def probabilities(picture: Image.Image, *, hidden: bool = False) -> Tensor:
        prompt = processor(text=[f"<image>{QUESTION}"], images=[picture], return_tensors="pt")
        ids = torch.cat([prompt["input_ids"], tokens], 1)
        cells = ids[0] == 4
        states = model.get_input_embeddings()(ids)
        states[0, cells] = model.model.get_image_features(prompt["pixel_values"].double()).pooler_output[0]
        at = torch.arange(ids.shape[1])
        seen = at <= at[:, None]
        if hidden:
            seen = seen & ~((at > int(cells.nonzero().max()))[:, None] & cells)
        mask = torch.zeros(1, 1, *seen.shape, dtype=torch.double).masked_fill(~seen, float("-inf"))
        states = model.model.language_model(inputs_embeds=states, attention_mask=mask).last_hidden_state
        rows = model.lm_head(states)[0, -1 - tokens.shape[1] : -1].softmax(-1)
        return rows.gather(1, tokens[0, :, None])[:, 0]

    shown = photograph()
    mean = np.array(shown).reshape(-1, 3).mean(0).round().astype(int)
    blank = Image.new("RGB", shown.size, tuple(mean.tolist()))
    return probabilities(shown), torch.stack([probabilities(shown, hidden=True), probabilities(blank)])


@torch.no_grad()
def test_the_evidence_is_the_share_of_the_probability_that_is_lost_behind_a_mask_and_before_a_blank_picture(
    processor: Any,
) -> None:
    likely, without = read_by_hand(tiny_llava(), processor)
    for attention in ("sdpa", "eager"):
        model = tiny_llava()
        model.set_attn_implementation(attention)
        words = explained(model, processor)
        assert known_of(model, processor).removal == "cache"
        assert [word.score for word in words] == pytest.approx(likely.tolist(), rel=1e-3)
        assert [word.evidence for word in words] == pytest.approx(
            (1 - without.amax(0) / likely).clamp(0).tolist(), abs=1e-3
        )


def test_the_flags_say_whether_the_picture_speaks_for_a_word_against_it_or_not_at_all(processor: Any) -> None:
    likely, without = read_by_hand(tiny_llava(), processor)
    words = explained(tiny_llava(), processor)
    least, most = (without / likely).aminmax(dim=0)
    assert most.min() < 0.95
    assert least.max() > 1 / 0.95
    for word, low, high in zip(words, least.tolist(), most.tolist(), strict=True):
        expected = AGAINST_PICTURE if low > 1 / 0.95 else WITHOUT_PICTURE if high > 0.95 else None
        assert word.flags == ((expected,) if expected else ())
        assert word.heatmap.max() == pytest.approx(word.evidence if expected == WITHOUT_PICTURE else 1, abs=1e-3)


class Leaks(nn.Module):
    """A last layer that adds something of the picture to every position."""

    def __init__(self, head: nn.Module, model: Any) -> None:
        super().__init__()
        self.head = head
        self.mean = torch.zeros(())
        model.model.multi_modal_projector.register_forward_hook(self.keep)

    def keep(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self.mean = output.mean()

    def forward(self, states: Tensor) -> Tensor:
        return self.head(states) * (1 + self.mean)


def test_where_the_picture_gets_past_the_attention_noise_takes_its_place(processor: Any) -> None:
    model: Any = tiny_llava()
    model.lm_head = Leaks(model.lm_head, model)
    words = explained(model, processor)
    assert known_of(model, processor).removal == "noise"
    assert all(0 <= word.evidence <= 1 for word in words)


def test_a_forward_over_the_whole_text_gives_the_evidence_from_the_cache(
    processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = [word.evidence for word in explained(tiny_llava(), processor)]
    monkeypatch.setattr("hf_cam.words.explaining.cached_inputs", lambda *_, **__: None)
    model = tiny_llava()
    assert [word.evidence for word in explained(model, processor)] == pytest.approx(cached, abs=1e-3)
    assert known_of(model, processor).removal == "text"


def test_a_words_evidence_does_not_hang_on_the_other_words(processor: Any) -> None:
    model = tiny_llava()
    among = explained(model, processor)
    [alone] = explained(model, processor, target="kettle")
    assert alone.evidence == among[5].evidence


@pytest.mark.slow
def test_words_that_change_with_the_picture_have_evidence_and_no_others() -> None:
    """On a trained model: against the probability of the same words before three other scenes."""
    found = depending(load("demo:llava"), scenes("test", 32, 21))
    much, little = found.lost > 0.5, found.lost < 0.05
    assert found.flagged[much].mean() < 0.15  # what the model guesses with its eyes shut may be right
    assert found.flagged[little].mean() > 0.6
    assert found.evidence[much].mean() > 0.85
