"""Layers that the caller names: dotted names or modules, one run of a layer that runs several times, their layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import picture_size
from hf_cam.capture.runs import level_name, level_of, located, parts_of, run_name, without_level
from hf_cam.errors import LayerError, LayoutError, OptionError, UnknownArchitecture, nearest
from hf_cam.images.patches import are_cut
from hf_cam.layouts import (
    BY_FRAME,
    NCHW,
    NCHW_BY_VIEW,
    NHWC,
    NHWC_BY_VIEW,
    TOKENS,
    AnyLayout,
    Layout,
    Reshape,
    Size,
    Spatial,
    read_layouts,
)
from hf_cam.models.traits import traits_of
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.levels import levels_of
from hf_cam.target_layers.noise import activations_of, check_layouts
from hf_cam.target_layers.probe import readings
from hf_cam.target_layers.trace import Returned, Trace, trace

Layers = str | nn.Module | Sequence[str | nn.Module]
"""Target layers as a caller names them: modules or dotted names, `name:1` for the second run, `name[1]` for a level."""


def named_adapter(
    module: nn.Module, layers: Layers, reshape: Callable[[Tensor], Tensor] | None, prefixes: tuple[int, ...]
) -> Adapter:
    """The caller's layers before any run: their layouts are read off each activation, or by `reshape`.

    Args:
        module: The model.
        layers: Names or modules.
        reshape: `activation -> [B, C, h, w]`, or None.
        prefixes: Numbers of prefix tokens to try, most likely first.

    Raises:
        LayerError: a layer is not in the model, or none is named.
        OptionError: `layers` is something else.
    """
    if not isinstance(layers, str | nn.Module | Sequence):
        raise OptionError(f"layers must be a dotted name, a module or a list of them, not {type(layers).__name__}")
    given = [layers] if isinstance(layers, str | nn.Module) else layers
    if not given:
        raise LayerError("layers= names no layer; omit it to have one inferred")
    names = tuple(dict.fromkeys(_name_of(module, layer) for layer in given))
    layout: Spatial = Reshape(reshape) if reshape else AnyLayout(prefixes, traits_of(module).patch)
    return Adapter(names, (layout,) * len(names), origin="caller", reason="given by the caller")


def _name_of(module: nn.Module, layer: Any) -> str:
    """The dotted name of a layer; for a module that is registered more than once, the first."""
    known: dict[nn.Module, str] = {child: name for name, child in module.named_modules()}
    if isinstance(layer, nn.Module):
        if not known.get(layer):
            what = "the model itself" if layer is module else "no part of the model"
            raise LayerError(f"the module {type(layer).__name__} in layers= is {what}; pass one of its layers")
        return known[layer]
    if not isinstance(layer, str):
        raise OptionError(f"layers= takes dotted names or modules, not {type(layer).__name__}")
    try:
        child, run = located(module, layer)
    except LayerError:
        child, run = module, None
    if child is module:
        raise LayerError(f"the model has no layer {layer!r}; nearest: {nearest(layer, filter(None, known.values()))}")
    name = known[child] if run is None else run_name(known[child], run)
    level = None if layer in known.values() else level_of(layer)
    return name if level is None else level_name(name, level)


def settled(adapter: Adapter, model: nn.Module, inputs: Mapping[str, Any], known: Adapter | None) -> Adapter:
    """The caller's adapter after one traced forward: which run of a layer is meant, and the layout of its output.

    A layer that is inferred anyway has the layout that is inferred. Of a layer that runs several times, that run is
    meant which alone depends on the picture. A layer that returns several scales becomes its levels, if its name gives
    none. A layout that the forward does not show is still read off each activation.

    Args:
        adapter: From `named_adapter`.
        model: The model; it is left unchanged.
        inputs: The named inputs of one image.
        known: What is declared for the model, or None.

    Raises:
        LayerError: a layer did not run, several of its runs depend on the picture and none is named, or it has no such
            level.
        LayoutError: the views of different images alternate in a layer's batch axis, or the sizes of the scales in a
            sequence do not show.
    """
    if known is not None and known.origin != "timm" and set(adapter.layers) <= set(known.layers):
        layouts = [known.layout_of(layer) if isinstance(own, AnyLayout) else own for layer, own in _places(adapter)]
        return replace(adapter, layouts=tuple(layouts))
    if are_cut(inputs):
        return adapter
    with borrowed(model) as model:
        try:
            traced = trace(model, inputs, traits_of(model).cut)
        except UnknownArchitecture:  # a volume, a video or several views, not a picture
            return _of_views(adapter, model, inputs)
        adapter = _with_levels(adapter, traced)
        layouts = [
            _chosen(model, inputs, layer, _readings(layer, traced, known)) or own if isinstance(own, AnyLayout) else own
            for layer, own in _places(adapter)
        ]
    return replace(adapter, layouts=tuple(layouts))


def _places(adapter: Adapter) -> Iterator[tuple[str, Spatial]]:
    return zip(adapter.layers, adapter.layouts, strict=True)


def _with_levels(adapter: Adapter, traced: Trace) -> Adapter:
    """The adapter with the run that is meant of each layer, and with all levels of a layer that returns several."""
    found: dict[str, Spatial] = {}
    for layer, own in _places(adapter):
        level, base = (None, layer) if layer in traced.returned else (level_of(layer), without_level(layer))
        base = _one_run(base, traced.returned)
        name = base if level is None else level_name(base, level)
        returned = _returned(base, traced)
        found |= dict(levels_of(name, own, returned, traced.image_size, traced.scales) if returned else [(name, own)])
    return replace(adapter, layers=tuple(found), layouts=tuple(found.values()))


def _returned(layer: str, traced: Trace) -> Returned | None:
    """What one run of a layer returned; None if it did not run."""
    name, run = (layer, 0) if layer in traced.returned else parts_of(layer)
    runs = traced.returned.get(name, ())
    return runs[run or 0] if len(runs) > (run or 0) else None


def _one_run(layer: str, returned: Mapping[str, Sequence[Returned]]) -> str:
    """The layer's name with the number of the run that depends on the picture, if it runs several times."""
    name, run = parts_of(layer)
    runs = returned.get(layer) or (returned.get(name, ()) if run is not None else ())
    if layer in returned and len(runs) > 1:
        reading = [number for number, one in enumerate(runs) if one.reads]
        if len(reading) != 1:
            which = f"{len(reading)} of its {len(runs)} runs" if reading else f"none of its {len(runs)} runs"
            example = run_name(layer, reading[-1] if reading else 0)
            raise LayerError(f"{which} of the layer {layer!r} depend on the picture; name one, such as {example!r}")
        return run_name(layer, reading[0])
    return layer


