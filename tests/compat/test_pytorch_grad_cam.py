"""grad-cam's names on hf-cam's engine: each does what it does there, with the same values where those are right."""

from __future__ import annotations

import importlib
import warnings
from collections import OrderedDict
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.grad_cam import package
from hf_cam.compat import pytorch_grad_cam as ours
from hf_cam.compat.pytorch_grad_cam import metrics
from hf_cam.compat.pytorch_grad_cam.feature_factorization.deep_feature_factorization import dff
from hf_cam.compat.pytorch_grad_cam.metrics import arcc, cam_mult_image, perturbation_confidence, road
from hf_cam.compat.pytorch_grad_cam.sess import sliding_window
from hf_cam.compat.pytorch_grad_cam.sobel_cam import sobel_cam
from hf_cam.compat.pytorch_grad_cam.utils import find_layers, image, model_targets, reshape_transforms
from hf_cam.compat.pytorch_grad_cam.utils import svd_on_activations as svd
from hf_cam.errors import HFCamError, LayerError, MethodError, OptionError, TargetError
from unchanged import unchanged

SAME = ["GradCAM", "HiResCAM", "GradCAMElementWise", "GradCAMPlusPlus", "XGradCAM", "LayerCAM"]
SAME += ["SegEigenCAM", "KPCA_CAM", "ShapleyCAM", "AblationCAM", "RandomCAM"]


