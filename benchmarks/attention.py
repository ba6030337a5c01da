"""What the methods for transformers cost, and torchcam's LeGrad: time and memory compared with a plain forward pass.

    python -m benchmarks.attention [--batch 8] [--rounds 7] [--methods legrad chefer ...]

The model is ViT-B/16. Every round times all methods in turn; the figure of a method is the median over the rounds of
its time divided by that of the forward pass in the same round. Memory is the peak growth of a fresh process. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_cam import CAM, list_methods
from hf_cam.methods import get_method

NATIVE = [method for method in list_methods() if get_method(method).needs_attention]
LIMITS = {"legrad": 2.0, "chefer": 2.0}
PEER = "torchcam's LeGrad"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", nargs="+", default=["gradcam", *NATIVE, PEER])
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(peak_of(options.memory_of, options.batch))
        return
    pixels = torch.randn(options.batch, 3, 224, 224)
    runs = {name: runner(name, pixels) for name in ("forward", *options.methods)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + options.rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    print(f"ViT-B/16, batch {options.batch}, {torch.get_num_threads()} thread(s), median of {options.rounds} rounds\n")
    print("| case | time in forwards | peak MB | limit |")
    print("|---|--:|--:|---|")
    base = times.pop("forward")[1:]
    print(f"| forward | 1 ({statistics.median(base):.2f} s) | {memory('forward', options.batch)} | |")
    for name, taken in times.items():
        ratio = statistics.median(own / plain for own, plain in zip(taken[1:], base, strict=True))
        limit = LIMITS.get(name)
        verdict = "" if limit is None else f"{limit}: {'met' if ratio <= limit else 'MISSED'}"
        print(f"| {name} | {ratio:.2f} | {memory(name, options.batch)} | {verdict} |", flush=True)


def runner(name: str, pixels: Tensor) -> Callable[[], object]:
    if name == PEER:
        return torchcam_legrad(pixels)
    net = vit()
    if name == "forward":
        return lambda: forward(net, pixels)
    cam = CAM(net, name)
    return lambda: cam(pixels, 1)


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(num_labels=1000)).eval()


def forward(net: nn.Module, pixels: Tensor) -> None:
    with torch.no_grad():
        net(pixels)


def torchcam_legrad(pixels: Tensor) -> Callable[[], object]:
    """LeGrad on torchvision's ViT-B/16, the only architecture that torchcam supports without changes."""
    from torchcam.methods import LeGrad
    from torchvision.models import vit_b_16

    torch.manual_seed(0)
    net = vit_b_16().eval()

    def run() -> None:
        with LeGrad(net, list(net.encoder.layers)) as extractor, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net(pixels)
            extractor([1] * len(pixels))

    return run


def memory(name: str, batch: int) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.attention", "--memory-of", name, "--batch", str(batch)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


def peak_of(name: str, batch: int) -> int:
    """The peak growth of the process in megabytes, from when the model and the input are loaded."""
    run = runner(name, torch.randn(batch, 3, 224, 224))
    Path("/proc/self/clear_refs").write_text("5")  # a process inherits its parent's peak
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """A field of `/proc/self/status`, in megabytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) // 1024


if __name__ == "__main__":
    main()
