"""An image without evidence has zeros, alone and in a batch; a layer that can have no gradient is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from hf_cam.cam import CAM
from hf_cam.capture.inputs import noise_like
from hf_cam.errors import DetachedError, NoGradientError
from hf_cam.methods import get_method, list_methods
from hf_cam.testing.methods import few_forwards
from kinds import WIDTH, Plain, Tokens, made
from nets import FOR_CLASSES, tiny
from pictures import SIZE, pictures

BLACK = torch.zeros(1, 3, *SIZE)


class Dark(Plain):
    """Behind the backbone, a ReLU passes only bright pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(16, 16, 1)
        nn.init.constant_(self.gate.bias, -0.3)
        for module in self.b:
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.gate(self.b(image)).relu().mean((2, 3)))


class DarkTokens(Tokens):
    """A transformer without positions whose head passes only bright pictures."""

    def __init__(self) -> None:
        super().__init__(True)
        self.gate = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (x.abs().mean((1, 2, 3), keepdim=True).flatten(1) - 0.1).relu()


READS = [name for name in FOR_CLASSES if not get_method(name).needs_attention]
ATTENDS = [name for name in list_methods() if get_method(name).needs_attention]


@pytest.mark.parametrize("layers", ["b.1", "b.3", "gate"])
@pytest.mark.parametrize("method", READS)
def test_a_black_image_has_the_same_map_alone_and_beside_others(method: str, layers: str) -> None:
    cam = CAM(made(Dark), method, layers=layers, **few_forwards(method))
    for others in (pictures(1), pictures(2), BLACK):
        together = cam(torch.cat([others, BLACK]), targets=1)
        torch.testing.assert_close(together[-1:], cam(BLACK, targets=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", ["b.1", "b.3"])
def test_without_evidence_the_map_is_zero(layers: str) -> None:
    cam = CAM(made(Dark), layers=layers)
    assert not cam(BLACK, targets=1).any()
    assert cam(torch.cat([BLACK, pictures(1)]), targets=1).flatten(1).any(1).tolist() == [False, True]


@pytest.mark.parametrize("method", [*ATTENDS, "gradcam"])
def test_a_black_image_has_the_same_map_through_attention(method: str) -> None:
    cam = CAM(made(DarkTokens), method, **few_forwards(method))
    alone = cam(BLACK, targets=1)
    together = cam(torch.cat([pictures(2), BLACK]), targets=1)
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=0)
    assert together[:2].flatten(1).any(1).all()


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(
    ("make", "layer", "better"),
    [
        (lambda: tiny(hf.ViTForImageClassification, image_size=SIZE), "vit.layers.1", "vit.layers.1.layernorm_before"),
        (lambda: made(Tokens, True), "blocks.2", "blocks.2.ln_1"),
        (lambda: made(Tokens, False), "blocks.2", "blocks.2.ln_1"),
    ],
    ids=["transformers' ViT", "CLIP's blocks", "tokens first"],
)
def test_a_layer_that_no_image_can_give_a_gradient_is_refused_with_a_better_one(
    make: Callable[[], nn.Module], layer: str, better: str, images: int
) -> None:
    with pytest.raises(NoGradientError, match=rf"zero on every cell of '{layer}'.*Use layers=\['{better}'\]"):
        CAM(make(), layers=layer)(pictures(images), targets=1)


@pytest.mark.parametrize("method", ["gradcam", "chefer", "rollout"])
def test_a_target_that_is_constant_is_refused(method: str) -> None:
    net = made(Tokens, True)
    with pytest.raises(NoGradientError, match=r"zero on every cell|zero at the last attention"):
        CAM(net, method)(pictures(), targets=lambda output: output.sum() * 0)
    with pytest.raises(DetachedError):
        CAM(net, method)(pictures(), targets=lambda output: output.sum().detach())


def test_a_target_that_one_image_does_not_reach_is_zero_for_it_alone() -> None:
    net = made(Plain)
    low, high = net(pictures())[:, 1].sort().values.tolist()

    def target(output: Tensor) -> Tensor:
        return (output[1] - (low + high) / 2).relu()

    cam = CAM(net)
    together = cam(pictures(), targets=target)
    alone = torch.cat([cam(pictures()[i : i + 1], targets=target) for i in range(2)])
    torch.testing.assert_close(together, alone)
    assert sorted(together.flatten(1).any(1).tolist()) == [False, True]


def test_noise_is_tried_only_where_every_gradient_vanishes() -> None:
    net = made(Dark)
    runs: list[int] = []
    cam = CAM(net, layers="b.1")
    cam(pictures(1), targets=1)
    net.register_forward_hook(lambda *_: runs.append(1))
    cam(torch.cat([pictures(1), BLACK]), targets=1)
    assert len(runs) == 1
    cam(BLACK, targets=1)
    assert len(runs) > 2


def test_noise_has_the_pictures_shape_and_is_the_same_at_every_call() -> None:
    inputs = {"pixel_values": torch.zeros(2, 4, 5, 6, dtype=torch.float16), "age": torch.ones(2)}
    noise = noise_like(inputs, 10)
    assert noise["pixel_values"].shape == (2, 4, 5, 6)
    assert noise["pixel_values"].dtype == torch.float16
    assert torch.equal(noise["pixel_values"], noise_like(inputs, 10)["pixel_values"])
    assert noise["pixel_values"].float().std() == pytest.approx(10, rel=0.2)
    assert noise["age"] is inputs["age"]


def test_libracam_chooses_the_block_image_by_image() -> None:
    contributions = get_method("libracam").contributions
    terms = torch.zeros(2, 3, 4, 5)
    terms[0, 2], terms[0, 1], terms[1, 1] = 1, 2, 3
    found = contributions(frozen_terms=lambda gates: terms)
    assert found.shape == (2, 1, 4, 5)
    assert found[0].unique().tolist() == [1]
    assert found[1].unique().tolist() == [3]


def test_the_nets_of_these_tests_are_dead_on_black_alone() -> None:
    assert made(Dark)(BLACK).unique(dim=0).shape == (1, 4)
    assert not made(DarkTokens)(BLACK).any()
    assert made(DarkTokens)(pictures()).any()
    assert WIDTH == 32
