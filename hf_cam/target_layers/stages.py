"""Target layers for methods that read several layers: the end of each stage of a network, not only of the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hf_cam.capture.guard import borrowed
from hf_cam.capture.levels import first_tensor
from hf_cam.capture.runs import located
from hf_cam.errors import UnknownArchitecture
from hf_cam.layouts import Layout, Size, read_layouts
from hf_cam.models.traits import traits_of, unwrap
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.trace import Produced, Trace, hooked, path_shares, trace

STAGES = 4
TRUNK = 0.99


def target_layers(model: nn.Module, adapter: Adapter, inputs: Mapping[str, Any]) -> Adapter:
    """The adapter unchanged."""
    del model, inputs
    return adapter


def stage_ends(model: nn.Module, adapter: Adapter, inputs: Mapping[str, Any]) -> Adapter:
    """The target layer and the ends of the stages before it, four layers at most, the target layer first.

    A stage is the part of a network that works on one grid; its end is the last layer there through which every path
    from the picture to the target layer runs. The coarsest stages are taken. If no grid before the target layer is
    finer, as in a plain ViT, a stage is a quarter of those layers. One traced forward of one image finds them. An
    adapter with several layers is returned unchanged, as is one for a model whose input is not a picture.

    Args:
        model: The model that the adapter describes; it is left unchanged.
        adapter: The inferred adapter.
        inputs: The named inputs of one image.

    >>> import torch
    >>> from transformers import ResNetConfig, ResNetForImageClassification
    >>> from hf_cam import infer_adapter
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 2, 1])
    >>> model = ResNetForImageClassification(config).eval()
    >>> stage_ends(model, infer_adapter(model), {"pixel_values": torch.rand(1, 3, 64, 96)}).layers
    ('resnet.encoder.stages.2', 'resnet.encoder.stages.1', 'resnet.encoder.stages.0')
    """
    if len(adapter.layers) > 1:
        return adapter
    trunk = _traced_trunk(model, adapter, inputs)
    ends = _ends(trunk) if trunk else []
    if not ends:
        return adapter
    layers = (*adapter.layers, *(end.layer for end in ends))
    layouts = (*adapter.layouts, *(end.layout for end in ends))
    reason = f"{adapter.reason}; and the ends of earlier stages"
    return replace(adapter, layers=layers, layouts=layouts, reason=reason)


def layer_choices(model: nn.Module, adapter: Adapter, inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """Layers to choose from: the adapter's own, then the blocks before the target layer, deepest first.

    A block is a member of a list through which every path from the picture to the target layer runs, and whose output
    is spatial. For an adapter with several layers, or a model whose input is not a picture, only the adapter's own
    layers are returned.

    Args:
        model: The model that the adapter describes; it is left unchanged.
        adapter: The inferred adapter.
        inputs: The named inputs of one image.

    >>> import torch
    >>> from transformers import ResNetConfig, ResNetForImageClassification
    >>> from hf_cam import infer_adapter
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2])
    >>> model = ResNetForImageClassification(config).eval()
    >>> layer_choices(model, infer_adapter(model), {"pixel_values": torch.rand(1, 3, 64, 96)})
    ('resnet.encoder.stages.1', 'resnet.encoder.stages.0')
    """
    trunk = _traced_trunk(model, adapter, inputs) if len(adapter.layers) == 1 else []
    blocks = _outer([stop for stop in trunk[:-1] if stop.whole], trunk)
    return tuple(dict.fromkeys((*adapter.layers, *(stop.layer for stop in reversed(blocks)))))


@dataclass(frozen=True)
class _Stop:
    """A layer that no path from the picture to the target layer avoids."""

    layer: str
    layout: Layout
    grid: Size
    whole: bool  # a member of a list of blocks, not a norm

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]


def _traced_trunk(model: nn.Module, adapter: Adapter, inputs: Mapping[str, Any]) -> list[_Stop]:
    """The trunk from one traced forward; empty if the model's input is not a picture."""
    [target] = adapter.layers
    found: list[GradientEdge] = []

    def record(_: str, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None and tensor.requires_grad:
            found.append(get_gradient_edge(tensor))

    with borrowed(unwrap(model)) as module:
        try:
            with hooked(module, record, {target}):
                traced = trace(module, inputs, traits_of(model).patch)
        except UnknownArchitecture:
            return []
        return _trunk(module, traced, found[0], adapter) if found else []


def _trunk(module: nn.Module, traced: Trace, target: GradientEdge, adapter: Adapter) -> list[_Stop]:
    """The stops in the order in which they run, up to the target layer; empty if its output is not spatial.

    Of an activation that is used everywhere, single runs are stops only if the target is one run of a layer.
    """
    share = path_shares(target, traced.picture)
    trunk = []
    _, run = located(module, adapter.layers[0])
    for one in traced.produced:
        is_target = one.edge == target
        if is_target or (share(one.edge) >= TRUNK and _is_named(module, one, any_run=run is not None)):
            patch = getattr(adapter.layouts[0], "patch", None)
            images = len(traced.picture)
            layouts = read_layouts(one.shape, traced.image_size, prefixes=adapter.prefixes, patch=patch, images=images)
            # Numbers alone can make channels-last look like channels-first, so the target layer's axes are tried first.
            layouts.sort(key=lambda layout: layout.axes != getattr(adapter.layouts[0], "axes", None))
            whole = one.landmark and "norm" not in type(located(module, one.layer)[0]).__name__.lower()
            if layouts:
                trunk.append(_Stop(one.layer, layouts[0], layouts[0].grid(one.shape, traced.image_size), whole))
        if is_target:
            return trunk if layouts else []
    return []


def _is_named(module: nn.Module, one: Produced, *, any_run: bool) -> bool:
    used_everywhere = one.again and next(located(module, one.layer)[0].parameters(), None) is None
    return bool(one.layer) and (any_run or not used_everywhere)


def _ends(trunk: list[_Stop]) -> list[_Stop]:
    """The last layer of each stage before the target's own, deepest first."""
    *before, target = trunk
    blocks = [stop for stop in before if stop.whole] or before
    finer = {stop.grid: stop for stop in blocks if stop.cells > target.cells}
    if finer:
        return sorted(finer.values(), key=lambda stop: stop.cells)[: STAGES - 1]
    outer = _outer(blocks, trunk)
    quarters = [(len(outer) + 1) * part // STAGES - 1 for part in reversed(range(1, STAGES))]
    return [outer[index] for index in dict.fromkeys(quarters) if index >= 0]


def _outer(blocks: list[_Stop], trunk: list[_Stop]) -> list[_Stop]:
    """The blocks that are not inside another layer of the trunk."""
    return [stop for stop in blocks if not any(stop.layer.startswith(f"{other.layer}.") for other in trunk)]
