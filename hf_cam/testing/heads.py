"""The laws of heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_cam.capture.capture import capture
from hf_cam.capture.inputs import model_inputs_of, others_of
from hf_cam.errors import HFCamError
from hf_cam.heads import Head, Subject, head_of
from hf_cam.images.geometry import Geometry
from hf_cam.images.reading import load_image
from hf_cam.models.loading import LoadedModel, load
from hf_cam.outputs import map_tensors, sample_of
from hf_cam.request import Request
from hf_cam.testing.laws import require


def check_head(
    model: Any,
    image: Any = None,
    *,
    head: str | type[Head] | None = None,
    request: Request | None = None,
    processor: Any = None,
) -> list[Subject]:
    """Check the head of a model against the laws that all heads must obey.

    - It finds at least one subject in an image, each with a name; scores are finite.
    - Boxes lie within the image, and masks have its size.
    - Each target is a scalar that depends on the model's output, for every image of a batch.
    - It finds the same subjects in equal images of a batch.
    - It refuses a meaningless target with an error of `hf_cam.errors`.

    Args:
        model: A Hub id, a folder, `demo:NAME` or a module.
        image: An image as in `hf_cam.explain`, not square; noise by default.
        head: An id or a class, to check instead of the model's default head.
        request: A request with prompts or options, if the head needs them.
        processor: The processor of the model, if it is not loaded with it.

    Returns:
        The subjects that the head found.

    Raises:
        LawError: a law does not hold.

    >>> len(check_head("demo:vit"))
    1
    """
    loaded = model if isinstance(model, LoadedModel) else load(model, processor=processor)
    own, request = head_of(loaded, head), request or Request()
    picture = load_image(noise() if image is None else image)
    name, geometry = type(own).__name__, loaded.geometry((picture.height, picture.width))
    own.check(request)
    _check_refusal(own, name)
    pictures = loaded.inputs([picture] if own.alone else [picture, picture])
    part = own.rounds(request, pictures)[0]
    batch = len(pictures["pixel_values"])
    inputs = model_inputs_of(loaded.model, pictures["pixel_values"], {**others_of(pictures), **own.inputs(part)})
    with capture(loaded.model, (), inputs, gradients=False) as captured:
        outputs = map_tensors(captured.outputs, Tensor.detach)
    found = own.subjects(sample_of(outputs, 0, batch), part, geometry)
    require(found, name, "it must find at least one subject")
    for subject in found:
        _check_subject(subject, name, geometry)
        _check_target(subject, outputs, batch, name)
    again = own.subjects(sample_of(outputs, batch - 1, batch), part, geometry)
    require([one.label for one in again] == [one.label for one in found], name, "equal images must give equal subjects")
    return found


def noise() -> np.ndarray:
    """A picture of smooth noise, `[60, 90, 3]`."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    return coarse.repeat(10, 0).repeat(10, 1)


def _check_refusal(head: Head, name: str) -> None:
    try:
        head.check(Request(target=object()))
    except HFCamError:
        return
    require(False, name, "it must refuse a meaningless target before the model runs")


def _check_subject(subject: Subject, name: str, geometry: Geometry) -> None:
    height, width = geometry.image_size
    require(subject.label, name, "every subject must have a name")
    require(subject.score is None or np.isfinite(subject.score), name, f"{subject.label!r} must have a finite score")
    if subject.box is not None:
        x0, y0, x1, y1 = subject.box
        require(
            0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height, name, f"the box {subject.box} must lie in the image"
        )
    if subject.mask is not None:
        right = subject.mask.shape == (height, width) and subject.mask.dtype == bool
        require(right, name, f"a mask must be [{height}, {width}] booleans, got {subject.mask.shape}")


def _check_target(subject: Subject, outputs: Any, batch: int, name: str) -> None:
    for index in range(batch):
        leaves: list[Tensor] = []

        def leaf(tensor: Tensor, leaves: list[Tensor] = leaves) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            leaves.append(tensor.clone().requires_grad_())
            return leaves[-1]

        with torch.enable_grad():
            value = subject.target(map_tensors(sample_of(outputs, index, batch), leaf))
        require(value.numel() == 1, name, f"the target of {subject.label!r} must be a scalar")
        require(value.requires_grad, name, f"the target of {subject.label!r} must depend on the model's output")