class Net(nn.Module):
    """Two stages of convolutions with ReLU, mean pooling and four classes; scores are positive."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.late(self.early(x)).mean((2, 3))) + 3


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def targets_of(library: Any, *classes: int) -> list[Any]:
    return [
        importlib.import_module(f"{library.__name__}.utils.model_targets").ClassifierOutputTarget(k) for k in classes
    ]


def made(library: Any, name: str, net: Any, pictures: Tensor, layers: list[nn.Module], **settings: Any) -> np.ndarray:
    np.random.seed(0)  # noqa: NPY002 - which RandomCAM draws from in both
    with getattr(library, name)(model=net, target_layers=layers) as cam:
        return cam(input_tensor=pictures.clone(), targets=targets_of(library, 1, 2), **settings)


# Names ---------------------------------------------------------------------------------------------------------------


def test_every_public_name_of_the_package_is_here() -> None:
    theirs = package()
    names = {name for name, value in vars(theirs).items() if isinstance(value, type) or callable(value)}
    assert {name for name in names if not name.startswith("_")} <= set(dir(ours))


@pytest.mark.parametrize(
    ("module", "left_out"),
    [
        ("utils.model_targets", set()),
        ("utils.image", set()),
        ("utils.reshape_transforms", set()),
        ("utils.find_layers", set()),
        ("utils.svd_on_activations", set()),
        ("metrics.cam_mult_image", set()),
        ("metrics.perturbation_confidence", set()),
        ("metrics.road", set()),
        ("metrics.arcc", set()),
        ("ablation_layer", set()),
        ("activations_and_gradients", set()),
        ("sobel_cam", set()),
        ("sess", {"window_starts"}),  # a helper of sliding_window
        ("feature_factorization.deep_feature_factorization", set()),
        # The functions that replace modules of the caller's model, which happens here nowhere.
        ("guided_backprop", {"GuidedBackpropReLU", "GuidedBackpropReLUasModule"}),
    ],
)
def test_every_name_that_a_module_defines_is_in_the_module_of_the_same_name(module: str, left_out: set[str]) -> None:
    package()
    theirs = importlib.import_module(f"pytorch_grad_cam.{module}")
    here = importlib.import_module(f"{ours.__name__}.{module}")
    defined = {name for name, value in vars(theirs).items() if getattr(value, "__module__", "") == theirs.__name__}
    assert {name for name in defined if not name.startswith("_")} - left_out <= set(dir(here))


@pytest.mark.parametrize("name", ["grad_cam", "kpca_cam", "fullgrad_cam", "refine_cam", "base_cam"])
def test_modules_of_one_class_can_be_imported(name: str) -> None:
    found = importlib.import_module(f"{ours.__name__}.{name}")
    assert isinstance(found, ModuleType)
    assert getattr(ours, name) is found


# Maps ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAME)
def test_maps_equal_those_of_the_package(name: str, net: Net, pictures: Tensor) -> None:
    theirs = made(package(), name, net, pictures, [net.late])
    found = made(ours, name, net, pictures, [net.late])
    assert found.dtype == np.float32
    assert found.shape == (2, 32, 48)
    np.testing.assert_allclose(found, theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM"])
def test_several_layers_are_averaged_as_there(name: str, net: Net, pictures: Tensor) -> None:
    layers = [net.early, net.late]
    theirs = made(package(), name, net, pictures, layers)
    np.testing.assert_allclose(made(ours, name, net, pictures, layers), theirs, atol=1e-5)


def test_the_mean_of_six_views_equals_that_of_the_package(net: Net, pictures: Tensor) -> None:
    theirs = made(package(), "GradCAM", net, pictures, [net.late], aug_smooth=True)
    np.testing.assert_allclose(made(ours, "GradCAM", net, pictures, [net.late], aug_smooth=True), theirs, atol=1e-5)


def test_views_of_the_callers_own_are_taken(net: Net, pictures: Tensor) -> None:
    class Plain:
        def augment_image(self, image: Tensor) -> Tensor:
            return image

        def deaugment_mask(self, mask: Tensor) -> Tensor:
            return mask

    plain = ours.GradCAM(net, [net.late])(pictures)
    viewed = ours.BaseCAM.__init__  # the argument belongs to the base class, as there
    cam = ours.GradCAM.__new__(ours.GradCAM)
    viewed(cam, net, [net.late], tta_transforms=[Plain(), Plain()])
    np.testing.assert_allclose(cam(pictures, aug_smooth=True), plain, atol=1e-6)


def test_without_targets_each_image_gets_its_top_class(net: Net, pictures: Tensor) -> None:
    cam = ours.GradCAM(net, [net.late])
    found = cam(pictures, None)
    top = cam.outputs.argmax(-1).tolist()
    np.testing.assert_array_equal(found, cam(pictures, targets_of(ours, *top)))


@pytest.mark.parametrize("count", [1, 3])
def test_a_list_of_another_length_than_the_batch_is_refused(count: int, net: Net, pictures: Tensor) -> None:
    for cam in (ours.GradCAM(net, [net.late]), ours.EigenCAM(net, [net.late]), ours.FinerCAM(net, [net.late])):
        with pytest.raises(TargetError, match=f"{count} targets? for 2 images"):
            cam(pictures, targets_of(ours, *[0] * count))


def test_the_model_comes_back_as_it_was(net: Net, pictures: Tensor) -> None:
    net.train()
    with unchanged(net):
        for name in ("GradCAM", "AblationCAM", "ScoreCAM", "FullGrad"):
            made(ours, name, net, pictures, [net.late])
        ours.GuidedBackpropReLUModel(net)(pictures)
    assert net.training


def test_exceptions_leave_the_with_block(net: Net) -> None:
    with pytest.raises(IndexError), ours.GradCAM(net, [net.late]):
        raise IndexError


def test_batch_size_is_that_of_the_reruns(net: Net, pictures: Tensor) -> None:
    cam, seen = ours.ScoreCAM(net, [net.late]), list[int]()
    cam.batch_size = 5

    def target(output: Tensor) -> Tensor:
        return output[1]

    hook = net.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    cam(pictures, [target] * 2)
    hook.remove()
    assert max(seen[-4:]) == 5


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (lambda net: {"target_layers": net.late}, OptionError),
        (lambda net: {"target_layers": [nn.ReLU()]}, LayerError),
        (lambda net: {"target_layers": [net.late], "detach": False}, OptionError),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_runs(arguments: Any, error: type[HFCamError], net: Net) -> None:
    with pytest.raises(error):
        ours.BaseCAM(net, **arguments(net))


def test_volumes_have_maps_with_depth() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    volume = torch.randn(1, 1, 4, 6, 8)
    theirs = package().GradCAM(net, [net[1]])(volume.clone(), None)
    found = ours.GradCAM(net, [net[1]])(volume, None)
    assert found.shape == (1, 4, 6, 8)
    np.testing.assert_allclose(found, theirs, atol=1e-5)


# Subclasses ----------------------------------------------------------------------------------------------------------


def subclasses_of(library: Any) -> list[type]:
    base = importlib.import_module(f"{library.__name__}.base_cam").BaseCAM

    class Weighing(base):
        def get_cam_weights(self, input_tensor, target_layer, targets, activations, grads):
            return grads.max(axis=(2, 3))

    class Drawing(library.GradCAM):
        def get_cam_image(self, input_tensor, target_layer, targets, activations, grads, eigen_smooth=False):
            weights = self.get_cam_weights(input_tensor, target_layer, targets, activations, grads)
            return (weights[:, :, None, None] * activations**2).sum(1)

    class Above(library.LayerCAM):
        def get_cam_image(self, *args):
            return 2 * super().get_cam_image(*args) ** 2

    return [Weighing, Drawing, Above]


@pytest.mark.parametrize("index", range(3))
def test_a_subclass_makes_the_same_maps_as_there(index: int, net: Net, pictures: Tensor) -> None:
    maps = [
        subclasses_of(library)[index](net, [net.late])(pictures.clone(), targets_of(library, 1, 2))
        for library in (ours, package())
    ]
    np.testing.assert_allclose(*maps, atol=1e-5)


def test_a_subclass_may_read_the_gradient_at_the_picture(net: Net, pictures: Tensor) -> None:
    class AtThePicture(ours.BaseCAM):
        def __init__(self, model: nn.Module, layers: list[nn.Module]) -> None:
            super().__init__(model, layers, compute_input_gradient=True)

        def compute_cam_per_layer(self, input_tensor, targets, eigen_smooth):
            return [input_tensor.grad.abs().sum(1, keepdim=True).cpu().numpy()]

    found = AtThePicture(net, [net.late])(pictures, targets_of(ours, 1, 2))
    own = pictures.clone().requires_grad_()
    output = net(own)
    (output[0, 1] + output[1, 2]).backward()
    expected = own.grad.abs().sum(1)
    assert np.corrcoef(found[0].ravel(), expected[0].ravel())[0, 1] > 0.9999


def test_a_subclass_without_a_formula_says_so(net: Net, pictures: Tensor) -> None:
    class Empty(ours.BaseCAM): ...

    with pytest.raises(NotImplementedError, match="Empty"):
        Empty(net, [net.late])(pictures)


def test_activations_and_gradients_are_kept_after_a_call(net: Net, pictures: Tensor) -> None:
    with ours.GradCAM(net, [net.late]) as cam:
        cam(pictures, targets_of(ours, 1, 2))
        kept = cam.activations_and_grads
        assert kept.activations[0].shape == kept.gradients[0].shape == (2, 12, 8, 12)
        torch.testing.assert_close(kept.gradients[0][0, :, 0, 0], net.fc.weight[1].detach() / 96)
    assert not kept.activations


def test_activations_and_gradients_can_be_taken_by_hand(net: Net, pictures: Tensor) -> None:
    kept = ours.ActivationsAndGradients(net, [net.early, net.late], lambda tensor: tensor[:, :2])
    kept(pictures)[:, 1].sum().backward()
    assert [len(tensor[0]) for tensor in (*kept.activations, *kept.gradients)] == [2, 2, 2, 2]
    assert kept.gradients[0].shape[2:] == (16, 24)  # in the order of the layers
    assert not net.early._forward_hooks
    kept.release()
    assert not kept.gradients


# Composite methods --------------------------------------------------------------------------------------------------


def test_finercam_contrasts_as_there(net: Net, pictures: Tensor) -> None:
    for settings in ({}, {"target_idx": 2, "alpha": 0.5}, {"comparison_categories": [1]}):
        maps = [
            library.FinerCAM(net, [net.late])(input_tensor=pictures.clone(), targets=None, **settings)
            for library in (ours, package())
        ]
        np.testing.assert_allclose(*maps, atol=1e-5)


def refined(library: Any, net: Net, pictures: Tensor) -> np.ndarray:
    cam = library.RefineCAM(net, [net.early, net.late], base_method=library.GradCAM)
    return cam(pictures.clone(), targets_of(library, 1, 2))


def test_refinecam_multiplies_as_there(net: Net, pictures: Tensor) -> None:
    maps = [refined(library, net, pictures) for library in (ours, package())]
    np.testing.assert_allclose(*maps, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"pool": "max", "smooth": False}, {"pre_filter_ratio": 0.5, "theta": 0.1}])
def test_sess_fuses_windows_as_there(settings: dict[str, Any], net: Net, pictures: Tensor) -> None:
    maps = [
        library.SESS(net, [net.late], num_scales=2, **settings)(pictures.clone(), targets_of(library, 1, 2))
        for library in (ours, package())
    ]
    np.testing.assert_allclose(*maps, atol=1e-4)


def test_settings_out_of_range_are_value_errors_as_there(net: Net) -> None:
    with pytest.raises(ValueError, match="pool must be"):
        ours.SESS(net, [net.late], pool="median")


@pytest.mark.parametrize("malformed", [torch.zeros(3, 8), np.zeros((1, 3, 8, 8)), "cat.jpg", None])
def test_what_is_no_batch_of_images_is_a_value_error(malformed: Any, net: Net) -> None:
    direct = (ours.GradCAM, ours.ScoreCAM, ours.EigenCAM, ours.GradCAMElementWise, ours.FullGrad)
    for method in (*direct, ours.SESS, ours.FinerCAM, ours.RefineCAM):
        with pytest.raises(ValueError, match="input_tensor must be a floating tensor"):
            method(net, [net.late])(malformed)
    with pytest.raises(ValueError, match="input_tensor must be a floating tensor"):
        ours.EigenCAM(net, [net.late])(malformed, aug_smooth=True)
    with pytest.raises(ValueError, match="input_img must be a floating tensor"):
        ours.GuidedBackpropReLUModel(net)(malformed)


@pytest.mark.parametrize("settings", [{"pool": "median"}, {"pre_filter_ratio": 1.0}, {"num_scales": 0}])
def test_sess_refuses_what_does_not_fit(settings: dict[str, Any], net: Net) -> None:
    with pytest.raises(OptionError):
        ours.SESS(net, [net.late], **settings)
    assert sliding_window(6, 4, 4, 4) == [(0, 0), (0, 2)]


def test_guided_backpropagation_equals_that_of_the_package(pictures: Tensor) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    found = ours.GuidedBackpropReLUModel(net)(pictures, target_category=2)
    theirs = package().GuidedBackpropReLUModel(Net().eval())
    theirs.model.load_state_dict(net.state_dict())
    np.testing.assert_allclose(found, theirs(pictures[:1].clone(), 2), atol=1e-6)


class ByHand(ours.GradCAM):
    """Runs the model and differentiates by itself."""

    def forward(self, input_tensor: Tensor, targets: Any = None, eigen_smooth: bool = False) -> np.ndarray:
        self.outputs = self.activations_and_grads(input_tensor)
        sum(target(output) for target, output in zip(targets, self.outputs, strict=True)).backward()
        return self.aggregate_multi_layers(self.compute_cam_per_layer(input_tensor, targets, eigen_smooth))


def test_a_subclass_may_run_the_model_by_itself_also_after_another_run(net: Net, pictures: Tensor) -> None:
    layers, targets = [net.early, net.late], targets_of(ours, 1, 2)
    expected = ours.GradCAM(net, layers)(pictures, targets)
    cam = ByHand(net, layers)
    np.testing.assert_allclose(cam(pictures, targets), expected, atol=1e-6)
    ours.GradCAM.forward(cam, pictures.flip(0), targets)
    np.testing.assert_allclose(cam(pictures, targets), expected, atol=1e-6)


def test_target_layers_may_be_a_module_list_and_are_needed_where_they_are_read(net: Net, pictures: Tensor) -> None:
    listed = ours.GradCAM(net, nn.ModuleList([net.early, net.late]))(pictures)
    np.testing.assert_array_equal(listed, ours.GradCAM(net, [net.early, net.late])(pictures))
    np.testing.assert_array_equal(ours.FullGrad(net, [])(pictures), ours.FullGrad(net, [net.late])(pictures))
    for name in ("GradCAM", "AblationCAM", "RandomCAM", "EigenCAM"):
        with pytest.raises(LayerError, match="target_layers is empty"):
            getattr(ours, name)(net, [])
    with pytest.raises(OptionError, match=r"write \[layer\] for one"):
        ours.GradCAM(net, net.late)


@pytest.mark.parametrize("targets", [3, model_targets.ClassifierOutputTarget(1), torch.tensor(1)])
@pytest.mark.parametrize("name", ["GradCAM", "FinerCAM", "RefineCAM"])
def test_targets_are_a_list(name: str, targets: Any, net: Net, pictures: Tensor) -> None:
    cam = getattr(ours, name)(net, [net.late])
    with pytest.raises(TargetError, match="a list with one per image"):
        cam(pictures[:1], targets)


# Ablation and pyramids ----------------------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """A detector's shape: a backbone that returns levels by name, and a head that reads all of them."""

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            first = self.one(x).relu()
            return OrderedDict([("0", first), ("pool", self.two(first).relu())])

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = self.Backbone(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([level.mean((2, 3)) for level in self.backbone(x).values()], 1)) + 1


