"""The page: what it refuses, what it computes, its API, and how it is pushed."""

import gc
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import types
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import SpaceHardware
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image

import hf_cam
import hf_cam.interfaces.space
from hf_cam.comparison import quick_methods
from hf_cam.interfaces.space import deploy, space_folder
from hf_cam.methods import get_method
from hf_cam.zoo import SCENE

sys.path.insert(0, str(space_folder()))
import events
import limits
import models
import page
import scratch
import work

SCENE_MODELS = ("demo:vit", "demo:swin", "demo:convnext", "demo:detr", "demo:segformer", "demo:clip")


@pytest.fixture(scope="module")
def client(server):
    from gradio_client import Client

    return Client(server, verbose=False)


def ask(client, image, model, endpoint="/explain", **more):
    from gradio_client import handle_file

    return client.predict(image=handle_file(str(image)), model=model, api_name=endpoint, **more)


TYPED = {
    "a long prompt": ({"model": "demo:clip", "prompts": "x" * 10_000}, "10000 characters"),
    "many prompts": ({"model": "demo:clip", "prompts": "\n".join(["a bag"] * 1000)}, "1000 prompts"),
    "no prompt": ({"model": "demo:clip", "prompts": " \n"}, "at least one prompt"),
    "a path": ({"model": "../../etc/passwd"}, "not a model id"),
    "dots": ({"model": "owner/..name"}, "not a model id"),
    "a URL": ({"model": "http://127.0.0.1/a/b"}, "not a model id"),
    "a folder": ({"model": str(SCENE.parent / "vit")}, "not a model id"),
    "an unknown demo": ({"model": "demo:nothing"}, "not a model id"),
    "a Hub id without a network": ({"model": "google/vit-base-patch16-224"}, "without a network"),
    "a method": ({"model": "demo:vit", "method": "nothing"}, "not a method"),
    "a class": ({"model": "demo:vit", "target": "unicorn"}, "unicorn"),
    "a long target": ({"model": "demo:vit", "target": "x" * 10_000}, "10000 characters"),
    "layers": ({"model": "demo:vit", "layers": "no.such.layer"}, "no.such.layer"),
}


@pytest.mark.parametrize("kind", TYPED)
def test_what_makes_no_sense_is_refused_with_a_sentence_and_the_server_lives(client, kind):
    typed, sentence = TYPED[kind]
    with pytest.raises(Exception, match=sentence):
        ask(client, SCENE, **typed)


@pytest.mark.parametrize("where", ["the API", "the page"])
def test_the_server_reads_no_picture_from_an_inside_address(client, server, inside, where):
    for host in (f"127.0.0.1:{inside.port}", f"localhost:{inside.port}", "169.254.169.254"):
        url = f"http://{host}/secret.png"
        file = {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}}
        if where == "the API":
            with pytest.raises(Exception, match=r".+"):
                client.predict(image=file, model="demo:vit", api_name="/explain")
        else:
            assert '"success":false' in pressed(server, file)
    assert inside.seen == []


def pressed(server, picture):
    """What the server sends to a browser where the button was pressed on this picture."""
    config = json.loads(urllib.request.urlopen(f"{server}/config", timeout=20).read())
    ids = {one["props"].get("elem_id"): one["id"] for one in config["components"]}
    [event] = [one for one in config["dependencies"] if [ids["go"], "click"] in [list(t) for t in one["targets"]]]
    data = [picture, "demo:vit", "", "", "auto", "", False, False, "fast", 0.5, "turbo"]
    body = {"data": data, "fn_index": event["id"], "session_hash": f"pressed{time.time()}"}
    request = urllib.request.Request(
        f"{server}/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=20).read()
    answer = urllib.request.urlopen(f"{server}/gradio_api/queue/data?session_hash={body['session_hash']}", timeout=20)
    for line in answer:
        if b"process_completed" in line:
            return line.decode().replace(" ", "")
    return ""


def test_eight_at_once_get_what_the_library_gives(client):
    calls = [*SCENE_MODELS, "demo:vit", "demo:dinov2"]

    def one(model):
        prompts = "yellow bag\nblue trouser" if model == "demo:clip" else ""
        return ask(client, SCENE, model, prompts=prompts, top_k=2)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, calls))
    for model, (described, overlays, heatmaps) in zip(calls, answers, strict=True):
        text = ["yellow bag", "blue trouser"] if model == "demo:clip" else None
        expected = hf_cam.explain(SCENE, model, text=text, top_k=2)
        assert [one["label"] for one in described] == [one.label for one in expected], model
        np.testing.assert_allclose(np.load(heatmaps), np.stack([one.heatmap for one in expected]), atol=2e-3)
        assert len(overlays) == len(expected)


