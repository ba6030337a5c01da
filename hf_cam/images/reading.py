"""Read any image that a user may pass, as an upright RGB picture."""

from __future__ import annotations

import base64
import io
import re
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote_to_bytes

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hf_cam.doors import PASSING, door, unreadable
from hf_cam.errors import ImageError, brief, reason
from hf_cam.threads import unwarned

MAX_DOWNLOAD = 100 * 2**20
TIMEOUT = 20.0
SHORTEST_PICTURE = 32
"""Letters of the shortest text that is taken for a picture in base64."""
OTHER_CHANNELS = "for pictures of other channels, pass tensors [B, C, H, W] to hf_cam.GradCAM(model)(pixel_values)"
Read = TypeVar("Read")


@door(ImageError)
def load_image(source: Any) -> Image.Image:
    """The image at a source, upright and in RGB.

    The camera's orientation (EXIF) is applied. Greyscale, palette, CMYK and 16-bit pictures become 8-bit RGB; an alpha
    channel is dropped, as in transformers' own pipelines, so that the model sees the same pixels.

    Args:
        source: A path, an http(s) URL, a data URI or the picture's file in base64, a PIL image, or an array or tensor:
            `[H, W]`, `[H, W, C]` or `[C, H, W]` with 1, 3 or 4 channels, uint8 or uint16 at full range or floats in
            [0, 1].

    Raises:
        ImageError: the image cannot be found or fetched, is not an image, is damaged, or is too large to open.
    """
    if isinstance(source, Image.Image):
        return _rgb(source, "the image")
    if isinstance(source, np.ndarray | Tensor):
        return _from_array(_numpy(source) if isinstance(source, Tensor) else source)
    if isinstance(source, str | Path):
        name, content = brief(str(source)), carried(source)
        return opened(
            existing(source) if content is None else io.BytesIO(content), str(source), lambda image: _rgb(image, name)
        )
    raise ImageError(f"an image must be a path, a URL, a PIL image, an array or a tensor, not {type(source).__name__}")


def carried(source: Any) -> bytes | None:
    """The content of a file that a text names by URL or holds itself, as a data URI or in base64; None if neither.

    >>> carried("data:image/gif;base64,R0lGODlhAQABAAAAACw=")[:6]
    b'GIF89a'

    Raises:
        ImageError: the URL cannot be fetched, or the data URI is damaged.
    """
    if is_url(source):
        return fetch(source)
    if is_data_uri(source):
        return _of_data_uri(source)
    if isinstance(source, str) and len(source) >= SHORTEST_PICTURE and not is_file(source):
        return _of_base64(source)
    return None


def is_url(source: Any) -> bool:
    """Whether a source is an http(s) URL."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def is_data_uri(source: Any) -> bool:
    """Whether a source is a data URI, `data:image/png;base64,...`."""
    return isinstance(source, str) and source[:5].lower() == "data:"


def is_file(name: str) -> bool:
    """Whether a text is the path of an existing file."""
    try:
        return Path(name).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def _of_data_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise ImageError(f"{brief(uri)} is no data URI, which has the form data:image/png;base64,...")
    if not head.lower().rstrip().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return _from_base64(body if "%" not in body else unquote_to_bytes(body).decode("ascii"))
    except ValueError as error:
        raise ImageError(f"the data URI {brief(uri)} is damaged: {error}") from error


def _of_base64(text: str) -> bytes | None:
    """The content of a picture's file in base64; None if the text is something else."""
    try:
        content = _from_base64(text)
        with Image.open(io.BytesIO(content)):
            return content
    except (UnidentifiedImageError, ValueError):
        return None


def _from_base64(text: str) -> bytes:
    """Both alphabets of base64, also broken into lines, with or without the padding."""
    letters = re.sub(r"\s", "", text).rstrip("=").translate(_URL_SAFE)
    return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)


_URL_SAFE = str.maketrans("-_", "+/")


def existing(source: str | Path) -> Path:
    """The path of an existing file.

    Raises:
        ImageError: it does not exist, is not a file, or may not be read.
    """
    try:
        path = Path(source).expanduser()
        if not path.exists():
            raise ImageError(f"there is no file {brief(str(source))}")
        if not path.is_file():
            raise ImageError(f"{brief(str(source))} is not a file" + "; pass its pictures, e.g. *.jpg" * path.is_dir())
    except ImageError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, a closed folder, no such ~user, a surrogate
        raise ImageError(f"{brief(str(source))} cannot be read as a file: {reason(error)}") from error
    return path


def opened(file: Path | io.BytesIO, name: str, read: Callable[[Image.Image], Read]) -> Read:
    """The result of `read` on a picture file, which is open meanwhile.

    Raises:
        ImageError: the file is not a picture, is damaged, or is too large to open.
    """
    try:
        with unwarned():  # Pillow warns above 89 megapixels, which cameras reach, and refuses above twice that
            image = Image.open(file)
        with image:
            return read(image)
    except PASSING:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{brief(name)} is too large to open safely: {error}") from error
    except UnidentifiedImageError as error:
        size = len(file.getbuffer()) if isinstance(file, io.BytesIO) else file.stat().st_size
        raise ImageError(f"{brief(name)} is not an image" if size else f"{brief(name)} is an empty file") from error
    except Exception as error:
        raise ImageError(f"{brief(name)} cannot be read: {reason(error)}") from error


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
    except PASSING:
        raise
    except Exception as error:  # each format's decoder has its own
        raise ImageError(f"{name} is damaged or cut off: {reason(error)}") from error


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
    if problem := unreadable(tensor):
        raise ImageError(f"an image tensor must hold its pixels, but this one {problem}")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16
    return array


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if 0 in shape or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(
            f"an image array must be [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels, got {shape}; "
            + OTHER_CHANNELS
        )
    if array.dtype.kind not in "buif":
        raise ImageError(f"an image array must hold numbers, not {array.dtype}; pass uint8, or floats in [0, 1]")
    if array.dtype == np.uint16:
        array = array / 65535.0
    elif array.dtype == bool:
        array = array.astype(np.float32)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ImageError(
                f"a float image must lie in [0, 1], got values from {array.min():.3g} to {array.max():.3g}; pass the "
                "image before the processor normalizes it, or the tensor to hf_cam.GradCAM(model)(pixel_values)"
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
        raise ImageError(f"{brief(url)} cannot be fetched: {error}") from error
    if len(body) > MAX_DOWNLOAD:
        raise ImageError(f"{brief(url)} is larger than {MAX_DOWNLOAD >> 20} MB")
    return body
