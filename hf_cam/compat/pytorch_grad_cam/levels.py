"""Layers that return a dictionary, such as a feature pyramid: `reshape_transform` makes one tensor of its levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_cam.cam import Saliency
from hf_cam.capture.capture import Capture
from hf_cam.capture.chunks import in_chunks
from hf_cam.capture.guard import borrowed, forwards
from hf_cam.capture.inputs import call, model_inputs_of
from hf_cam.errors import LayoutError, MethodError
from hf_cam.layouts import Reshape
from hf_cam.methods.registry import Method
from hf_cam.methods.run import Run
from hf_cam.models.traits import unwrap
from hf_cam.request import Request
from hf_cam.target_layers.adapter import Adapter
from hf_cam.targets import Target, target_values

Levels = Mapping[Any, Tensor]
SEVERAL = 4
"""Ablated channels per forward by default."""


@dataclass(eq=False)
class Reshaping:
    """A caller's `reshape_transform`, which notes whether it ever failed.

    Args:
        function: `activation -> [B, C, h, w]`.
    """

    function: Callable[[Any], Tensor]
    failed: bool = field(default=False)

    def __call__(self, activation: Any) -> Tensor:
        """The activation in spatial form."""
        try:
            return self.function(activation)
        except Exception:
            self.failed = True
            raise


def levels_of(model: nn.Module, layers: Sequence[nn.Module], pixels: Tensor) -> bool:
    """Whether the layers return dictionaries."""
    with _captured(model, layers, pixels) as (_, _, found):
        return bool(found) and all(isinstance(levels, Mapping) for levels in found)


def saliency_of_levels(
    model: nn.Module,
    layers: Sequence[nn.Module],
    reshape: Callable[[Any], Tensor],
    method: Method,
    pixels: Tensor,
    select: Callable[[Any], list[Sequence[Target]]],
    request: Request,
    batch_size: int | None,
    chosen: Callable[[np.ndarray], np.ndarray],
) -> Saliency:
    """The maps of a method without gradients, on layers that return dictionaries; see `CAM.saliencies`.

    Only the channels that `chosen` names, given the activations `[C, h, w]` of an image, are ablated.

    Raises:
        MethodError: the method follows gradients.
    """
    if method.needs_gradients:
        raise MethodError(
            f"{method.id!r} needs gradients, and a layer that returns a dictionary has none for its levels together; "
            "'eigencam', 'scorecam', 'ablationcam' and 'fem' need none"
        )
    size = tuple(pixels.shape[2:])
    with _captured(model, layers, pixels) as (module, outputs, found):
        [column] = select(outputs)
        raw: list[Tensor] = []
        for layer, levels in zip(layers, found, strict=True):
            spatial = reshape(levels)
            adapter = Adapter(("levels",), (Reshape(lambda tensor: tensor),), origin="caller", reason="")
            captured = Capture(module, outputs, (spatial,))
            inputs = model_inputs_of(model, pixels, {})
            run = Run(model, inputs, captured, adapter, column, size, batch_size)
            given: dict[str, Any] = {
                signal.name: _ablated(run, module, layer, levels, chosen)
                if signal.name == "ablated_scores"
                else signal.of(run, "levels", {})
                for signal in method.signals
            }
            raw.append(method.map(eigen_smooth=request.eigen_smooth, **given)[None])
        return Saliency(method.fuse(raw, size), tuple(raw), run.scores.detach()[None], outputs, adapter, method)


@contextmanager
def _captured(
    model: nn.Module, layers: Sequence[nn.Module], pixels: Tensor
) -> Iterator[tuple[nn.Module, Any, list[Levels]]]:
    """The replica that ran, its output, and what the layers returned."""
    names = {layer: name for name, layer in unwrap(model).named_modules()}
    found: list[Levels] = []
    with borrowed(unwrap(model)) as module, torch.no_grad():
        places = [module.get_submodule(names[layer]) for layer in layers]
        hooks = [place.register_forward_hook(lambda _, __, output: found.append(output)) for place in places]
        try:
            outputs = call(module, model_inputs_of(model, pixels, {}))
        finally:
            for hook in hooks:
                hook.remove()
        yield module, outputs, found


def _ablated(
    run: Run,
    module: nn.Module,
    layer: nn.Module,
    levels: Levels,
    chosen: Callable[[np.ndarray], np.ndarray],
) -> Tensor:
    """`[B, 1 + C]`: the targets' values with all channels, then without each channel of each level.

    Without a channel that is not chosen, the value counts as unchanged. The layer itself does not run again: its
    forward returns the kept levels.

    Raises:
        LayoutError: `reshape_transform` does not put the levels' channels one after the other.
    """
    places = [(key, channel) for key, level in levels.items() for channel in range(level.shape[1])]
    channels = run.activation("levels").shape[1]
    if len(places) != channels:
        raise LayoutError(
            f"the levels have {len(places)} channels in all, but reshape_transform returns {channels}: they cannot be "
            "ablated one by one"
        )
    [name] = [name for name, child in unwrap(run.model).named_modules() if child is layer][:1]
    place = module.get_submodule(name)

    def without(sample: int, channels: Sequence[int], start: int, stop: int) -> Tensor:
        count = len(channels[start:stop])
        kept = {key: level[sample : sample + 1].repeat(count, 1, 1, 1) for key, level in levels.items()}
        for row, (key, channel) in enumerate(places[one] for one in channels[start:stop]):
            kept[key][row, channel] = 0
        given = {**run.inputs, "pixel_values": run.pixels[sample : sample + 1].expand(count, -1, -1, -1)}
        with forwards({place: lambda *_, **__: kept}):
            return target_values(call(module, given), [run.targets[sample]] * count)

    size = run.rerun_batch_size or SEVERAL
    found = run.scores[:, None].repeat(1, 1 + channels)
    for sample, activations in enumerate(run.activation("levels").cpu().numpy()):
        if ablated := chosen(activations).tolist():
            values = in_chunks(len(ablated), size, partial(without, sample, ablated))
            found[sample, [1 + channel for channel in ablated]] = values
    return found
