"""The attention rows that predict an answer's tokens, with their gradients: one forward and one backward for all words.

The row before a token predicts it. Where what the answer's rows offer to later rows carries no gradient, each row gets
the gradient of its own token alone, so that the sum of all scores is differentiated once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_cam.capture.attention import Attention
from hf_cam.capture.inputs import call
from hf_cam.capture.recorder import MATMUL, Recorder, Recording
from hf_cam.errors import NoGradientError
from hf_cam.words.scores import Score


@dataclass(frozen=True, eq=False)
class Row:
    """One call of attention at the rows that predict the answer, over the picture's cells alone.

    Args:
        weights: `[heads, T, n]` attention weights A.
        gradients: `[heads, T, n]` of the tokens' scores with respect to A; None if there was no backward.
    """

    weights: Tensor
    gradients: Tensor | None


@dataclass(frozen=True, eq=False)
class Rows:
    """All calls of attention of the language model at the rows that predict an answer.

    Args:
        calls: The calls, cut to these rows; with the gradient of the output.
        cells: `[n]` positions of the picture's cells among all keys.
        length: The number of all keys; a call with fewer has the last ones.
        logits: `[T, V]` at these rows, detached.
    """

    calls: tuple[Attention, ...]
    cells: Tensor
    length: int
    logits: Tensor

    def __iter__(self) -> Iterator[Row]:
        """Call by call, so that the weights of one alone are in memory."""
        for one in self.calls:
            first = self.length - one.key.shape[2]
            cells = self.cells.to(one.key.device) - first
            inside = cells >= 0
            kept = cells[inside]
            values = replace(one, value=one.value[:, :, kept])
            weights = _spread(one.weights[0][..., kept], inside)
            yield Row(weights, None if one.gradient is None else _spread(values.weight_gradients[0], inside))


class RowRecorder(Recorder):
    """Record attention at the rows that predict an answer; keys and values carry no gradient.

    Args:
        queries: The number of rows of the forward.
        keys: The largest number of keys.
    """

    def __init__(self, queries: int, keys: int) -> None:
        super().__init__(Recording({}, set()))
        self.queries, self.keys = queries, keys

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute, as in half of all calls
            return func(*args)
        if name in MATMUL and len(args) == 2 and all(isinstance(one, Tensor) and one.ndim == 4 for one in args):
            args = (args[0], args[1].detach())  # keys or values of attention that is computed step by step
        return super().__torch_function__(func, types, args, kwargs)

    def _fused(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        key, value = key.detach(), value.detach()
        if not kwargs.get("is_causal") and not (len(args) > 1 and args[1]):
            return super()._fused(query, key, value, attn_mask, *args, **kwargs)
        output = F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
        if query.ndim != 4 or not self._fits(query, key):
            return output
        at = torch.arange(key.shape[2], device=query.device)
        causal = at <= at[: query.shape[2], None]  # the fused function aligns rows and keys at the first of each
        return self._note(query, *_repeated(query, key, value), output, mask=causal, scale=_scale(query, kwargs))

    def _note(self, query: Tensor, key: Tensor, value: Tensor, output: Tensor, **rest: Any) -> Tensor:
        if query.ndim != 4 or not self._fits(query, key):
            return output
        return super()._note(query, key, value, output, **rest)

    def _fits(self, query: Tensor, key: Tensor) -> bool:
        return query.shape[0] == 1 and query.shape[2] == self.queries and self.queries <= key.shape[2] <= self.keys


def recorded_rows(
    model: nn.Module,
    inputs: Mapping[str, Any],
    score: Score,
    cells: Tensor,
    *,
    rows: Tensor,
    queries: int,
    keys: int,
    rules: AbstractContextManager[Any],
    differentiate: bool = True,
) -> Rows:
    """The attention rows that predict the tokens of an answer in a forward, and their gradients.

    Args:
        model: A replica with frozen parameters.
        inputs: Of a forward over `queries` positions, which may follow on a cache.
        score: What is differentiated at these rows.
        cells: `[n]` positions of the picture's cells among the keys.
        rows: `[T]` the rows that predict the tokens, counted from the forward's last position, which is -1.
        queries, keys: The number of positions of the forward, and of all with the cache.
        rules: By which gradients flow, such as `LocalRules`; those of autograd under a `nullcontext`.
        differentiate: Whether the gradients are wanted.

    Raises:
        NoGradientError: no gradient passes the forward.
    """
    recorder = RowRecorder(queries, keys)
    with torch.set_grad_enabled(differentiate), rules, recorder:
        logits = call(model, inputs)["logits"][0, rows]
    calls = recorder.recording.calls
    gradients: Sequence[Tensor | None] = [None] * len(calls)
    if differentiate and calls:
        with torch.enable_grad():
            total = score.values(logits).sum()
        outputs = [one.output for one in calls if one.output.requires_grad]
        if not total.requires_grad or not outputs:
            raise NoGradientError(
                f"no gradient of the words passes the forward of {type(model).__name__}; its kernels may be made for "
                "inference alone, and method='attention-contrast' needs no gradient"
            )
        found = iter(torch.autograd.grad(total, outputs, allow_unused=True))
        gradients = [next(found) if one.output.requires_grad else None for one in calls]
    cut = tuple(_at_rows(one, gradient, rows) for one, gradient in zip(calls, gradients, strict=True))
    return Rows(cut, cells, keys, logits.detach())


def _at_rows(call: Attention, gradient: Tensor | None, rows: Tensor) -> Attention:
    """A call cut to some of its rows."""

    def at(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None else tensor[..., rows, :].detach()

    mask = call.mask if call.mask is None or call.mask.shape[-2] == 1 else at(call.mask)
    cut = [at(one) for one in (call.query, call.output, call.computed, gradient)]
    query, output, computed, gradient = cut
    assert query is not None
    assert output is not None
    return replace(
        call, query=query, key=call.key.detach(), value=call.value.detach(), output=output, mask=mask,
        computed=computed, gradient=gradient,
    )  # fmt: skip


def _spread(values: Tensor, inside: Tensor) -> Tensor:
    """Values of the cells that a call has among its keys, with zeros for the others, `[..., n]`."""
    if inside.all():
        return values
    full = values.new_zeros(*values.shape[:-1], len(inside))
    full[..., inside] = values
    return full


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values once per head of the queries."""
    times = query.shape[1] // key.shape[1]
    return (key, value) if times == 1 else (key.repeat_interleave(times, 1), value.repeat_interleave(times, 1))


def _scale(query: Tensor, kwargs: Mapping[str, Any]) -> float:
    given = kwargs.get("scale")
    return float(query.shape[-1] ** -0.5 if given is None else given)
