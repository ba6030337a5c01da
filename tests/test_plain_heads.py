"""Plain modules that are no classifiers: embedding nets, segmenters and detectors, known by what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.feature_extraction import create_feature_extractor

import hf_cam
from hf_cam.errors import TargetError
from hf_cam.heads import head_of
from hf_cam.models.loading import LoadedModel

SIZE = (64, 96)
PROCESSOR = transforms.Compose([transforms.Resize(SIZE), transforms.ToTensor()])
PIXELS = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def lively(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
    return model.eval()


def resnet(**settings: Any) -> nn.Module:
    return lively(torchvision.models.resnet18(num_classes=5, **settings))


class Wrapped(nn.Module):
    """A network inside a module that changes the form of its output."""

    def __init__(self, net: nn.Module, form: Callable[[Any], Any] = lambda output: output) -> None:
        super().__init__()
        self.head = nn.Linear(512, 3)  # registered before the network that feeds it
        self.net, self.form = net, form

    def forward(self, pixels: Tensor) -> Any:
        return self.form(self.net(pixels))


@pytest.fixture
def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (50, 80, 3), np.uint8)
    return Image.fromarray(noise)


def kind_of(model: nn.Module, output: str = "auto", labels: dict[int, str] | None = None) -> str:
    loaded = LoadedModel(model, None, labels or {}, output=output, given={"pixel_values": PIXELS[:1]})
    return head_of(loaded).task


# Embedding nets ------------------------------------------------------------------------------------------------------


def with_identity(net: nn.Module, name: str) -> nn.Module:
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, nn.Identity())
    return net


class SelfSupervised(nn.Module):
    """A vision transformer as published with DINO: the head is an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 16, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(16), nn.Identity()
        self.token = nn.Parameter(torch.rand(1, 1, 16))

    def forward(self, pixels: Tensor) -> Tensor:
        cells = self.patches(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(cells), -1, -1), cells], 1)
        return self.head(self.norm(self.block(tokens))[:, 0])


EMBEDS: dict[str, Callable[[], nn.Module]] = {
    "timm without classes": lambda: timm.create_model("test_vit", num_classes=0, img_size=SIZE),
    "timm without classes and pooling": lambda: timm.create_model("test_resnet", num_classes=0, global_pool=""),
    "timm inside a module": lambda: Wrapped(timm.create_model("test_convnext", num_classes=0)),
    "timm's feature maps": lambda: timm.create_model("test_resnet", features_only=True),
    "resnet.fc is an identity": lambda: with_identity(resnet(), "fc"),
    "densenet's classifier is": lambda: with_identity(
        lively(torchvision.models.densenet121(num_classes=5)), "classifier"
    ),
    "mobilenet's last layer is": lambda: with_identity(
        lively(torchvision.models.mobilenet_v3_small(num_classes=5)), "classifier.3"
    ),
    "swin's head is": lambda: with_identity(lively(torchvision.models.swin_t(num_classes=5)), "head"),
    "cut off behind the pooling": lambda: nn.Sequential(*list(resnet().children())[:-1]),
    "cut off before the pooling": lambda: nn.Sequential(*list(resnet().children())[:-2]),
    "self-supervised": lambda: lively(SelfSupervised()),
    "a dict of features": lambda: Wrapped(with_identity(resnet(), "fc"), lambda found: {"features": found}),
    "of length 1": lambda: Wrapped(resnet(), F.normalize),
    "of length 1 by hand": lambda: Wrapped(resnet(), lambda found: found / found.norm(dim=1, keepdim=True)),
    "of length 1 by squares": lambda: Wrapped(resnet(), lambda found: found / (found * found).sum(1, True).sqrt()),
    "timm's fc is an identity": lambda: with_identity(timm.create_model("test_resnet", num_classes=5), "fc"),
    "timm's tokens of several blocks": lambda: timm.create_model("test_vit", features_only=True, img_size=SIZE),
    "levels by name": lambda: create_feature_extractor(resnet(), {"layer3": "three", "layer4": "four"}),
    "a feature pyramid": lambda: resnet_fpn_backbone(backbone_name="resnet18", weights=None),
    "a projection that ends in a norm": lambda: nn.Sequential(resnet(), nn.BatchNorm1d(5, affine=False)),
}  # fmt: skip


