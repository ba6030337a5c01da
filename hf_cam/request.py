"""The settings of one call, which say what to explain and how; checked once, and passed down as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from hf_cam.doors import meant_by, unreadable
from hf_cam.errors import OptionError, TargetError, brief, described, nearest
from hf_cam.targets import BoxSide, SumOf, entries_of

EffortSetting = Literal["fast", "checked"]
"""Whether one method is taken as it is, or several are tried and the map is checked."""
Renormalize = Literal["box"]
"""In what each part of a heatmap is stretched for itself."""
OF_EXPLAINER = ("model", "method", "layers", "reshape", "rerun_batch_size")
"""Settings that a request does not hold."""


MARKS = ("input_points", "input_labels", "input_boxes")
"""Settings that mark something in an image; for a list of images, each has an entry of its own."""


@dataclass(frozen=True)
class Request:
    """The settings of one call, from any of the interfaces.

    Args:
        target: A class index, a label, a pixel or a box (a tuple), a mask, another image, an embedding or any callable;
            None for what the model itself finds. A list holds several: one entry per image for a list of images, and
            for a single image one explanation per entry.
        text: Prompts or questions; empty if there are none.
        top_k: How many things to explain; None for all that the head finds (for a classifier, one).
        threshold: Lowest score in [0, 1] at which a detector or segmenter shows what it finds; None for the head's own.
        aug_smooth: Average over six views of the image.
        eigen_smooth: Use the first principal component of the channels' contributions instead of their sum.
        signed: Also show what speaks against the target: maps in [-1, 1].
        method_options: Options of particular methods, such as `{"seed": 3}`.
        effort: "checked" tries several methods, unless one is named, and takes a verdict on the map.
        answer: A text that a vision-language model is forced to write; None for what it writes itself.
        messages: A chat for a vision-language model, with placeholders in place of its pictures.
        generate: Settings of such a model's `generate`, such as `{"max_new_tokens": 20}`.
        renormalize: "box" stretches the heatmap inside each box for itself, and makes it 0 outside; None does not.
        input_points: What is marked for a promptable model of masks, in the image's pixels: a point `(x, y)`, a list of
            points (a prompt each) or a list of lists of points. For a list of images, a list with one entry per image,
            or one point for all of them.
        input_labels: 1 for each point that belongs to the mask, 0 for each that does not; by default 1.
        input_boxes: A box `(left, top, right, bottom)` or a list of boxes; for a list of images as `input_points`.

    Raises:
        OptionError: a setting has an invalid value.
        TargetError: a position, box or mask has values that are not finite.
    """

    target: Any = None
    text: tuple[str, ...] = ()
    top_k: int | None = None
    threshold: float | None = None
    aug_smooth: bool = False
    eigen_smooth: bool = False
    signed: bool = False
    method_options: Mapping[str, Any] = field(default_factory=dict)
    effort: EffortSetting = "fast"
    answer: str | None = None
    messages: list[dict[str, Any]] | None = None
    generate: Mapping[str, Any] = field(default_factory=dict)
    renormalize: Renormalize | None = None
    input_points: Any = None
    input_labels: Any = None
    input_boxes: Any = None

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        options = self.method_options
        if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
            raise OptionError(f"method_options must be a dict such as {{'seed': 3}}, got {brief(options)}")
        if self.top_k is not None:
            check_count("top_k", self.top_k)
        if self.threshold is not None and not _is_share(self.threshold):
            raise OptionError(f"threshold must be a score in [0, 1], got {brief(self.threshold)}")
        for name in ("aug_smooth", "eigen_smooth", "signed"):
            if not isinstance(wanted := getattr(self, name), bool | np.bool_):
                raise OptionError(f"{name} must be True or False, got {brief(wanted)}")
        if self.signed and self.eigen_smooth:
            raise OptionError(
                "signed=True shows what speaks for and against the target, but the sign of the principal component of "
                "eigen_smooth=True is a convention; choose one"
            )
        if self.signed and self.renormalize is not None:
            raise OptionError(
                "renormalize='box' stretches what speaks for the target inside each box, and signed=True also shows "
                "what speaks against it; choose one"
            )
        if self.effort not in get_args(EffortSetting):
            raise OptionError(f"effort must be 'fast' or 'checked', got {brief(self.effort)}")
        check_renormalize(self.renormalize)
        if self.answer is not None and (not isinstance(self.answer, str) or not self.answer.strip()):
            raise TargetError(f"answer must be a text for the model to write, not {brief(self.answer)}")
        if self.answer is not None:
            check_unicode("answer", self.answer)
        if not isinstance(self.generate, Mapping) or not all(isinstance(name, str) for name in self.generate):
            raise OptionError(f"generate must be a dict such as {{'max_new_tokens': 20}}, got {brief(self.generate)}")
        _check_numbers(self.target)

    @property
    def of_writers(self) -> str:
        """The name of a setting that only models that write text have, if one is given; empty if none is."""
        given = {"answer": self.answer is not None, "messages": self.messages is not None, "generate": self.generate}
        return next((name for name, wanted in given.items() if wanted), "")

    @property
    def marking(self) -> str:
        """The name of a setting that marks something in the image, if one is given; empty if none is."""
        return next((name for name in MARKS if getattr(self, name) is not None), "")

    @classmethod
    def of(
        cls,
        *,
        text: str | Sequence[str] | None = None,
        method_options: Mapping[str, Any] | None = None,
        generate: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> Request:
        """A request from a caller's arguments; `text` may be one text, several or None.

        Raises:
            TargetError: `text` is empty, or one of the texts is.
            OptionError: there is no such setting, or it has an invalid value.

        >>> Request.of(text="a kettle").text
        ('a kettle',)
        """
        known = [field.name for field in fields(cls)]
        for name in others:
            if name not in known:
                meant = meant_by(name, known, {"the explainer": OF_EXPLAINER}) or f"; nearest: {nearest(name, known)}"
                raise OptionError(f"there is no setting {brief(name)}{meant}")
        return cls(
            text=_texts(text),
            method_options={} if method_options is None else method_options,
            generate={} if generate is None else generate,
            **others,
        )

    def for_images(self, count: int) -> list[Request]:
        """The request for each of a list of images: a list as target has one entry per image, and so have marks.

        Raises:
            TargetError: it has another length.

        >>> [request.target for request in Request(target=["tabby", ["pug", 3]]).for_images(2)]
        ['tabby', ['pug', 3]]
        """
        if self.marking:
            columns = [_per_image(name, getattr(self, name), count) for name in MARKS]
            bare = self.marked(None, None, None).for_images(count)
            return [one.marked(*marks) for one, *marks in zip(bare, *columns, strict=True)]
        entries = entries_of(self.target)
        if entries is None:
            return [self] * count
        if len(entries) != count:
            raise TargetError(
                f"{len(entries)} targets for {count} images; a list of targets has one entry per image, which may "
                "itself be a list, and a tuple is one target, such as a pixel (x, y)"
            )
        return [replace(self, target=entry) for entry in entries]

    def of_each(self, count: int = 1) -> Request:
        """The request of one image for a list of images: a list as target holds several targets for each of them.

        >>> Request(target=["tabby", "pug"], input_points=[(1, 2)]).of_each(2).for_images(2)[1].target
        ['tabby', 'pug']
        """
        marks = (None if (given := getattr(self, name)) is None else [given] * count for name in MARKS)
        target = self.target if entries_of(self.target) is None else [entries_of(self.target)] * count
        return replace(self, target=target).marked(*marks)

    def marked(self, points: Any, labels: Any, boxes: Any) -> Request:
        """The same request with other marks."""
        return replace(self, input_points=points, input_labels=labels, input_boxes=boxes)

    def singly(self) -> list[Request]:
        """A request per target of one image, or of each image.

        Raises:
            TargetError: a list of targets is empty, or holds another list.
        """
        entries = entries_of(self.target)
        if entries is None:
            return [self]
        if not entries:
            raise TargetError("the list of targets is empty; omit target= for what the model itself finds")
        if any(entries_of(entry) is not None for entry in entries):
            raise TargetError(
                f"the targets of one image must be one list, got {brief(self.target)}; a pixel or a box is a tuple"
            )
        return [replace(self, target=entry) for entry in entries]

    def first(self, found: Sequence[Any], default: int | None = None) -> Sequence[Any]:
        """The best `top_k` of what was found, or the default number if `top_k` is None."""
        return found[: self.top_k or default or len(found)]


def check_count(name: str, value: Any) -> None:
    """Refuse a count that is not a positive integer.

    Raises:
        OptionError: the value is not a whole number, or less than 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name} must be a whole number from 1, got {brief(value)}")


