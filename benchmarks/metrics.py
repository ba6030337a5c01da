"""What computing metrics costs, compared with the reference package.

    python -m benchmarks.metrics [--repeats 3] [--device cpu] [--cpu-time]

ROAD over four percentiles, most and least relevant first, for 8 photographs at 224 x 224 with demo:imagenet and its
Grad-CAM maps. The packages alternate, and run without noise so that they must agree. Insertion and deletion in batches
are compared with one forward pass per step. Imputation is also measured alone: the rest of ROAD is the model's forward
passes, of which both packages run the same number. Prints medians of the paired ratios and whether the targets are met.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_cam import CAM
from hf_cam.interfaces.demo import PHOTOGRAPHS
from hf_cam.metrics import Scorer, Trial, area, confidence, impute, ranks
from hf_cam.metrics.measurements import blur
from hf_cam.metrics.trial import PERCENTILES, STEPS
from hf_cam.models.loading import load
from hf_cam.targets import ClassLogit

ROAD_SPEED, TOLERANCE = 5.0, 1e-3
Clock = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure processor time of one thread, for a busy machine"
    )
    options = parser.parse_args()
    if options.cpu_time:
        torch.set_num_threads(1)
    clock = time.process_time if options.cpu_time else time.perf_counter
    loaded = load("demo:imagenet", device=options.device)
    images = [photograph.image() for photograph in PHOTOGRAPHS]
    images.append(images[0].transpose(0))
    pixels = loaded.pixel_values(images).to(options.device)
    with torch.no_grad():
        classes = loaded.model(pixels).logits.argmax(1).tolist()
    maps = CAM(loaded.model)(pixels, classes)
    maps = maps + 1e-4 * torch.rand(maps.shape, generator=torch.Generator().manual_seed(0)).to(maps)
    maps = maps / maps.amax((1, 2), keepdim=True)  # no ties: the reference removes all equal pixels together
    scorer = Scorer(loaded.model, {"pixel_values": pixels}, [confidence(ClassLogit(index)) for index in classes])
    measured = "processor time of one thread" if options.cpu_time else f"{torch.get_num_threads()} threads"
    print(f"8 photographs at {pixels.shape[2]} x {pixels.shape[3]}, {options.device}, {measured}\n")
    print("| | hf-cam | other | ratio | largest difference | |")
    print("|---|--:|--:|--:|--:|---|")
    road(loaded.model, scorer, maps, pixels, classes, options.repeats, clock)
    imputation(maps, pixels, options.repeats, clock)
    sweep(scorer, maps, options.repeats, clock)


def road(
    model: Any, scorer: Scorer, maps: Tensor, pixels: Tensor, classes: list[int], repeats: int, clock: Clock
) -> None:
    from pytorch_grad_cam.metrics import road as reference
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    class Logits(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return model(images).logits

    reference.NoisyLinearImputer.__init__.__defaults__ = (0.0, reference.neighbors_weights)
    judge, targets, net = (
        reference.ROADCombined(list(PERCENTILES)),
        [ClassifierOutputSoftmaxTarget(c) for c in classes],
        Logits(),
    )
    arrays = maps.cpu().numpy()
    report(
        "ROAD, 4 percentiles, compared with grad-cam",
        lambda: Trial(maps, scorer, noise=0.0).measure("road")["road"],
        lambda: torch.from_numpy(np.asarray(judge(pixels, arrays, targets, net))),
        repeats,
        ROAD_SPEED,
        clock,
    )


def imputation(maps: Tensor, pixels: Tensor, repeats: int, clock: Clock) -> None:
    """Imputation alone, for one of the two orders."""
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    counts = [round(share / 100 * maps[0].numel()) for share in PERCENTILES]
    missing = torch.stack([ranks(maps) < count for count in counts], 1).flatten(0, 1)
    images = pixels[:, None].expand(-1, len(counts), -1, -1, -1).flatten(0, 1)
    reference = NoisyLinearImputer(noise=0.0)
    report(
        "imputation alone, most relevant first",
        lambda: impute(images, missing, noise=0.0),
        lambda: torch.stack([reference(*pair) for pair in zip(images.cpu(), (~missing).float().cpu(), strict=True)]),
        repeats,
        None,
        clock,
    )


def sweep(scorer: Scorer, maps: Tensor, repeats: int, clock: Clock) -> None:
    report(
        "insertion and deletion, compared with one forward pass per step",
        lambda: Trial(maps, scorer).measure("insertion-deletion")["insertion-deletion"],
        lambda: step_by_step(scorer, maps),
        repeats,
        None,
        clock,
    )


def step_by_step(scorer: Scorer, maps: Tensor, steps: int = STEPS) -> Tensor:
    found = []
    for i in range(len(maps)):
        one = Scorer(scorer.model, {"pixel_values": scorer.pixels[i : i + 1]}, [scorer.targets[i]])
        places, sharp = Trial(maps[i : i + 1]).places, one.pixels
        dim = blur(sharp)
        curves: tuple[list[Tensor], list[Tensor]] = ([], [])
        for step in range(steps + 1):
            first = (places < step * places.numel() // steps)[:, None]
            curves[0].append(one(torch.where(first, sharp, dim)[:, None])[0, 0])
            curves[1].append(one(torch.where(first, 0 * sharp, sharp)[:, None])[0, 0])
        found.append(area(torch.stack(curves[0])) - area(torch.stack(curves[1])))
    return torch.stack(found)


def report(
    name: str,
    ours: Callable[[], Tensor],
    other: Callable[[], Tensor],
    repeats: int,
    target: float | None,
    clock: Clock,
) -> None:
    times, gap = [], 0.0
    for _ in range(repeats):
        mine, a = timed(ours, clock)
        theirs, b = timed(other, clock)
        times.append((a, b))
        gap = max(gap, float((mine.cpu() - theirs.cpu()).abs().max()))
    seconds = np.median(times, axis=0)
    ratio = float(np.median([b / a for a, b in times]))
    same = f"{gap:.1e} " + ("<= 1e-3 met" if gap <= TOLERANCE else "> 1e-3 NOT MET")
    verdict = (
        ""
        if target is None
        else f"{ratio:.1f} >= {target:.0f} met"
        if ratio >= target
        else f"{ratio:.1f} < {target:.0f} NOT MET"
    )
    print(f"| {name} | {seconds[0]:.2f} s | {seconds[1]:.2f} s | {ratio:.1f} | {same} | {verdict} |", flush=True)


def timed(run: Callable[[], Tensor], clock: Clock) -> tuple[Tensor, float]:
    started = clock()
    with warnings.catch_warnings(action="ignore"):
        found = run()
    if found.is_cuda:
        torch.cuda.synchronize()
    return found, clock() - started


if __name__ == "__main__":
    main()
