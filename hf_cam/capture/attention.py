"""What attention did in one forward of an unmodified model: queries, keys, values, weights and their gradients."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_cam.capture.capture import Capture, first_tensor
from hf_cam.capture.replay import Tail
from hf_cam.errors import LayoutError, MethodError
from hf_cam.layouts import TOKENS, AnyLayout, Layout, Size, Spatial

FEWEST = 2
"""Cells a side: fewer tokens are queries, not a picture."""
INSTEAD = "defined there are the methods that look at a layer, such as 'gradcam', 'hirescam' and 'layercam'"


@dataclass(frozen=True, eq=False)
class Attention:
    """One call of attention, exactly as the model made it: rotary positions, biases and norms are in q and k already.

    Args:
        layer: Dotted name of the module that made it.
        query, key, value: `[B, heads, N, d]`, `[B, heads, M, d]`, `[B, heads, M, d]`.
        output: `[B, heads, N, d]`, what goes to the output projection; connected to the graph.
        scale: Factor of the products of queries and keys.
        mask: Added to them (or booleans: which to keep), as relative position biases are.
        computed: The weights themselves, where the model made them one step at a time.
        gradient: Of a target with respect to the output.
    """

    layer: str
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    scale: float = 1.0
    mask: Tensor | None = None
    computed: Tensor | None = None
    gradient: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """`softmax(scale q k^T + mask)`, `[B, heads, N, M]` in float32 or better; made anew on each access."""
        if self.computed is not None:
            return _wide(self.computed.detach())
        scores: Tensor = (_wide(self.query.detach()) * self.scale) @ _wide(self.key.detach()).mT
        if self.mask is not None:
            mask = self.mask.detach()
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return scores.softmax(-1)

    @property
    def weight_gradients(self) -> Tensor:
        """`dL/dA = (dL/dO) V^T`, `[B, heads, N, M]` in float32 or better; made anew on each access."""
        return _wide(self.output_gradient) @ _wide(self.value.detach()).mT

    @property
    def output_gradient(self) -> Tensor:
        """`dL/dO`, zeros where the target does not depend on this call."""
        return torch.zeros_like(self.output) if self.gradient is None else self.gradient

    def images(self) -> Iterator[Attention]:
        """The same call image by image: one image's weights stay in the processor's cache, a batch's do not."""
        batch = len(self.query)

        def cut(tensor: Tensor | None, index: int) -> Tensor | None:
            return tensor if tensor is None or len(tensor) != batch else tensor[index : index + 1]

        for index in range(batch):
            part = slice(index, index + 1)
            yield replace(
                self,
                query=self.query[part],
                key=self.key[part],
                value=self.value[part],
                output=self.output[part],
                mask=self.mask if self.mask is None or self.mask.ndim < 4 else cut(self.mask, index),
                computed=cut(self.computed, index),
                gradient=cut(self.gradient, index),
            )

    @property
    def is_square(self) -> bool:
        """As many queries as keys."""
        return self.query.shape[2] == self.key.shape[2]


@dataclass(frozen=True)
class Cells:
    """Which tokens are cells of the picture: `prefix` others stand in front of the grid, and any number behind it."""

    prefix: int
    grid: Size

    def __call__(self, tokens: Tensor) -> Tensor:
        """`[..., N]` to `[..., h, w]`."""
        rows, columns = self.grid
        return tokens[..., self.prefix : self.prefix + rows * columns].reshape(*tokens.shape[:-1], rows, columns)


@dataclass(frozen=True)
class AttentionTrace:
    """How attention carried the picture to the output, for one target an image.

    Args:
        encoder: Self-attention over the cells, first layer first.
        decoder: Pairs of the queries' self-attention and their cross-attention to the cells.
        pool: The one query that reads the cells, where the model pools by attention.
        cells: Which tokens of the encoder are cells.
    """

    encoder: tuple[Attention, ...]
    decoder: tuple[tuple[Attention, Attention], ...]
    pool: Attention | None
    cells: Cells

    @property
    def calls(self) -> tuple[Attention, ...]:
        """All of them, in the order of the forward."""
        return (*self.encoder, *(call for pair in self.decoder for call in pair), *((self.pool,) if self.pool else ()))

    @property
    def last(self) -> Attention:
        """The call whose output the head reads token by token."""
        return self.calls[-1]

    def with_gradients(self, gradients: Sequence[Tensor | None]) -> AttentionTrace:
        """The same with a target's gradient at each call's output, in the order of `calls`."""
        given = [replace(call, gradient=gradient) for call, gradient in zip(self.calls, gradients, strict=True)]
        first, rest = given[: len(self.encoder)], given[len(self.encoder) :]
        pairs = tuple(zip(rest[0 : 2 * len(self.decoder) : 2], rest[1 : 2 * len(self.decoder) : 2], strict=True))
        return AttentionTrace(tuple(first), pairs, rest[-1] if self.pool else None, self.cells)

    @cached_property
    def readers(self) -> Tensor:
        """`[B, N]`: which rows of the last call the target reads, each image's summing to one.

        Told by the gradient: the class token's, a detected query's, the pool's; all cells' alike where the head takes
        their mean. Where it reads cells and tokens in front of the grid too (DINOv2), the latter, which gather
        the picture.
        """
        read = self.last.output_gradient.abs().amax((1, 3)) > 0
        if not self.decoder and self.pool is None:
            front = read.clone()
            front[:, self.cells.prefix :] = False
            read = torch.where(front.any(1, keepdim=True), front, read)
        weights = _wide(read.to(self.last.output))
        return weights / weights.sum(1, keepdim=True).clamp_min(1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True)
