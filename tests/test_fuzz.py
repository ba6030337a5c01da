"""Whatever is passed, the result is explanations or one sentence: generated images, targets, settings and files.

`HF_CAM_FUZZ=N` tries N times as many examples, with other seeds in each run.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import hf_cam
from hf_cam.errors import LONGEST, HFCamError

TIMES = int(os.environ.get("HF_CAM_FUZZ", "1"))
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def examples(count: int) -> Callable:
    """So many examples, the same in each run, unless more are asked for."""
    return settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def check_answer(call: Callable[[], Any]) -> None:
    """The call returns maps in [0, 1], or refuses in one sentence."""
    try:
        found = call()
    except HFCamError as error:
        text = str(error)
        assert 0 < len(text) <= LONGEST, text
        assert text.isprintable(), text
        return
    for one in flat(found):
        heatmap = one.heatmap if isinstance(one, hf_cam.Explanation) else one
        values = np.asarray(heatmap)
        assert np.isfinite(values).all()
        assert values.min() >= 0
        assert values.max() <= 1


def flat(found: Any) -> list[Any]:
    return [one for part in found for one in flat(part)] if isinstance(found, list) else [found]


# What people pass as an image


def noise(width: int, height: int = 24) -> Image.Image:
    """A grey picture, the same each time."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width), np.uint8))


MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "La", "PA", "RGBa", "I;16"]
FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "ICO", "PPM"]


