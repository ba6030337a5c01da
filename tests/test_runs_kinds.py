"""Layers that run several times in one forward: tied weights, siamese and recurrent nets; and layers named by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hf_cam.cam import CAM
from hf_cam.capture.capture import capture
from hf_cam.capture.replay import tail_of
from hf_cam.capture.runs import located, parts_of
from hf_cam.errors import LayerError, LayoutError, MethodError, OptionError
from hf_cam.layouts import TOKENS, Layout
from hf_cam.methods import list_methods
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.infer import infer_adapter
from hf_cam.target_layers.stages import stage_ends
from hf_cam.testing.methods import few_forwards
from kinds import WIDTH, Block, Plain, Tokens, made
from nets import FOR_CLASSES, NETS
from pictures import SIZE, pictures
from unchanged import unchanged

# Siamese nets --------------------------------------------------------------------------------------------------------


class Siamese(Plain):
    """Two pictures through one backbone; `late` runs the first picture last."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.late, self.fc = late, nn.Linear(32, 4)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        order = (second, first) if self.late else (first, second)
        features = [self.b(picture).mean((2, 3)) for picture in order]
        return self.fc(torch.cat(features[::-1] if self.late else features, 1))


class SiameseTokens(nn.Module):
    """Two pictures through one transformer."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.late, self.net, self.fc = late, Tokens(True), nn.Linear(10, 4)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        order = (second, first) if self.late else (first, second)
        features = [self.net(picture) for picture in order]
        return self.fc(torch.cat(features[::-1] if self.late else features, 1))


class Beside(nn.Module):
    """The same net with the features of its second picture as constants: nothing runs twice."""

    def __init__(self, net: nn.Module, second: Tensor) -> None:
        super().__init__()
        self.part = net.b if isinstance(net, Siamese) else net.net
        self.fc, self.maps = net.fc, isinstance(net, Siamese)
        with torch.no_grad():
            self.second = self.features(second)

    def features(self, picture: Tensor) -> Tensor:
        return self.part(picture).mean((2, 3)) if self.maps else self.part(picture)

    def forward(self, first: Tensor) -> Tensor:
        return self.fc(torch.cat([self.features(first), self.second.expand(len(first), -1)], 1))


SECOND = pictures(3)[2:]


# The probabilities of single cells differ in their last digits, and the smallest is subtracted.
CLOSE = {method: 2e-3 if method == "recipro-cam" else 1e-4 for method in FOR_CLASSES}
TWINS = [
    (kind, name)
    for kind in (Siamese, SiameseTokens)
    for name in FOR_CLASSES
    if name != "fullgrad" and not (kind is Siamese and list_methods()[name].needs_attention)
]


@pytest.mark.parametrize("late", [False, True], ids=["runs first", "runs last"])
@pytest.mark.parametrize(("kind", "method"), TWINS)
def test_the_run_on_the_picture_is_explained(kind: type, method: str, late: bool) -> None:
    net = made(kind, late)
    x = pictures(1)
    few = few_forwards(method)
    cam = CAM(net, method, **few)
    found = cam(x, targets=1, second=SECOND)
    assert cam.adapter.layers[0].endswith(f":{int(late)}")
    torch.testing.assert_close(
        found, CAM(Beside(net, SECOND).eval(), method, **few)(x, targets=1), atol=CLOSE[method], rtol=0
    )


@pytest.mark.parametrize("late", [False, True])
def test_a_named_layer_means_the_run_on_the_picture(late: bool) -> None:
    net, x = made(Siamese, late), pictures()
    second = pictures(4)[2:]
    named = {layer: CAM(net, "hirescam", layers=layer)(x, targets=1, second=second) for layer in ("b", "b:0", "b:1")}
    own, other = ("b:1", "b:0") if late else ("b:0", "b:1")
    assert torch.equal(named["b"], named[own])
    assert not torch.equal(named["b"], named[other])
    swapped = CAM(net, "hirescam", layers="b")(second, targets=1, first=x)
    assert torch.equal(swapped, named[other])
    assert torch.equal(CAM(net, "hirescam", layers=[net.b])(x, targets=1, second=second), named[own])


def test_several_runs_of_one_layer_are_layers_of_their_own() -> None:
    net, x = made(Siamese), pictures()
    both = CAM(net, layers=["b:0", "b:1"]).saliency(x, lambda _: [[1, 1]], second=pictures(4)[2:])
    assert [maps.shape for maps in both.raw] == [(1, 2, 16, 24)] * 2
    assert not torch.equal(*both.raw)


def test_full_gradients_are_not_defined_where_a_bias_counts_twice() -> None:
    with pytest.raises(MethodError, match=r"'b.0' runs more than once"):
        CAM(made(Siamese), "fullgrad")(pictures(), targets=1, second=pictures())


# Tied weights --------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """One block run four times.

    Args:
        where: "attribute", or "list" for a list that holds the block four times, or "wrapped" for a block inside an
            encoder that repeats it.
        read: "class" or "mean".
    """

    def __init__(self, where: str = "attribute", read: str = "class") -> None:
        super().__init__()
        block = Block()
        self.patch, self.front = nn.Conv2d(3, WIDTH, 16, 16), nn.Parameter(torch.randn(1, read == "class", WIDTH))
        self.block = {"attribute": block, "list": nn.ModuleList([block] * 4), "wrapped": Repeated(block)}[where]
        self.where, self.norm, self.head = where, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.front.expand(len(x), -1, -1), self.patch(x).flatten(2).mT], 1)
        if self.where == "wrapped":
            x = self.block(x)
        for i in range(0 if self.where == "wrapped" else 4):
            x = self.block[i](x) if self.where == "list" else self.block(x)
        x = self.norm(x)
        return self.head(x[:, 0] if self.front.shape[1] else x.mean(1))


class Repeated(nn.Module):
    """Runs a block four times."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = self.inner(x)
        return x


