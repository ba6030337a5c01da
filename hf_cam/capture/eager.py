"""Compiled parts of a model, run as plain Python in the threads that look into the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hf_cam.threads import HERE

LOOKED_UP = "_callback_from_stance"
"""The function in `torch._dynamo.eval_frame` by which each call of compiled code finds what compiles it."""


def _in_this_thread(own: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def callback(given: Any) -> Any:
        return None if HERE.call.eager else own(given)  # None: nothing compiles, and compiled code is not used

    callback.hf_cam = True  # type: ignore[attr-defined]
    return callback


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled code as plain Python in this thread inside the `with` block: hooks in it would be skipped.

    `torch.compiler.set_stance` does the same for all threads at once, and two that overlap leave it switched on.
    """
    frames = sys.modules.get("torch._dynamo.eval_frame")  # nothing is compiled where it was never imported
    own = getattr(frames, LOOKED_UP, None)
    if own is not None and not hasattr(own, "hf_cam"):
        setattr(frames, LOOKED_UP, _in_this_thread(own))
    call = HERE.call
    call.eager += 1
    try:
        yield
    finally:
        call.eager -= 1
