"""The errors that hf-cam raises on purpose; each is also a built-in error, so `except ValueError` keeps working."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class HFCamError(Exception):
    """The base class of all errors that hf-cam raises on purpose."""


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


class OptionError(HFCamError, TypeError):
    """An argument is unknown, or has the wrong type or value."""


class PluginWarning(UserWarning):
    """A plug-in or one of its data files cannot be used; everything else still works."""


class SlowWarning(UserWarning):
    """The result is correct, but took longer than it should."""


SHOWN = 60


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
    text = repr(value)
    half = SHOWN // 2 - 2
    return text if len(text) <= SHOWN else f"{text[:half]}...{text[-half:]}"


def described(value: Any) -> str:
    """What a value is, and how a message shows it.

    >>> described(1.0), described(["a"])
    ('float 1.0', "list ['a']")
    """
    kind, shown = type(value).__name__, brief(value)
    return shown if shown.startswith(kind) else f"{kind} {shown}"


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The `count` entries of `known` that are most similar to `name`, quoted and joined, for the end of a message.

    >>> nearest("grad-cam", ["gradcam", "eigencam", "fem"], count=1)
    "'gradcam'"
    """
    known = list(known)
    by_case = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(name.lower(), by_case, n=count, cutoff=0.4)
    return ", ".join(repr(by_case[entry]) for entry in close) or "none; there is " + ", ".join(map(repr, known[:count]))
