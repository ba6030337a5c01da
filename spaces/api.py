"""The API: its endpoints do what the page does, with explicit parameters."""

from __future__ import annotations

from typing import Any

import audit_room
import gradio as gr
import numpy as np
import words_room
from events import QUEUE, as_event
from models import demos
from scores import json_of
from scratch import fresh_folder
from uploads import as_uploaded
from work import COMPARED, compared, explained, judged, read_inputs

from hf_cam import Explanation
from hf_cam.images.colours import DEFAULT_COLORMAP


def endpoints() -> None:
    """Add the endpoints, on components that are not shown."""
    with gr.Row(visible=False):
        image = as_uploaded(gr.File(label="image"))
        model = gr.Textbox(next(iter(demos())), label="model")
        target, prompts, layers = (gr.Textbox("", label=label) for label in ("target", "prompts", "layers"))
        method = gr.Textbox("auto", label="method")
        methods = gr.JSON(list(COMPARED), label="methods")
        top_k = gr.Number(0, label="top_k", precision=0)
        aug_smooth, eigen_smooth = (gr.Checkbox(False, label=label) for label in ("aug_smooth", "eigen_smooth"))
        effort = gr.Textbox("fast", label="effort")
        alpha, colormap = gr.Number(0.5, label="alpha"), gr.Textbox(DEFAULT_COLORMAP, label="colormap")
        found, table = gr.JSON(label="found"), gr.JSON(label="metrics")
        overlays = gr.File(label="overlays", file_count="multiple")
        heatmaps, grid = gr.File(label="heatmaps"), gr.File(label="grid")
        gr.Button().click(
            as_event(explain),
            [image, model, target, prompts, method, layers, top_k, aug_smooth, eigen_smooth, alpha, colormap, effort],
            [found, overlays, heatmaps],
            api_name="explain",
            **QUEUE,
        )
        gr.Button().click(
            as_event(compare),
            [image, model, methods, target, prompts, layers, alpha, colormap],
            [grid, heatmaps],
            api_name="compare",
            **QUEUE,
        )
        gr.Button().click(
            as_event(metrics), [image, model, method, target, prompts, layers], table, api_name="metrics", **QUEUE
        )
        words_room.endpoint()
        audit_room.endpoint()


def explain(
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
    effort: str,
) -> tuple[list[dict[str, Any]], list[str], str]:
    """What was found, one overlay per thing found as PNG, and all heatmaps as one array `[K, H, W]`."""
    picture, settings = read_inputs(
        image, model, target, prompts, method, layers, aug_smooth, eigen_smooth, effort, int(top_k or 0)
    )
    found = explained(picture, settings).explanations
    folder = fresh_folder()
    overlays = [str(one.save(folder / f"overlay-{i}.png", alpha, colormap)) for i, one in enumerate(found)]
    np.save(folder / "heatmaps.npy", np.stack([one.heatmap for one in found]))
    return [described(one) for one in found], overlays, str(folder / "heatmaps.npy")


def described(explanation: Explanation) -> dict[str, Any]:
    """An explanation as JSON, without its heatmap."""
    return {
        "label": explanation.label,
        "score": explanation.score,
        "box": explanation.box and [float(value) for value in explanation.box],
        "method": explanation.method,
        "layers": list(explanation.layers),
        "flags": list(explanation.flags),
        "verdict": explanation.effort and explanation.effort.check.verdict,
        "effort": explanation.effort and str(explanation.effort),
    }


def compare(
    image: str, model: str, methods: list[str], target: str, prompts: str, layers: str, alpha: float, colormap: str
) -> tuple[str, str]:
    """A grid of overlays as PNG, and the heatmaps by method as NPZ."""
    picture, settings = read_inputs(image, model, target, prompts, "auto", layers, False, False)
    comparison = compared(picture, settings, methods)
    folder = fresh_folder()
    comparison.grid(alpha=alpha, colormap=colormap).save(folder / "grid.png")
    np.savez(folder / "heatmaps.npz", **{one.method: one.heatmap for one in comparison.explanations})
    return str(folder / "grid.png"), str(folder / "heatmaps.npz")


def metrics(image: str, model: str, method: str, target: str, prompts: str, layers: str) -> dict[str, Any]:
    """Scores and curves of the first map, and of baseline maps."""
    picture, settings = read_inputs(image, model, target, prompts, method, layers, False, False)
    return json_of(judged(explained(picture, settings)).table)
