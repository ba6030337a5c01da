"""Scenes with known ground truth: real clothing pictures, tinted and placed on textured backgrounds.

Every scene has labels, boxes, instance and class masks and a caption. Scenes are drawn in vectorized blocks of 64 and
deterministically: block `i` depends only on `(split, seed, i)`, so a longer sequence starts with the scenes of a
shorter one.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

Split = Literal["train", "test"]
Size = tuple[int, int]

ROOT = Path(os.environ.get("HF_CAM_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
"""The folder of Fashion-MNIST: `$HF_CAM_FASHION_MNIST`, or that of Debian's package `dataset-fashion-mnist`."""

PREFIXES: dict[Split, str] = {"train": "train", "test": "t10k"}
"""Prefixes of each split's files, `<prefix>-images-idx3-ubyte.gz` and `<prefix>-labels-idx1-ubyte.gz`."""

LABELS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
TINTS: dict[str, tuple[float, float, float]] = {
    "": (0.92, 0.92, 0.92),
    "red": (0.95, 0.12, 0.12),
    "green": (0.10, 0.80, 0.18),
    "blue": (0.15, 0.30, 1.00),
    "yellow": (0.98, 0.90, 0.10),
    "purple": (0.65, 0.15, 0.90),
    "orange": (1.00, 0.52, 0.05),
}
"""RGB in [0, 1] of each named colour; the empty name stands for untinted, which captions do not mention."""
COLORS = tuple(TINTS)

SIZE: Size = (96, 128)
MAX_ITEMS = 4
BLOCK = 64

_CANDIDATES = 24
_MAX_OVERLAP = 0.10
_WINDOW = 56


def phrase(label: int, color: int) -> str:
    """The words for one item in a caption: `phrase(8, 1) == "a red bag"`, `phrase(9, 0) == "an ankle boot"`."""
    words = f"{COLORS[color]} {LABELS[label]}".strip()
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(phrases: Sequence[str]) -> str:
    """A phrase that names every item: `"a sneaker, a dress and a red bag"`."""
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


PROMPTS = tuple(phrase(label, color) for label in range(len(LABELS)) for color in range(len(COLORS)))
"""Every garment, untinted and in every colour: 70 phrases, with colours varying fastest."""


@dataclass(frozen=True)
class Items:
    """The raw pictures of one split.

    `pictures` is uint8 `(N, 28, 28)`, `labels` int64 `(N,)` with values in `[0, 10)`.
    """

    pictures: torch.Tensor
    labels: torch.Tensor


