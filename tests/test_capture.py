"""The model goes back exactly as it came, whatever happens; only the tail is recorded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import SwinForImageClassification, ViTForImageClassification

from hf_cam.cam import CAM, top_classes
from hf_cam.capture.capture import capture
from hf_cam.errors import LayerError, ModelError, TargetError
from hf_cam.methods import get_method
from nets import FOR_CLASSES, make, tiny
from pictures import SIZE, pictures
from unchanged import half_frozen, unchanged


def vit(layers: int = 3) -> ViTForImageClassification:
    """With dropout, which a map must not see."""
    settings = {"hidden_dropout_prob": 0.2, "initializer_range": 0.1, "num_labels": 6}
    return tiny(ViTForImageClassification, image_size=SIZE, num_hidden_layers=layers, **settings)


def test_the_check_of_these_tests_sees_every_change() -> None:
    model = half_frozen(vit())
    changes = [
        lambda: model.vit.register_forward_hook(lambda *args: None),
        lambda: model.vit.embeddings.cls_token.requires_grad_(False),
        lambda: model.classifier.weight.data.zero_(),
        lambda: setattr(model.classifier.bias, "grad", torch.ones(6)),
        lambda: setattr(model.vit, "forward", model.vit.forward),
        lambda: model.set_attn_implementation("eager"),
        model.eval,
        lambda: torch.rand(1),
    ]
    for change in changes:
        with pytest.raises(AssertionError), unchanged(model):
            change()


@pytest.mark.parametrize("prepare", [nn.Module.eval, nn.Module.train, half_frozen], ids=["eval", "train", "mixed"])
def test_the_model_comes_back_as_it_was(prepare: Callable[[nn.Module], nn.Module]) -> None:
    model = prepare(vit())
    with unchanged(model):
        CAM(model)(pictures())
        CAM(model, "eigencam")(pictures())


def test_the_model_comes_back_after_an_exception_in_its_forward() -> None:
    model = half_frozen(vit())
    handle = model.vit.layers[2].mlp.register_forward_hook(lambda *args: 1 / 0)
    with unchanged(model), pytest.raises(ZeroDivisionError):
        CAM(model)(pictures())
    handle.remove()


def test_the_model_comes_back_after_an_exception_in_a_target() -> None:
    model = vit().train()
    with unchanged(model), pytest.raises(ZeroDivisionError):
        CAM(model)(pictures(), [lambda output: 1 / 0] * 2)
    inputs = {"pixel_values": pictures()}
    with unchanged(model), pytest.raises(KeyboardInterrupt), capture(model, ["vit.layers.1"], inputs):
        raise KeyboardInterrupt


def test_gradients_of_the_callers_own_training_step_survive() -> None:
    model = vit().train()
    model(pictures()).logits.sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    CAM(model)(pictures())
    after = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(before) == len(after) > 0
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_train_mode_changes_nothing_in_the_map() -> None:
    model = vit()
    torch.testing.assert_close(CAM(model.train())(pictures()), CAM(model.eval())(pictures()))


def test_swin_keeps_its_window_after_a_small_picture() -> None:
    windows = {"image_size": 128, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 8}
    model = tiny(SwinForImageClassification, **windows)
    block = model.swin.encoder.layers[0].blocks[0]
    before = block.window_size
    with pytest.raises(RuntimeError, match="must match"):  # the window shrinks to the picture, its position table not
        CAM(model)(torch.randn(1, 3, 16, 24))
    assert block.window_size == before


class _Prepared(nn.Module):
    """A network that prepares its picture itself, where the picture lies or beside it."""

    def __init__(self, net: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.net, self.in_place, self.config = net, in_place, net.config

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = pixel_values.sub_(0.2).div_(0.5) if self.in_place else (pixel_values - 0.2) / 0.5
        return self.net(x).logits


@pytest.mark.parametrize("method", FOR_CLASSES)
def test_a_forward_that_writes_over_its_picture_changes_neither_the_picture_nor_the_map(method: str) -> None:
    net, x = make("vit"), pictures(2)
    given, layer = x.clone(), "net.vit.layers.1.layernorm_before"
    few = {"samples": 6, "steps": 2, "draws": 2, "patch": 32}
    options = {name: value for name, value in few.items() if name in get_method(method).options}
    ours, plain = (CAM(_Prepared(net, own).eval(), method, layer, **options)(x, [1, 2]) for own in (True, False))
    assert torch.equal(x, given)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_outer_grad_mode_gives_the_same_map(outer: Callable[[], Any]) -> None:
    model = vit().eval()
    expected = CAM(model)(pictures())
    with outer():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        maps = CAM(model)(pictures())
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    torch.testing.assert_close(maps.clone(), expected)


def test_pictures_that_belong_to_a_graph_stay_out_of_it() -> None:
    x = pictures().requires_grad_()
    maps = CAM(vit().eval())(x * 2)
    assert not maps.requires_grad
    assert x.grad is None


def test_parameters_made_in_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = vit().eval()
    with pytest.raises(ModelError, match="inference_mode"):
        CAM(model)(pictures())


def test_the_tails_gradients_are_those_of_the_whole_graph() -> None:
    model, x, name = vit().eval().double(), pictures().double(), "vit.layers.1"
    whole = {}
    handle = model.get_submodule(name).register_forward_hook(lambda m, a, out: whole.update(out=out))
    score = model(x).logits[:, 3].sum()
    handle.remove()
    expected = torch.autograd.grad(score, whole["out"])[0]
    with capture(model, [name], {"pixel_values": x}) as captured:
        [gradient] = captured.gradients(captured.outputs.logits[:, 3].sum())
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


def test_only_the_tail_is_recorded() -> None:
    model = vit(6).eval()

    def saved_bytes(layer: str) -> int:
        sizes = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.nbytes), t)[1], lambda t: t),
            capture(model, [layer], {"pixel_values": pictures()}),
        ):
            return sum(sizes)

    early, late = saved_bytes("vit.layers.0"), saved_bytes("vit.layers.5")
    assert late < early / 5
    with capture(model, ["vit.layers.5"], {"pixel_values": pictures()}, gradients=False) as captured:
        assert not captured.outputs.logits.requires_grad


def test_several_layers_come_from_one_forward() -> None:
    model, x = vit().eval(), pictures()
    runs = []
    handle = model.register_forward_hook(lambda *args: runs.append(1))
    layers = ["vit.layers.2.layernorm_before", "vit.layers.0", "vit.layers.1"]
    with capture(model, layers, {"pixel_values": x}) as captured:
        together = captured.gradients(captured.outputs.logits[:, 2].sum())
    assert len(runs) == 1
    handle.remove()
    for layer, gradient in zip(layers, together, strict=True):
        with capture(model, [layer], {"pixel_values": x}) as captured:
            [alone] = captured.gradients(captured.outputs.logits[:, 2].sum())
        torch.testing.assert_close(gradient, alone, atol=1e-6, rtol=1e-4)


def test_several_targets_come_from_one_forward() -> None:
    model, x = vit().eval(), pictures()
    runs = []
    handle = model.register_forward_hook(lambda *args: runs.append(1))
    saliency = CAM(model).saliency(x, top_classes(4))
    assert len(runs) == 1
    handle.remove()
    best = saliency.outputs.logits.topk(4).indices
    for k in range(4):
        torch.testing.assert_close(saliency.maps[k], CAM(model)(x, best[:, k].tolist()))
    torch.testing.assert_close(saliency.scores, saliency.outputs.logits.topk(4).values.T)


class _Inplace(nn.Module):
    """Works in place right after the target layer, returns a tuple from it, and ignores the name `pixel_values`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=4)
        self.pair = _Pair()
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps, _ = self.pair(self.stem(x))
        return self.head(self.act(maps).mean((2, 3)))


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return x * 1.5, "note"


