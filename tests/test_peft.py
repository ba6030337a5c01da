"""Folders that hold a PEFT adapter alone: the model that it changes is loaded with it, at every door."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import hf_cam
from hf_cam.errors import ModelError
from hf_cam.interfaces.cli import main

peft = pytest.importorskip("peft")

PIXELS = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
CONFIG = "adapter_config.json"


@pytest.fixture(autouse=True)
def without_warnings():
    """peft calls what transformers deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


def trained(base: Path, folder: Path, labels: int | None = None, **settings: Any) -> nn.Module:
    """A model with an adapter of random weights, of which the folder gets the adapter alone."""
    model = transformers.ViTForImageClassification.from_pretrained(base).eval()
    torch.manual_seed(1)
    if labels:
        model.classifier = nn.Linear(model.config.hidden_size, labels)
    wanted = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **settings}
    changed = peft.get_peft_model(model, peft.LoraConfig(**wanted)).eval()
    changed.save_pretrained(folder)
    return changed


@pytest.fixture
def adapter(vit_folder, tmp_path) -> Path:
    trained(vit_folder, tmp_path / "adapter")
    return tmp_path / "adapter"


def pointing(folder: Path, **values: Any) -> Path:
    """The same folder, with these values in the adapter's config."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))
    return folder


ADAPTED: dict[str, dict[str, Any]] = {
    "queries and values": {},
    "the MLPs": {"target_modules": ["fc1", "fc2"]},
    "a classifier of its own": {"modules_to_save": ["classifier"]},
    "a classifier of another size": {"modules_to_save": ["classifier"], "labels": 3},
    "DoRA": {"use_dora": True},
    "with biases": {"bias": "lora_only"},
}


@pytest.mark.parametrize("settings", ADAPTED.values(), ids=ADAPTED)
def test_a_folder_with_an_adapter_alone_loads_the_model_and_the_adapter(
    vit_folder, tmp_path, picture, settings
) -> None:
    changed = trained(vit_folder, tmp_path / "adapter", **settings)
    loaded = hf_cam.load(tmp_path / "adapter")
    torch.testing.assert_close(loaded.model(PIXELS).logits, changed(PIXELS).logits)
    plain = hf_cam.load(vit_folder).model(PIXELS).logits
    assert plain.shape != changed(PIXELS).logits.shape or not torch.allclose(plain, changed(PIXELS).logits, atol=1e-3)
    assert not any(module.training for module in loaded.model.modules())
    [explanation] = hf_cam.explain(picture, tmp_path / "adapter")
    assert explanation.heatmap.any()


def test_the_map_is_that_of_the_model_in_memory(vit_folder, tmp_path, picture) -> None:
    changed = trained(vit_folder, tmp_path / "adapter")
    processor = hf_cam.load(vit_folder).processor
    [expected] = hf_cam.explain(picture, changed.base_model.model, processor=processor)
    [found] = hf_cam.explain(picture, tmp_path / "adapter")
    [plain] = hf_cam.explain(picture, vit_folder)
    np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-5)
    assert np.abs(found.heatmap - plain.heatmap).max() > 0.1


DOORS: dict[str, Callable[[str, Any], str]] = {
    "explain": lambda name, image: hf_cam.explain(image, name)[0].label,
    "compare": lambda name, image: hf_cam.compare(image, name, methods="gradcam").explanations[0].label,
    "a pipeline": lambda name, image: hf_cam.pipeline(model=name)(image)[0]["label"],
    "the pipeline of transformers": lambda name, image: transformers.pipeline("image-cam", model=name)(image)[0][
        "label"
    ],
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_every_door_takes_the_folder(adapter, picture, door) -> None:
    logits = hf_cam.load(adapter).model(**hf_cam.load(adapter).inputs([picture])).logits
    assert door(str(adapter), picture) == hf_cam.load(adapter).id2label[int(logits.argmax())]


def test_the_commands_take_the_folder(adapter, picture_file, tmp_path, capsys) -> None:
    assert main(["explain", str(picture_file), "--model", str(adapter), "--out", str(tmp_path / "a.png")]) == 0
    assert main(["adapter", str(adapter)]) == 0
    assert "vit.layers.1.layernorm_before" in capsys.readouterr().out


def test_a_base_may_be_a_demo_model_a_short_path_or_beside_the_adapter(vit_folder, tmp_path, adapter, picture) -> None:
    shutil.copytree(vit_folder, adapter / "base")
    expected = hf_cam.load(adapter).model(PIXELS).logits
    torch.testing.assert_close(
        hf_cam.load(pointing(adapter, base_model_name_or_path="base")).model(PIXELS).logits, expected
    )
    trained(hf_cam.demo_model("vit"), tmp_path / "demo")
    for door in DOORS.values():
        if door is not DOORS["the pipeline of transformers"]:
            assert door(str(pointing(tmp_path / "demo", base_model_name_or_path="demo:vit")), picture)


def test_the_processor_of_the_adapter_comes_before_that_of_its_model(adapter, vit_folder) -> None:
    assert hf_cam.load(adapter).processor.size == hf_cam.load(vit_folder).processor.size
    transformers.ViTImageProcessor(size={"height": 32, "width": 48}).save_pretrained(adapter)
    assert dict(hf_cam.load(adapter).processor.size) == {"height": 32, "width": 48}


def test_a_folder_with_a_config_of_its_own_is_a_model(adapter, vit_folder) -> None:
    for path in vit_folder.iterdir():
        shutil.copy(path, adapter / path.name)
    (adapter / CONFIG).unlink()
    plain = hf_cam.load(vit_folder).model(PIXELS).logits
    torch.testing.assert_close(hf_cam.load(adapter).model(PIXELS).logits, plain)


def test_an_adapter_on_the_hub_is_found_with_its_model(hub, vit_folder, tmp_path) -> None:
    shutil.copytree(vit_folder, hub.folder("acme/base"))
    changed = trained(vit_folder, tmp_path / "adapter")
    shutil.copytree(pointing(tmp_path / "adapter", base_model_name_or_path="acme/base"), hub.folder("acme/lora"))
    torch.testing.assert_close(hf_cam.load("acme/lora").model(PIXELS).logits, changed(PIXELS).logits)


@pytest.mark.parametrize("door", [hf_cam.load, lambda name: hf_cam.pipeline(model=str(name))], ids=["load", "pipeline"])
def test_without_peft_the_sentence_names_it(adapter, vit_folder, monkeypatch, door) -> None:
    import importlib.util

    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *given: None if name == "peft" else known(name, *given)
    )
    words = r"holds a PEFT adapter of the model '.*tiny-vit', not a model itself.*pip install peft"
    with pytest.raises(ModelError, match=words):
        door(adapter)


def without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def config(content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / CONFIG).write_text(content)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "config is no JSON": (config("{"), "adapter_config.json of .* names no model.*JSONDecodeError"),
    "config is a list": (config("[]"), "names no model that the adapter changes: TypeError"),
    "config nested too deep": (config('{"a":' * 100_000), "names no model that the adapter changes: "),
    "no base": (config("{}"), "names no model that the adapter changes: KeyError: 'base_model_name_or_path'"),
    "base is null": (lambda folder: pointing(folder, base_model_name_or_path=None), "must be a name"),
    "base is a number": (lambda folder: pointing(folder, base_model_name_or_path=5), "must be a name"),
    "base is gone": (
        lambda folder: pointing(folder, base_model_name_or_path="/no/such"),
        "is a PEFT adapter of '/no/such': there is no folder '/no/such'",
    ),
    "base is no demo model": (
        lambda folder: pointing(folder, base_model_name_or_path="demo:vitt"),
        "is a PEFT adapter of 'demo:vitt': no demo model 'vitt'; nearest: 'vit'",
    ),
    "no weights": (without_weights, "the adapter weights of .* cannot be read"),
    "weights cut off": (cut_weights, "the adapter weights of .* cannot be read"),
    "an unknown kind": (lambda folder: pointing(folder, peft_type="MAGIC"), "the adapter of .* cannot be loaded"),
    "modules that the model lacks": (
        lambda folder: pointing(folder, target_modules=["nowhere"]),
        "the adapter of .* cannot be loaded",
    ),
    "more modules than weights": (
        lambda folder: pointing(folder, target_modules=["q_proj", "v_proj", "fc1"]),
        r"the adapter .* lacks 4 weights, such as 'vit\.layers\.0\.mlp\.fc1",
    ),
    "a base that reads texts": (
        lambda folder: pointing(folder, auto_mapping=None, base_model_name_or_path="BERT"),
        "takes no images",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("door", [hf_cam.load, lambda name: hf_cam.pipeline(model=str(name))], ids=["load", "pipeline"])
def test_a_damaged_adapter_is_refused_in_a_sentence(adapter, bert_folder, damage, words, door) -> None:
    damage(adapter)
    (adapter / CONFIG).write_text((adapter / CONFIG).read_text().replace("BERT", str(bert_folder)))
    with pytest.raises(ModelError, match=words) as caught:
        door(adapter)
    assert len(str(caught.value)) <= 400
