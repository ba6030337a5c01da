"""The quality of the committed models of the zoo on held-out scenes, compared with the required minimum.

    python -m benchmarks.zoo_quality [MODEL ...] [--scenes N] [--zoo FOLDER] [--device cuda]

Every model is loaded with transformers' Auto classes and reads scenes through its own processor. The exit code is 1 if
a model is below its minimum.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn
from torchvision.ops import box_iou

from benchmarks.dialogues import Kind, captions, named_tokens
from benchmarks.scenes import BLOCK, COLORS, LABELS, PROMPTS, SceneBatch, SceneBlocks

ZOO = Path(__file__).parents[1] / "hf_cam" / "zoo"
SCENES = 1024
CHOICES = 8

Measure = Callable[[Path, int, torch.device], float]
"""`(folder, number of scenes, device) -> quality in [0, 1]`."""


@dataclass(frozen=True)
class Floor:
    """The metric of a model, and the minimum that it must reach."""

    metric: str
    measure: Measure
    minimum: float


def blocks(count: int) -> Iterator[SceneBatch]:
    """At least `count` held-out scenes, in whole blocks."""
    source = SceneBlocks("test")
    return (source[i] for i in range(-(-count // BLOCK)))


def run(
    model: nn.Module, processor: hf.BaseImageProcessor, batch: SceneBatch, **inputs: torch.Tensor
) -> hf.utils.ModelOutput:
    """The model's output for the scenes of a batch, preprocessed by the processor."""
    pixels = processor(images=list(batch.images), return_tensors="pt").to(model.device)
    with torch.inference_mode():
        return model(**pixels, **inputs)


def mean_average_precision(folder: Path, count: int, device: torch.device) -> float:
    """Average precision of ranking the scenes by each label's logit, averaged over the ten labels."""
    model = hf.AutoModelForImageClassification.from_pretrained(folder).to(device).eval()
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    logits, truth = [], []
    for batch in blocks(count):
        logits.append(run(model, processor, batch).logits.cpu())
        truth.append(batch.multi_hot())
    scores, occurs = torch.cat(logits).numpy(), torch.cat(truth).numpy().astype(bool)
    return float(
        np.mean([average_precision(scores[:, i], occurs[:, i], occurs[:, i].sum()) for i in range(len(LABELS))])
    )


def average_precision(scores: np.ndarray, correct: np.ndarray, positives: int) -> float:
    """Mean over the positives of the precision at their rank; positives that are never returned count as 0.

    Args:
        scores: `(N,)`, one per returned item.
        correct: bool `(N,)`.
        positives: the number of items to be found.
    """
    hits = correct[np.argsort(-scores, kind="stable")]
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / max(positives, 1))


def mean_iou(folder: Path, count: int, device: torch.device) -> float:
    """Intersection over union of the ten labels and the background, each over all pixels of all scenes, averaged."""
    model = hf.AutoModelForSemanticSegmentation.from_pretrained(folder).to(device).eval()
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    bins = len(LABELS) + 1
    confusion = torch.zeros(bins * bins, dtype=torch.long)
    for batch in blocks(count):
        logits = run(model, processor, batch).logits.cpu()
        predicted = F.interpolate(logits, batch.classes.shape[-2:], mode="bilinear").argmax(1)
        confusion += torch.bincount((batch.classes * bins + predicted).flatten(), minlength=bins * bins)
    table = confusion.view(bins, bins)
    shared = table.diagonal()
    return float((shared / (table.sum(0) + table.sum(1) - shared)).mean())


def prompt_accuracy(folder: Path, count: int, device: torch.device) -> float:
    """How often the prompt that names an item of a scene scores higher than seven false ones; see `choices`."""
    model = hf.AutoModel.from_pretrained(folder).to(device).eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    text = processor.tokenizer(list(PROMPTS), padding=True, return_tensors="pt").to(device)
    right, total = 0, 0
    for batch in blocks(count):
        similarities = run(model, processor.image_processor, batch, **text).logits_per_image.cpu()
        asked = torch.tensor([choices(batch, i, rng) for i in range(len(batch))])
        right += int((similarities.gather(1, asked).argmax(1) == 0).sum())
        total += len(batch)
    return right / total


