"""Models whose weights accelerate fetches for each forward, from memory or from files."""

from __future__ import annotations

import numpy as np
import pytest
from accelerate import cpu_offload, disk_offload
from transformers import ViTImageProcessor

import hf_cam
from hf_cam.errors import MethodError, ModelError
from nets import WHOLE

PROCESSOR = ViTImageProcessor(size=WHOLE)
METHODS = ["gradcam", "hirescam", "eigencam", "chefer", "libracam", "ablationcam"]


def offloaded(where, vit, folder):
    if where == "memory":
        return cpu_offload(vit, execution_device="cpu")
    disk_offload(vit, folder, execution_device="cpu")
    return vit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["memory", "files"])
def test_the_map_is_that_of_the_model_without_offloading(where, method, vit, picture, tmp_path) -> None:
    [expected] = hf_cam.explain(picture, vit, processor=PROCESSOR, method=method)
    model = offloaded(where, vit, tmp_path)
    [found] = hf_cam.explain(picture, model, processor=PROCESSOR, method=method)
    np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-4)
    assert all(parameter.is_meta and parameter.requires_grad for parameter in model.parameters())


def test_the_biases_of_an_offloaded_model_are_not_multiplied(vit, picture, tmp_path) -> None:
    model = offloaded("memory", vit, tmp_path)
    with pytest.raises(MethodError, match=r"is offloaded, and FullGrad .* choose another method"):
        hf_cam.explain(picture, model, processor=PROCESSOR, method="fullgrad")


def test_a_model_without_weights_is_refused(vit, picture) -> None:
    with pytest.raises(ModelError, match="has no weights"):
        hf_cam.explain(picture, vit.to("meta"), processor=PROCESSOR)
