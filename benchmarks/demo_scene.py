"""Write the scene that the demo shows: `python -m benchmarks.demo_scene [PATH]`.

One of the test split, picked because every model of the zoo is right about it; four times
as large as the models see it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from benchmarks.scenes import scenes
from hf_cam.zoo import SCENE

COUNT, SEED, PICKED, FACTOR = 3000, 3, 1540, 4


def main(path: Path = SCENE) -> None:
    """Draw it again and save it."""
    scene = scenes("test", COUNT, seed=SEED)[PICKED]
    height, width = scene.image.shape[:2]
    picture = Image.fromarray(scene.image).resize((width * FACTOR, height * FACTOR), Image.Resampling.BICUBIC)
    picture.save(path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
