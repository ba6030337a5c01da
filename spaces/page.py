"""The page: what a visitor sees and presses."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any, get_args

import gradio as gr
import wording
from api import endpoints
from audit_room import audit_room
from events import (
    COLORMAP,
    DEFAULT_LAYER,
    OPACITY,
    QUEUE,
    arrive,
    as_event,
    as_stream,
    begin,
    choose,
    emptied,
    enter,
    kept,
    point,
    portraits,
    press_compare,
    press_explain,
    press_measure,
    recolour,
    settle,
    stopped,
    take,
    trusted,
    turn,
    welcome,
)
from gradio.blocks import Block
from limits import MAX_ARCHIVE
from models import BUILDER, offered, online, writers
from parts import PICTURES, go_and_stop, started_at
from scores import MAPS, direction
from scratch import KEPT_SECONDS
from starts import PROMPTS, Start, examples, starts
from uploads import as_uploaded
from words_room import portrait, words_room
from work import COMPARED, CURVES

from hf_cam.comparison import quick_methods
from hf_cam.methods import get_method
from hf_cam.request import EffortSetting
from hf_cam.zoo import SCENE

TABS = {
    "classify": ("Classify", "The most likely classes. Choose one to see the evidence for it."),
    "prompt": ("Prompt", "Type prompts, one per line. Each gets its own map."),
    "detect": ("Detect", "The objects that were found. Choose one, or click it in the outlined picture."),
    "segment": ("Segment", "The segments that were found. Choose one, or click any pixel of the outlined picture."),
}
COLORMAPS = (COLORMAP, "viridis", "magma", "cividis", "turbo", "jet", "bone")
HEADLINE = "# What the model looked at\nThe parts of your picture that a vision model's answer rests on, as a heatmap."
TRUST = "Does the model's score depend on what the map marks? Press Measure to find out."
EFFORT = (
    "checked: tries several methods, keeps the first whose marked pixels matter to the model, and judges its map. "
    "It takes 110 to 210 times as long and explains one thing."
)
GALLERY: dict[str, Any] = {**PICTURES, "height": "auto", "object_fit": "contain", "buttons": []}
PLOT: dict[str, Any] = {"color": "map", "color_map": MAPS, "color_title": " ", "x_axis_format": "~g", "height": 260}
TO_RESULT = "() => window.hfCamShow()"
"""Brings the result into view where it is not; see page.js."""
TO_WORDS = "() => document.getElementById('words-tab-button').click()"
AT_ONCE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Options of events that compute nothing."""
QUICK: dict[str, Any] = {**AT_ONCE, "concurrency_limit": 8}
"""Options of those among them that draw."""


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="What the model looked at", delete_cache=(600, KEPT_SECONDS)) as page:
        tab = gr.State(next(iter(starts())), time_to_live=KEPT_SECONDS)
        state = State(tab, *(gr.State(None, time_to_live=KEPT_SECONDS) for _ in range(3)))
        with gr.Row(elem_id="head"):
            gr.Markdown(HEADLINE, elem_id="title")
            gr.Markdown(links(), elem_id="links")
        with gr.Row(elem_id="starts"):
            begins = {start: tile(start.name, start.file, "start") for start in starts().values()}
            words = words_tile() if writers() else None
        tasks = task_tabs()
        with gr.Row(equal_height=False, elem_id="columns"):
            with gr.Column(scale=4, min_width=300):
                inputs = input_column()
            with gr.Column(scale=7, min_width=320, elem_id="result"):
                result = result_column()
        with gr.Column(elem_id="more-row"):
            more = more_tabs()
        Wiring(page, state, tasks, inputs, result, more).all(begins, words)
        endpoints()
    return page


def links() -> str:
    """Documentation, code and paper, as far as the installed package and the Space declare where they are."""
    try:
        declared = dict(url.split(", ", 1) for url in metadata("hf-cam").get_all("Project-URL") or ())
    except PackageNotFoundError:  # a Space that runs the library's own files
        declared = {}
    space = os.environ.get("SPACE_ID")
    if space:
        declared.setdefault("Code", f"https://huggingface.co/spaces/{space}/tree/main")
    found = declared or {"Documentation and code": "https://pypi.org/project/hf-cam/"}
    found = {**found, "Paper": "https://arxiv.org/abs/1610.02391"}
    return " · ".join(f"[{name}]({url})" for name, url in found.items())


