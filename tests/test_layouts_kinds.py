"""Outputs whose axes are not batch, channels, rows, columns: tokens first, and views or tiles in the batch axis."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from hf_cam.cam import CAM
from hf_cam.errors import HFCamError, LayoutError, MethodError, TargetError, UnknownArchitecture
from hf_cam.factorization import DeepFeatureFactorization
from hf_cam.layouts import (
    BY_FRAME,
    NCHW_BY_VIEW,
    NHWC_BY_VIEW,
    TOKENS,
    TOKENS_FIRST,
    Layout,
    Reshape,
    images_axis,
    read_layouts,
    why_unread,
)
from hf_cam.target_layers.infer import infer_adapter
from hf_cam.testing.methods import few_forwards
from kinds import WIDTH, Block, OwnBlock, Plain, Queries, Tokens, backbone, made, twins
from nets import FOR_CLASSES
from pictures import SIZE, pictures

# Tokens first --------------------------------------------------------------------------------------------------------

CLOSE = 1e-4
"""Between maps in [0, 1]: batch first and tokens first sum in different orders."""


def encoder(first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 4, 64, 0.0, batch_first=first)


TWINS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "CLIP's blocks": lambda: twins(Tokens),
    "registers, joined tokens first": lambda: twins(Tokens, front=4, joined_first=True),
    "PyTorch's encoder layers": lambda: twins(Tokens, block=encoder, front=0),
    "fused attention": lambda: twins(Tokens, block=partial(OwnBlock, fused=True)),
    "stepwise attention": lambda: twins(Tokens, block=partial(OwnBlock, fused=False), front=0),
}


@pytest.mark.parametrize("method", FOR_CLASSES)
@pytest.mark.parametrize("name", TWINS)
def test_tokens_first_gives_the_maps_of_batch_first(name: str, method: str) -> None:
    expected, found = (CAM(net, method, **few_forwards(method))(pictures(), targets=[1, 2]) for net in TWINS[name]())
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("name", TWINS)
def test_tokens_first_is_seen_by_the_probe(name: str) -> None:
    one, other = TWINS[name]()
    adapters = [infer_adapter(net, inputs={"pixel_values": pictures(1)}) for net in (one, other)]
    assert adapters[0].layers == adapters[1].layers
    [layout] = adapters[1].layouts
    inside = adapters[1].layers[0].startswith("blocks")
    assert isinstance(layout, Layout)
    assert layout.axes == (TOKENS_FIRST if inside else TOKENS)
    assert layout.prefix == len(one.front)


@pytest.mark.parametrize("layer", ["blocks.0", "blocks.1.ln_1", "blocks.1.attn"])
@pytest.mark.parametrize("method", ["gradcam", "ablationcam", "hirescam", "fullgrad"])
def test_a_named_layer_with_tokens_first_is_read_like_its_twin(layer: str, method: str) -> None:
    expected, found = (CAM(net, method, layers=layer)(pictures(3), targets=1) for net in twins(Tokens, front=2))
    assert found.shape == (3, *SIZE)
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("method", ["gradcam", "chefer", "legrad", "libracam", "attnlrp", "fullgrad", "ablationcam"])
@pytest.mark.parametrize("block", [Block, partial(OwnBlock, fused=True)], ids=["CLIP's", "own"])
def test_as_many_images_as_tokens_are_not_taken_for_each_other(method: str, block: Callable[[bool], nn.Module]) -> None:
    """A class token and 4 x 6 cells: 25 tokens, 25 images."""
    x = pictures(25)
    for net in twins(Tokens, block=block):
        cam = CAM(net, method)
        torch.testing.assert_close(cam(x, targets=1)[7:8], cam(x[7:8], targets=1), atol=CLOSE, rtol=0)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("layers", [None, "conv", "transformer.encoder.layers.1"])
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "chefer", "rollout", "ablationcam"])
def test_queries_that_read_tokens_first_give_the_maps_of_batch_first(method: str, layers: str | None) -> None:
    expected, found = (
        CAM(net, method, layers=layers)(pictures(), targets=lambda output: output["logits"][2, 1])
        for net in twins(Queries)
    )
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("images", [1, 2, 5])
def test_reshape_may_move_the_batch_axis(images: int) -> None:
    one, other = twins(Tokens)
    x = pictures(images)

    def reshape(tokens: Tensor) -> Tensor:
        return tokens[1:].permute(1, 2, 0).reshape(tokens.shape[1], -1, 4, 6)

    for method in ("gradcam", "ablationcam"):
        expected = CAM(one, method, layers="blocks.1")(x, targets=1)
        found = CAM(other, method, layers="blocks.1", reshape=reshape)(x, targets=1)
        torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda tokens: tokens[1:].reshape(24, 2, 4, -1),
        lambda tokens: tokens,
        lambda tokens: tokens[1:].permute(1, 2, 0).reshape(1, -1, 4, 6),
    ],
    ids=["a map per token", "three axes", "images in the channels"],
)
def test_reshape_must_keep_the_number_of_images(wrong: Callable[[Tensor], Tensor]) -> None:
    _, net = twins(Tokens)
    with pytest.raises(LayoutError, match=r"must return a tensor \[B, C, h, w\] with B = 2"):
        CAM(net, layers="blocks.1", reshape=wrong)(pictures(), targets=1)


# Views, tiles and slices in the batch axis ---------------------------------------------------------------------------


class Views(Plain):
    """`[B, V, C, H, W]`, folded into the batch; `alternating` puts the views of different images side by side."""

    def __init__(self, channels: int = 3, alternating: bool = False) -> None:
        super().__init__(channels)
        self.alternating = alternating

    def forward(self, views: Tensor) -> Tensor:
        images, count = views.shape[:2]
        if self.alternating:
            features = self.b(views.transpose(0, 1).flatten(0, 1)).mean((2, 3)).unflatten(0, (count, images))
            return self.fc(features.amax(0))
        return self.fc(self.b(views.flatten(0, 1)).mean((2, 3)).unflatten(0, (images, count)).amax(1))


class ViewsOfTokens(nn.Module):
    """Each view through a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Tokens(True)

    def forward(self, views: Tensor) -> Tensor:
        return self.net(views.flatten(0, 1)).unflatten(0, views.shape[:2]).mean(1)


