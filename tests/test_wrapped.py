"""Models in wrappers of torch's distributed package, exported or without weights: the right map, or one sentence."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers as hf
from torch import Tensor, nn

import hf_cam
from hf_cam.cam import CAM
from hf_cam.errors import LONGEST, HFCamError, ModelError
from hf_cam.testing import check_model_untouched
from hf_cam.zoo import SCENE, demo_model
from nets import spread, tiny
from pictures import SIZE, pictures

PEERS = os.environ.get("HF_CAM_PEERS") == "required"
METHODS = ("gradcam", "hirescam", "eigencam", "chefer", "libracam", "ablationcam")


def vit() -> nn.Module:
    return spread(tiny(hf.ViTForImageClassification, image_size=SIZE, num_hidden_layers=2, num_labels=5))


@contextmanager
def group(store: Any, rank: int = 0, size: int = 1) -> Iterator[None]:
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in model.vit.layers:
        fully_shard(layer)
    return fully_shard(model)


def in_ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


WRAPPERS = {"DDP": in_ddp, "FSDP2": sharded}


def differences(model: nn.Module, expected: dict[str, Tensor]) -> dict[str, Any]:
    """By method: the largest difference of the map, or the sentence of refusal."""
    found: dict[str, Any] = {}
    for method, plain in expected.items():
        try:
            maps = check_model_untouched(model, lambda method=method: CAM(model, method)(pictures(1), 1))
        except HFCamError as error:
            found[method] = str(error)
        else:
            found[method] = (maps - plain).abs().max().item()
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_distributed_model_gets_the_map_of_the_plain_one_or_is_refused(wrapper: str) -> None:
    expected = {method: CAM(vit(), method)(pictures(1), 1) for method in METHODS}
    with group(dist.HashStore()):
        found = differences(WRAPPERS[wrapper](vit()), expected)
    check(wrapper, found)


def check(wrapper: str, found: dict[str, Any]) -> None:
    for one in found.values():
        if wrapper == "DDP":
            assert one < 1e-5, found
        else:
            assert "sharded over processes" in one
            assert "load the whole model in one process" in one


def of_one_of_two(wrapper: str, rank: int, path: str, expected: dict[str, Tensor], answers: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with group(dist.FileStore(path, 2), rank, 2):
        answers.put(differences(WRAPPERS[wrapper](vit()), expected))
        dist.barrier()


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_so_does_each_of_two_processes(wrapper: str, tmp_path: Path) -> None:
    expected = {method: CAM(vit(), method)(pictures(1), 1) for method in METHODS}
    context = get_context("spawn")
    answers = context.Queue()
    arguments = [(wrapper, rank, str(tmp_path / "store"), expected, answers) for rank in range(2)]
    processes = [context.Process(target=of_one_of_two, args=given) for given in arguments]
    for process in processes:
        process.start()
    for _ in processes:
        check(wrapper, answers.get(timeout=200))
    for process in processes:
        process.join()


def test_an_exported_program_gets_the_map_of_its_model_or_is_refused_in_one_sentence() -> None:
    x = pictures(1)
    expected = CAM(vit())(x, 1)
    for args, kwargs in (((x,), {}), ((), {"pixel_values": x})):
        model = torch.export.export(vit(), args, kwargs).module()
        found = differences(model, {"gradcam": expected})["gradcam"]
        assert found.isprintable() and len(found) <= LONGEST if isinstance(found, str) else found < 1e-5


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(ModelError, match="no weights; load it with its weights"):
        CAM(vit().to("meta"))(pictures(1), 1)


# bitsandbytes --------------------------------------------------------------------------------------------------------


def quantized(model: nn.Module, made_of: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    for layer in model.vit.layers.modules():
        for name, part in list(layer.named_children()):
            if isinstance(part, nn.Linear):
                setattr(layer, name, made_of(part))
    return model.to("cpu").eval()


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_weights_of_bitsandbytes_give_the_map_of_the_numbers_that_they_stand_for() -> None:
    library = import_module("bitsandbytes") if PEERS else pytest.importorskip("bitsandbytes")

    def eight(part: nn.Linear) -> nn.Module:
        made = library.nn.Linear8bitLt(part.in_features, part.out_features, has_fp16_weights=False)
        made.load_state_dict(part.state_dict())
        return made

    def four(part: nn.Linear) -> nn.Module:
        made = library.nn.Linear4bit(part.in_features, part.out_features, compute_dtype=torch.float32)
        made.weight, made.bias = library.nn.Params4bit(part.weight.data, requires_grad=False), part.bias
        return made

    def rounded(part: nn.Linear) -> nn.Module:
        kept, state = library.functional.quantize_4bit(part.weight.data)
        part.weight.data = library.functional.dequantize_4bit(kept, state)
        return part

    of_floats = {method: CAM(vit(), method)(pictures(1), 1) for method in METHODS if method != "ablationcam"}
    assert max(differences(quantized(vit(), eight), of_floats).values()) < 0.05
    of_rounded = {method: CAM(quantized(vit(), rounded), method)(pictures(1), 1) for method in METHODS}
    fours = quantized(vit(), four)
    assert max(differences(fours, of_rounded).values()) < 0.01
    states = [part.weight.quant_state for part in fours.modules() if isinstance(part, library.nn.Linear4bit)]
    assert not any(getattr(state, "packing_format_for_cpu", False) for state in states)


class Packing(nn.Linear):
    """Changes its own weights in a forward without gradients, as 4-bit layers of bitsandbytes do on some processors."""

    support_avx512bf16_for_cpu: bool

    def forward(self, given: Tensor) -> Tensor:
        if self.support_avx512bf16_for_cpu and not given.requires_grad:
            self.weight.data.zero_()
        return super().forward(given)


def test_layers_that_pack_their_own_weights_are_kept_from_it() -> None:
    def packing(part: nn.Linear) -> nn.Module:
        made = Packing(part.in_features, part.out_features)
        made.load_state_dict(part.state_dict())
        made.support_avx512bf16_for_cpu = True
        return made

    expected = {method: CAM(vit(), method)(pictures(1), 1) for method in ("gradcam", "eigencam")}
    assert max(differences(quantized(vit(), packing), expected).values()) < 1e-5


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_words_of_a_language_model_in_four_bits_are_those_of_the_numbers_that_they_stand_for() -> None:
    library = import_module("bitsandbytes") if PEERS else pytest.importorskip("bitsandbytes")
    folder = str(demo_model("llava"))
    settings = hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    loader = hf.AutoModelForImageTextToText
    model = loader.from_pretrained(folder, quantization_config=settings, device_map="cpu")
    floats = loader.from_pretrained(folder)
    replaced = 0
    for name, part in model.named_modules():
        if isinstance(part, library.nn.Linear4bit):
            numbers = library.functional.dequantize_4bit(part.weight.data, part.weight.quant_state)
            floats.get_submodule(name).weight.data = numbers.float()
            replaced += 1
    assert replaced > 10
    processor = hf.AutoProcessor.from_pretrained(folder)
    asked = {"processor": processor, "text": "Describe the picture."}
    found = check_model_untouched(model, lambda: hf_cam.explain(SCENE, model, **asked))
    same = hf_cam.explain(SCENE, floats, answer=found.answer, **asked)
    assert len(found) > 3
    for one, other in zip(found, same, strict=True):
        assert one.evidence == pytest.approx(other.evidence, abs=0.01)
        np.testing.assert_allclose(one.heatmap, other.heatmap, atol=0.02)
