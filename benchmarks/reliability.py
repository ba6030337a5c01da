"""What happens to a model and to those who use it while maps are made: four libraries on the same cases.

    python -m benchmarks.reliability [--only PROMISE ...] [--times N] [--write]
    python -m benchmarks.reliability --record PROMISE HELD CASES [--write]

Grad-CAM of one small network by hf-cam, grad-cam, torchcam and captum, each as its documentation shows it: what is
made for a call is made, used and closed in it. A case holds if nothing of the promise was broken. `--times` multiplies
the number of cases where they are drawn; `--record` enters what a longer run of hf-cam alone has printed. Results
are kept in `benchmarks/reliability.json`; `--write` makes `docs/reliability.md` of them.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hf_cam
from benchmarks.interrupts import Interrupter
from hf_cam.testing import check_model_untouched

HERE = Path(__file__).parent
RESULTS = HERE / "reliability.json"
PAGE = HERE.parent / "docs" / "reliability.md"
SIZE = (24, 36)
CALLS = 2000
"""Calls in a row of the case of memory."""

Explain = Callable[[nn.Module, Tensor], Tensor]
"""The map of class 1, `[B, h, w]`, of a `Net` that may be wrapped."""


class Net(nn.Module):
    """Two convolutions and a head, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.last, self.drop, self.head = nn.Conv2d(8, 8, 3), nn.Dropout(0.5), nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        """`[B, 3, H, W] -> [B, 5]`."""
        maps = self.last(self.norm(self.stem(pixels)).relu()).relu()
        logits: Tensor = self.head(self.drop(maps.mean((2, 3))))
        return logits


class Drawing(Net):
    """Draws numbers in every forward, as masked autoencoders do."""

    def forward(self, pixels: Tensor) -> Tensor:
        """`[B, 3, H, W] -> [B, 5]`."""
        return super().forward(pixels + torch.rand_like(pixels))


def net(kind: type[Net] = Net) -> Net:
    """The same weights each time."""
    torch.manual_seed(0)
    return kind().eval()


def picture(count: int = 1) -> Tensor:
    """Noise, wider than high."""
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def layer_of(model: Any) -> nn.Module:
    """The last convolution, also of a wrapped network."""
    for name in ("module", "_orig_mod"):
        model = getattr(model, name, model)
    found: nn.Module = model.last
    return found


# Libraries -----------------------------------------------------------------------------------------------------------


def with_hf_cam(model: nn.Module, pixels: Tensor) -> Tensor:
    """hf-cam."""
    return hf_cam.GradCAM(model, layers="last")(pixels, 1)


def with_grad_cam(model: nn.Module, pixels: Tensor) -> Tensor:
    """grad-cam."""
    library, targets = import_module("pytorch_grad_cam"), import_module("pytorch_grad_cam.utils.model_targets")
    with library.GradCAM(model, [layer_of(model)]) as cam:
        return torch.from_numpy(cam(pixels, [targets.ClassifierOutputTarget(1)] * len(pixels)))


def with_torchcam(model: nn.Module, pixels: Tensor) -> Tensor:
    """torchcam."""
    with import_module("torchcam.methods").GradCAM(model, layer_of(model)) as cam:
        [maps] = cam([1] * len(pixels), model(pixels))
        found: Tensor = maps
        return found


def with_captum(model: nn.Module, pixels: Tensor) -> Tensor:
    """captum."""
    cam = import_module("captum.attr").LayerGradCam(model, layer_of(model))
    found: Tensor = cam.attribute(pixels, target=1)[:, 0].detach()
    return found


LIBRARIES: dict[str, Explain] = {
    "hf-cam": with_hf_cam,
    "grad-cam": with_grad_cam,
    "torchcam": with_torchcam,
    "captum": with_captum,
}


# Cases ---------------------------------------------------------------------------------------------------------------


@contextmanager
def again_and_again(work: Callable[[], Any]) -> Iterator[None]:
    """Run `work` in another thread inside the block, which begins once that thread does; errors end no thread."""
    stop, begun = threading.Event(), threading.Event()

    def loop() -> None:
        while not stop.is_set():
            begun.set()
            with suppress(Exception):
                work()

    thread = threading.Thread(target=loop)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def held(cases: Any, check: Callable[[Any], bool]) -> list[bool]:
    """Whether each case holds; one that raises does not."""
    found = []
    for case in cases:
        try:
            found.append(check(case))
        except Exception:  # noqa: BLE001 - of any library
            found.append(False)
    return found