def choices(batch: SceneBatch, index: int, rng: np.random.Generator) -> list[int]:
    """Eight indices into `PROMPTS`: first an item of the scene, then seven that are false for it.

    Two of the seven are the same garment in another colour, two are another garment in the same colour, three are
    arbitrary.
    """
    there = (batch.labels[index] >= 0).nonzero()[:, 0].tolist()
    item = rng.choice(there)
    label, color = int(batch.labels[index, item]), int(batch.colors[index, item])
    false = rng.permutation((~batch.true_prompts()[index]).nonzero()[:, 0].numpy()).tolist()
    garment = [prompt for prompt in false if prompt // len(COLORS) == label][:2]
    tint = [prompt for prompt in false if prompt % len(COLORS) == color][:2]
    other = [prompt for prompt in false if prompt not in garment + tint]
    return [label * len(COLORS) + color, *(garment + tint + other)[: CHOICES - 1]]


def detection_ap50(folder: Path, count: int, device: torch.device) -> float:
    """Average precision of the boxes of each label at an IoU of 0.5, averaged over the ten labels."""
    model = hf.AutoModelForObjectDetection.from_pretrained(folder).to(device).eval()
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    found: list[tuple[int, float, bool]] = []
    positives = np.zeros(len(LABELS), int)
    for batch in blocks(count):
        output = run(model, processor, batch)
        sizes = [tuple(batch.images.shape[-2:])] * len(batch)
        detections = processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
        for i, detection in enumerate(detections):
            there = batch.labels[i] >= 0
            overlap = box_iou(detection["boxes"].cpu(), batch.boxes[i, there])
            found += match(detection["labels"], detection["scores"], batch.labels[i, there], overlap)
            positives += np.bincount(batch.labels[i, there], minlength=len(LABELS))
    return ap50(found, positives)


def mask_ap50(folder: Path, count: int, device: torch.device) -> float:
    """Average precision of the masks of each label at an IoU of 0.5, averaged over the ten labels."""
    model = hf.AutoModelForUniversalSegmentation.from_pretrained(folder).to(device).eval()
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    found: list[tuple[int, float, bool]] = []
    positives = np.zeros(len(LABELS), int)
    for batch in blocks(count):
        output = run(model, processor, batch)
        scores, labels = output.class_queries_logits.softmax(-1)[..., :-1].cpu().max(-1)
        logits = F.interpolate(output.masks_queries_logits.cpu(), batch.instances.shape[-2:], mode="bilinear")
        for i in range(len(batch)):
            there = (batch.labels[i] >= 0).nonzero()[:, 0]
            overlap = mask_iou(logits[i] > 0, batch.instances[i] == 1 + there[:, None, None])
            found += match(labels[i], scores[i], batch.labels[i, there], overlap)
            positives += np.bincount(batch.labels[i, there], minlength=len(LABELS))
    return ap50(found, positives)


def mask_iou(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Intersection over union `(N, M)` of bool masks `(N, H, W)` and `(M, H, W)`."""
    first, second = found.flatten(1).float(), truth.flatten(1).float()
    shared = first @ second.T
    return shared / (first.sum(1)[:, None] + second.sum(1) - shared).clamp(min=1)


def ap50(found: list[tuple[int, float, bool]], positives: np.ndarray) -> float:
    """Average precision of what `match` returned for all scenes, averaged over the labels."""
    labels, scores, correct = (np.array(column) for column in zip(*found, strict=True))
    per_label = [average_precision(scores[labels == i], correct[labels == i], positives[i]) for i in range(len(LABELS))]
    return float(np.mean(per_label))


def match(
    labels: torch.Tensor, scores: torch.Tensor, true_labels: torch.Tensor, overlap: torch.Tensor
) -> list[tuple[int, float, bool]]:
    """Label, score and correctness of each of N detections in a scene with M items.

    In order of score, each detection is matched to the free item of its label with the largest overlap; it is correct
    if the overlap is at least 0.5.

    Args:
        labels: labels of the detections, `(N,)`.
        scores: scores of the detections, `(N,)`.
        true_labels: labels of the items, `(M,)`.
        overlap: intersection over union `(N, M)`.
    """
    free = torch.ones(len(true_labels), dtype=torch.bool)
    result = []
    for i in scores.argsort(descending=True).tolist():
        label = int(labels[i])
        candidates = overlap[i] * (free & (true_labels == label))
        best = int(candidates.argmax())
        correct = bool(candidates[best] >= 0.5)
        free[best] &= not correct
        result.append((label, float(scores[i]), correct))
    return result


def word_accuracy(kind: Kind, folder: Path, count: int, device: torch.device) -> float:
    """How often the model names an item's noun or colour, after the true beginning of the description."""
    return word_accuracies(folder, count, device)[kind]


@lru_cache(maxsize=1)
def word_accuracies(folder: Path, count: int, device: torch.device) -> dict[Kind, float]:
    """The share of right words of each kind; scenes without a clear order from left to right are left out."""
    model = hf.AutoModelForImageTextToText.from_pretrained(folder).to(device).eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    found: dict[Kind, list[bool]] = {"noun": [], "colour": []}
    for batch in blocks(count):
        asked = captions(batch.scene(i) for i in range(len(batch)))
        texts = [f"{one.prompt} {one.answer}" for _, one in asked]
        images = [scene.image for scene, _ in asked]
        inputs = processor(images=images, text=texts, padding=True, return_tensors="pt").to(device)
        with torch.inference_mode():
            predicted = model(**inputs).logits[:, :-1].argmax(-1)
        right = (predicted == inputs["input_ids"][:, 1:]).cpu()
        for row, (_, one) in zip(right, asked, strict=True):
            for mention, backs in named_tokens(processor.tokenizer, one):
                found[mention.kind].append(all(row[len(row) - back] for back in backs))
    return {kind: sum(values) / len(values) for kind, values in found.items()}


FLOORS = {
    "convnext": (Floor("mean AP", mean_average_precision, 0.85),),
    "vit": (Floor("mean AP", mean_average_precision, 0.80),),
    "segformer": (Floor("mean IoU", mean_iou, 0.60),),
    "clip": (Floor(f"right prompt of {CHOICES}", prompt_accuracy, 0.80),),
    "swin": (Floor("mean AP", mean_average_precision, 0.80),),
    "dinov2": (Floor("mean AP", mean_average_precision, 0.80),),
    "detr": (Floor("AP50", detection_ap50, 0.50),),
    "maskformer": (Floor("mask AP50", mask_ap50, 0.50),),
    "llava": (
        Floor("right nouns", partial(word_accuracy, "noun"), 0.82),
        Floor("right colours", partial(word_accuracy, "colour"), 0.98),
    ),
}


def main() -> int:
    """Print the table; return 0 if every model reaches its minimum, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: every model in the zoo")
    parser.add_argument(
        "--scenes", type=int, default=SCENES, help="held-out scenes, rounded up to whole blocks (default: %(default)s)"
    )
    parser.add_argument("--zoo", type=Path, default=ZOO, help="folder that holds the models (default: %(default)s)")
    parser.add_argument("--device", default="cpu", type=torch.device)
    options = parser.parse_args()
    names = options.models or [name for name in FLOORS if (options.zoo / name).is_dir()]
    if unknown := set(names) - set(FLOORS):
        parser.error(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(FLOORS)}")
    failed = False
    print(f"{'model':<10} {'metric':<20} {'measured':>8} {'floor':>6}")
    for name in names:
        for floor in FLOORS[name]:
            quality = floor.measure(options.zoo / name, options.scenes, options.device)
            failed |= quality < floor.minimum
            mark = "  BELOW" if quality < floor.minimum else ""
            print(f"{name:<10} {floor.metric:<20} {quality:>8.3f} {floor.minimum:>6.2f}{mark}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