class Readouts:
    """The attention that each layer's own reading of the target goes through, with that reading's gradients.

    Args:
        calls: One a layer: its own, or the pool's on its tokens.
        cells: Which of the keys are cells.
    """

    calls: tuple[Attention, ...]
    cells: Cells


# Recording -----------------------------------------------------------------------------------------------------------

MATMUL = {"matmul", "__matmul__", "bmm"}
SHIFTING = {"mul", "__mul__", "div", "__truediv__", "add", "__add__", "__iadd__", "add_", "masked_fill", "to", "float"}
PASSING = {"to", "type", "type_as", "float"}


@dataclass(frozen=True)
class Finished:
    """A module that ran outside of any block, its caller, and what it returned."""

    module: nn.Module
    caller: nn.Module | None
    output: Any


@dataclass
class Recording:
    """One forward's calls of attention and the modules around them.

    Args:
        names: The dotted names of all modules.
        calls: In the order of the forward.
        finished: The blocks and what ran beside them, in the order in which they ended.
        running: The modules that are in their forward now, outermost first.
    """

    names: dict[nn.Module, str]
    blocks: set[nn.Module]
    calls: list[Attention] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    running: list[nn.Module] = field(default_factory=list)

    def block_of(self, call: Attention) -> str:
        """The name of the block that a call belongs to; its own where it stands alone."""
        known = {self.names[block] for block in self.blocks}
        parts = call.layer.split(".")
        paths = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        return next((path for path in paths if path in known), call.layer)

    def group_of(self, call: Attention) -> str:
        """The name of the list of blocks that a call belongs to."""
        block = self.block_of(call)
        return block.rpartition(".")[0] if block != call.layer or "." in block else block


class Recorder(TorchFunctionMode):
    """Sees every call of attention under it, fused or one step at a time, and changes none."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording
        # Keyed by identity, and kept alive so that an identity is never given away again.
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
        layer = self.recording.names[self.recording.running[-1]] if self.recording.running else ""
        self.recording.calls.append(Attention(layer, query, key, value, output, **rest))
        return output


def is_plain_multi_head(args: Any, kwargs: Any) -> bool:
    """Whether `multi_head` knows everything that this call of `nn.MultiheadAttention`'s function asks for."""
    given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs).arguments
    extras = ("bias_k", "bias_v", "static_k", "static_v")
    return given["query"].ndim == 3 and not given["add_zero_attn"] and all(given.get(name) is None for name in extras)


