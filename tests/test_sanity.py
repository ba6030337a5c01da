"""Every method's map depends on the model's weights, and on the target unless its record says otherwise."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from benchmarks.scenes import scenes
from hf_cam.cam import CAM
from hf_cam.comparison import quick_methods
from hf_cam.errors import MethodError
from hf_cam.loading import load
from hf_cam.methods import get_method
from hf_cam.metrics import rank_correlation, shuffled_weights


@pytest.fixture(scope="module")
def loaded():
    return load("demo:vit")


@pytest.fixture(scope="module")
def inputs(loaded):
    return loaded.inputs([Image.fromarray(scene.image) for scene in scenes("test", 4, seed=5)])


def maps_of(model, method: str, target: int, inputs) -> torch.Tensor:
    try:
        return CAM(model, method)(**inputs, targets=[target] * 4)
    except MethodError as error:
        pytest.skip(f"not defined for this model: {error}")


@pytest.mark.parametrize("method", quick_methods())
def test_the_target_matters_unless_the_record_says_that_it_does_not(method: str, loaded, inputs) -> None:
    one, other = (maps_of(loaded.model, method, target, inputs) for target in (0, 8))
    if get_method(method).ignores_target:
        torch.testing.assert_close(one, other)
    else:
        assert rank_correlation(one, other).mean() < 0.95


@pytest.mark.parametrize("method", quick_methods())
def test_no_method_shows_the_picture_instead_of_the_model(method: str, loaded, inputs) -> None:
    learnt = maps_of(loaded.model, method, 0, inputs)
    with shuffled_weights(loaded.model):
        shuffled = maps_of(loaded.model, method, 0, inputs)
    assert rank_correlation(learnt, shuffled).mean() < 0.9
