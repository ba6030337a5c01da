"""What every method costs: hf-cam, grad-cam and torchcam on the same model, layers and target.

    python -m benchmarks.methods [--models ViT-B/16 ...] [--methods gradcam ...] [--repeats 5] [--quick] [--cpu-time]
                                 [--records FILE] [--markdown FILE]

Models, clocks and the measurement of memory are those of `benchmarks.inference_cost`, with one noise image and one
class. Each library alternates with the plain `no_grad` forward pass, and the medians of the ratios of adjacent calls
are reported. A call that takes more than a minute is made only once. Score-CAM, which runs one forward pass per channel
in every library, is timed on the first 32 channels of the layer and scaled up. Memory: one process per model and
library; a call is stopped after its first reruns, when the peak has been reached. Figures are appended to a JSON Lines
file, one line per case; later figures replace earlier ones, so that the table can be measured piece by piece. Prints
Markdown; the exit code is 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_grad_cam
import torch
import torch.nn.functional as F
import torchcam.methods
from pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerVit
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.inference_cost import (
    MODELS,
    SIDE,
    Clock,
    Logits,
    Run,
    build,
    forward,
    in_fresh_process,
    machine,
    peak_memory,
    pictures,
    seconds,
    table,
)
from hf_cam import CAM, list_methods
from hf_cam.cam import top_classes
from hf_cam.capture.capture import capture
from hf_cam.layouts import TOKENS, AnyLayout
from hf_cam.methods import get_method

TARGET = 7
SLOW = 60.0
CHANNELS = 32
ENOUGH = 8
GRADIENT_FAMILY = ("gradcam", "hirescam", "gradcam++", "xgradcam", "layercam")
FIVE, TOP_1, TOP_5 = "five gradient methods together", "top class", "top 5 classes"
EIGEN = {
    "eigencam": "get_2d_projection",
    "eigengradcam": "get_2d_projection",
    "segeigencam": "get_2d_projection_with_sign_correction",
}
LIBRARIES = ("hf-cam", "grad-cam", "torchcam")
IN_TORCHCAM = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMpp",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "scorecam": "ScoreCAM",
    "refinecam": "RefineCAM",
    "finercam": "FinerCAM",
}


class Missing(Exception):
    """The library does not have this method."""


class Stopped(Exception):
    """The call has run the model often enough to reach its peak memory."""


@dataclass(frozen=True)
class Record:
    """The figures of one case.

    Args:
        model, method, library: The case; "decomposition" in `method` means the map alone, without the network.
        forwards: Time of one call, as a multiple of a plain forward pass.
        against: Time as a multiple of hf-cam's, pair by pair; 1 for hf-cam.
        megabytes: Peak memory above the weights.
        fails: The library's error if it does not run.
    """

    model: str
    method: str
    library: str
    forwards: float | None = None
    against: float | None = None
    megabytes: float | None = None
    fails: str = ""


# Cases: each sets itself up and yields the call to be measured -------------------------------------------------------


@contextmanager
def with_hf_cam(model: nn.Module, method: str, channels: int | None) -> Iterator[Run]:
    """hf-cam, given only the model (and the number of channels, if only some are timed)."""
    if method == FIVE:
        cam, records = CAM(model), [get_method(one) for one in GRADIENT_FAMILY]
        yield lambda pixels: cam.saliencies(records, pixels, lambda _: [[TARGET]])
    elif method in (TOP_1, TOP_5):
        cam = CAM(model)
        yield lambda pixels: cam.saliency(pixels, top_classes(5 if method == TOP_5 else 1))
    elif channels:
        layers, reshape = looks(model, method, channels)
        yield CAM(model, method, layers, reshape).__call__
    else:
        cam = CAM(model, method)
        yield lambda pixels: cam(pixels, TARGET)


def looks(model: nn.Module, method: str, channels: int | None) -> tuple[tuple[str, ...], Callable[[Tensor], Tensor]]:
    """The names of hf-cam's target layers, and `activation -> [B, C, h, w]` for any of them."""
    adapter = CAM(model, method if method in list_methods() else "gradcam").adapter
    layout = AnyLayout(adapter.prefixes) if len(adapter.layers) > 1 else adapter.layouts[0]

    def reshape(tensor: Tensor) -> Tensor:
        return layout.to_spatial(tensor, (SIDE, SIDE))[:, :channels]

    return adapter.layers, reshape


