"""The page: what a visitor sees and presses."""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import jobs
import numpy as np
from gradio.context import LocalContext
from limits import MAX_BYTES
from models import BUILDER, MODELS, checked, demos, offered, online, sees_scenes
from work import (
    KEPT_SECONDS,
    Found,
    Wish,
    compared,
    drawn,
    enlarged,
    explained,
    fresh_folder,
    judged,
    layers_of,
    saved,
    snippet,
    tab_of,
    thumbnail,
    wished,
)

from hf_cam import Evaluation
from hf_cam.comparison import quick_methods
from hf_cam.errors import HFCamError, ModelError
from hf_cam.images.drawing import DEFAULT_COLORMAP
from hf_cam.interfaces.demo import PHOTOGRAPHS
from hf_cam.methods import get_method
from hf_cam.metrics import get_metric
from hf_cam.metrics.trial import PERCENTILES
from hf_cam.zoo import SCENE

TABS = {
    "classify": ("Classify", "The surest classes. Choose one to see what speaks for it."),
    "prompt": ("Prompt", "Type prompts, one a line. Each gets a map of its own."),
    "detect": ("Detect", "What was found. Choose one, or click it in the outlined picture."),
    "segment": ("Segment", "What was found. Choose one, or click any pixel of the outlined picture."),
}
COLORMAPS = (DEFAULT_COLORMAP, "inferno", "viridis", "magma", "cividis", "jet", "bone")
FAMILYS_LAYER = ("the family's own", "")
VISITORS = 16
"""For whom this page works or makes ready at once; further ones queue."""
MAPS = {"this map": "#6366f1", "random map": "#94a3b8"}
"""The lines of the plots and their colours."""
PROMPTS = "yellow bag\norange sneaker\nblue trouser"
HEADLINE = "# What the model looked at\nA vision model's own reasons, as a heatmap over your picture."
ALT = """<script>
new MutationObserver(() => {
  for (const image of document.querySelectorAll("#map img, #examples img"))
    if (!image.alt)
      image.alt = image.closest("#map") ? "The picture and its heatmap" : "Example " + image.src.split("/").pop();
}).observe(document.documentElement, { childList: true, subtree: true, attributeFilter: ["alt", "src"] });
</script>"""
"""Words for pictures whose components take none."""


def as_uploaded(picture: gr.Image) -> gr.Image:
    """The component gives the uploaded file itself: nothing opens it before `limits` has looked at it.

    A subclass would do the same, but gradio writes a stub file beside the module of each.
    """
    picture.preprocess = lambda payload: payload and payload.path
    return picture


def told(work: Callable[..., Any]) -> Callable[..., Any]:
    """The work as an event: it can be stopped, and says how far it is.

    A refusal reaches the visitor as its sentence; anything else is logged and told in general words.
    """

    @functools.wraps(work)
    async def safe(*given: Any) -> Any:
        visit = getattr(LocalContext.request.get(None), "session_hash", None) or ""
        try:
            return await jobs.run(work, *given, visit=visit)
        except HFCamError as error:
            raise gr.Error(" ".join(str(error).split()), print_exception=False) from error
        except jobs.Stopped:
            return gr.skip()
        except gr.Error:
            raise
        except Exception as error:
            logging.getLogger("hf_cam.interfaces.space").exception("a visit failed")
            raise gr.Error(f"That did not work here ({type(error).__name__}).", print_exception=False) from error

    return safe


def stopped(request: gr.Request) -> None:
    """The visitor pressed Stop, or closed the page: nobody waits for the work any more."""
    jobs.end(request.session_hash or "")


def few_methods() -> list[str]:
    """The registry's first ones, and the baseline that they must beat."""
    return [*[method for method in quick_methods() if method != "randomcam"][:4], "randomcam"]


def method_choices() -> list[tuple[str, str]]:
    """Names and ids, from the library's registry."""
    return [("the family's best", "auto"), *((get_method(method).name, method) for method in quick_methods())]


@functools.cache
def examples() -> dict[str, str]:
    """Pictures that need no network, as files."""
    folder = Path(tempfile.mkdtemp(prefix="hf-cam-examples-"))
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


