"""The samples of an evaluation: images with their annotations, from a folder, a list or a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from hf_cam.doors import blaming
from hf_cam.errors import ImageError, OptionError, brief, one_line
from hf_cam.images.reading import is_data_uri, load_image
from hf_cam.layouts import Size

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

LONGEST_NAME = 300
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
    if isinstance(images, str | Path) and is_folder(images):
        files = sorted(p for p in Path(images).expanduser().rglob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise ImageError(f"the folder {brief(str(images))} holds no pictures ({', '.join(SUFFIXES)})")
        return [Sample(path, str(path)) for path in files]
    if isinstance(images, str | Path | Image.Image | np.ndarray | Tensor):
        images = [images]
    if not isinstance(images, Iterable):
        raise OptionError(f"images must be a folder, a list or a dataset, not {type(images).__name__}")
    with blaming("reading the images", ImageError):
        found = [_sample(entry, index) for index, entry in enumerate(images)]
    if not found:
        raise ImageError("there is no image to evaluate on")
    return found


def is_folder(name: str | Path) -> bool:
    """Whether a text is the path of an existing folder."""
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):  # too long a name, as of a data URI
        return False


def _sample(entry: Any, index: int) -> Sample:
    if isinstance(entry, Sample):
        return entry
    if not isinstance(entry, Mapping):
        named = isinstance(entry, str | Path) and not is_data_uri(entry)
        return Sample(entry, one_line(str(entry), LONGEST_NAME) if named else str(index))
    if "image" not in entry:
        columns = ", ".join(map(str, entry))
        raise OptionError(f"a dataset must have a column 'image', but this one has: {columns}; rename one")
    image = load_image(entry["image"])
    inside = inside_of(entry, index, (image.height, image.width))
    return Sample(image, str(index), inside, entry.get("target"), entry.get("text"))


def inside_of(entry: Mapping[str, Any], name: int | str, size: Size) -> np.ndarray | None:
    """The object's pixels `[H, W]` from the mask or the box of a dataset's row; None if it has neither.

    Raises:
        OptionError: they are no mask or box, or not as large as the image.
    """
    mask = next((entry[key] for key in MASKS if entry.get(key) is not None), None)
    box = next((entry[key] for key in BOXES if entry.get(key) is not None), None)
    if mask is None and box is None:
        return None
    inside = _inside_mask(mask, name) if mask is not None else _inside_box(box, name, size)
    if inside.shape != size:
        raise OptionError(f"mask {name} is {inside.shape}, but its image is {size}")
    return inside


def _inside_mask(mask: Any, index: int | str) -> np.ndarray:
    try:
        values = _values(mask)
    except ValueError as error:  # lists of different lengths, such as polygons
        raise OptionError(f"mask {index} must be an array [H, W], nonzero inside, got {brief(mask)}") from error
    if values.dtype.kind not in "buif" or not np.isfinite(values).all():
        raise OptionError(f"mask {index} must hold finite numbers, nonzero inside, got {brief(mask)}")
    marked: np.ndarray = np.asarray(values > 0)
    return np.asarray(marked.any(-1)) if marked.ndim == 3 else marked


def _values(mask: Any) -> np.ndarray:
    """The numbers of a mask, `[H, W]` or `[H, W, C]`."""
    if isinstance(mask, Image.Image) and mask.format == "JPEG":  # whose zeros are not exactly zero
        return np.asarray(np.asarray(mask.convert("L")) >= 128)
    if isinstance(mask, Image.Image) and mask.mode in ("LA", "RGBA", "PA"):
        return np.asarray(mask.convert("RGBA"))[..., :3]  # not how opaque it is
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu()
        mask = mask.float() if mask.is_floating_point() else mask  # numpy has no bfloat16
    values = np.asarray(mask)
    return values[0] if values.ndim == 3 and len(values) == 1 < min(values.shape[1:]) else values


def _inside_box(box: Any, index: int | str, size: Size) -> np.ndarray:
    try:
        sides = [float(side) for side in box]
        x0, y0, x1, y1 = map(round, sides)
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(f"box {index} must be four finite numbers x0, y0, x1, y1, got {brief(box)}") from error
    inside = np.zeros(size, bool)
    inside[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    if not inside.any():
        raise OptionError(
            f"box {index} marks no pixel of its image of {size[1]} x {size[0]}: {brief(box)}; give x0, y0, x1, y1 in "
            "pixels"
        )
    if max(map(abs, sides)) <= 1 < max(size):
        raise OptionError(f"box {index} must be in pixels, not in shares of its image's sides, got {brief(box)}")
    return inside