@lru_cache(maxsize=4)
def load_items(split: Split, root: Path = ROOT) -> Items:
    """The pictures of one split of Fashion-MNIST, read from two gzipped idx files.

    Raises:
        FileNotFoundError: the dataset is not installed at `root`.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"no Fashion-MNIST at {root}: apt-get install dataset-fashion-mnist, "
            "or set HF_CAM_FASHION_MNIST to the folder of its four files"
        )
    pictures = _read_idx(root / f"{PREFIXES[split]}-images-idx3-ubyte.gz", header=16).reshape(-1, 28, 28)
    labels = _read_idx(root / f"{PREFIXES[split]}-labels-idx1-ubyte.gz", header=8)
    return Items(torch.from_numpy(pictures), torch.from_numpy(labels).long())


def _read_idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header).copy()


@dataclass(frozen=True)
class Scene:
    """One scene and its ground truth.

    `image` is uint8 `(H, W, 3)`. `labels` and `colors` are indices into `LABELS` and `COLORS`, one per item. `boxes`
    is float32 `(N, 4)`: x0, y0, x1, y1 in pixels, tight around the visible part. `instances` is uint8 `(H, W)`: 0 is
    background, `1 + n` is item n. `classes` is uint8 `(H, W)`: 0 is background, `1 + label` is that label.
    """

    image: np.ndarray
    labels: tuple[int, ...]
    colors: tuple[int, ...]
    boxes: np.ndarray
    instances: np.ndarray
    classes: np.ndarray

    @property
    def phrases(self) -> tuple[str, ...]:
        """One phrase per item, in the order of `labels`."""
        return tuple(map(phrase, self.labels, self.colors))

    @property
    def caption(self) -> str:
        """The phrases joined into one caption."""
        return caption(self.phrases)


@dataclass(frozen=True)
class SceneBatch:
    """Scenes as tensors, with items in padded slots; an empty slot has label -1, color -1 and a zero box.

    `images` uint8 `(B, 3, H, W)`, `labels` and `colors` int64 `(B, 4)`, `boxes` float32 `(B, 4, 4)` in pixels,
    `instances` and `classes` int64 `(B, H, W)` as in `Scene`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    colors: torch.Tensor
    boxes: torch.Tensor
    instances: torch.Tensor
    classes: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> SceneBatch:
        """The same batch on another device."""
        return SceneBatch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))

    def sample(self, indices: Sequence[int]) -> SceneBatch:
        """The scenes at these indices."""
        return SceneBatch(*(tensor[list(indices)] for tensor in vars(self).values()))

    def multi_hot(self) -> torch.Tensor:
        """Which labels occur: float32 `(B, 10)` of zeros and ones."""
        return F.one_hot(self.labels + 1, len(LABELS) + 1).amax(1)[:, 1:].float()

    def true_prompts(self) -> torch.Tensor:
        """Which of `PROMPTS` are true, bool `(B, 70)`: a scene with "a red bag" also has "a bag"."""
        truth = torch.zeros(len(self), len(PROMPTS) + 1, dtype=torch.bool, device=self.labels.device)
        for colors in (self.colors, torch.zeros_like(self.colors)):
            truth.scatter_(1, torch.where(self.labels >= 0, self.labels * len(COLORS) + colors, len(PROMPTS)), True)
        return truth[:, :-1]

    def scene(self, index: int) -> Scene:
        """One scene of the batch, without its empty slots and with its items numbered from 0."""
        kept = (self.labels[index] >= 0).nonzero()[:, 0]
        renumber = torch.zeros(MAX_ITEMS + 1, dtype=torch.uint8)
        renumber[kept + 1] = torch.arange(1, len(kept) + 1, dtype=torch.uint8)
        return Scene(
            image=self.images[index].permute(1, 2, 0).contiguous().numpy(),
            labels=tuple(self.labels[index, kept].tolist()),
            colors=tuple(self.colors[index, kept].tolist()),
            boxes=self.boxes[index, kept].numpy(),
            instances=renumber[self.instances[index]].numpy(),
            classes=self.classes[index].to(torch.uint8).numpy(),
        )


@dataclass(frozen=True)
class SceneBlocks(Dataset[SceneBatch]):
    """An endless sequence of `SceneBatch`es, as a map-style dataset that loader workers can share.

    Args:
        split: the pictures to draw from; the two splits have none in common.
        seed: the same seed gives the same scenes.
        size: height and width of the scenes in pixels, at least 48 each.
        max_items: a scene has 1 to this many items, or fewer if there is no free place for one.
        block: scenes in a batch.
        root: the folder of the raw dataset.
    """

    split: Split
    seed: int = 0
    size: Size = SIZE
    max_items: int = MAX_ITEMS
    block: int = BLOCK
    root: Path = ROOT

    def __getitem__(self, number: int) -> SceneBatch:
        """Draw the batch with this number."""
        rng = np.random.default_rng([list(PREFIXES).index(self.split), self.seed, number])
        return draw(load_items(self.split, self.root), self.block, self.size, self.max_items, rng)


