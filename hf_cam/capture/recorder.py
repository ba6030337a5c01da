"""Record every call of attention in a forward, fused or step by step, without changing it."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_cam.capture.attention import Attention

MATMUL = {"matmul", "__matmul__", "bmm"}

SHIFTING = {"mul", "__mul__", "div", "__truediv__", "add", "__add__", "__iadd__", "add_", "masked_fill", "to", "float"}

PASSING = {"to", "type", "type_as", "float"}


@dataclass(frozen=True)
class Finished:
    """A module that ran outside every block, and its output.

    Args:
        module: The module.
        callers: The numbers of the module calls that it ran in, outermost first.
        output: What it returned.
    """

    module: nn.Module
    callers: tuple[int, ...]
    output: Any


@dataclass
class Recording:
    """The calls of attention in one forward, and the modules around them.

    Args:
        names: The dotted names of all modules.
        blocks: The members of the model's lists of modules.
        calls: The calls, in the order of the forward.
        finished: The blocks and the modules beside them, in the order in which they finished.
        running: The modules whose forward is running, outermost first, each with the number of its call.
        paths: What was running at each call of attention.
    """

    names: dict[nn.Module, str]
    blocks: set[nn.Module]
    calls: list[Attention] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    running: list[tuple[nn.Module, int]] = field(default_factory=list)
    paths: dict[Attention, tuple[tuple[nn.Module, int], ...]] = field(default_factory=dict)

    def block_of(self, call: Attention) -> str:
        """The name of the block that a call belongs to; the call's own layer if it is in no block."""
        known = {self.names[block] for block in self.blocks}
        parts = call.layer.split(".")
        paths = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        return next((path for path in paths if path in known), call.layer)

    def around(self, call: Attention) -> str:
        """The name of the block that a call belongs to, in a list or not: empty if there is none.

        It is the member of a list or else the outermost module whose run makes no other call of attention.
        """
        block = self.block_of(call)
        if block in {self.names[member] for member in self.blocks}:
            return block
        others = {number for other, path in self.paths.items() if other is not call for _, number in path}
        alone = (self.names[module] for module, number in self.paths[call] if number not in others)
        around = next(filter(None, alone), "")
        return "" if around == call.layer else around

    def group_of(self, call: Attention) -> str:
        """The name of the list of blocks that a call belongs to."""
        block = self.block_of(call)
        return block.rpartition(".")[0] if block != call.layer or "." in block else block


