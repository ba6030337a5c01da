"""The base class of heads: what a head reports about an image, and which scalars of that can be explained."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hf_cam.errors import OptionError, TargetError, brief, described
from hf_cam.heads.subjects import Box, Subject, of_side, summed
from hf_cam.images.geometry import Geometry
from hf_cam.layouts import Size
from hf_cam.models.loading import LoadedModel
from hf_cam.models.traits import ModelTraits
from hf_cam.outputs import samples_of
from hf_cam.request import Request
from hf_cam.targets import BoxSide, SumOf, Target, entries_of, find_label, index_of


@dataclass(frozen=True)
class Head(ABC):
    """The base class of heads, with one subclass per kind; `hf_cam.heads.head_of` chooses it.

    Args:
        loaded: The model with its processor and label names.
    """

    loaded: LoadedModel
    task: ClassVar[str]
    method: ClassVar[str | None] = None  # the default method for families without a measured one
    takes_text: ClassVar[bool] = False
    writes: ClassVar[bool] = False  # whether it explains the words of a text that the model generates
    takes_marks: ClassVar[bool] = False  # whether points and boxes in the image are its prompts
    crops: ClassVar[bool] = False  # whether a box in the image is what it looks at, by itself
    alone: ClassVar[bool] = False  # one image per forward
    threshold: ClassVar[float | None] = None  # the lowest score of shown objects or segments, for heads that have them
    places: ClassVar[tuple[int, ...]] = ()  # how many numbers a place in the image has, for heads that take one
    also: ClassVar[str] = ""  # what a target may be besides a class, for messages

    def check_all(self, request: Request) -> None:
        """Refuse a request one of whose targets cannot be explained, before the model runs.

        Raises:
            TargetError, OptionError: see `check`; or a pixel or a box is given as a list.
        """
        for entries in (request.target, *(entries_of(request.target) or ())):
            if _is_place(entries_of(entries), self.places):
                place = tuple(entries_of(entries) or ())
                raise TargetError(
                    f"a list is several targets, and a pixel or a box is a tuple: pass target={place} for the place, "
                    f"or {[str(number) for number in place]} for as many classes or queries"
                )
        for entry in entries_of(request.target) or [request.target]:
            for single in replace(request, target=entry).singly():
                self.check_one(single)

    def check_one(self, request: Request) -> None:
        """Refuse a request for one target, each part of which must be one that `check` accepts.

        Raises:
            TargetError, OptionError: see `check`; or the model predicts no boxes whose sides could be explained.
        """
        target = request.target
        if isinstance(target, SumOf):
            for part in target.parts:
                self.check_one(replace(request, target=part))
        elif isinstance(target, BoxSide):
            if 4 not in self.places:
                raise TargetError(f"{self.model_name} predicts no boxes, so {brief(target)} names nothing")
            self.check_one(replace(request, target=target.target))
        else:
            self.check(request)

    def check(self, request: Request) -> None:
        """Refuse a request for one target that cannot be explained, before the model runs.

        Raises:
            TargetError: the target or text does not suit the model.
            OptionError: the model has no use for an option.
        """
        if not self.writes and (unused := request.of_writers):
            raise OptionError(f"{self.model_name} writes no text, so it has no use for {unused}=")
        if not (self.takes_marks or self.crops) and (unused := request.marking):
            raise OptionError(f"{self.model_name} takes no points or boxes as prompts, so it has no use for {unused}=")
        if request.text and not self.takes_text:
            raise TargetError(f"{self.model_name} takes no text; omit text=")
        if request.threshold is not None and self.threshold is None:
            raise OptionError(f"{self.model_name} finds no objects or segments to which threshold= could apply")
        if request.renormalize and not self._finds_box(request.target):
            raise OptionError(
                f"renormalize='box' needs the boxes of a detector, and {self.model_name} finds none for this target"
            )
        if request.target is not None and (request.top_k or 1) > 1:
            raise OptionError("top_k counts what the model itself finds; omit it with target=, which names one target")

    def kept_from(self, request: Request) -> float:
        """The lowest score of shown objects or segments: the caller's threshold, or else the head's own."""
        return (self.threshold or 0.0) if request.threshold is None else request.threshold

    def rounds(self, request: Request, pictures: Mapping[str, Tensor]) -> list[Request]:
        """The request, split into requests that take one forward each.

        Args:
            request: The caller's request.
            pictures: The model's inputs for the images.
        """
        del pictures
        return [request]

    def placed(self, request: Request, geometry: Geometry) -> Request:
        """The request with what it marks in the pixels of the model's input, as `inputs` and `subjects` get it.

        Args:
            request: The caller's request.
            geometry: The mapping between the image and the model's input.

        Raises:
            TargetError: a mark lies outside the image.
        """
        del geometry
        return request

    def inputs(self, request: Request) -> Mapping[str, Any]:
        """Inputs of the forward beside the image."""
        del request
        return {}

    @abstractmethod
    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """What to explain in one image, best first; never empty.

        Args:
            output: One sample of the model's output; `hf_cam.devices.transfer.on_host` reads its tensors.
            request: The caller's request.
            geometry: The mapping between this image and the model's input.
        """

    def given(self, inputs: Mapping[str, Any]) -> tuple[Request, Mapping[str, Any]]:
        """What the caller's own tensors ask for, and the inputs of the forward.

        Args:
            inputs: The named inputs of a batch, texts among them as tokens.

        Raises:
            TargetError: the model cannot be asked so.
        """
        return Request(top_k=1), inputs

    def subjects_of_batch(
        self, outputs: Any, requests: Sequence[Request], geometries: Sequence[Geometry]
    ) -> list[list[Subject]]:
        """What to explain in each image of a batch.

        Args:
            outputs: The model's output for B images.
            requests, geometries: One per image.
        """
        samples = samples_of(outputs, len(requests))
        return [self.subjects_of_all(*one) for one in zip(samples, requests, geometries, strict=True)]

    def subjects_of_all(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """What to explain in one image, for every target of the request."""
        return [found for single in request.singly() for found in self.subjects_of(output, single, geometry)]

    def subjects_of(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """What to explain in one image for one target, which may be made of others."""
        target = request.target
        if isinstance(target, SumOf):
            parts = [replace(request, target=part) for part in target.parts]
            return [summed([found for part in parts for found in self.subjects_of(output, part, geometry)])]
        if isinstance(target, BoxSide):
            found = self.subjects_of(output, replace(request, target=target.target), geometry)
            return [of_side(one, target.side, self.side(one.target, target.side)) for one in found]
        return self.subjects(output, request, geometry)

    def side(self, target: Target, side: str) -> Target:
        """The coordinate of a side of the box that a target of this head belongs to.

        Raises:
            TargetError: it belongs to none.
        """
        del target, side
        raise TargetError(f"{self.model_name} predicts no box for this target")

    def classes(self, request: Request) -> Mapping[int, str]:
        """The names of the classes, by index; empty if they have none."""
        del request
        return self.loaded.id2label

    def index(self, request: Request) -> int:
        """The index of the class that the caller's index or label refers to.

        Raises:
            TargetError: there is no such class.
        """
        target, classes = request.target, self.classes(request)
        if isinstance(target, str):
            if target.strip().isdecimal() and target.strip() not in classes.values():
                target = int(target)
            elif not classes:
                raise TargetError(
                    f"the model has no label names; pass a class index instead of {brief(target)}, or names as labels="
                )
            else:
                return find_label(target, classes)
        index = index_of(target)
        if index is None:
            raise TargetError(
                f"a target of {self.model_name} must be a class index, a label{self.also} or a callable, "
                f"not {described(target)}{self._instead(target)}"
            )
        if index < 0 or (classes and index > max(classes)):
            known = f"the model has classes {min(classes)} to {max(classes)}" if classes else "classes count from 0"
            raise TargetError(f"no class {index}; {known}")
        return index

    def _finds_box(self, target: Any) -> bool:
        """Whether the head gives what a target names a box, as far as that is known before the model runs."""
        return "object-detection" in self.task and not callable(target)

    def _instead(self, target: Any) -> str:
        """What to pass in place of something that is no target, for the end of a message."""
        if isinstance(target, float) and target.is_integer():
            return f"; pass {int(target)}"
        if isinstance(target, tuple) and not self.places and len(target) in (2, 4):
            return "; a pixel or a box needs a detector or a segmenter, and several targets are a list"
        if isinstance(target, tuple) and len(target) == 4:
            return "; a box needs a detector, pass a mask of it"
        if isinstance(target, tuple | range | set | frozenset):
            listed = f", {brief(list(target))}" if len(target) <= 3 else ""
            return f"; several targets are a list{listed}"
        if (axes := getattr(target, "ndim", 0)) == 2:
            return "; a mask needs a segmenter"
        return "; pass the names or indices as a list" if axes else ""

    def label(self, index: int, request: Request) -> str:
        """The name of a class, or else its index."""
        return self.classes(request).get(index, str(index))

    @property
    def model_name(self) -> str:
        """The name of the model's class, for messages."""
        return self.loaded.traits.class_name


