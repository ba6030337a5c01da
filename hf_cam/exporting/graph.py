"""A module that returns a classifier's logits and the map of a class, without a backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.levels import first_tensor
from hf_cam.capture.runs import Counter, located
from hf_cam.exporting.closed_form import Layer, raw_map
from hf_cam.exporting.pooled_head import PooledHead
from hf_cam.layouts import NHWC, Size
from hf_cam.methods.registry import Method
from hf_cam.models.traits import picture_place
from hf_cam.outputs import Path, part_at
from hf_cam.target_layers.adapter import Adapter


@dataclass(frozen=True)
class OpenMaps:
    """The layout of a layer that returns maps for pictures of any size; sizes are not checked, which would fix them.

    Args:
        axes: "b c h w" or "b h w c".
    """

    axes: str

    def to_spatial(self, activations: Tensor, image_size: Size, images: int | None = None) -> Tensor:
        """The activation as `[B, C, h, w]`."""
        del image_size, images
        return activations.permute(0, 3, 1, 2) if self.axes == NHWC else activations


@dataclass(frozen=True)
class Plan:
    """What the graph computes.

    Args:
        method: The method.
        adapter: Its target layers.
        head: What follows them, for methods that need it.
        size: Height and width of the model's input, at which the layers were looked at.
        others: Inputs of the forward beside the picture.
        path: Where the logits stand in the model's output.
        exclusive: Whether exactly one class applies to an image.
        options: Of the method.
    """

    method: Method
    adapter: Adapter
    head: PooledHead | None
    size: Size
    others: Mapping[str, Any]
    path: Path
    exclusive: bool
    options: Mapping[str, Any]


class SelfExplaining(nn.Module):
    """A classifier that returns `(logits, map)`.

    Args:
        model: A replica of the model.
        plan: What is computed.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.model, self.plan = model, plan
        self.place = picture_place(model, plan.others)

    def forward(self, pixel_values: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits `[B, K]` and maps `[B, H, W]` in [0, 1].

        Args:
            pixel_values: `[B, C, H, W]`.
            target: `[B]` integers: the classes; the top class where it is negative, or if there is no such input.
        """
        plan = self.plan
        output, activations = self._run(pixel_values)
        size = (pixel_values.shape[2], pixel_values.shape[3])
        logits: Tensor = part_at(output, plan.path)
        index = logits.argmax(1)
        if target is not None:
            index = torch.where(target < 0, index, target)
        raw = []
        for name, activation in zip(plan.adapter.layers, activations, strict=True):
            cells = plan.adapter.spatial(activation, size, name)
            raw.append(raw_map(plan.method, Layer(cells, index, plan.head, plan.exclusive), plan.options))
        return logits, plan.method.fuse(raw, size)

    def _run(self, pixel_values: Tensor) -> tuple[Any, list[Tensor]]:
        """The model's output, and what the target layers returned."""
        seen: dict[str, Tensor] = {}
        handles = []
        for name in self.plan.adapter.layers:
            module, run = located(self.model, name)
            handles.append(module.register_forward_hook(_keeping(Counter(name, run), seen)))
        try:
            named = {**self.plan.others}
            if self.place:
                output = self.model(**{self.place: pixel_values}, **named)
            else:
                output = self.model(pixel_values, **named)
        finally:
            for handle in handles:
                handle.remove()
        return output, [seen[name] for name in self.plan.adapter.layers]


def _keeping(counter: Counter, seen: dict[str, Tensor]) -> Any:
    def keep(_: nn.Module, __: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if counter.hits() and tensor is not None:
            seen[counter.layer] = tensor

    return keep
