"""Signals: what methods are functions of, what they imply for the one forward, and which of them are not defined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Siglip2ForImageClassification

import hf_cam
from hf_cam.cam import CAM, Saliencies
from hf_cam.capture.capture import capture
from hf_cam.errors import LayoutError, MethodError, NoGradientError
from hf_cam.methods import Method, Run, Signal, get_method, list_methods, method, signal
from hf_cam.methods.registry import BUDGET, METHODS, methods_within
from hf_cam.methods.signals import SIGNALS
from hf_cam.target_layers.adapter import Adapter
from hf_cam.targets import ClassLogit
from nets import OF_EVERY_LAYOUT, Cubic, make, tiny
from pictures import SIZE, pictures

DOCS = Path(__file__).parents[1] / "docs"
ANY = {"name": "X", "paper": "none", "summary": "None."}


@pytest.fixture(autouse=True)
def registries(monkeypatch) -> None:
    """What a test registers is gone with it."""
    for registry in (METHODS, SIGNALS):
        monkeypatch.setattr(registry, "_records", dict(registry._records))


PIXELS = {
    *("occlusion", "rise", "d-rise", "gradient", "input-x-gradient", "integrated-gradients", "smoothgrad"),
}
"""Those that look at no layer."""


def compared(net: nn.Module, methods: list[str], x: Tensor, **settings: Any) -> Saliencies:
    records = [get_method(name) for name in methods]
    targets = [[ClassLogit(1)] * len(x)]
    return CAM(net, **settings).saliencies(records, x, lambda _: targets, skip_undefined=True)


@contextmanager
def counted(net: nn.Module) -> Iterator[list[int]]:
    """The forwards of a module inside the block."""
    runs: list[int] = []
    with net.register_forward_hook(lambda *_: runs.append(1)):
        yield runs


def hooks_of(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())


# The registry --------------------------------------------------------------------------------------------------------


def test_a_misspelt_signal_is_refused_by_the_nearest() -> None:
    with pytest.raises(MethodError, match=r"'mine' needs 'gradient': no signal 'gradient'; nearest: 'gradients'"):

        @hf_cam.method("mine", **ANY)
        def mine(activations: Tensor, gradient: Tensor) -> Tensor:
            return activations * gradient

    assert "mine" not in list_methods()
    with pytest.raises(MethodError, match="no signal: at least one parameter without a default must name a signal"):
        method("mine", **ANY)(lambda seed=0: torch.zeros(1))


def test_a_decorated_function_stays_as_it_is_and_is_registered_last() -> None:
    def mine(activations: Tensor, power: float = 2.0) -> Tensor:
        return activations**power

    assert method("mine", **ANY)(mine) is mine
    assert [*list_methods()][-1] == "mine"
    assert get_method("mine").options == {"power": 2.0}
    found = CAM(make("resnet"), "mine", power=1.0)(pictures(1))
    torch.testing.assert_close(found, CAM(make("resnet"), "mine", power=1)(pictures(1)))
    assert not torch.equal(found, CAM(make("resnet"), "mine")(pictures(1)))


def test_a_signal_that_is_registered_again_is_the_one_that_methods_get() -> None:
    for value in (1.0, 2.0):
        # Two functions of one name at one place, as a notebook's cell that is run twice.
        scope: dict[str, Any] = {"__name__": "notebook", "value": value, "torch": torch}
        exec("def level(run, layer): return torch.full((1, 1, 2, 3), value)", scope)
        signal("a constant", ignores_target=True)(scope["level"])
    method("mine", **ANY)(lambda level: level)
    [raw] = CAM(make("resnet"), "mine").saliency(pictures(1), lambda _: [[ClassLogit(1)]]).raw
    assert torch.equal(raw, torch.full((1, 1, 2, 3), 2.0))


def test_properties_of_a_method_are_those_of_its_signals() -> None:
    of = list_methods()
    assert {name for name, record in of.items() if record.reruns} == {
        *("ablationcam", "scorecam", "sscam", "iscam", "smoothgradcam++", "recipro-cam", "dff"),
        *PIXELS - {"gradient", "input-x-gradient"},
    }
    assert {name for name, record in of.items() if record.works_on_pixels} == PIXELS | {
        *("fullgrad", "scorecam", "sscam", "iscam", "guided-gradcam"),
    }
    assert {name for name, record in of.items() if record.ignores_target} == {"randomcam", "eigencam", "kpcacam", "fem"}
    assert set(of) - set(methods_within(BUDGET)) == {"scorecam", "sscam", "iscam", *PIXELS} - {
        "gradient",
        "input-x-gradient",
    }
    assert [one.name for one in of["shapleycam"].signals] == ["activations", "gradients", "curvature"]
    assert of["gradcam"].needs_gradients
    assert not of["eigencam"].needs_gradients
    assert of["gradcam"].reads_layer
    assert not of["ablationcam"].reads_layer


def test_a_method_of_many_fixed_forwards_is_not_quick_either() -> None:
    @signal("scores of random masks, `[B, N]`", forwards=4000)
    def random_masks(run: Run, layer: str) -> Tensor:
        return torch.rand(1, 4000)

    method("mine", **ANY)(lambda random_masks: random_masks)
    assert get_method("mine").cost(channels=7) == 4001
    assert not get_method("mine").fits(BUDGET)


def test_the_costs_are_those_that_were_measured() -> None:
    """On ViT-B/16: the figures of docs/methods.md, and for attention those of docs/transformers.md."""
    figures = (DOCS / "methods.md").read_text().partition("### Overview")[2].partition("###")[0]
    figures += (DOCS / "transformers.md").read_text().partition("## What they cost")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:]] for line in figures.splitlines() if line.startswith("|")]
    measured = {name: float(value.split()[0]) for name, value, *_ in rows if value[:1].isdigit()}
    of = {name: record for name, record in list_methods().items() if name in measured}
    for name, record in of.items():
        if name != "refinecam":  # which also looks for its layers
            assert record.cost(768) == pytest.approx(measured[name], rel=0.25), name
    assert len(of) >= 22


def test_every_signal_is_described() -> None:
    for record in SIGNALS.records().values():
        assert record.meaning
        assert record.cost
        assert record.provide.__doc__


# One forward ---------------------------------------------------------------------------------------------------------


def test_a_method_of_curvature_alone_is_defined() -> None:
    @method("mine", **ANY)
    def mine(curvature: Tensor) -> Tensor:
        return curvature

    net, x = Cubic(), pictures(2)
    with torch.no_grad():
        expected = (6 * net.features(x).square()).sum(1)  # the Hessian of sum a^3 times a
    [raw] = CAM(net, "mine", layers="features").saliency(x, lambda _: [[ClassLogit(0)] * 2]).raw
    torch.testing.assert_close(raw[0], expected)


def test_a_signal_with_a_watch_of_its_own_needs_nothing_of_the_engine() -> None:
    @contextmanager
    def watched(module: nn.Module) -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []
        with module.get_submodule("resnet.embedder").register_forward_hook(lambda _, __, out: seen.append(out)):
            yield seen

    @signal("what the embedder returns, `[B, C, h, w]`", watch=watched)
    def embedded(run: Run, layer: str) -> Tensor:
        [tensor] = run.captured.watched[watched]
        [gradient] = torch.autograd.grad(run.scores.sum(), tensor, retain_graph=True)
        return (tensor * gradient).detach()

    @method("mine", **ANY)
    def mine(embedded: Tensor) -> Tensor:
        return embedded

    net, x = make("resnet"), pictures(2)
    before = hooks_of(net)
    with counted(net) as runs:
        found = compared(net, ["gradcam", "mine", "fullgrad"], x)
    assert len(runs) == 1
    assert hooks_of(net) == before
    with capture(net, ["resnet.embedder"], {"pixel_values": x}) as captured:
        [gradient] = captured.gradients(captured.outputs.logits[:, 1].sum())
        expected = (captured.activations[0].detach() * gradient).sum(1)
    by_id = {saliency.method.id: saliency for saliency in found}
    torch.testing.assert_close(by_id["mine"].raw[0][0], expected, atol=1e-6, rtol=1e-4)
    for name in ("gradcam", "fullgrad"):
        torch.testing.assert_close(by_id[name].maps[0], CAM(net, name)(x, 1))


def test_a_signal_of_the_pictures_gradient_needs_no_watch() -> None:
    @signal("input times gradient, `[B, C, H, W]`", gradients=True, pixels=True)
    def input_times_gradient(run: Run, layer: str) -> Tensor:
        pixels = run.captured.pixels
        [gradient] = torch.autograd.grad(run.scores.sum(), pixels, retain_graph=True)
        return (pixels * gradient).detach()

    @method("mine", **ANY)
    def mine(input_times_gradient: Tensor) -> Tensor:
        return input_times_gradient

    net, x = make("resnet"), pictures(2)
    leaf = x.clone().requires_grad_()
    [gradient] = torch.autograd.grad(net(leaf).logits[:, 1].sum(), leaf)
    found = compared(net, ["mine", "gradcam"], x)
    expected = (x * gradient).sum(1)
    assert found.found[0].raw[0].shape == (1, 2, *SIZE)
    torch.testing.assert_close(found.found[0].raw[0][0], expected, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(found.found[1].maps[0], CAM(net, "gradcam")(x, 1))


@pytest.mark.parametrize("name", OF_EVERY_LAYOUT)
def test_all_quick_methods_share_one_forward_and_give_what_each_gives_alone(name: str) -> None:
    net, x = make(name), pictures(1)
    found = compared(net, methods_within(BUDGET), x)
    for saliency in found:
        alone = CAM(net, saliency.method.id)(x, 1)
        torch.testing.assert_close(saliency.maps[0], alone, atol=1e-4, rtol=0, msg=saliency.method.id)
    undefined = {one for one, record in list_methods().items() if record.needs_attention} if name != "vit" else set()
    undefined |= {"cam"} if name in ("vit", "convnext") else set()
    assert set(found.skipped) == undefined


def test_what_two_methods_share_is_computed_once() -> None:
    net, x = make("vit"), pictures(1)
    with counted(net.vit.embeddings) as runs:
        compared(net, ["libragrad", "libracam"], x)
    assert len(runs) == 2  # the captured forward, and one by the rules of LibraGrad
    with counted(net.vit.embeddings) as runs:
        compared(net, ["libragrad", "libracam", "attnlrp"], x)
    assert len(runs) == 3


def test_a_run_remembers_by_function_and_arguments() -> None:
    made: list[Any] = []

    def times(run: Run, factor: int) -> int:
        made.append(factor)
        return len(run.targets) * factor

    run = Run(nn.Identity(), {}, None, None, [ClassLogit(0)] * 2, SIZE)
    assert [run.once(times, factor) for factor in (2, 3, 2)] == [4, 6, 4]
    assert made == [2, 3]


# What is not defined -------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """One convolution is used twice, which leaves its bias without a gradient of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.shared = nn.Conv2d(3, 6, 8, stride=8), nn.Conv2d(6, 6, 1)
        self.features, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

    def forward(self, pixel_values: Tensor) -> Tensor:
        deep = self.shared(self.shared(self.stem(pixel_values)).relu()).relu()
        return self.head(self.features(deep).mean((2, 3)))


