"""What is explained in a data set, for every kind of model, and what is loaded again: the same as `hf_cam.explain`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import hf_cam
from benchmarks.tiny_models import case_of
from hf_cam import Explain
from hf_cam.data.shards import MANIFEST
from hf_cam.errors import OptionError
from hf_cam.results.bundle import IMAGE
from nets import blip2, classifier, clip, depth, segformer, sure_detr
from pictures import noise
from test_heads_prompted import promptable
from test_videos import frames, processor_of, write_gif, write_mp4
from tests.writers import QUESTION, llava_processor, tiny_llava

PICTURES = [noise(64, 70, 0), noise(90, 64, 1), noise(70, 70, 2)]


class Flat(nn.Module):
    """A classifier of nobody's catalogue that takes pictures of one size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(8 * 9 * 7, 3)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(pixel_values).flatten(1))


def flat():
    def process(image):
        return torch.from_numpy(np.array(image.resize((31, 39)))).permute(2, 0, 1) / 255

    torch.manual_seed(0)
    return hf_cam.load(Flat().eval(), processor=process, labels=["a", "b", "c"])


MODELS = {
    "classes": (classifier, {"top_k": 2}),
    "prompts": (clip, {"text": ["cat", "dog"]}),
    "objects": (sure_detr, {}),
    "segments": (segformer, {}),
    "depth": (depth, {}),
    "questions": (blip2, {"text": "what?"}),
    "a module": (flat, {}),
}


def check_same(stored, fresh) -> None:
    assert len(stored) == len(fresh)
    for one, other in zip(stored, fresh, strict=True):
        for name in ("label", "method", "layers", "flags", "score_kind", "signed"):
            assert getattr(one, name) == getattr(other, name)
        assert one.score == pytest.approx(other.score, rel=1e-4)
        np.testing.assert_allclose(one.outlines, other.outlines, atol=2e-2)
        np.testing.assert_allclose(one.heatmap, other.heatmap, atol=5e-3)
        assert one.overlay().size == other.overlay().size


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_loaded_again_is_what_explain_returns(kind, tmp_path: Path) -> None:
    make, settings = MODELS[kind]
    paths = [tmp_path / f"{number}.png" for number in range(len(PICTURES))]
    for path, picture in zip(paths, PICTURES, strict=True):
        picture.save(path)
    hf_cam.explain_dataset(tmp_path, make(), out=tmp_path / "out", batch_size=2, **settings)
    stored, model = hf_cam.load_explanations(tmp_path / "out"), make()
    for path in paths:
        check_same(stored[path.name], hf_cam.explain(path, model, **settings))


def test_what_an_earlier_version_wrote_is_loaded(tmp_path: Path) -> None:
    model = classifier()
    done = hf_cam.explain_dataset(PICTURES, model, out=tmp_path, method="gradcam")
    fresh, [path] = hf_cam.explain(PICTURES, model, method="gradcam"), done.folder.glob("*.parquet")
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["details"]), path)
    manifest = json.loads((done.folder / MANIFEST).read_text())
    manifest |= {"method": "gradcam", "layers": list(fresh[0][0].layers)}
    (done.folder / MANIFEST).write_text(json.dumps(manifest))
    for stored, [one] in zip(hf_cam.load_explanations(tmp_path).values(), fresh, strict=True):
        assert (stored[0].method, stored[0].layers) == (one.method, one.layers)
        np.testing.assert_allclose(stored[0].heatmap, one.heatmap, atol=5e-3)


def test_words_without_a_method_are_refused(tmp_path: Path) -> None:
    model = hf_cam.load(tiny_llava(), processor=llava_processor())
    with pytest.raises(OptionError, match="words of an answer have no predictions without maps"):
        hf_cam.explain_dataset(PICTURES, model, out=tmp_path, text=QUESTION, method=None)


# What is asked of every image -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [[0, 1], np.array([0, 1]), torch.tensor([0, 1])], ids=["list", "array", "tensor"])
def test_several_targets_are_asked_of_each_image_whatever_they_stand_in(target) -> None:
    rows = Explain(classifier(), target=target, batch_size=2)({"image": PICTURES})
    assert rows["error"] == [""] * 3
    assert [len(json.loads(others)) for others in rows["others"]] == [1] * 3


@pytest.mark.parametrize(
    ("marks", "prompts"),
    [
        ({"input_points": [(30, 20), (50, 45)]}, 2),
        ({"input_points": [(30, 20)], "input_labels": [1]}, 1),
        ({"input_boxes": [(5, 5, 40, 40)]}, 1),
        ({"input_boxes": (5, 5, 40, 40)}, 1),
    ],
)
def test_marks_are_asked_of_each_image(marks, prompts) -> None:
    model = promptable("sam2")
    rows = Explain(model, batch_size=2, **marks)({"image": PICTURES})
    assert rows["error"] == [""] * 3
    assert [1 + len(json.loads(others)) for others in rows["others"]] == [prompts] * 3
    fresh = hf_cam.explain(PICTURES[0], model, **marks)
    assert rows["score"][0] == pytest.approx(fresh[0].score, rel=1e-4)


# Videos and overlays --------------------------------------------------------------------------------------------------


def test_videos_are_loaded_and_drawn_with_all_frames_that_the_model_saw(tmp_path: Path) -> None:
    case = case_of("video-classification", "videomae")
    case.build().save_pretrained(tmp_path / "model")
    processor_of(case).save_pretrained(tmp_path / "model")
    model, paths = hf_cam.load(tmp_path / "model"), [str(tmp_path / name) for name in ("moving.gif", "moving.mp4")]
    write_gif(Path(paths[0]), frames(6))
    write_mp4(Path(paths[1]), frames(6))
    hf_cam.explain_dataset(paths, model, out=tmp_path / "out", overlays=True)
    stored = hf_cam.load_explanations(tmp_path / "out")
    for path in paths:
        fresh = hf_cam.explain(path, model)
        check_same(stored[path], fresh)
        np.testing.assert_array_equal(np.stack(stored[path][0].frames), np.stack(fresh[0].frames))
        bundle = fresh[0].save(tmp_path / "bundle" / Path(path).suffix[1:] / "")
        check_same(hf_cam.load_explanations(bundle)[IMAGE], fresh)
    assert len(list((tmp_path / "out").rglob("overlays/**/*.jpg"))) == 2


def test_overlays_are_drawn_later_without_explaining_again(tmp_path: Path, monkeypatch) -> None:
    (folder := tmp_path / "pictures").mkdir()
    for number, picture in enumerate(PICTURES):
        picture.save(folder / f"{number}.png")
    model = classifier()
    hf_cam.explain_dataset(folder, model, out=tmp_path / "out")
    monkeypatch.setattr(Explain, "rows", None)
    assert hf_cam.explain_dataset(folder, model, out=tmp_path / "out", overlays=True).resumed == 3
    names = sorted(path.name for path in (tmp_path / "out").rglob("*.jpg"))
    assert names == ["0.png.jpg", "1.png.jpg", "2.png.jpg"]
    with pytest.raises(OptionError, match="overlays=True needs maps"):
        hf_cam.explain_dataset(folder, model, out=tmp_path / "plain", overlays=True, method=None)
