"""What the caller wants explained, and how: the settings of one call, checked once and passed down whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_cam.errors import OptionError, TargetError


@dataclass(frozen=True)
class Request:
    """The settings of one call, whichever door it came through.

    Args:
        target: A class, a label text, an image position, a box, a mask, an image, any callable; None: what the model
            itself found.
        text: Prompts or questions, one or several; a tuple afterwards, empty where none were given.
        top_k: How many; None: as many as the head finds (a classifier: one).
        threshold: Score in [0, 1] from which a detector or segmenter shows what it found; None: the head's own.
        aug_smooth: Average over six views of the image.
        eigen_smooth: First principal component of the channels' contributions in place of their sum.
        method_options: What only some methods know, such as `{"seed": 3}`.

    Raises:
        OptionError, TargetError: a setting is none of these.

    >>> Request(text="a kettle").text
    ('a kettle',)
    """

    target: Any = None
    text: Any = ()
    top_k: int | None = None
    threshold: float | None = None
    aug_smooth: bool = False
    eigen_smooth: bool = False
    method_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no call can mean."""
        object.__setattr__(self, "text", _texts(self.text))
        object.__setattr__(self, "method_options", _options(self.method_options))
        if self.top_k is not None:
            check_count("top_k", self.top_k)
        if self.threshold is not None and not _is_share(self.threshold):
            raise OptionError(f"threshold is a score in [0, 1], got {self.threshold!r}")

    def first(self, found: Sequence[Any], default: int | None = None) -> Sequence[Any]:
        """The best `top_k` of what was found, or the default number of them."""
        return found[: self.top_k or default or len(found)]


def check_count(name: str, value: Any) -> None:
    """Refuse a number of things that is none.

    Raises:
        OptionError: it is no whole number from 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name} is a whole number from 1, got {value!r}")


def _texts(text: Any) -> tuple[str, ...]:
    if text is None or text == ():
        return ()
    texts = (text,) if isinstance(text, str) else tuple(text)
    if not texts:
        raise TargetError("text= holds no prompt")
    for one in texts:
        if not isinstance(one, str) or not one.strip():
            raise TargetError(f"a prompt is a text with words in it, not {one!r}")
    return texts


def _options(options: Any) -> dict[str, Any]:
    if not isinstance(options, Mapping | None) or not all(isinstance(name, str) for name in options or ()):
        raise OptionError(f"method_options is a dict such as {{'seed': 3}}, got {options!r}")
    return dict(options or {})


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
