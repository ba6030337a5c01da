"""Read any image that a user may pass, as an upright RGB picture."""

from __future__ import annotations

import io
import urllib.request
import warnings
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hf_cam.errors import ImageError

MAX_DOWNLOAD = 100 * 2**20
TIMEOUT = 20.0
Read = TypeVar("Read")


def load_image(source: Any) -> Image.Image:
    """The image at a source, upright and in RGB.

    The camera's orientation (EXIF) is applied. Greyscale, palette, CMYK and 16-bit pictures become 8-bit RGB; an alpha
    channel is dropped, as in transformers' own pipelines, so that the model sees the same pixels.

    Args:
        source: A path, an http(s) URL, a PIL image, or an array or tensor: `[H, W]`, `[H, W, C]` or `[C, H, W]` with 1,
            3 or 4 channels, uint8 or uint16 at full range or floats in [0, 1].

    Raises:
        ImageError: the image cannot be found or fetched, is not an image, is damaged, or is too large to open.
    """
    if isinstance(source, Image.Image):
        return _rgb(source, "the image")
    if isinstance(source, np.ndarray | Tensor):
        return _from_array(_numpy(source) if isinstance(source, Tensor) else source)
    if is_url(source):
        return opened(io.BytesIO(fetch(source)), source, lambda image: _rgb(image, repr(source)))
    if isinstance(source, str | Path):
        return opened(existing(source), str(source), lambda image: _rgb(image, repr(str(source))))
    raise ImageError(f"an image must be a path, a URL, a PIL image, an array or a tensor, not {type(source).__name__}")


def is_url(source: Any) -> bool:
    """Whether a source is an http(s) URL."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def existing(source: str | Path) -> Path:
    """The path of an existing file.

    Raises:
        ImageError: it does not exist, is not a file, or may not be read.
    """
    try:
        path = Path(source).expanduser()
        if not path.exists():
            raise ImageError(f"there is no file {str(source)!r}")
        if not path.is_file():
            raise ImageError(f"{str(source)!r} is not a file" + "; pass its pictures, e.g. *.jpg" * path.is_dir())
    except (OSError, RuntimeError) as error:  # the name is too long, the folder may not be entered, no such ~user
        raise ImageError(f"{str(source)[:200]!r} cannot be read: {error}") from error
    return path


def opened(file: Path | io.BytesIO, name: str, read: Callable[[Image.Image], Read]) -> Read:
    """The result of `read` on a picture file, which is open meanwhile.

    Raises:
        ImageError: the file is not a picture, is damaged, or is too large to open.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns above 89 megapixels, which cameras reach, and refuses above twice that.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return read(image)
    except Image.DecompressionBombError as error:
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
            upright = Image.fromarray(_eight_bit(np.asarray(upright), upright.mode, name))
        if upright.mode == "P" and "transparency" in upright.info:
            upright = upright.convert("RGBA")  # Pillow warns if converted directly to RGB
        return upright.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ImageError(f"{name} is damaged or cut off: {error}") from error
    except ValueError as error:
        raise error if isinstance(error, ImageError) else ImageError(f"{name} cannot be read: {error}") from error


def _eight_bit(values: np.ndarray, mode: str, name: str) -> np.ndarray:
    """Grey values of a 16-bit, 32-bit or float picture as uint8 (Pillow's own conversion clips them at 255).

    Only 16-bit modes determine the range; else the highest value decides between [0, 1], [0, 255] and [0, 65535].
    """
    if not np.isfinite(values).all():
        raise ImageError(f"{name} has values that are not finite")
    highest = values.max(initial=0)
    top = 65535 if mode.startswith("I;16") or highest > 255 else 1 if mode == "F" and highest <= 1 else 255
    return np.clip(np.rint(values.astype(np.float64) * (255 / top)), 0, 255).astype(np.uint8)


def _numpy(tensor: Tensor) -> np.ndarray:
    if tensor.is_meta:
        raise ImageError("a tensor on the meta device holds no image")
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16
    return array


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if 0 in shape or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(f"an image array must be [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels, got {shape}")
    if array.dtype.kind not in "buif":
        raise ImageError(f"an image array must hold numbers, not {array.dtype}")
    if array.dtype == np.uint16:
        array = array / 65535.0
    elif array.dtype == bool:
        array = array.astype(np.float32)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ImageError(
                f"a float image must lie in [0, 1], got values from {array.min():.3g} to {array.max():.3g}"
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 255:
            raise ImageError(f"an integer image must lie in [0, 255], got values from {array.min()} to {array.max()}")
        array = array.astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def fetch(url: str) -> bytes:
    """The content at a URL.

    Raises:
        ImageError: it cannot be fetched, or is too large.
    """
    try:
        written = quote(url, safe="%/:=&?~#+!$,;'@()*[]")  # as browsers do with spaces and non-ASCII letters
        request = urllib.request.Request(written, headers={"User-Agent": "hf-cam"})  # noqa: S310  (http and https only)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310
            body: bytes = response.read(MAX_DOWNLOAD + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise ImageError(f"{url!r} cannot be fetched: {error}") from error
    if len(body) > MAX_DOWNLOAD:
        raise ImageError(f"{url!r} is larger than {MAX_DOWNLOAD >> 20} MB")
    return body
