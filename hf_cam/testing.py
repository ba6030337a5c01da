"""The contract of an adapter, as a check that anyone can run on an architecture of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.adapter import Adapter
from hf_cam.capture import capture
from hf_cam.errors import LayoutError, NoGradientError
from hf_cam.infer import infer_adapter, sample_inputs
from hf_cam.layouts import Layout, Size
from hf_cam.probe import MIN_COVERAGE, Verdict, check_layouts
from hf_cam.targets import class_logits


@dataclass(frozen=True)
class AdapterCheck:
    """What was seen of one layer.

    Args:
        layer: Its dotted name.
        grid: Rows and columns of cells.
        coverage: Share of the cells in [0, 1] whose gradient is not zero.
        verdict: "confirmed" where a disturbed square of the picture shows at its own place of the grid and nowhere
            better; "undecided" where the network spreads every disturbance all over, or the layout is a function.
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
    """Check that each target layer lies in space as its adapter says and that the target depends on its cells.

    Use a picture that is not square: on a square one a transposed grid goes unnoticed.

    Args:
        model: Any vision model; it comes back untouched. Random weights will do.
        adapter: What to check; what hf-cam infers where not given.
        inputs: The model's named inputs, `pixel_values` among them; noise of the model's own size where not given.
        score: From the model's output to a scalar; the sum of the highest class logits where not given.

    Raises:
        LayoutError: the shape does not fit, or the cells are in another order.
        NoGradientError: the target depends on fewer than 95 % of the cells.

    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(image_size=(64, 96), hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> [check] = check_adapter(ViTForImageClassification(config))
    >>> check.layer, check.grid, check.verdict
    ('vit.layers.1.layernorm_before', (4, 6), 'confirmed')
    """
    inputs = inputs or sample_inputs(model)
    adapter = adapter or infer_adapter(model, inputs=inputs)
    size = (inputs["pixel_values"].shape[-2], inputs["pixel_values"].shape[-1])
    score = score or _highest_logits
    with capture(model, adapter.layers, inputs) as captured:
        gradients = captured.gradients(score(captured.outputs))
        reached = [
            adapter.to_spatial(gradient, size, layer).abs().sum(1) > 0
            for layer, gradient in zip(adapter.layers, gradients, strict=True)
        ]
    claims = [(layer, layout) for layer, layout in zip(adapter.layers, adapter.layouts, strict=True)]
    declared = [(layer, layout) for layer, layout in claims if isinstance(layout, Layout)]
    verdicts = dict(zip((layer for layer, _ in declared), check_layouts(model, inputs, declared), strict=True))
    found = [
        AdapterCheck(
            layer, (cells.shape[-2], cells.shape[-1]), cells.float().mean().item(), verdicts.get(layer, "undecided")
        )
        for layer, cells in zip(adapter.layers, reached, strict=True)
    ]
    for check in found:
        if check.verdict == "refuted":
            raise LayoutError(f"a disturbed square of the picture does not show at its place of {check.layer!r}")
        if check.coverage < MIN_COVERAGE:
            raise NoGradientError(f"only {check.coverage:.0%} of the cells of {check.layer!r} influence the target")
    return found


def _highest_logits(outputs: Any) -> Tensor:
    return torch.sum(class_logits(outputs).amax(1))
