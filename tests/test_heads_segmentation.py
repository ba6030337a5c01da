"""What segmenters have to say: of regions, pixels, masks and segments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

import hf_cam
from benchmarks.tiny_models import case_of, cases, words_tokenizer
from hf_cam.errors import HFCamError, TargetError
from hf_cam.heads import head_of
from hf_cam.models.loading import LoadedModel
from hf_cam.request import Request
from hf_cam.targets import PixelLogit, RegionLogit, SegmentLogit
from hf_cam.zoo import SCENE
from nets import LONGEST, THINGS, explained, maskformer, segformer
from pictures import resized


def test_every_predicted_class_gets_the_map_of_its_region(photo):
    loaded = segformer()
    found = explained(loaded, photo)
    with torch.no_grad():
        output = loaded.model(**loaded.inputs([photo]))
    expected = loaded.processor.post_process_semantic_segmentation(output, target_sizes=[(128, 192)])[0].numpy()
    assert {one.label for one in found} == {THINGS[int(index)] for index in np.unique(expected)}
    for one in found:
        index = list(THINGS.values()).index(one.label)
        assert (one.mask == (expected == index)).mean() > 0.99
    areas = [one.mask.sum() for one in found]
    assert areas == sorted(areas, reverse=True)


def test_a_region_sums_the_logits_where_the_class_is_predicted(photo):
    loaded = segformer()
    [found] = explained(loaded, photo, top_k=1)
    index = list(THINGS.values()).index(found.label)
    with torch.no_grad():
        logits = loaded.model(**loaded.inputs([photo])).logits[0]
    region = logits.argmax(0) == index
    [same] = explained(loaded, photo, target=lambda output: output.logits[index][region].sum())
    np.testing.assert_allclose(found.heatmap, same.heatmap, atol=1e-5)
    assert RegionLogit(index, region)({"logits": logits}) == pytest.approx(float(logits[index][region].mean()))


def test_a_pixel_explains_what_is_predicted_there(photo):
    loaded = segformer()
    [found] = explained(loaded, photo, target=(150, 20))
    assert found.mask[20, 150]
    with torch.no_grad():
        logits = loaded.model(**loaded.inputs([photo])).logits[0]
    row, column = 20 * logits.shape[1] // 128, 150 * logits.shape[2] // 192
    index = int(logits[:, row, column].argmax())
    assert found.label == THINGS[index]
    [same] = explained(loaded, photo, target=PixelLogit(index, row, column))
    np.testing.assert_array_equal(found.heatmap, same.heatmap)


def test_a_mask_explains_the_class_that_fills_it(photo):
    loaded = segformer()
    mask = np.zeros((128, 192), bool)
    mask[32:64, 96:160] = True
    [found] = explained(loaded, photo, target=mask)
    with torch.no_grad():
        logits = loaded.model(**loaded.inputs([photo])).logits[0]
    h, w = logits.shape[1:]
    inside = logits[:, h * 32 // 128 : h * 64 // 128, w * 96 // 192 : w * 160 // 192]
    assert found.label == THINGS[int(inside.mean((1, 2)).argmax())]
    np.testing.assert_array_equal(found.mask, mask)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ((500, 3), "outside the image"),
        (np.ones((4, 4), bool), "the mask is 4 x 4"),
        (np.zeros((128, 192), bool), "marks no pixel"),
        ("zebra", "no class is called"),
    ],
)
def test_a_place_that_is_not_in_the_image_is_refused(photo, target, message):
    with pytest.raises(TargetError, match=message):
        explained(segformer(), photo, target=target)


# Segments ------------------------------------------------------------------------------------------------------------


def test_segments_are_those_of_the_models_own_processor():
    loaded, scene = hf_cam.load("demo:maskformer"), hf_cam.load_image(SCENE)
    found = explained(loaded, scene)
    with torch.no_grad():
        output = loaded.model(**loaded.inputs([scene]))
    settings = {"overlap_mask_area_threshold": 0.0, "target_sizes": [(scene.height, scene.width)]}
    [expected] = loaded.processor.post_process_panoptic_segmentation(output, **settings)
    segments = {loaded.id2label[one["label_id"]]: one for one in expected["segments_info"]}
    assert sorted(one.label for one in found) == sorted(segments)
    for one in found:
        assert one.score == pytest.approx(segments[one.label]["score"], abs=1e-5)
        nearest = (expected["segmentation"] == segments[one.label]["id"]).numpy()  # up to the neighbours' halves
        assert 0.01 < one.mask.mean() < nearest.mean()
        assert (one.mask & ~nearest).mean() < 0.001


def test_a_segments_target_joins_its_class_and_its_mask(photo):
    loaded = maskformer()
    [found] = explained(loaded, photo, top_k=1)
    with torch.no_grad():
        output = loaded.model(**loaded.inputs([photo]))
    logits, masks = output.class_queries_logits[0], output.masks_queries_logits[0]
    region = masks[2] > masks[2].median()
    value = SegmentLogit(2, 1, region)({"class_queries_logits": logits, "masks_queries_logits": masks})
    assert float(value) == pytest.approx(float(logits[2, 1] + masks[2][region].mean()), rel=1e-5)
    assert found.heatmap.any()


# Segmenters of every kind --------------------------------------------------------------------------------------------


def segmenting(case):
    """A tiny model of this type with the real processor, where it has one, sure of its random findings."""
    height, width = case.size
    both, square = {"height": height, "width": width}, {"shortest_edge": height, "longest_edge": height}
    processors = {
        "maskformer": lambda: hf.MaskFormerImageProcessor(size=both, size_divisor=32),
        "mask2former": lambda: hf.Mask2FormerImageProcessor(size=both, size_divisor=32),
        "oneformer": lambda: hf.OneFormerProcessor(
            hf.OneFormerImageProcessor(size=both, num_text=2), words_tokenizer(), task_seq_length=77
        ),
        "eomt": lambda: hf.EomtImageProcessor(size=square, do_pad=True),
        "eomt_dinov3": lambda: hf.EomtImageProcessor(size=square, do_pad=True),
        "detr": lambda: hf.DetrImageProcessor(size=LONGEST),
    }
    return case.build(), processors.get(case.model_type, lambda: resized(case.size))()


TASKS = ("semantic-segmentation", "instance-segmentation", "universal-segmentation")
SEGMENTERS = [case for case in cases(*TASKS) if case.model_type != "videomt"]


@pytest.mark.parametrize("case", SEGMENTERS, ids=str)
def test_every_segmenter_explains_a_class_a_place_and_a_mask(photo, case):
    model, processor = segmenting(case)
    settings = {"processor": processor, "method": "gradcam-elementwise"}
    first, *_ = hf_cam.explain(photo, model, **settings)
    mask = np.zeros((128, 192), bool)
    mask[40:90, 50:120] = True
    rows, columns = first.mask.nonzero()
    place = int(columns[len(columns) // 2]), int(rows[len(rows) // 2])
    for target in (place, mask):
        [found] = hf_cam.explain(photo, model, target=target, **settings)
        assert found.heatmap.shape == found.mask.shape == (128, 192)
        assert found.heatmap.max() == pytest.approx(1)
        assert found.label in model.config.id2label.values()
    if case.task == "semantic-segmentation":
        np.testing.assert_array_equal(found.mask, mask)
        [named] = hf_cam.explain(photo, model, target=first.label, **settings)
        np.testing.assert_allclose(named.heatmap, first.heatmap, atol=1e-5)


def test_one_network_for_three_tasks_takes_its_task_as_text(photo):
    case = case_of("universal-segmentation", "oneformer")
    model, processor = segmenting(case)
    given = processor([photo], ["semantic"], return_tensors="pt")["task_inputs"]
    head = head_of(LoadedModel(model, processor, {}))
    np.testing.assert_array_equal(head.inputs(Request(text=("semantic",)))["task_inputs"].value, given)
    panoptic = hf_cam.explain(photo, model, processor=processor, method="layercam")
    same = hf_cam.explain(photo, model, processor=processor, method="layercam", text="panoptic")
    np.testing.assert_array_equal(panoptic[0].heatmap, same[0].heatmap)
    with pytest.raises(TargetError, match="panoptic, instance, semantic"):
        hf_cam.explain(photo, model, processor=processor, text="cats")


def test_segments_of_videos_are_refused_with_a_pointer_to_cam():
    case = case_of("universal-segmentation", "videomt")
    with pytest.raises(HFCamError, match=r"hf_cam\.CAM"):
        hf_cam.explain(np.zeros((4, 96, 96, 3), np.uint8), case.build(), processor=lambda image: image)
