"""What a data set is: which data a folder of explanations continues, and that no image is lost or mistaken."""

import base64
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hf_cam
from hf_cam import Explain
from hf_cam.data.dataset import overlay_path
from hf_cam.data.shards import manifest_of, parts_of, stored_rows
from hf_cam.data.sources import source_of
from hf_cam.errors import ImageError, OptionError
from hf_cam.targets import SumOf
from nets import classifier, detr
from pictures import noise


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for number in range(4):
        path = root / ("a" if number % 2 else "b") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(40, 50, number).save(path)
    return root


def rows_in(out: Path) -> dict[str, dict]:
    rows = [row for part in parts_of(out) for row in stored_rows(part)]
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


def run(data, model, out: Path, **settings):
    return hf_cam.explain_dataset(data, model, out=out, **{"batch_size": 2, "rows_per_file": 2, **settings})


def table(seed: int, count: int = 3):
    from datasets import Dataset
    from datasets import Image as Feature

    pictures = [noise(40, 50, seed + number) for number in range(count)]
    return Dataset.from_dict({"image": pictures, "other": pictures[::-1]}).cast_column("other", Feature())


# The same data, or other ----------------------------------------------------------------------------------------------


def parquet_of(tmp_path: Path, seed: int) -> Path:
    table(seed).to_parquet(path := tmp_path / "data.parquet")
    return path


def saved(tmp_path: Path, seed: int) -> Path:
    table(seed).save_to_disk(path := tmp_path / f"saved-{seed}")
    (kept := tmp_path / "saved").unlink(missing_ok=True)
    kept.symlink_to(path)
    return kept


def buffers(tmp_path: Path, seed: int) -> list[bytearray]:
    for number in range(3):
        noise(40, 50, seed + number).save(tmp_path / f"{number}.png")
    return [bytearray((tmp_path / f"{number}.png").read_bytes()) for number in range(3)]


