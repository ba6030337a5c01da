"""How attention carried the picture to the output: the role of each recorded call, and the model after a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.attention import Attention, AttentionTrace, Cells
from hf_cam.capture.capture import Capture
from hf_cam.capture.levels import first_tensor
from hf_cam.capture.recorder import Finished, Recording
from hf_cam.capture.replay import REAL, Tail
from hf_cam.capture.runs import run_name
from hf_cam.errors import LayoutError, MethodError
from hf_cam.layouts import TOKENS, TOKENS_FIRST, AnyLayout, Layout, Size, Spatial

FEWEST = 2
"""Cells per side; a smaller grid of tokens holds queries, not a picture."""

INSTEAD = "use a method that reads a layer, such as 'gradcam', 'hirescam' or 'layercam'"


def trace_of(
    record: Recording,
    pixels: Tensor,
    score: Tensor,
    layouts: Sequence[Spatial],
    grids: Sequence[Size],
    size: Size,
) -> AttentionTrace:
    """The role of each recorded call between the picture and the target; other calls are left out.

    Args:
        record: The recording of a forward on `pixels`, which required grad.
        pixels: `[B, C, H, W]`.
        score: The target, connected to the graph.
        layouts: Possible layouts of the model's tokens.
        grids: Rows and columns of the grids that the model is known to have.
        size: Height and width of the input.

    Raises:
        MethodError: attention does not run over all cells of the picture.
    """
    leaf = leaf_of(pixels)
    groups: dict[str, list[Attention]] = {}
    for call in _of_one_picture(record.calls, leaf):
        groups.setdefault(record.group_of(call), []).append(call)
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
                f"{calls[0].layer!r} attends within windows (or frames, or views), so its weights miss what crosses "
                f"their borders, and attention methods are not defined for it; {INSTEAD}"
            )
    [first, *rest] = seen
    if not depends_on(first[0].query, leaf):
        raise _other_means(first[0])
    if not all(call.is_square and call.key.shape[2] == first[0].key.shape[2] for call in first):
        raise MethodError(
            f"{first[0].layer!r} does not attend from every cell to every cell, as attention methods require; {INSTEAD}"
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


def _of_one_picture(calls: Sequence[Attention], leaf: Any) -> list[Attention]:
    """The calls without the runs of a layer on something else, where other runs of that layer read the picture."""
    runs: dict[str, list[Attention]] = {}
    for call in calls:
        runs.setdefault(call.layer, []).append(call)
    reading = {call for own in runs.values() if len(own) > 1 for call in own if depends_on(call.output, leaf)}
    return [call for call in calls if call in reading or reading.isdisjoint(runs[call.layer])]


def _other_means(call: Attention) -> MethodError:
    return MethodError(
        f"{call.layer!r} reads the picture by means other than attention to its cells (deformable sampling, or "
        f"features of several scales); {INSTEAD}"
    )


def _are_pairs(
    record: Recording, calls: Sequence[Attention], pairs: Sequence[tuple[Attention, Attention]], tokens: int
) -> bool:
    """Whether each block attends first among its queries and then to the cells."""
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
            if isinstance(layout, Layout) and layout.axes in (TOKENS, TOKENS_FIRST):
                grid = replace(layout, axes=TOKENS).grid(shape, size)
                if min(grid) >= FEWEST:
                    return Cells(layout.prefix, grid)
        except LayoutError:
            pass
        for grid in grids:
            if grid[0] * grid[1] == tokens:
                return Cells(0, grid)
    raise MethodError(f"the {tokens} tokens of {call.layer!r} fit no grid of a {size[0]} x {size[1]} input; {INSTEAD}")


def output_of(record: Recording, block: str, leaf: Any) -> Finished:
    """The run of a block that reads the picture, where `leaf` stands for the picture in the autograd graph.

    Raises:
        MethodError: the block is in no list of blocks, or several of its runs read the picture.
    """
    runs = [done for done in record.finished if record.names[done.module] == block]
    read = [done for done in runs if depends_on(done.output, leaf)]
    if len(read) != 1:
        times = f"runs {len(read)} times on the picture" if read else "is no member of a list of blocks"
        raise MethodError(f"{block!r} {times}, so its output cannot be replaced; 'chefer' is defined here")
    return read[0]


def tail_after(record: Recording, captured: Capture, block: str, module: nn.Module, inputs: Mapping[str, Any]) -> Tail:
    """The model after a block; outputs that do not depend on the block (such as a text tower's) are replayed."""
    assert captured.pixels is not None
    last = output_of(record, block, leaf_of(captured.pixels))
    tensor = first_tensor(last.output)
    assert tensor is not None
    prefix: dict[nn.Module, list[Any]] = {}
    for done in record.finished:
        if done.callers and done.callers[-1] in last.callers:
            again = done is not last and depends_on(done.output, tensor.grad_fn)
            prefix.setdefault(done.module, []).append(REAL if again else done.output)
    own = prefix.pop(last.module)
    at = next(i for i, output in enumerate(own) if output is last.output)
    runs = [done for done in record.finished if done.module is last.module]
    layer = block if len(runs) == 1 else run_name(block, runs.index(last))
    inputs = {**inputs, "pixel_values": captured.pixels}
    return Tail(module, layer, inputs, prefix, last.output, earlier=tuple(own[:at]))


def leaf_of(pixels: Tensor) -> Any:
    """The node that stands for a picture that requires grad in the autograd graph."""
    source = pixels.view_as(pixels).grad_fn
    assert source is not None
    return source.next_functions[0][0]


def is_batch_first(tokens: Tensor, pixels: Tensor) -> bool:
    """Whether the first axis of `[B, B, C]` counts the images: then its members depend on one picture each.

    Args:
        tokens: As many as there are images, connected to the pictures.
        pixels: The pictures, which require grad.
    """
    middle = len(tokens) // 2  # in front there are other tokens than the picture's
    [gradient] = torch.autograd.grad(tokens[middle].sum(), pixels, retain_graph=True, allow_unused=True)
    return gradient is None or not gradient.flatten(1).any(1).sum() > 1


def depends_on(output: Any, node: Any) -> bool:
    """Whether the first tensor of an output depends on a node of the autograd graph."""
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