def test_compare_and_metrics_answer_programs(client):
    grid, heatmaps = ask(client, SCENE, "demo:vit", "/compare", methods=["gradcam", "layercam"])
    expected = hf_cam.compare(SCENE, "demo:vit", methods=["gradcam", "layercam"])
    with Image.open(grid) as sheet:
        assert sheet.size == expected.grid().size
    found = np.load(heatmaps)
    for one in expected.explanations:
        np.testing.assert_allclose(found[one.method], one.heatmap, atol=2e-3)
    table = ask(client, SCENE, "demo:vit", "/metrics", method="gradcam")
    assert set(table) >= {"gradcam", "random"}
    for judged in table.values():
        assert set(judged["scores"]) == set(work.METRICS)
        assert {"inserted", "deleted"} <= set(judged["curves"])


def test_every_setting_of_the_library_is_a_parameter(client):
    settings = {"target": "bag", "method": "layercam", "aug_smooth": True, "eigen_smooth": True}
    described, [overlay], heatmaps = ask(
        client, SCENE, "demo:vit", layers="vit.layers.4, vit.layers.3", alpha=0.8, colormap="viridis", **settings
    )
    [expected] = hf_cam.explain(SCENE, "demo:vit", layers=["vit.layers.4", "vit.layers.3"], **settings)
    np.testing.assert_allclose(np.load(heatmaps)[0], expected.heatmap, atol=2e-3)
    [found] = described
    assert (found["label"], found["method"], tuple(found["layers"])) == ("bag", "layercam", expected.layers)
    with Image.open(overlay) as drawn:
        off = np.abs(np.asarray(drawn).astype(int) - np.asarray(expected.overlay(0.8, "viridis")).astype(int))
    assert off.mean() < 1


def test_metrics_are_those_of_the_library(client):
    table = ask(client, SCENE, "demo:convnext", "/metrics", target="bag", layers="convnext.encoder.stages.1")
    expected = hf_cam.evaluate(
        "demo:convnext",
        [SCENE],
        methods=["gradcam"],
        metrics=work.METRICS,
        layers=[["convnext.encoder.stages.1"]],
        target="bag",
        progress=False,
    )
    for record in expected.records:
        scores = table["random" if record.map == "noise" else record.map]["scores"]
        for metric, score in record.scores.items():
            assert scores[metric] == pytest.approx(score, abs=5e-3), (record.map, metric)


def test_a_program_sees_the_progress_and_can_cancel(client):
    from gradio_client import handle_file

    methods = quick_methods()
    job = client.submit(image=handle_file(str(SCENE)), model="demo:imagenet", methods=methods, api_name="/compare")
    steps = set()
    while not job.done() and len(steps) < 2:
        steps |= {unit.desc for unit in job.status().progress_data or ()}
        time.sleep(0.02)
    assert steps & {get_method(method).name for method in methods}
    job.cancel()
    started = time.perf_counter()
    ask(client, SCENE, "demo:imagenet", top_k=1)
    assert time.perf_counter() - started < 10


def test_other_colours_run_no_model(monkeypatch):
    picture, settings = work.read_inputs(str(SCENE), "demo:vit", "", "", "auto", "", False, False)
    found = work.explained(picture, settings)
    monkeypatch.setattr(models.Models, "lent", lambda *_: pytest.fail("the model was asked"))
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_: pytest.fail("the model ran"))
    (_, half), *_ = events.recolour(found, None, 0.5, "turbo")
    (_, strong), *_ = events.recolour(found, None, 0.9, "turbo")
    (_, other), *_ = events.recolour(found, None, 0.5, "viridis")
    assert len({half.tobytes(), strong.tobytes(), other.tobytes()}) == 3
    chosen = events.choose(found, 0.5, "turbo", types.SimpleNamespace(index=1))
    assert chosen[0].current.label == found.explanations[1].label


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # gradio's event loops, of a page that is not launched
def test_the_queue_the_uploads_and_what_is_kept_are_bounded(monkeypatch):
    built = page.build()
    launched = {}
    monkeypatch.setattr(built, "launch", lambda **options: launched.update(options))
    page.serve(built)
    assert built._queue.max_size == 32
    assert launched["max_file_size"] == limits.MAX_ARCHIVE
    assert launched["state_session_capacity"] == 64
    assert built.delete_cache == (600, scratch.KEPT_SECONDS)
    busy = [event for event in built.fns.values() if event.concurrency_id == "work"]
    assert {event.concurrency_limit for event in busy} == {events.VISITORS}
    assert {"explain", "compare", "metrics", "words"} <= {event.api_name for event in busy}
    public = {event.api_name for event in built.fns.values() if event.api_visibility == "public"}
    assert public == {"explain", "compare", "metrics", "words", "audit"}
    del built, busy
    gc.collect()


