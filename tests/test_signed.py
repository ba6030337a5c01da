"""Signed maps: what speaks for a target and what against it, through every door."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hf_cam
from hf_cam import CAM
from hf_cam.data.rows import explanation_of, explanations_of, row_of
from hf_cam.errors import MethodError, OptionError
from hf_cam.explainer import Explainer
from hf_cam.images.drawing import shown
from hf_cam.images.geometry import Axis, Geometry
from hf_cam.images.mapped import GridMap
from hf_cam.interfaces.cli import main
from hf_cam.maps import fuse_signed, normalize_signed
from hf_cam.methods import get_method, list_methods
from hf_cam.testing.laws import pictures
from nets import FOR_CLASSES, classifier, explained, make
from pictures import SIZE

SIGNED = (
    "gradcam", "hirescam", "xgradcam", "shapleycam", "ablationcam", "finercam", "gradeclip", "attnlrp", "libracam",
    "libragrad", "input-x-gradient", "integrated-gradients", "occlusion", "dff", "cam",
)  # fmt: skip
FEW = {"integrated-gradients": {"steps": 3}, "occlusion": {"patch": 16, "stride": 16}}


def test_the_methods_that_have_a_sign_are_these() -> None:
    assert {name for name, one in list_methods().items() if not one.why_unsigned({})} == set(SIGNED)


@pytest.mark.parametrize("method", [name for name in SIGNED if name in FOR_CLASSES and name != "dff"])
def test_a_signed_map_lies_on_both_sides_of_zero_and_peaks_at_one(method: str) -> None:
    net, x = make("vit"), pictures(2)
    cam = CAM(net, method, **FEW.get(method, {}))
    targets = [3, 4] if method == "finercam" else [1, 2]
    maps, plain = cam(x, targets, signed=True), cam(x, targets)
    assert maps.shape == plain.shape
    torch.testing.assert_close(maps.abs().amax((1, 2)), torch.ones(2))
    assert maps.min() < 0 <= plain.min()


@pytest.mark.parametrize("method", [name for name in list_methods() if name not in SIGNED])
def test_other_methods_say_in_one_sentence_why_they_have_none(method: str) -> None:
    with pytest.raises(MethodError, match=rf"^'{method.replace('+', '.')}' has no signed map, because [^.]+ have$"):
        CAM(make("vit"), method)(pictures(1), 1, signed=True)


@pytest.mark.parametrize(("method", "base", "has"), [
    ("smoothgrad", "input-x-gradient", True), ("smoothgrad", "gradient", False), ("smoothgrad", "layercam", False),
    ("finercam", "hirescam", True), ("finercam", "layercam", False),
])  # fmt: skip
def test_methods_on_another_one_have_its_sign(method: str, base: str, has: bool) -> None:
    assert (not get_method(method).why_unsigned({"base": base})) == has


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 5, 3, padding=1, stride=4)
        self.head = nn.Linear(5, 3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.features(pixel_values).mean((2, 3)))


def test_the_signed_map_is_the_sum_of_the_contributions_scaled_by_its_peak() -> None:
    torch.manual_seed(0)
    net, x = Pooled().eval(), torch.randn(2, 3, 16, 24)
    contributions = (net.features(x) * net.head.weight[1][:, None, None]).sum(1).detach()
    scaled = contributions / contributions.abs().amax((1, 2), keepdim=True)
    expected = F.interpolate(scaled[:, None], size=(16, 24), mode="bilinear")[:, 0]
    expected = expected / expected.abs().amax((1, 2), keepdim=True)
    torch.testing.assert_close(CAM(net, layers="features")(x, 1, signed=True), expected)


def test_what_speaks_for_one_class_of_two_speaks_against_the_other() -> None:
    net, x = Pooled().eval(), torch.randn(1, 3, 16, 24)
    cam = CAM(net, layers="features")
    first = cam(x, lambda output: output[0] - output[1], signed=True)
    torch.testing.assert_close(cam(x, lambda output: output[1] - output[0], signed=True), -first)


def test_several_layers_are_each_scaled_by_their_peak() -> None:
    first, second = torch.tensor([[-4.0, 2.0]]), torch.tensor([[1.0, 1.0]])
    torch.testing.assert_close(fuse_signed([first, second], (1, 2)), torch.tensor([[0.0, 1.0]]))
    assert normalize_signed(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("settings", [{}, {"aug_smooth": True}])
def test_raw_is_signed_whatever_the_heatmap_shows(settings: dict[str, bool], photo) -> None:
    [plain] = explained(classifier(), photo, "hirescam", **settings)
    [signed] = explained(classifier(), photo, "hirescam", signed=True, **settings)
    assert plain.raw.min() < 0 < plain.raw.max()
    np.testing.assert_array_equal(plain.raw, signed.raw)
    assert plain.heatmap.min() == 0
    assert not plain.signed
    assert signed.signed
    assert signed.heatmap.min() < 0
    assert np.abs(signed.heatmap).max() == pytest.approx(1)


def test_the_counterfactual_is_the_other_side_of_the_map(photo) -> None:
    [found] = explained(classifier(), photo, "hirescam", target=1)
    against = found.counterfactual()
    assert against.label == f"against {found.label}"
    np.testing.assert_array_equal(against.raw, -found.raw)
    assert against.heatmap.min() == 0
    assert against.heatmap.max() == pytest.approx(1)
    assert not (against.heatmap * found.heatmap)[::9, ::9].max() > 0.5
    np.testing.assert_array_equal(against.counterfactual().heatmap, found.heatmap)
    with pytest.raises(OptionError, match="shows what speaks against"):
        against.check()


def test_there_is_no_counterfactual_of_a_method_without_a_sign(photo) -> None:
    [found] = explained(classifier(), photo, "layercam")
    with pytest.raises(MethodError, match="'layercam' has no signed map, because it keeps positive gradients alone"):
        found.counterfactual()


def test_evidence_against_alone_is_evidence_of_a_signed_map() -> None:
    same = Geometry((2, 3), (2, 3), Axis(1.0, 0.0), Axis(1.0, 0.0), (0, 0, 2, 3))
    raw = (-np.eye(2, 3, dtype=np.float32),)
    assert GridMap(raw, same).evidence == "none"
    assert GridMap(raw, same, signed=True).evidence == "image"
    assert GridMap(raw, same, signed=True).heatmap().min() == -1


def test_a_signed_explanation_survives_every_form_that_it_is_kept_in(photo) -> None:
    [found] = explained(classifier(), photo, "hirescam", signed=True)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.heatmap, found.heatmap)
    described = explanation_of(json.loads(found.to_json()), photo)
    assert described.signed
    np.testing.assert_allclose(described.heatmap, found.heatmap, atol=1e-3)
    [read] = explanations_of(row_of([found]), photo)
    np.testing.assert_allclose(read.heatmap, found.heatmap, atol=2e-3)


def test_a_component_has_no_sign_to_show(photo) -> None:
    with pytest.raises(OptionError, match="choose one"):
        explained(classifier(), photo, "gradcam", signed=True, eigen_smooth=True)
    with pytest.raises(OptionError, match="choose one"):
        explained(classifier(), photo, "gradcam", signed=True, renormalize="box")
    with pytest.raises(OptionError, match="signed must be True or False"):
        explained(classifier(), photo, "gradcam", signed="yes")


def test_zero_keeps_the_colours_of_the_image_and_the_two_sides_are_blue_and_red(photo) -> None:
    [found] = explained(classifier(), photo, "hirescam", signed=True)
    drawn, image = (np.asarray(one, np.int32) for one in (found.overlay(alpha=1.0), photo))
    low, high = (np.unravel_index(choose(found.heatmap), found.heatmap.shape) for choose in (np.argmin, np.argmax))
    assert drawn[high][0] > drawn[high][2] + 50
    assert drawn[low][2] > drawn[low][0] + 20
    near = np.abs(found.heatmap) < 0.002
    assert near.any()
    assert np.abs(drawn - image)[near].max() <= 2


def test_single_pixels_of_either_sign_are_brightened_for_the_picture() -> None:
    pixels = np.zeros((60, 80), np.float32)
    pixels[::7, ::7], pixels[3::7, 3::7], pixels[30, 40] = 0.1, -0.1, -1
    drawn = shown(pixels)
    assert np.abs(drawn).mean() > 5 * np.abs(pixels).mean()
    assert drawn.min() < -0.5
    assert drawn.max() > 0.3


def test_every_door_takes_it(photo, vit_folder: Path, picture_file: Path, tmp_path: Path) -> None:
    [found] = hf_cam.explain(photo, model=str(vit_folder), method="hirescam", signed=True)
    assert found.heatmap.min() < 0
    [piped] = hf_cam.pipeline("image-cam", model=str(vit_folder))(photo, method="hirescam", signed=True)
    np.testing.assert_allclose(piped["heatmap"], found.heatmap, atol=1e-5)
    [compared] = hf_cam.compare(photo, str(vit_folder), methods=["hirescam"], signed=True).explanations
    np.testing.assert_allclose(compared.heatmap, found.heatmap, atol=1e-5)
    given = ["explain", str(picture_file), "--model", str(vit_folder), "--method", "hirescam", "--signed"]
    assert main([*given, "--out", str(tmp_path / "signed.png")]) == 0
    assert (tmp_path / "signed.png").is_file()
    assert Explainer(classifier(), "hirescam").cam(torch.rand(1, 3, *SIZE), 1, signed=True).min() < 0
