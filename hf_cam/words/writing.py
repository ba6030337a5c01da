"""What a model writes about a picture: the generated tokens, and the forwards that follow on them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.draws import own_draws
from hf_cam.capture.inputs import call
from hf_cam.doors import blaming
from hf_cam.errors import ModelError, OptionError, TargetError
from hf_cam.heads.establish import REFUSALS
from hf_cam.models.traits import accepts
from hf_cam.words.settings import blame_of

STEPS = 3
"""Tokens of the generation that a forward on its cache is compared with."""
VARIATION = 0.05
"""Largest total variation between the words that the two predict, more than rounding in bfloat16 causes."""
ALIKE = 0.02
"""Largest difference of probabilities at which two forwards count as the same."""
TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
"""Inputs that go on with their last value."""


@dataclass(frozen=True, eq=False)
class Written:
    """Tokens that follow a prompt.

    Args:
        prompt: `[1, P]` ids in front of them: of an encoder-decoder, those that start its decoder.
        tokens: `[T]` ids, without the one that ends the text.
        logits: `[t, V]` that the generation predicted the first t tokens with.
        finished: Whether the model ended the text itself.
        cache: Of the generation; None if it has none that is of use.
    """

    prompt: Tensor = field(repr=False)
    tokens: Tensor
    logits: Tensor = field(repr=False)
    finished: bool
    cache: Any = field(repr=False)


def written(
    model: nn.Module, inputs: Mapping[str, Any], settings: Mapping[str, Any], forced: Sequence[Tensor] = ()
) -> Written:
    """What the model writes, or what it is forced to write.

    Args:
        model: A replica.
        inputs: The prompt and the picture.
        settings: Of `generate`.
        forced: `[T]` ids of a text, or several readings of it, of which the one is taken whose first token the model
            finds likeliest; of the generation, only the cache and the first token's logits are used.

    Raises:
        TargetError: the model writes nothing.
        OptionError: the settings hold an input, or `generate` fails with one that is not checked beforehand.
    """
    if taken := sorted(set(settings) & set(inputs)):
        raise OptionError(f"generate= holds {taken[0]!r}, which the picture and the text give; omit it")
    own = {"max_new_tokens": 1, "do_sample": False, "num_beams": 1} if forced else dict(settings)
    own |= {"return_dict_in_generate": True, "output_logits": True}
    with blaming(*blame_of({} if forced else settings)), own_draws(model, inputs), torch.no_grad():
        found = model.generate(**{**inputs, **own})  # type: ignore[operator]
    # Of several beams, the search goes on after the best has ended.
    beams = found.get("beam_indices", None)
    count = len(found.logits) if beams is None else int((beams[0] >= 0).sum())
    sequence, logits = found.sequences[0], torch.cat([one[:1] for one in found.logits]).float()
    simple = found.logits[0].shape[0] == 1 and own.get("num_beams", 1) == 1
    start = len(sequence) - (len(found.logits) if beams is None else beams.shape[1])
    prompt = sequence[:start][None]
    if len(prompt[0]) < 2 and "input_ids" in inputs and not decodes(model):
        prompt = inputs["input_ids"]  # of a model that generates from embeddings
    cache = found.get("cache", None)
    cache = found.get("past_key_values", None) if cache is None else cache
    if forced:
        likeliest = max(forced, key=lambda ids: float(logits[0, int(ids[0])]))
        return Written(prompt, likeliest.to(sequence.device), logits, True, cache)
    ends = _ends(model, settings)
    tokens = sequence[start : start + count]
    end = next((at for at, token in enumerate(tokens.tolist()) if token in ends), None)
    finished, tokens = end is not None, tokens[:end]
    if not len(tokens):
        raise TargetError("the model writes nothing about this picture; ask another question, or pass answer=")
    if not simple:  # of several beams: its cache holds them all
        again = written(model, inputs, {}, [tokens])
        return Written(again.prompt, again.tokens, again.logits, finished, again.cache)
    return Written(prompt, tokens, logits[: len(tokens)], finished, cache)


def check_length(model: nn.Module, inputs: Mapping[str, Any], forced: Sequence[Tensor] = ()) -> None:
    """Refuse a prompt, or a prompt and an answer, that have more tokens than the model has positions.

    Raises:
        TargetError: with both numbers.
    """
    ids, config = inputs.get("input_ids"), getattr(model, "config", None)
    if ids is None or config is None or decodes(model):
        return
    text = config.get_text_config(decoder=True)
    scaling = getattr(text, "rope_parameters", None) or {}
    longest = getattr(text, "max_position_embeddings", None)
    needed = ids.shape[1] + min(map(len, forced), default=1)
    if longest is not None and needed > longest * (scaling.get("factor") or 1):
        raise TargetError(
            f"the picture, the text and the answer take {needed} tokens, and the model has {longest} positions; pass "
            "a shorter text"
        )


def answer_rows(count: int) -> Tensor:
    """The rows that predict the `count` last tokens, where the last token itself is left out of the forward."""
    return torch.arange(-count, 0)


def cached_inputs(
    model: nn.Module, inputs: Mapping[str, Any], text: Written, before: int | None = None
) -> dict[str, Any] | None:
    """The inputs of a forward over the T rows that predict the tokens, on the generation's cache before them.

    The cache is cut, not copied, so that a later call cuts off what this one's forward adds. None if the model has no
    cache that can be cut, or its forward does not go without the picture, as that of a model which generates by its
    language model alone.

    Args:
        model: A replica.
        inputs: The prompt and the picture.
        text: What was written.
        before: The number of positions to keep; None for all before the T rows.
    """
    cache, before = text.cache, text.prompt.shape[1] - 1 if before is None else before
    if before < 1 or not _is_cut(cache, before):
        return None
    ids = torch.cat([text.prompt, text.tokens[None, :-1]], 1)
    others = {name: value for name, value in _longer(inputs, text).items() if name != "input_ids"}
    name = "cache" if accepts(model, "cache") else "past_key_values"
    # As generate() does: a picture's positions may have several axes, which no model finds behind its cache.
    place = getattr(model, "_prepare_position_ids_for_generation", None)
    with blaming("the model's prepare_inputs_for_generation()", ModelError):
        if place is not None and accepts(model, "position_ids"):
            others = {"position_ids": place(ids, {**others, "cache": cache}), **others}
        prepared: dict[str, Any] = model.prepare_inputs_for_generation(  # type: ignore[operator]
            ids, next_sequence_length=ids.shape[1] - before, use_cache=True, **{**others, "cache": cache}
        )
    if "cache" in prepared and name != "cache":
        prepared[name] = prepared.pop("cache")
    found = {name: value for name, value in prepared.items() if value is not None and not name.startswith("logits_to")}
    return None if _required(model) - set(found) else found


def cache_holds(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether one forward on the generation's cache predicts what the generation does step by step.

    Args:
        model: A replica.
        inputs: The prompt and the picture.
    """
    try:
        own = written(model, inputs, {**dict.fromkeys(("max_new_tokens", "min_new_tokens"), STEPS), "do_sample": False})
        cached = cached_inputs(model, inputs, own)
        if cached is None:
            return False
        with torch.no_grad():
            found = call(model, cached)["logits"][0, answer_rows(len(own.tokens))]
    except REFUSALS:
        return False
    one, other = (given.to(found.device).float().softmax(1) for given in (found, own.logits))
    return bool(((one - other).abs().sum(1) / 2 <= VARIATION).all())


