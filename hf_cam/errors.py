"""The errors that hf-cam raises on purpose; each is also a built-in error, so `except ValueError` keeps working."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

LONGEST = 400
"""Characters of the longest message."""
LONGEST_WORD = 60


class HFCamError(Exception):
    """The base class of all errors that hf-cam raises on purpose; its message is one line of at most 400 characters."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))

    def __str__(self) -> str:
        """The message, also where another base class would write its `repr`, as `KeyError` does."""
        return str(self.args[0])


class ImageError(HFCamError, ValueError):
    """The image cannot be found, read or decoded."""


class ModelError(HFCamError, ValueError):
    """The model cannot be found or loaded, or takes no images."""


class UnknownArchitecture(HFCamError, ValueError):
    """Neither the catalogue nor the model's structure gives a target layer."""


class LayerError(HFCamError, ValueError):
    """A target layer does not exist, or did not run."""


class LayoutError(HFCamError, ValueError):
    """An activation does not have the spatial layout that its adapter declares."""


class NoGradientError(HFCamError, ValueError):
    """The target does not depend on the target layer's spatial cells."""


class TargetError(HFCamError, ValueError):
    """A target does not exist or does not fit the model's head, or there are too few targets."""


class DetachedError(TargetError):
    """The target's value is not connected to the target layer in the autograd graph."""


class MethodError(HFCamError, ValueError):
    """The method does not exist, or is not defined for this model."""


class OptionError(HFCamError, TypeError, ValueError):
    """An argument is unknown, or has the wrong type or value."""


class UnexpectedError(HFCamError, RuntimeError):
    """Code that hf-cam calls has failed in a way that is not foreseen; `__cause__` is its own exception."""


class PluginWarning(UserWarning):
    """A plug-in or one of its data files cannot be used; everything else still works."""


class SlowWarning(UserWarning):
    """The result is correct, but took longer than it should."""


def one_line(text: str, longest: int = LONGEST) -> str:
    r"""A text as one line of at most `longest` characters, without control characters.

    Long words, such as paths, are shortened first. What is still too long loses its middle: a message begins with the
    fact and ends with the way out.

    >>> one_line("the file 'a\nb' is missing;\nsee --help")
    "the file 'a b' is missing; see --help"
    """
    text = " ".join(part for line in text.splitlines() if (part := line.strip()))
    if len(text) > longest:
        text = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: _without_middle(word[0], LONGEST_WORD), text)
    text = _without_middle(text, longest)
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return _without_middle(text, longest)


SHOWN = 60
"""Characters of the longest value in a message."""


def brief(value: Any) -> str:
    """A value as a message shows it: as Python writes it, shortened in the middle, or what it is if that is long.

    >>> brief("a" * 100)[:8], brief((3, 5)), brief(object)
    ("'aaaaaaa", '(3, 5)', 'type')
    """
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"{type(value).__name__} {list(shape)}"
    if not isinstance(value, str | bytes | int | float | list | tuple | dict | set | None):
        return type(value).__name__
    return one_line(_REPR.repr(value), SHOWN)


def described(value: Any) -> str:
    """What a value is, and how a message shows it.

    >>> described(1.0), described(["a"])
    ('float 1.0', "list ['a']")
    """
    kind, shown = type(value).__name__, brief(value)
    return shown if shown.startswith(kind) else f"{kind} {shown}"


def reason(error: BaseException) -> str:
    """The type of an exception and the first sentence of its message.

    >>> reason(ValueError("no such thing. It may be that ..."))
    'ValueError: no such thing'
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = re.sub(r"^\[enforce fail at [^]]*\] .*?\. ", "", text)  # of torch's own checks, which state the place first
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    sentence = one_line(re.split(r"\.\s", first)[0].rstrip("."), LONGEST // 2)
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The `count` entries of `known` that are most similar to `name`, quoted and joined, for the end of a message.

    >>> nearest("grad-cam", ["gradcam", "eigencam", "fem"], count=1)
    "'gradcam'"
    """
    known = list(known)
    by_case = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(name[:LONGEST].lower(), by_case, n=count, cutoff=0.4)
    found = ", ".join(brief(by_case[entry]) for entry in close)
    return found or "none; there is " + ", ".join(map(brief, known[:count]))


def _without_middle(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    end = (longest - 3) * 2 // 5
    return f"{text[: longest - 3 - end]}...{text[-end:]}"


class _Shortened(reprlib.Repr):
    """The start and the end of long values; of very large integers the size, as Python refuses to write them out."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = SHOWN
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= SHOWN else f"an integer of {x.bit_length()} bits"


_REPR = _Shortened()
