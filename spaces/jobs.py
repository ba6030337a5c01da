"""Long work: it says how far it is, and it can be stopped in the middle of a forward."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import gradio as gr
from torch import nn


class Stopped(BaseException):
    """The visitor stopped the work, or left; no `Exception`, so that nothing on the way takes it for a failure."""


_JOB: ContextVar[threading.Event | None] = ContextVar("job", default=None)
"""Set once the work of this context shall stop."""

_running: dict[str, set[threading.Event]] = {}
"""The work of each visit, by its session."""
SLOTS = threading.BoundedSemaphore(2)
"""Visitors for whom this page computes at once; the others wait for one, and may stop waiting."""


async def run(work: Callable[..., Any], *given: Any, visit: str = "") -> Any:
    """Work in a thread of its own.

    Raises:
        Stopped: the visit's work was ended. The thread follows with the next module of the model that runs.
    """
    job = threading.Event()
    token = _JOB.set(job)
    _running.setdefault(visit, set()).add(job)
    running = asyncio.ensure_future(anyio.to_thread.run_sync(work, *given, abandon_on_cancel=True))
    try:
        while not (await asyncio.wait((running,), timeout=0.1))[0]:
            check()
        return running.result()
    finally:
        job.set()
        running.cancel()
        _JOB.reset(token)
        _running[visit].discard(job)
        if not _running[visit]:
            del _running[visit]


def end(visit: str) -> None:
    """Stop all work of a visit: nobody waits for it any more."""
    for job in tuple(_running.get(visit, ())):
        job.set()


def check() -> None:
    """Stop here, if that was asked for.

    Raises:
        Stopped: it was.
    """
    job = _JOB.get()
    if job is not None and job.is_set():
        raise Stopped


def report(done: float, words: str) -> None:
    """Tell the visitor how far the work is, a share in [0, 1], and what it is doing."""
    check()
    gr.Progress()(done, desc=words)


@contextmanager
def held(lock: Any, words: str) -> Iterator[None]:
    """A lock or semaphore, waited for as long as nobody stops the work."""
    while not lock.acquire(timeout=0.1):
        report(0, words)
    try:
        check()
        yield
    finally:
        lock.release()


@contextmanager
def stoppable(model: nn.Module) -> Iterator[None]:
    """Inside, a stop is heard by the next module of the model that runs."""
    job = _JOB.get()
    with ExitStack() as stack:
        if job is not None:
            for module in model.modules():
                stack.callback(module.register_forward_pre_hook(_hear(job)).remove)
        yield


def _hear(job: threading.Event) -> Callable[..., None]:
    def hear(*_: Any) -> None:
        if job.is_set():
            raise Stopped

    return hear
