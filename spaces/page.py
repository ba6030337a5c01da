"""The page: what a visitor sees and presses."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from api import endpoints
from audit_room import HEAD, audit_room
from events import (
    DEFAULT_LAYER,
    PROMPTS,
    QUEUE,
    arrive,
    as_event,
    choose,
    example_for,
    examples,
    follow,
    model_under,
    point,
    press_compare,
    press_explain,
    press_measure,
    recolour,
    stopped,
    welcome,
)
from gradio.blocks import Block
from limits import MAX_ARCHIVE
from models import BUILDER, demos, offered, online
from parts import PICTURES, go_and_stop
from scores import MAPS
from scratch import KEPT_SECONDS
from uploads import as_uploaded
from words_room import words_room
from work import default_methods, tab_of

from hf_cam.comparison import quick_methods
from hf_cam.images.drawing import DEFAULT_COLORMAP
from hf_cam.methods import get_method

TABS = {
    "classify": ("Classify", "The most likely classes. Choose one to see the evidence for it."),
    "prompt": ("Prompt", "Type prompts, one per line. Each gets its own map."),
    "detect": ("Detect", "The objects that were found. Choose one, or click it in the outlined picture."),
    "segment": ("Segment", "The segments that were found. Choose one, or click any pixel of the outlined picture."),
}
COLORMAPS = (DEFAULT_COLORMAP, "inferno", "viridis", "magma", "cividis", "jet", "bone")
HEADLINE = "# What the model looked at\nThe parts of your picture that a vision model's answer rests on, as a heatmap."
TRUST = (
    "Where the map is right, uncovering its pixels brings the score back quickly, and blanking them quickly lowers it. "
    "A random map is the baseline."
)
ALT = """<script>
new MutationObserver(() => {
  for (const image of document.querySelectorAll("#map img, #examples img"))
    if (!image.alt)
      image.alt = image.closest("#map") ? "The picture and its heatmap" : "Example " + image.src.split("/").pop();
}).observe(document.documentElement, { childList: true, subtree: true, attributeFilter: ["alt", "src"] });
</script>"""
"""Alternative text for pictures whose components take none."""
GALLERY: dict[str, Any] = {**PICTURES, "height": "auto", "object_fit": "contain", "buttons": []}
PLOT: dict[str, Any] = {"color": "map", "color_map": MAPS, "color_title": " ", "height": 260}


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="What the model looked at", delete_cache=(600, KEPT_SECONDS)) as page:
        found = gr.State(None, time_to_live=KEPT_SECONDS)
        gr.Markdown(HEADLINE, elem_id="title")
        tasks = task_tabs()
        with gr.Row(equal_height=False, elem_id="columns"):
            with gr.Column(scale=4, min_width=300):
                inputs = input_column()
            with gr.Column(scale=7, min_width=320):
                result = result_column()
        wire(page, found, tasks, inputs, result)
        endpoints()
    return page


# The layout. Each part returns a record of its components, so that `wire` can name them.


@dataclass(frozen=True)
class Tasks:
    """The tabs at the top."""

    tabs: gr.Tabs
    items: dict[str, gr.Tab]


def task_tabs() -> Tasks:
    """One tab per task, with a hint, and the rooms that have all they need in their own tab."""
    items = {}
    first = next(iter(demos().values()))
    with gr.Tabs(selected=tab_of(first), overflow_behavior="wrap", elem_id="task") as tabs:
        for tab, (name, hint) in TABS.items():
            with gr.Tab(name, id=tab) as items[tab]:
                gr.Markdown(hint, elem_id="hint")
        words_room()
        audit_room()
    return Tasks(tabs, items)


@dataclass(frozen=True)
class InputColumn:
    """What a visitor gives: a picture, and settings."""

    picture: gr.Image
    model: gr.Dropdown
    prompts: gr.Textbox
    method: gr.Dropdown
    layers: gr.Dropdown
    target: gr.Textbox
    aug_smooth: gr.Checkbox
    eigen_smooth: gr.Checkbox
    go: gr.Button
    stop: gr.Button
    large: gr.Image

    @property
    def settings(self) -> list[Block]:
        """What `events.press_explain` takes after the picture, in its order."""
        return [self.model, self.target, self.prompts, self.method, self.layers, self.aug_smooth, self.eigen_smooth]


def input_column() -> InputColumn:
    """The picture, the settings, the button, and below it the picture to click into."""
    first = next(iter(demos()))
    picture = upload(example_for(first))
    gr.Examples([[file] for file in examples().values()], picture, label="Examples", elem_id="examples")
    model = gr.Dropdown(
        offered(),
        value=first,
        label="Model",
        allow_custom_value=online(),
        info="Any model id on the Hub works too." if online() else None,
        elem_id="model",
    )
    prompts = gr.Textbox(PROMPTS, label="Prompts", lines=3, max_length=4000, visible=False, elem_id="prompts")
    method = gr.Dropdown(method_choices(), value="auto", label="Method", elem_id="method")
    layers = gr.Dropdown([DEFAULT_LAYER], value="", label="Layer", elem_id="layer")
    with gr.Accordion("More", open=False):
        target = gr.Textbox(
            label="Target",
            placeholder="what the model found",
            info="A class, a pixel x,y or a box x0,y0,x1,y1.",
        )
        aug_smooth = gr.Checkbox(label="Average over six views")
        eigen_smooth = gr.Checkbox(label="First principal component")
    go, stop = go_and_stop("Explain")
    large = gr.Image(
        label="Click what you want explained",
        visible=False,
        interactive=False,
        format="jpeg",
        buttons=[],
        elem_id="large",
        alt_text="The picture with outlines around what was found; click to choose",
    )
    return InputColumn(picture, model, prompts, method, layers, target, aug_smooth, eigen_smooth, go, stop, large)


def upload(example: str) -> gr.Image:
    """The picture to explain: uploaded, pasted or photographed."""
    picture = gr.Image(
        example,
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
    return as_uploaded(picture)


def method_choices() -> list[tuple[str, str]]:
    """The library's methods, as names and ids."""
    return [("default for the model", "auto"), *((get_method(method).name, method) for method in quick_methods())]


