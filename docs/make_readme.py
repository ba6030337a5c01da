"""Fill in the figures of README.md from the pages beside this file: `python docs/make_readme.py`.

Each figure or table in the README is enclosed in `<!-- name -->` and `<!-- end -->`; the function of that name in
`FIGURES` reads it from the page on which a benchmark printed it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
SLOT = re.compile(r"<!-- ([\w-]+) -->(.*?)<!-- end -->", re.DOTALL)

CLASSIFIERS = {"convnext": "ConvNeXt", "vit": "ViT", "dinov2": "DINOv2", "swin": "Swin"}
OTHERS = {
    "clip": "clip, prompt",
    "detr": "detr, object",
    "segformer": "segformer, class",
    "maskformer": "maskformer, segment",
}
ATTENTION = ("chefer", "gradeclip", "libracam")
ROAD = ("gradcam", "hirescam", "layercam", "gradcam-elementwise", "fullgrad", "eigencam", *ATTENTION)
LOCALIZATION = ("gradcam", "hirescam", "layercam", "fullgrad", "eigencam", "refinecam", *ATTENTION)
PLANTED = ("fast", "checked", "occlusion", "attnlrp")
ROAD_BASELINES = ("centred-gaussian", "randomcam", "sobel", "noise")
LOCALIZATION_REFERENCES = ("scorecam, first 20 scenes", "randomcam", "grad-cam's GradCAM", "Sobel edges", "noise")

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


def verdicts() -> str:
    found = {row["model"]: row for row in rows("localization-heads", "| model | auto | energy inside |")}
    names = {model: model for model in CLASSIFIERS} | OTHERS
    lines = [["default method", *(found[name]["auto"] for name in names)]]
    lines += [["energy inside", *(found[name]["energy inside"] for name in names)]]
    return markdown(["model", *names.values()], lines)


def threshold(column: str) -> str:
    """The value of a column of the verdicts that is the same for all models."""
    [found] = {row[column] for row in rows("localization-heads", "| model | auto | energy inside |")}
    return found


def twins(column: str) -> str:
    [row] = rows("localization-heads", "| model | auto | maps |")
    return row[column]


def road_of(model: str) -> dict[str, tuple[str, str]]:
    """Mean and standard error of each map's ROAD, for one model."""
    return {row["map"]: tuple(row["road"].split(" ± ")) for row in rows("defaults", f"### {model}\n")}


def road() -> str:
    found = [{name: mean for name, (mean, _) in road_of(model).items()} for model in CLASSIFIERS]
    return compared((*ROAD, *ROAD_BASELINES), found)


def road_error() -> str:
    errors = [road_of(model).get(name, ("", "0"))[1] for model in CLASSIFIERS for name in (*ROAD, *ROAD_BASELINES)]
    return f"{max(map(float, errors)):.2f}"


def localization() -> str:
    lines = rows("localization", "| model | map |")
    found = [
        {row["map"]: f"{row['energy inside']} / {row['average precision']}" for row in lines if row["model"] in one}
        for one in [(model, "none") for model in CLASSIFIERS]
    ]
    return compared((*LOCALIZATION, *LOCALIZATION_REFERENCES), found)


def compared(names: Sequence[str], found: Sequence[Mapping[str, str]]) -> str:
    """A table of maps by classifier; only methods for transformers may be missing."""
    gaps = {row["id"]: "not defined" for row in rows("transformers", "| id |")}
    lines = [[name, *(one[name] if name in one else gaps[name] for one in found)] for name in names]
    return markdown(["map", *CLASSIFIERS.values()], lines)


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    body = [f"| {' | '.join(cells)} |" for cells in (header, *lines)]
    return "\n".join(["", body[0], "|---" + "|--:" * (len(header) - 1) + "|", *body[1:], ""])


def planted() -> str:
    """The share of images whose map peaks on the planted cue, by map and family."""
    found = {row["map"]: row for row in rows("planted", "## Peak on the cue, by family")}
    families = {"vit": "ViT", "dinov2": "DINOv2", "convnext": "ConvNeXt", "swin": "Swin"}
    lines = [[f"`{name}`", *(found[name][one].split(" ±")[0] for one in families)] for name in PLANTED]
    return markdown(["map", *families.values()], lines)


def planted_error() -> str:
    found = [row for row in rows("planted", "## Peak on the cue, by family") if row["map"] in PLANTED]
    return max(cell.split("± ")[1].split()[0] for row in found for cell in row.values() if "±" in cell)


def verdict_on(maps: str, verdict: str) -> str:
    [row] = [row for row in rows("planted", "## Verdicts") if row["maps"] == maps]
    return row[verdict].split(" ±")[0]


def costs() -> str:
    return "\n".join(["", *table("methods", "### Overview"), ""])


def scorecam(column: str) -> str:
    [row] = [row for row in rows("methods", "### ViT-B/16") if row["method"] == "scorecam"]
    return row[column]


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
    "refused": lambda: str(coverage(REFUSED)),
    "asked": lambda: str(coverage(ASKED)),
    "siblings": lambda: str(len(rows("methods", "| id |")) - 1),
    "verdict-scenes": lambda: number("localization-heads", r"--verdicts --scenes (\d+)"),
    "twice-the-share": lambda: threshold("twice the mask's share"),
    "best-baseline": lambda: threshold("best baseline (Sobel edges)"),
    "own-box": lambda: twins("energy in its own box"),
    "twins-box": lambda: twins("in the other's box"),
    "verdicts": verdicts,
    "road-scenes": lambda: number("defaults", r"(\d+) images.*; layer `(?:convnext|vit|dinov2|swin)"),
    "road-error": road_error,
    "road": road,
    "labels": lambda: number("localization", r"\d+ scenes with (\d+) labels"),
    "scenes": lambda: number("localization", r"(\d+) scenes with \d+ labels"),
    "localization": localization,
    "planted": planted,
    "planted-images": lambda: number("planted", r"another seed: (\d+) images"),
    "planted-error": planted_error,
    "hits-supported": lambda: verdict_on("hits", "supports"),
    "misses-contradicted": lambda: verdict_on("misses", "contradicts"),
    "costs": costs,
    "scorecam-memory": lambda: scorecam("hf-cam MB"),
    "grad-cam-memory": lambda: scorecam("grad-cam MB"),
    "batch-8": batch_8,
    "memory": memory,
}


if __name__ == "__main__":
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
