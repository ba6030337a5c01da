"""Check a single explanation: does the model's score depend on the pixels that the map marks?"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_cam.images.reading import load_image
from hf_cam.maps import normalize
from hf_cam.metrics import Scorer, confidence
from hf_cam.metrics.replacement import Replacement, by_mean, by_neighbours, by_others
from hf_cam.metrics.verdict import (
    RESPONSE,
    Scores,
    Verdict,
    backgrounds,
    elsewhere,
    ends_at_windows,
    gathered,
    is_scattered,
    spot,
    strongest,
)
from hf_cam.models.traits import traits_of
from hf_cam.request import Request
from hf_cam.targets import Target
from hf_cam.zoo import SCENE

PEAK, TOP = 0.03, 0.1
"""The regions of a check, as shares of the image."""
PARTS = 6
"""The number of random parts of the image to which spot and peak are added, for each way to replace pixels."""
FIFTH = 0.2
TINY = 0.05
MARGIN = 0.02
"""By how much a map's effect must exceed that of regions elsewhere to be better than chance."""
RESPONSIVE = 0.05
"""The least fall without any of the image of a value that is no probability, as a share of it."""
CERTAIN = 1e-6
"""Probabilities closer than this to 0 or 1 count as this close, so that their log-odds are finite."""
AT_ONCE = 16
"""The number of changed images that are held in memory."""
WIDE = 0.5
"""A map is diffuse if it exceeds half of its peak in more than this share of the image."""
CONSTANT, NO_GRADIENT, UNLIKELY, NO_BETTER = (
    "constant map",
    "no gradient",
    "target probability tiny",
    "no better than chance",
)
DIFFUSE, WINDOWS, UNRESPONSIVE = "diffuse", "hard edge of windows", "indifferent to the image"
SCATTERED, NOT_FINITE = "scattered", "score not finite"


@dataclass(frozen=True, eq=False)
class Origin:
    """What an explanation was made from, kept so that it can be checked.

    Args:
        model: The explained model; the explanation keeps it alive.
        inputs: Its named inputs for this one image.
        target: The explained scalar.
        map: `[H, W]` in [0, 1], as large as the model's input.
        processor: What prepared the inputs.
        request: What the caller asked for.
        layers: The number of target layers, whose maps `map` fuses.
    """

    model: nn.Module = field(repr=False)
    inputs: Mapping[str, Any] = field(repr=False)
    target: Target
    map: Tensor = field(repr=False)
    processor: Any = field(default=None, repr=False)
    request: Request | None = field(default=None, repr=False)
    layers: int = 1

    @property
    def confidence(self) -> Target:
        """The probability of the target, or its share among the prompts; the target itself if it has neither."""
        prompts = 1 if self.request is None else len(self.request.text)
        return confidence(self.target, traits_of(self.model).problem_type, prompts)


