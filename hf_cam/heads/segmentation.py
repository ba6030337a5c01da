"""Segmentation: a class averaged over its region, or one segment of a mask-classification head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor

from hf_cam.capture.inputs import Shared
from hf_cam.devices.transfer import on_host
from hf_cam.errors import TargetError
from hf_cam.heads.base import (
    Head,
    custom,
    mask_of,
    mask_to_grid,
    numbers_of,
    pixel_to_grid,
    region_to_image,
)
from hf_cam.heads.detection import NOT_SURE
from hf_cam.heads.establish import reading_of
from hf_cam.heads.registry import register_head
from hf_cam.heads.subjects import PROBABILITY, Subject
from hf_cam.images.geometry import Geometry
from hf_cam.layouts import Size
from hf_cam.outputs import LOGITS, MASKS, TEXT, field_of
from hf_cam.readings import Reading
from hf_cam.request import Request
from hf_cam.targets import PixelLogit, RegionLogit, RegionText, SegmentLogit
from hf_cam.threads import cached_property

BACKGROUND = ("background", "__background__", "unlabeled", "unlabelled", "other")
NOT_PREDICTED = "not predicted anywhere"
MEAN_PROBABILITY = "mean probability over the region"
HIGHEST_PROBABILITY = "highest probability of any cell"
SMALL = 0.002
"""Smallest share of the image that a region must cover to be shown unasked."""


class PlaceHead(Head):
    """A head with spatial output: a target can also be a pixel `(x, y)` or a mask `[H, W]` of the image."""

    places: ClassVar[tuple[int, ...]] = (2,)
    also: ClassVar[str] = ", a pixel (x, y), a mask [H, W]"

    def check(self, request: Request) -> None:
        """Refuse a target that is not a class, a pixel or a mask."""
        super().check(request)
        target = request.target
        if target is None or callable(target) or numbers_of(target, 2) or mask_of(target) is not None:
            return
        self.index(request)


@register_head(
    "semantic-segmentation",
    tasks=["SEMANTIC_SEGMENTATION"],
    models=["torchvision.models.segmentation.*", "segmentation_models_pytorch.base.model.SegmentationModel"],
)
class SemanticHead(PlaceHead):
    """The logit of a class, averaged over the region where it is predicted or over a caller's mask, or at one pixel.

    Where the model returns probabilities, the scores are its own, and logarithms or log-odds are averaged.
    """

    task: ClassVar[str] = "semantic-segmentation"
    threshold: ClassVar[float | None] = 0.0

    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """The predicted classes, largest region first; the background only if it is the target or the only class."""
        target = request.target
        if callable(target):
            return [custom(target)]
        found = self.class_maps(output)
        if (pixel := numbers_of(target, 2)) is not None:
            row, column = pixel_to_grid(pixel, found.grid, geometry)
            index = int(found.logits[:, row, column].argmax())
            score, [drawn] = float(found.scores[index, row, column]), found.drawn([index], geometry)
            target, name = PixelLogit(index, row, column, found.reading), self.label(index, request)
            return [Subject(target, name, score, mask=drawn, score_kind=PROBABILITY)]
        if (mask := mask_of(target)) is not None:
            region = mask_to_grid(mask, found.grid, geometry)
            index = int(found.logits[:, region].mean(1).argmax())
            return [self._subject(found, index, region, mask, request)]
        seen = in_view(found.grid, geometry)
        indices = self._largest(found, seen, request) if target is None else [self._index(found, request)]
        return [
            self._subject(found, index, found.region(index) & seen, drawn, request)
            for index, drawn in zip(indices, found.drawn(indices, geometry), strict=True)
        ]

    def class_maps(self, output: Any) -> ClassMaps:
        """What the model predicts for one image.

        Raises:
            TargetError: its output holds no map per class.
        """
        reading = reading_of(self.loaded, output, maps=True)
        logits, scores = (values.float() for values in reading.on_host(output))
        if logits.ndim != 3:
            raise TargetError(f"a segmenter must return logits [classes, h, w] for an image, not {tuple(logits.shape)}")
        return ClassMaps(reading, logits, scores)

    def _index(self, found: ClassMaps, request: Request) -> int:
        index = self.index(request)
        if index >= len(found.logits):
            raise TargetError(f"no class {index}; the model returns maps of {len(found.logits)} classes, from 0")
        return index

    def _largest(self, found: ClassMaps, seen: Tensor, request: Request) -> list[int]:
        sizes = torch.stack([(found.region(index) & seen).sum() for index in range(len(found.logits))])
        order = [int(i) for i in sizes.argsort(descending=True, stable=True) if sizes[i] > 0]
        large = [i for i in order if sizes[i] >= SMALL * seen.numel()]
        kept = [i for i in large if found.scores[i][found.region(i) & seen].mean() >= self.kept_from(request)]
        shown = kept or large[:1]
        things = [index for index in shown if self.label(index, request).lower() not in BACKGROUND]
        return list(request.first(things or shown[:1] or [0]))

    def _subject(self, found: ClassMaps, index: int, region: Tensor, mask: np.ndarray, request: Request) -> Subject:
        present = bool(region.any())
        score = float(found.scores[index][region].mean() if present else found.scores[index].max())
        sure = score >= self.kept_from(request)
        return Subject(
            RegionLogit(index, region if present else None, found.reading),
            self.label(index, request),
            score,
            mask=mask,
            flags=(NOT_PREDICTED,) if not present else () if sure else (NOT_SURE,),
            score_kind=MEAN_PROBABILITY if present else HIGHEST_PROBABILITY,
        )


@dataclass(frozen=True)
class ClassMaps:
    """What a segmenter predicts for one image.

    Args:
        reading: Where that stands in the output.
        logits: `[K, h, w]`.
        scores: `[K, h, w]` in [0, 1].
    """

    reading: Reading
    logits: Tensor
    scores: Tensor

    @property
    def grid(self) -> Size:
        """Height and width."""
        return self.logits.shape[1], self.logits.shape[2]

    @property
    def overlap(self) -> bool:
        """Whether a cell may belong to several classes, or to none."""
        return len(self.logits) == 1 or not self.reading.exclusive

    @cached_property
    def best(self) -> Tensor:
        """The class of each cell, `[h, w]`, where the classes exclude each other."""
        return self.logits.argmax(0)

    def region(self, index: int) -> Tensor:
        """The cells `[h, w]` where a class is predicted."""
        return self.logits[index] > 0 if self.overlap else self.best == index

    def drawn(self, indices: Sequence[int], geometry: Geometry) -> list[np.ndarray]:
        """The pixels `[H, W]` of the image where each class is predicted."""
        if not self.overlap:
            classes = winners(self.logits, geometry)
            return [classes == index for index in indices]
        visible = geometry.visible()
        return [(geometry.to_image(self.logits[index]) > 0).numpy() & visible for index in indices]


def winners(logits: Tensor, geometry: Geometry) -> np.ndarray:
    """The class of each pixel of the image, `[H, W]`: the highest logit after enlarging; -1 where there is none.

    Only classes that win some cell are enlarged: 150 classes at the size of a photograph would not fit in memory.
    """
    highest = torch.full(geometry.image_size, -torch.inf)
    found = torch.full(geometry.image_size, -1)
    for index in logits.argmax(0).unique().tolist():
        enlarged = geometry.to_image(logits[index])
        found = torch.where(enlarged > highest, index, found)
        highest = torch.maximum(enlarged, highest)
    classes: np.ndarray = found.numpy()
    return np.where(geometry.visible(), classes, -1)


def in_view(grid: Size, geometry: Geometry) -> Tensor:
    """Booleans `[h, w]` for a grid over the model's input: True for cells in the image, False in the padding."""
    return geometry.filled(grid) >= 0.5