def _readings(layer: str, traced: Trace, known: Adapter | None) -> list[Layout]:
    """Every layout that the output of a layer can have, most likely first."""
    returned = _returned(layer, traced)
    shape = () if returned is None else returned.levels.get(level_of(layer) or "", returned.shape)
    if not shape:
        return []
    own = known.layout_of(layer) if known is not None and layer in known.layers else None
    found = [own] if isinstance(own, Layout) and _fits(own, shape, traced.image_size) else []
    return [*found, *readings(shape, traced, joined=True)]


def _fits(layout: Layout, shape: tuple[int, ...], size: Size) -> bool:
    try:
        layout.grid(shape, size)
    except LayoutError:
        return False
    return True


def _chosen(model: nn.Module, inputs: Mapping[str, Any], layer: str, layouts: list[Layout]) -> Layout | None:
    """The first layout, or the first that the noise check does not refute if there are several; None if none is."""
    if len(layouts) < 2:
        return layouts[0] if layouts else None
    verdicts = check_layouts(model, inputs, [(layer, layout) for layout in layouts])
    kept = [layout for layout, verdict in zip(layouts, verdicts, strict=True) if verdict != "refuted"]
    return (kept or layouts)[0]


# Several views -------------------------------------------------------------------------------------------------------


def _of_views(adapter: Adapter, model: nn.Module, inputs: Mapping[str, Any]) -> Adapter:
    """The layouts of layers into whose batch axis the views of an image are folded; the others stay as they are."""
    with torch.no_grad():
        found = activations_of(model, inputs, set(adapter.layers))
        layouts = [
            _folded(model, inputs, layer, found[layer], own)
            if layer in found and isinstance(own, AnyLayout) and inputs["pixel_values"].ndim == 5
            else own
            for layer, own in _places(adapter)
        ]
    return replace(adapter, layouts=tuple(layouts))


def _folded(model: nn.Module, inputs: Mapping[str, Any], layer: str, clean: Tensor, own: AnyLayout) -> Spatial:
    """The layout of an output that holds the views, frames or slices of one image in its batch axis.

    Raises:
        LayoutError: those of two images would alternate.
    """
    if clean.ndim not in (3, 4) or len(clean) not in inputs["pixel_values"].shape[1:3]:
        return own
    possible = read_layouts(clean.shape, picture_size(inputs), prefixes=own.prefixes, patch=own.patch)
    if not possible:
        return own
    if not _is_image_by_image(model, inputs, layer, clean):
        raise LayoutError(
            f"the output of {layer!r} holds {len(clean)} views per image in its batch axis, but not one image after "
            "the other; pass reshape= (a function that returns [B, C, views, h, w])"
        )
    return replace(possible[0], axes=_BY_VIEW[possible[0].axes])


_BY_VIEW = {NCHW: NCHW_BY_VIEW, NHWC: NHWC_BY_VIEW, TOKENS: BY_FRAME}


def _is_image_by_image(model: nn.Module, inputs: Mapping[str, Any], layer: str, clean: Tensor) -> bool:
    """Whether, beside an image of noise, an image has its own outputs in the first half of the batch axis."""
    pixels = inputs["pixel_values"]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)).to(pixels)
    pair = {
        name: torch.cat([value] * 2) if isinstance(value, Tensor) and value.shape[:1] == (1,) else value
        for name, value in inputs.items()
    }
    both = activations_of(model, {**pair, "pixel_values": torch.cat([pixels, noise])}, {layer})[layer]
    if len(both) != 2 * len(clean):
        return False
    tolerance = 1e-3 * clean.abs().max()
    first, second = (bool((half - clean).abs().max() <= tolerance) for half in both.chunk(2))
    return first and not second
