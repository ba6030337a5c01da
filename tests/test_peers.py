"""Models of libraries that are no dependencies: ultralytics, open_clip, segmentation_models_pytorch, vit_pytorch.

None of them is installed with hf-cam: `pip install -e ".[dev,peers]" ultralytics && pytest -m peers` runs these tests.
"""

from __future__ import annotations

import importlib
import os
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import transforms

import hf_cam
from hf_cam.errors import ModelError, TargetError
from hf_cam.heads import head_of
from hf_cam.heads.candidates import CandidateBox, table_of
from hf_cam.models.libraries import letterboxed
from hf_cam.outputs import sample_of
from hf_cam.targets import SIDES, BoxSide, ListedBox, SumOf, side_of_box

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
PROCESSOR = transforms.Compose([transforms.Resize((64, 96)), transforms.ToTensor()])


def peer(name: str) -> Any:
    """The library; where it is not installed, the test is skipped unless `HF_CAM_PEERS=required`."""
    if os.environ.get("HF_CAM_PEERS") == "required":
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is not installed; hf-cam does not depend on it")


@pytest.fixture
def image() -> Image.Image:
    """Noise, 256 high and 320 wide, as large as the networks below get it."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 320, 3), np.uint8))


# ultralytics ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ultralytics(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    if "YOLO_CONFIG_DIR" not in os.environ:
        monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    return peer("ultralytics")


def lively(model: nn.Module) -> nn.Module:
    """With weights and statistics that give every candidate another score, none of them sure."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.normal_(0, 0.3, generator=generator)
            module.momentum = None  # the mean of all batches
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
            nn.init.kaiming_normal_(module.weight, generator=generator)
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 256, 320, generator=generator))
    head = list(model.children())[-1][-1]
    for branch in (*getattr(head, "cv3", ()), *getattr(head, "one2one_cv3", ())):
        branch[-1].weight.data.mul_(0.3)
        branch[-1].bias.data.fill_(-2.0)
    for branch in (*getattr(head, "cv2", ()), *getattr(head, "one2one_cv2", ())):
        if branch[-1].out_channels == 4:  # the distances themselves: boxes that are not turned inside out
            branch[-1].weight.data.mul_(0.1)
            branch[-1].bias.data.fill_(2.0)
    return model.eval()


def yolo(ultralytics: Any, name: str) -> Any:
    net = ultralytics.YOLO(f"{name}.yaml")
    net.model.args["imgsz"] = 320
    lively(net.model)
    return net


DETECTORS = [
    "yolov5n",
    "yolov8n",
    "yolov9t",
    "yolov10n",
    "yolo11n",
    "yolo12n",
    "yolo26n",
    "yolov8n-seg",
    "yolo11n-pose",
]


@pytest.mark.parametrize("name", DETECTORS)
def test_yolo_is_explained_box_by_box(ultralytics: Any, image: Image.Image, name: str) -> None:
    net = yolo(ultralytics, name)
    found = hf_cam.explain(image, net, threshold=0.3, top_k=3)
    inner = hf_cam.explain(image, net.model, threshold=0.3, top_k=3)
    assert len(found) == 3
    for one, same in zip(found, inner, strict=True):
        assert (one.label, one.score, one.box) == (same.label, same.score, same.box)
        np.testing.assert_array_equal(one.heatmap, same.heatmap)
        assert one.heatmap.max() == 1
        assert one.method == "hirescam"
    assert found[0].box != found[1].box
    assert not np.array_equal(found[0].heatmap, found[1].heatmap)
    x0, y0, x1, y1 = found[1].box
    [same] = hf_cam.explain(image, net, target=found[1].box)
    assert same.box == pytest.approx((x0, y0, x1, y1))
    [named] = hf_cam.explain(image, net, target=f" {found[0].label} ", top_k=1)
    assert named.label == found[0].label


