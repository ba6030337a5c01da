"""Methods that differentiate the target with respect to the picture itself, or average over noisy pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_cam.capture.guidance import guided_gradient
from hf_cam.errors import MethodError
from hf_cam.images.fills import Fill, filled
from hf_cam.maps import normalize, resize
from hf_cam.methods.gradient import gradcam
from hf_cam.methods.reductions import channel_sum, strongest
from hf_cam.methods.registry import Method, get_method, method
from hf_cam.methods.run import Run
from hf_cam.methods.signals import SIGNALS, pixel_gradients, signal
from hf_cam.methods.variants import mean_of_variants, noisy
from hf_cam.request import check_count, check_positive, check_seed
from hf_cam.target_layers.stages import target_layers
from hf_cam.targets import Target, target_values

PASS = 2.2
"""Forwards that one forward and one backward pass through the whole model take."""


@method(
    "gradient",
    name="InputGradient",
    reduce=strongest,
    paper="Simonyan et al., Deep Inside Convolutional Networks, ICLR Workshops 2014, arXiv:1312.6034",
    summary="Largest absolute gradient over the colours of each pixel; uses no layer.",
    unsigned="it shows absolute values",
)
def gradient(pixel_gradients: Tensor) -> Tensor:
    """The gradient with respect to the picture; its map is the largest absolute value over the colours."""
    return pixel_gradients


@method(
    "input-x-gradient",
    name="InputXGradient",
    paper="Shrikumar et al., Not Just a Black Box, arXiv:1605.01713",
    summary="Each pixel times its gradient, summed over the colours; uses no layer.",
)
def input_x_gradient(pixels: Tensor, pixel_gradients: Tensor) -> Tensor:
    """`x g` in the model's own units, so that a pixel of a processor's mean colour contributes nothing."""
    return pixels * pixel_gradients


@signal(
    "the picture less a baseline, times the mean gradient on the straight path between them, `[B, C, H, W]`",
    cost="one forward and one backward pass per step of the path",
    gradients=True,
    pixels=True,
    layered=False,
    forwards=lambda steps: PASS * steps,
    connected=True,
)
def path_terms(run: Run, layer: str, steps: int = 50, fill: Fill = 0.0) -> Tensor:
    """`(x - x') / m sum(g(x' + (k - 1/2) / m (x - x')))` over k = 1, ..., m, `[B, C, *space]`.

    Args:
        run: The run of the pictures x.
        layer: Not used, as the path leads through pixels.
        steps: The number m of points of the midpoint rule.
        fill: The baseline x'; see `hf_cam.images.fills.filled`.
    """
    check_count("steps", steps)
    pixels = run.pixels
    start_of = filled(pixels, fill)

    def on_path(sample: int, start: int, stop: int) -> Tensor:
        share = (torch.arange(start, stop, dtype=torch.float64) + 0.5) / steps
        share = share.to(pixels).reshape(-1, *(1,) * (pixels.ndim - 1))
        return torch.lerp(start_of[sample : sample + 1], pixels[sample : sample + 1], share)

    own = [SIGNALS.get("pixel_gradients")]
    return (pixels - start_of) * mean_of_variants(
        run, layer, steps, on_path, own, lambda part: pixel_gradients(part, layer)
    )


@method(
    "integrated-gradients",
    name="IntegratedGradients",
    paper="Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017, arXiv:1703.01365",
    summary="Each pixel's share of the change in score from a baseline to the picture; uses no layer.",
    departure="The integral is summed by the midpoint rule; the paper sums at the right end of each step.",
)
def integrated_gradients(path_terms: Tensor) -> Tensor:
    """The terms sum to `y(x) - y(x')` as the number of steps grows (completeness).

    The integral is summed by the midpoint rule, whose error falls with the square of the number of steps; the paper
    sums at the right end of each step. The baseline is the processor's mean colour (`fill=0.0`), not black.
    """
    return path_terms


def layered_as(base: str = "gradient") -> bool:
    """Whether the base method's contributions depend on the target layer."""
    record = smoothed(base)
    return any(one.depends_on_layer(record.options) for one in record.signals)


@signal(
    "the base method's contributions, averaged over noisy copies of the picture",
    cost="one forward and one backward pass per noisy copy",
    gradients=True,
    pixels=True,
    layered=layered_as,
    forwards=lambda samples: PASS * samples,
    connected=True,
)
def noisy_contributions(
    run: Run, layer: str, base: str = "gradient", samples: int = 50, noise: float = 0.15, seed: int = 0
) -> Tensor:
    """`[B, C, *space]`: `1 / n sum(contributions(x + N(0, s^2)))`, before they become one map.

    Args:
        run: The run of the pictures x.
        layer: The target layer of the base method.
        base: The id of a method that differentiates once and reads no other layers.
        samples: The number n of noisy copies.
        noise: The standard deviation s, as a share of the picture's largest less its smallest value.
        seed: Seed of the noise, which is the same for every picture of a batch.
    """
    record = smoothed(base)
    check_count("samples", samples)
    check_positive("noise", noise)
    check_seed(seed)

    def measure(part: Run) -> Tensor:
        return record.contributions(**{one.name: one.of(part, layer, record.options) for one in record.signals})

    return mean_of_variants(run, layer, samples, noisy(run, samples, noise, seed), record.signals, measure)


