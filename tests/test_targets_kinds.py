"""Targets of every form: one or several, by name, by index and by place, and what a refusal says."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms
from transformers import ViTConfig, ViTForImageClassification

import hf_cam
from hf_cam.errors import HFCamError, OptionError, TargetError, brief
from hf_cam.explainer import Explainer
from hf_cam.interfaces.cli import main
from hf_cam.models.loading import LoadedModel, names_of
from hf_cam.request import Request
from hf_cam.targets import entries_of, find_label
from nets import clip, depth, detr, embedder, maskformer, owl, segformer, vilt

LONGEST_MESSAGE = 400
PROCESSOR = transforms.Compose([transforms.Resize((64, 96)), transforms.ToTensor()])
PIXELS = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))

# One or several ------------------------------------------------------------------------------------------------------

FORMS = {
    "a list": (["tabby", 3], ["tabby", 3]),
    "a tensor of whole numbers": (torch.tensor([3, 5]), [3, 5]),
    "an array of whole numbers": (np.array([3, 5], np.int16), [3, 5]),
    "a list of tuples": ([(3, 5), (4, 6)], [(3, 5), (4, 6)]),
    "a list of lists": ([[1, 2], 3], [[1, 2], 3]),
    "a tuple": ((3, 5), None),
    "an index": (3, None),
    "a tensor with one number": (torch.tensor(3), None),
    "an embedding": (torch.tensor([3.0, 5.0]), None),
    "an embedding as an array": (np.array([3.0, 5.0]), None),
    "a mask": (np.ones((4, 6), bool), None),
    "a label": ("tabby", None),
}


@pytest.mark.parametrize(("target", "entries"), FORMS.values(), ids=FORMS)
def test_lists_and_whole_numbers_of_one_axis_are_several_targets(target: Any, entries: list | None) -> None:
    assert entries_of(target) == entries


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_single_target_is_that_of_every_image(count: int) -> None:
    assert [one.target for one in Request(target=(3, 5)).for_images(count)] == [(3, 5)] * count


def test_targets_of_one_image_are_explained_in_their_order(vit_folder: Path, picture: Image.Image) -> None:
    found = hf_cam.explain(picture, vit_folder, target=["espresso", 0, "lion"])
    assert [one.label for one in found] == ["espresso", "tabby, tabby cat", "lion, king of beasts"]
    for one in found:
        [alone] = hf_cam.explain(picture, vit_folder, target=one.label)
        np.testing.assert_allclose(one.heatmap, alone.heatmap, atol=1e-4)


@pytest.mark.parametrize(
    "targets", [[1, 2], torch.tensor([1, 2]), np.array([1, 2]), ["tiger cat", "espresso"]], ids=str
)
def test_every_image_of_a_list_has_its_own_target(vit_folder: Path, picture: Image.Image, targets: Any) -> None:
    turned = picture.transpose(Image.Transpose.ROTATE_180)
    found = hf_cam.explain([picture, turned], vit_folder, target=targets)
    assert [[one.label for one in own] for own in found] == [["tiger cat"], ["espresso"]]
    [alone] = hf_cam.explain(turned, vit_folder, target="espresso")
    np.testing.assert_allclose(found[1][0].heatmap, alone.heatmap, atol=1e-4)


def test_an_entry_may_be_a_list_or_left_to_the_model(vit_folder: Path, picture: Image.Image) -> None:
    found = hf_cam.explain([picture] * 3, vit_folder, target=[[0, 4], None, "lion"], batch_size=2)
    [own] = hf_cam.explain(picture, vit_folder)
    assert [[one.label for one in each] for each in found] == [
        ["tabby, tabby cat", "tripod"], [own.label], ["lion, king of beasts"]
    ]  # fmt: skip


def test_several_places_of_one_image_are_several_targets(photo: Image.Image) -> None:
    loaded = detr()
    [one] = hf_cam.explain(photo, loaded.model, processor=loaded.processor, target=3)
    place = ((one.box[0] + one.box[2]) / 2, (one.box[1] + one.box[3]) / 2)
    found = hf_cam.explain(photo, loaded.model, processor=loaded.processor, target=[3, place, 5])
    assert len(found) == 3
    assert found[0].box == one.box != found[2].box


@pytest.mark.parametrize("make", [detr, segformer])
@pytest.mark.parametrize("images", [1, 2])
def test_a_pixel_as_a_list_is_an_error_that_shows_the_tuple(photo: Image.Image, make: Any, images: int) -> None:
    loaded = make()
    image = photo if images == 1 else [photo] * images
    for target in ([3, 5], np.array([3, 5]), torch.tensor([3, 5])):
        with pytest.raises(TargetError, match=r"a pixel or a box is a tuple: pass target=\(3, 5\)"):
            hf_cam.explain(image, loaded.model, processor=loaded.processor, target=target)


def test_a_box_as_a_list_is_an_error_also_as_an_entry(photo: Image.Image) -> None:
    loaded = detr()
    with pytest.raises(TargetError, match=r"target=\(1, 2\.5, 30, 40\)"):
        hf_cam.explain([photo, photo], loaded.model, processor=loaded.processor, target=[[1, 2.5, 30, 40], (3, 5)])


COUNTS = {
    "too few": ([1], "1 targets for 2 images"),
    "too many": ([1, 2, 3], "3 targets for 2 images; a list of targets has one entry per image"),
    "none": ([], "0 targets for 2 images|the list of targets is empty"),
    "an array": (np.array([1, 2, 3]), "3 targets for 2 images"),
}


@pytest.mark.parametrize(("target", "words"), COUNTS.values(), ids=COUNTS)
def test_another_number_of_targets_than_images_is_refused(
    vit_folder: Path, picture: Image.Image, target: Any, words: str
) -> None:
    for ask in (
        lambda: hf_cam.explain([picture, picture], vit_folder, target=target),
        lambda: hf_cam.GradCAM(ViTForImageClassification.from_pretrained(vit_folder))(PIXELS, targets=target),
        lambda: hf_cam.pipeline("image-cam", model=str(vit_folder))([picture, picture], target=target),
    ):
        with pytest.raises(TargetError, match=words):
            ask()


def test_methods_are_measured_on_one_target(vit_folder: Path, picture: Image.Image) -> None:
    with pytest.raises(TargetError, match="one target is measured per image"):
        hf_cam.evaluate(vit_folder, [picture], methods=["gradcam"], target=[0, 1], progress=False)


# The other doors -----------------------------------------------------------------------------------------------------


def test_the_pipeline_takes_lists_as_explain_does(vit_folder: Path, picture: Image.Image) -> None:
    cam = hf_cam.pipeline("image-cam", model=str(vit_folder))
    assert [one["label"] for one in cam(picture, target=["espresso", 0])] == ["espresso", "tabby, tabby cat"]
    for batch_size in (1, 2):
        found = cam([picture] * 3, target=[0, [1, 2], 3], batch_size=batch_size)
        assert [[one["label"] for one in own] for own in found] == [
            ["tabby, tabby cat"], ["tiger cat", "espresso"], ["lion, king of beasts"]
        ]  # fmt: skip
    both = hf_cam.pipeline("image-cam", model=str(vit_folder), target=[0, 1])
    assert [[one["label"] for one in own] for own in both([picture] * 2)] == [["tabby, tabby cat", "tiger cat"]] * 2
    with pytest.raises(TargetError, match="so it needs a list of images, not generator"):
        cam((image for image in [picture]), target=[0])


def test_the_pipeline_takes_labels_and_what_the_model_returns(vit_folder: Path, picture: Image.Image) -> None:
    names = ["a", "b", "c", "d", "e"]
    cam = hf_cam.pipeline("image-cam", model=str(vit_folder), labels=names)
    assert cam(picture, target="d")[0]["label"] == "d"
    scores = [one["score"] for one in cam(picture, output="multi-label", target=[0, 1, 2, 3, 4])]
    assert sum(scores) != pytest.approx(1, abs=0.01)
    with pytest.raises(OptionError, match="output must be one of"):
        cam(picture, output="scores")


def test_the_command_explains_every_target(vit_folder: Path, picture_file: Path, tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "out")
    asked = ["explain", str(picture_file), "--model", str(vit_folder), "--out", out]
    assert main([*asked, "--target", "espresso", "--target", "0"]) == 0
    printed = capsys.readouterr().out
    assert [line.split(": ")[1].split(" 0.")[0] for line in printed.splitlines()] == ["espresso", "tabby, tabby cat"]
    assert main([*asked, "--target", "espresso", "--target", "5"]) == 2
    assert "no class 5" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["lines", "list", "object"])
def test_the_command_reads_labels_from_a_file(
    vit_folder: Path, picture_file: Path, tmp_path: Path, capsys: Any, form: str
) -> None:
    names = ["Café", "Thé", "c", "d", "e"]
    written = {"lines": "\n".join(names), "list": json.dumps(names), "object": json.dumps(dict(enumerate(names)))}[form]
    file = tmp_path / "labels"
    file.write_text(written, encoding="utf-8")
    asked = ["explain", str(picture_file), "--model", str(vit_folder), "--out", str(tmp_path / "a.png")]
    assert main([*asked, "--labels", str(file), "--target", "café", "--output", "multi-label"]) == 0
    assert "Café 0." in capsys.readouterr().out
    assert main([*asked, "--labels", str(tmp_path / "nothing")]) == 2
    assert "--labels must be a file of class names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('["cat", "dog"', "is no valid JSON (JSONDecodeError: Expecting ',' delimiter"),
        ("{'cat': 0}", "is no valid JSON (JSONDecodeError: Expecting property name"),
        ("cat\n\ndog", "line 2 of "),
        ("\n", "labels must be a list of class names"),
    ],
    ids=["a list cut off", "Python's quotes", "an empty line", "nothing"],
)
def test_names_that_cannot_be_read_shift_no_class(
    vit_folder: Path, picture_file: Path, tmp_path: Path, capsys: Any, text: str, words: str
) -> None:
    (tmp_path / "names").write_text(text, encoding="utf-8")
    asked = ["explain", str(picture_file), "--model", str(vit_folder), "--labels", str(tmp_path / "names")]
    assert main([*asked, "--out", str(tmp_path / "a.png")]) == 2
    assert words in capsys.readouterr().err


def test_the_command_takes_a_threshold(vit_folder: Path, picture_file: Path, tmp_path: Path, capsys: Any) -> None:
    asked = ["explain", str(picture_file), "--model", str(vit_folder), "--out", str(tmp_path / "a.png")]
    assert main([*asked, "--threshold", "0.4"]) == 2
    assert "finds no objects or segments to which threshold= could apply" in capsys.readouterr().err
    assert main([*asked, "--threshold", "4"]) == 2
    assert "threshold must be a score in [0, 1], got 4.0" in capsys.readouterr().err


# Names ---------------------------------------------------------------------------------------------------------------

NAMES = {0: "cat", 1: "big cat, wild cat", 2: "catfish", 3: "Straße", 4: "Café au lait", 5: "crane", 6: "crane",
         7: "T-shirt, tee shirt", 8: "golden_retriever"}  # fmt: skip
FOUND = {
    "the whole label before a word": ("cat", 0),
    "one of the names": ("wild cat", 1),
    "words before parts of words": ("big", 1),
    "words in a row": ("au lait", 4),
    "a part of a word": ("fish", 2),
    "another case": ("CATFISH", 2),
    "case folding": ("STRASSE", 3),
    "an accent apart": (unicodedata.normalize("NFD", "café au lait"), 4),
    "an accent apart, in another case": (unicodedata.normalize("NFD", "CAFÉ"), 4),
    "a hyphen as a blank": ("t shirt", 7),
    "an underscore as a blank": ("golden retriever", 8),
    "blanks around": ("  tee shirt ", 7),
}


@pytest.mark.parametrize(("label", "index"), FOUND.values(), ids=FOUND)
def test_a_label_is_found_by_what_people_write(label: str, index: int) -> None:
    assert find_label(label, NAMES) == index


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_models_own_names_may_have_either_form(form: str) -> None:
    names = {0: unicodedata.normalize(form, "Thé"), 1: unicodedata.normalize(form, "Chó Phú Quốc")}
    for asked in ("NFC", "NFD"):
        assert find_label(unicodedata.normalize(asked, "chó phú quốc"), names) == 1


def test_two_classes_of_one_name_are_told_apart_by_their_indices() -> None:
    with pytest.raises(
        TargetError, match=r"'crane' fits 2 classes \('crane', 'crane'\); pass one of their indices, 5, 6"
    ):
        find_label("crane", NAMES)
    with pytest.raises(TargetError, match=r"fits 12 classes .*, \.\.\.\); .* 0, 1, 2, 3, 4, \.\.\."):
        find_label("name", {index: f"name {index}" for index in range(12)})


def classifier(names: dict[int, str]) -> nn.Module:
    config = ViTConfig(
        image_size=(64, 96), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label=names, label2id={name: index for index, name in names.items()},
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


@pytest.mark.parametrize("target", ["dog", 2])
def test_an_index_that_the_model_lacks_is_refused(picture: Image.Image, target: Any) -> None:
    with pytest.raises(TargetError, match=r"class 2 \('dog'\) does not exist: the model returns 2 scores, counted"):
        hf_cam.explain(picture, classifier({1: "cat", 2: "dog"}), processor=PROCESSOR, target=target)


def test_names_that_do_not_fit_the_scores_are_not_used(picture: Image.Image) -> None:
    [found] = hf_cam.explain(picture, classifier({1: "cat", 2: "dog"}), processor=PROCESSOR)
    assert found.label in ("0", "1")


def test_labels_that_count_from_one_name_the_scores_that_exist(picture: Image.Image) -> None:
    net = torchvision.models.resnet18(num_classes=3).eval()
    found = hf_cam.explain(picture, net, processor=PROCESSOR, labels={1: "cat", 2: "dog"}, target=["dog", 1, 0])
    assert [one.label for one in found] == ["dog", "cat", "0"]


@pytest.mark.parametrize("labels", [["cat", "dog", "cup", "pug"], {1: "cat", 2: "dog", 3: "cup"}], ids=str)
def test_names_of_the_callers_that_do_not_fit_the_scores_are_refused(picture: Image.Image, labels: Any) -> None:
    net = torchvision.models.resnet18(num_classes=3).eval()
    with pytest.raises(TargetError, match=r"labels= names the classes \d to 3, but the model returns 3 scores"):
        hf_cam.explain(picture, net, processor=PROCESSOR, labels=labels)


INSTEAD = {
    "classes in a tuple": ((3, 4, 5), r"several targets are a list, \[3, 4, 5\]"),
    "a range": (range(3), r"several targets are a list, \[0, 1, 2\]"),
    "a long range": (range(9), "several targets are a list$"),
    "a pixel": ((12, 30), "a pixel or a box needs a detector or a segmenter, and several targets are a list"),
    "a float": (3.0, "float 3.0; pass 3$"),
    "a mask": (np.ones((4, 6), bool), "a mask needs a segmenter"),
    "names in an array": (np.array(["cat"]), "pass the names or indices as a list"),
}


@pytest.mark.parametrize(("target", "words"), INSTEAD.values(), ids=INSTEAD)
def test_what_is_no_class_is_refused_with_what_to_pass(picture: Image.Image, target: Any, words: str) -> None:
    net = torchvision.models.resnet18(num_classes=3).eval()
    with pytest.raises(TargetError, match=f"a target of ResNet must be a class index, .*{words}"):
        hf_cam.explain(picture, net, processor=PROCESSOR, target=target)


def test_a_name_as_it_is_written_goes_before_one_in_another_case() -> None:
    names = {0: "Polish", 1: "polish"}
    assert [find_label(name, names) for name in ("Polish", "polish")] == [0, 1]
    with pytest.raises(TargetError, match="fits 2 classes"):
        find_label("POLISH", names)


def test_timms_names_are_those_of_the_weights_that_it_describes(picture: Image.Image) -> None:
    net = timm.create_model("test_resnet").eval()
    [found] = hf_cam.explain(picture, net, target="tabby")
    assert found.label == "tabby, tabby cat"
    [found] = hf_cam.explain(picture, timm.create_model("test_resnet", num_classes=3).eval(), target=2)
    assert found.label == "2"


def test_torchvisions_names_are_never_assumed(picture: Image.Image) -> None:
    net = torchvision.models.resnet18().eval()
    [found] = hf_cam.explain(picture, net, processor=PROCESSOR, target=281)
    assert found.label == "281"
    categories = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    [found] = hf_cam.explain(picture, net, processor=PROCESSOR, target="tabby", labels=categories)
    assert found.label == "tabby"


@pytest.mark.parametrize("labels", ["cat", [], [1, 2], {"cat": 0}, {0: 1}, {None: "cat"}, 7, {"x": "cat"}], ids=str)
def test_what_is_no_list_or_dict_of_names_is_refused(labels: Any) -> None:
    with pytest.raises(OptionError, match="labels") as refusal:
        names_of(labels)
    assert len(str(refusal.value)) <= LONGEST_MESSAGE


# Refusals ------------------------------------------------------------------------------------------------------------

MONSTERS = {
    "a long text": "whale " * 500,
    "a long list": list(range(5000)),
    "a list of long texts": ["x" * 5000, "y" * 5000],
    "a large array": np.zeros((40, 50, 60, 70)),
    "a long tuple": tuple(range(5000)),
    "a dict": {str(i): i for i in range(5000)},
    "bytes": b"x" * 5000,
    "a set": set(range(5000)),
    "an object": object(),
    "a number": 10**300,
    "a float": 3.14159,
    "nothing in a list": [None, [[]]],
}


HEADS = {
    "a classifier": (lambda: classifier({index: f"{index}" + "n" * 900 for index in range(3)}), {}),
    "a detector": (detr, {}),
    "a segmenter": (segformer, {}),
    "a segmenter by masks": (maskformer, {}),
    "a depth estimator": (depth, {}),
    "an embedding model": (embedder, {}),
    "image and text towers": (clip, {"text": ["a cat", "a dog"]}),
    "a detector by prompts": (owl, {"text": ["a cat", "a dog"]}),
    "answers from a list": (vilt, {"text": "what is it?"}),
}


@pytest.mark.parametrize("monster", MONSTERS.values(), ids=MONSTERS)
@pytest.mark.parametrize(("make", "asked"), HEADS.values(), ids=HEADS)
def test_a_refusal_is_short_whatever_was_passed(photo: Image.Image, make: Any, asked: dict, monster: Any) -> None:
    made = make()
    loaded = LoadedModel(made, PROCESSOR, made.config.id2label) if isinstance(made, nn.Module) else made
    for count in (1, 2):
        request = Request.of(target=monster, **asked)
        with pytest.raises(HFCamError) as refusal:
            list(Explainer(loaded)([photo] * count, request.of_each() if count == 1 else request))
        assert 20 <= len(str(refusal.value)) <= LONGEST_MESSAGE


VALID = (("top_k", "a number"), ("labels", "a list of long texts"))
SETTINGS = ("text", "threshold", "top_k", "labels", "output", "method_options")


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in SETTINGS for kind in MONSTERS
                                            if (name, kind) not in VALID], ids=str)  # fmt: skip
def test_a_setting_of_the_wrong_kind_is_refused_as_shortly(
    vit_folder: Path, photo: Image.Image, name: str, kind: str
) -> None:
    with pytest.raises(HFCamError) as refusal:
        hf_cam.explain(photo, vit_folder, **{name: MONSTERS[kind]})
    assert 20 <= len(str(refusal.value)) <= LONGEST_MESSAGE


@pytest.mark.parametrize("value", MONSTERS.values(), ids=MONSTERS)
def test_a_value_in_a_message_is_short(value: Any) -> None:
    assert 1 <= len(brief(value)) <= 60
