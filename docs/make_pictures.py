"""Draw the README's picture: `python docs/make_pictures.py` writes `docs/images/photographs.jpg`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import hf_cam
from hf_cam.demo import PHOTOGRAPHS

HEIGHT, GAP = 300, 8
SHOWN = ("coffee", "camera", "motorcycle", "flower")


def main() -> None:
    images = [photograph.image() for photograph in PHOTOGRAPHS if photograph.name in SHOWN]
    found = [explanations[0].overlay() for explanations in hf_cam.explain(images, "demo:imagenet")]
    rows = [[_scaled(image) for image in row] for row in (images, found)]
    width = sum(image.width for image in rows[0]) + GAP * (len(images) - 1)
    sheet = Image.new("RGB", (width, 2 * HEIGHT + GAP), "white")
    for i, row in enumerate(rows):
        left = 0
        for image in row:
            sheet.paste(image, (left, i * (HEIGHT + GAP)))
            left += image.width + GAP
    path = Path(__file__).parent / "images" / "photographs.jpg"
    sheet.save(path, quality=88)
    print(path)


def _scaled(image: Image.Image) -> Image.Image:
    return image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
