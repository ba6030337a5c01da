"""What transformers prints while it loads: no progress bar for a moment's work, no remarks on the choice of a class."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

BAR_AFTER = 2.0
"""Seconds for which loading shows no progress bar."""


@contextmanager
def late_bars() -> Iterator[None]:
    """Progress bars that transformers starts in this thread appear after `BAR_AFTER` seconds, not at once.

    Those of other threads, and a hook of the caller's for bars, work as before. A version of transformers that has no
    hook shows its bars at once.
    """
    from transformers.utils import logging as theirs

    if not hasattr(theirs, "set_tqdm_hook"):
        yield
        return
    here = threading.get_ident()

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], settings: Mapping[str, Any]) -> Any:
        settings = {"delay": BAR_AFTER, **settings} if threading.get_ident() == here else dict(settings)
        return before(factory, args, settings) if before else factory(*args, **settings)

    before = theirs.set_tqdm_hook(hook)
    try:
        yield
    finally:
        if (last := theirs.set_tqdm_hook(before)) is not hook:  # somebody has set another one meanwhile
            theirs.set_tqdm_hook(last)


@contextmanager
def no_remarks() -> Iterator[None]:
    """What this thread's loading logs below the level of an error does not reach transformers' own handlers."""
    remarks = _Remarks()
    handlers = list(logging.getLogger("transformers").handlers)
    for handler in handlers:
        handler.addFilter(remarks)
    try:
        yield
    finally:
        for handler in handlers:
            with suppress(ValueError):
                handler.removeFilter(remarks)


class _Remarks(logging.Filter):
    """Stops the records of one thread that are less than errors."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or record.thread != self.thread
