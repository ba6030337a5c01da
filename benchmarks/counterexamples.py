"""Maps that miss what a model reads, beside those that `effort="checked"` keeps: the reading guide's counter-examples.

    python -m benchmarks.counterexamples

Models of `benchmarks/cue_readers.py` that read a planted cue; of each, the first image whose fast map misses the cue.
Writes the table of `docs/guide/reading.md` and `docs/images/misleading.png`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.cue_readers import reader
from benchmarks.cues import Planted
from benchmarks.pages import write
from benchmarks.planted import hits, reading
from hf_cam.explainer import Explainer
from hf_cam.explanation import Explanation
from hf_cam.images.reading import load_image
from hf_cam.models.loading import load

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "guide" / "reading.md"
CASES = (("swin", "corner mark", 2), ("dinov2", "unused mark", 2), ("convnext", "texture", 2))
"""Family, cue and seed of the model; none of them took part in a choice."""
HEAD = (
    '| model, cue | confidence, without the cue | fast map | its `check()` | `effort="checked"` | its `check()` |\n'
    "|---|---|---|---|---|---|"
)
LIMIT = 12
"""The most images that are looked at per model."""


@dataclass(frozen=True)
class Case:
    """One image whose fast map misses the cue, and how many cue-reading images were looked at."""

    name: str
    planted: Planted
    fast: Explanation
    checked: Explanation
    without: float
    looked_at: int

    @property
    def row(self) -> str:
        """The row of the table."""
        cells = [f"`{one.method}`, {self.hit(one)} | {one.check().verdict}" for one in (self.fast, self.checked)]
        return f"| {self.name} | {self.fast.score:.2f}, {self.without:.2f} | {' | '.join(cells)} |"

    def hit(self, one: Explanation) -> str:
        """Whether the peak of a map lies on the cue."""
        return "on the cue" if hits(one.raw, self.planted.cue) else "elsewhere"

    @property
    def pictures(self) -> list[Image.Image]:
        """The image with the cue outlined, the fast map and the checked one, enlarged four times."""
        shown = [outlined(self.planted), self.fast.overlay(), self.checked.overlay()]
        return [one.resize((4 * one.width, 4 * one.height), Image.Resampling.NEAREST) for one in shown]


def outlined(planted: Planted) -> Image.Image:
    """The image with a white line around its cue."""
    inside = planted.cue
    padded = np.pad(inside, 1)
    core = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    image = planted.image.copy()
    image[inside & ~core] = 255
    return Image.fromarray(image)


def cases() -> Iterator[Case]:
    """One case per model."""
    for family, cue, seed in CASES:
        explainer = Explainer(load(str(reader(family, cue, seed))))
        for number, one in enumerate(reading(explainer, cue, LIMIT), 1):
            picture = load_image(one.image)
            fast = next(explainer([picture], target=one.label))[0]
            if not hits(fast.raw, one.cue):
                checked = next(explainer([picture], target=one.label, effort="checked"))[0]
                without = next(explainer([load_image(one.without)], target=one.label))[0].score
                yield Case(f"{family}, {cue}", one, fast, checked, without, number)
                break


def sheet(rows: list[list[Image.Image]], gap: int = 8) -> Image.Image:
    """Pictures of one size in rows, on white."""
    width, height = rows[0][0].size
    page = Image.new("RGB", (len(rows[0]) * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            page.paste(picture, (j * (width + gap), i * (height + gap)))
    return page


def main() -> None:
    """Write the picture and the table."""
    found = list(cases())
    sheet([case.pictures for case in found]).save(DOCS / "images" / "misleading.png", optimize=True)
    rows = "\n".join([HEAD, *(case.row for case in found)])
    write(PAGE, "counter-examples", rows)
    print(rows)
    for case in found:
        print(f"{case.name}: image {case.looked_at} of those that the model reads the cue in")


if __name__ == "__main__":
    main()