@dataclass(frozen=True)
class ResultColumn:
    """What a visitor gets: the map, and what can be done with it."""

    says: gr.Markdown
    slider: gr.ImageSlider
    gallery: gr.Gallery
    alpha: gr.Slider
    colormap: gr.Dropdown
    download: DownloadTab
    compare: CompareTab
    trust: TrustTab

    @property
    def colours(self) -> list[Block]:
        """How the map is drawn."""
        return [self.alpha, self.colormap]

    @property
    def shown(self) -> list[Block]:
        """What `events.show` fills, in its order."""
        return [self.slider, self.says, *self.download.parts]

    @property
    def of_another(self) -> list[Block]:
        """What `events.cleared` empties, in its order."""
        return [self.compare.grid, self.trust.curves, self.trust.scores]


def result_column() -> ResultColumn:
    """The map, what else was found, its colours, and the tabs below."""
    says = gr.Markdown(elem_id="says")
    slider = gr.ImageSlider(
        label="Picture and map",
        max_height=560,
        slider_position=0,
        buttons=["fullscreen"],
        elem_id="map",
        interactive=False,
        **PICTURES,
    )
    gallery = gr.Gallery(label="Found", columns=5, allow_preview=False, fit_columns=False, elem_id="found", **GALLERY)
    with gr.Row():
        alpha = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity", elem_id="alpha")
        colormap = gr.Dropdown(list(COLORMAPS), value=DEFAULT_COLORMAP, label="Colours", elem_id="colours")
    with gr.Tabs(overflow_behavior="wrap", elem_id="more"):
        with gr.Tab("Download"):
            download = download_tab()
        with gr.Tab("Compare"):
            compare = compare_tab()
        with gr.Tab("Trust"):
            trust = trust_tab()
    return ResultColumn(says, slider, gallery, alpha, colormap, download, compare, trust)


@dataclass(frozen=True)
class DownloadTab:
    """The map as files and as code."""

    overlay: gr.DownloadButton
    picture: gr.DownloadButton
    numbers: gr.DownloadButton
    code: gr.Code

    @property
    def parts(self) -> list[Block]:
        """The code, and what `work.saved` returns."""
        return [self.code, self.overlay, self.picture, self.numbers]


def download_tab() -> DownloadTab:
    """Three files, and the code that makes the overlay."""
    with gr.Row():
        overlay = gr.DownloadButton("Overlay", elem_id="overlay-file")
        picture = gr.DownloadButton("Heatmap, PNG", elem_id="picture-file")
        numbers = gr.DownloadButton("Heatmap, NPY", elem_id="numbers-file")
    code = gr.Code(language="python", label="The same in Python", interactive=False, elem_id="code")
    return DownloadTab(overlay, picture, numbers, code)