def inference(explain: Explain, times: int) -> list[bool]:
    """A thread that runs `model(x)` under `no_grad` gets its output, without gradients and errors."""
    model, x = net(), picture()
    expected = model(x).detach()

    def served(_: int) -> bool:
        with torch.no_grad():
            output = model(x)
            return torch.equal(output, expected) and not output.requires_grad and not torch.is_grad_enabled()

    with again_and_again(lambda: explain(model, x)):
        return held(range(1000 * times), served)


def training(explain: Explain, times: int) -> list[bool]:
    """A thread that trains finds each module's mode as it set it, and gets exactly the gradients that it gets alone."""
    model, x = net().train(), picture()
    model.norm.eval()
    model.stem.requires_grad_(False)
    model.drop.p = 0.0
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    alone = gradients(model, x)

    def trained(_: int) -> bool:
        found = gradients(model, x)
        pairs = zip(found, alone, strict=True)
        same = all(one is other if other is None else torch.equal(one, other) for one, other in pairs)
        kept = [parameter.requires_grad for parameter in model.parameters()] == wanted
        return same and kept and [module.training for module in model.modules()] == modes

    with again_and_again(lambda: explain(model, x)):
        return held(range(300 * times), trained)


def gradients(model: nn.Module, x: Tensor) -> list[Tensor | None]:
    """Those of one step of training."""
    model.zero_grad()
    model(x).square().sum().backward()
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]


def at_once(explain: Explain, times: int) -> list[bool]:
    """Two threads that explain one model at the same time get the maps that they get alone."""
    model, pictures = net(), (picture(), picture().flip(-1))
    expected = [explain(model, x).clone() for x in pictures]
    with again_and_again(lambda: explain(model, pictures[1])):
        return held(range(200 * times), lambda _: torch.allclose(explain(model, pictures[0]), expected[0], atol=1e-6))


def repeatable(explain: Explain, times: int) -> list[bool]:
    """The map of a model that draws random numbers is the same each time, and the caller's numbers stay the same."""
    model, x = net(Drawing), picture()
    expected = explain(model, x).clone()

    def same(_: int) -> bool:
        before = torch.get_rng_state()
        return torch.equal(explain(model, x), expected) and torch.equal(torch.get_rng_state(), before)

    return held(range(20 * times), same)


def forks(explain: Explain, times: int) -> list[bool]:
    """A process that is forked while a thread explains can explain."""
    model, x = net(), picture()
    expected = explain(model, x).clone()

    def explained(_: int) -> bool:
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            torch.set_num_threads(1)
            right = bool(held([0], lambda _: torch.allclose(explain(model, x), expected, atol=1e-6))[0])
            os._exit(not right)
        return os.waitpid(child, 0)[1] == 0

    with again_and_again(lambda: explain(model, x)):
        return held(range(8 * times), explained)


def interrupts(explain: Explain, times: int) -> list[bool]:
    """After Ctrl-C at a random line the model is unchanged, also its output, and the next map is right."""
    model, x, counter = net(), picture(), Interrupter()
    expected, output = explain(model, x).clone(), model(x).detach()
    counter.run(lambda: explain(model, x))
    chosen = random.Random(0)

    def unharmed(_: int) -> bool:
        fresh = copy.deepcopy(model)  # so that what one interrupt leaves does not count again
        instant = chosen.randrange(1, counter.lines + 1)
        check_model_untouched(fresh, lambda: Interrupter(instant).run(lambda: explain(fresh, x)))
        right = torch.equal(fresh(x).detach(), output) and torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        return right and torch.allclose(explain(fresh, x), expected, atol=1e-6)

    return held(range(300 * times), unharmed)


def prepared() -> Iterator[Net]:
    """A network in evaluation mode, in training, partly frozen, and with gradients of its own."""
    yield net()
    yield net().train()
    frozen = net()
    frozen.stem.requires_grad_(False)
    frozen.norm.train()
    yield frozen
    trained = net()
    trained(picture()).sum().backward()
    yield trained


def untouched(explain: Explain, times: int) -> list[bool]:
    """After a call the model is as before: weights, gradients, `requires_grad`, modes, buffers and hooks."""

    def kept(model: Net) -> bool:
        check_model_untouched(model, lambda: explain(model, picture(2)))
        return True

    return held(prepared(), kept)


