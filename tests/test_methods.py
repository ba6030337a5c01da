"""Every method against the reference package, a float64 re-implementation and the laws that it must obey."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import SwinForImageClassification

import hf_cam
from benchmarks.grad_cam import CLASSES, OF_EITHER_SIGN, OF_SEVERAL_RUNS, Logits, class_targets, let_go, package
from benchmarks.scenes import scenes
from hf_cam.cam import CAM
from hf_cam.capture.biases import full_gradients
from hf_cam.capture.capture import capture
from hf_cam.errors import MethodError
from hf_cam.explanation import NO_EVIDENCE
from hf_cam.maps import normalize, resize
from hf_cam.methods import Method, get_method, list_methods, register
from hf_cam.methods.concepts import Concepts
from hf_cam.methods.reductions import first_component
from hf_cam.request import Request
from hf_cam.targets import ClassLogit
from hf_cam.testing.methods import few_forwards
from nets import FOR_CLASSES, OF_EVERY_LAYOUT, Cubic, make, tiny
from pictures import SIZE, pictures

LAYERED = [method for method in FOR_CLASSES if not get_method(method).needs_attention]
"""Those that are defined for classifiers; what is made of attention has its own file of tests."""

REFERENCE = sorted({*CLASSES} - OF_SEVERAL_RUNS)


def signals_of(record: Method, activations: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    batch, channels = activations.shape[:2]
    shape = activations.shape
    everything = {
        "activations": activations,
        "gradients": gradients,
        "curvature": gradients * 0.1,
        "ablated_scores": torch.rand(batch, 1 + channels),
        "masked_scores": torch.rand(batch, channels),
        "noisy_masked_scores": torch.rand(batch, channels),
        "scaled_masked_scores": torch.rand(batch, channels),
        "guided_gradients": gradients,
        "concepts": Concepts(activations, torch.rand(batch, channels)),
        "gradient_terms": activations.abs(),
        "cell_scores": activations[:, :1],
        "class_weights": torch.rand(batch, channels),
        "score_drops": activations[:, :1],
        "mean_of_masked": activations[:, :1],
        "mean_match": activations[:, :1],
        "pixels": activations,
        "pixel_gradients": gradients,
        "path_terms": activations,
        "noisy_contributions": activations,
        "noisy_powers": gradients[:, None].expand(batch, 3, *shape[1:]),
    }
    return {name: everything[name] for name in record.needs}


def reference_map(method: str, net: nn.Module, layer: str, spatial, targets: list[int], x: Tensor) -> np.ndarray:
    # The fused attention of a CPU has no second derivative, which the reference asks of it.
    kernel = sdpa_kernel(SDPBackend.MATH) if method == "shapleycam" else nullcontext()
    kind = getattr(package(), CLASSES[method])
    with kernel, kind(Logits(net), [net.get_submodule(layer)], reshape_transform=spatial) as cam:
        maps = cam(input_tensor=x, targets=class_targets(targets))
        let_go(cam)
        return maps


# The reference's ShapleyCAM fails on tokens; the law of the linear tail and the Hessian below cover those.
CASES = [
    (name, method)
    for name in OF_EVERY_LAYOUT
    for method in REFERENCE
    if method != "shapleycam" or name in ("convnext", "resnet")
]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_agrees_with_the_reference_package(name: str, method: str) -> None:
    net, x, targets = make(name), pictures(), [2, 5]
    cam = CAM(net, method)
    layer = cam.adapter.layers[0]
    ours = cam(x, targets).numpy()
    theirs = reference_map(method, net, layer, lambda t: cam.adapter.to_spatial(t, SIZE), targets, x)
    assert ours.max() > 0.9
    if method in OF_EITHER_SIGN:
        ours = np.stack([_nearer(one, their) for one, their in zip(_both_signs(cam, x, targets), theirs, strict=True)])
    # The reference analyses the kernel in float32, we in float64.
    np.testing.assert_allclose(ours, theirs, atol=5e-4 if method == "kpcacam" else 1e-4)


def _both_signs(cam: CAM, x: Tensor, targets: list[int]) -> np.ndarray:
    """`[B, 2, H, W]`: the maps of the component and of its negative."""
    with capture(cam.model, cam.adapter.layers, {"pixel_values": x}) as captured:
        [gradient] = captured.gradients(sum(captured.outputs.logits[i, target] for i, target in enumerate(targets)))
        tensors = {"activations": captured.activations[0].detach(), "gradients": gradient}
        signals = {name: cam.adapter.to_spatial(tensors[name], SIZE) for name in cam.method.needs}
    component = cam.method.reduce(cam.method.contributions(**signals))
    both = torch.stack([component, -component], 1).clamp_min(0)
    return normalize(resize(normalize(both), SIZE)).numpy()


def _nearer(both: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return min(both, key=lambda one: np.abs(one - reference).max())


@pytest.mark.parametrize("shape", [(2, 9, 3, 4), (2, 40, 3, 4)], ids=["more cells", "more channels"])
def test_first_component_is_that_of_a_singular_value_decomposition(shape: tuple[int, ...]) -> None:
    a = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = first_component(a)
    for i in range(len(a)):
        vectors = a[i].flatten(1).T.numpy()
        direction = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)[2][0]
        expected = ((vectors - vectors.mean(0)) @ direction).reshape(shape[2:])
        expected *= np.sign((expected * ours[i].numpy()).sum())
        np.testing.assert_allclose(ours[i].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("rounding", [1e-7, 3e-3])
def test_rounding_of_equally_strong_cells_does_not_turn_the_first_component(rounding: float) -> None:
    """As behind a LayerNorm, in float32 and in bfloat16."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        cells = torch.nn.functional.normalize(torch.randn(1, 16, 4, 6, generator=rng), dim=1)
        even = first_component(cells)
        uneven = first_component(cells * (1 + rounding * torch.randn(1, 1, 4, 6, generator=rng)))
        assert (even * uneven).sum() > 0


