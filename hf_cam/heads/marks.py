"""Points and boxes that a caller marks in an image, as prompts of a model that segments what is marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_cam.errors import TargetError, brief
from hf_cam.heads.base import numbers_of
from hf_cam.heads.subjects import Box
from hf_cam.images.geometry import Geometry
from hf_cam.request import Request

PADDING = -10
"""The label of a point that only fills up a prompt with fewer points than another."""


@dataclass(frozen=True)
class Prompt:
    """What is marked for one mask.

    Args:
        points: `(x, y)` each.
        labels: For each point 1 if it belongs to the mask, and 0 if it does not.
        box: `(left, top, right, bottom)`, or None.
    """

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: Box | None = None

    def __str__(self) -> str:
        """The points and the box, as a label of a map.

        >>> str(Prompt(((120.0, 80.0), (10.0, 20.5)), (1, 0)))
        '(120, 80) without (10, 20.5)'
        """
        named = [f"({x:.4g}, {y:.4g})" for x, y in self.points]
        inside = [name for name, label in zip(named, self.labels, strict=True) if label]
        outside = [name for name, label in zip(named, self.labels, strict=True) if not label]
        box = [] if self.box is None else [f"box ({', '.join(f'{side:.4g}' for side in self.box)})"]
        without = f" without {', '.join(outside)}" if outside else ""
        return f"{', '.join([*box, *inside])}{without}".strip()

    def to_model(self, geometry: Geometry) -> Prompt:
        """The prompt in the pixels of the model's input.

        Raises:
            TargetError: a point lies outside the image, or a box has no part in it.
        """
        for x, y in self.points:
            _check_inside(x, y, geometry)
        points = tuple(_to_model(x, y, geometry) for x, y in self.points)
        return replace(self, points=points, box=self.box and _box_to_model(self.box, geometry))

    def to_image(self, geometry: Geometry) -> Prompt:
        """The inverse of `to_model`, but for what of a box lies outside the image."""
        points = tuple(_to_image(x, y, geometry) for x, y in self.points)
        return replace(self, points=points, box=self.box and _ordered(self.box, geometry, _to_image))


def prompts_of(request: Request) -> tuple[Prompt, ...]:
    """The prompts that a request marks in one image, one per mask; empty if it marks nothing.

    Points are a tuple `(x, y)`, a list of them (one prompt each) or a list of lists (several points per prompt); boxes
    a tuple or a list of them. Beside points, boxes belong to the prompts one by one. transformers' own lists, in which
    the image comes first, are read as well.

    Raises:
        TargetError: something else is given, or the numbers of points, labels and boxes differ.

    >>> [str(prompt) for prompt in prompts_of(Request(input_points=[(12, 30), (40, 5)]))]
    ['(12, 30)', '(40, 5)']
    """
    points, boxes = _points(request.input_points), boxes_of(request.input_boxes)
    if points and boxes and len(points) != len(boxes):
        raise TargetError(
            f"input_points marks {len(points)} prompts and input_boxes {len(boxes)}; beside points there is one box "
            "per prompt"
        )
    labels = _labels(request.input_labels, points)
    count = max(len(points), len(boxes))
    return tuple(
        Prompt(*((points[i], labels[i]) if points else ((), ())), boxes[i] if boxes else None) for i in range(count)
    )


def as_request(request: Request, prompts: Sequence[Prompt]) -> Request:
    """The request with these prompts in place of its own."""
    with_points, with_boxes = any(prompt.points for prompt in prompts), any(prompt.box for prompt in prompts)
    return replace(
        request,
        input_points=[list(prompt.points) for prompt in prompts] if with_points else None,
        input_labels=[list(prompt.labels) for prompt in prompts] if with_points else None,
        input_boxes=[prompt.box for prompt in prompts] if with_boxes else None,
    )


def as_inputs(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Inputs of a promptable model for one image: `[1, P, N, 2]`, `[1, P, N]` and `[1, P, 4]`.

    >>> sorted(as_inputs([Prompt(((1.0, 2.0),), (1,))]))
    ['input_labels', 'input_points']
    """
    found: dict[str, Tensor] = {}
    if longest := max(len(prompt.points) for prompt in prompts):
        fill = [longest - len(prompt.points) for prompt in prompts]
        points = [[*prompt.points, *[(PADDING, PADDING)] * more] for prompt, more in zip(prompts, fill, strict=True)]
        labels = [[*prompt.labels, *[PADDING] * more] for prompt, more in zip(prompts, fill, strict=True)]
        found |= {"input_points": torch.tensor([points], dtype=torch.float32), "input_labels": torch.tensor([labels])}
    if any(prompt.box for prompt in prompts):
        found["input_boxes"] = torch.tensor([[prompt.box for prompt in prompts]], dtype=torch.float32)
    return found


# Reading -------------------------------------------------------------------------------------------------------------


