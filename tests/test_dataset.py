"""Data sets: one callable for batches, and a run that writes Parquet and continues where it was stopped."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import hf_cam
from hf_cam.data.explain import Explain
from hf_cam.data.local import explained_rows
from hf_cam.data.shards import LOCK, Shards, parts_of, stored_rows
from hf_cam.data.sources import source_of
from hf_cam.errors import HFCamError, ImageError, LayerError, OptionError
from hf_cam.evaluation.log import lock
from hf_cam.interfaces.cli import main
from hf_cam.targets import SumOf
from nets import classifier, clip, detr
from pages import python_blocks
from pictures import noise
from unchanged import unchanged


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of several sizes and modes in sub-folders, a broken one, and a file that is none."""
    root = tmp_path / "pictures"
    for number in range(6):
        path = root / ("cats" if number % 2 else "dogs") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(40 + 10 * number, 90, number).convert("L" if number == 3 else "RGB").save(path)
    (root / "cats" / "broken.jpg").write_bytes(b"no picture")
    (root / "notes.txt").write_text("not an image")
    return root


def rows_in(out: Path) -> list[dict]:
    return [row for part in parts_of(out) for row in stored_rows(part)]


def run(folder: Path, model, out: Path, **settings):
    return hf_cam.explain_dataset(folder, model, out=out, **{"batch_size": 2, "rows_per_file": 2, **settings})


def test_a_data_set_takes_sums_and_what_was_expected(model, folder, tmp_path) -> None:
    run(folder, model, tmp_path / "out", target=[None, "red cup"])
    found = hf_cam.load_explanations(tmp_path / "out")
    assert {len(explanations) for explanations in found.values()} == {0, 2}
    pair = next(explanations for explanations in found.values() if explanations)
    assert pair[1].label == "red cup"
    assert str(hf_cam.difference(*pair)).startswith("The model says")
    run(folder, model, tmp_path / "sums", target=SumOf([0, "red cup"]))
    [row, *_] = [row for row in rows_in(tmp_path / "sums") if not row["error"]]
    assert row["label"].endswith(" + red cup")
    with pytest.raises(OptionError, match="other settings"):
        run(folder, model, tmp_path / "sums", target=SumOf([0, 1]))
    with pytest.raises(OptionError, match="load_explanations"):
        run(folder, model, tmp_path / "boxes", renormalize="box")
    assert not (tmp_path / "boxes").exists()


def test_a_batch_becomes_columns_equal_to_what_explain_returns(model) -> None:
    images = [noise(50, 90), noise(70, 40, seed=1)]
    with unchanged(model.model):
        columns = Explain(model)({"image": images})
    for i, image in enumerate(images):
        [found] = hf_cam.explain(image, model)
        assert columns["label"][i] == found.label
        assert columns["score"][i] == pytest.approx(found.score, rel=1e-5)
        cells = columns["map"][i].reshape(columns["map_shape"][i])
        np.testing.assert_allclose(cells, found.grid_map.cells, atol=1e-3)
        assert columns["map"][i].dtype == np.float16
        assert columns["geometry"][i]["image_size"] == [image.height, image.width]
        assert columns["evidence"][i] == "image"


def test_targets_and_texts_may_be_columns(model) -> None:
    names = list(model.id2label.values())
    columns = Explain(model)({"image": [noise(), noise()], "target": [names[1], names[0]]})
    assert columns["label"] == [names[1], names[0]]
    texts = Explain(clip())({"image": [noise()] * 3, "text": ["cat", "dog", "cat"]})
    assert texts["label"] == ["cat", "dog", "cat"]
    assert texts["score"][0] == pytest.approx(texts["score"][2])


def test_a_row_without_a_target_or_text_has_that_of_all_whatever_its_batch(model, tmp_path) -> None:
    from datasets import Dataset

    names = list(model.id2label.values())
    asked = Dataset.from_dict({"image": [noise(seed=n) for n in range(3)], "target": [names[2], None, names[2]]})
    for size in (1, 3):
        out = tmp_path / str(size)
        hf_cam.explain_dataset(asked, model, out=out, batch_size=size, target=names[0])
        assert [row["label"] for row in rows_in(out)] == [names[2], names[0], names[2]]
    texts = Explain(clip(), text="bird")({"image": [noise()] * 3, "text": ["cat", None, "dog"]})
    assert texts["label"] == ["cat", "bird", "dog"]


