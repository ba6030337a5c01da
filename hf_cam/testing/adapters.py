"""A check that an adapter describes its model correctly, for any architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hf_cam.capture.capture import Capture, capture
from hf_cam.capture.inputs import noise_like, picture_name, picture_size
from hf_cam.errors import DetachedError, LayoutError, NoGradientError
from hf_cam.layouts import Size
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.fields import scores
from hf_cam.target_layers.infer import example_inputs, infer_adapter
from hf_cam.target_layers.noise import Verdict, check_layouts
from hf_cam.target_layers.probe import MIN_COVERAGE

NOISES = (0, 1, 2)
"""Seeds of the pictures of noise in which cells are looked for that the given picture does not reach."""


@dataclass(frozen=True)
class AdapterCheck:
    """The result for one layer.

    Args:
        layer: Its dotted name.
        grid: Rows and columns of cells.
        coverage: Share of the cells in [0, 1] whose gradient is not zero; if that is little, in this picture or in one
            of noise, since a ReLU near the output may hide cells of a single picture.
        verdict: "confirmed" if a change in one square of the picture shows most clearly at the same place of the grid;
            "undecided" if the network spreads every change over the whole grid.
    """

    layer: str
    grid: Size
    coverage: float
    verdict: Verdict


def check_adapter(
    model: nn.Module,
    adapter: Adapter | None = None,
    *,
    inputs: Mapping[str, Tensor] | None = None,
    score: Callable[[Any], Tensor] | None = None,
) -> list[AdapterCheck]:
    """Check that each target layer has the layout that its adapter claims and that the target depends on its cells.

    Use a picture that is not square, because a transposed grid goes unnoticed on a square one.

    Args:
        model: Any vision model, which is left unchanged; random weights are sufficient.
        adapter: The adapter to check; by default the one that hf-cam infers.
        inputs: The model's named inputs: `pixel_values` (a video as `(B, T, C, H, W)`, cut patches with their
            `spatial_shapes`) and whatever else the forward takes; by default noise of the model's own size.
        score: Function from the model's output to a scalar; by default, for the first field of the output that depends
            on the layer, the scores of the best class, summed over all other axes.

    Raises:
        LayoutError: the shape does not fit, or the cells are in another order.
        NoGradientError: the target depends on fewer than 95 % of the cells.

    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(image_size=(64, 96), hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> [check] = check_adapter(ViTForImageClassification(config))
    >>> check.layer, check.grid, check.verdict
    ('vit.layers.1.layernorm_before', (4, 6), 'confirmed')
    """
    inputs = inputs or example_inputs(model)
    adapter = adapter or infer_adapter(model, inputs=inputs)
    reached = _reached(model, adapter, inputs, score)
    for seed in NOISES if "pixel_values" in inputs else ():
        if _least(reached) < MIN_COVERAGE:
            more = _reached(model, adapter, noise_like(inputs, seed=seed), score)
            reached = [cells | others for cells, others in zip(reached, more, strict=True)]
    claims = [(layer, layout) for layer, layout in zip(adapter.layers, adapter.layouts, strict=True)]
    verdicts = check_layouts(model, inputs, claims)
    found = [
        AdapterCheck(layer, (cells.shape[-2], cells.shape[-1]), cells.float().mean().item(), verdict)
        for layer, cells, verdict in zip(adapter.layers, reached, verdicts, strict=True)
    ]
    for check in found:
        if check.verdict == "refuted":
            raise LayoutError(
                f"a change in one square of the picture does not show at the same place of {check.layer!r}"
            )
        if check.coverage < MIN_COVERAGE:
            raise NoGradientError(f"only {check.coverage:.0%} of the cells of {check.layer!r} influence the target")
    return found


def _reached(
    model: nn.Module, adapter: Adapter, inputs: Mapping[str, Any], score: Callable[[Any], Tensor] | None
) -> list[Tensor]:
    """Per layer, which cells have a gradient, `[B, *space]`."""
    size, images = picture_size(inputs), len(inputs[picture_name(inputs, (3, 4, 5))])
    with capture(model, adapter.layers, inputs) as captured:
        gradients = zip(adapter.layers, _gradients(captured, score), strict=True)
        return [adapter.spatial(one, size, layer, images).abs().sum(1) > 0 for layer, one in gradients]


def _least(reached: list[Tensor]) -> float:
    return min(cells.float().mean().item() for cells in reached)


def _gradients(captured: Capture, score: Callable[[Any], Tensor] | None) -> tuple[Tensor, ...]:
    """The gradients of the caller's scalar, or else of the first field of the output that depends on the layers."""
    if score is not None:
        return captured.gradients(score(captured.outputs))
    for value in scores(captured.outputs):
        try:
            gradients = captured.gradients(value)
        except DetachedError:
            continue
        if any(gradient.any() for gradient in gradients):
            return gradients
    raise NoGradientError("nothing that the model returns depends on its target layers")