@dataclass(frozen=True)
class Check:
    """The result of a check; all confidences are means over the replacements.

    Args:
        verdict: "supports", "undecided" or "contradicts".
        confidence: The model's confidence in the target, as a probability or the share of a prompt if it has one.
        drop: The fall in confidence when the strongest tenth of the pixels is replaced.
        kept: The confidence when all other pixels are replaced.
        chance: The fall in confidence when as many pixels elsewhere are replaced, in the same shape.
        chance_kept: The confidence when all but those are replaced.
        necessity, sufficiency: Of the strongest tenth, as a share of what replacing the whole image costs in score
            (log-odds for a probability); in [-1, 1].
        contribution: The share of what replacing the whole image costs in score that the strongest 3% add to random
            parts of the image, on average; an even share is 0.03.
        agreement: The replacements that lead to the verdict by themselves, and the number of all that could be used.
        energy: The share of the map's sum in its strongest fifth; 0.2 for a uniform map, 0 for a map of zeros.
        flags: Those that apply of "constant map", "no gradient", "target probability tiny", "no better than chance",
            "diffuse" (more than half of the image is above half of the peak), "hard edge of windows" (the map ends at
            the border of the model's attention windows), "indifferent to the image", "scattered" (the strongest
            pixels are specks, so what is judged is the map's mean over squares of an eighth of the image's side) and
            "score not finite" (of some changed images, so that the figures that rest on them are not either).
        excess: How many times an even share the strongest 3% and the cell of the peak have (of cells that are smaller,
            the strongest 1%): the geometric mean of both, each at least 0.3, on which the verdict rests.
    """

    verdict: Verdict
    confidence: float
    drop: float
    kept: float
    chance: float
    chance_kept: float
    necessity: float
    sufficiency: float
    contribution: float
    agreement: tuple[int, int]
    energy: float
    flags: tuple[str, ...] = ()
    excess: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the verdict is "supports"."""
        return self.verdict == "supports"

    def __str__(self) -> str:
        """The result in one paragraph."""
        if NO_GRADIENT in self.flags:
            return "The map is empty: nothing that this method reads in this layer influences the target."
        if CONSTANT in self.flags:
            return "The map is the same everywhere: it does not show which part of the image the target depends on."
        words = [
            f"Without the strongest {TOP:.0%} of the map, the confidence {_change(self.confidence, self.drop)};",
            f"with nothing else, it is {self.kept:.2f}.",
            f"For as many pixels elsewhere, it is {self.confidence - self.chance:.2f} and {self.chance_kept:.2f}.",
            f"The strongest {PEAK:.0%} have {self.contribution:.2f} of the score; they and the peak have",
            f"{self.excess:.1f} times an even share.",
            VERDICTS[self.verdict],
            _certainty(self),
        ]
        words += [NOTES[flag] for flag in self.flags if flag in NOTES]
        return " ".join(filter(None, words))

    def _repr_html_(self) -> str:
        """The verdict and the paragraph, which notebooks show."""
        return f"<p><b>{self.verdict}</b>. {html.escape(str(self))}</p>"


VERDICTS: dict[Verdict, str] = {
    "supports": "This supports the map: the target depends on what it marks.",
    "undecided": "This neither supports nor contradicts the map.",
    "contradicts": "This contradicts the map: do not rely on it, because the target does not depend on what it marks.",
}
NOTES = {
    UNLIKELY: "The model gives this target a tiny probability: the map shows what little evidence there is.",
    NO_BETTER: "The marked pixels matter no more than as many pixels elsewhere.",
    DIFFUSE: "The map marks most of the image.",
    SCATTERED: "The strongest pixels are scattered: the map was judged by its mean over squares.",
    WINDOWS: "The map ends at the border of the model's attention windows, which is a trait of the model.",
    NOT_FINITE: "The model returns values that are not finite for changed images: run it in a wider dtype.",
    UNRESPONSIVE: "The confidence hardly changes even if the whole image is replaced.",
}


def _change(confident: float, drop: float) -> str:
    return f"{'falls' if drop >= 0 else 'rises'} from {confident:.2f} to {confident - drop:.2f}"


def _certainty(found: Check) -> str:
    agree, count = found.agreement
    if not count or found.verdict == "undecided":
        return ""
    ways = f"all {count} ways" if agree == count > 1 else f"{agree} of {count} ways"
    return f"That holds for {ways} to replace pixels."


def check(origin: Origin, raw: np.ndarray, seed: int = 0, others: Sequence[Any] = ()) -> Check:
    """Check one map in 98 forwards: pixels are replaced by imputation, by their mean and by those of other images.

    Args:
        origin: What the map was made from.
        raw: The map before normalization, `[h, w]`; of several layers that of the first.
        seed: Seed for the noise and for ties.
        others: Images whose pixels replace those of the image, at best from the same data; a shipped one if empty.

    Raises:
        ImageError: one of the others cannot be read.
    """
    found = scores_of(origin, (by_neighbours(seed), by_mean, by_others(_pictures(others))), seed, raw=raw)
    usable = usable_ways(origin, found)
    flags = _flags(origin, raw, found)
    verdict = judged(origin, found)
    contribution = float(found.contributions(usable)[1]) if usable else 0.0
    shown = torch.sigmoid if _is_probability(origin) else torch.Tensor.clone
    top = (found.score, found.without[:, 1], found.alone[:, 1], found.without_elsewhere, found.alone_elsewhere)
    confident, without, alone, without_elsewhere, alone_elsewhere = (float(shown(part).mean()) for part in top)
    necessity, sufficiency = (
        (float(each[1]) for each in found.necessity_and_sufficiency(usable)) if usable else (0.0, 0.0)
    )
    return Check(
        verdict,
        confidence=confident,
        drop=confident - without,
        kept=alone,
        chance=confident - without_elsewhere,
        chance_kept=alone_elsewhere,
        necessity=necessity,
        sufficiency=sufficiency,
        contribution=contribution,
        agreement=(found.agreement(usable, verdict), len(usable)),
        energy=_energy(origin.map.float()),
        flags=tuple(flags),
        excess=found.excess(usable) if usable else 0.0,
    )


def scores_of(
    origin: Origin, replacements: Sequence[Replacement], seed: int = 0, raw: np.ndarray | None = None
) -> Scores:
    """The scores without the regions of a map, with nothing else, elsewhere and in part; 11 + 29 K forwards.

    Args:
        origin: What the map was made from.
        replacements: The K ways to replace pixels.
        seed: Seed for ties and for the random parts of the image.
        raw: The map before normalization; regions elsewhere and random parts are not scored without it, and it takes
            1 + 5 K forwards. The peak of a fused map, or of one that was averaged, is that of `origin.map`.
    """
    probability = _is_probability(origin)
    scorer = Scorer(origin.model, origin.inputs, [origin.confidence])
    pixels, count = scorer.pixels, len(replacements)

    def scored(replace: Replacement, missing: Tensor) -> Tensor:
        parts = [scorer(replace(pixels, some)[None])[0] for some in missing.split(AT_ONCE)]
        return _on_scale(torch.cat(parts).cpu(), probability)

    saliency, compared = origin.map.to(pixels.device).float(), raw is not None
    scattered = is_scattered(saliency, PEAK)
    saliency = gathered(saliency) if scattered else saliency
    grid = saliency if raw is None or scattered or origin.layers > 1 else torch.from_numpy(np.array(raw))
    peak, top = regions = strongest(saliency, (PEAK, TOP), seed)
    drawn = elsewhere(top)[: None if compared else 0]
    pair = torch.stack([spot(grid, saliency, seed) if compared else peak, peak])
    parts = backgrounds(peak.shape, PARTS if compared else 0, seed).to(pixels.device)[:, None]
    added_to, lacking_from = (parts & ~pair).flatten(0, 1), (parts | pair).flatten(0, 1)
    own = torch.cat([torch.ones_like(regions[:1]), regions, ~regions, added_to, lacking_from])
    sizes = [1, 2, 2, len(added_to), len(lacking_from)]
    blank, without, alone, added, lacking = torch.stack([scored(replace, own) for replace in replacements]).split(
        sizes, 1
    )
    added, lacking = (each.unflatten(1, (len(parts), len(pair))) for each in (added, lacking))
    missing_elsewhere, alone_elsewhere = torch.empty(2, len(drawn))
    for way, replace in enumerate(replacements if compared else ()):
        some = drawn[way::count]
        missing_elsewhere[way::count], alone_elsewhere[way::count] = scored(replace, torch.cat([some, ~some])).chunk(2)
    score = _on_scale(scorer(pixels[:, None])[0, 0].cpu(), probability)
    areas = pair.float().mean((1, 2)).cpu()
    return Scores(
        score, blank[:, 0], without, alone, missing_elsewhere, alone_elsewhere, areas, added, lacking, scattered
    )


def judged(origin: Origin, found: Scores) -> Verdict:
    """The verdict on a map; "undecided" on one that is the same everywhere, or if no replacement lowers the score.

    Specks of which some happen to lie on what counts do not support a map that is no better than chance.
    """
    usable = usable_ways(origin, found)
    if not usable or not normalize(origin.map[None].float()).any():
        return "undecided"
    verdict = found.verdict(usable)
    by_chance = verdict == "supports" and found.scattered and _lead(found, usable) < MARGIN
    return "undecided" if by_chance else verdict


def usable_ways(origin: Origin, found: Scores) -> list[int]:
    """The replacements that lower the score enough if the whole image is replaced."""
    return found.usable(RESPONSE if _is_probability(origin) else RESPONSIVE * abs(float(found.score)) + CERTAIN)


def _is_probability(origin: Origin) -> bool:
    """Whether the confidence in the target is a probability rather than the target's own value."""
    return origin.confidence is not origin.target


