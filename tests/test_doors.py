"""Doors: whatever other code raises, and whatever is handed over, ends in a result or in an error of hf-cam's own."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import hf_cam
from hf_cam import doors, errors
from hf_cam.errors import (
    HFCamError,
    ImageError,
    LayoutError,
    MethodError,
    ModelError,
    OptionError,
    TargetError,
    UnexpectedError,
    reason,
)
from hf_cam.explainer import Explainer
from nets import clip, detr, embedder, segformer
from pictures import to_tensor

NAN = float("nan")


# What other code raises ----------------------------------------------------------------------------------------------


class Failing(nn.Module):
    """A model whose forward raises."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, stride=8)
        self.error = error

    def forward(self, pixel_values: Tensor) -> Tensor:
        self.conv(pixel_values)
        raise self.error


RAISED = [
    RuntimeError("shapes"),
    ValueError("a\nb"),
    KeyError("name"),
    TypeError("type"),
    AssertionError("too small"),
    NotImplementedError("later"),
    ZeroDivisionError("zero"),
    OSError(28, "No space left on device"),
    RecursionError("deep"),
]


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_what_a_forward_raises_is_named_with_its_type_and_chained(error) -> None:
    with pytest.raises(ModelError, match=rf"^the model's forward failed: {reason(error)}$") as caught:
        hf_cam.GradCAM(Failing(error), "conv")(torch.rand(1, 3, 32, 48))
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_what_a_target_raises_is_named_with_its_type_and_chained(vit, picture, error) -> None:
    def mine(output: Any) -> Tensor:
        raise error

    with pytest.raises(TargetError, match=r"^the target mine (failed|does not fit the model's output)") as caught:
        hf_cam.explain(picture, vit, target=mine)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_what_a_processor_raises_is_named_with_its_type_and_chained(vit, picture, error) -> None:
    def mine(image: Image.Image) -> Tensor:
        raise error

    with pytest.raises(ModelError, match=rf"^the processor failed on an image \({reason(error)}\); a ") as caught:
        hf_cam.explain(picture, vit, processor=mine)
    assert caught.value.__cause__ is error


def test_what_reshape_raises_is_named(vit) -> None:
    with pytest.raises(LayoutError, match=r"^reshape= failed: RuntimeError: shape"):
        hf_cam.GradCAM(vit, "vit.layers.1", lambda tokens: tokens.reshape(7, 7))(torch.rand(1, 3, 64, 96))


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA ran"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_a_lack_of_memory_names_what_takes_less(error) -> None:
    with pytest.raises(ModelError, match=rf"{type(error).__name__}.*smaller batch_size= or rerun_batch_size="):
        hf_cam.GradCAM(Failing(error), "conv")(torch.rand(1, 3, 32, 48))


def test_a_network_for_another_size_says_so_in_its_own_words() -> None:
    net = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=1).eval()
    with pytest.raises(ModelError, match=r"forward failed: AssertionError: Input height \(64\) doesn't match"):
        hf_cam.GradCAM(net)(torch.rand(1, 3, 64, 96))


EVERYWHERE: dict[str, Callable[[nn.Module, Image.Image], Any]] = {
    "explain": lambda model, image: hf_cam.explain(image, model, layers="conv", processor=to_tensor),
    "compare": lambda model, image: hf_cam.compare(image, model, layers="conv", processor=to_tensor),
    "evaluate": lambda model, image: hf_cam.evaluate(
        model, [image], layers="conv", processor=to_tensor, metrics="complexity", progress=False
    ),
    "Explainer": lambda model, image: [
        *Explainer(hf_cam.load(model, processor=to_tensor), "gradcam", "conv")([hf_cam.load_image(image)])
    ],
    "CAM": lambda model, image: hf_cam.CAM(model, "eigencam", "conv")(torch.rand(1, 3, 32, 48)),
    "infer_adapter": lambda model, image: hf_cam.infer_adapter(model),
    "GuidedBackprop": lambda model, image: hf_cam.GuidedBackprop(model)(torch.rand(1, 3, 32, 48)),
    "DeepFeatureFactorization": lambda model, image: hf_cam.DeepFeatureFactorization(model, "conv")(
        torch.rand(1, 3, 32, 48)
    ),
}