@pytest.mark.parametrize("make", EMBEDS.values(), ids=EMBEDS)
def test_an_embedding_net_is_compared_with_another_image(make: Callable[[], nn.Module], photo: Image.Image) -> None:
    model = make().eval()
    with pytest.raises(TargetError, match="has no classes, it embeds images: pass as target= another image"):
        hf_cam.explain(photo, model, processor=PROCESSOR)
    with pytest.raises(TargetError, match="embeds images: a target must be another image, an embedding"):
        hf_cam.explain(photo, model, processor=PROCESSOR, target=3)
    other = photo.transpose(Image.Transpose.ROTATE_180)
    [found] = hf_cam.explain(photo, model, processor=PROCESSOR, target=other)
    assert found.label == "like the other image"
    assert -1 <= found.score <= 1
    assert found.heatmap.shape == (50, 80)


CLASSIFIES: dict[str, Callable[[], nn.Module]] = {
    "a linear layer": resnet,
    "a backbone with an identity, then a head": lambda: nn.Sequential(with_identity(resnet(), "fc"), nn.Linear(512, 4)),
    "a convolution, then pooling": lambda: lively(torchvision.models.squeezenet1_1(num_classes=5)),
    "an identity behind the linear layer": lambda: nn.Sequential(resnet(), nn.Identity()),
    "dropout behind the linear layer": lambda: nn.Sequential(resnet(), nn.Dropout()),
    "a softmax": lambda: nn.Sequential(resnet(), nn.Softmax(1)),
    "timm inside a module": lambda: Wrapped(timm.create_model("test_convnext", num_classes=5)),
}


@pytest.mark.parametrize("make", CLASSIFIES.values(), ids=CLASSIFIES)
def test_what_ends_in_a_linear_layer_classifies(make: Callable[[], nn.Module], photo: Image.Image) -> None:
    model = make().eval()
    [found] = hf_cam.explain(photo, model, processor=PROCESSOR)
    with torch.no_grad():
        assert found.label == str(int(model(PROCESSOR(photo)[None]).argmax()))


def test_a_softmax_that_is_sure_is_no_embedding_of_length_1() -> None:
    sure = Wrapped(resnet(), lambda found: (1e6 * found).softmax(1))
    assert sure(PIXELS).amax(1).tolist() == [1, 1]
    assert kind_of(sure.eval()) == "image-classification"


def test_what_a_model_returns_can_be_declared(photo: Image.Image) -> None:
    assert kind_of(resnet(), "embedding") == "image-feature-extraction"
    assert kind_of(with_identity(resnet(), "fc"), "logits") == "image-classification"
    names = {index: f"name {index}" for index in range(512)}
    assert kind_of(with_identity(resnet(), "fc"), labels=names) == "image-classification"
    turned = photo.transpose(Image.Transpose.ROTATE_180)
    [found] = hf_cam.explain(photo, resnet(), processor=PROCESSOR, output="embedding", target=turned)
    assert found.label == "like the other image"


@pytest.mark.parametrize("form", [lambda given: given, lambda given: given.numpy(), lambda given: given[None]])
def test_an_embedding_is_compared_with_one_that_the_caller_has(photo: Image.Image, form: Callable) -> None:
    model = with_identity(resnet(), "fc")
    given = torch.randn(512, generator=torch.Generator().manual_seed(1))
    [found] = hf_cam.explain(photo, model, processor=PROCESSOR, target=form(given))
    with torch.no_grad():
        expected = F.cosine_similarity(model(PROCESSOR(photo)[None])[0], given, dim=0)
    assert (found.label, found.score) == ("like the given embedding", pytest.approx(float(expected), abs=1e-5))