@pytest.mark.parametrize("name", ["EigenCAM", "ScoreCAM", "FEM", "AblationCAM"])
def test_layers_that_return_levels_by_name_are_explained_through_reshape_transform(name: str, pictures: Tensor) -> None:
    torch.manual_seed(0)
    net = Pyramid().eval()
    reshape = reshape_transforms.fasterrcnn_reshape_transform
    with unchanged(net):
        cam = getattr(ours, name)(net, [net.backbone], reshape_transform=reshape)
        found = cam(pictures, targets_of(ours, 1, 2))
    assert found.shape == (2, 32, 48)
    assert found.max() > 0.99
    if name == "AblationCAM":
        levels = net.backbone(pictures)
        gains = (net.head.weight[[1, 2]] * torch.cat([level.mean((2, 3)) for level in levels.values()], 1)).detach()
        raw = (gains[:, :, None, None] * reshape(levels).detach()).sum(1).clamp_min(0)
        expected = image.scale_cam_image(image.scale_cam_image(raw.numpy(), (48, 32)))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_on_levels_only_the_chosen_channels_run_again(pictures: Tensor) -> None:
    ran = []

    class Counted(Pyramid):
        def forward(self, x: Tensor) -> Tensor:
            ran.append(len(x))
            return super().forward(x)

    class Chosen(ours.AblationLayerFasterRCNN):
        def activations_to_be_ablated(self, activations: np.ndarray, ratio_channels_to_ablate: float = 1.0) -> Any:
            assert activations.shape == (8, 4, 6)
            return np.array([6, 1])

    torch.manual_seed(0)
    net, reshape = Counted().eval(), reshape_transforms.fasterrcnn_reshape_transform
    cam = ours.AblationCAM(net, [net.backbone], reshape, Chosen(), ratio_channels_to_ablate=0.1)
    cam(pictures[:1], targets_of(ours, 1))
    ran.clear()
    found = cam(pictures[:1], targets_of(ours, 1))
    assert sum(ran) == 1 + 2
    levels = net.backbone(pictures[:1])
    gains = (net.head.weight[1] * torch.cat([level.mean((2, 3)) for level in levels.values()], 1)[0]).detach()
    raw = sum(gains[channel] * reshape(levels).detach()[:, channel] for channel in (1, 6)).clamp_min(0)
    expected = image.scale_cam_image(image.scale_cam_image(raw.numpy(), (48, 32)))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_methods_of_gradients_are_refused_on_levels(pictures: Tensor) -> None:
    net = Pyramid().eval()
    cam = ours.GradCAM(net, [net.backbone], reshape_transforms.fasterrcnn_reshape_transform)
    with pytest.raises(MethodError, match="eigencam"):
        cam(pictures)


