"""Long-running work: it reports its progress, and it can be stopped in the middle of a forward pass."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import anyio
import gradio as gr
from torch import nn


class Stopped(BaseException):
    """The visitor stopped the work or left; no `Exception`, so that no handler takes it for a failure."""


_JOB: ContextVar[threading.Event | None] = ContextVar("job", default=None)
"""Set when the work of this context is to stop."""

_GIVE: ContextVar[Callable[[Any], None] | None] = ContextVar("give", default=None)
"""Takes the parts of the result that the work of this context emits."""

_running: dict[str, set[threading.Event]] = {}
"""The work of each visit, by session."""
WORKERS = 2
"""How many visitors the page computes for at once."""
SLOTS = threading.BoundedSemaphore(WORKERS)
"""The others wait for a slot, and may stop waiting."""
_COMPUTING = ThreadPoolExecutor(WORKERS, "computing")


async def run(work: Callable[..., Any], *given: Any, visit: str = "") -> Any:
    """Run the work in a thread of its own.

    Raises:
        Stopped: the visit's work was ended. Its thread ends at the next module of the model that runs.
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


async def stream(work: Callable[..., Any], *given: Any, visit: str = "") -> AsyncIterator[Any]:
    """Run the work as `run` does: the parts that it emits, as they come, and then what it returns.

    Raises:
        Stopped: the visit's work was ended.
    """
    loop, over = asyncio.get_running_loop(), object()
    parts: asyncio.Queue[Any] = asyncio.Queue()

    def emitting() -> Any:
        _GIVE.set(lambda part: loop.call_soon_threadsafe(parts.put_nowait, part))  # in the thread's own context
        return work(*given)

    running = asyncio.ensure_future(run(emitting, visit=visit))
    running.add_done_callback(lambda _: parts.put_nowait(over))
    try:
        while (part := await parts.get()) is not over:
            yield part
        yield running.result()
    finally:
        running.cancel()


def computed(work: Callable[..., Any]) -> Callable[..., Any]:
    """The function as it runs in one of the few threads that compute, in its caller's context.

    A thread in which torch has multiplied matrices keeps tens of megabytes of buffers, and a pool of threads that does
    so too, for as long as it lives. Visitors are served by up to forty threads.
    """

    @functools.wraps(work)
    def asked(*given: Any) -> Any:
        return _COMPUTING.submit(copy_context().run, work, *given).result()

    return asked


def emit(part: Any) -> None:
    """Show the visitor a part of the result while the rest is computed; a forked process has nobody to show it to."""
    check()
    give = _GIVE.get()
    if give is not None:
        give(part)


def end(visit: str) -> None:
    """Stop all work of a visit."""
    for job in tuple(_running.get(visit, ())):
        job.set()


def supersede() -> None:
    """End the other work of this visit, whose results would be out of date."""
    own = _JOB.get()
    for visit in [jobs for jobs in tuple(_running.values()) if own in jobs]:
        for job in tuple(visit):
            if job is not own:
                job.set()


def check() -> None:
    """Stop here where the visitor has asked for it.

    Raises:
        Stopped: the visitor has.
    """
    job = _JOB.get()
    if job is not None and job.is_set():
        raise Stopped


def report(done: float, words: str) -> None:
    """Show the visitor the share of the work that is done, in [0, 1], and the current step."""
    check()
    gr.Progress()(done, desc=words)


@contextmanager
def held(lock: Any, words: str) -> Iterator[None]:
    """Hold a lock or semaphore; the visitor can stop the wait for it."""
    while not lock.acquire(timeout=0.1):
        report(0, words)
    try:
        check()
        yield
    finally:
        lock.release()


@contextmanager
def stoppable(model: nn.Module) -> Iterator[None]:
    """Inside, a stop takes effect at the next module of the model that runs."""
    job = _JOB.get()
    with ExitStack() as stack:
        if job is not None:
            for module in model.modules():
                stack.callback(module.register_forward_pre_hook(_stop_hook(job)).remove)
        yield


def _stop_hook(job: threading.Event) -> Callable[..., None]:
    def stop(*_: Any) -> None:
        if job.is_set():
            raise Stopped

    return stop
