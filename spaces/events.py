"""What happens when a visitor arrives, presses a button, chooses or clicks."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
import jobs
import wording
from gradio.context import LocalContext
from limits import Refused
from models import MODELS, checked, demos
from overlays import drawn, enlarged, framed, marked, saved, thumbnail
from scores import explained_baselines, findings_of, plots_of, table_of
from scratch import new_folder
from starts import PROMPTS, Start, digest, example_for, is_example, model_for, starts, tab_of_model
from work import (
    COMPARED,
    CURVES,
    Found,
    Judgement,
    compared,
    explained,
    judged,
    layers_of,
    likely,
    read_inputs,
    snippet,
    tab_of,
)

from hf_cam import Explanation
from hf_cam.comparison import quick_methods
from hf_cam.errors import HFCamError, UnexpectedError
from hf_cam.methods import get_method

VISITORS = 16
"""How many visitors' events run at once, computing or waiting for a model; the others queue."""
QUEUE: dict[str, Any] = {"concurrency_id": "work", "concurrency_limit": VISITORS}
"""Options of every event that computes."""
DEFAULT_LAYER = ("default", "")
COLORMAP = "inferno"
"""Its colours differ in brightness too, so that the colour-blind see the same map."""
OPACITY = 0.6
DEFAULTS = ("", PROMPTS, "auto", "", False, False, "fast")
"""Target, prompts, method, layers, both smoothings and effort as they stand at first."""


# Events in general.


def as_event(work: Callable[..., Any], *, alone: bool = False, visit: str = "") -> Callable[..., Any]:
    """The work as an event handler that reports progress and can be stopped.

    A refusal reaches the visitor as its sentence, which browsers show as HTML and which may quote what strangers wrote;
    any other error is logged, and the visitor sees only its type.

    Args:
        work: What the event does.
        alone: Whether it ends the visit's other work first, whose results would be of another explanation.
        visit: Whose work it is; that of the visitor who caused it where not given.
    """

    @functools.wraps(work)
    async def event(*given: Any) -> Any:
        whose = visit or _visit()
        if alone:
            jobs.end(whose)
        try:
            with _refusals():
                return await jobs.run(work, *given, visit=whose)
        except jobs.Stopped:
            return gr.skip()

    return event


def as_stream(work: Callable[..., Any], shown: Callable[..., Any]) -> Callable[..., Any]:
    """Like `as_event`, for work that emits parts of its result.

    Args:
        work: What the event does.
        shown: What the components get, from a part and what the work was given.
    """

    @functools.wraps(work)
    async def event(*given: Any) -> AsyncIterator[Any]:
        with _refusals(), contextlib.suppress(jobs.Stopped):
            async with contextlib.aclosing(jobs.stream(work, *given, visit=_visit())) as parts:
                async for part in parts:
                    yield shown(part, *given)

    return event


