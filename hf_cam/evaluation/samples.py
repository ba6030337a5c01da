"""The samples of an evaluation: images with their annotations, from a folder, a list or a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from hf_cam.errors import ImageError, OptionError
from hf_cam.images.reading import load_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

MASKS, BOXES = ("mask", "segmentation"), ("box", "bbox")


@dataclass(frozen=True, eq=False)
class Sample:
    """One image to evaluate on.

    Args:
        image: Anything that `hf_cam.explain` takes as an image.
        name: Its name in the records.
        mask: The region of the object, `[H, W]` booleans over the image.
        target: What to explain in it; None for what the model itself finds.
        text: Its prompts, for models that take text.
    """

    image: Any
    name: str
    mask: np.ndarray | None = None
    target: Any = None
    text: str | Sequence[str] | None = None


def samples_of(images: Any) -> list[Sample]:
    """Samples from a folder, a list or a dataset; see `evaluate`.

    Raises:
        ImageError: there are no images.
        OptionError: the dataset has no column "image", or a mask is not as large as its image.
    """
    if isinstance(images, str | Path) and Path(images).expanduser().is_dir():
        files = sorted(p for p in Path(images).expanduser().rglob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise ImageError(f"the folder {str(images)!r} holds no pictures ({', '.join(SUFFIXES)})")
        return [Sample(path, str(path)) for path in files]
    if isinstance(images, str | Path | Image.Image | np.ndarray | Tensor):
        images = [images]
    if not isinstance(images, Iterable):
        raise OptionError(f"images must be a folder, a list or a dataset, not {type(images).__name__}")
    found = [_sample(entry, index) for index, entry in enumerate(images)]
    if not found:
        raise ImageError("there is no image to evaluate on")
    return found


def _sample(entry: Any, index: int) -> Sample:
    if isinstance(entry, Sample):
        return entry
    if not isinstance(entry, Mapping):
        return Sample(entry, str(entry) if isinstance(entry, str | Path) else str(index))
    if "image" not in entry:
        raise OptionError(f"a dataset must have a column 'image'; this one has: {', '.join(map(str, entry))}")
    image = load_image(entry["image"])
    mask = next((entry[name] for name in MASKS if entry.get(name) is not None), None)
    box = next((entry[name] for name in BOXES if entry.get(name) is not None), None)
    inside = None
    if mask is not None:
        marked: np.ndarray = np.asarray(mask) > 0
        inside = marked.any(-1) if marked.ndim == 3 else marked
    elif box is not None:
        x0, y0, x1, y1 = (round(float(side)) for side in box)
        inside = np.zeros((image.height, image.width), bool)
        inside[max(y0, 0) : y1, max(x0, 0) : x1] = True
    if inside is not None and inside.shape != (image.height, image.width):
        raise OptionError(f"mask {index} is {inside.shape}, but its image is {(image.height, image.width)}")
    return Sample(image, str(index), inside, entry.get("target"), entry.get("text"))
