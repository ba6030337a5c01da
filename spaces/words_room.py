"""The room of words: a vision-language model answers a question, and each word shows where it comes from."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
from events import QUEUE, as_event, portrait_of, stopped
from gradio.blocks import Block
from jobs import report
from limits import MAX_SIDE, Refused, read_picture, read_question, read_words
from models import MAX_WEIGHTS, MODELS, checked, online, writers
from parts import PICTURES, arrived, begun, frame, go_and_stop, outdated
from PIL import Image
from scratch import fresh_folder
from uploads import as_uploaded
from wording import as_text
from work import check_methods, on_gpu

from hf_cam import Explanation, list_word_methods
from hf_cam.explainer import Explainer
from hf_cam.explanation import AGAINST_PICTURE, NO_EVIDENCE, WITHOUT_PICTURE
from hf_cam.heads import head_kind
from hf_cam.words.answer import Answer
from hf_cam.words.page import html, striking, words_of
from hf_cam.zoo import SCENE

HINT = "Ask a model that answers in words. Point at a word, tap it or use the arrow keys to see where it comes from."
QUESTIONS = ("What is in the picture?", "What colour is the bag?", "How many items are there?", "What is on the left?")
"""The first is answered rightly, and each noun lights up its own item."""
FAINT = "Just as likely without the picture (underlined):"
AGAINST = "The picture speaks against:"
LONGEST_LIST = 12
RESULT = "words-result"
STALE = "Out of date: the picture or a setting has changed. Press Ask."


# What is computed.


@dataclass(frozen=True)
class Question:
    """What a visitor asks, checked.

    Args:
        model: Its full name.
        text: The question.
        target: Which words to explain: None for all, a text or regular expression, or a pair to contrast.
        method: An id of `list_word_methods()`, or "auto".
        shrunk: Whether the picture was.
    """

    model: str
    text: str
    target: str | tuple[str, str] | None = None
    method: str = "auto"
    shrunk: bool = False


def read_inputs(
    path: str | None, model: str | None, text: str | None, target: str | None, method: str | None
) -> tuple[Image.Image, Question]:
    """The picture and the question, checked; nothing has been computed yet.

    Raises:
        Refused: one of them is not acceptable.
    """
    picture, scale = read_picture(path)
    method = method or "auto"
    check_methods([method], ["auto", *list_word_methods()])
    name = checked(model, writers)
    return picture, Question(name, read_question(text), read_words(target), method, scale < 1)


def answered(picture: Image.Image, question: Question) -> Answer:
    """The model's answer, with one explanation per word.

    Raises:
        Refused: the model writes no answers.
    """
    with MODELS.lent(question.model) as loaded:
        if not head_kind(loaded.model).writes:
            raise Refused(f"{question.model} writes no answers; this room takes models that do.")
        report(0, f"Asking {question.model}")
        found: Answer = _answered(picture, question)
        return Answer(found, answer=found.answer, image=found.image, model=question.model)


@on_gpu
def _answered(picture: Image.Image, question: Question) -> Answer:
    explainer = Explainer(MODELS.held(question.model), question.method)
    [found] = explainer([picture], text=question.text, target=question.target)
    assert isinstance(found, Answer)
    return found


# What is shown.


@functools.cache
def welcome() -> tuple[Question, Answer]:
    """What the room shows before the visitor has asked anything."""
    picture, question = read_inputs(str(SCENE), next(iter(writers())), QUESTIONS[0], "", "auto")
    return question, answered(picture, question)


def portrait() -> gr.Button:
    """The picture of the button that leads here, with the map of a word of the answer."""
    return gr.Button(icon=_portrait())


@functools.cache
def _portrait() -> str:
    return portrait_of(first_shown(welcome()[1]))


def first_shown(answer: Answer) -> Explanation:
    """The word that the answer's page shows first; its first word where that shows none."""
    words = words_of(answer)
    span = words[striking(words) or 0].span
    return next(one for one in answer if one.span == span)


