"""An answer to look at: a self-contained page whose words show their maps, and a strip of the maps as one picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw

from hf_cam.explanation import AGAINST_PICTURE, NO_EVIDENCE, WITHOUT_PICTURE, Explanation
from hf_cam.images.lettering import shortened, wrapped, write

if TYPE_CHECKING:
    from hf_cam.words.answer import Answer

DARKEST = 0.75
"""How far the picture is darkened where a word has no evidence."""
LARGEST_PICTURE, LARGEST_MAP, SMALL_PICTURE = 1024, 160, 512
"""The longest sides in pixels of an embedded picture, of an embedded map, and of a picture kept without loss."""

UNSEEN = np.full((1, 1), 0.4, np.float32)
"""What is shown instead of the map of a word that was said without the picture: all of it alike."""
IDLE = "Choose a word to see where in the picture it comes from."

TILE, GAP, LINE, FONT = 184, 12, 30, 17
COLUMNS = 6
INK, SOFT, MARK = (29, 33, 41), (120, 126, 138), (245, 158, 11)


@dataclass(frozen=True)
class Word:
    """One explained word of an answer, with its maps on all pictures.

    Args:
        text: The word.
        span: Its start and end in the answer.
        score: Its probability.
        evidence: The share of that which is owed to the picture, in [0, 1].
        needs_picture: False if it is flagged as said without the picture.
        source: What is said of the evidence.
        views: Each picture, or frame of a video, with the word's map `[H, W]` on it.
    """

    text: str
    span: tuple[int, int]
    score: float
    evidence: float
    needs_picture: bool
    source: str
    views: tuple[tuple[Image.Image, np.ndarray], ...]


def words_of(answer: Answer) -> list[Word]:
    """The explained words in the order of the text; the explanations of one word on several pictures become one."""
    placed = sorted((one for one in answer if one.span is not None), key=_span)
    return [_word(list(found)) for _, found in groupby(placed, key=_span)]


def _span(explanation: Explanation) -> tuple[int, int]:
    return explanation.span or (0, 0)


def _word(found: Sequence[Explanation]) -> Word:
    first, flags = found[0], found[0].flags
    evidence = float(np.clip(max(one.evidence or 0.0 for one in found), 0, 1))
    views = tuple(view for one in found for view in _views(one))
    needs_picture = not {NO_EVIDENCE, WITHOUT_PICTURE} & set(flags)
    source = f"evidence from the picture {evidence:.2f}" if needs_picture else WITHOUT_PICTURE
    source = AGAINST_PICTURE if AGAINST_PICTURE in flags else source
    return Word(first.label, _span(first), first.score, evidence, needs_picture, source, views)


def _views(explanation: Explanation) -> Iterator[tuple[Image.Image, np.ndarray]]:
    if explanation.frames:
        yield from zip(explanation.frames, explanation.heatmap, strict=True)
    else:
        yield explanation.image, explanation.heatmap


def pictures_of(answer: Answer, words: Sequence[Word]) -> list[Image.Image]:
    """The pictures that the maps lie on."""
    return [image for image, _ in words[0].views] if words else [answer.image]


# The page.


def html(answer: Answer) -> str:
    """A page with the answer, its words shaded by how much the picture contributed; the chosen one shows its map.

    The first word to be chosen is that of `striking`; others with the mouse, a finger or the keyboard. The page is one
    file that loads nothing.

    >>> from hf_cam.words.answer import Answer
    >>> "A &lt;b&gt; cup." in html(Answer([], answer="A <b> cup.", image=Image.new("RGB", (64, 48)), model="demo"))
    True
    """
    words = words_of(answer)
    pictures, chosen = pictures_of(answer, words), striking(words)
    figures = [
        FIGURE.substitute(
            source=_picture_data(picture),
            width=picture.width,
            height=picture.height,
            ratio=f"{picture.width / picture.height:.4f}",
            alt="The picture" if len(pictures) == 1 else f"Picture {number + 1}",
            maps="".join(_mask(index, word, number, index == chosen) for index, word in enumerate(words)),
        )
        for number, picture in enumerate(pictures)
    ]
    return PAGE.substitute(
        title=escape(answer.answer),
        model=escape(Path(answer.model).name if Path(answer.model).is_absolute() else answer.model),
        idle=IDLE if words else "",
        note=(IDLE if words else "") if chosen is None else _said(words[chosen]),
        figures="".join(figures),
        many=" many" if len(pictures) > 1 else "",
        answer=_text(answer.answer, words, chosen),
    )


def striking(words: Sequence[Word]) -> int | None:
    """The index of the word to look at first: the most concentrated map of those that the picture contributed to.

    The strongest evidence would not do: it is close to 1 also for an "and", whose map is all over the picture.

    Returns:
        None if the picture contributed to no word.
    """
    owed = {index: word.views for index, word in enumerate(words) if word.needs_picture and word.evidence}
    spread = {index: sum(float(heatmap.mean()) for _, heatmap in views) for index, views in owed.items()}
    return min(filter(spread.get, spread), key=spread.__getitem__, default=None)


def _text(answer: str, words: Sequence[Word], chosen: int | None) -> str:
    parts, end = [], 0
    for index, word in enumerate(words):
        start, stop = word.span
        parts += [escape(answer[end:start]), _button(index, word, answer[start:stop], chosen)]
        end = stop
    return "".join([*parts, escape(answer[end:])])


def _button(index: int, word: Word, text: str, chosen: int | None) -> str:
    return BUTTON.substitute(
        kind=("" if word.needs_picture else " plain") + _on(index == chosen),
        pressed=str(index == chosen).lower(),
        index=index,
        evidence=f"{word.evidence if word.needs_picture else 0:.2f}",
        reachable=0 if index == (chosen or 0) else -1,
        note=escape(_note(word)),
        text=escape(text),
    )


def _note(word: Word) -> str:
    return f"probability {word.score:.2f}, {word.source}"


def _said(word: Word) -> str:
    """What the page's script says of a chosen word, as HTML."""
    return f"<b>{escape(word.text)}</b>: {escape(_note(word))}"


