"""A stranger's folder: its Python never runs, no pickle is read, and no network of absurd size is built."""

from __future__ import annotations

import io
import json
import pickle
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import CLIPImageProcessor, ViTForImageClassification, ViTImageProcessor

import hf_cam
from hf_cam.errors import ModelError
from hf_cam.models.bounds import check_bounds
from hf_cam.models.checkpoints import load_tokenizer
from nets import tiny
from pictures import SIZE

EVIL = """
open({mark!r}, "w")
from transformers import CLIPImageProcessor, CLIPTokenizer, ViTConfig
class Config(ViTConfig):
    model_type = "evil"
class Processor(CLIPImageProcessor):
    pass
class Tokenizer(CLIPTokenizer):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with its processor."""
    tiny(ViTForImageClassification, image_size=SIZE).save_pretrained(tmp_path)
    height, width = SIZE
    ViTImageProcessor(size={"height": height, "width": width}).save_pretrained(tmp_path)
    return tmp_path


def rewritten(path: Path, **values: object) -> None:
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **values}))


BRINGING_CODE = {
    "config": ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}),
    "image processor": (
        "preprocessor_config.json",
        {"image_processor_type": "Processor", "auto_map": {"AutoImageProcessor": "evil.Processor"}},
    ),
    "tokenizer": (
        "tokenizer_config.json",
        {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}},
    ),
}


@pytest.mark.parametrize("what", BRINGING_CODE)
def test_code_in_a_folder_never_runs_even_if_somebody_answers_yes(
    what: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, values = BRINGING_CODE[what]
    mark = tmp_path / "RAN"
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    rewritten(folder / name, **values)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    doors = [lambda: hf_cam.load(folder), lambda: hf_cam.pipeline("image-cam", model=str(folder))]
    for door in doors if what != "tokenizer" else [lambda: load_tokenizer(str(folder))]:
        with pytest.raises(ModelError, match="brings its own Python code, which hf-cam never runs"):
            door()
    assert not mark.exists()


def test_pickled_weights_are_not_read(folder: Path) -> None:
    weights = hf_cam.load(folder).model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")  # sound, yet a pickle
    with pytest.raises(ModelError, match="safetensors"):
        hf_cam.load(folder)


def test_a_pickled_adapter_is_not_read(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "RAN"), "w")

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    rewritten(adapter / "adapter_config.json", peft_type="LORA", base_model_name_or_path=str(folder))
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        hf_cam.load(adapter)
    assert not (tmp_path / "RAN").exists()


ABSURD = {
    "layers": ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
    "layers of a part": ({"vision_config": {"num_hidden_layers": 10**6}}, "vision_config.num_hidden_layers"),
    "depths": ({"depths": [1000, 1000, 1000]}, "depths"),
    "many depths": ({"depths": [1] * 10**4}, "depths"),
    "arguments for timm": ({"model_args": {"depth": 10**5}}, "model_args.depth"),
    "classes": ({"num_labels": 10**6}, "num_labels"),
    "a negative width": ({"hidden_size": -(10**12)}, "hidden_size"),
}


@pytest.mark.parametrize("case", ABSURD)
def test_a_network_of_absurd_size_is_refused_before_it_is_built(case: str, folder: Path) -> None:
    values, field = ABSURD[case]
    rewritten(folder / "config.json", **values)
    before = time.monotonic()
    with pytest.raises(ModelError, match=rf"{field}.*trust_config=True"):
        hf_cam.load(folder)
    assert time.monotonic() - before < 5


WITHIN_THE_NUMBERS = {
    "wide": {"hidden_size": 10**7, "intermediate_size": 10**7},
    "wide within": {"intermediate_size": 10**8, "hidden_size": 1024},
    "a large picture": {"image_size": 10**7},
    "many tensors": {"num_hidden_layers": 1999},
}


@pytest.mark.parametrize("case", WITHIN_THE_NUMBERS)
def test_a_network_that_no_memory_holds_is_refused_while_it_is_built(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_cam.models.bounds.memory", lambda: 2**36)
    monkeypatch.setattr("hf_cam.models.bounds.MOST_TENSORS", 2000)
    rewritten(folder / "config.json", **WITHIN_THE_NUMBERS[case])
    before = time.monotonic()
    with pytest.raises(ModelError, match=r"describes a network of .*trust_config=True"):
        hf_cam.load(folder)
    assert time.monotonic() - before < 5


def test_a_sound_network_is_loaded_on_a_small_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sum(parameter.nbytes for parameter in hf_cam.load(folder).model.parameters())
    monkeypatch.setattr("hf_cam.models.bounds.memory", lambda: 2 * weights)
    assert hf_cam.load(folder)
    monkeypatch.setattr("hf_cam.models.bounds.memory", lambda: weights // 2)
    with pytest.raises(ModelError, match="of memory"):
        hf_cam.load(folder)


def test_whoever_trusts_a_config_may_have_it_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_cam.models.bounds.MOST_PARTS", 0)
    monkeypatch.setattr("hf_cam.models.bounds.memory", lambda: 0)
    with pytest.raises(ModelError, match="trust_config"):
        hf_cam.load(folder)
    assert hf_cam.load(folder, trust_config=True).model.config.num_hidden_layers
    picture = torch.zeros(3, *SIZE).byte().permute(1, 2, 0).numpy()
    assert hf_cam.explain(picture, folder, trust_config=True)


def test_real_configs_are_within_the_bounds() -> None:
    check_bounds("vit", tiny(ViTForImageClassification).config.to_dict())
    check_bounds("moe", {"num_hidden_layers": 96, "num_experts": 512, "vocab_size": 262_144, "depths": [3, 4, 23, 3]})
    check_bounds("clip", {**CLIPImageProcessor().to_dict(), "max_position_embeddings": 10**7, "use_cache": True})
