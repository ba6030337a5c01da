r"""Text in pictures, in any script: what Pillow's own font lacks is drawn in another one, or written as `\u72ac`."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from hf_cam.errors import one_line

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = str | tuple[int, ...]

SAMPLE, REGULAR = 24, 400
"""The size at which fonts are asked for a letter, and the weight of OpenCV's."""
NOWHERE = "\uffff"
"""No letter, which fonts draw as they draw one that they lack."""
INSTALLED = (
    "NotoSans-Regular.ttf", "DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSansDevanagari-Regular.ttf",
    "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansThai-Regular.ttf", "NotoEmoji-Regular.ttf",
    "wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "unifont.otf",
    "Arial Unicode.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "Kohinoor.ttc",
    "arial.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "Nirmala.ttc", "Nirmala.ttf", "seguisym.ttf", "seguiemj.ttf",
)  # fmt: skip
"""Files that Linux, macOS or Windows may have, which Pillow looks for in the folders of the system."""
PATIENCE = 5
"""Seconds that fontconfig has."""


@dataclass(frozen=True)
class FileFace:
    """A font that Pillow reads, in all sizes.

    Args:
        file: Its path or name; None for Pillow's own.
    """

    file: str | None = None

    def has(self, letter: str) -> bool:
        """Whether it is drawn unlike a letter that no font has; without Raqm, which puts a ring below a lone mark."""
        font = _font(self.file, SAMPLE, ImageFont.Layout.BASIC)
        return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask(NOWHERE))

    def length(self, text: str, size: int) -> float:
        """The width of a text in pixels."""
        return _font(self.file, size).getlength(text)

    def draw(self, page: ImageDraw.ImageDraw, start: tuple[float, float], text: str, size: int, colour: Colour) -> None:
        """Draw a text that begins at a point of its baseline; without Raqm, Pillow does not turn it itself."""
        shown = text if features.check("raqm") else from_the_left(text)
        page.text(start, shown, fill=colour, font=_font(self.file, size), anchor="ls")


@dataclass(frozen=True)
class EmbeddedFace:
    """The font within OpenCV 5, which has Latin, Greek, Cyrillic, Chinese, Japanese, Korean, Hebrew and Arabic."""

    def has(self, letter: str) -> bool:
        """Whether it is not drawn as the question mark that stands for missing ones."""
        return letter.isspace() or not np.array_equal(_embedded(letter, SAMPLE), _embedded("?", SAMPLE))

    def length(self, text: str, size: int) -> float:
        """The width of a text in pixels."""
        left, _, width, _ = _extent(text, size)
        return float(left + width)

    def draw(self, page: ImageDraw.ImageDraw, start: tuple[float, float], text: str, size: int, colour: Colour) -> None:
        """Draw a text that begins at a point of its baseline."""
        ink = Image.fromarray(_embedded(from_the_left(text), size))
        page.bitmap((round(start[0]), round(start[1]) - 2 * size), ink, fill=colour)


Face = FileFace | EmbeddedFace
OWN = FileFace()


def length(text: str, size: int) -> float:
    """The width of a line in pixels.

    >>> length("cup", 16) == ImageFont.load_default(size=16).getlength("cup")
    True
    """
    return sum(face.length(part, size) for face, part in runs(text))


def write(
    page: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, colour: Colour, anchor: str = "la"
) -> None:
    """Write a line.

    Args:
        page: Where to draw.
        place: The point that the anchor names.
        text: The line.
        size: In pixels.
        colour: Of the letters.
        anchor: As in Pillow: "l" or "m" (left or middle), then "a" or "m" (top or middle).
    """
    parts = runs(text)
    if [face for face, _ in parts] == [OWN]:
        page.text(place, parts[0][1], fill=colour, font=_font(None, size), anchor=anchor)
        return
    ascent, descent = _font(None, size).getmetrics()  # type: ignore[union-attr]
    left = place[0] - (length(text, size) / 2 if anchor[0] == "m" else 0)
    baseline = place[1] + (ascent if anchor[1] == "a" else (ascent - descent) / 2)
    for face, part in parts:
        face.draw(page, (left, baseline), part, size, colour)
        left += face.length(part, size)