def _on(chosen: bool) -> str:
    return " on" if chosen else ""


def _mask(index: int, word: Word, number: int, chosen: bool) -> str:
    """The shadow that leaves the word's evidence bright; a flat one for a word said without the picture."""
    heatmap = word.views[number][1] if word.needs_picture else UNSEEN
    return MASK.substitute(index=index, kind=_on(chosen), source=_data(_shadow(heatmap), "PNG"))


def _shadow(heatmap: np.ndarray) -> Image.Image:
    """Black with an opacity that falls with the heatmap, `[H, W]` in [0, 1], at a size that suits a smooth map."""
    height, width = heatmap.shape
    scale = min(1.0, LARGEST_MAP / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(np.clip(heatmap, 0, 1).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    opacity = np.rint(255 * DARKEST * (1 - small)).astype(np.uint8)
    return Image.fromarray(np.stack([np.zeros_like(opacity), opacity], -1), "LA")


def _picture_data(picture: Image.Image) -> str:
    shown = picture.convert("RGB")
    shown.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    return _data(shown, "PNG") if max(shown.size) <= SMALL_PICTURE else _data(shown, "JPEG", quality=88)


def _data(picture: Image.Image, kind: str, **settings: int) -> str:
    """The picture as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def framed(answer: Answer) -> str:
    """The page inside a frame, so that its style and keys stay apart from the notebook's."""
    return f'<iframe title="answer" srcdoc="{escape(html(answer))}" style="{FRAME}"></iframe>'


# The strip.


def strip(answer: Answer) -> Image.Image:
    """The answer, the picture, and every word's map above the word; several pictures one below another.

    >>> from hf_cam.words.answer import Answer
    >>> strip(Answer([], answer="A cup.", image=Image.new("RGB", (64, 48)), model="demo")).mode
    'RGB'
    """
    words = words_of(answer)
    tiles = [_tile([_scaled(picture) for picture in pictures_of(answer, words)])]
    tiles += [_tile([_lit(word, *view) for view in word.views], word) for word in words]
    columns = min(len(tiles), COLUMNS)
    step_x, step_y = TILE + GAP, max(tile.height for tile in tiles) + GAP
    lines = wrapped(answer.answer, FONT + 3, columns * step_x - GAP)
    top = GAP + LINE * len(lines)
    sheet = Image.new("RGB", (columns * step_x + GAP, top + -(-len(tiles) // columns) * step_y + GAP // 2), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        write(draw, (GAP, GAP // 2 + number * LINE), line, FONT + 3, INK)
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (GAP + index % columns * step_x, top + index // columns * step_y))
    return sheet


def _tile(pictures: Sequence[Image.Image], word: Word | None = None) -> Image.Image:
    """Pictures one below another, and below them the word, shaded by its evidence."""
    heights = [picture.height for picture in pictures]
    tile = Image.new("RGB", (TILE, sum(heights) + LINE), "white")
    for picture, above in zip(pictures, np.cumsum([0, *heights]).tolist(), strict=False):
        tile.paste(picture, (0, above))
    if word is not None:
        share = word.evidence if word.needs_picture else 0.0
        shade = tuple(round(255 - share * (255 - channel)) for channel in MARK)
        draw = ImageDraw.Draw(tile)
        draw.rectangle((0, sum(heights), TILE, tile.height), fill=shade)
        place = (TILE / 2, sum(heights) + LINE / 2)
        write(draw, place, shortened(word.text, FONT, TILE), FONT, INK if word.needs_picture else SOFT, "mm")
    return tile


def _lit(word: Word, picture: Image.Image, heatmap: np.ndarray) -> Image.Image:
    """A picture in the width of a tile, darkened where the word has no evidence."""
    scaled = np.asarray(_scaled(picture), np.float32)
    shadow = _shadow(heatmap if word.needs_picture else UNSEEN).getchannel("A").resize(scaled.shape[1::-1])
    bright = 1 - np.asarray(shadow, np.float32)[..., None] / 255
    return Image.fromarray(np.rint(scaled * bright).astype(np.uint8))


def _scaled(picture: Image.Image) -> Image.Image:
    height = max(1, round(TILE * picture.height / picture.width))
    return picture.convert("RGB").resize((TILE, height), Image.Resampling.LANCZOS)


# The templates.

FRAME = "width:100%;height:640px;border:0"
FIGURE = Template(
    '<figure style="--ratio:$ratio"><img src="$source" width="$width" height="$height" alt="$alt">$maps</figure>'
)
MASK = Template('<img class="map$kind" data-word="$index" src="$source" alt="">')
BUTTON = Template(
    '<button type="button" class="word$kind" data-word="$index" style="--evidence:$evidence" tabindex="$reachable"'
    ' aria-pressed="$pressed" data-note="$note">$text</button>'
)
PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1d2129; --soft: #667085; --paper: #fbfaf8; --line: #e6e3dd;
  --mark: 245 158 11; --strength: .8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f2f0ec; --soft: #9aa3b2; --paper: #14161a; --line: #2b2f37; --mark: 217 119 6; --strength: .7; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 720px; margin: 0 auto; padding: 1.25rem 1rem 3rem; }
.pictures { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; justify-content: center; gap: .5rem;
  padding: .5rem 0 .75rem; background: var(--paper); }
figure { position: relative; margin: 0; overflow: hidden; border-radius: 10px; line-height: 0;
  width: min(100%, calc(55vh * var(--ratio))); }
.many figure { width: min(calc(50% - .25rem), calc(40vh * var(--ratio))); }
figure img { width: 100%; height: auto; }
figure img.map { position: absolute; inset: 0; height: 100%; opacity: 0; transition: opacity .15s; }
figure img.map.on { opacity: 1; }
.answer { margin: .75rem 0; font-size: 1.6rem; line-height: 1.75; white-space: pre-wrap; overflow-wrap: anywhere; }
.word { font: inherit; color: inherit; border: 0; border-radius: 6px; padding: .02em .12em .06em; margin: 0 -.04em;
  line-height: 1.3;
  cursor: pointer;
  background: rgb(var(--mark) / calc(var(--evidence) * var(--strength))); overflow-wrap: anywhere; }
.word.plain { color: var(--soft); text-decoration: underline dotted 1px; text-underline-offset: .25em; }
.word:hover, .word.on { box-shadow: 0 0 0 2px rgb(var(--mark)); }
.word:focus-visible { outline: 3px solid var(--ink); outline-offset: 1px; }
.note { min-height: 3em; margin: 0; color: var(--soft); }
.note b { color: var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: .35rem 1.25rem; margin-top: 1rem; padding-top: .75rem;
  border-top: 1px solid var(--line); color: var(--soft); font-size: .85rem; }
.legend i { display: inline-block; width: 7em; height: .8em; margin: 0 .4em; border-radius: 4px; vertical-align: -.05em;
  background: linear-gradient(90deg, transparent, rgb(var(--mark) / var(--strength))); }
.legend u { text-decoration: underline dotted 1px; text-underline-offset: .25em; }
@media (prefers-reduced-motion: reduce) { figure img.map { transition: none; } }
</style>
</head>
<body>
<main>
<div class="pictures$many">$figures</div>
<p class="answer" role="group" aria-label="The answer; arrow keys go from word to word">$answer</p>
<p class="note" aria-live="polite" data-idle="$idle">$note</p>
<div class="legend"><span>evidence from the picture: none<i></i>all</span>
<span><u>underlined</u>: said without the picture</span>
<span>model: $model</span></div>
</main>
<script>
const words = [...document.querySelectorAll(".word")], note = document.querySelector(".note");
let kept = words.find((one) => one.classList.contains("on")) ?? null;
function show(word) {
  document.querySelectorAll(".on").forEach((one) => one.classList.remove("on"));
  if (!word) { note.textContent = note.dataset.idle; return; }
  document.querySelectorAll('[data-word="' + word.dataset.word + '"]').forEach((one) => one.classList.add("on"));
  const name = document.createElement("b");
  name.textContent = word.textContent;
  note.replaceChildren(name, ": " + word.dataset.note);
}
function keep(word) {
  kept = word;
  words.forEach((one) => one.setAttribute("aria-pressed", one === kept));
  show(kept);
}
function go(index) {
  words[Math.max(0, Math.min(words.length - 1, index))].focus();
}
function enter(word) {
  words.forEach((one) => { one.tabIndex = one === word ? 0 : -1; });
  show(word);
}
const keys = { ArrowRight: (i) => i + 1, ArrowDown: (i) => i + 1, ArrowLeft: (i) => i - 1, ArrowUp: (i) => i - 1,
  Home: () => 0, End: () => words.length - 1 };
words.forEach((word, index) => {
  word.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") show(word); });
  word.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") show(kept); });
  word.addEventListener("focus", () => enter(word));
  word.addEventListener("blur", () => show(kept));
  word.addEventListener("click", () => keep(kept === word ? null : word));
  word.addEventListener("keydown", (event) => {
    if (event.key === "Escape") keep(null);
    if (!(event.key in keys)) return;
    event.preventDefault();
    go(keys[event.key](index));
  });
});
</script>
</body>
</html>
"""
)