def alike(logits: Tensor, others: Tensor, tokens: Tensor) -> bool:
    """Whether two logits `[T, V]` give tokens `[T]` the same probabilities; of the longer ones, the first count."""
    count = min(len(logits), len(others))
    tokens = tokens[:count, None].to(logits.device)
    one, other = (given[:count].to(logits.device).float().softmax(1).gather(1, tokens) for given in (logits, others))
    return bool(((one - other).abs() <= ALIKE + ALIKE * other).all())


def whole_inputs(model: nn.Module, inputs: Mapping[str, Any], text: Written) -> dict[str, Any]:
    """The inputs of one forward over the prompt and all tokens but the last, whose last T rows predict the tokens."""
    follows = torch.cat([text.prompt, text.tokens[None, :-1]], 1)
    if decodes(model):
        return {**inputs, "decoder_input_ids": follows}
    return {**_longer(inputs, text), "input_ids": follows, **_uncached(model)}


def _required(model: nn.Module) -> set[str]:
    """The inputs that a model's forward does not go without."""
    parameters = inspect.signature(inspect.unwrap(type(model).forward)).parameters.values()
    named = [one for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD and one.name != "self"]
    return {one.name for one in named if one.default is one.empty}


def _uncached(model: nn.Module) -> dict[str, Any]:
    return {"use_cache": False} if accepts(model, "use_cache") else {}


def _longer(inputs: Mapping[str, Any], text: Written) -> dict[str, Any]:
    """The prompt's inputs for all tokens but the last; everything that counts the prompt's tokens goes on."""
    given = inputs.get("input_ids")
    length = text.prompt.shape[1] if given is None else given.shape[1]
    more = text.prompt.shape[1] + len(text.tokens) - 1 - length
    found: dict[str, Any] = {}
    for name, value in inputs.items():
        counts = isinstance(value, Tensor) and value.ndim > 1 and not value.is_floating_point()
        if counts and value.shape[1] == length and (name in TYPES or "mask" in name) and more > 0:
            last = torch.ones_like(value[:, -1:]) if name == "attention_mask" else value[:, -1:]
            value = torch.cat([value, last.repeat(1, more, *[1] * (value.ndim - 2))], 1)
        found[name] = value
    return found


def _is_cut(cache: Any, length: int) -> bool:
    """Cut a cache to a length; False if it is none, or cannot be cut."""
    try:
        surplus = cache.get_seq_length() - length
        if surplus < 0 or getattr(cache, "is_croppable", True) is False:
            return False
        cache.crop(-surplus)
        return bool(cache.get_seq_length() == length)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False


def decodes(model: nn.Module) -> bool:
    """Whether a decoder of its own writes the text."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _ends(model: nn.Module, settings: Mapping[str, Any]) -> set[int]:
    """The ids that end a text."""
    own = settings.get("eos_token_id", getattr(getattr(model, "generation_config", None), "eos_token_id", None))
    return set() if own is None else {int(one) for one in (own if isinstance(own, list | tuple) else [own])}
