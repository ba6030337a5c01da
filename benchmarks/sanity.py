"""Does each method's map depend on the model's weights, and on the target?

    python -m benchmarks.sanity [--models vit convnext] [--methods ...] [--scenes 4] [--out docs/metrics.md]

Computes Spearman's rank correlation of each method's map with its map after all weights have been shuffled, within each
parameter, and with its map of another class, averaged over scenes of the test split. 1 means that the change does not
affect the map, 0 that the maps are unrelated. Methods that run the model many times do so on few variants of each
picture. Writes the table between the marks of the page; the rows of methods that are not named stay as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.scenes import scenes
from hf_cam.cam import CAM
from hf_cam.errors import MethodError
from hf_cam.methods import get_method, list_methods
from hf_cam.metrics import rank_correlation, shuffled_weights
from hf_cam.models.loading import LoadedModel, load
from hf_cam.testing.methods import few_forwards

MODELS = ("vit", "convnext")
CLASSES = (0, 8)
START, END = "<!-- sanity -->", "<!-- end of sanity -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="classifiers among the demo models")
    parser.add_argument("--methods", nargs="+", default=list(list_methods()), choices=list_methods())
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("docs/metrics.md"))
    options = parser.parse_args()
    images = [Image.fromarray(scene.image) for scene in scenes("test", options.scenes, seed=5)]
    judged = {model: of_model(load(f"demo:{model}"), images, options.methods) for model in options.models}
    heads = [f"{model}, {changed}" for model in options.models for changed in ("weights shuffled", "another class")]
    lines = ["| method | " + " | ".join(heads) + " | declared |", "|---|" + "--:|" * len(heads) + "---|"]
    before = rows_of(options.out)
    for method in list_methods():
        if method not in options.methods and method in before:
            lines.append(before[method])
            continue
        cells = [cell for model in options.models for cell in cells_of(judged[model].get(method))]
        lines.append("| " + " | ".join([f"`{method}`", *cells, note(method)]) + " |")
    head = f"Rank correlation with the map after the change, {len(images)} scenes:"
    write(options.out, f"\n\n{head}\n\n" + "\n".join(lines) + "\n\n")


def rows_of(path: Path) -> dict[str, str]:
    """The rows that the page has, by method."""
    table = path.read_text(encoding="utf-8").split(START)[1].split(END)[0]
    return {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}


def of_model(loaded: LoadedModel, images: list[Image.Image], methods: list[str]) -> dict[str, tuple[float, float]]:
    """The correlations after shuffling the weights and for another class, per method that is defined."""
    found = {}
    for method in methods:
        try:
            each = [correlations(loaded.model, method, loaded.inputs([image])) for image in images]
        except MethodError:
            continue
        found[method] = tuple(np.mean(each, 0).tolist())
        print(type(loaded.model).__name__, method, *found[method], flush=True)
    return found


def correlations(model: nn.Module, method: str, inputs: dict[str, Tensor]) -> tuple[float, float]:
    """Mean correlations over a batch: with the map after shuffling the weights, and with that of the other class."""
    own, other = (maps_of(model, method, index, inputs) for index in CLASSES)
    with shuffled_weights(model):
        shuffled = maps_of(model, method, CLASSES[0], inputs)
    return rank_correlation(own, shuffled).mean().item(), rank_correlation(own, other).mean().item()


def maps_of(model: nn.Module, method: str, index: int, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return CAM(model, method, **few_forwards(method))(**inputs, targets=[index] * len(inputs["pixel_values"]))


def cells_of(pair: tuple[float, float] | None) -> list[str]:
    return ["not defined", ""] if pair is None else [f"{value:.2f}" for value in pair]


def note(method: str) -> str:
    record = get_method(method)
    shared = "target" if record.ignores_target else "class" if record.ignores_class else ""
    return f"same map for every {shared}" if shared else ""


def write(path: Path, table: str) -> None:
    before, rest = path.read_text(encoding="utf-8").split(START)
    path.write_text(before + START + table + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
