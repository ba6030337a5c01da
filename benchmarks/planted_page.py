"""The page of `benchmarks/planted.py`: tables, goals and the reason why one family's maps mislead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Record = dict[str, Any]

MISLEADS = 0.75
"""The share of peaks on the cue below which a family's adapter carries a caution."""

HEAD = """# Do maps show what a model reads, and does `check()` notice?

Written by `python -m benchmarks.planted --images {images} --chosen`. Small models of the zoo (ViT, DINOv2 with
registers, ConvNeXt, Swin) are fine-tuned by `benchmarks/cue_readers.py`, and its CLIP gets a linear probe, on scenes of
64 x 96 pixels whose class is decided by a planted cue (`benchmarks/cues.py`): a coloured corner mark, a border, a stamp
at a random place, the tint of one item, stripes on the background of one quarter, two discs of which one would do, and
a stamp beside a corner mark that says nothing. An image counts if the model tells its class and removing the cue lowers
the confidence by 0.5 or more: then the truth is known by intervention. A map hits if the cell that holds its peak
touches the cue.

Methods and candidates were chosen on the corner mark and the stamp, thresholds also on the other cues and on two that
are not on this page (a stripe across the picture, and two squares of which one would do). The figures below are for
models of another seed in other scenes, which played no part in a choice: {count} images. Figures are shares with their
standard errors, which assume that images are independent; those of one model are not quite.
"""

WHY = """
## Why Swin's maps mislead

Mean pooling and a linear layer follow Swin's last norm, so the class's logit is a sum over the last cells, which
Grad-CAM shows exactly. Of the logit that the corner mark adds, **{own:.3f}** comes from the cells that it touches
(mean over {count} images; the range is {low:.3f} to {high:.3f}, and one of the 4 x 4 cells of a window is 0.062 of
it). The attention copies the evidence to all cells of the window alike: the map is right about the cells and wrong
about the picture, and no map of that layer can show the place. Hiding parts of the picture asks the model itself.
"""


SPREAD = """

A check adds the cell of the peak and the strongest 3% of the map to random parts of the image, few and many, and
compares what each adds on average with its share of the area. So it judges what a map marks first and what it marks in
all: a miss whose peak cell lies beside the cue may have most of these 3% on it, and a hit may have most of them beside.
"""
ON_CUE = {
    (0.0, 0.25): "less than a quarter of the 3% on the cue",
    (0.25, 0.5): "a quarter to a half",
    (0.5, 2.0): "more",
}

FLAGGED = f"""

A family's adapter carries a caution, and the result the flag "may mislead", where the fast map's peak is on the cue in
less than {MISLEADS} of the images, here or where thresholds were chosen.
"""


def share(values: Iterable[bool]) -> str:
    """A share with its standard error and the number of cases."""
    found = np.array(list(values), float)
    if not len(found):
        return "none"
    error = (found.mean() * (1 - found.mean()) / len(found)) ** 0.5
    return f"{found.mean():.2f} ± {error:.2f} ({len(found)})"


def page(records: Sequence[Record], images: int, shares: Sequence[float]) -> str:
    """The whole page in Markdown."""
    from benchmarks.planted import CHOSEN

    quoted = [one for one in records if (one["cue"], one["seed"]) not in CHOSEN]
    chosen = [one for one in records if (one["cue"], one["seed"]) in CHOSEN]
    sections = {
        "Peak on the cue, by family": by(quoted, "family"),
        "Peak on the cue, by cue": by(quoted, "cue"),
        "Verdicts": verdicts(quoted),
        "What `checked` kept and what it cost": kept(quoted),
    }
    if chosen:
        sections["Where thresholds were chosen: peak on the cue, by family"] = by(chosen, "family")
    parts = [HEAD.format(images=images, count=len(quoted)), goals(quoted)]
    parts += [f"\n## {title}\n\n{text}" for title, text in sections.items()]
    if misled := [one["decoy"] for one in records if one["cue"] == "unused mark"]:
        parts.append(
            f"\nBeside the stamp, the fast map's peak lies on the mark that says nothing in {share(misled)}.\n"
        )
    if shares:
        parts.append(WHY.format(own=np.mean(shares), count=len(shares), low=min(shares), high=max(shares)))
    return "\n".join(parts).replace("\n\n\n", "\n\n").rstrip() + "\n"


