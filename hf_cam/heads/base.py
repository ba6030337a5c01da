"""What a head says about an image, and which scalars of it can be explained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hf_cam.errors import OptionError, TargetError
from hf_cam.images.geometry import Geometry
from hf_cam.layouts import Size
from hf_cam.models.loading import LoadedModel
from hf_cam.models.traits import ModelTraits
from hf_cam.request import Request
from hf_cam.targets import Target, find_label, index_of

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Subject:
    """One thing that a head says of one image.

    Args:
        target: Its scalar.
        label: In words.
        score: The model's confidence in [0, 1]; None: the target's value.
        box: `(x0, y0, x1, y1)` in the image's pixels.
        mask: `[H, W]` booleans over the image.
        flags: Warnings in words.
    """

    target: Target
    label: str
    score: float | None = None
    box: Box | None = None
    mask: np.ndarray | None = field(default=None, repr=False)
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Head(ABC):
    """One kind of head; a subclass a kind, chosen by `hf_cam.heads.head_of`.

    Args:
        loaded: The model with its processor and label names.
    """

    loaded: LoadedModel
    task: ClassVar[str]
    method: ClassVar[str | None] = None  # for families of which no measurement says which method serves them best
    takes_text: ClassVar[bool] = False
    alone: ClassVar[bool] = False  # one image per forward
    threshold: ClassVar[float | None] = None  # the score from which a head that finds things shows them

    def check(self, request: Request) -> None:
        """Refuse what cannot be explained, before the model runs.

        Raises:
            TargetError, OptionError: see the message.
        """
        if request.text and not self.takes_text:
            raise TargetError(f"{self.model_name} compares no text; leave text= out")
        if request.threshold is not None and self.threshold is None:
            raise OptionError(f"{self.model_name} finds no objects or segments that threshold= could choose from")
        if request.target is not None and (request.top_k or 1) > 1:
            raise OptionError("top_k counts what the model itself found; leave it out where target= names one")

    def kept_from(self, request: Request) -> float:
        """The score from which things are shown: the caller's, or else the head's own."""
        return (self.threshold or 0.0) if request.threshold is None else request.threshold

    def rounds(self, request: Request, pictures: Mapping[str, Tensor]) -> list[Request]:
        """The same request as one or several that take a forward each.

        Args:
            request: What the caller wants.
            pictures: The model's inputs for the images.
        """
        del pictures
        return [request]

    def inputs(self, request: Request) -> Mapping[str, Any]:
        """What the forward takes beside the image."""
        del request
        return {}

    @abstractmethod
    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """What to explain in one image, best first; never empty.

        Args:
            output: One sample of the model's output.
            request: What the caller wants.
            geometry: Between this image and the model's input.
        """

    def classes(self, request: Request) -> Mapping[int, str]:
        """The names of the classes; empty where they have none."""
        del request
        return self.loaded.id2label

    def index(self, request: Request) -> int:
        """The class that the caller's index or label text means.

        Raises:
            TargetError: there is none.
        """
        target, classes = request.target, self.classes(request)
        if isinstance(target, str):
            if target.strip().isdigit() and target.strip() not in classes.values():
                target = int(target)
            elif not classes:
                raise TargetError(f"the model has no label names; pass a class index in place of {target!r}")
            else:
                return find_label(target, classes)
        index = index_of(target)
        if index is None:
            raise TargetError(f"a target is a class index, a label text or a callable, not {type(target).__name__}")
        if index < 0 or (classes and index >= len(classes)):
            known = f"the model has classes 0 to {len(classes) - 1}" if classes else "classes count from 0"
            raise TargetError(f"no class {index}; {known}")
        return index

    def label(self, index: int, request: Request) -> str:
        """A class in words."""
        return self.classes(request).get(index, str(index))

    @property
    def model_name(self) -> str:
        """The class of the model, for messages."""
        return self.loaded.traits.class_name


def behind_picture(tokens: Mapping[str, Tensor], traits: ModelTraits) -> dict[str, Tensor]:
    """Tokens `[P, L]` behind the places that the picture takes among them (BLIP-2); as they are for other models."""
    place, count = traits.read("image_token_index"), traits.read("num_query_tokens")
    if place is None or count is None:
        return dict(tokens)
    fill = {name: place if name == "input_ids" else 1 for name in tokens}
    return {
        name: torch.cat([torch.full((len(value), count), fill[name], dtype=value.dtype), value], 1)
        for name, value in tokens.items()
    }


def custom(target: Target) -> Subject:
    """A caller's own target."""
    return Subject(target, getattr(target, "__name__", type(target).__name__))


def numbers_of(target: Any, count: int) -> tuple[float, ...] | None:
    """`count` numbers: a tuple, list or array of them, or a text such as "12,30"; None for everything else."""
    if isinstance(target, str):
        try:
            target = [float(part) for part in target.split(",")]
        except ValueError:
            return None
    if isinstance(target, Tensor | np.ndarray) and target.ndim == 1:
        target = target.tolist()
    if not isinstance(target, list | tuple) or len(target) != count:
        return None
    if not all(isinstance(value, int | float | np.number) for value in target):
        return None
    return tuple(float(value) for value in target)


def mask_of(target: Any) -> np.ndarray | None:
    """A mask `[H, W]` of booleans (or of 0 and 1); None for everything else."""
    if isinstance(target, Tensor):
        target = target.detach().cpu().numpy()
    if not isinstance(target, np.ndarray) or target.ndim != 2:
        return None
    return target.astype(bool)


def pixel_to_grid(pixel: Sequence[float], grid: Size, geometry: Geometry) -> tuple[int, int]:
    """Row and column of the cell of the output's grid that holds `(x, y)` of the image.

    Raises:
        TargetError: it lies outside the image, or in a part of it that was cropped away.
    """
    (x, y), (height, width) = pixel, geometry.image_size
    if not (0 <= x < width and 0 <= y < height):
        raise TargetError(f"the pixel ({x:g}, {y:g}) lies outside the image, which is {width} wide and {height} high")
    cell = geometry.to_grid(x, y, grid)
    if cell is None:
        raise TargetError(f"the model never saw the pixel ({x:g}, {y:g}): its processor crops it away")
    return cell


def mask_to_grid(mask: np.ndarray, grid: Size, geometry: Geometry) -> Tensor:
    """A caller's mask on the output's grid.

    Raises:
        TargetError: it is not as large as the image, or marks nothing that the model saw.
    """
    if mask.shape != geometry.image_size:
        raise TargetError(
            f"the mask is {mask.shape[0]} x {mask.shape[1]}, "
            f"the image {geometry.image_size[0]} x {geometry.image_size[1]}"
        )
    region = geometry.mask_to_grid(mask, grid)
    if not region.any():
        raise TargetError("the mask marks no pixel that the model saw")
    return region


def region_to_image(region: Tensor, geometry: Geometry) -> np.ndarray:
    """Booleans or shares `[h, w]` on the output's grid as a mask `[H, W]` over the image."""
    drawn: np.ndarray = (geometry.to_image(region.detach().float().cpu()) > 0.5).numpy()
    return drawn


def overlaps(box: Box, others: Sequence[Box]) -> Tensor:
    """Intersection over union of a box with others, `[N]`."""
    from torchvision.ops import box_iou

    found: Tensor = box_iou(torch.tensor([box]), torch.tensor(list(others)).reshape(-1, 4))[0]
    return found
