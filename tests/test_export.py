"""Exported models that explain themselves: hf-cam's own maps, without hf-cam."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from torch import Tensor, nn

import hf_cam
from hf_cam.cam import CAM
from hf_cam.capture.capture import capture
from hf_cam.errors import HFCamError, MethodError, ModelError, OptionError
from hf_cam.exporting.closed_form import Layer, is_closed, largest_component, raw_map
from hf_cam.exporting.pooled_head import PooledHead, pooled_head
from hf_cam.interfaces.cli import main
from hf_cam.layouts import Size
from hf_cam.maps import resize
from hf_cam.methods import list_methods
from hf_cam.methods.reductions import first_component
from nets import NETS, detr, make, spread
from pictures import SIZE, pictures
from unchanged import unchanged

ROUNDING = {"recipro-cam": 1e-4}
"""How far a map may differ where it is not 1e-5: the scores of random networks hardly differ from cell to cell,
so that their rounding weighs more."""
CLOSED = [method.id for method in list_methods().values() if is_closed(method)]


def timm_net(name: str, **own: Any) -> nn.Module:
    torch.manual_seed(0)
    return spread(timm.create_model(name, num_classes=7, **own)).eval()


NETWORKS = {
    "resnet": lambda: make("resnet"),
    "convnext": lambda: make("convnext"),
    "vit": lambda: make("vit"),
    "timm-resnet": lambda: timm_net("resnet10t"),
    "timm-convnext": lambda: timm_net("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
    "timm-vit": lambda: make("timm-vit"),
}
POOLED = ("resnet", "convnext", "timm-resnet", "timm-convnext")


SIZES = ((160, 64), (100, 75))
"""Sizes that the export has not seen; the second is no multiple of a stride."""


def differences(
    model: nn.Module, method: str, exported: Any, *, target_input: bool = True, size: Size = SIZE
) -> tuple[float, float]:
    """Of the logits and of the maps, for a batch that the export has not seen."""
    pixels, targets = resize(pictures(5), size), [3, 0, 6, 1, 3]
    cam = CAM(model, method)
    maps = cam(pixels, targets if target_input else None)
    logits = cam.outputs.logits if hasattr(cam.outputs, "logits") else cam.outputs
    with torch.no_grad():
        found = exported(pixels, torch.tensor(targets)) if target_input else exported(pixels)
    assert found[1].shape == (5, *size)
    assert maps.std() > 0.01
    return tuple(float((own - other).abs().max()) for own, other in zip((logits, maps), found, strict=True))


# Closed forms --------------------------------------------------------------------------------------------------------


# CAM is not defined for ConvNeXt, where a layer norm lies between the mean and the linear layer.
@pytest.mark.parametrize(
    ("name", "method"),
    [(name, method) for name in POOLED for method in CLOSED if method != "cam" or "convnext" not in name],
)
def test_the_closed_form_of_a_method_gives_hf_cams_own_map(name: str, method: str) -> None:
    model, pixels = NETWORKS[name](), pictures(3)
    cam = CAM(model, method)
    expected = cam(pixels, [3, 0, 6])
    adapter = cam.adapter_for(pixels, {})
    head = pooled_head(model, adapter, {"pixel_values": pixels})
    assert head is not None
    with capture(model, adapter.layers, {"pixel_values": pixels}, gradients=False) as captured:
        cells = adapter.to_spatial(captured.activations[0], SIZE)
    record = cam.method
    raw = raw_map(record, Layer(cells, torch.tensor([3, 0, 6]), head), record.options)
    torch.testing.assert_close(record.fuse([raw], SIZE), expected, atol=ROUNDING.get(method, 1e-5), rtol=0)


def test_the_methods_with_a_closed_form_are_the_ones_that_the_guide_names() -> None:
    assert {"cam", "gradcam", "hirescam", "recipro-cam", "eigencam"} <= set(CLOSED)
    assert not {"scorecam", "occlusion", "chefer", "kpcacam", "finercam", "randomcam"} & set(CLOSED)


def test_the_gradient_of_a_head_with_a_layer_norm_is_autograds() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, scale, shift = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 6), 6, 6))
    head = PooledHead(weight, None, (scale, shift, 1e-6))
    means, index = torch.randn(3, 6, generator=generator, dtype=torch.float64), torch.tensor([2, 0, 3])
    expected = torch.func.vmap(torch.func.grad(lambda mean, own: (head.logits(mean) * own).sum()))(
        means, torch.nn.functional.one_hot(index, 4).double()
    )
    torch.testing.assert_close(head.gradient(means, index), expected)


@pytest.mark.parametrize("channels", [5, 80], ids=["fewer channels than cells", "more"])
def test_the_squared_gram_matrix_gives_the_first_component(channels: int) -> None:
    activations = torch.randn(3, channels, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projected, _ = largest_component(activations)
    expected = first_component(activations).flatten(1)
    same = torch.stack([projected - expected, projected + expected]).abs().amax(2).amin(0)
    assert same.max() < 1e-6 * expected.abs().max()
    assert largest_component(torch.zeros(1, channels, 4, 6))[0].abs().max() == 0


class _Squared(nn.Module):
    """A mean over all cells, but no linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 6, 8, 8)
        self.head = nn.Linear(6, 4)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.features(pixel_values).mean((2, 3))).square()


