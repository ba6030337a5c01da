"""The choice of targets by a head, from a model's output: the same for images and for tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from hf_cam.capture.inputs import one_image, picture_size
from hf_cam.errors import NoGradientError, TargetError
from hf_cam.heads import Head, Subject, head_of
from hf_cam.heads.classification import SATURATED
from hf_cam.images.geometry import Axis, Geometry
from hf_cam.layouts import Size
from hf_cam.models.loading import LoadedModel
from hf_cam.models.traits import traits_of
from hf_cam.request import Request
from hf_cam.targets import Target, entries_of, index_of, is_ready

Selector = Callable[[Any], Sequence[Sequence[Target]]]
"""From a batch's output to columns of targets: K columns of one target per image."""


@dataclass(eq=False)
class Chosen:
    """A selector that asks the head what to explain in each image, and remembers it.

    Args:
        head: The model's head.
        requests: One per image.
        geometries: One per image.
    """

    head: Head
    requests: Sequence[Request]
    geometries: Sequence[Geometry]
    subjects: list[list[Subject]] = field(default_factory=list)

    def __call__(self, outputs: Any) -> list[list[Target]]:
        """Columns of targets; images with fewer subjects than others repeat their first."""
        self.subjects = self.head.subjects_of_batch(outputs, self.requests, self.geometries)
        longest = max(map(len, self.subjects))
        return [[own[k if k < len(own) else 0].target for own in self.subjects] for k in range(longest)]

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Where no gradient passes because a probability is exactly 0 or 1, the error gives that as the reason."""
        try:
            yield
        except NoGradientError as error:
            if any(SATURATED in subject.flags for subjects in self.subjects for subject in subjects):
                raise NoGradientError(
                    "the model returns a probability that is exactly 0 or 1, so no gradient passes its sigmoid or "
                    "softmax: run it in float64 (model.double()), let it return logits, or use a method without "
                    "gradients such as 'eigencam'"
                ) from error
            raise


@dataclass(frozen=True)
class Selection:
    """What to explain in a batch of tensors.

    Args:
        select: Chooses one target per image from the model's output.
        inputs: The named inputs of the forward, to which a head may add.
        explaining: A context for the run, in which an error gives the reason if it lies in the output.
    """

    select: Selector
    inputs: Mapping[str, Any]
    explaining: Callable[[], AbstractContextManager[None]] = nullcontext


def selection(model: nn.Module, targets: Any, inputs: Mapping[str, Any], known: dict[str, Any]) -> Selection:
    """One target per image for preprocessed tensors, checked before the model runs.

    Args:
        model: The model.
        targets: One for all images, or a list with one per image: class indices, labels, callables, positions in the
            model's input, or None for what the model itself finds first.
        inputs: The named inputs of the forward.
        known: What was established about the model; it is added to.

    Raises:
        TargetError: the number of targets differs from that of images, or one does not fit the model's head.
    """
    batch = len(inputs["pixel_values"])
    column = _column(targets, batch)
    if all(map(is_ready, column)):
        return Selection(lambda _: [column], inputs)
    loaded = LoadedModel(model, None, traits_of(model).id2label, given=one_image(inputs, 0), known=known)
    head = head_of(loaded)
    request, inputs = head.given(inputs)
    requests = [_asked(head, request, target) for target in column]
    size = _size(inputs)
    chosen = Chosen(head, requests, [identity(size)] * batch)
    return Selection(lambda outputs: chosen(outputs)[:1], inputs, chosen.explaining)


def _asked(head: Head, request: Request, target: Any) -> Request:
    if target is None:
        return request
    own = replace(request, target=index_of(target) if index_of(target) is not None else target, top_k=None)
    head.check_all(own)
    return own


def _column(targets: Any, batch: int) -> list[Any]:
    """One target per image.

    Raises:
        TargetError: a list has another length, or an entry is itself a list.
    """
    column = [request.target for request in Request(target=targets).for_images(batch)]
    if any(entries_of(target) is not None for target in column):
        raise TargetError(
            "a call returns one map per image, so an entry of targets cannot be a list; a pixel or a box is a tuple, "
            "and hf_cam.explain takes several targets per image"
        )
    return column


def identity(size: Size) -> Geometry:
    """The geometry of a picture of this size (height, width) that is the model's input itself.

    >>> identity((64, 96)).to_model(12, 30)
    (12.0, 30.0)
    """
    return Geometry(size, size, Axis(1.0, 0.0), Axis(1.0, 0.0), (0, 0, *size))


def _size(inputs: Mapping[str, Any]) -> Size:
    pixels = inputs["pixel_values"]
    return picture_size(inputs) if pixels.ndim < 4 else (pixels.shape[-2], pixels.shape[-1])
