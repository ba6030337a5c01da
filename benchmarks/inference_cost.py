"""What a Grad-CAM costs over the plain forward: hf-cam, grad-cam and torchcam side by side on the same layer.

    python benchmarks/inference_cost.py [--models ViT-B/16 ...] [--batches 1 8] [--repeats 9] [--quick] [--cpu-time]

Models have their real size and random weights. Time: each library takes turns with the plain `no_grad` forward, and
the median of the ratios of neighbours is printed, so that a noisy machine disturbs both sides alike; `--cpu-time`
counts the processor time of one thread in place of the wall clock, which holds on a busy machine too. Memory (Linux):
each case runs in a fresh process; the peak of its resident memory (the kernel's own high-water mark, reset before the
call) above what was resident just before, weights and libraries, is printed. Prints Markdown; the exit code is 1 where
a target is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path

import pytorch_grad_cam
import torch
import torch.nn.functional as F
import torchcam.methods
import transformers as hf
from torch import Tensor, nn

from hf_cam import GradCAM, infer_adapter

SIDE = 224
MEMORY_BATCH = 16
TIME_BOUNDS = {1: 1.25, 8: 1.10}
MEMORY_OF_FORWARD = 1.3
MEMORY_OF_OTHERS = 0.2
ADAPTER_MS = 50.0

MODELS: dict[str, Callable[[], nn.Module]] = {
    "ViT-B/16": lambda: hf.ViTForImageClassification(hf.ViTConfig(num_labels=1000)),
    "Swin-T": lambda: hf.SwinForImageClassification(hf.SwinConfig(num_labels=1000)),
    "ConvNeXt-T": lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(num_labels=1000)),
    "ResNet-50": lambda: hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=1000)),
}

Run = Callable[[Tensor], object]
"""Pixels `[B, 3, H, W]` in; what it returns is thrown away."""

Clock = Callable[[], float]
"""Seconds since some moment."""


class Logits(nn.Module):
    """A transformers model as grad-cam and torchcam expect one: pixels in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """`[B, 3, H, W] -> [B, classes]`."""
        logits: Tensor = self.model(pixel_values=pixels).logits
        return logits


# The cases: each sets itself up, yields the call that is measured, and leaves the model without hooks ----------------


@contextmanager
def forward(model: nn.Module) -> Iterator[Run]:
    """One plain forward without autograd."""

    def run(pixels: Tensor) -> object:
        with torch.no_grad():
            return model(pixel_values=pixels)

    yield run


@contextmanager
def with_hf_cam(model: nn.Module) -> Iterator[Run]:
    """hf-cam, told nothing but the model."""
    with GradCAM(model) as cam:
        yield cam


@contextmanager
def with_grad_cam(model: nn.Module) -> Iterator[Run]:
    """grad-cam, given hf-cam's layer and its way back to space."""
    layer, reshape = target_layer(model)
    with pytorch_grad_cam.GradCAM(Logits(model), [layer], reshape) as cam:
        yield lambda pixels: cam(pixels, targets=None)
    model.zero_grad(set_to_none=True)


@contextmanager
def with_torchcam(model: nn.Module) -> Iterator[Run]:
    """torchcam, given the same; its map stays on the layer's grid, so it is enlarged here as the others' are."""
    layer, reshape = target_layer(model)
    wrapped = Logits(model)
    with torchcam.methods.GradCAM(wrapped, layer, reshape_transform=reshape) as cam:

        def run(pixels: Tensor) -> object:
            scores = wrapped(pixels)
            (maps,) = cam(scores.argmax(1).tolist(), scores)
            return F.interpolate(maps[:, None], pixels.shape[-2:], mode="bilinear")[:, 0]

        yield run


CASES: dict[str, Callable[[nn.Module], AbstractContextManager[Run]]] = {
    "forward": forward,
    "hf-cam": with_hf_cam,
    "grad-cam": with_grad_cam,
    "torchcam": with_torchcam,
}
LIBRARIES = [name for name in CASES if name != "forward"]


