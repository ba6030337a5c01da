"""What the caller wants explained, and how: the settings of one call, checked once and passed down whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from hf_cam.errors import OptionError, TargetError, nearest


@dataclass(frozen=True)
class Request:
    """The settings of one call, whichever door it came through.

    Args:
        target: A class, a label text, an image position, a box, a mask, an image, any callable; None: what the model
            itself found.
        text: Prompts or questions; empty where none were given.
        top_k: How many; None: as many as the head finds (a classifier: one).
        threshold: Score in [0, 1] from which a detector or segmenter shows what it found; None: the head's own.
        aug_smooth: Average over six views of the image.
        eigen_smooth: First principal component of the channels' contributions in place of their sum.
        method_options: What only some methods know, such as `{"seed": 3}`.

    Raises:
        OptionError: a setting is none of these.
    """

    target: Any = None
    text: tuple[str, ...] = ()
    top_k: int | None = None
    threshold: float | None = None
    aug_smooth: bool = False
    eigen_smooth: bool = False
    method_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no call can mean."""
        options = self.method_options
        if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
            raise OptionError(f"method_options is a dict such as {{'seed': 3}}, got {options!r}")
        if self.top_k is not None:
            check_count("top_k", self.top_k)
        if self.threshold is not None and not _is_share(self.threshold):
            raise OptionError(f"threshold is a score in [0, 1], got {self.threshold!r}")

    @classmethod
    def of(
        cls, *, text: str | Sequence[str] | None = None, method_options: Mapping[str, Any] | None = None, **others: Any
    ) -> Request:
        """A request from what a caller may write: one text or several, or nothing.

        Raises:
            TargetError: `text` holds no words.
            OptionError: there is no such setting, or one is of another kind.

        >>> Request.of(text="a kettle").text
        ('a kettle',)
        """
        known = [field.name for field in fields(cls)]
        for name in others:
            if name not in known:
                raise OptionError(f"there is no setting {name!r}; nearest: {nearest(name, known)}")
        return cls(text=_texts(text), method_options={} if method_options is None else method_options, **others)

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


def _texts(text: str | Sequence[str] | None) -> tuple[str, ...]:
    texts = () if text is None else (text,) if isinstance(text, str) else tuple(text)
    if text is not None and not texts:
        raise TargetError("text= holds no prompt")
    for one in texts:
        if not isinstance(one, str) or not one.strip():
            raise TargetError(f"a prompt is a text with words in it, not {one!r}")
    return texts


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
