"""The maps of words beside vl-saliency's.

    python -m benchmarks.word_peers [--scenes 40] [--seed 6] [--write docs/words.md]

Needs `pip install vl-saliency`. `demo:llava` describes each scene of the test split. Both libraries explain the words
of the same answer, and their maps are judged as in `benchmarks/words.py`: hf-cam's default, and vl-saliency's
attention, "gradcam" and "agcam" of each token, averaged over layers and heads, on a copy of the model with "eager"
attention, which it requires; and the same maps of the token before, whose row of the attention is the one that predicts
the token. Time is that of an answer with the maps of all its words over that of `generate` alone, as
the median of the scenes; of the processor, in one thread.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.dialogues import DESCRIBE, Dialogue, named_tokens
from benchmarks.scenes import Scene, scenes
from benchmarks.word_cost import timed
from benchmarks.words import KINDS, Case, described, map_of, right_mentions, table
from hf_cam.explainer import Explainer
from hf_cam.models.loading import LoadedModel, load
from hf_cam.words.prompts import prompt_of
from hf_cam.words.weighing import DEFAULT

SECTION = re.compile(r"(<!-- peers -->\n).*?(<!-- end peers -->)", re.DOTALL)
OURS, THEIRS = DEFAULT, ("attention", "gradcam", "agcam")
TOKENS = 64
ROWS = [(mode, 0) for mode in THEIRS] + [(mode, 1) for mode in THEIRS]
"""Its maps, and those of the token before, whose row is the one that predicts the token."""


class Peer:
    """vl-saliency on a copy of the model."""

    def __init__(self, loaded: LoadedModel) -> None:
        from vl_saliency import SaliencyExtractor, lib

        self.loaded, self.prepare = loaded, prompt_of(loaded.processor, DESCRIBE[0], 1)
        self.model = copy.deepcopy(loaded.model)
        self.model.set_attn_implementation("eager")
        self.extractor = SaliencyExtractor(self.model, loaded.processor)
        self.modes = dict(zip(THEIRS, (None, lib.gradcam, lib.agcam), strict=True))

    def generated(self, scene: Scene) -> tuple[dict[str, Any], torch.Tensor]:
        """The inputs of the prompt, and the ids of prompt and answer."""
        inputs = dict(self.prepare([Image.fromarray(scene.image)]))
        with torch.no_grad():
            return inputs, self.loaded.model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)

    def maps(self, inputs: dict[str, Any], ids: torch.Tensor, mode: str) -> list[np.ndarray]:
        """One map per token of the answer, on the model's grid."""
        trace = self.extractor.capture(**inputs, generated_ids=ids)
        count = ids.shape[1] - inputs["input_ids"].shape[1]
        found = [trace.map(token, mode=self.modes[mode]).agg() for token in range(count)]
        return [np.asarray(one.map.detach().float()).squeeze() for one in found]


def judged(loaded: LoadedModel, drawn: Sequence[Scene]) -> tuple[list[Case], dict[str, float]]:
    """The right words with all maps, and each library's time over that of the generation."""
    peer, explainer, cases = Peer(loaded), Explainer(loaded, OURS), []
    ratios: dict[str, list[float]] = {OURS: [], THEIRS[1]: []}
    for number, scene in enumerate(drawn):
        alone, (inputs, ids) = timed(peer.generated, scene)
        own, answer = timed(described, explainer, scene)
        theirs, _ = timed(peer.maps, inputs, ids, THEIRS[1])
        if number:  # the first scene's place and footprints are measured
            ratios[OURS].append(own / alone)
            ratios[THEIRS[1]].append((alone + theirs) / alone)
        found = {mode: peer.maps(inputs, ids, mode) for mode in THEIRS}
        mentions = right_mentions(scene, answer.answer)
        tokens = named_tokens(loaded.processor.tokenizer, Dialogue(DESCRIBE[0], answer.answer, tuple(mentions)))
        last = ids.shape[1] - inputs["input_ids"].shape[1] - int(ids[0, -1] == loaded.processor.tokenizer.eos_token_id)
        for mention, places in tokens:
            maps = {OURS: map_of(answer, mention)}
            for mode, earlier in ROWS:
                rows = [found[mode][max(0, last - one - earlier)] for one in places]
                maps[named(mode, earlier)] = over(scene, np.mean(rows, 0))
            cases.append(Case(scene, answer.answer, mention, maps))
    return cases, {name: statistics.median(own) for name, own in ratios.items()}


def named(mode: str, earlier: int) -> str:
    """The row's name in the table."""
    return f"vl-saliency, {mode}{', of the token before' if earlier else ''}"


def over(scene: Scene, grid: np.ndarray) -> np.ndarray:
    """A map on the model's grid, stretched over the picture as vl-saliency draws it."""
    height, width = scene.instances.shape
    return np.asarray(cv2.resize(np.float32(grid), (width, height), interpolation=cv2.INTER_LINEAR).clip(min=0))


def report(loaded: LoadedModel, drawn: Sequence[Scene], seed: int) -> Iterator[str]:
    """The section's lines."""
    cases, ratios = judged(loaded, drawn)
    name = f"vl-saliency {version('vl-saliency')}"
    yield f"{len(drawn)} scenes, seed {seed}. An answer with the maps of all its words takes {ratios[OURS]:.2f} times"
    yield f"as long as `generate` alone with hf-cam, evidence included, and {ratios[THEIRS[1]]:.2f} times with {name}."
    for kind in KINDS:
        own = [case for case in cases if case.mention.kind == kind]
        yield from table(kind, own, [OURS, *(named(*row) for row in ROWS)])


def main() -> None:
    """Print the section, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = "\n".join(report(load("demo:llava"), scenes("test", options.scenes, seed=options.seed), options.seed))
    print(text)
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        options.write.write_text(SECTION.sub(rf"\g<1>\n{text}\n\n\g<2>", page), encoding="utf-8")


if __name__ == "__main__":
    main()