def test_a_reshape_transform_that_fails_is_blamed(net: Net, pictures: Tensor) -> None:
    with pytest.raises(HFCamError, match="reshape"):
        ours.GradCAM(net, [net.late], lambda tensor: tensor["pool"])(pictures)


def test_channels_beyond_the_ratio_get_no_weight(net: Net, pictures: Tensor) -> None:
    class Chosen(ours.AblationLayer):
        def activations_to_be_ablated(self, activations: np.ndarray, ratio_channels_to_ablate: float = 1.0) -> Any:
            assert ratio_channels_to_ablate == 0.25
            return np.array([3])

    cam = ours.AblationCAM(net, [net.late], ablation_layer=Chosen(), ratio_channels_to_ablate=0.25)
    found = cam(pictures, targets_of(ours, 1, 1))
    channel = net.late(net.early(pictures))[:, 3].detach().numpy()
    sign = float(net.fc.weight[1, 3].detach())
    expected = image.scale_cam_image(np.maximum(np.sign(sign) * channel, 0), (48, 32))
    np.testing.assert_allclose(found, image.scale_cam_image(expected), atol=1e-5)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 1.0])
def test_the_channels_to_ablate_are_grad_cams_also_where_many_lie_wholly_inside_the_mask(ratio: float) -> None:
    """Most shares are equal, so that the order rests on how ties and constant channels are sorted."""
    activations = np.maximum(np.random.default_rng(0).normal(size=(96, 3, 5)), 0).astype(np.float32)
    activations[[4, 50, 51]] = 0
    theirs = importlib.import_module(f"{package().__name__}.ablation_layer").AblationLayer()
    with np.errstate(invalid="ignore"):
        expected = theirs.activations_to_be_ablated(activations, ratio)
    np.testing.assert_array_equal(ours.AblationLayer().activations_to_be_ablated(activations, ratio), expected)


