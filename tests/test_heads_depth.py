"""What estimators of depth have to say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hf_cam
from benchmarks.tiny_models import cases
from hf_cam.errors import TargetError
from nets import depth, explained
from pictures import resized


def test_the_nearest_region_of_metres_is_where_they_are_fewest(photo):
    loaded = depth()
    [found] = explained(loaded, photo)
    with torch.no_grad():
        metres = loaded.model(**loaded.inputs([photo])).predicted_depth[0]
    near = metres <= metres.quantile(0.1)
    [same] = explained(loaded, photo, target=lambda output: -output.predicted_depth[near].mean())
    np.testing.assert_allclose(found.heatmap, same.heatmap, atol=1e-5)
    assert found.label == "nearest region"
    assert found.mask.mean() == pytest.approx(0.1, abs=0.05)


def test_the_depth_of_a_pixel_and_of_a_mask(photo):
    loaded = depth()
    mask = np.zeros((128, 192), bool)
    mask[:64, :64] = True
    [pixel] = explained(loaded, photo, target="30,40")
    [region] = explained(loaded, photo, target=mask)
    assert (pixel.label, region.label) == ("depth at (30, 40)", "depth of the mask")
    with torch.no_grad():
        h, w = loaded.model(**loaded.inputs([photo])).predicted_depth[0].shape
    row, column = 40 * h // 128, 30 * w // 192
    [same] = explained(loaded, photo, target=lambda output: -output.predicted_depth[row, column])
    np.testing.assert_allclose(pixel.heatmap, same.heatmap, atol=1e-5)
    [same] = explained(loaded, photo, target=lambda output: -output.predicted_depth[: h // 2, : w // 3].mean())
    np.testing.assert_allclose(region.heatmap, same.heatmap, atol=1e-5)
    with pytest.raises(TargetError, match="no classes"):
        explained(loaded, photo, target="cat")


@pytest.mark.parametrize(
    "case", [case for case in cases("depth-estimation") if case.model_type not in ("dpt", "zoedepth")], ids=str
)
def test_every_estimator_of_depth_explains_what_is_near_a_mask_and_a_pixel(photo, case):
    model = case.build()
    mask = np.zeros((128, 192), bool)
    mask[20:60, 30:100] = True
    found = [
        hf_cam.explain(photo, model, processor=resized(case.size), method="gradcam-elementwise", target=target)[0]
        for target in (None, mask, (50, 30))
    ]
    assert [one.label for one in found] == ["nearest region", "depth of the mask", "depth at (50, 30)"]
    assert all(one.heatmap.shape == (128, 192) and one.heatmap.any() for one in found)
    assert found[0].score >= found[1].score