@pytest.mark.parametrize(
    "make_model", [_Squared, NETWORKS["vit"], NETWORKS["timm-vit"]], ids=["squared", "vit", "timm"]
)
@pytest.mark.parametrize("method", ["gradcam", "recipro-cam"])
def test_a_head_that_is_not_pooled_and_linear_is_refused(make_model: Any, method: str, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="closed form where the logits are a linear layer of the mean"):
        hf_cam.export(make_model().eval(), tmp_path / "model.pt2", "torch", method=method, size=SIZE)
    assert not list(tmp_path.iterdir())


# Programs of torch ---------------------------------------------------------------------------------------------------


def test_a_program_of_torch_gives_the_models_logits_and_the_map_of_any_class(tmp_path: Path) -> None:
    model = make("resnet")
    with unchanged(model):
        path = hf_cam.export(model, tmp_path / "deep" / "model.pt2", "torch", target_input=True, size=SIZE)
    files: dict[str, Any] = {"hf_cam": ""}
    program = torch.export.load(path, extra_files=files).module()
    logits, maps = differences(model, "gradcam", program)
    assert logits < 1e-5
    assert maps < 1e-5
    pixels = pictures(1)
    own = program(pixels, torch.tensor([-1]))[1]
    torch.testing.assert_close(own, CAM(model, "gradcam")(pixels), atol=1e-5, rtol=0)
    described = json.loads(files["hf_cam"])
    assert described["method"] == "gradcam"
    assert described["size"] == list(SIZE)
    assert len(described["labels"]) == 7
    assert [file.name for file in path.parent.iterdir()] == ["model.pt2"]


def test_the_command_exports_a_folder_with_the_size_of_its_processor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make("resnet")
    model.save_pretrained(tmp_path / "resnet")
    size = {"height": SIZE[0], "width": SIZE[1]}
    hf.ViTImageProcessor(size=size).save_pretrained(tmp_path / "resnet")
    path = tmp_path / "model.pt2"
    arguments = ["export", str(tmp_path / "resnet"), str(path), "--format", "torch", "--method", "hirescam"]
    assert main([*arguments, "--dynamic"]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    program = torch.export.load(path).module()
    assert differences(model, "hirescam", program, target_input=False)[1] < 1e-5
    assert differences(model, "hirescam", program, target_input=False, size=SIZES[0])[1] < 1e-5
    assert main([*arguments, "--size", "64 by 96"]) == 2
    assert "--size takes HEIGHTxWIDTH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "method"), [("resnet", "gradcam"), pytest.param("convnext", "eigencam", marks=pytest.mark.slow)]
)
def test_a_program_of_torch_takes_pictures_of_any_size(name: str, method: str, tmp_path: Path) -> None:
    model = NETWORKS[name]()
    path = hf_cam.export(
        model, tmp_path / "model.pt2", "torch", method=method, target_input=True, size=SIZE, dynamic=True
    )
    files: dict[str, Any] = {"hf_cam": ""}
    program = torch.export.load(path, extra_files=files).module()
    for size in (SIZE, *SIZES):
        logits, maps = differences(model, method, program, size=size)
        assert logits < 1e-5
        assert maps < 1e-5
    assert json.loads(files["hf_cam"])["size"] is None


