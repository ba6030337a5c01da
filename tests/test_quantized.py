"""Quantized weights: a method of gradients is refused by name where they pass none, and otherwise its map is right."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import hf_cam
from hf_cam.capture.quantized import gradient_stop, passes_gradient
from hf_cam.errors import MethodError
from hf_cam.explainer import Explainer
from hf_cam.methods import list_methods
from nets import NETS, clip, spread

PIXELS = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
DIFFERENTIATING = [method.id for method in list_methods().values() if method.differentiates]
PLAIN = ["eigencam", "kpcacam", "fem", "randomcam", "ablationcam", "scorecam"]


class Int8(nn.Module):
    """A linear layer with weights of 8 bits, which drops the gradient as some packages do."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight_int8", (linear.weight.detach() / scale).round().to(torch.int8))
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        return self.weight_int8 * self.scale

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return functional.linear(tokens, self.weight, self.bias)


class Int8Passing(Int8):
    """Its gradient is that of the weights."""

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.linear(tokens, self.weight, self.bias)


class Int8Rounding(Int8):
    """The inputs are rounded too, which leaves a gradient that is nearly zero: it flows through their range alone."""

    def forward(self, tokens: Tensor) -> Tensor:
        scale = tokens.abs().amax(-1, keepdim=True) / 127
        return functional.linear((tokens / scale).round() * scale, self.weight, self.bias)


class Int8StraightThrough(Int8):
    """The inputs are rounded, and the gradient passes the rounding."""

    def forward(self, tokens: Tensor) -> Tensor:
        scale = tokens.detach().abs().amax(-1, keepdim=True) / 127
        rounded = (tokens / scale).round() * scale
        return functional.linear(tokens + (rounded - tokens).detach(), self.weight, self.bias)


class Held(Int8):
    """The weights are a plain attribute."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        packed = self.weight_int8
        del self.weight_int8
        self.packed = packed

    @property
    def weight(self) -> Tensor:
        return self.packed * self.scale


class QuantLinear(nn.Module):
    """The weights are floats, and the class rounds what goes in."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.inner = linear

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner((tokens * 8).round() / 8)


class Packed(nn.Parameter):
    """A parameter of its own kind, as packages for quantization make their weights."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass(), torch.set_grad_enabled(func is not functional.linear):
            return func(*args, **(kwargs or {}))


def packed(linear: nn.Linear) -> nn.Linear:
    linear.weight = linear.weight.detach().as_subclass(Packed)
    return linear


def dynamic(part: str) -> nn.Module:
    model = plain()
    chosen = {name for name, one in model.named_modules() if isinstance(one, nn.Linear) and part in name}
    settings = dict.fromkeys(chosen, torch.ao.quantization.default_dynamic_qconfig)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, settings, dtype=torch.qint8)


def plain() -> nn.Module:
    return spread(NETS["vit"]())


def with_linears(kind: Callable[[nn.Linear], nn.Module], part: str = "mlp") -> nn.Module:
    model = plain()
    for name, module in [*model.named_modules()]:
        for own, child in [*module.named_children()]:
            if isinstance(child, nn.Linear) and part in f"{name}.{own}":
                setattr(module, own, kind(child))
    return model


@pytest.fixture(autouse=True)
def without_warnings() -> Iterator[None]:
    """torch warns that its own quantization will go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


STOPPING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "torch's, in the MLPs": (lambda: dynamic("mlp"), r"'vit\.layers\.0\.mlp\.fc1' \(Linear\)"),
    "torch's, in the queries": (lambda: dynamic("q_proj"), r"'vit\.layers\.0\.attention\.q_proj' \(Linear\)"),
    "torch's, in the last block": (lambda: dynamic("layers.2"), r"'vit\.layers\.2\."),
    "torch's, in the head": (lambda: dynamic("classifier"), r"'classifier' \(Linear\)"),
    "torch's, everywhere": (lambda: dynamic(""), r"\(Linear\)"),
    "integers in a buffer": (lambda: with_linears(Int8), r"'vit\.layers\.0\.mlp\.fc1' \(Int8\)"),
    "integers in one head": (lambda: with_linears(Int8, "classifier"), r"'classifier' \(Int8\)"),
    "integers in an attribute": (lambda: with_linears(Held), r"\(Held\)"),
    "rounded inputs": (lambda: with_linears(Int8Rounding), r"\(Int8Rounding\)"),
    "rounded inputs of float weights": (lambda: with_linears(QuantLinear), r"\(QuantLinear\)"),
    "a subclass of tensors": (lambda: with_linears(packed), r"'vit\.layers\.0\.mlp\.fc1' \(Linear\)"),
}