def test_a_wrong_target_of_one_image_is_an_error_of_that_image_alone(model) -> None:
    columns = Explain(model)({"image": [noise(), noise()], "target": [0, "nothing like it"]})
    assert columns["error"][0] == ""
    assert "nothing like it" in columns["error"][1]


@pytest.mark.parametrize(
    ("make", "name", "asked", "words"),
    [
        (clip, "text", ["cat", "", "dog", "cat"], "must be a text that is not empty"),
        (classifier, "target", [0, float("nan"), 1, 0], "finite numbers"),
    ],
)
def test_what_cannot_be_asked_is_an_error_of_its_row_alone(make, name, asked, words) -> None:
    errors = Explain(make())({"image": [noise(seed=n) for n in range(4)], name: asked})["error"]
    assert [bool(error) for error in errors] == [False, True, False, False]
    assert words in errors[1]


def test_settings_that_suit_no_image_stop_the_run(model, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LayerError):
        Explain(model, layers="no.such.layer")({"image": [noise()]})
    with pytest.raises(HFCamError, match="nothing like it"):
        run(folder, model, tmp_path / "out", target="nothing like it")
    with pytest.raises(OptionError, match="nearest: 'target'"):
        Explain(model, tarjet=3)
    with pytest.raises(OptionError, match="no column 'image' or 'path', but: photo"):
        Explain(model)({"photo": [noise()]})


def test_the_callable_is_pickled_without_a_model_that_it_loads_by_name() -> None:
    explain = Explain("demo:vit")
    before = pickle.dumps(explain)
    first = explain({"image": [noise()]})
    copy = pickle.dumps(explain)
    assert copy == before
    assert len(copy) < 2000
    assert pickle.loads(copy)({"image": [noise()]})["score"] == first["score"]


def test_datasets_maps_and_streams_with_the_callable_as_it_is(tmp_path: Path) -> None:
    from datasets import Dataset

    data = Dataset.from_dict({"image": [noise(seed=seed) for seed in range(3)], "label": [0, 1, 2]})
    explain = Explain("demo:vit", prefix="cam_")
    mapped = data.map(explain, batched=True, batch_size=2, new_fingerprint="mapped")
    assert mapped["label"][:] == [0, 1, 2]
    assert mapped[0]["cam_map_shape"] == [12, 16]
    [streamed, *_] = data.to_iterable_dataset().map(explain, batched=True, batch_size=2)
    assert streamed["cam_score"] == pytest.approx(mapped[0]["cam_score"])


def test_a_folder_becomes_one_row_per_image_and_a_broken_file_a_row_with_its_error(model, folder, tmp_path) -> None:
    done = run(folder, model, tmp_path / "out")
    rows = rows_in(tmp_path / "out")
    assert (done.images, done.errors, done.resumed) == (7, 1, 0)
    assert sorted(row["path"] for row in rows) == sorted(
        ["cats/broken.jpg", *(f"{'cats' if n % 2 else 'dogs'}/{n}.png" for n in range(6))]
    )
    [broken] = [row for row in rows if row["error"]]
    assert broken["path"] == "cats/broken.jpg"
    assert "is not an image" in broken["error"]
    table = pd.concat(pd.read_parquet(path) for path in (tmp_path / "out").rglob("*.parquet"))
    assert table["score"].between(0, 1).sum() == 6
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["images"] == 7


def test_each_image_is_opened_once(model, folder, tmp_path, monkeypatch) -> None:
    opened, real = [], Explain.opened
    monkeypatch.setattr(Explain, "opened", lambda self, source: opened.append(source) or real(self, source))
    run(folder, model, tmp_path / "out", overlays=True)
    assert len(opened) == len(set(opened)) == 7
    drawn = [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "out").rglob("*.png.jpg")]
    assert len(drawn) == 6
    assert "out/part-01-of-01/overlays/cats/1.png.jpg" in drawn


