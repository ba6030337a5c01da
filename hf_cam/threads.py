"""Threads and processes: what a call may change in its thread is put back, and locks survive a fork."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from traceback import walk_tb
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar, overload
from weakref import WeakSet

Result = TypeVar("Result")

OWN_FILES = os.path.join(os.path.dirname(__file__), "")  # noqa: PTH118, PTH120 - compared with names of code


class Call:
    """What a call of hf-cam itself has switched on in its thread; a manager that outlives the call changes no other."""

    plain_checkpoints = 0
    """How many blocks deep checkpointed parts of a model run as plain ones."""
    eager = 0
    """How many blocks deep compiled code runs as plain Python."""
    seed = 0
    """The seed of the random numbers of a forward."""
    unwarned = 0
    """How many blocks deep warnings are not shown."""


class Here(threading.local):
    """The call that runs in this thread; outside all calls, one that switches nothing on."""

    def __init__(self) -> None:
        self.call = Call()


HERE = Here()


class _Unwarned:
    """The text of every warning in a thread that is inside `unwarned`; for a filter of warnings."""

    def match(self, text: str) -> bool:
        """Whether the filter applies here."""
        return HERE.call.unwarned > 0


FILTER: Any = ("ignore", _Unwarned(), Warning, None, 0)
"""Stays among the filters of warnings, where it applies to nothing outside `unwarned`."""


def _add_filter() -> None:
    """Put the filter in front of the others, whatever has been added or taken away since."""
    if not warnings.filters or warnings.filters[0] is not FILTER:
        warnings.filters.insert(0, FILTER)  # type: ignore[attr-defined]


_add_filter()


@contextmanager
def unwarned() -> Iterator[None]:
    """No warnings in this thread.

    `warnings.catch_warnings` takes the filters of all threads away and puts them back; two threads that do so at once
    leave those of one of them behind for good.

    >>> with unwarned():
    ...     warnings.warn("not shown")
    """
    _add_filter()
    HERE.call.unwarned += 1
    try:
        yield
    finally:
        HERE.call.unwarned -= 1


class KeptThread:
    """Give the thread back its grad mode, stacks of modes and `Call` when the `with` block ends, however it ends.

    Each context manager inside the block undoes its own part; an interrupt that hits one while it does so leaves
    something behind, which ends here. Context managers that an interrupt left unfinished are freed first: those that
    are generators would undo their part when the exception is freed, in the middle of something else. This is a class,
    not a generator: nothing of it runs later.
    """

    def __enter__(self) -> None:
        self._call, HERE.call = HERE.call, copy.copy(HERE.call)
        self._torch: Any = sys.modules.get("torch")
        if self._torch is not None:
            self._grad = self._torch.is_grad_enabled()
            self._modes = [stack.modes() for stack in _stacks(self._torch)]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None and not isinstance(error, Exception):
            _free_locals(at)
        HERE.call = self._call
        if self._torch is None:
            return
        self._torch._C._set_grad_enabled(self._grad)  # noqa: SLF001 - the public one goes through modes
        for stack, before in zip(_stacks(self._torch), self._modes, strict=True):
            stack.restore(before)


def _free_locals(at: TracebackType | None) -> None:
    """Free what hf-cam's own functions, and those of `contextlib`, hold where a traceback leads."""
    for frame, _ in walk_tb(at):
        if frame.f_code.co_filename.startswith((OWN_FILES, contextlib.__file__)):
            with suppress(RuntimeError):  # it is still running
                frame.clear()


class _Stack(NamedTuple):
    """One of the thread's stacks of modes, by the functions that act on it."""

    depth: Callable[[], int]
    at: Callable[[int], Any]
    pop: Callable[[], Any]
    push: Callable[[Any], None]

    def modes(self) -> list[Any]:
        """The modes, from the bottom up."""
        return [self.at(place) for place in range(self.depth())]

    def restore(self, before: list[Any]) -> None:
        """Leave these modes alone on it; an interrupt can lose one that was off the stack for a moment."""
        same = 0
        for one, other in zip(self.modes(), before, strict=False):
            if one is not other:
                break
            same += 1
        while self.depth() > same:
            self.pop()
        for mode in before[same:]:
            self.push(mode)


def _stacks(torch: Any) -> list[_Stack]:
    c = torch._C  # noqa: SLF001
    function = (c._get_function_stack_at, c._pop_torch_function_stack, c._push_on_torch_function_stack)  # noqa: SLF001
    push = c._push_on_torch_dispatch_stack  # noqa: SLF001
    dispatch = (c._get_dispatch_stack_at, lambda: c._pop_torch_dispatch_stack(None), push)  # noqa: SLF001
    return [
        _Stack(c._len_torch_function_stack, *function),  # noqa: SLF001
        _Stack(c._len_torch_dispatch_stack, *dispatch),  # noqa: SLF001
    ]


class ForkSafeLock:
    """A re-entrant lock that is free in a forked child, in which the thread that held it does not exist.

    >>> with ForkSafeLock() as lock, lock:
    ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> ForkSafeLock:
        self._lock.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()


_locks: WeakSet[ForkSafeLock] = WeakSet()
"""The locks to renew after a fork, by one callback for them all: nothing unregisters a callback."""

BUILDING = ForkSafeLock()
"""Held while transformers builds a model. Meanwhile it replaces functions of its own for the whole process, such as the
one that ties weights; of two threads, one would take the other's replacement for the original and leave it in place."""


def _renew() -> None:
    for lock in list(_locks):
        lock._lock = threading.RLock()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


class cached_property(Generic[Result]):  # noqa: N801 - stands in for functools'
    """`functools.cached_property` without the lock that Python 3.11 holds while it computes the value.

    That lock belongs to the class: two threads would compute the values of two objects one after the other, and a child
    that was forked meanwhile would wait for ever.

    >>> class Square:
    ...     side = 3
    ...     @cached_property
    ...     def area(self) -> int:
    ...         return self.side**2
    >>> Square().area
    9
    """

    def __init__(self, make: Callable[[Any], Result]) -> None:
        self.make, self.__doc__ = make, make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> cached_property[Result]: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Result: ...

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        made = instance.__dict__[self.name] = self.make(instance)
        return made
