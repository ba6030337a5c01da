"""Borrow a model and return it exactly as it was."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from hf_cam.capture.checkpointing import SWITCHES, uncheckpointed
from hf_cam.errors import ModelError

_PLAIN = (bool, int, float, str, tuple, type(None), torch.Tensor)

# Grad mode belongs to a thread, hooks and `requires_grad` to the model: two threads must never use one model at once.
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_locks_guard = threading.Lock()


def lock_of(model: nn.Module) -> threading.RLock:
    """The lock of this model, shared by all threads."""
    with _locks_guard:
        return _locks.setdefault(model, threading.RLock())


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Hold the model in evaluation mode with frozen parameters, and restore everything afterwards.

    Restored are `requires_grad`, `training` and every other plain attribute of each module (transformers' Swin
    permanently shrinks its `window_size` on a small picture), the random state and the grad mode. Compiled code is
    bypassed, because it silently skips hooks that were added after compilation, and so is gradient checkpointing.
    `.grad` is never written.

    Raises:
        ModelError: the parameters were created under `torch.inference_mode()` and cannot take part in autograd.
    """
    with lock_of(model):
        modules = list(model.modules())
        # Not model.parameters(): on a deep tree, a second walk costs as much as everything else here.
        own = (parameter for module in modules for parameter in module._parameters.values())  # noqa: SLF001
        parameters = list(dict.fromkeys(parameter for parameter in own if parameter is not None))
        if any(parameter.is_inference() for parameter in parameters):
            raise ModelError(
                "the model's parameters were created under torch.inference_mode(), so no gradient can pass through "
                "them; load the model outside that block"
            )
        before = [module.__dict__.copy() for module in modules]
        trainable = [parameter.requires_grad for parameter in parameters]
        devices = sorted({parameter.device.index or 0 for parameter in parameters if parameter.device.type == "cuda"})
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.random.fork_rng(devices=devices))
            stack.enter_context(uncheckpointed())
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            try:
                for module in modules:
                    module.__dict__["training"] = False  # bypasses nn.Module's setter, which is slow
                    module.__dict__.update({name: False for name in SWITCHES if name in module.__dict__})
                for parameter in parameters:
                    parameter.requires_grad_(False)
                yield
            finally:
                for parameter, flag in zip(parameters, trainable, strict=True):
                    parameter.requires_grad_(flag)
                for module, attributes in zip(modules, before, strict=True):
                    _restore(module, attributes)


@contextmanager
def forwards(instead: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forwards of modules, and then restore any instance attribute `forward` (accelerate sets one)."""
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


def _restore(module: nn.Module, attributes: dict[str, Any]) -> None:
    """Restore the plain attributes; a module may change everything else."""
    current = module.__dict__
    for name, value in attributes.items():
        if current.get(name) is not value and isinstance(value, _PLAIN):
            current[name] = value