def test_no_more_pictures_than_three_batches_are_held(model, tmp_path) -> None:
    source = source_of([noise(seed=seed) for seed in range(20)])
    asked = []
    source.at = lambda index: asked.append(index) or {"image": source.images[index]}
    rows = explained_rows(source, range(20), Explain(model, batch_size=2))
    for count in range(1, 8):
        next(rows)
        assert len(asked) <= count + 3 * 2
    rows.close()


def test_the_same_call_again_tries_errors_again_and_adds_a_new_picture(model, folder, tmp_path, monkeypatch) -> None:
    run(folder, model, tmp_path / "out")
    before = rows_in(tmp_path / "out")
    noise(seed=9).save(folder / "new.png")
    made, real = [], Explain.rows
    monkeypatch.setattr(Explain, "rows", lambda self, *given: made.append(len(given[0])) or real(self, *given))
    again = run(folder, model, tmp_path / "out")
    assert sum(made) == 2
    assert (again.resumed, again.images, again.errors) == (6, 8, 1)
    left = {row["path"]: row["map"] for row in rows_in(tmp_path / "out") if row["path"] != "new.png"}
    assert left == {row["path"]: row["map"] for row in before}
    assert len(rows_in(tmp_path / "out")) == 8


@pytest.mark.parametrize(
    ("other", "named"), [({"method": "layercam"}, "settings"), ({"target": 0}, "settings"), ({"data": 1}, "data")]
)
def test_other_settings_in_the_same_folder_are_refused(model, folder, tmp_path, other, named) -> None:
    run(folder, model, tmp_path / "out")
    settings = dict(other)
    data = folder / "cats" if settings.pop("data", 0) else folder
    with pytest.raises(OptionError, match=named):
        run(data, model, tmp_path / "out", **settings)


def test_another_model_in_the_same_folder_is_refused(model, folder, tmp_path) -> None:
    run(folder, model, tmp_path / "out")
    other = classifier()
    next(iter(other.model.parameters())).data += 1
    with pytest.raises(OptionError, match=r"other settings \(model\)"):
        run(folder, other, tmp_path / "out")


def test_parts_of_a_data_set_are_disjoint_and_complete(model, folder, tmp_path) -> None:
    for i in (1, 2, 3):
        run(folder, model, tmp_path / "out", shard=f"{i}/3")
    assert [part.name for part in parts_of(tmp_path / "out")] == [f"part-0{i}-of-03" for i in (1, 2, 3)]
    paths = [row["path"] for row in rows_in(tmp_path / "out")]
    assert len(paths) == len(set(paths)) == 7
    with pytest.raises(OptionError, match="begun in 3 parts"):
        run(folder, model, tmp_path / "out", shard="1/2")
    for wrong in ("4/3", "0/3", "x", "1/2/3"):
        with pytest.raises(OptionError, match="such as 3/16"):
            run(folder, model, tmp_path / "out", shard=wrong)


def test_a_folder_has_one_writer(model, folder, tmp_path) -> None:
    part = tmp_path / "out" / "part-01-of-01"
    part.mkdir(parents=True)
    with (part / LOCK).open("ab", buffering=0) as held:
        lock(held)
        with pytest.raises(OptionError, match="another process writes"):
            run(folder, model, tmp_path / "out")
    run(folder, model, tmp_path / "out")


def test_an_interrupt_while_a_folder_is_read_leaves_it_free(model, folder, tmp_path, monkeypatch) -> None:
    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Shards, "_take_over", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            run(folder, model, tmp_path / "out")
    assert run(folder, model, tmp_path / "out").images == 7
    assert kept.tb


def test_a_damaged_file_is_set_aside_and_its_images_are_explained_again(model, folder, tmp_path) -> None:
    run(folder, model, tmp_path / "out")
    [first, *_] = sorted((tmp_path / "out").rglob("*.parquet"))
    first.write_bytes(first.read_bytes()[:100])
    again = run(folder, model, tmp_path / "out")
    assert (again.resumed, again.images) == (4, 7)  # two rows are damaged, and one was an error
    assert len({row["path"] for row in rows_in(tmp_path / "out")}) == 7
    assert first.with_suffix(".damaged").exists()


