"""Text in pictures: every letter is drawn by a font that has it, or written as its number; never as an empty box."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

import hf_cam
from hf_cam.compat.pytorch_grad_cam.utils.image import show_factorization_on_image
from hf_cam.explanation import Explanation
from hf_cam.factorization import _with_legend
from hf_cam.images import lettering
from hf_cam.images.lettering import OWN, EmbeddedFace, FileFace, from_the_left, length, runs, shortened, wrapped, write
from hf_cam.words.answer import Answer
from pictures import noise

CACHES = (lettering._face_of, lettering._has, lettering._readable)
SCRIPTS = {
    "German": "Straße",
    "Polish": "Łódź",
    "decomposed": "e\u0301",
    "Greek": "γάτα",
    "Cyrillic": "кошка",
    "Chinese": "犬と猫",
    "Korean": "고양이",
    "Hebrew": "כלב",
    "Arabic": "كلب",
    "Devanagari": "कुत्ता",
    "Thai": "หมา",
    "emoji": "😀",
    "no letter": "\U0010ffff",
    "private": "\ue000",
}
with_opencv_5 = pytest.mark.skipif(not hasattr(cv2, "FontFace"), reason="OpenCV has a font from version 5 on")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No font but Pillow's own."""
    monkeypatch.delattr(cv2, "FontFace", raising=False)
    monkeypatch.setattr(lettering, "INSTALLED", ())
    monkeypatch.setattr(lettering, "_of_matplotlib", list)
    monkeypatch.setattr(lettering, "_named_by_fontconfig", lambda letter: [])
    for one in CACHES:
        one.cache_clear()
    yield monkeypatch
    for one in CACHES:
        one.cache_clear()


def drawn(text: str, size: int = 20) -> np.ndarray:
    page = Image.new("L", (400, 40), 255)
    write(ImageDraw.Draw(page), (4, 4), text, size, 0)
    return np.asarray(page)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_letter_is_drawn_by_a_font_that_has_it(script: str) -> None:
    for face, part in runs(f"a cup, {SCRIPTS[script]}"):
        assert all(face.has(letter) for letter in part), part


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_any_other_font_a_letter_is_its_number(script: str, alone: Any) -> None:
    [(face, text)] = runs(SCRIPTS[script])
    assert face is OWN
    assert text.isascii()
    assert text.encode().decode("unicode_escape") == ("é" if script == "decomposed" else SCRIPTS[script])
    assert not np.array_equal(drawn(SCRIPTS[script]), drawn("\uffff"))


@pytest.mark.parametrize(
    ("given", "expected"), [("ﬁre", "fire"), ("\uff21\uff22", "AB"), ("a\u00a0b", "a b"), ("①", "1")]
)
def test_a_form_of_plain_letters_is_written_in_these(given: str, expected: str, alone: Any) -> None:
    alone.setattr(FileFace, "has", lambda self, letter: letter.isascii())
    assert "".join(part for _, part in runs(given)) == expected


def test_what_has_no_picture_is_left_out() -> None:
    assert "".join(part for _, part in runs("a\u200bb\ufe0f \u202ec\u200d")) == "ab c"


