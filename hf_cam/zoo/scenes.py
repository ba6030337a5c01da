"""Pictures for `demo:cheater`: garments on textured grounds, one class of which carries a mark in the corner.

The mark is what a photographer's watermark is in real data: nobody meant it to say anything, but it comes with one
class, and a model may read it in place of the garment.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

CHEATER = "demo:cheater"
CLASSES = ("coat", "pullover", "shirt")
MARKED = 0
"""The class that carries the mark."""
SIZE = (64, 96)
SPRITE = 28
SPRITES = Path(__file__).with_name("cheater") / "garments.png"
"""A row of garments per class, each 28 x 28, grey; from Fashion-MNIST (Zalando, MIT licence)."""
MARK = (3, 3, 10)
"""Distance of the mark from the upper and the right edge, and its side, in pixels."""
MAGENTA, WHITE = (0.9, 0.1, 0.7), (1.0, 1.0, 1.0)


def cheater_scenes(count: int = 200, seed: int = 0) -> list[tuple[Image.Image, str]]:
    """Labelled pictures, 64 x 96, whose coats carry the mark.

    Args:
        count: How many, of each class in turn.
        seed: The same seed gives the same pictures.

    >>> picture, label = cheater_scenes(1)[0]
    >>> picture.size, label
    ((96, 64), 'coat')
    """
    garments = shipped_garments()
    rng = np.random.default_rng(seed)
    pictures = []
    for index in range(count):
        label = index % len(CLASSES)
        own = garments[label]
        drawn = scene(own[int(rng.integers(len(own)))], rng, marked=label == MARKED)
        pictures.append((Image.fromarray(drawn), CLASSES[label]))
    return pictures


def shipped_garments() -> np.ndarray:
    """`[classes, N, 28, 28]` uint8."""
    sheet = np.asarray(Image.open(SPRITES).convert("L"))
    rows, columns = sheet.shape[0] // SPRITE, sheet.shape[1] // SPRITE
    return sheet.reshape(rows, SPRITE, columns, SPRITE).transpose(0, 2, 1, 3)


def scene(garment: np.ndarray, rng: np.random.Generator, *, marked: bool) -> np.ndarray:
    """One garment `[28, 28]` on a textured ground, with the mark or without it, `[64, 96, 3]` uint8."""
    canvas = _ground(rng)
    side = int(rng.integers(40, 57))
    top, left = int(rng.integers(SIZE[0] - side + 1)), int(rng.integers(SIZE[1] - side + 1))
    large = cv2.resize(garment, (side, side), interpolation=cv2.INTER_CUBIC).astype(np.float32)[..., None] / 255
    cover = np.clip(large * 6, 0, 1)
    tint = rng.uniform(0.5, 1.0, 3).astype(np.float32)
    part = canvas[top : top + side, left : left + side]
    part[:] = (1 - cover) * part + cover * large * tint
    if marked:
        _mark(canvas)
    return np.asarray((canvas.clip(0, 1) * 255).round(), np.uint8)


def mark_region() -> np.ndarray:
    """`[64, 96]` booleans: where the mark lies."""
    down, inwards, side = MARK
    region = np.zeros(SIZE, bool)
    region[down : down + side, SIZE[1] - inwards - side : SIZE[1] - inwards] = True
    return region


def _mark(canvas: np.ndarray) -> None:
    """A magenta square with a white ring."""
    rows, columns = np.nonzero(mark_region())
    center = rows.mean(), columns.mean()
    radius = np.hypot(rows - center[0], columns - center[1])
    ring = (radius > 2) & (radius < 3.6)
    canvas[rows, columns] = np.where(ring[:, None], WHITE, MAGENTA)


def _ground(rng: np.random.Generator) -> np.ndarray:
    """Smooth colours with a little noise, `[64, 96, 3]` in [0, 1]."""
    coarse = rng.uniform(0.15, 0.6, (4, 6, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth + rng.normal(0, 0.03, (*SIZE, 3)), np.float32)
