"""Methods that ask the model itself: beside captum and torchxai, and in forwards of the model.

    python -m benchmarks.blackbox [--model ResNet-50] [--masks 1000] [--repeats 3] [--only beside] [--markdown PAGE]

First table ("beside"): the same definition with the same settings in hf-cam, captum (occlusion, integrated gradients,
SmoothGrad, input x gradient) and torchxai-explain (RISE), on a model of real size with random weights, the last layer
scaled so that the logits of masked pictures differ. The largest difference of the values, relative to the largest
value, and hf-cam's time as a multiple of the other library's, as the median over pairs of adjacent calls. Random masks
and noise are hf-cam's in both libraries. The peers are the extra "peers".

Second table ("goals"): what Recipro-CAM and RISE with tokens left out cost, in plain forwards timed next to them, and
the rank correlation of RISE's two versions on scenes, averaged over them. Of RISE's masks `--masks` are timed, in
batches as the pixel version takes them; a forward is the median of nine before the call and nine after it. Processor
time of one thread. Prints Markdown, and `--markdown` writes the first table into a page, between its marks; the exit
code is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.inference_cost import MODELS, SIDE, Logits, build, forward, pictures
from benchmarks.pages import write
from benchmarks.scenes import scenes
from hf_cam import CAM
from hf_cam.capture.capture import capture
from hf_cam.methods.rise import RandomMasks
from hf_cam.methods.run import Run
from hf_cam.methods.variants import noisy
from hf_cam.metrics import rank_correlation
from hf_cam.models.loading import load
from hf_cam.targets import ClassLogit

TARGET, STEPS, SAMPLES, PATCH, STRIDE, AT_ONCE = 7, 8, 8, 64, 40, 4
FEW = 48
"""Masks for which pixels are hidden too, which takes as many forwards."""
Call = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ResNet-50", choices=MODELS)
    parser.add_argument("--masks", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("beside", "goals"), help="one of the two tables")
    parser.add_argument("--markdown", type=Path, help="the page to write the first table into")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables = {
        "beside": lambda: beside_table(options.model, options.repeats),
        "goals": lambda: goals_table(options.masks, options.repeats),
    }
    missed = False
    for name in [options.only] if options.only else tables:
        lines = []
        for line in tables[name]():
            print(line, flush=True)
            lines.append(line)
        missed |= any("NOT MET" in line for line in lines)
        if options.markdown and name == "beside":
            write(options.markdown, name, "\n".join(lines))
    sys.exit(missed)


def beside_table(model: str, repeats: int) -> Iterator[str]:
    libraries = " and ".join(f"{name} {version(name)}" for name in ("captum", "torchxai-explain"))
    yield f"{model} with random weights, one image; {libraries}:\n"
    yield "| method | settings | library | largest difference | time, hf-cam / other |"
    yield "|---|---|---|--:|--:|"
    for case in cases(lively(build(model))):
        difference, ratio = compared(case.ours, case.theirs, repeats)
        yield f"| {case.method} | {case.settings} | {case.library} | {difference:.1e} | {ratio:.2f} |"


def goals_table(masks: int, repeats: int) -> Iterator[str]:
    yield "| figure | value | goal |"
    yield "|---|--:|--:|"
    for words, value, goal in goals(masks, repeats):
        verdict = "" if goal is None else f"<= {goal:.2f}: {'met' if value <= goal else 'NOT MET'}"
        yield f"| {words} | {value:.2f} | {verdict} |"


# Beside others --------------------------------------------------------------------------------------------------------


def lively(model: nn.Module) -> nn.Module:
    """The model with its last layer shifted and scaled so that each logit varies by about 1 around 0.

    With random weights as they are, all masked pictures have the same probability, and torchxai returns an empty map.
    """
    masks = RandomMasks.drawn(SAMPLES, 7, 0.5, (SIDE, SIDE), 0).smooth(0, SAMPLES)
    with torch.no_grad():
        logits = model(pictures(1) * masks[:, None]).logits
        spread = logits.std(0).mean()
        *_, last = (module for module in model.modules() if isinstance(module, nn.Linear))
        last.weight /= spread
        last.bias.copy_((last.bias - logits.mean(0)) / spread)
    return model


@dataclass(frozen=True)
class Case:
    """One definition in two libraries: calls that return the values before any scaling."""

    method: str
    settings: str
    library: str
    ours: Call
    theirs: Call


def cases(model: nn.Module) -> Iterator[Case]:
    """The methods that another library defines likewise."""
    from captum.attr import InputXGradient, IntegratedGradients, NoiseTunnel, Occlusion, Saliency
    from torchxai.methods.rise import RISE

    pixels, logits = pictures(1), Logits(model)

    def ours(method: str, **options: object) -> Call:
        cam = CAM(model, method, rerun_batch_size=AT_ONCE, **options)
        return lambda: cam.saliency(pixels, lambda _: [[TARGET]]).raw[0][0].clamp_min(0)

    def shown(values: Tensor) -> Tensor:
        return values.detach().sum(1).clamp_min(0)

    yield Case(
        "occlusion",
        f"squares of {PATCH} pixels, {STRIDE} apart",
        "captum",
        ours("occlusion", patch=PATCH, stride=STRIDE),
        lambda: shown(
            Occlusion(logits).attribute(
                pixels, (3, PATCH, PATCH), (3, STRIDE, STRIDE), 0.0, TARGET, perturbations_per_eval=AT_ONCE
            )
            / 3  # it gives each colour the whole difference
        ),
    )
    yield Case(
        "input x gradient",
        "",
        "captum",
        ours("input-x-gradient"),
        lambda: shown(InputXGradient(logits).attribute(pixels.clone().requires_grad_(), TARGET)),
    )
    yield Case(
        "integrated gradients",
        f"{STEPS} steps",
        "captum",
        ours("integrated-gradients", steps=STEPS),
        lambda: shown(
            IntegratedGradients(logits).attribute(
                pixels, 0.0, TARGET, n_steps=STEPS, method="riemann_middle", internal_batch_size=AT_ONCE
            )
        ),
    )
    draws = noise_of(model, pixels)

    def tunnel() -> Tensor:
        with mock.patch.object(torch, "normal", return_value=draws):
            found = NoiseTunnel(Saliency(logits)).attribute(
                pixels, nt_type="smoothgrad", nt_samples=SAMPLES, stdevs=1.0, target=TARGET, abs=False
            )
        return found.detach().abs().amax(1)

    yield Case("SmoothGrad", f"{SAMPLES} copies", "captum", ours("smoothgrad", samples=SAMPLES), tunnel)
    masks = RandomMasks.drawn(SAMPLES, 7, 0.5, pixels.shape[2:], 0)
    whole = masks.smooth(0, SAMPLES).sum(0)
    plain = ours("rise", samples=SAMPLES)

    def rise() -> Tensor:
        with (
            mock.patch.object(torch, "rand", return_value=1 - masks.grids[:, None]),
            mock.patch.object(torch, "randint", side_effect=[*masks.shifts.T]),
        ):
            explainer = RISE(nn.Sequential(logits, nn.Softmax(1)), n_masks=SAMPLES, batch_size=SAMPLES)
            return torch.from_numpy(explainer(pixels, TARGET))[None]

    def scaled() -> Tensor:  # it divides by the sum of the masks and scales the map to [0, 1]
        found = plain() / whole.clamp_min(1e-8)
        return (found - found.amin()) / (found.amax() - found.amin())

    yield Case("RISE", f"{SAMPLES} masks", "torchxai-explain", scaled, rise)


def noise_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """The noise that SmoothGrad adds to the picture, `[samples, C, H, W]`."""
    adapter = CAM(model).adapter
    with capture(model, adapter.layers, {"pixel_values": pixels}, gradients=False) as captured:
        run = Run(model, {"pixel_values": pixels}, captured, adapter, [ClassLogit(TARGET)], tuple(pixels.shape[2:]))
        return noisy(run, SAMPLES, 0.15, 0)(0, 0, SAMPLES) - pixels


def compared(ours: Call, theirs: Call, repeats: int) -> tuple[float, float]:
    """The largest difference relative to the largest value, and the median ratio of the times."""
    one, other = ours(), theirs()
    difference = ((one - other).abs().max() / other.abs().max()).item()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    return difference, statistics.median(mine / their for mine, their in pairs)


# Goals ----------------------------------------------------------------------------------------------------------------


def goals(masks: int, repeats: int) -> Iterator[tuple[str, float, float | None]]:
    """Each figure with its words and its goal, if it has one."""
    vit, convnext = build("ViT-B/16"), build("ConvNeXt-T")
    yield "Recipro-CAM on ConvNeXt-T, forwards", in_forwards(convnext, "recipro-cam", repeats), 1.3
    yield "Recipro-CAM on ViT-B/16, forwards", in_forwards(vit, "recipro-cam", 1), 20.0
    yield (
        f"RISE on ViT-B/16 with tokens left out, {masks} masks / {masks} forwards",
        share_of_forwards(vit, masks),
        0.55,
    )
    few = min(masks, FEW)
    dropped = rise_seconds(vit, few, "drop") / rise_seconds(vit, few, 0.0)
    yield f"RISE on ViT-B/16, {few} masks, tokens left out / pixels hidden", dropped, None
    loaded = load("demo:vit")
    shown = loaded.inputs([Image.fromarray(scene.image) for scene in scenes("test", 4, seed=5)])
    both = [CAM(loaded.model, "rise", samples=1000, fill=fill)(**shown, targets=[0, 1, 2, 3]) for fill in (0.0, "drop")]
    yield "RISE on the demo ViT, rank correlation of the two versions", rank_correlation(*both).mean().item(), None


def share_of_forwards(model: nn.Module, masks: int) -> float:
    """The time of RISE with tokens left out, as a multiple of as many plain forwards."""
    with forward(model) as plain:
        plain(pictures(1))
        before = [seconds(lambda: plain(pictures(1))) for _ in range(9)]
        own = rise_seconds(model, masks, "drop")
        after = [seconds(lambda: plain(pictures(1))) for _ in range(9)]
    return own / (masks * statistics.median(before + after))


def in_forwards(model: nn.Module, method: str, repeats: int) -> float:
    """The time of a call as a multiple of a plain forward's, as the median over pairs."""
    cam = CAM(model, method)
    with forward(model) as plain:
        cam(pictures(1), TARGET), plain(pictures(1))
        pairs = [
            (seconds(lambda: cam(pictures(1), TARGET)), seconds(lambda: plain(pictures(1)))) for _ in range(repeats * 3)
        ]
    return statistics.median(mine / one for mine, one in pairs)


def rise_seconds(model: nn.Module, masks: int, fill: float | str) -> float:
    """The time of a call, less what it takes with a single mask, which finds where the tokens enter."""
    few, many = (CAM(model, "rise", samples=count, fill=fill) for count in (1, 1 + masks))
    return seconds(lambda: many(pictures(1), TARGET)) - seconds(lambda: few(pictures(1), TARGET))


def seconds(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
