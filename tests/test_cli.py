"""The command: what it writes, what it prints, and how it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image

import hf_cam
from hf_cam.interfaces.cli import main
from hf_cam.methods.registry import BUDGET, methods_within
from hf_cam.zoo import SCENE


@pytest.fixture
def pictures(picture, tmp_path):
    """Three files, two of one name in different folders."""
    paths = [tmp_path / "cat.png", tmp_path / "dog.jpg", tmp_path / "more" / "cat.png"]
    paths[-1].parent.mkdir()
    for number, path in enumerate(paths):
        picture.rotate(90 * number, expand=True).save(path)
    return [str(path) for path in paths]


@pytest.fixture(autouse=True)
def loud_transformers():
    """The command silences transformers for its process; the other tests get it back as it was."""
    verbosity = transformers.utils.logging.get_verbosity()
    yield
    transformers.utils.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()


def refused(capsys, *arguments: str) -> str:
    """The one line on stderr with which the command refuses."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("hf-cam: ")
    assert printed.err.count("\n") == 1
    return printed.err.strip()


def test_one_images_map_goes_to_the_file_that_is_named(capsys, picture_file, vit_folder, tmp_path):
    out = tmp_path / "new" / "seen.png"
    assert main(["explain", str(picture_file), "--model", str(vit_folder), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    [explained] = hf_cam.explain(picture_file, model=vit_folder)
    assert printed.out == (f"{picture_file}: {explained.label} {explained.score:.3f} probability (hirescam) -> {out}\n")
    assert printed.err == ""
    with Image.open(out) as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(explained.overlay()))


def test_several_images_maps_keep_their_names_in_a_folder(capsys, pictures, vit_folder, tmp_path):
    out = tmp_path / "out"
    assert main(["explain", *pictures, "--model", str(vit_folder), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["cat-2.png", "cat.png", "dog.png"]
    for name, source in zip(["cat", "dog", "cat-2"], pictures, strict=True):
        with Image.open(out / f"{name}.png") as written, Image.open(source) as image:
            assert written.size == image.size
            [explained] = hf_cam.explain(source, model=vit_folder)
            np.testing.assert_array_equal(np.asarray(written), np.asarray(explained.overlay()))
    printed = capsys.readouterr()
    assert [line.split(": ")[0] for line in printed.out.splitlines()] == pictures
    assert "3/3" in printed.err, "several images show a progress bar"


def test_one_images_map_goes_into_a_folder_under_the_images_name(capsys, picture_file, vit_folder, tmp_path):
    (tmp_path / "a.folder").mkdir()
    assert main(["explain", str(picture_file), "--model", str(vit_folder), "--out", str(tmp_path / "a.folder")]) == 0
    assert [path.name for path in (tmp_path / "a.folder").iterdir()] == ["picture.png"]


def test_top_k_numbers_the_files_from_the_best_on(capsys, picture_file, vit_folder, tmp_path):
    out = tmp_path / "seen.png"
    arguments = ["--model", str(vit_folder), "--top-k", "3", "--out", str(out)]
    assert main(["explain", str(picture_file), *arguments]) == 0
    assert sorted(path.name for path in tmp_path.glob("seen*")) == ["seen-1.png", "seen-2.png", "seen-3.png"]
    best = [explanation.label for explanation in hf_cam.explain(picture_file, model=vit_folder, top_k=3)]
    lines = capsys.readouterr().out.splitlines()
    for number, (line, label) in enumerate(zip(lines, best, strict=True), start=1):
        assert f": {label} " in line
        assert line.endswith(f"seen-{number}.png")


def test_target_method_layer_and_smoothing_are_those_of_explain(capsys, picture_file, vit_folder, tmp_path):
    out = tmp_path / "seen.png"
    options = ["--target", "espresso", "--method", "hirescam", "--layer", "vit.layers.0", "--device", "cpu"]
    smoothing = ["--aug-smooth", "--eigen-smooth"]
    assert (
        main(["explain", str(picture_file), "--model", str(vit_folder), *options, *smoothing, "--out", str(out)]) == 0
    )
    assert ": espresso " in (line := capsys.readouterr().out)
    assert "(hirescam)" in line
    [explained] = hf_cam.explain(
        picture_file, vit_folder, target=2, method="hirescam", layers="vit.layers.0", aug_smooth=True, eigen_smooth=True
    )
    with Image.open(out) as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(explained.overlay()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"--model": "no/such/folder"}, "there is no folder 'no/such/folder'", id="model"),
        pytest.param({"--model": "demo:imagenett"}, "no demo model 'imagenett'; nearest: 'imagenet'", id="demo model"),
        pytest.param({"IMAGE": "no-such-picture.png"}, "there is no file 'no-such-picture.png'", id="image"),
        pytest.param({"--target": "tigre"}, "no class is called 'tigre'; nearest: 'tiger cat'", id="label"),
        pytest.param({"--target": "99"}, "no class 99; the model has classes 0 to 4", id="index"),
        pytest.param(
            {"--layer": "vit.layer.0"}, "the model has no layer 'vit.layer.0'; nearest: 'vit.layers", id="layer"
        ),
        pytest.param({"--method": "grad-cam"}, "no method 'grad-cam'; nearest: 'gradcam'", id="method"),
        pytest.param({"--budget": "0"}, "budget must be a number of forwards from 1, got 0.0", id="budget"),
        pytest.param({"--budget": "2", "--method": "gradcam"}, "pass one of the two", id="budget and method"),
        pytest.param({"--budget": "2", "--effort": "checked"}, "a comparison takes those that are named", id="effort"),
        pytest.param({"--top-k": "0"}, "top_k must be a whole number from 1, got 0", id="top-k"),
        pytest.param({"--text": "a cat"}, "ViTForImageClassification takes no text", id="text"),
        pytest.param({"--device": "abacus"}, "no device 'abacus' here", id="device"),
        pytest.param({"--out": "seen.pnk"}, "'seen.pnk' does not end in a picture format", id="out"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, picture_file, vit_folder, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    options = {"--model": str(vit_folder), "--out": "seen.png", **options}
    image = options.pop("IMAGE", str(picture_file))
    line = refused(capsys, "explain", image, *(text for option in options.items() for text in option))
    assert words in line
    assert not (tmp_path / "seen.png").exists()


def test_a_file_in_the_way_of_the_folder_is_refused_in_one_line(capsys, pictures, vit_folder, tmp_path):
    (tmp_path / "out").write_text("in the way")
    assert main(["explain", pictures[0], "--model", str(vit_folder), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_picture_that_is_read_is_not_written_over(capsys, vit_folder, picture, tmp_path):
    paths = [tmp_path / name for name in ("cat.png", "cat-1.png")]
    for path in paths:
        picture.save(path)
    before = [path.read_bytes() for path in paths]
    model = ["--model", str(vit_folder)]
    for given in (
        [str(paths[0]), *model, "--out", str(tmp_path)],
        [str(tmp_path), *model, "--out", str(tmp_path)],
        [str(paths[0]), *model, "--out", str(paths[0])],
        [str(paths[1]), *model, "--out", str(paths[0]), "--top-k", "2"],
        [str(paths[0]), *model, "--out", str(tmp_path / "maps/"), "--table", str(paths[0])],
    ):
        assert main(["explain", *given]) == 2
        assert "is read and may be written over" in capsys.readouterr().err
    assert [path.read_bytes() for path in paths] == before


def test_numbers_of_one_image_never_take_the_name_of_another(capsys, tmp_path):
    with Image.open(SCENE) as scene:
        scene.save(tmp_path / "scene.png")  # three objects
        scene.crop((0, 0, 256, 384)).save(tmp_path / "scene-2.png")  # one of them
    images = [str(tmp_path / f"{name}.png") for name in ("scene", "scene-2")]
    for number, asked in enumerate(((), ("--bundle",))):
        out = tmp_path / f"out{number}"
        assert main(["explain", *images, "--model", "demo:detr", "--out", f"{out}/", *asked]) == 0
        places = [line.split(" -> ")[1].split("  [")[0] for line in capsys.readouterr().out.splitlines()]
        assert [Path(place).stem for place in places] == ["scene-1", "scene-3", "scene-4", "scene-2"]
        assert all(Path(place).exists() for place in places)


def test_a_table_that_cannot_be_written_is_refused_first(capsys, vit_folder, picture_file, tmp_path):
    (tmp_path / "file").write_text("a file")
    out = tmp_path / "out"
    for table in (tmp_path, tmp_path / "file" / "table.csv"):
        command = ["explain", str(picture_file), "--model", str(vit_folder), "--out", f"{out}/", "--table", str(table)]
        assert main(command) == 2
        assert "--table" in (line := capsys.readouterr().err)
        assert "pass another file" in line
    assert not out.exists()


def test_a_number_of_objects_that_is_none_is_refused_by_the_data_set_too(capsys, vit_folder, pictures, tmp_path):
    assert main(["dataset", str(vit_folder), pictures[0], "--out", str(tmp_path / "out"), "--top-k", "0"]) == 2
    assert "top_k" in capsys.readouterr().err


def test_a_damaged_image_among_several_is_refused_before_anything_is_written(capsys, pictures, vit_folder, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    out = tmp_path / "out"
    line = refused(capsys, "explain", pictures[0], str(damaged), "--model", str(vit_folder), "--out", str(out))
    assert "damaged.png' is not an image" in line
    assert not out.exists()


def test_weights_that_cannot_be_loaded_are_refused_in_one_line(capsys, picture_file, vit_folder, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(vit_folder, folder)
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    assert "cannot be loaded" in refused(capsys, "explain", str(picture_file), "--model", str(folder))


def test_methods_lists_every_method(capsys):
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    for method in hf_cam.list_methods():
        assert any(line.startswith(f"{method} ") for line in lines)
    assert "arXiv:1610.02391" in printed


def test_adapter_prints_the_file_and_where_it_comes_from(capsys, vit_folder):
    assert main(["adapter", str(vit_folder)]) == 0
    printed = capsys.readouterr()
    described = json.loads(printed.out)
    assert "catalogue" in printed.err
    assert described["layers"] == ["vit.layers.1.layernorm_before"]


def test_adapter_save_writes_a_file_that_is_read_back(capsys, vit_folder, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(vit_folder, folder)
    assert main(["adapter", str(folder), "--save"]) == 0
    assert str(folder / "cam_config.json") in capsys.readouterr().err
    assert hf_cam.Adapter.from_pretrained(folder).layers == ("vit.layers.1.layernorm_before",)
    assert main(["adapter", str(folder)]) == 0
    assert "cam_config" in capsys.readouterr().err


def test_adapter_refuses_what_is_no_model(capsys, tmp_path):
    assert "has no config.json" in refused(capsys, "adapter", str(tmp_path))


def test_adapter_save_of_a_hub_model_is_refused_with_the_reason(capsys, hub, vit_folder):
    if not hub.folder("acme/adapted").is_dir():
        shutil.copytree(vit_folder, hub.folder("acme/adapted"))
    assert main(["adapter", "acme/adapted", "--save"]) == 2
    assert "'acme/adapted' is not a folder; --save writes beside a local config.json" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["explain", "--help"], ["--version"]])
def test_help_and_version_answer_within_a_second(arguments):
    script = (
        "import sys, time; start = time.perf_counter(); from hf_cam.interfaces.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "print(f'{code} {len(heavy)} {time.perf_counter() - start:.3f}', file=sys.stderr)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    code, heavy, seconds = done.stderr.split()
    assert (code, heavy) == ("0", "0")
    assert float(seconds) < 1
    assert time.monotonic() - start < 5, "starting Python took long, even on a busy machine"
    expected = f"hf-cam {hf_cam.__version__}" if "--version" in arguments else "usage: hf-cam"
    assert done.stdout.startswith(expected)


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_an_interrupt_is_reported_in_one_word(capsys, picture_file, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_cam.models.loading.load", interrupted)
    assert main(["explain", str(picture_file), "--model", "demo:imagenet"]) == 130
    assert capsys.readouterr().err == "hf-cam: stopped\n"


def test_the_real_process_refuses_in_one_line_too(picture_file, vit_folder):
    arguments = ["explain", str(picture_file), "--model", str(vit_folder), "--target", "tigre"]
    command = [sys.executable, "-m", "hf_cam", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "hf-cam: no class is called 'tigre'; nearest: 'tiger cat'\n"


def test_no_two_images_share_a_file(capsys, vit_folder, picture_file, tmp_path):
    for name in ("a/x.png", "b/x.png", "a/x-2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(picture_file, tmp_path / name)
    names = [str(tmp_path / name) for name in ("a/x.png", "b/x.png", "a/x-2.png")]
    out = tmp_path / "out.maps"
    assert main(["explain", *names, "--model", str(vit_folder), "--out", f"{out}/"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["x-2-2.png", "x-2.png", "x.png"]
    one = str(tmp_path / "one.png")
    assert main(["explain", *names, "--model", str(vit_folder), "--out", one]) == 2
    assert "is one file, but there are 3 images" in capsys.readouterr().err


def test_several_methods_make_a_grid(capsys, vit_folder, picture_file, tmp_path):
    out = tmp_path / "grid.png"
    methods = "gradcam, layercam,gradcam"
    assert main(["explain", str(picture_file), "--model", str(vit_folder), "--method", methods, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("(gradcam)") == printed.count("(layercam)") == 1
    assert out.is_file()
    assert main(["explain", str(picture_file), "--model", str(vit_folder), "--method", "gradcam,grdcam"]) == 2
    assert "'gradcam'" in capsys.readouterr().err


def test_a_demo_model_is_not_written_to(capsys):
    assert main(["adapter", "demo:imagenet", "--save"]) == 2
    assert "belongs to the package" in capsys.readouterr().err


def test_a_budget_makes_a_grid_of_the_methods_within_it(capsys, vit_folder, picture_file, tmp_path):
    out = tmp_path / "grid.png"
    assert main(["explain", str(picture_file), "--model", str(vit_folder), "--budget", "1.2", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    drawn = [line.split(" (")[1].split(")")[0] for line in printed.out.splitlines()]
    skipped = [line.split()[1] for line in printed.err.splitlines() if "was left out" in line]
    assert "eigencam" in drawn
    assert sorted(drawn + skipped) == sorted(methods_within(1.2))
    assert out.is_file()


def test_an_evaluation_takes_the_methods_within_the_budget(capsys, vit_folder, picture_file, tmp_path):
    out = str(tmp_path / "measured")
    chosen = ["--budget", "1.2", "--metric", "coherency", "--out", out]
    assert main(["evaluate", str(vit_folder), str(picture_file), *chosen]) == 0
    table = capsys.readouterr().out
    assert "eigencam" in table
    assert "libragrad" not in table
    both = refused(capsys, "evaluate", str(vit_folder), str(picture_file), *chosen, "--method", "gradcam")
    assert "pass one of the two" in both


def test_the_help_names_the_budget_that_is_the_default(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert f"(default: {BUDGET:.0f})" in capsys.readouterr().out.replace("\n", " ")


# Targets that are made of others, and pictures -----------------------------------------------------------------------


def test_one_map_for_several_targets_is_written_once(capsys, vit_folder, tmp_path, picture_file):
    run = ("explain", str(picture_file), "--model", str(vit_folder), "--out", str(tmp_path / "map.png"))
    assert main([*run, "--target", "0", "--target", "1", "--sum"]) == 0
    line = capsys.readouterr().out
    assert " + " in line
    assert "average probability" in line
    assert (tmp_path / "map.png").is_file()


def test_what_was_expected_is_shown_beside_what_the_model_says(capsys, vit_folder, tmp_path, picture_file):
    out = tmp_path / "maps"
    assert (
        main(["explain", str(picture_file), "--model", str(vit_folder), "--expected", "espresso", "--out", f"{out}/"])
        == 0
    )
    said = capsys.readouterr().out
    assert "The model says" in said
    assert "'espresso'" in said
    stem = picture_file.stem
    assert sorted(path.name for path in out.iterdir()) == [f"{stem}-1.png", f"{stem}-2.png", f"{stem}-difference.png"]


def test_the_style_of_a_picture_is_chosen_by_options(vit_folder, tmp_path, picture_file):
    [found] = hf_cam.explain(picture_file, vit_folder)
    options = ("--even", "--contours", "--colorbar", "--colormap", "coolwarm", "--alpha", "0.3")
    path = tmp_path / "map.png"
    assert main(["explain", str(picture_file), "--model", str(vit_folder), "--out", str(path), *options]) == 0
    expected = found.overlay(0.3, "coolwarm", even=True, contours=True, colorbar=True)
    with Image.open(path) as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(expected))


def test_a_sheet_is_one_picture_and_a_bundle_a_folder_per_explanation(vit_folder, tmp_path, picture_file):
    run = ("explain", str(picture_file), "--model", str(vit_folder), "--top-k", "3")
    assert main([*run, "--sheet", "--out", str(tmp_path / "sheet.png")]) == 0
    with Image.open(tmp_path / "sheet.png") as written:
        assert written.size == hf_cam.grid(hf_cam.explain(picture_file, vit_folder, top_k=3)).size
    assert main([*run, "--bundle", "--out", str(tmp_path / "evidence")]) == 0
    held = hf_cam.load_explanations(tmp_path / "evidence")
    assert list(held) == [f"{picture_file.stem}-{number}/image.png" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--expected", "espresso", "--target", "0"), "omit --target"),
        (("--expected", "espresso", "--top-k", "2"), "omit --top-k"),
        (("--expected", "no such class"), "no class is called"),
        (("--sheet", "--bundle"), "one of the two"),
        (("--bundle", "--out", "map.png"), "is a file"),
        (("--bundle", "--method", "gradcam,layercam"), "name a single one"),
        (("--colormap", "turboo"), "no colour map 'turboo'"),
        (("--alpha", "7"), "alpha must lie"),
        (("--renormalize", "box"), "needs the boxes of a detector"),
    ],
)
def test_options_for_targets_and_pictures_that_do_not_fit_are_refused(
    capsys, vit_folder, tmp_path, picture_file, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["explain", str(picture_file), "--model", str(vit_folder), *options]) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.glob("hf-cam-out/*"))
