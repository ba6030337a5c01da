"""What Grad-CAM costs compared with a plain forward pass: hf-cam, grad-cam and torchcam, on the same layer.

    python benchmarks/inference_cost.py [--models ViT-B/16 ...] [--batches 1 8] [--repeats 9] [--quick] [--cpu-time]
                                        [--device cuda]

Models have their real size and random weights. Time: each library alternates with the plain `no_grad` forward pass, and
the median of the ratios of adjacent calls is printed, so that other load affects both sides alike. `--cpu-time`
measures the processor time of one thread instead of wall-clock time, which is reliable on a busy machine too. Memory
(Linux): each case runs in a fresh process; printed is the peak of its resident memory (the kernel's high-water mark,
reset before the call) above what was resident just before the call, such as weights and libraries. On a GPU, the clock
waits for the device, and memory is that of torch's allocator. Prints Markdown; the exit code is 1 if a target is
missed.
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
"""Takes pixels `[B, 3, H, W]`; the return value is ignored."""

Clock = Callable[[], float]
"""Returns seconds since an arbitrary moment."""


class Logits(nn.Module):
    """A transformers model in the form that grad-cam and torchcam expect: pixels in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """`[B, 3, H, W] -> [B, classes]`."""
        logits: Tensor = self.model(pixel_values=pixels).logits
        return logits


# Cases: each sets itself up, yields the call to be measured, and leaves the model without hooks ----------------------


@contextmanager
def forward(model: nn.Module) -> Iterator[Run]:
    """One plain forward pass without autograd."""

    def run(pixels: Tensor) -> object:
        with torch.no_grad():
            return model(pixel_values=pixels)

    yield run


@contextmanager
def with_hf_cam(model: nn.Module) -> Iterator[Run]:
    """hf-cam, given only the model."""
    with GradCAM(model) as cam:
        yield cam


@contextmanager
def with_grad_cam(model: nn.Module) -> Iterator[Run]:
    """grad-cam, given hf-cam's layer and reshape function."""
    layer, reshape = target_layer(model)
    with pytorch_grad_cam.GradCAM(Logits(model), [layer], reshape) as cam:
        yield lambda pixels: cam(pixels, targets=None)
    model.zero_grad(set_to_none=True)


@contextmanager
def with_torchcam(model: nn.Module) -> Iterator[Run]:
    """torchcam, given the same; its map has the size of the layer's grid, so it is resized here as the others' are."""
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
    """hf-cam's target layer, and `activation -> [B, C, h, w]` for it."""
    adapter = infer_adapter(model)
    return model.get_submodule(adapter.layers[0]), lambda tensor: adapter.to_spatial(tensor, (SIDE, SIDE))


def build(name: str, device: str = "cpu") -> nn.Module:
    """The model in evaluation mode, with trainable parameters as after `from_pretrained`."""
    torch.manual_seed(0)
    return MODELS[name]().eval().to(device)


def pictures(batch: int, device: torch.device | str = "cpu") -> Tensor:
    """Noise, the same for every case."""
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device)


# Time ----------------------------------------------------------------------------------------------------------------


def seconds(run: Run, pixels: Tensor, clock: Clock) -> float:
    """Seconds of one call; garbage is collected before the call and not during it."""
    gc.collect()
    gc.disable()
    start = clock()
    try:
        run(pixels)
        return clock() - start
    finally:
        gc.enable()


def paired(first: Run, second: Run, pixels: Tensor, repeats: int, clock: Clock) -> list[tuple[float, float]]:
    """Seconds of both calls, pair by pair, in alternating order; the first pair is a warm-up and is dropped."""
    pairs = []
    for turn in range(repeats + 1):
        if turn % 2:
            before, after = seconds(first, pixels, clock), seconds(second, pixels, clock)
        else:
            after, before = seconds(second, pixels, clock), seconds(first, pixels, clock)
        pairs.append((before, after))
    return pairs[1:]


def after_the_device() -> float:
    """Seconds since an arbitrary moment, once the GPU has done all that it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def median_ratio(pairs: Iterable[tuple[float, float]]) -> float:
    """The median of `second / first`."""
    return statistics.median(second / first for first, second in pairs)


def time_ratios(model: nn.Module, batch: int, repeats: int, clock: Clock) -> tuple[float, dict[str, float]]:
    """Seconds of the forward pass, and each library's ratio to it."""
    pixels = pictures(batch, next(model.parameters()).device)
    pairs = {}
    with forward(model) as plain:
        for name in LIBRARIES:
            with CASES[name](model) as run:
                pairs[name] = paired(plain, run, pixels, repeats, clock)
    alone = statistics.median(first for series in pairs.values() for first, _ in series)
    return alone, {name: median_ratio(series) for name, series in pairs.items()}


def adapter_milliseconds(repeats: int, clock: Clock) -> tuple[float, float]:
    """Milliseconds of `infer_adapter` on a loaded ViT-B: of the first call, which reads the catalogue, and the median
    of the others.
    """
    model = build("ViT-B/16")
    times = []
    for _ in range(repeats + 1):
        start = clock()
        infer_adapter(model)
        times.append(1000 * (clock() - start))
    return times[0], statistics.median(times[1:])


# Memory --------------------------------------------------------------------------------------------------------------


def extra_memory(model: str, case: str, batch: int, device: str) -> float | None:
    """Peak MB above the weights, on the CPU measured in a separate process; None there on other systems than Linux."""
    if device != "cpu":
        return measure_memory(model, case, batch, device)
    if not sys.platform.startswith("linux"):
        return None
    return float(in_fresh_process([str(Path(__file__)), "--memory-of", model, case, str(batch)]).split()[-1])


