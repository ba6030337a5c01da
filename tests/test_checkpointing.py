"""Gradient checkpointing, special weights and special linear layers do not change a map."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import timm
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from hf_cam.cam import CAM
from hf_cam.capture.checkpointing import uncheckpointed
from hf_cam.capture.guard import borrowed, forwards
from hf_cam.capture.linear import by_tokens
from hf_cam.guided import GuidedBackprop
from hf_cam.testing.methods import few_forwards
from kinds import WIDTH, Block, Plain, made
from nets import FOR_CLASSES, tiny
from pictures import SIZE, pictures

# Checkpointing -------------------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """A transformer whose blocks are checkpointed: `reentrant` or not, or not at all (None)."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.patch, self.blocks = nn.Conv2d(3, WIDTH, 16, 16), nn.ModuleList(Block() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(self.norm(x).mean(1))


class Sequence(Plain):
    """A sequence in checkpointed halves."""

    segments = 0

    def scores(self, image: Tensor) -> Tensor:
        if not self.segments:
            return super().scores(image)
        features = checkpoint_sequential(self.b, self.segments, image, use_reentrant=False)
        return self.fc(features.mean((2, 3)))


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("layers", [None, "blocks.1", "blocks.1.ln_2"])
@pytest.mark.parametrize("method", FOR_CLASSES)
def test_checkpointed_blocks_give_the_maps_of_plain_ones(method: str, layers: str | None, reentrant: bool) -> None:
    plain, net = made(Checkpointed, None), made(Checkpointed, reentrant)
    expected, found = (
        CAM(one, method, layers=layers, **few_forwards(method))(pictures(), targets=1) for one in (plain, net)
    )
    torch.testing.assert_close(found, expected)


def _timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        size = {} if name in ("test_resnet", "test_convnext") else {"img_size": SIZE}
        net = timm.create_model(name, pretrained=False, num_classes=5, **size).eval()
        for parameter in net.parameters():
            if parameter.ndim > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        return net

    return make


SWITCHED: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], object]]] = {
    **{
        name: (_timm(name), lambda net: net.set_grad_checkpointing(True))
        for name in ("test_vit", "test_resnet", "test_convnext", "test_efficientnet")
        if name != "test_efficientnet"
    },
    "transformers": (
        lambda: tiny(hf.ViTForImageClassification, image_size=SIZE),
        lambda net: net.gradient_checkpointing_enable(),
    ),
    "transformers, in training": (
        lambda: tiny(hf.ViTForImageClassification, image_size=SIZE, hidden_dropout_prob=0.0).train(),
        lambda net: net.gradient_checkpointing_enable(),
    ),
    "a sequence": (lambda: made(Sequence), lambda net: setattr(net, "segments", 2)),
}


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("name", SWITCHED)
def test_switching_checkpointing_on_changes_no_map(name: str) -> None:
    make, switch = SWITCHED[name]
    net = make()
    expected = CAM(net)(pictures(), targets=1)
    guided = GuidedBackprop(net)(pictures(), targets=1)
    switch(net)
    torch.testing.assert_close(CAM(net)(pictures(), targets=1), expected)
    torch.testing.assert_close(GuidedBackprop(net)(pictures(), targets=1), guided)


@pytest.mark.parametrize("reentrant", [True, False])
def test_training_with_checkpointing_goes_on_as_before(reentrant: bool) -> None:
    plain, net = made(Checkpointed, None).train(), made(Checkpointed, reentrant).train()
    CAM(net)(pictures(), targets=1)
    for one in (plain, net):
        one(pictures().requires_grad_()).sum().backward()
    torch.testing.assert_close(net.blocks[0].mlp[0].weight.grad, plain.blocks[0].mlp[0].weight.grad)


@pytest.mark.parametrize("reentrant", [True, False])
def test_this_thread_checkpoints_again_however_blocks_end(reentrant: bool) -> None:
    runs: list[int] = []

    def fails() -> None:
        with uncheckpointed():
            with uncheckpointed():
                pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    given = torch.ones(2, requires_grad=True)
    checkpoint(lambda x: (runs.append(1), x.sin())[1], given, use_reentrant=reentrant).sum().backward()
    assert len(runs) == 2  # once forwards, once more in the backward pass


@pytest.mark.parametrize("reentrant", [True, False])
def test_another_thread_still_checkpoints(reentrant: bool) -> None:
    runs: list[int] = []

    def part(x: Tensor) -> Tensor:
        runs.append(1)
        return x.sin()

    def other() -> None:
        checkpoint(part, torch.ones(2, requires_grad=True), use_reentrant=reentrant).sum().backward()

    with uncheckpointed():
        checkpoint(part, torch.ones(2, requires_grad=True), use_reentrant=reentrant).sum().backward()
        assert len(runs) == 1
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(runs) == 3  # once forwards, once more in the backward pass


