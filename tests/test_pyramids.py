"""Layers that return several scales: their levels, the map of all of them, and of one by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BackboneOutput

import hf_cam
from benchmarks.tiny_models import case_of
from hf_cam.errors import DetachedError, LayerError, LayoutError
from hf_cam.interfaces.cli import main
from hf_cam.layouts import Layout, Reshape
from hf_cam.methods import get_method
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.infer import infer_adapter
from hf_cam.target_layers.noise import check_layouts
from hf_cam.target_layers.pyramids import Level, strides_of
from pictures import pictures
from unchanged import unchanged

SIZE = (64, 96)


class Pyramid(nn.Module):
    """Maps with the strides 8, 16 and 32, in the container that `hold` makes of them."""

    def __init__(self, hold: Callable[[list[Tensor]], Any]) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 6, 8, 8), nn.ModuleList(nn.Conv2d(6, 6, 3, 2, 1) for _ in range(2))
        self.hold = hold

    def forward(self, x: Tensor) -> Any:
        maps = [self.stem(x)]
        for down in self.down:
            maps.append(down(maps[-1].tanh()))
        return self.hold(maps)


class Detector(nn.Module):
    """Reads every level; `unhold` makes a list of the container again."""

    def __init__(self, hold: Callable[[list[Tensor]], Any], unhold: Callable[[Any], list[Tensor]]) -> None:
        super().__init__()
        self.neck, self.unhold = Pyramid(hold), unhold
        self.heads = nn.ModuleList(nn.Conv2d(6, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        levels = zip(self.heads, self.unhold(self.neck(x)), strict=True)
        return sum((head(level.square()).tanh().flatten(2).amax(2) for head, level in levels), torch.zeros(len(x), 4))


class Encoder(nn.Module):
    """Works on one sequence of three scales, whose sizes it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)

    def forward(self, tokens: Tensor, spatial_shapes: Tensor) -> Tensor:
        assert int(spatial_shapes.prod(1).sum()) == tokens.shape[1]
        return tokens + self.mix(tokens).tanh()


class Flattening(nn.Module):
    """A detector whose encoder works on all scales in one sequence."""

    def __init__(self, order: int = 1) -> None:
        super().__init__()
        self.neck, self.encoder, self.head = Pyramid(list), Encoder(), nn.Linear(6, 4)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        maps = self.neck(x)[:: self.order]
        sizes = torch.tensor([level.shape[2:] for level in maps])
        tokens = self.encoder(torch.cat([level.flatten(2).mT for level in maps], 1), sizes)
        return self.head(tokens.square()).tanh().amax(1)


CONTAINERS: dict[str, tuple[Callable[[list[Tensor]], Any], Callable[[Any], list[Tensor]]]] = {
    "a dict": (lambda maps: OrderedDict(zip(("0", "1", "pool"), maps, strict=True)), lambda held: [*held.values()]),
    "a dict with numbers as keys": (lambda maps: dict(enumerate(maps)), lambda held: [*held.values()]),
    "a list": (list, list),
    "a tuple": (tuple, list),
    "coarsest first": (lambda maps: maps[::-1], lambda held: held[::-1]),
    "a record": (lambda maps: BackboneOutput(feature_maps=tuple(maps)), lambda held: list(held.feature_maps)),
    "pairs of a map and a mask": (
        lambda maps: [(level, torch.ones_like(level[:, 0], dtype=torch.bool)) for level in maps],
        lambda held: [level for level, _ in held],
    ),
    "channels last": (
        lambda maps: tuple(level.permute(0, 2, 3, 1) for level in maps),
        lambda held: [level.permute(0, 3, 1, 2) for level in held],
    ),
}


def slow(net: nn.Module, kind: str, x: Tensor, target: int, read: int = 3) -> list[Tensor]:
    """Grad-CAM's map of each level that is read, in float64, from the definition."""
    hold, unhold = CONTAINERS[kind]
    net, x = net.double(), x.double()
    with torch.no_grad():
        maps = [level.requires_grad_() for level in unhold(net.neck(x))]
    handle = net.neck.register_forward_hook(lambda *_: hold(maps))
    gradients = torch.autograd.grad(net(x)[0, target], maps[:read])
    handle.remove()
    net.float()
    return [
        sum((gradient[0, c].mean() * level[0, c] for c in range(level.shape[1])), torch.zeros(())).clamp_min(0)
        for level, gradient in zip(maps, gradients, strict=False)
    ]