def in_fresh_process(arguments: Sequence[str]) -> str:
    """The output of Python with these arguments, in an environment in which `peak_memory` is exact."""
    # With a fixed threshold, every freed tensor returns to the kernel at once, so resident memory is memory in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def measure_memory(model_name: str, case: str, batch: int, device: str) -> float:
    """Peak resident MB of one call in this process, above what was resident before it.

    A call on one picture comes first, so that one-time costs (threads, kernels) do not count.
    """
    model, pixels = build(model_name, device), pictures(batch, device)
    with CASES[case](model) as run:
        run(pictures(1, device))
    with CASES[case](model) as run:
        return (peak_memory if device == "cpu" else peak_allocation)(lambda: run(pixels))


def peak_allocation(call: Callable[[], object]) -> float:
    """Peak MB that torch allocated on the GPU during one call, above what it held before."""
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def peak_memory(call: Callable[[], object]) -> float:
    """Peak resident MB of one call above what was resident before it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark to current use
    call()
    return (status("VmHWM") - before) / 1e6


def status(field: str) -> int:
    """A field of `/proc/self/status` in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


# The report ----------------------------------------------------------------------------------------------------------


def verdict(value: float, bound: float) -> str:
    """The comparison of `value` with `bound`, for the table.

    >>> verdict(1.04, 1.10)
    '1.04 <= 1.10 met'
    """
    return f"{value:.2f} <= {bound:.2f} met" if value <= bound else f"{value:.2f} > {bound:.2f} NOT MET"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned.

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
    return [
        name,
        str(batch),
        f"{1000 * alone:{'.0f' if alone > 0.03 else '.1f'}} ms",
        *(f"{ratios[library]:.2f}" for library in LIBRARIES),
        judged,
    ]


def memory_row(name: str, peaks: dict[str, float]) -> list[str]:
    """One row of the table of memory; targets are ratios to the peaks of the forward pass and the other libraries."""
    own = peaks["hf-cam"]
    judged = [verdict(own / peaks["forward"], MEMORY_OF_FORWARD)]
    judged += [verdict(own / peaks[library], MEMORY_OF_OTHERS) for library in LIBRARIES if library != "hf-cam"]
    return [name, *(f"{peaks[case]:.0f} MB" for case in CASES), *judged]


def machine(device: str) -> str:
    """The machine and the versions on which the figures were measured."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    gpu = "" if device == "cpu" else f"{torch.cuda.get_device_name(device)}, "
    return (
        f"{gpu}{names[0] if names else platform.processor()}, {os.cpu_count()} cores, "
        f"threads: {torch.get_num_threads()}, "
        f"torch {torch.__version__}, transformers {hf.__version__}, grad-cam {version('grad-cam')}, "
        f"torchcam {version('torchcam')}, float32, {SIDE} x {SIDE}, random weights"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def report(models: Sequence[str], batches: Sequence[int], repeats: int, clock: Clock, device: str) -> Iterator[str]:
    """The parts of the report, each as soon as it has been measured."""
    yield f"{machine(device)}\n"
    # This comes first: only the first call of a process includes the cost of reading the catalogue.
    first, median = adapter_milliseconds(repeats, clock)
    yield (
        f"`infer_adapter` on a loaded ViT-B/16, in ms: {verdict(median, ADAPTER_MS)} "
        f"(first call of the process: {first:.1f})\n"
    )
    rows = []
    for name in models:
        model = build(name, device)
        for batch in batches:
            rows.append(time_row(name, batch, *time_ratios(model, batch, repeats, clock)))
            print("#", *rows[-1], file=sys.stderr)
    measure = "processor time of one thread" if clock is time.process_time else "wall clock"
    yield (
        f"Time of Grad-CAM divided by that of one plain `no_grad` forward pass; "
        f"median of {repeats} paired ratios, {measure}:\n"
    )
    yield table(["model", "batch", "forward", *LIBRARIES, "target of hf-cam"], rows) + "\n"
    rows = []
    for name in models:
        peaks = {case: extra_memory(name, case, MEMORY_BATCH, device) for case in CASES}
        known = {case: peak for case, peak in peaks.items() if peak is not None}
        if len(known) == len(CASES):
            rows.append(memory_row(name, known))
            print("#", *rows[-1], file=sys.stderr)
    fresh = ", each case in a fresh process" if device == "cpu" else ", as torch's allocator counts it"
    yield f"Peak memory above that of the weights at batch {MEMORY_BATCH}{fresh}:\n"
    yield table(["model", *CASES, *(f"hf-cam / {case}" for case in CASES if case != "hf-cam")], rows) + "\n"


def main() -> int:
    """Measure and print; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--batches", nargs="+", type=int, default=sorted(TIME_BOUNDS))
    parser.add_argument("--repeats", type=int, default=9, help="pairs per figure")
    parser.add_argument("--quick", action="store_true", help="three pairs per figure: shows only that it runs")
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure processor time of one thread, for a busy machine"
    )
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda" (default: %(default)s)')
    parser.add_argument("--memory-of", nargs=3, metavar=("MODEL", "CASE", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        model, case, batch = options.memory_of
        print(measure_memory(model, case, int(batch), "cpu"))
        return 0
    if options.cpu_time:
        torch.set_num_threads(1)
    wall = time.perf_counter if options.device == "cpu" else after_the_device
    clock = time.process_time if options.cpu_time else wall
    missed = False
    for part in report(options.models, options.batches, 3 if options.quick else options.repeats, clock, options.device):
        print(part, flush=True)
        missed = missed or "NOT MET" in part
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
