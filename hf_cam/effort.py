"""`effort="checked"`: several methods are tried, one is kept, and the result records the verdict and what was done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hf_cam.check import Check, Origin, check, scores_of, usable_ways
from hf_cam.images.reading import load_image
from hf_cam.layouts import Size
from hf_cam.methods import Method, get_method
from hf_cam.methods.masking import windows
from hf_cam.metrics.replacement import by_blur, by_others
from hf_cam.target_layers.adapter import Adapter
from hf_cam.zoo import SCENE

if TYPE_CHECKING:
    from hf_cam.explanation import Explanation

SURE = 0.5
"""The effect of a map's strongest pixels from which no other method is tried."""
PICKING = 11
"""Forwards that it takes to measure this effect."""
CHECKING = 98
COARSE = 4
"""The side of the squares that hide parts of the picture, as a divisor of its shorter side."""

Attempt = Callable[[str], "tuple[Sequence[Explanation], str]"]
"""The explanations of an image by the method of an id, one per subject; or none, with the reason."""


@dataclass(frozen=True)
class Tried:
    """One method that was tried.

    Args:
        method: Its id.
        effect: The larger of the necessity and the sufficiency of the map's strongest 3%, as the image blurred and
            another image replace pixels; None if the method is not defined here.
        reason: Why it is not defined.
    """

    method: str
    effect: float | None
    reason: str = ""


@dataclass(frozen=True)
class Effort:
    """How an explanation was chosen among several methods.

    Args:
        tried: The methods in the order in which they were tried; no further one is once an effect reaches 0.5.
        kept: The id of the one with the largest effect.
        forwards: What it took, in forwards of the model; a backward pass counts as in `Method.cost`.
        check: The verdict on the map that was kept, from replacements that played no part in the choice.
    """

    tried: tuple[Tried, ...]
    kept: str
    forwards: float
    check: Check

    def __str__(self) -> str:
        """What was done, and the verdict, in one paragraph."""
        listed = ", ".join(
            f"{one.method} ({'not defined here' if one.effect is None else f'effect {one.effect:.2f}'})"
            for one in self.tried
        )
        return f"Tried {listed}; kept {self.kept}, with about {self.forwards:.0f} forwards. {self.check}"


def candidates(method: Method, adapter: Adapter, *, named: bool) -> list[str]:
    """The ids to try in this order: only the caller's own if one is named, else also those of the family.

    The cheapest comes first, and last where the family's maps of that layer are known to mislead. Where windows or
    depth spread the evidence over the last layer, no map of it shows its place. Relevance is followed back through the
    attention of all layers, and hiding parts of the picture needs no layer at all.
    """
    if named:
        return [method.id]
    others = [one for one in adapter.candidates if one != method.id]
    return [*others, method.id] if adapter.caution and method.reads_layer else [method.id, *others]


def options_of(method: str, size: Size) -> dict[str, int]:
    """The options with which a candidate runs on a picture of this size: large squares, few of them.

    >>> options_of("occlusion", (64, 96)), options_of("gradcam", (64, 96))
    ({'patch': 16, 'stride': 8}, {})
    """
    if method != "occlusion":
        return {}
    patch = max(2, min(size) // COARSE)
    return {"patch": patch, "stride": max(1, patch // 2)}


def forwards_of(method: Method, size: Size, options: Mapping[str, Any]) -> float:
    """What a method takes with these options on a picture of this size, in forwards of the model.

    >>> forwards_of(get_method("occlusion"), (64, 96), {"patch": 32})
    17.0
    """
    own = {name: value for name, value in options.items() if name in method.options}
    if method.id == "occlusion":
        return 2.0 + len(windows(size, own.get("patch"), own.get("stride")))
    return method.cost(**own)


def effect_of(origin: Origin, seed: int = 0) -> float:
    """The effect of a map's strongest pixels, by which methods are chosen; 0 if nothing lowers the score."""
    found = scores_of(origin, (by_blur, by_others([_flipped_scene()])), seed)
    ways = usable_ways(origin, found)
    if not ways or not origin.map.any():
        return 0.0
    return float(torch.maximum(*found.necessity_and_sufficiency(ways))[0])


@cache
def _flipped_scene() -> Tensor:
    """The shipped scene upside down, which a check does not use."""
    return torch.from_numpy(np.array(load_image(SCENE))[::-1].copy()).permute(2, 0, 1)


def best_of(
    first: Sequence[Explanation], methods: Sequence[str], attempt: Attempt, size: Size, options: Mapping[str, Any]
) -> list[Explanation]:
    """For each subject, the explanation by the first method whose strongest pixels matter, or else matter most.

    Args:
        first: The explanations that there are already, one per subject, by one of the methods.
        methods: Ids in the order in which they are tried.
        attempt: Explains the image.
        size: Height and width of the model's input.
        options: Of the method of the first ones.
    """
    best, at_hand = list(first), first[0].method if first else ""
    effects = [-1.0] * len(best)
    spent = [CHECKING + forwards_of(get_method(at_hand), size, options) for _ in best]
    tried: list[list[Tried]] = [[] for _ in best]
    for name in methods:
        left = [k for k, effect in enumerate(effects) if effect < SURE]
        found, reason = attempt(name) if left else ((), "")
        for k in left:
            effect = _effect(found[k]) if found else None
            tried[k].append(Tried(name, effect, reason))
            if found:
                own = 0.0 if name == at_hand else forwards_of(get_method(name), size, options_of(name, size))
                spent[k] += PICKING + own
            if effect is not None and effect > effects[k]:
                best[k], effects[k] = found[k], effect
    return [_checked(*one) for one in zip(best, tried, spent, strict=True)]


def _effect(explanation: Explanation) -> float:
    origin = explanation.origin
    assert origin is not None
    return effect_of(origin)


def _checked(explanation: Explanation, tried: Sequence[Tried], forwards: float) -> Explanation:
    origin = explanation.origin
    assert origin is not None
    verdict = check(origin, explanation.raw)
    return explanation.changed(effort=Effort(tuple(tried), explanation.method, forwards, verdict))
