"""The room of audits: from which regions a classifier reads each class of a set of pictures."""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from events import as_event, stopped
from gradio.blocks import Block
from jobs import report
from limits import MAX_ARCHIVE, MAX_IMAGES, Refused, read_names
from models import MODELS, checked, demos, offered, online
from parts import arrived, begun, figures, frame, go_and_stop, outdated
from PIL import Image
from scratch import fresh_folder, home
from torch import nn
from uploads import Labelled, Upload, as_uploads, read_labelled
from wording import as_text
from work import on_gpu, tab_of

from hf_cam.auditing.audit import Audit, audit
from hf_cam.auditing.report import excerpt, lead, summary
from hf_cam.methods import get_method
from hf_cam.models.traits import unwrap
from hf_cam.zoo.scenes import CHEATER, cheater_scenes

SCENES, HELD_OUT = 72, 12
"""Scenes of the demo, and pictures per class on which regions are tested."""
SECONDS, GPU_SECONDS = 300, 120
"""How long an audit may compute here, and how long it is lent a GPU on ZeroGPU."""
QUEUE: dict[str, Any] = {"concurrency_id": "audit", "concurrency_limit": 1}
"""One audit at a time, so that others find a free slot."""
RESULT = "audit-result"
HINT = (
    "Which regions does a classifier read for each class? Candidates are found in some pictures, and tested on others "
    "by replacing them."
)
STALE = "Out of date: the pictures or a setting have changed. Press Audit."


# What is computed.


@dataclass(frozen=True)
class Task:
    """What a visitor wants to have audited, checked.

    Args:
        model: Its full name.
        pictures: The uploaded ones; none for the scenes of the demo.
        names: The model's names of classes that the data calls otherwise.
    """

    model: str
    pictures: tuple[Labelled, ...] = ()
    names: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Audited:
    """What an audit shows.

    Args:
        says: What was found, in one sentence, with the accuracy.
        page: Its findings and classes as HTML.
        summary: The findings, for programs.
        folder: Where the report and its tables lie.
    """

    says: str
    page: str
    summary: Mapping[str, Any]
    folder: str


@contextmanager
def read_task(
    uploads: Sequence[Upload], model: str | None, names: str | None, classes: Sequence[str] | None = None
) -> Iterator[Task]:
    """The task, checked; the pictures lie on the disk only inside.

    Raises:
        Refused: something is not acceptable.
    """
    name = checked(model or CHEATER)
    if not uploads and name != CHEATER:
        raise Refused(f"Upload pictures in class folders; only {CHEATER} has scenes of its own.")
    with tempfile.TemporaryDirectory(dir=home()) as folder:
        pictures = read_labelled(uploads, classes or (), Path(folder)) if uploads else ()
        yield Task(name, tuple(pictures), read_names(names))


def audited(task: Task) -> Audited:
    """The findings.

    Raises:
        Refused: the classes do not fit the model, it is no classifier, or the audit takes too long.
    """
    with MODELS.lent(task.model):
        found: Audited = _audited(task, str(fresh_folder()))
        return found


@functools.partial(on_gpu, seconds=GPU_SECONDS)
def _audited(task: Task, folder: str) -> Audited:
    """On ZeroGPU in a process of its own, from which the report returns as files, and the pictures need not."""
    loaded = MODELS.held(task.model)
    data = [{"image": one.path, "label": one.label} for one in task.pictures] or cheater_scenes(SCENES)
    with ended_after(SECONDS, unwrap(loaded.model)):
        found = audit(loaded, data, labels=task.names, held_out=HELD_OUT, progress=_tell)
    found = renamed(found, task)
    found.save(Path(folder) / "report")
    right = f"accuracy {found.accuracy:.0%} on {len(found.rows)} pictures"
    says = f"**{as_text(lead(found))}** · {right} · maps by {get_method(found.method).name}"
    return Audited(says, excerpt(found), summary(found), folder)


def _tell(what: str, done: int, total: int) -> None:
    """Explaining the pictures is about a tenth of the work."""
    share = done / max(total, 1)
    report(0.1 * share if what == "explained" else 0.1 + 0.9 * share, f"{done} of {total} {what}")


