"""The pictures that the page shows, and the files that it offers."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from PIL import Image
from scratch import fresh_folder
from work import Found

from hf_cam import Explanation
from hf_cam.images.drawing import outlined

SHOWN = 640


def drawn(explanation: Explanation, alpha: float, colormap: str, longest: int = SHOWN) -> Image.Image:
    """The overlay as the page shows it: a small picture is enlarged before the colours are laid over it."""
    return _larger(explanation, longest).overlay(alpha, colormap)


def framed(explanation: Explanation, alpha: float, colormap: str) -> Image.Image:
    """The overlay with an outline round what the model saw, unless that is the whole picture."""
    overlay = drawn(explanation, alpha, colormap)
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
    for one in found.explanations:
        larger = _larger(one, SHOWN)
        picture = outlined(picture, larger.outlines, larger.mask)
    return picture


def _larger(explanation: Explanation, longest: int) -> Explanation:
    """The explanation on an enlarged picture, with its heatmap, box and mask."""
    factor = longest / max(explanation.image.size)
    if factor <= 1:
        return explanation
    image, box, mask = enlarged(explanation.image, longest), explanation.box, explanation.mask
    if mask is not None:
        mask = cv2.resize(mask.astype(np.uint8), image.size, interpolation=cv2.INTER_NEAREST).astype(bool)
    return dataclasses.replace(
        explanation,
        image=image,
        heatmap=np.clip(cv2.resize(explanation.heatmap, image.size, interpolation=cv2.INTER_CUBIC), 0, 1),
        box=None if box is None else tuple(factor * value for value in box),
        boxes=tuple(tuple(factor * value for value in one) for one in explanation.boxes),
        mask=mask,
    )


def enlarged(image: Image.Image, longest: int = SHOWN) -> Image.Image:
    """The picture with its longer side at least this long."""
    factor = longest / max(image.size)
    if factor <= 1:
        return image
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def thumbnail(explanation: Explanation, alpha: float, colormap: str, longest: int = 320) -> Image.Image:
    """A small overlay."""
    small = drawn(explanation, alpha, colormap, longest)
    small.thumbnail((longest, longest))
    return small


def saved(explanation: Explanation, alpha: float, colormap: str) -> tuple[str, str, str]:
    """The overlay, the heatmap as a picture, and the heatmap as numbers."""
    folder = fresh_folder()
    overlay = explanation.save(folder / "overlay.png", alpha, colormap)
    numbers = explanation.save(folder / "heatmap.npy")
    picture = folder / "heatmap.png"
    Image.fromarray(np.rint(explanation.heatmap * 255).astype(np.uint8)).save(picture)
    return str(overlay), str(picture), str(numbers)