def multi_head(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """`nn.MultiheadAttention`'s arithmetic with the fused attention, which its own function hides from a recorder."""
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


@contextmanager
def recording(module: nn.Module) -> Iterator[Recording]:
    """Record every call of attention in forwards of `module` inside the block."""
    names = {child: name for name, child in module.named_modules()}
    lists = (nn.ModuleList, nn.Sequential)
    blocks = {block for child in names if isinstance(child, lists) for block in child.children()}
    record = Recording(names, blocks)

    def enter(child: nn.Module, *_: Any) -> None:
        record.running.append(child)
        torch.set_grad_enabled(True)  # also where the model itself runs a part under no_grad, as CLIPSeg does

    def leave(child: nn.Module, _: Any, output: Any) -> None:
        record.running.pop()
        if not any(caller in blocks for caller in record.running):
            record.finished.append(Finished(child, record.running[-1] if record.running else None, output))

    handles = []
    try:
        for child in names:
            handles += [child.register_forward_pre_hook(enter), child.register_forward_hook(leave)]
        with Recorder(record):
            yield record
    finally:
        for handle in handles:
            handle.remove()


# Reading a recording -------------------------------------------------------------------------------------------------


def trace_of(
    record: Recording,
    pixels: Tensor,
    score: Tensor,
    layouts: Sequence[Spatial],
    grids: Sequence[Size],
    size: Size,
) -> AttentionTrace:
    """What each recorded call is to the picture and the target; those that do not lie between them are left out.

    Args:
        record: Of a forward on `pixels`, which required grad.
        pixels: `[B, C, H, W]`.
        score: The target, connected to the graph.
        layouts: How the model's tokens may lie.
        grids: Numbers of rows and columns that the model is known to have.
        size: Height and width of the input.

    Raises:
        MethodError: attention does not run over all of the picture's cells.
    """
    groups: dict[str, list[Attention]] = {}
    for call in record.calls:
        groups.setdefault(record.group_of(call), []).append(call)
    source = pixels.view_as(pixels).grad_fn
    assert source is not None
    leaf = source.next_functions[0][0]
    seen = [
        calls
        for calls in groups.values()
        if any(depends_on(call.output, leaf) for call in calls) and depends_on(score, calls[-1].output.grad_fn)
    ]
    if not seen:
        raise MethodError(f"the model has no attention over the picture's cells; {INSTEAD}")
    batch = len(pixels)
    for calls in seen:
        if any(len(call.query) != batch for call in calls):
            raise MethodError(
                f"{calls[0].layer!r} attends within windows (or frames), and what crosses their borders is not in its "
                f"weights: methods of attention are not defined over it; {INSTEAD}"
            )
    [first, *rest] = seen
    if not depends_on(first[0].query, leaf):
        raise _other_means(first[0])
    if not all(call.is_square and call.key.shape[2] == first[0].key.shape[2] for call in first):
        raise MethodError(
            f"{first[0].layer!r} does not attend from every cell to every cell, as methods of attention take for "
            f"granted; {INSTEAD}"
        )
    cells = _cells(first[0], layouts, grids, size)
    encoder, pool = list(first), None
    decoder: list[tuple[Attention, Attention]] = []
    tokens = first[0].key.shape[2]
    for calls in rest:
        pairs = list(zip(calls[::2], calls[1::2], strict=False))
        if len(calls) == 1 and calls[0].key.shape[2] == tokens and pool is None and not calls[0].is_square:
            pool = calls[0]
        elif _are_pairs(record, calls, pairs, tokens) and not decoder:
            decoder = pairs
        elif all(call.is_square and call.key.shape[2] == tokens for call in calls):
            encoder += calls
        else:
            raise _other_means(calls[0])
    return AttentionTrace(tuple(encoder), tuple(decoder), pool, cells)


def _other_means(call: Attention) -> MethodError:
    return MethodError(
        f"{call.layer!r} reads the picture by other means than attention to its cells (deformable sampling, or "
        f"features of several scales); {INSTEAD}"
    )


def _are_pairs(
    record: Recording, calls: Sequence[Attention], pairs: Sequence[tuple[Attention, Attention]], tokens: int
) -> bool:
    """Whether each block attends among its queries first, and to the cells then."""
    return len(calls) == 2 * len(pairs) and all(
        record.block_of(own) == record.block_of(cross) and own.is_square and cross.key.shape[2] == tokens
        for own, cross in pairs
    )


def _cells(call: Attention, layouts: Sequence[Spatial], grids: Sequence[Size], size: Size) -> Cells:
    tokens = call.key.shape[2]
    shape = (len(call.key), tokens, 1)
    for layout in layouts:
        try:
            if isinstance(layout, AnyLayout):
                layout = layout.reading(shape, size)
            if isinstance(layout, Layout) and layout.axes == TOKENS:
                grid = layout.grid(shape, size)
                if min(grid) >= FEWEST:
                    return Cells(layout.prefix, grid)
        except LayoutError:
            pass
        for grid in grids:
            if grid[0] * grid[1] == tokens:
                return Cells(0, grid)
    raise MethodError(f"the {tokens} tokens of {call.layer!r} are no grid of a {size[0]} x {size[1]} input; {INSTEAD}")


def tail_after(record: Recording, captured: Capture, block: str, module: nn.Module, inputs: Mapping[str, Any]) -> Tail:
    """The model from a block on: whatever does not depend on the block's output is remembered (a text tower too)."""
    [last] = [done for done in record.finished if record.names[done.module] == block]
    tensor = first_tensor(last.output)
    assert tensor is not None
    path = block.split(".")
    callers = {module.get_submodule(".".join(path[:end])) for end in range(len(path))}
    prefix: dict[nn.Module, list[Any]] = {}
    for done in record.finished:
        if done.caller in callers and done.module is not last.module and not depends_on(done.output, tensor.grad_fn):
            prefix.setdefault(done.module, []).append(done.output)
    return Tail(module, block, {**inputs, "pixel_values": captured.pixels}, prefix, last.output)


def depends_on(output: Any, node: Any) -> bool:
    """Whether a node of the autograd graph lies behind a tensor."""
    tensor = first_tensor(output)
    waiting, known = [tensor.grad_fn if tensor is not None else None], set()
    while waiting:
        current = waiting.pop()
        if current is node:
            return True
        if current is not None and current not in known:
            known.add(current)
            waiting += [earlier for earlier, _ in current.next_functions]
    return False
