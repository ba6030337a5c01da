"""`differentiable=True` keeps maps in the graph, and `captured` holds what the target layers returned."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_cam import CAM
from hf_cam.capture.capture import TwiceDifferentiable
from hf_cam.errors import MethodError, OptionError
from hf_cam.methods import get_method, list_methods
from hf_cam.testing.laws import pictures
from nets import make
from unchanged import half_frozen, unchanged

QUICK: dict[str, dict[str, Any]] = {
    "integrated-gradients": {"steps": 3},
    "smoothgrad": {"samples": 3},
    "smoothgradcam++": {"samples": 3},
}
REFUSED = ("guided-gradcam", "attnlrp", "libragrad", "libracam", "scorecam", "ablationcam", "occlusion", "rise", "dff")
"""Methods that leave the graph: under rules of their own, or by running the model again without one."""
GRADIENT = [name for name, one in list_methods().items() if one.needs_gradients and name not in REFUSED]
ATTENTION = ["raw-attention", "rollout", "chefer", "legrad", "gradeclip"]


class Small(nn.Module):
    """Smooth, so that finite differences are exact; pooled and linear at the end, so that every method is defined."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.features = nn.Conv2d(4, 6, 3, padding=1, stride=2)
        self.act = nn.Softplus()
        self.head = nn.Linear(6, 3)
        nn.init.normal_(self.head.weight)

    def forward(self, pixel_values: Tensor) -> Tensor:
        early = F.softplus(self.norm(self.early(pixel_values)))
        features = self.act(self.features(early))
        return self.head(features.mean((2, 3)))


def small(dtype: torch.dtype = torch.float64) -> Small:
    torch.manual_seed(1)
    net = Small().to(dtype).eval()
    nn.init.normal_(net.norm.bias)  # maps of a bias that is zero are not continuous
    return net