def shortened(text: str, size: int, width: float) -> str:
    """A text in one line, without its end where it is wider than `width` pixels.

    >>> shortened("a very long label", 16, 60)
    'a very...'
    """
    text = one_line(text)
    if length(text, size) <= width:
        return text
    while text and length(f"{text}...", size) > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def wrapped(text: str, size: int, width: float) -> list[str]:
    """The lines of a text, broken at spaces, or anywhere within what is too wide for a line; at least one.

    >>> wrapped("a very long label", 16, 60)
    ['a very', 'long', 'label']
    """
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if length(joined, size) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            lines += [""] if lines[-1] and length(lines[-1] + letter, size) > width else []
            lines[-1] += letter
    return lines


def runs(text: str) -> list[tuple[Face, str]]:
    r"""A line as parts in one font each, in the order in which they stand on the page.

    A word is in one font if one has all its letters. Marks without a picture, such as joiners, are left out.

    >>> runs("two cups")
    [(FileFace(file=None), 'two cups')]
    >>> [part for face, part in runs("cup \U0010ffff")]
    ['cup \\U0010ffff']
    """
    if text.isascii() and text.isprintable():
        return [(OWN, text)]
    parts: list[tuple[Face, str]] = []
    for word in re.findall(r"\s+|\S+", unicodedata.normalize("NFC", text)):
        for face, part in [(OWN, " " * len(word))] if word.isspace() else _faces(_visible(word)):
            parts.append((face, part))
    return _in_order(_joined(parts))


def from_the_left(text: str) -> str:
    """A text that is read from the right, letter by letter from the left; any other as it is.

    >>> from_the_left("\u05d0\u05d1") == "\u05d1\u05d0", from_the_left("cup")
    (True, 'cup')
    """
    if not _is_read_from_the_right(text):
        return text
    letters: list[str] = []
    for letter in text:
        if letters and unicodedata.combining(letter):
            letters[-1] += letter
        else:
            letters.append(letter)
    return "".join(reversed(letters))


def _visible(word: str) -> str:
    """A word without characters that have no picture: joiners, marks of direction and selectors of variants."""
    return "".join(one for one in word if unicodedata.category(one) != "Cf" and not "\ufe00" <= one <= "\ufe0f")


def _faces(word: str) -> list[tuple[Face, str]]:
    """A word in one font, or letter by letter in several."""
    for face in {_face_of(letter): None for letter in word}:
        if face is not None and all(_has(face, letter) for letter in word):
            return [(face, word)]
    return [(face, letter) if (face := _face_of(letter)) else (OWN, _spelled(letter)) for letter in word]


def _spelled(letter: str) -> str:
    r"""A letter in letters that Pillow's font has: what it is a form of, or its number.

    >>> _spelled("\ufb01"), _spelled("\u72ac")
    ('fi', '\\u72ac')
    """
    plain = unicodedata.normalize("NFKC", letter)
    return plain if plain.isascii() and plain.isprintable() else letter.encode("unicode_escape").decode()


def _joined(parts: list[tuple[Face, str]]) -> list[tuple[Face, str]]:
    """Neighbours in one font as one part, with the spaces between them."""
    faces = [face for face, _ in parts]
    for at in range(1, len(parts) - 1):
        if parts[at][1].isspace() and faces[at - 1] == faces[at + 1]:
            faces[at] = faces[at - 1]
    pairs = zip(faces, (part for _, part in parts), strict=True)
    return [(face, "".join(part for _, part in group)) for face, group in groupby(pairs, key=lambda pair: pair[0])]


def _in_order(parts: list[tuple[Face, str]]) -> list[tuple[Face, str]]:
    """The parts from the left; the last comes first where the line begins with a letter that is read from the right."""
    return parts[::-1] if _is_read_from_the_right("".join(part for _, part in parts)) else parts