def test_ablation_layers_return_kept_activations_without_a_channel() -> None:
    tokens, vit = torch.ones(1, 5, 3), ours.AblationLayerVit()
    vit.set_next_batch(0, tokens, 2)
    vit.indices = [0, 2]
    assert vit(None).sum(1).tolist() == [[0, 5, 5], [5, 5, 0]]
    levels, pyramid = {"0": torch.ones(1, 2, 1, 1), "pool": torch.ones(1, 2, 1, 1)}, ours.AblationLayerFasterRCNN()
    pyramid.set_next_batch(0, levels, 2)
    pyramid.indices = [1, 2]
    assert pyramid(None)["0"].flatten(1).tolist() == [[1, 0], [1, 1]]
    assert pyramid(None)["pool"].flatten(1).tolist() == [[1, 1], [0, 1]]


def test_the_choice_of_channels_is_that_of_the_package() -> None:
    activations = np.random.default_rng(0).random((10, 4, 6), np.float32)
    choices = [library.AblationLayer().activations_to_be_ablated(activations, 0.3) for library in (ours, package())]
    assert choices[0].tolist() == choices[1].tolist()
    assert ours.AblationLayer().activations_to_be_ablated(activations).tolist() == list(range(10))


# Utilities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ClassifierOutputTarget", (1,)),
        ("ClassifierOutputSoftmaxTarget", (1,)),
        ("ClassifierOutputReST", (1,)),
        ("BinaryClassifierOutputTarget", (0,)),
        ("SoftmaxOutputTarget", ()),
        ("RawScoresOutputTarget", ()),
        ("FinerWeightedTarget", (1, [0, 2], 0.5)),
    ],
)
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_targets_have_the_values_that_they_have_there(name: str, arguments: Any, shape: tuple[int, ...]) -> None:
    output = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    package()
    theirs = importlib.import_module("pytorch_grad_cam.utils.model_targets")
    torch.testing.assert_close(
        getattr(model_targets, name)(*arguments)(output), getattr(theirs, name)(*arguments)(output)
    )


