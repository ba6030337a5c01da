"""One method on one model: tensors in, maps out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from hf_cam.capture.biases import BiasWatch
from hf_cam.capture.capture import capture
from hf_cam.capture.inputs import model_inputs_of, one_image, picture_size
from hf_cam.capture.recorder import recording
from hf_cam.errors import (
    DetachedError,
    HFCamError,
    LayerError,
    LayoutError,
    MethodError,
    NoGradientError,
    OptionError,
    TargetError,
)
from hf_cam.images.patches import CutPictures, are_cut
from hf_cam.methods import Method, get_method
from hf_cam.methods.registry import same_target
from hf_cam.methods.run import SECOND_ORDER, WHOLE_MODEL, Run, twice_differentiable
from hf_cam.models.traits import traits_of, unwrap
from hf_cam.outputs import class_logits, map_tensors, sample_of
from hf_cam.target_layers.adapter import Adapter, union
from hf_cam.target_layers.infer import declared_adapter, example_inputs, infer_adapter, probed_adapter
from hf_cam.target_layers.stages import target_layers
from hf_cam.targets import Target, as_target

Selector = Callable[[Any], Sequence[Sequence[Target]]]
"""From a batch's output to columns of targets: K columns of one target an image."""

MASKED = "masked_scores"
AUG_FACTORS = (1.0, 0.9, 1.1)


@dataclass(frozen=True)
class Saliency:
    """The maps of a batch of B images for K targets each.

    Args:
        maps: `[K, B, H, W]` in [0, 1], as large as the model's input.
        raw: One `[K, B, h, w]` a layer, on the layer's grid, before any normalisation.
        scores: `[K, B]`, the targets' values.
        outputs: The model's own output for the B images.
        adapter: Where the maps come from.
        method: What made them.
    """

    maps: Tensor
    raw: tuple[Tensor, ...]
    scores: Tensor
    outputs: Any
    adapter: Adapter
    method: Method


