"""Rerun only the tail of a model: what ran before the target layer is remembered and handed back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture import call, first_tensor, with_first_tensor
from hf_cam.guard import borrowed, unwrap
from hf_cam.targets import map_tensors, rows

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Tail:
    """A model from one layer on.

    Args:
        module, layer: What is run, and from where.
        inputs: Of the clean run, B images.
        prefix: What each module that ran before the layer returned, call by call; empty where the whole model reruns.
        clean: What the layer itself returned.
        exact: False where remembering changed the output, so that every rerun is a whole forward.
    """

    module: nn.Module
    layer: str
    inputs: Mapping[str, Any]
    prefix: dict[nn.Module, list[Any]]
    clean: Any
    exact: bool = True

    def __call__(self, activations: Tensor, sample: int) -> Any:
        """The model's output for `n` variants of one image's target layer, `activations [n, ...]`."""
        batch, count = len(self.activations), len(activations)

        def variants(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != batch:
                return value
            return value[sample : sample + 1].expand(count, *value.shape[1:])

        def spread(value: Any) -> Any:
            return map_tensors(value, variants)

        replaced = with_first_tensor(spread(self.clean), activations)
        stubs = {module: _Memory([spread(output) for output in outputs]) for module, outputs in self.prefix.items()}
        stubs[self.module.get_submodule(self.layer)] = _Memory([replaced], stays=not self.exact)
        with _stubbed(stubs):
            return call(self.module, {name: spread(value) for name, value in self.inputs.items()})

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


@contextmanager
def _stubbed(stubs: Mapping[nn.Module, _Memory]) -> Iterator[None]:
    """Put memories in place of forwards; an instance attribute that was there (accelerate's) comes back."""
    own: dict[nn.Module, Any] = {module: module.__dict__.get("forward") for module in stubs}
    try:
        for module, memory in stubs.items():
            forward = module.forward
            module.__dict__["forward"] = lambda *args, _m=memory, _f=forward, **kwargs: _m.answer(_f, args, kwargs)
        yield
    finally:
        for module, mine in own.items():
            if mine is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = mine


@contextmanager
def tail_of(model: nn.Module, layer: str, inputs: Mapping[str, Any]) -> Iterator[Tail]:
    """Run the model once and yield its tail behind `layer`; the model comes back untouched.

    Replaying the clean activations must reproduce the clean output. Where it does not (a forward that computes on
    remembered values in place, or draws random numbers), the tail reruns whole forwards, and says so in `exact`.
    """
    module = unwrap(model)
    with borrowed(module), torch.no_grad():
        outputs, prefix, clean = _recorded(module, layer, inputs)
        tail = Tail(module, layer, inputs, prefix, clean)
        if not _reproduces(tail, outputs):
            tail = Tail(module, layer, inputs, {}, clean, exact=False)
        yield tail


def _reproduces(tail: Tail, outputs: Any) -> bool:
    batch = len(tail.activations)
    expected = first_tensor(rows(outputs, slice(0, 1), batch))
    try:
        found = first_tensor(tail(tail.activations[:1].expand(2, *tail.activations.shape[1:]), 0))
    except RuntimeError:
        return False
    if found is None or expected is None or found.shape[1:] != expected.shape[1:]:
        return False
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return bool(((found - expected).abs() <= TOLERANCE * scale).all())


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