class TimeIsUp(BaseException):
    """An audit computes for too long; no `Exception`, so that it is not noted as the failure of one picture."""


@contextmanager
def ended_after(seconds: float, model: nn.Module) -> Iterator[None]:
    """Inside, the model runs until the time is up.

    Raises:
        Refused: it was to run again.
    """
    end = time.monotonic() + seconds

    def check(*_: Any) -> None:
        if time.monotonic() > end:
            raise TimeIsUp

    handle = model.register_forward_pre_hook(check)
    try:
        yield
    except TimeIsUp as error:
        minutes = f"{seconds / 60:.0f} minutes"
        raise Refused(
            f"The audit took more than {minutes}; take a smaller model, or run hf-cam audit at home."
        ) from error
    finally:
        handle.remove()


def renamed(found: Audit, task: Task) -> Audit:
    """The audit with the visitor's names of the pictures and of the model in place of this machine's."""
    names = {one.path: one.name for one in task.pictures}
    return replace(
        found,
        model=task.model,
        rows=tuple(replace(row, name=names.get(row.name, row.name)) for row in found.rows),
        cases=tuple(replace(case, name=names.get(case.name, case.name)) for case in found.cases),
        masks=tuple({names.get(name, name): mask for name, mask in masks.items()} for masks in found.masks),
    )


# What is shown.


def press_audit(files: list[Upload], folder: list[Upload], model: str | None, names: str | None) -> list[Any]:
    """Audit: the findings as sentences with pictures, the code, and the report as files."""
    with read_task([*files, *folder], model, names) as task:
        found = audited(task)
        code = snippet(task)
    shown = frame(found.page, "The findings, with pictures", runs=False)
    return [found.says, gr.Column(visible=True), *saved(found), code, shown]


def saved(found: Audited) -> tuple[str, str]:
    """The report as one page, and with its tables as a zip."""
    folder = Path(found.folder)
    archive = shutil.make_archive(str(folder / "audit"), "zip", folder / "report")
    return str(folder / "report" / "index.html"), archive


def snippet(task: Task) -> str:
    """Python code that makes the report that is shown."""
    data = "pictures" if task.pictures else f"cheater_scenes({SCENES})"
    begins = "" if task.pictures else "from hf_cam.zoo.scenes import cheater_scenes\n"
    names = f"labels={dict(task.names)!r}, " if task.names else ""
    given = f'{task.model!r}, "pictures"' if task.pictures else f"{task.model!r}, {data}"
    return (
        f"import hf_cam\n{begins}\naudit = hf_cam.audit({given}, {names}held_out={HELD_OUT})\n"
        f'print(audit)\naudit.save("report")\n'
    )


# The layout.


@dataclass(frozen=True)
class Given:
    """What a visitor gives."""

    files: gr.File
    folder: gr.File
    model: gr.Dropdown
    names: gr.Textbox
    go: gr.Button
    stop: gr.Button

    @property
    def parts(self) -> list[Block]:
        """What `press_audit` takes, in its order."""
        return [self.files, self.folder, self.model, self.names]


@dataclass(frozen=True)
class Got:
    """What a visitor gets."""

    says: gr.Markdown
    rest: gr.Column
    files: tuple[gr.DownloadButton, ...]
    code: gr.Code
    page: gr.HTML

    @property
    def parts(self) -> list[Block]:
        """What `press_audit` fills, in its order."""
        return [self.says, self.rest, *self.files, self.code, self.page]


def audit_room() -> None:
    """The tab."""
    with gr.Tab("Audit", id="audit", elem_id="audit-tab"):
        gr.Markdown(HINT, elem_classes="hint")
        with gr.Row(equal_height=False, elem_classes="columns"):
            with gr.Column(scale=4, min_width=300):
                given = inputs()
            with gr.Column(scale=7, min_width=320, elem_id=RESULT):
                got = results()
    wire(given, got)