def behind_picture(tokens: Mapping[str, Tensor], traits: ModelTraits) -> dict[str, Tensor]:
    """Tokens `[P, L]` after the placeholders for the picture (BLIP-2); unchanged for other models."""
    place, count = traits.read("image_token_index"), traits.read("num_query_tokens")
    if place is None or count is None:
        return dict(tokens)
    fill = {name: place if name == "input_ids" else 1 for name in tokens}
    return {
        name: torch.cat([torch.full((len(value), count), fill[name], dtype=value.dtype), value], 1)
        for name, value in tokens.items()
    }


def custom(target: Target) -> Subject:
    """The subject for a caller's own target."""
    return Subject(target, getattr(target, "__name__", type(target).__name__))


def numbers_of(target: Any, count: int) -> tuple[float, ...] | None:
    """`count` numbers from a tuple, or from a text such as "12,30"; None for everything else.

    Raises:
        TargetError: one of them is not finite.
    """
    if isinstance(target, str):
        try:
            target = tuple(float(part) for part in target.split(","))
        except ValueError:
            return None
    if not isinstance(target, tuple) or len(target) != count or not all(map(_is_number, target)):
        return None
    try:
        numbers = tuple(float(value) for value in target)
    except OverflowError:
        numbers = (math.inf,)
    if not all(map(math.isfinite, numbers)):
        raise TargetError(f"a pixel or box must be made of finite numbers, got {brief(target)}")
    return numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_place(entries: list[Any] | None, places: Sequence[int]) -> bool:
    """Whether a list may be meant as a pixel or a box."""
    return entries is not None and len(entries) in places and all(map(_is_number, entries))


