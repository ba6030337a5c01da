"""An explanation judges itself: does the model lose what the map says it relied on?"""

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
"""Share of the confidence by which a map must beat chance."""
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
        model: What was explained; the explanation keeps it alive.
        inputs: Its named inputs for this one image.
        target: The scalar.
        map: `[H, W]` in [0, 1], as large as the model's input.
    """

    model: nn.Module = field(repr=False)
    inputs: Mapping[str, Any] = field(repr=False)
    target: Target
    map: Tensor = field(repr=False)


@dataclass(frozen=True)
class Check:
    """What a check found.

    Args:
        confidence: Of the model in the target, a probability where it has one.
        drop: By how much it falls without the strongest fifth of the pixels, imputed from their surroundings.
        chance: The same with the map moved to other places, the mean of four.
        energy: The share of the map's sum in its strongest fifth, 0.2 for an even map; 0 for a map of zeros.
        flags: "constant map", "no gradient", "target probability tiny", "no better than chance", as far as they hold.
    """

    confidence: float
    drop: float
    chance: float
    energy: float
    flags: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True where nothing was flagged."""
        return not self.flags

    def __str__(self) -> str:
        """In words."""
        if NO_GRADIENT in self.flags:
            return "The map is empty: nothing that this method looks at in this layer influences the target."
        if CONSTANT in self.flags:
            return "The map is the same everywhere: it does not say where the target is read from."
        change = (
            f"{'falls' if self.drop >= 0 else 'rises'} from {self.confidence:.2f} to {self.confidence - self.drop:.2f}"
        )
        words = [f"Without the strongest {TOP} % of the map the confidence {change}."]
        words.append(f"Without as many pixels elsewhere it is {self.confidence - self.chance:.2f}.")
        words.append(f"These {TOP} % hold {self.energy:.0%} of the map.")
        if NO_BETTER in self.flags:
            words.append("The map does no better than chance: do not rely on it.")
        if UNLIKELY in self.flags:
            words.append("The model hardly believes in this target: the map shows what little speaks for it.")
        return " ".join(words)


def check(origin: Origin, raw: np.ndarray, seed: int = 0) -> Check:
    """Judge one map.

    Args:
        origin: What it was made from.
        raw: The map before normalisation.
        seed: Of the noise and the places.
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
    """The map at random other places, wrapped round the border: as many pixels in the same shapes."""
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