def _visit() -> str:
    request = LocalContext.request.get(None)
    return "" if request is None else request.session_hash or ""


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn what goes wrong inside into what the visitor may read."""
    try:
        yield
    except Exception as error:
        if isinstance(error, HFCamError) and not isinstance(error, UnexpectedError):
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from error
        logging.getLogger("hf_cam.interfaces.space").exception("a visit failed")
        kind = type(error.__cause__ if isinstance(error, UnexpectedError) else error).__name__
        raise gr.Error(f"That did not work here ({kind}).", print_exception=False) from error


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


# First views: what the page shows at once, because a model, a tab or an example was chosen.


def first_view(model: str, file: str) -> Found:
    """The picture explained by the model, with all settings at their defaults; kept for the next visitor."""
    return _kept_view(model, file) if model in demos() else _first_view(model, file)


def _first_view(model: str, file: str) -> Found:
    target, prompts, *rest = DEFAULTS
    picture, settings = read_inputs(file, model, target, prompts, *rest)  # type: ignore[arg-type]
    return dataclasses.replace(likely(explained(picture, settings)), asked=asked_of(file, model, *DEFAULTS))


_kept_view = functools.lru_cache(maxsize=32)(_first_view)


def welcome() -> Found:
    """What the page shows before the visitor has pressed anything."""
    first = next(iter(starts().values()))
    return first_view(first.model, first.file)


def begin(model: str, file: str, alpha: float, colormap: str) -> list[Any]:
    """A first view: the tab, the picture and the settings that lead to it, and all that it fills."""
    found = first_view(model, file)
    target, prompts, method, _, aug_smooth, eigen_smooth, effort = DEFAULTS
    settings = [target, prompts_box(model, prompts), method, layer_menu(model), aug_smooth, eigen_smooth, effort]
    return [*tabs_at(model), file, model, *settings, *opened(found, alpha, colormap)]


def arrive(at: str, alpha: float, colormap: str) -> list[Any]:
    """The first view of all; a visitor who has opened another tab meanwhile stays there."""
    tab, first = next(iter(starts().items()))
    if at != tab:
        return untouched_view()
    return [gr.skip(), *begin(first.model, first.file, alpha, colormap)[1:]]


def portraits() -> list[Any]:
    """The pictures of the first views' buttons, each with its map."""
    return [gr.Button(icon=_portrait(start)) for start in starts().values()]


@functools.cache
def _portrait(start: Start) -> str:
    return portrait_of(first_view(start.model, start.file).current)


def portrait_of(explanation: Explanation) -> str:
    """A small overlay as a file."""
    file = new_folder("portrait-") / "map.jpg"
    thumbnail(explanation, OPACITY, COLORMAP).save(file, quality=90)
    return str(file)


def take(file: str, model: str, alpha: float, colormap: str) -> list[Any]:
    """An example was chosen: it is explained by the current model, or by one that goes with it."""
    return begin(model_for(file, model), file, alpha, colormap)


def turn(model: str, picture: str | None, alpha: float, colormap: str) -> list[Any]:
    """A model was chosen: an example gives way to one that goes with the model; the visitor's own picture stays."""
    name = checked(model)
    if is_example(picture):
        return begin(name, example_for(name), alpha, colormap)
    settings = [gr.skip(), prompts_box(name), gr.skip(), layer_menu(name), *[gr.skip()] * 3]
    return [*tabs_at(name), gr.skip(), name, *settings, *untouched()]


def enter(tab: str, at: str, picture: str | None, alpha: float, colormap: str) -> list[Any]:
    """A tab was opened: its first model is taken, unless the page is at this tab already.

    A tab that the page itself opens causes the same event, which must not end the work that opened it.

    Args:
        tab: The tab.
        at: The tab of what the page was last filled with, which the server keeps: what the browser would send as the
            model may be older than that.
        picture, alpha, colormap: What is on the page.
    """
    if at == tab:
        return untouched_view()
    jobs.supersede()
    return turn(starts()[tab].model, picture, alpha, colormap)


def tabs_at(model: str) -> list[Any]:
    """The tabs, with the model's opened, and its name for the server."""
    tab = tab_of_model(model)
    return [gr.Tabs(selected=tab), tab]


def prompts_box(model: str, prompts: Any = None) -> gr.Textbox:
    """The prompts, shown where the model takes them."""
    changes = {} if prompts is None else {"value": prompts}
    return gr.Textbox(visible=MODELS.kind(model).takes_text, **changes)


def layer_menu(model: str | None) -> gr.Dropdown:
    """The menu of the model's layers, the default first; the default alone where no model is chosen."""
    names = layers_of(checked(model)) if model else ()
    return gr.Dropdown([DEFAULT_LAYER, *((name, name) for name in names)], value="")


# What is on screen, and whether it is what was asked for.


def asked_of(picture: str | None, model: Any, *settings: Any) -> tuple[Any, ...]:
    """What the page asks for, comparable with what it asked for before."""
    return digest(picture), model or "", *(setting or "" for setting in settings)