@pytest.mark.parametrize("act", EVERYWHERE.values(), ids=EVERYWHERE)
def test_a_failing_model_is_named_at_every_door(picture, act) -> None:
    with pytest.raises(
        HFCamError, match=r"(forward failed: |does not run on a picture of noise \()RuntimeError: broken"
    ):
        act(Failing(RuntimeError("broken")).eval(), picture)


def test_a_failing_model_is_named_by_a_pipeline(vit, vit_folder, picture, monkeypatch) -> None:
    from transformers import AutoImageProcessor

    def fail(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("broken")

    cam = hf_cam.pipeline(model=vit, image_processor=AutoImageProcessor.from_pretrained(vit_folder))
    monkeypatch.setattr(vit.classifier, "forward", fail)
    with pytest.raises(ModelError, match="the model's forward failed: RuntimeError: broken"):
        cam(picture)


def test_an_exception_of_a_callback_passes_as_it_is(vit, vit_folder, picture) -> None:
    class Enough(Exception):
        pass

    def stop(_: Any) -> None:
        raise Enough

    with pytest.raises(Enough):
        hf_cam.evaluate(vit_folder, [picture], methods="gradcam", metrics="complexity", progress=False, on_record=stop)


def own_function(body: str) -> Callable[[], Any]:
    """A function whose code lies in a file of the package."""
    found: dict[str, Any] = {}
    exec(compile(f"def own():\n    {body}\n", str(Path(doors.__file__).parent / "own.py"), "exec"), found)
    return found["own"]


@pytest.mark.parametrize(("body", "kind"), [("assert False, 'a law'", AssertionError), ("missing_name", NameError)])
def test_a_mistake_in_the_package_itself_is_not_dressed_up(body, kind) -> None:
    with pytest.raises(kind) as caught:
        doors.door()(own_function(body))()
    assert caught.type is kind


@pytest.mark.parametrize("body", ["assert False, 'a law'", "raise NameError('x')", "{}['a']", "None.a"])
def test_other_failures_say_where_and_keep_the_cause(body) -> None:
    def theirs() -> None:
        exec(body)

    with pytest.raises(
        UnexpectedError, match=r"^test_.*failed: (AssertionError|NameError|KeyError|AttributeError)|theirs"
    ) as e:
        doors.door()(theirs)()
    assert e.value.__cause__ is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, UserWarning, errors.SlowWarning])
def test_interrupts_and_warnings_pass(error) -> None:
    def act() -> None:
        raise error

    with pytest.raises(error) as caught:
        doors.door()(act)()
    assert caught.type is error


def test_a_warning_that_is_an_error_stays_one_in_a_processor(vit, picture) -> None:
    def warning(image: Image.Image) -> Tensor:
        warnings.warn("old", UserWarning, stacklevel=1)
        return to_tensor(image)

    with pytest.raises(UserWarning, match="old"):
        hf_cam.explain(picture, vit, processor=warning)


def test_a_door_hands_on_results_and_generators() -> None:
    assert doors.door()(lambda one, *, two: (one, two))(1, two=2) == (1, 2)

    def numbers(count: int) -> Iterator[int]:
        yield from range(count)
        raise KeyError("end")

    found = doors.door(ImageError)(numbers)(2)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ImageError, match="KeyError: 'end'"):
        next(found)


# Tensors that hold no plain values -----------------------------------------------------------------------------------

SQUARE = torch.rand(3, 9, 8, generator=torch.Generator().manual_seed(0))


def nested(_: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.rand(9, 8), torch.rand(9, 8)])


def quantized(value: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(value, 1 / 255, 0, torch.quint8)


STRANGE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sparse": (lambda value: value.to_sparse(), r"\.to_dense\(\)"),
    "of MKL-DNN": (lambda value: value.to_mkldnn(), r"\.to_dense\(\)"),
    "quantized": (quantized, r"\.dequantize\(\)"),
    "nested": (nested, r"\.to_padded_tensor\(0\)"),
    "meta": (lambda value: value.to("meta"), "holds? no values"),
}


@pytest.mark.parametrize(("make", "words"), STRANGE.values(), ids=STRANGE)
def test_a_tensor_that_holds_no_plain_values_is_refused_as_an_image(make, words) -> None:
    with pytest.raises(ImageError, match=words):
        hf_cam.load_image(make(SQUARE))


