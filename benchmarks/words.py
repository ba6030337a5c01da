"""How well the map of each word lies on the item that the word names, in scenes whose masks are known.

    python -m benchmarks.words [--scenes 40] [--seed 6] [--methods word-contribution ...] [--write docs/words.md]

`demo:llava` describes each scene of the test split. Only right words are judged: the answer names as many items as
there are, and the word is the noun or colour of the item at its place from left to right. For each method: the share of
the map's energy inside that item and inside all other items, how often its peak lies inside the item, and average
precision, each with its standard error over the words.

Deletion: as many cells of the picture as the item touches are painted over in the colour of the background, and the
model reads the same answer again up to the word. How often is another word its first choice? The item's own cells and
random cells elsewhere frame what a map can reach with its strongest cells.

Evidence: each description is read before three other scenes. How much of a word's probability is lost there, and what
does its evidence, which never saw them, say? Also printed is what either reading without the picture would say alone.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor
from transformers.utils import logging

from benchmarks.dialogues import DESCRIBE, Dialogue, Kind, Mention, from_left, in_clear_order, named_tokens
from benchmarks.scenes import COLORS, LABELS, Scene, scenes
from hf_cam.explainer import Explainer
from hf_cam.explanation import WITHOUT_PICTURE
from hf_cam.metrics import average_precision, centred_gaussian, energy_inside, noise, peak_inside
from hf_cam.models.loading import LoadedModel, load
from hf_cam.words.answer import Answer
from hf_cam.words.locate import Known
from hf_cam.words.methods import list_word_methods
from hf_cam.words.removal import readings_without
from hf_cam.words.weighing import Question

MODEL = "demo:llava"
GRID = (12, 12)
"""Rows and columns of the model's cells."""
FEWEST = 2
OTHERS = 3
"""Scenes before which each description is read again."""
HALF, LITTLE = 0.5, 0.05
"""Shares of a word's probability."""
READINGS = ("the picture hidden", "a blank picture")
KINDS: tuple[Kind, ...] = ("noun", "colour")
SECTION = re.compile(r"(<!-- quality -->\n).*?(<!-- end -->)", re.DOTALL)

Maps = Mapping[str, np.ndarray]
"""The map of one word `[H, W]` by each method."""


@dataclass(frozen=True)
class Case:
    """One right word: its scene, the answer, which part of it names which item, and its map by each method."""

    scene: Scene
    answer: str
    mention: Mention
    maps: Maps

    @property
    def mask(self) -> np.ndarray:
        """The named item, bool `[H, W]`."""
        return self.scene.instances == 1 + self.mention.item

    @property
    def others(self) -> np.ndarray:
        """All other items, bool `[H, W]`."""
        return (self.scene.instances > 0) & ~self.mask


def right_mentions(scene: Scene, answer: str) -> list[Mention]:
    """The nouns and colours of a description that are right; none if it names too few or too many items."""
    phrases = list(re.finditer(r"\b(?:an?|An?) ([\w -]+?)(?=, | and |\.|$)", answer))
    order = from_left(scene)
    if len(phrases) != len(order):
        return []
    found = []
    for said, item in zip(phrases, order, strict=True):
        label, color = LABELS[scene.labels[item]], COLORS[scene.colors[item]]
        start, words = said.start(1), said[1]
        if words.endswith(label) and words[: -len(label)].strip() in COLORS:
            found.append(Mention(said.end(1) - len(label), said.end(1), item, "noun"))
        if color and words.split()[0] == color:
            found.append(Mention(start, start + len(color), item, "colour"))
    return found


@dataclass(frozen=True)
class Judged:
    """The right words of all descriptions, and how many words there were to get right."""

    cases: list[Case]
    asked: dict[Kind, int]


def judged(loaded: LoadedModel, drawn: Sequence[Scene], methods: Sequence[str]) -> Judged:
    """Describe every scene, and explain each right word by each method."""
    found = Judged([], dict.fromkeys(KINDS, 0))
    explainers = {method: Explainer(loaded, method) for method in methods}
    for number, scene in enumerate(drawn):
        answers = {name: described(explainer, scene) for name, explainer in explainers.items()}
        first = answers[methods[0]]
        found.asked["noun"] += len(scene.labels)
        found.asked["colour"] += sum(color > 0 for color in scene.colors)
        mentions = right_mentions(scene, first.answer)
        for mention in mentions:
            maps = {name: map_of(answer, mention) for name, answer in answers.items()}
            found.cases.append(Case(scene, first.answer, mention, maps | baselines(scene, number)))
    return found


def described(explainer: Explainer, scene: Scene) -> Answer:
    [answer] = explainer([Image.fromarray(scene.image)], text=DESCRIBE[0])
    return answer