def test_a_mask_and_boxes_have_the_values_that_they_have_there() -> None:
    package()
    theirs = importlib.import_module("pytorch_grad_cam.utils.model_targets")
    scores, mask = torch.randn(3, 4, 6), np.random.default_rng(0).random((4, 6)) > 0.5
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 30]])
    record = {"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.8])}
    given = [np.array([1, 0, 10, 10]), np.array([20, 20, 40, 31]), np.array([50, 50, 60, 60])]
    for library in (model_targets, theirs):
        assert float(library.SemanticSegmentationTarget(1, mask)(scores)) == pytest.approx(float(scores[1][mask].sum()))
        found = library.FasterRCNNBoxScoreTarget([1, 2, 1], given)(record)
        assert found.item() == pytest.approx(0.9 + 90 / 100 + 0.8 + 200 / 220)
    assert model_targets.FasterRCNNBoxScoreTarget([1], given[:1])({**record, "boxes": boxes[:0]}).item() == 0


def test_a_target_of_one_value_is_a_scalar_in_the_engine(pictures: Tensor) -> None:
    torch.manual_seed(0)
    net = Net(classes=1).eval()
    raw = ours.GradCAM(net, [net.late])(pictures, [model_targets.RawScoresOutputTarget()] * 2)
    index = ours.GradCAM(net, [net.late])(pictures, targets_of(ours, 0, 0))
    np.testing.assert_allclose(raw, index)


def test_a_target_of_several_values_is_refused_by_methods_that_differentiate_it(net: Net, pictures: Tensor) -> None:
    vectors = [model_targets.RawScoresOutputTarget()] * 2
    with pytest.raises(TargetError, match="scalar"):
        ours.GradCAM(net, [net.late])(pictures, vectors)
    assert ours.EigenCAM(net, [net.late])(pictures, vectors).shape == (2, 32, 48)


def test_reshape_transforms_put_tokens_on_their_grid() -> None:
    tokens = torch.arange(2 * 13 * 5.0).reshape(2, 13, 5)
    found = reshape_transforms.vit_reshape_transform(tokens, height=3, width=4)
    assert found.shape == (2, 5, 3, 4)
    assert torch.equal(found[0, :, 1, 2], tokens[0, 1 + 6])
    assert torch.equal(reshape_transforms.swinT_reshape_transform(tokens[:, 1:], 3, 4), found)


def test_layers_are_found_and_replaced(net: Net) -> None:
    relus = find_layers.find_layer_types_recursive(net, [nn.ReLU])
    assert relus == find_layers.find_layer_predicate_recursive(net, lambda layer: isinstance(layer, nn.ReLU))
    assert len(relus) == 2
    other = nn.GELU()
    assert find_layers.replace_layer_recursive(net, relus[1], other)
    assert net.late[1] is other
    assert not find_layers.replace_layer_recursive(net, relus[1], other)
    find_layers.replace_all_layer_type_recursive(net, nn.ReLU, other)
    assert net.early[2] is other


def test_overlays_and_scaling_are_those_of_the_package() -> None:
    package()
    theirs = importlib.import_module("pytorch_grad_cam.utils.image")
    generator = np.random.default_rng(0)
    picture, cam = generator.random((8, 12, 3), np.float32), generator.random((8, 12), np.float32)
    for settings in ({}, {"use_rgb": True, "image_weight": 0.3, "colormap": 11}):
        assert np.array_equal(
            image.show_cam_on_image(picture, cam, **settings), theirs.show_cam_on_image(picture, cam, **settings)
        )
    signed = generator.normal(size=(2, 3, 4, 6)).astype(np.float32)
    assert np.array_equal(image.deprocess_image(signed), theirs.deprocess_image(signed))
    for name in ("scale_cam_image", "scale_accross_batch_and_channels"):
        maps = signed[0] if name == "scale_cam_image" else signed
        np.testing.assert_allclose(getattr(image, name)(maps, (12, 8)), getattr(theirs, name)(maps, (12, 8)), atol=1e-6)
    torch.testing.assert_close(
        image.preprocess_image(picture, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        theirs.preprocess_image(picture, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    )
    scores, labels = generator.random((2, 5)), {i: f"class {i}, other" for i in range(5)}
    assert image.create_labels_legend(scores, labels) == theirs.create_labels_legend(scores, labels)


def test_overlays_of_black_pictures_and_bad_ranges() -> None:
    black = np.zeros((4, 6, 3), np.float32)
    assert not image.show_cam_on_image(black, np.zeros((4, 6), np.float32), image_weight=1.0).any()
    with pytest.raises(OptionError, match="divide bytes"):
        image.show_cam_on_image(black + 2, np.zeros((4, 6), np.float32))
    with pytest.raises(OptionError, match="image_weight"):
        image.show_cam_on_image(black, np.zeros((4, 6), np.float32), image_weight=2)
    with pytest.raises(OptionError, match="one height and width"):
        image.show_cam_on_image(black, np.zeros((6, 4), np.float32))


def test_components_ignore_nan_and_leave_the_array_alone() -> None:
    batch = np.random.default_rng(0).random((2, 3, 4, 6), np.float32)
    batch[0, 1, 2, 3] = np.nan
    for project in (svd.get_2d_projection, svd.get_2d_projection_with_sign_correction, svd.get_2d_projection_kernel):
        before = batch.copy()
        found = project(batch)
        assert found.shape == (2, 4, 6)
        assert np.isfinite(found).all()
        assert np.array_equal(batch, before, equal_nan=True)


def test_components_are_those_of_the_package_but_for_the_sign() -> None:
    package()
    theirs = importlib.import_module("pytorch_grad_cam.utils.svd_on_activations")
    batch = np.random.default_rng(0).random((2, 3, 4, 6), np.float32)
    found, expected = svd.get_2d_projection(batch), theirs.get_2d_projection(batch)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-5)
    extreme = svd.get_2d_projection_with_sign_correction(batch)
    np.testing.assert_allclose(extreme, theirs.get_2d_projection_with_sign_correction(batch), atol=1e-5)


@pytest.mark.parametrize("name", ["EigenCAM", "EigenGradCAM"])
def test_maps_of_components_are_those_of_the_package_or_of_the_other_sign(
    name: str, net: Net, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    package()
    module = importlib.import_module(f"pytorch_grad_cam.{'eigen_cam' if name == 'EigenCAM' else 'eigen_grad_cam'}")
    monkeypatch.setattr(module, "get_2d_projection", svd.get_2d_projection)
    theirs = made(package(), name, net, pictures, [net.late])
    np.testing.assert_allclose(made(ours, name, net, pictures, [net.late]), theirs, atol=1e-5)


def test_edges_are_those_of_the_package() -> None:
    package()
    theirs = importlib.import_module("pytorch_grad_cam.sobel_cam").sobel_cam
    picture = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    assert np.array_equal(sobel_cam(picture), theirs(picture))


# Factorization ------------------------------------------------------------------------------------------------------


def test_concepts_and_strengths_multiply_to_the_activations() -> None:
    generator = np.random.default_rng(0)
    strengths, concepts = generator.random((2, 3, 4, 6)), generator.random((8, 3))
    activations = np.float32(np.einsum("ck,bkhw->bchw", concepts, strengths) - 0.5)
    found, maps = dff(activations, 3)
    offset = activations.min((0, 2, 3))
    rebuilt = np.einsum("ck,bkhw->bchw", found - offset[:, None], maps) + offset[:, None, None]
    assert np.abs(rebuilt - activations).max() < 0.15
    assert maps.min() >= 0


def test_concepts_are_named_by_the_callers_computation(net: Net, pictures: Tensor) -> None:
    with unchanged(net):
        concepts, maps, scores = ours.DeepFeatureFactorization(net, net.late, None, net.fc)(pictures, 3)
    assert concepts.shape == (12, 3)
    assert [one.shape for one in maps] == [(3, 32, 48)] * 2
    np.testing.assert_allclose(
        scores, concepts.T @ net.fc.weight.detach().numpy().T + net.fc.bias.detach().numpy(), atol=1e-5
    )
    assert len(ours.DeepFeatureFactorization(net, net.late)(pictures, 3)) == 2


def test_a_picture_of_concepts_has_a_legend(net: Net) -> None:
    net.config = type("Config", (), {"id2label": {i: f"class {i}" for i in range(4)}})()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    shown = ours.run_dff_on_image(
        net, net.late, net.fc, picture, image.preprocess_image(np.asarray(picture))[0], None, 3
    )
    assert shown.shape == (64, 3 * 96, 3)
    assert np.array_equal(shown[:, :96], np.asarray(picture))


def test_colours_of_concepts_may_be_given() -> None:
    maps = np.zeros((2, 4, 6), np.float32)
    maps[0, :, :3], maps[1, :, 3:] = 1, 1
    shown = image.show_factorization_on_image(np.zeros((4, 6, 3)), maps, [(1, 0, 0), (0, 0, 1)], image_weight=0.0)
    assert shown[0, 0].tolist() == [255, 0, 0]
    assert shown[0, 5].tolist() == [0, 0, 255]


# Metrics -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CamMultImageConfidenceChange", "DropInConfidence", "IncreaseInConfidence"])
def test_confidence_metrics_equal_those_of_the_package(name: str, net: Net, pictures: Tensor) -> None:
    package()
    theirs = importlib.import_module("pytorch_grad_cam.metrics.cam_mult_image")
    cams, targets = np.random.default_rng(0).random((2, 32, 48), np.float32), targets_of(ours, 1, 2)
    found, expected = (getattr(one, name)()(pictures, cams, targets, net) for one in (cam_mult_image, theirs))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_metrics_can_return_vectors_and_the_changed_pictures(net: Net, pictures: Tensor) -> None:
    cams = np.zeros((2, 32, 48), np.float32)
    metric = cam_mult_image.CamMultImageConfidenceChange()
    vectors = [model_targets.SoftmaxOutputTarget()] * 2
    found, changed = metric(pictures, cams, vectors, net, return_visualization=True, return_diff=False)
    assert found.shape == (2, 4)
    assert not changed.any()
    np.testing.assert_allclose(found, net(changed).softmax(-1).detach().numpy(), atol=1e-6)
    with pytest.raises(TargetError, match="1 targets for 2 images"):
        metric(pictures, cams, vectors[:1], net)


def test_imputed_pictures_equal_those_of_the_package_without_noise(pictures: Tensor) -> None:
    package()
    theirs = importlib.import_module("pytorch_grad_cam.metrics.road")
    mask = (torch.rand(32, 48, generator=torch.Generator().manual_seed(0)) > 0.3).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own, about numpy and torch
        found, expected = (one.NoisyLinearImputer(noise=0.0)(pictures[0], mask) for one in (road, theirs))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_road_and_arcc_are_repeatable_and_in_range(net: Net, pictures: Tensor) -> None:
    cam, targets = ours.GradCAM(net, [net.late]), targets_of(ours, 1, 2)
    cams = cam(pictures, targets)
    combined = road.ROADCombined([20, 80])
    first, again = (combined(pictures, cams, targets, net) for _ in range(2))
    assert np.array_equal(first, again)
    most, least = (
        one([20, 80])(pictures, cams, targets, net)
        for one in (road.ROADMostRelevantFirstAverage, road.ROADLeastRelevantFirstAverage)
    )
    np.testing.assert_allclose(first, (least - most) / 2, atol=1e-6)
    found = arcc.ARCC(cam, [20, 80])(pictures, cams, targets, net)
    assert found.shape == (2,)
    assert ((found >= 0) & (found <= 1)).all()
    assert metrics.arcc is arcc


def test_pixels_are_removed_by_percentile_or_by_otsus_threshold() -> None:
    values, picture = torch.linspace(0, 1, 24).reshape(4, 6), torch.ones(3, 4, 6)
    keep = perturbation_confidence.RemoveMostRelevantFirst(75, lambda image, mask: image * mask)
    assert keep(picture, values)[0].sum() == 18
    rest = perturbation_confidence.RemoveLeastRelevantFirst(75, lambda image, mask: image * mask)
    assert rest(picture, values)[0, 0].sum() == 0
    auto = perturbation_confidence.RemoveMostRelevantFirst("auto", lambda image, mask: mask)
    assert 0 < (auto(picture, values) > 0).float().mean() < 1


def test_complexity_and_coherency_have_their_closed_forms(net: Net, pictures: Tensor) -> None:
    maps = np.random.default_rng(0).random((2, 32, 48), np.float32)
    np.testing.assert_allclose(arcc.Complexity()(maps), maps.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(arcc.batch_pearson_coherency(maps, 1 - maps), -1, atol=1e-4)
    same = arcc.Coherency()(pictures, maps, targets_of(ours, 1, 2), net, lambda input_tensor, targets: maps)
    np.testing.assert_allclose(same, 1, atol=1e-4)
