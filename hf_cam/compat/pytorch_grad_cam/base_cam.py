"""The base class of grad-cam's methods, for the built-in ones and for subclasses of the caller's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from hf_cam.cam import CAM, Saliency, checked_pixels
from hf_cam.compat.pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
from hf_cam.compat.pytorch_grad_cam.levels import Reshaping, levels_of, saliency_of_levels
from hf_cam.compat.pytorch_grad_cam.utils.image import scale_cam_image
from hf_cam.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from hf_cam.compat.pytorch_grad_cam.utils.svd_on_activations import get_2d_projection
from hf_cam.errors import HFCamError, LayerError, OptionError, TargetError, brief
from hf_cam.methods import get_method
from hf_cam.methods.registry import Method
from hf_cam.outputs import class_logits
from hf_cam.request import Request
from hf_cam.targets import Target

Targets = Sequence[Target] | None
Array = np.ndarray


class BaseCAM:
    """One method on some layers of a model, with grad-cam's conventions.

    A subclass defines `get_cam_weights`, which returns one weight per image and channel, or `get_cam_image`, which
    returns one map per image. Both get the activations and gradients of a layer as numpy arrays `[B, C, h, w]`.

    Args:
        model: Any vision model; it is left unchanged.
        target_layers: Modules of the model; the maps of several are averaged.
        reshape_transform: `activation -> [B, C, h, w]`; inferred by default. Needed for a layer that returns a
            dictionary.
        compute_input_gradient: Whether `compute_cam_per_layer` reads `input_tensor.grad`.
        uses_gradients: False for a subclass that reads the activations alone.
        tta_transforms: The views of `aug_smooth`, with ttach's `augment_image` and `deaugment_mask`; by default the
            image and its mirror image, each times 0.9, 1 and 1.1.
        detach: Always true: arrays carry no graph.

    Raises:
        OptionError, LayerError: an argument does not fit.
    """

    method_id: ClassVar[str | None] = None
    """The method of hf-cam's that the engine runs; None where `get_cam_image` makes the maps."""
    formula: ClassVar[str | None] = None
    """The method that `get_cam_image` computes unless there are weights."""
    batch_size: int | None = None
    """Images per forward of the methods that rerun the model; chosen for the device by default."""

    def __init_subclass__(cls, method: str | None = None, **others: Any) -> None:
        """Bind a class to a method of hf-cam's, or note that it brings a formula of its own."""
        super().__init_subclass__(**others)
        if method is not None:
            cls.method_id = cls.formula = method
        elif {"get_cam_weights", "get_cam_image"} & set(vars(cls)):
            cls.method_id = None

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        compute_input_gradient: bool = False,
        uses_gradients: bool = True,
        tta_transforms: Any = None,
        detach: bool = True,
        **options: Any,
    ) -> None:
        if not detach:
            raise OptionError(
                "detach=False is not defined here: arrays carry no graph; ShapleyCAM needs none, and a method of your "
                "own gets second derivatives as the signal `curvature` (see hf_cam.methods.method)"
            )
        if not isinstance(target_layers, Sequence | nn.ModuleList):
            raise OptionError(
                f"target_layers must be a list of modules, got {type(target_layers).__name__}; write [layer] for one, "
                "or list(layers) for the modules in it"
            )
        if not len(target_layers) and (self.method_id is None or "activations" in get_method(self.method_id).needs):
            raise LayerError("target_layers is empty; pass a list of modules, such as [model.layer4[-1]]")
        self.model, self.target_layers, self.reshape_transform = model, list(target_layers), reshape_transform
        self.compute_input_gradient, self.uses_gradients = compute_input_gradient, uses_gradients
        self.tta_transforms, self.detach, self.outputs = tta_transforms, detach, None
        self.activations_and_grads = ActivationsAndGradients(model, self.target_layers, reshape_transform)
        self._options = options
        self._reshape = Reshaping(reshape_transform) if reshape_transform is not None else None
        self._engine, self._engine_batch, self._layered = self._made_engine(), self.batch_size, False
        self._maps: Sequence[Tensor] = ()
        self._kept: list[Tensor] = []

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    @property
    def _htcore(self) -> Any:
        """Habana's module, whose `mark_step` runs what an HPU has queued; None on any other device."""
        return importlib.import_module("habana_frameworks.torch.core") if self.device.type == "hpu" else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget the last activations; exceptions pass, IndexError among them."""
        self.activations_and_grads.release()

    def __call__(
        self, input_tensor: Tensor, targets: Targets = None, aug_smooth: bool = False, eigen_smooth: bool = False
    ) -> Array:
        """Maps `[B, H, W]` in [0, 1].

        Args:
            input_tensor: `[B, C, H, W]`, preprocessed as the model expects; volumes are `[B, C, D, H, W]`.
            targets: One callable per image, from its output to a scalar; None for each image's top class.
            aug_smooth: Average over several views.
            eigen_smooth: First principal component of the channels' contributions in place of their sum.

        Raises:
            OptionError: `input_tensor` is no batch of floating images.
            TargetError: the number of targets is not the number of images.
        """
        smooth = self.forward_augmentation_smoothing if aug_smooth else self.forward
        return smooth(input_tensor, targets, eigen_smooth)

    def forward(self, input_tensor: Tensor, targets: Targets = None, eigen_smooth: bool = False) -> Array:
        """The maps of one forward, without views."""
        input_tensor, column = self._run(input_tensor, listed(targets), eigen_smooth)
        return self.aggregate_multi_layers(self.compute_cam_per_layer(input_tensor, column, eigen_smooth))

    def forward_augmentation_smoothing(
        self, input_tensor: Tensor, targets: Targets = None, eigen_smooth: bool = False
    ) -> Array:
        """The mean of the maps of several views, each turned back."""
        maps = [
            back(torch.from_numpy(self.forward(view, targets, eigen_smooth))[:, None])[:, 0]
            for view, back in self._views(checked_pixels(input_tensor, {}, "input_tensor"))
        ]
        return torch.stack(maps).mean(0).float().numpy()

    def compute_cam_per_layer(self, input_tensor: Tensor, targets: Sequence[Target], eigen_smooth: bool) -> list[Array]:
        """One array `[B, 1, H, W]` per layer, each in [0, 1]."""
        size, record = self.get_target_width_height(input_tensor), self.activations_and_grads
        if self.method_id is not None and record.activations is self._kept:
            found = [maps.cpu().numpy() for maps in self._maps]
        else:
            found = [
                self._image(input_tensor, index, targets, eigen_smooth) for index in range(len(self.target_layers))
            ]
        return [scale_cam_image(np.maximum(maps, 0), size)[:, None] for maps in found]

    def _image(self, input_tensor: Tensor, index: int, targets: Sequence[Target], eigen_smooth: bool) -> Array:
        """`get_cam_image` of one layer, from what the last run kept of it."""
        record = self.activations_and_grads
        activations = record.activations[index].cpu().numpy()
        gradients = record.gradients[index].cpu().numpy() if record.gradients else None
        layer = self.target_layers[index]
        return self.get_cam_image(input_tensor, layer, targets, activations, gradients, eigen_smooth)

    def aggregate_multi_layers(self, cam_per_target_layer: Sequence[Array]) -> Array:
        """The mean of the layers' maps, scaled to [0, 1]."""
        return scale_cam_image(np.maximum(np.concatenate(cam_per_target_layer, axis=1), 0).mean(1))

    def get_target_width_height(self, input_tensor: Tensor) -> tuple[int, ...]:
        """`(W, H)` of the pictures, or `(W, H, D)` of the volumes."""
        return tuple(reversed(input_tensor.shape[2:]))

    def get_cam_weights(
        self, input_tensor: Tensor, target_layer: nn.Module, targets: Any, activations: Array, grads: Array | None
    ) -> Array:
        """`[B, C]`: the weight of each channel; a subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} defines no get_cam_weights")

    def get_cam_image(
        self,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: Any,
        activations: Array,
        grads: Array | None,
        eigen_smooth: bool = False,
    ) -> Array:
        """`[B, h, w]`: the map of one layer before any scaling; by default the channels times their weights."""
        if self.formula is not None and type(self).get_cam_weights is BaseCAM.get_cam_weights:
            given = {"activations": activations, "gradients": grads}
            tensors: dict[str, Any] = {
                name: torch.as_tensor(value) for name, value in given.items() if value is not None
            }
            return get_method(self.formula).map(eigen_smooth=eigen_smooth, **tensors, **self._options).cpu().numpy()
        weights = np.asarray(self.get_cam_weights(input_tensor, target_layer, targets, activations, grads))
        weighted = weights.reshape(*weights.shape, *[1] * (activations.ndim - 2)) * activations
        return get_2d_projection(weighted) if eigen_smooth else weighted.sum(axis=1)

    def maps_of_layers(
        self, input_tensor: Tensor, targets: Targets | Callable[[Any], Sequence[Target]], eigen_smooth: bool
    ) -> list[Array]:
        """`compute_cam_per_layer` of a forward whose targets may be chosen from its output."""
        input_tensor, column = self._run(input_tensor, targets, eigen_smooth)
        return self.compute_cam_per_layer(input_tensor, column, eigen_smooth)

    def _run(
        self, input_tensor: Tensor, targets: Targets | Callable[[Any], Sequence[Target]], eigen_smooth: bool
    ) -> tuple[Tensor, Sequence[Target]]:
        """Run the model, keep what `compute_cam_per_layer` reads, and return the input and one target per image."""
        input_tensor = checked_pixels(input_tensor, {}, "input_tensor").detach().to(self.device)
        if self._engine_batch != self.batch_size:  # it was set after the engine was made
            self._engine, self._engine_batch = self._made_engine(), self.batch_size
        kept: list[Mapping[str, Any]] = []
        method = _keeping(self._method(), kept)
        columns: list[Sequence[Target]] = []

        def select(outputs: Any) -> list[Sequence[Target]]:
            columns.append(_column(outputs, targets, len(input_tensor), ignored=self._ignores_target()))
            return [columns[-1]]

        request = Request(eigen_smooth=eigen_smooth and self.method_id is not None)
        saliency = self._saliency(method, input_tensor, select, request)
        self.outputs, self._maps = saliency.outputs, [raw[0] for raw in saliency.raw]
        self._keep(kept[-len(self._maps) :])
        if self.compute_input_gradient and "pixel_gradients" in kept[-1]:
            input_tensor = input_tensor.requires_grad_()
            input_tensor.grad = kept[-1]["pixel_gradients"].to(input_tensor)
        return input_tensor, columns[-1]

    def _saliency(
        self, method: Method, pixels: Tensor, select: Callable[[Any], list[Sequence[Target]]], request: Request
    ) -> Saliency:
        """The engine's record; of a layer that returns a dictionary, from its levels."""
        if not self._layered:
            try:
                return self._engine.saliencies([method], pixels, select, request).found[0]
            except HFCamError:
                reshape = self._reshape
                if reshape is None or not reshape.failed or not levels_of(self.model, self.target_layers, pixels):
                    raise
                self._layered = True
        assert self._reshape is not None
        return saliency_of_levels(
            self.model,
            self.target_layers,
            self._reshape,
            method,
            pixels,
            select,
            request,
            self.batch_size,
            self._ablated,
        )

    def _ablated(self, activations: Array) -> Array:
        """The channels of one image, `[C, h, w]`, that a method which ablates them runs without."""
        return np.arange(len(activations))

    def _method(self) -> Method:
        """The record to run: the built-in one, or one that only asks for what a subclass of the caller's reads."""
        if self.method_id is not None:
            return get_method(self.method_id)
        reads: Callable[..., Tensor] = _reads_nothing_else if self.uses_gradients else _reads_activations
        reads = _reads_pixels if self.compute_input_gradient and self.uses_gradients else reads
        return replace(get_method("gradcam"), contributions=reads)

    def _ignores_target(self) -> bool:
        return self.method_id is not None and get_method(self.method_id).ignores_target

    def _made_engine(self) -> CAM:
        layers = self.target_layers or _some_layer(self.model)
        method_id, size = self.method_id or "gradcam", self.batch_size
        return CAM(self.model, method_id, layers, self._reshape, rerun_batch_size=size, **self._options)

    def _keep(self, kept: Sequence[Mapping[str, Any]]) -> None:
        record = self.activations_and_grads
        # A subclass may run the model by itself, which puts another list there: the maps are then of another run.
        record.activations = self._kept = [given["activations"] for given in kept if "activations" in given]
        record.gradients = [given["gradients"] for given in kept if "gradients" in given]

    def _views(self, pixels: Tensor) -> list[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """Each view of the pictures, and what turns its maps back."""
        if self.tta_transforms is not None:
            return [(one.augment_image(pixels), one.deaugment_mask) for one in self.tta_transforms]
        sides = ((pixels, lambda maps: maps), (pixels.flip(-1), lambda maps: maps.flip(-1)))
        return [(side * factor, back) for side, back in sides for factor in (0.9, 1.0, 1.1)]


def listed(targets: Any) -> list[Target] | None:
    """A caller's targets as a list; None where none are given.

    Raises:
        TargetError: they are a single one, or no targets at all.
    """
    if targets is None:
        return None
    try:
        found = None if callable(targets) else list(targets)
    except TypeError:
        found = None
    if found is None:
        raise TargetError(f"targets must be a list with one per image, such as [target], got {brief(targets)}")
    return found


def _keeping(method: Method, kept: list[Mapping[str, Any]]) -> Method:
    """The same method, which also adds the signals that it gets, layer by layer, to a list."""

    @wraps(method.contributions)
    def contributions(**given: Any) -> Tensor:
        kept.append(given)
        return method.contributions(**given)

    return replace(method, contributions=contributions)


def _reads_nothing_else(activations: Tensor, gradients: Tensor) -> Tensor:
    return torch.zeros_like(activations[:, :1]) * gradients[:, :1]


def _reads_activations(activations: Tensor) -> Tensor:
    return torch.zeros_like(activations[:, :1])


def _reads_pixels(activations: Tensor, gradients: Tensor, pixel_gradients: Tensor) -> Tensor:
    return torch.zeros_like(activations[:, :1]) * gradients[:, :1] * pixel_gradients.sum() * 0


def _column(
    outputs: Any, targets: Targets | Callable[[Any], Sequence[Target]], images: int, *, ignored: bool
) -> Sequence[Target]:
    """One target per image; the top classes where none are given, and a constant where the method reads none.

    Raises:
        TargetError: there are more or fewer targets than images.
    """
    if callable(targets):
        targets = targets(outputs)
    if targets is not None and len(targets) != images:
        raise TargetError(
            f"{len(targets)} target{'s' * (len(targets) != 1)} for {images} image{'s' * (images != 1)}: "
            "targets= takes one per image (grad-cam explains the first images alone)"
        )
    if ignored:
        return [_constant] * images
    if targets is None:
        return [ClassifierOutputTarget(index) for index in class_logits(outputs).argmax(-1).tolist()]
    return list(targets)


def _constant(output: Any) -> Tensor:
    del output
    return torch.zeros(())


def _some_layer(model: nn.Module) -> list[nn.Module]:
    """Any layer, for a method that reads none.

    Raises:
        LayerError: the model has no layer with a bias.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and module.bias is not None:
            return [module]
    raise LayerError("target_layers names no layer, and the model has none with a bias")


class OfOtherMaps:
    """What runs another method and works on its maps; a context manager as that method is."""

    base_cam: BaseCAM

    def forward(self, *args: Any, **kwargs: Any) -> Array:
        """Maps `[B, H, W]` in [0, 1]."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget the last activations."""
        self.base_cam.__exit__(kind, error, trace)

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        """See `forward`."""
        return self.forward(*args, **kwargs)