def _on_scale(values: Tensor, probability: bool) -> Tensor:
    """Log-odds of probabilities, so that effects add up; other values as they are."""
    return torch.logit(values.double(), CERTAIN) if probability else values.double()


def _pictures(others: Sequence[Any]) -> list[Tensor]:
    return [torch.from_numpy(np.array(load_image(one))).permute(2, 0, 1) for one in others or (SCENE,)]


def _flags(origin: Origin, raw: np.ndarray, found: Scores) -> list[str]:
    flags = [CONSTANT] if not normalize(origin.map[None].float()).any() else []
    if not np.any(np.asarray(raw) > 0) and (origin.layers < 2 or not origin.map.any()):
        flags.append(NO_GRADIENT)
    if _is_probability(origin) and found.score.sigmoid() < TINY:
        flags.append(UNLIKELY)
    usable = usable_ways(origin, found)
    if not found.finite:
        flags.append(NOT_FINITE)
    elif not usable:
        flags.append(UNRESPONSIVE)
    if CONSTANT in flags:
        return flags
    conditions = {
        NO_BETTER: bool(usable) and _lead(found, usable) < MARGIN,
        SCATTERED: found.scattered,
        DIFFUSE: bool((origin.map > origin.map.max() / 2).float().mean() > WIDE),
        WINDOWS: ends_at_windows(torch.from_numpy(np.asarray(raw).clip(0)), _window(origin.model)),
    }
    return [*flags, *(flag for flag, holds in conditions.items() if holds)]


def _lead(found: Scores, usable: Sequence[int]) -> float:
    """By how much the effect of the map's strongest tenth exceeds that of as many pixels elsewhere."""
    return float(torch.maximum(*found.necessity_and_sufficiency(usable))[1]) - found.elsewhere(usable)


def _window(model: nn.Module) -> int | None:
    window = traits_of(model).read("window_size")
    return window if isinstance(window, int) else None


def _energy(saliency: Tensor) -> float:
    ordered = saliency.flatten().sort(descending=True).values
    total = ordered.sum()
    return float(ordered[: max(1, round(len(ordered) * FIFTH))].sum() / total) if total > 0 else 0.0