def test_first_component_is_positive_on_the_strongest_cells() -> None:
    a = torch.rand(1, 6, 4, 5) * 0.01
    a[0, :, 1, 2] = 5.0
    assert first_component(a)[0, 1, 2] == first_component(a).max()
    assert first_component(-a)[0, 1, 2] == first_component(-a).max()


@pytest.mark.parametrize("name", ["swin", "convnext_pool"])
def test_hirescam_sums_to_the_logit_less_its_bias_on_a_pooling_and_linear_head(name: str) -> None:
    net = make("swin") if name == "swin" else _PoolNet().eval()
    net = net.double()
    layer = "swin.layernorm" if name == "swin" else "features"
    x = pictures().double()
    with capture(net, [layer], {"pixel_values": x}) as captured:
        logits = getattr(captured.outputs, "logits", captured.outputs)
        [gradient] = captured.gradients(logits[:, 4].sum())
        contributions = get_method("hirescam").contributions(captured.activations[0], gradient)
    total = contributions.flatten(1).sum(1)
    bias = (net.classifier if name == "swin" else net.head).bias[4]
    torch.testing.assert_close(total, (logits[:, 4] - bias).detach(), atol=1e-12, rtol=1e-9)


class _PoolNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 6, 8, stride=8)
        self.head = nn.Linear(6, 7)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.features(pixel_values).mean((2, 3)))


