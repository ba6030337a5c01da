"""Draw the README's pictures, `photographs.jpg` and `words.png`: `python docs/make_pictures.py`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import hf_cam
from hf_cam.images.reading import load_image
from hf_cam.interfaces.demo import PHOTOGRAPHS
from hf_cam.zoo import SCENE

IMAGES = Path(__file__).parent / "images"
HEIGHT, GAP = 300, 8
SHOWN = ("coffee", "camera", "motorcycle", "flower")


def main() -> None:
    """Write the pictures to `docs/images`."""
    images = [photograph.image() for photograph in PHOTOGRAPHS if photograph.name in SHOWN]
    found = [explanations[0].overlay() for explanations in hf_cam.explain(images, "demo:imagenet")]
    _save("photographs.jpg", [images, found])
    scene = load_image(SCENE)
    words = hf_cam.explain(scene, "demo:llava", text="What is in the picture?", target="trouser|sneaker|bag")
    print(words.save(IMAGES / "words.png"))


def _save(name: str, rows: list[list[Image.Image]]) -> None:
    """Save a sheet of rows of pictures, all scaled to the same height."""
    scaled = [[_scaled(image) for image in row] for row in rows]
    width = sum(image.width for image in scaled[0]) + GAP * (len(scaled[0]) - 1)
    sheet = Image.new("RGB", (width, len(rows) * (HEIGHT + GAP) - GAP), "white")
    for i, row in enumerate(scaled):
        left = 0
        for image in row:
            sheet.paste(image, (left, i * (HEIGHT + GAP)))
            left += image.width + GAP
    path = IMAGES / name
    sheet.save(path, quality=88)
    print(path)


def _scaled(image: Image.Image) -> Image.Image:
    return image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
