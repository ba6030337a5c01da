"""The methods that read the rows of attention that predict a word, against slow computations by their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hf_cam
from hf_cam.words.answer import Answer
from hf_cam.words.tokens import text_of
from tests.writers import QUESTION, byte_level_tokenizer, llava_processor, photograph, tiny_llava

ANSWER = "a red cup and a kettle"


def explained(model: nn.Module, processor: Any, answer: str = ANSWER, method: str = "auto") -> Answer:
    return hf_cam.explain(photograph(), model, processor=processor, text=QUESTION, answer=answer, method=method)


def read(model: nn.Module, processor: Any, answer: str = ANSWER) -> tuple[Any, Tensor, Tensor, Tensor]:
    """One forward with "eager" attention over prompt and answer: its output, the cells, the tokens and their rows."""
    model.set_attn_implementation("eager")
    prompt = processor(text=[f"<image>{QUESTION}"], images=[photograph()], return_tensors="pt")
    tokens = processor.tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([prompt["input_ids"], tokens], 1)
    out = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=prompt["pixel_values"].to(next(model.parameters()).dtype),
        output_attentions=True,
    )
    rows = torch.arange(prompt["input_ids"].shape[1] - 1, ids.shape[1] - 1)
    return out, (ids[0] == 4).nonzero()[:, 0], tokens[0], rows


# Attention times its gradient.


def eager_rows(model: nn.Module, processor: Any) -> Tensor:
    """`[T, 36]`: gradient times attention by a backward per word."""
    out, cells, tokens, rows = read(model, processor)
    found = []
    for row, token in zip(rows, tokens, strict=True):
        score = out.logits[0, row].log_softmax(-1)[token]
        gradients = torch.autograd.grad(score, out.attentions, retain_graph=True)
        parts = [
            (a * g)[0, :, row][:, cells].clamp_min(0).sum(0) for a, g in zip(out.attentions, gradients, strict=True)
        ]
        found.append(torch.stack(parts).sum(0))
    return torch.stack(found).detach()


def test_one_backward_on_the_cache_gives_what_a_backward_per_word_gives_on_eager_attention() -> None:
    words = explained(tiny_llava(), llava_processor(), method="word-relevance")
    expected = eager_rows(tiny_llava(), llava_processor())
    assert len(words) == 6
    for word, row in zip(words, expected, strict=True):
        assert torch.allclose(torch.from_numpy(word.raw).flatten(), row, rtol=0.05, atol=1e-3)


# Contributions.


class Seen:
    """What the modules of a language model took in, and what its projections returned, at all positions."""

    def __init__(self, language: nn.Module) -> None:
        self.into: dict[nn.Module, Tensor] = {}
        self.out: dict[nn.Module, Tensor] = {}
        for module in language.modules():
            if not any(module.children()):
                module.register_forward_hook(self._note)

    def _note(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.into[module], self.out[module] = args[0][0].detach(), output[0].detach()

    def scale(self, norm: Any, row: int) -> Tensor:
        """What a norm multiplies a state by."""
        state = self.into[norm][row]
        return norm.weight * (state.square().mean() + norm.variance_epsilon) ** -0.5


def terms(model: Any, processor: Any, answer: str = ANSWER) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each word's score as the sum of what its row takes from each key, and of the row's own embedding; no autograd.

    Returns:
        The terms of all keys `[T, L]` and of the embedding `[T]`, the scores `[T]`, and the cells among the keys.
    """
    language, head = model.model.language_model, model.lm_head.weight
    seen = Seen(language)
    out, cells, tokens, rows = read(model, processor, answer)
    keys, own, scores = [], [], []
    for row, token in zip(rows.tolist(), tokens, strict=True):
        logits = out.logits[0, row]
        direction = head[token] - logits.softmax(0) @ head
        scores.append(logits[token] - logits.softmax(0) @ logits)
        direction = direction * seen.scale(language.norm, row)
        taken = torch.zeros(out.logits.shape[1], dtype=head.dtype)
        for layer, attention in zip(language.layers[::-1], out.attentions[::-1], strict=True):
            mlp, heads = layer.mlp, layer.self_attn
            gate, up = seen.out[mlp.gate_proj][row], seen.out[mlp.up_proj][row]
            share = torch.sigmoid(gate)  # silu(gate) / gate
            inner = direction @ mlp.down_proj.weight / 2
            inner = (inner * up * share) @ mlp.gate_proj.weight + (inner * gate * share) @ mlp.up_proj.weight
            direction = direction + inner * seen.scale(layer.post_attention_layernorm, row)
            wanted = (direction @ heads.o_proj.weight).unflatten(0, (-1, heads.head_dim))
            values = seen.out[heads.v_proj].unflatten(1, (-1, heads.head_dim))
            for number, one in enumerate(wanted):
                taken += attention[0, number, row] * (values[:, number // heads.num_key_value_groups] @ one)
        keys.append(taken)
        own.append(direction @ seen.into[language.layers[0].input_layernorm][row])
    return torch.stack(keys).detach(), torch.stack(own).detach(), torch.stack(scores).detach(), cells


def test_what_a_row_takes_from_all_keys_and_its_own_embedding_sum_to_the_score() -> None:
    keys, own, scores, _ = terms(tiny_llava().double(), llava_processor())
    torch.testing.assert_close(keys.sum(1) + own, scores, rtol=1e-5, atol=1e-6)  # the model's norms are in float32


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_contributions_of_all_words_from_one_backward_are_those_by_hand(attention: str) -> None:
    model = tiny_llava().double()
    model.set_attn_implementation(attention)
    words = explained(model, llava_processor())
    keys, *_, cells = terms(tiny_llava().double(), llava_processor())
    assert {word.method for word in words} == {"word-contribution"}
    for word, row in zip(words, keys[:, cells], strict=True):
        raw = torch.from_numpy(word.raw).flatten().double()
        torch.testing.assert_close(raw, row.clamp_min(0), rtol=1e-4, atol=1e-5 * float(row.abs().max()))


def test_what_speaks_against_one_token_of_a_word_is_taken_off_what_speaks_for_another() -> None:
    processor = llava_processor()
    processor.tokenizer = byte_level_tokenizer()
    model = tiny_llava(vocab_size=len(processor.tokenizer)).double()
    answer = "a purple teapot"
    words = explained(model, processor, answer)
    keys, *_, cells = terms(model, processor, answer)
    tokens = processor.tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    spread = [one.tokens for one in text_of(tokens, processor.tokenizer).words]
    assert max(map(len, spread)) > 1
    for word, own in zip(words, spread, strict=True):
        raw, each = torch.from_numpy(word.raw).flatten().double(), keys[list(own)][:, cells]
        torch.testing.assert_close(raw, each.sum(0).clamp_min(0), rtol=1e-4, atol=1e-5 * float(each.abs().max()))
