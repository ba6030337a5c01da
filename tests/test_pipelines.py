"""The transformers pipeline: every kind of input, every argument, and what comes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from transformers.pipelines.pt_utils import KeyDataset

import hf_cam
from hf_cam.errors import ImageError, ModelError, OptionError, TargetError
from hf_cam.targets import SumOf
from nets import LABELS


@pytest.fixture(scope="module")
def cam(vit_folder):
    """The pipeline on the tiny ViT."""
    return transformers.pipeline("image-cam", model=str(vit_folder))


@pytest.fixture(scope="module")
def pictures(picture):
    """Five pictures of three sizes, no two alike."""
    mirrored = picture.transpose(0)
    return [picture, picture.resize((120, 90)), mirrored, mirrored.resize((120, 90)), picture.resize((30, 70))]


@pytest.fixture(scope="module")
def expected(cam, pictures):
    """What the pipeline says of each picture on its own."""
    return [cam(picture) for picture in pictures]


@pytest.fixture(scope="module")
def dataset(pictures):
    """The pictures as rows of a `datasets.Dataset`, each with a number."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "number": datasets.Value("int32")})
    return datasets.Dataset.from_dict({"image": pictures, "number": list(range(len(pictures)))}, features=features)


def check(found, expected):
    """The same explanations of the same images, in the same order."""
    found = list(found)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert [entry["label"] for entry in ours] == [entry["label"] for entry in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
            np.testing.assert_allclose(one["heatmap"], other["heatmap"], atol=1e-4)


def test_pictures_differ_so_that_an_exchange_would_be_seen(expected):
    first, third = expected[0][0]["heatmap"], expected[2][0]["heatmap"]
    assert np.abs(first - third).max() > 0.05


def test_one_image_gives_a_list_of_dicts(cam, picture):
    found = cam(picture)
    assert isinstance(found, list)
    assert [set(entry) for entry in found] == [{"label", "score", "score_kind", "heatmap"}]


def test_the_heatmap_has_the_pixels_of_the_image(expected, pictures):
    for [entry], picture in zip(expected, pictures, strict=True):
        heatmap = entry["heatmap"]
        assert heatmap.shape == (picture.height, picture.width)
        assert heatmap.dtype == np.float32
        assert heatmap.min() >= 0
        assert heatmap.max() == pytest.approx(1)


def test_label_and_score_are_the_models_own(cam, picture, vit):
    inputs = cam.image_processor(images=picture, return_tensors="pt")
    with torch.no_grad():
        probabilities = vit(**inputs).logits.softmax(-1)[0]
    [found] = cam(picture)
    assert found["label"] == LABELS[int(probabilities.argmax())]
    assert found["score"] == pytest.approx(float(probabilities.max()), abs=1e-5)


def test_the_pipeline_and_explain_agree(cam, picture, vit_folder):
    [found], [explained] = cam(picture), hf_cam.explain(picture, model=vit_folder)
    assert found["label"] == explained.label
    np.testing.assert_allclose(found["heatmap"], explained.heatmap, atol=1e-6)


@pytest.mark.parametrize("kind", ["path", "str", "array", "tensor"])
def test_paths_arrays_and_tensors_give_what_the_picture_gives(cam, picture, picture_file, expected, kind):
    image = {
        "path": picture_file,
        "str": str(picture_file),
        "array": np.asarray(picture),
        "tensor": torch.from_numpy(np.array(picture)).permute(2, 0, 1),
    }[kind]
    check([cam(image)], expected[:1])


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_gives_a_list_of_lists(cam, pictures, expected, kind):
    found = cam(kind(pictures))
    assert isinstance(found, list)
    check(found, expected)


@pytest.mark.parametrize("nothing", [[], ()])
def test_no_images_give_no_results(cam, nothing):
    assert cam(nothing) == []


def test_a_list_of_one_stays_a_list(cam, pictures, expected):
    check(cam(pictures[:1]), expected[:1])


def test_a_generator_is_explained_image_by_image(cam, pictures, expected):
    drawn = []

    def images():
        for number, picture in enumerate(pictures):
            drawn.append(number)
            yield picture

    found = cam(images())
    assert len(drawn) <= 1  # transformers looks at the first
    check([next(iter(found))], expected[:1])
    assert len(drawn) < len(pictures)


SOURCES = {
    "a list": lambda pictures, dataset: pictures,
    "a generator": lambda pictures, dataset: (picture for picture in pictures),
    "a key of a dataset": lambda pictures, dataset: KeyDataset(dataset, "image"),
    "a dataset": lambda pictures, dataset: dataset,
    "a dataset, streamed": lambda pictures, dataset: dataset.to_iterable_dataset(),
    "a dataset's column": lambda pictures, dataset: dataset["image"],
    "a dataset with an image column of another name": lambda pictures, dataset: dataset.rename_column("image", "photo"),
}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("source", SOURCES)
def test_a_source_in_batches_gives_what_its_pictures_give_alone(cam, pictures, dataset, expected, source, batch_size):
    check(cam(SOURCES[source](pictures, dataset), batch_size=batch_size), expected)


def test_a_dataset_with_several_image_columns_is_refused_by_their_names(cam, dataset):
    datasets = pytest.importorskip("datasets")
    renamed = (dataset.select_columns("image").rename_column("image", name) for name in ("first", "second"))
    both = datasets.concatenate_datasets(list(renamed), axis=1)
    with pytest.raises(ImageError, match=r"2 image columns \(first, second\).*pass one of them"):
        list(cam(both))


def test_a_dataset_without_images_is_refused_by_its_columns(cam, dataset):
    with pytest.raises(ImageError, match=r"no image column.*number"):
        list(cam(dataset.remove_columns("image")))


def test_a_dict_of_splits_is_refused_by_their_names(cam, dataset):
    datasets = pytest.importorskip("datasets")
    with pytest.raises(ImageError, match=r"choose a split.*train.*test"):
        cam(datasets.DatasetDict(train=dataset, test=dataset))


def test_top_k_gives_the_best_first(cam, picture):
    found = cam(picture, top_k=3)
    scores = [entry["score"] for entry in found]
    assert len(found) == 3
    assert scores == sorted(scores, reverse=True)
    assert len({entry["label"] for entry in found}) == 3
    assert np.abs(found[0]["heatmap"] - found[1]["heatmap"]).max() > 0.05


def test_top_k_beyond_the_classes_gives_all_of_them(cam, picture):
    found = cam(picture, top_k=99)
    assert {entry["label"] for entry in found} == set(LABELS.values())
    assert sum(entry["score"] for entry in found) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("target", "label"),
    [
        pytest.param("lion", "lion, king of beasts", id="one of the names"),
        pytest.param("King of Beasts", "lion, king of beasts", id="another, in any case"),
        pytest.param("espresso", "espresso", id="the whole label"),
        pytest.param("2", "espresso", id="digits are an index"),
        pytest.param(1, "tiger cat", id="index"),
        pytest.param(np.int64(1), "tiger cat", id="numpy index"),
        pytest.param(torch.tensor(1), "tiger cat", id="tensor index"),
    ],
)
def test_a_target_by_label_or_index_is_that_class(cam, picture, target, label):
    [found] = cam(picture, target=target)
    assert found["label"] == label
    everything = {entry["label"]: entry for entry in cam(picture, top_k=5)}
    check([[found]], [[everything[label]]])


