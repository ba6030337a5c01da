"""Where a picture enters a language model, found from two runs that differ in the picture alone."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_cam.capture.inputs import call
from hf_cam.errors import ModelError
from hf_cam.maps import at_least_float32

Kind = Literal["in the sequence", "before the text", "attended to"]

ATTENDED = ("encoder_hidden_states", "cross_attention_states", "image_hidden_states", "context", "key_value_states")
"""Names under which modules take states that others attend to."""
NARROWEST = 8
"""Tensors with fewer channels hold positions or masks, not states."""
DIFFERS = (
    "a disturbed picture of the same size becomes {} at {!r} in place of {}; the processor crops pictures by what they "
    "show"
)
ROUNDING = 1e-6
"""Relative change up to which a position does not depend on the picture."""


@dataclass(frozen=True)
class Place:
    """An argument of a module call that holds the picture's cells.

    Args:
        module: Dotted name of the module.
        argument: Name of the argument, or its index among the positional ones.
        turn: Number of the call among those of the module in one forward.
        kind: Whether the cells lie among the text's positions, before them, or in states that are attended to.
        shape: Of the argument.
        cells: `[n]` indices along all axes but the last, flattened.
    """

    module: str
    argument: str | int
    turn: int
    kind: Kind
    shape: tuple[int, ...]
    cells: Tensor = field(repr=False, compare=False)

    def value(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The argument itself, from those of the call; None if it has none of this name or index."""
        found = dict([*enumerate(args), *kwargs.items()]).get(self.argument)
        return found if isinstance(found, Tensor) else None

    def __str__(self) -> str:
        """The call and what lies there, in words."""
        named = self.argument if isinstance(self.argument, str) else f"argument {self.argument}"
        return f"{self.kind}: {len(self.cells)} cells of {named} of {self.module or 'the model'}"


@dataclass(frozen=True)
class _Seen:
    """One argument of a module call: where it was, what it is called, and one number per position."""

    module: str
    argument: str | int
    turn: int
    name: str
    shape: tuple[int, ...]
    sums: Tensor


class _Found(Exception):
    """Carries the place out of a forward that need not go on."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def text_lengths(inputs: Mapping[str, Any]) -> list[int]:
    """The lengths of the token sequences among the inputs, shortest first."""
    ids = (inputs.get(name) for name in ("input_ids", "decoder_input_ids"))
    return sorted({one.shape[-1] for one in ids if isinstance(one, Tensor)})


def sightings(model: nn.Module, inputs: Mapping[str, Any]) -> list[_Seen]:
    """All arguments that may hold the picture's cells, in the order of one forward."""
    seen: list[_Seen] = []
    with _observed(model, lambda one, _: seen.append(one)), torch.no_grad():
        call(model, inputs)
    return seen


def find_place(
    model: nn.Module,
    clean: Sequence[_Seen],
    other: Mapping[str, Any],
    lengths: Sequence[int],
    kind: Kind,
    reworded: Sequence[_Seen] | None = None,
) -> tuple[Place, Tensor] | None:
    """The first argument that holds the picture's cells, and what it is with another picture.

    It is the first in the order of the forward; None if there is none.

    Args:
        model: A replica, whose hooks are removed again.
        clean: From `sightings` with one picture.
        other: The inputs with another picture.
        lengths: Of the text, from `text_lengths`.
        kind: The kind of place to look for.
        reworded: From `sightings` with another text: in front of the text, padding does not react either, but the text
            itself does. Needed for the kind "before the text".

    Raises:
        ModelError: the forward takes another path with the other picture.
    """
    earlier = iter(zip(clean, clean if reworded is None else reworded, strict=False))

    def compare(seen: _Seen, value: Tensor) -> None:
        before, text = next(earlier, (None, None))
        if before is None or (before.module, before.argument) != (seen.module, seen.argument):
            raise ModelError("the model's forward takes another path for another picture of the same size")
        assert text is not None
        if (place := _place(before, seen, text, lengths, kind)) is not None:
            raise _Found((place, value.detach()))

    try:
        with _observed(model, compare), torch.no_grad():
            call(model, other)
    except _Found as found:
        place_and_states: tuple[Place, Tensor] = found.value
        return place_and_states
    return None


def read(model: nn.Module, inputs: Mapping[str, Any], place: Place) -> Tensor:
    """The picture's cells `[n, D]` at a place; the forward ends there.

    Raises:
        ModelError: the forward does not get there, or with another shape.
    """
    states = states_at(model, inputs, place)
    if tuple(states.shape) != place.shape:
        raise ModelError(DIFFERS.format(tuple(states.shape), place.module, place.shape))
    return states.flatten(0, -2)[place.cells.to(states.device)].float()


def reacting(place: Place, clean: Tensor, others: Sequence[Tensor]) -> tuple[Place, list[Tensor]] | None:
    """The place with the cells that react to any other picture, and their states `[n, D]` with each of all.

    None if no cell reacts, or if all positions of a text do.

    Args:
        place: Where to look; its cells and its length may be those of pictures of another size.
        clean: The argument there, from `states_at`.
        others: The same with other pictures of the same size.

    Raises:
        ModelError: the argument has another shape with another picture.
    """
    for other in others:
        if other.shape != clean.shape:
            raise ModelError(DIFFERS.format(tuple(other.shape), place.module, tuple(clean.shape)))
    was, *now = (states.flatten(0, -2) for states in (clean, *others))
    reacts = torch.stack([(one != was).any(-1) for one in now]).any(0)
    if not reacts.any() or (reacts.all() and place.kind == "in the sequence"):
        return None
    cells = reacts.nonzero()[:, 0]
    return replace(place, shape=tuple(clean.shape), cells=cells), [states[cells].float() for states in (was, *now)]


