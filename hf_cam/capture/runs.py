"""Names of layers: `name:0` is the first run of a layer that runs several times, `name[0]` the first of its levels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from torch import nn

from hf_cam.errors import LayerError


def run_name(layer: str, run: int) -> str:
    """The name of one run of a layer.

    >>> run_name("backbone.block", 2)
    'backbone.block:2'
    """
    return f"{layer}:{run}"


def level_name(layer: str, level: str) -> str:
    """The name of one level of a layer that returns several scales.

    >>> level_name("backbone.fpn", "pool")
    'backbone.fpn[pool]'
    """
    return f"{layer}[{level}]"


_LEVEL = re.compile(r"(.+)\[([^\[\]]+)\]")


def level_of(layer: str) -> str | None:
    """The level that a layer's name gives; None if it gives none.

    >>> level_of("backbone.fpn[pool]"), level_of("backbone.fpn")
    ('pool', None)
    """
    found = _LEVEL.fullmatch(layer)
    return found[2] if found else None


def without_level(layer: str) -> str:
    """The name of a layer without that of its level.

    >>> without_level("backbone.fpn:1[pool]"), without_level("backbone.fpn")
    ('backbone.fpn:1', 'backbone.fpn')
    """
    found = _LEVEL.fullmatch(layer)
    return found[1] if found else layer


def parts_of(layer: str) -> tuple[str, int | None]:
    """The dotted name of a layer, without a level, and the number of the run; None if the name gives none.

    >>> parts_of("backbone.block:2"), parts_of("backbone.block")
    (('backbone.block', 2), ('backbone.block', None))
    """
    layer = without_level(layer)
    name, colon, run = layer.rpartition(":")
    return (name, int(run)) if colon and run.isdecimal() else (layer, None)


def located(module: nn.Module, layer: str) -> tuple[nn.Module, int | None]:
    """The module that a layer's name means, and the number of the run; None if the name gives none.

    Raises:
        LayerError: the model has no such layer.
    """
    # A module's own name may contain a colon.
    for name, run in ((layer, None), (without_level(layer), None), parts_of(layer)):
        try:
            return module.get_submodule(name), run
        except AttributeError:
            continue
    raise LayerError(f"the model has no layer {layer!r}")


@dataclass
class Counter:
    """Counts the runs of one layer and finds the one that its name means.

    Args:
        layer: The name, with or without the number of a run.
        run: The number; None for the only run.
        seen: How often the layer has run so far.
    """

    layer: str
    run: int | None
    seen: int = field(default=0)

    def hits(self) -> bool:
        """Count one run, and return whether it is the one.

        Raises:
            LayerError: the layer runs again, and its name does not say which run is meant.
        """
        self.seen += 1
        if self.run is None and self.seen > 1:
            raise LayerError(
                f"the layer {self.layer!r} runs more than once in a forward; name one run, such as "
                f"layers={run_name(self.layer, 0)!r} for the first"
            )
        return self.seen - 1 == (self.run or 0)

    def check(self) -> None:
        """Refuse a run that did not happen, once the forward is over.

        Raises:
            LayerError: with the number of runs.
        """
        if self.seen <= (self.run or 0):
            times = "did not run" if not self.seen else f"has only {self.seen} run{'s' * (self.seen != 1)}"
            raise LayerError(f"the layer {self.layer!r} {times} in the model's forward")
