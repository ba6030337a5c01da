"""Checks of what visitors upload and type: what a public page cannot accept is refused with a sentence."""

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
"""Of the longer side to the shorter: processors enlarge the shorter one to the size that their model reads."""
MAX_PROMPTS = 16
MAX_CHARACTERS = 200
MAX_FOUND = 10
MAX_IMAGES = 100
"""In an audit."""
MAX_ARCHIVE = 50 * 2**20
"""Of one upload: a zip of pictures; a single picture has `MAX_BYTES`."""
MAX_UNPACKED = 200 * 2**20
MAX_DIRECTORY = 2**20
"""Bytes of a zip's own list of its files."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class Refused(HFCamError, ValueError):
    """A visitor's input that this page does not accept."""


def read_picture(path: str | None) -> tuple[Image.Image, float]:
    """The uploaded picture, upright, in RGB and at most `MAX_SIDE` on its longer side, and the factor it was shrunk by.

    Raises:
        Refused: it is too large, damaged or not a picture.
    """
    if not path:
        raise Refused("Choose a picture first: upload, paste or photograph one, or pick an example.")
    size = Path(path).stat().st_size
    if size > MAX_BYTES:
        raise Refused(f"The file is {size / 2**20:.0f} MB; this page accepts up to {MAX_BYTES >> 20} MB.")
    width, height = _size(path)
    if width * height > MAX_PIXELS:
        megapixels = f"{width * height / 1e6:.0f} megapixels"
        raise Refused(f"The picture has {megapixels}; this page accepts up to {MAX_PIXELS // 1_000_000}.")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise Refused(f"The picture is {width} x {height} pixels, which is too narrow to show anything.")
    try:
        picture = load_image(path)
    except HFCamError as error:
        raise Refused("The picture is damaged or incomplete.") from error
    longest = max(picture.size)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))  # in place, as in the code snippet
    return picture, max(picture.size) / longest


def _size(path: str) -> tuple[int, int]:
    """Width and height, from the file's header alone: nothing is decoded before they are known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return image.size
    except Image.DecompressionBombError as error:
        most = MAX_PIXELS // 1_000_000
        raise Refused(f"The picture is too large; this page accepts up to {most} megapixels.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise Refused(
            "The file is not a picture that this page can read (PNG, JPEG, WebP, GIF, BMP or TIFF)."
        ) from error


def read_prompts(text: str | None) -> tuple[str, ...]:
    """One prompt per line.

    Raises:
        Refused: there are too many, or one is too long.
    """
    prompts = tuple(line.strip() for line in (text or "").splitlines() if line.strip())
    if len(prompts) > MAX_PROMPTS:
        raise Refused(f"There are {len(prompts)} prompts; this page accepts up to {MAX_PROMPTS}, one per line.")
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


def read_question(text: str | None) -> str:
    """A question about a picture.

    Raises:
        Refused: there is none, or it is too long.
    """
    text = " ".join((text or "").split())
    if not text:
        raise Refused("Type a question about the picture.")
    _check_length(text, "The question")
    return text


def read_words(text: str | None) -> str | tuple[str, str] | None:
    """Which words of an answer to explain: a word or regular expression, or "this, not that"; None for all.

    Raises:
        Refused: the text is too long.
    """
    text = (text or "").strip()
    _check_length(text, "The word")
    one, contrasted, other = text.partition(", not ")
    return (one.strip(), other.strip()) if contrasted else text or None


def read_names(text: str | None) -> dict[str, str]:
    """The model's names of classes that the data calls otherwise, one `folder = class` per line.

    Raises:
        Refused: a line has no "=", or there are too many.
    """
    lines = [line for line in (text or "").splitlines() if line.strip()]
    if len(lines) > MAX_IMAGES:
        raise Refused(f"There are {len(lines)} names of classes; this page accepts up to {MAX_IMAGES}.")
    for line in lines:
        _check_length(line, "A name")
        if not all(part.strip() for part in line.partition("=")):
            raise Refused(f"Names are written as folder = class, one per line, not {line.strip()[:60]!r}.")
    return {folder.strip(): name.strip() for folder, _, name in (line.partition("=") for line in lines)}


def read_layers(text: str | None) -> tuple[str, ...]:
    """Dotted module names, separated by commas.

    Raises:
        Refused: the list is too long.
    """
    text = text or ""
    _check_length(text, "The list of layers")
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _check_length(text: str, what: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise Refused(f"{what} has {len(text)} characters; this page accepts up to {MAX_CHARACTERS}.")
