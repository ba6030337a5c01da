"""Gradient checkpointing, set aside while a model is looked into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch.utils import checkpoint

from hf_cam.threads import HERE

SWITCHES = ("grad_checkpointing", "gradient_checkpointing", "use_checkpoint", "with_cp")
"""Attributes by which timm, transformers and others switch it on; timm's stages are not called as such while it is."""

# What `torch.utils.checkpoint.checkpoint` looks up at each call: one class for its reentrant kind, one for the other.
# Models import the function itself, under any name, so only these can be exchanged.
_REENTRANT, _SAVING = "CheckpointFunction", "_checkpoint_hook"
_OWN = {name: vars(checkpoint)[name] for name in (_REENTRANT, _SAVING) if name in vars(checkpoint)}


class _Reentrant:
    """In place of `CheckpointFunction`: a plain call, in a thread that is inside `uncheckpointed`."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args) if HERE.call.plain_checkpoints else _OWN[_REENTRANT].apply(function, preserve, *args)


def _saving(frame: Any) -> Any:
    """In place of `_checkpoint_hook`: autograd saves what it needs, in a thread that is inside `uncheckpointed`."""
    return nullcontext() if HERE.call.plain_checkpoints else _OWN[_SAVING](frame)


_INSTEAD = {_REENTRANT: _Reentrant, _SAVING: _saving}


@contextmanager
def uncheckpointed() -> Iterator[None]:
    """Let this thread run checkpointed parts of a model as plain ones inside the `with` block; the values are equal.

    Checkpointing saves memory in training: it reruns parts of a model in the backward pass, when the hooks that stood
    there are gone, and its reentrant kind has no gradient with respect to anything but leaves.
    """
    for name in _OWN:  # they stay, since they act in such threads alone
        setattr(checkpoint, name, _INSTEAD[name])
    call = HERE.call
    call.plain_checkpoints += 1
    try:
        yield
    finally:
        call.plain_checkpoints -= 1