def test_a_bias_that_is_added_twice_leaves_fullgrad_alone_undefined() -> None:
    net, x = Twice(), pictures(2)
    found = compared(net, ["gradcam", "fullgrad", "layercam"], x, layers="features")
    assert [saliency.method.id for saliency in found] == ["gradcam", "layercam"]
    assert "'shared' runs more than once" in found.skipped["fullgrad"]
    torch.testing.assert_close(found.found[0].maps[0], CAM(net, "gradcam", layers="features")(x, 1))
    before = hooks_of(net)
    with pytest.raises(MethodError, match="'shared' runs more than once"):
        CAM(net, "fullgrad", layers="features")(x, 1)
    assert hooks_of(net) == before


class Once(torch.autograd.Function):
    """The cube, whose author wrote no second derivative."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        [value] = ctx.saved_tensors
        return 3 * value**2 * gradient


def fused(value: Tensor) -> Tensor:
    """torch's own kernel of attention, which has none either."""
    tokens = value.flatten(2).mT[:, None].contiguous()
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(tokens, tokens, tokens)[0][:, 0].mT


@pytest.mark.parametrize("tail", [Once.apply, fused], ids=["an own function", "torch's attention"])
def test_a_tail_without_a_second_derivative_leaves_shapleycam_alone_undefined(tail: Callable[[Tensor], Tensor]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.features, self.head = nn.Conv2d(3, 8, 16, stride=16), nn.Linear(8, 4)

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.head(tail(self.features(pixel_values)).flatten(2).mean(2)).sigmoid()

    net, x = Net(), pictures(2)
    found = compared(net, ["gradcam", "shapleycam"], x, layers="features")
    assert [saliency.method.id for saliency in found] == ["gradcam"]
    assert "'features' has no second derivative" in found.skipped["shapleycam"]
    torch.testing.assert_close(found.found[0].maps[0], CAM(net, "gradcam", layers="features")(x, 1))
    with pytest.raises(MethodError, match="'features' has no second derivative"):
        CAM(net, "shapleycam", layers="features")(x, 1)


def test_another_error_of_the_second_derivative_is_no_lack_of_one() -> None:
    class Failing(Once):
        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            [value] = ctx.saved_tensors
            return Failing2.apply(gradient * 3 * value**2)

    class Failing2(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise RuntimeError("the disk is full")

    class Net(Cubic):
        def forward(self, pixel_values: Tensor) -> Tensor:
            return Failing.apply(self.features(pixel_values)).sum((1, 2, 3))[:, None].expand(-1, 2)

    with pytest.raises(RuntimeError, match="disk is full"):
        compared(Net(), ["gradcam", "shapleycam"], pictures(1), layers="features")


def test_a_layer_that_does_not_serve_is_an_error_also_where_methods_may_be_skipped() -> None:
    with pytest.raises(NoGradientError, match=r"Use layers=\['vit\.layers\.2\.layernorm_before'\]"):
        compared(make("vit"), ["gradcam", "eigencam"], pictures(1), layers="vit.layers.2")
    with pytest.raises(LayoutError, match="classifier"):
        compared(make("vit"), ["eigencam", "gradcam"], pictures(1), layers="classifier")


def test_a_method_whose_own_layers_do_not_serve_is_skipped() -> None:
    def elsewhere(model: nn.Module, adapter: Adapter, inputs: Any) -> Adapter:
        return Adapter(("vit.layers.2",), adapter.layouts, "gradcam", adapter.origin)

    def nowhere(model: nn.Module, adapter: Adapter, inputs: Any) -> Adapter:
        raise LayoutError("there are no such layers")

    contributions = get_method("gradcam").contributions
    METHODS.add(Method("elsewhere", "X", contributions, "-", "-", layers=elsewhere))
    METHODS.add(Method("nowhere", "X", contributions, "-", "-", layers=nowhere))
    found = compared(make("vit"), ["elsewhere", "gradcam", "nowhere"], pictures(1))
    assert [saliency.method.id for saliency in found] == ["gradcam"]
    assert "zero on every cell of 'vit.layers.2'" in found.skipped["elsewhere"]
    assert found.skipped["nowhere"] == "there are no such layers"


def test_where_no_method_is_defined_each_reason_is_given_once() -> None:
    with pytest.raises(MethodError, match=r"^no method is defined here: the model has no attention") as caught:
        compared(make("resnet"), ["chefer", "rollout"], pictures(1))
    assert str(caught.value).count("no attention") == 1
    with pytest.raises(MethodError, match="none is named"):
        compared(make("resnet"), [], pictures(1))


def test_methods_of_pixels_are_skipped_on_pictures_that_come_cut() -> None:
    net = tiny(Siglip2ForImageClassification, vision_config={"num_patches": 64})
    patches, grid = torch.rand(1, 24, 3 * 16 * 16), torch.tensor([[4, 6]])
    inputs = {"spatial_shapes": grid, "pixel_attention_mask": torch.ones(1, 24, dtype=torch.int64)}
    records = [get_method(name) for name in ("fullgrad", "gradcam", "scorecam")]
    column = [[ClassLogit(1)]]
    found = CAM(net).saliencies(records, patches, lambda _: column, skip_undefined=True, **inputs)
    assert [saliency.method.id for saliency in found] == ["gradcam"]
    assert all("works on pixels" in found.skipped[name] for name in ("fullgrad", "scorecam"))
    with pytest.raises(MethodError, match="'fullgrad' works on pixels"):
        CAM(net).saliencies(records, patches, lambda _: column, **inputs)


def test_a_signal_is_registered_under_the_name_of_its_function() -> None:
    record = SIGNALS.get("frozen_terms")
    assert isinstance(record, Signal)
    assert record.attention
    assert record.id == record.name == record.source.__name__ == "frozen_terms"
