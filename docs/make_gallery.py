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
METHODS = ("gradcam", "hirescam", "layercam", "eigencam", "randomcam")
HEAD = """# Gallery

Every head by five methods, each row of maps from one forward pass. Written by `python docs/make_gallery.py`. The
photograph is explained with ImageNet weights, the scene with the small bundled models. RandomCAM weights the channels
at random: a method that looks no better than it shows nothing. EigenCAM ignores the target. For the prompt and for the
region, Grad-CAM also colours the background, because it averages each channel's gradient over the whole picture: see
[when Grad-CAM misleads](guide/reading.md#when-grad-cam-misleads). The default method of these two is another one.
"""


@dataclass(frozen=True)
class Row:
    """One head: its model, what is explained, and how the page describes it."""

    title: str
    model: str
    call: str
    wanted: Mapping[str, Any]
    image: str = "scene"

    @property
    def file(self) -> str:
        """The name of its picture."""
        return f"{self.model}.jpg"


ROWS = (
    Row("A class, convolutional network", "imagenet", 'target="espresso"', {"target": "espresso"}, "coffee"),
    Row("A class, vision transformer", "vit", 'target="bag"', {"target": "bag"}),
    Row("A prompt", "clip", 'text="a sneaker"', {"text": "a sneaker"}),
    Row("An object", "detr", 'target="bag"', {"target": "bag"}),
    Row("A region", "segformer", 'target="trouser"', {"target": "trouser"}),
    Row("A segment", "maskformer", 'target="bag"', {"target": "bag"}),
)


def page() -> str:
    return "\n".join([HEAD, *map(section, ROWS)])


def section(row: Row) -> str:
    names = ", ".join(METHODS)
    alt = f"{row.title}: the picture and its maps by {names}"
    call = f'hf_cam.compare(image, "demo:{row.model}", {row.call}, methods={list(METHODS)})'
    return f"## {row.title}\n\n```python\n{call}\n```\n\n![{alt}](images/gallery/{row.file})\n"


def draw(row: Row) -> None:
    [photograph] = [one for one in PHOTOGRAPHS if one.name == "coffee"]
    image = photograph.image() if row.image == "coffee" else SCENE
    found = hf_cam.compare(image, f"demo:{row.model}", methods=METHODS, **row.wanted)
    found.grid(columns=3).save(PICTURES / row.file, quality=85)
    print(row.file)


if __name__ == "__main__":
    PICTURES.mkdir(parents=True, exist_ok=True)
    for one in ROWS:
        draw(one)
    PAGE.write_text(page(), encoding="utf-8")
