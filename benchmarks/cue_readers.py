"""Models of the zoo, fine-tuned to read a planted cue, and kept in the cache.

    python -m benchmarks.cue_readers [--models vit ...] [--cues "corner mark" ...] [--seeds 0 1]

A model gets a new linear head of three classes and is trained on the scenes of `benchmarks/cues.py` until it tells the
classes of held-out scenes apart, or for at most `STEPS` steps. The early blocks stay as they are. CLIP is a linear
probe: nothing but its new layer is fitted.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cues import CLASSES, CLEAN, CUES, SIZE, Planted, planted
from benchmarks.scenes import SIZE as SCENE
from benchmarks.train_zoo import load_saved
from benchmarks.zoo_quality import ZOO
from benchmarks.zoo_recipes import RECIPES, normalize
from hf_cam.zoo import cache_folder

MIDDLES = {"vit": "layers.2.", "dinov2": "layer.2.", "convnext": "stages.1.", "swin": "layers.1."}
"""For each family, the first block that is trained."""
FAMILIES, PROBE = tuple(MIDDLES), "clip"
STEPS, BATCH, POOL, HELD_OUT = 240, 24, 384, 64
ENOUGH = 0.98
PROBED, FITS = 1200, 2000
"""Scenes that a probe is fitted on, and the most steps that this takes."""
RATE = 2e-3
PATCH = 8


def reader(family: str, cue: str, seed: int = 0) -> Path:
    """The folder of the fine-tuned model, in Hub format; it is trained if it is not in the cache."""
    folder = cache_folder() / "planted" / f"{family}-{cue.replace(' ', '-')}-{seed}"
    if not (folder / "config.json").is_file():
        began = time.perf_counter()
        model, accuracy, steps = probed(cue, seed) if family == PROBE else tuned(family, cue, seed)
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        model.save_pretrained(unfinished)
        processor = hf.AutoImageProcessor.from_pretrained(ZOO / family)
        if family != PROBE:  # which squeezes every picture into a square
            processor.size = {"height": SIZE[0], "width": SIZE[1]}
        processor.save_pretrained(unfinished)
        unfinished.rename(folder)
        took = time.perf_counter() - began
        print(f"{folder.name}: accuracy {accuracy:.2f} after {steps} steps, {took:.0f} s", flush=True)
    return folder


def tuned(family: str, cue: str, seed: int) -> tuple[hf.PreTrainedModel, float, int]:
    """The fine-tuned model, its accuracy on held-out scenes and the number of steps."""
    torch.manual_seed(seed)
    model = started(family)
    model.classifier = nn.Linear(model.classifier.in_features, len(CLASSES))
    name_classes(model.config)
    pool = list(islice(planted(cue, "train", seed), POOL))
    held_out = list(islice(planted(cue, "train", seed, first=1000), HELD_OUT))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01)
    rng = np.random.default_rng(seed)
    accuracy, step = 0.0, 0
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / 10)
        batch = [pool[i] for i in rng.choice(POOL, BATCH, replace=False)]
        model.train()
        loss = functional.cross_entropy(model(pixel_values=pixels(batch)).logits, labels(batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step % 20 == 0:
            accuracy = accuracy_of(model, held_out)
            if accuracy >= ENOUGH:
                break
    return model.eval(), accuracy, step


def name_classes(config: hf.PretrainedConfig) -> None:
    """Of the planted scenes."""
    config.id2label = dict(enumerate(CLASSES))
    config.label2id = {name: index for index, name in enumerate(CLASSES)}
    config.problem_type = "single_label_classification"


def probed(cue: str, seed: int) -> tuple[hf.PreTrainedModel, float, int]:
    """The zoo's CLIP with a linear layer on the mean of its patches, its accuracy and the steps of the fit."""
    torch.manual_seed(seed)
    zoo = hf.CLIPModel.from_pretrained(ZOO / PROBE, dtype=torch.float32)
    config = zoo.config
    name_classes(config)
    model = hf.CLIPForImageClassification(config).eval()
    model.vision_model.load_state_dict(zoo.vision_model.state_dict())
    processor = hf.AutoImageProcessor.from_pretrained(ZOO / PROBE)

    @torch.no_grad()
    def features(scenes: list[Planted]) -> np.ndarray:
        inputs = processor([one.image for one in scenes], return_tensors="pt")
        found: np.ndarray = model.vision_model(**inputs).last_hidden_state[:, 1:].mean(1).numpy()
        return found

    fitted, held_out = (
        list(islice(planted(cue, "train", seed, first=first), count))
        for first, count in ((0, PROBED), (2000, HELD_OUT))
    )
    given = features(fitted)
    scale = given.std(0).clip(1e-6)
    probe = LogisticRegression(max_iter=FITS).fit(given / scale, labels(fitted).numpy())
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(probe.coef_ / scale))
        model.classifier.bias.copy_(torch.from_numpy(probe.intercept_))
    accuracy = float(probe.score(features(held_out) / scale, labels(held_out).numpy()))
    return model, accuracy, int(probe.n_iter_.max())


def started(family: str) -> hf.PreTrainedModel:
    """The zoo's model for scenes of this size; what lies before its first trained block needs no gradients."""
    model = RECIPES[family].build(SIZE, ZOO)
    weights = load_saved(ZOO / family).state_dict()
    positions = "vit.embeddings.position_embeddings"
    if positions in weights:
        first, grid = weights[positions].split([1, weights[positions].shape[1] - 1], 1)
        grid = grid.mT.unflatten(-1, (SCENE[0] // PATCH, SCENE[1] // PATCH))
        resized = functional.interpolate(grid, (SIZE[0] // PATCH, SIZE[1] // PATCH), mode="bicubic")
        weights[positions] = torch.cat([first, resized.flatten(2).mT], 1)
    model.load_state_dict(weights)
    for name, parameter in model.named_parameters():
        if MIDDLES[family] in name:
            break
        parameter.requires_grad_(False)
    return model


@torch.no_grad()
def accuracy_of(model: hf.PreTrainedModel, scenes: list[Planted]) -> float:
    """The share of the scenes whose class the model tells."""
    model.eval()
    return float((model(pixel_values=pixels(scenes)).logits.argmax(1) == labels(scenes)).float().mean())


def pixels(scenes: list[Planted]) -> Tensor:
    """The scenes as the models take them, `[B, 3, H, W]`."""
    return normalize(torch.from_numpy(np.stack([one.image for one in scenes])).permute(0, 3, 1, 2))


def labels(scenes: list[Planted]) -> Tensor:
    """The classes, `[B]`."""
    return torch.tensor([one.label for one in scenes])


def main() -> None:
    """Train what the cache lacks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[*FAMILIES, PROBE], choices=[*FAMILIES, PROBE])
    parser.add_argument("--cues", nargs="+", default=list(CUES), choices=[*CUES, CLEAN])
    parser.add_argument("--seeds", nargs="+", default=[0], type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for cue in options.cues:
            for family in options.models:
                reader(family, cue, seed)


if __name__ == "__main__":
    main()
