"""On a GPU everything is as on the CPU: the maps, the model afterwards, the memory, the random numbers.

Run with `pytest -m gpu tests/test_gpu.py`. The reference is the same call on the CPU.
"""

from __future__ import annotations

import threading
from copy import deepcopy

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

import hf_cam
from benchmarks.scenes import scenes
from hf_cam.testing import check_model_untouched
from hf_cam.zoo import demo_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
ZOO = ("vit", "dinov2", "convnext", "swin", "segformer", "detr", "maskformer", "clip")
PICTURES = [scene.image for scene in scenes("test", 3, seed=5)]
OPTIONS = {
    "rise": {"samples": 64},
    "d-rise": {"samples": 64},
    "smoothgrad": {"samples": 4},
    "sscam": {"draws": 2},
    "iscam": {"steps": 3},
}
"""Fewer samples where the published number takes minutes."""


@pytest.fixture(autouse=True)
def exact_convolutions():
    """Without TF32, whose ten bits of mantissa are no reference."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def settings(name: str) -> dict[str, object]:
    return {"text": ["a bag", "a shirt"]} if name == "clip" else {}


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    if np.allclose(one, other, atol=1e-3):
        return 1.0
    return float(np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1])


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("method", hf_cam.list_methods())
def test_every_method_gives_the_map_of_the_cpu(name: str, method: str) -> None:
    model = f"demo:{name}"
    given = settings(name) | {"method": method, "method_options": OPTIONS.get(method)}
    try:
        expected = hf_cam.explain(PICTURES[0], model, device="cpu", **given)
    except hf_cam.HFCamError as error:
        with pytest.raises(type(error)):
            hf_cam.explain(PICTURES[0], model, device="cuda", **given)
        return
    found = hf_cam.explain(PICTURES[0], model, device="cuda", **given)
    assert [one.label for one in found] == [one.label for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-3)
        assert correlation(one.heatmap, other.heatmap) > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ZOO)
def test_half_precision_shows_what_single_precision_shows(name: str, dtype: torch.dtype) -> None:
    expected = hf_cam.explain(PICTURES[0], f"demo:{name}", device="cuda", **settings(name))
    found = hf_cam.explain(PICTURES[0], f"demo:{name}", device="cuda", dtype=dtype, **settings(name))
    assert [one.label for one in found] == [one.label for one in expected]
    assert min(correlation(one.heatmap, other.heatmap) for one, other in zip(found, expected, strict=True)) > 0.9


def test_the_gpu_is_the_default() -> None:
    assert hf_cam.load("demo:vit").model.device.type == "cuda"


def test_a_user_s_model_stays_on_its_gpu_and_comes_back_as_it_was() -> None:
    model = hf.AutoModelForImageClassification.from_pretrained(demo_model("vit")).cuda()
    pixels = torch.randn(2, 3, 96, 128, device="cuda")
    for method in hf_cam.list_methods():
        if method in {"d-rise", "cam"}:  # of detectors, and of pooled maps
            continue
        with hf_cam.CAM(model, method, **OPTIONS.get(method, {})) as cam:
            maps = check_model_untouched(model, lambda cam=cam: cam(pixels))
        assert maps.device.type == "cuda", method
        assert maps.shape == (2, 96, 128)


def test_maps_of_a_batch_are_those_of_its_pictures() -> None:
    together = hf_cam.explain(PICTURES, "demo:convnext", device="cuda")
    for picture, [found] in zip(PICTURES, together, strict=True):
        [alone] = hf_cam.explain(picture, "demo:convnext", device="cuda")
        assert np.allclose(found.heatmap, alone.heatmap, atol=1e-3)


def test_calls_leave_no_memory_behind() -> None:
    loaded = hf_cam.load("demo:vit", device="cuda")
    for turn in range(120):
        hf_cam.explain(PICTURES[turn % 3], loaded, method=("gradcam", "chefer", "attnlrp", "libragrad")[turn % 4])
        if turn == 20:
            before = torch.cuda.memory_allocated()
    assert torch.cuda.memory_allocated() <= before


def test_an_explanation_holds_no_memory_of_the_gpu() -> None:
    loaded = hf_cam.load("demo:vit", device="cuda")
    hf_cam.explain(PICTURES[0], loaded)
    before = torch.cuda.memory_allocated()
    kept = [hf_cam.explain(PICTURES[0], loaded) for _ in range(20)]
    assert len(kept) == 20
    assert torch.cuda.memory_allocated() == before


def test_two_threads_explain_two_models_on_one_gpu() -> None:
    names = ("vit", "convnext")
    loaded = {name: hf_cam.load(f"demo:{name}", device="cuda") for name in names}
    expected = {name: hf_cam.explain(PICTURES[0], loaded[name])[0].heatmap for name in names}
    wrong: list[str] = []

    def work(name: str) -> None:
        for _ in range(20):
            [found] = hf_cam.explain(PICTURES[0], loaded[name])
            if not np.allclose(found.heatmap, expected[name], atol=1e-3):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_random_numbers_on_the_gpu_are_the_user_s() -> None:
    torch.cuda.manual_seed(3)
    expected = torch.rand(4, device="cuda")
    torch.cuda.manual_seed(3)
    hf_cam.explain(PICTURES[0], "demo:vit", device="cuda", method="rise", method_options={"samples": 16})
    hf_cam.explain(PICTURES[0], "demo:vit", device="cuda", method="randomcam")
    assert torch.equal(torch.rand(4, device="cuda"), expected)


def test_autocast_around_the_call_is_respected() -> None:
    model = hf.AutoModelForImageClassification.from_pretrained(demo_model("vit")).cuda()
    pixels = torch.randn(2, 3, 96, 128, device="cuda")
    with hf_cam.GradCAM(model) as cam:
        expected = cam(pixels)
        with torch.autocast("cuda", torch.bfloat16):
            found = cam(pixels)
    assert correlation(found.float().cpu().numpy(), expected.cpu().numpy()) > 0.9


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own modules
def test_a_compiled_model_gives_the_same_map() -> None:
    model = hf.AutoModelForImageClassification.from_pretrained(demo_model("convnext")).cuda()
    pixels = torch.randn(1, 3, 96, 128, device="cuda")
    expected = hf_cam.GradCAM(deepcopy(model))(pixels)
    compiled = torch.compile(model)
    compiled(pixels)
    assert correlation(hf_cam.GradCAM(compiled)(pixels).cpu().numpy(), expected.cpu().numpy()) > 0.99


def test_inputs_on_another_device_are_moved_or_refused_in_one_sentence() -> None:
    model = hf.AutoModelForImageClassification.from_pretrained(demo_model("vit")).cuda()
    pixels = torch.randn(1, 3, 96, 128)
    try:
        found = hf_cam.GradCAM(model)(pixels)
    except hf_cam.HFCamError as error:
        assert "cuda" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert found.isfinite().all()


@pytest.mark.parametrize("place", ["auto", {"": 0}])
def test_a_model_that_accelerate_has_placed(place: str | dict[str, int]) -> None:
    model = hf.AutoModelForImageClassification.from_pretrained(demo_model("vit"), device_map=place)
    processor = hf.AutoImageProcessor.from_pretrained(demo_model("vit"))
    [found] = hf_cam.explain(PICTURES[0], model, processor=processor)
    [expected] = hf_cam.explain(PICTURES[0], "demo:vit", device="cpu")
    assert correlation(found.heatmap, expected.heatmap) > 0.99


def test_a_model_that_is_half_on_the_gpu_and_half_offloaded() -> None:
    layers = {f"vit.layers.{i}": 0 if i < 3 else "cpu" for i in range(6)}
    place = {"vit.embeddings": 0, **layers, "vit.layernorm": "cpu", "classifier": "cpu"}
    model = hf.AutoModelForImageClassification.from_pretrained(demo_model("vit"), device_map=place)
    processor = hf.AutoImageProcessor.from_pretrained(demo_model("vit"))
    for method in ("gradcam", "chefer", "attnlrp"):
        [found] = hf_cam.explain(PICTURES[0], model, processor=processor, method=method)
        [expected] = hf_cam.explain(PICTURES[0], "demo:vit", device="cpu", method=method)
        assert correlation(found.heatmap, expected.heatmap) > 0.99, method


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_words_of_an_answer(dtype: torch.dtype) -> None:
    asked = {"text": "What is in the picture?"}
    expected = hf_cam.explain(PICTURES[0], "demo:llava", device="cpu", **asked)
    found = hf_cam.explain(PICTURES[0], "demo:llava", device="cuda", dtype=dtype, answer=expected.answer, **asked)
    assert [one.label for one in found] == [one.label for one in expected]
    limit = 0.99 if dtype == torch.float32 else 0.9
    for one, other in zip(found, expected, strict=True):
        if other.evidence > 0.2:
            assert correlation(one.heatmap, other.heatmap) > limit
            assert one.evidence == pytest.approx(other.evidence, abs=0.01 if limit > 0.95 else 0.1)


@pytest.mark.parametrize("method", hf_cam.list_word_methods())
def test_every_method_for_words(method: str) -> None:
    given = {"text": "What is in the picture?", "method": method}
    expected = hf_cam.explain(PICTURES[0], "demo:llava", device="cpu", **given)
    found = hf_cam.explain(PICTURES[0], "demo:llava", device="cuda", **given)
    assert found.answer == expected.answer
    assert min(correlation(a.heatmap, b.heatmap) for a, b in zip(found, expected, strict=True)) > 0.98


def test_the_check_gives_the_verdict_of_the_cpu() -> None:
    [expected] = hf_cam.explain(PICTURES[0], "demo:vit", device="cpu")
    [found] = hf_cam.explain(PICTURES[0], "demo:vit", device="cuda")
    assert found.check().verdict == expected.check().verdict


def test_the_pipeline_runs_on_the_gpu() -> None:
    pipe = hf.pipeline("image-cam", model=str(demo_model("vit")), device=0)
    [expected] = hf_cam.explain(PICTURES[0], "demo:vit", device="cpu")
    [found] = pipe(Image.fromarray(PICTURES[0]))
    assert correlation(found["heatmap"], expected.heatmap) > 0.99