def fused(levels: list[Tensor], size: tuple[int, int]) -> Tensor:
    """The mean of the levels, each scaled to [0, 1] and enlarged; scaled again."""

    def scaled(values: Tensor) -> Tensor:
        span = values.max() - values.min()
        return (values - values.min()) / span if span > 0 else torch.zeros_like(values)

    shown = [functional.interpolate(scaled(one)[None, None], size, mode="bilinear")[0, 0] for one in levels]
    return scaled(torch.stack(shown).mean(0)).detach()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_the_levels_of_a_pyramid_are_fused_as_float64_does_it_slowly(kind: str) -> None:
    net, x = Detector(*CONTAINERS[kind]).eval(), pictures(1)
    cam = hf_cam.GradCAM(net, layers="neck")
    with unchanged(net):
        found = cam(x, targets=[2])
    assert len(cam.adapter.layers) == 3
    torch.testing.assert_close(found[0].double(), fused(slow(net, kind, x, 2), SIZE), atol=1e-4, rtol=0)


@pytest.mark.parametrize("order", [1, -1], ids=["finest first", "coarsest first"])
def test_the_scales_of_one_sequence_are_cut_and_fused_as_float64_does_it_slowly(order: int) -> None:
    net, x = Flattening(order).eval(), pictures(1)
    sizes = [(8, 12), (4, 6), (2, 3)][::order]
    cut = [rows * columns for rows, columns in sizes]

    net.double()
    held: list[Tensor] = []
    handle = net.encoder.register_forward_hook(lambda _, __, output: held.append(output))
    score = net(x.double())[0, 1]
    handle.remove()
    [gradient] = torch.autograd.grad(score, held)
    net.float()
    slowly = []
    for tokens, own, (rows, columns) in zip(held[0].split(cut, 1), gradient.split(cut, 1), sizes, strict=True):
        slowly.append((tokens[0] @ own[0].mean(0)).clamp_min(0).reshape(rows, columns))
    cam = hf_cam.GradCAM(net, layers="encoder")
    found = cam(x, targets=[1])
    assert cam.adapter.layers == ("encoder[0]", "encoder[1]", "encoder[2]")
    torch.testing.assert_close(found[0].double(), fused(slowly, SIZE), atol=1e-4, rtol=0)
    alone = hf_cam.GradCAM(net, layers="encoder[1]")(x, targets=[1])
    torch.testing.assert_close(alone[0].double(), fused(slowly[1:2], SIZE), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "index"), [("neck[0]", 0), ("neck[pool]", 2), ("neck[-1]", 2), ("neck:0[1]", 1)])
def test_one_level_by_name_is_that_level_alone(name: str, index: int) -> None:
    net, x = Detector(*CONTAINERS["a dict"]).eval(), pictures(1)
    slowly = slow(net, "a dict", x, 3)[index]
    [found] = hf_cam.GradCAM(net, layers=name)(x, targets=[3])
    torch.testing.assert_close(found.double(), fused([slowly], SIZE), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ("neck[fine]", LayerError, r"'neck' has no level 'fine'; it has '0', '1', 'pool'"),
        ("neck[-4]", LayerError, r"'neck' has no level '-4'"),
        ("neck.stem[0]", LayerError, r"'neck.stem' returns a single map, so it has no levels; omit \[0\]"),
        ("nick[0]", LayerError, r"no layer 'nick\[0\]'; nearest: 'neck'"),
    ],
)
def test_a_level_that_does_not_exist_is_refused_by_name(layer: str, error: type[Exception], message: str) -> None:
    net = Detector(*CONTAINERS["a dict"]).eval()
    with pytest.raises(error, match=message):
        hf_cam.GradCAM(net, layers=layer)(pictures(1), targets=[0])