def test_the_snippet_makes_the_map_that_is_shown(tmp_path, monkeypatch):
    picture = Image.open(SCENE).convert("RGB").resize((1280, 960))
    picture.save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    read, settings = work.read_inputs("image.png", "demo:detr", "", "", "auto", "", False, False)
    found = work.Found(settings, work.explained(read, settings).explanations, shown=1)
    made: dict = {}
    exec(work.snippet(found, 0.5, "turbo"), made)
    np.testing.assert_array_equal(made["found"][1].heatmap, found.current.heatmap)
    assert found.current.image.size == (1024, 768)
    with Image.open("overlay.png") as overlay:
        assert overlay.size == (1024, 768)


def test_a_target_is_in_the_pixels_of_the_upload():
    assert limits.read_target("100, 50", 0.5) == (50.0, 25.0)
    assert limits.read_target("7", 0.5) == "7"
    assert limits.read_target(" ", 0.5) is None


def test_few_models_stay_loaded_and_the_oldest_goes():
    kept = models.Models(kept=2)
    for name in ("demo:vit", "demo:swin", "demo:vit", "demo:convnext"):
        with kept.lent(name):
            pass
    assert list(kept) == ["demo:vit", "demo:convnext"]


def test_old_downloads_are_deleted_by_whoever_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "home", lambda: tmp_path)
    young = scratch.fresh_folder()
    results = young.parent
    for _ in range(5):
        for number in range(60):
            old = results / str(number)
            old.mkdir()
            os.utime(old, (0, 0))
        with ThreadPoolExecutor(8) as pool:
            fresh = list(pool.map(lambda _: scratch.fresh_folder(), range(8)))
        assert len(set(fresh)) == 8
        assert not any((results / str(number)).exists() for number in range(60))
    assert young.is_dir()


def test_deploy_pushes_the_folder_and_from_a_checkout_the_library(hub):
    deploy("someone/page")
    pushed = hub.folder("someone/page")
    here = {path.name: path.read_bytes() for path in space_folder().iterdir() if path.is_file()}
    names = {name for name in hub.files("someone/page") if "/" not in name and name != ".gitattributes"}
    assert names == set(here)
    assert {name for name in here if (pushed / name).read_bytes() != here[name]} == {"requirements.txt"}
    needed = (pushed / "requirements.txt").read_text().split()
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert {*project["dependencies"], "gradio>=6"} <= set(needed)
    assert not any(line.startswith("hf-cam") for line in needed)
    script = "import hf_cam, hf_cam.target_layers.catalogue as c; print(hf_cam.__file__, len(c.catalogue()))"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=pushed, env=clean, capture_output=True, text=True, check=True
    ).stdout.split()
    assert printed[0] == str(pushed / "hf_cam" / "__init__.py")
    assert int(printed[1]) > 10
    assert (pushed / "hf_cam" / "zoo" / "vit" / "model.safetensors").is_file()


def test_an_installed_library_pushes_the_folder_as_it_is(hub, monkeypatch, tmp_path):
    shutil.copytree(space_folder(), tmp_path / "hf_cam" / "spaces")
    monkeypatch.setattr(hf_cam.interfaces.space, "space_folder", lambda: tmp_path / "hf_cam" / "spaces")
    deploy("someone/installed", private=True)
    files = [name for name in hub.files("someone/installed") if name != ".gitattributes"]
    here = {path.name: path.read_bytes() for path in space_folder().iterdir() if path.is_file()}
    assert files == sorted(here)
    assert all((hub.folder("someone/installed") / name).read_bytes() == content for name, content in here.items())
    assert not any(name.startswith("README") and b"hf-cam" not in content for name, content in here.items())


def test_a_space_needs_an_owner():
    with pytest.raises(hf_cam.HFCamError, match="USER/NAME"):
        deploy("name")


def test_the_front_matter_names_a_file_that_is_there():
    head = (space_folder() / "README.md").read_text().split("---")[1]
    fields = dict(line.split(": ", 1) for line in head.strip().splitlines())
    assert (space_folder() / fields["app_file"]).is_file()
    assert fields["sdk"] == "gradio"
    assert len(fields["short_description"]) <= 60
    assert fields["suggested_hardware"] in {one.value for one in SpaceHardware}
    project = tomllib.loads((space_folder().parent / "pyproject.toml").read_text())["project"]
    assert SpecifierSet(project["requires-python"]).contains(fields["python_version"].strip('"'))
    [gradio_needed] = [line for line in project["optional-dependencies"]["space"] if line.startswith("gradio")]
    assert Requirement(gradio_needed).specifier.contains(fields["sdk_version"])
    [line] = (space_folder() / "requirements.txt").read_text().split()
    needed = Requirement(line)
    assert needed.name == project["name"]
    assert needed.extras <= set(project["optional-dependencies"])
