"""Methods that run the model on many variants of a picture, each written out from its paper's equation, one at a time.

Random masks, noise and factorizations are hf-cam's: the papers leave them to chance. Every function takes a net whose
output has `logits`, a picture `[1, C, H, W]` and a class, and returns a map or scores of it, in the net's precision;
importing this module adds a comparison of each to `EQUATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.equations import CLASS, LAST, QUERY, SIZE, Pair, equation, make, pictures, raw_map, stretched
from hf_cam import CAM
from hf_cam.capture.capture import capture
from hf_cam.methods.concepts import factorize
from hf_cam.methods.rise import RandomMasks
from hf_cam.methods.run import Run
from hf_cam.methods.variants import noisy
from hf_cam.targets import ClassLogit, QueryLogit

Net = nn.Module
FALLING = 3
"""A class whose logit falls when a part of the picture is hidden."""
Score = Callable[[Tensor], float]
"""Of a picture `[1, C, H, W]`."""


def logit(net: Net, x: Tensor, target: int) -> Tensor:
    with torch.no_grad():
        return net(x).logits[0, target]


def probability(net: Net, x: Tensor, target: int) -> Tensor:
    with torch.no_grad():
        return net(x).logits[0].softmax(0)[target]


@contextmanager
def changed(net: Net, layer: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While a layer's output tensor is changed."""

    def hook(_: Net, __: Any, output: Any) -> Any:
        return change(output) if isinstance(output, Tensor) else (change(output[0]), *output[1:])

    handle = net.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def output_of(net: Net, layer: str, x: Tensor) -> Tensor:
    """A layer's output tensor."""
    seen: list[Tensor] = []
    with torch.no_grad(), changed(net, layer, lambda output: seen.append(output) or output):
        net(x)
    return seen[0]


# Hidden parts --------------------------------------------------------------------------------------------------------


def occlusion(net: Net, x: Tensor, target: int, patch: int, stride: int, fill: float) -> Tensor:
    """For each pixel the mean fall of the logit over the squares that hide it; one forward per square."""
    height, width = x.shape[-2:]
    total, count = torch.zeros_like(x[0, 0]), torch.zeros_like(x[0, 0])
    clean = logit(net, x, target)
    for top in starts(height, patch, stride):
        for left in starts(width, patch, stride):
            place = (..., slice(top, top + patch), slice(left, left + patch))
            hidden = x.clone()
            hidden[place] = fill
            total[place] += clean - logit(net, hidden, target)
            count[place] += 1
    return (total / count).clamp_min(0)


def starts(length: int, patch: int, stride: int) -> Iterator[int]:
    """Where a square begins as it slides along a side, until it reaches the end."""
    start = 0
    yield start
    while start + patch < length:
        start += stride
        yield start


def rise(score: Score, x: Tensor, masks: Tensor, keep: float) -> Tensor:
    """Eq. 6 of RISE: the masks `[N, H, W]` weighted by the scores of the masked pictures, over `N keep`."""
    total = torch.zeros_like(x[0, 0])
    for mask in masks:
        total += score(x * mask) * mask / (len(masks) * keep)
    return total


