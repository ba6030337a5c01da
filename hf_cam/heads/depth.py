"""Depth estimation: the predicted depth of a region."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from hf_cam.devices.transfer import on_host
from hf_cam.errors import TargetError, brief
from hf_cam.heads.base import custom, mask_of, mask_to_grid, numbers_of, pixel_to_grid, region_to_image
from hf_cam.heads.registry import register_head
from hf_cam.heads.segmentation import PlaceHead, in_view
from hf_cam.heads.subjects import Subject
from hf_cam.images.geometry import Geometry
from hf_cam.outputs import DEPTH, field_of
from hf_cam.request import Request
from hf_cam.targets import RegionDepth, entries_of

DISTANCE, NEARNESS = "mean distance, negated", "mean relative nearness"


@register_head("depth", tasks=["DEPTH_ESTIMATION"])
class DepthHead(PlaceHead):
    """The predicted depth of the nearest part of the scene, of a mask given by the caller, or of one pixel."""

    task: ClassVar[str] = "depth-estimation"
    nearest_share: ClassVar[float] = 0.1

    def check(self, request: Request) -> None:
        """Refuse a target that is not a place in the image."""
        target = request.target
        place = target is None or callable(target) or numbers_of(target, 2) is not None or mask_of(target) is not None
        if not place and entries_of(target) is None:
            raise TargetError(f"depth has no classes: pass a pixel (x, y) or a mask [H, W], not {brief(target)}")
        super().check(request)

    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """One region, with its mean predicted depth as the target's value."""
        target = request.target
        if callable(target):
            return [custom(target)]
        depth = on_host(field_of(output, DEPTH)).float().squeeze(0)
        grid = (depth.shape[0], depth.shape[1])
        nearer, kind = (-1, DISTANCE) if self._metric() else (1, NEARNESS)
        if (pixel := numbers_of(target, 2)) is not None:
            row, column = pixel_to_grid(pixel, grid, geometry)
            region, label = torch.zeros(grid, dtype=torch.bool), f"depth at ({pixel[0]:g}, {pixel[1]:g})"
            region[row, column] = True
            mask = None
        elif (mask := mask_of(target)) is not None:
            region, label = mask_to_grid(mask, grid, geometry), "depth of the mask"
        else:
            seen = in_view(grid, geometry)
            nearness = depth * nearer
            region = seen & (nearness >= nearness[seen].quantile(1 - self.nearest_share))
            mask, label = region_to_image(region, geometry), "nearest region"
        return [Subject(RegionDepth(region, nearer), label, mask=mask, score_kind=kind)]

    def _metric(self) -> bool:
        """Whether the output is a distance, small for near things, rather than its inverse."""
        known = self.loaded.traits.read("depth_estimation_type")
        return known == "metric" if known else self.loaded.traits.declares("metric_depth")