@contextmanager
def with_grad_cam(model: nn.Module, method: str, channels: int | None) -> Iterator[Run]:
    """grad-cam, given hf-cam's layers and reshape function."""
    name = {"kpcacam": "KPCA_CAM"}.get(method) or (get_method(method).name if method in list_methods() else "")
    if not hasattr(pytorch_grad_cam, name):
        raise Missing
    layers, reshape = looks(model, method, channels)
    options: dict[str, Any] = {}
    if method == "ablationcam":
        tokens = getattr(CAM(model).adapter.layouts[0], "axes", "") == TOKENS
        options = {"ablation_layer": AblationLayerVit() if tokens else AblationLayer()}
    if method == "fullgrad":
        reshape = None  # it uses every layer with a bias
    modules = [model.get_submodule(layer) for layer in layers]
    cam = getattr(pytorch_grad_cam, name)(Logits(model), modules, reshape, **options)
    # It needs the second derivative, which fused attention on a CPU does not have.
    kernel = sdpa_kernel(SDPBackend.MATH) if method == "shapleycam" else nullcontext()
    with kernel:
        yield lambda pixels: cam(pixels, targets=None if method == "finercam" else [ClassifierOutputTarget(TARGET)])
    # Its clean-up of these fails on views, which reshape functions return.
    for one in (getattr(cam, "base_cam", cam), *getattr(cam, "base_cam_per_layer", ())):
        if hasattr(one, "activations_and_grads"):
            one.activations_and_grads.activations = one.activations_and_grads.gradients = []


@contextmanager
def with_torchcam(model: nn.Module, method: str, channels: int | None) -> Iterator[Run]:
    """torchcam, given the same; its map has the size of the layer's grid, so it is resized here as the others' are."""
    if method not in IN_TORCHCAM:
        raise Missing
    layers, reshape = looks(model, method, channels)
    wrapped = Logits(model)
    modules = [model.get_submodule(layer) for layer in layers]
    layer = modules if method == "refinecam" else modules[0]
    cam = getattr(torchcam.methods, IN_TORCHCAM[method])(wrapped, layer, reshape_transform=reshape)

    def run(pixels: Tensor) -> object:
        with torch.set_grad_enabled(method != "scorecam"):
            scores = wrapped(pixels)
        (maps,) = cam(TARGET, scores)
        return F.interpolate(maps[:, None], pixels.shape[-2:], mode="bilinear")[:, 0]

    yield run


CASES = {"hf-cam": with_hf_cam, "grad-cam": with_grad_cam, "torchcam": with_torchcam}


@contextmanager
def case(library: str, model: nn.Module, method: str, channels: int | None = None) -> Iterator[Run]:
    """One case; removes hooks and gradients afterwards, even if it fails, and hides progress bars."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept, sys.stderr = sys.stderr, nowhere
        try:
            with CASES[library](model, method, channels) as run:
                yield run
        finally:
            sys.stderr = kept
            model.zero_grad(set_to_none=True)
            for module in model.modules():
                module._forward_hooks.clear()  # noqa: SLF001 - our own random model, which had no hooks


# Time ----------------------------------------------------------------------------------------------------------------


def timed(model_name: str, model: nn.Module, method: str, repeats: int, clock: Clock) -> Iterator[Record]:
    """One record per library: its calls alternate with the plain forward pass, after one warm-up call."""
    channels = CHANNELS if method == "scorecam" else None
    scale = channels_of(model) / CHANNELS if channels else 1.0
    with forward(model) as plain:
        plain(pictures(1))
        once: dict[str, float] = {}
        rounds: list[dict[str, float]] = [{} for _ in range(repeats)]
        fails: dict[str, str] = {}
        for library in LIBRARIES:
            try:
                with case(library, model, method, channels) as run:
                    first = seconds(run, pictures(1), clock)
                    if first > SLOW:
                        once[library] = first
                        continue
                    for turn in rounds:
                        beside = seconds(plain, pictures(1), clock)
                        turn[library] = seconds(run, pictures(1), clock)
                        turn[f"{library}: forward"] = beside
            except Missing:
                continue
            except Exception as error:  # noqa: BLE001 - the reference packages fail in many ways
                fails[library] = f"{type(error).__name__}: {error}"[:120]
    found = {
        library: [turn[library] / turn[f"{library}: forward"] for turn in rounds]
        for library in LIBRARIES
        if library in rounds[0]
    }
    alone = statistics.median(value for turn in rounds for name, value in turn.items() if name.endswith(": forward"))
    found |= {library: [value / alone] for library, value in once.items()}
    own = statistics.median(found["hf-cam"])
    for library in LIBRARIES:
        if library in fails:
            yield Record(model_name, method, library, fails=fails[library])
        elif library in found:
            value = statistics.median(found[library])
            yield Record(model_name, method, library, forwards=value * scale, against=value / own)


def channels_of(model: nn.Module) -> int:
    """The number of channels of hf-cam's target layer."""
    layers, reshape = looks(model, "gradcam", None)
    with capture(model, layers, {"pixel_values": pictures(1)}, gradients=False) as captured:
        return reshape(captured.activations[0]).shape[1]


