"""What an audit makes of its data: images, labels, masks and boxes of every kind, or one sentence that refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hf_cam
from hf_cam.auditing.cases import Opened, cases_of, match
from hf_cam.auditing.labelled import labelled
from hf_cam.errors import ImageError, OptionError
from hf_cam.zoo.scenes import CLASSES, cheater_scenes, mark_region

CLASSES_OF_CHEATER = dict(enumerate(CLASSES))
PICTURE = np.zeros((12, 16, 3), np.uint8)
MASK = np.zeros((12, 16), bool)
MASK[3:9, 4:10] = True


def opened_with(**marks: Any) -> Opened:
    """An image of 12 x 16 pixels with these marks."""
    [case] = cases_of(labelled([{"image": PICTURE, "label": "coat", **marks}]), CLASSES_OF_CHEATER)
    return case.open()


def marks_alike(opened: Opened) -> float:
    """The share of pixels of which the mark is that of `MASK`."""
    assert opened.inside is not None
    return float((opened.inside == MASK).mean())


WRONG_MARKS = {
    "shares": ({"box": (0.1, 0.1, 0.8, 0.9)}, "box 0 must be in pixels, not in shares"),
    "the whole in shares": ({"box": (0, 0, 1, 1)}, "box 0 must be in pixels, not in shares"),
    "COCO's name": ({"bbox": (2, 2, 9, 9)}, r"'bbox' of image 0 may be \(x, y, width, height\).*pass the box as 'box'"),
    "an empty mask": ({"mask": np.zeros((12, 16), bool)}, "the mask of image 0 marks nothing"),
    "a polygon": ({"segmentation": [[1, 2, 3], [4, 5]]}, "mask 0 must be an array"),
}


@pytest.mark.parametrize(("marks", "words"), WRONG_MARKS.values(), ids=WRONG_MARKS)
def test_marks_that_mark_nothing_or_are_open_to_two_readings_are_refused(marks: dict[str, Any], words: str):
    with pytest.raises(OptionError, match=words):
        opened_with(**marks)
    with pytest.raises(ImageError, match=words):
        hf_cam.audit("demo:cheater", [{"image": PICTURE, "label": "coat", **marks}])


@pytest.mark.parametrize("mask", [torch.tensor(MASK)[None], torch.tensor(MASK).bfloat16(), MASK[..., None]])
def test_masks_of_all_arrays_mark_the_same(mask: Any):
    assert marks_alike(opened_with(mask=mask)) == 1


@pytest.mark.parametrize("name", ["coat/a/x.png", "coat/a/x_mask.png", "coat/a/x.jpg", "x.png", "x_mask.png", "16 bit"])
def test_masks_of_a_folder_lie_in_the_folders_of_the_images_or_in_none(tmp_path: Path, name: str):
    image, masks = tmp_path / "data" / "coat" / "a" / "x.jpg", tmp_path / "masks"
    image.parent.mkdir(parents=True)
    Image.fromarray(PICTURE).save(image)
    file = masks / ("x.png" if name == "16 bit" else name)
    file.parent.mkdir(parents=True)
    values = MASK.astype(np.uint16) if name == "16 bit" else MASK.astype(np.uint8) * 255
    Image.fromarray(values).save(file)
    [case] = cases_of(labelled(tmp_path / "data", masks=masks), CLASSES_OF_CHEATER)
    assert marks_alike(case.open()) > (0.9 if name.endswith("jpg") else 0.999)


def test_a_folder_of_masks_that_has_none_of_the_images_is_refused(tmp_path: Path):
    for name in ("data/coat/x.png", "masks/y.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(PICTURE).save(tmp_path / name)
    with pytest.raises(
        OptionError, match=r"no mask of the data's images: it has 'y.png', and the first image is 'x.png'"
    ):
        labelled(tmp_path / "data", masks=tmp_path / "masks")


def test_a_broken_mask_is_a_row_and_images_without_masks_are_counted():
    masks = [mark_region(), None, np.ones((5, 5), bool)]
    found = hf_cam.audit("demo:cheater", cheater_scenes(3), masks=masks)
    assert [bool(row.error) for row in found.rows] == [False, False, True]
    assert any(note.startswith("1 of 2 images have no mask or box") for note in found.notes)


def test_marks_that_are_passed_replace_those_of_the_data_and_none_leaves_them():
    data = [{"image": PICTURE, "label": "coat", "mask": ~MASK}] * 2
    passed, own = cases_of(labelled(data, boxes=[(4, 3, 10, 9), None]), CLASSES_OF_CHEATER)
    assert marks_alike(passed.open()) == 1
    assert marks_alike(own.open()) == 0


@pytest.mark.parametrize("given", [{"0": MASK}, (MASK for _ in range(1))])
def test_masks_are_a_list(given: Any):
    with pytest.raises(OptionError, match="masks= must be a list with one entry per image"):
        labelled([(PICTURE, "coat")], masks=given)


def test_objects_of_one_image_have_names_of_their_own(tmp_path: Path):
    path = str(tmp_path / "x.png")
    Image.fromarray(PICTURE).save(path)
    boxes = [(0, 0, 4, 4), (5, 5, 9, 9), (8, 8, 12, 12)]
    data = labelled([{"image": path, "label": "coat", "box": box} for box in boxes])
    cases = cases_of(data, CLASSES_OF_CHEATER)
    assert [case.name for case in cases] == [path, f"{path} (2)", f"{path} (3)"]
    assert len({case.open().box for case in cases}) == 3


def test_a_digest_is_of_the_pixels_and_of_the_object():
    picture = Image.new("RGB", (6, 4))
    left = np.zeros((4, 6), bool)
    left[:, :3] = True
    others = [Opened(picture), Opened(picture, left), Opened(picture, ~left), Opened(Image.new("RGB", (4, 6)))]
    assert len({one.digest for one in others}) == len(others)
    assert Opened(picture.copy(), left.copy()).digest == others[1].digest


@pytest.mark.parametrize("label", [None, ["coat"], np.ones(3), torch.ones(2)])
def test_what_is_no_label_is_refused_with_its_entry(label: Any):
    with pytest.raises(OptionError, match=r"entry 1 of the data"):
        labelled([(PICTURE, "coat"), (PICTURE, label)])


def test_a_dataset_with_broken_images_is_audited_without_them():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    known = {name: index for index, name in enumerate(CLASSES)}
    scenes = cheater_scenes(6)
    pictures = [{"bytes": b"junk", "path": None}, "/nowhere.png", None, *(picture for picture, _ in scenes[3:])]
    columns = {"image": pictures, "label": [known[label] for _, label in scenes]}
    found = hf_cam.audit("demo:cheater", datasets.Dataset.from_dict(columns, features=features))
    assert [bool(row.error) for row in found.rows] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("wrong", [-1, None])
def test_images_of_a_dataset_without_a_label_are_refused(wrong: int | None):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    data = datasets.Dataset.from_dict({"image": [PICTURE] * 2, "label": [0, wrong]}, features=features)
    with pytest.raises(OptionError, match=rf"entry 1 of the data has no label \({wrong}\); leave such images out"):
        hf_cam.audit("demo:cheater", data)


def test_data_that_is_read_once_or_is_several_sets_is_refused_with_the_way_out():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": ["x.png"], "label": ["coat"]})
    with pytest.raises(OptionError, match=r"which IterableDataset cannot.*from_list"):
        labelled(data.to_iterable_dataset())
    with pytest.raises(OptionError, match="DatasetDict of 'train'; pass one of its splits"):
        labelled(datasets.DatasetDict({"train": data}))


def test_a_whole_name_goes_before_a_part_of_one_and_an_index_before_both():
    classes = {0: "crane", 1: "crane, bird", 2: "maillot", 3: "maillot"}
    assert match(["crane"], classes) == {"crane": 0}
    assert match(["crane", "maillot"], classes, {"crane": 1, "maillot": 3}) == {"crane": 1, "maillot": 3}
    assert match(["0"], classes, {0: "bird"}) == {"0": 1}
    assert match(["0"], classes, {"0": "3"}) == {"0": 3}
    with pytest.raises(OptionError, match=r"pass labels=\{'maillot': INDEX\}, one of \[2, 3\]"):
        match(["maillot"], classes)


@pytest.mark.parametrize("value", ["pullower", 7, True])
def test_a_wrong_value_of_labels_is_named(value: Any):
    with pytest.raises(OptionError, match=rf"'1' of labels= may not be '?{value}'?, which fits no class"):
        match(["0", "1"], CLASSES_OF_CHEATER, {"0": "coat", "1": value})
    with pytest.raises(OptionError, match="labels= must be a dict"):
        match(["0"], CLASSES_OF_CHEATER, ["coat"])  # type: ignore[arg-type]


def test_labels_give_a_model_that_compares_its_prompts():
    prompts = {"coat": "a photo of a coat", "shirt": "a photo of a shirt"}
    found = hf_cam.audit("demo:clip", cheater_scenes(6), labels=prompts)
    assert set(found.classes) == {"a photo of a coat", "pullover", "a photo of a shirt"}
    assert {row.label for row in found.rows} == set(found.classes)
    numbered = hf_cam.audit("demo:clip", cheater_scenes(6), text=list(CLASSES), labels={"coat": CLASSES.index("coat")})
    assert set(numbered.classes) == set(CLASSES)
    with pytest.raises(OptionError, match=r"the model has 'a coat'; pass labels="):
        hf_cam.audit("demo:clip", cheater_scenes(6), text="a coat")
    with pytest.raises(OptionError, match="must give prompts where text= does not, got 0; pass text= as well"):
        hf_cam.audit("demo:clip", cheater_scenes(6), labels={"coat": 0})