def a_font(path: Path, letter: str) -> str:
    """A font with one letter, a full square, and an empty box for all others."""
    glyphs = {}
    for name, side in ((".notdef", 100), ("letter", 900)):
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for corner in ((side, 0), (side, side), (0, side)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([*glyphs])
    font.setupCharacterMap({ord(letter): "letter"})
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": "One letter", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return str(path)


@pytest.mark.parametrize("found_by", ["name", "fontconfig"])
def test_an_installed_font_draws_the_letters_that_it_has(found_by: str, tmp_path: Path, alone: Any) -> None:
    file = a_font(tmp_path / "one.ttf", "犬")
    if found_by == "name":
        alone.setattr(lettering, "INSTALLED", ("no-such-font.ttf", file))
    else:
        alone.setattr(lettering, "_named_by_fontconfig", lambda letter: ["no-such-font.ttf", file])
    assert runs("犬 dog 猫") == [(FileFace(file), "犬"), (OWN, " dog \\u732b")]
    ink = drawn("犬")
    assert (ink[:, 4:22] < 128).sum() == pytest.approx(18 * 18, abs=40)
    assert length("犬 dog", 20) == 20 + length(" dog", 20)


def test_fontconfig_is_asked_for_the_letter_and_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["Bold\t/b.ttf\nRegular\t/serif.ttf\nRegular\t/Sans.ttf\n"]
    asked = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append(command[1])
        if not answers:
            raise subprocess.TimeoutExpired(command, 5)
        return subprocess.CompletedProcess(command, 0, stdout=answers.pop())

    monkeypatch.setattr(lettering.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(lettering.subprocess, "run", run)
    assert lettering._named_by_fontconfig("犬") == ["/Sans.ttf", "/serif.ttf", "/b.ttf"]
    assert lettering._named_by_fontconfig("犬") == []
    assert "charset=72ac" in asked[0]
    monkeypatch.setattr(lettering.shutil, "which", lambda name: None)
    assert lettering._named_by_fontconfig("犬") == []


@with_opencv_5
def test_opencvs_font_draws_chinese_japanese_and_korean() -> None:
    face = EmbeddedFace()
    assert runs("犬と고") == [(face, "犬と고")]
    assert not face.has("\U0010ffff")
    inks = [drawn(letter) for letter in "犬猫と고"]
    assert len({ink.tobytes() for ink in inks}) == 4
    for ink, letter in zip(inks, "犬猫と고", strict=True):
        columns = np.flatnonzero((ink < 128).any(0))
        assert columns.max() - 4 < length(letter, 20) < 30


def test_a_word_is_in_one_font_and_keeps_its_neighbours_apart() -> None:
    [(face, word), *_] = runs("Straße now")
    assert word.split()[0] == "Straße" or face is OWN
    assert "".join(part for _, part in runs("ein Löwe im Käfig")) == "ein Löwe im Käfig"


def test_text_that_is_read_from_the_right_begins_there() -> None:
    assert from_the_left("אב") == "בא"
    assert from_the_left("אָב") == "באָ"  # a mark stays behind its letter
    assert from_the_left("cup אב") == "cup אב"
    assert [part.strip() for _, part in lettering._in_order([(OWN, "אב"), (OWN, " cup")])] == ["cup", "אב"]


def test_plain_text_is_drawn_as_pillow_draws_it() -> None:
    page = Image.new("L", (400, 40), 255)
    ImageDraw.Draw(page).text((4, 4), "a red cup", fill=0, font=lettering._font(None, 20))
    np.testing.assert_array_equal(drawn("a red cup"), page)


@pytest.mark.parametrize("text", ["犬" * 60, "a red cup " * 9, "Straße " * 12])
def test_a_text_is_cut_or_broken_where_it_is_too_wide(text: str) -> None:
    assert length(shortened(text, 17, 320), 17) <= 320
    lines = wrapped(text, 17, 320)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(length(line, 17) <= 320 for line in lines)
    assert wrapped("", 17, 320) == [""]


def explanation(label: str) -> Explanation:
    heatmap = np.linspace(0, 1, 60 * 80, dtype=np.float32).reshape(60, 80)
    return Explanation(label, 0.5, heatmap, heatmap, "gradcam", ("layer",), noise(60, 80), span=(0, 2), evidence=0.5)


def on_a_strip(label: str) -> Any:
    return Answer([explanation(label)], answer=label, image=noise(60, 80))


DOORS = {
    "grid": lambda label, path: hf_cam.grid(explanation(label)).save(path),
    "answer": lambda label, path: on_a_strip(label).save(path),
    "concepts": lambda label, path: _with_legend(noise(60, 80), np.zeros((1, 3)), [label]).save(path),
    "grad-cam's concepts": lambda label, path: Image.fromarray(
        show_factorization_on_image(
            np.zeros((60, 80, 3), np.float32), np.ones((1, 60, 80), np.float32), concept_labels=[label]
        )
    ).save(path),
}


@pytest.mark.parametrize("fonts", ["all", "none"])
@pytest.mark.parametrize("door", DOORS)
def test_two_labels_of_one_length_look_different(
    door: str, fonts: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if fonts == "none":
        request.getfixturevalue("alone")
    pictures = []
    for number, label in enumerate(("犬猫", "鳥魚")):
        DOORS[door](label, tmp_path / f"{number}.png")
        pictures.append(np.asarray(Image.open(tmp_path / f"{number}.png")))
    assert not np.array_equal(*pictures)