def target_layer(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The module that hf-cam looks at, and `activation -> [B, C, h, w]` for it."""
    adapter = infer_adapter(model)
    return model.get_submodule(adapter.layers[0]), lambda tensor: adapter.to_spatial(tensor, (SIDE, SIDE))


def build(name: str) -> nn.Module:
    """The model in evaluation mode, its parameters trainable as after `from_pretrained`."""
    torch.manual_seed(0)
    return MODELS[name]().eval()


def pictures(batch: int) -> Tensor:
    """Noise, the same for every case."""
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


# Time ----------------------------------------------------------------------------------------------------------------


def seconds(run: Run, pixels: Tensor, clock: Clock) -> float:
    """Of one call; the garbage of the call before is collected first, none during it."""
    gc.collect()
    gc.disable()
    start = clock()
    try:
        run(pixels)
        return clock() - start
    finally:
        gc.enable()


def paired(first: Run, second: Run, pixels: Tensor, repeats: int, clock: Clock) -> list[tuple[float, float]]:
    """Seconds of both, in turn; which goes first changes from pair to pair, after one pair that does not count."""
    pairs = []
    for turn in range(repeats + 1):
        if turn % 2:
            before, after = seconds(first, pixels, clock), seconds(second, pixels, clock)
        else:
            after, before = seconds(second, pixels, clock), seconds(first, pixels, clock)
        pairs.append((before, after))
    return pairs[1:]


def median_ratio(pairs: Iterable[tuple[float, float]]) -> float:
    """The median of `second / first`."""
    return statistics.median(second / first for first, second in pairs)


def time_ratios(model: nn.Module, batch: int, repeats: int, clock: Clock) -> tuple[float, dict[str, float]]:
    """Seconds of the forward, and each library's ratio to it."""
    pixels = pictures(batch)
    pairs = {}
    with forward(model) as plain:
        for name in LIBRARIES:
            with CASES[name](model) as run:
                pairs[name] = paired(plain, run, pixels, repeats, clock)
    alone = statistics.median(first for series in pairs.values() for first, _ in series)
    return alone, {name: median_ratio(series) for name, series in pairs.items()}


def adapter_milliseconds(repeats: int, clock: Clock) -> tuple[float, float]:
    """`infer_adapter` on a loaded ViT-B: the first call, which reads the catalogue, and the median of the others."""
    model = build("ViT-B/16")
    times = []
    for _ in range(repeats + 1):
        start = clock()
        infer_adapter(model)
        times.append(1000 * (clock() - start))
    return times[0], statistics.median(times[1:])


# Memory --------------------------------------------------------------------------------------------------------------


def extra_memory(model: str, case: str, batch: int) -> float | None:
    """Peak MB above the weights, measured in a process of its own; None where there is no Linux to ask."""
    if not sys.platform.startswith("linux"):
        return None
    return float(in_fresh_process([str(Path(__file__)), "--memory-of", model, case, str(batch)]).split()[-1])


def in_fresh_process(arguments: Sequence[str]) -> str:
    """What Python prints, given these arguments, where `peak_memory` can tell what is alive."""
    # A fixed threshold hands every freed tensor back to the kernel at once: what is resident is what is alive.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def measure_memory(model_name: str, case: str, batch: int) -> float:
    """In this process: peak resident MB of one call above what was resident before it.

    A picture of its own warms everything up first, so that what is loaded once (threads, kernels) does not count.
    """
    model, pixels = build(model_name), pictures(batch)
    with CASES[case](model) as run:
        run(pictures(1))
    with CASES[case](model) as run:
        return peak_memory(lambda: run(pixels))


def peak_memory(call: Callable[[], object]) -> float:
    """Peak resident MB of one call above what was resident before it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark to what is there
    call()
    return (status("VmHWM") - before) / 1e6


def status(field: str) -> int:
    """A field of `/proc/self/status` in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


# The report ----------------------------------------------------------------------------------------------------------


def verdict(value: float, bound: float) -> str:
    """Whether `value` stays within `bound`, in words that a reader of the table can check.

    >>> verdict(1.04, 1.10)
    '1.04 <= 1.10 met'
    """
    return f"{value:.2f} <= {bound:.2f} met" if value <= bound else f"{value:.2f} > {bound:.2f} NOT MET"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right.

    >>> print(table(["a", "b"], [["x", "1"]]))
    | a | b |
    | :-- | --: |
    | x | 1 |
    """
    ruler = [":--", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows))


def time_row(name: str, batch: int, alone: float, ratios: dict[str, float]) -> list[str]:
    """One row of the table of times."""
    bound = TIME_BOUNDS.get(batch)
    judged = verdict(ratios["hf-cam"], bound) if bound else "-"
    return [name, str(batch), f"{1000 * alone:.0f} ms", *(f"{ratios[library]:.2f}" for library in LIBRARIES), judged]


def memory_row(name: str, peaks: dict[str, float]) -> list[str]:
    """One row of the table of memory; the targets are shares of the forward's peak and of each other library's."""
    own = peaks["hf-cam"]
    judged = [verdict(own / peaks["forward"], MEMORY_OF_FORWARD)]
    judged += [verdict(own / peaks[library], MEMORY_OF_OTHERS) for library in LIBRARIES if library != "hf-cam"]
    return [name, *(f"{peaks[case]:.0f} MB" for case in CASES), *judged]


def machine() -> str:
    """What the figures were taken on."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, threads: {torch.get_num_threads()}, "
        f"torch {torch.__version__}, transformers {hf.__version__}, grad-cam {version('grad-cam')}, "
        f"torchcam {version('torchcam')}, float32, {SIDE} x {SIDE}, random weights"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def report(models: Sequence[str], batches: Sequence[int], repeats: int, clock: Clock) -> Iterator[str]:
    """The lines of the report, each as soon as it is known."""
    yield f"{machine()}\n"
    # First of all, for only a process that has inferred nothing yet shows what reading the catalogue costs.
    first, median = adapter_milliseconds(repeats, clock)
    yield (
        f"`infer_adapter` on a loaded ViT-B/16, in ms: {verdict(median, ADAPTER_MS)} "
        f"(the first call of the process {first:.1f})\n"
    )
    rows = []
    for name in models:
        model = build(name)
        for batch in batches:
            rows.append(time_row(name, batch, *time_ratios(model, batch, repeats, clock)))
            print("#", *rows[-1], file=sys.stderr)
    measure = "wall clock" if clock is time.perf_counter else "processor time of one thread"
    yield f"Grad-CAM over one plain `no_grad` forward, median of {repeats} paired ratios, {measure}:\n"
    yield table(["model", "batch", "forward", *LIBRARIES, "target of hf-cam"], rows) + "\n"
    rows = []
    for name in models:
        peaks = {case: extra_memory(name, case, MEMORY_BATCH) for case in CASES}
        known = {case: peak for case, peak in peaks.items() if peak is not None}
        if len(known) == len(CASES):
            rows.append(memory_row(name, known))
            print("#", *rows[-1], file=sys.stderr)
    yield f"Peak memory above the weights at batch {MEMORY_BATCH}, each case in a fresh process:\n"
    yield table(["model", *CASES, *(f"hf-cam / {case}" for case in CASES if case != "hf-cam")], rows) + "\n"


def main() -> int:
    """Measure and print; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--batches", nargs="+", type=int, default=sorted(TIME_BOUNDS))
    parser.add_argument("--repeats", type=int, default=9, help="pairs a figure")
    parser.add_argument("--quick", action="store_true", help="three pairs a figure: shows that it runs, proves nothing")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread, for a busy machine")
    parser.add_argument("--memory-of", nargs=3, metavar=("MODEL", "CASE", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        model, case, batch = options.memory_of
        print(measure_memory(model, case, int(batch)))
        return 0
    if options.cpu_time:
        torch.set_num_threads(1)
    clock = time.process_time if options.cpu_time else time.perf_counter
    missed = False
    for part in report(options.models, options.batches, 3 if options.quick else options.repeats, clock):
        print(part, flush=True)
        missed = missed or "NOT MET" in part
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
