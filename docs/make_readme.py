"""Fill in the figures of README.md from the pages beside this file: `python docs/make_readme.py`.

Each figure or table in the README is enclosed in `<!-- name -->` and `<!-- end -->`; the function of that name in
`FIGURES` reads it from the page on which a benchmark printed it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
SLOT = re.compile(r"<!-- ([\w-]+) -->(.*?)<!-- end -->", re.DOTALL)

PLANTED = ("fast", "checked", "occlusion", "attnlrp")
COSTS = ("gradcam", "layercam", "fullgrad", "eigencam", "ablationcam", "scorecam", "top 5 classes")

ASKED, REFUSED = "verified, with the caller's target", "refused, with a reason"

Row = dict[str, str]


def readme(text: str) -> str:
    """The README with its figures filled in.

    Raises:
        ValueError: a mark is missing, duplicated or unknown.
    """
    names = [name for name, _ in SLOT.findall(text)]
    if sorted(names) != sorted(FIGURES):
        raise ValueError(f"marks of the README: {sorted(names)}; expected one of each of {sorted(FIGURES)}")
    return SLOT.sub(lambda slot: f"<!-- {slot[1]} -->{FIGURES[slot[1]]()}<!-- end -->", text)


# Pages.


def below(page: str, mark: str) -> str:
    """The page from `mark` to its end.

    Raises:
        ValueError: the mark does not occur exactly once.
    """
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    if text.count(mark) != 1:
        raise ValueError(f"docs/{page}.md: {mark!r} occurs {text.count(mark)} times, expected once")
    return text[text.index(mark) :]


def table(page: str, mark: str) -> list[str]:
    """The lines of the first table at or after `mark`."""
    first = re.search(r"(^\|.*\n)+", below(page, mark), re.MULTILINE)
    if first is None:
        raise ValueError(f"docs/{page}.md: no table below {mark!r}")
    return first[0].splitlines()


def rows(page: str, mark: str) -> list[Row]:
    """The rows of that table, with each cell under the name of its column."""
    header, _, *body = ([cell.strip(" *`") for cell in line[1:-1].split("|")] for line in table(page, mark))
    return [dict(zip(header, cells, strict=True)) for cells in body]


def number(page: str, pattern: str) -> str:
    """The number in the pattern's group; the pattern may match repeatedly, but always with the same number."""
    [found] = set(re.findall(pattern, (DOCS / f"{page}.md").read_text(encoding="utf-8")))
    return found


# Figures.


def coverage(column: str) -> int:
    """The sum of a column over the tasks of transformers."""
    tasks = [row for row in rows("architectures", "| task |") if not row["task"].startswith("timm")]
    return sum(int(row[column] or 0) for row in tasks)


def explained() -> str:
    verified, asked, refused = coverage("verified"), coverage(ASKED), coverage(REFUSED)
    return f"{verified} of {coverage('types') - asked - refused}"


def planted() -> str:
    """The share of images whose map peaks on the planted cue, by map and family."""
    found = {row["map"]: row for row in rows("planted", "## Peak on the cue, by family")}
    families = {"vit": "ViT", "dinov2": "DINOv2", "convnext": "ConvNeXt", "swin": "Swin", "clip": "CLIP, probed"}
    lines = [[f"`{name}`", *(found[name][one].split(" ±")[0] for one in families)] for name in PLANTED]
    body = [f"| {' | '.join(cells)} |" for cells in (["map", *families.values()], *lines)]
    return "\n".join(["", body[0], "|---" + "|--:" * len(families) + "|", *body[1:], ""])


def planted_error() -> str:
    found = [row for row in rows("planted", "## Peak on the cue, by family") if row["map"] in PLANTED]
    return max(cell.split("± ")[1].split()[0] for row in found for cell in row.values() if "±" in cell)


def verdict_on(maps: str, verdict: str) -> str:
    [row] = [row for row in rows("planted", "## Verdicts") if row["maps"] == maps]
    return row[verdict].split(" ±")[0]


def costs() -> str:
    header, rule, *body = table("methods", "### Overview")
    return "\n".join(["", header, rule, *(line for line in body if line.split("|")[1].strip() in COSTS), ""])


def batch_8() -> str:
    return span(row["hf-cam"] for row in rows("inference-cost", "| model | batch |") if row["batch"] == "8")


def memory() -> str:
    found = rows("inference-cost", "Peak memory above that of the weights at batch 16")
    return span(row[f"hf-cam / {other}"].split()[0] for row in found for other in ("grad-cam", "torchcam"))


def span(figures: Iterable[str]) -> str:
    ordered = sorted(figures, key=float)
    return f"{ordered[0]} to {ordered[-1]}"


FIGURES: dict[str, Callable[[], str]] = {
    "explained": explained,
    "methods": lambda: str(len(rows("methods", "| id |"))),
    "planted": planted,
    "planted-images": lambda: number("planted", r"part in a choice: (\d+) images"),
    "planted-error": planted_error,
    "hits-supported": lambda: verdict_on("hits", "supports"),
    "misses-contradicted": lambda: verdict_on("misses", "contradicts"),
    "costs": costs,
    "batch-8": batch_8,
    "memory": memory,
}


if __name__ == "__main__":
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