def decompositions(model_name: str, model: nn.Module, repeats: int, clock: Clock) -> Iterator[Record]:
    """The principal component alone, from the same activations and gradients, without the cost of the network."""
    projections = importlib.import_module("pytorch_grad_cam.utils.svd_on_activations")
    layers, reshape = looks(model, "gradcam", None)
    with capture(model, layers, {"pixel_values": pictures(1)}) as captured:
        [gradient] = captured.gradients(captured.outputs.logits[0, TARGET])
        signals = {"activations": reshape(captured.activations[0].detach()), "gradients": reshape(gradient)}
    for method, projection in EIGEN.items():
        record = get_method(method)
        needed = {name: signals[name].contiguous() for name in record.needs}

        def ours(_: Tensor, record: Any = record, needed: dict[str, Tensor] = needed) -> object:
            return record.map(**needed)

        def theirs(
            _: Tensor, record: Any = record, needed: dict[str, Tensor] = needed, name: str = projection
        ) -> object:
            arrays = record.contributions(**needed).numpy()
            return getattr(projections, name)(arrays)

        pixels = pictures(1)
        ours(pixels), theirs(pixels)
        ratios = [
            (lambda mine: seconds(theirs, pixels, clock) / mine)(seconds(ours, pixels, clock)) for _ in range(repeats)
        ]
        name = f"{method}, decomposition"
        yield Record(model_name, name, "hf-cam", against=1.0)
        yield Record(model_name, name, "grad-cam", against=statistics.median(ratios))


# Memory --------------------------------------------------------------------------------------------------------------


def remembered(model_name: str, library: str, methods: Sequence[str]) -> Iterator[Record]:
    """Peak MB of one call of each method in this process, after one plain forward pass for the one-time costs."""
    for method in methods:
        model = build(model_name)  # a call that was stopped may leave modified layers behind
        with forward(model) as run:
            run(pictures(1))
        try:
            with case(library, model, method) as run:
                if method not in ("scorecam", "ablationcam"):
                    run(pictures(1))  # the memory of imports does not count
                peak = peak_memory(partial(stopped, model, run))
            yield Record(model_name, method, library, megabytes=peak)
        except Missing:
            continue
        except Exception as error:  # noqa: BLE001 - the same
            yield Record(model_name, method, library, fails=f"{type(error).__name__}: {error}"[:120])


def stopped(model: nn.Module, run: Run) -> None:
    """Make one call, and end it after its first forward passes."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > ENOUGH:
            raise Stopped

    handle = model.register_forward_pre_hook(count)
    try:
        run(pictures(1))
    except Stopped:
        pass
    finally:
        handle.remove()


# The report ----------------------------------------------------------------------------------------------------------

Figures = dict[tuple[str, str, str], dict[str, Any]]


def merged(path: Path) -> Figures:
    """The records of a file; later figures of a case replace earlier ones."""
    found: Figures = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        case = found.setdefault((record["model"], record["method"], record["library"]), {})
        case.update({name: value for name, value in record.items() if value not in (None, "")})
    return found


@dataclass(frozen=True)
class Goal:
    """A target: a figure and its bound.

    Args:
        words: The description of the figure.
        value: Takes all figures and a model and returns the figure; None if it was not measured or has no counterpart.
        bound: The bound of the figure.
        least: True if the bound is a minimum, False if it is a maximum.
        models: The models to which the target applies.
    """

    words: str
    value: Callable[[Figures, str], float | None]
    bound: float
    least: bool = True
    models: tuple[str, ...] = tuple(MODELS)

    def verdicts(self, figures: Figures) -> Iterator[list[str]]:
        """One row per model: the target, the model, the figure, and whether the target is met."""
        for model in self.models:
            value = self.value(figures, model)
            if value is not None:
                met = value >= self.bound if self.least else value <= self.bound
                sign = (">=" if self.least else "<=") if met else ("<" if self.least else ">")
                yield [self.words, model, f"{value:.2f} {sign} {self.bound:g}", "met" if met else "NOT MET"]


def faster(method: str) -> Callable[[Figures, str], float | None]:
    """The time of the fastest other library, as a multiple of hf-cam's."""

    def value(figures: Figures, model: str) -> float | None:
        others = [figures.get((model, method, library), {}).get("against") for library in LIBRARIES[1:]]
        return min((other for other in others if other is not None), default=None)

    return value