def settle(found: Found | None, *asked: Any) -> list[Any]:
    """Grey what is on screen, and close what would use it, unless it is what the page asks for now.

    Returns:
        The note, three downloads, and the buttons of the comparison and of the measures.
    """
    current = found is not None and found.asked == asked_of(*asked)
    return [gr.HTML(visible=found is not None and not current), *[gr.update(interactive=current)] * 5]


def emptied(picture: str | None) -> list[Any]:
    """Without a picture there is nothing to show."""
    if picture:
        return untouched()
    shown = [None, wording.CHOOSE, "", gr.HTML("", visible=False), "", None, None, None]
    return [None, [], gr.Image(None, visible=False), *shown, *cleared()]


def untouched_view() -> list[Any]:
    """What a first view fills stays as it is."""
    return [gr.skip()] * (4 + len(DEFAULTS)) + untouched()


def untouched() -> list[Any]:
    """What an explanation fills stays as it is."""
    return [gr.skip()] * (3 + 8 + len(cleared()))


def kept(found: Found | None, made: Made | None, judged_of: Found | None) -> list[Any]:
    """Clear a comparison or measures that arrived late, of a map that is no longer shown."""
    compared_now = made is None or made.of.shows(found)
    judged_now = judged_of is None or judged_of.shows(found)
    nothing = cleared()
    comparison = [gr.skip()] * 3 if compared_now else nothing[:3]
    return [*comparison, *([gr.skip()] * len(nothing[3:]) if judged_now else nothing[3:])]


# Explanations.


def press_explain(
    path: str | None,
    model: str | None,
    target: str | None,
    prompts: str | None,
    method: str | None,
    layers: str | None,
    aug_smooth: bool,
    eigen_smooth: bool,
    effort: str | None,
    alpha: float,
    colormap: str,
) -> list[Any]:
    """Explain: everything that the picture and the settings lead to."""
    asked = (model, target, prompts, method, layers, aug_smooth, eigen_smooth, effort)
    return _explain(target, path, *asked, alpha, colormap)


def _explain(wanted: Any, path: str | None, *settings: Any) -> list[Any]:
    """Explain the wanted target, which may differ from the one that stands on the page.

    Args:
        wanted: The target.
        path: The picture.
        settings: What stands on the page, in the order of `press_explain`.
    """
    *asked, alpha, colormap = settings
    model, _, *rest = asked
    picture, read = read_inputs(path, model, wanted, *rest)
    shown = asked_of(path, *asked)
    return opened(dataclasses.replace(likely(explained(picture, read)), asked=shown), alpha, colormap)


def choose(found: Found | None, alpha: float, colormap: str, event: gr.SelectData) -> list[Any]:
    """A click on one of the thumbnails."""
    chosen = needed(found).choosing(event.index)
    return [chosen, *show(chosen, alpha, colormap), *cleared()]


def point(event: gr.SelectData, path: str, found: Found | None, *settings: Any) -> list[Any]:
    """A click into the outlined picture: the smallest object under it, or else the pixel as a new target."""
    found = needed(found)
    factor = enlarged(found.current.image).width / found.current.image.width
    pixel = event.index[0] / factor, event.index[1] / factor
    chosen = under(pixel, found)
    if chosen is None:
        return _explain(pixel, path, *settings)
    gallery = gr.Gallery(selected_index=chosen.shown)
    return [chosen, gallery, gr.skip(), *show(chosen, *settings[-2:]), *cleared()]


def under(pixel: tuple[float, float], found: Found) -> Found | None:
    """The object with the smallest box around the pixel; None where no box is around it."""
    x, y = pixel
    areas = {
        i: (box[2] - box[0]) * (box[3] - box[1])
        for i, one in enumerate(found.explanations)
        if (box := one.box) is not None and box[0] <= x <= box[2] and box[1] <= y <= box[3]
    }
    return found.choosing(min(areas, key=areas.__getitem__)) if areas else None