class Recorder(TorchFunctionMode):
    """Record every call of attention made under this mode, fused or step by step, without changing it."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording
        # Keyed by identity; the tensors are kept alive so that no identity is reused.
        self._scores: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._weights: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        if func is F.multi_head_attention_forward and is_plain_multi_head(args, kwargs):
            with self:
                return multi_head(*args, **kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.ndim == 4 and args and isinstance(args[0], Tensor):
            return self._stepwise(getattr(func, "__name__", ""), args, result)
        return result

    def _fused(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        output = F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
        names = ("dropout_p", "is_causal", "scale", "enable_gqa")
        settings = {**dict(zip(names, args, strict=False)), **kwargs}
        scale = settings.get("scale")
        if settings.get("is_causal"):
            attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        if key.shape[1] != query.shape[1] and query.ndim == 4:
            repeats = query.shape[1] // key.shape[1]
            key, value = (tensor.repeat_interleave(repeats, 1) for tensor in (key, value))
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        return self._note(query, key, value, output, scale=scale, mask=attn_mask)

    def _stepwise(self, name: str, args: Any, result: Tensor) -> Tensor:
        first = id(args[0])
        if name in MATMUL and first in self._weights:
            weights, query, key = self._weights.pop(first)
            return self._note(query, key, args[1], result, computed=weights)
        if name in MATMUL:
            self._scores = {id(result): (result, args[0], args[1].mT)}  # only the last product can be these scores
        elif name in SHIFTING and first in self._scores:
            _, query, key = self._scores.pop(first)
            self._scores[id(result)] = (result, query, key)
        elif name == "softmax" and first in self._scores:
            _, query, key = self._scores.pop(first)
            self._weights = {id(result): (result, query, key)}
        elif name in PASSING | {"dropout"} and first in self._weights:
            _, query, key = self._weights.pop(first)
            self._weights[id(result)] = (result, query, key)
        return result

    def _note(self, query: Tensor, key: Tensor, value: Tensor, output: Tensor, **rest: Any) -> Tensor:
        if query.ndim != 4:
            return output
        if not output.requires_grad:  # DETR's first queries attend to each other before they have seen the picture
            output = output.detach().requires_grad_()
        layer = self.recording.names[self.recording.running[-1][0]] if self.recording.running else ""
        call = Attention(layer, query, key, value, output, **rest)
        self.recording.calls.append(call)
        self.recording.paths[call] = tuple(self.recording.running)
        return output


def is_plain_multi_head(args: Any, kwargs: Any) -> bool:
    """Whether `multi_head` supports everything that this call of `F.multi_head_attention_forward` asks for."""
    given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs).arguments
    extras = ("bias_k", "bias_v", "static_k", "static_v")
    return given["query"].ndim == 3 and not given["add_zero_attn"] and all(given.get(name) is None for name in extras)


def multi_head(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """The arithmetic of `nn.MultiheadAttention` by way of fused attention, which its own function hides from a mode."""
    bound = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    heads, inputs = given["num_heads"], (given["query"], given["key"], given["value"])
    separate = given["use_separate_proj_weight"]
    matrices = (
        (given["q_proj_weight"], given["k_proj_weight"], given["v_proj_weight"])
        if separate
        else given["in_proj_weight"].chunk(3)
    )
    biases = (None,) * 3 if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
    length, batch, _ = inputs[0].shape

    def split(tensor: Tensor) -> Tensor:  # [N, B, C] -> [B, heads, N, d]
        parts: Tensor = tensor.unflatten(-1, (heads, -1))
        return parts.permute(1, 2, 0, 3)

    query, key, value = (split(F.linear(x, w, b)) for x, w, b in zip(inputs, matrices, biases, strict=True))
    mask = _mask(given["attn_mask"], given["key_padding_mask"], batch, heads, query)
    attended = F.scaled_dot_product_attention(query, key, value, mask)
    output = F.linear(
        attended.permute(2, 0, 1, 3).reshape(length, batch, -1), given["out_proj_weight"], given["out_proj_bias"]
    )
    if not given["need_weights"]:
        return output, None
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return output, weights.mean(1) if given["average_attn_weights"] else weights


def _mask(mask: Tensor | None, padding: Tensor | None, batch: int, heads: int, like: Tensor) -> Tensor | None:
    def additive(given: Tensor) -> Tensor:
        if given.dtype != torch.bool:
            return given.to(like.dtype)
        return torch.zeros_like(given, dtype=like.dtype).masked_fill(given, -torch.inf)

    if mask is not None:
        mask = additive(mask)
        mask = mask.unflatten(0, (batch, heads)) if mask.ndim == 3 else mask[None, None]
    if padding is None:
        return mask
    padding = additive(padding)[:, None, None]
    return padding if mask is None else mask + padding


def _inside(module: nn.Module) -> Iterator[nn.Module]:
    """All modules inside a module, without itself."""
    return itertools.islice(module.modules(), 1, None)


@contextmanager
def recording(module: nn.Module) -> Iterator[Recording]:
    """Record every call of attention in the forwards of `module` inside the `with` block."""
    names = {child: name for name, child in module.named_modules()}
    lists = (nn.ModuleList, nn.Sequential)
    blocks = {block for child in names if isinstance(child, lists) for block in child.children()}
    stages = {block for block in blocks if any(inner in blocks and any(inner.children()) for inner in _inside(block))}
    record, numbers = Recording(names, blocks), itertools.count()

    def enter(child: nn.Module, *_: Any) -> None:
        record.running.append((child, next(numbers)))
        torch.set_grad_enabled(True)  # even where the model runs a part of itself under no_grad, as CLIPSeg does

    def leave(child: nn.Module, _: Any, output: Any) -> None:
        record.running.pop()
        if not any(caller in blocks and caller not in stages for caller, _ in record.running):
            record.finished.append(Finished(child, tuple(number for _, number in record.running), output))

    handles = []
    try:
        for child in names:
            handles += [child.register_forward_pre_hook(enter), child.register_forward_hook(leave)]
        with Recorder(record):
            yield record
    finally:
        for handle in handles:
            handle.remove()