def test_a_full_disk_ends_in_one_sentence_and_loses_nothing(model, folder, tmp_path, monkeypatch) -> None:
    import pyarrow.parquet as pq

    real, calls = pq.write_table, []

    def full(*given, **settings):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(*given, **settings)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OptionError, match=r"No space left.*the same command continues"):
        run(folder, model, tmp_path / "out")
    assert len(rows_in(tmp_path / "out")) == 2
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert run(folder, model, tmp_path / "out").resumed == 2


def test_a_place_that_cannot_be_written_is_refused(model, folder, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OptionError, match="cannot be written"):
        run(folder, model, tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("empty", "holds no pictures"),
        ("/no/such/folder", "there is no folder or file"),
        ("*.nothing", "no picture matches"),
        ([], "there are no images"),
        (3, "data must be a folder"),
    ],
)
def test_data_without_images_is_refused_before_anything_is_written(model, tmp_path, data, words, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(HFCamError, match=words):
        run(data, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_on_error_raise_stops_at_a_broken_file(model, folder, tmp_path) -> None:
    with pytest.raises(ImageError, match="is not an image"):
        run(folder, model, tmp_path / "out", on_error="raise")


def test_globs_parquet_and_saved_datasets_are_data(model, folder, tmp_path) -> None:
    from datasets import Dataset, DatasetDict

    run(str(folder / "**" / "[0-3].png"), model, tmp_path / "globbed")
    assert sorted(row["path"] for row in rows_in(tmp_path / "globbed")) == [
        "cats/1.png", "cats/3.png", "dogs/0.png", "dogs/2.png",
    ]  # fmt: skip
    data = Dataset.from_dict({"image": [str(folder / "cats" / "1.png"), str(folder / "dogs" / "0.png")]})
    from datasets import Image as ImageFeature

    data = data.cast_column("image", ImageFeature())
    data.to_parquet(tmp_path / "data.parquet")
    DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "saved")
    run(tmp_path / "data.parquet", model, tmp_path / "table")
    run(tmp_path / "saved", model, tmp_path / "split", split="test")
    with pytest.raises(OptionError, match="'train', 'test'"):
        run(tmp_path / "saved", model, tmp_path / "none")
    scores = {row["path"]: row["score"] for row in rows_in(tmp_path / "globbed")}
    for out in ("table", "split"):
        rows = rows_in(tmp_path / out)
        assert [row["path"] for row in rows] == ["00000000", "00000001"]
        assert [row["score"] for row in rows] == pytest.approx([scores["cats/1.png"], scores["dogs/0.png"]])


def test_explanations_are_loaded_with_their_heatmaps_and_read_their_images_again(model, folder, tmp_path) -> None:
    run(folder, model, tmp_path / "out")
    found = hf_cam.load_explanations(tmp_path / "out")
    assert found["cats/broken.jpg"] == []
    [stored], [fresh] = found["cats/3.png"], hf_cam.explain(folder / "cats" / "3.png", model)
    np.testing.assert_allclose(stored.heatmap, fresh.heatmap, atol=2e-3)
    assert (stored.label, stored.method, stored.layers) == (fresh.label, fresh.method, fresh.layers)
    assert stored.image.size == fresh.image.size
    assert stored.overlay().size == fresh.image.size
    with pytest.raises(OptionError, match="holds no explanations"):
        hf_cam.load_explanations(tmp_path)


def test_further_objects_of_an_image_are_loaded_too(tmp_path) -> None:
    detector = detr()
    hf_cam.explain_dataset([noise()], detector, out=tmp_path / "out", top_k=3)
    [row] = rows_in(tmp_path / "out")
    fresh = hf_cam.explain(noise(), detector, top_k=3)
    assert [len(row["box"]), len(json.loads(row["others"]))] == [4, len(fresh) - 1]
    [stored] = hf_cam.load_explanations(tmp_path / "out").values()
    assert [one.label for one in stored] == [one.label for one in fresh]
    np.testing.assert_allclose(stored[-1].box, fresh[-1].box, atol=1e-3)
    np.testing.assert_allclose(stored[-1].heatmap, fresh[-1].heatmap, atol=2e-3)


def test_without_a_method_rows_hold_the_same_predictions(model, folder, tmp_path) -> None:
    run(folder, model, tmp_path / "maps")
    run(folder, model, tmp_path / "plain", method=None)
    for with_map, plain in zip(rows_in(tmp_path / "maps"), rows_in(tmp_path / "plain"), strict=True):
        assert plain["label"] == with_map["label"]
        assert plain["map"] == []
        np.testing.assert_allclose(plain["score"], with_map["score"], rtol=1e-5)


def test_an_explanation_as_json_gives_its_heatmap_again(model) -> None:
    from hf_cam.data.rows import explanation_of

    [found] = hf_cam.explain(noise(), model)
    again = explanation_of(json.loads(found.to_json()), noise())
    np.testing.assert_allclose(again.heatmap, found.heatmap, atol=1e-3)
    assert (again.label, again.score, again.layers) == (found.label, found.score, found.layers)


def test_a_thousand_explanations_take_less_than_100_mb(model) -> None:
    image = noise(427, 640)
    [found] = hf_cam.explain(image, model)
    kept = pickle.dumps(found.changed(image=None))
    assert len(kept) < 100e6 / 1000
    assert found.heatmap.nbytes > 10 * len(kept)


def killed_runs(folder: Path, out: Path, count: int, seed: int) -> int:
    """Start the command and kill it at random moments, `count` times; then let it end. Returns how often it was hit."""
    drawn, hits = np.random.default_rng(seed), 0
    command = [sys.executable, "-m", "hf_cam", "dataset", "demo:vit", str(folder), "--out", str(out)]
    command += ["--batch-size", "1", "--rows-per-file", "2"]
    for _ in range(count):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        started = time.monotonic()
        before = len(list(out.rglob("*.parquet")))
        while (
            process.poll() is None and len(list(out.rglob("*.parquet"))) <= before and time.monotonic() < started + 60
        ):
            time.sleep(0.01)
        time.sleep(drawn.uniform(0, 0.2))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            hits += 1
        process.wait()
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    return hits


def check_killed(tmp_path: Path, count: int, seed: int) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(40):
        noise(300 + number, 400, number).save(folder / f"{number:02d}.png")
    assert killed_runs(folder, tmp_path / "out", count, seed) >= 1
    rows = rows_in(tmp_path / "out")
    assert sorted(row["path"] for row in rows) == sorted(path.name for path in folder.iterdir())
    assert not any(row["error"] for row in rows)
    hf_cam.explain_dataset(folder, "demo:vit", out=tmp_path / "whole")
    whole = {row["path"]: row for row in rows_in(tmp_path / "whole")}
    for row in rows:
        assert row["label"] == whole[row["path"]]["label"]
        np.testing.assert_allclose(row["map"], whole[row["path"]]["map"], atol=1e-2)


@pytest.mark.slow
def test_a_killed_run_continues_with_each_image_once(tmp_path) -> None:
    check_killed(tmp_path, 1, 0)


@pytest.mark.slow
def test_a_run_that_is_killed_many_times_ends_complete(tmp_path) -> None:
    check_killed(tmp_path, 5, 1)


WRITER = """
import sys
from pathlib import Path
from hf_cam.data.rows import error_row
from hf_cam.data.shards import Shards
number = 0
while number < 4000:
    with Shards(Path(sys.argv[1]), (1, 1), {"model": "m"}) as shards:
        while number < 4000:
            todo = [str(n) for n in range(number, number + 4) if str(n) not in shards.done]
            rows = [{**error_row("none"), "error": "", "path": name} for name in todo]
            if rows:
                shards.write(rows)
            number += 4
        shards.finish()
"""


def test_files_are_whole_whenever_their_writer_is_killed(tmp_path) -> None:
    drawn, last = np.random.default_rng(2), 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
        while process.poll() is None and len(list(tmp_path.rglob("*.parquet"))) <= last + 3:
            time.sleep(0.005)
        time.sleep(drawn.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Shards(tmp_path, (1, 1), {"model": "m"}) as shards:
            assert not list(tmp_path.rglob("*.tmp"))
            assert not list(tmp_path.rglob("*.damaged"))
            assert len(shards.done) >= 4 * last
            assert sorted(map(int, shards.done)) == list(range(len(shards.done)))
            last = len(shards.done) // 4


def test_the_command_writes_resumes_and_reports(folder, tmp_path, capsys) -> None:
    command = ["dataset", "demo:vit", str(folder), "--out", str(tmp_path / "out"), "--overlays"]
    assert main(command) == 0
    assert "7 images in" in (err := capsys.readouterr().err)
    assert "1 could not be explained" in err
    assert main(command) == 0
    assert "6 of them before" in capsys.readouterr().err
    assert main([*command, "--method", "layercam"]) == 2
    assert "made with other settings" in capsys.readouterr().err


def test_explanations_are_pushed_with_overlays_that_datasets_reads_as_images(hub, model, folder, tmp_path) -> None:
    import datasets

    run(folder, model, tmp_path / "out", rows_per_file=4)
    address = hf_cam.push_explanations(tmp_path / "out", "someone/maps")
    assert address == f"{hub.url}/datasets/someone/maps"
    assert hub.files("someone/maps") == ["README.md", "data/00000.parquet", "data/00001.parquet"]
    assert "data_files: data/*.parquet" in (hub.folder("someone/maps") / "README.md").read_text()
    files = [str(path) for path in sorted((hub.folder("someone/maps") / "data").iterdir())]
    data = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache"))
    assert len(data) == 7
    for row in data:
        if row["error"]:
            assert row["overlay"] is None
        else:
            height, width = row["geometry"]["image_size"]
            assert row["overlay"].size == (width, height)
    with pytest.raises(OptionError, match="holds no explanations"):
        hf_cam.push_explanations(tmp_path, "someone/none")


def test_the_pages_block_pushes_to_the_hub(hub, model, folder, tmp_path, monkeypatch) -> None:
    run(folder, model, tmp_path / "maps")
    monkeypatch.chdir(tmp_path)
    [block] = [
        block for block in python_blocks("docs/tutorials/ten-thousand-images.md") if "push_explanations" in block
    ]
    exec(block, {"hf_cam": hf_cam})
    assert "data/00000.parquet" in hub.files("me/what-my-model-reads")


def test_the_explain_command_takes_folders_keeps_sub_folders_and_writes_a_table(tmp_path, capsys) -> None:
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        noise(50, 90, len(name)).save(tmp_path / "in" / name)
    table = tmp_path / "tables" / "found.csv"
    command = [
        "explain",
        str(tmp_path / "in"),
        "--model",
        "demo:vit",
        "--out",
        str(tmp_path / "out"),
        "--table",
        str(table),
    ]
    assert main(command) == 0
    found = pd.read_csv(table)
    assert list(found["image"]) == [str(tmp_path / "in" / name) for name in ("a/1.png", "b/1.png")]
    assert list(found["file"]) == [str(tmp_path / "out" / name) for name in ("a/1.png", "b/1.png")]
    assert all(Path(name).is_file() for name in found["file"])
    assert found["score"].between(0, 1).all()
    assert main([*command[:-1], str(tmp_path)]) == 2
    assert "--table" in capsys.readouterr().err


MEMORY = """
import resource, sys
from hf_cam.data.explain import Explain
from hf_cam.data.local import explained_rows
from hf_cam.data.sources import source_of
peaks, source = [], source_of(sys.argv[1])
for count, _ in enumerate(explained_rows(source, [i % len(source) for i in range(200)], Explain("demo:vit")), 1):
    if count in (24, 200):
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(*peaks)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path) -> None:
    for number in range(8):
        noise(768, 1024, number).save(tmp_path / f"{number}.jpg")
    found = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    early, late = map(int, found.stdout.split())
    pictures = 200 * 768 * 1024 * 3 / 1024
    assert late - early < 0.2 * pictures
