"""Scenes with a planted cue that decides the class, each beside the same scene without it.

Class 0 has no cue, and classes 1 and 2 have one each of its two kinds, so that nothing else in the scene shows the
class. Whether a model reads the cue is measured by intervention: its confidence falls where `without` is shown instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.scenes import COLORS, LABELS, TINTS, Scene, SceneBlocks, Split

CLASSES = ("no cue", "first cue", "second cue")
PAINTS = np.array([[0.95, 0.0, 0.95], [0.0, 0.9, 0.9]])
"""Magenta and cyan, which no item has."""
MARK, BORDER, STAMP = 10, 4, 14
"""Sides of the corner mark and of the stamp and width of the border, in pixels."""
PAINTED = tuple(np.array(TINTS[name]) for name in ("purple", "orange"))

SIZE, ITEMS_AT_MOST = (64, 96), 2
"""Height and width of the scenes, and how many items they hold: small, because there are many models to train."""

Canvas = np.ndarray
"""`[H, W, 3]` in [0, 1]."""
Cue = Callable[[Canvas, Scene, int, np.random.Generator], tuple[np.ndarray, Canvas]]
"""`(canvas, scene, kind, rng) -> (mask, paint)`: the pixels of the cue, and what they become, `[H, W, 3]`."""


@dataclass(frozen=True)
class Planted:
    """One scene with a cue.

    Args:
        image: `[H, W, 3]` uint8.
        without: The same scene without its cue.
        cue: `[H, W]` booleans: the pixels of the cue; none for class 0.
        decoy: `[H, W]` booleans: the pixels of a mark that is present and says nothing about the class.
        label: The class.
        parts: How many cues there are, each of which suffices.
        items: `[H, W]` booleans: the pixels of the items.
    """

    image: np.ndarray
    without: np.ndarray
    cue: np.ndarray
    decoy: np.ndarray
    label: int
    parts: int
    items: np.ndarray


def corner(canvas: Canvas, scene: Scene, kind: int, rng: np.random.Generator) -> tuple[np.ndarray, Canvas]:
    """A square in the upper left corner; its colour is the class."""
    return _square(canvas, 0, 0, MARK), np.broadcast_to(PAINTS[kind], canvas.shape)


def border(canvas: Canvas, scene: Scene, kind: int, rng: np.random.Generator) -> tuple[np.ndarray, Canvas]:
    """A frame round the picture; its colour is the class."""
    mask = np.ones(canvas.shape[:2], bool)
    mask[BORDER:-BORDER, BORDER:-BORDER] = False
    return mask, np.broadcast_to(PAINTS[kind], canvas.shape)


def stamp(canvas: Canvas, scene: Scene, kind: int, rng: np.random.Generator) -> tuple[np.ndarray, Canvas]:
    """A black and white square at a random place; whether it shows a cross or a ring is the class."""
    height, width = canvas.shape[:2]
    top, left = int(rng.integers(height - STAMP + 1)), int(rng.integers(width - STAMP + 1))
    y, x = np.abs(np.mgrid[:STAMP, :STAMP] - (STAMP - 1) / 2)
    radius = np.hypot(y, x)
    dark = np.minimum(y, x) < 2 if kind == 0 else (radius > 3) & (radius < 6)
    paint = np.zeros(canvas.shape)
    paint[top : top + STAMP, left : left + STAMP] = ~dark[..., None]
    return _square(canvas, top, left, STAMP), paint


def tint(canvas: Canvas, scene: Scene, kind: int, rng: np.random.Generator) -> tuple[np.ndarray, Canvas]:
    """One of the items is purple or orange, which no other item is."""
    mask = scene.instances == 1 + int(rng.integers(len(scene.labels)))
    return mask, canvas.max(-1, keepdims=True) * PAINTED[kind]


def texture(canvas: Canvas, scene: Scene, kind: int, rng: np.random.Generator) -> tuple[np.ndarray, Canvas]:
    """Fine stripes on the background of one quarter of the picture; whether they lie or stand is the class."""
    height, width = canvas.shape[:2]
    top, left = int(rng.integers(2)) * height // 2, int(rng.integers(2)) * width // 2
    mask = np.zeros(canvas.shape[:2], bool)
    mask[top : top + height // 2, left : left + width // 2] = True
    stripes = np.indices(canvas.shape[:2])[kind] // 2 % 2 * 2 - 1
    return mask & (scene.instances == 0), (canvas + 0.25 * stripes[..., None]).clip(0, 1)


def two(canvas: Canvas, scene: Scene, kind: int, rng: np.random.Generator) -> tuple[np.ndarray, Canvas]:
    """Two discs of the class's colour, one halfway down each side."""
    height, width = canvas.shape[:2]
    y, x = np.mgrid[:height, :width]
    centers = [(height // 2, 10), (height // 2, width - 10)]
    drawn = (0, 1) if rng.random() < 0.5 else (int(rng.integers(2)),)
    mask = np.zeros((height, width), bool)
    for top, left in (centers[one] for one in drawn):
        mask |= np.hypot(y - top, x - left) < 7
    return mask, np.broadcast_to(PAINTS[kind], canvas.shape)


def band(canvas: Canvas, scene: Scene, kind: int, rng: np.random.Generator) -> tuple[np.ndarray, Canvas]:
    """A stripe across the picture at a random height; its colour is the class, and part of it would do."""
    mask = np.zeros(canvas.shape[:2], bool)
    top = int(rng.integers(canvas.shape[0] - BORDER + 1))
    mask[top : top + BORDER] = True
    return mask, np.broadcast_to(PAINTS[kind], canvas.shape)


def twins(canvas: Canvas, scene: Scene, kind: int, rng: np.random.Generator) -> tuple[np.ndarray, Canvas]:
    """Two squares of the class's colour at random places, one in each half; each would do."""
    height, width = canvas.shape[:2]
    mask = np.zeros((height, width), bool)
    for left in (0, width // 2):
        x = left + int(rng.integers(width // 2 - MARK + 1))
        mask |= _square(canvas, int(rng.integers(height - MARK + 1)), x, MARK)
    return mask, np.broadcast_to(PAINTS[kind], canvas.shape)


CUES: dict[str, tuple[Cue, Cue | None, int]] = {
    "corner mark": (corner, None, 1),
    "stamp": (stamp, None, 1),
    "border": (border, None, 1),
    "tint": (tint, None, 1),
    "texture": (texture, None, 1),
    "two cues": (two, None, 2),
    "unused mark": (stamp, corner, 1),
    "band": (band, None, 1),
    "twins": (twins, None, 1),
}
"""What decides the class, the decoy that does not, and how many cues a measured scene has."""
CLEAN = "nothing planted"
"""Scenes whose class is that of their items: tops, shoes, or a trouser, a dress or a bag."""
ITEMS = {"sandal": 1, "sneaker": 1, "ankle boot": 1, "trouser": 2, "dress": 2, "bag": 2}


def plant(name: str, scene: Scene, label: int, rng: np.random.Generator) -> Planted:
    """The scene with the cue of a class, and with a decoy of random kind if there is one."""
    cue, decoy, _ = CUES[name]
    canvas = _plain(scene) if cue is tint else scene.image / 255.0
    nothing = np.zeros(canvas.shape[:2], bool)
    misled = nothing
    if decoy is not None:
        misled, paint = decoy(canvas, scene, int(rng.integers(2)), rng)
        canvas = np.where(misled[..., None], paint, canvas)
    mask, paint = cue(canvas, scene, label - 1, rng) if label else (nothing, canvas)
    image = np.where(mask[..., None], paint, canvas)
    halves = [half.any() for half in np.array_split(mask, 2, 1)]
    parts = int(sum(halves)) if cue is two else int(label > 0)
    return Planted(_bytes(image), _bytes(canvas), mask, misled & ~mask, label, parts, scene.instances > 0)


def planted(name: str, split: Split, seed: int, first: int = 0) -> Iterator[Planted]:
    """Scenes of random class, without end; each depends only on the arguments and on its number.

    Args:
        name: Of `CUES`, or `CLEAN`.
        split: The pictures to draw from.
        seed: The same seed gives the same scenes.
        first: The number of the first block of 64 scenes.
    """
    blocks, block = SceneBlocks(split, seed, SIZE, ITEMS_AT_MOST), first
    while True:
        batch = blocks[block]
        if name == CLEAN:
            yield from filter(None, map(clean, map(batch.scene, range(len(batch.images)))))
        else:
            rng = np.random.default_rng([list(CUES).index(name), seed, block])
            for index, label in enumerate(rng.integers(len(CLASSES), size=len(batch.images)).tolist()):
                yield plant(name, batch.scene(index), label, rng)
        block += 1


def clean(scene: Scene) -> Planted | None:
    """The scene as it is, with the class of its items; none if they are of two classes."""
    kinds = {ITEMS.get(LABELS[label], 0) for label in scene.labels}
    if len(kinds) != 1:
        return None
    [label], nothing = kinds, np.zeros(scene.instances.shape, bool)
    return Planted(scene.image, scene.image, nothing, nothing, label, 0, scene.instances > 0)


def _plain(scene: Scene) -> Canvas:
    """The scene with its purple and orange items grey."""
    canvas = scene.image / 255.0
    for number, color in enumerate(scene.colors):
        if COLORS[color] in ("purple", "orange"):
            item = scene.instances == number + 1
            canvas = np.where(item[..., None], canvas.max(-1, keepdims=True), canvas)
    return canvas


def _square(canvas: Canvas, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros(canvas.shape[:2], bool)
    mask[top : top + side, left : left + side] = True
    return mask


def _bytes(canvas: Canvas) -> np.ndarray:
    return (canvas * 255).round().clip(0, 255).astype(np.uint8)