def _plain(given: Any) -> Any:
    """Tensors and arrays as lists, also within lists."""
    if hasattr(given, "tolist"):
        return given.tolist()
    return [_plain(one) for one in given] if isinstance(given, list | tuple) else given


def _depth(given: Any) -> int:
    return 1 + max(map(_depth, given), default=0) if isinstance(given, list) else 0


def _points(given: Any) -> list[tuple[tuple[float, float], ...]]:
    """Prompt by prompt, the points of each."""
    plain = _plain(given)
    depth = _depth(plain)
    listed = {0: [], 1: [[plain]], 2: [[point] for point in plain or []], 3: plain}.get(depth)
    if depth == 4 and len(plain) == 1:
        listed = plain[0]
    what = "input_points must be a point (x, y), a list of points or a list of lists of points"
    if listed is None or (given is not None and not listed):
        raise TargetError(f"{what}, got {brief(given)}")
    return [tuple(_numbers(point, 2, what) for point in prompt) for prompt in listed]  # type: ignore[misc]


def boxes_of(given: Any) -> list[Box]:
    """The boxes in `input_boxes`; empty if it is None.

    Raises:
        TargetError: it is neither a box nor a list of boxes.
    """
    plain = _plain(given)
    depth = _depth(plain)
    listed = {0: [], 1: [plain], 2: plain}.get(depth)
    if depth == 3 and len(plain) == 1:
        listed = plain[0]
    what = "input_boxes must be a box (left, top, right, bottom) or a list of boxes"
    if listed is None or (given is not None and not listed):
        raise TargetError(f"{what}, got {brief(given)}")
    boxes = [_numbers(box, 4, what) for box in listed]
    for x0, y0, x1, y1 in boxes:  # type: ignore[misc]
        if not (x0 < x1 and y0 < y1):
            raise TargetError(f"{what}, got {brief((x0, y0, x1, y1))}")
    return boxes  # type: ignore[return-value]


def _numbers(given: Any, count: int, what: str) -> tuple[float, ...]:
    found = numbers_of(tuple(given), count) if isinstance(given, list) else None
    if found is None:
        raise TargetError(f"{what}, got {brief(given)}")
    return found


def _labels(given: Any, points: Sequence[tuple[Any, ...]]) -> list[tuple[int, ...]]:
    """One label per point: nested like the points, or flat if each prompt has one point or there is one prompt."""
    counts = [len(prompt) for prompt in points]
    if given is None:
        return [(1,) * count for count in counts]
    plain = _plain(given)
    depth = _depth(plain)
    nested = {0: [[plain]], 1: [plain] if len(counts) == 1 else [[label] for label in plain], 2: plain}.get(depth)
    if depth == 3 and len(plain) == 1:
        nested = plain[0]
    if nested is None or [len(own) if isinstance(own, list) else -1 for own in nested] != counts:
        raise TargetError(f"input_labels must have one label per point of input_points, got {brief(given)}")
    if any(label not in (0, 1) for own in nested for label in own):
        raise TargetError(
            f"a label in input_labels is 1 for a point that belongs to the mask and 0 for one that does not, "
            f"got {brief(given)}"
        )
    return [tuple(map(int, own)) for own in nested]


# Places --------------------------------------------------------------------------------------------------------------


def _check_inside(x: float, y: float, geometry: Geometry) -> None:
    height, width = geometry.image_size
    if not (0 <= x < width and 0 <= y < height):
        raise TargetError(f"the point ({x:g}, {y:g}) is outside the image, which is {width} wide and {height} high")
    if geometry.to_grid(x, y, geometry.model_size) is None:
        raise TargetError(f"the model does not see the point ({x:g}, {y:g}): its processor crops it away")


def _to_model(x: float, y: float, geometry: Geometry) -> tuple[float, float]:
    """A position whose first pixel begins at 0 in both: processors scale coordinates, not the centres of pixels."""
    column, row = geometry.to_model(x - 0.5, y - 0.5)
    return column + 0.5, row + 0.5


def _to_image(x: float, y: float, geometry: Geometry) -> tuple[float, float]:
    column, row = geometry.from_model(x - 0.5, y - 0.5)
    return column + 0.5, row + 0.5


def _box_to_model(box: Box, geometry: Geometry) -> Box:
    height, width = geometry.image_size
    x0, y0, x1, y1 = box
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if not (cut[0] < cut[2] and cut[1] < cut[3]) or not all(map(math.isfinite, box)):
        raise TargetError(f"the box {box} has no part in the image, which is {width} wide and {height} high")
    return _ordered(cut, geometry, _to_model)


def _ordered(box: Box, geometry: Geometry, place: Any) -> Box:
    """Both corners moved, and put in order again where the processor mirrors."""
    (xa, ya), (xb, yb) = place(box[0], box[1], geometry), place(box[2], box[3], geometry)
    return min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)
