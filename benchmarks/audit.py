"""Does an audit find what models read, and nothing else? On models that were taught a planted cue.

    python -m benchmarks.audit [--models vit ...] [--cues "corner mark" ...] [--seeds 0 1 2] [--write]
    python -m benchmarks.audit --time 2000

The models and scenes are those of `benchmarks/planted.py`. In each cell (model, cue, seed) 240 scenes are audited with
the masks of their items. A cell is right if a class with a cue has a finding "reads it" of the right kind in the right
place: for a place, a box with an intersection over union of at least 0.3 and at most three times the cue's area, where
one side of a border is a place too; for other kinds, masks with a mean intersection over union of at least 0.3. Every
other "reads it" that is not of the kind "object" is false. In the cells with nothing planted, the class is that of the
items. Whether a class has a cue is also
ranked, over all classes of all cells: by the largest fall of accuracy of its findings, "object" aside where no item was
painted, and as plain SpRAy does, by the number of groups of its maps; the area under each ROC curve is printed. Cells
are kept in a file of records, so that the run can be stopped and continued. `--time` audits that many scenes and prints
the processor time over that of explaining them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.cue_readers import FAMILIES, reader
from benchmarks.cues import BORDER, CLASSES, CLEAN, SIZE, Planted, planted
from hf_cam.auditing.audit import Audit, audit
from hf_cam.auditing.cases import box_of
from hf_cam.auditing.findings import Finding
from hf_cam.auditing.regions import area, overlap
from hf_cam.data.dataset import explain_dataset
from hf_cam.zoo import cache_folder

SCENES, TEST_SEED = 240, 11
ROWS, COLUMNS = BORDER / SIZE[0], BORDER / SIZE[1]
KINDS = {
    "corner mark": "place",
    "border": "border",
    "stamp": "moving",
    "tint": "object",
    "texture": "background",
    "two cues": "place",
    "unused mark": "moving",
    CLEAN: "object",
}
BARE = (CLEAN, "unused mark")
SIDES = [(0.0, 0.0, 1.0, ROWS), (0.0, 1 - ROWS, 1.0, 1.0), (0.0, 0.0, COLUMNS, 1.0), (1 - COLUMNS, 0.0, 1.0, 1.0)]
"""The boxes of the four sides of the border."""
PAGE = Path(__file__).parents[1] / "docs" / "audits.md"
RECORDS = cache_folder() / "audits.jsonl"
CUED = CLASSES[1:]


def cell(family: str, cue: str, seed: int) -> dict[str, object]:
    """One audit and its judgement."""
    folder = reader(family, cue, seed)
    scenes = list(islice(planted(cue, "test", TEST_SEED + seed), SCENES))
    data = [{"image": one.image, "label": CLASSES[one.label], "mask": one.items} for one in scenes]
    began = time.process_time()
    found = audit(folder, data)
    took = time.process_time() - began
    right = {label: any(judged(found, scenes, cue, label)) for label in CUED if cue != CLEAN}
    false = [one.kind for one in found.findings if one.verdict == "reads it" and wrong(found, scenes, cue, one)]
    groups = [sum(one.label == label for one in found.strategies) for label in CLASSES]
    return {
        "family": family,
        "cue": cue,
        "seed": seed,
        "accuracy": found.accuracy,
        "right": right,
        "false": false,
        "spray": groups,
        "seconds": took,
        "findings": [(one.label, one.kind, one.verdict, one.drop) for one in found.findings],
    }


def judged(found: Audit, scenes: Sequence[Planted], cue: str, label: str) -> Iterator[bool]:
    """Whether each finding of a class is the cue."""
    for one, masks in zip(found.findings, found.masks, strict=True):
        if one.label == label and one.verdict == "reads it":
            yield is_cue(one, masks, scenes, cue)


def is_cue(one: Finding, masks: dict[str, np.ndarray], scenes: Sequence[Planted], cue: str) -> bool:
    """Whether a finding has the kind of the cue and lies on it."""
    if one.kind != KINDS[cue] and not (one.kind == "place" and KINDS[cue] == "border"):
        return False
    pairs = [(mask, scenes[int(name)].cue) for name, mask in masks.items() if scenes[int(name)].cue.any()]
    if one.region is None:
        return covers(masks, scenes)
    boxes = SIDES if KINDS[cue] == "border" else [box for _, mask in pairs for box in parts(mask)]
    return any(overlap(one.region, box) >= 0.3 and area(one.region) <= 3 * area(box) for box in boxes)


def covers(masks: dict[str, np.ndarray], scenes: Sequence[Planted]) -> bool:
    """Whether regions of images lie on the cue: a mean intersection over union of at least 0.3."""
    pairs = [(mask, scenes[int(name)].cue) for name, mask in masks.items() if scenes[int(name)].cue.any()]
    return bool(pairs) and float(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs])) >= 0.3


def parts(mask: np.ndarray) -> Iterator[tuple[float, float, float, float]]:
    """The boxes of the left and of the right part of a cue, and of the whole."""
    width = mask.shape[1] // 2
    for columns in (slice(0, width), slice(width, None)):
        part = np.zeros_like(mask)
        part[:, columns] = mask[:, columns]
        if part.any():
            yield box_of(part)
    yield box_of(mask)


def wrong(found: Audit, scenes: Sequence[Planted], cue: str, one: Finding) -> bool:
    """Whether a finding says that something is read which is neither the cue, of whatever kind, nor an object."""
    masks = dict(found.masks[found.findings.index(one)])
    return one.kind != "object" and not is_cue(one, masks, scenes, cue) and not covers(masks, scenes)


def page(records: Sequence[dict[str, object]]) -> str:
    """The tables."""
    right = [value for one in records for value in dict(one["right"]).values()]
    false = [bool(one["false"]) for one in records]
    bare = [found for found, one in zip(false, records, strict=True) if one["cue"] in BARE]
    seconds = np.median([one["seconds"] for one in records])
    seeds = sorted({one["seed"] for one in records})
    lines = [
        "# Do audits find what a model reads?",
        "",
        "Written by `python -m benchmarks.audit --write`, which says what counts as right.",
        "",
        "| goal | measured |  |",
        "|---|---|---|",
        goal("the cue is found, class and place: at least 0.95 of the classes", right, at_least=0.95),
        goal("something else is reported where nothing is planted, or a mark unused: at most 0.05", bare, at_most=0.05),
        goal("something else is reported, all cells", false),
        "",
        f"{len(records)} cells of {SCENES} scenes, each in {seconds:.0f} s of processor time (median).",
        f"The cue is found in {', '.join(by_seed(records, seed) for seed in seeds)}.",
        "The level of the test that tells evidence on the objects from evidence off them was chosen on seeds 0 and 1;",
        "seed 2 played no part in that.",
        "",
        "| cue (kind) | " + " | ".join(FAMILIES) + " |",
        "|---|" + "---|" * len(FAMILIES),
    ]
    for cue, kind in KINDS.items():
        cells = []
        for family in FAMILIES:
            own = [one for one in records if (one["family"], one["cue"]) == (family, cue)]
            hits = [value for one in own for value in dict(one["right"]).values()]
            wrongs = sum(len(one["false"]) for one in own)
            found = f"{sum(hits)} of {len(hits)}, " if hits else ""
            cells.append(f"{found}{wrongs} false" if own else "not run")
        lines.append(f"| {cue} ({kind}) | " + " | ".join(cells) + " |")
    ours, theirs = areas(records)
    lines += [
        "",
        "| which classes have a cue | area under the ROC curve |",
        "|---|---|",
        f"| by the fall of accuracy, tested by intervention | {ours:.2f} |",
        f"| plain SpRAy: by the number of groups of the maps | {theirs:.2f} |",
    ]
    return "\n".join(lines) + "\n"


def by_seed(records: Sequence[dict[str, object]], seed: object) -> str:
    """In how many classes of a seed the cue is found."""
    right = [value for one in records if one["seed"] == seed for value in dict(one["right"]).values()]
    return f"{sum(right)} of {len(right)} classes (seed {seed})"


def areas(records: Sequence[dict[str, object]]) -> tuple[float, float]:
    """The area under the ROC curve of the largest fall of each class, and of its number of groups."""
    cued, falls, groups = [], [], []
    for one in records:
        for label, parts in zip(CLASSES, one["spray"], strict=True):
            own = [drop for name, kind, _, drop in one["findings"] if name == label and counts(kind, str(one["cue"]))]
            cued.append(label in CUED and one["cue"] != CLEAN)
            falls.append(max(own, default=0.0))
            groups.append(parts)
    return float(roc_auc_score(cued, falls)), float(roc_auc_score(cued, groups))


def counts(kind: str, cue: str) -> bool:
    """Whether a finding of this kind speaks for a cue; that items are read does so only where one was painted."""
    return kind != "object" or cue == "tint"


def timed(count: int) -> str:
    """The processor time of an audit of so many scenes, and of explaining them, in one sentence."""
    folder = reader("vit", "corner mark", 0)
    scenes = list(islice(planted("corner mark", "test", TEST_SEED), count))
    data = [{"image": one.image, "label": CLASSES[one.label]} for one in scenes]
    seconds = []
    for work in (lambda: explained(folder, data), lambda: audit(folder, data)):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    own, whole = seconds
    ratio = f"{whole / own:.2f} times"
    return f"{count} scenes: explained in {own:.0f} s of processor time, audited in {whole:.0f} s: {ratio}"


def explained(folder: Path, data: Sequence[dict[str, object]]) -> None:
    """All images of the data through the engine, into files."""
    with TemporaryDirectory() as scratch:
        explain_dataset([one["image"] for one in data], str(folder), out=scratch)


def goal(text: str, values: Sequence[bool], at_least: float = 0.0, at_most: float = 1.0) -> str:
    """A row of the goals, with the standard error."""
    if not values:
        return f"| {text} | not run | |"
    share = float(np.mean(values))
    error = float(np.sqrt(share * (1 - share) / len(values)))
    met = at_least <= share <= at_most
    told = ("met" if met else "**NOT MET**") if (at_least, at_most) != (0.0, 1.0) else ""
    return f"| {text} | {share:.2f} ± {error:.2f} ({len(values)}) | {told} |"


def main() -> None:
    """Run the cells that are not in the records, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--cues", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--time", type=int, metavar="SCENES", help="only time an audit of this many scenes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.time:
        print(timed(options.time))
        return
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.is_file() else []
    done = {(one["family"], one["cue"], one["seed"]) for one in records}
    for seed in options.seeds:
        for cue in options.cues:
            for family in options.models:
                if (family, cue, seed) not in done:
                    records.append(cell(family, cue, seed))
                    with RECORDS.open("a") as file:
                        file.write(json.dumps(records[-1]) + "\n")
                    print(json.dumps(records[-1]), flush=True)
    text = page(records)
    print(text)
    if options.write:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
