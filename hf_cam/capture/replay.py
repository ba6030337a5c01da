"""Rerun only the tail of a model: what ran before the target layer is remembered and handed back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hf_cam.capture.capture import first_tensor, with_first_tensor
from hf_cam.capture.guard import borrowed, forwards, lock_of
from hf_cam.capture.inputs import arguments, call
from hf_cam.models.traits import unwrap
from hf_cam.outputs import map_tensors, sample_of

TOLERANCE = 1e-3
MOST = 8
HALF_TOLERANCE = 0.1  # of what bfloat16 rounds off in a whole tail, so that only a wrong tail is refused


@dataclass(frozen=True)
class Tail:
    """A model from one layer on.

    Args:
        module, layer: What is run, and from where.
        inputs: Of the clean run, B images.
        prefix: What each module that ran before the layer returned, call by call; empty where the whole model reruns.
        clean: What the layer itself returned.
        exact: False where remembering changed the output, so that every rerun is a whole forward.
        wide: The float32 copies of the tail's own parameters, for a model of half precision.
    """

    module: nn.Module
    layer: str
    inputs: Mapping[str, Any]
    prefix: dict[nn.Module, list[Any]]
    clean: Any
    exact: bool = True
    wide: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, activations: Tensor, sample: int) -> Any:
        """The model's output for `n` variants of one image's target layer, `activations [n, ...]`."""
        batch, count = len(self.activations), len(activations)

        def variants(value: Any) -> Any:
            value = widened(value) if self.wide else value
            if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != batch:
                return value
            return value[sample : sample + 1].expand(count, *value.shape[1:])

        def spread(value: Any) -> Any:
            return map_tensors(value, variants)

        replaced = with_first_tensor(spread(self.clean), widened(activations) if self.wide else activations)
        stubs = {module: _Memory([spread(output) for output in outputs]) for module, outputs in self.prefix.items()}
        stubs[self.module.get_submodule(self.layer)] = _Memory([replaced], stays=not self.exact)
        args, kwargs = arguments(self.module, {name: spread(value) for name, value in self.inputs.items()})
        with _stubbed(stubs):
            return functional_call(self.module, dict(self.wide), args, kwargs)

    def together(self, activations: Tensor) -> Any:
        """The model's output for another activation of every image of the clean run, `[B, ...]`; differentiable."""
        stubs = {module: _Memory(outputs) for module, outputs in self.prefix.items()}
        stubs[self.module.get_submodule(self.layer)] = _Memory([with_first_tensor(self.clean, activations)])
        with _stubbed(stubs):
            return call(self.module, self.inputs)

    @property
    def activations(self) -> Tensor:
        """The clean output of the layer, batch first."""
        tensor = first_tensor(self.clean)
        assert tensor is not None
        return tensor