class ViewsChannelsLast(nn.Module):
    """Each view channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.fc = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, views: Tensor) -> Tensor:
        maps = self.norm(self.patch(views.flatten(0, 1)).permute(0, 2, 3, 1))
        return self.fc(maps.mean((1, 2)).unflatten(0, views.shape[:2]).amax(1))


class Slices(Plain):
    """A volume `[B, C, D, H, W]`, slice by slice."""

    def forward(self, volume: Tensor) -> Tensor:
        slices = volume.transpose(1, 2)
        return self.fc(self.b(slices.flatten(0, 1)).mean((2, 3)).unflatten(0, slices.shape[:2]).mean(1))


class Tiles(Plain):
    """Cuts each picture into six tiles itself."""

    def forward(self, image: Tensor) -> Tensor:
        tiles = image.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return self.fc(self.b(tiles).mean((2, 3)).unflatten(0, (len(image), 6)).mean(1))


FOLDED = {
    "as many views as channels": (lambda: made(Views), (2, 3, 3), "b", NCHW_BY_VIEW, 3),
    "five views": (lambda: made(Views), (2, 5, 3), "b.3", NCHW_BY_VIEW, 5),
    "one view": (lambda: made(Views), (2, 1, 3), "b", NCHW_BY_VIEW, 1),
    "tokens of views": (lambda: made(ViewsOfTokens), (2, 4, 3), "net.blocks.2.ln_1", BY_FRAME, 4),
    "channels last": (lambda: made(ViewsChannelsLast), (3, 4, 3), "norm", NHWC_BY_VIEW, 4),
    "slices of a volume": (lambda: made(Slices, 1), (2, 1, 5), "b", NCHW_BY_VIEW, 5),
}


@pytest.mark.parametrize("name", FOLDED)
def test_each_view_of_each_image_has_a_map(name: str) -> None:
    make, shape, layer, axes, count = FOLDED[name]
    net, views = make(), torch.rand(*shape, *SIZE, generator=torch.Generator().manual_seed(2))
    cam = CAM(net, "hirescam", layers=layer)
    found = cam.saliency(views, lambda _: [[1] * len(views)])
    assert cam.adapter.layouts[0].axes == axes
    assert found.maps.shape == (1, shape[0], count, *SIZE)
    with torch.enable_grad():
        activations: list[Tensor] = []
        handle = net.get_submodule(layer).register_forward_hook(lambda *args: activations.append(args[2]))
        scores = net(views)[:, 1].sum()
        handle.remove()
        [gradient] = torch.autograd.grad(scores, activations)
    laid = Layout(axes, prefix=1 if axes == BY_FRAME else 0).to_spatial(gradient * activations[0], SIZE, shape[0])
    torch.testing.assert_close(found.raw[0][0], laid.sum(1), atol=1e-6, rtol=1e-4)
    alone = CAM(net, "hirescam", layers=layer).saliency(views[1:2], lambda _: [[1]])
    torch.testing.assert_close(found.raw[0][0, 1:2], alone.raw[0][0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "shape", "layers", "message"),
    [
        (lambda: made(Views, alternating=True), (2, 4, 3), "b", "not one image after the other; pass reshape="),
        (lambda: made(Views, alternating=True), (1, 4, 3), "b", "not one image after the other; pass reshape="),
        (lambda: made(Tiles), (2, 3), "b", r"no axis of .* counts just the 2 images: windows, tiles or views lie in"),
        (lambda: made(Tiles), (1, 3), "b", r"no axis of .* counts just the one image: windows, tiles or views lie in"),
        (lambda: made(Tiles), (1, 3), None, r"'b.3', no axis of .* counts just the one image"),
        (lambda: made(Views), (2, 4, 3), None, r"needs a picture \(batch, channels, height, width\)"),
    ],
    ids=["alternating views", "and of one image", "tiles", "tiles of one image", "tiles, inferred", "views, inferred"],
)
def test_other_foldings_are_refused_with_the_reason(
    make: Callable[[], nn.Module], shape: tuple[int, ...], layers: str | None, message: str
) -> None:
    with pytest.raises((LayoutError, UnknownArchitecture), match=message):
        CAM(make(), layers=layers)(torch.rand(*shape, *SIZE), targets=1)


def test_reshape_puts_tiles_together_and_alternating_views_in_order() -> None:
    def together(tiles: Tensor) -> Tensor:
        return tiles.reshape(-1, 2, 3, 16, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(-1, 16, 16, 24)

    assert CAM(made(Tiles), layers="b", reshape=together)(pictures(), targets=1).shape == (2, *SIZE)
    views = torch.rand(2, 4, 3, *SIZE)
    expected = CAM(made(Views), layers="b")(views, targets=1)

    def in_order(maps: Tensor) -> Tensor:
        return maps.unflatten(0, (4, -1)).permute(1, 2, 0, 3, 4)

    found = CAM(made(Views, alternating=True), layers="b", reshape=in_order)(views, targets=1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", FOR_CLASSES)
def test_every_method_gives_a_map_per_view_or_says_that_it_is_not_defined(method: str) -> None:
    cam = CAM(made(Views), method, layers="b", **few_forwards(method))
    try:
        found = cam(torch.rand(2, 4, 3, *SIZE), targets=1)
    except (MethodError, LayoutError) as error:
        assert "one picture" in str(error) or "no attention" in str(error) or "images alone" in str(error)  # noqa: PT017
    else:
        assert found.shape == (2, 4, *SIZE)


def test_concepts_are_not_sought_in_views() -> None:
    with pytest.raises(MethodError, match="single pictures"):
        DeepFeatureFactorization(made(Views), layers="b")(torch.rand(2, 4, 3, *SIZE))


class Grouped(Plain):
    """Takes three views of each object as three members of the batch."""

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.b(images).mean((2, 3)).unflatten(0, (-1, 3)).amax(1))


@pytest.mark.parametrize("layers", [None, "b"])
def test_a_model_that_joins_images_of_the_batch_takes_targets_of_the_whole_output(layers: str | None) -> None:
    cam, x = CAM(made(Grouped), layers=layers), pictures(6)
    with pytest.raises(TargetError, match=r"have the shape \(2, 4\), not \[classes\]; pass target= as a callable"):
        cam(x, targets=1)
    found = cam(x, targets=lambda output: output[0, 1])
    assert found.shape == (6, *SIZE)
    assert found[:3].flatten(1).any(1).all()
    assert not found[3:].any()


# Channels ------------------------------------------------------------------------------------------------------------


class Bands(nn.Module):
    """A convolution over any number of channels, then tokens first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patch, self.block, self.head = nn.Conv2d(channels, WIDTH, 8, 8), Block(False), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.patch(x).flatten(2).permute(2, 0, 1)).mean(0))


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
@pytest.mark.parametrize(("kind", "layer"), [(Plain, "b.3"), (Bands, "block")])
def test_any_number_of_channels_is_inferred_without_a_picture(kind: type, layer: str, channels: int) -> None:
    net = made(kind, channels)
    assert infer_adapter(net).layers == (layer,)
    assert CAM(net)(torch.rand(2, channels, *SIZE), targets=1).shape == (2, *SIZE)


