"""Near the entrance is no deepest layer: what the probe refuses, and what it never lets out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import timm
import torch
import torchvision
import transformers as hf
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional
from torchvision.models.feature_extraction import create_feature_extractor

from benchmarks.tiny_models import Case, cases
from hf_cam.cam import CAM
from hf_cam.errors import HFCamError, MethodError, ModelError, UnknownArchitecture
from hf_cam.layouts import Layout, Reshape
from hf_cam.target_layers.catalogue import catalogue
from hf_cam.target_layers.infer import example_inputs, infer_adapter
from hf_cam.target_layers.probe import probe
from hf_cam.target_layers.trace import depths, is_avoided
from kinds import WIDTH, Block, Plain, Tokens, made
from nets import tiny
from pictures import SIZE, pictures

ONE = {"pixel_values": pictures(1)}


def case_of(task: str, model_type: str) -> Case:
    return next(case for case in cases(task) if case.model_type == model_type)


# Near the entrance ---------------------------------------------------------------------------------------------------


class Columns(Tokens):
    """Tokens in column order, which no layout reads."""

    def __init__(self) -> None:
        super().__init__(True, front=0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).transpose(2, 3).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Windows(nn.Module):
    """Blocks that see windows of 2 x 2 cells, in the batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, WIDTH, 8, 8), nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        windows = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).flatten(0, 2).flatten(1, 2)
        for block in self.blocks:
            windows = block(windows)
        return self.head(windows.unflatten(0, (len(x), -1)).mean((1, 2)))


class Latents(nn.Module):
    """A few latents read all cells, and blocks of latents follow."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.latents = nn.Conv2d(3, WIDTH, 8, 8), nn.Parameter(torch.randn(1, 7, WIDTH))
        self.read = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(4)), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.patch(x).flatten(2).mT
        latents = self.read(self.latents.expand(len(x), -1, -1), cells, cells, need_weights=False)[0]
        for block in self.blocks:
            latents = block(latents)
        return self.head(latents.mean(1))


class Branches(Plain):
    """Behind the stem, each stage is two branches that no module joins."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(16, 8, 3, 2, 1) for _ in range(2)) if i % 2 == 0 else nn.ModuleList()
            for i in range(4)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.b(image)
        for one, other in filter(len, self.stages):
            x = functional.relu(torch.cat([one(x), other(x)], 1))
        return self.fc(x.mean((2, 3)))


SHALLOW: dict[str, tuple[type[nn.Module], str]] = {
    "tokens in columns": (Columns, r"'patch', near the entrance \(.*'norm', it does not change where the picture does"),
    "windows": (Windows, r"'patch', near the entrance .*'blocks.2', no axis of .* counts just the one image: windows"),
    "latents": (Latents, r"'patch', near the entrance .*'blocks.3', no layout of the shape \(1, 7, 32\) fits"),
    "branches": (Branches, r"'b.3', in an early stage .*'stages.2.1', only 50% of the paths to the output run through"),
}


@pytest.mark.parametrize("name", SHALLOW)
def test_an_early_layer_is_refused_with_the_later_ones_and_the_reasons(name: str) -> None:
    kind, message = SHALLOW[name]
    with pytest.raises(UnknownArchitecture, match=message) as refused:
        probe(made(kind), ONE)
    assert "layers=" in str(refused.value)
    assert "reshape=" in str(refused.value)


class Ensemble(nn.Module):
    """Two networks that only the score joins, as logits, probabilities or logarithms; `deeper` has more paths."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.join, self.small, self.deeper = join, Plain(), Tokens(True)
        self.small.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.small(x), self.deeper((x - 0.5) * 2))


JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logits": lambda one, other: (one + other) / 2,
    "probabilities": lambda one, other: torch.stack([one.softmax(1), other.softmax(1)]).mean(0),
    "a gate": lambda one, other: one * other.sigmoid(),
    "weights": lambda one, other: 0.2 * one.log_softmax(1) + 0.8 * other.log_softmax(1),
}


@pytest.mark.parametrize("name", JOINS)
def test_a_layer_of_one_network_of_an_ensemble_is_refused(name: str) -> None:
    net = made(Ensemble, JOINS[name])
    with pytest.raises(UnknownArchitecture, match=r"'deeper.blocks.2.ln_1' belongs to one of them, 'small.b.3' to ano"):
        probe(net, ONE)
    layers = ["deeper.blocks.2.ln_1", "small.b.3"]
    assert CAM(net, layers=layers)(pictures(), targets=1).shape == (2, *SIZE)


class Skips(Plain):
    """The picture goes around the deepest layer through a layer that feeds it too."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Sequential(*[nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU()) for _ in range(3)])

    def forward(self, image: Tensor) -> Tensor:
        stem = self.b(image)
        return self.fc(stem.mean((2, 3)) + self.deep(stem).mean((2, 3)) + self.deep(stem).amax((2, 3)))


