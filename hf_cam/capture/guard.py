"""Borrow a model: what runs is a replica of it, and the model itself is never touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.checkpointing import SWITCHES, uncheckpointed
from hf_cam.capture.draws import remember_draws
from hf_cam.capture.eager import eager
from hf_cam.capture.replica import Replica
from hf_cam.errors import ModelError

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
"""From a module's forward to the one that stands in for it."""

_wrapped: ContextVar[Mapping[nn.Module, Wrap]] = ContextVar("wrapped", default={})  # noqa: B039 - never written to


@dataclass(frozen=True, eq=False)
class Weights:
    """Values that stand in for parameters of models.

    Args:
        values: The values, by parameter.
        borrowers: The models that were borrowed with them.
    """

    values: Mapping[nn.Parameter, Tensor]
    borrowers: list[nn.Module] = field(default_factory=list)


_weights: ContextVar[Weights | None] = ContextVar("weights", default=None)


_connected: ContextVar[bool] = ContextVar("connected", default=False)


@contextmanager
def connected(wanted: bool = True) -> Iterator[None]:
    """Keep what is computed inside the block in the caller's graph: replicas have the model's own parameters.

    Args:
        wanted: False changes nothing.
    """
    token = _connected.set(wanted or _connected.get())
    try:
        yield
    finally:
        _connected.reset(token)


def is_connected() -> bool:
    """Whether what is computed stays in the caller's graph."""
    return _connected.get()


def kept(tensor: Tensor) -> Tensor:
    """The tensor, detached unless what is computed stays in the caller's graph."""
    return tensor if _connected.get() else tensor.detach()


@contextmanager
def borrowed(model: nn.Module) -> Iterator[nn.Module]:
    """A replica of the model in evaluation mode, for this thread and this block alone.

    Its parameters are frozen, except inside `connected`.

    Hooks belong on the replica, which shares the model's weights and nothing else. Whatever happens, the model and
    other threads that use it see nothing: its mode, `requires_grad`, hooks, attributes and buffers stay as they are,
    and `.grad` is never written. Random numbers come from a generator of the forward's own. Compiled code is bypassed,
    because it silently skips hooks, and so is gradient checkpointing.

    Raises:
        ModelError: the parameters were created under `torch.inference_mode()` and cannot take part in autograd, or
            each process holds a part of them alone, as with FSDP.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # which switches gradients on, too
        weights = _weights.get()
        replica = Replica(model, weights.values if weights else {}, frozen=not _connected.get())
        _check_usable(replica.parameters)
        if weights:
            weights.borrowers.append(model)
        for module in replica.modules():
            table = module.__dict__
            table["training"] = False  # bypasses nn.Module's setter, which is slow
            table["_compiled_call_impl"] = None
            for name in SWITCHES:
                if name in table:
                    table[name] = False
        for original, wrap in _wrapped.get().items():
            if (module_ := replica.of(original)) is not None:
                module_.__dict__["forward"] = wrap(module_.forward)
        remember_draws(replica.module, model)
        stack.enter_context(uncheckpointed())
        stack.enter_context(eager())
        yield replica.module


def _check_usable(parameters: Sequence[Tensor]) -> None:
    """Refuse parameters through which no gradient passes, or of which this process has a part only.

    Raises:
        ModelError: see `borrowed`.
    """
    if any(parameter.is_inference() for parameter in parameters):
        raise ModelError(
            "the model's parameters were created under torch.inference_mode(), so no gradient can pass through "
            "them; load the model outside that block"
        )
    if any(hasattr(parameter, "full_tensor") for parameter in parameters):  # a DTensor
        raise ModelError(
            "the model's parameters are sharded over processes (FSDP or tensor parallelism), which a map cannot be "
            "made of; load the whole model in one process"
        )


@contextmanager
def wrapped(forwards: Mapping[nn.Module, Wrap]) -> Iterator[None]:
    """Wrap the forwards of modules in every replica that this thread borrows inside the `with` block."""
    token = _wrapped.set({**_wrapped.get(), **forwards})
    try:
        yield
    finally:
        _wrapped.reset(token)


@contextmanager
def reweighted(values: Mapping[nn.Parameter, Tensor]) -> Iterator[Weights]:
    """Let every replica that this thread borrows inside the `with` block have other weights than its model."""
    token = _weights.set(weights := Weights(values))
    try:
        yield weights
    finally:
        _weights.reset(token)


@contextmanager
def forwards(instead: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forwards of a replica's modules, and then restore those that it had (accelerate sets its own)."""
    own = {module: module.__dict__.get("forward") for module in instead}
    try:
        for module, forward in instead.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, mine in own.items():
            if mine is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = mine