def test_scales_whose_sizes_the_forward_does_not_show_are_asked_for() -> None:
    net = Flattening().eval()
    net.encoder.forward = lambda tokens, sizes: tokens * 2  # its parameter does not say what the numbers are
    with pytest.raises(LayoutError, match=r"126 tokens, and the forward does not show the sizes .* pass reshape="):
        hf_cam.GradCAM(net, layers="encoder[0]")(pictures(1), targets=[0])
    reshape = lambda tokens: tokens[:, :96].mT.unflatten(2, (8, 12))  # noqa: E731
    assert hf_cam.GradCAM(net, layers="encoder", reshape=reshape)(pictures(1), targets=[0]).shape == (1, *SIZE)


def test_a_picture_of_another_size_is_cut_at_its_own_places() -> None:
    net = Flattening().eval()
    cam, wide, high = hf_cam.GradCAM(net, layers="encoder"), torch.rand(1, 3, 64, 96), torch.rand(1, 3, 96, 64)
    cam(wide, targets=[0])
    found = cam(high, targets=[0])  # as many tokens, in other rows
    torch.testing.assert_close(found, hf_cam.GradCAM(net, layers="encoder")(high, targets=[0]))
    cam(torch.rand(1, 3, 80, 104), targets=[0])


def test_a_level_that_the_target_ignores_adds_nothing_and_alone_is_refused() -> None:
    hold, unhold = CONTAINERS["a list"]
    net, x = Detector(hold, lambda held: [*unhold(held)[:2], unhold(held)[2].detach()]).eval(), pictures(1)
    slowly = slow(net, "a list", x, 0, read=2)
    [found] = hf_cam.GradCAM(net, layers="neck")(x, targets=[0])
    torch.testing.assert_close(found.double(), fused([*slowly, torch.zeros(2, 3)], SIZE), atol=1e-4, rtol=0)
    with pytest.raises(DetachedError, match="does not depend on the target layer"):
        hf_cam.GradCAM(net, layers="neck[2]")(x, targets=[0])


def test_the_levels_gradients_are_the_same_beside_a_method_that_records_from_the_picture_on() -> None:
    net, x = Detector(*CONTAINERS["a list"]).eval(), pictures(1)
    cam = hf_cam.GradCAM(net, layers="neck")
    methods = [get_method("gradcam"), get_method("fullgrad")]
    both = cam.saliencies(methods, x, lambda _: [[lambda logits: logits[1]]])
    torch.testing.assert_close(both.found[0].maps[0], cam(x, targets=[1]))


def test_ablating_the_channels_of_a_level_leaves_the_others_alone() -> None:
    for net, layer in ((Detector(list, list).eval(), "neck[1]"), (Flattening().eval(), "encoder[1]")):
        x = pictures(1)
        own = hf_cam.AblationCAM(net, layers=layer).saliency(x, lambda _: [[lambda logits: logits[2]]])
        with torch.no_grad():
            whole = net(x)[0, 2]
            weights, activations = [], None
            for channel in range(6):
                net_layer = net.get_submodule(layer[:-3])

                def without(_: Any, __: Any, output: Any, channel: int = channel) -> Any:
                    if isinstance(output, list):
                        output = [level.clone() for level in output]
                        output[1][:, channel] = 0
                        return output
                    output = output.clone()
                    output[:, 96:120, channel] = 0
                    return output

                handle = net_layer.register_forward_hook(without)
                weights.append((whole - net(x)[0, 2]) / whole)
                handle.remove()
            held: list[Any] = []
            handle = net_layer.register_forward_hook(lambda _, __, output, held=held: held.append(output))
            net(x)
            handle.remove()
            activations = held[0][1][0] if isinstance(held[0], list) else held[0][0, 96:120].mT.unflatten(1, (4, 6))
            expected = torch.einsum("c,chw->hw", torch.stack(weights), activations).clamp_min(0)
        torch.testing.assert_close(own.raw[0][0, 0].clamp_min(0), expected, atol=1e-5, rtol=1e-3)


# Layouts -------------------------------------------------------------------------------------------------------------