@register_head("text-detection", tasks=["OBJECT_DETECTION"], when=lambda traits: traits.declares("finds_text"))
class TextHead(PlaceHead):
    """Text detectors (PP-OCR): each connected component of their probability map is a piece of text."""

    task: ClassVar[str] = "object-detection"
    method: ClassVar[str | None] = "hirescam"
    threshold: ClassVar[float | None] = 0.6
    written: ClassVar[float] = 0.3  # cells with a higher probability belong to a piece of text

    def classes(self, request: Request) -> Mapping[int, str]:
        """The only class, "text"."""
        del request
        return {0: "text"}

    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """The piece of text at the target; else all pieces, most confident first, or the most likely cell if none."""
        target = request.target
        if callable(target):
            return [custom(target)]
        shares = on_host(field_of(output, TEXT)).float().squeeze(0)
        grid = (shares.shape[0], shares.shape[1])
        if (mask := mask_of(target)) is not None:
            return [self._subject(shares, mask_to_grid(mask, grid, geometry), request, geometry)]
        count, parts = cv2.connectedComponents((shares > self.written).numpy().astype(np.uint8))
        pieces = [torch.from_numpy(parts == part) for part in range(1, count)]
        if (pixel := numbers_of(target, 2)) is not None:
            row, column = pixel_to_grid(pixel, grid, geometry)
            pieces = [piece for piece in pieces if piece[row, column]]
            if not pieces:
                raise TargetError(f"the model finds no text at the pixel ({pixel[0]:g}, {pixel[1]:g})")
        found = [self._subject(shares, piece, request, geometry) for piece in pieces or [shares == shares.max()]]
        found.sort(key=lambda subject: -(subject.score or 0))
        return list(request.first([subject for subject in found if not subject.flags])) or found[:1]

    def _subject(self, shares: Tensor, region: Tensor, request: Request, geometry: Geometry) -> Subject:
        score, mask = float(shares[region].mean()), region_to_image(region, geometry)
        rows, columns = mask.nonzero()
        box = (float(columns.min()), float(rows.min()), columns.max() + 1.0, rows.max() + 1.0) if len(rows) else None
        flags = () if score >= self.kept_from(request) else (NOT_SURE,)
        return Subject(RegionText(region), "text", score, box, mask, flags, MEAN_PROBABILITY)


