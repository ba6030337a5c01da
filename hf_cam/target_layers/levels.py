"""Layers that return several scales: which levels they have, and the layout of each."""

from __future__ import annotations

from collections.abc import Sequence

from hf_cam.capture.runs import level_name, level_of, without_level
from hf_cam.errors import LayerError, LayoutError
from hf_cam.layouts import AnyLayout, Size, Spatial
from hf_cam.target_layers.pyramids import Level, strides_of
from hf_cam.target_layers.trace import Returned


def levels_of(
    layer: str, own: Spatial, returned: Returned, image_size: Size, scales: Sequence[tuple[Size, ...]]
) -> list[tuple[str, Spatial]]:
    """The levels of a layer with their layouts: the one that its name gives, or all; a layer of one scale is itself.

    Args:
        layer: Its name, possibly with that of a level.
        own: The layout so far.
        returned: What the layer returned in a forward.
        image_size: Height and width of the picture in that forward.
        scales: The sizes of scales that modules were given in it.

    Raises:
        LayerError: the layer has no such level.
        LayoutError: it returns a sequence of unknown scales.
    """
    level, base = level_of(layer), without_level(layer)
    if level is None and not isinstance(own, AnyLayout):
        return [(layer, own)]
    if returned.levels and (returned.pyramid or level is not None):
        found: dict[str, Spatial] = dict.fromkeys(returned.levels, own)
    else:
        found = dict(_of_sequence(layer, returned.shape, image_size, scales, asked=level is not None))
    if not found:
        return [(layer, own)]
    names = list(found) if level is None else [_name(level, list(found), base)]
    return [(level_name(base, name), found[name]) for name in names]


def _of_sequence(
    layer: str, shape: tuple[int, ...], image_size: Size, scales: Sequence[tuple[Size, ...]], *, asked: bool
) -> list[tuple[str, Spatial]]:
    """The levels of a sequence of tokens that holds several scales; empty if it holds one and none is asked for."""
    fitting = [
        sizes for sizes in scales if len(shape) == 3 and sum(rows * columns for rows, columns in sizes) == shape[1]
    ]
    strides = {found for sizes in fitting if (found := strides_of(sizes, image_size)) is not None}
    if len(strides) == 1:
        [one] = strides
        return [(str(index), Level(one, index)) for index in range(len(one))]
    if len(shape) == 3 and (fitting or asked):
        raise LayoutError(
            f"{layer!r} returns {shape[1]} tokens, and the forward does not show the sizes of their scales; pass "
            "reshape= (a function that returns one of them as [B, C, h, w])"
        )
    if asked:
        raise LayerError(
            f"{without_level(layer)!r} returns a single map, so it has no levels; omit [{level_of(layer)}]"
        )
    return []


def _name(level: str, names: Sequence[str], layer: str) -> str:
    """The level's name; a negative number counts from the end.

    Raises:
        LayerError: there is no such level.
    """
    if level in names:
        return level
    if level.startswith("-") and level[1:].isdecimal() and 0 < int(level[1:]) <= len(names):
        return names[int(level)]
    raise LayerError(f"{layer!r} has no level {level!r}; it has {', '.join(map(repr, names))}")