# Layouts themselves --------------------------------------------------------------------------------------------------

GRID = torch.arange(2 * 5 * 4 * 6).reshape(2, 5, 4, 6).float()
VIEWED = torch.arange(2 * 3 * 5 * 4 * 6).reshape(2, 3, 5, 4, 6).float()  # images, views, channels, rows, columns


SEQUENCE = GRID.flatten(2).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("layout", "before", "behind"),
    [
        (Layout(TOKENS_FIRST), 0, 0),
        (Layout(TOKENS_FIRST, prefix=2, suffix=1), 2, 1),
        (Layout(TOKENS_FIRST, suffix=None, patch=(16, 16)), 0, 7),
    ],
)
def test_tokens_first_are_laid_out_value_by_value(layout: Layout, before: int, behind: int) -> None:
    given = nn.functional.pad(SEQUENCE, (0, 0, 0, 0, before, behind), value=-1)
    assert torch.equal(layout.to_spatial(given, SIZE, 2), GRID)


@pytest.mark.parametrize(
    ("axes", "given"),
    [
        (NCHW_BY_VIEW, VIEWED.flatten(0, 1)),
        (NHWC_BY_VIEW, VIEWED.flatten(0, 1).permute(0, 2, 3, 1)),
        (BY_FRAME, VIEWED.flatten(0, 1).flatten(2).mT),
    ],
)
def test_views_are_laid_out_value_by_value(axes: str, given: Tensor) -> None:
    assert torch.equal(Layout(axes).to_spatial(given, SIZE, 2), VIEWED.transpose(1, 2))
    assert torch.equal(Layout(axes).to_spatial(given, SIZE), VIEWED.flatten(0, 1).transpose(0, 1)[None])
    with pytest.raises(LayoutError, match="no multiple of 4 images"):
        Layout(axes).to_spatial(given, SIZE, 4)


