"""Methods that run, or read, only what lies behind the target layer: Recipro-CAM and the original CAM."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.equations_variants import recipro_cam
from hf_cam.cam import CAM
from hf_cam.capture.capture import capture
from hf_cam.errors import LayoutError, MethodError
from hf_cam.maps import normalize
from hf_cam.methods import get_method
from hf_cam.methods.reruns import cell_weights
from hf_cam.testing import check_model_untouched
from nets import OF_EVERY_LAYOUT, make
from pictures import pictures


def raw_of(net: nn.Module, method: str, x: Tensor, targets: list, **options) -> Tensor:
    [raw] = CAM(net, method, **options).saliency(x, lambda _: [targets]).raw
    return raw[0].clamp_min(0)


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("name", ["vit", "resnet", "convnext", "swin"])
def test_recipro_cam_is_the_probability_of_each_cell_alone(name: str, gaussian: bool) -> None:
    net, x = make(name).double(), pictures(2).double()
    cam = CAM(net, "recipro-cam", gaussian=gaussian, rerun_batch_size=5)
    [layer] = cam.adapter.layers
    found = check_model_untouched(net, lambda: cam.saliency(x, lambda _: [[2, 5]]).raw[0][0])
    for i, target in enumerate([2, 5]):
        expected = recipro_cam(net, layer, x[i : i + 1], target, found[i].shape, gaussian)
        torch.testing.assert_close(found[i].double(), expected, atol=1e-12, rtol=1e-6)
        assert found[i].any()


def test_the_window_of_a_cell_is_binomial_and_ends_at_the_border() -> None:
    weights = cell_weights((3, 4), gaussian=True).reshape(3, 4, 3, 4)
    assert weights[1, 1, :3, :3].tolist() == [[1 / 16, 1 / 8, 1 / 16], [1 / 8, 1 / 4, 1 / 8], [1 / 16, 1 / 8, 1 / 16]]
    assert weights[0, 0].sum() == 9 / 16
    assert torch.equal(cell_weights((2, 3), gaussian=False), torch.eye(6))


def test_recipro_cam_runs_the_part_before_the_target_layer_once() -> None:
    net, runs = make("convnext"), []
    with net.convnext.embeddings.patch_embeddings.register_forward_hook(lambda *_: runs.append(1)):
        for method in ("recipro-cam", "ablationcam"):
            cam = CAM(net, method)
            cam(pictures(1), 1)  # the first call also establishes what the model's output means
            runs.clear()
            cam(pictures(1), 1)
            assert len(runs) == 1


def test_cells_that_a_reshape_function_mixes_cannot_be_kept_alone() -> None:
    net = make("resnet")
    with pytest.raises(LayoutError, match="cannot be set one by one"):
        CAM(net, "recipro-cam", layers="resnet.encoder.stages.2", reshape=lambda tensor: tensor * 2)(pictures(1), 1)


# The original CAM -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet", "swin"])
def test_cam_weighs_the_channels_by_the_row_of_the_class(name: str) -> None:
    net, x = make(name).double(), pictures(2).double()
    cam = CAM(net, "cam")
    [layer] = cam.adapter_for(x, {}).layers
    linear = next(module for module in reversed(list(net.modules())) if isinstance(module, nn.Linear))
    found = cam.saliency(x, lambda _: [[2, 5]]).raw[0][0]
    with capture(net, [layer], {"pixel_values": x}, gradients=False) as captured:
        output = captured.activations[0]
        logits = captured.outputs.logits
    cells = output if name == "resnet" else output.mT.unflatten(2, (4, 6))[..., :, :]
    for i, target in enumerate([2, 5]):
        expected = torch.zeros(cells.shape[2:]).double()
        for channel in range(cells.shape[1]):
            expected += linear.weight[target, channel].detach() * cells[i, channel]
        torch.testing.assert_close(found[i], expected, atol=1e-12, rtol=1e-9)
        # The map's mean is the logit less its bias.
        torch.testing.assert_close(expected.mean(), (logits[i, target] - linear.bias[target]).detach())


def test_cam_is_hirescam_where_it_is_defined() -> None:
    net, x = make("swin"), pictures(2)
    torch.testing.assert_close(CAM(net, "cam")(x, [2, 5]), CAM(net, "hirescam")(x, [2, 5]), atol=1e-5, rtol=0)


def test_cam_finds_the_layer_before_the_pooling_where_another_one_is_the_default() -> None:
    net = make("siglip-mean")
    found = CAM(net, "cam").saliency(pictures(1), lambda _: [[2]])
    assert found.adapter.layers == ("vision_model.post_layernorm",)
    assert normalize(found.raw[0]).amax() == 1.0


@pytest.mark.parametrize("name", sorted(set(OF_EVERY_LAYOUT) - {"resnet", "swin"}))
def test_cam_is_refused_where_no_pooling_and_linear_layer_end_the_model(name: str) -> None:
    net = make(name)
    with pytest.raises(MethodError, match=r"ends? in the mean over all cells and one linear layer"):
        check_model_untouched(net, lambda: CAM(net, "cam")(pictures(1), 0))


def test_cam_is_refused_for_a_layer_that_is_not_the_pooled_one() -> None:
    with pytest.raises(MethodError, match=r"ends? in the mean over all cells"):
        CAM(make("resnet"), "cam", layers="resnet.encoder.stages.1")(pictures(1), 0)


def test_costs_count_what_they_run() -> None:
    assert get_method("recipro-cam").cost() == 17
    assert get_method("cam").cost() == pytest.approx(2.1)  # one of them finds the layer
    assert get_method("refinecam").cost() == pytest.approx(2.1)
    assert get_method("ablationcam").cost(10) == pytest.approx(1.8)
