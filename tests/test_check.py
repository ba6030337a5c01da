"""An explanation that judges itself."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import hf_cam
from benchmarks.scenes import scenes
from hf_cam.check import Check, Origin, check
from hf_cam.errors import OptionError
from hf_cam.metrics.verdict import MUCH
from hf_cam.readings import Reading
from hf_cam.targets import ClassLogit
from hf_cam.testing.metrics import PatchReader
from hf_cam.zoo import SCENE
from nets import NETS, READ
from pictures import SIZE as PICTURE
from unchanged import unchanged


@pytest.fixture(scope="module")
def scene():
    return scenes("test", 8, seed=5)[3]


@pytest.fixture(scope="module")
def explained(scene):
    return hf_cam.explain(scene.image, "demo:convnext", target=scene.labels[0])[0]


def test_a_map_that_reads_the_model_is_supported(explained) -> None:
    found = explained.check()
    assert found.passed
    assert found.verdict == "supports"
    assert found.drop > found.chance
    assert found.kept > found.chance_kept
    assert 0.2 < found.energy <= 1
    assert found.confidence == pytest.approx(explained.score, abs=1e-4)
    assert f"from {found.confidence:.2f} to {found.confidence - found.drop:.2f}" in str(found)
    assert explained.check() == found


def test_a_map_turned_round_is_contradicted(explained) -> None:
    origin = dataclasses.replace(explained.origin, map=1 - explained.origin.map)
    found = check(origin, explained.raw.max() - explained.raw)
    assert found.verdict == "contradicts"
    assert "no better than chance" in found.flags
    assert "do not rely on it" in str(found)


def test_an_empty_map_is_flagged(explained) -> None:
    origin = dataclasses.replace(explained.origin, map=torch.zeros_like(explained.origin.map))
    found = check(origin, np.zeros_like(explained.raw))
    assert {"constant map", "no gradient"} <= set(found.flags)
    assert found.verdict == "undecided"
    assert found.energy == 0
    assert "empty" in str(found)


PATCH = READ.float()
SHIFTED = PATCH.roll((12, 16), (0, 1))
SIZE = (24, 32)


def origin_on_a_patch(saliency, index=1, model=None):
    """What a map of a picture is made from that is bright in the one patch that the model reads."""
    pixels = (0.05 + 0.95 * PATCH).expand(1, 3, *SIZE)
    return Origin(model or PatchReader(), {"pixel_values": pixels}, ClassLogit(index), saliency)


@pytest.mark.parametrize(
    ("index", "found", "raw", "verdict", "flags", "words"),
    [
        pytest.param(1, PATCH, 1, "supports", (), "from 0.98 to", id="the perfect map"),
        pytest.param(1, SHIFTED, 1, "contradicts", ("no better than chance",), "do not rely", id="the map shifted"),
        pytest.param(
            1, 1 - PATCH, 1, "contradicts", ("no better than chance", "diffuse"), "most of the image", id="its inverse"
        ),
        pytest.param(1, 0 * PATCH, 0, "undecided", ("constant map", "no gradient"), "The map is empty", id="empty"),
        pytest.param(1, 0 * PATCH + 0.5, 1, "undecided", ("constant map",), "the same everywhere", id="an even map"),
        pytest.param(
            0, PATCH, 1, "undecided", ("target probability tiny", "indifferent to the image"), "tiny", id="unlikely"
        ),
    ],
)
def test_each_verdict_and_flag_has_its_case_on_a_model_that_reads_one_patch(
    index, found, raw, verdict, flags, words
) -> None:
    result = check(origin_on_a_patch(found, index), np.full((6, 8), float(raw)))
    assert result.verdict == verdict
    assert result.flags == flags
    assert result.passed is (verdict == "supports")
    assert words in str(result)
    sure = torch.tensor([-2.0, 2.0]).softmax(0)[index].item()
    assert result.confidence == pytest.approx(sure, abs=1e-5)


class TwoCornersReader(nn.Module):
    """A classifier whose class 1 means that the upper left or the lower right corner is bright."""

    def forward(self, pixel_values):
        seen = torch.stack([pixel_values[..., :5, :5].mean((1, 2, 3)), pixel_values[..., -5:, -5:].mean((1, 2, 3))])
        return torch.tensor([-4.0, 4.0]) * (2 * seen.amax(0)[:, None] - 1)


def test_one_of_two_cues_is_supported_since_it_is_enough_although_it_is_not_needed() -> None:
    saliency = torch.zeros(SIZE)
    saliency[:5, :5] = 1
    pixels = torch.zeros(1, 3, *SIZE)
    pixels[..., :5, :5] = pixels[..., -5:, -5:] = 1
    result = check(Origin(TwoCornersReader(), {"pixel_values": pixels}, ClassLogit(1), saliency), saliency.numpy())
    assert result.verdict == "supports"
    assert result.necessity == pytest.approx(0, abs=0.15)
    assert result.sufficiency > 0.9


def test_a_map_whose_peak_lies_beside_what_counts_is_not_supported_by_the_rest_of_it() -> None:
    pixels, saliency = torch.zeros(1, 3, *SIZE), torch.zeros(SIZE)
    pixels[..., :5, :5] = 1
    saliency[:5, :5] = 0.9
    beside = saliency.clone()
    saliency[:4, :4], beside[10:14, 20:24] = 1, 1  # as many pixels
    origin = Origin(TwoCornersReader(), {"pixel_values": pixels}, ClassLogit(1), saliency)
    on, off = (check(dataclasses.replace(origin, map=one), one.numpy()) for one in (saliency, beside))
    assert on.verdict == "supports"
    assert off.contribution > 0.06  # the strongest 3% alone would do
    assert off.verdict != "supports"
    assert f"they and the peak have {off.excess:.1f} times an even share" in str(off)


class FrameReader(nn.Module):
    """A classifier whose class 1 means that half or more of the picture's frame is bright."""

    def forward(self, pixel_values):
        whole, inner = pixel_values.sum((1, 2, 3)), pixel_values[..., 2:-2, 2:-2].sum((1, 2, 3))
        bright = (whole - inner) / (3 * (SIZE[0] * SIZE[1] - (SIZE[0] - 4) * (SIZE[1] - 4)))
        return torch.tensor([-4.0, 4.0]) * (4 * bright - 2).clamp(-1, 1)[:, None]


