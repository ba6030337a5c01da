"""What the departures from the papers change: the correlation of each map with the map that has none.

    python -m benchmarks.departures [--models vit convnext] [--scenes 16] [--markdown docs/methods.md]

The small trained models explain the class of the first item in each scene (test split, seed 1), once as hf-cam does and
once with the departure taken back; Pearson's correlation of the two maps on the layer's grid, mean and standard error
over the scenes. `--markdown` writes the table into the page, between its marks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.utils import logging

from benchmarks.pages import write
from benchmarks.scenes import scenes
from hf_cam.cam import CAM
from hf_cam.capture.capture import capture
from hf_cam.maps import normalize, resize
from hf_cam.metrics import correlation
from hf_cam.models.loading import load


@dataclass(frozen=True)
class Signals:
    """One image's pixels `[1, 3, H, W]`, class, and activations and gradients `[C, h, w]` at the method's layer."""

    net: nn.Module
    pixels: Tensor
    label: int
    activations: Tensor
    gradients: Tensor

    @property
    def masked_logits(self) -> Tensor:
        """The logits `[C, classes]` for the image masked by each channel."""
        size = self.pixels.shape[-2:]
        with torch.no_grad():
            masks = normalize(resize(self.activations, size))[:, None]
            return torch.cat([self.net(self.pixels * part).logits for part in masks.split(16)])


Without = Callable[[Signals], Tensor]
DEPARTURES: dict[str, tuple[str, Without]] = {}


def without(method: str, what: str) -> Callable[[Without], Without]:
    """Register the map `[h, w]` of a method with its departure taken back, or `[2, h, w]` if the sign is free."""

    def add(make: Without) -> Without:
        DEPARTURES[method] = (what, make)
        return make

    return add


@without("gradcam++", "without the epsilon of 1e-6")
def gradcam_plusplus(given: Signals) -> Tensor:
    a, g = given.activations.double(), given.gradients.double()
    bottom = 2 * g**2 + a.sum((1, 2), keepdim=True) * g**3
    alpha = torch.where(bottom != 0, g**2 / bottom, 0)
    return ((alpha * g.clamp_min(0)).sum((1, 2), keepdim=True) * a).sum(0).clamp_min(0)


@without("scorecam", "with the class probability as the weight")
def scorecam(given: Signals) -> Tensor:
    weights = given.masked_logits.softmax(-1)[:, given.label]
    return (weights[:, None, None] * given.activations).sum(0).clamp_min(0)


@without("eigencam", "without centring, of either sign")
def eigencam(given: Signals) -> Tensor:
    return uncentred(given.activations)


@without("segeigencam", "without centring, of either sign")
def segeigencam(given: Signals) -> Tensor:
    return uncentred(given.gradients.abs() * given.activations)


@without("shapleycam", "with the ReST target, `y + log p`")
def shapleycam(given: Signals) -> Tensor:
    pixels = given.pixels

    def rest(output: object) -> Tensor:
        logits = output.logits
        return logits[given.label] + logits.log_softmax(-1)[given.label]

    return CAM(given.net, "shapleycam").saliency(pixels, lambda _: [[rest]]).raw[0][0][0].clamp_min(0)


def uncentred(values: Tensor) -> Tensor:
    """The cells' coordinates on the first singular vector, of both signs: `[2, h, w]`."""
    cells = values.flatten(1).T.double()
    found = (cells @ torch.linalg.svd(cells, full_matrices=False).Vh[0]).reshape(values.shape[1:])
    return torch.stack([found, -found]).clamp_min(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit", "convnext"])
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--markdown", type=Path, help="the page to write the table into")
    options = parser.parse_args()
    logging.disable_progress_bar()
    lines = [f"| method | departure taken back | {' | '.join(options.models)} |"]
    lines.append("|---|---|" + "--:|" * len(options.models))
    for method, (what, _) in DEPARTURES.items():
        cells = [correlated(method, model, options.scenes) for model in options.models]
        lines.append(f"| `{method}` | {what} | {' | '.join(cells)} |")
    print("\n".join(lines))
    if options.markdown:
        write(options.markdown, "departures", f"{options.scenes} scenes:\n\n" + "\n".join(lines))


def correlated(method: str, model: str, count: int) -> str:
    loaded = load(f"demo:{model}")
    cam = CAM(loaded.model, method)
    found = []
    for scene in scenes("test", count, seed=1):
        pixels, label = loaded.pixel_values([Image.fromarray(scene.image)]), scene.labels[0]
        ours = cam(pixels, label)
        theirs = DEPARTURES[method][1](signals(cam, loaded.model, pixels, label))
        theirs = resize(normalize(theirs.float().reshape(-1, *theirs.shape[-2:])), ours.shape[1:])
        found.append(float(correlation(ours, theirs).max()))  # a component has either sign
    return f"{np.mean(found):.2f} ± {np.std(found, ddof=1) / len(found) ** 0.5:.2f}"


def signals(cam: CAM, net: nn.Module, pixels: Tensor, label: int) -> Signals:
    size = (pixels.shape[-2], pixels.shape[-1])
    adapter = CAM(net, "gradcam").adapter
    with capture(net, adapter.layers, {"pixel_values": pixels}) as captured:
        [gradient] = captured.gradients(captured.outputs.logits[0, label])
        tensors = captured.activations[0].detach(), gradient
    spatial = [adapter.to_spatial(tensor, size)[0] for tensor in tensors]
    return Signals(net, pixels, label, *spatial)


if __name__ == "__main__":
    main()