@pytest.mark.parametrize(("make", "words"), STRANGE.values(), ids=STRANGE)
def test_a_tensor_that_holds_no_plain_values_is_refused_as_pixel_values(vit, make, words) -> None:
    with pytest.raises(OptionError, match=words):
        hf_cam.GradCAM(vit)(make(SQUARE[None]))


@pytest.mark.parametrize(("make", "words"), STRANGE.values(), ids=STRANGE)
def test_a_tensor_that_holds_no_plain_values_is_refused_as_a_mask(picture, make, words) -> None:
    loaded = segformer()
    with pytest.raises(TargetError, match=words):
        hf_cam.explain(picture, loaded.model, processor=loaded.processor, target=make(SQUARE[0]))


@pytest.mark.parametrize(("make", "words"), [STRANGE["sparse"], STRANGE["meta"]])
def test_a_tensor_that_holds_no_plain_values_is_refused_from_a_target(vit, picture, make, words) -> None:
    with pytest.raises(TargetError, match=words):
        hf_cam.explain(picture, vit, target=lambda output: make(output.logits[:1]))


@pytest.mark.parametrize(
    "view", [torch._neg_view, lambda value: (1j * value).conj().imag], ids=["negative", "conjugate"]
)
def test_a_tensor_with_a_pending_sign_is_an_image(view) -> None:
    positive = view(-SQUARE)
    np.testing.assert_array_equal(np.asarray(hf_cam.load_image(positive)), np.asarray(hf_cam.load_image(SQUARE)))


@pytest.mark.parametrize("target", [lambda out: out.logits.sum() * 1j, lambda out: out.logits[0].to(torch.complex128)])
def test_a_complex_target_is_refused(vit, picture, target) -> None:
    with pytest.raises(
        TargetError, match=r"a real number, <lambda> returned torch\.complex.*take its \.abs\(\) or \.real"
    ):
        hf_cam.explain(picture, vit, target=target)


# Numbers, texts, devices and options ---------------------------------------------------------------------------------

HEADS: dict[str, Callable[[], Any]] = {"detr": detr, "segformer": segformer, "clip": clip, "embedder": embedder}
PLACES: dict[str, tuple[str, Any]] = {
    "a pixel with NaN": ("detr", (NAN, 1)),
    "a box with NaN": ("detr", (1, 2, NAN, 4)),
    "a box with infinity": ("detr", (1, 2, float("inf"), 4)),
    "a box as text with NaN": ("detr", "1,2,nan,4"),
    "a box with a number too large": ("detr", (1, 2, 10**400, 4)),
    "a box as a tensor with NaN": ("detr", torch.tensor([1, 2, NAN, 4])),
    "a pixel as an array with NaN": ("segformer", np.array([NAN, 2])),
    "a mask with NaN": ("segformer", np.full((50, 80), NAN)),
    "one NaN in a mask": ("segformer", torch.eye(50, 80).masked_fill(torch.eye(50, 80) > 0, NAN)),
    "infinity for a prompt": ("clip", float("inf")),
    "NaN for a prompt": ("clip", NAN),
    "infinity for an image": ("embedder", float("inf")),
}


@pytest.mark.parametrize(("head", "target"), PLACES.values(), ids=PLACES)
def test_a_position_must_be_finite(picture, head, target) -> None:
    loaded, text = HEADS[head](), "a red cup" if head == "clip" else None
    explainer = Explainer(loaded)
    with pytest.raises(TargetError, match="must be made of finite numbers"):
        list(explainer([picture], target=target, text=text))


@pytest.mark.parametrize("target", [np.ones((50, 80), bool), ("a cat",), 1.5, {"a": 1}, b"a cat", np.array(["a cat"])])
def test_a_prompt_is_named_by_its_text_or_index(picture, target) -> None:
    loaded = clip()
    with pytest.raises(TargetError, match="one of the prompts in text= or its index, not"):
        list(Explainer(loaded)([picture], target=target, text=["a cat", "a dog"]))