def test_a_part_of_a_wide_cue_is_supported_although_the_rest_of_it_would_do() -> None:
    pixels = torch.ones(1, 3, *SIZE)
    pixels[..., 2:-2, 2:-2] = 0
    on, beside = torch.zeros(2, *SIZE)
    on[6:18, :2] = on[6:18, -2:] = 1
    beside[6:18, 6:8] = beside[6:18, -8:-6] = 1
    black = [np.zeros((*SIZE, 3), np.uint8)]
    hit, miss = (
        check(Origin(FrameReader(), {"pixel_values": pixels}, ClassLogit(1), saliency), saliency.numpy(), others=black)
        for saliency in (on, beside)
    )
    assert (hit.verdict, miss.verdict) == ("supports", "contradicts")
    assert abs(hit.necessity) < 0.1
    assert hit.contribution > 0.06 > 0.01 > miss.contribution


class EverywhereReader(nn.Module):
    """A classifier whose class 1 means that half of the picture or more is bright, wherever."""

    def forward(self, pixel_values):
        return torch.tensor([-4.0, 4.0]) * (pixel_values.mean((1, 2, 3))[:, None] - 0.5)


def test_a_map_of_a_model_that_reads_the_whole_picture_alike_stays_undecided() -> None:
    pixels = torch.ones(1, 3, *SIZE)
    origin = Origin(EverywhereReader(), {"pixel_values": pixels}, ClassLogit(1), SHIFTED)
    black = np.zeros((*SIZE, 3), np.uint8)
    result = check(origin, np.ones((6, 8)), others=[black])
    assert result.verdict == "undecided"
    assert not result.passed
    assert "neither supports nor contradicts" in str(result)


class SizeReader(nn.Module):
    """A regression that predicts how bright the patch is, in some unit."""

    def forward(self, pixel_values):
        return 30 + 20 * (pixel_values * PATCH).sum((1, 2, 3))[:, None] / PATCH.sum() / 3


@pytest.mark.parametrize(("found", "verdict"), [(PATCH, "supports"), (SHIFTED, "contradicts")])
def test_a_predicted_value_is_judged_in_its_own_unit_as_output_declares_it(found, verdict) -> None:
    target = ClassLogit(0, Reading(scale="values"))  # what explain(output="regression") explains
    origin = dataclasses.replace(origin_on_a_patch(found, model=SizeReader()), target=target)
    result = check(origin, found.numpy())
    assert (result.verdict, result.flags == ()) == (verdict, verdict == "supports")
    assert result.confidence == pytest.approx(50)


class BlankFails(PatchReader):
    """A classifier that returns NaN for an image of one colour."""

    def forward(self, pixel_values):
        blank = pixel_values.flatten(1).std(1) < 0.05
        return super().forward(pixel_values).masked_fill(blank[:, None], torch.nan)