def test_a_skip_around_the_deepest_layer_is_no_other_network() -> None:
    assert probe(made(Skips), ONE).layer


@pytest.mark.parametrize("kind", [Columns, Windows, Latents, Branches])
def test_the_caller_may_insist_on_an_early_layer(kind: type[nn.Module]) -> None:
    layer = "b" if kind is Branches else "patch"
    assert CAM(made(kind), layers=layer)(pictures(), targets=1).shape == (2, *SIZE)


class OnlyStem(nn.Module):
    """One convolution, and behind it vectors alone, however many layers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, 8)
        self.head = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(depth)], nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).mean((2, 3)))


@pytest.mark.parametrize("depth", [1, 10, 40])
def test_the_only_layer_with_cells_is_the_deepest_however_early(depth: int) -> None:
    assert probe(made(OnlyStem, depth), ONE).layer == "stem"


@pytest.mark.parametrize("family", ["vilt", "depth_pro"])
def test_an_early_layer_of_the_catalogue_comes_with_its_reason(family: str) -> None:
    entry = next(entry for entry in catalogue() if family in entry.model_types)
    assert "only the layer that cuts" in entry.reason
    case = case_of("visual-question-answering" if family == "vilt" else "image-feature-extraction", family)
    net = case.build()
    inputs = case.inputs(net)
    assert infer_adapter(net, inputs=inputs).origin == "catalogue"
    with pytest.raises(UnknownArchitecture, match="near the entrance"):
        probe(net, inputs)


def test_depth_is_the_share_of_the_longest_path() -> None:
    x = torch.ones(3, requires_grad=True)
    early = x.exp()
    late = early.sin().cos()
    depth = depths((late + early).sum(), x)
    assert depth(get_gradient_edge(x)) == 0
    assert depth(get_gradient_edge(early)) == 1 / 5
    assert depth(get_gradient_edge(late)) == 3 / 5
    assert depth(get_gradient_edge(torch.ones(1, requires_grad=True))) == 0


def test_a_cut_is_avoided_unless_all_branches_are_in_it() -> None:
    x = torch.ones(3, requires_grad=True)
    one, other = x.exp(), x.sin()
    score = (one + other).sum()
    edges = [get_gradient_edge(branch) for branch in (one, other)]
    assert is_avoided(edges[:1], score, x)
    assert not is_avoided(edges, score, x)


# Traced networks -----------------------------------------------------------------------------------------------------


class Residual(Plain):
    """Residual blocks with one activation per block, as in torchvision's ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2 = _Residual(), _Residual()

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.b(image))).mean((2, 3)))


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.relu = (
            nn.Conv2d(16, 16, 3, 2, 1),
            nn.Conv2d(16, 16, 3, 1, 1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.relu(x + self.conv2(self.relu(x.clone())))


def extracted(net: nn.Module, last: str) -> nn.Module:
    return create_feature_extractor(net, {last: "logits"}).eval()


def resnet() -> nn.Module:
    return torchvision.models.resnet18(num_classes=4)


def mobilenet() -> nn.Module:
    return torchvision.models.mobilenet_v3_small(num_classes=4)


Tracer = Callable[[nn.Module], nn.Module]
TRACED: dict[str, tuple[Callable[[], nn.Module], Tracer, str, str]] = {
    "torchvision's ResNet": (resnet, lambda net: extracted(net, "fc"), "layer4.1", "layer4.1.relu:1"),
    "torchvision's MobileNet": (mobilenet, torch.fx.symbolic_trace, "features.12", "features.12.2"),
    "residual blocks": (lambda: made(Residual), torch.fx.symbolic_trace, "layer2", "layer2.relu:1"),
    "an own net": (lambda: made(Plain), torch.fx.symbolic_trace, "b.3", "b.3"),
}


@pytest.mark.parametrize("name", TRACED)
def test_a_traced_network_gives_the_map_of_the_original(name: str) -> None:
    make, trace, layer, traced_layer = TRACED[name]
    torch.manual_seed(0)
    net = make().eval()
    x = torch.rand(2, 3, 96, 160)
    own, traced = CAM(net, "hirescam"), CAM(trace(net), "hirescam")
    torch.testing.assert_close(traced(x, targets=1), own(x, targets=1))
    assert (own.adapter.layers, traced.adapter.layers) == ((layer,), (traced_layer,))


def test_a_traced_network_whose_stages_no_module_returns_is_refused() -> None:
    torch.manual_seed(0)
    net = torchvision.models.inception_v3(num_classes=4, aux_logits=False, init_weights=False).eval()
    with pytest.raises(UnknownArchitecture, match=r"in an early stage .*'Mixed_7c.branch_pool.bn', only 17% of the"):
        infer_adapter(extracted(net, "fc"), inputs={"pixel_values": torch.rand(1, 3, 139, 171)})


class Traceable(Tokens):
    """Without a `len`, which a trace cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.front.transpose(0, 1).expand(x.shape[0], -1, -1), self.patch(x).flatten(2).mT], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def test_methods_that_need_whole_blocks_say_so_on_a_traced_transformer() -> None:
    net = made(Traceable, True)
    traced = torch.fx.symbolic_trace(net)
    x = pictures()
    for method in ("gradcam", "rollout", "chefer"):
        torch.testing.assert_close(CAM(traced, method)(x, targets=1), CAM(net, method)(x, targets=1))
    for method in ("legrad", "libracam", "attnlrp"):
        with pytest.raises(MethodError, match=r"'blocks.0.attn' is in no module that is a whole block"):
            CAM(traced, method)(x, targets=1)


class Attributes(Tokens):
    """The blocks as attributes, in no list."""

    def __init__(self) -> None:
        super().__init__(True)
        self.one, self.two, self.three = self.blocks
        self.blocks = None

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.front.transpose(0, 1).expand(len(x), -1, -1), self.patch(x).flatten(2).mT], 1)
        return self.head(self.norm(self.three(self.two(self.one(x))))[:, 0])


class Nested(nn.Sequential):
    """A sequence whose second member holds the blocks."""

    def __init__(self) -> None:
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, 0.0, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        super().__init__(nn.Conv2d(3, WIDTH, 16, 16), Sequence(), encoder, Mean(), nn.Linear(WIDTH, 5))


class Sequence(nn.Module):
    """Maps to tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mT


class Mean(nn.Module):
    """The mean token."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


@pytest.mark.parametrize("method", ["legrad", "libracam", "libragrad", "attnlrp", "rollout"])
def test_blocks_are_found_as_attributes_and_in_nested_sequences(method: str) -> None:
    attributes = made(Attributes)
    listed = made(Tokens, True)
    listed.load_state_dict(
        {
            key.replace("one.", "blocks.0.").replace("two.", "blocks.1.").replace("three.", "blocks.2."): value
            for key, value in attributes.state_dict().items()
        }
    )
    torch.testing.assert_close(
        CAM(attributes, method)(pictures(), targets=1), CAM(listed, method)(pictures(), targets=1)
    )
    nested = made(Nested)
    flat = nn.Sequential(nested[0], nested[1], *copy.deepcopy(nested[2].layers), nested[3], nested[4]).eval()
    torch.testing.assert_close(CAM(nested, method)(pictures(), targets=1), CAM(flat, method)(pictures(), targets=1))


# No foreign exception ------------------------------------------------------------------------------------------------

SIZED = {
    "vit_tiny_patch16_224": (64, 96),
    "deit_tiny_distilled_patch16_224": (96, 64),
    "test_vit": (64, 128),
    "test_vit2": (80, 96),
    "test_vit3": (96, 128),
    "flexivit_small": (64, 96),
    "eva02_tiny_patch14_224": (84, 140),
    "vit_relpos_small_patch16_224": (64, 96),
    "swin_tiny_patch4_window7_224": (64, 96),
    "nest_tiny": (128, 128),
}
HIDDEN = {"visformer_tiny": (96, 160), "maxvit_rmlp_pico_rw_256": (128, 192)}
"""Networks that do not show which size they were built for."""


def sized(name: str, size: tuple[int, int]) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=5, img_size=size).eval()


@pytest.mark.parametrize("name", HIDDEN)
def test_a_timm_network_that_hides_its_size_is_refused_unless_the_inputs_are_given(name: str) -> None:
    net = sized(name, HIDDEN[name])
    with pytest.raises(UnknownArchitecture, match="does not run on a picture of noise") as refused:
        infer_adapter(net)
    assert refused.value.__cause__ is not None
    assert infer_adapter(net, inputs={"pixel_values": torch.randn(1, 3, *HIDDEN[name])}).layers


@pytest.mark.parametrize("name", SIZED)
def test_a_timm_network_of_another_size_is_seen_at_that_size(name: str) -> None:
    net = sized(name, SIZED[name])
    assert tuple(example_inputs(net)["pixel_values"].shape[-2:]) == SIZED[name]
    assert infer_adapter(net).origin == "timm"


class Missing(Plain):
    """Needs more than a picture."""

    def forward(self, image: Tensor, words: Tensor) -> Tensor:
        return self.scores(image) + words.sum()


class Raises(nn.Module):
    """Raises whatever it is given."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


NOT_ALONE: dict[str, Callable[[], nn.Module]] = {
    "words": lambda: made(Missing),
    "a failed assertion": lambda: Raises(AssertionError()),
    "a missing key": lambda: Raises(KeyError("classes")),
    "no forward": nn.Module,
    "BLIP": lambda: tiny(hf.BlipForQuestionAnswering),
    "OneFormer": lambda: case_of("universal-segmentation", "oneformer").build(),
    "OmDet": lambda: case_of("zero-shot-object-detection", "omdet-turbo").build(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NOT_ALONE)
def test_a_model_that_does_not_run_on_a_picture_alone_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises((UnknownArchitecture, ModelError), match="inputs=") as refused:
        infer_adapter(NOT_ALONE[name]())
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is not None


@pytest.mark.parametrize("error", [AssertionError("too wide"), KeyError("b"), TypeError("c"), RuntimeError("d\ne")])
def test_a_model_that_fails_on_the_callers_inputs_is_refused_with_its_own_words(error: Exception) -> None:
    with pytest.raises(ModelError, match=f"Raises fails on these inputs \\({type(error).__name__}: ") as refused:
        infer_adapter(Raises(error), inputs=ONE)
    assert refused.value.__cause__ is error
    assert "\n" not in str(refused.value)


def test_what_stops_the_program_is_let_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        infer_adapter(Raises(KeyboardInterrupt()), inputs=ONE)


def _meta() -> nn.Module:
    return made(Plain).to("meta")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.script(made(Plain)), "compiled by torch.jit hides its layers"),
        (lambda: torch.jit.trace(made(Plain), pictures()), "compiled by torch.jit hides its layers"),
        (_meta, "meta device and has no weights"),
    ],
    ids=["scripted", "traced by jit", "meta"],
)
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_what_is_no_plain_module_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    net = make()
    with pytest.raises(HFCamError, match=message):
        CAM(net, layers=None if message.startswith("compiled") else "b")(pictures(), targets=1)
    with pytest.raises(HFCamError):
        infer_adapter(net)


def test_the_layer_does_not_depend_on_the_first_picture() -> None:
    """On a black picture all gradients before the last ReLU vanish."""
    net = torchvision.models.resnet18(num_classes=4).eval()
    for block in net.modules():
        if isinstance(block, nn.BatchNorm2d):
            nn.init.constant_(block.bias, -0.01)
    black = torch.zeros(1, 3, 96, 128)
    seen: Mapping[str, tuple[str, ...]] = {
        name: _found(net, x) for name, x in {"black": black, "noise": torch.randn_like(black)}.items()
    }
    assert seen["black"] == seen["noise"] == ("layer4.1",)


def _found(net: nn.Module, x: Tensor) -> tuple[str, ...]:
    cam = CAM(net)
    cam(x, targets=1)
    return cam.adapter.layers


def test_a_claim_with_a_function_for_a_layout_is_checked_like_any_other() -> None:
    net = made(Plain)
    adapter = infer_adapter(net, layers="b", reshape=lambda maps: maps, inputs=ONE)
    assert isinstance(adapter.layouts[0], Reshape)
    assert infer_adapter(net, layers="b", inputs=ONE).layouts == (Layout("b c h w"),)
