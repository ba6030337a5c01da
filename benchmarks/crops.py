"""How well nouns and colours can be recognized at all in scenes: a small network that sees each item's own crop.

    python -m benchmarks.crops [--scenes 8192] [--epochs 6] [--held-out 1024]

A model that reads whole scenes must also find the items, so this is about the most that it can reach. Trained on scenes
of the training pictures, judged on the held-out scenes of `zoo_quality`, of which those without a clear order from left
to right are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from benchmarks.dialogues import in_clear_order
from benchmarks.scenes import BLOCK, COLORS, LABELS, SceneBatch, SceneBlocks
from benchmarks.zoo_recipes import normalize

SIDE = 32
BATCH = 128
SEED = 11


def crops(batches: Iterable[SceneBatch]) -> tuple[Tensor, Tensor, Tensor]:
    """Every item's crop `(N, 3, 32, 32)` in [-1, 1], its label `(N,)` and its colour `(N,)`."""
    found = []
    for batch in batches:
        clear = [i for i in range(len(batch)) if in_clear_order(batch.scene(i))]
        batch = batch.sample(clear)
        there = batch.labels >= 0
        boxes = [box[kept] for box, kept in zip(batch.boxes, there, strict=True)]
        cut = roi_align(normalize(batch.images), boxes, SIDE, sampling_ratio=2)
        found.append((cut, batch.labels[there], batch.colors[there]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def network() -> nn.Sequential:
    """Three convolutions, and one output per label and colour."""
    layers: list[nn.Module] = []
    for before, after in ((3, 24), (24, 48), (48, 96)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 16, len(LABELS) + len(COLORS)))


def train(model: nn.Module, pictures: Tensor, labels: Tensor, colors: Tensor, epochs: int) -> None:
    """Learn from crops, half of them mirrored."""
    steps = epochs * (len(pictures) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(pictures))[: len(pictures) // BATCH * BATCH].split(BATCH):
            shown = pictures[chosen]
            shown = torch.where(torch.rand(len(shown), 1, 1, 1) < 0.5, shown, shown.flip(-1))
            nouns, tints = model(shown).split([len(LABELS), len(COLORS)], 1)
            loss = F.cross_entropy(nouns, labels[chosen]) + F.cross_entropy(tints, colors[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def accuracies(model: nn.Module, pictures: Tensor, labels: Tensor, colors: Tensor) -> tuple[float, float]:
    """The share of right nouns, and of right colours among the tinted items."""
    nouns, tints = model.eval()(pictures).split([len(LABELS), len(COLORS)], 1)
    tinted = colors > 0
    right = (nouns.argmax(1) == labels, (tints.argmax(1) == colors)[tinted])
    return float(right[0].float().mean()), float(right[1].float().mean())


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=8192)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--held-out", type=int, default=1024)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    source, held_out = SceneBlocks("train", SEED), SceneBlocks("test")
    model = network()
    train(model, *crops(source[i] for i in range(options.scenes // BLOCK)), options.epochs)
    judged = crops(held_out[i] for i in range(options.held_out // BLOCK))
    nouns, colors = accuracies(model, *judged)
    print(f"{len(judged[1])} items: nouns {nouns:.3f}, colours {colors:.3f}")


if __name__ == "__main__":
    main()