def test_scores_that_are_not_finite_are_named_and_not_taken_for_a_model_that_sees_nothing() -> None:
    result = check(origin_on_a_patch(PATCH, model=BlankFails()), PATCH.numpy())
    assert result.flags == ("score not finite",)
    assert "run it in a wider dtype" in str(result)
    assert "hardly changes" not in str(result)


def on_a_segmenter(noise: torch.Tensor, origin: Origin) -> Check:
    drawn = functional.interpolate(noise[None, None], size=tuple(origin.map.shape), mode="bilinear")[0, 0]
    low, high = drawn.aminmax()
    return check(dataclasses.replace(origin, map=(drawn - low) / (high - low)), noise.numpy())


def test_specks_all_over_the_image_are_judged_by_their_mean_over_squares() -> None:
    found = hf_cam.explain(str(SCENE), model="demo:segformer")[0]
    assert "scattered" not in found.check().flags
    noise = torch.rand(96, 128, generator=torch.Generator().manual_seed(0))
    result = on_a_segmenter(noise, found.origin)
    assert (result.verdict, "scattered" in result.flags) == ("contradicts", True)
    assert "mean over squares" in str(result)
    lucky = on_a_segmenter(torch.rand(48, 64, generator=torch.Generator().manual_seed(1)), found.origin)
    assert lucky.excess > MUCH, "some of its specks lie on the object"
    assert {"scattered", "no better than chance"} <= set(lucky.flags)
    assert lucky.verdict == "undecided"


def test_a_map_of_several_layers_is_judged_by_all_of_them() -> None:
    found = hf_cam.explain(str(SCENE), model="demo:segformer", method="gradcam")[0]
    assert len(found.layers) > 1
    assert not (found.raw > 0).any(), "the first layer says nothing"
    assert "no gradient" not in found.check().flags


def test_a_map_that_ends_at_the_windows_of_its_model_is_flagged() -> None:
    swin = NETS["swin"]()
    assert swin.config.window_size == 4
    block, spot = np.zeros((6, 9)), np.zeros((6, 9))
    block[:, :4] = spot[2:4, :4] = 1
    height, width = PICTURE
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    saliency = torch.zeros(height, width)
    saliency[:, : width // 2] = 1
    origin = Origin(swin, {"pixel_values": pixels}, ClassLogit(1), saliency)
    assert "hard edge of windows" in check(origin, block).flags
    assert "hard edge of windows" not in check(origin, spot).flags


def test_the_pixels_of_other_images_can_be_given(explained, scene) -> None:
    assert explained.check(others=[scene.image]).kept != explained.check().kept
    with pytest.raises(OptionError, match="list of images"):
        explained.check(others=scene.image)


def test_a_check_takes_98_forwards_and_leaves_the_model_as_it_was() -> None:
    seen = []

    def count(module, args, kwargs):
        seen.append(len(kwargs["pixel_values"]))

    model = PatchReader()
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    with unchanged(model):
        check(origin_on_a_patch(PATCH, model=model), np.ones((6, 8)))
    hook.remove()
    assert sum(seen) == 98


def test_an_unlikely_target_is_flagged(scene) -> None:
    first, *_, last = hf_cam.explain(scene.image, "demo:convnext", top_k=10)
    assert last.score < 0.05 < first.score
    assert "target probability tiny" in last.check().flags
    assert "target probability tiny" not in first.check().flags


def test_a_prompt_is_judged_by_its_share_among_the_prompts() -> None:
    [found, *_] = hf_cam.explain(str(SCENE), model="demo:clip", text=["a bag", "a coat", "a sneaker"])
    assert found.label == "a bag"
    judged = found.check()
    assert judged.confidence == pytest.approx(found.score, abs=1e-6)
    assert judged.verdict == "supports"


def test_every_head_and_batch_can_be_checked(scene) -> None:
    for model, settings in (("demo:segformer", {}), ("demo:detr", {}), ("demo:clip", {"text": ["a bag", "a coat"]})):
        for batch in hf_cam.explain([scene.image, scene.image], model, method="hirescam", **settings):
            found = [explanation.check() for explanation in batch[:2]]
            assert all(np.isfinite([one.drop, one.chance, one.energy]).all() for one in found)


def test_a_pickled_explanation_keeps_its_map_and_refuses_to_be_checked(explained) -> None:
    copy = pickle.loads(pickle.dumps(explained))
    assert np.array_equal(copy.heatmap, explained.heatmap)
    with pytest.raises(OptionError, match="explain the image again"):
        copy.check()