def map_of(answer: Answer, mention: Mention) -> np.ndarray:
    """The map of the words of a mention; "ankle boot" is two."""
    named = [one for one in answer if one.span[0] < mention.end and one.span[1] > mention.start]
    return np.mean([one.heatmap * one.evidence for one in named], 0)


def baselines(scene: Scene, seed: int) -> Maps:
    """Maps that do not depend on the model."""
    pixels = torch.from_numpy(scene.image).permute(2, 0, 1)[None] / 255
    return {"noise": noise(pixels, seed)[0].numpy(), "centred Gaussian": centred_gaussian(pixels)[0].numpy()}


# Deletion.


def cells_of(values: np.ndarray) -> np.ndarray:
    """The mean of a map `[H, W]` in each of the model's cells, `[12 * 12]`."""
    rows, columns = GRID
    return cv2.resize(values.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA).ravel()


def without(scene: Scene, cells: np.ndarray) -> Image.Image:
    """The scene with cells, bool `[12 * 12]`, painted in the mean colour of its background."""
    height, width = scene.instances.shape
    painted = cv2.resize(cells.reshape(GRID).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    image = scene.image.copy()
    image[painted] = scene.image[scene.instances == 0].mean(0).round()
    return Image.fromarray(image)


def deletions(case: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """As many cells as the item touches, bool `[12 * 12]`: its own, random others, and each map's strongest."""
    own = cells_of(case.mask) > 0.05
    count = int(own.sum())
    elsewhere = rng.permutation(np.flatnonzero(~own))[:count]
    chosen = {"the item's own cells": np.flatnonzero(own), "random cells elsewhere": elsewhere}
    chosen |= {name: np.argsort(-cells_of(found), kind="stable")[:count] for name, found in case.maps.items()}
    return {name: np.isin(np.arange(own.size), cells) for name, cells in chosen.items()}


@torch.inference_mode()
def changes(loaded: LoadedModel, case: Case, rng: np.random.Generator) -> dict[str, bool]:
    """For each choice of cells: whether the model would write another word without them."""
    deleted = deletions(case, rng)
    dialogue = Dialogue(DESCRIBE[0], case.answer, (case.mention,))
    texts = [f"{dialogue.prompt} {dialogue.answer}"] * len(deleted)
    images = [without(case.scene, cells) for cells in deleted.values()]
    inputs = loaded.processor(images=images, text=texts, return_tensors="pt")
    [(_, backs)] = named_tokens(loaded.processor.tokenizer, dialogue)
    predicted = loaded.module(**inputs).logits.argmax(-1)[:, :-1]
    same = predicted == inputs["input_ids"][:, 1:]
    return {name: not all(row[len(row) - back] for back in backs) for name, row in zip(deleted, same, strict=True)}


# Evidence.


@dataclass(frozen=True)
class Depending:
    """All words of the descriptions, by how far they depend on the picture.

    Args:
        lost: `[N]` the share of each word's probability that is lost before other scenes, at least 0.
        evidence: `[N]` what its explanation says.
        flagged: `[N]` whether it is flagged as said without the picture.
        readings: `[N]` the evidence by each reading without the picture alone.
    """

    lost: np.ndarray
    evidence: np.ndarray
    flagged: np.ndarray
    readings: Mapping[str, np.ndarray]


def depending(loaded: LoadedModel, drawn: Sequence[Scene]) -> Depending:
    """Describe every scene, and read each description before `OTHERS` other scenes."""
    explainer = Explainer(loaded)
    pictures = [Image.fromarray(scene.image) for scene in drawn]
    found: list[tuple[float, float, bool]] = []
    alone: dict[str, list[float]] = {name: [] for name in READINGS}
    for number in range(len(pictures)):
        answer = described(explainer, drawn[number])
        others = [pictures[(number + 1 + step) % len(pictures)] for step in range(OTHERS)]
        readings = [next(iter(explainer([other], text=DESCRIBE[0], answer=answer.answer))) for other in others]
        for word, *read in zip(answer, *readings, strict=True):
            kept = float(np.mean([one.score for one in read])) / max(word.score, 1e-12)
            found.append((max(0.0, 1 - kept), word.evidence or 0.0, WITHOUT_PICTURE in word.flags))
        for at, name in enumerate(READINGS):
            with one_reading(at):
                alone[name] += [word.evidence or 0.0 for word in described(explainer, drawn[number])]
    lost, evidence, flagged = (np.array(column) for column in zip(*found, strict=True))
    return Depending(lost, evidence, flagged, {name: np.array(values) for name, values in alone.items()})


@contextmanager
def one_reading(at: int) -> Iterator[None]:
    """Take the evidence from one of the readings without the picture."""

    def readings(known: Known, question: Question) -> tuple[Tensor, ...]:
        return (readings_without(known, question)[at],)

    with patch("hf_cam.words.explaining.readings_without", readings):
        yield


def evidence_lines(found: Depending) -> Iterator[str]:
    """What the evidence says of words that depend on the picture, and of words that do not."""
    for name, chosen in {"more than half": found.lost > HALF, "at most 5%": found.lost <= LITTLE}.items():
        yield (
            f"- {chosen.sum()} of {len(chosen)} words lose {name} of their probability before other scenes. Their mean "
            f"evidence is {found.evidence[chosen].mean():.2f}, and {found.flagged[chosen].mean():.0%} are flagged as "
            "said without the picture."
        )
    told = {name: roc_auc_score(found.lost > HALF, values) for name, values in found.readings.items()}
    yield (
        f"- The area under the ROC curve, by which evidence tells words that lose more than half, is "
        f"{roc_auc_score(found.lost > HALF, found.evidence):.2f}; "
        + " and ".join(f"{value:.2f} with {name} alone" for name, value in told.items())
        + "."
    )


# Tables.


def report(loaded: LoadedModel, drawn: Sequence[Scene], methods: Sequence[str], seed: int) -> Iterator[str]:
    """The section's lines."""
    found = judged(loaded, drawn, methods)
    counts = {kind: [case for case in found.cases if case.mention.kind == kind] for kind in KINDS}
    right = " and ".join(f"{len(counts[kind])} of {found.asked[kind]} {kind}s" for kind in KINDS)
    yield f"{len(drawn)} scenes, seed {seed}: {right} are right and judged."
    yield ""
    yield from evidence_lines(depending(loaded, drawn))
    if min(map(len, counts.values())) < FEWEST:
        yield f"\nFewer than {FEWEST} words of a kind are right, too few for a table."
        return
    for kind, cases in counts.items():
        yield from table(kind, cases, [*methods, *baselines(drawn[0], 0)])
    yield from deletion_table(loaded, counts)


def table(kind: Kind, cases: Sequence[Case], names: Sequence[str]) -> Iterator[str]:
    """How the maps of one kind of word lie on the items."""
    shares = np.mean([(case.mask.mean(), case.others.mean()) for case in cases], 0)
    yield f"\n| {kind}s | energy inside | peak inside | average precision | energy in other items |"
    yield "|---|--:|--:|--:|--:|"
    yield f"| share of the picture | {shares[0]:.3f} | {shares[0]:.3f} | {shares[0]:.3f} | {shares[1]:.3f} |"
    for name in names:
        scores = np.array([scores_of(case.maps[name], case) for case in cases])
        cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(scores.mean(0), errors(scores), strict=True)]
        yield (
            f"| `{name}` | {' | '.join(cells)} |"
            if name in list_word_methods()
            else f"| {name} | {' | '.join(cells)} |"
        )


def errors(scores: np.ndarray) -> np.ndarray:
    """The standard errors of the columns' means."""
    return scores.std(0, ddof=1) / len(scores) ** 0.5


def scores_of(found: np.ndarray, case: Case) -> tuple[float, ...]:
    """Energy, peak and average precision in the named item, and energy in all others."""
    maps = torch.from_numpy(np.ascontiguousarray(found))
    own, others = torch.from_numpy(case.mask), torch.from_numpy(case.others)
    inside = [float(metric(maps, own)) for metric in (energy_inside, peak_inside, average_precision)]
    return (*inside, float(energy_inside(maps, others)))


def deletion_table(loaded: LoadedModel, counts: Mapping[Kind, Sequence[Case]]) -> Iterator[str]:
    """How often a word changes without some cells."""
    rng = np.random.default_rng(0)
    changed = {kind: [changes(loaded, case, rng) for case in cases] for kind, cases in counts.items()}
    yield "\n| cells that are painted over | nouns that change | colours that change |"
    yield "|---|--:|--:|"
    for name in changed["noun"][0]:
        cells = []
        for kind in KINDS:
            values = np.array([[one[name]] for one in changed[kind]], float)
            cells.append(f"{values.mean():.3f} ± {errors(values)[0]:.3f}")
        shown = f"the strongest by `{name}`" if name in list_word_methods() else name
        yield f"| {shown} | {' | '.join(cells)} |"


def main() -> None:
    """Measure, and print or write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--methods", nargs="+", default=[*list_word_methods()])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="the page whose section is replaced")
    options = parser.parse_args()
    logging.disable_progress_bar()
    drawn = [scene for scene in scenes("test", 2 * options.scenes, options.seed) if in_clear_order(scene)]
    text = "\n".join(report(load(options.model), drawn[: options.scenes], options.methods, options.seed))
    print(text)
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        options.write.write_text(SECTION.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page), encoding="utf-8")


if __name__ == "__main__":
    main()