def test_one_activation_that_holds_several_scales_gives_a_list_value_by_value() -> None:
    maps = [torch.rand(2, 5, rows, columns) for rows, columns in ((8, 12), (4, 6), (2, 3))]
    tokens = torch.cat([level.flatten(2).mT for level in maps], 1)
    strides = (8, 16, 32)
    adapter = Adapter(tuple(f"encoder[{i}]" for i in range(3)), tuple(Level(strides, i) for i in range(3)))
    for found in (adapter.to_spatial(tokens, SIZE), adapter.to_spatial(tokens, SIZE, "encoder", images=2)):
        assert all(torch.equal(one, level) for one, level in zip(found, maps, strict=True))
    assert torch.equal(adapter.to_spatial(tokens, SIZE, "encoder[2]"), maps[2])
    with pytest.raises(LayoutError, match=r"there are 2 grids for 3 images"):
        adapter.to_spatial(tokens, SIZE, images=3)
    with pytest.raises(LayoutError, match=r"125 tokens are not the 126 cells .* strides 8, 16, 32 for a 64 x 96 input"):
        adapter.to_spatial(tokens[:, 1:], SIZE)
    pyramid = Adapter(("fpn",), (Layout("b c h w"),))
    assert all(map(torch.equal, pyramid.to_spatial({"fine": maps[0], "coarse": maps[1]}, SIZE), maps[:2]))


def test_the_levels_of_a_sequence_are_written_to_a_file_and_read_again(tmp_path) -> None:
    adapter = Adapter(("encoder[1]",), (Level((8, 16), 1),))
    adapter.save_pretrained(tmp_path)
    assert Adapter.from_pretrained(tmp_path).layouts == adapter.layouts
    for wrong in ({"strides": [8, 0], "index": 0}, {"strides": [8], "index": "0"}, {"strides": [8, 16], "index": 2}):
        with pytest.raises(LayoutError):
            Adapter.from_dict({"layers": ["encoder[0]"], "layouts": [wrong]})


@pytest.mark.parametrize(
    ("sizes", "size", "strides"),
    [
        ([(13, 19), (7, 10), (4, 5)], (100, 150), (8, 16, 32)),  # rounded up
        ([(12, 18), (6, 9), (3, 4)], (100, 150), (8, 16, 32)),  # rounded down
        ([(16, 20), (8, 10)], (224, 280), (14, 28)),  # patches of 14
        ([(4, 6), (8, 12)], (64, 96), (16, 8)),  # coarsest first
        ([(12, 8)], (64, 96), None),  # transposed
    ],
)
def test_strides_are_those_that_give_the_sizes(sizes, size, strides) -> None:
    assert strides_of(sizes, size) == strides


# Architectures -------------------------------------------------------------------------------------------------------

OF_SEVERAL_SCALES = [
    ("object-detection", "rt_detr", "model.encoder", 3),
    ("object-detection", "rt_detr", "model.enc_output", 3),
    ("object-detection", "deformable_detr", "model.encoder.layers.0", 4),
    ("universal-segmentation", "mask2former", "model.pixel_level_module.decoder", 3),
    ("universal-segmentation", "mask2former", "model.pixel_level_module.decoder.encoder", 3),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "model_type", "layer", "count"), OF_SEVERAL_SCALES)
def test_a_change_in_the_picture_shows_at_its_place_on_every_level(task, model_type, layer, count) -> None:
    case = case_of(task, model_type)
    net = case.build()
    inputs = case.inputs(net)
    adapter = infer_adapter(net, layers=layer, inputs=inputs)
    assert len(adapter.layers) == count
    verdicts = check_layouts(net, inputs, list(zip(adapter.layers, adapter.layouts, strict=True)))
    assert "refuted" not in verdicts
    assert verdicts.count("confirmed") >= count - 1
    wrong = Reshape(lambda tensor: _upside_down(adapter.layouts[0].to_spatial(tensor, case.size)))
    assert check_layouts(net, inputs, [(adapter.layers[0], wrong)]) == ["refuted"]


def _upside_down(maps: Tensor) -> Tensor:
    return maps.flip(-2)


def test_the_command_takes_a_level_by_name(tmp_path, capsys) -> None:
    from PIL import Image

    picture = tmp_path / "picture.png"
    Image.effect_noise((96, 64), 80).convert("RGB").save(picture)
    arguments = ["explain", str(picture), "--model", "demo:maskformer", "--out", str(tmp_path / "map.png")]
    assert main([*arguments, "--layer", "model.pixel_level_module.encoder[-1]"]) == 0
    assert main([*arguments, "--layer", "model.pixel_level_module.encoder[x]"]) == 2
    assert "has no level 'x'; it has '0'" in capsys.readouterr().err