def after_errors(explain: Explain, times: int) -> list[bool]:
    """The same after a call that fails: pixels of five channels, and a forward that fails on its way back."""

    def failed(case: tuple[Net, Tensor]) -> bool:
        model, pixels = case

        def call() -> None:
            with suppress(Exception):
                explain(model, pixels)

        check_model_untouched(model, call)
        return True

    cases: list[tuple[Net, Tensor]] = [(model, torch.ones(1, 5, *SIZE)) for model in prepared()]
    for model in prepared():
        model.head = nn.Linear(7, 5).train(model.head.training)  # after the target layer
        cases.append((model, picture()))
    return held(cases, failed)


def wrapped() -> Iterator[Callable[[], nn.Module]]:
    """The network compiled, in DDP, offloaded, scripted and with a quantized head."""
    yield lambda: torch.compile(net(), backend="eager")
    yield lambda: nn.parallel.DistributedDataParallel(net())
    yield lambda: import_module("accelerate").cpu_offload(net(), execution_device="cpu")
    yield lambda: torch.jit.script(net())
    yield lambda: torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)


def right_or_refused(explain: Explain, times: int) -> list[bool]:
    """A wrapped or converted model gets the map of the plain one, or an exception; never another map."""
    x = picture()
    expected = explain(net(), x).clone()

    def right(make: Callable[[], nn.Module]) -> bool:
        model = make()
        try:
            found = explain(model, x)
        except Exception:  # noqa: BLE001 - of any library
            return True
        return bool(torch.allclose(found, expected, atol=0.02 * expected.abs().max().item()))

    with process_group():
        return held(wrapped(), right)


@contextmanager
def process_group() -> Iterator[None]:
    """A group of this process alone, which DDP needs."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def inputs(explain: Explain, times: int) -> list[bool]:
    """Pixels that are no picture give an exception or a finite map."""
    x = picture()
    odd: list[Callable[[], Tensor]] = [
        lambda: x * float("nan"),
        lambda: x / 0,
        lambda: torch.where(x > 0.99, float("nan"), x),
        lambda: x.to_sparse(),
        lambda: x.to("meta"),
        lambda: x.to(torch.complex64),
        lambda: (x * 255).byte(),
        lambda: x[:0],
        lambda: x[..., :0],
        lambda: x[0],
        lambda: x * 1e38,
        lambda: x.double(),
    ]

    def finite(make: Callable[[], Tensor]) -> bool:
        try:
            return bool(explain(net(), make()).isfinite().all())
        except Exception:  # noqa: BLE001 - of any library
            return True

    return held(odd, finite)


def memory(explain: Explain, times: int) -> list[bool]:
    """2,000 calls in a row leave less than 1 MB more; counted by hundreds of calls after the first two hundred."""
    model, x = net(), picture()
    for _ in range(200):
        explain(model, x)
    gc.collect()
    before, found = resident(), []
    for _ in range(CALLS // 100):
        for _ in range(100):
            explain(model, x)
        gc.collect()
        found.append(resident() - before < 2**20)
    print(f"memory: {(resident() - before) / 2**20:+.1f} MB", flush=True)
    return found


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Promise:
    """A row of the table.

    Args:
        text: What is promised.
        tested: The tests that hold it, in `tests/`.
        measure: Runs the cases; None where hf-cam alone is measured, by the command.
        command: What measures it, where that is another command.
    """

    text: str
    tested: str
    measure: Callable[[Explain, int], list[bool]] | None = None
    command: str = ""


PROMISES: dict[str, Promise] = {
    "forks": Promise("A process that is forked while a thread explains can explain", "test_threads.py", forks),
    "inference": Promise("Other threads that run the model see nothing of it", "test_threads.py", inference),
    "training": Promise("A thread that trains gets its modes and every gradient", "test_threads.py", training),
    "at-once": Promise("Two threads that explain one model get their own maps", "test_threads.py", at_once),
    "repeatable": Promise("Maps of models that draw random numbers repeat", "test_threads.py", repeatable),
    "interrupts": Promise("After Ctrl-C nothing acts on the model, and maps are right", "test_threads.py", interrupts),
    "untouched": Promise("A call leaves the model exactly as it was", "test_threads.py", untouched),
    "after-errors": Promise("So does a call that fails", "test_bad_input.py", after_errors),
    "wrapped": Promise("A wrapped model gets the right map, or is refused", "test_wrapped.py", right_or_refused),
    "inputs": Promise("Odd pixels give a finite map, or are refused", "test_fuzz.py", inputs),
    "every-method": Promise(
        "Ctrl-C at random lines leaves nothing behind: 300 for each of 38 methods",
        "test_threads.py",
        command="HF_CAM_INTERRUPTS=150 pytest -m slow tests/test_threads.py -k any_instant",
    ),
    "drawn-inputs": Promise(
        "Images, targets, options and config files that hypothesis draws end in maps or in one sentence",
        "test_fuzz.py",
        command="pytest -m slow tests/test_fuzz.py",
    ),
    "guided-fuzzing": Promise(
        "Pictures, files and targets, changed for half an hour as coverage guides, end in maps or in one sentence",
        "test_fuzz.py",
        command="python -m benchmarks.fuzzing --minutes 30",
    ),
}  # fmt: skip


# Results -------------------------------------------------------------------------------------------------------------

HEAD = """# What you can rely on