KINDS = {
    "buffers": buffers,
    "dataset": lambda tmp_path, seed: table(seed),
    "pictures": lambda tmp_path, seed: [noise(40, 50, seed + number) for number in range(3)],
    "arrays": lambda tmp_path, seed: [np.asarray(noise(40, 50, seed + number)) for number in range(3)],
    "parquet": parquet_of,
    "saved": saved,
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_data_of_the_same_name_and_size_is_no_continuation(model, tmp_path, kind) -> None:
    run(KINDS[kind](tmp_path, 0), model, tmp_path / "out")
    assert run(KINDS[kind](tmp_path, 0), model, tmp_path / "out").resumed == 3
    with pytest.raises(OptionError, match=r"other settings \(data\)"):
        run(KINDS[kind](tmp_path, 7), model, tmp_path / "out")


def test_a_setting_of_numpy_is_continued(model, folder, tmp_path) -> None:
    for index, resumed in ((1, 0), (1, 4)):
        assert run(folder, model, tmp_path / "out", target=np.int64(index)).resumed == resumed
    with pytest.raises(OptionError, match=r"other settings \(settings\)"):
        run(folder, model, tmp_path / "out", target=np.int64(2))


def test_another_column_or_split_is_no_continuation(model, tmp_path) -> None:
    from datasets import DatasetDict

    both = DatasetDict({"train": table(0), "test": table(5)})
    run(both, model, tmp_path / "out", split="train")
    for other in ({"split": "test"}, {"split": "train", "column": "other"}):
        with pytest.raises(OptionError, match=r"other settings \(data\)"):
            run(both, model, tmp_path / "out", **other)


def test_a_relative_glob_or_list_of_another_folder_is_no_continuation(model, folder, tmp_path, monkeypatch) -> None:
    for number, data in enumerate(("*.png", ["1.png", "3.png"])):
        monkeypatch.chdir(folder / "a")
        run(data, model, tmp_path / f"out{number}")
        monkeypatch.chdir(folder / "b")
        with pytest.raises(OptionError, match=r"other settings \(data\)"):
            run(data, model, tmp_path / f"out{number}")


def test_a_list_of_paths_may_grow(model, folder, tmp_path, monkeypatch) -> None:
    paths = sorted(map(str, folder.rglob("*.png")))
    run(paths[:3], model, tmp_path / "out")
    assert run(paths, model, tmp_path / "out").resumed == 3
    monkeypatch.chdir(folder)  # absolute paths are the same everywhere
    assert run(paths, model, tmp_path / "out").resumed == 4
    assert list(rows_in(tmp_path / "out")) == paths


def test_parts_made_with_another_model_are_not_mixed(model, folder, tmp_path) -> None:
    run(folder, model, tmp_path / "out", shard="1/2")
    other = classifier()
    next(iter(other.model.parameters())).data += 1
    with pytest.raises(OptionError, match=r"part-01-of-02' was made with other settings \(model\)"):
        run(folder, other, tmp_path / "out", shard="2/2")
    run(folder, model, tmp_path / "out", shard="2/2")
    assert len(rows_in(tmp_path / "out")) == 4


def test_a_split_or_column_that_the_data_does_not_have_is_refused(model, folder, tmp_path) -> None:
    from datasets import DatasetDict

    train = DatasetDict({"train": table(0)})["train"]
    path = parquet_of(tmp_path, 0)
    for data, asked in (
        (train, {"split": "test"}),
        (folder, {"split": "test"}),
        (folder, {"column": "image"}),
        ([noise()], {"column": "image"}),
        (path, {"split": "train"}),
    ):
        with pytest.raises(OptionError, match=rf"has no {next(iter(asked))} '\w+'.*omit"):
            run(data, model, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()
    assert run(path, model, tmp_path / "out", column="other").images == 3


# Each image once ------------------------------------------------------------------------------------------------------


def test_a_mended_file_is_explained(model, folder, tmp_path) -> None:
    broken = folder / "a" / "1.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:50])
    assert run(folder, model, tmp_path / "out").errors == 1
    broken.write_bytes(content)
    assert run(folder, model, tmp_path / "out").errors == 0
    assert {name: row["error"] for name, row in rows_in(tmp_path / "out").items()} == dict.fromkeys(
        ("b/0.png", "a/1.png", "b/2.png", "a/3.png"), ""
    )


@pytest.mark.parametrize("change", ["added", "removed"])
def test_files_that_come_and_go_between_two_parts_shift_no_other(model, folder, tmp_path, change) -> None:
    run(folder, model, tmp_path / "out", shard="1/2")
    first = set(rows_in(tmp_path / "out"))
    if change == "added":
        noise(seed=9).save(folder / "a" / "0.png")
    else:
        (folder / min(first)).unlink()
    run(folder, model, tmp_path / "out", shard="2/2")
    run(folder, model, tmp_path / "out", shard="1/2")
    assert set(rows_in(tmp_path / "out")) >= {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def test_a_path_that_is_listed_twice_stands_there_once(model, folder, tmp_path) -> None:
    paths = [str(folder / "a" / "1.png")] * 3 + [str(folder / "b" / "0.png")]
    for i in (1, 2, 3):
        run(paths, model, tmp_path / "out", shard=(i, 3))
    assert sorted(rows_in(tmp_path / "out")) == sorted(set(paths))


def test_a_picture_that_is_listed_twice_is_decoded_once_at_a_time(model) -> None:
    noise(900, 1200).save(content := io.BytesIO(), "PNG")
    rows = Explain(model)({"image": [Image.open(content)] * 8})
    assert rows["error"] == [""] * 8


def test_pictures_that_are_still_to_be_decoded_stay_so_and_are_continued(model, folder, tmp_path) -> None:
    pictures = [Image.open(path) for path in sorted(folder.rglob("*.png"))]
    pictures[0].close()
    assert run(pictures, model, tmp_path / "out").errors == 0
    assert all(picture.tile for picture in pictures)
    assert run(pictures, model, tmp_path / "out").resumed == 4
    for picture in pictures:
        picture.close()


def test_overlays_in_the_folder_of_the_pictures_are_no_data(model, folder, tmp_path) -> None:
    (link := tmp_path / "link").symlink_to(folder)
    for data, out in (
        (folder, folder / "explained"),
        (f"{folder}/**/*.*", folder / "others"),
        (folder, folder),
        (f"{link}/[ab]*/**/*.*", link / "a" / "linked"),
    ):
        before = len(source_of(data, apart_from=out))
        for _ in range(2):
            assert run(data, model, out, overlays=True).images == before
    assert list((folder / "explained").rglob("overlays/a/1.png.jpg"))


def test_linked_folders_and_files_are_data_and_links_upwards_end(model, folder, tmp_path) -> None:
    (folder / "c").mkdir()
    (tmp_path / "far").mkdir()
    noise(seed=8).save(tmp_path / "far" / "8.png")
    run(f"{folder}/*/*.png", model, tmp_path / "globbed")
    (folder / "c" / "link").symlink_to(tmp_path / "far")
    (folder / "c" / "up").symlink_to(folder)
    (folder / "c" / "9.png").symlink_to(tmp_path / "far" / "8.png")
    names = {"a/1.png", "a/3.png", "b/0.png", "b/2.png", "c/9.png"}
    run(folder, model, tmp_path / "out")
    assert set(rows_in(tmp_path / "out")) == {*names, "c/link/8.png"}
    assert run(f"{folder}/*/*.png", model, tmp_path / "globbed").resumed == 4
    assert set(rows_in(tmp_path / "globbed")) == names


def test_folders_that_link_to_each_other_end(folder) -> None:
    (folder / "a" / "to").symlink_to(folder / "b")
    (folder / "b" / "back").symlink_to(folder / "a")
    names = {path.relative_to(folder).as_posix() for path in source_of(folder).files}
    assert names == {
        f"{place}.png" for place in ("a/1", "a/3", "b/0", "b/2", "a/to/0", "a/to/2", "b/back/1", "b/back/3")
    }


def test_a_folder_that_cannot_be_read_is_named(model, folder, tmp_path, monkeypatch) -> None:
    real = os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ImageError, match=r"/b' cannot be read.*glob that leaves it out"):
        run(folder, model, tmp_path / "out")


@pytest.mark.parametrize("single", [noise(), np.asarray(noise()), torch.zeros(3, 8, 8), b"\x89PNG", {"image": 1}])
def test_one_image_is_no_list_of_images(model, tmp_path, single) -> None:
    with pytest.raises(OptionError, match="put a single image into a list"):
        run(single, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_transform_for_training_changes_no_picture(model, tmp_path) -> None:
    plain = table(0)
    run(plain, model, tmp_path / "plain")
    run(plain.with_transform(lambda rows: {"image": [0 for _ in rows["image"]]}), model, tmp_path / "out")
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "plain")


def test_pictures_come_before_paths_in_every_door(model, folder, tmp_path) -> None:
    from datasets import Dataset

    data = Dataset.from_dict({"path": ["nowhere.png"], "img": [str(folder / "a" / "1.png")]})
    assert run(data, model, tmp_path / "out").errors == 0
    assert Explain(model)(data[:])["error"] == [""]


def test_a_column_of_another_length_is_refused(model) -> None:
    with pytest.raises(OptionError, match="'target' has 1 rows, but there are 2 images"):
        Explain(model)({"image": [noise(), noise()], "target": [0]})


# Overlays -------------------------------------------------------------------------------------------------------------


def test_each_overlay_has_a_place_of_its_own() -> None:
    names = ["a/b.png", "../a/b.png", "a\\b.png", "a//b.png", "a:b.png", "c:b.png", "https://h/x/b.png", "h/x/b.png"]
    names += ["x" * 300, "x" * 301, "é" * 150 + "/" + "y" * 254, "", "..", "a/b.png?x"]
    places = [overlay_path(Path("o"), name) for name in names]
    assert len(set(places)) == len(names)
    for place in places:
        assert place.parts[0] == "o"
        assert ".." not in place.parts
        assert max(len(step.encode()) for step in place.parts) <= 255
        assert not set(place.as_posix()) & set(':*?"<>|\\')
    assert places[0] == Path("o/a/b.png.jpg")


# What is loaded again -------------------------------------------------------------------------------------------------


def test_flags_method_and_layers_are_loaded_without_the_end_of_a_run(model, tmp_path, monkeypatch) -> None:
    real, begun = Explain.rows, []
    pictures = [noise(40, 50, number) for number in range(4)]

    def dying(self, *given):
        begun.append(1)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(Explain, "rows", dying)
    with pytest.raises(KeyboardInterrupt):
        run(pictures, model, tmp_path / "out", method="gradcam")
    [fresh, _] = hf_cam.explain(pictures[:2], model, method="gradcam")
    stored = hf_cam.load_explanations(tmp_path / "out")["00000000"][0]
    assert (stored.method, stored.layers, stored.flags) == (fresh[0].method, fresh[0].layers, fresh[0].flags)
    assert manifest_of(parts_of(tmp_path / "out")[0])["complete"] is False


def test_flags_and_the_boxes_of_a_sum_are_loaded_again(tmp_path) -> None:
    detector, image = detr(), noise()
    asked = {"target": SumOf([0, 1]), "threshold": 0.0}
    [fresh, *_] = hf_cam.explain(image, detector, **asked)
    run([image], detector, tmp_path / "out", **asked)
    [[stored, *_]] = hf_cam.load_explanations(tmp_path / "out").values()
    assert len(fresh.boxes) > 1
    np.testing.assert_allclose(stored.boxes, fresh.boxes, atol=1e-2)
    assert stored.flags == fresh.flags
    [row] = rows_in(tmp_path / "out").values()
    assert json.loads(row["details"])["method"] == fresh.method


def test_images_of_a_list_of_relative_paths_are_read_again_from_anywhere(model, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    noise(8, 9).save(tiny := io.BytesIO(), "PNG")
    uri = "data:image/png;base64," + base64.b64encode(tiny.getvalue()).decode()
    paths = ["a/1.png", str(folder / "b" / "0.png"), uri, noise(40, 50, 3)]
    run(paths, model, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    found = hf_cam.load_explanations(tmp_path / "out")
    assert [found[path][0].image.size for path in paths[:3]] == [(50, 40), (50, 40), (9, 8)]
    with pytest.raises(ImageError, match="there is no file"):
        _ = found["00000003"][0].image


def test_a_finished_folder_that_grows_is_not_complete_until_it_is(model, folder, tmp_path, monkeypatch) -> None:
    run(folder, model, tmp_path / "out")
    noise(seed=9).save(folder / "a" / "9.png")
    seen, real = [], Explain.rows

    def noted(self, *given):
        seen.append(manifest_of(parts_of(tmp_path / "out")[0])["complete"])
        return real(self, *given)

    monkeypatch.setattr(Explain, "rows", noted)
    run(folder, model, tmp_path / "out")
    assert seen == [False]
    assert manifest_of(parts_of(tmp_path / "out")[0])["complete"] is True


def test_files_of_others_in_the_folder_are_left_alone(model, folder, tmp_path) -> None:
    run(folder, model, tmp_path / "out")
    (other := parts_of(tmp_path / "out")[0] / "rows-mine.parquet").write_bytes(b"mine")
    assert run(folder, model, tmp_path / "out").resumed == 4
    assert other.read_bytes() == b"mine"
    assert len(rows_in(tmp_path / "out")) == 4


def test_a_continued_run_whose_first_images_all_fail_goes_on(model, folder, tmp_path) -> None:
    from datasets import Dataset

    pictures = [noise(40, 50, number) for number in range(4)]
    data = Dataset.from_dict({"image": pictures, "target": [0, 0, 99, 99]})
    run(data, model, tmp_path / "out")
    assert run(data, model, tmp_path / "out").errors == 2


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes are Linux's")
def test_names_that_are_no_text_stand_in_lists_too(model, folder, tmp_path) -> None:
    path = os.fsdecode(os.fsencode(folder / "a") + b"/\xff.png")
    noise().save(path)
    run([path], model, tmp_path / "out", overlays=True)
    [[name, row]] = rows_in(tmp_path / "out").items()
    assert name.endswith("\\xff.png")
    assert row["error"] == ""