def tile(name: str, file: str, kind: str) -> gr.Button:
    """A picture that can be pressed, above its name."""
    return gr.Button(name, icon=file, size="sm", min_width=60, elem_classes=["tile", kind])


def words_tile() -> gr.Button:
    """The picture that leads to the room of words."""
    button = tile("Words", str(SCENE), "start")
    button.click(None, js=TO_WORDS, **AT_ONCE)
    return button


# The layout. Each part returns a record of its components, so that `Wiring` can name them.


@dataclass(frozen=True)
class State:
    """What the server keeps of a visit: its tab, what is shown, the comparison, and what was measured."""

    tab: gr.State
    found: gr.State
    made: gr.State
    judged: gr.State


@dataclass(frozen=True)
class Tasks:
    """The tabs at the top."""

    tabs: gr.Tabs
    items: dict[str, gr.Tab]


def task_tabs() -> Tasks:
    """One tab per task, with a hint, and the rooms that have all they need in their own tab."""
    items = {}
    with gr.Tabs(selected=next(iter(starts())), overflow_behavior="wrap", elem_id="task") as tabs:
        for tab, (name, hint) in TABS.items():
            with gr.Tab(name, id=tab) as items[tab]:
                gr.Markdown(hint, elem_classes="hint")
        words_room()
        audit_room()
    return Tasks(tabs, items)


@dataclass(frozen=True)
class InputColumn:
    """What a visitor gives: a picture, and settings."""

    picture: gr.Image
    examples: dict[str, gr.Button]
    model: gr.Dropdown
    prompts: gr.Textbox
    method: gr.Dropdown
    layers: gr.Dropdown
    target: gr.Textbox
    effort: gr.Radio
    aug_smooth: gr.Checkbox
    eigen_smooth: gr.Checkbox
    go: gr.Button
    stop: gr.Button

    @property
    def settings(self) -> list[Block]:
        """What `events.press_explain` takes after the picture, in its order."""
        smooth = [self.aug_smooth, self.eigen_smooth]
        return [self.model, self.target, self.prompts, self.method, self.layers, *smooth, self.effort]

    @property
    def asked(self) -> list[Block]:
        """Everything that a result depends on."""
        return [self.picture, *self.settings]


def input_column() -> InputColumn:
    """The picture, the settings and the button."""
    first = next(iter(starts().values()))
    picture = upload(first.file)
    with gr.Row(elem_id="examples"):
        files = {file: tile(name, file, "example") for name, file in examples().items()}
    model = gr.Dropdown(
        offered(),
        value=first.model,
        label="Model",
        allow_custom_value=online(),
        info="Any model id on the Hub works too." if online() else None,
        elem_id="model",
    )
    prompts = gr.Textbox(PROMPTS, label="Prompts", lines=3, max_length=4000, visible=False, elem_id="prompts")
    go, stop = go_and_stop("Explain")
    with gr.Accordion("Method, effort and more", open=False, elem_id="settings"):
        method = gr.Dropdown(method_choices(), value="auto", label="Method", elem_id="method")
        layers = gr.Dropdown([DEFAULT_LAYER], value="", label="Layer", elem_id="layer")
        effort = gr.Radio(list(get_args(EffortSetting)), value="fast", label="Effort", info=EFFORT, elem_id="effort")
        target = gr.Textbox(
            label="Target",
            placeholder="what the model found",
            info="A class, a pixel x,y or a box x0,y0,x1,y1.",
            elem_id="target",
        )
        aug_smooth = gr.Checkbox(label="Average over six views")
        eigen_smooth = gr.Checkbox(label="First principal component")
    return InputColumn(
        picture, files, model, prompts, method, layers, target, effort, aug_smooth, eigen_smooth, go, stop
    )


def upload(example: str) -> gr.Image:
    """The picture to explain: uploaded, pasted or photographed."""
    picture = gr.Image(
        example,
        label="Picture",
        show_label=False,
        type="filepath",
        image_mode=None,
        height=340,
        sources=["upload", "clipboard", "webcam"],
        buttons=[],
        elem_id="picture",
        alt_text="The picture to explain",
    )
    return as_uploaded(picture)