def test_in_place_tails_and_tuples_are_understood() -> None:
    torch.manual_seed(0)
    model, x = _Inplace(), pictures()
    with capture(model, ["pair"], {"pixel_values": x}) as captured:
        [gradient] = captured.gradients(captured.outputs[:, 1].sum())
        activation = captured.activations[0]
    with torch.no_grad():
        expected = model.stem(x) * 1.5
    torch.testing.assert_close(activation.detach(), expected)  # not what the ReLU left of it
    assert (activation < 0).any()
    assert torch.equal(gradient != 0, activation > 0)


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        (["nope"], "no layer 'nope'"),
        (["act.unused"], "did not run"),
        (["twice"], "more than once"),
        (["ids"], "no floating"),
    ],
)
def test_layers_that_cannot_serve_are_named(layers: list[str], match: str) -> None:
    class Odd(_Inplace):
        def __init__(self) -> None:
            super().__init__()
            self.act.add_module("unused", nn.Identity())
            self.twice, self.ids = nn.Identity(), _Ids()

        def forward(self, x: Tensor) -> Tensor:
            self.ids(x)
            return super().forward(self.twice(self.twice(x)))

    with pytest.raises(LayerError, match=match), capture(Odd(), layers, {"pixel_values": pictures()}):
        pass


class _Ids(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


def test_a_target_that_is_no_function_of_the_layer_is_refused() -> None:
    model = vit().eval()
    with capture(model, ["vit.layers.1"], {"pixel_values": pictures()}) as captured:
        with pytest.raises(TargetError, match="scalar"):
            captured.gradients(captured.outputs.logits)
        with pytest.raises(TargetError, match="does not depend"):
            captured.gradients(torch.tensor(1.0))


def test_inner_no_grad_of_the_model_does_not_hide_the_tail() -> None:
    class Sealed(_Inplace):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                maps = self.stem(x)
                maps, _ = self.pair(maps)
            return self.head(maps.mean((2, 3)))

    with capture(Sealed(), ["pair"], {"pixel_values": pictures()}) as captured:
        [gradient] = captured.gradients(captured.outputs[:, 0].sum())
    assert gradient.any()


def test_a_compiled_model_still_calls_the_hooks() -> None:
    model = vit(1).eval()
    expected = CAM(model)(pictures())
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(pictures())
    torch.testing.assert_close(CAM(compiled)(pictures()), expected)
    model.compile(backend="eager")
    with torch.no_grad():
        model(pictures())
    torch.testing.assert_close(CAM(model)(pictures()), expected)


def test_threads_explain_one_model_at_once() -> None:
    model = vit().train()
    batches = [pictures(1) * (i + 1) for i in range(8)]
    expected = [CAM(model)(batch) for batch in batches]
    found: dict[int, Tensor] = {}
    failures: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for _ in range(3):
                found[i] = CAM(model)(batches[i])
        except BaseException as error:  # noqa: BLE001  (reported below, in the main thread)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    with unchanged(model):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    for i, maps in enumerate(expected):
        torch.testing.assert_close(found[i], maps)


def test_targets_are_one_per_image_or_one_for_all() -> None:
    model, x = vit().eval(), pictures(3)
    by_index = CAM(model)(x, [1, 2, 3])
    by_callable = CAM(model)(x, [lambda output, k=k: output.logits[k] for k in (1, 2, 3)])
    torch.testing.assert_close(by_index, by_callable)
    torch.testing.assert_close(CAM(model)(x, 2), CAM(model)(x, [2, 2, 2]))
    torch.testing.assert_close(CAM(model)(x, torch.tensor([1, 2, 3])), by_index)


def test_the_models_own_output_is_kept() -> None:
    model, x = vit().eval(), pictures()
    with CAM(model) as cam:
        cam(x)
        with torch.no_grad():
            torch.testing.assert_close(cam.outputs.logits, model(x).logits)
        assert not cam.outputs.logits.requires_grad
    with pytest.raises(IndexError), CAM(model):
        raise IndexError


def test_what_other_hooks_collect_is_part_of_the_graph() -> None:
    """transformers collects the hidden states that a segmentation head reads by hooks that outlive the first call."""
    stage = nn.Conv2d(3, 4, 3, padding=1)
    collected: list[torch.Tensor] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage, self.head = stage, nn.Conv2d(4, 2, 1)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            collected.clear()
            deep = self.head(self.stage(pixel_values)).mean((2, 3))
            return deep + collected[0].sum((1, 2, 3))[:, None]

    net = Net().eval()
    stage.register_forward_hook(lambda _module, _inputs, output: collected.append(output))
    with capture(net, ["stage"], {"pixel_values": torch.rand(1, 3, 8, 8)}) as captured:
        [gradient] = captured.gradients(captured.outputs[0, 1])
    expected = 1 + net.head.weight[1] / 64
    torch.testing.assert_close(gradient, expected.detach().expand(1, 4, 8, 8))
