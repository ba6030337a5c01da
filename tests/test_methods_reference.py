"""Methods cell by cell in float64, and what the reference package does otherwise: that, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytorch_grad_cam.utils.image import scale_cam_image
from torch import Tensor, nn

from benchmarks import equations
from benchmarks.grad_cam import Logits, class_targets, let_go, package
from hf_cam.cam import CAM
from hf_cam.capture.biases import full_gradients
from hf_cam.errors import TargetError
from hf_cam.maps import normalize, resize
from hf_cam.methods import get_method
from nets import OF_EVERY_LAYOUT, make
from pictures import SIZE, pictures

EQUATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "gradcam": equations.gradcam,
    "hirescam": equations.hirescam,
    "layercam": equations.layercam,
    "gradcam++": equations.plusplus,
    "xgradcam": equations.xgradcam,
    "gradcam-elementwise": equations.elementwise,
    "eigencam": equations.eigencam,
    "eigengradcam": equations.eigengradcam,
    "segeigencam": equations.segeigencam,
    "kpcacam": equations.kpcacam,
    "fem": equations.fem,
    "finercam": equations.gradcam,
    "refinecam": equations.plusplus,
}
OF_EITHER_SIGN = {"eigencam", "eigengradcam", "segeigencam", "kpcacam"}


@pytest.mark.parametrize("method", EQUATIONS)
def test_each_image_of_a_batch_agrees_with_the_equation_and_float32_with_float64(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, g = (torch.randn(2, 5, 6, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    a[:, :, 2, 3] += 4  # something to stand out, and a component that leads
    record = get_method(method)
    maps = record.map(**{name: {"activations": a, "gradients": g}[name] for name in record.needs}).numpy()
    for i in range(2):
        slow = EQUATIONS[method](a[i].numpy(), g[i].numpy())
        if method in OF_EITHER_SIGN:
            slow = min(slow, -slow, key=lambda signed: np.abs(np.maximum(signed, 0) - maps[i]).max())
        np.testing.assert_allclose(maps[i], np.maximum(slow, 0), atol=1e-9)
    single = record.map(**{name: {"activations": a, "gradients": g}[name].float() for name in record.needs})
    np.testing.assert_allclose(single.numpy(), maps, rtol=1e-4, atol=1e-5 * maps.max())


# Where the reference departs ------------------------------------------------------------------------------------------


def test_the_reference_drops_images_without_a_target_and_hf_cam_refuses() -> None:
    net, x = make("resnet"), pictures(3)
    with package().GradCAM(Logits(net), [net.resnet.encoder.stages[-1]]) as reference:
        theirs = reference(input_tensor=x, targets=class_targets([2]))
    assert theirs[0].max() > 0.9
    assert not theirs[1:].any()  # no gradient, no word
    with pytest.raises(TargetError, match="1 targets for 3 images"):
        CAM(net, "gradcam")(x, [2])


class HalfPixel(nn.Module):
    """In the place of torch's `UpsamplingBilinear2d`, which aligns corners: a cell's value stands at its middle."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, maps: Tensor) -> Tensor:
        return nn.functional.interpolate(maps, size=self.size, mode="bilinear")


@pytest.mark.parametrize("name", OF_EVERY_LAYOUT)
def test_the_reference_enlarges_scorecams_masks_with_aligned_corners_and_differs_in_nothing_else(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = make(name), pictures(2)
    head = net.classifier[-1] if name == "resnet" else net.classifier
    with torch.no_grad():
        head.weight *= 10  # so that the softmax tells the channels apart
        for key, parameter in net.named_parameters():
            if key.endswith("bias"):  # a norm makes noise of what is black and has no bias
                nn.init.normal_(parameter, std=0.1)
    cam = CAM(net, "scorecam")
    layer = net.get_submodule(cam.adapter.layers[0])

    def theirs() -> np.ndarray:
        kind, spatial = package().ScoreCAM, lambda tokens: cam.adapter.to_spatial(tokens, SIZE)
        with kind(Logits(net), [layer], spatial) as reference:
            maps = reference(input_tensor=x, targets=class_targets([2, 5]))
            let_go(reference)
        return maps

    ours = cam(x, [2, 5]).numpy()
    assert np.abs(ours - theirs()).max() > 1e-3
    monkeypatch.setattr(nn, "UpsamplingBilinear2d", HalfPixel)
    np.testing.assert_allclose(ours, theirs(), atol=1e-4)


def test_fullgrads_terms_are_the_references_which_stretches_every_channel_alone() -> None:
    """The paper's own code stretches each layer's term over all its channels together, as hf-cam does."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    nn.init.normal_(net[1].bias), nn.init.normal_(net[1].running_mean)
    net, x = net.eval(), pictures(1)
    reference = package().FullGrad(net, [])
    with torch.enable_grad():
        theirs = reference(input_tensor=x.clone(), targets=class_targets([3]))[0]
    reference.activations_and_grads.release()
    found = full_gradients(net, {"pixel_values": x}, lambda logits: logits[:, 3].sum())
    expected = np.zeros(SIZE)
    for term in (found.pixels, found.biases["0"], found.biases["1"]):
        expected += sum(scale_cam_image([channel])[0] for channel in term[0].abs().numpy())
    np.testing.assert_allclose(theirs, scale_cam_image([expected])[0], atol=1e-4)


def test_the_reference_weighs_the_activations_in_fem_and_hf_cam_the_binary_maps() -> None:
    net, x = make("resnet"), pictures(2)
    layer = net.resnet.encoder.stages[-1]
    reference = package().FEM(Logits(net), [layer])
    theirs = reference(input_tensor=x, targets=class_targets([2, 5]))
    let_go(reference)
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    ours = CAM(net, "fem", layers="resnet.encoder.stages.2")(x, [2, 5]).numpy()
    handle.remove()
    a = seen[0]
    mean, deviation = a.mean((2, 3), keepdim=True), a.std((2, 3), keepdim=True, correction=0)
    standing = (a > mean + 2 * deviation).float()
    for found, maps in ((theirs, standing.mean((2, 3), keepdim=True) * a), (ours, mean * standing)):
        expected = normalize(resize(normalize(maps.sum(1).clamp_min(0)), SIZE)).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(ours - theirs).max() > 0.1


def test_refinecam_agrees_with_the_reference_package() -> None:
    net, x = make("resnet"), pictures(2)
    names = ["resnet.encoder.stages.0", "resnet.encoder.stages.2"]
    reference = package().RefineCAM(Logits(net), [net.get_submodule(name) for name in names])
    theirs = reference(x, class_targets([1, 4]))
    np.testing.assert_allclose(CAM(net, "refinecam", layers=names)(x, [1, 4]).numpy(), theirs, atol=1e-4)
