"""The pictures that the page shows, and the files that it offers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image
from scratch import fresh_folder
from work import Found

from hf_cam import Explanation
from hf_cam.images.drawing import outlined

SHOWN = 640
THUMBNAIL = 240


def drawn(explanation: Explanation, alpha: float, colormap: str, longest: int = SHOWN) -> Image.Image:
    """The overlay as the page shows it: a small picture is enlarged before the colours are laid over it."""
    return _scaled(explanation, max(1.0, _factor(explanation.image, longest))).overlay(alpha, colormap)


def framed(explanation: Explanation, overlay: Image.Image) -> Image.Image:
    """The overlay, of any size, with an outline round what the model saw, unless that is the whole picture."""
    seen, factor = seen_box(explanation), overlay.width / explanation.image.width
    return overlay if seen is None else outlined(overlay, [[factor * side for side in seen]], None)


def seen_box(explanation: Explanation) -> tuple[int, int, int, int] | None:
    """The part of the picture that the model saw, as `(x0, y0, x1, y1)` in pixels; None if it saw all of it."""
    visible = explanation.grid_map.geometry.visible()
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    if visible.all() or not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def marked(found: Found) -> Image.Image:
    """The picture with what was found outlined, as the page shows it."""
    picture = enlarged(found.current.image)
    factor = picture.width / found.current.image.width
    for one in found.explanations:
        picture = outlined(picture, _boxes(one.outlines, factor), _mask(one, picture))
    return picture


def _scaled(explanation: Explanation, factor: float) -> Explanation:
    """The explanation on a larger or smaller picture, with its heatmap, boxes and mask."""
    if factor == 1:
        return explanation
    image = _resized(explanation.image, factor)
    heatmap = cv2.resize(explanation.heatmap, image.size, interpolation=_way(factor))
    return dataclasses.replace(
        explanation,
        image=image,
        heatmap=np.clip(heatmap, -1 if explanation.signed else 0, 1),
        box=None if explanation.box is None else _boxes([explanation.box], factor)[0],
        boxes=tuple(_boxes(explanation.boxes, factor)),
        mask=_mask(explanation, image),
    )


def _boxes(boxes: Sequence[Sequence[float]], factor: float) -> list[Any]:
    return [tuple(factor * side for side in box) for box in boxes]


def _mask(explanation: Explanation, image: Image.Image) -> np.ndarray | None:
    """The mask, as large as the picture."""
    if explanation.mask is None:
        return None
    return cv2.resize(explanation.mask.astype(np.uint8), image.size, interpolation=cv2.INTER_NEAREST).astype(bool)


def _factor(image: Image.Image, longest: int) -> float:
    return longest / max(image.size)


def enlarged(image: Image.Image, longest: int = SHOWN) -> Image.Image:
    """The picture with its longer side at least this long."""
    return _resized(image, max(1.0, _factor(image, longest)))


def _resized(image: Image.Image, factor: float) -> Image.Image:
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    if size == image.size:
        return image
    return Image.fromarray(cv2.resize(np.asarray(image), size, interpolation=_way(factor)))


def _way(factor: float) -> int:
    return cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA


def thumbnail(explanation: Explanation, alpha: float, colormap: str, longest: int = THUMBNAIL) -> Image.Image:
    """A small overlay."""
    return _scaled(explanation, _factor(explanation.image, longest)).overlay(alpha, colormap)


def saved(explanation: Explanation, own: Image.Image) -> tuple[str, str, str]:
    """The overlay, the heatmap as a picture, and the heatmap as numbers; written quickly rather than small.

    Args:
        explanation: The explanation.
        own: Its overlay, as large as the picture.
    """
    folder = fresh_folder()
    heatmap = explanation.heatmap
    overlay, picture, numbers = folder / "overlay.png", folder / "heatmap.png", folder / "heatmap.npy"
    own.save(overlay, compress_level=1)
    Image.fromarray(np.rint(heatmap * 255).astype(np.uint8)).save(picture, compress_level=1)
    np.save(numbers, heatmap)
    return str(overlay), str(picture), str(numbers)