def grad_cam_over_ours(method: str) -> Callable[[Figures, str], float | None]:
    """grad-cam's time, as a multiple of hf-cam's."""
    return lambda figures, model: figures.get((model, method, "grad-cam"), {}).get("against")


def share_of_memory(method: str) -> Callable[[Figures, str], float | None]:
    """hf-cam's peak memory, as a multiple of grad-cam's."""

    def value(figures: Figures, model: str) -> float | None:
        own, other = (figures.get((model, method, library), {}).get("megabytes") for library in LIBRARIES[:2])
        return own / other if own is not None and other else None

    return value


def own_forwards(method: str) -> Callable[[Figures, str], float | None]:
    """hf-cam's time, as a multiple of a plain forward pass."""
    return lambda figures, model: figures.get((model, method, "hf-cam"), {}).get("forwards")


def top_5_over_top_1(figures: Figures, model: str) -> float | None:
    """The time of five classes, as a multiple of that of one."""
    five, one = own_forwards(TOP_5)(figures, model), own_forwards(TOP_1)(figures, model)
    return five / one if five and one else None


NEVER_SLOWER = 0.95  # within the noise of a shared machine
GOALS = (
    Goal("AblationCAM: times grad-cam's speed", grad_cam_over_ours("ablationcam"), 10, models=("ViT-B/16",)),
    Goal(
        "AblationCAM: times grad-cam's speed",
        grad_cam_over_ours("ablationcam"),
        100,
        models=("ConvNeXt-T", "ResNet-50"),
    ),
    *(
        Goal(
            f"{get_method(method).name}, the decomposition: times grad-cam's speed",
            faster(f"{method}, decomposition"),
            10,
        )
        for method in EIGEN
    ),
    Goal(f"{FIVE}: forwards", own_forwards(FIVE), 1.3, least=False),
    Goal("ScoreCAM: times the others' speed", faster("scorecam"), NEVER_SLOWER),
    Goal("ScoreCAM: share of grad-cam's memory", share_of_memory("scorecam"), 0.2, least=False),
    *(
        Goal(f"{get_method(method).name}: times the others' speed", faster(method), NEVER_SLOWER)
        for method in ("kpcacam", "fem", "shapleycam", "finercam", "refinecam", "fullgrad")
    ),
    Goal("top 5 classes: times the top class", top_5_over_top_1, 1.6, least=False),
)


def overview(figures: Figures, models: Sequence[str], methods: Sequence[str]) -> str:
    """One row per method, one column per model: hf-cam's time in forward passes and, in brackets, `faster`."""

    def cell(model: str, method: str) -> str:
        forwards, other = own_forwards(method)(figures, model), faster(method)(figures, model)
        if forwards is None:
            return "-"
        times = "" if other is None else f" ({other:.{2 if other < 10 else 0}f} x)"
        return f"{forwards:.{2 if forwards < 100 else 0}f}{times}"

    rows = [[method, *(cell(model, method) for model in models)] for method in methods]
    return table(["method", *models], rows)


