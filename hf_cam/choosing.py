"""The choice among several methods for each thing that is explained in one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hf_cam.check import check
from hf_cam.effort import CHECKING, PICKING, SURE, Effort, Tried, effect_of, forwards_of
from hf_cam.explanation import Explanation
from hf_cam.layouts import Size
from hf_cam.methods import get_method

Attempt = Callable[[str], tuple[Sequence[Explanation], str]]
"""The explanations of an image by the method of an id, one per subject; or none, with the reason."""


def best_of(methods: Sequence[str], attempt: Attempt, size: Size) -> list[Explanation]:
    """For each subject, the explanation by the first method whose strongest pixels matter, or else matter most.

    Args:
        methods: Ids in the order in which they are tried; the first is defined.
        attempt: Explains the image.
        size: Height and width of the model's input.
    """
    best = list(attempt(methods[0])[0])
    effects, spent = [-1.0] * len(best), [float(CHECKING)] * len(best)
    tried: list[list[Tried]] = [[] for _ in best]
    for name in methods:
        left = [k for k, effect in enumerate(effects) if effect < SURE]
        found, reason = attempt(name) if left else ((), "")
        for k in left:
            effect = _effect(found[k]) if found else None
            tried[k].append(Tried(name, effect, reason))
            spent[k] += PICKING + forwards_of(get_method(name), size) if found else 0
            if effect is not None and effect > effects[k]:
                best[k], effects[k] = found[k], effect
    return [_checked(*one) for one in zip(best, tried, spent, strict=True)]


def _effect(explanation: Explanation) -> float:
    assert explanation.origin is not None
    return effect_of(explanation.origin)


def _checked(explanation: Explanation, tried: Sequence[Tried], forwards: float) -> Explanation:
    assert explanation.origin is not None
    verdict = check(explanation.origin, explanation.raw)
    return replace(explanation, effort=Effort(tuple(tried), explanation.method, forwards, verdict))