def by(records: Sequence[Record], field: str) -> str:
    """A table of hits: a row per method, a column per family or cue."""
    columns = list(dict.fromkeys(one[field] for one in records))
    methods = list(dict.fromkeys(name for one in records for name in one["hits"]))
    first = [name for name in ("checked", "fast", "occlusion") if name in methods]
    order = [*first, *sorted(set(methods) - set(first))]
    rows = [["map", *columns]]
    for name in order:
        having = [one for one in records if name in one["hits"]]
        cells = [[one["hits"][name] for one in having if one[field] == column] for column in columns]
        rows.append([f"`{name}`", *(share(cell) if cell else "not defined" for cell in cells)])
    return table(rows)


def verdicts(records: Sequence[Record]) -> str:
    """A table of verdicts: for hits and misses, each kind of map."""
    rows = [["maps", "supports", "undecided", "contradicts"]]
    kinds: dict[str, Callable[[str, bool], bool]] = {
        "hits": lambda name, hit: hit,
        "misses": lambda name, hit: not hit,
        "misses that a method made": lambda name, hit: not hit and name in ("fast", "checked"),
        "hits shifted by half": lambda name, hit: name == "shifted",
        "hits turned round": lambda name, hit: name == "flipped",
        "hits of another image": lambda name, hit: name == "foreign",
    }
    for kind, belongs in kinds.items():
        found = [verdict for one in records for name, hit, verdict, _ in one["verdicts"] if belongs(name, hit)]
        rows.append([kind, *(share(verdict == wanted for verdict in found) for wanted in rows[0][1:])])
    for wanted_hit, (low, high), kind in ((hit, *one) for hit in (True, False) for one in ON_CUE.items()):
        found = [
            verdict
            for one in records
            for _, hit, verdict, inside in one["verdicts"]
            if hit is wanted_hit and low <= inside < high
        ]
        title = f"{'hits' if wanted_hit else 'misses'}, {kind}"
        rows.append([title, *(share(verdict == wanted for verdict in found) for wanted in rows[0][1:])])
    for cue in dict.fromkeys(one["cue"] for one in records):
        own = [one for one in records if one["cue"] == cue]
        found = [verdict for one in own for _, hit, verdict, _ in one["verdicts"] if hit]
        rows.append([f"hits, {cue}", *(share(verdict == wanted for verdict in found) for wanted in rows[0][1:])])
    return table(rows) + SPREAD


def kept(records: Sequence[Record]) -> str:
    """A table of what was kept and of the forwards, a row per family."""
    rows = [["family", "methods kept", "median forwards", "most forwards", "flagged when fast"]]
    for family in dict.fromkeys(one["family"] for one in records):
        own = [one for one in records if one["family"] == family]
        methods = [one["kept"] for one in own]
        counted = ", ".join(f"{name} {methods.count(name)}" for name in dict.fromkeys(methods))
        forwards = [one["forwards"] for one in own]
        flagged = share(any(flag.startswith("may mislead") for flag in one["flags"]) for one in own)
        rows.append([family, counted, f"{np.median(forwards):.0f}", f"{max(forwards):.0f}", flagged])
    return table(rows) + FLAGGED


def goals(records: Sequence[Record]) -> str:
    """The goals, each met or not."""
    rows = [["goal", "measured", ""]]
    for family in dict.fromkeys(one["family"] for one in records):
        own = [one["hits"] for one in records if one["family"] == family]
        checked, plain = ([hit[name] for hit in own] for name in ("checked", "occlusion"))
        met = np.mean(checked) >= min(0.90, float(np.mean(plain)))
        goal = f"`checked` on {family}: peak on the cue in 0.90, or in as many as plain occlusion"
        rows.append([goal, f"{share(checked)}; occlusion {share(plain)}", _met(bool(met))])
    for hit, word in ((True, "hits"), (False, "misses")):
        found = [verdict for one in records for _, was, verdict, _ in one["verdicts"] if was is hit]
        right, wrong = ("supports", "contradicts") if hit else ("contradicts", "supports")
        for verdict, limit, enough in ((right, "at least 0.90", True), (wrong, "at most 0.05", False)):
            values = [one == verdict for one in found]
            met = np.mean(values) >= 0.90 if enough else np.mean(values) <= 0.05
            rows.append([f'{word}: {limit} get "{verdict}"', share(values), _met(bool(met))])
    return "## Goals\n\n" + table(rows)


def _met(met: bool) -> str:
    return "met" if met else "**NOT MET**"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as Markdown, the first as the head."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