def test_a_callable_target_gives_the_map_of_its_scalar(cam, picture):
    def espresso(output):
        return output.logits[2]

    [own], [named] = cam(picture, target=espresso), cam(picture, target="espresso")
    assert own["label"] == "espresso"
    np.testing.assert_allclose(own["heatmap"], named["heatmap"], atol=1e-5)


def test_a_target_holds_for_every_image_of_a_batch(cam, pictures):
    found = cam(pictures, target="tiger cat", batch_size=2)
    assert [entry["label"] for entries in found for entry in entries] == ["tiger cat"] * 5


def test_method_layers_and_smoothing_are_those_of_explain(cam, picture, vit_folder):
    asked = {"method": "hirescam", "layers": "vit.layers.0", "target": 1, "aug_smooth": True, "eigen_smooth": True}
    [found], [explained] = cam(picture, **asked), hf_cam.explain(picture, model=vit_folder, **asked)
    assert (explained.method, explained.layers) == ("hirescam", ("vit.layers.0",))
    np.testing.assert_allclose(found["heatmap"], explained.heatmap, atol=1e-5)
    assert np.abs(found["heatmap"] - cam(picture, target=1)[0]["heatmap"]).max() > 0.05


def test_a_second_layer_changes_the_map(cam, picture):
    [first] = cam(picture, layers=["vit.layers.0"])
    [both] = cam(picture, layers=["vit.layers.0", "vit.layers.1.layernorm_before"])
    assert np.abs(first["heatmap"] - both["heatmap"]).max() > 0.01


def test_the_callers_reshape_is_used(cam, picture):
    calls = []

    def reshape(tokens):
        calls.append(tokens.shape)
        return tokens[:, 1:].unflatten(1, (4, 6)).permute(0, 3, 1, 2)

    check([cam(picture, reshape=reshape)], [cam(picture)])
    assert calls