def test_gradcam_is_hirescam_is_the_classic_cam_on_a_pooling_and_linear_head() -> None:
    net, x = make("swin"), pictures()
    weights = net.classifier.weight.detach()[[2, 5]]
    tokens = {}
    handle = net.swin.layernorm.register_forward_hook(lambda m, a, out: tokens.update(out=out.detach()))
    net(x)
    handle.remove()
    classic = torch.einsum("bnc,bc->bn", tokens["out"], weights).clamp_min(0).reshape(2, 4, 6)
    expected = normalize(resize(normalize(classic), SIZE))
    for method in ("gradcam", "hirescam"):
        torch.testing.assert_close(CAM(net, method)(x, [2, 5]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", LAYERED)
@pytest.mark.parametrize("name", OF_EVERY_LAYOUT)
def test_a_batch_gives_the_maps_of_its_images(name: str, method: str) -> None:
    net, x = make(name), pictures(3)
    cam = CAM(net, method, **few_forwards(method))
    together = cam(x, [1, 2, 3])
    alone = torch.cat([cam(x[i : i + 1], [i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", LAYERED)
def test_half_precision_ranks_the_cells_like_float32(method: str, dtype: torch.dtype) -> None:
    x = pictures(1, (256, 384))  # 16 x 24 cells: on a tiny grid a single one that rounding moves decides
    full = CAM(make("resnet"), method, **few_forwards(method))(x, [3])
    half = CAM(make("resnet").to(dtype), method, **few_forwards(method))(x, [3])
    assert half.dtype == torch.float32
    assert spearmanr(full.flatten(), half.flatten()).statistic > (
        0.97 if "activations" not in get_method(method).needs else 0.98
    )


@pytest.mark.parametrize("method", LAYERED)
def test_smoothing_changes_the_map_but_not_its_range(method: str) -> None:
    net, x = make("convnext"), pictures(2)
    cam = CAM(net, method, **few_forwards(method))
    plain, smoothed = cam(x, [1, 2]), cam(x, [1, 2], aug_smooth=True)
    assert smoothed.shape == plain.shape
    assert not torch.equal(smoothed, plain)
    assert smoothed.min() >= 0
    assert smoothed.max() <= 1


def test_aug_smooth_is_the_mean_over_six_views() -> None:
    net, x = make("resnet"), pictures(1)
    cam = CAM(net, "hirescam")
    views = []
    for flip in (False, True):
        for factor in (1.0, 0.9, 1.1):
            view = x.flip(-1) * factor if flip else x * factor
            raw = cam.saliency(view, lambda outputs: [[2]]).raw[0][0]
            views.append(raw.flip(-1) if flip else raw)
    smoothed = cam.saliency(x, lambda outputs: [[2]], Request(aug_smooth=True)).raw[0][0]
    torch.testing.assert_close(smoothed, torch.stack(views).mean(0), atol=1e-6, rtol=1e-4)


def test_eigen_smooth_is_the_first_component_of_the_contributions() -> None:
    generator = torch.Generator().manual_seed(0)
    a, g = (torch.randn(2, 6, 3, 4, generator=generator) for _ in range(2))
    method = get_method("gradcam")
    expected = first_component(method.contributions(a, g)).clamp_min(0)
    torch.testing.assert_close(method.map(activations=a, gradients=g, eigen_smooth=True), expected)


@pytest.mark.parametrize("method", [method for method in LAYERED if not get_method(method).reads_layer])
def test_constant_activations_are_no_evidence_of_methods_that_run_the_model_again_or_read_pixels(method: str) -> None:
    record = get_method(method)
    found = record.map(**signals_of(record, torch.zeros(1, 4, 3, 5), torch.zeros(1, 4, 3, 5)))
    assert torch.equal(found, torch.zeros(1, 3, 5))


def test_a_sum_within_its_own_rounding_error_is_no_evidence() -> None:
    # The norm that follows ignores the scale of each token, so gradient times activation cancels cell by cell there:
    # whatever float32 leaves of the sum is rounding error.
    net, x = _NormNet(), pictures(2)
    kept = CAM(net, "gradcam", layers="features")(x, [0, 1])
    cancelled = CAM(net, "hirescam", layers="features")(x, [0, 1])
    assert kept.any()
    assert not cancelled.any()


def test_a_map_that_cancels_in_a_layer_norm_of_a_trained_model_is_no_evidence() -> None:
    # The errors of the layer norm's own sums are common to all channels, and larger than independent ones.
    for scene in scenes("test", 3, seed=5):
        [found] = hf_cam.explain(scene.image, "demo:dinov2", method="hirescam")
        assert NO_EVIDENCE in found.flags
        assert not found.raw.any()


class _NormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 32, 8, stride=8)
        self.norm = nn.RMSNorm(32, eps=0.0)
        self.head = nn.Linear(32, 7)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.norm(self.features(pixel_values).flatten(2).mT).tanh().mean(1))


def test_normalize_leaves_noise_flat() -> None:
    noisy = torch.full((1, 4, 4), 3.0) + torch.randn(1, 4, 4) * 1e-7
    assert not normalize(noisy).any()
    assert normalize(torch.tensor([[[0.0, 1e-20]]])).tolist() == [[[0.0, 1.0]]]


def test_randomcam_repeats_itself_and_follows_its_seed() -> None:
    net, x = make("resnet"), pictures(1)
    assert torch.equal(CAM(net, "randomcam")(x), CAM(net, "randomcam")(x))
    assert not torch.equal(CAM(net, "randomcam", seed=1)(x), CAM(net, "randomcam")(x))


def test_every_method_has_its_class() -> None:
    for method_id in list_methods():
        record = get_method(method_id)
        assert getattr(hf_cam, record.name).method_id == method_id
    for method_id in FOR_CLASSES:
        record = get_method(method_id)
        handle = getattr(hf_cam, record.name)
        net, x = make("vit" if record.needs_attention else "resnet"), pictures(1)
        few = few_forwards(method_id)
        assert torch.equal(handle(net, **few)(x), CAM(net, method_id, **few)(x))


def test_registration_refuses_strangers_of_a_taken_id_and_bad_names() -> None:
    def squared(activations: Tensor) -> Tensor:
        return activations.square()

    with pytest.raises(
        MethodError, match=r"already registered, from hf_cam\.methods\.gradient\.gradcam;.*replace=True"
    ):
        register(Method("gradcam", "GradCAM", squared, "-", "-"))
    with pytest.raises(MethodError, match="not a valid method id"):
        register(Method("Grad CAM", "GradCAM", squared, "-", "-"))


def brute_force_ablation(net: nn.Module, layer: str, axis: int, x: Tensor, target: int) -> np.ndarray:
    """`(y - y_without_c) / |y|`, one whole forward per channel."""
    with torch.no_grad():
        clean = net(x).logits[0, target]
        module, dropped = net.get_submodule(layer), []
        for channel in range(10**6):
            try:
                handle = module.register_forward_hook(lambda m, a, out, c=channel: _without(out, axis, c))
                dropped.append(net(x).logits[0, target])
            except IndexError:
                break
            finally:
                handle.remove()
    return ((clean - torch.stack(dropped)) / clean.abs()).numpy()


def _without(output: object, axis: int, channel: int) -> object:
    tensor = output if isinstance(output, Tensor) else output[0]
    changed = tensor.clone()
    changed.select(axis, channel).zero_()
    return changed if isinstance(output, Tensor) else (changed, *output[1:])


@pytest.mark.parametrize("name", OF_EVERY_LAYOUT)
def test_ablation_replays_what_brute_force_finds(name: str) -> None:
    net, x = make(name), pictures(1)
    cam = CAM(net, "ablationcam")
    axis = 1 if name in ("convnext", "resnet") else 2
    weights = torch.from_numpy(brute_force_ablation(net, cam.adapter.layers[0], axis, x, 3)).float()
    with capture(net, cam.adapter.layers, {"pixel_values": x}, gradients=False) as captured:
        activations = cam.adapter.to_spatial(captured.activations[0], SIZE)
    expected = (weights[:, None, None] * activations[0]).sum(0).clamp_min(0)
    for batch_size in (None, 5):
        saliency = CAM(net, "ablationcam", rerun_batch_size=batch_size).saliency(x, lambda outputs: [[3]])
        found = saliency.raw[0][0, 0].clamp_min(0)
        torch.testing.assert_close(found, expected, atol=2e-5 * expected.max().item(), rtol=1e-3)


def test_ablation_agrees_with_the_reference_where_activations_start_at_zero() -> None:
    # On negative activations the reference writes -1e7 into a channel instead of taking it away, and departs from
    # the paper: there the brute force above is the measure.
    net, x = make("resnet"), pictures(2)
    with torch.no_grad():
        targets = net(x).logits.argmax(1).tolist()  # positive: for a negative logit the reference turns the map round
    with package().AblationCAM(Logits(net), [net.resnet.encoder.stages[-1]]) as reference:
        theirs = reference(input_tensor=x, targets=class_targets(targets))
    np.testing.assert_allclose(CAM(net, "ablationcam")(x, targets).numpy(), theirs, atol=1e-4)


def test_ablation_lights_what_speaks_for_a_class_also_below_zero() -> None:
    class Shifted(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.features, self.shift = nn.Conv2d(3, 6, 16, stride=16), shift
            self.head = nn.Linear(6, 3)

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.head(self.features(pixel_values).relu().mean((2, 3))) + self.shift

    x = pictures(2)
    above, below = (CAM(Shifted(shift), "ablationcam", layers="features")(x, [1, 2]) for shift in (5.0, -5.0))
    torch.testing.assert_close(above, below, atol=1e-4, rtol=0)


def slow_scorecam(net: nn.Module, activations: Tensor, x: Tensor, target: int) -> Tensor:
    scores = []
    for channel in activations:
        mask = resize(channel, SIZE)
        low, high = mask.min(), mask.max()
        if low == high:  # a black image; the channel itself counts for nothing
            scores.append(net(torch.zeros_like(x)).logits[0, target].detach())
            continue
        with torch.no_grad():
            scores.append(net(x * (mask - low) / (high - low)).logits[0, target])
    counts = activations.flatten(1).amax(1) > activations.flatten(1).amin(1)
    return ((torch.stack(scores).softmax(0) * counts)[:, None, None] * activations).sum(0).clamp_min(0)


@pytest.mark.parametrize("name", OF_EVERY_LAYOUT)
def test_scorecam_masks_one_channel_after_the_other(name: str) -> None:
    net, x = make(name), pictures(1)
    cam = CAM(net, "scorecam", rerun_batch_size=7)
    with capture(net, cam.adapter.layers, {"pixel_values": x}, gradients=False) as captured:
        activations = cam.adapter.to_spatial(captured.activations[0], SIZE)
    expected = slow_scorecam(net, activations[0], x, 3)
    found = cam.saliency(x, lambda outputs: [[3]]).raw[0][0, 0].clamp_min(0)
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.max().item(), rtol=1e-4)


def test_shapleycams_second_order_term_vanishes_on_a_linear_tail() -> None:
    net, x = make("swin"), pictures(2)
    torch.testing.assert_close(CAM(net, "shapleycam")(x, [1, 2]), CAM(net, "gradcam")(x, [1, 2]))
    bent = make("vit")
    assert not torch.allclose(CAM(bent, "shapleycam")(x, [1, 2]), CAM(bent, "gradcam")(x, [1, 2]), atol=1e-3)


def test_shapleycam_takes_half_the_curvature_off_the_gradient() -> None:
    net, x = Cubic(), pictures(1)
    with torch.no_grad():
        a = net.features(x)
    # d/da sum a^3 = 3 a^2 and its Hessian times a = 6 a^2, hence weights mean(3 a^2 - 3 a^2) = 0.
    expected = (3 * a.square().mean((2, 3), keepdim=True) * a).sum(1)
    [first] = CAM(net, "gradcam", layers="features").saliency(x, lambda outputs: [[0]]).raw
    [second] = CAM(net, "shapleycam", layers="features").saliency(x, lambda outputs: [[0]]).raw
    torch.testing.assert_close(first[0], expected)
    assert second.abs().max() < 1e-5 * first.abs().max()


def test_constant_channels_do_not_make_scorecam_nan() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 3, 16, stride=16)
            nn.init.zeros_(self.features.weight[0])

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.features(pixel_values).mean((2, 3))

    maps = CAM(Flat(), "scorecam", layers="features")(pictures(2), [1, 2])
    assert maps.isfinite().all()


def test_finercam_agrees_with_the_reference_package() -> None:
    net, x = make("vit"), pictures(2)
    cam = CAM(net, "finercam")
    layer = net.get_submodule(cam.adapter.layers[0])
    kind, base = package().FinerCAM, package().GradCAM
    reference = kind(Logits(net), [layer], lambda tokens: cam.adapter.to_spatial(tokens, SIZE), base_method=base)
    theirs = reference(input_tensor=x, targets=None)
    let_go(reference.base_cam)
    np.testing.assert_allclose(cam(x).numpy(), theirs, atol=1e-4)


def test_finercam_without_rivals_is_its_base_method() -> None:
    net, x = make("resnet"), pictures(2)
    for base in ("gradcam", "layercam"):
        plain = CAM(net, base)(x, [1, 4])
        torch.testing.assert_close(CAM(net, "finercam", alpha=0.0, base=base)(x, [1, 4]), plain)
        assert not torch.allclose(CAM(net, "finercam", base=base)(x, [1, 4]), plain, atol=1e-3)
    chosen = CAM(net, "finercam", references=[0, 2]).saliency(x, lambda outputs: [[1, 4]])
    logits = chosen.outputs.logits
    torch.testing.assert_close(chosen.scores[0], logits[[0, 1], [1, 4]])  # the caller's target, not the contrast
    weights = logits.softmax(1)[:, [0, 2]]
    rivals = (weights * logits[:, [0, 2]]).sum(1) / weights.sum(1)
    [contrast] = get_method("finercam").targets([ClassLogit(1)], references=[0, 2])
    torch.testing.assert_close(contrast(logits[0]), logits[0, 1] - rivals[0])
    with pytest.raises(MethodError, match="contrasts classes"):
        CAM(net, "finercam")(x, [lambda output: output.logits[0]] * 2)
    with pytest.raises(MethodError, match="'eigencam' is not"):
        CAM(net, "finercam", base="eigencam")(x)


class _Piecewise(nn.Module):
    """Convolution, batch norm, ReLU in place, and linear layers: everything that FullGrad calls piecewise linear."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=4, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(8, 5)
        for norm in (self.body[1], self.body[4]):
            nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.body(pixel_values).mean((2, 3)))


def test_fullgrads_terms_sum_to_the_output() -> None:
    torch.manual_seed(0)
    net, x = _Piecewise().eval().double(), pictures(2).double()
    found = full_gradients(net, {"pixel_values": x}, lambda outputs: outputs[:, 3].sum())
    assert set(found.biases) == {"body.0", "body.1", "body.4", "head"}
    assert abs(found.score) > 0.1
    assert found.error < 1e-10
    shared = full_gradients(make("resnet").double(), {"pixel_values": x}, lambda outputs: outputs.logits[:, 3].sum())
    assert shared.error < 1e-9


def test_fullgrad_shows_absolute_terms_layer_by_layer() -> None:
    torch.manual_seed(0)
    net, x = _Piecewise().eval(), pictures(1)
    found = full_gradients(net, {"pixel_values": x}, lambda outputs: outputs[:, 3].sum())
    expected = torch.zeros(SIZE)
    for term in (found.pixels, found.biases["body.0"], found.biases["body.1"], found.biases["body.4"]):
        strength = term[0].abs()
        strength = (strength - strength.min()) / (strength.max() - strength.min())
        expected += resize(strength.sum(0), SIZE)
    [raw] = CAM(net, "fullgrad", layers="body.5").saliency(x, lambda outputs: [[3]]).raw
    torch.testing.assert_close(raw[0, 0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["scorecam", "ablationcam"])
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")],
    ids=["cuda", "cpu"],
)
def test_reruns_are_halved_until_they_fit_in_memory(method: str, error: RuntimeError) -> None:
    net, x, sizes = make("resnet"), pictures(2), []
    expected = CAM(net, method)(x, [1, 4])

    def refuse(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) > 3:
            raise error

    with net.classifier.register_forward_pre_hook(refuse):
        found = CAM(net, method, rerun_batch_size=16)(x, [1, 4])
    assert max(sizes) == 16
    assert 2 in sizes
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    def refuse_all(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) == 1:
            raise error

    with net.classifier.register_forward_pre_hook(refuse_all), pytest.raises(RuntimeError, match="memory"):
        CAM(net, method, rerun_batch_size=1)(x, [1, 4])


def test_what_is_no_lack_of_memory_is_not_tried_again() -> None:
    net, tried = make("resnet"), []

    def fail(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) == 16:
            tried.append(1)
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with net.classifier.register_forward_pre_hook(fail), pytest.raises(RuntimeError, match="mat1"):
        CAM(net, "scorecam", rerun_batch_size=16)(pictures(2), [1, 4])
    assert len(tried) == 1


def test_fullgrad_leaves_windows_out_that_look_like_small_pictures() -> None:
    net = tiny(SwinForImageClassification, image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2])
    x = torch.rand(2, 3, 32, 32)
    # Four windows of 4 x 4 cells an image in the first stage, and a single one in the second.
    assert CAM(net, "fullgrad")(x, [0, 1]).amax((1, 2)).tolist() == [1.0, 1.0]
