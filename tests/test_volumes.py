"""Volumes keep their depth from the input to the map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.grad_cam import class_targets, package
from hf_cam.cam import CAM
from hf_cam.errors import LayoutError, UnknownArchitecture
from hf_cam.layouts import NCDHW, Layout, read_layouts
from hf_cam.maps import fuse_mean, normalize, resize
from hf_cam.methods import get_method
from hf_cam.testing.methods import few_forwards
from nets import FOR_CLASSES

SPACE = (8, 16, 24)


class _Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv3d(2, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm3d(6)
        self.features = nn.Conv3d(6, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, scan: Tensor) -> Tensor:
        x = self.features(self.norm(self.stem(scan)).relu()).relu()
        return self.head((x * x).mean((2, 3, 4)))


def scans(count: int = 2) -> Tensor:
    return torch.randn(count, 2, *SPACE, generator=torch.Generator().manual_seed(1))


OF_VOLUMES = [name for name in FOR_CLASSES if not get_method(name).needs_attention and name != "dff"]
ON_PIXELS = ["fullgrad", "gradient", "guided-gradcam", "input-x-gradient", "integrated-gradients", "occlusion", "rise"]
ON_PIXELS.append("smoothgrad")


@pytest.mark.parametrize("method", OF_VOLUMES)
def test_every_method_explains_volumes(method: str) -> None:
    net, x = _Volumes().eval(), scans()
    few = {name: min(value, 4) for name, value in few_forwards(method).items()}  # of few voxels
    cam = CAM(net, method, layers="features", **few)
    found = cam.saliency(x, lambda outputs: [[1, 3]])
    assert found.maps.shape == (1, 2, *SPACE)
    assert found.raw[0].shape == (1, 2, *(SPACE if method in ON_PIXELS else (2, 4, 6)))
    assert found.maps.amax((2, 3, 4)).tolist() == [[1.0, 1.0]]
    assert found.maps[0, 0].std((1, 2)).gt(0).sum() > 4  # not one slice for all
    alone = cam(x[1:], [3])
    torch.testing.assert_close(found.maps[0, 1:], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("method", "reference"), [("gradcam", "GradCAM"), ("hirescam", "HiResCAM"), ("eigencam", "EigenCAM")]
)
def test_agrees_with_the_reference_package_on_the_layers_grid(method: str, reference: str) -> None:
    # It enlarges volumes by cubic splines, so the maps are compared where no enlarging is needed.
    net, x = _Volumes().eval(), scans()
    with getattr(package(), reference)(net, [net.features]) as cam:
        cam.get_target_width_height = lambda _: (6, 4, 2)
        theirs = cam(input_tensor=x, targets=class_targets([1, 3]))
    ours = CAM(net, method, layers="features").saliency(x, lambda _: [[1, 3]]).raw[0][0]
    if method == "eigencam":  # of either sign
        ours = torch.where(_far(ours, theirs)[:, None, None, None], _negative(net, x), ours)
    np.testing.assert_allclose(normalize(ours.clamp_min(0), 3).numpy(), theirs, atol=1e-4)


def _far(ours: Tensor, theirs: np.ndarray) -> Tensor:
    return (normalize(ours.clamp_min(0), 3) - torch.from_numpy(theirs)).abs().amax((1, 2, 3)) > 1e-3


def _negative(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        activations = net.features(net.norm(net.stem(x)).relu())
    cam = CAM(net, "eigencam", layers="features")
    return (-cam.method.reduce(activations)).clamp_min(0)


def test_resizing_a_volume_is_linear_along_each_axis() -> None:
    ramp = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 2, 2)
    found = resize(ramp, (8, 4, 4))
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))
    assert fuse_mean([ramp], (8, 4, 4)).amax() == 1


def test_a_volume_is_normalised_as_a_whole() -> None:
    slices = torch.stack([torch.eye(3), 2 * torch.eye(3)])[None]
    assert normalize(slices, 3)[0, 0].max() == 0.5


def test_volumes_that_fit_no_stride_are_refused() -> None:
    assert read_layouts((1, 8, 5, 4, 6), (64, 96)) == [Layout(NCDHW)]
    assert read_layouts((1, 8, 5, 4, 9), (64, 96)) == []
    with pytest.raises(LayoutError, match="stride"):
        Layout(NCDHW).to_spatial(torch.zeros(1, 8, 5, 4, 9), (64, 96))


def test_volumes_without_a_named_layer_are_refused_with_the_way_out() -> None:
    with pytest.raises(UnknownArchitecture, match="layers="):
        CAM(_Volumes().eval(), "gradcam")(scans())