def recolour(found: Found | None, made: Made | None, alpha: float, colormap: str) -> list[Any]:
    """All maps on screen in other colours; no model runs."""
    if found is None:
        return [gr.skip()] * 10
    gallery = gr.update(value=thumbnails(found, alpha, colormap), selected_index=found.shown)
    return [*show(found, alpha, colormap), gallery, grid_of(made, alpha, colormap) if made else gr.skip()]


def opened(found: Found, alpha: float, colormap: str) -> list[Any]:
    """Everything that a new explanation fills."""
    gallery = gr.update(value=thumbnails(found, alpha, colormap), selected_index=found.shown)
    clickable = tab_of(MODELS.kind(found.settings.model)) in ("detect", "segment")
    large = gr.update(value=marked(found) if clickable else None, visible=clickable)
    return [found, gallery, large, *show(found, alpha, colormap), *cleared()]


def show(found: Found, alpha: float, colormap: str) -> list[Any]:
    """The chosen explanation in every form: the map, the words, the code and the files."""
    current = found.current.changed(heatmap=found.current.heatmap)  # which is made anew each time that it is read
    own = current.overlay(alpha, colormap)
    picture = enlarged(current.image)
    overlay = own if picture.size == own.size else drawn(current, alpha, colormap)
    return [
        (picture, framed(current, overlay)),
        wording.sentence(found),
        wording.legend(current, colormap),
        gr.HTML(done := wording.effort(found), visible=bool(done)),
        snippet(found, alpha, colormap),
        *saved(current, own),
    ]


def cleared() -> list[Any]:
    """Nothing for the comparison and the measures, which belonged to another explanation."""
    return [None, [], "", None, "", gr.Column(visible=False), "", ""]


def thumbnails(found: Found, alpha: float, colormap: str) -> list[tuple[Any, str]]:
    """A small overlay per explanation, with its label and score."""
    return [
        (thumbnail(one, alpha, colormap), f"{one.label.split(',')[0]} · {wording.score_of(one)}")
        for one in found.explanations
    ]


# Comparison and measurement.


@dataclass(frozen=True, eq=False)
class Made:
    """A comparison that is shown: what it is of, and its explanations."""

    of: Found
    explanations: Sequence[Explanation]


def press_compare(found: Found | None, methods: list[str], alpha: float, colormap: str) -> list[Any]:
    """Compare: a small overlay per method, for what is shown."""
    found = needed(found)
    chosen = [method for method in quick_methods() if method in (methods or ())]
    ordered = sorted(chosen, key=lambda method: method == COMPARED[-1])  # the baseline comes last
    comparison = compared(found.current.image, found.settings, ordered, found.shown)
    made = Made(found, comparison.explanations)
    return [made, grid_of(made, alpha, colormap), wording.compared(made.explanations, comparison.skipped)]


def grid_of(made: Made, alpha: float, colormap: str) -> list[tuple[Any, str]]:
    """The maps of a comparison, each under its method's name."""
    return [(thumbnail(one, alpha, colormap, 480), get_method(one.method).name) for one in made.explanations]


def press_measure(found: Found | None) -> Judgement:
    """Measure: the verdict, and how the confidence follows the map."""
    return judged(needed(found), CURVES, verdict=True)


def trusted(judgement: Judgement, found: Found) -> list[Any]:
    """What is known of a map so far, in every form: the verdict, the curves, the sentences and the table."""
    table = judgement.table
    plots = plots_of(table)
    told = "\n".join(f"- {finding}" for finding in findings_of(table))
    return [
        found,
        wording.judgement(judgement),
        gr.Column(visible=bool(table.records)),
        *(plots[metric] for metric in CURVES),
        f"{told}\n\n{explained_baselines()}",
        table_of(table),
    ]
