"""Messages: short, on one line, and with the way out; and what other code raises becomes such a message at any door."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

import hf_cam
from hf_cam.errors import (
    HFCamError,
    ImageError,
    ModelError,
    OptionError,
    TargetError,
    UnexpectedError,
    brief,
    one_line,
    reason,
)
from hf_cam.explainer import Explainer
from hf_cam.methods import get_method, list_methods
from nets import depth, detr, embedder, segformer
from pictures import to_tensor

LONG = "x" * 10_000
NAN = float("nan")


def kinds(root: type[HFCamError] = HFCamError) -> Iterator[type[HFCamError]]:
    """An error class and all below it."""
    yield root
    for kind in root.__subclasses__():
        if vars(sys.modules[kind.__module__]).get(kind.__name__) is kind:  # not one that a door has made
            yield from kinds(kind)


# The length and form of a message ------------------------------------------------------------------------------------

TEXTS = {
    "one long word": f"there is no file '{LONG}'; pass another path",
    "several long words": f"there is no file '{LONG}' and no '{LONG}'; pass another path",
    "many short words": f"there is no file '{'a b ' * 5000}'; pass another path",
    "lines": "there is no file\n" + "\n".join(["'a'"] * 900) + "\r\n; pass another path",
    "control characters": "there is no file '\x00\x1b[31m\u2028\u0085'; pass another path",
    "control characters alone": "there is no file '" + "\x00" * 3000 + "'; pass another path",
    "half letters": "there is no file '\ud800'; pass another path",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("kind", [*kinds()])
def test_an_error_of_any_class_is_one_line_that_keeps_the_fact_and_the_way_out(kind, text) -> None:
    message = str(kind(text))
    assert len(message) <= 400
    assert message.isprintable()
    assert message.startswith("there is no file")
    assert message.endswith("pass another path")


def test_a_short_message_is_what_was_written() -> None:
    for text in ("no class 5; the model has classes 0 to 4", "", "a path of 100 letters: " + "y" * 100):
        assert str(HFCamError(text)) == text


def test_an_error_survives_a_pickle() -> None:
    import pickle

    for kind in kinds():
        copy = pickle.loads(pickle.dumps(kind(f"{LONG} gone")))
        assert (type(copy), str(copy)) == (kind, str(kind(f"{LONG} gone")))


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError


VALUES = {
    "a text": ("a b", "'a b'"),
    "a long text": (LONG, f"'{'x' * 27}...{'x' * 28}'"),
    "a line break": ("a\nb", r"'a\nb'"),
    "half a letter": ("\ud800", r"'\ud800'"),
    "a number": (5, "5"),
    "a number too long to write": (10**9000, "an integer of 29898 bits"),
    "a tensor": (torch.zeros(2, 3), "Tensor [2, 3]"),
    "an array": (np.zeros((4, 5)), "ndarray [4, 5]"),
    "a list in a list": ([[1, 2]], "[[1, 2]]"),
    "nothing": (None, "None"),
}


@pytest.mark.parametrize(("value", "words"), VALUES.values(), ids=VALUES)
def test_a_value_stands_in_a_message_by_its_start_and_end(value, words) -> None:
    assert brief(value) == words


@pytest.mark.parametrize("value", [[LONG] * 1000, {LONG: [LONG]}, Silent(), b"\xff" * 9999, lambda: LONG, (0,) * 10**6])
def test_no_value_takes_more_than_its_share(value) -> None:
    assert len(brief(value)) <= 60
    assert brief(value).isprintable()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no. It may be that"), "ValueError: no"),
        (KeyError("a"), "KeyError: 'a'"),
        (RuntimeError(), "RuntimeError"),
        (OSError(2, "No such file", LONG), "FileNotFoundError: No such file"),
        (RuntimeError("\n  first\nsecond"), "RuntimeError: first"),
    ],
    ids=repr,
)
def test_a_reason_is_the_type_and_the_first_sentence(error, words) -> None:
    assert reason(error) == words
    assert len(reason(type(error)(LONG))) <= 250


# Long values at the doors --------------------------------------------------------------------------------------------

DATA_URI = "data:image/png;base64," + base64.b64encode(os.urandom(40_000)).decode()
EXPLAINED: dict[str, dict[str, Any]] = {
    "a path": {"image": f"/{LONG}.png"},
    "a URL": {"image": f"http://127.0.0.1:1/{LONG}"},
    "a data URI": {"image": DATA_URI},
    "base64 of no image": {"image": DATA_URI.partition(",")[2]},
    "a target": {"target": LONG},
    "a target of many words": {"target": "tiger " * 2000},
    "a target that is a data URI": {"target": DATA_URI},
    "a text": {"text": LONG},
    "a method": {"method": LONG},
    "a layer": {"layers": LONG},
    "several layers": {"layers": [LONG, LONG]},
    "an option": {"method_options": {LONG: 1}},
    "a value of an option": {"method": "randomcam", "method_options": {"seed": LONG}},
    "a processor": {"processor": LONG},
    "a threshold": {"threshold": LONG},
    "top_k": {"top_k": LONG},
    "an array for a target": {"target": np.zeros((300, 300))},
    "a model": {"model": LONG},
    "a demo model": {"model": f"demo:{LONG}"},
    "a folder": {"model": f"./{LONG}"},
    "a device": {"model": "demo:vit", "device": LONG},
    "a dtype": {"model": "demo:vit", "dtype": LONG},
}


@pytest.mark.parametrize("given", EXPLAINED.values(), ids=EXPLAINED)
def test_a_long_value_makes_no_long_message(vit, picture, given) -> None:
    with pytest.raises(HFCamError) as caught:
        hf_cam.explain(**{"image": picture, "model": vit, **given})
    assert len(str(caught.value)) <= 400
    assert str(caught.value).isprintable()
    assert not isinstance(caught.value, UnexpectedError)


def test_the_way_out_stands_behind_a_long_label(vit, picture) -> None:
    with pytest.raises(TargetError, match=r"nearest: .*'tabby'"):
        hf_cam.explain(picture, vit, target="tabby " + LONG[:300])


# Words that help -----------------------------------------------------------------------------------------------------


def without_processor(folder: Path, picture: Image.Image, model: nn.Module) -> Any:
    model.save_pretrained(folder)
    return hf_cam.explain(picture, folder)


def without_processor_in_a_pipeline(folder: Path, picture: Image.Image, model: nn.Module) -> Any:
    model.save_pretrained(folder)
    return hf_cam.pipeline(model=str(folder))


def in_bands(count: int, last: bool) -> Callable[..., Any]:
    shape = (40, 60, count) if last else (count, 40, 60)
    return lambda folder, picture, model: hf_cam.explain(np.zeros(shape, np.uint8), model)


def processed(by: Callable[[Image.Image], Any]) -> Callable[..., Any]:
    return lambda folder, picture, model: hf_cam.explain(picture, model, processor=by)


def pixels(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
    return lambda folder, picture, model: hf_cam.GradCAM(model)(change(torch.rand(2, 3, 64, 96)))


HELPFUL: dict[str, tuple[Callable[..., Any], type[HFCamError], str]] = {
    "no processor in a folder": (without_processor, ModelError, r"pass processor=, such as AutoImageProcessor"),
    "no processor for a pipeline": (
        without_processor_in_a_pipeline,
        ModelError,
        r"a pipeline calls it image_processor=",
    ),
    "a processor by name": (
        lambda folder, picture, model: hf_cam.explain(picture, model, processor="google/vit"),
        OptionError,
        r"AutoImageProcessor.from_pretrained\(NAME\) loads one",
    ),
    "channels last": (processed(lambda one: to_tensor(one).permute(1, 2, 0)), OptionError, r"channels last.*permute"),
    "channels last, with a batch": (
        processed(lambda one: to_tensor(one).permute(1, 2, 0)[None]),
        OptionError,
        r"channels last.*permute",
    ),
    "grey values, channels last": (
        processed(lambda one: to_tensor(one).permute(1, 2, 0)[..., :1]),
        OptionError,
        r"channels last.*permute",
    ),
    "a processor that returns an array": (
        processed(np.asarray),
        OptionError,
        "returned ndarray; torchvision's ToTensor",
    ),
    "a processor that returns a dict": (
        processed(lambda one: {"image": to_tensor(one)}),
        OptionError,
        r"returned dict; return the tensor alone, such as its \['image'\]",
    ),
    "a processor of arrays": (
        processed(lambda image: torch.from_numpy(image.transpose(2, 0, 1))),
        ModelError,
        r"failed on an image \(TypeError.*gets a PIL image and returns a tensor \[C, H, W\]",
    ),
    "a processor that returns bytes": (
        processed(lambda one: (to_tensor(one) * 255).byte()),
        ModelError,
        r"torch\.uint8 in place of floats; scale the values, as ToTensor",
    ),
    "a processor that returns no pixels": (processed(lambda one: torch.zeros(3, 0, 0)), ModelError, "no pixels"),
    "a processor that returns NaN": (
        processed(lambda one: to_tensor(one) * NAN),
        ModelError,
        "not finite; look at its mean, std and rescale_factor",
    ),
    "12 bands": (in_bands(12, last=True), ImageError, r"hf_cam\.GradCAM\(model\)\(pixel_values\)"),
    "12 bands first": (in_bands(12, last=False), ImageError, r"hf_cam\.GradCAM\(model\)\(pixel_values\)"),
    "2 bands": (in_bands(2, last=True), ImageError, r"hf_cam\.GradCAM\(model\)\(pixel_values\)"),
    "normalized values": (
        lambda folder, picture, model: hf_cam.explain(torch.randn(3, 9, 9), model),
        ImageError,
        r"before the processor normalizes it, or the tensor to hf_cam\.GradCAM",
    ),
    "bytes for pixel_values": (pixels(lambda one: one.byte()), OptionError, r"got torch\.uint8 .*; scale the values"),
    "whole numbers for pixel_values": (pixels(lambda one: one.int()), OptionError, r"got torch\.int32 .*; scale"),
    "complex pixel_values": (pixels(lambda one: one * 1j), OptionError, r"got torch\.complex64"),
    "an array for pixel_values": (pixels(lambda one: one.numpy()), OptionError, r"got ndarray; hf_cam\.explain takes"),
    "one picture for pixel_values": (pixels(lambda one: one[0]), OptionError, r"axis of the batch with \[None\]"),
}


@pytest.mark.parametrize(("act", "kind", "words"), HELPFUL.values(), ids=HELPFUL)
def test_a_refusal_names_what_to_do(tmp_path, vit, picture, act, kind, words) -> None:
    with pytest.raises(HFCamError, match=words) as caught:
        act(tmp_path / "model", picture, vit)
    assert caught.type is kind


CONSTRUCTED = {
    "target_layers": "target_layers= is layers= here",
    "target_layer": "target_layer= is layers= here",
    "layer": "layer= is layers= here",
    "reshape_transform": "reshape_transform= is reshape= here",
    "use_cuda": r"move the model with \.to\('cuda'\)",
    "device_ids": r"move the model with \.to\('cuda:0'\)",
    "input_shape": "it is not needed",
    "batch_size": "batch_size= is rerun_batch_size= here",
}


@pytest.mark.parametrize(
    "construct", [hf_cam.GradCAM, hf_cam.ScoreCAM, lambda model, **given: hf_cam.CAM(model, **given)]
)
@pytest.mark.parametrize(("name", "words"), CONSTRUCTED.items(), ids=CONSTRUCTED)
def test_an_argument_of_another_library_names_that_of_a_class(vit, construct, name, words) -> None:
    with pytest.raises(OptionError, match=words):
        construct(vit, **{name: ["vit.layers.1"]})


@pytest.mark.parametrize("method", list_methods())
def test_every_method_names_its_own_argument_for_that_of_another_library(vit, method) -> None:
    for name, words in {**CONSTRUCTED, "target": "targets= here, an argument of the call"}.items():
        if name not in get_method(method).options:
            with pytest.raises(OptionError, match=words):
                hf_cam.CAM(vit, method, **{name: 1})


OPTIONS = {
    ("integrated-gradients", "n_steps"): "n_steps= is steps= here",
    ("integrated-gradients", "baselines"): "baselines= is fill= here",
    ("integrated-gradients", "internal_batch_size"): "internal_batch_size= is rerun_batch_size= here",
    ("smoothgrad", "nt_samples"): "nt_samples= is samples= here",
    ("smoothgradcam++", "num_samples"): "num_samples= is samples= here",
    ("smoothgradcam++", "std"): "std= is noise= here",
    ("occlusion", "sliding_window_shapes"): "sliding_window_shapes= is patch= here",
    ("finercam", "base_method"): "base_method= is base= here",
    ("finercam", "comparison_categories"): "comparison_categories= is references= here",
    ("gradcam", "detach"): "differentiable=True keeps the map in the graph",
    ("gradcam", "relu_attributions"): "signed=True also what speaks against it",
    ("ablationcam", "ratio_channels_to_ablate"): "every channel counts",
    ("gradcam", "signed"): "signed'.*; it is an argument of the call",
}


@pytest.mark.parametrize(("method", "name"), OPTIONS)
def test_an_option_of_another_library_names_that_of_the_method(vit, method, name) -> None:
    with pytest.raises(OptionError, match=OPTIONS[method, name]):
        hf_cam.CAM(vit, method, **{name: 1})


def test_an_argument_of_the_class_in_the_call_is_said_to_belong_there(vit, picture) -> None:
    x = torch.rand(1, 3, 64, 96)
    with pytest.raises(OptionError, match="target_layers= is layers= here, an argument of the class"):
        hf_cam.GradCAM(vit)(x, target_layers=["vit.layers.1"])
    with pytest.raises(OptionError, match="'layers'; it is an argument of the class"):
        hf_cam.GradCAM(vit)(x, layers=["vit.layers.1"])
    with pytest.raises(OptionError, match=r"use_cuda=, move the model with \.to"):
        hf_cam.GradCAM(vit)(x, use_cuda=True)
    with pytest.raises(OptionError, match="n_steps= is steps= here, an argument of the class"):
        hf_cam.IntegratedGradients(vit)(x, targets=1, n_steps=20)
    with pytest.raises(OptionError, match="'steps'; it is an argument of the class"):
        hf_cam.IntegratedGradients(vit)(x, targets=1, steps=20)
    with pytest.raises(OptionError, match="strides= is stride= here, an argument of the class"):
        hf_cam.Occlusion(vit)(x, targets=1, strides=(3, 8, 8))
    with pytest.raises(OptionError, match="nt_type=, the method 'smoothgrad' averages over noise"):
        hf_cam.InputGradient(vit)(x, targets=1, nt_type="smoothgrad")
    with pytest.raises(OptionError, match="target= is targets= here"):
        hf_cam.GuidedBackprop(vit)(x, target=1)
    with pytest.raises(OptionError, match="n_components= is components= here"):
        hf_cam.DeepFeatureFactorization(vit)(x, n_components=3)
    with pytest.raises(OptionError, match="target_layers= is layers= here"):
        hf_cam.DeepFeatureFactorization(vit, target_layers=["vit.layers.1"])
    explainer = Explainer(hf_cam.load(vit, processor=to_tensor))
    with pytest.raises(OptionError, match="target_layers= is layers= here, an argument of the explainer"):
        list(explainer([picture], target_layers=["vit.layers.1"]))
    with pytest.raises(OptionError, match="target_category= is target= here"):
        list(explainer([picture], target_category=1))
    with pytest.raises(OptionError, match="reshape_transform= is reshape= here"):
        Explainer(explainer.loaded, reshape_transform=None)


CALLED = {
    "target": "target= is targets= here",
    "target_category": "target_category= is targets= here",
    "class_idx": "class_idx= is targets= here",
    "scores": "targets= chooses what is explained",
    "input_tensor": "input_tensor= is pixel_values= here",
}


@pytest.mark.parametrize(("name", "words"), CALLED.items(), ids=CALLED)
@pytest.mark.parametrize(
    "build", [lambda: torchvision.models.resnet18(num_classes=3), lambda: None], ids=["plain", "vit"]
)
def test_an_argument_of_another_library_names_that_of_a_call(vit, build, name, words) -> None:
    with pytest.raises(OptionError, match=words):
        hf_cam.GradCAM((build() or vit).eval())(torch.rand(1, 3, 64, 96), **{name: 1})


@pytest.mark.parametrize("name", ["input_tensor", "inputs", "input"])
def test_the_picture_by_the_name_of_another_library_names_pixel_values(vit, name) -> None:
    with pytest.raises(OptionError, match=f"{name}= is pixel_values= here"):
        hf_cam.GradCAM(vit)(**{name: torch.rand(1, 3, 64, 96)})


def test_a_model_that_has_such_an_input_gets_it() -> None:
    class Weighed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 8, stride=8)

        def forward(self, pixel_values: Tensor, scores: Tensor) -> Tensor:
            return self.conv(pixel_values).relu().mean((2, 3)) * scores

    assert hf_cam.GradCAM(Weighed().eval(), "conv")(torch.rand(1, 3, 32, 48), scores=torch.ones(4)).shape == (1, 32, 48)


FUNCTIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "explain": (lambda *given, **named: hf_cam.explain(*given, **named), "target_layers= is layers= here"),
    "compare": (lambda *given, **named: hf_cam.compare(*given, **named), "target_layers= is layers= here"),
    "evaluate": (
        lambda *given, **named: hf_cam.evaluate(given[1], [given[0]], **named),
        "target_layers= is layers= here",
    ),
    "load": (lambda *given, **named: hf_cam.load(given[1], **named), "unexpected keyword argument 'target_layers'"),
    "a pipeline": (
        lambda *given, **named: hf_cam.pipeline(model=given[1], image_processor=to_tensor)(given[0], **named),
        "target_layers= is layers= here",
    ),
}


@pytest.mark.parametrize(("act", "words"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_an_unknown_argument_of_a_function_is_an_error_of_the_package(vit, picture, act, words) -> None:
    with pytest.raises(OptionError, match=words):
        act(picture, vit, target_layers=["vit.layers.1"])


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(ModelError, match=r"a model must be a Hub id.*pass it as model="):
        hf_cam.explain("cat.png")
    with pytest.raises(ImageError, match=r"an image must be a path.*messages="):
        hf_cam.explain(model="demo:vit")
    with pytest.raises(OptionError, match=r"GradCAM\(\) missing a required argument: 'model'"):
        hf_cam.GradCAM()


# The command -------------------------------------------------------------------------------------------------------


def test_the_command_shortens_what_it_prints(picture_file, vit_folder, tmp_path, capsys) -> None:
    from hf_cam.interfaces.cli import main

    arguments = ["explain", str(picture_file), "--model", str(vit_folder), "--out", str(tmp_path / "a.png")]
    assert main([*arguments, "--target", LONG]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert len(line) <= 420
    assert "nearest" in line


def test_one_line_keeps_short_texts() -> None:
    assert one_line("a  b") == "a  b"


# What a head takes ---------------------------------------------------------------------------------------------------

TAKEN: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "a box for a segmenter": (
        segformer,
        (10, 10, 50, 50),
        r"a pixel \(x, y\), a mask .*a box needs a detector, pass a m",
    ),
    "a mask for a detector": (
        detr,
        np.ones((4, 6), bool),
        r"a box \(x0, y0, x1, y1\) or a callable, not ndarray \[4, 6\]",
    ),
    "a box turned over": (detr, (50, 50, 10, 10), r"a box is \(left, top, right, bottom\) .* got \(50, 50, 10, 10\)"),
    "a box beside all others": (detr, (0, 0, 2, 2), r"no box at the box \(0.0, .*\); its surest box is \(\d+, \d+, "),
    "a box for depth": (depth, (10, 10, 50, 50), r"depth has no classes: pass a pixel \(x, y\) or a mask"),
    "an image for depth": (depth, Image.new("RGB", (8, 8)), r"pass a pixel \(x, y\) or a mask \[H, W\], not Image"),
    "a class of an embedding model": (embedder, 3, r"another image, an embedding \[D\] or a callable, not 3$"),
}


@pytest.mark.parametrize(("make", "target", "words"), TAKEN.values(), ids=TAKEN)
def test_a_refused_target_is_answered_with_what_the_head_takes(picture, make, target, words) -> None:
    loaded = make()
    with pytest.raises(TargetError, match=words):
        hf_cam.explain(picture, loaded.model, processor=loaded.processor, target=target)