PROMPTS = {
    "a number": (5, "text must be a prompt or a list of prompts, not int 5"),
    "a dict": ({"a": "b"}, "text must be a prompt or a list of prompts"),
    "bytes": (b"cat", "text must be a prompt or a list of prompts"),
    "a tensor": (torch.zeros(2), r"not Tensor \[2\]"),
    "a number in a list": (["a", 5], "a prompt must be a text that is not empty, not 5"),
    "a list in a list": ([["a"]], "a prompt must be a text that is not empty"),
    "half a letter": ("a \ud800 cat", r"valid Unicode, but 'a \\ud800 cat' holds half a character"),
    "the other half": (["cat", "\udfff"], "valid Unicode"),
}


@pytest.mark.parametrize(("text", "words"), PROMPTS.values(), ids=PROMPTS)
def test_a_text_that_is_none_is_refused(picture, text, words) -> None:
    with pytest.raises(TargetError, match=words):
        list(Explainer(clip())([picture], text=text))


@pytest.mark.parametrize(
    "device", ["hpu", "mps", "xla", "privateuseone", "vulkan", "cuda:77", "\ud800", "", 2**40, [1]]
)
def test_a_device_that_is_not_there_is_named_in_a_sentence(vit_folder, device) -> None:
    with pytest.raises(OptionError, match=r"^no device .* here \(.*\); there is 'cpu'"):
        hf_cam.load(vit_folder, device=device)


OPTIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a text for a seed": (
        "randomcam",
        {"seed": "a"},
        "'seed' of the method 'randomcam' must be a whole number, got 'a'",
    ),
    "a seed that is too large": ("randomcam", {"seed": 2**70}, "must be a whole number"),
    "half a seed": ("randomcam", {"seed": 1.5}, "must be a whole number"),
    "no seed": ("randomcam", {"seed": None}, "must be a whole number"),
    "a truth value for a seed": ("randomcam", {"seed": True}, "must be a whole number"),
    "a text for a number": ("fem", {"k": "a"}, "must be a number, got 'a'"),
    "infinity for a number": ("fem", {"k": float("inf")}, "must be a number, got inf"),
    "a text for a list": ("finercam", {"references": ["a"]}, "must be a whole number or a list"),
    "a number for a text": ("finercam", {"base": 5}, "must be a text, got 5"),
    "none of the choices": ("gradeclip", {"heads": "all"}, "must be 'merged' or 'own', got 'all'"),
    "a text for a truth value": ("gradeclip", {"spatial": "yes"}, "must be True or False"),
}


@pytest.mark.parametrize(("method", "options", "words"), OPTIONS.values(), ids=OPTIONS)
def test_a_value_that_does_not_fit_an_option_is_refused(vit, picture, method, options, words) -> None:
    with pytest.raises(OptionError, match=words):
        hf_cam.CAM(vit, method, **options)
    with pytest.raises(OptionError, match=words):
        hf_cam.explain(picture, vit, method=method, method_options=options)


def test_an_option_that_a_library_refuses_names_the_method(vit) -> None:
    with pytest.raises(MethodError, match="the method 'kpcacam' failed: InvalidParameterError: The 'kernel' parameter"):
        hf_cam.CAM(vit, "kpcacam", kernel="x")(torch.rand(1, 3, 64, 96))


def test_an_integer_of_numpy_is_a_seed(vit) -> None:
    pictures = torch.rand(1, 3, 64, 96)
    maps = [hf_cam.CAM(vit, "randomcam", seed=seed)(pictures) for seed in (np.int64(3), 3, 4)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])


@pytest.mark.parametrize("seed", ["a", 1.5, None, -1, 2**63, True])
def test_a_seed_of_an_evaluation_or_a_check_must_be_a_whole_number(vit, picture, vit_folder, seed) -> None:
    with pytest.raises(OptionError, match="seed must be a whole number from 0"):
        hf_cam.evaluate(vit_folder, [picture], seed=seed)
    [explanation] = hf_cam.explain(picture, vit)
    with pytest.raises(OptionError, match="seed must be a whole number from 0"):
        explanation.check(seed)


@pytest.mark.parametrize("given", [5, [5], {"road"}, [None], b"road"])
@pytest.mark.parametrize("argument", ["methods", "metrics"])
def test_names_are_texts(vit_folder, picture, argument, given) -> None:
    with pytest.raises(OptionError, match=f"{argument} must be names in a list or in one text"):
        hf_cam.evaluate(vit_folder, [picture], **{argument: given})


