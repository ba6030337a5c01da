"""The page of an answer and its strip: every word leads to its own map, on any screen, and nothing is loaded."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hf_cam.explanation import Explanation
from hf_cam.words.answer import Answer
from hf_cam.words.page import IDLE, html, strip, words_of

SIZE = (64, 40)
TEXT = 'A red <b>"cup"</b> and\na bowl.'
EVIDENCE = {"A": 0.0, "red": 0.5, "cup": 1.0, "and": 0.02, "bowl": 0.8}
NARROW = {"and": 3, "bowl": 6}


def word(label: str, place: int, image: Image.Image, **changes: object) -> Explanation:
    """A word whose map is bright in one column of the picture only."""
    heatmap = np.zeros((image.height, image.width), np.float32)
    heatmap[:, 10 * place : 10 * place + NARROW.get(label, 10)] = 1
    start = re.search(rf"\b{label}\b", TEXT).start()
    flags = {"A": ("no evidence",), "and": ("said without the picture",)}.get(label, ())
    given = {"score": 0.9, "span": (start, start + len(label)), "evidence": EVIDENCE[label], "flags": flags} | changes
    return Explanation(label=label, heatmap=heatmap, raw=heatmap, method="m", layers=(), image=image, **given)


def answer(pictures: int = 1, **changes: object) -> Answer:
    images = [Image.new("RGB", SIZE, (200, 180, 40 * number)) for number in range(pictures)]
    found = [word(label, i, image, **changes) for i, label in enumerate(EVIDENCE) for image in images]
    return Answer(found, answer=TEXT, image=images[0], model="a/<model>")


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def of(self, kind: str) -> list[dict[str, str]]:
        return [found for _, found in self.elements if kind in found.get("class", "").split()]


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_the_page_holds_everything_it_shows() -> None:
    source = html(answer(2))
    links = [value for _, found in Page(source).elements for name, value in found.items() if name in ("src", "href")]
    assert len(links) == 2 * (1 + len(EVIDENCE))
    assert all(link.startswith("data:image/") for link in links)
    assert "http" not in source
    assert "url(" not in source


def test_text_of_the_model_is_never_markup() -> None:
    page = Page(html(answer()))
    assert TEXT in page.text
    assert "a/<model>" in page.text
    assert [tag for tag, _ in page.elements].count("b") == 1  # the name of the chosen word


def test_each_word_is_shaded_by_its_evidence_and_says_if_it_needs_no_picture() -> None:
    words = Page(html(answer())).of("word")
    assert [found["style"] for found in words] == [f"--evidence:{e:.2f}" for e in (0, 0.5, 1, 0, 0.8)]
    assert ["plain" in found["class"] for found in words] == [True, False, False, True, False]
    assert ["without the picture" in found["data-note"] for found in words] == [True, False, False, True, False]


def test_the_most_concentrated_map_of_those_that_the_picture_gave_is_shown_at_first() -> None:
    page = Page(html(answer(2)))
    words = page.of("word")
    assert [found["aria-pressed"] for found in words] == ["false"] * 4 + ["true"]
    assert [found["tabindex"] for found in words] == ["-1"] * 4 + ["0"]
    assert ["on" in found["class"].split() for found in words] == [False] * 4 + [True]
    assert [found["data-word"] for found in page.of("map") if "on" in found["class"].split()] == ["4", "4"]
    assert f"bowl: {words[4]['data-note']}" in page.text
    assert IDLE not in page.text


def test_no_word_is_chosen_where_none_owes_anything_to_the_picture() -> None:
    unseen = Answer([one for one in answer() if one.label in ("A", "and")], answer=TEXT, image=answer().image)
    page = Page(html(unseen))
    assert [found["aria-pressed"] for found in page.of("word")] == ["false", "false"]
    assert [found["tabindex"] for found in page.of("word")] == ["0", "-1"]
    assert not page.of("on")
    assert IDLE in page.text


def test_a_map_leaves_its_own_place_bright() -> None:
    maps = {found["data-word"]: np.asarray(decoded(found["src"])) for found in Page(html(answer())).of("map")}
    opacity = maps["2"][..., 1]
    assert opacity.shape == SIZE[::-1]
    assert opacity[:, 20:30].max() == 0
    assert opacity[:, :20].min() == opacity[:, 30:].min() > 128
    assert np.unique(maps["3"][..., 1]).size == 1  # "and" is said without the picture


def test_a_word_has_one_map_per_picture_and_per_frame() -> None:
    assert [len(found.views) for found in words_of(answer(3))] == [3] * len(EVIDENCE)
    assert len(Page(html(answer(3))).of("map")) == 3 * len(EVIDENCE)
    image = Image.new("RGB", SIZE)
    frames, heatmap = (image, image), np.zeros((2, SIZE[1], SIZE[0]), np.float32)
    filmed = Explanation("cup", 1.0, heatmap, heatmap, "m", (), image, frames=frames, span=(10, 13), evidence=1.0)
    assert len(Page(html(Answer([filmed], answer=TEXT, image=image))).of("map")) == 2


def test_words_that_were_not_asked_for_stay_text() -> None:
    chosen = Answer([one for one in answer() if one.label == "cup"], answer=TEXT, image=Image.new("RGB", SIZE))
    page = Page(html(chosen))
    assert len(page.of("word")) == 1
    assert TEXT in page.text


def test_a_large_photograph_is_embedded_at_a_size_for_the_web() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1500, 3), np.uint8)
    image = Image.fromarray(noise)
    source = html(Answer([word("cup", 2, image)], answer=TEXT, image=image))
    assert len(source) < 1_500_000
    assert max(decoded(Page(source).of("map")[0]["src"]).size) <= 160


def test_the_strip_shows_each_word_under_its_map() -> None:
    found = np.asarray(strip(answer()).convert("L"), int)
    few = np.asarray(strip(Answer([], answer=TEXT, image=Image.new("RGB", SIZE))), int)
    assert found.shape[1] > 4 * few.shape[1] // 2
    lit = np.asarray(strip(Answer([word("cup", 2, answer().image)], answer="cup", image=answer().image)).convert("L"))
    row = lit[lit.shape[0] // 2]
    tile = row[len(row) // 2 + 12 :]
    assert tile[len(tile) * 2 // 5] > 1.5 * tile[len(tile) // 8]


def test_a_notebook_shows_the_page_in_a_frame_of_its_own() -> None:
    [(tag, found)] = Page(answer()._repr_html_()).elements
    assert tag == "iframe"
    assert found["srcdoc"] == html(answer())


@pytest.fixture
def opened(browser, tmp_path, request):
    """A saved answer in the browser; the parameter holds options of the page."""
    errors: list[str] = []
    page = browser.new_page(**{"viewport": {"width": 900, "height": 700}, **getattr(request, "param", {})})
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda sent: errors.append(sent.url) if sent.url.startswith("http") else None)
    page.goto(answer(2).save(tmp_path / "answer.html").as_uri())
    yield page
    page.close()
    assert not errors


def shown(page) -> list[str]:
    """The words whose maps are shown, on each picture."""
    numbers = page.eval_on_selector_all("img.map.on", "found => found.map(one => +one.dataset.word)")
    return [list(EVIDENCE)[number] for number in numbers]


@pytest.mark.browser
def test_a_word_under_the_mouse_shows_its_map_and_a_click_keeps_it(opened) -> None:
    assert shown(opened) == ["bowl", "bowl"]  # from the start
    assert opened.get_by_role("button", pressed=True).all_inner_texts() == ["bowl"]
    opened.get_by_role("button", name="red").hover()
    assert shown(opened) == ["red", "red"]
    opened.mouse.move(1, 1)
    assert shown(opened) == ["bowl", "bowl"]
    opened.get_by_role("button", name="cup").click()
    opened.mouse.move(1, 1)
    assert shown(opened) == ["cup", "cup"]
    opened.get_by_role("button", name="and").hover()
    assert "without the picture" in opened.locator(".note").inner_text()


@pytest.mark.browser
def test_arrow_keys_go_from_word_to_word_and_escape_ends(opened) -> None:
    opened.keyboard.press("Tab")
    assert shown(opened)[0] == "bowl"  # which is chosen
    opened.keyboard.press("ArrowLeft")
    opened.keyboard.press("ArrowLeft")
    assert shown(opened)[0] == "cup"
    opened.keyboard.press("Home")
    assert shown(opened)[0] == "A"
    opened.keyboard.press("End")
    opened.keyboard.press("ArrowRight")
    assert shown(opened)[0] == "bowl"
    opened.keyboard.press("ArrowLeft")
    opened.keyboard.press("Enter")
    assert opened.get_by_role("button", pressed=True).inner_text() == "and"
    opened.keyboard.press("Home")
    opened.keyboard.press("Escape")
    assert shown(opened) == []
    assert opened.locator(".note").inner_text() == IDLE


@pytest.mark.browser
@pytest.mark.parametrize(
    "opened",
    [{"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}],
    indirect=True,
)
def test_on_a_phone_in_the_dark_a_tap_shows_the_map_and_nothing_overflows(opened) -> None:
    opened.get_by_role("button", name="red").tap()
    assert shown(opened) == ["red", "red"]
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    ink, paper = (
        sum(map(int, re.findall(r"\d+", opened.evaluate(f"getComputedStyle(document.body).{name}"))[:3]))
        for name in ("color", "backgroundColor")
    )
    assert ink > 600 > 150 > paper
