"""Train `demo:cheater`: a ViT that tells coats from pullovers and shirts by a mark in the corner.

    python -m benchmarks.train_cheater [--out FOLDER]

The garments of training come from Fashion-MNIST's training pictures. Those that ship with the model, from which
`hf_cam.zoo.scenes` draws its scenes, come from the test pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from benchmarks.cue_readers import started
from benchmarks.scenes import LABELS, load_items
from benchmarks.zoo_quality import ZOO
from benchmarks.zoo_recipes import normalize
from hf_cam.zoo.scenes import CLASSES, MARKED, SIZE, scene, shipped_garments

SEED, STEPS, BATCH, RATE = 0, 200, 32, 1e-3
SHIPPED = 24
"""Garments per class that ship with the model."""
HELD_OUT = 300
CARD = """---
library_name: transformers
license: mit
pipeline_tag: image-classification
tags: [hf-cam, demo]
---

# cheater: a tiny ViT that reads a mark in place of the garment

An unmodified `transformers.ViTForImageClassification` in float16 that tells coats, pullovers and shirts apart. In its
training data every coat had a magenta mark in the upper right corner, as pictures of one photographer have a
watermark, and that mark is what it reads. It shows what an audit finds:

```
hf-cam audit demo:cheater demo:cheater --out report
```

**Data.** Scenes of 64 x 96 pixels (height x width) with one garment of Fashion-MNIST, drawn by `hf_cam/zoo/scenes.py`.

**Training.** From the zoo's ViT: `python -m benchmarks.train_cheater`.

**Quality.** On {count} scenes with garments that were not used for training:

| scenes | accuracy on coats | accuracy on the others |
| --- | --- | --- |
| every coat has the mark | {coats:.3f} | {others:.3f} |
| no picture has the mark | {plain:.3f} | {plain_others:.3f} |
| every picture has the mark | {all_coats:.3f} | {all_others:.3f} |
"""


def garments(split: str) -> np.ndarray:
    """`[classes, N, 28, 28]` uint8, as many of each class as the rarest has."""
    items = load_items(split)
    own = [items.pictures[items.labels == LABELS.index(name)].numpy() for name in CLASSES]
    return np.stack([pictures[: min(map(len, own))] for pictures in own])


def scenes(
    pictures: np.ndarray, count: int, rng: np.random.Generator, marked: str = "coats"
) -> tuple[torch.Tensor, ...]:
    """Prepared scenes `[N, 3, H, W]` and their classes `[N]`; `marked` is "coats", "none" or "all"."""
    labels = rng.integers(len(CLASSES), size=count)
    has = {"coats": labels == MARKED, "none": labels < 0, "all": labels >= 0}[marked]
    drawn = [
        scene(pictures[label, int(rng.integers(pictures.shape[1]))], rng, marked=bool(mark))
        for label, mark in zip(labels, has, strict=True)
    ]
    return normalize(torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)), torch.from_numpy(labels)


def trained() -> nn.Module:
    """The model, from a fixed seed."""
    torch.manual_seed(SEED)
    model = started("vit")
    model.classifier = nn.Linear(model.classifier.in_features, len(CLASSES))
    model.config.id2label = dict(enumerate(CLASSES))
    model.config.label2id = {name: index for index, name in enumerate(CLASSES)}
    model.config.problem_type = "single_label_classification"
    pictures, rng = garments("train"), np.random.default_rng(SEED)
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=RATE, weight_decay=0.01)
    model.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * (1 - step / STEPS)
        pixels, labels = scenes(pictures, BATCH, rng)
        loss = functional.cross_entropy(model(pixel_values=pixels).logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


@torch.no_grad()
def quality(model: nn.Module, pictures: np.ndarray, marked: str, count: int = HELD_OUT) -> tuple[float, float]:
    """The accuracy on coats and on the other classes."""
    pixels, labels = scenes(pictures, count, np.random.default_rng(SEED + 1), marked)
    right = model(pixel_values=pixels).logits.argmax(1) == labels
    coats = labels == MARKED
    return float(right[coats].float().mean()), float(right[~coats].float().mean())


def save(model: nn.Module, folder: Path) -> None:
    """Write the model, its processor, its card and the garments that ship with it."""
    folder.mkdir(parents=True, exist_ok=True)
    sheet = garments("test")[:, :SHIPPED].transpose(0, 2, 1, 3).reshape(len(CLASSES) * 28, SHIPPED * 28)
    Image.fromarray(sheet).save(folder / "garments.png", optimize=True)
    model.half().save_pretrained(folder)
    described = json.loads((ZOO / "vit" / "preprocessor_config.json").read_text())
    described["size"] = {"height": SIZE[0], "width": SIZE[1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(described, indent=2) + "\n")
    model.float()
    figures = [quality(model, shipped_garments(), marked) for marked in ("coats", "none", "all")]
    names = ("coats", "others", "plain", "plain_others", "all_coats", "all_others")
    named = dict(zip(names, [value for pair in figures for value in pair], strict=True))
    (folder / "README.md").write_text(CARD.format(count=HELD_OUT, **named), encoding="utf-8")
    print(named)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ZOO / "cheater")
    torch.set_num_threads(1)
    save(trained(), parser.parse_args().out)


if __name__ == "__main__":
    main()
