"""Draw the gallery, one picture per head with a map per method, and its page: `python docs/make_gallery.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hf_cam
from hf_cam.interfaces.demo import PHOTOGRAPHS
from hf_cam.zoo import SCENE

PAGE = Path(__file__).with_name("gallery.md")
PICTURES = Path(__file__).parent / "images" / "gallery"
OTHERS = ("gradcam", "layercam", "eigencam", "randomcam")
"""What each default is shown beside."""
HEAD = """# Gallery

Each head is explained with its default method, which comes first, and with others; the maps of a comparison come from
one forward pass. `python docs/make_gallery.py` writes this page. The photograph is explained with ImageNet weights, the
scene with the small bundled models. RandomCAM weights the channels at random: a method that looks no better than it
shows nothing. EigenCAM ignores the target. For the prompt and for the region, Grad-CAM also colours the background,
because it averages each channel's gradient over the whole picture: see
[when Grad-CAM misleads](guide/reading.md#when-grad-cam-misleads).
"""


@dataclass(frozen=True)
class Row:
    """One head: its model, what is explained, and how the page describes it."""

    title: str
    model: str
    default: str
    call: str
    wanted: Mapping[str, Any]
    image: str = "scene"

    @property
    def methods(self) -> tuple[str, ...]:
        """The default of the model, and the others."""
        return (self.default, *(method for method in OTHERS if method != self.default))

    @property
    def file(self) -> str:
        """The name of its picture."""
        return f"{self.model}.jpg"


ROWS = (
    Row("A class, convolutional network", "imagenet", "gradcam", 'target="espresso"', {"target": "espresso"}, "coffee"),
    Row("A class, vision transformer", "vit", "hirescam", 'target="bag"', {"target": "bag"}),
    Row("A prompt", "clip", "libracam", 'text="a sneaker"', {"text": "a sneaker"}),
    Row("An object", "detr", "hirescam", 'target="bag"', {"target": "bag"}),
    Row("A region", "segformer", "gradcam-elementwise", 'target="trouser"', {"target": "trouser"}),
    Row("A segment", "maskformer", "gradcam", 'target="bag"', {"target": "bag"}),
)


@dataclass(frozen=True)
class Piece:
    """A picture that a few lines of code make; the page shows these lines."""

    title: str
    name: str
    alt: str
    code: str

    @property
    def file(self) -> str:
        """The name of its picture."""
        return f"{self.name}.jpg"

    def section(self) -> str:
        """Its part of the page."""
        return f"## {self.title}\n\n```python\n{self.code}\n```\n\n![{self.alt}](images/gallery/{self.file})\n"

    def draw(self) -> None:
        """Run the code and write the picture that it draws."""
        names: dict[str, Any] = {"hf_cam": hf_cam, "image": SCENE}
        exec(self.code, names)  # noqa: S102  (the page shows the very code that made its picture)
        names["drawn"].save(PICTURES / self.file, quality=85)
        print(self.file)


SUM = """from hf_cam.targets import SumOf

found = hf_cam.explain(image, "demo:detr", top_k=2)  # one map per object
for settings in ({}, {"renormalize": "box"}):  # for all; each box on its own scale
    found += hf_cam.explain(image, "demo:detr", target=SumOf(None), **settings)
drawn = hf_cam.grid(found)"""
EXPECTED = """both = hf_cam.difference(*hf_cam.explain(image, "demo:vit", target=[None, "bag"]))
print(both)
drawn = both.grid()"""
STYLE = """[found] = hf_cam.explain(image, "demo:vit")
drawn = found.overlay(0.6, "viridis", even=True, contours=True, colorbar=True)"""
PIECES = (
    Piece("Several objects in one map", "sum", "The maps of two objects, of all, and of each box for itself", SUM),
    Piece("What was expected", "expected", "The predicted map, the expected map and their difference", EXPECTED),
    Piece("Another style", "style", "An evenly opaque map with contour lines and a legend", STYLE),
)


def page() -> str:
    return "\n".join([HEAD, *map(section, ROWS), *(piece.section() for piece in PIECES)])


def section(row: Row) -> str:
    names = ", ".join(row.methods)
    alt = f"{row.title}: the picture and its maps by {names}"
    quoted = ", ".join(f'"{method}"' for method in row.methods)
    call = f'methods = [{quoted}]\nhf_cam.compare(image, "demo:{row.model}", {row.call}, methods=methods)'
    return f"## {row.title}\n\n```python\n{call}\n```\n\n![{alt}](images/gallery/{row.file})\n"


def draw(row: Row) -> None:
    [photograph] = [one for one in PHOTOGRAPHS if one.name == "coffee"]
    image = photograph.image() if row.image == "coffee" else SCENE
    found = hf_cam.compare(image, f"demo:{row.model}", methods=row.methods, **row.wanted)
    found.grid(columns=3).save(PICTURES / row.file, quality=85)
    print(row.file)


if __name__ == "__main__":
    PICTURES.mkdir(parents=True, exist_ok=True)
    for one in ROWS:
        draw(one)
    for piece in PIECES:
        piece.draw()
    PAGE.write_text(page(), encoding="utf-8")