@dataclass(frozen=True)
class CompareTab:
    """Several methods side by side."""

    methods: gr.CheckboxGroup
    go: gr.Button
    stop: gr.Button
    grid: gr.Gallery


def compare_tab() -> CompareTab:
    """The methods to choose from, and their maps."""
    methods = gr.CheckboxGroup(method_choices()[1:], value=default_methods(), label="Methods", elem_id="methods")
    go, stop = go_and_stop("Compare", "compare-")
    grid = gr.Gallery(label="The same target, explained by each method", columns=3, elem_id="grid", **GALLERY)
    return CompareTab(methods, go, stop, grid)


@dataclass(frozen=True)
class TrustTab:
    """How far the map can be trusted."""

    go: gr.Button
    stop: gr.Button
    scores: gr.Markdown
    curves: gr.Column
    inserted: gr.LinePlot
    deleted: gr.LinePlot
    road: gr.LinePlot
    drop: gr.BarPlot

    @property
    def judgement(self) -> list[Block]:
        """What `events.press_measure` fills, in its order."""
        return [self.curves, self.inserted, self.deleted, self.road, self.drop, self.scores]


def trust_tab() -> TrustTab:
    """A table of scores, and four plots that are hidden until there is something to plot."""
    gr.Markdown(TRUST, elem_id="hint")
    go, stop = go_and_stop("Measure", "trust-")
    scores = gr.Markdown(elem_id="scores")
    with gr.Column(visible=False, elem_id="curves") as curves:
        with gr.Row(elem_classes="plots"):
            inserted = line_plot("Insertion", "share of the pixels uncovered")
            deleted = line_plot("Deletion", "share of the pixels blanked")
        with gr.Row(elem_classes="plots"):
            road = line_plot("ROAD", "share of the pixels imputed")
            drop = gr.BarPlot(x="map", y="drop", title="Confidence drop", x_title=" ", y_title="drop", **PLOT)
    return TrustTab(go, stop, scores, curves, inserted, deleted, road, drop)


def line_plot(title: str, share: str) -> gr.LinePlot:
    """The score over a share of the pixels."""
    return gr.LinePlot(x="pixels", y="score", title=title, x_title=share, y_title="score", **PLOT)


# The events.


def wire(page: gr.Blocks, found: gr.State, tasks: Tasks, inputs: InputColumn, result: ResultColumn) -> None:
    """Every event with what it takes and what it fills."""
    shown, colours, compare, trusted = result.shown, result.colours, result.compare, result.trust
    everything = [found, result.gallery, inputs.large, *shown, *result.of_another]
    work = {**QUEUE, "api_visibility": "private"}
    on_map = {**work, "show_progress_on": [result.slider]}
    at_once: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 8}

    page.load(as_event(arrive), colours, [*everything, inputs.layers], **on_map)
    inputs.go.click(as_event(press_explain), [inputs.picture, *inputs.settings, *colours], everything, **on_map)
    inputs.large.select(as_event(point), [inputs.picture, found, *inputs.settings, *colours], everything, **on_map)
    followers = [tasks.tabs, inputs.prompts, inputs.picture, inputs.layers]
    inputs.model.change(as_event(follow), [inputs.model, inputs.picture], followers, **on_map)
    compare.go.click(as_event(press_compare), [found, compare.methods, *colours], compare.grid, **work)
    trusted.go.click(as_event(press_measure), found, trusted.judgement, show_progress_on=[trusted.scores], **work)
    for button in (inputs.stop, compare.stop, trusted.stop):
        button.click(stopped, queue=False, **at_once)
    chosen = [found, *shown, *result.of_another]
    result.gallery.select(as_event(choose), [found, *colours], chosen, **at_once)
    for control in (result.alpha, result.colormap):
        control.change(as_event(recolour), [found, *colours], shown, trigger_mode="always_last", **at_once)
    for tab, item in tasks.items.items():
        item.select(functools.partial(model_under, tab), inputs.model, inputs.model, **at_once)
    page.unload(stopped)


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
        head=ALT + HEAD,
        css_paths=Path(__file__).with_name("style.css"),
        max_file_size=MAX_ARCHIVE,
        state_session_capacity=64,
        enable_monitoring=False,
        run_history=False,
        footer_links=["api"],
        ssr_mode=False,
        **options,
    )