def report(figures: Figures) -> Iterator[str]:
    """The parts of the report."""
    known = (*list_methods(), FIVE, TOP_1, TOP_5)
    methods = [method for method in known if any(key[1] == method for key in figures)]
    models = [name for name in MODELS if any(key[0] == name for key in figures)]
    yield "### Overview\n"
    yield "Time of hf-cam in plain forwards (in brackets: the quickest other library's, in times of hf-cam's)\n"
    yield overview(figures, models, methods) + "\n"
    for model in models:
        rows = []
        for method in methods:
            cases = [figures.get((model, method, library), {}) for library in LIBRARIES]
            if any(cases):
                rows.append([method, *map(_time, cases), *map(_ratio, cases[1:]), *map(_memory, cases)])
        yield f"### {model}\n"
        head = [
            *LIBRARIES,
            *(f"{library} / hf-cam" for library in LIBRARIES[1:]),
            *(f"{name} MB" for name in LIBRARIES),
        ]
        yield table(["method", *head], rows) + "\n"
    yield "### Targets\n"
    rows = [row for goal in GOALS for row in goal.verdicts(figures)]
    yield table(["target", "model", "measured", "verdict"], rows) + "\n"
    failures = sorted({(key[2], key[1], key[0], case["fails"]) for key, case in figures.items() if "fails" in case})
    if failures:
        yield "### What does not run\n"
        yield "\n".join(f"- {library}, {method}, {model}: `{why}`" for library, method, model, why in failures) + "\n"


def _time(case: dict[str, Any]) -> str:
    if "fails" in case and "forwards" not in case:
        return "fails"
    return f"{case['forwards']:.2f}" if case.get("forwards") is not None else "-"


def _ratio(case: dict[str, Any]) -> str:
    return f"{case['against']:.2f}" if case.get("against") is not None else "-"


def _memory(case: dict[str, Any]) -> str:
    return f"{case['megabytes']:.0f}" if case.get("megabytes") is not None else "-"


def measure(options: argparse.Namespace, clock: Clock) -> Iterator[Record]:
    """Every requested figure, each as soon as it has been measured."""
    for name in options.models:
        if options.skip != "time":
            model = build(name)
            for method in options.methods:
                yield from timed(name, model, method, options.repeats, clock)
            if set(EIGEN) & set(options.methods):
                yield from decompositions(name, model, options.repeats, clock)
            del model
        if options.skip != "memory" and sys.platform.startswith("linux"):
            for library in LIBRARIES:
                arguments = ["-m", "benchmarks.methods", "--memory-of", name, library, *options.methods]
                for line in in_fresh_process(arguments).splitlines():
                    if line.startswith("{"):
                        yield Record(**json.loads(line))


def main() -> int:
    """Measure and print; return 1 if a target is missed."""
    layered = [method for method in list_methods() if not get_method(method).needs_attention]
    everything = [*layered, FIVE, TOP_1, TOP_5]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--methods", nargs="+", choices=everything, default=everything, metavar="METHOD")
    parser.add_argument("--repeats", type=int, default=5, help="calls per figure")
    parser.add_argument("--quick", action="store_true", help="one call per figure: shows only that it runs")
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure processor time of one thread, for a busy machine"
    )
    parser.add_argument("--skip", choices=("time", "memory"), help="omit one of the two measurements")
    parser.add_argument("--records", type=Path, default=Path("methods.jsonl"), help="JSON Lines file to append to")
    parser.add_argument("--markdown", type=Path, help="also write the report here")
    parser.add_argument("--memory-of", nargs="+", metavar="MODEL LIBRARY METHOD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        model, library, *methods = options.memory_of
        for record in remembered(model, library, methods):
            print(json.dumps(asdict(record)), flush=True)
        return 0
    if options.cpu_time:
        torch.set_num_threads(1)
    if options.quick:
        options.repeats = 1
    clock = time.process_time if options.cpu_time else time.perf_counter
    with options.records.open("a", encoding="utf-8") as records:
        for record in measure(options, clock):
            print(json.dumps(asdict(record)), file=records, flush=True)
            print("#", *(value for value in asdict(record).values() if value), file=sys.stderr, flush=True)
    measured = "processor time of one thread" if options.cpu_time else "wall clock"
    text = "\n".join([f"{machine()}; {measured}\n", *report(merged(options.records))])
    print(text)
    if options.markdown:
        head, _, _ = options.markdown.read_text(encoding="utf-8").partition("## Figures\n")
        options.markdown.write_text(f"{head}## Figures\n\n{text}", encoding="utf-8")
    return int("NOT MET" in text)


if __name__ == "__main__":
    sys.exit(main())