class Untied(nn.Module):
    """The same net with a copy of the block for each run."""

    def __init__(self, tied: Tied) -> None:
        super().__init__()
        block = {"attribute": lambda: tied.block, "list": lambda: tied.block[0], "wrapped": lambda: tied.block.inner}
        self.blocks = nn.ModuleList(copy.deepcopy(block[tied.where]()) for _ in range(4))
        self.patch, self.front, self.norm, self.head = tied.patch, tied.front, tied.norm, tied.head

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.front.expand(len(x), -1, -1), self.patch(x).flatten(2).mT], 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 0] if self.front.shape[1] else x.mean(1))


ALIKE = [method for method in FOR_CLASSES if method not in ("fullgrad", "legrad", "refinecam")]
NAMES = {"attribute": "block", "list": "block.0", "wrapped": "block.inner"}


@pytest.mark.parametrize("method", ALIKE)
@pytest.mark.parametrize(("where", "read"), [("attribute", "class"), ("list", "class"), ("wrapped", "mean")])
def test_tied_blocks_give_the_maps_of_copies(where: str, read: str, method: str) -> None:
    net = made(Tied, where, read)
    few = few_forwards(method)
    expected = CAM(Untied(net).eval(), method, **few)(pictures(), targets=1)
    torch.testing.assert_close(CAM(net, method, **few)(pictures(), targets=1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("where", NAMES)
def test_the_last_run_is_found_and_each_can_be_named(where: str) -> None:
    net = made(Tied, where)
    copies, x = Untied(net).eval(), pictures()
    assert infer_adapter(net, inputs={"pixel_values": x}).layers == (f"{NAMES[where]}.ln_1:3",)
    for run in range(3):
        for method in ("hirescam", "ablationcam"):
            found = CAM(net, method, layers=f"{NAMES[where]}:{run}")(x, targets=1)
            torch.testing.assert_close(found, CAM(copies, method, layers=f"blocks.{run}")(x, targets=1))


@pytest.mark.parametrize("where", NAMES)
def test_a_layer_of_which_several_runs_read_the_picture_is_refused_with_the_way_to_name_one(where: str) -> None:
    net = made(Tied, where)
    with pytest.raises(
        LayerError, match=rf"4 of its 4 runs of the layer '{NAMES[where]}' .* such as '{NAMES[where]}:3'"
    ):
        CAM(net, layers=NAMES[where])(pictures(), targets=1)
    with pytest.raises(LayerError, match=rf"'{NAMES[where]}:7' has only 4 runs"):
        CAM(net, layers=f"{NAMES[where]}:7")(pictures(), targets=1)


@pytest.mark.parametrize("method", ["legrad", "fullgrad"])
def test_methods_that_take_a_block_once_say_so(method: str) -> None:
    with pytest.raises(MethodError, match=r"exactly one attention call per block|runs more than once"):
        CAM(made(Tied, "list"), method)(pictures(), targets=1)


class Recurrent(Plain):
    """A convolution that reads its own last output four times."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Conv2d(32, 16, 3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.b(image)
        state = torch.zeros_like(features)
        for _ in range(4):
            state = self.cell(torch.cat([features, state], 1)).tanh()
        return self.fc(state.mean((2, 3)))


class Activations(Plain):
    """One activation used everywhere; what its runs return is also returned by nobody else."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.one, self.two = nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.act(self.one(self.b(image)))
        return self.fc(self.act(x + self.two(x)).mean((2, 3)))


@pytest.mark.parametrize(("kind", "layer"), [(Recurrent, "cell:3"), (Activations, "act:1")])
def test_the_last_run_is_the_deepest_layer(kind: type, layer: str) -> None:
    net = made(kind)
    adapter = infer_adapter(net, inputs={"pixel_values": pictures(1)})
    assert adapter.layers == (layer,)
    assert adapter.to_dict() == Adapter.from_dict(adapter.to_dict()).to_dict()
    assert CAM(net)(pictures(), targets=1).shape == (2, *SIZE)


def test_the_ends_of_stages_can_be_runs() -> None:
    net, inputs = made(Tied, "list", "mean"), {"pixel_values": pictures(1)}
    ends = stage_ends(net, infer_adapter(net, inputs=inputs), inputs)
    assert ends.layers == ("norm", "block.0:2", "block.0:1", "block.0:0")


def test_names_with_a_run_are_taken_apart() -> None:
    assert parts_of("a.b:12") == ("a.b", 12)
    assert parts_of("a.b") == ("a.b", None)
    assert parts_of("a:b") == ("a:b", None)
    colon = nn.Module()
    colon.add_module("x:1", nn.Identity())
    assert located(colon, "x:1") == (colon.get_submodule("x:1"), None)
    with pytest.raises(LayerError, match="no layer 'y'"):
        located(colon, "y")


@pytest.mark.parametrize("layer", ["b:0", "b:1", "b.2:1"])
def test_the_tail_behind_a_run_reproduces_the_output(layer: str) -> None:
    net = made(Siamese)
    inputs = {"pixel_values": pictures(3), "second": pictures(3).flip(0)}
    with unchanged(net), tail_of(net, layer, inputs) as tail:
        assert tail.exact
        again = torch.cat([tail(tail.activations[i : i + 1], i) for i in range(3)])
        torch.testing.assert_close(again, net(inputs["pixel_values"], inputs["second"]))
        assert not torch.allclose(tail(tail.activations[:1] * 0, 0), again[:1])


def test_a_layer_that_runs_again_is_refused_where_no_run_is_named() -> None:
    inputs = {"pixel_values": pictures(), "second": pictures()}
    with pytest.raises(LayerError, match="name one run, such as layers='b:0'"), capture(made(Siamese), ["b"], inputs):
        pass


# Layers named by hand ------------------------------------------------------------------------------------------------


class Registers(nn.Module):
    """Three register tokens that no catalogue has heard of; the head reads the mean of the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.r = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.randn(1, 3, 16))
        self.b = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))
        self.h = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.cat([self.r.expand(len(x), -1, -1), self.p(x).flatten(2).mT], 1)
        for block in self.b:
            t = block(t)
        return self.h(t[:, 3:].mean(1))


class Behind(nn.Module):
    """Two tokens before the grid and four behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, WIDTH, 16, 16), nn.ModuleList(Block() for _ in range(2))
        self.front, self.back = nn.Parameter(torch.randn(1, 2, WIDTH)), nn.Parameter(torch.randn(1, 4, WIDTH))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        front, back = (part.expand(len(x), -1, -1) for part in (self.front, self.back))
        x = torch.cat([front, self.patch(x).flatten(2).mT, back], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


NAMED: dict[str, Callable[[], nn.Module]] = {
    "registers": lambda: made(Registers),
    "tokens behind": lambda: made(Behind),
    "tokens first": lambda: made(Tokens, False, front=3),
    "siamese": lambda: made(Plain),
    "tied": lambda: made(Tied, "list"),
    **{name: NETS[name] for name in ("vit", "swin", "yolos", "timm-vit") if name in NETS},
}


@pytest.mark.parametrize("name", NAMED)
def test_naming_the_layers_that_are_inferred_gives_the_same_map(name: str) -> None:
    net, x = NAMED[name](), pictures()

    def target(output: object) -> Tensor:
        return (output if isinstance(output, Tensor) else output["logits"])[..., 1].sum()

    inferred = CAM(net)
    expected = inferred(x, targets=target)
    layers = list(inferred.adapter.layers)
    torch.testing.assert_close(CAM(net, layers=layers)(x, targets=target), expected)
    modules = [net.get_submodule(layer) for layer in layers if ":" not in layer]
    if len(modules) == len(layers):
        torch.testing.assert_close(CAM(net, layers=modules)(x, targets=target), expected)


@pytest.mark.parametrize(
    ("make", "layer", "layout"),
    [
        (lambda: made(Registers), "b.0", Layout(TOKENS, prefix=3, patch=(8, 8))),
        (lambda: made(Behind), "blocks.0", Layout(TOKENS, prefix=2, suffix=4, patch=(16, 16))),
        (lambda: made(Behind), "blocks.1.mlp", Layout(TOKENS, prefix=2, suffix=4, patch=(16, 16))),
    ],
)
def test_tokens_around_the_grid_are_counted_at_named_layers_too(
    make: Callable[[], nn.Module], layer: str, layout: Layout
) -> None:
    cam = CAM(make(), layers=layer)
    assert cam(pictures(), targets=1).shape == (2, *SIZE)
    assert cam.adapter.layouts == (layout,)


def test_a_longer_text_behind_the_grid_is_counted_again() -> None:
    class Reads(Behind):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, WIDTH)

        def forward(self, image: Tensor, words: Tensor) -> Tensor:
            x = torch.cat([self.patch(image).flatten(2).mT, self.words(words)], 1)
            for block in self.blocks:
                x = block(x)
            return self.head(x[:, -1])

    net, x = made(Reads), pictures()
    for layers in (None, "blocks.0"):
        cam = CAM(net, layers=layers)
        for length in (3, 7, 5):
            words = torch.arange(2 * length).reshape(2, length)
            fresh = CAM(net, layers=layers)(x, targets=1, words=words)
            torch.testing.assert_close(cam(x, targets=1, words=words), fresh)


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (lambda net: nn.Linear(2, 2), LayerError, "the module Linear in layers= is no part of the model"),
        (lambda net: net, LayerError, "is the model itself; pass one of its layers"),
        (lambda net: [net.b, 3], OptionError, "takes dotted names or modules, not int"),
        (lambda net: ["b.9"], LayerError, r"no layer 'b.9'; nearest: 'b"),
        (lambda net: "b.9:1", LayerError, r"no layer 'b.9:1'; nearest: 'b"),
        (lambda net: [], LayerError, "names no layer"),
        (lambda net: "", LayerError, "no layer ''"),
    ],
)
def test_what_is_no_layer_of_the_model_is_refused(
    layers: Callable[[nn.Module], object], error: type[Exception], message: str
) -> None:
    net = made(Plain)
    with pytest.raises(error, match=message):
        CAM(net, layers=layers(net))


def test_modules_and_names_may_be_mixed_and_count_once() -> None:
    net = made(Plain)
    assert CAM(net, layers=["b.1", net.b[3], net.b[1]]).adapter.layers == ("b.1", "b.3")


def test_a_layer_outside_of_the_grid_is_still_refused() -> None:
    with pytest.raises(LayoutError, match="no layout of the shape"):
        CAM(made(Plain), layers="fc")(pictures(), targets=1)
