"""An explanation that judges itself."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

import hf_cam
from benchmarks.scenes import scenes
from hf_cam.check import Origin, check
from hf_cam.errors import OptionError
from hf_cam.targets import ClassLogit
from hf_cam.testing.metrics import PatchReader
from nets import READ


@pytest.fixture(scope="module")
def scene():
    return scenes("test", 8, seed=5)[3]


@pytest.fixture(scope="module")
def explained(scene):
    return hf_cam.explain(scene.image, "demo:convnext", target=scene.labels[0])[0]


def test_a_map_that_reads_the_model_costs_more_than_chance(explained) -> None:
    found = explained.check()
    assert found.passed
    assert found.drop > found.chance
    assert 0.2 < found.energy <= 1
    assert found.confidence == pytest.approx(explained.score, abs=1e-4)
    assert f"from {found.confidence:.2f} to {found.confidence - found.drop:.2f}" in str(found)
    assert explained.check() == found


def test_a_map_turned_round_is_no_better_than_chance(explained) -> None:
    origin = dataclasses.replace(explained.origin, map=1 - explained.origin.map)
    found = check(origin, explained.raw)
    assert found.flags == ("no better than chance",)
    assert "do not rely on it" in str(found)


def test_an_empty_map_is_flagged(explained) -> None:
    origin = dataclasses.replace(explained.origin, map=torch.zeros_like(explained.origin.map))
    found = check(origin, np.zeros_like(explained.raw))
    assert set(found.flags) == {"constant map", "no gradient"}
    assert found.energy == 0
    assert "empty" in str(found)


PATCH = READ.float()


@pytest.mark.parametrize(
    ("index", "found", "raw", "flags", "words"),
    [
        pytest.param(1, PATCH, 1, (), "falls from 0.98 to 0.03", id="the perfect map"),
        pytest.param(1, 1 - PATCH, 1, ("no better than chance",), "do not rely on it", id="its inverse"),
        pytest.param(1, 0 * PATCH, 0, ("constant map", "no gradient"), "The map is empty", id="no gradient"),
        pytest.param(1, 0 * PATCH + 0.5, 1, ("constant map",), "the same everywhere", id="an even map"),
        pytest.param(0, PATCH, 1, ("target probability tiny",), "a tiny probability", id="an unlikely class"),
    ],
)
def test_each_flag_has_its_case_on_a_model_that_reads_one_patch(index, found, raw, flags, words) -> None:
    pixels = (0.05 + 0.95 * PATCH).expand(1, 3, 24, 32)
    origin = Origin(PatchReader(), {"pixel_values": pixels}, ClassLogit(index), found)
    result = check(origin, np.full((6, 8), float(raw)))
    assert result.flags == flags
    assert result.passed is (not flags)
    assert words in str(result)
    sure = torch.tensor([-2.0, 2.0]).softmax(0)[index].item()
    assert result.confidence == pytest.approx(sure, abs=1e-5)
    if found is PATCH:  # its surroundings fill the patch: 0.05 is left, and a little noise
        left = torch.tensor([1.8, -1.8]).softmax(0)[index].item()
        assert result.drop == pytest.approx(sure - left, abs=0.01)
        assert result.energy == 1


def test_an_unlikely_target_is_flagged(scene) -> None:
    first, *_, last = hf_cam.explain(scene.image, "demo:convnext", top_k=10)
    assert last.score < 0.05 < first.score
    assert "target probability tiny" in last.check().flags
    assert "target probability tiny" not in first.check().flags


def test_every_head_and_batch_can_be_checked(scene) -> None:
    for model, settings in (("demo:segformer", {}), ("demo:detr", {}), ("demo:clip", {"text": ["a bag", "a coat"]})):
        for batch in hf_cam.explain([scene.image, scene.image], model, method="hirescam", **settings):
            found = [explanation.check() for explanation in batch[:2]]
            assert all(np.isfinite([one.drop, one.chance, one.energy]).all() for one in found)


def test_a_pickled_explanation_keeps_its_map_and_refuses_to_be_checked(explained) -> None:
    copy = pickle.loads(pickle.dumps(explained))
    assert np.array_equal(copy.heatmap, explained.heatmap)
    with pytest.raises(OptionError, match="explain the image again"):
        copy.check()