@dataclass
class _Memory:
    """Hands back the outputs of a module's first calls, and then lets it run."""

    outputs: list[Any]
    stays: bool = False  # also for later calls, where the module itself may not run
    calls: int = field(default=0)

    def answer(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.calls += 1
        if self.calls <= len(self.outputs) or self.stays:
            return self.outputs[min(self.calls, len(self.outputs)) - 1]
        return forward(*args, **kwargs)


@dataclass
class Reader:
    """Hands back what a module made of the same tokens before.

    Args:
        known: Arguments and what came of them, the latest last, `MOST` at most.
    """

    known: list[tuple[Any, Any, Any]] = field(default_factory=list)

    def answer(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The forward's output; remembered where only whole numbers went in and only tensors come out."""
        given = (args, kwargs)
        if not _whole(given):
            return forward(*args, **kwargs)
        for *before, output in self.known:
            if _equal(given, tuple(before)):
                return map_tensors(output, torch.clone)
        output = forward(*args, **kwargs)
        if _tensors_alone(output):  # and no cache that a later step would write to
            self.known = [*self.known[1 - MOST :], (args, kwargs, map_tensors(output, _cut_off))]
        return output


@contextmanager
def texts_read_once(model: nn.Module, readers: dict[nn.Module, Reader]) -> Iterator[None]:
    """Text towers run once for the same tokens, however many forwards the model takes inside.

    A module that reads tokens and nothing else sees no picture, so it says the same each time.

    Args:
        model: Its forwards come back when the block ends.
        readers: What is remembered from one block to the next; empty at first, and to be dropped with the last.
    """
    module = unwrap(model)
    if not readers:
        readers.update({child: Reader() for child in module.modules() if child is not module and _reads_tokens(child)})
    with lock_of(module), _stubbed(readers):
        yield


def _reads_tokens(module: nn.Module) -> bool:
    return "input_ids" in inspect.signature(module.forward).parameters


def _whole(value: Any) -> bool:
    """True where arguments hold tensors of whole numbers, plain values, and nothing else."""
    if isinstance(value, Tensor):
        return not value.is_floating_point()
    if isinstance(value, Mapping):
        return all(_whole(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_whole(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.device == other.device and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and not isinstance(one, Tensor) and bool(one == other)


def _tensors_alone(output: Any) -> bool:
    if isinstance(output, Mapping):
        return all(map(_tensors_alone, output.values()))
    if isinstance(output, list | tuple):
        return all(map(_tensors_alone, output))
    return output is None or isinstance(output, Tensor)


def _cut_off(tensor: Tensor) -> Tensor:
    """A copy without the graph that watching the tower's attention or biases hung on it: no picture is in it."""
    return tensor.detach().clone()


def _answering(memory: _Memory | Reader, forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)  # transformers' generate looks at the signature
    def answer(*args: Any, **kwargs: Any) -> Any:
        return memory.answer(forward, args, kwargs)

    return answer


def _stubbed(stubs: Mapping[nn.Module, _Memory] | Mapping[nn.Module, Reader]) -> AbstractContextManager[None]:
    """Put memories in place of forwards."""
    return forwards({module: _answering(memory, module.forward) for module, memory in stubs.items()})


@contextmanager
def tail_of(model: nn.Module, layer: str, inputs: Mapping[str, Any]) -> Iterator[Tail]:
    """Run the model once and yield its tail behind `layer`; the model comes back untouched.

    Replaying the clean activations must reproduce the clean output. Where it does not (a forward that computes on
    remembered values in place, or draws random numbers), the tail reruns whole forwards, and says so in `exact`.
    The tail of a model of half precision runs in float32 wherever its forward allows it.
    """
    module = unwrap(model)
    with borrowed(module), torch.no_grad():
        outputs, prefix, clean = _recorded(module, layer, inputs)
        tail = Tail(module, layer, inputs, prefix, clean)
        if not _reproduces(tail, outputs):
            tail = Tail(module, layer, inputs, {}, clean, exact=False)
        elif (wide := replace(tail, wide=_wide_parameters(tail))).wide and _reproduces(wide, outputs, HALF_TOLERANCE):
            tail = wide
        yield tail


def widened(value: Any) -> Any:
    """A tensor of half precision in float32; everything else as it is."""
    half = isinstance(value, Tensor) and value.is_floating_point() and torch.finfo(value.dtype).bits == 16
    return value.float() if half else value


def _wide_parameters(tail: Tail) -> dict[str, Tensor]:
    """Of the modules that run again, what is in half precision, in float32; nothing where it is not at hand."""
    asleep = {child for module in (*tail.prefix, tail.module.get_submodule(tail.layer)) for child in module.modules()}
    found: dict[str, Tensor] = {}
    for name, module in tail.module.named_modules():
        if module not in asleep:
            own = (*module.named_parameters(name, recurse=False), *module.named_buffers(name, recurse=False))
            found.update({key: widened(tensor) for key, tensor in own if widened(tensor) is not tensor})
    return {} if any(tensor.is_meta for tensor in found.values()) else found


def _reproduces(tail: Tail, outputs: Any, tolerance: float = TOLERANCE) -> bool:
    batch = len(tail.activations)
    expected = first_tensor(sample_of(outputs, slice(0, 1), batch))
    try:
        found = first_tensor(tail(tail.activations[:1].expand(2, *tail.activations.shape[1:]), 0))
    except RuntimeError:
        return False
    if found is None or expected is None or found.shape[1:] != expected.shape[1:]:
        return False
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return bool(((found - expected).abs() <= tolerance * scale).all())


def _recorded(module: nn.Module, layer: str, inputs: Mapping[str, Any]) -> tuple[Any, dict[nn.Module, list[Any]], Any]:
    """One forward: its output, what ran to its end before the layer did, and what the layer returned.

    Of the finished modules only those matter whose caller was still running: they alone are called again.
    """
    target = module.get_submodule(layer)
    running: list[nn.Module] = []
    finished: list[tuple[nn.Module, nn.Module | None, Any]] = []
    found: list[Any] = []
    callers: set[nn.Module] = set()

    def enter(child: nn.Module, *_: Any) -> None:
        running.append(child)

    def leave(child: nn.Module, _: Any, output: Any) -> None:
        running.pop()
        if found:
            return
        kept = map_tensors(output, torch.clone)  # what follows may work in place
        if child is target:
            found.append(kept)
            callers.update(running)
        else:
            finished.append((child, running[-1] if running else None, kept))

    handles = []
    try:
        for child in module.modules():
            handles += [child.register_forward_pre_hook(enter), child.register_forward_hook(leave)]
        outputs = call(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    prefix: dict[nn.Module, list[Any]] = {}
    for child, caller, output in finished:
        if caller in callers:
            prefix.setdefault(child, []).append(output)
    return outputs, prefix, found[0]
