"""What hf-cam and its peers do with the same models, run here, and what Grad-CAM costs in each.

    python -m benchmarks.peers [--repeats 7] [--output docs/peers.md]

Every cell of the first table is what a run of the library does, not what its documentation says. Speed: the compat
layer and grad-cam alternate on the same model, layer and batch; printed is the median of the ratios of adjacent calls,
in processor time of one thread, which is reliable on a busy machine too. Differences: the maps of both on a network
with random weights. Prints Markdown; the exit code is 1 if the compat layer is less than 2.5 times as fast.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

import hf_cam
from hf_cam.compat import pytorch_grad_cam as compat

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pytorch_grad_cam as peer
    import torchcam.methods as torchcam

GOAL = 2.5
DIFFERING = ["FEM", "FullGrad", "ScoreCAM"]
EQUAL = ["GradCAM", "HiResCAM", "GradCAMElementWise", "GradCAMPlusPlus", "XGradCAM", "LayerCAM", "SegEigenCAM"]
EQUAL += ["ShapleyCAM", "AblationCAM", "KPCA_CAM"]


class Net(nn.Module):
    """A small network with ReLU and positive scores."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.late(self.early(x)).mean((2, 3))) + 3


def seeded(make: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    return make().eval()


def a_vit() -> nn.Module:
    config = ViTConfig(
        image_size=64, patch_size=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return ViTForImageClassification(config)


PICTURES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def with_hf_cam(net: Any, layer: Any, targets: Any = None) -> Any:
    return hf_cam.GradCAM(net, layer)(PICTURES, targets)


def with_peer(net: Any, layer: Any, targets: Any = None) -> Any:
    return peer.GradCAM(net, [layer])(PICTURES, targets)


def with_torchcam(net: Any, layer: Any, targets: Any = None) -> Any:
    with torchcam.GradCAM(net, layer) as cam:
        outputs = net(PICTURES)
        return cam(outputs.argmax(-1).tolist() if targets is None else targets, outputs)[0]


LIBRARIES: dict[str, Callable[..., Any]] = {"hf-cam": with_hf_cam, "grad-cam": with_peer, "torchcam": with_torchcam}


def finds_the_layer(run: Callable[..., Any]) -> bool:
    return len(run(seeded(Net), None)) == 2


def takes_the_record(run: Callable[..., Any]) -> bool:
    net = seeded(a_vit)
    return len(run(net, net.vit.layers[-1].layernorm_before)) == 2


def keeps_training_mode(run: Callable[..., Any]) -> bool:
    net = seeded(Net).train()
    run(net, net.late)
    return all(module.training for module in net.modules())


def keeps_parameter_gradients(run: Callable[..., Any]) -> bool:
    net = seeded(Net)
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    run(net, net.late)
    grad = net.fc.weight.grad
    return grad is not None and bool((grad == 1).all())


def refuses_short_lists(run: Callable[..., Any]) -> bool:
    net = seeded(Net)
    target = peer.utils.model_targets.ClassifierOutputTarget(1)
    given = {with_hf_cam: [1], with_peer: [target], with_torchcam: [1]}[run]
    try:
        run(net, net.late, given)
    except (ValueError, TypeError, IndexError):
        return True
    return False


CAPABILITIES: dict[str, Callable[[Callable[..., Any]], bool]] = {
    "finds the target layer itself": finds_the_layer,
    "explains a ViT of transformers as it is: its record, its tokens": takes_the_record,
    "leaves a model in training mode there": keeps_training_mode,
    "leaves the parameters' `.grad` alone": keeps_parameter_gradients,
    "refuses one target for two images": refuses_short_lists,
}


def verdict(check: Callable[[Callable[..., Any]], bool], run: Callable[..., Any]) -> str:
    try:
        return "yes" if check(run) else "no"
    except Exception as error:  # noqa: BLE001 - whatever another library raises is its answer
        return f"no ({type(error).__name__})"


def maps_of(library: Any, name: str) -> np.ndarray:
    net = seeded(Net)
    targets = [library.utils.model_targets.ClassifierOutputTarget(index) for index in (1, 2)]
    found: np.ndarray = getattr(library, name)(net, [net.late])(PICTURES.clone(), targets)
    return found


def differences() -> list[str]:
    lines = []
    for name in (*EQUAL, *DIFFERING):
        ours, theirs = maps_of(compat, name), maps_of(peer, name)
        correlation = min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(ours, theirs, strict=True))
        lines.append(f"| `{name}` | {np.abs(ours - theirs).max():.0e} | {correlation:.3f} |")
    return lines


def speed(make: Callable[[], nn.Module], layer: Callable[[Any], Any], batch: int, repeats: int) -> tuple[float, float]:
    """How many times as fast as grad-cam the compat layer is, and its cost in forwards; medians of paired calls."""
    net, pixels = seeded(make), torch.randn(batch, 3, 224, 224)
    calls = [
        lambda: compat_cam(pixels, targets[0]),
        lambda: peer_cam(pixels, targets[1]),
        torch.no_grad()(lambda: net(pixels)),
    ]
    targets = [[library.utils.model_targets.ClassifierOutputTarget(1)] * batch for library in (compat, peer)]
    compat_cam, peer_cam = (library.GradCAM(net, [layer(net)]) for library in (compat, peer))
    for call in calls:
        call()
    times = [[cpu_time(call) for call in calls] for _ in range(repeats)]
    return statistics.median(b / a for a, b, _ in times), statistics.median(a / c for a, _, c in times)


def cpu_time(call: Callable[[], Any]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any]]] = {
    "ResNet-50": (torchvision.models.resnet50, lambda net: net.layer4[-1]),
    "ResNet-18": (torchvision.models.resnet18, lambda net: net.layer4[-1]),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines, reached = page(given.repeats)
    text = "\n".join(lines) + "\n"
    given.output.write_text(text, encoding="utf-8") if given.output else print(text)
    return 0 if reached else 1


def page(repeats: int) -> tuple[list[str], bool]:
    versions = {"hf-cam": hf_cam.__version__, "grad-cam": version("grad-cam"), "torchcam": version("torchcam")}
    lines = [
        "# Other libraries",
        "",
        "Printed by `python -m benchmarks.peers`: each cell is what a run of the library does.",
        f"torch {torch.__version__}, {platform.machine()}, one thread.",
        "",
        "| | " + " | ".join(f"{name} {number}" for name, number in versions.items()) + " |",
        "|---|" + "---|" * len(versions),
    ]
    for title, check in CAPABILITIES.items():
        lines.append(f"| {title} | " + " | ".join(verdict(check, run) for run in LIBRARIES.values()) + " |")
    lines += [
        "",
        "## grad-cam's names on hf-cam's engine",
        "",
        "Grad-CAM with `hf_cam.compat.pytorch_grad_cam` and with grad-cam, 224 x 224 pixels: the ratio of processor",
        "times, grad-cam's to that of the same script on hf-cam, and the cost in plain forward passes; medians of",
        f"{repeats} paired calls.",
        "",
        "| model | batch | times as fast | forwards |",
        "|---|---|---|---|",
    ]
    ratios = []
    for name, (make, layer) in MODELS.items():
        ratio, cost = speed(make, layer, 8, repeats)
        ratios.append(ratio)
        lines.append(f"| {name} | 8 | {ratio:.2f} | {cost:.2f} |")
    lines += [
        "",
        "The maps of both on a small network with random weights, two pictures: the largest difference, and the",
        "smaller correlation. The reasons for the last three stand in",
        "[Coming from pytorch-grad-cam](migration/pytorch-grad-cam.md).",
        "",
        "| method | largest difference | correlation |",
        "|---|---|---|",
        *differences(),
    ]
    return lines, min(ratios) >= GOAL


if __name__ == "__main__":
    sys.exit(main())