def arrive(shown: bool) -> list[Any]:
    """The first visit to the room."""
    return [gr.skip()] * 8 if shown else show(*welcome())


def press_ask(path: str | None, model: str | None, text: str | None, target: str | None, method: str | None) -> Any:
    """Ask: everything that the picture and the question lead to."""
    picture, question = read_inputs(path, model, text, target, method)
    return show(question, answered(picture, question))


def show(question: Question, answer: Answer) -> list[Any]:
    """The answer in every form: in words, as a page, as code and as files."""
    source = html(answer)
    saved = files(answer)
    return [True, says(answer), frame(source, "The answer, word by word", runs=True), snippet(question), *saved]


def files(answer: Answer) -> tuple[str, str, str]:
    """The answer as a page, as a strip of maps, and its heatmaps as numbers."""
    folder = fresh_folder()
    page, strip = answer.save(folder / "answer.html"), answer.save(folder / "answer.png")
    np.save(folder / "heatmaps.npy", np.stack([one.heatmap for one in answer]))
    return str(page), str(strip), str(folder / "heatmaps.npy")


def says(answer: Answer) -> str:
    """The answer, the method, and the words that the picture hardly contributed to or speaks against, in sentences."""
    warnings = [
        f"\n\n{sentence} {_listed(words)}."
        for sentence, flags in ((FAINT, {NO_EVIDENCE, WITHOUT_PICTURE}), (AGAINST, {AGAINST_PICTURE}))
        if (words := [one.label for one in answer if flags & set(one.flags)])
    ]
    return f"**{as_text(answer.answer)}** · {answer[0].method} at `{answer[0].layers[0]}`{''.join(warnings)}"


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - LONGEST_LIST} more" if len(words) > LONGEST_LIST else ""
    return ", ".join(as_text(word) for word in words[:LONGEST_LIST]) + more


def snippet(question: Question) -> str:
    """Python code that makes the page that is shown."""
    given = {
        "model": question.model,
        "text": question.text,
        "target": question.target,
        "method": None if question.method == "auto" else question.method,
    }
    options = "".join(f"    {name}={value!r},\n" for name, value in given.items() if value is not None)
    shrink = f"image.thumbnail(({MAX_SIDE}, {MAX_SIDE}))\n" if question.shrunk else ""
    return (
        f'import hf_cam\n\nimage = hf_cam.load_image("image.png")\n{shrink}'
        f'answer = hf_cam.explain(\n    image,\n{options})\nanswer.save("answer.html")\n'
    )


# The layout.


@dataclass(frozen=True)
class Given:
    """What a visitor gives."""

    picture: gr.Image
    model: gr.Dropdown
    text: gr.Textbox
    target: gr.Textbox
    method: gr.Dropdown
    go: gr.Button
    stop: gr.Button

    @property
    def parts(self) -> list[Block]:
        """What `press_ask` takes, in its order."""
        return [self.picture, self.model, self.text, self.target, self.method]


@dataclass(frozen=True)
class Got:
    """What a visitor gets."""

    shown: gr.State
    says: gr.Markdown
    page: gr.HTML
    code: gr.Code
    files: tuple[gr.DownloadButton, ...]

    @property
    def parts(self) -> list[Block]:
        """What `show` fills, in its order."""
        return [self.shown, self.says, self.page, self.code, *self.files]


def words_room() -> None:
    """The tab; it is left out where no model that writes is installed."""
    if not writers():
        return
    with gr.Tab("Words", id="words", elem_id="words-tab") as tab:
        gr.Markdown(HINT, elem_classes="hint")
        with gr.Row(equal_height=False, elem_classes="columns"):
            with gr.Column(scale=4, min_width=300):
                given = inputs()
            with gr.Column(scale=7, min_width=320, elem_id=RESULT):
                got = results()
    wire(tab, given, got)