@pytest.mark.parametrize("layout", [Layout("b c h w"), Layout("b h w c"), Layout("b (h w) c"), Layout("(h w) b c")])
def test_the_number_of_images_is_always_checked(layout: Layout) -> None:
    shapes = {"b c h w": (6, 5, 4, 6), "b h w c": (6, 4, 6, 5), "b (h w) c": (6, 24, 5), "(h w) b c": (24, 6, 5)}
    given = torch.zeros(shapes[layout.axes])
    assert layout.to_spatial(given, SIZE, 6).shape == (6, 5, 4, 6)
    with pytest.raises(LayoutError, match="there are 6 grids for 2 images"):
        layout.to_spatial(given, SIZE, 2)


@pytest.mark.parametrize(
    ("shape", "images", "axes"),
    [
        ((2, 24, 8), 2, [TOKENS]),
        ((24, 2, 8), 2, [TOKENS_FIRST]),
        ((24, 24, 8), 24, [TOKENS, TOKENS_FIRST]),
        ((25, 2, 8), 2, [TOKENS_FIRST]),
        ((24, 3, 8), 2, []),
        ((4, 8, 4, 6), 2, []),
    ],
)
def test_shapes_are_read_for_the_number_of_images(shape: tuple[int, ...], images: int, axes: list[str]) -> None:
    assert [layout.axes for layout in read_layouts(shape, SIZE, prefixes=(0, 1), images=images)] == axes


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((1, 8, 12, 16), ["b h w c", "b c h w"]),
        ((1, 12, 16, 24), ["b c h w", "b h w c"]),
        ((1, 16, 8, 12), ["b c h w"]),
    ],
)
def test_the_reading_with_equal_strides_comes_first(shape: tuple[int, ...], axes: list[str]) -> None:
    assert [layout.axes for layout in read_layouts(shape, SIZE)] == axes


def test_why_a_shape_is_not_read() -> None:
    assert why_unread((7, 3), SIZE, 2) == "no axis of the shape (7, 3) counts just the 2 images"
    assert "windows, tiles or views lie in the first" in why_unread((50, 49, 96), SIZE, 1)
    assert why_unread((2, 7, 8), SIZE, 2) == "no layout of the shape (2, 7, 8) fits a 64 x 96 input"


@pytest.mark.parametrize(
    ("layout", "shape", "axis"),
    [
        (Layout(TOKENS), (3, 24, 8), 0),
        (Layout(TOKENS_FIRST), (24, 3, 8), 1),
        (Layout(TOKENS_FIRST), (24, 24, 8), 1),
        (Reshape(lambda tokens: tokens.permute(1, 2, 0).unflatten(2, (4, 6))), (24, 3, 8), 1),
        (Reshape(lambda tokens: tokens.mT.unflatten(2, (4, 6))), (24, 24, 8), 0),
    ],
)
def test_the_axis_of_the_images_is_found_by_marks(layout: Layout | Reshape, shape: tuple[int, ...], axis: int) -> None:
    assert images_axis(layout, torch.zeros(shape), SIZE, images=shape[axis]) == axis


def test_images_with_several_views_have_no_axis_of_their_own() -> None:
    with pytest.raises(LayoutError, match="counts the images alone"):
        images_axis(Layout(NCHW_BY_VIEW), torch.zeros(6, 8, 4, 6), SIZE, 2)
    with pytest.raises(HFCamError, match="counts the images alone"):
        CAM(made(Views), "ablationcam", layers="b")(torch.rand(2, 3, 3, *SIZE), targets=1)


def test_the_backbone_of_these_tests_has_the_stride_that_they_assume() -> None:
    assert backbone()(pictures()).shape == (2, 16, 16, 24)