Written by `python -m benchmarks.reliability --write`. A cell gives the cases that held, of those tried. Other libraries
ran the same cases: Grad-CAM of a small network, called as their documentation shows it. An exception counts as a
refusal, whatever it says. Many of these cases are no aim of theirs; the table shows what to expect, not who is better.

{versions}

| promise | tests | {names} |
|---|---|{rule}|
"""
ALONE = """
Longer runs, of hf-cam alone:

| promise | tests | command | held |
|---|---|---|---|
"""


def read() -> dict[str, Any]:
    """The results so far."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    return {"versions": "", "held": {}, **found}


def keep(results: dict[str, Any]) -> None:
    """Write the results, in the order of the promises."""
    order = {name: results["held"][name] for name in PROMISES if name in results["held"]}
    RESULTS.write_text(json.dumps({**results, "held": order}, indent=1) + "\n", encoding="utf-8")


def page(results: dict[str, Any]) -> str:
    """The page in Markdown."""
    names = " | ".join(LIBRARIES)
    text = HEAD.format(versions=results["versions"], names=names, rule="|".join(["--:"] * len(LIBRARIES)))
    for name, promise in PROMISES.items():
        if promise.measure and name in results["held"]:
            cells = [cell(results["held"][name][library]) for library in LIBRARIES]
            text += f"| {promise.text} | `{promise.tested}` | {' | '.join(cells)} |\n"
    text += ALONE
    for name, promise in PROMISES.items():
        if not promise.measure and name in results["held"]:
            own = cell(results["held"][name]["hf-cam"])
            text += f"| {promise.text} | `{promise.tested}` | `{promise.command}` | {own} |\n"
    return text


def cell(counts: list[int] | None) -> str:
    """The cases that held, of those tried; in bold where one did not."""
    if counts is None:
        return "**the process died**"
    good, tried = counts
    text = f"{good:,} of {tried:,}"
    return text if good == tried else f"**{text}**"


def versions() -> str:
    """The packages that were compared."""
    found = []
    for name in ("hf-cam", "grad-cam", "torchcam", "captum", "torch"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {hf_cam.__version__ if name == 'hf-cam' else version(name)}")
    return ", ".join(found)


def in_a_process(name: str, library: str, times: int) -> list[int] | None:
    """Held and tried cases, in a fork, so that what one library leaves behind concerns no other; None if it dies."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        found = PROMISES[name].measure(LIBRARIES[library], times)  # type: ignore[misc]
        os.write(write_end, json.dumps([sum(found), len(found)]).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    measured = [name for name, promise in PROMISES.items() if promise.measure]
    parser.add_argument("--only", nargs="+", choices=measured, default=measured)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--record", nargs=3, metavar=("PROMISE", "HELD", "CASES"))
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = read()
    if args.record:
        name, *counts = args.record
        results["held"][name] = {"hf-cam": [int(count) for count in counts]}
    else:
        results["versions"] = versions()
        for library in args.libraries:
            LIBRARIES[library](net(), picture())  # imports it, before anything is timed or forked
        for name in args.only:
            for library in args.libraries:
                started = time.monotonic()
                found = in_a_process(name, library, args.times)
                results["held"].setdefault(name, {})[library] = found
                print(name, library, cell(found), f"{time.monotonic() - started:.0f} s", flush=True)
                keep(results)
    keep(results)
    if args.write:
        PAGE.write_text(page(results), encoding="utf-8")
    print(page(results))
    sys.exit(any(counts.get("hf-cam") is None or len(set(counts["hf-cam"])) > 1 for counts in results["held"].values()))


if __name__ == "__main__":
    main()
