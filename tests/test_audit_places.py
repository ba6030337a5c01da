"""An audit of a detector or segmenter: the object at its place, or what lies around it."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
import transformers as hf

import hf_cam
from benchmarks.scenes import LABELS, scenes
from hf_cam.auditing.asking import Asker
from hf_cam.auditing.cases import Case
from hf_cam.auditing.rows import NOT_FOUND
from hf_cam.errors import ImageError, OptionError
from hf_cam.explainer import Explainer
from hf_cam.models.loading import load
from hf_cam.request import Request

SIDE = 12
MAGENTA = (242, 0, 242)


def entries(count: int, label: str = "bag", masks: bool = False) -> list[dict]:
    """Scenes with one item of a class, with its box or its mask."""
    found = (scene for scene in scenes("test", 400, seed=3, max_items=1) if LABELS[scene.labels[0]] == label)
    mark = (lambda scene: {"mask": scene.instances == 1}) if masks else (lambda scene: {"box": tuple(scene.boxes[0])})
    return [{"image": scene.image, "label": label, **mark(scene)} for scene in islice(found, count)]


def asker(model: str) -> tuple[Asker, int]:
    """What an audit asks, and the index of the class "bag"."""
    loaded = load(model)
    index = next(index for index, name in loaded.id2label.items() if name == "bag")
    return Asker(Explainer(loaded), Request.of(top_k=1)), index


@pytest.mark.parametrize("model", ["demo:detr", "demo:segformer", "demo:maskformer"])
def test_an_object_is_recognized_at_its_own_place_and_by_its_own_class(model: str):
    ask, bag = asker(model)
    entry = entries(1, masks=True)[0]
    assert ask.show(Case("0", bag, lambda: entry)).right
    assert not ask.show(Case("0", bag + 1 if bag == 0 else bag - 1, lambda: entry)).right
    elsewhere = {**entry, "mask": np.roll(entry["mask"], entry["mask"].shape[1] // 2, 1)}
    assert not ask.show(Case("0", bag, lambda: elsewhere)).right


def test_an_image_of_a_detector_without_a_box_is_no_case_of_an_audit():
    with pytest.raises(ImageError, match=r"needs boxes= or masks="):
        hf_cam.audit("demo:detr", [{"image": np.zeros((96, 128, 3), np.uint8), "label": "bag"}])


def test_an_object_that_a_detector_does_not_find_is_a_wrong_prediction():
    entry = {"image": np.full((96, 128, 3), 90, np.uint8), "label": "bag", "box": (0, 0, 6, 6)}
    found = hf_cam.audit("demo:detr", [entry, *entries(1)])
    assert found.rows[0].predicted == NOT_FOUND
    assert not found.rows[0].error
    assert not found.rows[0].right
    assert found.rows[1].predicted == "bag"
    page = found._repr_html_()
    assert "(not found), labelled bag" in page, "shown with the wrong predictions"


def test_accuracy_counts_an_object_as_the_tests_do_and_not_a_box_beside_it():
    [entry] = entries(1)
    x0, y0, x1, y1 = entry["box"]
    corner = {**entry, "box": (x0, y0, x0 + (x1 - x0) / 2, y0 + (y1 - y0) / 2)}
    found = hf_cam.audit("demo:detr", [entry, corner])
    assert [row.predicted for row in found.rows] == ["bag", "bag"]
    assert [row.right for row in found.rows] == [True, False]
    assert found.accuracy == 0.5
    assert "not found at its place" in found._repr_html_()


def test_models_without_classes_are_refused():
    with pytest.raises(OptionError, match="detectors and segmenters, not LlavaForConditionalGeneration"):
        hf_cam.audit("demo:llava", entries(1))


class Marked(hf.DetrForObjectDetection):
    """A detector that finds objects only in images with a magenta mark in their lower left corner."""

    def forward(self, pixel_values, *args, **more):
        found = super().forward(pixel_values, *args, **more)
        seen = pixel_values[:, :, -SIDE:, :SIDE].mean((2, 3))
        there = (seen[:, 0] > 0.3) & (seen[:, 1] < -0.3) & (seen[:, 2] > 0.3)
        objects = torch.tensor([1.0] * (found.logits.shape[-1] - 1) + [0.0])
        found.logits = found.logits - 12 * (~there).float()[:, None, None] * objects
        return found


@pytest.mark.slow
def test_context_that_a_detector_needs_is_found_in_its_place_beside_the_object():
    plain = load("demo:detr")
    model = Marked.from_pretrained(plain.model.name_or_path).eval()
    data = entries(32)
    for entry in data:
        entry["image"] = entry["image"].copy()
        entry["image"][-SIDE:, :SIDE] = MAGENTA
    found = hf_cam.audit(model, data, processor=plain.processor, held_out=12)
    read = {one.kind: one for one in found.findings if one.verdict == "reads it"}
    assert set(read) >= {"object", "place"}
    x0, y0, x1, y1 = read["place"].region
    assert x0 < 0.05
    assert y1 > 0.95
    assert (x1 - x0) * (y1 - y0) < 0.1
    assert read["place"].drop >= 0.8
    assert read["place"].elsewhere <= 0.2
    assert "objects are no longer found" in read["place"].text
    assert [one.kind for one in found.suspicious] == ["place"]


@pytest.mark.slow
def test_a_detector_that_needs_no_context_reads_the_object_alone():
    found = hf_cam.audit("demo:detr", entries(32), held_out=12)
    assert [one.kind for one in found.findings if one.verdict == "reads it"] == ["object"]
    assert not found.suspicious
