"""Interrupts at chosen lines of Python, as Ctrl-C raises them between two instructions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupter:
    """Raises `KeyboardInterrupt` at one line of Python that runs in a call; without an instant, counts the lines.

    Args:
        instant: The number of the line, from 1.
    """

    def __init__(self, instant: int = -1) -> None:
        self.instant, self.lines = instant, 0

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        """What `sys.settrace` calls."""
        if event == "line":
            self.lines += 1
            if self.lines == self.instant:
                raise KeyboardInterrupt
        return self.trace

    def run(self, call: Callable[[], Any]) -> KeyboardInterrupt | None:
        """The interrupt, if the call did not end before."""
        sys.settrace(self.trace)
        try:
            call()
        except KeyboardInterrupt as error:
            return error
        finally:
            sys.settrace(None)
        return None
