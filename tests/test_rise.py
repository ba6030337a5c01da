"""RISE and D-RISE, and tokens that are left out, against the papers' equations written out in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks.equations_variants import match, probability, rise
from hf_cam.cam import CAM
from hf_cam.capture.capture import capture
from hf_cam.capture.inputs import call
from hf_cam.errors import MethodError, OptionError
from hf_cam.methods import get_method
from hf_cam.methods.rise import DetectionMatch, RandomMasks, labels_of, matching, mean_kept
from hf_cam.methods.run import Run
from hf_cam.methods.tokens import scores_of_kept
from hf_cam.models.loading import load
from hf_cam.outputs import sample_of
from hf_cam.readings import Reading
from hf_cam.target_layers.infer import infer_adapter
from hf_cam.targets import BoxLogit, ClassLogit, ClassProbability, QueryLogit
from hf_cam.testing import check_model_untouched
from nets import explained, make, owl, tiny
from pictures import SIZE, pictures


def raw_of(net: nn.Module, method: str, x: Tensor, targets: list, **options) -> Tensor:
    [raw] = CAM(net, method, **options).saliency(x, lambda _: [targets]).raw
    return raw[0].clamp_min(0)


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_rise_is_the_mean_probability_over_the_masks_that_keep_a_pixel(name: str) -> None:
    net, x, samples, keep = make(name).double(), pictures(2).double(), 20, 0.4
    masks = RandomMasks.drawn(samples, 5, keep, SIZE, seed=3).smooth(0, samples).double()
    found = raw_of(net, "rise", x, [2, 5], samples=samples, cells=5, keep=keep, seed=3)
    for i, target in enumerate([2, 5]):
        expected = rise(lambda picture, target=target: probability(net, picture, target), x[i : i + 1], masks, keep)
        torch.testing.assert_close(found[i], expected, atol=1e-6, rtol=1e-6)  # softmax in float32


def test_rise_of_a_predicted_value_does_not_depend_on_where_its_zero_lies() -> None:
    net, x, reading = make("resnet").double(), pictures(2).double(), Reading(scale="values")
    found, other = (
        raw_of(net, "rise", x, [target] * 2, samples=20)
        for target in (ClassLogit(2, reading), lambda output: output.logits[2] - 1000)
    )
    assert found.any()
    torch.testing.assert_close(found, other, atol=1e-9, rtol=1e-9)


def test_masks_are_coarse_grids_that_are_enlarged_linearly_and_shifted() -> None:
    masks = RandomMasks.drawn(2000, 4, 0.3, (30, 50), seed=0)
    smooth = masks.smooth(0, 2000)
    assert smooth.shape == (2000, 30, 50)
    assert smooth.min() >= 0
    assert smooth.max() <= 1
    assert smooth.mean().item() == pytest.approx(0.3, abs=0.01)
    assert masks.shifts.amin(0).tolist() == [0, 0]
    assert masks.shifts.amax(0).tolist() == [7, 12]  # less than the side of a cell, 8 by 13 pixels
    unshifted = RandomMasks(masks.grids[:1], torch.zeros(1, 2, dtype=torch.long), (30, 50)).smooth(0, 1)[0]
    expected = nn.functional.interpolate(masks.grids[:1, None], size=(40, 65), mode="bilinear")[0, 0, :30, :50]
    torch.testing.assert_close(unshifted, expected)
    torch.testing.assert_close(smooth[5:9], masks.smooth(5, 9))


def test_masks_on_the_grid_of_tokens_are_those_of_the_pixels() -> None:
    masks = RandomMasks.drawn(200, 3, 0.5, SIZE, seed=1)
    kept, smooth = masks.on_grid((4, 6)), masks.smooth(0, 200)
    assert kept.dtype == torch.bool
    assert kept.shape == (200, 4, 6)
    centres = smooth[:, 8::16, 8::16]
    assert ((centres > 0.5) == kept).float().mean() > 0.9  # all but some at the corners of a mask's cells
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_scores_that_are_no_probabilities_start_at_zero() -> None:
    masks = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    two = lambda start, stop: masks[start:stop]  # noqa: E731
    scores = torch.tensor([[0.5, 0.25], [5.0, 3.0], [-1.0, -3.0]])
    found = mean_kept(scores, two, 0.5, [True, False, False])
    assert found.flatten(1).tolist() == [[0.5, 0.25], [2.0, 0.0], [2.0, 0.0]]


@pytest.mark.parametrize("constant", [1000.0, -1000.0])
def test_a_constant_added_to_a_score_changes_nothing(constant: float) -> None:
    net, x = make("resnet").double(), pictures(1).double()
    plain, moved = (
        CAM(net, "rise", samples=16)(x, [lambda output, by=by: output.logits[2] + by]) for by in (0.0, constant)
    )
    assert plain.any()
    torch.testing.assert_close(moved, plain, atol=1e-5, rtol=0)


def test_a_probability_is_taken_as_it_is() -> None:
    net, x = make("resnet"), pictures(1)
    by_logit, by_probability = (
        raw_of(net, "rise", x, [target], samples=16) for target in (ClassLogit(2), ClassProbability(2))
    )
    torch.testing.assert_close(by_logit, by_probability)


def test_rise_repeats_itself_and_follows_its_seed() -> None:
    net, x = make("resnet"), pictures(1)
    one, again, other = (CAM(net, "rise", samples=8, seed=seed)(x, 1) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 0}, "samples must be a whole number from 1"),
        ({"cells": 0}, "cells must be a whole number from 1"),
        ({"keep": 1.0}, "keep must be a probability between 0 and 1"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict, words: str) -> None:
    net = make("resnet")
    with pytest.raises(OptionError, match=words):
        check_model_untouched(net, lambda: CAM(net, "rise", **options)(pictures(1), 0))


# Tokens that are left out ---------------------------------------------------------------------------------------------


def run_of(net: nn.Module, x: Tensor, targets: list[int]) -> Run:
    adapter = infer_adapter(net)
    with capture(net, adapter.layers, {"pixel_values": x}, gradients=False) as captured:
        return Run(net, {"pixel_values": x}, captured, adapter, [ClassLogit(one) for one in targets], SIZE)


def masked_out(net: nn.Module, x: Tensor, kept: Tensor, prefix: int) -> Tensor:
    """The logits when the keys of the other tokens are masked out of every attention."""
    keys = torch.cat([torch.ones(prefix, dtype=torch.bool), kept.flatten()])
    real = nn.functional.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *args, **kwargs) -> Tensor:
        kwargs.pop("attn_mask", None)
        mask = torch.where(keys, 0.0, -torch.inf).to(query)
        return real(query, key, value, attn_mask=mask[None, None, None].expand(*query.shape[:3], -1), **kwargs)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(nn.functional, "scaled_dot_product_attention", attend)
        return net(x).logits[0]


@pytest.mark.parametrize("name", ["vit", "deit"])
def test_leaving_tokens_out_is_masking_their_keys_out_of_every_attention(name: str) -> None:
    net, x = make(name).double(), pictures(2).double()
    kept = torch.rand(9, 4, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    prefix = 2 if name == "deit" and hasattr(net.deit.embeddings, "distillation_token") else 1
    found = check_model_untouched(net, lambda: scores_of_kept(run_of(net, x, [2, 5]), kept.flatten(1)))
    for i, target in enumerate([2, 5]):
        expected = torch.stack([masked_out(net, x[i : i + 1], one, prefix)[target] for one in kept])
        torch.testing.assert_close(found[i], expected, atol=1e-12, rtol=1e-9)
    assert found[0].std() > 1e-6


def test_rise_and_occlusion_leave_tokens_out() -> None:
    net, x = make("vit"), pictures(2)
    dropped = raw_of(net, "rise", x, [2, 5], samples=40, cells=3, fill="drop")
    assert dropped.shape == (2, 4, 6)
    masks = RandomMasks.drawn(40, 3, 0.5, SIZE, seed=0).on_grid((4, 6))
    targets = [lambda output, i=i: output.logits.softmax(0)[i] for i in (2, 5)]
    run = run_of(net, x, [2, 5])
    scores = scores_of_kept(Run(net, run.inputs, run.captured, run.adapter, targets, SIZE), masks.flatten(1))
    expected = torch.einsum("bn,nhw->bhw", scores, masks.float()) / 20
    torch.testing.assert_close(dropped, expected, atol=1e-6, rtol=1e-5)
    hidden = raw_of(net, "occlusion", x, [2, 5], patch=16, stride=16, fill="drop")
    assert hidden.shape == (2, *SIZE)
    assert hidden.any()


@pytest.mark.parametrize("name", ["convnext", "swin", "beit"])
def test_leaving_tokens_out_is_refused_where_there_is_no_set_of_tokens(name: str) -> None:
    net = make(name)
    with pytest.raises(MethodError, match=r"fill='drop' leaves tokens out, which is not defined here.*hides pixels"):
        check_model_untouched(net, lambda: CAM(net, "rise", samples=4, fill="drop")(pictures(1), 0))


def test_leaving_tokens_out_costs_less() -> None:
    record = get_method("rise")
    assert record.cost() == 4001
    assert record.cost(samples=100, fill="drop") == pytest.approx(56)


# D-RISE ---------------------------------------------------------------------------------------------------------------


def detr() -> nn.Module:
    net = tiny(
        hf.YolosForObjectDetection,
        image_size=SIZE,
        num_hidden_layers=2,
        num_detection_tokens=5,
        num_labels=3,
        initializer_range=0.3,
    )
    with torch.no_grad():
        net.vit.embeddings.detection_tokens.normal_(generator=torch.Generator().manual_seed(0))  # zeros by default
    return net


def test_d_rise_is_the_mean_match_with_the_detection() -> None:
    net, x, samples = detr().double(), pictures(1).double(), 12
    masks = RandomMasks.drawn(samples, 4, 0.5, SIZE, seed=2).smooth(0, samples).double()
    expected = rise(match(net, x, 1), x, masks, 0.5)
    found = raw_of(net, "d-rise", x, [QueryLogit(1, 0)], samples=samples, cells=4, seed=2)[0]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


def test_three_prompts_are_three_classes_none_of_which_is_no_object(photo: Any) -> None:
    prompts = ["a cat", "a dog", "a red cup"]  # a config without names of classes has two of its own
    [found] = explained(owl(), photo, "d-rise", text=prompts, threshold=0.0, top_k=1, method_options={"samples": 4})
    output = sample_of(call(found.origin.model, found.origin.inputs), 0, 1)
    match = matching(found.origin.target, output, labels_of(found.origin.model))
    torch.testing.assert_close(match.scores, output["logits"][found.origin.target.query].sigmoid())


def test_a_listed_box_matches_the_boxes_of_its_class() -> None:
    target = BoxLogit((0.0, 0.0, 10.0, 20.0), 7)
    match = matching(target, None, 0)
    listed = {
        "boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 20.0]]),
        "labels": torch.tensor([7, 3]),
        "scores": torch.tensor([0.8, 0.9]),
    }
    assert match(listed).item() == pytest.approx(0.5 * 0.8)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}
    assert match(nothing).item() == 0.0
    assert isinstance(match, DetectionMatch)


def test_d_rise_is_defined_for_detections_alone() -> None:
    with pytest.raises(MethodError, match="'d-rise' explains the detections of a detector; 'rise' takes any target"):
        CAM(make("resnet"), "d-rise")(pictures(1), 0)


def test_detections_of_one_picture_get_maps_of_their_own() -> None:
    net, x = detr(), pictures(1)
    one, other = (raw_of(net, "d-rise", x, [QueryLogit(query, 0)], samples=16).flatten() for query in (0, 3))
    assert spearmanr(one, other).statistic < 0.99


@pytest.mark.parametrize(
    ("method", "options", "forwards"),
    [
        ("rise", {"samples": 4}, 5),
        ("occlusion", {"patch": 32, "stride": 32}, 51),  # of a picture of 224 by 224
        ("integrated-gradients", {"steps": 3}, 4),
        ("smoothgrad", {"samples": 3}, 4),
        ("smoothgrad", {"samples": 3, "base": "input-x-gradient"}, 4),
        ("gradient", {}, 1),
        ("input-x-gradient", {}, 1),
        ("fullgrad", {}, 1),
        ("guided-gradcam", {}, 2),
    ],
)
def test_what_depends_on_no_layer_runs_once_for_several(
    method: str, options: dict[str, Any], forwards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("demo:segformer").model
    kind, counts = type(model), list[int]()
    forward = kind.forward

    def counted(*args: Any, **named: Any) -> Any:
        counts.append(len(named["pixel_values"]))
        return forward(*args, **named)

    cam = CAM(model, method, **options)
    assert len(cam.adapter.layers) > 1
    pixels = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    cam(pixels, (100, 100))
    monkeypatch.setattr(kind, "forward", counted)
    cam(pixels, (100, 100))
    assert sum(counts) == forwards
    if not cam.method.differentiates:  # a backward pass is priced in forwards, too
        assert sum(counts) == cam.method.cost(**options)