def check_renormalize(given: Any) -> None:
    """Refuse a way to stretch heatmaps that does not exist.

    Raises:
        OptionError: it is neither "box" nor None.
    """
    if given is not None and given not in get_args(Renormalize):
        raise OptionError(f"renormalize must be 'box' or None, got {brief(given)}")


def check_budget(budget: Any) -> None:
    """Refuse a budget that is no number of forwards.

    Raises:
        OptionError: it is not a number from 1.
    """
    if not isinstance(budget, int | float) or isinstance(budget, bool) or not budget >= 1:
        raise OptionError(f"budget must be a number of forwards from 1, got {brief(budget)}")


def check_positive(name: str, value: Any) -> None:
    """Refuse a number that is not positive.

    Raises:
        OptionError: the value is 0 or less.
    """
    if not value > 0:
        raise OptionError(f"{name} must be a positive number, got {brief(value)}")


def check_seed(seed: Any) -> None:
    """Refuse a seed that a random generator does not take.

    Raises:
        OptionError: the seed is not a whole number, or out of range.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise OptionError(f"seed must be a whole number from 0 to 2**63 - 1, got {brief(seed)}")


def check_prompt(text: Any) -> None:
    """Refuse a prompt that is no text, is empty or cannot be encoded.

    Raises:
        TargetError: naming it.
    """
    if not isinstance(text, str) or not text.strip():
        raise TargetError(f"a prompt must be a text that is not empty, not {brief(text)}")
    check_unicode("a prompt", text)


def check_unicode(what: str, text: str) -> None:
    """Refuse a text that holds half a character, which no tokenizer takes.

    Raises:
        TargetError: naming it.
    """
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise TargetError(f"{what} must be valid Unicode, but {brief(text)} holds half a character (a surrogate)")


def listed_names(argument: str, given: Any) -> list[str]:
    """The names in "a,b,c" or in a list of texts, without blanks.

    >>> listed_names("methods", "gradcam, fem")
    ['gradcam', 'fem']

    Raises:
        OptionError: it is neither.
    """
    listed = given.split(",") if isinstance(given, str) else given
    if not isinstance(listed, list | tuple) or not all(isinstance(one, str) for one in listed):
        raise OptionError(f"{argument} must be names in a list or in one text such as 'a,b', got {brief(given)}")
    return [name.strip() for name in listed if name.strip()]


def _per_image(name: str, given: Any, count: int) -> list[Any]:
    """What is marked in each image; a tuple, a single point or box, is marked in all of them.

    Raises:
        TargetError: a list has another length.
    """
    if given is None or isinstance(given, tuple):
        return [given] * count
    try:
        entries = list(given)
    except TypeError:
        return [given] * count
    if len(entries) != count:
        raise TargetError(
            f"{name} has {len(entries)} entries for {count} image{'s' * (count != 1)}; it needs one per image, which "
            "may itself be a list, or a tuple for the same place in all of them"
        )
    return entries


def _texts(text: str | Sequence[str] | None) -> tuple[str, ...]:
    if not isinstance(text, str | list | tuple | np.ndarray | None):
        raise TargetError(f"text must be a prompt or a list of prompts, not {described(text)}")
    texts = () if text is None else (text,) if isinstance(text, str) else tuple(text)
    if text is not None and not texts:
        raise TargetError("text= contains no prompt; pass a text such as 'a red bag'")
    for one in texts:
        check_prompt(one)
    return texts


def _check_numbers(target: Any) -> None:
    """Refuse a position, box or mask whose values cannot be read or are not finite, also as one of several targets.

    Raises:
        TargetError: naming it.
    """
    finite = True
    if isinstance(target, SumOf | BoxSide):
        _check_numbers(target.parts if isinstance(target, SumOf) else target.target)
    elif isinstance(target, list | tuple):
        for one in target:
            _check_numbers(one)
    elif isinstance(target, Tensor):
        if problem := unreadable(target):
            raise TargetError(f"the tensor that is the target {problem}")
        finite = target.ndim > 2 or not target.is_floating_point() or bool(target.detach().isfinite().all())
    elif isinstance(target, np.ndarray):
        finite = target.ndim > 2 or target.dtype.kind not in "fc" or bool(np.isfinite(target).all())
    elif isinstance(target, float | complex):
        finite = bool(np.isfinite(target))
    if not finite:
        raise TargetError(f"a target must be made of finite numbers, got {brief(target)}")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
