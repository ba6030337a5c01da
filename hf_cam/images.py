"""Any image that a user may hand over, as an upright RGB picture."""

from __future__ import annotations

import io
import urllib.request
import warnings
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hf_cam.errors import ImageError

MAX_DOWNLOAD = 100 * 2**20
TIMEOUT = 20.0


def load_image(source: Any) -> Image.Image:
    """An upright RGB image.

    Args:
        source: A path, an http(s) URL, a PIL image, or an array or tensor: `[H, W]`, `[H, W, C]` or `[C, H, W]` with 1,
            3 or 4 channels, uint8 or uint16 at full range or floats in [0, 1].

    The camera's orientation (EXIF) is applied. Greyscale, palette, CMYK and 16-bit pictures become 8-bit RGB; an alpha
    channel is dropped, as transformers' own pipelines do, so that the model sees here what it sees there.

    Raises:
        ImageError: there is no such file, it cannot be fetched, is no picture, is cut off, or is too large to open.
    """
    if isinstance(source, Image.Image):
        return _rgb(source, "the image")
    if isinstance(source, np.ndarray | Tensor):
        return _from_array(source.detach().cpu().numpy() if isinstance(source, Tensor) else source)
    if isinstance(source, str) and urlsplit(source).scheme in ("http", "https"):
        return _open(io.BytesIO(_fetch(source)), source)
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.exists():
            raise ImageError(f"there is no file {str(source)!r}")
        if not path.is_file():
            raise ImageError(f"{str(source)!r} is not a file")
        return _open(path, str(source))
    raise ImageError(f"an image is a path, a URL, a PIL image, an array or a tensor, not {type(source).__name__}")


def _open(file: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return _rgb(image, repr(name))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name!r} is too large to open safely: {error}") from error
    except UnidentifiedImageError as error:
        size = len(file.getbuffer()) if isinstance(file, io.BytesIO) else file.stat().st_size
        raise ImageError(f"{name!r} is not an image" if size else f"{name!r} is an empty file") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise error if isinstance(error, ImageError) else ImageError(f"{name!r} cannot be read: {error}") from error


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width == 0 or image.height == 0:
        raise ImageError(f"{name} has no pixels")
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):
            upright = Image.fromarray(_eight_bit(np.asarray(upright), wide=upright.mode))
        return upright.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ImageError(f"{name} is damaged or cut off: {error}") from error


def _eight_bit(values: np.ndarray, wide: str) -> np.ndarray:
    """Grey values of a 16-bit, 32-bit or float picture as uint8 (Pillow's own conversion clips them at 255)."""
    top = 1.0 if wide == "F" and values.max(initial=0) <= 1 else 65535.0 if values.max(initial=0) > 255 else 255.0
    return np.clip(np.rint(values.astype(np.float64) * (255 / top)), 0, 255).astype(np.uint8)


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if 0 in shape or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(f"an image array is [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels, got {shape}")
    if array.dtype == np.uint16:
        array = array / 65535.0
    elif array.dtype == bool:
        array = array.astype(np.float32)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ImageError(f"a float image lies in [0, 1], got values from {array.min():.3g} to {array.max():.3g}")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 255:
            raise ImageError(f"an integer image lies in [0, 255], got values from {array.min()} to {array.max()}")
        array = array.astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _fetch(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "hf-cam"})  # noqa: S310  (http and https only)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310
            body: bytes = response.read(MAX_DOWNLOAD + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise ImageError(f"{url!r} cannot be fetched: {error}") from error
    if len(body) > MAX_DOWNLOAD:
        raise ImageError(f"{url!r} is larger than {MAX_DOWNLOAD >> 20} MB")
    return body
