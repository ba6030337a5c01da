"""Keypoints: the peak of a heatmap, or one of a list; and the persons in an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

import hf_cam
from benchmarks.tiny_models import case_of
from hf_cam.errors import OptionError, TargetError
from hf_cam.heads.keypoints import RADIUS
from hf_cam.interfaces.cli import main
from hf_cam.models.loading import LoadedModel
from hf_cam.targets import HeatmapPeak, KeypointLogit
from pictures import noise, resized
from unchanged import unchanged

NAMES = {0: "nose", 1: "left eye"}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def image():
    return noise(60, 90)


def pose(model_type: str) -> LoadedModel:
    processor = hf.VitPoseImageProcessor(size={"height": 96, "width": 64})
    if model_type == "sapiens2":
        processor = hf.Sapiens2ImageProcessor(size={"height": 64, "width": 96})
    return LoadedModel(case_of("pose-estimation", model_type).build(), processor, NAMES)


@pytest.fixture(scope="module")
def vitpose() -> LoadedModel:
    return pose("vitpose")


@pytest.fixture(scope="module")
def superpoint() -> LoadedModel:
    processor = hf.SuperPointImageProcessor(size={"height": 64, "width": 96})
    return LoadedModel(case_of("keypoint-detection", "superpoint").build(), processor, {})


def heatmaps_of(loaded: LoadedModel, image) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(**loaded.inputs([image])).heatmaps[0]


@pytest.mark.parametrize("model_type", ["vitpose", "sapiens2"])
def test_the_target_is_the_peak_of_a_named_keypoints_heatmap(model_type, image):
    loaded = pose(model_type)
    with unchanged(loaded.model):
        found = hf_cam.explain(image, loaded)
    assert {one.label for one in found} == {"nose", "left eye"}
    assert all(one.heatmap.shape == (60, 90) and one.heatmap.max() == 1 for one in found)
    [eye] = hf_cam.explain(image, loaded, target="left eye")
    [same] = hf_cam.explain(image, loaded, target=1)
    np.testing.assert_array_equal(eye.heatmap, same.heatmap)
    x0, y0, x1, y1 = eye.box
    [there] = hf_cam.explain(image, loaded, target=((x0 + x1) / 2, (y0 + y1) / 2))
    assert there.label == "left eye"
    heatmap = heatmaps_of(loaded, image)[1]
    assert eye.score <= float(heatmap.max()) + 1e-5
    row, column = divmod(int((heatmap - eye.score).abs().argmin()), heatmap.shape[1])
    assert float(HeatmapPeak(1, row, column)({"heatmaps": heatmap[None].repeat(2, 1, 1)})) == pytest.approx(eye.score)


def test_a_keypoints_map_lies_within_reach_of_its_peak(vitpose, image):
    """The heatmap is made of the tokens around it by one convolution, so no other cell can matter."""
    for found in hf_cam.explain(image, vitpose, layers="head.activation"):
        x0, y0, x1, y1 = found.box
        rows, columns = np.nonzero(found.raw)
        assert len(rows) <= 9
        scale = vitpose.geometry((60, 90))
        across, down = scale.to_model((x0 + x1) / 2, (y0 + y1) / 2)
        assert np.abs(columns * 16 + 7.5 - across).max() < 40
        assert np.abs(rows * 16 + 7.5 - down).max() < 40
        assert found.heatmap[int((y0 + y1) / 2), int((x0 + x1) / 2)] > 0


def test_boxes_choose_persons_whose_maps_lie_in_the_pixels_of_the_image(vitpose, image):
    boxes = [(5, 10, 40, 50), (40, 5, 85, 55)]
    found = hf_cam.explain(image, vitpose, input_boxes=boxes)
    assert len(found) == 4
    left, top, right, bottom = boxes[1]
    own = vitpose.processor(image, boxes=[[[left, top, right - left, bottom - top]]], return_tensors="pt")
    with torch.no_grad():
        heatmaps = vitpose.model(**own)
    kept = vitpose.processor.post_process_pose_estimation(heatmaps, boxes=[[[left, top, right - left, bottom - top]]])
    for name, place in zip(("nose", "left eye"), kept[0][0]["keypoints"], strict=True):
        [one] = [one for one in found[2:] if one.label == name]
        x0, y0, x1, y1 = one.box
        if x0 > 0 and x1 < 90 and y0 > 0 and y1 < 60:  # a peak in what surrounds the image is not taken
            assert np.hypot((x0 + x1) / 2 - place[0], (y0 + y1) / 2 - place[1]) < 6
    pipe = hf_cam.pipeline("image-cam", model=vitpose.model, image_processor=vitpose.processor)
    np.testing.assert_array_equal(pipe(image, input_boxes=boxes)[3]["heatmap"], found[3].heatmap)
    [[compared]] = [hf_cam.compare(image, vitpose, methods="hirescam", input_boxes=boxes[1]).explanations]
    np.testing.assert_array_equal(compared.heatmap, found[2].heatmap)
    with pytest.raises(OptionError, match="looks at the person in a box: pass input_boxes=, not input_points="):
        hf_cam.explain(image, vitpose, input_points=(3, 4))
    own_processor = LoadedModel(vitpose.model, resized((96, 64)), NAMES)
    with pytest.raises(OptionError, match="takes no boxes of persons; omit input_boxes="):
        hf_cam.explain(image, own_processor, input_boxes=boxes)


def test_a_listed_keypoint_is_chosen_by_rank_or_place_and_its_map_lies_around_it(superpoint, image):
    with unchanged(superpoint.model):
        found = hf_cam.explain(image, superpoint, top_k=3)
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    for rank, one in enumerate(found):
        x, y = (float(part) for part in one.label.strip("()").split(", "))
        [by_place] = hf_cam.explain(image, superpoint, target=(x, y))
        [by_rank] = hf_cam.explain(image, superpoint, target=rank)
        assert by_place.label == by_rank.label == one.label
        np.testing.assert_array_equal(by_rank.heatmap, one.heatmap)
        # Its score is read from 3 x 3 cells of 8 pixels of the input, which are 7.5 pixels of the image.
        rows, columns = np.nonzero(one.heatmap)
        assert max(np.abs(rows - y).max(), np.abs(columns - x).max()) <= 7.5 * 2.5 + 1


def test_a_listed_keypoint_is_followed_when_the_list_is_in_another_order():
    output = {
        "keypoints": torch.tensor([[0.5, 0.5], [0.2, 0.4], [0.0, 0.0]]),
        "scores": torch.tensor([0.9, 0.25, 0.0]),
        "mask": torch.tensor([1, 1, 0]),
    }
    target = KeypointLogit(0.21, 0.4, (0.05, 0.05))
    assert float(target(output)) == pytest.approx(np.log(0.25 / 0.75))
    turned = {name: value.flip(0) for name, value in output.items()}
    assert float(target(turned)) == float(target(output))
    assert float(KeypointLogit(0.8, 0.8, (0.05, 0.05))(output)) == 0
    assert float(KeypointLogit(0.0, 0.0, (0.05, 0.05))(output)) == 0  # padding, not a keypoint
    assert hf.SuperPointConfig().nms_radius == RADIUS


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (9999, r"no keypoint 9999; the model finds \d+ in this image"),
        (-1, "no class -1"),
        ((200, 5), r"the pixel \(200, 5\) is outside the image"),
        ("nose", "no label names"),
    ],
)
def test_a_keypoint_that_does_not_exist_is_refused(superpoint, image, target, message):
    with pytest.raises(TargetError, match=message):
        hf_cam.explain(image, superpoint, target=target)


@pytest.mark.parametrize("target", ["knee", 7, (200, 5)])
def test_a_named_keypoint_that_does_not_exist_is_refused(vitpose, image, target):
    with pytest.raises(TargetError):
        hf_cam.explain(image, vitpose, target=target)


def test_keypoints_come_through_the_pipeline_and_the_command(superpoint, vitpose, image, tmp_path, capsys):
    image.save(tmp_path / "picture.png")
    for loaded, more, count in ((superpoint, ["--top-k", "2"], 2), (vitpose, ["--box", "5,10,40,50"], 2)):
        own = {"top_k": 2} if loaded is superpoint else {"input_boxes": (5, 10, 40, 50)}
        pipe = hf_cam.pipeline("image-cam", model=loaded.model, image_processor=loaded.processor)
        made = pipe(image, **own)
        assert [one["heatmap"].shape for one in made] == [(60, 90)] * count
        loaded.model.save_pretrained(tmp_path / "model")
        loaded.processor.save_pretrained(tmp_path / "model")
        files = [str(tmp_path / "picture.png"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out.png")]
        capsys.readouterr()
        assert main(["explain", *files, *more]) == 0
        assert len(capsys.readouterr().out.splitlines()) == count