def wanted_of(shape: Any) -> Tensor:
    """Fixed weights, so that the loss depends on every cell in another way."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def differences(net: nn.Module, loss: Any, step: float = 1e-6) -> tuple[float, float]:
    """The derivative of a loss along a random direction of all parameters: by autograd, and by finite differences."""
    parameters = list(net.parameters())
    generator = torch.Generator().manual_seed(3)
    ways = [torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in parameters]
    found = torch.autograd.grad(loss(), parameters, allow_unused=True)
    along = sum(float((one * way).sum()) for one, way in zip(found, ways, strict=True) if one is not None)

    def moved(by: float) -> float:
        with torch.no_grad():
            for one, way in zip(parameters, ways, strict=True):
                one += by * way
        value = loss().item()
        with torch.no_grad():
            for one, way in zip(parameters, ways, strict=True):
                one -= by * way
        return value

    return along, (moved(step) - moved(-step)) / (2 * step)


@pytest.mark.parametrize("method", GRADIENT)
def test_the_gradient_of_a_map_is_that_of_finite_differences(method: str) -> None:
    net, x = small(), wanted_of((2, 3, 12, 16))
    layers = ["norm", "act"] if method == "refinecam" else ["act"]
    cam = CAM(net, method, layers=layers, **QUICK.get(method, {}))
    wanted, signed = wanted_of((2, 12, 16)), not get_method(method).why_unsigned({})
    along, expected = differences(net, lambda: (cam(x, [1, 2], signed=signed, differentiable=True) * wanted).sum())
    assert expected != 0
    assert along == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("method", ["gradcam", "shapleycam", "eigengradcam", *ATTENTION])
def test_so_it_is_behind_norms_and_attention(method: str) -> None:
    net, x = make("vit").double(), pictures(1).double()
    wanted = wanted_of((1, *x.shape[2:]))
    along, expected = differences(net, lambda: (CAM(net, method)(x, 1, differentiable=True) * wanted).sum())
    assert expected != 0
    assert along == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("groups", [1, 3])
def test_norms_step_by_step_are_torchs(groups: int) -> None:
    x, weight, bias = wanted_of((2, 6, 3, 4)), wanted_of(6), wanted_of(6) + 1
    with TwiceDifferentiable(thrice=True):
        grouped = F.group_norm(x, groups, weight, bias, 1e-3)
        layered = F.layer_norm(input=x.movedim(1, -1), normalized_shape=(6,), weight=weight, bias=bias)
    torch.testing.assert_close(grouped, F.group_norm(x, groups, weight, bias, 1e-3))
    torch.testing.assert_close(layered, F.layer_norm(x.movedim(1, -1), (6,), weight, bias))


@pytest.mark.parametrize("method", REFUSED)
def test_methods_that_leave_the_graph_say_so(method: str) -> None:
    with pytest.raises(
        MethodError, match=f"'{method}' is not differentiable, because its .* leave no graph; 'gradcam'"
    ):
        CAM(make("vit"), method)(pictures(1), 1, differentiable=True)


def test_a_map_made_outside_torch_says_that_it_is_not_differentiable() -> None:
    with pytest.raises(
        MethodError, match="'kpcacam' is not differentiable, because its components are computed outside"
    ):
        CAM(small(torch.float32), "kpcacam", layers="act")(torch.rand(1, 3, 12, 16), 1, differentiable=True)


@pytest.mark.parametrize(
    ("frozen", "recording", "reason"),
    [
        pytest.param(False, False, "no_grad", id="gradients are switched off"),
        pytest.param(True, True, "no parameter of the model requires grad", id="nothing to train"),
    ],
)
def test_a_graph_that_is_not_recorded_is_refused(frozen: bool, recording: bool, reason: str) -> None:
    net = small(torch.float32).requires_grad_(not frozen)
    with torch.set_grad_enabled(recording), pytest.raises(OptionError, match=reason):
        CAM(net, layers="act")(torch.rand(1, 3, 12, 16), 1, differentiable=True)


@pytest.mark.parametrize("method", ["gradcam", "input-x-gradient"])
def test_a_loss_of_the_map_reaches_pixels_that_require_grad(method: str) -> None:
    net, x, wanted = small().requires_grad_(False), wanted_of((1, 3, 12, 16)), wanted_of((1, 12, 16))
    way, cam = wanted_of((1, 3, 12, 16)).flip(-1), CAM(net, method, layers="act")

    def loss(by: float) -> Tensor:
        return (cam((x + by * way).requires_grad_(), 1, signed=True, differentiable=True) * wanted).sum()

    leaf = x.clone().requires_grad_()
    [gradient] = torch.autograd.grad((cam(leaf, 1, signed=True, differentiable=True) * wanted).sum(), leaf)
    expected = (loss(1e-6) - loss(-1e-6)).item() / 2e-6
    assert (gradient * way).sum().item() == pytest.approx(expected, rel=1e-4)


def test_a_map_moves_to_where_its_loss_sends_it() -> None:
    """Attention-guided training: class scores and the place of the evidence are learned together."""
    torch.manual_seed(0)
    net, x = small(torch.float32), torch.rand(4, 3, 16, 24)
    left = torch.zeros(16, 24)
    left[:, :8] = 1
    cam, steps = CAM(net, layers="act"), torch.optim.Adam(net.parameters(), 0.05)

    def inside(maps: Tensor) -> Tensor:
        return (maps * left).sum((1, 2)) / maps.sum((1, 2)).clamp_min(1e-6)

    before = inside(cam(x, 1)).mean()
    for _ in range(40):
        share = inside(cam(x, 1, differentiable=True)).mean()
        loss = F.cross_entropy(cam.outputs, torch.ones(4, dtype=torch.long)) - share
        steps.zero_grad()
        loss.backward()
        steps.step()
    assert inside(cam(x, 1)).mean() > before + 0.2
    assert net(x).argmax(1).tolist() == [1] * 4


def test_only_the_callers_backward_changes_anything_on_the_model() -> None:
    net = half_frozen(make("resnet"))
    with unchanged(net):
        maps = CAM(net)(pictures(1), 1, differentiable=True)
    maps.sum().backward()
    learned = {name for name, one in net.named_parameters() if one.grad is not None and one.grad.any()}
    assert learned
    assert learned <= {name for name, one in net.named_parameters() if one.requires_grad}


def test_the_map_in_the_graph_is_the_one_outside() -> None:
    net, x = make("vit"), pictures(2)
    cam = CAM(net, "layercam")
    torch.testing.assert_close(cam(x, 1, differentiable=True).detach(), cam(x, 1), atol=1e-5, rtol=0)
    assert not cam(x, 1).requires_grad


# What the target layers returned -------------------------------------------------------------------------------------


def test_captured_holds_activations_and_gradients_as_the_layers_have_them_and_as_feature_maps() -> None:
    net, x = make("vit"), pictures(2)
    cam = CAM(net)
    cam(x, 1)
    [layer] = cam.adapter.layers
    kept: list[Tensor] = []
    handle = net.get_submodule(layer).register_forward_hook(lambda *args: kept.append(args[2]))
    score = net(pixel_values=x).logits[:, 1].sum()
    handle.remove()
    [gradient] = torch.autograd.grad(score, kept)
    seen = cam.captured
    torch.testing.assert_close(seen.activations[layer], kept[0].detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen.gradients[layer], gradient, atol=1e-6, rtol=1e-4)
    cells = kept[0].detach()[:, 1:].mT.unflatten(2, (4, 6))
    torch.testing.assert_close(seen.spatial.activations[layer], cells, atol=1e-5, rtol=1e-4)
    assert seen.spatial.gradients[layer].shape == cells.shape
    assert not seen.gradients[layer].requires_grad


def test_captured_is_frozen_has_no_gradients_where_none_are_used_and_is_dropped() -> None:
    net, x = small(torch.float32), torch.rand(1, 3, 12, 16)
    with CAM(net, "eigencam", layers="act") as cam:
        assert cam.captured is None
        cam(x)
        seen = weakref.ref(cam.captured)
        assert cam.captured.gradients == {}
        with pytest.raises(dataclasses.FrozenInstanceError):
            cam.captured.images = 3
        cam(x)
        assert seen() is None
        with pytest.raises(OptionError):
            cam(x.long())
        assert cam.captured is None
        cam(x)
    assert cam.captured is None


def test_captured_stays_in_the_graph_with_the_map() -> None:
    cam = CAM(small(torch.float32), layers="act")
    cam(torch.rand(1, 3, 12, 16), 1, differentiable=True)
    assert cam.captured.activations["act"].requires_grad
    assert cam.captured.spatial.gradients["act"].requires_grad
