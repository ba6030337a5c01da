"""Where a method of several layers looks when the caller names none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hf_cam.cam import CAM
from hf_cam.errors import LayerError
from hf_cam.layouts import NCHW, Layout
from hf_cam.maps import normalize
from hf_cam.methods import get_method
from hf_cam.target_layers.adapter import Adapter, union
from hf_cam.target_layers.stages import stage_ends
from nets import make
from pictures import SIZE, pictures


class _Pyramid(nn.Module):
    """Five grids; each stage a list of blocks with a residual branch, between norms and strided convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 2, stride=2)
        self.downs = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2, stride=2)) for _ in range(4))
        self.stages = nn.ModuleList(nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))) for _ in range(4))
        self.side = nn.ModuleList([nn.Conv2d(4, 4, 1)])
        self.head = nn.Linear(4, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.stem(pixel_values)
        for down, stage in zip(self.downs, self.stages, strict=True):
            x = stage(down(x))
            if x.shape[-1] == 12:
                x = x + self.side[0](x).tanh()  # the stage's end is this sum, which no module returns
        return self.head(x.mean((2, 3)))


class _Column(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 8, stride=8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh()) for _ in range(depth))
        self.head = nn.Linear(4, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.stem(pixel_values)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def ends(net: nn.Module, target: str, x: Tensor | None = None) -> tuple[str, ...]:
    return stage_ends(
        net, Adapter((target,), (Layout(NCHW),)), {"pixel_values": pictures(1) if x is None else x}
    ).layers


def test_a_stage_is_what_shares_a_grid_and_the_four_coarsest_count() -> None:
    # Grids of 16 x 24, 8 x 12, 4 x 6 and 2 x 3 cells follow the stem's 32 x 48.
    assert ends(_Pyramid().eval(), "stages.3") == ("stages.3", "stages.2", "stages.1", "stages.0")
    assert ends(_Pyramid().eval(), "stages.2") == ("stages.2", "stages.1", "stages.0")  # the stem is no block


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(12, (11, 8, 5, 2)), (6, (5, 3, 2, 0)), (4, (3, 2, 1, 0)), (3, (2, 1, 0)), (2, (1, 0)), (1, (0,))],
)
def test_a_column_of_blocks_is_cut_into_quarters(depth: int, expected: tuple[int, ...]) -> None:
    assert ends(_Column(depth).eval(), f"blocks.{depth - 1}") == tuple(f"blocks.{index}" for index in expected)


def test_several_layers_and_models_of_no_picture_stay_as_they_are() -> None:
    net = _Column(4).eval()
    several = Adapter(("blocks.3", "blocks.1"), (Layout(NCHW),) * 2)
    assert stage_ends(net, several, {"pixel_values": pictures(1)}) is several
    lone = Adapter(("blocks.3",), (Layout(NCHW),))
    assert stage_ends(net, lone, {"pixel_values": torch.zeros(1, 2, 3, *SIZE)}) is lone


FOUND = {
    "vit": ("vit.layers.2.layernorm_before", "vit.layers.1", "vit.layers.0"),
    "swin": ("swin.layernorm", "swin.encoder.layers.1.blocks.0", "swin.encoder.layers.0.blocks.0"),
    "convnext": tuple(f"convnext.encoder.stages.{stage}" for stage in (3, 2, 1, 0)),
    "resnet": tuple(f"resnet.encoder.stages.{stage}" for stage in (2, 1, 0)),
}


@pytest.mark.parametrize("name", sorted(FOUND))
def test_refinecam_multiplies_the_maps_of_every_stages_end(name: str) -> None:
    net, x = make(name), pictures(2)
    cam = CAM(net, "refinecam")
    assert cam.adapter.layers == FOUND[name]
    found = cam.saliency(x, lambda outputs: [[1, 4]])
    assert found.adapter.layers == FOUND[name]
    base = CAM(net, "gradcam++", layers=FOUND[name][0]).adapter
    product = torch.ones(())
    for layer in FOUND[name]:
        product = product * CAM(net, "gradcam++", layers=layer)(x, [1, 4])
    torch.testing.assert_close(found.maps[0], normalize(product), atol=1e-4, rtol=0)
    assert CAM(net, "gradcam++").adapter.layers == base.layers  # it alone looks at several


def test_the_callers_layers_go_first() -> None:
    net, x, layer = make("resnet"), pictures(2), "resnet.encoder.stages.1"
    cam = CAM(net, "refinecam", layers=layer)
    assert cam.adapter.layers == (layer,)
    torch.testing.assert_close(cam(x, [1, 4]), CAM(net, "gradcam++", layers=layer)(x, [1, 4]))
    with pytest.raises(LayerError, match="nearest"):
        CAM(net, "refinecam", layers=["resnet.encoder.stages.9"])


def test_methods_that_look_at_different_layers_share_a_forward() -> None:
    net, x = make("resnet"), pictures(2)
    forwards = []
    handle = net.register_forward_hook(lambda *_: forwards.append(1))
    cam = CAM(net, "gradcam")
    cam.saliencies([get_method("refinecam")], x, lambda outputs: [[1, 4]])  # finds its layers in a forward of its own
    forwards.clear()
    methods = [get_method(method) for method in ("gradcam", "refinecam", "eigencam")]
    found = cam.saliencies(methods, x, lambda outputs: [[1, 4]])
    handle.remove()
    assert len(forwards) == 1
    assert [len(one.adapter.layers) for one in found] == [1, 3, 1]
    for one in found:
        torch.testing.assert_close(one.maps[0], CAM(net, one.method.id)(x, [1, 4]), atol=1e-5, rtol=0)


def test_a_union_of_adapters_names_each_layer_once() -> None:
    first, second = Adapter(("a", "b"), (Layout(NCHW),) * 2), Adapter(("b", "c"), (Layout(NCHW),) * 2)
    assert union([first, second]).layers == ("a", "b", "c")
    assert len(union([first, second]).layouts) == 3
