"""Whether another method's maps lie better on the objects than those of `method="auto"`: chosen on one half of the
scenes, quoted on the other.

    python -m benchmarks.choice [--models vit convnext ...] [--scenes 200] [--records FILE] [--markdown PAGE]

Reads the records of `python -m benchmarks.localization` for two seeds, and runs no model on a scene. For each model and
each method that has records of both seeds, the table shows the method's scores less those of the default, label by
label, with standard errors. A method is the better one if, on the scenes that choose, it is better by two standard
errors in at least one metric and worse by one in none; it can become the default if it also depends on the class and
costs at most twice as much as Grad-CAM. Methods that are better in no metric have no rows and are named below the
table. Prints Markdown; `--markdown` writes it into a page, between its marks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from transformers.utils import logging

from benchmarks.defaults import COST
from benchmarks.localization import MODELS, QUOTED, RECORDS, mean_and_error, scores_of
from benchmarks.localized import METRICS, Found, parsed, read
from benchmarks.pages import write
from hf_cam import list_methods
from hf_cam.explainer import Explainer
from hf_cam.methods import get_method
from hf_cam.models.loading import load

CHOSEN = 1
"""The seed of the scenes that choose."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--markdown", type=Path, help="the page to write the table into")
    options = parser.parse_args()
    logging.disable_progress_bar()
    found = read(options.records)
    lines = ["| model | default | other | scenes | " + " | ".join(METRICS) + " | better |"]
    lines.append("|---|---|---|--:|" + "--:|" * len(METRICS) + "---|")
    behind = []
    for model in options.models:
        default = Explainer(load(f"demo:{model}")).cam.method.id
        compared = list(comparisons(found, model, default, options.scenes))
        lines += chain(*(one.rows() for one in compared if one.chosen.leads))
        names = ", ".join(one.other for one in compared if not one.chosen.leads)
        behind.append(f"- {model}, beside {default}: {names}.")
    lines += ["", "Better in no metric by two standard errors, on the scenes that choose:", "", *behind]
    text = "\n".join(lines)
    print(text)
    if options.markdown:
        write(options.markdown, "choice", text)


def comparisons(found: Found, model: str, default: str, scenes: int) -> Iterator[Comparison]:
    """Of each method with records of both seeds."""
    for name in (key[1] for key in found if key[0] == model and key[2] == CHOSEN):
        method, _ = parsed(name)
        if name == default or method not in list_methods():
            continue
        chosen, quoted = (gains(found, model, (name, default), seed, scenes) for seed in (CHOSEN, QUOTED))
        if chosen is None or quoted is None:
            continue
        yield Comparison(model, default, name, chosen, quoted)


@dataclass(frozen=True)
class Gain:
    """A method's scores less another's on the same labels: mean and standard error of each metric."""

    scenes: int
    pairs: list[tuple[float, float]]

    @property
    def ratios(self) -> np.ndarray:
        """The gains in standard errors."""
        return np.array([mean / max(error, 1e-6) for mean, error in self.pairs])

    @property
    def leads(self) -> bool:
        """Whether it is better in at least one metric."""
        return bool(self.ratios.max() >= 2)


@dataclass(frozen=True)
class Comparison:
    """A method beside the default of a model, on the scenes that choose and on those that are quoted."""

    model: str
    default: str
    other: str
    chosen: Gain
    quoted: Gain

    def rows(self) -> Iterator[str]:
        """One row for each of the two."""
        verdict = better(self.chosen, parsed(self.other)[0])
        for gain, seed, told in ((self.chosen, CHOSEN, verdict), (self.quoted, QUOTED, "")):
            cells = " | ".join(f"{mean:+.3f} ± {error:.3f}" for mean, error in gain.pairs)
            yield f"| {self.model} | {self.default} | {self.other} | {gain.scenes} of seed {seed} | {cells} | {told} |"


def gains(found: Found, model: str, maps: tuple[str, str], seed: int, scenes: int) -> Gain | None:
    """The gain of the first of two maps over the second; None if no scene has both."""
    one, other = (found.get((model, name, seed), {}) for name in maps)
    shared = [scene for scene in sorted(one) if scene in other and scene < scenes]
    if not shared:
        return None
    own, base = (scores_of({scene: records[scene] for scene in shared}, scenes) for records in (one, other))
    return Gain(len(shared), [mean_and_error(column) for column in (own - base).T])


def better(gain: Gain, method: str) -> str:
    """Whether a method is better by the rule, and if so, what keeps it from being the default."""
    if not gain.leads or gain.ratios.min() < -1:
        return "no"
    record = get_method(method)
    if record.ignores_class:
        return "yes, but one map for every class"
    return "yes" if record.cost() <= COST * get_method("gradcam").cost() else "yes, but it costs more"


if __name__ == "__main__":
    main()
