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
from collections.abc import Callable
from dataclasses import dataclass
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
from hf_cam.methods.registry import BUDGET

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


@dataclass
class Answers:
    """How many calls were answered with maps, and how many with a sentence."""

    explained: int = 0
    refused: int = 0

    def note(self, call: Callable[[], Any]) -> None:
        """Check that a call returns maps in [0, 1], or refuses in one sentence."""
        try:
            found = call()
        except HFCamError as error:
            text = str(error)
            assert 0 < len(text) <= LONGEST, text
            assert text.isprintable(), text
            self.refused += 1
            return
        for one in flat(found):
            heatmap = one.heatmap if isinstance(one, hf_cam.Explanation) else one
            values = np.asarray(heatmap)
            assert np.isfinite(values).all()
            assert values.min() >= 0
            assert values.max() <= 1
        self.explained += 1

    def check(self, least: int) -> None:
        """The examples were neither all explained nor all refused."""
        assert self.explained >= least, self
        assert self.refused >= least, self


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
PROMPTS = st.lists(st.sampled_from(["a bag", "a red coat"]), min_size=1, max_size=2)
PIXELS = st.sampled_from([(1, 3, 64, 96), (2, 3, 64, 96), (1, 3, 48, 80)]).map(lambda shape: torch.rand(*shape))
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
VALID: dict[str, st.SearchStrategy] = {
    "target": st.sampled_from([1, "LABEL_1", "tabby", "lion", [0, "tripod"], lambda output: output[1]]),
    "text": st.none(),
    "method": st.sampled_from([name for name, method in hf_cam.list_methods().items() if method.fits(BUDGET)]),
    "layers": st.sampled_from(["vit.layers.1.layernorm_before", ["vit.layers.0.layernorm_before"]]),
    "reshape": st.just(lambda tokens: tokens[:, 1:].unflatten(1, (8, -1)).permute(0, 3, 1, 2)),
    "top_k": st.integers(1, 15),
    "threshold": st.floats(0, 1),
    "aug_smooth": st.booleans(),
    "eigen_smooth": st.booleans(),
    "method_options": st.just({}),
    "batch_size": st.integers(1, 5),
    "labels": st.lists(st.text("ab ", min_size=1), min_size=5, max_size=5),
    "output": st.sampled_from(["logits", "probabilities", "multi-label", "embedding"]),
    "device": st.none(),
    "dtype": st.none(),
}
INVALID: dict[str, st.SearchStrategy] = {
    "target": TARGETS,
    "text": st.one_of(TEXTS, st.lists(TEXTS, max_size=3), ANYTHING),
    "method": st.one_of(st.sampled_from(["grad-cam", "", "gradcam\n"]), TEXTS, ANYTHING),
    "layers": st.one_of(st.sampled_from(["vit", "", "classifier", "vit.layers.1:3"]), TEXTS, ANYTHING),
    "reshape": st.one_of(CALLABLES, ANYTHING),
    "method_options": st.one_of(st.dictionaries(st.sampled_from(["seed", "k", "layers"]), ANYTHING), ANYTHING),
    "labels": st.one_of(
        st.lists(TEXTS, max_size=12), st.dictionaries(st.integers(-1, 12), TEXTS, max_size=4), ANYTHING
    ),
    "device": st.one_of(st.sampled_from(["cpu", "hpu", "mps", "cuda:99", "meta"]), ANYTHING),
    "dtype": st.one_of(st.sampled_from(["float16", "int8", torch.int64]), ANYTHING),
}


def mostly(usual: st.SearchStrategy, other: st.SearchStrategy) -> st.SearchStrategy:
    """Two in three examples of the usual kind."""
    return st.integers(0, 2).flatmap(lambda which: usual if which else other)


CALLS = st.dictionaries(st.sampled_from([*VALID]), st.none(), min_size=1, max_size=3).flatmap(
    lambda chosen: st.fixed_dictionaries({name: mostly(VALID[name], INVALID.get(name, ANYTHING)) for name in chosen})
)