@st.composite
def pil_images(draw: st.DrawFn) -> Image.Image:
    mode = draw(st.sampled_from(MODES))
    size = draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    try:
        return noise(*size).convert(mode)
    except ValueError:  # some modes are only reached through another
        return Image.new(mode, size)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A picture file in which bytes were changed, added or lost."""
    buffer = io.BytesIO()
    kind = draw(st.sampled_from(FORMATS))
    noise(draw(st.integers(1, 40))).convert("RGB").save(buffer, kind)
    data = bytearray(buffer.getvalue())
    for _ in range(draw(st.integers(0, 8))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


SHAPES = arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=12)
DTYPES = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness="="),
    arrays.unsigned_integer_dtypes(endianness="="),
    arrays.floating_dtypes(endianness="="),
    arrays.complex_number_dtypes(endianness="="),
)
ARRAYS = st.tuples(DTYPES, SHAPES).flatmap(lambda kind: arrays.arrays(*kind))
PICTURES = arrays.arrays(np.uint8, st.tuples(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 2, 3, 4, 5])))
TENSORS = st.sampled_from(
    [
        lambda: torch.rand(3, 20, 30),
        lambda: torch.rand(2, 3, 64, 96),
        lambda: torch.rand(20, 30, 3, dtype=torch.float64),
        lambda: torch.rand(3, 20, 30).to_sparse(),
        lambda: torch.rand(3, 20, 30).to(torch.bfloat16),
        lambda: torch.zeros(3, 20, 30, dtype=torch.complex64),
        lambda: torch.zeros(3, 20, 30, dtype=torch.complex64).conj(),
        lambda: torch.quantize_per_tensor(torch.rand(3, 20, 30), 0.1, 0, torch.quint8),
        lambda: torch.empty(3, 20, 30, device="meta"),
        lambda: torch.rand(3, 20, 30, requires_grad=True),
        lambda: torch.full((1, 3, 64, 96), math.nan),
        lambda: torch.nested.nested_tensor([torch.rand(3, 20, 30), torch.rand(3, 10, 30)]),
    ]
).map(lambda make: make())
TEXTS = st.text(st.characters(codec=None), max_size=30)
ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), TEXTS, st.binary(max_size=20)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    max_leaves=6,
)
IMAGES = st.one_of(
    pil_images(),
    PICTURES,
    ARRAYS,
    TENSORS,
    files(),
    files().map(io.BytesIO),
    TEXTS.map(lambda text: text.replace("://", "")),  # nothing is asked for over the network
    ANYTHING.filter(lambda value: not isinstance(value, str)),
    st.lists(st.one_of(pil_images(), PICTURES, ARRAYS), max_size=3),
)

# What they pass as a target, and as settings


CALLABLES = st.sampled_from(
    [
        lambda output: output[1],
        lambda output: output,
        lambda output: None,
        lambda output: 3.0,
        lambda output: output.sum() * math.nan,
        lambda output: output.detach().sum(),
        lambda output: torch.zeros(()),
        len,
        int,
        object,
    ]
)
NUMBERS = st.one_of(st.integers(-3, 12), st.integers(), st.floats())
TARGETS = st.one_of(
    NUMBERS,
    TEXTS,
    st.sampled_from(["LABEL_1", "label_1", "LABEL", "class 1", " ", "T-shirt/top"]),
    st.lists(NUMBERS, max_size=5).map(tuple),
    st.lists(st.one_of(NUMBERS, TEXTS), max_size=4),
    ARRAYS,
    TENSORS,
    PICTURES,
    CALLABLES,
    ANYTHING,
)
NAMES = [*hf_cam.list_methods(), "auto", "grad-cam", "", "scorecam\n"]
CHEAP = [name for name in NAMES if name not in hf_cam.list_methods() or hf_cam.list_methods()[name].is_quick]
SETTINGS: dict[str, st.SearchStrategy] = {
    "target": TARGETS,
    "text": st.one_of(TEXTS, st.lists(TEXTS, max_size=3), ANYTHING),
    "method": st.one_of(st.sampled_from(CHEAP), TEXTS, ANYTHING),
    "layers": st.one_of(
        st.sampled_from(["vit.layers.1.layernorm_before", "vit", "", "classifier", "vit.layers.1:3"]), TEXTS, ANYTHING
    ),
    "reshape": st.one_of(CALLABLES, ANYTHING),
    "top_k": st.one_of(st.integers(-2, 15), ANYTHING),
    "threshold": st.one_of(st.floats(), ANYTHING),
    "aug_smooth": st.one_of(st.booleans(), ANYTHING),
    "eigen_smooth": st.one_of(st.booleans(), ANYTHING),
    "method_options": st.one_of(st.dictionaries(st.sampled_from(["seed", "k", "layers"]), ANYTHING), ANYTHING),
    "batch_size": st.one_of(st.integers(-2, 5), ANYTHING),
    "labels": st.one_of(
        st.lists(TEXTS, max_size=12), st.dictionaries(st.integers(-1, 12), TEXTS, max_size=4), ANYTHING
    ),
    "output": st.one_of(st.sampled_from(["logits", "probabilities", "multi-label", "embedding"]), ANYTHING),
    "device": st.one_of(st.sampled_from(["cpu", "hpu", "mps", "cuda:99", "meta"]), ANYTHING),
    "dtype": st.one_of(st.sampled_from(["float16", "bfloat16", "float64", "int8", torch.int64]), ANYTHING),
}
CALLS = st.dictionaries(st.sampled_from([*SETTINGS]), st.none(), max_size=3).flatmap(
    lambda chosen: st.fixed_dictionaries({name: SETTINGS[name] for name in chosen})
)


@pytest.fixture(scope="module")
def loaded(vit_folder: Path) -> Any:
    return hf_cam.load(vit_folder)


@pytest.fixture(scope="module")
def clip() -> Any:
    return hf_cam.load("demo:clip")


@examples(700)
@given(image=IMAGES)
def test_any_image_is_explained_or_refused_in_one_sentence(loaded: Any, image: Any) -> None:
    check_answer(lambda: hf_cam.explain(image, loaded))


@examples(700)
@given(settings=CALLS, wide=st.booleans())
def test_any_settings_are_followed_or_refused_in_one_sentence(loaded: Any, settings: dict, wide: bool) -> None:
    image = noise(40, 24 if wide else 50).convert("RGB")
    check_answer(lambda: hf_cam.explain(image, loaded, **settings))


@examples(200)
@given(text=SETTINGS["text"], target=st.one_of(st.none(), TARGETS))
def test_any_prompt_is_explained_or_refused_in_one_sentence(clip: Any, text: Any, target: Any) -> None:
    image = noise(40).convert("RGB")
    check_answer(lambda: hf_cam.explain(image, clip, text=text, target=target))


@examples(200)
@given(pixels=st.one_of(TENSORS, ARRAYS, ARRAYS.map(torch.from_numpy), ANYTHING), targets=st.one_of(st.none(), TARGETS))
def test_any_tensor_is_explained_or_refused_in_one_sentence(loaded: Any, pixels: Any, targets: Any) -> None:
    check_answer(lambda: hf_cam.GradCAM(loaded.model)(pixels, targets=targets))


# Files of a model

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**7), 10**7),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-4, 300), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(0, 9), max_size=2),
    st.just([[["a"]]]),
)
CAM_CONFIG = {"layers": ["vit.layers.1.layernorm_before"], "layout": "tokens", "prefix": 1, "method": "gradcam"}


@st.composite
def edited_files(draw: st.DrawFn) -> tuple[str, str]:
    """The name of a file and a function's seed: one or two keys with other values, or bytes that are no JSON."""
    name = draw(st.sampled_from(["config.json", "preprocessor_config.json", "cam_config.json"]))
    kind = draw(st.sampled_from(["keys", "keys", "keys", "text", "cut"]))
    return name, json.dumps(
        {
            "kind": kind,
            "seed": draw(st.integers(0, 10**6)),
            "values": draw(st.lists(VALUES, min_size=1, max_size=2)),
            "text": draw(st.text(max_size=30)),
        }
    )


def edited(text: str, edit: dict) -> str:
    chance = random.Random(edit["seed"])
    if edit["kind"] == "text":
        return edit["text"]
    if edit["kind"] == "cut":
        return text[: chance.randrange(len(text))]
    known = json.loads(text)
    for value in edit["values"]:
        known[chance.choice([*known])] = value
    return json.dumps(known)


@examples(200)
@given(change=edited_files())
def test_any_file_of_a_model_is_read_or_refused_in_one_sentence(vit_folder: Path, change: tuple[str, str]) -> None:
    name, edit = change[0], json.loads(change[1])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        shutil.copytree(vit_folder, folder)
        path = folder / name
        before = path.read_text() if path.is_file() else json.dumps(CAM_CONFIG)
        path.write_text(edited(before, edit))
        image = noise(40).convert("RGB")
        check_answer(lambda: hf_cam.explain(image, folder))
