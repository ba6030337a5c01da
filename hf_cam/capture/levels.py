"""The tensor that a layer's output is about: its first one, or one level of a layer that returns several maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_cam.errors import LayerError
from hf_cam.outputs import parts_of, with_parts


def first_tensor(output: Any) -> Tensor | None:
    """The tensor that a layer's output is about: itself, or the first tensor of a tuple or record."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return next((value for value in values if isinstance(value, Tensor)), None)


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """A layer's output with another tensor in the place of the first."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, Mapping):
        key = next(key for key, value in output.items() if isinstance(value, Tensor))
        return type(output)(**{**output, key: tensor})
    items = list(output)
    items[next(i for i, value in enumerate(items) if isinstance(value, Tensor))] = tensor
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


def maps_in(output: Any) -> dict[str, Tensor]:
    """The maps `[B, C, h, w]` of an output that consists of two or more, by key or position; empty for any other.

    Of a record such as transformers' outputs, and of a tuple, the first field decides, if it is a pyramid. An entry may
    be a tuple that begins with its map.

    >>> import torch
    >>> {level: tuple(maps.shape) for level, maps in maps_in([torch.ones(1, 8, 6, 4), torch.ones(1, 8, 3, 2)]).items()}
    {'0': (1, 8, 6, 4), '1': (1, 8, 3, 2)}
    """
    holder = _listed_in(output)
    if holder is not None:
        return maps_in((parts_of(output) or {})[holder])
    found = {str(name): first_tensor(entry) for name, entry in _entries(output).items()}
    maps = {name: entry for name, entry in found.items() if entry is not None and _is_map(entry)}
    return maps if len(maps) == len(found) > 1 else {}


def is_pyramid(output: Any) -> bool:
    """Whether an output is a pyramid: maps, each with fewer cells than the one before it, or each with more.

    The maps of a bare tuple, which may also be a map and what is left over from it, must have equally many channels.

    >>> import torch
    >>> is_pyramid({"fine": torch.ones(1, 8, 6, 4), "coarse": torch.ones(1, 8, 3, 2)})
    True
    >>> is_pyramid((torch.ones(1, 8, 6, 4), torch.ones(1, 16, 3, 2)))
    False
    """
    maps = list(maps_in(output).values())
    if not maps:
        return False
    channels_last = len({one.shape[3] for one in maps}) == 1 < len({one.shape[1] for one in maps})
    sizes = [one.shape[1:3] if channels_last else one.shape[2:] for one in maps]
    if isinstance(output, tuple) and not channels_last and len({one.shape[1] for one in maps}) > 1:
        return False
    steps = [math.prod(later) - math.prod(earlier) for earlier, later in itertools.pairwise(sizes)]
    return all(step < 0 for step in steps) or all(step > 0 for step in steps)


def tensor_at(output: Any, level: str | None) -> Tensor | None:
    """The tensor that a layer's output is about: its level of this name if it consists of maps, else its first tensor.

    Raises:
        LayerError: it has no such level.
    """
    maps = {} if level is None else maps_in(output)
    if not maps or level is None:
        return first_tensor(output)
    if level not in maps:
        raise LayerError(f"it has no level {level!r}, but {', '.join(map(repr, maps))}")
    return maps[level]


def with_tensor_at(output: Any, level: str | None, tensor: Tensor) -> Any:
    """A layer's output with another tensor in the place of the one that `tensor_at` returns."""
    if level is None or not maps_in(output):
        return with_first_tensor(output, tensor)
    parts = parts_of(output) or {}
    if (holder := _listed_in(output)) is not None:
        return with_parts(output, {**parts, holder: with_tensor_at(parts[holder], level, tensor)})
    changed = {name: with_first_tensor(part, tensor) if str(name) == level else part for name, part in parts.items()}
    return with_parts(output, changed)


def _listed_in(output: Any) -> str | int | None:
    """The first field of a record, dict or tuple that is not empty, if it is a pyramid; None if it is not."""
    if not isinstance(output, Mapping | tuple):
        return None
    parts = (parts_of(output) or {}).items()
    name, value = next(((name, value) for name, value in parts if value is not None), ("", None))
    if not isinstance(value, list | tuple):
        return None
    # What a record or dict names is no map with what is left over from it, so its channels may differ.
    return name if is_pyramid(list(value) if isinstance(output, Mapping) else value) else None


def _entries(output: Any) -> Mapping[Any, Any]:
    """The entries of a dict, list or tuple; none of a record, whose tensors have different meanings."""
    if isinstance(output, Mapping):
        return {} if hasattr(output, "to_tuple") else output
    return dict(enumerate(output)) if isinstance(output, list | tuple) else {}


def _is_map(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_floating_point()