@dataclass(frozen=True)
class Segments:
    """The segments that a mask-classification head found in one image.

    Args:
        queries, classes, scores: One entry per segment, most confident first.
        regions: `[N, h, w]` booleans on the grid of the masks; a cell belongs to at most one segment.
        shares: `[N, h, w]`, the masks in [0, 1].
    """

    queries: list[int]
    classes: list[int]
    scores: list[float]
    regions: Tensor
    shares: Tensor


@register_head("mask-segmentation", tasks=["UNIVERSAL_SEGMENTATION", "INSTANCE_SEGMENTATION"])
class MaskHead(PlaceHead):
    """A segment: its query's class logit plus its mean mask logit over the segment (MaskFormer and its successors)."""

    task: ClassVar[str] = "universal-segmentation"
    method: ClassVar[str | None] = "hirescam"
    threshold: ClassVar[float | None] = 0.5

    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """The segment at the target, or those of its class; else all predicted segments, most confident first."""
        target = request.target
        if callable(target):
            return [custom(target)]
        found = self.segments(output, request)
        places = range(len(found.queries))
        if (pixel := numbers_of(target, 2)) is not None:
            row, column = pixel_to_grid(pixel, (found.shares.shape[1], found.shares.shape[2]), geometry)
            chosen = [int((found.shares[:, row, column] * torch.tensor(found.scores)).argmax())]
        elif (mask := mask_of(target)) is not None:
            region = mask_to_grid(mask, (found.shares.shape[1], found.shares.shape[2]), geometry)
            joint = (found.shares * region).sum((1, 2)) / (found.shares + region - found.shares * region).sum((1, 2))
            chosen = [int(joint.argmax())]
        elif target is not None:
            index = self.index(request)
            chosen = [i for i in places if found.classes[i] == index and found.regions[i].any()]
            if not chosen:
                raise TargetError(f"the model predicts no segment of the class {self.label(index, request)!r}")
        else:
            sure = [i for i in places if found.scores[i] >= self.kept_from(request) and found.regions[i].any()]
            chosen = list(request.first(sure)) or [0]
        return [self._subject(found, i, request, geometry) for i in chosen]

    def segments(self, output: Any, request: Request) -> Segments:
        """All queries as segments, most confident first; a cell goes to the most confident mask that covers it."""
        logits = on_host(field_of(output, LOGITS)).float()
        masks = on_host(field_of(output, MASKS)).float().sigmoid()
        classes = self.classes(request)
        sigmoid = bool(classes) and logits.shape[-1] == len(classes)
        scores, indices = (logits.sigmoid() if sigmoid else logits.softmax(-1)[:, :-1]).max(-1)
        order = scores.argsort(descending=True)
        shares, kept = masks[order], scores[order]
        counted = shares * torch.where(kept >= self.kept_from(request), kept, 0)[:, None, None]
        owner = counted.argmax(0)
        regions = torch.stack([(owner == i) & (shares[i] >= 0.5) & (counted[i] > 0) for i in range(len(order))])
        return Segments(order.tolist(), indices[order].tolist(), kept.tolist(), regions, shares)

    def _subject(self, found: Segments, i: int, request: Request, geometry: Geometry) -> Subject:
        region = found.regions[i] if found.regions[i].any() else found.shares[i] >= 0.5
        sure = found.scores[i] >= self.kept_from(request)
        return Subject(
            SegmentLogit(found.queries[i], found.classes[i], region if region.any() else None),
            self.label(found.classes[i], request),
            found.scores[i],
            mask=region_to_image(region, geometry),
            flags=() if sure else (NOT_SURE,),
            score_kind=PROBABILITY,
        )


@register_head(
    "task-mask-segmentation",
    tasks=["UNIVERSAL_SEGMENTATION", "INSTANCE_SEGMENTATION"],
    when=lambda traits: traits.accepts("task_inputs"),
)
class TaskMaskHead(MaskHead):
    """OneFormer: one network for three tasks, selected by a sentence; `text` is the task, by default "panoptic"."""

    takes_text: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("panoptic", "instance", "semantic")

    def check(self, request: Request) -> None:
        """Refuse a text that is not a task."""
        super().check(request)
        if request.text and (len(request.text) > 1 or request.text[0] not in self.tasks):
            raise TargetError(
                f"{self.model_name} takes one of the tasks {', '.join(self.tasks)} as text=, "
                f"not {', '.join(request.text)}"
            )

    def inputs(self, request: Request) -> Mapping[str, Any]:
        """The tokens of the sentence, padded with zeros, once per image."""
        length = self.loaded.traits.read("task_seq_len")
        sentence = f"the task is {request.text[0] if request.text else self.tasks[0]}"
        settings = {"padding": "max_length", "max_length": length, "truncation": True}
        encoded = self.loaded.text_processor([sentence], return_tensors="pt", **settings)
        return {"task_inputs": Shared(encoded["input_ids"] * encoded["attention_mask"], each=True)}