def match(net: Net, x: Tensor, query: int) -> Score:
    """Eqs. 3 and 4 of D-RISE: the best product of box overlap, cosine of the class scores and objectness."""

    def proposals(picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            found = net(picture)
        scores = found.logits[0].softmax(-1)[:, :-1]
        centre, side = found.pred_boxes[0, :, :2], found.pred_boxes[0, :, 2:]
        return torch.cat([centre - side / 2, centre + side / 2], 1), scores, scores.sum(1)

    boxes, classes, _ = (found[query] for found in proposals(x))

    def best(picture: Tensor) -> float:
        values = []
        for box, score, objectness in zip(*proposals(picture), strict=True):
            low, high = torch.maximum(box[:2], boxes[:2]), torch.minimum(box[2:], boxes[2:])
            shared = (high - low).clamp_min(0).prod()
            union = (box[2:] - box[:2]).prod() + (boxes[2:] - boxes[:2]).prod() - shared
            cosine = (score @ classes) / (score.norm() * classes.norm())
            values.append(float(shared / union * cosine * objectness))
        return max(values)

    return best


def recipro_cam(net: Net, layer: str, x: Tensor, target: int, space: tuple[int, int], gaussian: bool) -> Tensor:
    """Recipro-CAM: the probability when only one cell of the layer is kept, less the least; one forward per cell."""
    found = torch.zeros(space, dtype=x.dtype)
    for row in range(space[0]):
        for column in range(space[1]):
            window = torch.zeros(space, dtype=x.dtype)
            for r in range(space[0]):
                for c in range(space[1]):
                    far = max(abs(r - row), abs(c - column))
                    near = 2.0 ** -(2 + abs(r - row) + abs(c - column)) if far <= 1 else 0.0
                    window[r, c] = near if gaussian else float(far == 0)
            with changed(net, layer, partial(kept, window=window)):
                found[row, column] = probability(net, x, target)
    return found - found.min()


def kept(output: Tensor, window: Tensor) -> Tensor:
    """A layer's output, weighted by cell: maps `[B, C, h, w]`, or tokens `[B, prefix + cells, C]`."""
    if output.ndim == 4:
        return output * window
    prefix = output.shape[1] - window.numel()
    return torch.cat([output[:, :prefix], output[:, prefix:] * window.reshape(1, -1, 1)], 1)


@equation("occlusion", "patch=24, stride=14", on="a ResNet")
def occlusion_of_a_resnet() -> Pair:
    net = make("resnet")
    theirs = occlusion(net, pictures(), FALLING, patch=24, stride=14, fill=0.0)
    return raw_map(net, "occlusion", FALLING, patch=24, stride=14), theirs


@equation("rise", "samples=20", on="a ResNet")
def rise_of_a_resnet() -> Pair:
    net, x = make("resnet"), pictures()
    masks = RandomMasks.drawn(20, 7, 0.5, SIZE, seed=0).smooth(0, 20).double()
    theirs = rise(lambda picture: float(probability(net, picture, CLASS)), x, masks, 0.5)
    return raw_map(net, "rise", CLASS, samples=20), theirs


@equation("d-rise", "samples=20", on="a query of DETR")
def rise_of_a_detection() -> Pair:
    net, x = make("detr"), pictures()
    masks = RandomMasks.drawn(20, 16, 0.5, SIZE, seed=0).smooth(0, 20).double()
    theirs = rise(match(net, x, QUERY), x, masks, 0.5)
    return raw_map(net, "d-rise", QueryLogit(QUERY, CLASS), samples=20), theirs


@equation("recipro-cam", on="a ResNet")
def recipro_cam_of_a_resnet() -> Pair:
    net, x = make("resnet"), pictures()
    height, width = output_of(net, LAST, x).shape[-2:]
    return raw_map(net, "recipro-cam", CLASS), recipro_cam(net, LAST, x, CLASS, (height, width), gaussian=True)


# Masks made of channels ----------------------------------------------------------------------------------------------


def scores_of_masks(net: Net, x: Tensor, maps: Tensor, strength: float, target: int) -> Tensor:
    """The logit of the picture masked by each map `[C, h, w]`, enlarged and scaled to [0, 1]; one forward each."""
    found = []
    for one in maps:
        large = F.interpolate(one[None, None], x.shape[-2:], mode="bilinear")[0, 0]
        mask = stretched(large) if large.max() > large.min() else torch.zeros_like(large)
        found.append(logit(net, x * strength * mask, target))
    return torch.stack(found)


def is_cam(net: Net, x: Tensor, cells: Tensor, target: int, steps: int) -> Tensor:
    """IS-CAM: channels `[C, h, w]` weighted by their scores, averaged over masks from black to full strength."""
    scores = torch.stack([scores_of_masks(net, x, cells, i / steps, target) for i in range(1, steps + 1)])
    return weighted_by(scores.mean(0), cells)


def ss_cam(net: Net, x: Tensor, cells: Tensor, target: int, draws: int, noise: float, seed: int) -> Tensor:
    """SS-CAM: channels `[C, h, w]` weighted by their scores, averaged over channels with added noise."""
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(draws):
        added = noise * torch.randn(cells.shape[1:], generator=generator).to(cells)
        scores.append(scores_of_masks(net, x, cells + added, 1.0, target))
    return weighted_by(torch.stack(scores).mean(0), cells)


def weighted_by(scores: Tensor, cells: Tensor) -> Tensor:
    weights = torch.where(cells.amax((1, 2)) == cells.amin((1, 2)), 0, scores.softmax(0))
    return (weights[:, None, None] * cells).sum(0).clamp_min(0)


def concept_map(net: Net, layer: str, x: Tensor, vectors: Tensor, strengths: Tensor, target: int) -> Tensor:
    """The concepts' strengths `[K, h, w]`, each weighted by the logit that its vector `[K, C]` adds in every cell."""

    def everywhere(vector: Tensor) -> Tensor:
        with changed(net, layer, lambda output: vector[None, :, None, None].expand_as(output).clone()):
            return logit(net, x, target)

    nothing = everywhere(torch.zeros_like(vectors[0]))
    total = torch.zeros_like(strengths[0])
    for vector, strength in zip(vectors, strengths, strict=True):
        total += (everywhere(vector * strength.max()) - nothing) * strength / strength.max()
    return total.clamp_min(0)


@equation("iscam", "steps=3", on="a ResNet")
def is_cam_of_a_resnet() -> Pair:
    net, x = make("resnet"), pictures()
    return raw_map(net, "iscam", CLASS, steps=3), is_cam(net, x, output_of(net, LAST, x)[0], CLASS, 3)


@equation("sscam", "draws=3", on="a ResNet")
def ss_cam_of_a_resnet() -> Pair:
    net, x = make("resnet"), pictures()
    return raw_map(net, "sscam", CLASS, draws=3), ss_cam(net, x, output_of(net, LAST, x)[0], CLASS, 3, 2.0, 0)


@equation("dff", "components=3", on="a ResNet, with hf-cam's factors")
def dff_of_a_resnet() -> Pair:
    net, x = make("resnet"), pictures()
    vectors, strengths = factorize(output_of(net, LAST, x), 3, seed=0)
    theirs = concept_map(net, LAST, x, vectors.double(), strengths[0].double(), FALLING)
    return raw_map(net, "dff", FALLING, components=3), theirs


# Gradients -----------------------------------------------------------------------------------------------------------


def noisy_copies(net: Net, x: Tensor, samples: int, noise: float, seed: int) -> Tensor:
    """The copies of a picture over which SmoothGrad averages, `[samples, C, H, W]`."""
    adapter = CAM(net).adapter
    with capture(net, adapter.layers, {"pixel_values": x}, gradients=False) as captured:
        size = (x.shape[-2], x.shape[-1])
        run = Run(net, {"pixel_values": x}, captured, adapter, [ClassLogit(0)] * len(x), size)
        return noisy(run, samples, noise, seed)(0, 0, samples)


def smooth_grad(net: Net, copies: Tensor, target: int) -> Tensor:
    """Eq. 2 of SmoothGrad: the mean gradient over noisy copies, with the largest absolute value over the colours."""
    total = torch.zeros_like(copies[0])
    for copy in copies:
        leaf = copy[None].clone().requires_grad_()
        total += torch.autograd.grad(net(leaf).logits[0, target], leaf)[0][0] / len(copies)
    return total.abs().amax(0)


def smooth_plus_plus(net: Net, layer: str, x: Tensor, copies: Tensor, target: int) -> Tensor:
    """Smooth Grad-CAM++: its eq. 6 with the first three powers of the gradient averaged over noisy copies."""
    powers = torch.zeros(3, *output_of(net, layer, x)[0].shape, dtype=x.dtype)
    for copy in copies:
        seen: list[Tensor] = []
        with changed(net, layer, lambda output, seen=seen: seen.append(output) or output):
            score = net(copy[None]).logits[0, target]
        [g] = torch.autograd.grad(score, seen)
        powers += torch.stack([g[0], g[0] ** 2, g[0] ** 3]) / len(copies)
    total = torch.zeros_like(powers[0, 0])
    for a, first, second, third in zip(output_of(net, layer, x)[0], *powers, strict=True):
        alpha = second / (2 * second + a.sum() * third)
        total += (alpha * first.clamp_min(0)).sum() * a
    return total.clamp_min(0)


def guided(net: Net, x: Tensor, target: int) -> Tensor:
    """Guided backpropagation `[C, H, W]`: behind each ReLU, the negative part of the gradient is set to 0 as well."""

    def positive(_: Net, __: Any, output: Tensor) -> None:
        output.register_hook(lambda gradient: gradient.clamp_min(0))

    handles = [module.register_forward_hook(positive) for module in net.modules() if isinstance(module, nn.ReLU)]
    leaf = x.clone().requires_grad_()
    try:
        return torch.autograd.grad(net(leaf).logits[0, target], leaf)[0][0]
    finally:
        for handle in handles:
            handle.remove()


@equation("smoothgrad", "samples=5", on="a ResNet")
def smooth_grad_of_a_resnet() -> Pair:
    net, x = make("resnet"), pictures()
    theirs = smooth_grad(net, noisy_copies(net, x, 5, 0.15, 0), CLASS)
    return raw_map(net, "smoothgrad", CLASS, samples=5), theirs


@equation("smoothgradcam++", "samples=5", on="a ResNet")
def smooth_plus_plus_of_a_resnet() -> Pair:
    net, x = make("resnet"), pictures()
    theirs = smooth_plus_plus(net, LAST, x, noisy_copies(net, x, 5, 0.15, 0), CLASS)
    return raw_map(net, "smoothgradcam++", CLASS, samples=5), theirs


@equation("guided-gradcam", on="a ResNet")
def guided_gradcam_of_a_resnet() -> Pair:
    net, x = make("resnet"), pictures()
    large = F.interpolate(stretched(raw_map(net, "gradcam", CLASS))[None, None], SIZE, mode="bilinear")[0, 0]
    theirs = (guided(net, x, CLASS) * large).sum(0).clamp_min(0)
    return raw_map(net, "guided-gradcam", CLASS), theirs