def test_arguments_of_the_constructor_hold_for_every_call(vit_folder, picture):
    cam = transformers.pipeline("image-cam", model=str(vit_folder), top_k=2)
    assert len(cam(picture)) == 2
    assert len(cam(picture, top_k=1)) == 1
    assert len(cam(picture)) == 2


def test_the_alias_is_the_same_task(vit_folder, picture, expected):
    cam = transformers.pipeline("explain", model=str(vit_folder))
    assert isinstance(cam, hf_cam.ImageCamPipeline)
    assert cam.task == "explain"
    check([cam(picture)], expected[:1])


def test_our_pipeline_takes_a_folder_and_other_tasks(vit_folder, picture, expected):
    check([hf_cam.pipeline(model=vit_folder)(picture)], expected[:1])
    classifier = hf_cam.pipeline("image-classification", model=str(vit_folder))
    assert classifier(picture)[0]["label"] == expected[0][0]["label"]


def test_a_loaded_model_brings_its_processor(vit, picture, expected):
    check([transformers.pipeline("image-cam", model=vit)(picture)], expected[:1])


def test_a_loaded_model_with_its_processor_given(vit, vit_folder, picture, expected):
    vit.config._name_or_path = ""
    processor = transformers.AutoImageProcessor.from_pretrained(vit_folder)
    check([transformers.pipeline("image-cam", model=vit, image_processor=processor)(picture)], expected[:1])


def test_a_loaded_model_without_a_name_needs_a_processor(vit):
    vit.config._name_or_path = ""
    with pytest.raises(ModelError, match="no image processor is known for this ViTForImageClassification"):
        transformers.pipeline("image-cam", model=vit)


def test_a_module_that_is_no_transformers_model_is_refused():
    with pytest.raises(ModelError, match=r"a pipeline needs a transformers model, got Linear; hf_cam\.explain"):
        hf_cam.ImageCamPipeline(torch.nn.Linear(2, 2))


def test_an_unknown_argument_names_the_nearest(cam, picture, vit_folder):
    with pytest.raises(OptionError, match=r"image-cam has no argument 'topk'; nearest: 'top_k'"):
        cam(picture, topk=2)
    with pytest.raises(OptionError, match=r"image-cam has no argument 'metod'; nearest: 'method'"):
        transformers.pipeline("image-cam", model=str(vit_folder), metod="gradcam")


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_a_batch_size_below_one_is_refused(cam, pictures, batch_size):
    with pytest.raises(OptionError, match="batch_size must be a whole number from 1"):
        cam(pictures, batch_size=batch_size)


def test_an_ambiguous_target_is_refused(cam, picture):
    with pytest.raises(TargetError, match=r"'cat' fits 2 classes \('tabby, tabby cat', 'tiger cat'\)"):
        cam(picture, target="cat")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_neither_matters_nor_changes(cam, pictures, expected, mode):
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        check(cam(pictures, batch_size=2), expected)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before


def test_worker_processes_decode_the_images(cam, pictures, expected):
    check(cam(pictures[:2], num_workers=1, batch_size=2), expected[:2])


def test_half_precision_gives_float32_heatmaps(vit_folder, picture, expected):
    cam = transformers.pipeline("image-cam", model=str(vit_folder), dtype=torch.bfloat16)
    assert cam.model.dtype == torch.bfloat16
    [found] = cam(picture)
    assert found["heatmap"].dtype == np.float32
    assert np.abs(found["heatmap"] - expected[0][0]["heatmap"]).mean() < 0.1


def test_the_saved_pipeline_loads_again(cam, picture, expected, tmp_path):
    cam.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.py"))
    check([transformers.pipeline("image-cam", model=str(tmp_path / "saved"))(picture)], expected[:1])


def test_a_pipeline_takes_sums_and_what_was_expected(cam, picture):
    [both] = cam(picture, target=SumOf([0, 1]))
    assert " + " in both["label"]
    predicted, expected = cam(picture, target=[None, "espresso"])
    assert [predicted["label"], expected["label"]] == [cam(picture)[0]["label"], "espresso"]
    with pytest.raises(OptionError, match="needs the boxes of a detector"):
        cam(picture, renormalize="box")


def test_a_pipeline_of_a_detector_gives_all_boxes_of_a_sum_and_stretches_them(picture):
    detector = hf_cam.pipeline("image-cam", model="demo:detr")
    [both] = detector(picture, target=SumOf([0, 1]), renormalize="box")
    assert len(both["boxes"]) == 2
    assert set(both["boxes"][0]) == {"xmin", "ymin", "xmax", "ymax"}
    assert "box" not in both