def inputs() -> Given:
    """The model, the pictures and the button."""
    model = gr.Dropdown(classifiers(), value=CHEATER, label="Model", allow_custom_value=online(), elem_id="audit-model")
    gr.Markdown(f"Six of the {SCENES} scenes of {CHEATER}. Can you see how it cheats?", elem_classes="hint")
    gr.HTML(figures(sample(), "Scene of a"), elem_id="audit-scenes")
    with gr.Accordion("Your pictures", open=False):
        gr.Markdown(
            f"Up to {MAX_IMAGES} pictures in folders named after the model's classes; 16 that are classified correctly "
            "are needed to test a class.",
            elem_classes="hint",
        )
        files = gr.File(
            label=f"A zip, up to {MAX_ARCHIVE >> 20} MB", file_count="multiple", height=130, elem_id="audit-files"
        )
        folder = gr.File(label="Or a folder", file_count="directory", height=130, elem_id="audit-folder")
        names = gr.Textbox(
            label="Names of classes",
            placeholder="folder = class",
            lines=2,
            max_length=4000,
            info="For folders whose names differ from the model's classes.",
            elem_id="audit-names",
        )
    go, stop = go_and_stop("Audit", "audit-")
    return Given(as_uploads(files), as_uploads(folder), model, names, go, stop)


def classifiers() -> list[str]:
    """The models that are offered: those that name classes, and those that compare pictures with their names."""
    fitting = [name for name in offered() if name not in demos() or tab_of(demos()[name]) in ("classify", "prompt")]
    return sorted(fitting, key=lambda name: name != CHEATER)


def sample() -> list[tuple[Image.Image, str]]:
    """Two scenes of each class."""
    return [(picture.resize((288, 192), Image.Resampling.BICUBIC), label) for picture, label in cheater_scenes(6)]


def results() -> Got:
    """What was found, and once there is something, the files, the code and the findings with their pictures."""
    gr.Markdown(STALE, elem_classes="stale-note")
    says = gr.Markdown(f"Press Audit. The scenes of {CHEATER} take half a minute.", elem_id="audit-says")
    with gr.Column(visible=False) as rest:
        with gr.Row():
            files = (
                gr.DownloadButton("Report, HTML", elem_id="audit-page-file"),
                gr.DownloadButton("Report and tables, ZIP", elem_id="audit-zip-file"),
            )
        with gr.Accordion("The same in Python", open=False):
            code = gr.Code(language="python", show_label=False, interactive=False, elem_id="audit-code")
        found = gr.HTML(elem_id="audit-page")
    return Got(says, rest, files, code, found)


# The events.


def wire(given: Given, got: Got) -> None:
    """Every event with what it takes and what it fills."""
    here: dict[str, Any] = {"fn": None, "api_visibility": "private", "queue": False}
    given.go.click(js=begun(RESULT), **here)
    work = given.go.click(
        as_event(press_audit),
        given.parts,
        got.parts,
        api_visibility="private",
        show_progress_on=[got.says],
        **QUEUE,
    )
    work.success(js=arrived(RESULT), **here)
    for control in given.parts:
        control.change(js=outdated(RESULT), **here)
    given.stop.click(stopped, queue=False, api_visibility="private", show_progress="hidden")


# The API.


def endpoint() -> None:
    """Add `/audit`, on components that are not shown."""
    images = as_uploads(gr.File(label="images", file_count="multiple"))
    model, names = gr.Textbox(CHEATER, label="model"), gr.Textbox("", label="names")
    classes = gr.JSON(None, label="classes")
    findings = gr.JSON(label="findings")
    outputs = [gr.File(label="page"), gr.File(label="report")]
    given = [images, model, names, classes]
    gr.Button().click(as_event(findings_of), given, [findings, *outputs], api_name="audit", **QUEUE)


def findings_of(
    images: list[Upload], model: str | None, names: str | None, classes: list[str] | None = None
) -> tuple[Mapping[str, Any], str, str]:
    """The findings, the report as one page, and the report with its tables as a zip."""
    with read_task(images, model, names, classes) as task:
        found = audited(task)
    return found.summary, *saved(found)
