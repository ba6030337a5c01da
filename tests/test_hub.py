"""The real Hub client, against a Hub on this machine."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import transformers

import hf_cam
from hf_cam.errors import LayerError, ModelError
from hf_cam.interfaces.cli import main
from hf_cam.layouts import TOKENS, Layout
from hf_cam.target_layers.adapter import CONFIG_NAME
from nets import LABELS

VIT = "google/vit-base-patch16-224"
FIRST_BLOCK = hf_cam.Adapter(
    layers=("vit.layers.0",), layouts=(Layout(TOKENS, prefix=1, patch=(16, 16)),), method="hirescam", reason="a test"
)


@pytest.fixture(autouse=True)
def vit_on_the_hub(hub, vit_folder):
    """The tiny ViT under the id of the well-known one."""
    if not hub.folder(VIT).is_dir():
        shutil.copytree(vit_folder, hub.folder(VIT))


@pytest.fixture
def publish(hub, vit_folder):
    """Puts a copy of the tiny ViT on the Hub under an id and returns its folder."""
    return lambda name: Path(shutil.copytree(vit_folder, hub.folder(name)))


@pytest.fixture
def impatient(monkeypatch):
    """The client retries at once in place of after 23 s in all; returns the pauses it wanted to make."""
    pauses: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", pauses.append)
    return pauses


@pytest.fixture
def hub_down(hub, impatient):
    """Connections to the Hub are refused."""
    hub.stop()
    yield impatient
    hub.start()


def test_the_transformers_pipeline_loads_a_model_from_the_hub(hub, picture):
    cam = transformers.pipeline("image-cam", model=VIT)
    assert any(
        request.startswith(f"GET /{VIT}/resolve/") and "model.safetensors" in request for request in hub.requests
    )
    [found] = cam(picture)
    assert found["label"] in LABELS.values()
    assert found["heatmap"].shape == (50, 80)
    assert found["heatmap"].max() == pytest.approx(1)


def test_a_hub_id_and_its_folder_give_the_same_explanation(vit_folder, picture):
    [remote] = hf_cam.explain(picture, model=VIT)
    [local] = hf_cam.explain(picture, model=vit_folder)
    assert (remote.label, remote.score, remote.layers) == (local.label, local.score, local.layers)
    np.testing.assert_array_equal(remote.heatmap, local.heatmap)


def test_a_short_name_resolves_to_the_full_id(picture):
    from hf_cam import pipeline

    cam = pipeline("image-cam", model="google/vit-base")
    assert cam.model.name_or_path == VIT
    assert cam(picture)[0]["heatmap"].shape == (50, 80)


def test_without_a_model_the_pipeline_takes_its_default():
    assert hf_cam.pipeline("image-cam").model.name_or_path == VIT
    assert transformers.pipeline("image-cam").model.name_or_path == VIT


def test_a_hub_repos_cam_config_decides_layer_and_method(publish, picture):
    folder = publish("acme/declared")
    FIRST_BLOCK.save_pretrained(folder)
    model = transformers.ViTForImageClassification.from_pretrained("acme/declared")
    adapter = hf_cam.infer_adapter(model)
    assert adapter.origin == "cam_config"
    assert adapter.layers == ("vit.layers.0",)
    [found] = hf_cam.explain(picture, model="acme/declared")
    assert found.layers == ("vit.layers.0",)
    assert found.method == "hirescam"


def test_a_repo_without_cam_config_falls_back_to_the_catalogue_and_asks_once(hub, publish):
    publish("acme/undeclared")
    model = transformers.ViTForImageClassification.from_pretrained("acme/undeclared")
    adapters = [hf_cam.infer_adapter(model) for _ in range(3)]
    assert {adapter.origin for adapter in adapters} == {"catalogue"}
    assert len([request for request in hub.requests if CONFIG_NAME in request]) == 1


def test_push_to_hub_and_from_pretrained_are_inverse(hub, publish):
    folder = publish("acme/pushed")
    address = FIRST_BLOCK.push_to_hub("acme/pushed")
    assert address.startswith(f"{hub.url}/acme/pushed/commit/")
    assert json.loads((folder / CONFIG_NAME).read_text()) == json.loads(json.dumps(FIRST_BLOCK.to_dict()))
    returned = hf_cam.Adapter.from_pretrained("acme/pushed")
    assert returned.origin == "cam_config"
    assert returned == dataclasses.replace(FIRST_BLOCK, origin="cam_config")


def test_push_to_hub_makes_the_repo_where_there_is_none(hub):
    FIRST_BLOCK.push_to_hub("acme/brand-new")
    assert hub.files("acme/brand-new") == [CONFIG_NAME]


def test_an_adapter_is_seen_at_once_by_the_process_that_pushed_it(publish):
    publish("acme/seen")
    model = transformers.ViTForImageClassification.from_pretrained("acme/seen")
    assert hf_cam.infer_adapter(model).origin == "catalogue"
    FIRST_BLOCK.push_to_hub("acme/seen")
    assert hf_cam.infer_adapter(model).layers == ("vit.layers.0",)


def test_a_pushed_cam_config_replaces_the_one_that_was_read_before(publish):
    publish("acme/twice")
    FIRST_BLOCK.push_to_hub("acme/twice")
    hf_cam.Adapter.from_pretrained("acme/twice")
    second = hf_cam.Adapter(("vit.layers.1",), FIRST_BLOCK.layouts)
    second.push_to_hub("acme/twice")
    assert hf_cam.Adapter.from_pretrained("acme/twice").layers == ("vit.layers.1",)


def test_from_pretrained_of_a_repo_without_cam_config_is_refused():
    with pytest.raises(ModelError, match=r"has no cam_config\.json; infer_adapter"):
        hf_cam.Adapter.from_pretrained(VIT)


def test_from_pretrained_while_the_hub_is_down_is_refused(hub_down):
    with pytest.raises(ModelError, match=r"cam_config.json of 'acme/dark' cannot be fetched"):
        hf_cam.Adapter.from_pretrained("acme/dark")


def test_a_cam_config_with_a_wrong_layer_names_the_nearest(publish, picture):
    folder = publish("acme/wrong")
    hf_cam.Adapter(("vit.layer.0",), FIRST_BLOCK.layouts).save_pretrained(folder)
    with pytest.raises(LayerError, match=r"cam_config.json names a layer 'vit.layer.0'.*'vit.layers.0'"):
        hf_cam.explain(picture, model="acme/wrong")


UNKNOWN = r"no model 'acme/never-heard-of' on the Hub.*local folder.*demo:imagenet"


@pytest.mark.parametrize(
    ("open_door", "words"),
    [
        pytest.param(lambda picture, name: hf_cam.explain(picture, model=name), UNKNOWN, id="explain"),
        pytest.param(lambda picture, name: hf_cam.pipeline("image-cam", model=name), UNKNOWN, id="pipeline"),
        pytest.param(lambda picture, name: hf_cam.Adapter.from_pretrained(name), "acme/never-heard-of", id="adapter"),
    ],
)
def test_an_unknown_repo_is_a_model_error_with_the_way_out(picture, open_door, words):
    with pytest.raises(ModelError, match=words):
        open_door(picture, "acme/never-heard-of")


@pytest.mark.parametrize("door", ["explain", "pipeline"])
def test_a_hub_that_is_down_leads_to_the_demo_model(hub_down, picture, door):
    name = f"acme/unreachable-{door}"
    with pytest.raises(ModelError, match=r"the Hub cannot be reached.*not in the cache.*demo:imagenet"):
        hf_cam.explain(picture, model=name) if door == "explain" else hf_cam.pipeline("image-cam", model=name)


def test_the_command_refuses_an_unknown_repo_in_one_line(capsys, picture_file):
    assert main(["explain", str(picture_file), "--model", "acme/unheard"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-cam: there is no model 'acme/unheard' on the Hub")
    assert error.count("\n") == 1


def test_the_command_reports_a_hub_that_is_down_in_one_line(hub_down, capsys, picture_file):
    assert main(["explain", str(picture_file), "--model", "acme/away"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-cam: the Hub cannot be reached")
    assert error.count("\n") == 1


def test_a_model_in_the_cache_works_while_the_hub_is_down(picture, hub, impatient):
    [before] = hf_cam.explain(picture, model=VIT)
    hub.stop()
    try:
        [after] = hf_cam.explain(picture, model=VIT)
    finally:
        hub.start()
    np.testing.assert_array_equal(before.heatmap, after.heatmap)


def test_where_to_look_is_known_at_once_while_the_hub_is_down(hub, publish, impatient):
    publish("acme/cut-off")
    model = transformers.ViTForImageClassification.from_pretrained("acme/cut-off")
    hub.stop()
    start = time.monotonic()
    try:
        assert hf_cam.infer_adapter(model).origin == "catalogue"
    finally:
        hub.start()
    assert time.monotonic() - start < 5
    assert not impatient, "the client wanted to wait and try again"


def test_a_timm_repo_without_architectures_loads_as_a_classifier(hub, picture):
    timm = pytest.importorskip("timm")
    import torch

    torch.manual_seed(0)
    repo = hub.folder("acme/resnet.timm")
    repo.mkdir(parents=True)
    net = timm.create_model("resnet10t", num_classes=5)
    from safetensors.torch import save_file

    save_file(net.state_dict(), repo / "model.safetensors", metadata={"format": "pt"})
    cfg = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0}
    (repo / "config.json").write_text(
        json.dumps(
            {"architecture": "resnet10t", "num_classes": 5, "label_names": list(LABELS.values()), "pretrained_cfg": cfg}
        )
    )
    [found] = transformers.pipeline("image-cam", model="acme/resnet.timm")(picture)
    assert found["label"] in LABELS.values()
    assert found["heatmap"].shape == (50, 80)