@pytest.mark.parametrize(("build", "part"), STOPPING.values(), ids=STOPPING)
@pytest.mark.parametrize("method", ["gradcam", "fullgrad", "chefer", "rollout", "libracam"])
def test_a_method_of_gradients_or_attention_is_refused_with_the_name_of_the_part(build, part, method) -> None:
    words = rf"'{method}' needs gradients, but the quantized part .*{part}.*load the model without.*'eigencam'"
    with pytest.raises(MethodError, match=words):
        hf_cam.CAM(build(), method)(PIXELS, 1)


@pytest.mark.parametrize("method", DIFFERENTIATING)
def test_every_method_that_differentiates_is_refused(method) -> None:
    with pytest.raises(MethodError, match="quantized part"):
        hf_cam.CAM(dynamic("mlp"), method)(PIXELS, 1)


@pytest.mark.parametrize("method", PLAIN)
def test_a_method_without_gradients_works(method) -> None:
    assert method not in DIFFERENTIATING
    assert hf_cam.CAM(dynamic("mlp"), method)(PIXELS, 1).isfinite().all()


@pytest.mark.parametrize("kind", [Int8Passing, Int8StraightThrough])
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "chefer", "rollout", "attnlrp"])
def test_weights_that_pass_the_gradient_give_the_map_of_the_float_model(kind, method) -> None:
    expected = hf_cam.CAM(plain(), method)(PIXELS, 1)
    assert (hf_cam.CAM(with_linears(kind), method)(PIXELS, 1) - expected).abs().max() < 0.15


def test_a_model_of_floats_is_never_stopped_and_does_not_run_for_it(monkeypatch) -> None:
    monkeypatch.setattr("hf_cam.capture.quantized.call", None)
    for model in (plain(), NETS["swin"](), NETS["resnet"](), torchvision.models.quantization.resnet18(quantize=False)):
        assert gradient_stop(model, {"pixel_values": PIXELS}) == ""


def test_training_for_quantization_is_not_quantized() -> None:
    model = nn.Sequential(
        torch.ao.quantization.QuantStub(), nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    )
    model(PIXELS)
    model.train().qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    prepared = torch.ao.quantization.prepare_qat(model)
    prepared(PIXELS)
    assert gradient_stop(prepared.eval(), {"pixel_values": PIXELS}) == ""


def test_no_default_map_of_a_quantized_model_is_empty(picture) -> None:
    loaded = clip()
    model = torch.ao.quantization.quantize_dynamic(loaded.model, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(MethodError, match="quantized part"):
        list(Explainer(dataclasses.replace(loaded, model=model))([picture], text=["a cat", "a dog"]))


def test_a_comparison_leaves_out_what_needs_gradients(picture) -> None:
    from pictures import resized

    found = hf_cam.compare(picture, dynamic("mlp"), processor=resized())
    assert {"eigencam", "fem"} <= {explanation.method for explanation in found.explanations}
    assert all("quantized part" in found.skipped[method] for method in ("gradcam", "layercam", "chefer"))


def test_guided_backpropagation_is_refused() -> None:
    with pytest.raises(MethodError, match="guided backpropagation needs gradients, but the quantized part"):
        hf_cam.GuidedBackprop(dynamic("mlp"))(PIXELS)


def test_the_model_comes_back_as_it_was() -> None:
    from unchanged import unchanged

    model = with_linears(Int8)
    with unchanged(model), pytest.raises(MethodError):
        hf_cam.GradCAM(model)(PIXELS)


@pytest.mark.parametrize(
    ("part", "passes"),
    [
        (nn.Linear(6, 4), True),
        (nn.Sequential(nn.Linear(6, 4), nn.GELU()), True),
        (nn.LayerNorm(6), True),
        (Int8(nn.Linear(6, 4)), False),
        (Int8Rounding(nn.Linear(6, 4)), False),
        (Int8StraightThrough(nn.Linear(6, 4)), True),
        (QuantLinear(nn.Linear(6, 4)), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_gradient_is_compared_with_a_difference_quotient(part, passes) -> None:
    tokens = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(3))
    assert passes_gradient(part, (tokens,), {}) is passes


def test_an_input_is_found_by_name_too() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Int8(nn.Linear(6, 4))

        def forward(self, *, hidden_states: Tensor) -> Tensor:
            return self.inner(hidden_states)

    assert not passes_gradient(Named(), (), {"hidden_states": torch.randn(2, 6)})
    assert passes_gradient(nn.Embedding(5, 3), (torch.tensor([1, 2]),), {})
