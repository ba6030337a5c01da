"""SS-CAM, IS-CAM, Guided Grad-CAM and concepts as methods, against their definitions written out one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hf_cam
from benchmarks.equations_variants import concept_map, is_cam, ss_cam
from hf_cam.cam import CAM
from hf_cam.capture.capture import capture
from hf_cam.errors import LayerError, OptionError
from hf_cam.guided import GuidedBackprop
from hf_cam.maps import normalize, resize
from hf_cam.methods import get_method
from hf_cam.methods.concepts import factorize
from hf_cam.methods.registry import METHODS, Method
from hf_cam.target_layers.adapter import Adapter
from hf_cam.targets import ClassLogit
from nets import make
from pictures import SIZE, pictures


def raw_of(net: nn.Module, method: str, x: Tensor, targets: list, **options) -> Tensor:
    [raw] = CAM(net, method, **options).saliency(x, lambda _: [targets]).raw
    return raw[0].clamp_min(0)


def cells_of(net: nn.Module, x: Tensor) -> Tensor:
    adapter = CAM(net).adapter
    with capture(net, adapter.layers, {"pixel_values": x}, gradients=False) as captured:
        return adapter.to_spatial(captured.activations[0], SIZE)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_is_cam_averages_the_scores_of_growing_masks(name: str) -> None:
    net, x, steps = make(name), pictures(1), 3
    cells = cells_of(net, x)[0]
    expected = is_cam(net, x, cells, 2, steps)
    torch.testing.assert_close(raw_of(net, "iscam", x, [2], steps=steps)[0], expected, atol=1e-5, rtol=1e-4)
    one_step = raw_of(net, "iscam", x, [2], steps=1)
    torch.testing.assert_close(one_step, raw_of(net, "scorecam", x, [2]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_ss_cam_averages_the_scores_of_noisy_activations(name: str) -> None:
    net, x, draws = make(name), pictures(1), 3
    expected = ss_cam(net, x, cells_of(net, x)[0], 2, draws, 0.7, 4)
    found = raw_of(net, "sscam", x, [2], draws=draws, noise=0.7, seed=4)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_guided_gradcam_is_the_product_of_its_two_parts() -> None:
    net, x = make("resnet"), pictures(2)
    guided = GuidedBackprop(net)(x, [2, 5])
    maps = raw_of(net, "gradcam", x, [2, 5])
    expected = (guided * resize(normalize(maps), SIZE)[:, None]).sum(1).clamp_min(0)
    torch.testing.assert_close(raw_of(net, "guided-gradcam", x, [2, 5]), expected, atol=1e-6, rtol=1e-4)


def test_concepts_are_weighted_by_their_effect_on_the_target() -> None:
    net, x = make("resnet"), pictures(1)
    [layer] = CAM(net).adapter.layers
    cells = cells_of(net, x)
    vectors, strengths = factorize(cells, 3, seed=1)
    expected = concept_map(net, layer, x, vectors, strengths[0], 2)
    found = raw_of(net, "dff", x, [2], components=3, seed=1)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("sscam", {"draws": 0}, "draws must be"),
        ("sscam", {"noise": -1.0}, "noise must be a positive number"),
        ("iscam", {"steps": 0}, "steps must be"),
        ("dff", {"components": 0}, "components must be a whole number from 1, got 0"),
    ],
)
def test_what_cannot_be_done_is_refused(method: str, options: dict, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        CAM(make("resnet"), method, **options)(pictures(1), 0)


def test_costs_per_channel_follow_their_options() -> None:
    assert get_method("sscam").cost(100, draws=2) == pytest.approx(1 + 100 * 0.9 * 2)
    assert get_method("iscam").cost(100, steps=3) == pytest.approx(1 + 100 * 0.9 * 3)


# A method that finds no layer does not end a comparison ---------------------------------------------------------------


def _twice(model: nn.Module, adapter: Adapter, inputs: object) -> Adapter:
    return Adapter(("no.such.layer",), adapter.layouts, "gradcam", adapter.origin)


@pytest.fixture
def lost():
    before = dict(vars(METHODS)["_records"])
    METHODS.add(Method("lost", "Lost", get_method("gradcam").contributions, "-", "-", layers=_twice))
    yield
    vars(METHODS)["_records"] = before


@pytest.mark.usefixtures("lost")
def test_a_layer_error_of_one_method_is_a_reason_to_skip_it_alone() -> None:
    net, x = make("resnet"), pictures(1)
    records, column = [get_method(one) for one in ("gradcam", "lost", "layercam")], [[ClassLogit(1)]]
    found = CAM(net).saliencies(records, x, lambda _: column, skip_undefined=True)
    assert [saliency.method.id for saliency in found] == ["gradcam", "layercam"]
    assert "no layer 'no.such.layer'" in found.skipped["lost"]
    with pytest.raises(LayerError, match=r"no layer 'no\.such\.layer'"):
        CAM(net).saliencies(records, x, lambda _: column)
    with pytest.raises(LayerError, match="no layer 'elsewhere'"):
        CAM(net, layers="elsewhere").saliencies(records, x, lambda _: column, skip_undefined=True)


@pytest.mark.usefixtures("lost")
def test_an_evaluation_skips_methods_that_find_no_layer(tmp_path) -> None:
    from PIL import Image

    picture = Image.effect_noise((48, 36), 60).convert("RGB")
    table = hf_cam.evaluate(
        "demo:vit", [picture], methods=["gradcam", "cam"], metrics=["complexity"], baselines=False, progress=False
    )
    assert [row.map for row in table.rows] == ["gradcam"]
    assert "one linear layer" in table.skipped["cam"]
