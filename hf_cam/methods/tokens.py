"""Scores of a transformer that sees only some of the picture's tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.attention import Cells
from hf_cam.capture.capture import capture
from hf_cam.capture.chunks import images_at_once, in_chunks
from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import repeated
from hf_cam.capture.levels import first_tensor
from hf_cam.capture.recorder import Recording, recording
from hf_cam.capture.replay import is_near, wide_forward
from hf_cam.errors import HFCamError, MethodError
from hf_cam.methods.attending import blocks_of, token_axis_of, traced
from hf_cam.methods.run import Run
from hf_cam.models.traits import unwrap
from hf_cam.targets import target_values

TOLERANCE = 1e-3
UNDEFINED = "fill='drop' leaves tokens out, which is not defined here: {reason}; a number as fill= hides pixels"


@dataclass(frozen=True)
class Entry:
    """Where the picture's tokens, with their positions, enter the blocks of a transformer.

    Args:
        block: The name of the first block.
        cells: Which of its tokens are cells of the picture.
        length: The number of its tokens.
        axis: Which axis of its input counts them.
    """

    block: str
    cells: Cells
    length: int
    axis: int

    def indices(self, kept: Tensor) -> Tensor:
        """The indices `[n, K]` of the tokens to keep, from booleans `[n, cells]` with one number of cells per row."""
        rows, columns = self.cells.grid
        start, stop = self.cells.prefix, self.cells.prefix + rows * columns
        own = torch.ones(len(kept), self.length, dtype=torch.bool, device=kept.device)
        own[:, start:stop] = kept
        return own.nonzero()[:, 1].reshape(len(kept), -1)

    @contextmanager
    def keeping(self, module: nn.Module, indices: Tensor) -> Iterator[None]:
        """The blocks get only the tokens of these indices `[n, K]`, in that order."""

        def select(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
            first = next((value for value in (*args, *kwargs.values()) if self._holds(value)), None)

            def cut(value: Any) -> Any:
                return self._selected(value, indices) if value is first and isinstance(value, Tensor) else value

            return tuple(map(cut, args)), {name: cut(value) for name, value in kwargs.items()}

        handle = module.get_submodule(self.block).register_forward_pre_hook(select, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _holds(self, value: Any) -> bool:
        """Whether a value is a tensor of all tokens."""
        return isinstance(value, Tensor) and value.ndim == 3 and value.shape[self.axis] == self.length

    def _selected(self, tokens: Tensor, indices: Tensor) -> Tensor:
        batch_first = tokens.movedim(self.axis, 1)
        rows = indices.to(tokens.device)[..., None].expand(-1, -1, tokens.shape[-1])
        return batch_first.gather(1, rows).movedim(1, self.axis)


def entry_of(run: Run) -> Entry:
    """The entry of a run's model.

    Leaving a token out is the same as hiding it from every attention only if the blocks and the head treat the tokens
    as a set, so they are checked on tokens in another order.

    Raises:
        MethodError: attention does not run over all cells of the picture, or tokens are read by their place.
    """
    module = unwrap(run.model)
    with capture(module, run.adapter.layers, run.inputs, watches=(recording,)) as captured:
        again = replace(run, captured=captured)
        record: Recording = captured.watched[recording]
        try:
            trace = traced(again)
            block = blocks_of(record, trace)[0]
        except MethodError as error:
            raise MethodError(UNDEFINED.format(reason=str(error).partition(";")[0])) from error
    tokens: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        tokens.extend(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim == 3)

    with borrowed(module) as replica, torch.no_grad():
        forward = wide_forward(replica, run.inputs, run.captured.outputs)
        handle = replica.get_submodule(block).register_forward_pre_hook(keep, with_kwargs=True)
        try:
            clean = forward(run.inputs)
        finally:
            handle.remove()
        entry = Entry(block, trace.cells, trace.encoder[0].key.shape[2], token_axis_of(trace, tokens[0], None))
        _check_set(entry, replica, forward, run, clean)
    return entry


def _check_set(
    entry: Entry, module: nn.Module, forward: Callable[[Mapping[str, Any]], Any], run: Run, clean: Any
) -> None:
    """Refuse a model that fails with half of the tokens, or gives another output for those in another order."""
    images, (rows, columns) = len(run.targets), entry.cells.grid
    every = torch.arange(entry.length)
    inside = slice(entry.cells.prefix, entry.cells.prefix + rows * columns)
    turned_round = every.index_put((every[inside],), every[inside].flip(0))
    try:
        with entry.keeping(module, every[: entry.cells.prefix + (rows * columns + 1) // 2].expand(images, -1)):
            forward(run.inputs)
        with entry.keeping(module, turned_round.expand(images, -1)):
            turned = forward(run.inputs)
    except (RuntimeError, HFCamError) as error:
        raise MethodError(UNDEFINED.format(reason="the blocks take the tokens by their place")) from error
    if not is_near(first_tensor(turned), first_tensor(clean), TOLERANCE):
        raise MethodError(UNDEFINED.format(reason="the blocks or the head read the tokens by their place"))


def scores_of_kept(run: Run, kept: Tensor) -> Tensor:
    """The targets' values `[B, N]` when only some of the picture's tokens enter the blocks.

    The masks are sorted by the number of tokens that they keep, because only rows of one length make a batch.

    Args:
        run: The run of the unchanged pictures.
        kept: Booleans `[N, cells]`, row by row of the grid.

    Raises:
        MethodError: leaving tokens out is not defined for the model, or a mask keeps no token at all.
    """
    entry = run.once(entry_of)
    if not (kept.any(1).all() or entry.length > kept.shape[1]):
        raise MethodError(UNDEFINED.format(reason="no token is left"))
    order = kept.sum(1).argsort(stable=True)
    counts = kept.sum(1)[order].unique_consecutive(return_counts=True)[1].tolist()
    with borrowed(unwrap(run.model)) as module, torch.no_grad():
        forward = wide_forward(module, run.inputs, run.captured.outputs)
        size = run.rerun_batch_size or images_at_once(run.pixels.device)
        rows = [_by_length(run, entry, module, forward, kept[order], counts, size, i) for i in range(len(run.targets))]
        found = torch.stack(rows)
    return found[:, order.argsort().to(found.device)]


def _by_length(
    run: Run,
    entry: Entry,
    module: nn.Module,
    forward: Callable[[Mapping[str, Any]], Any],
    kept: Tensor,
    counts: list[int],
    size: int,
    sample: int,
) -> Tensor:
    """The scores `[N]` of one picture, from masks that are sorted by their length."""

    def some(offset: int, start: int, stop: int) -> Tensor:
        inputs = repeated(run.inputs, torch.full((stop - start,), sample))
        with entry.keeping(module, entry.indices(kept[offset + start : offset + stop])):
            return target_values(forward(inputs), [run.targets[sample]] * (stop - start))

    offsets = itertools.accumulate(counts, initial=0)
    # `counts` ends before the last offset, which is the number of all masks.
    return torch.cat(
        [in_chunks(count, size, partial(some, offset)) for count, offset in zip(counts, offsets, strict=False)]
    )


def grid_of(run: Run) -> tuple[int, int]:
    """Rows and columns of the picture's tokens."""
    rows, columns = run.once(entry_of).cells.grid
    return rows, columns