def states_at(model: nn.Module, inputs: Mapping[str, Any], place: Place) -> Tensor:
    """The whole argument at a place; the forward ends there.

    Raises:
        ModelError: the forward does not get there.
    """
    calls = 0

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls > place.turn and (value := place.value(args, kwargs)) is not None:
            raise _Found(value.detach())

    handle = model.get_submodule(place.module).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad():
            call(model, inputs)
    except _Found as found:
        states: Tensor = found.value
        return states
    finally:
        handle.remove()
    raise ModelError(f"the model's forward does not reach {place.module!r} with a disturbed picture")


@contextmanager
def kept_at(model: nn.Module, place: Place | None) -> Iterator[list[Tensor]]:
    """Keep the whole argument at a place in the first forward that gets there.

    Yields a list that has it afterwards, and stays empty without a place or if no forward gets there.
    """
    kept: list[Tensor] = []
    turns = count()

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if place is not None and next(turns) == place.turn:
            found = place.value(args, kwargs)
            kept.extend([] if found is None else [found.detach().clone()])

    handle = (
        None if place is None else model.get_submodule(place.module).register_forward_pre_hook(keep, with_kwargs=True)
    )
    try:
        yield kept
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def swapped_in(model: nn.Module, place: Place) -> Iterator[dict[str, Tensor]]:
    """Let the forward run without gradients up to a place, and with gradients from there on.

    Yields a dict that has the picture's cells `[n, D]` as "leaf" after the forward. Every module that gets the same
    tensor gets the one that is connected to the leaf.
    """
    box: dict[str, Tensor] = {}
    turns: Counter[str] = Counter()

    def start(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        turns["calls"] += 1
        value = place.value(args, kwargs)
        if "leaf" in box or turns["calls"] <= place.turn or value is None:
            return
        torch.set_grad_enabled(True)
        old = value.detach()
        flat, cells = old.flatten(0, -2), place.cells.to(old.device)
        leaf = flat[cells].clone().requires_grad_()
        box.update(leaf=leaf, old=old, new=flat.clone().index_copy(0, cells, leaf).view(old.shape))

    def swap(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "leaf" not in box:
            return None
        return tuple(map(instead, args)), {name: instead(value) for name, value in kwargs.items()}

    def instead(value: Any) -> Any:
        old, new = box["old"], box["new"]
        same = (
            isinstance(value, Tensor)
            and value is not new
            and value.data_ptr() == old.data_ptr()
            and value.shape == old.shape
        )
        return new if same else value

    entrance = model.get_submodule(place.module)
    handles = [entrance.register_forward_pre_hook(start, with_kwargs=True)]
    handles += [one.register_forward_pre_hook(swap, with_kwargs=True) for one in model.modules() if one is not model]
    try:
        with torch.no_grad():
            yield box
    finally:
        for handle in handles:
            handle.remove()


def _place(before: _Seen, now: _Seen, text: _Seen, lengths: Sequence[int], kind: Kind) -> Place | None:
    if before.shape != now.shape or not lengths:
        return None
    reacts = (before.sums - now.sums).abs() > ROUNDING * before.sums.abs()
    if _kind(now, reacts, lengths) != kind:
        return None
    if kind == "before the text" and (text.shape != now.shape or not (before.sums != text.sums)[-lengths[-1] :].any()):
        return None
    return Place(now.module, now.argument, now.turn, kind, now.shape, reacts.nonzero()[:, 0])


def _kind(seen: _Seen, reacts: Tensor, lengths: Sequence[int]) -> Kind | None:
    """What kind of place an argument is, given which of its positions react to the picture; None if it is none."""
    if not reacts.any():
        return None
    if len(seen.shape) == 3 and seen.shape[0] == 1:
        if seen.shape[1] in lengths and not reacts.all():
            return "in the sequence"
        if seen.shape[1] > lengths[-1] and not reacts[-lengths[-1] :].any():
            return "before the text"
    return "attended to" if seen.name in ATTENDED else None


@contextmanager
def _observed(model: nn.Module, report: Callable[[_Seen, Tensor], None]) -> Iterator[None]:
    """Report every argument that may hold the picture's cells, while it is passed."""
    turns: Counter[str] = Counter()

    def watch(name: str, module: nn.Module) -> Callable[..., None]:
        names = [*inspect.signature(type(module).forward).parameters][1:]

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            turn = turns[name]
            turns[name] += 1
            called: dict[str | int, str] = dict(enumerate(names))
            given: dict[str | int, Any] = dict([*enumerate(args), *kwargs.items()])
            for key, value in given.items():
                if _may_hold_cells(value):
                    sums = torch.linalg.vector_norm(at_least_float32(value.detach().flatten(0, -2)), 1, -1)
                    title = key if isinstance(key, str) else called.get(key, "")
                    report(_Seen(name, key, turn, title, tuple(value.shape), sums), value)

        return note

    handles = [
        module.register_forward_pre_hook(watch(name, module), with_kwargs=True)
        for name, module in model.named_modules()
        if module is not model and not isinstance(module, nn.Embedding) and not _is_rotary(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_rotary(module: nn.Module) -> bool:
    """Whether a module only takes the dtype and the device of the states: it passes no gradient on."""
    return "rotary" in type(module).__name__.lower()


def _may_hold_cells(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 3 and value.shape[-1] > NARROWEST