def test_an_embedding_of_another_length_is_refused(photo: Image.Image) -> None:
    with pytest.raises(TargetError, match=r"to compare with is \[40\], but the model's is \[512\]"):
        hf_cam.explain(photo, with_identity(resnet(), "fc"), processor=PROCESSOR, target=torch.rand(40))


# Segmenters ----------------------------------------------------------------------------------------------------------


class Segmenter(nn.Module):
    """Maps of three classes: dark, bright and, by a constant, the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.act = nn.Conv2d(3, 2, 4, 4), nn.ReLU()
        self.out = nn.Conv2d(2, 3, 1)
        with torch.no_grad():
            self.cut.weight.copy_(torch.tensor([-1.0, 1.0])[:, None, None, None].expand(2, 3, 4, 4) / 48)
            self.cut.bias.copy_(torch.tensor([1.0, 0.0]))
            self.out.weight.copy_(torch.tensor([[8.0, 0.0], [0.0, 8.0], [0.1, 0.1]])[:, :, None, None])
            self.out.bias.copy_(torch.tensor([-5.0, -5.0, 0.0]))

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.out(self.act(self.cut(pixels)))
        return F.interpolate(maps, size=pixels.shape[-2:], mode="bilinear")


SEGMENTERS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Tensor]]] = {
    "maps": (lambda maps: maps, lambda maps: maps.softmax(0)),
    "a dict": (lambda maps: {"out": maps, "aux": -maps}, lambda maps: maps.softmax(0)),
    "a named part beside others": (lambda maps: {"features": -maps, "logits": maps}, lambda maps: maps.softmax(0)),
    "a softmax": (lambda maps: maps.softmax(1), lambda maps: maps.softmax(0)),
    "a log_softmax": (lambda maps: {"out": maps.log_softmax(1)}, lambda maps: maps.softmax(0)),
    "sigmoids": (lambda maps: maps.sigmoid(), lambda maps: maps.sigmoid()),
    "one sigmoid": (lambda maps: maps[:, 1:2].sigmoid(), lambda maps: maps[1:2].sigmoid()),
}


@pytest.fixture
def scene() -> Image.Image:
    """48 high, 80 wide: dark at the left, grey, and bright at the right."""
    pixels = np.full((48, 80, 3), 128, np.uint8)
    pixels[:, :30], pixels[8:40, 60:] = 40, 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("form", "squash"), SEGMENTERS.values(), ids=SEGMENTERS)
def test_a_module_that_returns_maps_segments(scene: Image.Image, form: Callable, squash: Callable) -> None:
    model = Wrapped(Segmenter(), form).eval()
    with torch.no_grad():
        scores = squash(model.net(PROCESSOR(scene)[None])[0])
    only = len(scores) == 1
    labels = ["bright"] if only else ["dark", "bright", "rest"]
    asked = {"processor": PROCESSOR, "labels": labels, "layers": "net.cut"}
    [pixel] = hf_cam.explain(scene, model, target=(70, 20), **asked)
    row, column = int(20.5 / 48 * 64), int(70.5 / 80 * 96)
    assert (pixel.label, pixel.score) == ("bright", pytest.approx(float(scores[labels.index("bright"), row, column])))
    [named] = hf_cam.explain(scene, model, target="bright", **asked)
    assert named.mask is not None
    assert named.mask[10:38, 62:].all()
    assert not named.mask[:, :56].any()
    assert named.heatmap[20, 70] > 0.9 > 0.1 > named.heatmap[20, 10]
    mask = np.zeros((48, 80), bool)
    mask[10:30, 65:75] = True
    [region] = hf_cam.explain(scene, model, target=mask, **asked)
    assert region.label == "bright"
    found = hf_cam.explain(scene, model, **asked)
    assert "bright" in [one.label for one in found]


def test_torchvisions_segmenters_need_no_declaration(photo: Image.Image) -> None:
    net = lively(
        torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    )
    for model in (net, Wrapped(net), Wrapped(net, lambda found: found["out"])):
        with torch.no_grad():
            best = net(PROCESSOR(photo)[None])["out"][0].argmax(0)
        found = hf_cam.explain(photo, model, processor=PROCESSOR)
        assert int(found[0].label) == int(best.flatten().mode().values)
        [pixel] = hf_cam.explain(photo, model, processor=PROCESSOR, target=(40, 25))
        assert int(pixel.label) == int(best[int(25.5 / 50 * 64), int(40.5 / 80 * 96)])


@pytest.mark.parametrize("classes", [2, 5, 96])
def test_maps_with_the_classes_last_are_refused(classes: int) -> None:
    maps = nn.Sequential(nn.Conv2d(3, classes, 4, 4), nn.Upsample(scale_factor=4))
    last = Wrapped(maps, lambda found: found.permute(0, 2, 3, 1))
    assert kind_of(maps) == "semantic-segmentation"
    with pytest.raises(TargetError, match=r"with the classes last; let it return \[B, classes, h, w\]"):
        kind_of(last)


def test_several_maps_are_listed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Upsample(scale_factor=2))
    supervised = Wrapped(net, lambda found: {"fine": found, "scores": {"coarse": found[..., ::2, ::2]}})
    with pytest.raises(TargetError, match=r"several parts .* \(output\['fine'\] \[4, 32, 48\], output\['scores'\]"):
        hf_cam.GradCAM(supervised)(PIXELS)


def test_a_class_without_a_map_is_refused(scene: Image.Image) -> None:
    with pytest.raises(TargetError, match="no class 3; the model returns maps of 3 classes"):
        hf_cam.explain(scene, Segmenter().eval(), processor=PROCESSOR, target=3, layers="cut")


# Detectors -----------------------------------------------------------------------------------------------------------


class Detector(nn.Module):
    """One box per third of the picture's width, the surer the brighter the third is; labels 1, 2, 1."""

    def __init__(self, form: Callable[[list[dict[str, Tensor]]], Any]) -> None:
        super().__init__()
        self.form, self.cut, self.act = form, nn.Conv2d(3, 1, 16, 16, bias=False), nn.ReLU()
        nn.init.constant_(self.cut.weight, 1 / 768)

    def forward(self, pixels: Tensor) -> Any:
        found = []
        for cells in self.act(self.cut(pixels))[:, 0]:
            shares = cells.unflatten(1, (3, -1)).mean((0, 2))
            width = pixels.shape[-1] / 3
            boxes = torch.tensor([[i * width, 0, (i + 1) * width, pixels.shape[-2]] for i in range(3)])
            found.append({"boxes": boxes, "labels": torch.tensor([1, 2, 1]), "scores": (8 * shares - 3).sigmoid()})
        return self.form(found)


