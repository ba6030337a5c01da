"""What happens when a visitor arrives, presses a button, chooses or clicks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import jobs
from gradio.context import LocalContext
from limits import Refused
from models import MODELS, checked, demos, sees_scenes
from scores import LINES, plots_of, table_of
from scratch import new_folder
from work import (
    Found,
    compared,
    drawn,
    enlarged,
    explained,
    judged,
    layers_of,
    marked,
    read_inputs,
    saved,
    snippet,
    tab_of,
    thumbnail,
)

from hf_cam.comparison import quick_methods
from hf_cam.errors import HFCamError, ModelError, UnexpectedError
from hf_cam.interfaces.demo import PHOTOGRAPHS
from hf_cam.methods import get_method
from hf_cam.zoo import SCENE

VISITORS = 16
"""How many visitors' events run at once, computing or waiting for a model; the others queue."""
QUEUE: dict[str, Any] = {"concurrency_id": "work", "concurrency_limit": VISITORS}
"""Options of every event that computes."""
DEFAULT_LAYER = ("default for the model", "")
MARKS = frozenset("&<>*_`~[]()!#|\\$")
"""Letters that mean something in Markdown, HTML or formulas."""
PROMPTS = "yellow bag\norange sneaker\nblue trouser"


# Events in general.


def as_event(work: Callable[..., Any]) -> Callable[..., Any]:
    """The work as an event handler that reports progress and can be stopped.

    A refusal reaches the visitor as its sentence, which browsers show as HTML and which may quote what strangers wrote;
    any other error is logged, and the visitor sees only its type.
    """

    @functools.wraps(work)
    async def event(*given: Any) -> Any:
        request = LocalContext.request.get(None)
        visit = "" if request is None else request.session_hash or ""
        try:
            return await jobs.run(work, *given, visit=visit)
        except jobs.Stopped:
            return gr.skip()
        except Exception as error:
            if isinstance(error, HFCamError) and not isinstance(error, UnexpectedError):
                raise gr.Error(escape(str(error), quote=False), print_exception=False) from error
            logging.getLogger("hf_cam.interfaces.space").exception("a visit failed")
            kind = type(error.__cause__ if isinstance(error, UnexpectedError) else error).__name__
            raise gr.Error(f"That did not work here ({kind}).", print_exception=False) from error

    return event


def stopped(request: gr.Request) -> None:
    """The visitor pressed Stop or closed the page."""
    jobs.end(request.session_hash or "")


def needed(found: Found | None) -> Found:
    """What Explain has found.

    Raises:
        Refused: it has not been pressed yet.
    """
    if found is None:
        raise Refused("Press Explain first.")
    return found


# The first view, and what follows the tab and the model.


@functools.cache
def examples() -> dict[str, str]:
    """The example pictures by name, as files; they need no network."""
    folder = new_folder("examples-")
    files = {"scene": str(SCENE)}
    for photograph in PHOTOGRAPHS:
        try:
            photograph.image().save(folder / f"{photograph.name}.jpg", quality=92)
        except ModelError:
            continue
        files[photograph.name] = str(folder / f"{photograph.name}.jpg")
    return files


def example_for(model: str) -> str:
    """A picture of the kind that the model was trained on."""
    return str(SCENE) if sees_scenes(model) else examples().get("chelsea", str(SCENE))


@functools.cache
def welcome() -> Found:
    """What the page shows before the visitor has pressed anything."""
    model = next(iter(demos()))
    picture, settings = read_inputs(example_for(model), model, None, PROMPTS, "auto", "", False, False)
    found: Found = explained(picture, settings)
    return found


def arrive(alpha: float, colormap: str) -> list[Any]:
    """The first view, with the layers of its model."""
    found = welcome()
    return [*opened(found, alpha, colormap), layer_menu(found.settings.model)]


def model_under(tab: str, model: str) -> Any:
    """The first model of the tab that was opened, unless the current one belongs to it."""
    kinds = demos()
    if model not in kinds or tab_of(kinds[model]) == tab:
        return gr.skip()
    return next((name for name, kind in kinds.items() if tab_of(kind) == tab), gr.skip())


def follow(model: str, picture: str | None) -> list[Any]:
    """The tab, the prompts, the example and the layers for a model that was chosen."""
    name = checked(model)
    kind = MODELS.kind(name)
    untouched = picture is None or Path(picture).name in {Path(file).name for file in examples().values()}
    shown = example_for(model) if untouched else gr.skip()
    return [gr.Tabs(selected=tab_of(kind)), gr.Textbox(visible=kind.takes_text), shown, layer_menu(name)]


def layer_menu(model: str | None) -> gr.Dropdown:
    """The menu of the model's layers, the default first; the default alone where no model is chosen."""
    names = layers_of(checked(model)) if model else ()
    return gr.Dropdown([DEFAULT_LAYER, *((name, name) for name in names)], value="")


# Explanations.


