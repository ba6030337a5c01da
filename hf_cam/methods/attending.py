"""Signals that are defined only where attention runs over all cells of the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.attention import Attention, AttentionTrace, Readouts
from hf_cam.capture.guard import borrowed, is_connected
from hf_cam.capture.inputs import call
from hf_cam.capture.levels import first_tensor
from hf_cam.capture.local_rules import Attend, Gates, LocalRules
from hf_cam.capture.recorder import Recording, recording
from hf_cam.capture.replay import Tail
from hf_cam.capture.routes import is_batch_first, leaf_of, output_of, tail_after, trace_of
from hf_cam.errors import DetachedError, MethodError, NoGradientError
from hf_cam.layouts import AnyLayout, Size
from hf_cam.methods.run import Run, vanishes_on_noise
from hf_cam.methods.signals import activations, signal
from hf_cam.models.traits import unwrap
from hf_cam.targets import PromptSimilarity, Target, target_values


@signal(
    "all attention calls, with the target's gradient at the last one",
    cost="a backward pass from the target to the last attention call",
    attention=True,
    watch=recording,
    forwards=0.1,
    connected=True,
)
def attention(run: Run, layer: str) -> AttentionTrace:
    """The trace with a gradient only at its last call; it does not depend on the target layer."""
    del layer
    return run.once(_read)


@signal(
    "all attention calls, with the target's gradient at each",
    cost="a backward pass through the whole model",
    attention=True,
    watch=recording,
    forwards=1.2,
    connected=True,
)
def attention_gradients(run: Run, layer: str) -> AttentionTrace:
    """The trace with a gradient at each of its calls; it does not depend on the target layer."""
    del layer
    return run.once(_differentiated)


@signal(
    "each layer's own readout of the target by the model's head, made when asked for",
    cost="a forward and a backward pass of the head per layer read",
    attention=True,
    watch=recording,
    forwards=0.8,
    connected=True,
)
def readouts(run: Run, layer: str) -> Readouts:
    """LeGrad's readouts of each encoder layer by the model's own head; they do not depend on the target layer.

    Raises:
        MethodError: the model has no such readouts.
    """
    del layer
    return run.once(_readouts)


@signal(
    "token times gradient at each block under the rules of AttnLRP, `[B, blocks + 1, h, w]`",
    cost="one more forward, and a backward pass through it",
    attention=True,
    watch=recording,
    forwards=2.3,
)
def halved_terms(run: Run, layer: str) -> Tensor:
    """See `terms`; it does not depend on the target layer."""
    del layer
    return run.once(terms, "halved")


@signal(
    "token times gradient at each block under the rules of LibraGrad: a function from the rule for gated products "
    '("halved" or "frozen") to `[B, blocks + 1, h, w]`',
    cost="one more forward, and a backward pass through it",
    attention=True,
    watch=recording,
    forwards=2.3,
)
def frozen_terms(run: Run, layer: str) -> Callable[[Gates], Tensor]:
    """See `terms`; it does not depend on the target layer."""
    del layer
    return partial(run.once, terms, "frozen")


def traced(run: Run) -> AttentionTrace:
    """The trace of the captured forward's attention, without gradients.

    Raises:
        MethodError: attention does not run over all cells of the picture.
    """
    grids: list[Size] = []
    for layer in run.adapter.layers:
        rows, columns = activations(run, layer).shape[-2:]
        grids.append((rows, columns))
    assert run.captured.pixels is not None
    layouts = (*run.adapter.layouts, AnyLayout(run.adapter.prefixes))
    score = _connected(run.scores.sum())
    return trace_of(_recorded(run), run.captured.pixels, score, layouts, grids, run.picture_size)


def terms(run: Run, attend: Attend, gates: Gates = "halved") -> Tensor:
    """`[B, blocks + 1, h, w]`: token times gradient under local rules, before the first block and after each.

    Runs the model once more under these rules.
    """
    record, trace = _recorded(run), run.once(traced)
    blocks = list(dict.fromkeys(blocks_of(record, trace)))
    tokens: list[Tensor] = []  # of the picture alone: those that require grad
    with borrowed(unwrap(run.model)) as module, torch.enable_grad():
        first, *_ = members = [module.get_submodule(block) for block in blocks]
        first.register_forward_pre_hook(_collector(tokens), with_kwargs=True)
        for member in members:
            member.register_forward_hook(lambda _, __, output: _keep(tokens, output))
        pixels = run.inputs["pixel_values"].detach().requires_grad_()
        with LocalRules(attend, gates):
            outputs = call(module, {**run.inputs, "pixel_values": pixels})
            score = target_values(outputs, run.targets)
        found = torch.autograd.grad(_connected(score.sum()), tokens, allow_unused=True, retain_graph=True)
        axis = token_axis_of(trace, tokens[0], pixels)
    return torch.stack(
        [
            trace.cells(_on_tokens(token.detach() * (0 if gradient is None else gradient), axis))
            for token, gradient in zip(tokens, found, strict=True)
        ],
        1,
    )


def blocks_of(record: Recording, trace: AttentionTrace) -> list[str]:
    """The name of the block of each call of the encoder.

    Raises:
        MethodError: one is in no block, as in a traced network, which has no modules but the innermost.
    """
    blocks = [record.around(one) for one in trace.encoder]
    for one, block in zip(trace.encoder, blocks, strict=True):
        if not block:
            raise MethodError(
                f"{one.layer!r} is in no module that is a whole block, so the tokens between blocks are not to be had; "
                "'chefer' and 'rollout' need none"
            )
    return blocks


def token_axis_of(trace: AttentionTrace, tokens: Tensor, pixels: Tensor | None) -> int:
    """Which axis of a block's tokens counts them: 1 of `[B, N, C]`, 0 of `[N, B, C]`.

    Raises:
        MethodError: the tokens have neither shape.
    """
    images, _, length, _ = trace.encoder[0].key.shape
    fitting = [axis for axis in (1, 0) if tokens.shape[:2] == ((images, length) if axis else (length, images))]
    if tokens.ndim != 3 or not fitting:
        raise MethodError(
            f"a block returns {tuple(tokens.shape)} for {images} images of {length} tokens, and not tokens "
            "[B, N, C] or [N, B, C]; 'chefer' is defined here"
        )
    if len(fitting) > 1 and pixels is not None and not is_batch_first(tokens, pixels):
        return 0
    return fitting[0]


def _on_tokens(terms: Tensor, axis: int) -> Tensor:
    """`[B, N]`: the sum over channels."""
    summed = terms.sum(-1)
    return summed if axis else summed.mT


def _recorded(run: Run) -> Recording:
    record: Recording = run.captured.watched[recording]
    return record


def _read(run: Run) -> AttentionTrace:
    trace = run.once(traced)
    [gradient] = _gradients_at(run, [trace.last.output])
    return trace.with_gradients([None] * (len(trace.calls) - 1) + [gradient])


def _differentiated(run: Run) -> AttentionTrace:
    trace = run.once(traced)
    return trace.with_gradients(_gradients_at(run, [one.output for one in trace.calls]))


def _gradients_at(run: Run, outputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    found: Sequence[Tensor | None] = torch.autograd.grad(
        _connected(run.scores.sum()), outputs, retain_graph=True, create_graph=is_connected(), allow_unused=True
    )
    if found[-1] is None or (not found[-1].any() and vanishes_on_noise(run, _gradient_at_last)):
        raise NoGradientError("the target's gradient is zero at the last attention: the target ignores its output")
    return found


def _gradient_at_last(run: Run) -> Tensor:
    score, last = _connected(run.scores.sum()), run.once(traced).last.output
    [gradient] = torch.autograd.grad(score, last, retain_graph=True, allow_unused=True)
    return torch.zeros_like(last) if gradient is None else gradient


def _connected(score: Tensor) -> Tensor:
    if not score.requires_grad:
        raise DetachedError("the target does not depend on the model's attention: it is a constant or was detached")
    return score


def _readouts(run: Run) -> Readouts:
    trace, record = run.once(traced), _recorded(run)
    if trace.decoder:
        raise MethodError("'legrad' is not defined for models whose queries cross-attend to the cells; use 'chefer'")
    blocks = blocks_of(record, trace)
    if len(set(blocks)) != len(blocks):
        raise MethodError("'legrad' needs exactly one attention call per block; use 'chefer'")
    assert run.captured.pixels is not None
    leaf = leaf_of(run.captured.pixels)
    outputs = [first_tensor(output_of(record, block, leaf).output) for block in blocks]
    tail = tail_after(record, run.captured, blocks[-1], run.captured.module, run.inputs)

    def read(layer: int, prompt: int | None = None) -> Attention:
        targets = run.targets if prompt is None else [_of_prompt(target, prompt) for target in run.targets]
        return _readout(run, trace.encoder[layer], outputs[layer], tail, targets)

    return Readouts(len(outputs), read, trace.cells)


def _of_prompt(target: Target, prompt: int) -> Target:
    """The target of another prompt.

    Raises:
        MethodError: the target is no prompt.
    """
    if not isinstance(target, PromptSimilarity):
        raise MethodError("empty_prompt= is the index of a prompt, and the target is none; pass text= and the prompt")
    return replace(target, index=prompt)


def _readout(run: Run, one: Attention, tokens: Tensor | None, tail: Tail, targets: Sequence[Target]) -> Attention:
    assert tokens is not None
    trace = run.once(traced)
    pool = trace.pool
    if pool is None:
        axis = token_axis_of(trace, tokens, run.captured.pixels)
        reading = tail.together(tokens.mean(axis, keepdim=True).expand_as(tokens))
    else:
        with recording(run.captured.module) as again:
            reading = tail.together(tokens)
        one = next(other for other in again.calls if other.layer == pool.layer)
    score = _connected(target_values(reading, targets).sum())
    [gradient] = torch.autograd.grad(
        score, one.output, retain_graph=True, create_graph=is_connected(), allow_unused=True
    )
    return replace(one, gradient=gradient)


def _collector(tokens: list[Tensor]) -> Callable[..., None]:
    def collect(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.requires_grad]
        if given and not tokens:
            tokens.append(given[0])

    return collect


def _keep(tokens: list[Tensor], output: Any) -> None:
    found = first_tensor(output)
    if found is not None and found.requires_grad:
        tokens.append(found)