def method_choices() -> list[tuple[str, str]]:
    """The library's methods, as names and ids."""
    return [("default", "auto"), *((get_method(method).name, method) for method in quick_methods())]


@dataclass(frozen=True)
class ResultColumn:
    """What a visitor gets: the map, what else was found, and the colours."""

    note: gr.HTML
    says: gr.Markdown
    slider: gr.ImageSlider
    legend: gr.HTML
    effort: gr.HTML
    gallery: gr.Gallery
    large: gr.Image
    alpha: gr.Slider
    colormap: gr.Dropdown

    @property
    def colours(self) -> list[Block]:
        """How the map is drawn."""
        return [self.alpha, self.colormap]


def result_column() -> ResultColumn:
    """The map, what else was found, and its colours."""
    note = gr.HTML(f'<p role="status">{wording.STALE}</p>', visible=False, elem_id="stale")
    says = gr.Markdown(elem_id="says")
    slider = gr.ImageSlider(
        label="Picture and map",
        max_height=500,
        slider_position=0,
        buttons=["fullscreen"],
        elem_id="map",
        interactive=False,
        **PICTURES,
    )
    legend = gr.HTML(elem_id="legend")
    effort = gr.HTML(visible=False, elem_id="done")
    with gr.Row(elem_id="found-row"):
        gallery = gr.Gallery(
            label="Found", columns=5, allow_preview=False, fit_columns=False, elem_id="found", scale=3, **GALLERY
        )
        large = gr.Image(
            label="Click what you want explained",
            visible=False,
            interactive=False,
            format="jpeg",
            buttons=[],
            elem_id="large",
            scale=2,
            alt_text="The picture with outlines around what was found; click to choose",
        )
    with gr.Row():
        alpha = started_at(gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity", elem_id="alpha"))
        colormap = gr.Dropdown(list(COLORMAPS), value=COLORMAP, label="Colours", elem_id="colours")
    return ResultColumn(note, says, slider, legend, effort, gallery, large, alpha, colormap)


@dataclass(frozen=True)
class MoreTabs:
    """What can be done with the map."""

    download: DownloadTab
    compare: CompareTab
    trust: TrustTab


def more_tabs() -> MoreTabs:
    """The tabs below both columns."""
    with gr.Tabs(overflow_behavior="wrap", elem_id="more"):
        with gr.Tab("Download"):
            download = download_tab()
        with gr.Tab("Compare"):
            compare = compare_tab()
        with gr.Tab("Trust"):
            trust = trust_tab()
    return MoreTabs(download, compare, trust)


@dataclass(frozen=True)
class DownloadTab:
    """The map as files and as code."""

    overlay: gr.DownloadButton
    picture: gr.DownloadButton
    numbers: gr.DownloadButton
    code: gr.Code

    @property
    def files(self) -> list[Block]:
        """What `overlays.saved` returns."""
        return [self.overlay, self.picture, self.numbers]


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
    note: gr.Markdown

    @property
    def parts(self) -> list[Block]:
        """What `events.press_compare` fills, after the comparison itself."""
        return [self.grid, self.note]


def compare_tab() -> CompareTab:
    """The methods to choose from, and their maps."""
    methods = started_at(
        gr.CheckboxGroup(method_choices()[1:], value=list(COMPARED), label="Methods", elem_id="methods")
    )
    go, stop = go_and_stop("Compare", "compare-")
    grid = gr.Gallery(label="The same target, explained by each method", columns=4, elem_id="grid", **GALLERY)
    note = gr.Markdown(elem_id="grid-note")
    return CompareTab(methods, go, stop, grid, note)


@dataclass(frozen=True)
class TrustTab:
    """How far the map can be trusted."""

    go: gr.Button
    stop: gr.Button
    verdict: gr.HTML
    curves: gr.Column
    plots: list[gr.LinePlot]
    findings: gr.Markdown
    scores: gr.Markdown

    @property
    def parts(self) -> list[Block]:
        """What `events.trusted` fills, after what it is of."""
        return [self.verdict, self.curves, *self.plots, self.findings, self.scores]

    @property
    def emptied(self) -> list[Block]:
        """What `events.cleared` empties: not the plots, which are hidden; drawing nothing into them fails there."""
        return [self.verdict, self.curves, self.findings, self.scores]


def trust_tab() -> TrustTab:
    """The verdict, and below it plots, sentences and a table that are hidden until there is something to show."""
    gr.Markdown(TRUST, elem_classes="hint")
    go, stop = go_and_stop("Measure", "trust-")
    verdict = gr.HTML(elem_id="verdict")
    with gr.Column(visible=False, elem_id="curves") as curves:
        with gr.Row(elem_classes="plots"):
            shares = {"road": "imputed", "insertion": "uncovered", "deletion": "blanked"}
            plots = [line_plot(metric, shares[metric]) for metric in CURVES]
        findings = gr.Markdown(elem_id="findings")
        scores = gr.Markdown(elem_id="scores")
    return TrustTab(go, stop, verdict, curves, plots, findings, scores)


def line_plot(metric: str, share: str) -> gr.LinePlot:
    """The score over a share of the pixels."""
    name = "ROAD" if metric == "road" else metric.capitalize()
    title = f"{name} score: {direction(metric)}"
    return gr.LinePlot(x="pixels", y="score", title=title, x_title=f"share of the pixels {share}", y_title=" ", **PLOT)


# The events.


@dataclass(frozen=True)
class Wiring:
    """Every event with what it takes and what it fills."""

    page: gr.Blocks
    state: State
    tasks: Tasks
    inputs: InputColumn
    result: ResultColumn
    more: MoreTabs

    @property
    def shown(self) -> list[Block]:
        """What `events.show` fills, in its order."""
        result, download = self.result, self.more.download
        return [result.slider, result.says, result.legend, result.effort, download.code, *download.files]

    @property
    def of_another(self) -> list[Block]:
        """What `events.cleared` empties, in its order."""
        return [self.state.made, *self.more.compare.parts, self.state.judged, *self.more.trust.emptied]

    @property
    def opened(self) -> list[Block]:
        """What `events.opened` fills, in its order."""
        return [self.state.found, self.result.gallery, self.result.large, *self.shown, *self.of_another]

    @property
    def begun(self) -> list[Block]:
        """What `events.begin` fills, in its order."""
        inputs = self.inputs
        others = [inputs.target, inputs.prompts, *inputs.settings[3:]]
        return [self.tasks.tabs, self.state.tab, inputs.picture, inputs.model, *others, *self.opened]

    def all(self, begins: dict[Start, gr.Button], words: gr.Button | None) -> None:
        """Attach every event of the page."""
        self.attach_first_views(begins, words)
        self.attach_explanations()
        self.attach_more()
        for button in (self.inputs.stop, self.more.compare.stop, self.more.trust.stop):
            button.click(stopped, queue=False, **AT_ONCE)
        self.page.unload(stopped)

    def attach_first_views(self, begins: dict[Start, gr.Button], words: gr.Button | None) -> None:
        """The page opens, or a tab, a model or an example is chosen."""
        inputs, colours, picture = self.inputs, self.result.colours, self.inputs.picture
        arrived = self.run(self.page.load, arrive, [self.state.tab, *colours], self.begun, shows=False, alone=False)
        drawn = arrived.then(as_event(portraits, visit="portraits"), None, list(begins.values()), **QUEUE, **AT_ONCE)
        if words is not None:  # last, since its model takes the longest to load
            drawn.then(as_event(portrait, visit="portraits"), None, words, **QUEUE, **AT_ONCE)
        for start, button in begins.items():
            self.run(button.click, functools.partial(begin, start.model, start.file), colours, self.begun)
        for file, button in inputs.examples.items():
            self.run(button.click, functools.partial(take, file), [inputs.model, *colours], self.begun)
        self.run(inputs.model.input, turn, [inputs.model, picture, *colours], self.begun, shows=False)
        for tab, item in self.tasks.items.items():
            given = [self.state.tab, picture, *colours]
            self.run(item.select, functools.partial(enter, tab), given, self.begun, shows=False, alone=False)

    def attach_explanations(self) -> None:
        """Explain is pressed, something found is chosen, or what was asked for changes."""
        inputs, result, found = self.inputs, self.result, self.state.found
        given = [*inputs.asked, *result.colours]
        self.run(inputs.go.click, press_explain, given, self.opened)
        self.run(result.large.select, point, [inputs.picture, found, *inputs.settings, *result.colours], self.opened)
        chosen = [found, *self.shown, *self.of_another]
        picked = as_event(choose, alone=True)
        result.gallery.select(picked, [found, *result.colours], chosen, **QUICK).then(**self.settling)
        recoloured = [*self.shown, result.gallery, self.more.compare.grid]
        for control in result.colours:
            control.change(
                as_event(recolour),
                [found, self.state.made, *result.colours],
                recoloured,
                trigger_mode="always_last",
                **QUICK,
            )
        inputs.picture.change(as_event(emptied), inputs.picture, self.opened, **QUICK).then(**self.settling)
        gr.on([one.change for one in inputs.settings], trigger_mode="always_last", **self.settling)

    def attach_more(self) -> None:
        """Compare and Measure."""
        found, compare, trust = self.state.found, self.more.compare, self.more.trust
        late = {
            "fn": kept,
            "inputs": [found, self.state.made, self.state.judged],
            "outputs": self.of_another,
            "queue": False,
            **AT_ONCE,
        }
        work = {**QUEUE, "api_visibility": "private"}
        compare.go.click(
            as_event(press_compare),
            [found, compare.methods, *self.result.colours],
            [self.state.made, *compare.parts],
            **work,
        ).then(**late)
        trust.go.click(
            as_stream(press_measure, trusted),
            found,
            [self.state.judged, *trust.parts],
            show_progress_on=[trust.verdict],
            **work,
        ).then(**late)

    @property
    def settling(self) -> dict[str, Any]:
        """The event that greys what is not of what is on screen."""
        closed = [*self.more.download.files, self.more.compare.go, self.more.trust.go]
        given = [self.state.found, *self.inputs.asked]
        return {"fn": settle, "inputs": given, "outputs": [self.result.note, *closed], "queue": False, **AT_ONCE}

    def run(
        self,
        listen: Any,
        work: Callable[..., Any],
        given: list[Block],
        filled: list[Block],
        *,
        shows: bool = True,
        alone: bool = True,
    ) -> Any:
        """Attach work that leads to another explanation.

        Args:
            listen: The event, such as `button.click`.
            work: What it does.
            given: The components whose values it takes.
            filled: The components that it fills.
            shows: Whether the result is brought into view.
            alone: Whether it always ends all other work of the visit.

        Returns:
            What further events can follow.
        """
        options = {**QUEUE, "api_visibility": "private", "show_progress_on": [self.result.slider]}
        done = listen(as_event(work, alone=alone), given, filled, **options)
        done.then(**self.settling)
        if shows:
            done.success(None, js=TO_RESULT, **AT_ONCE)
        return done


def say(words: str) -> None:
    """Tell whoever started the page what it does."""
    print(words, flush=True)  # noqa: T201 - it is a program, and this its output


def serve(page: gr.Blocks, **options: Any) -> Any:
    """Start the server; `options` are those of `launch`."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    theme = gr.themes.Default(
        primary_hue="indigo", neutral_hue="slate", radius_size="lg", font=fonts, font_mono=("ui-monospace", "monospace")
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        checkbox_border_radius="*radius_sm",
        link_text_color_dark="*primary_300",
        link_text_color_hover_dark="*primary_200",
        link_text_color_active_dark="*primary_300",
        link_text_color_visited_dark="*primary_300",
    )
    if online():
        BUILDER.start()
    else:
        say("Explaining the first picture")
        welcome()  # loads the first model before the first visitor; a Space has no GPU to lend at this point
    page.queue(default_concurrency_limit=2, max_size=32)
    here = Path(__file__)
    return page.launch(
        theme=theme,
        head=f"<script>{here.with_suffix('.js').read_text()}</script>",
        css_paths=here.with_name("style.css"),
        max_file_size=MAX_ARCHIVE,
        state_session_capacity=64,
        enable_monitoring=False,
        run_history=False,
        footer_links=["api"],
        ssr_mode=False,
        **options,
    )