def press_explain(
    path: str | None,
    model: str,
    target: Any,
    prompts: str,
    method: str,
    layers: str,
    aug_smooth: bool,
    eigen_smooth: bool,
    alpha: float,
    colormap: str,
) -> list[Any]:
    """Explain: everything that the picture and the settings lead to."""
    picture, settings = read_inputs(path, model, target, prompts, method, layers, aug_smooth, eigen_smooth)
    return opened(explained(picture, settings), alpha, colormap)


def choose(found: Found | None, alpha: float, colormap: str, event: gr.SelectData) -> list[Any]:
    """A click on one of the thumbnails."""
    found = needed(found)
    chosen = Found(found.settings, found.explanations, min(event.index, len(found.explanations) - 1))
    return [chosen, *show(chosen, alpha, colormap), *cleared()]


def point(event: gr.SelectData, path: str, found: Found | None, *settings: Any) -> list[Any]:
    """A click into the outlined picture: the smallest object under it, or else the pixel as a new target."""
    found = needed(found)
    model, _, *rest = settings
    factor = enlarged(found.current.image).width / found.current.image.width
    pixel = event.index[0] / factor, event.index[1] / factor
    chosen = under(pixel, found)
    if chosen is None:
        return press_explain(path, model, pixel, *rest)
    gallery = gr.Gallery(selected_index=chosen.shown)
    return [chosen, gallery, gr.skip(), *show(chosen, *rest[-2:]), *cleared()]


def under(pixel: tuple[float, float], found: Found) -> Found | None:
    """The object with the smallest box around the pixel; None where no box is around it."""
    x, y = pixel
    areas = {
        i: (box[2] - box[0]) * (box[3] - box[1])
        for i, one in enumerate(found.explanations)
        if (box := one.box) is not None and box[0] <= x <= box[2] and box[1] <= y <= box[3]
    }
    return Found(found.settings, found.explanations, min(areas, key=areas.__getitem__)) if areas else None


def recolour(found: Found | None, alpha: float, colormap: str) -> list[Any]:
    """The map that is shown, in other colours; no model runs."""
    return show(found, alpha, colormap) if found else [gr.skip()] * 6


def opened(found: Found, alpha: float, colormap: str) -> list[Any]:
    """Everything that a new explanation fills."""
    gallery = gr.Gallery(thumbnails(found, alpha, colormap), selected_index=0)
    clickable = tab_of(MODELS.kind(found.settings.model)) in ("detect", "segment")
    large = gr.Image(marked(found) if clickable else None, visible=clickable)
    return [found, gallery, large, *show(found, alpha, colormap), *cleared()]


def show(found: Found, alpha: float, colormap: str) -> list[Any]:
    """The chosen explanation in every form: the map, the sentence, the code and the files."""
    current = found.current
    return [
        (enlarged(current.image), drawn(current, alpha, colormap)),
        words(found),
        snippet(found, alpha, colormap),
        *saved(current, alpha, colormap),
    ]


def cleared() -> list[Any]:
    """Nothing for the grid, the curves and the scores, which belonged to another explanation."""
    return [None, gr.Column(visible=False), ""]


def words(found: Found) -> str:
    """The label, the score, the method and the layers of the map, in a sentence."""
    current = found.current
    flags = "".join(f" · {flag}" for flag in current.flags)
    layers = ", ".join(f"`{layer}`" for layer in current.layers)
    score = f"{current.score:.0%}" if 0 <= current.score <= 1 else f"{current.score:.3g}"
    return f"**{as_text(current.label)}** · {score} · {get_method(current.method).name} at {layers}{flags}"


def as_text(label: str) -> str:
    """A stranger's words in Markdown, where neither their HTML nor their marks act."""
    return "".join(f"&#{ord(letter)};" if letter in MARKS else letter for letter in label)


def thumbnails(found: Found, alpha: float, colormap: str) -> list[tuple[Any, str]]:
    """A small overlay per explanation, with its label and score."""
    return [
        (thumbnail(one, alpha, colormap), f"{one.label.split(',')[0]} · {one.score:.0%}") for one in found.explanations
    ]


# Comparison and measurement.


def press_compare(found: Found | None, methods: list[str], alpha: float, colormap: str) -> list[tuple[Any, str]]:
    """Compare: a small overlay per method, for what is shown."""
    found = needed(found)
    ordered = [method for method in quick_methods() if method in (methods or ())]
    comparison = compared(found.current.image, found.settings, ordered, found.shown)
    return [(thumbnail(one, alpha, colormap, 480), get_method(one.method).name) for one in comparison.explanations]


def press_measure(found: Found | None) -> list[Any]:
    """Measure: how the confidence follows the map, as three curves, two bars and a table."""
    found = needed(found)
    evaluation = judged(found.current.image, found.settings, found.current)
    plots = plots_of(evaluation, found.current.method)
    heights = [0.0, *plots["drop"]["drop"]]
    bars = gr.BarPlot(plots["drop"], y_lim=[min(heights), max(heights) or 1.0])  # bars that do not start at 0 lie
    return [gr.Column(visible=True), *(plots[plot] for plot in LINES), bars, table_of(evaluation)]