DETECTORS: dict[str, Callable[[list[dict[str, Tensor]]], Any]] = {
    "torchvision's list": lambda found: found,
    "losses and a list": lambda found: ({}, found),
    "a record around the list": lambda found: {"detections": found},
    "more fields": lambda found: [{**one, "masks": torch.zeros(3, 1, 4, 4)} for one in found],
    "a dict where one image is given": lambda found: found[0] if len(found) == 1 else found,
}


@pytest.mark.parametrize("form", DETECTORS.values(), ids=DETECTORS)
def test_a_module_that_lists_boxes_detects(scene: Image.Image, form: Callable) -> None:
    asked = {"processor": PROCESSOR, "labels": ["background", "cup", "plate"], "layers": "cut"}
    model = Detector(form).eval()
    [found] = hf_cam.explain(scene, model, threshold=0.85, **asked)
    assert found.label == "cup"
    assert found.box == pytest.approx((53.3, 0, 80, 48), abs=0.2)
    assert found.heatmap[20, 70] > 0.9 > 0.1 > found.heatmap[20, 40]
    [middle] = hf_cam.explain(scene, model, target=(40, 20), **asked)
    assert (middle.label, middle.box) == ("plate", pytest.approx((26.7, 0, 53.3, 48), abs=0.2))
    [left] = hf_cam.explain(scene, model, target=(0, 0, 26, 48), **asked)
    assert left.label == "cup"
    assert left.score < found.score
    with pytest.raises(TargetError, match="no class is called 'spoon'"):
        hf_cam.explain(scene, model, target="spoon", **asked)
    both = hf_cam.explain([scene, scene], model, target=["plate", (70, 20)], **asked)
    assert [[one.label for one in found] for found in both] == [["plate"], ["cup"]]


