"""Every error that hf-cam raises on purpose; each is also a built-in kind, so `except ValueError` keeps working."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HFCamError(Exception):
    """Base class: catch it to catch everything that hf-cam refuses."""


class ImageError(HFCamError, ValueError):
    """The image cannot be found, read or decoded."""


class ModelError(HFCamError, ValueError):
    """The model cannot be found, loaded, or does not look at images."""


class UnknownArchitecture(HFCamError, ValueError):
    """Neither the catalogue nor the model's structure tells where to look."""


class LayerError(HFCamError, ValueError):
    """A target layer does not exist or never ran."""


class LayoutError(HFCamError, ValueError):
    """An activation does not lie in space the way its adapter says."""


class NoGradientError(HFCamError, ValueError):
    """The target does not depend on the target layer's spatial cells."""


class TargetError(HFCamError, ValueError):
    """A target does not exist, does not fit the model's head, or there are too few of them."""


class DetachedError(TargetError):
    """The target's value does not hang together with the target layer at all."""


class MethodError(HFCamError, ValueError):
    """The method does not exist, or is not defined for this model."""


class OptionError(HFCamError, TypeError):
    """An argument that nothing here understands, or one of the wrong type."""


class SlowWarning(UserWarning):
    """The result is right, and took longer than it should."""


class PluginWarning(UserWarning):
    """A plug-in, or a data file of one, cannot be used; everything else works without it."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The `count` entries of `known` most like `name`, quoted and joined, for the end of an error message.

    >>> nearest("grad-cam", ["gradcam", "eigencam", "fem"], count=1)
    "'gradcam'"
    """
    known = list(known)
    by_case = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(name.lower(), by_case, n=count, cutoff=0.4)
    return ", ".join(repr(by_case[entry]) for entry in close) or "none; there is " + ", ".join(map(repr, known[:count]))
