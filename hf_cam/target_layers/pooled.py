"""The layer whose mean over all cells a model's last linear layer reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call, picture_size
from hf_cam.capture.levels import first_tensor
from hf_cam.errors import MethodError
from hf_cam.layouts import Spatial, read_layouts
from hf_cam.models.traits import traits_of, unwrap
from hf_cam.target_layers.adapter import Adapter

TOLERANCE = 1e-4
NOT_POOLED = (
    "'cam' is defined for models that end in the mean over all cells and one linear layer, which this one does not; "
    "'gradcam' and 'hirescam' give the same map there and are defined for others"
)


@dataclass(frozen=True)
class LinearCall:
    """One call of a linear layer on a vector per image.

    Args:
        module: The layer.
        features: `[B, C]`, what it read.
        output: `[B, K]`, connected to the graph if one was recorded.
    """

    module: nn.Linear
    features: Tensor
    output: Tensor


@contextmanager
def linear_calls(module: nn.Module) -> Iterator[list[LinearCall]]:
    """Record the calls of linear layers on a vector per image in a forward of `module`, in their order."""
    found: list[LinearCall] = []

    def record(child: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(child, nn.Linear) and args and isinstance(args[0], Tensor) and args[0].ndim == 2:
            found.append(LinearCall(child, args[0].detach(), output))

    handles = [child.register_forward_hook(record) for child in module.modules() if isinstance(child, nn.Linear)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def is_mean_of(features: Tensor, cells: Tensor) -> bool:
    """Whether features `[B, C]` are the means of `[B, C, *space]` over the cells."""
    means = cells.flatten(2).mean(2)
    if means.shape != features.shape:
        return False
    return bool((means - features).abs().max() <= TOLERANCE * features.abs().max().clamp_min(1e-12))


def before_pooling(model: nn.Module, adapter: Adapter, inputs: Mapping[str, Any]) -> Adapter:
    """The adapter with the layer whose mean over all cells the last linear layer reads, its own if that is one.

    Args:
        model: The model that the adapter describes; it is left unchanged.
        adapter: The inferred adapter.
        inputs: The named inputs of one image.

    Raises:
        MethodError: there is no such layer.
    """
    module, outputs = unwrap(model), dict[str, list[Tensor]]()

    def recorder(name: str) -> Any:
        def record(_: nn.Module, __: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and tensor.ndim > 2 and len(tensor) == 1:
                outputs.setdefault(name, []).append(tensor.detach())

        return record

    with borrowed(module) as module, torch.no_grad(), linear_calls(module) as calls:
        handles = [child.register_forward_hook(recorder(name)) for name, child in module.named_modules() if name]
        try:
            call(module, inputs)
        finally:
            for handle in handles:
                handle.remove()
    features = calls[-1].features if calls else torch.zeros(1, 0)
    size, patch = picture_size(inputs), traits_of(model).patch
    own = [name for name in adapter.layers if name in outputs]
    for name in (*own, *outputs):  # of those that return the same, the innermost finishes first
        tensor, *again = outputs[name]
        layouts: list[Spatial] = (
            [] if again else [*read_layouts(tensor.shape, size, prefixes=adapter.prefixes, patch=patch, images=1)]
        )
        for layout in layouts:
            if is_mean_of(features, layout.to_spatial(tensor, size, 1)):
                return replace(adapter, layers=(name,), layouts=(layout,), reason="read by the last linear layer")
    raise MethodError(NOT_POOLED)