# What the events do. `Shown` is what `show` fills: map, words, code and files.


def show(found: Found, alpha: float, colormap: str) -> list[Any]:
    """The chosen explanation, in every form."""
    current = found.current
    return [
        (enlarged(current.image), drawn(current, alpha, colormap)),
        words(found),
        snippet(found, alpha, colormap),
        *saved(current, alpha, colormap),
    ]


def words(found: Found) -> str:
    """What the map shows, in a sentence."""
    current = found.current
    flags = "".join(f" · {flag}" for flag in current.flags)
    layers = ", ".join(f"`{layer}`" for layer in current.layers)
    score = f"{current.score:.0%}" if 0 <= current.score <= 1 else f"{current.score:.3g}"
    return f"**{current.label}** · {score} · {get_method(current.method).name} at {layers}{flags}"


def thumbnails(found: Found, alpha: float, colormap: str) -> list[tuple[Any, str]]:
    """Every explanation in small, with its name and score."""
    return [
        (thumbnail(one, alpha, colormap), f"{one.label.split(',')[0]} · {one.score:.0%}") for one in found.explanations
    ]


def press(
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
    """The button."""
    picture, wish = wished(path, model, target, prompts, method, layers, aug_smooth, eigen_smooth)
    return opened(explained(picture, wish), alpha, colormap)


def opened(found: Found, alpha: float, colormap: str) -> list[Any]:
    """Everything below the button, for something new."""
    gallery = gr.Gallery(thumbnails(found, alpha, colormap), selected_index=0)
    clickable = tab_of(MODELS.kind(found.wish.model)) in ("detect", "segment")
    large = gr.Image(marked(found) if clickable else None, visible=clickable)
    return [found, gallery, large, *show(found, alpha, colormap), *cleared()]


def cleared() -> list[Any]:
    """What was compared and measured of something else."""
    return [None, gr.Column(visible=False), ""]


def marked(found: Found) -> Any:
    """The picture with what was found outlined."""
    from hf_cam.images.drawing import outlined

    picture = enlarged(found.current.image)
    factor = picture.width / found.current.image.width
    for one in found.explanations:
        box = None if one.box is None else [factor * value for value in one.box]
        mask = None
        if one.mask is not None:
            rows = (np.arange(picture.height) / factor).astype(int).clip(max=one.mask.shape[0] - 1)
            columns = (np.arange(picture.width) / factor).astype(int).clip(max=one.mask.shape[1] - 1)
            mask = one.mask[rows][:, columns]
        picture = outlined(picture, box, mask)
    return picture


@functools.cache
def welcome() -> Found:
    """What the page shows before anybody has pressed anything."""
    model = next(iter(demos()))
    picture, wish = wished(example_for(model), model, None, PROMPTS, "auto", "", False, False)
    found: Found = explained(picture, wish)
    return found


def choose(found: Found | None, alpha: float, colormap: str, event: gr.SelectData) -> list[Any]:
    """A click on one of the things that were found."""
    if found is None:
        raise gr.Error("Press Explain first.", print_exception=False)
    chosen = Found(found.wish, found.explanations, min(event.index, len(found.explanations) - 1))
    return [chosen, *show(chosen, alpha, colormap), *cleared()]


def point(event: gr.SelectData, path: str, found: Found | None, *settings: Any) -> list[Any]:
    """A click into the picture: the smallest object under it, or else the pixel itself as a new target."""
    *given, alpha, colormap = settings
    if found is None:
        raise gr.Error("Press Explain first.", print_exception=False)
    factor = enlarged(found.current.image).width / found.current.image.width
    x, y = event.index[0] / factor, event.index[1] / factor
    under = [i for i, one in enumerate(found.explanations) if one.box is not None and _inside(one.box, x, y)]
    if under:
        chosen = Found(found.wish, found.explanations, min(under, key=lambda i: _area(found.explanations[i].box)))
        gallery = gr.Gallery(selected_index=chosen.shown)
        return [chosen, gallery, gr.skip(), *show(chosen, alpha, colormap), *cleared()]
    model, _, *rest = given
    return press(path, model, (x, y), *rest, alpha, colormap)


def _inside(box: Sequence[float], x: float, y: float) -> bool:
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def _area(box: Any) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def layer_menu(model: str) -> gr.Dropdown:
    """The model's layers; its family's own first."""
    names = layers_of(model)
    return gr.Dropdown([FAMILYS_LAYER, *((name, name) for name in names)], value="")


def recolour(found: Found | None, alpha: float, colormap: str) -> list[Any]:
    """Other colours for the map that is there; no model runs."""
    return show(found, alpha, colormap) if found else [gr.skip()] * 6


def press_compare(found: Found | None, methods: list[str], alpha: float, colormap: str) -> list[tuple[Any, str]]:
    """Several methods for what is shown."""
    if found is None:
        raise gr.Error("Press Explain first.", print_exception=False)
    ordered = [method for method in quick_methods() if method in methods]
    comparison = compared(found.current.image, found.wish, ordered, found.shown)
    return [(thumbnail(one, alpha, colormap, 480), get_method(one.method).name) for one in comparison.explanations]


def trust(found: Found | None) -> list[Any]:
    """How the confidence follows what is shown: three curves, the drops and a table."""
    import pandas as pd

    if found is None:
        raise gr.Error("Press Explain first.", print_exception=False)
    table = judged(found.current.image, found.wish, found.current)
    names = dict(zip((found.current.method, "noise"), MAPS, strict=True))
    drawn_maps = [record for record in table.records if record.map in names]
    curves: dict[str, list[dict[str, Any]]] = {"inserted": [], "deleted": [], "road": []}
    for record in drawn_maps:
        most, least = record.curves["most_first"], record.curves["least_first"]
        points = {
            **{name: _evenly(record.curves[name]) for name in ("inserted", "deleted")},
            "road": [(1 - p / 100, (b - a) / 2) for p, a, b in zip(PERCENTILES, most, least, strict=True)][::-1],
        }
        for name, line in points.items():
            curves[name] += [{"pixels": round(x, 3), "score": y, "map": names[record.map]} for x, y in line]
    drops = [{"map": names[record.map], "drop": record.scores["confidence-drop"]} for record in drawn_maps]
    heights = [0.0, *(one["drop"] for one in drops)]
    bars = gr.BarPlot(pd.DataFrame(drops), y_lim=[min(heights), max(heights) or 1.0])  # bars that do not start at 0 lie
    return [gr.Column(visible=True), *map(pd.DataFrame, curves.values()), bars, scores_of(table)]


def _evenly(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(i / (len(values) - 1), value) for i, value in enumerate(values)]


def scores_of(table: Evaluation) -> str:
    """A line a map, the best first; arrows show which way is better."""
    records = {record.map: record for record in table.records}
    heads = [f"{get_metric(name).name} {'↑' if get_metric(name).higher_is_better else '↓'}" for name in table.metrics]
    lines = ["| map | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for row in table.rows:
        cells = [f"{records[row.map].scores[name]:.3f}" for name in table.metrics]
        lines.append("| " + " | ".join([map_name(row.map), *cells]) + " |")
    return "\n".join(lines)


def map_name(name: str) -> str:
    """A method's name, or a baseline's."""
    if name == "noise":
        return "random"
    return get_method(name).name if name in quick_methods() else name


def curves_of(table: Evaluation) -> dict[str, Any]:
    """Scores and curves by map, for programs."""
    return {
        "random" if record.map == "noise" else record.map: {
            "scores": dict(record.scores),
            "curves": {name: [float(value) for value in values] for name, values in record.curves.items()},
        }
        for record in table.records
    }


# The API: the same functions with explicit parameters.


def api_explain(
    image: str,
    model: str,
    target: str,
    prompts: str,
    method: str,
    layers: str,
    top_k: float,
    aug_smooth: bool,
    eigen_smooth: bool,
    alpha: float,
    colormap: str,
) -> tuple[list[dict[str, Any]], list[str], str]:
    """What was found, an overlay each as PNG, and all heatmaps as one array `[K, H, W]`."""
    picture, wish = wished(image, model, target, prompts, method, layers, aug_smooth, eigen_smooth, int(top_k or 0))
    found = explained(picture, wish).explanations
    folder = fresh_folder()
    overlays = [str(one.save(folder / f"overlay-{i}.png", alpha, colormap)) for i, one in enumerate(found)]
    np.save(folder / "heatmaps.npy", np.stack([one.heatmap for one in found]))
    described = [
        {
            "label": one.label,
            "score": one.score,
            "box": one.box and [float(value) for value in one.box],
            "method": one.method,
            "layers": list(one.layers),
            "flags": list(one.flags),
        }
        for one in found
    ]
    return described, overlays, str(folder / "heatmaps.npy")


def api_compare(
    image: str, model: str, methods: list[str], target: str, prompts: str, layers: str, alpha: float, colormap: str
) -> tuple[str, str]:
    """The grid as PNG, and the heatmaps by method as NPZ."""
    picture, wish = wished(image, model, target, prompts, "auto", layers, False, False)
    comparison = compared(picture, wish, methods)
    folder = fresh_folder()
    comparison.grid(alpha=alpha, colormap=colormap).save(folder / "grid.png")
    np.savez(folder / "heatmaps.npz", **{one.method: one.heatmap for one in comparison.explanations})
    return str(folder / "grid.png"), str(folder / "heatmaps.npz")


def api_metrics(image: str, model: str, method: str, target: str, prompts: str, layers: str) -> dict[str, Any]:
    """Scores and curves of the first map, and of maps that see no model."""
    picture, wish = wished(image, model, target, prompts, method, layers, False, False)
    found = explained(picture, wish)
    return curves_of(judged(picture, wish, found.current))


# The layout.


def build() -> gr.Blocks:
    """The page."""
    first = next(iter(demos()))
    with gr.Blocks(title="What the model looked at", delete_cache=(600, KEPT_SECONDS)) as page:
        found = gr.State(None, time_to_live=KEPT_SECONDS)
        gr.Markdown(HEADLINE, elem_id="title")
        with gr.Tabs(selected=tab_of(demos()[first]), overflow_behavior="wrap", elem_id="task") as tabs:
            tab_items = {}
            for tab, (name, hint) in TABS.items():
                with gr.Tab(name, id=tab) as tab_items[tab]:
                    gr.Markdown(hint, elem_id="hint")
        with gr.Row(equal_height=False, elem_id="columns"):
            with gr.Column(scale=4, min_width=300):
                picture = as_uploaded(
                    gr.Image(
                        example_for(first),
                        label="Picture",
                        show_label=False,
                        type="filepath",
                        image_mode=None,
                        height=280,
                        sources=["upload", "clipboard", "webcam"],
                        buttons=[],
                        elem_id="picture",
                        alt_text="The picture to explain",
                    )
                )
                gr.Examples([[file] for file in examples().values()], picture, label="Examples", elem_id="examples")
                model = gr.Dropdown(
                    offered(),
                    value=first,
                    label="Model",
                    allow_custom_value=online(),
                    info="Any id of the Hub works too." if online() else None,
                    elem_id="model",
                )
                prompts = gr.Textbox(
                    PROMPTS, label="Prompts", lines=3, max_length=4000, visible=False, elem_id="prompts"
                )
                method = gr.Dropdown(method_choices(), value="auto", label="Method", elem_id="method")
                layers = gr.Dropdown([FAMILYS_LAYER], value="", label="Layer", elem_id="layer")
                with gr.Accordion("More", open=False):
                    target = gr.Textbox(
                        label="Target",
                        placeholder="what the model found",
                        info="A class, a pixel x,y or a box x0,y0,x1,y1.",
                    )
                    aug_smooth = gr.Checkbox(label="Average over six views")
                    eigen_smooth = gr.Checkbox(label="First principal component")
                with gr.Row():
                    go = gr.Button("Explain", variant="primary", elem_id="go", scale=3)
                    stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=70)
                large = gr.Image(
                    label="Click what you want explained",
                    visible=False,
                    interactive=False,
                    format="jpeg",
                    buttons=[],
                    elem_id="large",
                    alt_text="The picture with what was found outlined; click to choose",
                )
            with gr.Column(scale=7, min_width=320):
                says = gr.Markdown(elem_id="says")
                slider = gr.ImageSlider(
                    label="Picture and map",
                    show_label=False,
                    format="jpeg",
                    max_height=560,
                    slider_position=0,
                    buttons=["fullscreen"],
                    elem_id="map",
                    interactive=False,
                )
                gallery = gr.Gallery(
                    label="Found",
                    show_label=False,
                    columns=5,
                    height="auto",
                    allow_preview=False,
                    format="jpeg",
                    object_fit="contain",
                    buttons=[],
                    fit_columns=False,
                    elem_id="found",
                )
                with gr.Row():
                    alpha = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity", elem_id="alpha")
                    colormap = gr.Dropdown(list(COLORMAPS), value=DEFAULT_COLORMAP, label="Colours", elem_id="colours")
                with gr.Tabs(overflow_behavior="wrap", elem_id="more"):
                    with gr.Tab("Download"):
                        with gr.Row():
                            overlay_file = gr.DownloadButton("Overlay", elem_id="overlay-file")
                            picture_file = gr.DownloadButton("Heatmap, PNG", elem_id="picture-file")
                            numbers_file = gr.DownloadButton("Heatmap, NPY", elem_id="numbers-file")
                        code = gr.Code(language="python", label="The same in Python", interactive=False, elem_id="code")
                    with gr.Tab("Compare"):
                        methods = gr.CheckboxGroup(
                            method_choices()[1:],
                            value=few_methods(),
                            label="Methods",
                            elem_id="methods",
                        )
                        with gr.Row():
                            compare_go = gr.Button("Compare", variant="primary", elem_id="compare-go", scale=3)
                            compare_stop = gr.Button("Stop", elem_id="compare-stop", scale=1, min_width=70)
                        grid = gr.Gallery(
                            label="The same target by each method",
                            show_label=False,
                            columns=3,
                            height="auto",
                            format="jpeg",
                            object_fit="contain",
                            buttons=[],
                            elem_id="grid",
                        )
                    with gr.Tab("Trust"):
                        gr.Markdown(
                            "Where the map is right, uncovering its pixels brings the score back at once, and "
                            "blanking them takes it away. A random map is the measure.",
                            elem_id="hint",
                        )
                        with gr.Row():
                            trust_go = gr.Button("Measure", variant="primary", elem_id="trust-go", scale=3)
                            trust_stop = gr.Button("Stop", elem_id="trust-stop", scale=1, min_width=70)
                        scores = gr.Markdown(elem_id="scores")
                        with gr.Column(visible=False, elem_id="curves") as curves:
                            with gr.Row(elem_classes="plots"):
                                inserted = _plot("Insertion", "share of the pixels uncovered")
                                deleted = _plot("Deletion", "share of the pixels blanked")
                            with gr.Row(elem_classes="plots"):
                                road = _plot("ROAD", "share of the pixels imputed")
                                drop = gr.BarPlot(
                                    x="map",
                                    y="drop",
                                    color="map",
                                    color_map=MAPS,
                                    title="Confidence drop",
                                    x_title=" ",
                                    y_title="drop",
                                    color_title=" ",
                                    height=260,
                                )

        colours = [alpha, colormap]
        wish = [model, target, prompts, method, layers, aug_smooth, eigen_smooth]
        shown = [slider, says, code, overlay_file, picture_file, numbers_file]
        of_another = [grid, curves, scores]
        everything = [found, gallery, large, *shown, *of_another]
        work = {"api_visibility": "private", "concurrency_id": "work", "concurrency_limit": VISITORS}
        on_map = {**work, "show_progress_on": [slider]}
        at_once = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 8}

        page.load(told(arrive), colours, [*everything, layers], **on_map)
        go.click(told(press), [picture, *wish, *colours], everything, **on_map)
        large.select(told(point), [picture, found, *wish, *colours], everything, **on_map)
        model.change(told(follow), [model, picture], [tabs, prompts, picture, layers], **on_map)
        compare_go.click(told(press_compare), [found, methods, *colours], grid, **work)
        judgement = [curves, inserted, deleted, road, drop, scores]
        trust_go.click(told(trust), found, judgement, show_progress_on=[scores], **work)
        for button in (stop, compare_stop, trust_stop):
            button.click(stopped, queue=False, **at_once)
        gallery.select(told(choose), [found, *colours], [found, *shown, *of_another], **at_once)
        for control in colours:
            control.change(told(recolour), [found, *colours], shown, trigger_mode="always_last", **at_once)
        for tab, item in tab_items.items():
            item.select(functools.partial(model_under, tab), model, model, **at_once)
        page.unload(stopped)
        _endpoints()
    return page


