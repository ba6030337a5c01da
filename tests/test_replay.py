"""Only the tail is rerun, it is exact, and the model comes back whole."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hf_cam.cam import CAM
from hf_cam.capture.levels import with_first_tensor
from hf_cam.capture.replay import tail_of
from hf_cam.errors import SlowWarning
from hf_cam.models.loading import load
from hf_cam.target_layers.infer import infer_adapter
from nets import OF_EVERY_LAYOUT, make
from pictures import pictures
from unchanged import unchanged


def test_the_tail_gives_what_a_whole_forward_gives() -> None:
    for name in OF_EVERY_LAYOUT:
        net, x = make(name), pictures(2)
        layer = infer_adapter(net).layers[0]
        with tail_of(net, layer, {"pixel_values": x}) as tail:
            assert tail.exact
            assert tail.prefix
            variants = tail.activations[1:].repeat(3, *[1] * (tail.activations.ndim - 1))
            variants = variants * torch.tensor([1.0, 0.5, -1.0]).reshape(-1, *[1] * (variants.ndim - 1))
            found = tail(variants, sample=1).logits
        for variant, logits in zip(variants, found, strict=True):
            handle = net.get_submodule(layer).register_forward_hook(
                lambda m, a, out, v=variant: with_first_tensor(out, v[None])
            )
            with torch.no_grad():
                torch.testing.assert_close(net(x[1:]).logits[0], logits, atol=1e-5, rtol=1e-4)
            handle.remove()


def test_what_ran_before_the_layer_does_not_run_again() -> None:
    net, x = make("vit"), pictures(1)
    ran: list[str] = []

    def spy(name: str, module: nn.Module) -> None:
        forward = module.forward
        module.forward = lambda *args, **kwargs: (ran.append(name), forward(*args, **kwargs))[1]

    for name, module in net.named_modules():
        if name.endswith(("projection", "mlp")):
            spy(name, module)
    with tail_of(net, "vit.layers.2.layernorm_before", {"pixel_values": x}) as tail:
        ran.clear()
        tail(tail.activations, 0)
    assert ran == ["vit.layers.2.mlp"]


def test_the_model_comes_back_whole_and_keeps_its_own_forwards() -> None:
    net, x = make("resnet"), pictures(1)
    own = net.resnet.embedder.forward
    net.resnet.embedder.forward = own
    with unchanged(net), tail_of(net, "resnet.encoder.stages.2", {"pixel_values": x}) as tail:
        tail(tail.activations, 0)
        with pytest.raises(RuntimeError, match=r"mat1 and mat2|size"):
            tail(tail.activations[:, :3], 0)


class _Shy(nn.Module):
    """Adds to a remembered value in place, which a replay cannot do on a view that many variants share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 16, stride=16)
        self.features = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        stem = self.stem(pixel_values)
        features = self.features(stem)
        stem += features
        return self.head(stem.mean((2, 3)))


def test_a_tail_that_cannot_be_replayed_falls_back_to_whole_forwards() -> None:
    net, x = _Shy(), pictures(2)
    with tail_of(net, "features", {"pixel_values": x}) as tail:
        assert not tail.exact
        variants = torch.cat([tail.activations[1:], tail.activations[1:] * 2])
        found = tail(variants, 1)
    with torch.no_grad():
        torch.testing.assert_close(found[0], net(x)[1])
        torch.testing.assert_close(found[1], net.head((net.stem(x[1:]) + variants[1:]).mean((2, 3)))[0])
    with pytest.warns(SlowWarning, match="each of its 4 channels takes a whole forward"):
        CAM(net, "ablationcam", layers="features")(x, [1, 2])


@pytest.mark.parametrize("name", OF_EVERY_LAYOUT)
def test_the_tail_of_a_half_precision_model_runs_in_float32(name: str) -> None:
    net, x = make(name).bfloat16(), pictures(2).bfloat16()
    before = {key: (tensor.data_ptr(), tensor.dtype) for key, tensor in net.state_dict(keep_vars=True).items()}
    with tail_of(net, infer_adapter(net).layers[0], {"pixel_values": x}) as tail:
        found = tail(tail.activations[1:], sample=1).logits
    assert found.dtype == torch.float32
    assert before == {key: (tensor.data_ptr(), tensor.dtype) for key, tensor in net.state_dict(keep_vars=True).items()}
    # What follows the bfloat16 activations is what a float32 model makes of them.
    wide = make(name).bfloat16().float()
    handle = wide.get_submodule(infer_adapter(net).layers[0]).register_forward_hook(
        lambda m, a, out: with_first_tensor(out, tail.activations[1:].float())
    )
    with torch.no_grad():
        close = {"vit": 0.05}.get(name, 1e-5)  # a ViT's tail also adds what ran before the layer, in bfloat16
        torch.testing.assert_close(found, wide(x[1:].float()).logits, atol=close, rtol=0)
    handle.remove()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["recipro-cam", "ablationcam"])
@pytest.mark.filterwarnings("error::hf_cam.errors.SlowWarning")
def test_rounding_does_not_keep_a_trained_tail_from_being_replayed(method: str, dtype: torch.dtype) -> None:
    model = load("demo:vit").model
    x = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    [layer] = infer_adapter(model).layers
    half = copy.deepcopy(model).to(dtype)
    with tail_of(half, layer, {"pixel_values": x.to(dtype)}) as tail:
        assert tail.exact
        assert tail.wide
    maps = [CAM(net, method)(x.to(net.dtype), 1).float().flatten() for net in (model, half)]
    assert torch.corrcoef(torch.stack(maps))[0, 1] > 0.98


def test_whole_forwards_of_a_half_precision_model_run_in_float32() -> None:
    net, x = _Shy().bfloat16(), pictures(2).bfloat16()
    with tail_of(net, "features", {"pixel_values": x}) as tail:
        assert not tail.exact
        assert tail(tail.activations[1:], 1).dtype == torch.float32


class _Cast(nn.Module):
    """Insists on its own dtype, as a forward may that casts by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 4, 16, stride=16)
        self.head = nn.Linear(4, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.features(pixel_values).mean((2, 3)).bfloat16())


def test_a_tail_that_refuses_float32_stays_in_half_precision() -> None:
    net, x = _Cast().bfloat16(), pictures(2).bfloat16()
    with tail_of(net, "features", {"pixel_values": x}) as tail:
        assert tail.exact
        assert tail(tail.activations[1:], 1).dtype == torch.bfloat16
