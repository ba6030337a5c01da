"""What detectors have to say: DETR, every other one, those of prompts, and torchvision's lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

import hf_cam
from benchmarks.tiny_models import case_of, cases, words_tokenizer
from hf_cam.capture.inputs import model_inputs_of
from hf_cam.errors import TargetError
from hf_cam.explainer import Explainer
from hf_cam.heads import head_of
from hf_cam.models.loading import LoadedModel
from hf_cam.request import Request
from hf_cam.targets import BoxLogit, QueryBox, QueryLogit
from hf_cam.zoo import SCENE
from nets import LONGEST, SQUARE, THINGS, detr, explained, sure_detr
from pictures import noise, to_tensor


def test_every_kept_detection_gets_a_map_of_its_own(photo):
    found = explained(sure_detr(), photo)
    assert len(found) >= 2
    assert all(one.score >= 0.5 and one.box is not None and not one.flags for one in found)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert not np.allclose(found[0].heatmap, found[1].heatmap)
    assert {one.method for one in found} == {"hirescam"}


def test_a_detector_that_is_sure_of_nothing_shows_its_best_and_flags_it(photo):
    loaded = detr()
    loaded.model.class_labels_classifier.weight.data *= 0.01
    [best] = explained(loaded, photo)
    assert best.flags[0] == "below the threshold"
    assert best.score < 0.5


def test_a_detection_is_named_by_label_query_pixel_or_box(photo):
    loaded = sure_detr()
    every = explained(loaded, photo)
    label = every[0].label
    assert [one.box for one in explained(loaded, photo, target=label)] == [
        one.box for one in every if one.label == label
    ]
    assert explained(loaded, photo, target=every[0].box)[0].box == every[0].box
    x0, y0, x1, y1 = every[0].box
    [there] = explained(loaded, photo, target=f"{(x0 + x1) / 2},{(y0 + y1) / 2}")
    assert there.box[0] <= (x0 + x1) / 2 <= there.box[2]
    [third] = explained(loaded, photo, target=3)
    [same] = explained(loaded, photo, target=QueryLogit(3, list(THINGS.values()).index(third.label)))
    np.testing.assert_array_equal(third.heatmap, same.heatmap)
    [side] = explained(loaded, photo, target=QueryBox(3, "left"))
    assert side.box == third.box
    assert not np.allclose(side.heatmap, third.heatmap)


@pytest.mark.parametrize(
    ("target", "message"),
    [("zebra", "no class is called"), (99, "no query 99"), ((500, 3), "no box at the pixel")],
)
def test_a_detection_that_is_not_there_is_refused(photo, target, message):
    with pytest.raises(TargetError, match=message):
        explained(detr(), photo, target=target)


def test_a_batch_of_pictures_of_several_sizes_is_the_same_one_by_one(photo):
    loaded = sure_detr()
    pictures = [photo, photo.resize((100, 150)), photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    together = list(Explainer(loaded)(pictures, batch_size=3))
    for picture, found in zip(pictures, together, strict=True):
        for one, same in zip(found, explained(loaded, picture), strict=True):
            assert one.box == pytest.approx(same.box, abs=1e-3)
            assert one.heatmap.shape == (picture.height, picture.width)
            np.testing.assert_allclose(one.heatmap, same.heatmap, atol=2e-4)


def test_boxes_of_a_padded_picture_lie_in_the_picture_alone(photo):
    padded = hf.DetrImageProcessor(size=LONGEST, pad_size={"height": 160, "width": 256})
    loaded = LoadedModel(sure_detr().model, padded, THINGS)
    inputs = loaded.inputs([photo])
    assert inputs["pixel_values"].shape[-2:] == (160, 256)
    with torch.no_grad():
        output = loaded.model(**inputs)
    [expected] = padded.post_process_object_detection(output, threshold=0.0, target_sizes=[(128, 192)])
    boxes = expected["boxes"].clamp(torch.zeros(4), torch.tensor([192.0, 128, 192, 128]))
    for one in explained(loaded, photo):
        assert (boxes - torch.tensor(one.box)).abs().amax(1).min() < 0.05


# Two of a kind, by trained weights -----------------------------------------------------------------------------------


def two_sneakers():
    """The scene of this package with its sneaker a second time, 166 pixels further left and 249 further down."""
    scene = hf_cam.load_image(SCENE)
    scene.paste(scene.crop((253, 37, 446, 130)), (13, 286))
    return scene


def energy(heatmap, box):
    """The share of a map's sum that lies in a box."""
    x0, y0, x1, y1 = map(round, box)
    return heatmap[y0:y1, x0:x1].sum() / heatmap.sum()