def inputs() -> Given:
    """The picture, the question, the settings and the button."""
    picture = gr.Image(
        str(SCENE),
        label="Picture",
        type="filepath",
        image_mode=None,
        height=240,
        sources=["upload", "clipboard", "webcam"],
        buttons=[],
        elem_id="words-picture",
        alt_text="The picture to ask about",
        **PICTURES,
    )
    text = gr.Textbox(QUESTIONS[0], label="Question", lines=1, max_length=200, elem_id="words-question")
    gr.Examples([[question] for question in QUESTIONS], text, label="Questions for this picture")
    model = gr.Dropdown(
        list(writers()),
        value=next(iter(writers())),
        label="Model",
        allow_custom_value=online(),
        info=f"Or an id on the Hub whose weights have at most {MAX_WEIGHTS >> 30} GB." if online() else None,
        elem_id="words-model",
    )
    with gr.Accordion("More", open=False):
        method = gr.Dropdown(method_choices(), value="auto", label="Method", elem_id="words-method")
        target = gr.Textbox(
            label="Word",
            placeholder="all words",
            info="A word of the answer, or one in contrast: yellow, not blue.",
            max_length=200,
            elem_id="words-target",
        )
    go, stop = go_and_stop("Ask", "words-")
    return Given(as_uploaded(picture), model, text, target, method, go, stop)


def method_choices() -> list[tuple[str, str]]:
    """The library's methods for words, with what the default is."""
    first = next(iter(list_word_methods()))
    return [(f"default ({first})", "auto"), *((method, method) for method in list_word_methods())]


def results() -> Got:
    """The answer, and below it the files and the code."""
    shown = gr.State(False)
    gr.Markdown(STALE, elem_classes="stale-note")
    said = gr.Markdown(elem_id="words-says")
    page = gr.HTML(elem_id="words-page")
    with gr.Row():
        files = (
            gr.DownloadButton("Page, HTML", elem_id="words-page-file"),
            gr.DownloadButton("Strip, PNG", elem_id="words-strip-file"),
            gr.DownloadButton("Heatmaps, NPY", elem_id="words-numbers-file"),
        )
    code = gr.Code(language="python", label="The same in Python", interactive=False, elem_id="words-code")
    return Got(shown, said, page, code, files)


# The events.


def wire(tab: gr.Tab, given: Given, got: Got) -> None:
    """Every event with what it takes and what it fills."""
    work: dict[str, Any] = {**QUEUE, "api_visibility": "private", "show_progress_on": [got.page]}
    here: dict[str, Any] = {"fn": None, "api_visibility": "private", "queue": False}
    tab.select(as_event(arrive), got.shown, got.parts, **work)
    for press in (given.go.click, given.text.submit):
        press(js=begun(RESULT), **here)
        press(as_event(press_ask), given.parts, got.parts, **work).success(js=arrived(RESULT), **here)
    for control in given.parts:
        control.change(js=outdated(RESULT), **here)
    given.stop.click(stopped, queue=False, api_visibility="private", show_progress="hidden")


# The API.


def endpoint() -> None:
    """Add `/words`, on components that are not shown."""
    image = as_uploaded(gr.File(label="image"))
    model = gr.Textbox(next(iter(writers()), ""), label="model")
    text, target = gr.Textbox(QUESTIONS[0], label="question"), gr.Textbox("", label="target")
    method = gr.Textbox("auto", label="method")
    answer = gr.JSON(label="answer")
    outputs = [gr.File(label=label) for label in ("page", "strip", "heatmaps")]
    given = [image, model, text, target, method]
    gr.Button().click(as_event(words), given, [answer, *outputs], api_name="words", **QUEUE)


def words(
    image: str | None, model: str | None, question: str | None, target: str | None, method: str | None
) -> tuple[dict[str, Any], str, str, str]:
    """The answer with its words, the page, the strip of maps, and the heatmaps as one array `[words, H, W]`."""
    picture, asked = read_inputs(image, model, question, target, method)
    answer = answered(picture, asked)
    described = [
        {
            "word": one.label,
            "span": list(one.span or ()),
            "score": one.score,
            "evidence": one.evidence,
            "method": one.method,
            "flags": list(one.flags),
        }
        for one in answer
    ]
    return {"answer": answer.answer, "words": described}, *files(answer)
