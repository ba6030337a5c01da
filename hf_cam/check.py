"""Check a single explanation: does the model's confidence fall without the pixels that the map marks?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_cam.maps import normalize
from hf_cam.metrics import Scorer, Trial, confidence
from hf_cam.models.traits import traits_of
from hf_cam.targets import Target

TOP = 20
TINY = 0.05
DRAWS = 4
MARGIN = 0.01
"""The margin by which a map must beat chance, as a share of the confidence."""
CONSTANT, NO_GRADIENT, UNLIKELY, NO_BETTER = (
    "constant map",
    "no gradient",
    "target probability tiny",
    "no better than chance",
)


@dataclass(frozen=True, eq=False)
class Origin:
    """What an explanation was made from, kept so that it can be checked.

    Args:
        model: The explained model; the explanation keeps it alive.
        inputs: Its named inputs for this one image.
        target: The explained scalar.
        map: `[H, W]` in [0, 1], as large as the model's input.
    """

    model: nn.Module = field(repr=False)
    inputs: Mapping[str, Any] = field(repr=False)
    target: Target
    map: Tensor = field(repr=False)


@dataclass(frozen=True)
class Check:
    """The result of a check.

    Args:
        confidence: The model's confidence in the target, as a probability if it has one.
        drop: The fall in confidence when the strongest fifth of the pixels is imputed from its surroundings.
        chance: The same fall for the map shifted to other places, as the mean over four shifts.
        energy: The share of the map's sum in its strongest fifth; 0.2 for a uniform map, 0 for a map of zeros.
        flags: Those of "constant map", "no gradient", "target probability tiny" and "no better than chance" that apply.
    """

    confidence: float
    drop: float
    chance: float
    energy: float
    flags: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing was flagged."""
        return not self.flags

    def __str__(self) -> str:
        """The result in one paragraph."""
        if NO_GRADIENT in self.flags:
            return "The map is empty: nothing that this method reads in this layer influences the target."
        if CONSTANT in self.flags:
            return "The map is the same everywhere: it does not show which part of the image the target depends on."
        change = (
            f"{'falls' if self.drop >= 0 else 'rises'} from {self.confidence:.2f} to {self.confidence - self.drop:.2f}"
        )
        words = [f"Without the strongest {TOP}% of the map, the confidence {change}."]
        words.append(f"Without as many pixels elsewhere, it is {self.confidence - self.chance:.2f}.")
        words.append(f"This {TOP}% holds {self.energy:.0%} of the map's sum.")
        if NO_BETTER in self.flags:
            words.append("The map is no better than chance: do not rely on it.")
        if UNLIKELY in self.flags:
            words.append("The model gives this target a tiny probability: the map shows what little evidence there is.")
        return " ".join(words)


def check(origin: Origin, raw: np.ndarray, seed: int = 0) -> Check:
    """Check one map.

    Args:
        origin: What the map was made from.
        raw: The map before normalisation.
        seed: Seed for the noise and the shifts.
    """
    problem = traits_of(origin.model).problem_type
    scorer = Scorer(origin.model, origin.inputs, [confidence(origin.target, problem)])
    maps = origin.map[None].to(scorer.pixels.device).float()
    trial = Trial(maps, scorer, percentiles=(100 - TOP,), seed=seed)
    scores, most = (float(trial.value(name).mean()) for name in ("scores", "most_first"))
    moved = [Trial(elsewhere, scorer, percentiles=(100 - TOP,), seed=seed) for elsewhere in _moved(maps, seed)]
    at_random = [float(trial.value("most_first").mean()) for trial in moved]
    drop, chance = scores - most, scores - float(np.mean(at_random))
    flags = [CONSTANT] if not normalize(maps).any() else []
    if not np.any(raw):
        flags.append(NO_GRADIENT)
    if problem != "regression" and confidence(origin.target) is not origin.target and scores < TINY:
        flags.append(UNLIKELY)
    if not flags and drop - chance < MARGIN * abs(scores):
        flags.append(NO_BETTER)
    return Check(scores, drop, chance, _energy(maps[0]), tuple(flags))


def _moved(maps: Tensor, seed: int) -> list[Tensor]:
    """The map shifted to random places, wrapping round the border: as many pixels, in the same shapes."""
    generator = torch.Generator().manual_seed(seed)
    shares = (0.25 + 0.5 * torch.rand(DRAWS, 2, generator=generator)).tolist()
    sides = maps.shape[-2:]
    return [
        maps.roll([round(share * side) for share, side in zip(one, sides, strict=True)], (-2, -1)) for one in shares
    ]


def _energy(saliency: Tensor) -> float:
    ordered = saliency.flatten().sort(descending=True).values
    total = ordered.sum()
    return float(ordered[: max(1, round(len(ordered) * TOP / 100))].sum() / total) if total > 0 else 0.0