class Queries(nn.Module):
    """Two queries, one for the left half of the picture and one for the right, as DETR returns them."""

    def __init__(self, names: tuple[str, str]) -> None:
        super().__init__()
        self.names, self.cut = names, nn.Conv2d(3, 4, 16, 16)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        maps = self.cut(pixels).relu()
        classes = torch.stack([half.mean((2, 3)) for half in maps.chunk(2, 3)], 1)
        boxes = pixels.new_tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]]).expand(len(pixels), -1, -1)
        return dict(zip(self.names, (8 * classes, boxes), strict=True))


@pytest.mark.parametrize("names", [("pred_logits", "pred_boxes"), ("logits", "pred_boxes")], ids=str)
@pytest.mark.parametrize("count", [3, 4])
def test_a_module_with_queries_detects(photo: Image.Image, names: tuple[str, str], count: int) -> None:
    torch.manual_seed(0)
    model = Queries(names).eval()
    with torch.no_grad():
        logits = model(PROCESSOR(photo)[None])[names[0]][0]
    scores = logits.softmax(-1)[:, :-1] if count == 3 else logits.sigmoid()
    asked = {"processor": PROCESSOR, "labels": ["cat", "dog", "cup", "pug"][:count], "layers": "cut"}
    [found] = hf_cam.explain(photo, model, target=(60, 25), **asked)
    assert found.box == pytest.approx((40, 0, 80, 50))
    assert (found.label, found.score) == (asked["labels"][scores[1].argmax()], pytest.approx(float(scores[1].max())))
    assert found.heatmap[:, 50:].max() == 1
    assert not found.heatmap[:, :25].any()
    with pytest.raises(TargetError, match=r"whether the last is 'no object' is open: pass labels= .*, 3 names if it"):
        hf_cam.explain(photo, model, processor=PROCESSOR, layers="cut")
    with pytest.raises(TargetError, match="or target= as a callable"):
        hf_cam.GradCAM(model, "cut")(PIXELS)


def test_a_name_that_no_detection_has_is_refused(scene: Image.Image) -> None:
    with pytest.raises(TargetError, match="Detector finds no 'spoon' in this image"):
        hf_cam.explain(scene, Detector(DETECTORS["torchvision's list"]).eval(), processor=PROCESSOR, target="spoon",
                       labels=["background", "cup", "plate", "spoon"], layers="cut")  # fmt: skip


def test_a_label_without_names_is_refused(scene: Image.Image) -> None:
    with pytest.raises(TargetError, match=r"Detector has no label names; .* or names as labels="):
        hf_cam.explain(scene, Detector(DETECTORS["torchvision's list"]).eval(), processor=PROCESSOR, target="cup",
                       layers="cut")  # fmt: skip


# What does not fail where it cannot be established -------------------------------------------------------------------


class Needy(nn.Module):
    """A module that needs more than a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet()

    def forward(self, pixels: Tensor, shift: Tensor) -> Tensor:
        return self.net(pixels) + shift


def test_a_model_that_does_not_take_the_example_counts_as_a_classifier() -> None:
    assert kind_of(Needy()) == "image-classification"


def test_the_run_leaves_the_model_as_it_was() -> None:
    model = resnet().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kind_of(model)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