@pytest.mark.parametrize(
    ("name", "end_to_end"),
    [("yolov8n", False), ("yolov10n", False), ("yolov10n", True), ("yolo26n", False), ("yolo26n", True)],
)
def test_boxes_and_scores_are_yolos_own(ultralytics: Any, image: Image.Image, name: str, end_to_end: bool) -> None:
    net = yolo(ultralytics, name)
    head = list(net.model.children())[-1][-1]
    if end_to_end:
        head.end2end = True
    found = hf_cam.explain(image, net.model, threshold=0.3, top_k=5)
    with torch.no_grad():
        table = net.model(letterboxed(image, 320)[None])[0][0]
    if end_to_end:
        expected = [(table[0, 4].item(), table[0, :4].tolist())]
    else:
        x, y, width, height = table[:4, table[4:84].amax(0).argmax()].tolist()
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        expected = [(table[4:84].max().item(), corners)]
    for one, (score, corners) in zip(found, expected, strict=False):
        assert one.score == pytest.approx(score, abs=1e-5)
        clipped = [min(max(side, 0), limit) for side, limit in zip(corners, (320, 256, 320, 256), strict=True)]
        assert one.box == pytest.approx(clipped, abs=0.6)


def evidence(net: Any, image: Image.Image, layer: str, candidate: int, side: str) -> tuple[float, np.ndarray]:
    """The coordinate of a candidate's box, and HiResCAM's map of it by a hook and autograd."""
    kept: list[torch.Tensor] = []
    handle = net.model.get_submodule(layer).register_forward_hook(lambda _, __, output: kept.append(output))
    table = table_of(sample_of(net.model(letterboxed(image, 320)[None].requires_grad_()), 0, 1))
    handle.remove()
    value = side_of_box(table[:4, candidate], side)
    [gradient] = torch.autograd.grad(value, kept)
    return float(value), (kept[0] * gradient).sum(1)[0].detach().numpy()


@pytest.mark.parametrize("name", DETECTORS)
def test_the_map_of_a_side_of_a_yolos_box_is_that_of_its_coordinate(
    ultralytics: Any, image: Image.Image, name: str
) -> None:
    net = yolo(ultralytics, name)
    [_, found] = hf_cam.explain(image, net, threshold=0.3, top_k=2)
    sides = [hf_cam.explain(image, net, target=BoxSide(found.box, side))[0] for side in SIDES]
    for one, side, corner, end in zip(sides, SIDES, found.box, (320, 256, 320, 256), strict=True):
        assert one.label == f"{side} side of {found.label}"
        assert (one.box, one.score) == (found.box, corner)
        target = one.origin.target
        assert isinstance(target, CandidateBox)
        value, raw = evidence(net, image, one.layers[0], target.candidate, side)
        assert min(max(value, 0), end) == pytest.approx(corner, abs=1e-3)
        np.testing.assert_allclose(one.raw, raw, atol=1e-4 * np.abs(raw).max())
    assert len({one.raw.tobytes() for one in (found, *sides)}) == 5


@pytest.mark.parametrize("name", ["yolov10n", "yolo26n"])
def test_the_side_of_a_detection_in_a_yolos_own_list_is_its_coordinate(
    ultralytics: Any, image: Image.Image, name: str
) -> None:
    net = yolo(ultralytics, name)
    list(net.model.children())[-1][-1].end2end = True
    [_, found] = hf_cam.explain(image, net, threshold=0.3, top_k=2)
    for side, corner in zip(SIDES, found.box, strict=True):
        [one] = hf_cam.explain(image, net, target=BoxSide(found.box, side))
        assert isinstance(one.origin.target, ListedBox)
        assert (one.box, one.score) == (found.box, corner)
        assert one.heatmap.max() == 1


def test_one_map_shows_all_of_a_yolos_objects_of_a_class(ultralytics: Any, image: Image.Image) -> None:
    net = yolo(ultralytics, "yolov8n")
    [best] = hf_cam.explain(image, net, top_k=1)
    listed = hf_cam.explain(image, net, threshold=0.3, target=best.label)
    [found] = hf_cam.explain(image, net, threshold=0.3, target=SumOf(best.label))
    assert found.boxes == tuple(one.box for one in listed)
    np.testing.assert_allclose(found.raw, sum(one.raw for one in listed), atol=1e-4 * np.abs(found.raw).max())