def mask_of(target: Any) -> np.ndarray | None:
    """A mask `[H, W]` as booleans, from booleans or 0 and 1; None for everything else."""
    if isinstance(target, Tensor):
        target = target.detach().cpu().numpy()
    if not isinstance(target, np.ndarray) or target.ndim != 2 or target.dtype.kind not in "buif":
        return None
    return target.astype(bool)


def pixel_to_grid(pixel: Sequence[float], grid: Size, geometry: Geometry) -> tuple[int, int]:
    """Row and column of the cell of the output's grid that contains the pixel `(x, y)` of the image.

    Raises:
        TargetError: the pixel lies outside the image, or was cropped away.
    """
    (x, y), (height, width) = pixel, geometry.image_size
    if not (0 <= x < width and 0 <= y < height):
        raise TargetError(f"the pixel ({x:g}, {y:g}) is outside the image, which is {width} wide and {height} high")
    cell = geometry.to_grid(x, y, grid)
    if cell is None:
        raise TargetError(f"the model does not see the pixel ({x:g}, {y:g}): its processor crops it away")
    return cell


def mask_to_grid(mask: np.ndarray, grid: Size, geometry: Geometry) -> Tensor:
    """A caller's mask on the output's grid.

    Raises:
        TargetError: it is not as large as the image, or marks nothing that the model sees.
    """
    if mask.shape != geometry.image_size:
        raise TargetError(
            f"the mask is {mask.shape[0]} x {mask.shape[1]}, "
            f"but the image is {geometry.image_size[0]} x {geometry.image_size[1]}"
        )
    region = geometry.mask_to_grid(mask, grid)
    if not region.any():
        raise TargetError("the mask marks no pixel that the model sees")
    return region


def region_to_image(region: Tensor, geometry: Geometry) -> np.ndarray:
    """Booleans, or shares in [0, 1], `[h, w]` on the output's grid, as a mask `[H, W]` over the image."""
    drawn: np.ndarray = (geometry.to_image(region.detach().float().cpu()) > 0.5).numpy()
    return drawn


def overlaps(box: Box, others: Sequence[Box]) -> Tensor:
    """Intersection over union of a box with others, `[N]`."""
    from torchvision.ops import box_iou

    found: Tensor = box_iou(torch.tensor([box]), torch.tensor(list(others)).reshape(-1, 4))[0]
    return found
