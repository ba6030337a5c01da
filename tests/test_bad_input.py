"""Bad input: each case is an error of hf-cam's own type that says what to do, and the model stays as it was."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertForSequenceClassification, ViTForImageClassification, ViTModel

import hf_cam
from hf_cam.errors import (
    DetachedError,
    HFCamError,
    ImageError,
    LayerError,
    LayoutError,
    MethodError,
    ModelError,
    NoGradientError,
    OptionError,
    TargetError,
)
from hf_cam.methods import get_method
from nets import tiny
from pictures import noise
from unchanged import half_frozen, unchanged

PATCH_GRID = (4, 6)
NORM = "vit.layers.1.layernorm_before"


@pytest.fixture
def vit(vit):
    """The tiny ViT in a mixed state of training and freezing, in which it must come back."""
    return half_frozen(vit)


# Images --------------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def truncated(kind: str) -> bytes:
    """The first two thirds of a picture's file."""
    import io

    buffer = io.BytesIO()
    noise().save(buffer, kind)
    return buffer.getvalue()[: len(buffer.getvalue()) * 2 // 3]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
FILES = {
    "text in place of a picture": ("cat.jpg", lambda: b"this is no picture", "cat.jpg' is not an image"),
    "zero bytes": ("cat.jpg", lambda: b"", "cat.jpg' is an empty file"),
    "truncated JPEG": ("cat.jpg", lambda: truncated("JPEG"), "cat.jpg' is damaged or cut off"),
    "truncated PNG": ("cat.png", lambda: truncated("PNG"), "cat.png' is damaged or cut off"),
    "truncated header": ("cat.png", lambda: truncated("PNG")[:20], "cat.png' (is not an image|cannot be read)"),
    "bomb that Pillow refuses": (
        "bomb.png",
        lambda: png_header(50_000, 50_000),
        "bomb.png' is too large to open safely",
    ),
    "SVG": ("cat.svg", lambda: SVG, "cat.svg' is not an image"),
}


@pytest.mark.parametrize(("name", "content", "words"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_image_is_refused(tmp_path, vit, name, content, words):
    (tmp_path / name).write_bytes(content())
    with unchanged(vit), pytest.raises(ImageError, match=words):
        hf_cam.explain(tmp_path / name, model=vit)


SOURCES = {
    "missing file": ("no/such/cat.jpg", r"there is no file 'no/such/cat\.jpg'"),
    "a folder": (".", r"'\.' is not a file"),
    "a name that no file can have": ("x" * 5000, "cannot be read as a file: .*too long"),
    "refused connection": ("http://127.0.0.1:1/cat.jpg", r"'http://127\.0\.0\.1:1/cat\.jpg' cannot be fetched"),
    "no host": ("http://", "'http://' cannot be fetched"),
    "malformed address": ("http://[::1", "cannot be fetched"),
    "a protocol that is not supported": ("ftp://127.0.0.1/cat.jpg", "there is no file 'ftp://127"),
    "None": (None, "an image must be a path, a URL, a PIL image, an array or a tensor, not NoneType"),
    "a number": (7, "not int"),
    "bytes": (b"\x89PNG", "not bytes"),
    "a picture without pixels": (Image.new("RGB", (0, 5)), "the image has no pixels"),
    "an array without pixels": (np.zeros((0, 5, 3), np.uint8), "an image array must be"),
    "one dimension": (np.zeros(5), "an image array must be"),
    "a batch": (np.zeros((2, 3, 8, 8)), "an array of four axes"),
    "five channels": (np.zeros((8, 8, 5)), "an image array must be"),
    "NaN": (np.full((8, 8, 3), np.nan), r"a float image must lie in \[0, 1\], got values from nan"),
    "infinity": (np.full((8, 8, 3), np.inf), r"a float image must lie in \[0, 1\]"),
    "one NaN among good values": (np.where(np.arange(64).reshape(8, 8) == 9, np.nan, 0.5), r"must lie in \[0, 1\]"),
    "a float picture with NaN": (Image.fromarray(np.full((8, 8), np.nan, np.float32)), "values that are not finite"),
    "floats up to 255": (np.full((8, 8, 3), 200.0), r"a float image must lie in \[0, 1\], got values from 200 to 200"),
    "normalized pixel values": (torch.randn(3, 8, 8), r"a float image must lie in \[0, 1\]"),
    "integers beyond 255": (np.full((8, 8, 3), 300), r"an integer image must lie in \[0, 255\], got values from 300"),
    "negative integers": (np.full((8, 8, 3), -1), r"an integer image must lie in \[0, 255\]"),
    "complex numbers": (np.ones((8, 8, 3), complex), "an image array must hold numbers, not complex128"),
    "texts": (np.full((8, 8, 3), "a"), "an image array must hold numbers, not <U1"),
    "meta tensor": (torch.zeros(3, 8, 8, device="meta"), "must hold its pixels, but this one is on the meta device"),
    "a list in a list": ([[1, 2]], "not list"),
}


@pytest.mark.parametrize(("source", "words"), SOURCES.values(), ids=SOURCES)
def test_a_source_that_is_no_image_is_refused(vit, source, words):
    with unchanged(vit), pytest.raises(ImageError, match=words):
        hf_cam.explain(source, model=vit)


def test_a_url_that_the_server_does_not_know_is_refused(hub, vit):
    with unchanged(vit), pytest.raises(ImageError, match=r"no-such\.png' cannot be fetched: HTTP Error 404"):
        hf_cam.explain(f"{hub.url}/acme/pictures/resolve/main/no-such.png", model=vit)


def test_a_url_that_is_no_image_is_refused(hub, vit):
    hub.folder("acme/pages").mkdir(parents=True, exist_ok=True)
    (hub.folder("acme/pages") / "cat.png").write_bytes(b"<html>")
    with unchanged(vit), pytest.raises(ImageError, match=r"cat\.png' is not an image"):
        hf_cam.explain(f"{hub.url}/acme/pages/resolve/main/cat.png", model=vit)


def test_one_bad_image_among_several_stops_before_the_model_runs(vit, picture):
    with unchanged(vit), pytest.raises(ImageError, match=r"there is no file 'gone\.jpg'"):
        hf_cam.explain([picture, "gone.jpg"], model=vit)


# Models --------------------------------------------------------------------------------------------------------------


def without(name: str):
    """A change of a model's folder: this file is gone."""
    return lambda folder: (folder / name).unlink()


def holding(name: str, content: bytes):
    """A change of a model's folder: this file holds something else."""
    return lambda folder: (folder / name).write_bytes(content)


def configured(**values):
    """A change of a model's folder: these values stand in its config."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def pickled(folder: Path) -> None:
    """Only a pickle, and that is garbage."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"garbage")


def cut(folder: Path) -> None:
    """The weights end too early, as after a broken download."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


FOLDERS = {
    "no config": (without("config.json"), ModelError, "has no config.json, so it holds no model"),
    "config is no JSON": (holding("config.json", b"{oops"), ModelError, "the config of .* is not a valid JSON file"),
    "config is empty": (holding("config.json", b""), ModelError, "is not a valid JSON file"),
    "config is binary": (holding("config.json", b"\xff\xfe\x00"), ModelError, "is not a valid JSON file"),
    "config is a list": (holding("config.json", b"[1]"), ModelError, "the config of .* cannot be loaded"),
    "config without a type": (holding("config.json", b"{}"), ModelError, "the config of .*`model_type`"),
    "unknown type": (configured(model_type="nonsense"), ModelError, "the config of .*model type `nonsense`"),
    "a text for a number": (configured(hidden_size="x"), ModelError, "'hidden_size' expected int, got str"),
    "a patch of nothing": (configured(patch_size=0), ModelError, "the model of .* cannot be loaded"),
    "weights of other shapes": (
        configured(hidden_size=64),
        ModelError,
        "shapes of its weights do not match its config.json",
    ),
    "no weights": (without("model.safetensors"), ModelError, "the model of .*no file named model.safetensors"),
    "weights are zeros": (holding("model.safetensors", b"\0" * 64), ModelError, "the model of .* cannot be loaded"),
    "weights are empty": (holding("model.safetensors", b""), ModelError, "the model of .* cannot be loaded"),
    "weights are cut off": (cut, ModelError, "the model of .* cannot be loaded"),
    "weights are a broken pickle": (pickled, ModelError, "the model of .* cannot be loaded"),
    "no processor": (without("preprocessor_config.json"), ModelError, "the image processor of .* cannot be loaded"),
    "processor is no JSON": (holding("preprocessor_config.json", b"{"), ModelError, "processor of .*not a valid JSON"),
    "cam_config is no JSON": (holding("cam_config.json", b"{"), LayoutError, "cam_config.json is not valid JSON"),
    "cam_config without layers": (holding("cam_config.json", b"{}"), LayoutError, "not a valid cam_config.json"),
    "cam_config is a list": (holding("cam_config.json", b"[]"), LayoutError, "not a valid cam_config.json"),
    "cam_config with one layer as text": (
        holding("cam_config.json", b'{"layers": "vit", "layouts": [{"axes": "b c h w"}]}'),
        LayoutError,
        "layers must be a list of names, not 'vit'",
    ),
    "cam_config with an unknown layer": (
        holding("cam_config.json", b'{"layers": ["vit.layer.0"], "layouts": [{"axes": "b c h w"}]}'),
        LayerError,
        "cam_config.json names a layer 'vit.layer.0' that the model lacks; nearest: 'vit.layers.0'",
    ),
}


@pytest.mark.parametrize(("change", "kind", "words"), FOLDERS.values(), ids=FOLDERS)
def test_a_damaged_folder_is_refused_in_one_line(vit_folder, tmp_path, picture, change, kind, words):
    folder = tmp_path / "model"
    shutil.copytree(vit_folder, folder)
    change(folder)
    with pytest.raises(HFCamError, match=words) as caught:
        hf_cam.explain(picture, model=folder)
    assert caught.type is kind
    assert "\n" not in str(caught.value)


NAMES = {
    "a missing folder, relative": ("./no/such", r"there is no folder '\./no/such'"),
    "a missing folder, absolute": ("/no/such/model", "there is no folder '/no/such/model'"),
    "a missing folder, as a Path": (Path("no-such"), "there is no folder 'no-such'"),
    "too many parts for the Hub": ("a/b/c", "there is no folder 'a/b/c'"),
    "characters that no id has": ("a b", "'a b' is neither a folder nor a valid Hub id.*demo:imagenet"),
    "half an id": ("google/", "'google/' is neither a folder nor a valid Hub id"),
    "a demo that is none": ("demo:imagenett", "no demo model 'imagenett'; nearest: 'imagenet'"),
    "None": (None, "a model must be a Hub id, a folder, 'demo:NAME' or a torch module, not NoneType"),
    "a number": (3, "not int"),
}


@pytest.mark.parametrize(("name", "words"), NAMES.values(), ids=NAMES)
def test_a_name_that_is_no_model_is_refused(picture, name, words):
    with pytest.raises(ModelError, match=words):
        hf_cam.explain(picture, model=name)


def test_a_file_in_the_place_of_a_model_is_refused(picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"'weights\.safetensors' is a file; a model is a folder"):
        hf_cam.explain(picture, model="weights.safetensors")


DOORS = {
    "explain": lambda model, picture: hf_cam.explain(picture, model=model),
    "a pipeline": lambda model, picture: hf_cam.pipeline(model=model),
    "a method's class": lambda model, picture: hf_cam.GradCAM(model),
    "infer_adapter": lambda model, picture: hf_cam.infer_adapter(model),
}


@pytest.mark.parametrize(
    ("door", "given"),
    [("explain", "a folder"), ("a pipeline", "a folder"), *((door, "a model") for door in DOORS)],
)
def test_a_model_of_texts_is_refused_at_every_door(bert_folder, picture, door, given):
    model = bert_folder if given == "a folder" else BertForSequenceClassification.from_pretrained(bert_folder)
    with pytest.raises(ModelError, match=r"is a 'bert' model.*takes no images"):
        DOORS[door](model, picture)


# What is asked of a model --------------------------------------------------------------------------------------------


def constant(output):
    return torch.tensor(1.0)


def detached(output):
    return output.logits[0].detach()


ASKED = {
    "a label that does not exist": (
        {"target": "tigre"},
        TargetError,
        "no class is called 'tigre'; nearest: 'tiger cat'",
    ),
    "an empty label": ({"target": ""}, TargetError, "no class is called ''"),
    "an ambiguous label": (
        {"target": "cat"},
        TargetError,
        r"'cat' fits 2 classes \('tabby, tabby cat', 'tiger cat'\); pass .* 0, 1",
    ),
    "an index beyond the classes": ({"target": 5}, TargetError, "no class 5; the model has classes 0 to 4"),
    "such an index as digits": ({"target": "5"}, TargetError, "no class 5; the model has classes 0 to 4"),
    "a negative index": ({"target": -1}, TargetError, "no class -1; the model has classes 0 to 4"),
    "a float": ({"target": 1.0}, TargetError, "must be a class index, a label or a callable, not float"),
    "a float tensor": ({"target": torch.tensor(1.0)}, TargetError, "not Tensor"),
    "a truth value": ({"target": True}, TargetError, "not bool"),
    "a tuple": ({"target": (1, 2)}, TargetError, r"not tuple \(1, 2\)"),
    "a list in a list": ({"target": [[1], 2]}, TargetError, "the targets of one image must be one list"),
    "an empty list": ({"target": []}, TargetError, "the list of targets is empty"),
    "an unknown class in a list": ({"target": [1, 9]}, TargetError, "no class 9; the model has classes 0 to 4"),
    "a callable that returns a vector": (
        {"target": lambda output: output.logits},
        TargetError,
        r"a target must return a scalar tensor, .* returned \(5,\)",
    ),
    "a callable that returns a float": (
        {"target": lambda output: 1.0},
        TargetError,
        "scalar tensor, .* returned float",
    ),
    "a callable that returns nothing": ({"target": lambda output: None}, TargetError, "returned NoneType"),
    "a callable that returns a constant": ({"target": constant}, DetachedError, "does not depend on the target layer"),
    "a callable that detaches": ({"target": detached}, DetachedError, "does not depend on the target layer"),
    "a callable that raises IndexError": (
        {"target": lambda output: output.logits[99]},
        TargetError,
        "does not fit the model's output: index 99 is out of bounds",
    ),
    "a callable that returns NaN": (
        {"target": lambda output: output.logits[0] * float("nan")},
        TargetError,
        r"the target's value is not finite \(\[nan\]\)",
    ),
    "texts for a classifier": ({"text": ["a cat"]}, TargetError, "ViTForImageClassification takes no text"),
    "top_k of 0": ({"top_k": 0}, OptionError, "top_k must be a whole number from 1, got 0"),
    "top_k below 0": ({"top_k": -3}, OptionError, "top_k must be a whole number from 1, got -3"),
    "half a top_k": ({"top_k": 1.5}, OptionError, "top_k must be a whole number from 1"),
    "batch_size of 0": ({"batch_size": 0}, OptionError, "batch_size must be a whole number from 1, got 0"),
    "batch_size below 0": ({"batch_size": -1}, OptionError, "batch_size must be a whole number from 1"),
    "batch_size as text": ({"batch_size": "2"}, OptionError, "batch_size must be a whole number from 1, got '2'"),
    "an unknown method": ({"method": "grad-cam"}, MethodError, "no method 'grad-cam'; nearest: 'gradcam'"),
    "a method of no name": ({"method": None}, MethodError, "no method None"),
    "a layer that does not exist": (
        {"layers": "vit.layer.0"},
        LayerError,
        "the model has no layer 'vit.layer.0'; nearest: 'vit.layers.0'",
    ),
    "the second of two layers": ({"layers": [NORM, "head"]}, LayerError, "the model has no layer 'head'"),
    "no layer": ({"layers": []}, LayerError, "layers= names no layer"),
    "the model itself as its layer": ({"layers": ""}, LayerError, "the model has no layer ''"),
    "a list of blocks, which never runs": ({"layers": "vit.layers"}, LayerError, "'vit.layers' did not run"),
    "a layer without space": (
        {"layers": "classifier"},
        LayoutError,
        rf"'classifier', of shape \(1, 5\), does not have the expected spatial layout.*Use layers=\['{NORM}'\]",
    ),
    "a layer that nothing flows back to": (
        {"layers": "vit.layers.1"},
        NoGradientError,
        rf"gradient is zero on every cell of 'vit.layers.1'.*Use layers=\['{NORM}'\]",
    ),
    "reshape that does nothing": (
        {"reshape": lambda tokens: tokens},
        LayoutError,
        r"reshape must return a tensor \[B, C, h, w\] with B = 1, got \(1, 25, 32\)",
    ),
    "reshape that returns nothing": ({"reshape": lambda tokens: None}, LayoutError, "got NoneType"),
    "reshape that returns an array": (
        {"reshape": lambda tokens: tokens[:, 1:].unflatten(1, PATCH_GRID).detach().numpy()},
        LayoutError,
        "got ndarray",
    ),
    "device= with a loaded model": ({"device": "cpu"}, OptionError, r"device and dtype apply to models .*\.to\(\)"),
    "dtype= with a loaded model": ({"dtype": torch.float16}, OptionError, "device and dtype apply to models"),
    "a processor that is none": ({"processor": "vit"}, OptionError, "a processor must be .* or a function, not str"),
    "a processor that returns nothing": ({"processor": lambda image: None}, OptionError, r"\[C, H, W\].*NoneType"),
    "a processor that returns a vector": ({"processor": lambda image: torch.zeros(5)}, OptionError, r"returned \(5,\)"),
}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize(("asked", "kind", "words"), ASKED.values(), ids=ASKED)
def test_what_cannot_be_asked_is_refused(vit, picture, asked, kind, words, mode):
    with mode(), unchanged(vit), pytest.raises(HFCamError, match=words) as caught:
        hf_cam.explain(picture, model=vit, **asked)
    assert caught.type is kind


LOADING = {
    "a device that does not exist": ({"device": "abacus"}, "no device 'abacus' here"),
    "a device number below 0": ({"device": -1}, "no device -1 here"),
    "a device of half a number": ({"device": 1.5}, r"no device 1\.5 here"),
    "a GPU too many": ({"device": "cuda:99"}, "no device 'cuda:99' here"),
    "the meta device": ({"device": "meta"}, "a model on the meta device has no weights"),
    "a dtype that does not exist": (
        {"dtype": "float33"},
        "dtype must be a floating-point type such as .*, not 'float33'",
    ),
    "a dtype of whole numbers": ({"dtype": torch.int8}, r"not torch\.int8"),
}


@pytest.mark.parametrize(("options", "words"), LOADING.values(), ids=LOADING)
def test_devices_and_dtypes_that_are_none_are_refused_before_anything_is_loaded(
    vit_folder, picture, options, words, monkeypatch
):
    monkeypatch.setattr("hf_cam.models.loading.load_pretrained", None)  # it must not come to that
    with pytest.raises(OptionError, match=words):
        hf_cam.explain(picture, model=vit_folder, **options)


OPTIONS = {
    "samples as text": ({"samples": "a"}, "'samples' of the method '.*' must be a whole number, got 'a'"),
    "steps of None": ({"steps": None}, "'steps' of the method '.*' must be a whole number, got None"),
    "a patch of half a pixel": ({"patch": 1.5}, "'patch' of the method 'occlusion' must be a whole number or None"),
}


@pytest.mark.parametrize(("options", "words"), OPTIONS.values(), ids=OPTIONS)
def test_an_option_of_another_type_is_refused_before_methods_are_priced(picture, options, words, monkeypatch):
    monkeypatch.setattr("hf_cam.models.loading.load_pretrained", None)  # it must not come to that
    with pytest.raises(OptionError, match=words):
        hf_cam.compare(picture, "no/such-model", method_options=options)
    for methods in (None, ["rise", "integrated-gradients", "occlusion"]):
        with pytest.raises(OptionError, match=words):
            hf_cam.evaluate("no/such-model", [picture], methods=methods, method_options=options)
    for price in (hf_cam.list_methods()["rise"].cost, hf_cam.list_methods()["rise"].fits):
        with pytest.raises(OptionError, match="a whole number"):
            price(*([100] if "fits" in price.__name__ else []), samples="many")


# Tensors in ----------------------------------------------------------------------------------------------------------

PIXELS = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
TENSORS = {
    "fewer targets than images": (
        (PIXELS, [1]),
        TargetError,
        "1 targets for 2 images; a list of targets has one entry per image",
    ),
    "more targets than images": (
        (PIXELS, [1, 2, 3]),
        TargetError,
        "3 targets for 2 images; a list of targets has one entry per image",
    ),
    "no targets": ((PIXELS, []), TargetError, "0 targets for 2 images"),
    "a tensor of too many targets": ((PIXELS, torch.tensor([1, 2, 3])), TargetError, "3 targets for 2 images"),
    "an array of too few targets": ((PIXELS, np.array([1])), TargetError, "1 targets for 2 images"),
    "an index beyond the classes": ((PIXELS, [0, 5]), TargetError, "no class 5; the model has classes 0 to 4"),
    "a negative index": ((PIXELS, [0, -1]), TargetError, "no class -1; the model has classes 0 to 4"),
    "an unknown label": ((PIXELS, "a whale"), TargetError, "no class is called 'a whale'"),
    "a tuple of classes": ((PIXELS, (0, 1)), TargetError, r"a label or a callable, not tuple \(0, 1\)"),
    "several targets for one image": ((PIXELS, [[0, 1], 1]), TargetError, "a call returns one map per image"),
    "one image without a batch axis": ((PIXELS[0],), OptionError, r"\[B, C, H, W\], got \(3, 64, 96\)"),
    "bytes in place of floats": (((PIXELS * 255).byte(),), OptionError, "pixel_values must be a floating tensor"),
    "an array": ((PIXELS.numpy(),), OptionError, r"pixel_values must be a floating tensor .* got ndarray"),
    "None": ((None,), OptionError, "the picture is missing: pass it first"),
    "an empty batch": ((PIXELS[:0],), OptionError, "pixel_values holds no image"),
    "NaN": ((PIXELS * float("nan"),), OptionError, "pixel_values holds values that are not finite"),
    "infinity": ((PIXELS / 0,), OptionError, "pixel_values holds values that are not finite"),
}


@pytest.mark.parametrize(("arguments", "kind", "words"), TENSORS.values(), ids=TENSORS)
def test_wrong_tensors_and_targets_are_refused(vit, arguments, kind, words):
    with hf_cam.GradCAM(vit) as cam, unchanged(vit), pytest.raises(HFCamError, match=words) as caught:
        cam(*arguments)
    assert caught.type is kind


def test_a_picture_that_is_not_finite_is_refused_by_every_method(vit):
    broken = PIXELS.clone()
    broken[1, 0, 3, 4] = float("nan")
    for call in (hf_cam.GuidedBackprop(vit), *(hf_cam.CAM(vit, method) for method in hf_cam.list_methods())):
        with pytest.raises(OptionError, match="pixel_values holds values that are not finite"):
            call(broken, [0, 1])


@pytest.mark.parametrize(
    ("references", "words"),
    [
        ([], "references must be class indices from 0, or how many to take"),
        ([-1], "references must be class indices from 0, or how many to take"),
        ([0, 2], r"other classes than the explained one, 2; leave it out of \[0, 2\]"),
        ([0, 5], r"references=\[5\] name no class; the model has classes 0 to 4"),
        (0, "references must be a whole number from 1, got 0"),
        (-2, "references must be a whole number from 1, got -2"),
    ],
)
def test_rivals_that_are_none_are_refused(vit, references, words):
    with unchanged(vit), pytest.raises(OptionError, match=words):
        hf_cam.FinerCAM(vit, references=references)(PIXELS[:1], 2)


def test_rivals_may_be_counted_by_numpy(vit):
    plain, counted = (hf_cam.FinerCAM(vit, references=count)(PIXELS[:1], 2) for count in (2, np.int64(2)))
    assert torch.equal(plain, counted)


@pytest.mark.parametrize("method", ["occlusion", "rise", "integrated-gradients"])
def test_a_fill_that_is_not_finite_is_refused(vit, method):
    for fill, words in (
        (torch.tensor([0.0, float("nan"), 0.0]), "fill= holds values that are not finite"),
        (torch.full((3, 64, 96), float("inf")), "fill= holds values that are not finite"),
        (float("nan"), "'fill' of the method .* must be a number"),
    ):
        with pytest.raises(OptionError, match=words):
            hf_cam.CAM(vit, method, fill=fill)(PIXELS[:1], 2)


CONSTRUCTED = {
    "a name in place of a model": (lambda model: hf_cam.GradCAM("google/vit"), OptionError, "must be a torch module"),
    "an unknown method": (lambda model: hf_cam.CAM(model, "layer-cam"), MethodError, "nearest: 'layercam'"),
    "an option that the method lacks": (
        lambda model: hf_cam.GradCAM(model, seed=1),
        OptionError,
        "the method 'gradcam' has no option 'seed'; it has: none",
    ),
    "a misspelt option": (
        lambda model: hf_cam.RandomCAM(model, sed=1),
        OptionError,
        "the method 'randomcam' has no option 'sed'; it has: seed",
    ),
    "a layer that does not exist": (
        lambda model: hf_cam.GradCAM(model, layers=["vit.layers.7"]),
        LayerError,
        "the model has no layer 'vit.layers.7'; nearest: 'vit.layers",
    ),
    "a number of a layer": (
        lambda model: hf_cam.GradCAM(model, layers=5),
        OptionError,
        "a dotted name, a module or a list of them, not int",
    ),
    "a pattern in place of a function": (
        lambda model: hf_cam.GradCAM(model, reshape="b (h w) c"),
        OptionError,
        "a function from an activation .*, not str",
    ),
}


@pytest.mark.parametrize(("construct", "kind", "words"), CONSTRUCTED.values(), ids=CONSTRUCTED)
def test_what_cannot_be_constructed_is_refused(vit, construct, kind, words):
    with unchanged(vit), pytest.raises(HFCamError, match=words) as caught:
        construct(vit)
    assert caught.type is kind


# Failures under way --------------------------------------------------------------------------------------------------


class Broken(RuntimeError):
    """What a model of the caller's may raise."""


@pytest.mark.parametrize("where", ["vit.embeddings", NORM, "vit.layers.1.mlp", "classifier"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_an_exception_in_the_middle_of_the_forward_leaves_nothing_behind(vit, picture, where, mode, monkeypatch):
    def fail(*args, **kwargs):
        torch.rand(1)
        raise Broken(where)

    monkeypatch.setattr(vit.get_submodule(where), "forward", fail)
    with mode(), unchanged(vit), pytest.raises(Broken, match=re.escape(where)):
        hf_cam.explain(picture, model=vit, aug_smooth=True)


def test_a_model_works_after_a_failure(vit, picture):
    [before] = hf_cam.explain(picture, model=vit)
    with pytest.raises(ZeroDivisionError):
        hf_cam.explain(picture, model=vit, target=lambda output: output.logits[0] / 0 * (1 // 0))
    [after] = hf_cam.explain(picture, model=vit)
    np.testing.assert_array_equal(before.heatmap, after.heatmap)


def test_weights_without_a_head_are_refused(tmp_path: Path) -> None:
    ViTModel(tiny(ViTModel, image_size=32).config, add_pooling_layer=False).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**settings, "architectures": [ViTForImageClassification.__name__]})
    )
    with pytest.raises(ModelError, match=r"lacks 2 weights of ViTForImageClassification.*random"):
        hf_cam.explain(Image.new("RGB", (32, 32)), tmp_path)


def test_gradients_that_are_not_finite_are_refused() -> None:
    with pytest.raises(MethodError, match="gradients are not finite in float16"):
        get_method("gradcam").map(
            activations=torch.ones(1, 2, 3, 3).half(), gradients=torch.full((1, 2, 3, 3), torch.inf).half()
        )