def test_each_of_two_sneakers_has_its_map_on_itself():
    found = [one for one in hf_cam.explain(two_sneakers(), "demo:detr") if one.label == "sneaker"]
    assert len(found) == 2
    for one, other in (found, found[::-1]):
        own, elsewhere = (energy(one.heatmap, box) for box in (one.box, other.box))
        assert own > 0.5
        assert own >= 2 * elsewhere


def test_the_map_of_a_boxs_left_side_differs_from_that_of_its_right_side():
    scene = two_sneakers()
    sneaker = next(one for one in hf_cam.explain(scene, "demo:detr") if one.label == "sneaker")
    [left, right] = [
        hf_cam.explain(scene, "demo:detr", target=QueryBox(sneaker.origin.target.query, side))[0]
        for side in ("left", "right")
    ]
    assert left.box == right.box == sneaker.box
    columns = np.arange(scene.width)
    middles = [(one.heatmap.sum(0) * columns).sum() / one.heatmap.sum() for one in (left, right)]
    assert middles[0] != pytest.approx(middles[1], abs=5)


# Detectors of every kind ---------------------------------------------------------------------------------------------

BORROWS = {"d_fine": "RTDetr", "rt_detr_v2": "RTDetr", "dab-detr": "ConditionalDetr"}
"""Types without a processor of their own, and whose their checkpoints come with."""


def detecting(case):
    """A tiny model of this type with the real processor."""
    listed = IMAGE_PROCESSOR_MAPPING_NAMES.get(case.model_type, {}).get("torchvision")
    processor = getattr(hf, listed or f"{BORROWS[case.model_type]}ImageProcessor")
    height, width = case.size
    return case.build(), processor(size={"height": height, "width": width})


@pytest.mark.parametrize("case", list(cases("object-detection")), ids=str)
def test_every_detector_is_explained_where_its_own_processor_puts_the_boxes(photo, case):
    image = photo.resize((150, 110))
    model, processor = detecting(case)
    settings = {"processor": processor, "method": "gradcam-elementwise"}
    found = hf_cam.explain(image, model, top_k=3, **settings)
    assert all(one.heatmap.shape == (110, 150) and one.heatmap.any() for one in found)
    if case.model_type.startswith("pp_ocr"):
        return  # a map and no boxes: see below
    inputs = LoadedModel(model, processor, {}).inputs([image])
    with torch.no_grad():
        output = model(**model_inputs_of(model, inputs.pop("pixel_values"), inputs))
    [expected] = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(110, 150)])
    boxes = expected["boxes"].clamp(torch.zeros(4), torch.tensor([150.0, 110, 150, 110]))
    for one in found:
        same = (boxes - torch.tensor(one.box)).abs().amax(1) < 0.05
        same &= expected["labels"] == model.config.label2id[one.label]
        assert float((expected["scores"][same] - one.score).abs().min()) < 1e-5