class CAM:
    """A class activation map of any registered method, on an unmodified model.

    Args:
        model: Any vision model; it comes back untouched from every call.
        method: An id of `hf_cam.list_methods()`, or "auto" for the one that serves the model's family best.
        layers: Dotted names of the target layers, inferred where not given; several are averaged.
        reshape: `activation -> [B, C, h, w]`, inferred where not given.
        batch_size: Forwards at once for methods that rerun the model; chosen for the device where not given.
        options: Of the method, such as `seed` for "randomcam".

    Raises:
        MethodError, OptionError, LayerError: before the model is touched.

    >>> import torch
    >>> from transformers import ResNetConfig, ResNetForImageClassification
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    >>> model = ResNetForImageClassification(config).eval()
    >>> with CAM(model, method="layercam") as cam:
    ...     cam(torch.rand(1, 3, 64, 96)).shape
    torch.Size([1, 64, 96])
    """

    def __init__(
        self,
        model: nn.Module,
        method: str = "gradcam",
        layers: Sequence[str] | str | None = None,
        reshape: Callable[[Tensor], Tensor] | None = None,
        *,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise OptionError(f"model must be a torch module, got {type(model).__name__}; hf_cam.explain takes names")
        self.model = model
        self.outputs: Any = None
        self._layers, self._reshape, self._batch_size = layers, reshape, batch_size
        # None where only a run can tell: then the first batch is the probe's picture.
        self._adapter = declared_adapter(model, layers=layers, reshape=reshape)
        self._looked: dict[tuple[str, Adapter], Adapter] = {}
        self._auto = method == "auto"
        declared = self._adapter.method if self._adapter else "gradcam"
        self.method = get_method(declared if self._auto else method)
        self.method.check_options(options)
        self.options = options

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the last output; hooks never outlive a call."""
        self.outputs = None

    def __call__(
        self,
        pixel_values: Tensor,
        targets: Sequence[int | Target] | int | Target | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        **model_inputs: Any,
    ) -> Tensor:
        """Maps of a batch.

        Args:
            pixel_values: `[B, C, H, W]`, preprocessed as the model expects; volumes are `[B, C, D, H, W]`.
            targets: One class index or callable an image (a lone one serves all); None explains each image's
                top class. A callable gets one sample's output and returns a scalar tensor.
            aug_smooth: Average over six views, {plain, mirrored} x {1, 0.9, 1.1}, in one batch.
            eigen_smooth: First principal component of the channels' contributions in place of their sum.
            model_inputs: Whatever else the forward takes.

        Returns:
            `[B, H, W]` in [0, 1], on the model's device, `[B, D, H, W]` for volumes. A map without evidence is all
            zeros.

        Raises:
            TargetError: the number of targets differs from the number of images, or one does not fit the head.
            LayoutError, NoGradientError, LayerError: the target layer does not serve; a better one is named.
        """
        saliency = self.saliency(
            pixel_values,
            selector_of(targets, len(_checked(pixel_values, model_inputs))),
            aug_smooth=aug_smooth,
            eigen_smooth=eigen_smooth,
            **model_inputs,
        )
        self.outputs = saliency.outputs
        return saliency.maps[0]

    def saliency(
        self,
        pixel_values: Tensor,
        select: Selector,
        *,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        **model_inputs: Any,
    ) -> Saliency:
        """Maps for several targets an image from one forward; `select` chooses them from the model's output."""
        [found] = self.saliencies(
            [self.method], pixel_values, select, aug_smooth=aug_smooth, eigen_smooth=eigen_smooth, **model_inputs
        )
        return found

    def saliencies(
        self,
        methods: Sequence[Method],
        pixel_values: Tensor,
        select: Selector,
        *,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        **model_inputs: Any,
    ) -> list[Saliency]:
        """Maps of several methods and several targets an image, all from one forward; one record a method."""
        _checked(pixel_values, model_inputs)
        run = partial(self._saliencies, methods, pixel_values, select, aug_smooth, eigen_smooth, model_inputs)
        try:
            return run()
        except (LayoutError, NoGradientError, DetachedError, LayerError) as error:
            # timm's metadata names stages, not layouts: where it misleads, the structure tells.
            claimed = self._adapter
            if claimed is None or claimed.origin != "timm":
                raise
            try:
                inputs = model_inputs_of(self.model, pixel_values, model_inputs)
                self._adapter = probed_adapter(self.model, one_image(inputs, 0))
                return run()
            except HFCamError:
                self._adapter = claimed
                raise error from None

    def _saliencies(
        self,
        methods: Sequence[Method],
        pixel_values: Tensor,
        select: Selector,
        aug_smooth: bool,
        eigen_smooth: bool,
        model_inputs: Mapping[str, Any],
    ) -> list[Saliency]:
        batch = len(pixel_values)
        inputs = model_inputs_of(self.model, pixel_values, model_inputs)
        if are_cut(inputs):
            _check_takes_patches(methods)
        size = picture_size(inputs) if are_cut(inputs) else _space(self.model, pixel_values)
        adapters = [self._looks(method, inputs) for method in methods]
        adapter = union(adapters)
        views = len(AUG_FACTORS) * 2 if aug_smooth else 1
        if aug_smooth:
            inputs = _augmented(inputs, batch)
        needed = {name for method in methods for name in method.needs}
        second_order = SECOND_ORDER in needed
        biases = BiasWatch(unwrap(self.model)) if WHOLE_MODEL in needed else None
        if biases:
            inputs = {**inputs, "pixel_values": inputs["pixel_values"].detach().requires_grad_()}
        with (
            twice_differentiable(second_order),
            capture(
                self.model,
                adapter.layers,
                inputs,
                gradients=not needed.isdisjoint(("gradients", WHOLE_MODEL)),
                second_order=second_order,
                hooks=biases.hooks if biases else None,
                watch=recording if any(method.needs_attention for method in methods) else None,
            ) as captured,
        ):
            clean = sample_of(captured.outputs, slice(0, batch), batch * views)
            columns = [_column(column, batch) * views for column in select(clean)]
            if not columns:
                raise TargetError("no target was selected for these images")
            runs = [
                Run(self.model, inputs, captured, adapter, column, size, second_order, self._batch_size, biases)
                for column in columns
            ]
            found = [
                [self._raw_maps(method, own.layers, run, eigen_smooth) for run in runs]
                for method, own in zip(methods, adapters, strict=True)
            ]
            scores = torch.stack([run.scores.detach()[:batch] for run in runs])
        outputs, records = map_tensors(clean, Tensor.detach), []
        for method, own, by_target in zip(methods, adapters, found, strict=True):
            raw = tuple(torch.stack(layer) for layer in zip(*by_target, strict=True))
            raw = tuple(_unaugmented(maps, batch) if aug_smooth else maps for maps in raw)
            records.append(Saliency(method.fuse(raw, size), raw, scores, outputs, own, method))
        return records

    def _raw_maps(self, method: Method, layers: Sequence[str], run: Run, eigen_smooth: bool) -> list[Tensor]:
        """One raw map `[B, h, w]` a layer."""
        options = {name: value for name, value in self.options.items() if name in method.options}
        if method.retarget is not same_target:
            run = replace(run, targets=method.targets(run.targets, **options))
        maps = []
        for layer in layers:
            try:
                evidence = run.collect(method.needs, layer)
            except (LayoutError, NoGradientError) as error:
                raise type(error)(f"{error}{self._better_layer(run.adapter)}") from error
            maps.append(method.map(eigen_smooth=eigen_smooth, **evidence, **options))
        return maps

    def _better_layer(self, adapter: Adapter) -> str:
        """The end of an error message that names the layer to use, where one is known."""
        try:
            known = declared_adapter(self.model) or infer_adapter(self.model)
        except (HFCamError, RuntimeError):
            return ""
        if known.layers == adapter.layers:
            return ""
        return f". Use layers={list(known.layers)!r} ({known.reason or known.origin})"

    def _resolve_adapter(self, inputs: Mapping[str, Any]) -> Adapter:
        if self._adapter is None:
            self._adapter = infer_adapter(
                self.model, layers=self._layers, reshape=self._reshape, inputs=one_image(inputs, 0)
            )
            if self._auto:
                self.method = get_method(self._adapter.method)
        return self._adapter

    def _looks(self, method: Method, inputs: Mapping[str, Any]) -> Adapter:
        """Where a method looks: at the caller's layers, or else at those that it asks for."""
        adapter = self._resolve_adapter(inputs)
        if adapter.origin == "caller":
            return adapter
        if (method.id, adapter) not in self._looked:
            self._looked[method.id, adapter] = method.layers(self.model, adapter, one_image(inputs, 0))
        return self._looked[method.id, adapter]

    def adapter_for(self, pixel_values: Tensor, model_inputs: Mapping[str, Any]) -> Adapter:
        """Where this CAM looks in these pictures."""
        return self._looks(self.method, model_inputs_of(self.model, _checked(pixel_values, model_inputs), model_inputs))

    @property
    def adapter(self) -> Adapter:
        """Where this CAM looks (found with a picture of noise, where only a run can tell and none has happened)."""
        if self._adapter is not None and self.method.layers is target_layers:
            return self._adapter
        return self._looks(self.method, example_inputs(self.model))


def selector_of(targets: Any, batch: int) -> Selector:
    """A selector of the caller's targets, checked before the model runs; of each image's top class where None.

    Raises:
        TargetError: their number differs from that of the images.
    """
    if targets is None:
        return top_classes(1)
    column = _column(targets, batch)
    return lambda _: [column]


def top_classes(count: int) -> Selector:
    """A selector of each image's `count` highest logits."""

    def select(outputs: Any) -> list[list[Target]]:
        logits = class_logits(outputs)
        best = logits.detach().topk(min(count, logits.shape[1]), dim=1).indices
        return [[as_target(index) for index in column] for column in best.T.tolist()]

    return select


def _checked(pixel_values: Any, others: Mapping[str, Any]) -> Tensor:
    axes = 3 if are_cut(others) else 4  # pictures that come cut into patches, [B, N, patch]
    if not isinstance(pixel_values, Tensor) or pixel_values.ndim < axes or not pixel_values.is_floating_point():
        got = tuple(pixel_values.shape) if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
        raise OptionError(f"pixel_values must be a floating tensor [B, C, H, W], got {got}")
    if len(pixel_values) == 0:
        raise OptionError("pixel_values holds no image")
    return pixel_values


def _space(model: nn.Module, pixel_values: Tensor) -> tuple[int, ...]:
    """What a map is enlarged to: `(H, W)` of pictures `[B, C, H, W]`, `(D, H, W)` of volumes `[B, C, D, H, W]`.

    The videos of transformers are `[B, D, C, H, W]`.
    """
    *_, height, width = pixel_values.shape
    if pixel_values.ndim == 4:
        return height, width
    return pixel_values.shape[1 if traits_of(model).config is not None else 2], height, width


def _column(targets: Any, batch: int) -> list[Target]:
    """One target an image."""
    if getattr(targets, "ndim", 0) == 1:  # a tensor's or an array's
        targets = targets.tolist()
    if not isinstance(targets, list | tuple):
        return [as_target(targets)] * batch
    if len(targets) != batch:
        raise TargetError(f"{len(targets)} targets for {batch} images; give one an image")
    return [as_target(target) for target in targets]


def _augmented(inputs: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """Six views of each image, view by view; the first is the image itself."""
    pixels = inputs["pixel_values"]
    views = [side * factor for side in (pixels, _mirrored(inputs)) for factor in AUG_FACTORS]
    others = {
        name: torch.cat([value] * len(views)) if isinstance(value, Tensor) and value.shape[:1] == (batch,) else value
        for name, value in inputs.items()
    }
    return {**others, "pixel_values": torch.cat(views)}


def _check_takes_patches(methods: Sequence[Method]) -> None:
    for method in methods:
        if not {WHOLE_MODEL, MASKED}.isdisjoint(method.needs):
            raise MethodError(
                f"{method.id!r} works on pixels, and this model gets its pictures cut into patches; 'gradcam' does not"
            )


def _mirrored(inputs: Mapping[str, Any]) -> Tensor:
    """The pictures, left and right exchanged; of those that come cut, the patches of a row and the pixels in each."""
    pixels: Tensor = inputs["pixel_values"]
    return CutPictures.of(inputs).mirrored() if are_cut(inputs) else pixels.flip(-1)


def _unaugmented(maps: Tensor, batch: int) -> Tensor:
    """The mean over the views of `[K, views * B, h, w]`, mirrored ones turned back."""
    views = maps.unflatten(1, (2, len(AUG_FACTORS), batch))
    return torch.stack([views[:, 0], views[:, 1].flip(-1)], 1).flatten(1, 2).mean(1)
