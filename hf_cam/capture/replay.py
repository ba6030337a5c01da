"""Rerun only the tail of a model: the outputs of everything before the target layer are stored and replayed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hf_cam.capture.draws import own_draws
from hf_cam.capture.guard import borrowed, forwards, wrapped
from hf_cam.capture.inputs import Shared, arguments, call
from hf_cam.capture.levels import first_tensor, tensor_at, with_tensor_at
from hf_cam.capture.runs import Counter, level_of, located
from hf_cam.models.traits import unwrap
from hf_cam.outputs import map_tensors, sample_of

REAL = object()
"""In a list of outputs: the module itself runs."""
TOLERANCE = 1e-3
ROUNDINGS = 8  # the most seen is 1.2, behind the first stage of a SegFormer in bfloat16
MOST = 8
HALF_TOLERANCE = 0.1  # above the rounding error of bfloat16 over a whole tail, so that only a wrong tail is refused


@dataclass(frozen=True)
class Tail:
    """The part of a model that runs after one layer.

    Args:
        module, layer: The model, and the name of the layer.
        inputs: The inputs of the clean run, B images.
        prefix: The outputs of each module that ran before the layer, call by call; empty if the whole model reruns.
        clean: The output of the layer itself.
        exact: False if replaying changed the output, so that every rerun is a whole forward.
        wide: Float32 copies of the tail's own parameters, for a half-precision model.
        axis: Which axis of the layer's output counts the images.
        earlier: The outputs of those runs of the layer that are replayed before the one that its name means.
    """

    module: nn.Module
    layer: str
    inputs: Mapping[str, Any]
    prefix: dict[nn.Module, list[Any]]
    clean: Any
    exact: bool = True
    wide: Mapping[str, Tensor] = field(default_factory=dict)
    axis: int = 0
    earlier: tuple[Any, ...] = ()

    def __call__(self, activations: Tensor, sample: int) -> Any:
        """The model's output for `n` variants of the target layer's output for one image, `activations [n, ...]`."""
        count = len(activations)

        def variants(value: Any) -> Any:
            value = widened(value) if self.wide else value
            if not isinstance(value, Tensor) or (axis := self._axis_of(value)) is None:
                return value
            shape = [count if i == axis else length for i, length in enumerate(value.shape)]
            return value.narrow(axis, sample, 1).expand(shape)

        def spread(value: Any) -> Any:
            return value if isinstance(value, Shared) else map_tensors(value, variants)

        given = (widened(activations) if self.wide else activations).movedim(0, self.axis)
        stubs = {module: _Memory([spread(output) for output in outputs]) for module, outputs in self.prefix.items()}
        stubs |= self._own([*map(spread, self.earlier), with_tensor_at(spread(self.clean), self.level, given)])
        args, kwargs = arguments(self.module, {name: spread(value) for name, value in self.inputs.items()})
        with _stubbed(stubs), own_draws(self.module, self.inputs):
            return functional_call(self.module, dict(self.wide), args, kwargs)

    def together(self, activations: Tensor) -> Any:
        """The model's output for new activations of all images of the clean run, as the layer returns them.

        It is differentiable.
        """
        stubs = {module: _Memory(outputs) for module, outputs in self.prefix.items()}
        stubs |= self._own([*self.earlier, with_tensor_at(self.clean, self.level, activations)])
        with _stubbed(stubs):
            return call(self.module, self.inputs)

    @property
    def activations(self) -> Tensor:
        """The clean output of the layer, batch first; of a pyramid, that of the level that the layer's name gives."""
        tensor = tensor_at(self.clean, self.level)
        assert tensor is not None
        return tensor.movedim(self.axis, 0)

    @property
    def level(self) -> str | None:
        """The level that the layer's name gives."""
        return level_of(self.layer)

    def _own(self, outputs: list[Any]) -> dict[nn.Module, _Memory]:
        """What the layer itself replays; its other runs are real."""
        target, run = located(self.module, self.layer)
        start = 0 if self.exact else run or 0
        return {target: _Memory(outputs, start, stays=not self.exact and run is None)}

    def _axis_of(self, value: Tensor) -> int | None:
        """Which axis of a value counts the images; None if none does."""
        activations = self.activations
        likely = (self.axis, 0) if value.ndim == activations.ndim else (0,)
        return next((axis for axis in likely if value.ndim and value.shape[axis] == len(activations)), None)


