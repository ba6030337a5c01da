"""Check the claimed layout of a layer: disturb squares of the picture and see where the layer's output changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_cam.capture.draws import has_drawn, other_draws
from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call, picture_name, picture_size
from hf_cam.capture.levels import tensor_at
from hf_cam.capture.runs import level_of
from hf_cam.errors import LayoutError
from hf_cam.images.patches import CutPictures, are_cut
from hf_cam.layouts import MAPS, Layout, Size, Spatial
from hf_cam.models.traits import unwrap
from hf_cam.target_layers.trace import hooked

Verdict = Literal["confirmed", "refuted", "undecided"]

# Start, top and left of the disturbed boxes, as shares of the video (a picture has one frame). Each box is half as long
# as the video and a quarter as high and wide. Swapping the axes would move all of them. One touches the right border
# and one the left: tokens shifted by one wrap into another row there, which distinguishes a shift from the half cell by
# which strided convolutions are off centre.
_PLACES = ((0.0, 0.125, 0.75), (0.5, 0.625, 0.375), (0.5, 0.375, 0.0))
_SIDES = (0.5, 0.25, 0.25)
_MARGIN = 0.9
_NOISE = 0.3  # a weaker match is chance: the network spread the change over the whole layer


@dataclass(frozen=True)
class _Disturbance:
    places: tuple[tuple[float, float, float], ...]
    strength: float  # of the noise, in standard deviations of the picture


# Low-discrepancy sequences spread further boxes evenly, every other one at the left or right border.
_MORE = tuple(
    (0.5 * (i % 2), 0.75 * (0.618 * i % 1), (0.0, 0.75 * (0.755 * i % 1), 0.75, 0.75 * (0.57 * i % 1))[i % 4])
    for i in range(15)
)
_STRONG, _WEAK = _Disturbance(_PLACES, strength=2), _Disturbance(_PLACES + _MORE, strength=0.5)


def check_layouts(model: nn.Module, inputs: Mapping[str, Any], claims: Sequence[tuple[str, Spatial]]) -> list[Verdict]:
    """Whether layers have the layouts claimed: one clean forward, and one for each of three disturbed places.

    Read in the claimed layout, the change must match the disturbed places better than the same change with its tokens
    shifted, with the axes swapped, or window by window. The comparison is relative, because networks differ in how far
    they spread a change. Undecided claims are checked again by the same rules at eighteen places with weaker noise: a
    chance match at three places does not last over eighteen, and weak noise does not attract all the attention.

    Args:
        model: Any module.
        inputs: Its named inputs with a picture `(B, C, H, W)`, a video `(B, T, C, H, W)`, or padded patches.
        claims: Layers and the layout claimed for each.

    Raises:
        UnknownArchitecture: there is no picture among the inputs.
    """
    size, images = picture_size(inputs), len(inputs[picture_name(inputs, (3, 4, 5))])
    with borrowed(unwrap(model)) as module, torch.no_grad():
        clean, random = _clean(module, inputs, {layer for layer, _ in claims})
        verdicts: list[Verdict] = ["refuted" if layer in random else "undecided" for layer, _ in claims]
        for disturbance in (_STRONG, _WEAK):
            unsure = {layer for (layer, _), verdict in zip(claims, verdicts, strict=True) if verdict == "undecided"}
            changes = _changes(module, inputs, {layer: clean[layer] for layer in unsure}, disturbance) if unsure else {}
            verdicts = [
                _verdict(changes[layer], disturbance, layout, size, images) if verdict == "undecided" else verdict
                for (layer, layout), verdict in zip(claims, verdicts, strict=True)
            ]
    return verdicts


def _changes(
    module: nn.Module, inputs: Mapping[str, Any], clean: Mapping[str, Tensor], disturbance: _Disturbance
) -> dict[str, list[Tensor]]:
    """For each layer, the change of its output for each disturbed place."""
    name, layers = picture_name(inputs, (3, 4, 5)), set(clean)
    changes: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for disturbed in _disturbed(inputs, name, disturbance):
        for layer, activation in activations_of(module, {**inputs, name: disturbed}, layers).items():
            changes[layer].append((activation - clean[layer]).float())
    return changes


def _clean(module: nn.Module, inputs: Mapping[str, Any], layers: set[str]) -> tuple[dict[str, Tensor], set[str]]:
    """The outputs of the layers, and the layers whose output is random (masked or shuffled patches)."""
    clean = activations_of(module, inputs, layers)
    if not has_drawn(module):
        return clean, set()
    with other_draws():
        again = activations_of(module, inputs, layers)
    return clean, {layer for layer in clean if _differ(clean[layer], again[layer])}


def _differ(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or bool((one - other).abs().max() > 1e-2 * one.abs().max())


def activations_of(module: nn.Module, inputs: Mapping[str, Any], layers: set[str]) -> dict[str, Tensor]:
    """What layers return in one forward: the first tensor of each output, or the level that the name gives."""
    seen: dict[str, Tensor] = {}

    def record(layer: str, output: Any) -> None:
        tensor = tensor_at(output, level_of(layer))
        if tensor is not None:
            seen[layer] = tensor.clone()  # later modules may change it in place

    with hooked(module, record, layers):
        call(module, inputs)
    return seen


def _disturbed(inputs: Mapping[str, Any], name: str, disturbance: _Disturbance) -> Iterator[Tensor]:
    picture, cut = inputs[name].detach(), CutPictures.of(inputs) if are_cut(inputs) else None
    generator = torch.Generator().manual_seed(0)
    noise = (
        torch.randn(picture.shape[1:], generator=generator).to(picture) * (picture.std() + 0.1) * disturbance.strength
    )
    rows, columns = picture.shape[-2:] if cut is None else cut.grid
    frames = len(picture[0]) if picture.ndim == 5 else 1
    for place in disturbance.places:
        where = torch.zeros(frames, rows, columns, dtype=torch.bool, device=picture.device)
        where[tuple(map(_span, place, _SIDES, where.shape))] = True
        if cut is not None:
            where = cut.marked(where)
        elif picture.ndim == 5:
            where = where[:, None]
        yield picture + noise * where


def _span(start: float, length: float, cells: int) -> slice:
    if cells == 1:
        return slice(0, 1)
    return slice(round(start * cells), round((start + length) * cells))


def _verdict(changes: Sequence[Tensor], disturbance: _Disturbance, layout: Spatial, size: Size, images: int) -> Verdict:
    claimed, others = _matches(changes, disturbance, layout, size, images)
    rival = max(others, default=0.0)
    if claimed > _NOISE and rival <= _MARGIN * claimed:
        return "confirmed"
    return "refuted" if rival > _NOISE and claimed < _MARGIN * rival else "undecided"


def _matches(
    changes: Sequence[Tensor], disturbance: _Disturbance, layout: Spatial, size: Size, images: int
) -> tuple[float, list[float]]:
    """How well the change matches the disturbed places in the claimed layout, and in each of the rivals."""
    try:
        laid = [layout.to_spatial(change, size, images).square().sum((0, 1)).sqrt().cpu() for change in changes]
    except LayoutError:
        return 0.0, []
    spatial = torch.stack(laid).unflatten(1, (1, -1)) if laid[0].ndim == 2 else torch.stack(laid)  # [places, t, h, w]
    raster = not isinstance(layout, Layout) or layout.axes not in MAPS
    readings = torch.stack([spatial, *_rivals(spatial, raster)])
    claimed, *others = (_centred(readings) @ _centred(_expected(disturbance, *spatial.shape[1:])[None])[0]).tolist()
    return claimed, others


def _expected(disturbance: _Disturbance, *grid: int) -> Tensor:
    """The share of each cell that was disturbed, `(places, frames, rows, columns)`."""

    def overlap(start: float, length: float, cells: int) -> Tensor:
        if cells == 1:
            return torch.ones(1)
        edges = torch.arange(cells + 1) / cells
        return (edges[1:].clamp(max=start + length) - edges[:-1].clamp(min=start)).clamp(min=0) * cells

    boxes = ([overlap(*side) for side in zip(place, _SIDES, grid, strict=True)] for place in disturbance.places)
    return torch.stack([frames[:, None, None] * rows[:, None] * columns for frames, rows, columns in boxes])


def _centred(maps: Tensor) -> Tensor:
    """Maps `(count, places, t, h, w)` as unit vectors, less the mean over places, since some cells always react."""
    maps = maps / maps.sum((2, 3, 4), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    return torch.nn.functional.normalize((maps - maps.mean(1, keepdim=True)).flatten(1), dim=1)


def _rivals(spatial: Tensor, tokens: bool) -> Iterator[Tensor]:
    """The same cells `(places, t, h, w)` in the other orders that they could have."""
    count, frames, rows, columns = spatial.shape
    yield spatial.flip(2)
    yield spatial.flip(3)
    flat = spatial.flatten(1)
    if not tokens:
        yield torch.nn.functional.interpolate(spatial.transpose(2, 3), size=(rows, columns), mode="area")
        return
    yield flat.view(count, frames, columns, rows).transpose(2, 3)
    for shift in (-1, 1):
        yield flat.roll(shift, 1).view_as(spatial)
    if frames > 1:
        yield flat.view(count, rows, columns, frames).permute(0, 3, 1, 2)
        yield spatial.permute(0, 2, 3, 1).reshape_as(spatial)
        yield spatial.flip(1)
        return
    for side in (2, 4, 7, 8):
        if rows % side == 0 and columns % side == 0 and side < max(rows, columns):
            tall, wide = rows // side, columns // side
            yield flat.view(count, tall, wide, side, side).transpose(2, 3).reshape_as(spatial)
            yield flat.view(count, side, side, tall, wide).permute(0, 3, 1, 4, 2).reshape_as(spatial)