def test_a_detector_of_writing_explains_every_piece_of_it():
    case = case_of("object-detection", "pp_ocrv5_server_det")
    model, processor = detecting(case)
    loaded = LoadedModel(model, processor, {})
    head = head_of(loaded)
    assert head.task == "object-detection"
    shares = torch.full((1, 64, 96), 0.1)
    shares[0, 8:16, 8:40] = 0.9
    shares[0, 40:48, 48:88] = 0.7
    shares[0, 56:60, 8:20] = 0.4  # a piece of text, but none that is kept
    geometry = loaded.geometry((128, 192))
    first, second = head.subjects({"last_hidden_state": shares}, Request(), geometry)
    assert (first.label, second.label) == ("text", "text")
    assert (first.score, second.score) == (pytest.approx(0.9), pytest.approx(0.7))
    np.testing.assert_allclose(first.box, (16, 16, 80, 32), atol=2)
    assert float(first.target({"last_hidden_state": shares})) == pytest.approx(np.log(9), abs=1e-4)
    [there] = head.subjects({"last_hidden_state": shares}, Request((140, 88)), geometry)
    assert there.box == second.box
    [weak] = head.subjects({"last_hidden_state": shares}, Request((20, 116)), geometry)
    assert weak.flags == ("below the threshold",)
    with pytest.raises(TargetError, match="no text at the pixel"):
        head.subjects({"last_hidden_state": shares}, Request((3, 3)), geometry)
    [nothing] = head.subjects({"last_hidden_state": torch.full((1, 64, 96), 0.1)}, Request(), geometry)
    assert nothing.flags == ("below the threshold",)


# Detectors of what prompts name --------------------------------------------------------------------------------------


def naming(case):
    """A tiny model of this type with its real processor, sure enough of its random findings."""
    height, width = case.size
    tokenizer = words_tokenizer()
    both = {"height": height, "width": width}
    processors = {
        "owlvit": lambda: hf.OwlViTProcessor(hf.OwlViTImageProcessor(size=both, do_center_crop=False), tokenizer),
        "owlv2": lambda: hf.Owlv2Processor(hf.Owlv2ImageProcessor(size=SQUARE), tokenizer),
        "omdet-turbo": lambda: hf.OmDetTurboProcessor(hf.DetrImageProcessor(size=both), tokenizer),
        "grounding-dino": lambda: hf.GroundingDinoProcessor(hf.GroundingDinoImageProcessor(size=LONGEST), tokenizer),
    }
    return case.build(), processors[case.model_type.removeprefix("mm-")]()


def found_by_the_processor(case, model, processor, image, prompts):
    """Boxes `[N, 4]`, scores and prompts of the model's own processor; the threshold keeps everything."""
    head = head_of(LoadedModel(model, processor, {}))
    inputs = {
        **head.loaded.inputs([image]),
        **{name: value.value for name, value in head.inputs(Request(text=tuple(prompts))).items()},
    }
    with torch.no_grad():
        output = model(**model_inputs_of(model, inputs.pop("pixel_values"), inputs))
    keep = {"threshold": 0.0, "target_sizes": [(image.height, image.width)]}
    if case.model_type.endswith("dino"):
        keep |= {"input_ids": inputs["input_ids"], "text_threshold": 0.0}
    else:
        keep["text_labels"] = [prompts]
    if case.model_type == "omdet-turbo":
        keep["nms_threshold"] = 1.0
    [found] = processor.post_process_grounded_object_detection(output, **keep)
    return found["boxes"], found["scores"], found["text_labels"]


@pytest.mark.parametrize("case", list(cases("zero-shot-object-detection")), ids=str)
@pytest.mark.parametrize("size", [(128, 192), (150, 110)])
def test_what_prompts_name_is_found_where_the_models_own_processor_finds_it(case, size):
    image, prompts = noise(*size), ["a cat", "a red cup"]
    model, processor = naming(case)
    found = hf_cam.explain(image, model, processor=processor, text=prompts, top_k=4)
    boxes, scores, named = found_by_the_processor(case, model, processor, image, prompts)
    for one in found:
        assert one.label in prompts
        assert one.heatmap.shape == size
        clipped = boxes.clamp(torch.zeros(4), torch.tensor([*size[::-1]] * 2))
        same = (clipped - torch.tensor(one.box)).abs().amax(1) < 0.5
        assert same.any(), f"{one.box} is none of {boxes.tolist()}"
        if case.model_type.endswith("dino"):
            # Its processor counts the full stops and special tokens too, which belong to no prompt.
            assert -1e-4 < float((scores[same] - one.score).max()) < 0.05
        else:
            best = int(scores.where(same, torch.zeros(())).argmax())
            assert (named[best], one.score) == (one.label, pytest.approx(float(scores[best]), abs=1e-4))
    [cup] = hf_cam.explain(image, model, processor=processor, text=prompts, target="a red cup", top_k=1)
    assert cup.label == "a red cup"
    with pytest.raises(TargetError, match="pass text="):
        hf_cam.explain(image, model, processor=processor)


