"""What a public page refuses, each with a sentence: strangers upload anything and type anything."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image

from hf_cam import load_image
from hf_cam.errors import HFCamError

MAX_BYTES = 10 * 2**20
MAX_PIXELS = 50_000_000
MAX_SIDE = 1024
MAX_RATIO = 32
"""Of the sides: processors enlarge the shorter one to what their model reads."""
MAX_PROMPTS = 16
MAX_LETTERS = 200
MAX_FOUND = 10
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class Refused(HFCamError, ValueError):
    """A visitor's input that this page does not take."""


def read_picture(path: str | None) -> tuple[Image.Image, float]:
    """An uploaded picture, upright and in RGB, at most `MAX_SIDE` on its longer side, and the factor it was shrunk by.

    Raises:
        Refused, ImageError: it is too large, damaged, or no picture.
    """
    if not path:
        raise Refused("Choose a picture first: upload, paste or photograph one, or take an example.")
    size = Path(path).stat().st_size
    if size > MAX_BYTES:
        raise Refused(f"The file has {size / 2**20:.0f} MB; this page takes {MAX_BYTES >> 20} MB.")
    width, height = _size(path)
    if width * height > MAX_PIXELS:
        megapixels = MAX_PIXELS // 1_000_000
        raise Refused(f"The picture has {width * height / 1e6:.0f} megapixels; this page takes {megapixels}.")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise Refused(f"The picture has {width} x {height} pixels, which is too narrow to see anything in.")
    try:
        picture = load_image(path)
    except HFCamError as error:
        raise Refused("The picture is damaged or cut off.") from error
    longest = max(picture.size)
    shrink_to_fit(picture)
    return picture, max(picture.size) / longest


def shrink_to_fit(picture: Image.Image) -> None:
    """In place, as the code snippet does it."""
    picture.thumbnail((MAX_SIDE, MAX_SIDE))


def _size(path: str) -> tuple[int, int]:
    """From the file's header alone: nothing is decoded before its size is known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return image.size
    except Image.DecompressionBombError as error:
        raise Refused(f"The picture is too large; this page takes {MAX_PIXELS // 1_000_000} megapixels.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise Refused("The file is no picture that this page reads (PNG, JPEG, WebP, GIF, BMP or TIFF).") from error


def read_prompts(text: str | None) -> tuple[str, ...]:
    """One prompt a line.

    Raises:
        Refused: they are too many or too long.
    """
    prompts = tuple(line.strip() for line in (text or "").splitlines() if line.strip())
    if len(prompts) > MAX_PROMPTS:
        raise Refused(f"There are {len(prompts)} prompts; this page takes {MAX_PROMPTS}, one a line.")
    for prompt in prompts:
        _check_length(prompt, "A prompt")
    return prompts


def read_target(text: str | None, scale: float) -> str | tuple[float, ...] | None:
    """A class index or label, or a pixel "x,y" or box "x0,y0,x1,y1" of the uploaded picture.

    Raises:
        Refused: it is too long.
    """
    text = (text or "").strip()
    _check_length(text, "The target")
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return text or None
    return tuple(scale * number for number in numbers) if len(numbers) in (2, 4) else text


def read_layers(text: str | None) -> tuple[str, ...]:
    """Dotted names, separated by commas.

    Raises:
        Refused: they are too long.
    """
    text = text or ""
    _check_length(text, "The list of layers")
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _check_length(text: str, what: str) -> None:
    if len(text) > MAX_LETTERS:
        raise Refused(f"{what} has {len(text)} letters; this page takes {MAX_LETTERS}.")
