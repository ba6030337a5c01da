"""Keypoints: the peak of a named one's heatmap (VitPose), or one of those that a detector lists (SuperPoint)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_cam.capture.inputs import Shared
from hf_cam.devices.transfer import on_host
from hf_cam.errors import OptionError, TargetError
from hf_cam.heads.base import Head, custom, numbers_of, pixel_to_grid
from hf_cam.heads.detection import NOT_SURE
from hf_cam.heads.marks import boxes_of
from hf_cam.heads.registry import register_head
from hf_cam.heads.segmentation import in_view
from hf_cam.heads.subjects import PROBABILITY, Box, Subject
from hf_cam.images.geometry import Geometry
from hf_cam.layouts import Size
from hf_cam.outputs import HEATMAPS, field_of
from hf_cam.request import Request
from hf_cam.targets import HeatmapPeak, KeypointLogit, index_of

PEAK = "peak of the heatmap"
RADIUS = 4
"""Pixels of the model's input within which keypoints of two pictures are the same; SuperPoint keeps one per radius."""


class KeypointHead(Head):
    """A head of keypoints: a target can also be a pixel `(x, y)` of the image, for the keypoint nearest to it."""

    places: ClassVar[tuple[int, ...]] = (2,)
    also: ClassVar[str] = ", a pixel (x, y)"

    def check(self, request: Request) -> None:
        """Refuse a target that is no keypoint."""
        super().check(request)
        target = request.target
        if target is not None and not callable(target) and numbers_of(target, 2) is None:
            self.index(request)


@register_head("keypoint-heatmaps", tasks=["POSE_ESTIMATION"])
class HeatmapHead(KeypointHead):
    """The peak of each keypoint's heatmap; a target is a keypoint's name, its index or a pixel.

    The model looks at one person, who fills the image unless `input_boxes` marks one or several.
    """

    task: ClassVar[str] = "pose-estimation"
    method: ClassVar[str | None] = "hirescam"
    threshold: ClassVar[float | None] = 0.3
    crops: ClassVar[bool] = True

    def check(self, request: Request) -> None:
        """Refuse a target that is no keypoint, and points as prompts."""
        super().check(request)
        if request.input_points is not None or request.input_labels is not None:
            raise OptionError(
                f"{self.model_name} looks at the person in a box: pass input_boxes=, not {request.marking}="
            )
        boxes_of(request.input_boxes)

    def inputs(self, request: Request) -> Mapping[str, Any]:
        """For a mixture of experts, the first data set that it was trained on."""
        backbone = self.loaded.traits.read("backbone_config")
        several = getattr(backbone, "num_experts", 1) > 1 and self.loaded.traits.accepts("dataset_index")
        return {"dataset_index": Shared(torch.zeros(1, dtype=torch.long), each=True)} if several else {}

    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """The keypoints whose peaks pass the threshold, highest first; if none does, the highest one, flagged."""
        target = request.target
        if callable(target):
            return [custom(target)]
        heatmaps = on_host(field_of(output, HEATMAPS)).float()
        grid = (heatmaps.shape[1], heatmaps.shape[2])
        peaks, places = heatmaps.where(in_view(grid, geometry), -torch.inf).flatten(1).max(1)
        cells = [divmod(place, grid[1]) for place in places.tolist()]
        if (pixel := numbers_of(target, 2)) is not None:
            row, column = pixel_to_grid(pixel, grid, geometry)
            away = [(one[0] - row) ** 2 + (one[1] - column) ** 2 for one in cells]
            chosen = [min(range(len(cells)), key=lambda index: (away[index], -float(peaks[index])))]
        elif target is not None:
            chosen = [self._index(request, len(heatmaps))]
        else:
            order = peaks.argsort(descending=True).tolist()
            kept = [index for index in order if peaks[index] >= self.kept_from(request)]
            chosen = list(request.first(kept)) or order[:1]
        return [self._subject(index, float(peaks[index]), cells[index], grid, request, geometry) for index in chosen]

    def _index(self, request: Request, count: int) -> int:
        index = self.index(request)
        if index >= count:
            raise TargetError(f"no keypoint {index}; the model returns heatmaps of {count}, from 0")
        return index

    def _subject(
        self, index: int, peak: float, cell: tuple[int, int], grid: Size, request: Request, geometry: Geometry
    ) -> Subject:
        (row, column), (rows, columns) = cell, grid
        box = ((column + 0.5) / columns, (row + 0.5) / rows, 1 / columns, 1 / rows)
        return Subject(
            HeatmapPeak(index, row, column),
            self.label(index, request),
            peak,
            geometry.box_to_image(box, of_seen=False),
            flags=() if peak >= self.kept_from(request) else (NOT_SURE,),
            score_kind=PEAK,
        )


@register_head("listed-keypoints", tasks=["KEYPOINT_DETECTION"])
class ListedKeypointHead(KeypointHead):
    """The log-odds of a keypoint; a target is its rank, the most probable being 0, or the pixel next to it."""

    task: ClassVar[str] = "keypoint-detection"
    method: ClassVar[str | None] = "hirescam"

    def classes(self, request: Request) -> Mapping[int, str]:
        """None: keypoints have no names."""
        del request
        return {}

    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """The most probable keypoint, or as many as `top_k`; or the one at the target."""
        target = request.target
        if callable(target):
            return [custom(target)]
        kept = on_host(output["mask"]).bool()
        places, scores = (on_host(output[name]).float()[kept] for name in ("keypoints", "scores"))
        if not len(scores):
            raise TargetError(f"{self.model_name} finds no keypoint in this image")
        order = scores.argsort(descending=True).tolist()
        if (pixel := numbers_of(target, 2)) is not None:
            chosen = [_nearest(pixel, places, geometry)]
        elif (index := index_of(target)) is not None or target is not None:
            index = self.index(request) if index is None else index
            if not 0 <= index < len(order):
                raise TargetError(f"no keypoint {index}; the model finds {len(order)} in this image, from 0")
            chosen = [order[index]]
        else:
            chosen = list(request.first(order, default=1))
        return [self._subject(places[index], float(scores[index]), geometry) for index in chosen]

    def _subject(self, place: Tensor, score: float, geometry: Geometry) -> Subject:
        (x, y), (height, width) = place.tolist(), geometry.model_size
        reach = (RADIUS / width, RADIUS / height)
        column, row = geometry.from_model(x * width, y * height)
        box: Box = geometry.box_to_image((x, y, 2 * reach[0], 2 * reach[1]), of_seen=False)
        return Subject(KeypointLogit(x, y, reach), f"({column:.4g}, {row:.4g})", score, box, score_kind=PROBABILITY)


def _nearest(pixel: tuple[float, ...], places: Tensor, geometry: Geometry) -> int:
    """The keypoint nearest to a pixel of the image."""
    pixel_to_grid(pixel, geometry.model_size, geometry)
    height, width = geometry.model_size
    away = places * places.new_tensor([width, height]) - places.new_tensor(geometry.to_model(*pixel))
    return int(away.square().sum(1).argmin())