@pytest.fixture(scope="module")
def loaded(vit_folder: Path) -> Any:
    return hf_cam.load(vit_folder)


@pytest.fixture(scope="module")
def clip() -> Any:
    return hf_cam.load("demo:clip")


def test_any_image_is_explained_or_refused_in_one_sentence(loaded: Any) -> None:
    answers = Answers()

    @examples(700)
    @given(image=IMAGES)
    def check(image: Any) -> None:
        answers.note(lambda: hf_cam.explain(image, loaded))

    check()
    answers.check(100)


def test_any_settings_are_followed_or_refused_in_one_sentence(loaded: Any) -> None:
    answers = Answers()

    @examples(700)
    @given(settings=CALLS, height=st.sampled_from([24, 50]))
    def check(settings: dict[str, Any], height: int) -> None:
        answers.note(lambda: hf_cam.explain(noise(40, height).convert("RGB"), loaded, **settings))

    check()
    answers.check(100)


def test_any_prompt_is_explained_or_refused_in_one_sentence(clip: Any) -> None:
    answers = Answers()

    @examples(200)
    @given(text=mostly(PROMPTS, INVALID["text"]), target=mostly(st.none(), TARGETS))
    def check(text: Any, target: Any) -> None:
        answers.note(lambda: hf_cam.explain(noise(40).convert("RGB"), clip, text=text, target=target))

    check()
    answers.check(10)


def test_any_tensor_is_explained_or_refused_in_one_sentence(loaded: Any) -> None:
    answers = Answers()
    cam = hf_cam.GradCAM(loaded.model)
    given_pixels = mostly(PIXELS, st.one_of(TENSORS, ARRAYS, ARRAYS.map(torch.from_numpy), ANYTHING))

    @examples(200)
    @given(pixels=given_pixels, targets=mostly(st.none(), TARGETS))
    def check(pixels: Any, targets: Any) -> None:
        answers.note(lambda: cam(pixels, targets=targets))

    check()
    answers.check(10)


# Files of a model

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-300, 300),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-4, 300), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(0, 9), max_size=2),
    st.just([[["a"]]]),
)
CAM_CONFIG = {"layers": ["vit.layers.1.layernorm_before"], "layout": "tokens", "prefix": 1, "method": "gradcam"}


@st.composite
def edited_files(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """The name of a file, and how it is changed: one or two keys with other values, or text that is no JSON."""
    edit = {
        "kind": draw(st.sampled_from(["keys", "keys", "keys", "text", "cut"])),
        "seed": draw(st.integers(0, 10**6)),
        "values": draw(st.lists(VALUES, min_size=1, max_size=2)),
        "text": draw(st.text(max_size=30)),
    }
    return draw(st.sampled_from(["config.json", "preprocessor_config.json", "cam_config.json"])), edit


def edited(text: str, edit: dict[str, Any]) -> str:
    chance = random.Random(edit["seed"])
    if edit["kind"] == "text":
        return edit["text"]
    if edit["kind"] == "cut":
        return text[: chance.randrange(len(text))]
    known = json.loads(text)
    for value in edit["values"]:
        known[chance.choice([*known])] = value
    return json.dumps(known)


def test_any_file_of_a_model_is_read_or_refused_in_one_sentence(vit_folder: Path, tmp_path: Path) -> None:
    answers = Answers()
    folder = tmp_path / "model"

    @examples(200)
    @given(change=edited_files())
    def check(change: tuple[str, dict[str, Any]]) -> None:
        name, edit = change
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(vit_folder, folder)
        path = folder / name
        path.write_text(edited(path.read_text() if path.is_file() else json.dumps(CAM_CONFIG), edit))
        answers.note(lambda: hf_cam.explain(noise(40).convert("RGB"), folder))

    check()
    answers.check(20)