def smoothed(base: str) -> Method:
    """The method of which SmoothGrad takes the mean.

    Raises:
        MethodError: there is none, or it is not one that differentiates the model once.
    """
    found = get_method(base)
    if not found.needs_gradients or found.reruns or found.layers is not target_layers:
        raise MethodError(
            f"'smoothgrad' needs a base method that differentiates the model once, such as 'gradient', "
            f"'input-x-gradient', 'gradcam' or 'layercam', which {base!r} is not"
        )
    return found


def reduced_as(contributions: Tensor, base: str = "gradient") -> Tensor:
    """One map from the contributions, as the base method makes it."""
    return smoothed(base).reduce(contributions)


def retargeted_as(target: Target, base: str = "gradient") -> Target:
    """The target that the base method differentiates."""
    return smoothed(base).retarget(target)


def unsigned_as(base: str = "gradient") -> str:
    """Why the base method's map has no sign; empty if it has one."""
    return smoothed(base).why_unsigned({})


@method(
    "smoothgrad",
    name="SmoothGrad",
    reduce=reduced_as,
    retarget=retargeted_as,
    paper="Smilkov et al., SmoothGrad, arXiv:1706.03825",
    summary="A gradient method averaged over noisy copies of the picture; by default the gradient of the pixels.",
    unsigned=unsigned_as,
)
def smoothgrad(noisy_contributions: Tensor) -> Tensor:
    """The mean over noisy pictures of the base method's contributions, which only then become one map.

    So the absolute value that the gradient is shown by is taken of the mean.
    """
    return noisy_contributions


@signal(
    "the mean over noisy copies of the gradient with respect to the activations and of its square and cube",
    cost="one forward and one backward pass to the target layer per noisy copy",
    gradients=True,
    forwards=lambda samples: 1.1 * samples,
    connected=True,
)
def noisy_powers(run: Run, layer: str, samples: int = 8, noise: float = 0.15, seed: int = 0) -> Tensor:
    """`[B, 3, C, *space]`; the arguments are those of `noisy_contributions`."""
    check_count("samples", samples)
    check_positive("noise", noise)
    check_seed(seed)

    def measure(part: Run) -> Tensor:
        found = SIGNALS.get("gradients").of(part, layer, {})
        wide = found if found.dtype == torch.float64 else found.float()
        return torch.stack([wide, wide**2, wide**3], 1)

    own: Any = [SIGNALS.get("gradients")]
    return mean_of_variants(run, layer, samples, noisy(run, samples, noise, seed), own, measure)


@method(
    "smoothgradcam++",
    name="SmoothGradCAMPlusPlus",
    paper="Omeiza et al., Smooth Grad-CAM++, arXiv:1908.01224",
    summary="Grad-CAM++ whose derivatives are averaged over noisy copies of the picture.",
    unsigned="it keeps positive gradients alone",
)
def smoothgradcam_plusplus(activations: Tensor, noisy_powers: Tensor) -> Tensor:
    """`w_c a_c` with `w_c = sum(alpha relu(D1))` and `alpha = D2 / (2 D2 + sum(a_c) D3)`.

    D1, D2 and D3 are the derivatives of the score with respect to the activations, averaged over noisy pictures. As in
    Grad-CAM++, the second and third are powers of the first, which holds for an exponential of a score that is linear
    in the activations. `alpha` is 0 where D2 is 0.
    """
    first, second, third = noisy_powers.unbind(1)
    space = tuple(range(2, activations.ndim))
    denominator = 2 * second + activations.sum(space, keepdim=True) * third
    usable = (second != 0) & (denominator != 0)
    alpha = torch.where(usable, second / torch.where(usable, denominator, torch.ones_like(denominator)), 0)
    return (alpha * first.clamp_min(0)).sum(space, keepdim=True) * activations


@signal(
    "the guided gradient with respect to the picture, `[B, C, H, W]`",
    cost="one more forward, and a backward pass through it",
    gradients=True,
    pixels=True,
    layered=False,
    forwards=PASS,
)
def guided_gradients(run: Run, layer: str) -> Tensor:
    """`[B, C, *space]`: see `hf_cam.GuidedBackprop`; it does not depend on the target layer."""
    del layer
    return run.once(_guided)


def _guided(run: Run) -> Tensor:
    return guided_gradient(run.model, run.inputs, lambda outputs: target_values(outputs, run.targets).sum())


def guided_gradcam(guided: Tensor, maps: Tensor) -> Tensor:
    """Guided Grad-CAM: the guided gradient `[B, C, H, W]` times a map `[B, h, w]` in [0, 1], `[B, C, H, W]`.

    Paper: Selvaraju et al., Grad-CAM, ICCV 2017, arXiv:1610.02391.
    """
    size = guided.shape[2:]
    return guided * resize(normalize(maps, len(size)), size)[:, None]


@method(
    "guided-gradcam",
    name="GuidedGradCAM",
    paper="Selvaraju et al., Grad-CAM, ICCV 2017, arXiv:1610.02391",
    summary="Guided gradient of each pixel times the map of Grad-CAM, summed over the colours.",
    unsigned="guided backpropagation keeps positive gradients alone",
)
def guided_times_gradcam(activations: Tensor, gradients: Tensor, guided_gradients: Tensor) -> Tensor:
    """The guided gradient times the map; the paper shows it in colour, and a heatmap is its sum over the colours."""
    maps = channel_sum(gradcam(activations, gradients)).clamp_min(0)
    return guided_gradcam(guided_gradients, maps)