def _is_read_from_the_right(text: str) -> bool:
    """Whether the first letter that has a direction is one of Hebrew, Arabic and the like."""
    kinds = (unicodedata.bidirectional(letter) for letter in text)
    return next((kind for kind in kinds if kind in ("L", "R", "AL")), "L") != "L"


# Which font has a letter.


@cache
def _face_of(letter: str) -> Face | None:
    """The first font that has a letter; None if none has it."""
    return next((face for face in _candidates(letter) if _has(face, letter)), None)


@cache
def _has(face: Face, letter: str) -> bool:
    return face.has(letter)


def _candidates(letter: str) -> Iterator[Face]:
    """Pillow's font, OpenCV's, matplotlib's, those of the system by their names, and what fontconfig names.

    OpenCV does not join the letters of Arabic, so that its font comes last for them.
    """
    yield OWN
    embedded = [EmbeddedFace()] if hasattr(cv2, "FontFace") else []
    joins = unicodedata.bidirectional(letter) == "AL"
    yield from () if joins else embedded
    for file in (*_of_matplotlib(), *INSTALLED):
        if _readable(file):
            yield FileFace(file)
    yield from (FileFace(file) for file in _named_by_fontconfig(letter) if _readable(file))
    yield from embedded if joins else ()


def _of_matplotlib() -> list[str]:
    """The font that comes with matplotlib, if that is installed."""
    found = importlib.util.find_spec("matplotlib")
    folders = [] if found is None else found.submodule_search_locations or []
    return [str(Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")) for folder in folders]


def _named_by_fontconfig(letter: str) -> list[str]:
    """Files of fonts that have a letter, regular ones without serifs first."""
    command = shutil.which("fc-list")
    if command is None:
        return []
    asked = [command, f":charset={ord(letter):x}:scalable=true", "--format=%{style}\t%{file}\n"]
    with suppress(OSError, subprocess.SubprocessError, UnicodeDecodeError):
        answer = subprocess.run(  # noqa: S603 - a fixed command and the number of a letter
            asked, capture_output=True, text=True, timeout=PATIENCE, check=True
        ).stdout
        lines = sorted(
            set(answer.splitlines()), key=lambda line: ("Regular" not in line, "Sans" not in line, len(line), line)
        )
        return [line.partition("\t")[2] for line in lines if line]
    return []


@cache
def _readable(file: str) -> bool:
    """Whether Pillow finds a font and can draw it in any size."""
    try:
        _font(file, SAMPLE).getmask("a")
    except (OSError, ValueError):
        return False
    return True


@cache
def _font(file: str | None, size: int, layout: ImageFont.Layout | None = None) -> Font:
    return ImageFont.load_default(size=size) if file is None else ImageFont.truetype(file, size, layout_engine=layout)


# OpenCV's font; its state is not made for several threads.

_ONE_AT_A_TIME = Lock()


def _extent(text: str, size: int) -> Any:
    """Left edge, top, width and height of a text that begins at (0, 0)."""
    face: Any = cv2.FontFace("sans")  # type: ignore[attr-defined, unused-ignore]
    with _ONE_AT_A_TIME:
        return cv2.getTextSize((1, 1), text, (0, 0), face, size, REGULAR)  # type: ignore[call-overload, unused-ignore]


def _embedded(text: str, size: int) -> np.ndarray:
    """The ink of a text, `[3 size, width]` bytes, whose baseline is at the row `2 size`."""
    left, _, width, _ = _extent(text, size)
    ink = np.zeros((3 * size, max(1, left + width + size)), np.uint8)
    face: Any = cv2.FontFace("sans")  # type: ignore[attr-defined, unused-ignore]
    with _ONE_AT_A_TIME:
        cv2.putText(ink, text, (0, 2 * size), 255, face, size, REGULAR)  # type: ignore[call-overload, unused-ignore]
    return ink