def test_a_yolo_works_as_before_after_an_explanation(ultralytics: Any, image: Image.Image) -> None:
    net = yolo(ultralytics, "yolov8n").model
    small, large = torch.rand(1, 3, 64, 96), torch.rand(1, 3, 128, 96)
    with torch.no_grad():
        before = [net(small)[0], net(large)[0]]
        hf_cam.explain(image, net)
        after = [net(large)[0], net(small)[0]]
    torch.testing.assert_close(after[::-1], before)


def test_yolos_names_are_its_own(ultralytics: Any, image: Image.Image) -> None:
    net = yolo(ultralytics, "yolov8n")
    net.model.names = {index: f"thing {index}" for index in range(80)}
    [found] = hf_cam.explain(image, net, top_k=1)
    assert found.label.startswith("thing ")
    with pytest.raises(TargetError, match="no class is called 'whale'"):
        hf_cam.explain(image, net, target="whale")


def test_yolos_classifier_returns_probabilities_and_logits(ultralytics: Any, image: Image.Image) -> None:
    net = ultralytics.YOLO("yolo11n-cls.yaml")
    net.model.args["imgsz"] = 320
    torch.manual_seed(0)
    nn.init.normal_(net.model.model[-1].linear.weight, std=0.5)
    for model in (net, net.model):
        [found] = hf_cam.explain(image, model)
        with torch.no_grad():
            shares = net.model.eval()(letterboxed(image, 320)[None])[0][0]
        assert found.score == pytest.approx(float(shares.max()), rel=1e-3)
        assert found.label == net.model.names[int(shares.argmax())]


def test_tensors_of_yolo_are_explained_without_a_target(ultralytics: Any) -> None:
    net = yolo(ultralytics, "yolo11n")
    maps = hf_cam.GradCAM(net)(torch.rand(2, 3, 64, 96), targets=None)
    assert maps.shape == (2, 64, 96)
    assert maps.amax((1, 2)).tolist() == [1, 1]