BOXES = {
    "a box with NaN": ({"box": (1, 2, NAN, 4)}, "box 0 must be four finite numbers"),
    "a number for a box": ({"box": 5}, "box 0 must be four finite numbers"),
    "three sides": ({"bbox": (1, 2, 3)}, "box 0 must be four finite numbers"),
    "a mask with NaN": ({"mask": np.full((50, 80), NAN)}, "mask 0 must hold finite numbers"),
    "a text for a mask": ({"segmentation": "x"}, "mask 0 must hold finite numbers"),
    "a small mask": ({"mask": np.zeros((3, 3))}, r"mask 0 is \(3, 3\), but its image is \(50, 80\)"),
}


@pytest.mark.parametrize(("annotation", "words"), BOXES.values(), ids=BOXES)
def test_an_annotation_that_marks_nothing_is_refused(vit_folder, picture, annotation, words) -> None:
    with pytest.raises(OptionError, match=words):
        hf_cam.evaluate(vit_folder, [{"image": picture, **annotation}])


def test_images_that_cannot_be_iterated_are_an_error_of_the_package(vit_folder) -> None:
    with pytest.raises(ImageError, match="reading the images failed: ZeroDivisionError"):
        hf_cam.evaluate(vit_folder, (1 / 0 for _ in range(3)))


# Damaged files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["AVIF", "WEBP", "JPEG", "PNG", "GIF", "TIFF", "BMP", "ICO", "PPM", "TGA", "JPEG2000"])
def test_a_damaged_picture_of_any_format_is_an_error_of_the_package(tmp_path, kind) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    whole = buffer.getvalue()
    for place in range(4, min(len(whole), 2000), 37):
        (tmp_path / "x").write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with warnings.catch_warnings(), contextlib.suppress(ImageError):
            warnings.simplefilter("ignore")  # Pillow warns of some damages that it reads past
            hf_cam.load_image(tmp_path / "x")


GOOD = {"layers": ["vit.layers.1.layernorm_before"], "layouts": [{"axes": "b (h w) c", "prefix": 1}]}
CAM_CONFIGS: dict[str, Any] = {
    "a number for a layer": {**GOOD, "layers": [5]},
    "a list for a layer": {**GOOD, "layers": [["a"]]},
    "no layers": {**GOOD, "layers": None},
    "a layer of 10 MB": {**GOOD, "layers": ["x" * 10_000_000]},
    "a number for layouts": {**GOOD, "layouts": 5},
    "a text for a layout": {**GOOD, "layouts": ["b c h w"]},
    "a number for axes": {**GOOD, "layouts": [{"axes": 5}]},
    "a text for a prefix": {**GOOD, "layouts": [{"axes": "b (h w) c", "prefix": "a"}]},
    "a negative prefix": {**GOOD, "layouts": [{"axes": "b (h w) c", "prefix": -1}]},
    "one side for a patch": {**GOOD, "layouts": [{"axes": "b (h w) c", "patch": [8]}]},
    "a patch of nothing": {**GOOD, "layouts": [{"axes": "b (h w) c", "patch": [0, 0]}]},
    "a text for square": {**GOOD, "layouts": [{"axes": "b (h w) c", "square": "no"}]},
    "an unknown key": {**GOOD, "layouts": [{"axes": "b (h w) c", "colour": 1}]},
    "a number for a method": {**GOOD, "method": 5},
    "a number for a reason": {**GOOD, "reason": 5},
    "null": None,
}
CONTENTS: dict[str, bytes] = {
    **{name: json.dumps(content).encode() for name, content in CAM_CONFIGS.items()},
    "nested 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "lists 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "binary": bytes(range(128, 256)),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_an_absurd_cam_config_is_refused_in_a_sentence(vit_folder, tmp_path, picture, content) -> None:
    shutil.copytree(vit_folder, tmp_path / "model")
    (tmp_path / "model" / "cam_config.json").write_bytes(content)
    with pytest.raises(HFCamError, match=r"cam_config\.json|patch") as caught:
        hf_cam.explain(picture, tmp_path / "model")
    assert not isinstance(caught.value, UnexpectedError)
    assert len(str(caught.value)) <= 400


def with_values(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, **values}))

    return change


