"""Guided backpropagation without touching a module."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from benchmarks.grad_cam import Logits, package
from hf_cam import GradCAM, GuidedBackprop, guided_gradcam
from hf_cam.errors import MethodError, TargetError
from nets import make
from pictures import SIZE, pictures
from unchanged import unchanged


def test_agrees_with_the_reference_package_on_relu() -> None:
    net, x = make("resnet"), pictures(1)
    ours = GuidedBackprop(net)(x, [3])[0].permute(1, 2, 0).numpy()
    theirs = package().GuidedBackpropReLUModel(Logits(make("resnet")), device="cpu")(x, target_category=3)
    assert np.abs(theirs).max() > 0
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


class _Gates(nn.Module):
    """ReLU as a module, in place, as a function and as a method; GELU as a module and a function."""

    def __init__(self, gate: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(4, 5, 1)
        gates = {
            "module": nn.ReLU(),
            "in place": nn.ReLU(inplace=True),
            "function": nn.functional.relu,
            "torch": torch.relu,
            "method": lambda value: value.relu(),
            "gelu": nn.GELU(),
            "gelu function": nn.functional.gelu,
            "silu": nn.SiLU(),
            "tanh": nn.Tanh(),
            "relu6": nn.ReLU6(),
            "relu6 in place": nn.ReLU6(inplace=True),
            "hardtanh": nn.Hardtanh(-2, 40),
            "hardswish in place": nn.Hardswish(inplace=True),
            "leaky": nn.LeakyReLU(inplace=True),
            "prelu": nn.PReLU(),
            "rrelu": nn.RReLU().eval(),
            "elu": nn.ELU(),
            "selu": nn.SELU(inplace=True),
            "celu": nn.CELU(),
            "softplus": nn.Softplus(),
            **{name: ACT2FN[name] for name in COMPOSED},
        }
        self.gate = gates[gate]

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.second(self.gate(self.first(pixel_values))).mean((2, 3))


COMPOSED = (
    "quick_gelu",
    "gelu_new",
    "gelu_fast",
    "gelu_accurate",
    "gelu_python",
    "gelu_python_tanh",
    "laplace",
    "mish",
)
GATES = (
    *("module", "in place", "function", "torch", "method", "gelu", "gelu function", "silu", "relu6", "relu6 in place"),
    *("hardtanh", "hardswish in place", "leaky", "prelu", "rrelu", "elu", "selu", "celu", "softplus", *COMPOSED),
)


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_is_guided(gate: str) -> None:
    net, x = _Gates(gate), pictures(2)
    with torch.no_grad():
        hidden = net.first(x)
        clean = net(x)
    upper = net.second.weight[2, :, 0, 0].detach() / hidden[0, 0].numel()
    inner = upper.clamp_min(0)[None, :, None, None] * (hidden > 0)
    expected = torch.nn.functional.conv_transpose2d(inner, net.first.weight.detach(), stride=8)
    torch.testing.assert_close(GuidedBackprop(net)(x, [2, 2]), expected)
    with torch.no_grad():
        torch.testing.assert_close(net(x), clean)  # and forward nothing has changed


def test_nothing_passes_where_an_activation_is_clipped() -> None:
    net, x = _Gates("relu6"), 20 * pictures(1)
    with torch.no_grad():
        hidden = net.first(x)
    assert (hidden > 6).any()
    upper = net.second.weight[2, :, 0, 0].detach() / hidden[0, 0].numel()
    inner = upper.clamp_min(0)[None, :, None, None] * ((hidden > 0) & (hidden < 6))
    expected = torch.nn.functional.conv_transpose2d(inner, net.first.weight.detach(), stride=8)
    torch.testing.assert_close(GuidedBackprop(net)(x, [2]), expected)


class _Activated(nn.Module):
    """A network that goes on with what an activation wrote over, as the shortcuts of some residual networks do."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(4, 4, 1)
        self.gate, self.head = nn.ReLU(inplace), nn.Linear(4, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.first(pixel_values)
        gated = self.gate(hidden)
        return self.head(((hidden if self.gate.inplace else gated) + self.second(gated)).mean((2, 3)))


def test_what_an_activation_writes_over_stays_written_over() -> None:
    x = pictures(1)
    in_place, plain = (GuidedBackprop(_Activated(inplace))(x, [2]) for inplace in (True, False))
    torch.testing.assert_close(in_place, plain)


def test_a_gradient_that_nothing_guides_is_refused() -> None:
    with pytest.raises(MethodError, match="no activation function"):
        GuidedBackprop(_Gates("tanh"))(pictures(1), [2])


def test_the_model_comes_back_as_it_was() -> None:
    net = make("resnet").train()
    with unchanged(net):
        GuidedBackprop(net)(pictures(2))
    with unchanged(net), pytest.raises(TargetError, match="1 targets for 2 images"):
        GuidedBackprop(net)(pictures(2), [1])


def test_guided_gradcam_is_the_product() -> None:
    net, x = make("resnet"), pictures(1)
    guided, maps = GuidedBackprop(net)(x, [1]), GradCAM(net)(x, [1])
    product = guided_gradcam(guided, maps)
    assert product.shape == (1, 3, *SIZE)
    torch.testing.assert_close(product, guided * maps[:, None], atol=1e-6, rtol=1e-4)