def test_a_model_that_does_not_run_at_another_size_is_refused(tmp_path: Path) -> None:
    class FixedSize(_Squared):
        def forward(self, pixel_values: Tensor) -> Tensor:
            cells = self.features(pixel_values)
            return self.head((cells.flatten(2) + torch.linspace(0, 1, 96)).mean(2))

    with pytest.raises(ModelError, match="cannot be exported for pictures of 160 x 64"):
        hf_cam.export(FixedSize().eval(), tmp_path / "model.pt2", "torch", method="eigencam", size=SIZE, dynamic=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_exported_to_torch(name: str, tmp_path: Path) -> None:
    model = NETWORKS[name]()
    for method in ("gradcam", "recipro-cam", "eigencam") if name in POOLED else ("eigencam",):
        path = hf_cam.export(model, tmp_path / f"{method}.pt2", "torch", method=method, target_input=True, size=SIZE)
        logits, maps = differences(model, method, torch.export.load(path).module())
        assert logits < 1e-4
        assert maps < ROUNDING.get(method, 1e-5), method


# ONNX ----------------------------------------------------------------------------------------------------------------


def library(name: str) -> Any:
    """The library; where it is not installed, the test is skipped unless `HF_CAM_PEERS=required`."""
    if os.environ.get("HF_CAM_PEERS") == "required":
        return importlib.import_module(name)
    return pytest.importorskip(name)


def session(path: Path) -> Any:
    """What runs an ONNX file, as a function of tensors."""
    onnxruntime = library("onnxruntime")
    opened = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        names = ["pixel_values", "target"][: len(inputs)]
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(value) for value in opened.run(["logits", "map"], given)]

    return run


@pytest.mark.peers
@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_gives_hf_cams_own_map(name: str, tmp_path: Path) -> None:
    library("onnxscript")
    model = NETWORKS[name]()
    methods = ("gradcam", "recipro-cam", "eigencam", *(("cam",) if "resnet" in name else ()))
    for method in methods if name in POOLED else ("eigencam",):
        path = hf_cam.export(model, tmp_path / f"{method}.onnx", method=method, target_input=True, size=SIZE)
        logits, maps = differences(model, method, session(path))
        assert logits < 1e-4
        assert maps < ROUNDING.get(method, 1e-5), method


@pytest.mark.peers
@pytest.mark.parametrize("name", POOLED)
def test_onnxruntime_gives_hf_cams_own_map_at_any_size(name: str, tmp_path: Path) -> None:
    library("onnxscript")
    model = NETWORKS[name]()
    for method in ("gradcam", "hirescam", "eigencam", *(("cam",) if "resnet" in name else ())):
        path = hf_cam.export(
            model, tmp_path / f"{method}.onnx", method=method, target_input=True, size=SIZE, dynamic=True
        )
        run = session(path)
        for size in (SIZE, *SIZES):
            logits, maps = differences(model, method, run, size=size)
            assert logits < 1e-4
            assert maps < 2e-5, (method, size)  # the largest seen is 1.2e-5, at 160 x 64


@pytest.mark.peers
def test_an_onnx_file_without_a_target_explains_the_top_class_and_describes_itself(tmp_path: Path) -> None:
    onnx = library("onnx")
    model = make("resnet")
    path = hf_cam.export(model, tmp_path / "model.onnx", size=SIZE)
    assert differences(model, "gradcam", session(path), target_input=False)[1] < 1e-5
    held = onnx.load(str(path))
    described = json.loads({one.key: one.value for one in held.metadata_props}["hf_cam"])
    assert described["layers"] == list(CAM(model, "gradcam").adapter.layers)
    assert [one.name for one in held.graph.input] == ["pixel_values"]
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


# Bad input -----------------------------------------------------------------------------------------------------------

BAD = {
    "format": ({"format": "tflite"}, OptionError, "format must be 'onnx' or 'torch'"),
    "suffix": ({"path": "model.onnx"}, OptionError, r"must end in \.pt2"),
    "method": ({"method": "scorecam"}, MethodError, "no closed form, so it cannot be exported"),
    "no such method": ({"method": "gradcamm"}, MethodError, "gradcam"),
    "option": ({"method_options": {"colour": 1}}, OptionError, "no option"),
    "size": ({"size": 64}, OptionError, "the height and the width"),
    "side": ({"size": (64, 0)}, OptionError, "the width must be"),
    "dynamic": ({"dynamic": "yes"}, OptionError, "dynamic must be True or False"),
    "cell by cell": ({"dynamic": True, "method": "recipro-cam"}, MethodError, "keeps each cell in turn"),
    "tokens": (
        {"dynamic": True, "method": "eigencam", "model": NETS["vit"]},
        MethodError,
        r"does not return maps \[B, C, h, w\]",
    ),
    "detector": ({"model": detr}, OptionError, "takes classifiers of images"),
    "no processor": ({"size": None}, ModelError, "pass processor="),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_sentence(case: str, tmp_path: Path) -> None:
    arguments, error, match = BAD[case]
    given = {"model": NETS["resnet"], "path": "model.pt2", "format": "torch", "size": SIZE, **arguments}
    with pytest.raises(error, match=match) as caught:
        hf_cam.export(given.pop("model")(), tmp_path / given.pop("path"), given.pop("format"), **given)
    assert isinstance(caught.value, HFCamError)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named_with_the_way_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r'pip install "hf-cam\[export\]"'):
        hf_cam.export(make("resnet"), tmp_path / "model.onnx", size=SIZE)
