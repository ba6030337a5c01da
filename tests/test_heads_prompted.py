"""Promptable models of masks: what is marked in the image is what is explained, at every door."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

import hf_cam
from benchmarks.tiny_models import PROMPTED, case_of, settings
from hf_cam.errors import OptionError, TargetError, UnknownArchitecture
from hf_cam.heads import head_of
from hf_cam.heads.marks import prompts_of
from hf_cam.heads.segmentation import NOT_PREDICTED
from hf_cam.interfaces.cli import main
from hf_cam.models.loading import LoadedModel
from hf_cam.request import Request
from hf_cam.targets import PromptedMask
from nets import tiny
from pictures import noise, resized
from unchanged import unchanged

PADDED = {"size": {"longest_edge": PROMPTED}, "pad_size": {"height": PROMPTED, "width": PROMPTED}}
STRETCHED = {"size": {"height": PROMPTED, "width": PROMPTED}}
TYPES = ("sam", "sam_hq", "sam2", "edgetam", "sam3_tracker")
POINTS = [(30, 20), (70, 45)]
pytestmark = pytest.mark.filterwarnings("ignore")


def processor_of(model_type: str):
    if model_type in ("sam", "sam_hq"):
        return hf.SamImageProcessor(**PADDED, mask_size={"longest_edge": 16}, mask_pad_size={"height": 16, "width": 16})
    return hf.Sam2ImageProcessor(**STRETCHED, mask_size={"height": 16, "width": 16})


def promptable(model_type: str) -> LoadedModel:
    return LoadedModel(case_of("mask-generation", model_type).build(), processor_of(model_type), {})


@pytest.fixture(scope="module")
def sam() -> LoadedModel:
    return promptable("sam")


@pytest.fixture(scope="module")
def sam2() -> LoadedModel:
    return promptable("sam2")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return noise(60, 90)


@pytest.mark.parametrize(
    "model_type", [*TYPES[1:3], *(pytest.param(other, marks=pytest.mark.slow) for other in (TYPES[0], *TYPES[3:]))]
)
def test_a_prompt_is_explained_in_python_by_the_pipeline_and_on_the_command_line(model_type, image, tmp_path, capsys):
    loaded = promptable(model_type)
    with unchanged(loaded.model):
        found = hf_cam.explain(image, loaded, input_points=POINTS)
    assert [one.label for one in found] == ["(30, 20)", "(70, 45)"]
    for one in found:
        assert one.heatmap.shape == one.mask.shape == (60, 90)
        assert one.heatmap.max() == 1
        assert one.score_kind == "predicted overlap (IoU)"
    pipe = hf_cam.pipeline("image-cam", model=loaded.model, image_processor=loaded.processor)
    for made in (pipe(image, input_points=POINTS), pipe([image, image], input_points=[POINTS, POINTS])[1]):
        assert all(np.array_equal(one["heatmap"], other.heatmap) for one, other in zip(made, found, strict=True))
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.processor.save_pretrained(tmp_path / "model")
    image.save(tmp_path / "picture.png")
    capsys.readouterr()
    files = [str(tmp_path / "picture.png"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out.png")]
    assert main(["explain", *files, "--point", "30,20", "--point", "70,45"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1][:8] for line in lines] == ["(30, 20)", "(70, 45)"]


@pytest.mark.parametrize(
    ("model_type", "whole"), [("sam", hf.SamProcessor), ("sam_hq", hf.SamHQProcessor), ("sam2", hf.Sam2Processor)]
)
def test_marks_reach_the_model_where_transformers_own_processor_puts_them(model_type, whole, image):
    loaded = promptable(model_type)
    head = head_of(loaded)
    request = Request(input_points=[[(30, 20), (70, 45)], [(12, 50), (80, 5)]], input_labels=[[1, 0], [1, 1]])
    placed = head.placed(request, loaded.geometry((60, 90)))
    points = [[list(point) for point in prompt] for prompt in request.input_points]
    own = whole(loaded.processor)(
        images=image, input_points=[points], input_labels=[request.input_labels], return_tensors="pt"
    )
    made = head.inputs(placed)
    torch.testing.assert_close(made["input_points"], own["input_points"].float(), atol=0.02, rtol=0)
    assert torch.equal(made["input_labels"], own["input_labels"])
    boxes = [(10, 10, 50, 40), (0, 0, 90, 60)]
    placed = head.placed(Request(input_boxes=boxes), loaded.geometry((60, 90)))
    own = whole(loaded.processor)(
        images=image, input_boxes=[[list(map(float, box)) for box in boxes]], return_tensors="pt"
    )
    torch.testing.assert_close(head.inputs(placed)["input_boxes"], own["input_boxes"].float(), atol=0.02, rtol=0)


def test_the_target_is_the_sum_of_the_masks_logits_over_its_region(sam, image):
    geometry = sam.geometry((60, 90))
    head = head_of(sam)
    request = head.placed(Request(input_points=POINTS, top_k=3), geometry)
    with torch.no_grad():
        output = sam.model(**sam.inputs([image]), **head.inputs(request))
    sample = {"pred_masks": output.pred_masks[0], "iou_scores": output.iou_scores[0]}
    found = head.subjects(sample, request, geometry)
    assert len(found) == 6
    seen = torch.arange(16) * 4 + 2 < PROMPTED * 60 / 90  # rows of the mask's grid; below lies padding
    for subject in found:
        target = subject.target
        assert isinstance(target, PromptedMask)
        logits = output.pred_masks[0, target.prompt, target.index]
        rows = logits[seen.nonzero()[:, 0].tolist() + [int(seen.sum())] * (target.region[int(seen.sum())].any())]
        assert float(target(sample)) == pytest.approx(float(rows[rows > 0].sum()), rel=1e-4)
    overlaps = [subject.score for subject in found[:3]]
    assert overlaps == sorted(output.iou_scores[0, 0].tolist(), reverse=True)


def test_a_prompts_map_is_the_same_alone_and_beside_others(sam2, image):
    several = hf_cam.explain(image, sam2, input_points=[[(30, 20), (70, 45)], [(12, 50)]])
    alone = hf_cam.explain(image, sam2, input_points=[[(30, 20), (70, 45)]])
    assert [one.label for one in several] == ["(30, 20), (70, 45)", "(12, 50)"]
    np.testing.assert_allclose(several[0].heatmap, alone[0].heatmap, atol=1e-3)
    [without] = hf_cam.explain(image, sam2, input_points=[[(30, 20), (70, 45)]], input_labels=[[1, 0]])
    assert without.label == "(30, 20) without (70, 45)"
    assert not np.allclose(without.heatmap, alone[0].heatmap, atol=1e-2)


def test_each_of_several_images_has_its_own_prompts_or_one_for_all(sam2, image):
    other = noise(64, 48, seed=1)
    found = hf_cam.explain([image, other], sam2, input_points=[[(30, 20), (70, 45)], (12, 50)])
    assert [[one.label for one in own] for own in found] == [["(30, 20)", "(70, 45)"], ["(12, 50)"]]
    both = hf_cam.explain([image, other], sam2, input_boxes=(5, 5, 40, 40))
    assert [[one.box for one in own] for own in both] == [[(5, 5, 40, 40)]] * 2
    with pytest.raises(TargetError, match="input_points has 3 entries for 2 images"):
        hf_cam.explain([image, other], sam2, input_points=[(1, 2), (3, 4), (5, 6)])


def test_a_map_lies_where_the_model_looked_in_the_pixels_of_the_image(sam2, image):
    """A cell of the embedding as target: its block of the image is marked, and nothing far from it."""
    for row, column in ((0, 3), (3, 0), (2, 2)):
        [found] = hf_cam.explain(
            image,
            sam2,
            input_points=(30, 20),
            layers="vision_encoder.neck[1]",
            method="gradcam-elementwise",
            target=lambda output, row=row, column=column: output.image_embeddings[-1][:, row, column].square().sum(),
        )
        y, x = np.unravel_index(found.heatmap.argmax(), found.heatmap.shape)
        assert (y // 15, x * 4 // 90) == (row, column)
        assert found.raw[row, column] == found.raw.max()
        assert np.count_nonzero(found.raw) == 1


def test_a_disturbance_inside_the_region_changes_the_score_and_one_in_the_padding_does_not(sam, image):
    head, geometry = head_of(sam), sam.geometry((60, 90))
    request = head.placed(Request(input_points=(30, 20)), geometry)
    inputs = {**sam.inputs([image]), **head.inputs(request)}

    def value(pixels, target=None):
        with torch.no_grad():
            output = sam.model(**{**inputs, "pixel_values": pixels})
        sample = {"pred_masks": output.pred_masks[0], "iou_scores": output.iou_scores[0]}
        target = target or head.subjects(sample, request, geometry)[0].target
        return target, float(target(sample))

    target, clean = value(inputs["pixel_values"])
    changed = inputs["pixel_values"].clone()
    changed[..., 8:24, 16:40] += 2
    assert abs(value(changed, target)[1] - clean) > 1e-3 * abs(clean)
    assert not target.region[12:].any()  # 43 of 64 rows hold the image


@pytest.mark.parametrize(
    ("settings_", "error", "message"),
    [
        ({}, TargetError, r"Sam2Model segments what is marked: pass input_points=, such as \[\(120, 80\)\]"),
        ({"target": (30, 20)}, TargetError, "segments what is marked"),
        ({"target": (30, 20), "input_points": (1, 2)}, TargetError, "a place is a prompt of Sam2Model: pass it as"),
        (
            {"input_points": (30, 60)},
            TargetError,
            r"the point \(30, 60\) is outside the image, which is 90 wide",
        ),
        ({"input_boxes": (90, 0, 99, 9)}, TargetError, "has no part in the image"),
        ({"input_boxes": (50, 0, 20, 9)}, TargetError, r"a box \(left, top, right, bottom\)"),
        ({"input_points": "30,20"}, TargetError, "input_points must be a point"),
        ({"input_points": (30, 20, 1)}, TargetError, "input_points must be a point"),
        ({"input_points": []}, TargetError, "input_points must be a point"),
        ({"input_points": (float("nan"), 2)}, TargetError, "finite numbers"),
        ({"input_points": POINTS, "input_boxes": [(1, 2, 3, 4)]}, TargetError, "marks 2 prompts and input_boxes 1"),
        ({"input_points": POINTS, "input_labels": [1]}, TargetError, "one label per point"),
        ({"input_points": POINTS, "input_labels": [1, 2]}, TargetError, "1 for a point that belongs to the mask"),
        ({"input_points": (1, 2), "target": 7}, TargetError, "no mask 7; the model offers 3 per prompt"),
        ({"input_points": (1, 2), "target": "cat"}, TargetError, "no label names"),
        ({"input_points": (1, 2), "aug_smooth": True}, OptionError, "aug_smooth mirrors the image, but not the points"),
        ({"input_points": (1, 2), "text": "a cat"}, TargetError, "takes no text"),
        ({"input_points": (1, 2), "threshold": 0.5}, OptionError, "no objects or segments"),
    ],
)
def test_a_prompt_that_is_none_is_refused_in_a_sentence(sam2, image, settings_, error, message):
    with pytest.raises(error, match=message):
        hf_cam.explain(image, sam2, **settings_)


@pytest.mark.parametrize("name", ["input_points", "input_labels", "input_boxes"])
def test_a_model_without_prompts_refuses_them(name, image):
    net = tiny(hf.ResNetForImageClassification)
    with pytest.raises(OptionError, match=f"takes no points or boxes as prompts, so it has no use for {name}="):
        hf_cam.explain(image, net, processor=resized(), **{name: [1, 2, 3, 4]})


@pytest.mark.parametrize(
    "given",
    [
        (30, 20),
        [(30, 20)],
        [[30, 20]],
        [[[30, 20]]],
        [[[[30, 20]]]],  # transformers: image, object, point
        np.array([[30, 20]]),
        torch.tensor([[[30.0, 20.0]]]),
    ],
    ids=repr,
)
def test_a_point_is_read_from_every_form_in_which_it_is_written(given):
    [prompt] = prompts_of(Request(input_points=given))
    assert (prompt.points, prompt.labels, prompt.box) == (((30.0, 20.0),), (1,), None)


@pytest.mark.parametrize("labels", [[1, 0], [[1, 0]], [[[1, 0]]], np.array([1, 0])], ids=repr)
def test_labels_belong_to_the_points_of_a_prompt_or_to_the_prompts(labels):
    [prompt] = prompts_of(Request(input_points=[[(1, 2), (3, 4)]], input_labels=labels))
    assert prompt.labels == (1, 0)
    assert [one.labels for one in prompts_of(Request(input_points=POINTS, input_labels=[0, 1]))] == [(0,), (1,)]


def test_a_mask_that_is_predicted_nowhere_is_flagged_and_another_one_is_chosen_by_its_index(sam2, image):
    head, geometry = head_of(sam2), sam2.geometry((60, 90))
    request = head.placed(Request(input_points=(30, 20)), geometry)
    masks = torch.full((1, 3, 16, 16), -1.0)
    masks[0, 2] = 1
    sample = {"pred_masks": masks, "iou_scores": torch.tensor([[0.9, 0.1, 0.5]])}
    [found] = head.subjects(sample, request, geometry)
    assert (found.target.index, found.flags, found.mask.any()) == (0, (NOT_PREDICTED,), False)
    [other] = head.subjects(sample, Request(2, **_marks(request)), geometry)
    assert (other.target.index, other.flags, other.mask.all(), other.score) == (2, (), True, 0.5)


def _marks(request):
    return {name: getattr(request, name) for name in ("input_points", "input_labels", "input_boxes")}


# Videos, pairs -------------------------------------------------------------------------------------------------------


def video_of_sam2():
    own = {f"memory_{part}": 32 for part in ("attention_hidden_size", "attention_feed_forward_hidden_size")}
    own |= {"memory_encoder_hidden_size": 32, "memory_encoder_output_channels": 8, "memory_attention_num_layers": 1}
    own |= {"mask_downsampler_embed_dim": 32, "memory_fuser_embed_dim": 32, "memory_fuser_intermediate_dim": 32}
    torch.manual_seed(0)
    return hf.Sam2VideoModel(hf.Sam2VideoConfig(**settings("sam2", hf.Sam2Config), image_size=PROMPTED, **own)).eval()


def test_a_model_that_follows_objects_is_refused_and_its_checkpoint_segments_a_picture(image, tmp_path):
    net = video_of_sam2()
    for processor in (None, processor_of("sam2")):
        with pytest.raises(UnknownArchitecture, match=r"Sam2VideoModel \(sam2_video\) has no map .* as Sam2Model"):
            hf_cam.explain(image, net, processor=processor)
    net.save_pretrained(tmp_path)
    processor_of("sam2").save_pretrained(tmp_path)
    [found] = hf_cam.explain(image, str(tmp_path), input_points=(30, 20))
    assert (found.label, found.layers) == ("(30, 20)", ("vision_encoder.neck[1]",))


@pytest.mark.parametrize(
    "model_class",
    [
        hf.EdgeTamVideoModel,
        hf.Sam3TrackerVideoModel,
        hf.SuperGlueForKeypointMatching,
        hf.LightGlueForKeypointMatching,
        hf.EfficientLoFTRForKeypointMatching,
    ],
)
def test_models_of_videos_and_of_pairs_are_refused_by_name(model_class, image):
    with torch.device("meta"):
        net = model_class(model_class.config_class())
    with pytest.raises(UnknownArchitecture, match=rf"^{model_class.__name__} \(\w+\) has no map to draw: it (fol|mat)"):
        hf_cam.explain(image, net)
    with pytest.raises(UnknownArchitecture, match="has no map to draw"):
        hf_cam.CAM(net)
