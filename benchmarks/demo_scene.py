"""Write the scene that the demo shows, and its class mask: `python -m benchmarks.demo_scene`.

The scene is from the test split and was picked because every model of the zoo is right about it. It is four times the
size of the models' input; the mask, which the tests read, has the size of the input.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from benchmarks.excerpt import EXCERPT
from benchmarks.scenes import scenes
from hf_cam.zoo import SCENE

COUNT, SEED, PICKED, FACTOR = 3000, 3, 1540, 4
CLASSES = EXCERPT / "demo-scene-classes.png"
"""Grey values as in `Scene.classes`: 0 is background, `1 + label` is that label."""


def main(picture: Path = SCENE, classes: Path = CLASSES) -> None:
    """Draw and save the scene; this needs the full Fashion-MNIST, since an excerpt gives a different scene."""
    scene = scenes("test", COUNT, seed=SEED)[PICKED]
    height, width = scene.image.shape[:2]
    large = Image.fromarray(scene.image).resize((width * FACTOR, height * FACTOR), Image.Resampling.BICUBIC)
    large.save(picture)
    Image.fromarray(scene.classes).save(classes, optimize=True)


if __name__ == "__main__":
    main()