def scenes(
    split: Split, count: int, seed: int = 0, *, size: Size = SIZE, max_items: int = MAX_ITEMS, root: Path = ROOT
) -> list[Scene]:
    """The first `count` scenes of the sequence with this seed; see `SceneBlocks` for the arguments."""
    blocks = SceneBlocks(split, seed, size, max_items, root=root)
    return [batch.scene(i) for block in range(-(-count // BLOCK)) for batch in (blocks[block],) for i in range(BLOCK)][
        :count
    ]


def draw(items: Items, count: int, size: Size, max_items: int, rng: np.random.Generator) -> SceneBatch:
    """Draw `count` scenes: choose items and places, paste them on a background, derive the truth from the result."""
    centers, extents, placed = _layout(count, size, max_items, rng)
    scene_of, slot_of = torch.from_numpy(placed).nonzero(as_tuple=True)
    chosen = torch.from_numpy(rng.integers(len(items.labels), size=(count, MAX_ITEMS)))[scene_of, slot_of]
    # One item in four stays grey, so that training also shows plain "a bag".
    colors = torch.from_numpy(rng.choice(len(COLORS), p=[0.25, *[0.125] * 6], size=(count, MAX_ITEMS)))[
        scene_of, slot_of
    ]
    angles = torch.from_numpy(rng.uniform(-0.25, 0.25, (count, MAX_ITEMS)))[scene_of, slot_of]
    mirrored = torch.from_numpy(rng.random((count, MAX_ITEMS)) < 0.5)[scene_of, slot_of]
    window = _place(
        items.pictures[chosen],
        torch.from_numpy(centers)[scene_of, slot_of],
        torch.from_numpy(extents)[scene_of, slot_of],
        angles,
        mirrored,
        size,
    )
    images = _backgrounds(count, size, rng)
    instances = torch.zeros(count, *size, dtype=torch.long)
    tints = torch.tensor(list(TINTS.values()))[colors]
    for slot in range(max_items):
        now = slot_of == slot
        _paste(images, instances, scene_of[now], slot, window.select(now), tints[now])
    labels = torch.full((count, MAX_ITEMS), -1)
    labels[scene_of, slot_of] = items.labels[chosen]
    tinted = torch.full((count, MAX_ITEMS), -1)
    tinted[scene_of, slot_of] = colors
    of_instance = torch.cat([torch.zeros(count, 1, dtype=torch.long), labels + 1], 1)
    return SceneBatch(
        images=(images * 255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 3, 1, 2).contiguous(),
        labels=labels,
        colors=tinted,
        boxes=_boxes(instances) * (labels >= 0)[..., None],
        instances=instances,
        classes=of_instance.gather(1, instances.flatten(1)).view_as(instances),
    )


def _layout(
    count: int, size: Size, max_items: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The layout: centres and extents `(B, 4, 2)` as y, x in pixels, and which slots are used `(B, 4)`.

    Of 24 random places, each item takes the one that overlaps least with the items before it. If even that overlaps by
    more than a tenth of the smaller item, the slot stays empty.
    """
    wanted = rng.integers(1, max_items + 1, count)
    side = rng.uniform(30, np.where(wanted > 2, 40, 46)[:, None], (count, MAX_ITEMS))
    aspect = np.exp(rng.uniform(-0.1, 0.1, (count, MAX_ITEMS)))
    extents = np.stack([side * aspect, side / aspect], -1).clip(max=47)
    free = np.array(size) - extents
    tries = rng.random((count, MAX_ITEMS, _CANDIDATES, 2)) * free[:, :, None] + extents[:, :, None] / 2
    centers = np.zeros((count, MAX_ITEMS, 2))
    placed = np.zeros((count, MAX_ITEMS), bool)
    for slot in range(max_items):
        overlap = np.zeros((count, _CANDIDATES))
        for other in range(slot):
            reach = (extents[:, slot] + extents[:, other])[:, None] / 2
            shared = (reach - np.abs(tries[:, slot] - centers[:, other, None])).clip(0).prod(-1)
            smaller = np.minimum(extents[:, slot].prod(-1), extents[:, other].prod(-1))[:, None]
            overlap = np.maximum(overlap, shared / smaller * placed[:, other, None])
        best = overlap.argmin(1)
        centers[:, slot] = tries[np.arange(count), slot, best]
        placed[:, slot] = (overlap.min(1) <= _MAX_OVERLAP) & (slot < wanted)
    return centers, extents, placed


@dataclass(frozen=True)
class _Window:
    """Items in scene pixels: `shade` and `alpha` `(N, h, w)` in [0, 1], at `rows` `(N, h)` and `columns` `(N, w)`."""

    shade: torch.Tensor
    alpha: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    def select(self, mask: torch.Tensor) -> _Window:
        return _Window(*(tensor[mask] for tensor in vars(self).values()))


def _place(
    pictures: torch.Tensor,
    centers: torch.Tensor,
    extents: torch.Tensor,
    angles: torch.Tensor,
    mirrored: torch.Tensor,
    size: Size,
) -> _Window:
    """Scale, turn, mirror and move pictures uint8 `(N, 28, 28)` into windows of the scene."""
    shade = pictures[:, None].float() / 255
    # Garments contain pixels of value 0. Morphological closing keeps those, but leaves a bag's handle open.
    solid = F.pad((shade > 0.03).float(), (1, 1, 1, 1))
    solid = -F.max_pool2d(-F.max_pool2d(solid, 3, 1, 1), 3, 1, 1)[..., 1:-1, 1:-1]
    shape = torch.tensor([min(_WINDOW, size[0]), min(_WINDOW, size[1])])
    origin = (centers - shape / 2).round().clamp(min=torch.zeros(2), max=(torch.tensor(size) - shape).double()).long()
    rows = origin[:, :1] + torch.arange(int(shape[0]))
    columns = origin[:, 1:] + torch.arange(int(shape[1]))
    y = ((rows + 0.5 - centers[:, :1]) * 2 / extents[:, :1])[:, :, None]
    x = ((columns + 0.5 - centers[:, 1:]) * 2 / extents[:, 1:])[:, None, :]
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    flip = torch.where(mirrored, -1.0, 1.0)[:, None, None]
    grid = torch.stack([(cos * x + sin * y) * flip, cos * y - sin * x], -1).float()
    sampled = F.grid_sample(torch.cat([shade, solid], 1), grid, align_corners=False)
    return _Window(sampled[:, 0], sampled[:, 1], rows, columns)


def _paste(
    images: torch.Tensor,
    instances: torch.Tensor,
    scene_of: torch.Tensor,
    slot: int,
    window: _Window,
    tints: torch.Tensor,
) -> None:
    """Blend one item per scene into `images` and mark it as `1 + slot` in `instances`, both in place."""
    _, height, width, _ = images.shape
    where = (
        (scene_of[:, None, None] * height + window.rows[:, :, None]) * width + window.columns[:, None, :]
    ).flatten()
    alpha = window.alpha.flatten()[:, None]
    paint = (tints[:, None] * (0.25 + 0.75 * window.shade.flatten(1)[..., None])).flatten(0, 1)
    pixels, marks = images.view(-1, 3), instances.view(-1)
    pixels.index_copy_(0, where, pixels[where].lerp_(paint, alpha))
    marks.index_fill_(0, where[alpha[:, 0] > 0.5], slot + 1)


def _backgrounds(count: int, size: Size, rng: np.random.Generator) -> torch.Tensor:
    """Muted colour, soft blotches, stripes and grain: float32 `(B, H, W, 3)` in about [0, 0.8]."""
    height, width = size
    base = rng.uniform(0.12, 0.5, (count, 1, 1, 1)) + rng.uniform(-0.1, 0.1, (count, 3, 1, 1))
    blotches = torch.from_numpy(rng.normal(0, 0.07, (count, 3, 5, 7)).astype(np.float32))
    soft = F.interpolate(blotches, size, mode="bilinear", align_corners=True)
    turn, period, phase, strength = (
        torch.from_numpy(rng.uniform(low, high, (count, 1, 1, 1)).astype(np.float32))
        for low, high in ((0, np.pi), (5, 24), (0, 2 * np.pi), (0, 0.08))
    )
    y, x = torch.arange(height)[:, None], torch.arange(width)
    stripes = strength * torch.sin((turn.cos() * x + turn.sin() * y) * 2 * np.pi / period + phase)
    grain = torch.from_numpy(rng.random((count, 1, height, width), dtype=np.float32)) * 0.08 - 0.04
    return (torch.from_numpy(base.astype(np.float32)) + soft + (stripes + grain)).permute(0, 2, 3, 1).contiguous()


def _boxes(instances: torch.Tensor) -> torch.Tensor:
    """Tight boxes `(B, 4, 4)` of the instances 1 to 4 in `(B, H, W)`: x0, y0, x1, y1, with x1 and y1 exclusive."""
    edges = []
    for slot in range(MAX_ITEMS):
        mask = instances == slot + 1
        for axis in (1, 2):
            occupied = mask.any(axis).to(torch.uint8)
            edges += [occupied.argmax(1), occupied.shape[1] - occupied.flip(1).argmax(1)]
    x0_x1_y0_y1 = torch.stack(edges, 1).view(len(instances), MAX_ITEMS, 4)
    return x0_x1_y0_y1[..., [0, 2, 1, 3]].float()
