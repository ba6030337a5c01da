"""Targets that are made of others: one map for several, and the evidence for one side of a box."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hf_cam
from benchmarks.tiny_models import case_of
from hf_cam.errors import MethodError, OptionError, TargetError
from hf_cam.explanation import Explanation
from hf_cam.targets import BoxSide, ClassLogit, ListedBox, PromptSimilarity, QueryBox, SumOf
from nets import (
    THINGS,
    blip,
    classifier,
    clip,
    depth,
    embedder,
    explained,
    maskformer,
    owl,
    segformer,
    sure_detr,
    vilt,
)
from pictures import noise, pictures, to_tensor
from unchanged import unchanged

PROMPTS = ("a cat", "a red cup", "a dog")


@pytest.fixture(scope="module")
def sure():
    return sure_detr()


def same(first: Explanation, second: Explanation) -> None:
    np.testing.assert_allclose(first.raw, second.raw, rtol=1e-4, atol=1e-6 * np.abs(second.raw).max() + 1e-12)
    assert first.raw.any()


def the_sum(*targets):
    return lambda output: sum(target(output) for target in targets)


def test_a_sum_of_classes_has_the_map_of_the_sum_of_their_logits(photo):
    loaded = classifier()
    names = list(THINGS.values())
    [both] = explained(loaded, photo, target=SumOf([names[0], 2]))
    same(both, explained(loaded, photo, target=the_sum(ClassLogit(0), ClassLogit(2)))[0])
    assert both.label == f"{names[0]} + {names[2]}"
    singles = explained(loaded, photo, target=[[0, 2]])
    assert both.score == pytest.approx(np.mean([one.score for one in singles]))
    assert both.score_kind == "average probability"
    [alone] = explained(loaded, photo, target=SumOf(names[0]))
    assert (alone.label, alone.score, alone.score_kind) == (names[0], singles[0].score, "probability")


def test_a_sum_nests_and_repeats(photo):
    loaded = classifier()
    [nested] = explained(loaded, photo, target=SumOf([0, SumOf([1, ClassLogit(2)])]))
    [flat] = explained(loaded, photo, target=SumOf([0, 1, 2]))
    same(nested, flat)
    found = explained(loaded, photo, target=[[None, SumOf([0, 1]), 2]])
    assert len(found) == 3


def test_all_objects_of_a_class_have_one_map_with_all_their_boxes(photo, sure):
    label = explained(sure, photo)[0].label
    objects = explained(sure, photo, target=label)
    assert len(objects) > 1
    with unchanged(sure.model):
        [together] = explained(sure, photo, target=SumOf(label))
    same(together, explained(sure, photo, target=the_sum(*(one.origin.target for one in objects)))[0])
    assert together.label == f"{len(objects)} x {label}"
    assert together.boxes == together.outlines == tuple(one.box for one in objects)
    assert together.box is None
    drawn, bare = (np.asarray(together.overlay(outline=wanted)) for wanted in (True, False))
    for x0, y0, x1, _ in together.boxes:
        edge = (round(y0), round((x0 + x1) / 2))
        assert (drawn[edge] != bare[edge]).any()


def test_several_boxes_have_one_map(photo, sure):
    first, second, *_ = explained(sure, photo)
    [together] = explained(sure, photo, target=SumOf([first.box, second.box]))
    same(together, explained(sure, photo, target=the_sum(first.origin.target, second.origin.target))[0])
    [every] = explained(sure, photo, target=SumOf(None))
    assert len(every.boxes) == len(explained(sure, photo))


def test_a_sum_works_with_prompts_segments_depth_answers_and_images(photo):
    [prompts] = explained(clip(), photo, text=PROMPTS, target=SumOf(["a cat", 2]))
    same(
        prompts,
        explained(clip(), photo, text=PROMPTS, target=the_sum(PromptSimilarity(0), PromptSimilarity(2)))[0],
    )
    assert prompts.label == "a cat + a dog"
    [named] = explained(owl(), photo, text=PROMPTS, target=SumOf(["a cat", "a dog"]), threshold=0.0, top_k=1)
    assert len(named.boxes) == 2
    names = list(THINGS.values())
    [regions] = explained(segformer(), photo, target=SumOf(names[:2]))
    assert regions.mask.any()
    [segments] = explained(maskformer(), photo, target=SumOf([(10, 20), (100, 30)]))
    assert segments.heatmap.any()
    [places] = explained(depth(), photo, target=SumOf([(10, 20), (100, 30)]))
    assert places.score_kind == "sum of the targets"
    [answers] = explained(vilt(), photo, text=("what is it",), target=SumOf([0, 1]))
    assert answers.score_kind == "average probability"
    others = [noise(40, 60, 1), noise(40, 60, 2)]
    [alike] = explained(embedder(), photo, target=SumOf(others))
    singles = explained(embedder(), photo, target=[others])
    assert alike.score == pytest.approx(sum(one.score for one in singles), abs=1e-4)


def test_the_door_of_tensors_takes_sums_of_whatever_the_head_takes():
    loaded, pixels = classifier(), pictures(2)
    cam = hf_cam.CAM(loaded.model)
    expected = cam(pixels, [the_sum(ClassLogit(0), ClassLogit(1))] * 2)
    for target in (SumOf([0, 1]), SumOf([ClassLogit(0), ClassLogit(1)]), [SumOf([0, 1])] * 2):
        torch.testing.assert_close(cam(pixels, target), expected)


def test_a_sum_that_is_called_by_itself_takes_indices_and_callables_alone():
    logits = torch.tensor([1.0, 5.0, 3.0])
    assert float(SumOf([0, ClassLogit(2)])(logits)) == 4
    assert float(SumOf(np.array([0, 1]))(logits)) == 6
    with pytest.raises(TargetError, match="'cat'"):
        SumOf(["cat"])(logits)


@pytest.mark.parametrize("wrong", [[], [[1, 2]], [["cat"], "dog"]])
def test_a_sum_of_nothing_or_of_lists_is_refused(wrong):
    with pytest.raises(TargetError, match="SumOf"):
        SumOf(wrong)


def test_a_member_of_a_sum_that_is_no_target_is_refused_before_the_model_runs(photo):
    loaded, runs = classifier(), []
    loaded.model.register_forward_hook(lambda *_: runs.append(1))
    for wrong in ("zebra crossing", 99, object(), (3, 5), float("nan")):
        with pytest.raises(TargetError):
            explained(loaded, photo, target=SumOf([0, wrong]))
    assert not runs


def test_answers_that_take_a_forward_each_and_words_have_no_sum(photo):
    with pytest.raises(TargetError, match="pass them as a list"):
        explained(blip(), photo, text=("what is it",), target=SumOf(["a cat", "a dog"]))
    with pytest.raises(TargetError, match="SumOf does not apply to the words"):
        hf_cam.explain(photo, "demo:llava", text="What is it?", target=SumOf(["shirt"]))


def test_methods_that_contrast_classes_refuse_a_sum(photo):
    with pytest.raises(MethodError, match="'finercam' contrasts classes"):
        explained(classifier(), photo, "finercam", target=SumOf([0, 1]))


# Sides of boxes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "y0", "xmax", "bottom"])
def test_a_side_of_a_box_is_explained_by_its_coordinate(photo, sure, side):
    best = explained(sure, photo)[0]
    place = {"left": 0, "y0": 1, "xmax": 2, "bottom": 3}[side]
    name = ("left", "top", "right", "bottom")[place]
    [found] = explained(sure, photo, target=BoxSide(best.box, side))
    same(found, explained(sure, photo, target=QueryBox(best.origin.target.query, name))[0])
    assert found.label == f"{name} side of {best.label}"
    assert found.score == pytest.approx(best.box[place])
    assert found.score_kind == f"pixels from the {'top' if place % 2 else 'left'}"


def test_the_sides_of_all_objects_of_a_class_come_one_by_one_or_as_a_sum(photo, sure):
    label = explained(sure, photo)[0].label
    count = len(explained(sure, photo, target=label))
    assert len(explained(sure, photo, target=BoxSide(label, "left"))) == count
    [both] = explained(sure, photo, target=SumOf([BoxSide(label, "left"), BoxSide(label, "right")]))
    assert len(both.boxes) == 2 * count


def test_a_side_of_a_listed_box_is_explained_too(photo):
    from torchvision.models import detection

    torch.manual_seed(0)
    few = {"rpn_post_nms_top_n_test": 40, "box_detections_per_img": 6}
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=128, max_size=192, **few
    ).eval()
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=20)
    layer = {"processor": to_tensor, "layers": "backbone.fpn.inner_blocks.0", "method": "gradcam-elementwise"}
    [best] = hf_cam.explain(photo, model, top_k=1, **layer)
    with torch.no_grad():
        [output] = model([to_tensor(photo)])
    for place, side in ((0, "left"), (3, "bottom")):
        [found] = hf_cam.explain(photo, model, target=BoxSide(best.box, side), **layer)
        assert isinstance(found.origin.target, ListedBox)
        assert found.score == pytest.approx(best.box[place])
        assert float(found.origin.target(output)) == pytest.approx(best.box[place], abs=0.6)
    far = ListedBox((0.0, 0.0, 1.0, 1.0), 3, "right")
    assert float(far({"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)})) == 1


def test_a_side_is_refused_where_there_are_no_boxes_or_no_such_side(photo, sure):
    for loaded, settings in ((classifier(), {}), (segformer(), {}), (clip(), {"text": PROMPTS})):
        with pytest.raises(TargetError, match="predicts no boxes"):
            explained(loaded, photo, target=BoxSide(0, "left"), **settings)
    for wrong in ("middle", 0, None, "x2"):
        with pytest.raises(TargetError, match="left, top, right, bottom"):
            BoxSide("cat", wrong)
    for several in (["cat", "dog"], SumOf(["cat", "dog"])):
        with pytest.raises(TargetError, match="BoxSide takes one target"):
            BoxSide(several, "left")
    with pytest.raises(TargetError, match="no class is called"):
        explained(sure, photo, target=BoxSide("zebra crossing", "left"))
    with pytest.raises(TargetError, match="left, top, right, bottom"):
        explained(sure, photo, target=QueryBox(0, "middle"))


# Boxes stretched for themselves --------------------------------------------------------------------------------------


def test_each_box_is_stretched_for_itself_and_the_rest_is_empty(photo, sure):
    for settings in ({}, {"target": SumOf(None)}):
        plain = explained(sure, photo, **settings)
        for one, stretched in zip(plain, explained(sure, photo, renormalize="box", **settings), strict=True):
            inside = np.zeros_like(one.heatmap, bool)
            for x0, y0, x1, y1 in one.outlines:
                box = np.s_[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
                inside[box] = True
                assert np.ptp(one.heatmap[box]) == 0 or stretched.heatmap[box].max() == 1
            assert stretched.heatmap.min() >= 0
            assert not stretched.heatmap[~inside].any()
            np.testing.assert_array_equal(stretched.raw, one.raw)
            np.testing.assert_array_equal(one.renormalized().heatmap, stretched.heatmap)
            np.testing.assert_array_equal(one.overlay(renormalize="box"), stretched.overlay())


def test_a_box_alone_is_stretched_by_its_own_extremes(photo, sure):
    [one] = explained(sure, photo, target=3)
    x0, y0, x1, y1 = one.box
    box = np.s_[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
    inside = one.heatmap[box]
    np.testing.assert_allclose(one.renormalized().heatmap[box], (inside - inside.min()) / np.ptp(inside), atol=1e-5)


def test_stretching_is_refused_without_boxes_and_in_another_way(photo, sure):
    with pytest.raises(OptionError, match="needs the boxes of a detector"):
        explained(classifier(), photo, renormalize="box")
    with pytest.raises(OptionError, match="needs the boxes of a detector"):
        explained(sure, photo, renormalize="box", target=lambda output: output["logits"].sum())
    with pytest.raises(OptionError, match="has none"):
        explained(classifier(), photo)[0].renormalized()
    for wrong in ("boxes", True, 1, ["box"]):
        with pytest.raises(OptionError, match="renormalize must be 'box'"):
            explained(sure, photo, renormalize=wrong)
    with pytest.raises(OptionError, match="load_explanations"):
        hf_cam.Explain("demo:detr", renormalize="box")


def test_every_detector_with_boxes_takes_sums_sides_and_stretching():
    case = case_of("object-detection", "yolos")
    model = case.build()
    import transformers as hf

    processor = hf.YolosImageProcessor(size={"height": case.size[0], "width": case.size[1]})
    settings = {"processor": processor, "method": "gradcam-elementwise"}
    [found] = hf_cam.explain(noise(*case.size), model, target=SumOf([0, 1]), renormalize="box", **settings)
    assert len(found.boxes) == 2