@dataclass
class _Memory:
    """Replay the outputs of a module's calls from one on, and then let it run."""

    outputs: list[Any]
    start: int = 0
    stays: bool = False  # replay the last output for all later calls, so that the module itself never runs
    calls: int = field(default=0)

    def answer(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        at, last = self.calls - self.start, len(self.outputs) - 1
        self.calls += 1
        replayed = 0 <= at <= last or (self.stays and at > last)
        output = self.outputs[min(at, last)] if replayed else REAL
        return forward(*args, **kwargs) if output is REAL else output


@dataclass
class Reader:
    """Replay the output of a module for tokens that it has read before.

    Args:
        known: Arguments and the output for them, latest last; at most `MOST` entries.
    """

    known: list[tuple[Any, Any, Any]] = field(default_factory=list)

    def answer(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The forward's output; stored if only integers went in and only tensors came out."""
        given = (args, kwargs)
        if not _only_integers(given):
            return forward(*args, **kwargs)
        for *before, output in self.known:
            if _equal(given, tuple(before)):
                return map_tensors(output, torch.clone)
        output = forward(*args, **kwargs)
        if _only_tensors(output):  # not a cache that a later step would write to
            self.known = [*self.known[1 - MOST :], (args, kwargs, map_tensors(output, _detached))]
        return output


@contextmanager
def texts_read_once(model: nn.Module, readers: dict[nn.Module, Reader]) -> Iterator[None]:
    """Run text towers once per set of tokens, however many forwards the model takes inside the `with` block.

    A module that reads only tokens does not see the picture, so its output does not change.

    Args:
        model: Its replicas use the readers.
        readers: Outputs to keep from one block to the next; initially empty, discarded by the caller after the last.
    """
    module = unwrap(model)
    if not readers:
        readers.update({child: Reader() for child in module.modules() if child is not module and _reads_tokens(child)})
    with wrapped({child: partial(_answering, reader) for child, reader in readers.items()}):
        yield


def _reads_tokens(module: nn.Module) -> bool:
    return "input_ids" in inspect.signature(module.forward).parameters


def _only_integers(value: Any) -> bool:
    """True if arguments hold only integer tensors and plain values."""
    if isinstance(value, Tensor):
        return not value.is_floating_point()
    if isinstance(value, Mapping):
        return all(_only_integers(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_only_integers(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.device == other.device and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and not isinstance(one, Tensor) and bool(one == other)


def _only_tensors(output: Any) -> bool:
    if isinstance(output, Mapping):
        return all(map(_only_tensors, output.values()))
    if isinstance(output, list | tuple):
        return all(map(_only_tensors, output))
    return output is None or isinstance(output, Tensor)


def _detached(tensor: Tensor) -> Tensor:
    """A copy without the graph that recording the tower's attention or biases adds; it does not lead to the picture."""
    return tensor.detach().clone()


def _answering(memory: _Memory | Reader, forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)  # transformers' generate inspects the signature
    def answer(*args: Any, **kwargs: Any) -> Any:
        return memory.answer(forward, args, kwargs)

    return answer


def _stubbed(stubs: Mapping[nn.Module, _Memory]) -> AbstractContextManager[None]:
    """Replace forwards by stored outputs."""
    return forwards({module: _answering(memory, module.forward) for module, memory in stubs.items()})


@contextmanager
def tail_of(model: nn.Module, layer: str, inputs: Mapping[str, Any], axis: int = 0) -> Iterator[Tail]:
    """Run the model once and yield its tail after `layer`, whose output counts the images along `axis`.

    The model is left unchanged; see `tail_from` for the rest.
    """
    with borrowed(unwrap(model)) as module, torch.no_grad():
        with PrefixOf(layer)(module) as prefix:
            outputs = call(module, inputs)
        with tail_from(prefix, layer, inputs, outputs, axis) as tail:
            yield tail


@contextmanager
def tail_from(prefix: Prefix, layer: str, inputs: Mapping[str, Any], outputs: Any, axis: int = 0) -> Iterator[Tail]:
    """Yield the tail of a model after `layer` from what a forward stored; without gradients.

    Replaying the clean activations must reproduce the clean output. If it does not (because the forward changes
    stored values in place or draws random numbers), the tail reruns whole forwards, and `exact` is False.
    The tail of a half-precision model runs in float32 if its forward allows it.
    """
    before, [*earlier, clean] = prefix.outputs()
    with torch.no_grad():
        tail = Tail(prefix.module, layer, inputs, before, clean, axis=axis, earlier=tuple(earlier))
        if not _reproduces(tail, outputs):
            tail = replace(tail, prefix={}, earlier=(), exact=False)
        wide = replace(tail, wide=_wide_parameters(tail))
        yield wide if wide.wide and _reproduces(wide, outputs, HALF_TOLERANCE) else tail


def widened(value: Any) -> Any:
    """A half-precision tensor as float32; everything else unchanged."""
    half = isinstance(value, Tensor) and value.is_floating_point() and torch.finfo(value.dtype).bits == 16
    return value.float() if half else value


def _wide_parameters(tail: Tail) -> dict[str, Tensor]:
    """Float32 copies of the half-precision parameters and buffers of modules that rerun; empty if any is on meta."""
    target, run = located(tail.module, tail.layer)
    # A layer that runs again, and what ran in one of its runs, is part of the tail as well.
    replayed = {child for module in (*tail.prefix, target) for child in module.modules()} if run is None else set()
    return _widened_of(tail.module, replayed)


def _widened_of(module: nn.Module, besides: set[nn.Module]) -> dict[str, Tensor]:
    """Float32 copies of the half-precision parameters and buffers of all other modules; empty if any is on meta."""
    found: dict[str, Tensor] = {}
    for name, child in module.named_modules():
        if child not in besides:
            own = (*child.named_parameters(name, recurse=False), *child.named_buffers(name, recurse=False))
            found.update({key: widened(tensor) for key, tensor in own if widened(tensor) is not tensor})
    return {} if any(tensor.is_meta for tensor in found.values()) else found


def wide_forward(module: nn.Module, inputs: Mapping[str, Any], outputs: Any) -> Callable[[Mapping[str, Any]], Any]:
    """The forward of a half-precision model in float32 if that gives these outputs for these inputs; or else its own.

    Small differences between the scores of similar pictures are lost in half precision.
    """
    wide = _widened_of(module, set())

    def forward(given: Mapping[str, Any]) -> Any:
        shown = {name: widened(value) for name, value in given.items()}
        args, kwargs = arguments(module, shown)
        with own_draws(module, given):
            return functional_call(module, wide, args, kwargs)

    if not wide:
        return partial(call, module)
    try:
        agrees = is_near(first_tensor(forward(inputs)), first_tensor(outputs), HALF_TOLERANCE)
    except RuntimeError:
        agrees = False
    return forward if agrees else partial(call, module)


def _reproduces(tail: Tail, outputs: Any, tolerance: float | None = None) -> bool:
    """Whether the clean activations give the clean output, by default up to the rounding of the model's dtype."""
    if tolerance is None:
        tolerance = max(TOLERANCE, ROUNDINGS * torch.finfo(tail.activations.dtype).eps)
    batch = len(tail.activations)
    expected = first_tensor(sample_of(outputs, slice(0, 1), batch))
    try:
        found = first_tensor(tail(tail.activations[:1].expand(2, *tail.activations.shape[1:]), 0))
    except RuntimeError:
        return False
    return is_near(found, expected, tolerance)


def is_near(found: Tensor | None, expected: Tensor | None, tolerance: float) -> bool:
    """Whether outputs agree up to a share of the largest value."""
    if found is None or expected is None or found.shape[1:] != expected.shape[1:]:
        return False
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return bool(((found - expected).abs() <= tolerance * scale).all())


@dataclass(frozen=True)
class PrefixOf:
    """A watch of what runs before one run of a layer; it yields a `Prefix`.

    Args:
        layer: The name of the layer, with or without the number of a run.
    """

    layer: str

    @contextmanager
    def __call__(self, module: nn.Module) -> Iterator[Prefix]:
        """Store the outputs of the modules that the tail after the layer will call again."""
        target, run = located(module, self.layer)
        record = Prefix(module, target, Counter(self.layer, run), _around(module, target))
        handles = []
        try:
            for child in module.modules():
                handles += [child.register_forward_pre_hook(record.enter), child.register_forward_hook(record.leave)]
            yield record
        finally:
            for handle in handles:
                handle.remove()


@dataclass
class Prefix:
    """The outputs of modules that finished before a layer, in calls that were then still running.

    Args:
        module: The replica that runs.
        target: The layer.
        counter: Finds the run that is meant.
        around: The modules that contain the layer, so that their calls may still run when it does.
    """

    module: nn.Module
    target: nn.Module
    counter: Counter
    around: set[nn.Module]
    running: list[tuple[int, nn.Module]] = field(default_factory=list)  # the numbers of calls
    finished: list[tuple[nn.Module, int, Any]] = field(default_factory=list)
    callers: set[int] = field(default_factory=set)
    calls: int = 0

    def enter(self, module: nn.Module, _: Any) -> None:
        """A call begins."""
        self.running.append((self.calls, module))
        self.calls += 1

    def leave(self, module: nn.Module, _: Any, output: Any) -> None:
        """A call ends; its output is stored where it was made for a module around the layer."""
        self.running.pop()
        if self.callers or not self.running:
            return
        number, caller = self.running[-1]
        if caller in self.around:
            self.finished.append((module, number, map_tensors(output, _detached)))  # later modules may work in place
        if module is self.target and self.counter.hits():
            self.callers.update(number for number, _ in self.running)

    def outputs(self) -> tuple[dict[nn.Module, list[Any]], list[Any]]:
        """The outputs by module, call by call, and those of the layer, the last of which is that of the run it names.

        Raises:
            LayerError: the layer did not run, or its name does not say which run is meant.
        """
        self.counter.check()
        found: dict[nn.Module, list[Any]] = {}
        for child, caller, output in self.finished:
            if caller in self.callers:
                found.setdefault(child, []).append(output)
        return found, found.pop(self.target)


def _around(module: nn.Module, target: nn.Module) -> set[nn.Module]:
    """The modules that contain another one, under any of its names."""
    names = [name for name, child in module.named_modules(remove_duplicate=False) if child is target]
    parts = {".".join(name.split(".")[:depth]) for name in names for depth in range(name.count(".") + 1)}
    return {module.get_submodule(part) for part in parts}
