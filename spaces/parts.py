"""Parts of the page that several of its rooms have."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any, TypeVar

import gradio as gr
from PIL import Image

PICTURES: dict[str, Any] = {"show_label": False, "format": "jpeg"}
FITTED = (
    "const fit = () => { const border = this.offsetHeight - this.clientHeight;"
    " this.style.height = this.contentDocument.documentElement.offsetHeight + border + 'px' };"
    "fit(); new ResizeObserver(fit).observe(this.contentDocument.body)"
)
"""What gives a frame the height of its content, as long as it is shown."""


def go_and_stop(label: str, prefix: str = "") -> tuple[gr.Button, gr.Button]:
    """A button that starts work beside one that stops it; `prefix` starts their ids."""
    with gr.Row():
        go = gr.Button(label, variant="primary", elem_id=f"{prefix}go", scale=3)
        stop = gr.Button("Stop", elem_id=f"{prefix}stop", scale=1, min_width=70)
    return go, stop


Component = TypeVar("Component", bound=Any)


def started_at(component: Component) -> Component:
    """The component, where no value counts as the one that it starts with: gradio's own fails on none."""
    preprocess, first = component.preprocess, component.value
    component.preprocess = lambda payload: preprocess(first if payload is None else payload)
    return component


def figures(pictures: Sequence[tuple[Image.Image, str]], alt: str) -> str:
    """Pictures with captions as HTML; `alt` begins their alternative texts."""
    shown = "".join(
        f'<figure><img src="{_data(picture)}" alt="{escape(alt)} {escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for picture, caption in pictures
    )
    return f'<div class="scenes">{shown}</div>'


def _data(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def frame(page: str, title: str, *, runs: bool) -> str:
    """A page of its own inside this one.

    Args:
        page: HTML; it may name what strangers wrote, so it never has both scripts and access to this page.
        title: For screen readers.
        runs: Whether its scripts run; otherwise it is as high as its content.
    """
    rights = "allow-scripts" if runs else "allow-same-origin"
    fitted = "" if runs else f' onload="{escape(FITTED)}"'
    kind = "fixed" if runs else "fitted"
    return (
        f'<iframe class="room-frame {kind}" title="{escape(title)}" sandbox="{rights}"{fitted} '
        f'srcdoc="{escape(page)}"></iframe>'
    )


def outdated(room: str) -> str:
    """JavaScript for a change of what a result in the element `room` depends on: it is greyed."""
    return _script(room, "room.classList.add('stale'); room.dataset.now = +(room.dataset.now ?? 0) + 1")


def begun(room: str) -> str:
    """JavaScript for the start of the work: the result will be of what is on screen now, and comes into view."""
    seen = "if (matchMedia('(max-width: 640px)').matches) room.scrollIntoView({ behavior: 'smooth' })"
    return _script(room, f"room.dataset.asked = room.dataset.now ?? 0; {seen}")


def arrived(room: str) -> str:
    """JavaScript for the end of the work: the result is of what is on screen, unless that was changed meanwhile."""
    return _script(room, "if ((room.dataset.asked ?? 0) == (room.dataset.now ?? 0)) room.classList.remove('stale')")


def _script(room: str, act: str) -> str:
    return f"() => {{ const room = document.getElementById({room!r}); {act}; }}"