SETTINGS: dict[str, tuple[Callable[[Path], None], str]] = {
    "architectures: a number": (with_values("config.json", architectures=5), "lists 5 as architectures"),
    "architectures: numbers": (with_values("config.json", architectures=[5]), r"lists \[5\] as architectures"),
    "architectures: lists": (with_values("config.json", architectures=[["a"]]), "as architectures; it must list class"),
    "architectures: a text": (with_values("config.json", architectures="ViT"), "lists 'ViT' as architectures"),
    "id2label: a number": (with_values("config.json", id2label=5), "the config of .* cannot be loaded"),
    "id2label: words for indices": (with_values("config.json", id2label={"a": "b"}), "config of .* cannot be loaded"),
    "rescale_factor 0": (with_values("preprocessor_config.json", rescale_factor=0), "cannot prepare these images"),
    "rescale_factor NaN": (with_values("preprocessor_config.json", rescale_factor=NAN), "values that are not finite"),
    "rescale_factor: a text": (with_values("preprocessor_config.json", rescale_factor="a"), "cannot prepare these"),
    "resample 99": (with_values("preprocessor_config.json", resample=99), "cannot prepare these images: KeyError: 99"),
    "resample: a text": (with_values("preprocessor_config.json", resample="x"), "cannot prepare these images"),
    "a size below 0": (with_values("preprocessor_config.json", size={"height": -5, "width": 5}), "cannot prepare"),
    "a std of 0": (with_values("preprocessor_config.json", image_std=[0, 0, 0]), "values that are not finite"),
    "no rescaling": (
        with_values("preprocessor_config.json", do_rescale=False, do_normalize=False),
        r"torch\.uint8 in place of floats",
    ),
    "a type that is none": (
        with_values("preprocessor_config.json", image_processor_type=5),
        "cannot be loaded.*processor=",
    ),
}


@pytest.mark.parametrize(("change", "words"), SETTINGS.values(), ids=SETTINGS)
def test_absurd_settings_of_a_checkpoint_are_refused_in_a_sentence(
    vit_folder, tmp_path, picture, change, words
) -> None:
    shutil.copytree(vit_folder, tmp_path / "model")
    change(tmp_path / "model")
    with pytest.raises(ModelError, match=words) as caught:
        hf_cam.explain(picture, tmp_path / "model")
    assert len(str(caught.value)) <= 400


MODELS = [
    "~no-such-user",
    "\ud800",
    "a\0b",
    "",
    "x" * 5000,
    "a/b/" + "c" * 5000,
    b"vit",
    ["vit"],
    "data:image/png;base64," + "A" * 5000,
]


@pytest.mark.parametrize("name", MODELS, ids=lambda name: repr(name)[:20])
@pytest.mark.parametrize("door", [hf_cam.load, lambda name: hf_cam.pipeline(model=name)], ids=["load", "pipeline"])
def test_a_name_that_no_model_can_have_is_refused(door, name) -> None:
    with pytest.raises(ModelError) as caught:
        door(name)
    assert len(str(caught.value)) <= 400


IMAGES = {
    "no such user": ("~no-such-user/cat.png", "cannot be read as a file: RuntimeError"),
    "half a letter": ("\ud800.png", r"'\\ud800.png'"),
    "a null byte": ("a\0b.png", r"'a\\x00b.png'"),
    "a URL with half a letter": ("http://127.0.0.1:1/\ud800", "cannot be fetched"),
    "an object array": (np.array([[object()]]), "must hold numbers, not object"),
    "a structured array": (np.zeros((3, 3), [("a", int)]), "must hold numbers"),
    "dates": (np.zeros((3, 3), "M8[s]"), "must hold numbers"),
    "complex numbers": (torch.rand(3, 9, 9) * 1j, "must hold numbers, not complex64"),
}


@pytest.mark.parametrize(("source", "words"), IMAGES.values(), ids=IMAGES)
def test_a_source_of_no_image_is_refused(source, words) -> None:
    with pytest.raises(ImageError, match=words):
        hf_cam.load_image(source)


# What is written -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/proc/no/map.npy", "/proc/no/map.png", "x" * 5000 + ".png", "~no-such-user/map.png", "a\0.npy", 5]
)
def test_a_map_that_cannot_be_written_is_an_error_of_the_package(vit, picture, path) -> None:
    [explanation] = hf_cam.explain(picture, vit)
    with pytest.raises(ImageError):
        explanation.save(path)
