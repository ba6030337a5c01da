"""The catalogue of `adapters/`: one data file per family of architectures, and how its layer patterns are read."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import nn

from hf_cam.capture.runs import level_name
from hf_cam.errors import LayerError, LayoutError, PluginWarning
from hf_cam.layouts import MAPS, Layout
from hf_cam.models.families import tables
from hf_cam.models.traits import config_of, count_of, timm_traits, traits_of
from hf_cam.plugins import data_files
from hf_cam.target_layers.adapter import Adapter


@dataclass(frozen=True)
class Entry:
    """One `[[adapter]]` table of a file in `adapters/`; see `adapters/README.md` for the fields."""

    family: str
    model_types: tuple[str, ...]
    layers: tuple[str, ...]
    axes: str
    heads: tuple[str, ...] = ("*",)
    level: str = ""
    prefix: int | str = 0
    suffix: int | str = 0  # or "padding"
    square: bool = False
    method: str = "gradcam"
    reason: str = ""
    caution: str = ""
    candidates: tuple[str, ...] = Adapter.candidates

    def matches(self, model_type: str, *heads: str) -> bool:
        """True for a model of this `config.model_type` whose class has one of these names."""
        return model_type in self.model_types and any(
            fnmatch(head, pattern) for head in heads for pattern in self.heads
        )


def catalogue() -> tuple[Entry, ...]:
    """Every entry of `adapters/*.toml`, file by file, then those of plug-ins.

    An entry of a plug-in that is wrong is left out with a `PluginWarning`.

    Raises:
        LayoutError: a file has unknown keys, or two entries claim the same model type and head.
    """
    return _entries(data_files())


@functools.cache
def _entries(others: tuple[Path, ...]) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    for path, table in tables("adapter"):
        try:
            entry = _entry(path, table)
            _refuse_duplicate(entry, entries)
        except LayoutError as error:
            if path not in others:
                raise
            warnings.warn(f"an entry of the plug-in's file {path} is left out: {error}", PluginWarning, stacklevel=2)
        else:
            entries.append(entry)
    return tuple(entries)


def _entry(path: Path, table: Mapping[str, Any]) -> Entry:
    try:
        listed = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
        return Entry(family=path.stem, **listed)  # type: ignore[arg-type]
    except TypeError as error:
        raise LayoutError(f"{path.name}: {error}") from error


def _refuse_duplicate(entry: Entry, entries: Iterable[Entry]) -> None:
    for other in entries:
        shared = set(entry.model_types) & set(other.model_types)
        if shared and set(entry.heads) & set(other.heads):
            raise LayoutError(f"{entry.family}.toml and {other.family}.toml both describe {sorted(shared)}")


def from_catalogue(module: nn.Module) -> Adapter | None:
    """What the catalogue says of this model; None where it has no entry."""
    traits = traits_of(module)
    net = traits.timm
    config: Any = traits.config if net is None else net  # timm keeps its counts on the network
    model_type = traits.model_type if net is None else "timm"
    names = (traits.class_name,) if net is None else (type(net).__name__, timm_traits(net).architecture)
    entry = next((entry for entry in catalogue() if entry.matches(model_type, *names)), None)
    if entry is None:
        return None
    layers = tuple(resolve_layer(module, pattern) for pattern in entry.layers)
    layers = tuple(level_name(layer, entry.level) for layer in layers) if entry.level else layers
    suffix = None if entry.suffix == "padding" else _count(entry.suffix, config)
    patch = None if entry.axes in MAPS or net is not None else traits.patch
    layout = Layout(entry.axes, _count(entry.prefix, config), suffix, patch, entry.square)
    layouts = (layout,) * len(layers)
    return Adapter(layers, layouts, entry.method, "catalogue", entry.reason, entry.caution, entry.candidates)


def resolve_layer(module: nn.Module, pattern: str) -> str:
    """The dotted name that a pattern of the catalogue means in this model.

    A pattern is the end of a dotted name; `[0]` takes the first child of a list, `[-1]` the last, `[-2]` the one
    before, and `[-1-num_blocks]` counts further by a field of the config; `a|b` is either name. The match nearest to
    the root wins, so that `layers[-1]` is the model's own list of blocks and not one inside a block.

    >>> from torch import nn
    >>> net = nn.ModuleDict({"encoder": nn.ModuleDict({"layer": nn.ModuleList([nn.Identity(), nn.Identity()])})})
    >>> resolve_layer(net, "layers|layer[-1]")
    'encoder.layer.1'

    Raises:
        LayerError: no module, or more than one at the same depth, has such a name.
    """
    expression = re.compile(r"(?:.*\.)?" + r"\.".join(map(_segment, pattern.split("."))) + r"$")
    found = []
    ends = [_count(end.replace("-", "+")[1:], config_of(module)) for end in re.findall(r"\[(-[^\]]+)\]", pattern)]
    for name, _ in module.named_modules():
        if (match := expression.match(name)) and all(
            int(index) == len(_children(module, name[: match.start(group)].rstrip("."))) - end
            for group, (index, end) in enumerate(zip(match.groups(), ends, strict=True), start=1)
        ):
            found.append(name)
    found.sort(key=lambda name: name.count("."))
    if not found:
        raise LayerError(f"{type(module).__name__} has no layer {pattern!r}")
    if len(found) > 1 and found[1].count(".") == found[0].count("."):
        raise LayerError(f"{type(module).__name__} has several layers {pattern!r}: {', '.join(found[:4])}")
    return str(found[0])


def _segment(segment: str) -> str:
    name, indices = re.match(r"([^\[]+)((?:\[[^\]]+\])*)$", segment).groups()  # type: ignore[union-attr]
    names = "|".join(re.escape(option) for option in name.split("|"))
    chosen = (r"\.(\d+)" if index[0] == "-" else rf"\.{index}" for index in re.findall(r"\[([^\]]+)\]", indices))
    return f"(?:{names})" + "".join(chosen)


def _children(module: nn.Module, name: str) -> list[nn.Module]:
    return list(module.get_submodule(name).children())


def _count(value: int | str, config: Any) -> int:
    """A number of tokens: an integer, or a sum such as "1 + num_register_tokens" of integers and config fields."""
    if isinstance(value, int):
        return value
    return sum(int(term) if term.strip().isdigit() else count_of(config, term.strip()) for term in value.split("+"))