# open_clip -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> nn.Module:
    open_clip = peer("open_clip")
    vision = {"image_size": 64, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    torch.manual_seed(0)
    model = open_clip.CLIP(16, vision, text).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.3)
    model.visual.preprocess_cfg = {"size": 64, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return model


def similarities(model: nn.Module, image: Image.Image, prompts: list[str]) -> torch.Tensor:
    import open_clip

    preprocess = open_clip.transform.image_transform(64, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    tokens = open_clip.SimpleTokenizer(context_length=20)(prompts)
    with torch.no_grad():
        picture, texts, scale = model(preprocess(image)[None], tokens)
    return (scale * picture @ texts.T)[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_open_clip_compares_with_prompts_by_its_own_tokenizer(pair: nn.Module, image: Image.Image, count: int) -> None:
    prompts = ["a red cup", "a small kettle", "two dogs"][:count]
    expected = similarities(pair, image, prompts)
    found = hf_cam.explain([image, image.rotate(180)], pair, text=prompts)
    scores = [one.score for one in found[0]]
    if count > 1:
        assert scores == pytest.approx(expected.softmax(0).tolist(), abs=1e-4)
    else:
        assert scores == pytest.approx((expected / pair.logit_scale.exp()).clamp(0).tolist(), abs=1e-4)
    for one, prompt in zip(found[0], prompts, strict=True):
        assert one.label == prompt
        assert one.layers[0].startswith("visual.transformer.resblocks.")
        [alone] = hf_cam.explain(image, pair, text=prompts, target=prompt)
        np.testing.assert_allclose(alone.heatmap, one.heatmap, atol=1e-3)


def test_open_clip_asks_for_prompts_under_its_own_name(pair: nn.Module, image: Image.Image) -> None:
    with pytest.raises(TargetError, match="CLIP compares images with text: pass text="):
        hf_cam.explain(image, pair)
    pair.vocab_size = 32000
    with pytest.raises(ModelError, match="CLIP's tokenizer does not suit it: pass processor= with the attribute"):
        hf_cam.explain(image, pair, text="a cup")


def test_open_clips_towers_embed(pair: nn.Module, image: Image.Image) -> None:
    assert head_of(hf_cam.load(pair.visual, processor=PROCESSOR)).task == "image-feature-extraction"
    [found] = hf_cam.explain(image, pair, target=image.rotate(180))
    assert found.label == "like the other image"
    import open_clip

    with torch.no_grad():
        text = pair.encode_text(open_clip.SimpleTokenizer(context_length=20)("a red cup"))[0]
    [found] = hf_cam.explain(image, pair.visual, processor=lambda one: PROCESSOR(one)[:, :, :64], target=text)
    assert found.label == "like the given embedding"


def test_tensors_of_open_clip_take_its_own_tokens(pair: nn.Module) -> None:
    import open_clip

    tokens = open_clip.SimpleTokenizer(context_length=20)(["a red cup", "a small kettle", "two dogs"])
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        best = F.normalize(pair.encode_image(pixels), dim=-1) @ F.normalize(pair.encode_text(tokens), dim=-1).T
    cam = hf_cam.GradCAM(pair)
    own = cam(pixels, text=tokens)
    torch.testing.assert_close(own, cam(pixels, targets=best.argmax(1), text=tokens))
    assert set(dict(pair.named_parameters())) == set(dict(cam.model.named_parameters()))


# segmentation_models_pytorch and vit_pytorch -------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "softmax2d", "sigmoid"])
@pytest.mark.parametrize("name", ["Unet", "FPN", "DeepLabV3Plus", "Segformer"])
def test_smps_segmenters_explain_a_class_a_pixel_and_a_region(image: Image.Image, name: str, activation: Any) -> None:
    smp = peer("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = getattr(smp, name)("resnet18", encoder_weights=None, classes=3, activation=activation).eval()
    asked = {"processor": PROCESSOR, "labels": ["background", "road", "car"]}
    with torch.no_grad():
        scores = model(PROCESSOR(image)[None])[0]
    scores = scores.softmax(0) if activation is None else scores
    [pixel] = hf_cam.explain(image, model, target=(160, 128), **asked)
    own = scores[:, int(128.5 / 256 * 64), int(160.5 / 320 * 96)]
    assert (pixel.label, pixel.score) == (asked["labels"][own.argmax()], pytest.approx(float(own.max()), abs=1e-4))
    [named] = hf_cam.explain(image, model, target="car", **asked)
    assert named.label == "car"
    mask = np.zeros((256, 320), bool)
    mask[100:200, 50:150] = True
    [region] = hf_cam.explain(image, model, target=mask, **asked)
    np.testing.assert_array_equal(region.mask, mask)


def test_smps_binary_segmenters_have_one_class(image: Image.Image) -> None:
    smp = peer("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, classes=1, activation="sigmoid").eval()
    [found] = hf_cam.explain(image, model, processor=PROCESSOR, labels=["road"], target="road")
    assert found.label == "road"


@pytest.mark.parametrize("name", ["ViT", "SimpleViT", "DeepViT"])
def test_vit_pytorchs_transformers_classify(image: Image.Image, name: str) -> None:
    peer("vit_pytorch")
    import vit_pytorch
    from vit_pytorch.deepvit import DeepViT

    torch.manual_seed(0)
    settings = {"image_size": 64, "patch_size": 8, "num_classes": 5, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 64}
    model = (DeepViT if name == "DeepViT" else getattr(vit_pytorch, name))(**settings).eval()
    square = transforms.Compose([transforms.Resize((64, 64)), transforms.ToTensor()])
    [found] = hf_cam.explain(image, model, processor=square)
    with torch.no_grad():
        scores = model(square(image)[None])[0].softmax(0)
    assert (found.label, found.score) == (str(int(scores.argmax())), pytest.approx(float(scores.max()), abs=1e-5))


def test_none_of_these_libraries_is_a_dependency() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    peers = {requirement.partition(">")[0] for requirement in extras.pop("peers")}
    assert peers >= {"open-clip-torch", "segmentation-models-pytorch", "vit-pytorch"}
    required = " ".join([*project["dependencies"], *(one for extra in extras.values() for one in extra)])
    assert not any(name in required for name in (*peers, "hf-cam[peers", "ultralytics"))
    assert "ultralytics" not in peers