# Linear layers -------------------------------------------------------------------------------------------------------


class Scaled(torch.Tensor):
    """A weight that stands for twice its values, as quantized weights stand for others."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Scaled:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_function__(cls, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if func is functional.linear:
            given, weight, *bias = args
            return functional.linear(given, weight.inner * 2, *bias)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(str(func))


class Adapted(nn.Module):
    """A linear layer and a low-rank change, as LoRA adds it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))

    def merged(self) -> nn.Linear:
        merged = copy.deepcopy(self.base)
        merged.weight.data += self.up.weight.data @ self.down.weight.data
        return merged


def replaced(net: nn.Module, change: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    for block in net.blocks:
        for place in (0, 2):
            block.mlp[place] = change(block.mlp[place])
    return net


def quantized(layer: nn.Linear) -> nn.Linear:
    layer.weight = nn.Parameter(Scaled(layer.weight.data / 2), requires_grad=False)
    return layer


def hooked(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(lambda _, __, output: output * 1.0)
    return layer


SPECIAL: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "a subclass of Tensor": quantized,
    "weight norm": weight_norm,
    "a parametrization": parametrizations.weight_norm,
    "a hook": hooked,
    "a subclass of Linear": lambda layer: _copied(layer),
}


class OwnLinear(nn.Linear):
    """With a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT + self.bias


def _copied(layer: nn.Linear) -> OwnLinear:
    own = OwnLinear(layer.in_features, layer.out_features)
    own.load_state_dict(layer.state_dict())
    return own


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("method", ["hirescam", "chefer", "libracam", "ablationcam"])
@pytest.mark.parametrize("name", SPECIAL)
def test_special_linear_layers_with_the_same_values_give_the_same_map(name: str, method: str) -> None:
    plain, net = made(Checkpointed, None), replaced(made(Checkpointed, None), SPECIAL[name])
    torch.testing.assert_close(net(pictures()), plain(pictures()))
    expected = CAM(plain, method, layers="blocks.0")(pictures(), targets=1)
    torch.testing.assert_close(CAM(net, method, layers="blocks.0")(pictures(), targets=1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["hirescam", "chefer", "libracam"])
def test_a_low_rank_change_gives_the_map_of_the_merged_weights(method: str) -> None:
    net = replaced(made(Checkpointed, None), lambda layer: made(Adapted, layer))
    merged = replaced(copy.deepcopy(net), lambda adapted: adapted.merged())
    expected = CAM(merged, method, layers="blocks.0")(pictures(), targets=1)
    torch.testing.assert_close(CAM(net, method, layers="blocks.0")(pictures(), targets=1), expected, atol=1e-4, rtol=0)


def test_a_function_in_place_of_torchs_linear_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = functional.linear, []

    def counted(*args: Tensor) -> Tensor:
        calls.append(1)
        return own(*args)

    net = made(Checkpointed, None)
    expected = CAM(net, "hirescam")(pictures(), targets=1)
    monkeypatch.setattr(functional, "linear", counted)
    torch.testing.assert_close(CAM(net, "hirescam")(pictures(), targets=1), expected)
    assert calls


@pytest.mark.parametrize(
    "change",
    [
        lambda layer, x: (quantized(layer), x),
        lambda layer, x: (layer, x.as_subclass(_Named)),
        lambda layer, x: (layer.requires_grad_(True), x),
        lambda layer, x: (layer, x[0]),
    ],
    ids=["a special weight", "special tokens", "a trainable weight", "no tokens"],
)
def test_tokens_are_picked_out_only_where_the_layer_is_plain(
    change: Callable[[nn.Linear, Tensor], tuple[nn.Linear, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_cam.capture import linear

    picked: list[int] = []
    own = linear._ByTokens.apply
    monkeypatch.setattr(linear._ByTokens, "apply", lambda *args: picked.append(1) or own(*args))
    layer = nn.Linear(4, 4).requires_grad_(False)
    tokens = torch.randn(2, 5, 4, requires_grad=True)
    with forwards(by_tokens(layer)):
        layer(tokens)
    assert picked == [1]
    layer, given = change(layer, tokens)
    with forwards(by_tokens(layer)):
        layer(given)
    assert picked == [1]


class _Named(torch.Tensor):
    """A tensor with a class of its own."""


def test_layers_inside_a_transform_are_left_to_torch() -> None:
    layer = nn.Linear(4, 4)
    tokens = torch.randn(3, 2, 5, 4, requires_grad=True)
    with borrowed(layer) as layer, forwards(by_tokens(layer)):
        torch.testing.assert_close(torch.vmap(layer)(tokens), layer(tokens))
