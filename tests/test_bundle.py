"""The evidence of an explanation in a folder: written whole, read back, and refused where it was changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hf_cam
from hf_cam.errors import ImageError, OptionError
from hf_cam.explanation import Explanation
from hf_cam.models.fingerprint import model_fingerprint
from hf_cam.outputs import sample_of
from hf_cam.results.bundle import FORMAT, bundles_in
from hf_cam.results.files import write_whole
from hf_cam.targets import SumOf
from nets import classifier, detr, explained, maskformer
from pictures import noise
from tests.writers import QUESTION, llava_processor, photograph, tiny_llava

FIELDS = ("label", "score", "score_kind", "method", "layers", "box", "boxes", "flags", "span", "evidence")


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def found() -> Explanation:
    return explained(classifier(), noise(), method_options={}, target=[[None, 1]])[1]


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (classifier, {}),
        (classifier, {"aug_smooth": True}),
        (detr, {"target": SumOf([0, 1]), "renormalize": "box"}),
        (detr, {"target": 3}),
        (maskformer, {"target": (10, 20)}),
    ],
)
def test_what_is_saved_is_loaded_again(make: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    [saved] = explained(make(), noise(), **settings)
    assert saved.save(tmp_path / "evidence") == tmp_path / "evidence"
    [(path, [loaded])] = hf_cam.load_explanations(tmp_path / "evidence").items()
    assert path == "image.png"
    for name in FIELDS:
        assert getattr(loaded, name) == getattr(saved, name), name
    np.testing.assert_allclose(loaded.heatmap, saved.heatmap, atol=1e-6)
    np.testing.assert_array_equal(loaded.raw, saved.raw)
    np.testing.assert_array_equal(loaded.image, saved.image)
    assert (loaded.mask is None) == (saved.mask is None)
    np.testing.assert_array_equal(loaded.overlay(), saved.overlay())
    assert loaded.origin is None


def test_several_layers_come_back_as_the_map_that_they_made(tmp_path: Path) -> None:
    [saved] = explained(classifier(), noise(), "refinecam")
    assert len(saved.layers) > 1
    saved.save(tmp_path / "evidence")
    [[loaded]] = hf_cam.load_explanations(tmp_path / "evidence").values()
    np.testing.assert_allclose(loaded.heatmap, saved.heatmap, atol=1e-5)


def test_the_manifest_names_what_made_the_map(tmp_path: Path) -> None:
    loaded = classifier()
    request = {"target": [[None, "red cup"]], "aug_smooth": True, "method_options": {"seed": 3}}
    explanation = explained(loaded, noise(), "randomcam", **request)[1]
    held = manifest(explanation.save(tmp_path / "evidence"))
    assert held["model"]["class"] == "ViTForImageClassification"
    assert held["model"]["fingerprint"] == model_fingerprint(loaded.model)
    assert held["model"]["dtype"] == "torch.float32"
    assert held["processor"]["class"] == "ViTImageProcessor"
    assert held["processor"]["settings"]["size"] == {"height": 64, "width": 96}
    assert held["target"]["type"] == "ClassLogit"
    assert held["settings"]["target"] == [None, "red cup"]
    assert held["settings"]["aug_smooth"] is True
    assert held["settings"]["method_options"] == {"seed": 3}
    assert held["explanation"]["label"] == explanation.label
    assert held["explanation"]["score"] == explanation.score
    assert held["versions"]["hf-cam"] == hf_cam.__version__
    assert {"python", "torch", "transformers", "numpy"} <= set(held["versions"])
    assert held["check"] is None
    with Image.open(tmp_path / "evidence" / "overlay.png") as overlay:
        np.testing.assert_array_equal(np.asarray(overlay), np.asarray(explanation.overlay()))


def test_a_check_goes_into_the_bundle_and_nowhere_else(found: Explanation, tmp_path: Path) -> None:
    check = found.check()
    held = manifest(found.save(tmp_path / "evidence", check=check))
    assert held["check"]["verdict"] == check.verdict
    assert held["check"]["in words"] == str(check)
    with pytest.raises(OptionError, match="a check goes into a bundle"):
        found.save(tmp_path / "map.png", check=check)


def test_an_explanation_without_its_model_has_a_bundle_that_says_so(found: Explanation, tmp_path: Path) -> None:
    held = manifest(found.changed(origin=None).save(tmp_path / "evidence"))
    assert held["model"] is held["target"] is held["settings"] is None
    assert held["explanation"]["label"] == found.label


@pytest.mark.parametrize("settings", [{}, {"target": ("red", "blue")}], ids=["words", "contrast"])
def test_the_bundle_of_a_word_names_its_model_and_holds_what_its_map_explains(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model, processor = tiny_llava(), llava_processor()
    asked = {"processor": processor, "text": QUESTION, "answer": "a red cup and a kettle", **settings}
    words = hf_cam.explain(photograph(), model, **asked)
    word = words[min(1, len(words) - 1)]
    held = manifest(word.save(tmp_path / "evidence"))
    assert held["model"]["class"] == "LlavaForConditionalGeneration"
    assert held["model"]["fingerprint"] == model_fingerprint(model)
    assert "pixel_values" in held["model"]["inputs"]
    assert held["processor"]["class"] == "LlavaProcessor"
    assert held["target"]["text"] == "a red cup and a kettle"
    assert held["settings"]["text"] == [QUESTION]
    origin = word.origin
    assert origin is not None
    with torch.no_grad():
        value = origin.target(sample_of(origin.model(**origin.inputs), 0, 1))
    assert float(torch.sigmoid(value) if settings else value.exp()) == pytest.approx(word.score, rel=1e-3)
    [[loaded]] = hf_cam.load_explanations(tmp_path / "evidence").values()
    assert (loaded.label, loaded.span, loaded.evidence) == (word.label, word.span, word.evidence)


def test_targets_that_json_cannot_hold_are_described(tmp_path: Path) -> None:
    targets = [lambda output: output["logits"].sum(), torch.nn.CosineSimilarity, SumOf([0, 1])]
    for number, target in enumerate(targets[::2]):
        [one] = explained(classifier(), noise(), target=target)
        text = json.dumps(manifest(one.save(tmp_path / str(number)))["settings"]["target"])
        assert "lambda" in text or "SumOf" in text


def test_a_video_comes_back_with_its_frames(tmp_path: Path) -> None:
    frames = tuple(noise(20, 30, seed) for seed in range(3))
    heatmap = np.linspace(0, 1, 3 * 20 * 30, dtype=np.float32).reshape(3, 20, 30)
    video = Explanation("wave", 0.5, heatmap, heatmap, "gradcam", ("layer",), frames[0], frames=frames)
    video.save(tmp_path / "evidence")
    [[loaded]] = hf_cam.load_explanations(tmp_path / "evidence").values()
    assert len(loaded.frames) == 3
    np.testing.assert_array_equal(loaded.frames[2], frames[2])
    np.testing.assert_allclose(loaded.heatmap, heatmap, atol=1e-6)
    video.changed(frames=frames[:2], heatmap=heatmap[:2]).save(tmp_path / "evidence")
    assert not (tmp_path / "evidence" / "frame-0002.png").exists()


def test_bundles_below_a_folder_are_loaded_by_the_paths_of_their_images(found: Explanation, tmp_path: Path) -> None:
    for name in ("b", "a/deep"):
        found.save(tmp_path / name)
    assert list(hf_cam.load_explanations(tmp_path)) == ["a/deep/image.png", "b/image.png"]


@pytest.mark.parametrize("ending", ["", ".v2"])
def test_a_path_that_ends_in_a_slash_or_in_nothing_is_a_folder(found: Explanation, tmp_path: Path, ending: str) -> None:
    folder = found.save(f"{tmp_path}/evidence{ending}/")
    assert bundles_in(folder) == [folder]
    (tmp_path / "empty.d").mkdir()
    assert (found.save(tmp_path / "empty.d") / "overlay.png").is_file()


def test_a_bundle_is_replaced_and_other_files_are_left_alone(found: Explanation, tmp_path: Path) -> None:
    folder = found.save(tmp_path / "evidence")
    found.changed(label="other").save(folder)
    [[loaded]] = hf_cam.load_explanations(folder).values()
    assert loaded.label == "other"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "overlay.png").write_bytes(b"mine")
    with pytest.raises(ImageError, match="holds other files"):
        found.save(mine)
    assert [path.name for path in mine.iterdir()] == ["overlay.png"]
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(ImageError, match="is a file"):
        found.save(tmp_path / "file")


def test_a_file_that_is_missing_or_changed_is_named(found: Explanation, tmp_path: Path) -> None:
    folder = found.save(tmp_path / "evidence")
    content = (folder / "map.npz").read_bytes()
    (folder / "map.npz").write_bytes(content[:-1])
    with pytest.raises(OptionError, match=r"was changed: map\.npz"):
        hf_cam.load_explanations(folder)
    (folder / "map.npz").unlink()
    with pytest.raises(OptionError, match=r"incomplete: map\.npz"):
        hf_cam.load_explanations(folder)
    (folder / "map.npz").write_bytes(content)
    changed = {**manifest(folder), FORMAT: 2}
    (folder / "manifest.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(OptionError, match="a newer hf-cam reads it"):
        hf_cam.load_explanations(folder)
    with pytest.raises(OptionError, match=r"Explanation\.save write such folders"):
        hf_cam.load_explanations(tmp_path / "nowhere")


def test_what_is_interrupted_is_no_bundle_and_can_be_written_again(
    found: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = found.save(tmp_path / "evidence")

    def full(path: Path, write: Any) -> Path:
        if path.name == "map.npz":
            raise OSError(28, "No space left on device")
        return write_whole(path, write)

    monkeypatch.setattr("hf_cam.results.bundle.write_whole", full)
    with pytest.raises(ImageError, match="No space left"):
        found.changed(label="other").save(folder)
    with pytest.raises(OptionError, match="not written to its end"):
        hf_cam.load_explanations(folder)
    monkeypatch.undo()
    found.save(folder)
    assert len(hf_cam.load_explanations(folder)) == 1


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, lambda file: file.write(b"first"))

    def half(file: Any) -> None:
        file.write(b"sec")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_whole(path, half)
    assert path.read_bytes() == b"first"
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]
