"""Gradients of pixels, along paths and over noise, against their papers' equations written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.equations_variants import smooth_plus_plus
from hf_cam.cam import CAM
from hf_cam.capture.capture import capture
from hf_cam.errors import DetachedError, MethodError, OptionError
from hf_cam.methods import get_method
from hf_cam.methods.pixels import PASS, path_terms
from hf_cam.methods.run import Run
from hf_cam.methods.variants import noisy
from hf_cam.target_layers.infer import infer_adapter
from hf_cam.targets import ClassLogit
from hf_cam.testing import check_model_untouched
from nets import make
from pictures import SIZE, pictures

NETS = ("vit", "convnext")


def raw_of(net: nn.Module, method: str, x: Tensor, targets: list, **options) -> Tensor:
    [raw] = CAM(net, method, **options).saliency(x, lambda _: [targets]).raw
    return raw[0].clamp_min(0)


def gradient_of(net: nn.Module, x: Tensor, target: int) -> Tensor:
    """Of the logit of a picture `[1, C, H, W]` with respect to it."""
    leaf = x.clone().requires_grad_()
    [found] = torch.autograd.grad(net(leaf).logits[0, target], leaf)
    return found[0]


def run_of(net: nn.Module, x: Tensor, target: int) -> Run:
    adapter = infer_adapter(net)
    with capture(net, adapter.layers, {"pixel_values": x}) as captured:
        return Run(net, {"pixel_values": x}, captured, adapter, [ClassLogit(target)] * len(x), SIZE)


@pytest.mark.parametrize("name", NETS)
def test_the_gradient_and_the_input_times_it_are_those_of_autograd(name: str) -> None:
    net, x = make(name).double(), pictures(2).double()
    plain, times = (raw_of(net, method, x, [2, 5]) for method in ("gradient", "input-x-gradient"))
    for i, target in enumerate([2, 5]):
        expected = gradient_of(net, x[i : i + 1], target)
        torch.testing.assert_close(plain[i], expected.abs().amax(0), atol=1e-14, rtol=1e-9)
        torch.testing.assert_close(times[i], (x[i] * expected).sum(0).clamp_min(0), atol=1e-14, rtol=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_integrated_gradients_sum_along_the_straight_path(name: str) -> None:
    net, x, base, steps = make(name).double(), pictures(1).double(), 0.25, 5
    expected = torch.zeros_like(x[0])
    for k in range(1, steps + 1):
        point = base + (k - 0.5) / steps * (x - base)
        expected += (x[0] - base) * gradient_of(net, point, 3) / steps
    found = raw_of(net, "integrated-gradients", x, [3], steps=steps, fill=base)[0]
    torch.testing.assert_close(found, expected.sum(0).clamp_min(0), atol=1e-14, rtol=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_integrated_gradients_are_complete(name: str) -> None:
    net, x = make(name).double(), pictures(2).double()
    with torch.no_grad():
        change = (net(x).logits - net(torch.full_like(x, 0.5)).logits)[:, 1]
    errors = []
    for steps in (4, 64):
        terms = path_terms(run_of(net, x, 1), infer_adapter(net).layers[0], steps=steps, fill=0.5)
        errors.append((terms.flatten(1).sum(1) - change).abs().max() / change.abs().max())
    assert errors[1] < 2e-3
    assert errors[1] < errors[0] / 20  # the error of the midpoint rule falls with the square of the steps


@pytest.mark.parametrize("base", ["gradient", "input-x-gradient", "gradcam", "layercam", "finercam"])
def test_smoothgrad_is_the_mean_of_its_base_over_noisy_pictures(base: str) -> None:
    net, x, samples, noise = make("convnext").double(), pictures(1).double(), 3, 0.2
    record, target = get_method(base), [ClassLogit(2)]
    copies = noisy(run_of(net, x, 2), samples, noise, 7)(0, 0, samples)
    layer = CAM(net).adapter.layers[0]
    total: Tensor | float = 0.0
    for copy in copies:
        adapter = infer_adapter(net)
        inputs = {"pixel_values": copy[None].requires_grad_()}
        with capture(net, adapter.layers, inputs) as captured:
            part = Run(net, inputs, captured, adapter, record.targets(target), SIZE)
            total = total + record.contributions(**{one.name: one.of(part, layer, {}) for one in record.signals})
    expected = record.reduce(total / samples).clamp_min(0)
    found = raw_of(net, "smoothgrad", x, target, base=base, samples=samples, noise=noise, seed=7)
    torch.testing.assert_close(found, expected.detach(), atol=1e-12, rtol=1e-9)


def test_noise_is_gaussian_of_the_stated_strength_and_follows_its_seed_alone() -> None:
    x = pictures(2, (128, 192))
    drawn = noisy(run_of(make("resnet"), x, 0), 4, 0.2, 3)
    first, second = drawn(0, 0, 4) - x[0], drawn(1, 0, 4) - x[1]
    assert first.std().item() == pytest.approx(0.2 * (x[0].max() - x[0].min()).item(), rel=0.02)
    torch.testing.assert_close(first / first.std(), second / second.std(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(drawn(0, 2, 4), drawn(0, 0, 4)[2:])
    other = noisy(run_of(make("resnet"), x, 0), 4, 0.2, 4)(0, 0, 4)
    assert not torch.equal(other, drawn(0, 0, 4))


def test_smooth_gradcam_plus_plus_follows_its_equation() -> None:
    net, x, samples = make("convnext").double(), pictures(1).double(), 4
    cam = CAM(net, "smoothgradcam++", samples=samples, noise=0.1, seed=5)
    [layer] = cam.adapter.layers
    copies = noisy(run_of(net, x, 2), samples, 0.1, 5)(0, 0, samples)
    expected = smooth_plus_plus(net, layer, x, copies, 2)
    found = cam.saliency(x, lambda _: [[2]]).raw[0][0, 0].clamp_min(0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "options", "error", "words"),
    [
        ("integrated-gradients", {"steps": 0}, OptionError, "steps must be a whole number from 1"),
        ("smoothgrad", {"noise": 0.0}, OptionError, "noise must be a positive number"),
        ("smoothgrad", {"samples": -1}, OptionError, "samples must be a whole number from 1"),
        ("smoothgrad", {"seed": -1}, OptionError, "seed must be"),
        ("smoothgrad", {"base": "eigencam"}, MethodError, "such as 'gradient'.*'eigencam' is not"),
        ("smoothgrad", {"base": "smoothgrad"}, MethodError, "'smoothgrad' is not"),
        ("smoothgrad", {"base": "integrated-gradients"}, MethodError, "'integrated-gradients' is not"),
        ("smoothgrad", {"base": "refinecam"}, MethodError, "'refinecam' is not"),
    ],
)
def test_what_cannot_be_done_is_refused(method: str, options: dict, error: type, words: str) -> None:
    net = make("resnet")
    with pytest.raises(error, match=words):
        check_model_untouched(net, lambda: CAM(net, method, **options)(pictures(1), 0))


@pytest.mark.parametrize("method", ["gradient", "input-x-gradient", "integrated-gradients", "smoothgrad"])
def test_a_target_that_does_not_reach_the_picture_is_refused(method: str) -> None:
    net = make("resnet")
    with pytest.raises(DetachedError, match="does not depend on the picture"):
        CAM(net, method)(pictures(1), targets=lambda output: output.logits.detach().sum())


def test_costs_follow_steps_and_samples() -> None:
    assert get_method("integrated-gradients").cost(steps=10) == pytest.approx(1 + 10 * PASS)
    assert get_method("smoothgrad").cost(samples=10) == pytest.approx(1 + 10 * PASS)
    assert get_method("smoothgradcam++").cost(samples=10) == pytest.approx(1 + 1.1 * 10 + 0)