# torchvision's detectors ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faster_rcnn():
    """A real Faster R-CNN with random weights, for small pictures."""
    from torchvision.models import detection

    torch.manual_seed(0)
    few = {"rpn_post_nms_top_n_test": 40, "box_detections_per_img": 6}
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=128, max_size=192, **few
    )
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=20)  # sure of its random findings
    return model.train()


def test_faster_rcnns_list_of_boxes_is_explained_detection_by_detection(photo, faster_rcnn):
    settings = {"processor": to_tensor, "method": "gradcam-elementwise"}
    found = hf_cam.explain(photo, faster_rcnn, layers="backbone.fpn.inner_blocks.0", top_k=6, **settings)
    assert faster_rcnn.training
    with torch.no_grad():
        [expected] = faster_rcnn.eval()([to_tensor(photo)])
    faster_rcnn.train()
    for one in found:
        distance = (expected["boxes"] - torch.tensor(one.box)).abs().amax(1)
        best = int(distance.argmin())
        assert distance[best] < 0.1
        assert one.score == pytest.approx(float(expected["scores"][best]), abs=1e-5)
        assert one.label == str(int(expected["labels"][best]))
        assert one.heatmap.shape == (128, 192)
        assert one.heatmap.any()
    assert len(found) > 1
    assert not np.allclose(found[0].heatmap, found[1].heatmap)
    number = int((expected["boxes"] - torch.tensor(found[0].box)).abs().amax(1).argmin())
    [same] = hf_cam.explain(photo, faster_rcnn, layers="backbone.fpn.inner_blocks.0", target=number, **settings)
    np.testing.assert_allclose(same.heatmap, found[0].heatmap, atol=1e-5)
    with pytest.raises(TargetError, match="no label names"):
        hf_cam.explain(photo, faster_rcnn, layers="backbone.fpn", target="cat", **settings)


def test_faster_rcnn_needs_no_layer_and_takes_a_callers_own(photo, faster_rcnn):
    def score(output):
        return output["scores"][0]

    [found] = hf_cam.explain(photo, faster_rcnn, processor=to_tensor, top_k=1)
    assert found.layers[0].startswith("backbone.")
    assert found.method == "hirescam"
    layer = {"layers": "backbone.body.13", "reshape": lambda activation: activation}
    [own] = hf_cam.explain(photo, faster_rcnn, processor=to_tensor, method="layercam", target=score, **layer)
    cam = hf_cam.CAM(faster_rcnn, "layercam", **layer)(to_tensor(photo)[None], [score])
    assert own.label == "score"
    np.testing.assert_allclose(own.heatmap, cam[0].numpy(), atol=0.03)
    assert own.heatmap.any()


def test_a_detector_that_finds_nothing_is_reported(photo, faster_rcnn):
    threshold = faster_rcnn.roi_heads.score_thresh
    faster_rcnn.roi_heads.score_thresh = 1.0
    try:
        with pytest.raises(TargetError, match="finds nothing in this image"):
            hf_cam.explain(photo, faster_rcnn, processor=to_tensor, layers="backbone.fpn.inner_blocks.0")
    finally:
        faster_rcnn.roi_heads.score_thresh = threshold


def test_a_listed_detection_is_found_again_by_its_class_and_its_box():
    output = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [0, 0, 11, 10], [50, 50, 60, 60]]),
        "labels": torch.tensor([2, 1, 1]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
    }
    assert float(BoxLogit((0, 0, 10, 10), 1)(output)) == pytest.approx(float(torch.logit(torch.tensor(0.8))))
    assert float(BoxLogit((0, 0, 10, 10), 3)(output)) == 0
    assert float(BoxLogit((90, 90, 99, 99), 1)(output)) == 0