def _plot(title: str, what: str) -> gr.LinePlot:
    return gr.LinePlot(
        x="pixels",
        y="score",
        color="map",
        color_map=MAPS,
        title=title,
        x_title=what,
        y_title="score",
        color_title=" ",
        height=260,
    )


def arrive(alpha: float, colormap: str) -> list[Any]:
    """What a visitor finds."""
    found = welcome()
    return [*opened(found, alpha, colormap), layer_menu(found.wish.model)]


def model_under(tab: str, model: str) -> Any:
    """The first model of a tab that was opened, unless the model belongs there already."""
    kinds = demos()
    if model not in kinds or tab_of(kinds[model]) == tab:
        return gr.skip()
    return next((name for name, kind in kinds.items() if tab_of(kind) == tab), gr.skip())


def follow(model: str, picture: str | None) -> list[Any]:
    """Tab, prompts, example and layers follow the model."""
    name = checked(model)
    kind = MODELS.kind(name)
    untouched = picture is None or Path(picture).name in {Path(file).name for file in examples().values()}
    shown = example_for(model) if untouched else gr.skip()
    return [gr.Tabs(selected=tab_of(kind)), gr.Textbox(visible=kind.takes_text), shown, layer_menu(name)]


def _endpoints() -> None:
    """`/explain`, `/compare` and `/metrics`, on components that nobody sees."""
    work = {"concurrency_id": "work", "concurrency_limit": VISITORS}
    with gr.Row(visible=False):
        image = gr.File(type="filepath", label="image")
        model = gr.Textbox(next(iter(demos())), label="model")
        target, prompts, layers = (
            gr.Textbox("", label="target"),
            gr.Textbox("", label="prompts"),
            gr.Textbox("", label="layers"),
        )
        method = gr.Textbox("auto", label="method")
        methods = gr.JSON(few_methods(), label="methods")
        top_k = gr.Number(0, label="top_k", precision=0)
        aug_smooth, eigen_smooth = gr.Checkbox(False, label="aug_smooth"), gr.Checkbox(False, label="eigen_smooth")
        alpha, colormap = gr.Number(0.5, label="alpha"), gr.Textbox(DEFAULT_COLORMAP, label="colormap")
        described, table = gr.JSON(label="found"), gr.JSON(label="metrics")
        overlays = gr.File(label="overlays", file_count="multiple")
        heatmaps, grid = gr.File(label="heatmaps"), gr.File(label="grid")
        gr.Button().click(
            told(api_explain),
            [image, model, target, prompts, method, layers, top_k, aug_smooth, eigen_smooth, alpha, colormap],
            [described, overlays, heatmaps],
            api_name="explain",
            **work,
        )
        gr.Button().click(
            told(api_compare),
            [image, model, methods, target, prompts, layers, alpha, colormap],
            [grid, heatmaps],
            api_name="compare",
            **work,
        )
        gr.Button().click(
            told(api_metrics), [image, model, method, target, prompts, layers], table, api_name="metrics", **work
        )


def serve(page: gr.Blocks, **options: Any) -> Any:
    """Start the server; `options` are those of `launch`."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    theme = gr.themes.Default(
        primary_hue="indigo", neutral_hue="slate", radius_size="lg", font=fonts, font_mono=("ui-monospace", "monospace")
    )
    if online():
        BUILDER.start()
    else:
        welcome()  # loads the first model before the first visitor; a Space has no GPU to lend at this point
    page.queue(default_concurrency_limit=2, max_size=32)
    return page.launch(
        theme=theme,
        head=ALT,
        css_paths=Path(__file__).with_name("style.css"),
        max_file_size=MAX_BYTES,
        state_session_capacity=64,
        footer_links=["api"],
        ssr_mode=False,
        **options,
    )


__all__ = ["Wish", "build", "serve"]
