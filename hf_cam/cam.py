"""One method on one model: tensors in, maps out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from hf_cam.capture.guard import connected
from hf_cam.capture.inputs import model_inputs_of, noise_like, one_image, picture_of, picture_size
from hf_cam.capture.quantized import gradient_stop
from hf_cam.doors import blaming, door, meant_by, unreadable
from hf_cam.errors import (
    DetachedError,
    HFCamError,
    LayerError,
    LayoutError,
    MethodError,
    ModelError,
    NoGradientError,
    OptionError,
    TargetError,
    UnknownArchitecture,
)
from hf_cam.heads.selection import Selector, selection
from hf_cam.images.patches import CutPictures, are_cut
from hf_cam.layouts import FOLDED, VIDEO, Layout
from hf_cam.methods import Method, get_method
from hf_cam.methods.captured import Captured
from hf_cam.methods.registry import OF_CALL, OF_CLASS, same_target
from hf_cam.methods.run import Run
from hf_cam.methods.signals import captured_for
from hf_cam.models.libraries import adopted, library_layers
from hf_cam.models.traits import traits_of
from hf_cam.outputs import class_logits, map_tensors, sample_of
from hf_cam.request import Request, check_count
from hf_cam.target_layers.adapter import Adapter, union
from hf_cam.target_layers.infer import declared_adapter, example_inputs, infer_adapter, probed_adapter, settle
from hf_cam.target_layers.named import Layers
from hf_cam.target_layers.stages import target_layers
from hf_cam.targets import Target, as_target

UNDEFINED = (MethodError, LayoutError, NoGradientError)
"""Errors of a method that is not defined for a model, a picture or a target."""

AUG_FACTORS = (1.0, 0.9, 1.1)


@dataclass(frozen=True)
class Saliency:
    """The maps of a batch of B images for K targets each.

    Args:
        maps: `[K, B, H, W]` in [0, 1], or in [-1, 1] if they are signed; as large as the model's input.
        raw: One `[K, B, h, w]` per layer, on the layer's grid, before any normalization; negative where a cell speaks
            against the target.
        scores: `[K, B]`, the targets' values.
        outputs: The model's own output for the B images.
        adapter: Where the maps come from.
        method: What made them.
        captured: What the target layers returned, and the first target's gradients there.
    """

    maps: Tensor
    raw: tuple[Tensor, ...]
    scores: Tensor
    outputs: Any
    adapter: Adapter
    method: Method
    captured: Captured | None = None


@dataclass(frozen=True)
class Saliencies:
    """The maps of several methods from one forward; iterating yields the record of each method.

    Args:
        found: One record per method that is defined.
        skipped: The ids of the other methods, each with the reason.
    """

    found: tuple[Saliency, ...]
    skipped: Mapping[str, str]

    def __iter__(self) -> Iterator[Saliency]:
        return iter(self.found)


class CAM:
    """A class activation map of any registered method, on an unmodified model.

    Args:
        model: Any vision model; it comes back untouched from every call.
        method: An id of `hf_cam.list_methods()`, or "auto" for the one that serves the model's family best.
        layers: The target layers, as dotted names or modules, inferred where not given; several are averaged. If a
            layer runs several times in one forward (tied weights, siamese and recurrent nets), `layers="block:0"` names
            its first run and `"block:1"` its second; without a number, the run that alone depends on the picture.
        reshape: `activation -> [B, C, h, w]`, inferred where not given.
        rerun_batch_size: Variants of an image per forward, for methods that rerun the model; chosen for the device
            where not given.
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

    @door()
    def __init__(
        self,
        model: nn.Module,
        method: str = "gradcam",
        layers: Layers | None = None,
        reshape: Callable[[Tensor], Tensor] | None = None,
        *,
        rerun_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        if rerun_batch_size is not None:
            check_count("rerun_batch_size", rerun_batch_size)
        if not isinstance(model, nn.Module):
            raise OptionError(f"model must be a torch module, got {type(model).__name__}; hf_cam.explain takes names")
        self.model = adopted(model)
        self.outputs: Any = None
        self.captured: Captured | None = None
        layers = library_layers(self.model) if layers is None else layers
        self._layers, self._reshape, self._rerun_batch_size = layers, reshape, rerun_batch_size
        # None where only a run can tell: then the first batch is the probe's picture.
        self._adapter = declared_adapter(self.model, layers=layers, reshape=reshape)
        self._settled = layers is None
        self._looked: dict[tuple[str, Adapter], Adapter] = {}
        self._known: dict[str, Any] = {}  # what was established about the model's output
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
        """Drop the last output and what was captured; hooks never outlive a call."""
        self.outputs = self.captured = None

    @door()
    def __call__(
        self,
        pixel_values: Tensor | None = None,
        targets: Any = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        signed: bool = False,
        differentiable: bool = False,
        **model_inputs: Any,
    ) -> Tensor:
        """Maps of a batch.

        The model's output is `outputs` afterwards, and what the target layers returned is `captured`, until the next
        call or the end of a `with` block.

        Args:
            pixel_values: `[B, C, H, W]`, preprocessed as the model expects; volumes are `[B, C, D, H, W]`. The picture
                may also be passed under the forward's own name for it.
            targets: A class index, a label, a callable from one sample's output to a scalar tensor, or what the model's
                head takes otherwise, such as a pixel `(x, y)` of the model's input; a list has one entry per image.
                None explains what the model itself finds first in each image: its top class, surest object, largest
                segment, best prompt, nearest region, its answer, or the length of its embedding.
            aug_smooth: Average over six views, {plain, mirrored} x {1, 0.9, 1.1}, in one batch.
            eigen_smooth: First principal component of the channels' contributions in place of their sum.
            signed: Also show what speaks against the target: maps in [-1, 1].
            differentiable: Keep the maps, `outputs` and `captured` in the graph, so that a loss of the maps trains the
                model (and `pixel_values`, if they require grad). The forward still runs in evaluation mode, and only
                the caller's own `backward()` writes to `.grad`.
            model_inputs: Whatever else the forward takes.

        Returns:
            `[B, H, W]` in [0, 1], on the model's device, `[B, D, H, W]` for volumes. A map without evidence is all
            zeros.

        Raises:
            TargetError: the number of targets differs from the number of images, or one does not fit the head.
            LayoutError, NoGradientError, LayerError: the target layer does not serve; a better one is named.
            MethodError: the method has no signed map, or is not differentiable.
        """
        self.outputs = self.captured = None
        check_names(self.model, model_inputs, OF_CALL, self.method.options)
        pixel_values, model_inputs = picture_of(self.model, pixel_values, model_inputs)
        checked_pixels(pixel_values, model_inputs)
        chosen = selection(self.model, targets, {"pixel_values": pixel_values, **model_inputs}, self._known)
        settings = Request(aug_smooth=aug_smooth, eigen_smooth=eigen_smooth, signed=signed)
        if differentiable:
            _check_graph(self.model, pixel_values)
        with chosen.explaining():
            [saliency] = self.saliencies(
                [self.method], select=chosen.select, request=settings, differentiable=differentiable, **chosen.inputs
            )
        self.outputs, self.captured = saliency.outputs, saliency.captured
        return saliency.maps[0]

    def saliency(
        self,
        pixel_values: Tensor,
        select: Selector,
        request: Request | None = None,
        **model_inputs: Any,
    ) -> Saliency:
        """Maps for several targets per image from one forward; see `saliencies`."""
        [found] = self.saliencies([self.method], pixel_values, select, request, **model_inputs)
        return found

    @door()
    def saliencies(
        self,
        methods: Sequence[Method],
        pixel_values: Tensor,
        select: Selector,
        request: Request | None = None,
        *,
        skip_undefined: bool = False,
        differentiable: bool = False,
        **model_inputs: Any,
    ) -> Saliencies:
        """Maps of several methods and several targets per image, all from one forward.

        Args:
            methods: Their records.
            pixel_values, model_inputs: As in a call.
            select: Chooses the targets from the model's output.
            request: Smoothing and method options; `select` determines what is explained.
            skip_undefined: Skip methods that are not defined here instead of raising the first one's error.
            differentiable: Keep the maps in the caller's graph; see a call.

        Raises:
            MethodError: a method is not defined for the model, the pictures or the targets; with `skip_undefined`
                where none is.
            LayoutError, NoGradientError: the target layer does not serve.
            OptionError: a picture has values that are not finite.
        """
        check_finite(checked_pixels(pixel_values, model_inputs))
        wanted = request or Request()
        check_options(methods, wanted.method_options)
        make = partial(self._looked_twice, pixel_values, select, wanted, skip_undefined, differentiable, model_inputs)
        try:
            return make(methods)
        except LayerError as error:
            plain = [method for method in methods if method.layers is target_layers]
            if not skip_undefined or len(plain) in (0, len(methods)):
                raise
            # One of the layers that methods chose themselves does not serve, which concerns no other method.
            found = make(plain)
            return Saliencies(
                found.found, {**found.skipped, **{one.id: str(error) for one in methods if one not in plain}}
            )

    def _looked_twice(
        self,
        pixel_values: Tensor,
        select: Selector,
        request: Request,
        skip_undefined: bool,
        differentiable: bool,
        model_inputs: Mapping[str, Any],
        methods: Sequence[Method],
    ) -> Saliencies:
        """The maps; after an error that another look at the model may mend, with the layers that it finds."""
        run = partial(
            self._saliencies, methods, pixel_values, select, request, skip_undefined, differentiable, model_inputs
        )
        before = self._adapter if self._settled else None
        try:
            return run()
        except (LayoutError, NoGradientError, DetachedError, LayerError) as error:
            claimed, look = self._adapter, self._second_look(error, before)
            if look is None:
                raise
            try:
                self._adapter = look(model_inputs_of(self.model, pixel_values, model_inputs))
                return run()
            except HFCamError:
                self._adapter = claimed
                raise error from None

    def _second_look(self, error: HFCamError, before: Adapter | None) -> Callable[[Mapping[str, Any]], Adapter] | None:
        """How to look again after an error; None if there is nothing else to try."""
        claimed = self._adapter
        if claimed is not None and claimed.origin == "timm":
            # timm's metadata names stages, not layouts: where it misleads, the structure shows more.
            return self._probed
        # Found in the first pictures: beside others, a longer text for example, the same grid has other neighbours.
        if before is None or before != claimed or not isinstance(error, LayoutError):
            return None
        if claimed.origin == "probe":
            return self._probed
        return self._settle if self._layers is not None else None

    def _saliencies(
        self,
        methods: Sequence[Method],
        pixel_values: Tensor,
        select: Selector,
        request: Request,
        skip_undefined: bool,
        differentiable: bool,
        model_inputs: Mapping[str, Any],
    ) -> Saliencies:
        batch = len(pixel_values)
        inputs = model_inputs_of(self.model, pixel_values, model_inputs)
        size = picture_size(inputs) if are_cut(inputs) else _space(self.model, pixel_values)
        tried, skipped = self._places(methods, inputs, request, skip_undefined, differentiable)
        adapter = union([own for _, own in tried])
        views = len(AUG_FACTORS) * 2 if request.aug_smooth else 1
        if differentiable:  # the caller's own, which may require grad
            inputs["pixel_values"] = pixel_values.to(inputs["pixel_values"])
        if request.aug_smooth:
            inputs = _augmented(inputs, batch)
        made: list[tuple[Method, Adapter, list[list[Tensor]], Captured]] = []
        signals = [signal for method, _ in tried for signal in method.signals]
        with connected(differentiable), captured_for(signals, self.model, adapter.layers, inputs) as captured:
            clean = sample_of(captured.outputs, slice(0, batch), batch * views)
            columns = [_column(column, batch) * views for column in select(clean)]
            if not columns:
                raise TargetError("no target was selected for these images")
            runs = [
                Run(self.model, inputs, captured, adapter, column, size, self._rerun_batch_size) for column in columns
            ]
            for method, own in tried:
                try:
                    by_run = [self._raw_maps(method, own, run, request) for run in runs]
                    made.append((method, own, by_run, Captured.of(runs[0], method, own)))
                except UNDEFINED as error:
                    if not skip_undefined or self._blames_layer(error, method, own):
                        raise
                    skipped[method.id] = str(error)
            scores = torch.stack([run.scores.detach()[:batch] for run in runs])
        _check_any(made, skipped)
        outputs, records = clean if differentiable else map_tensors(clean, Tensor.detach), []
        for method, own, by_target, seen in made:
            raw = tuple(torch.stack(layer) for layer in zip(*by_target, strict=True))
            raw = tuple(_unaugmented(maps, batch) if request.aug_smooth else maps for maps in raw)
            shown = _enlarged(size, own, raw[0].shape[2:], len(runs[0].activation(own.layers[0])) // (batch * views))
            maps = method.fused(raw, shown, signed=request.signed)
            if differentiable and not maps.requires_grad:
                raise MethodError(f"{method.id!r} is not differentiable: its map leaves the graph on the way")
            records.append(Saliency(maps, raw, scores, outputs, own, method, seen))
        return Saliencies(tuple(records), skipped)

    def _places(
        self,
        methods: Sequence[Method],
        inputs: Mapping[str, Any],
        request: Request,
        skip_undefined: bool,
        differentiable: bool,
    ) -> tuple[list[tuple[Method, Adapter]], dict[str, str]]:
        """Each method with its target layers; and the ids of those that are not defined, with the reason."""
        differentiating = [method for method in methods if method.differentiates]
        stop = gradient_stop(self.model, inputs) if differentiating else ""
        if len(differentiating) < len(methods) or not stop:
            self._resolve_adapter(inputs)
        found, skipped = list[tuple[Method, Adapter]](), dict[str, str]()
        for method in methods:
            try:
                if request.signed:
                    method.check_signed(self._options_of(method, request))
                if differentiable:
                    method.check_differentiable()
                if stop and method.differentiates:
                    raise MethodError(_stopped_at(stop, method))
                own = self._looks(method, inputs)
                _check_works_on_pixels(method, own, inputs)
                found.append((method, own))
            except UNDEFINED as error:
                if not skip_undefined:
                    raise
                skipped[method.id] = str(error)
        _check_any(found, skipped)
        return found, skipped

    def _raw_maps(self, method: Method, own: Adapter, run: Run, request: Request) -> list[Tensor]:
        """One raw map `[B, h, w]` per layer."""
        options = self._options_of(method, request)
        if method.retarget is not same_target:
            run = replace(run, targets=method.targets(run.targets, **options))
        maps, known = [], dict[str, Any]()
        for layer in own.layers:
            try:
                own_ones = [signal for signal in method.signals if signal.name not in known]
                given = {**known, **{signal.name: signal.of(run, layer, options) for signal in own_ones}}
            except (LayoutError, NoGradientError) as error:
                raise type(error)(f"{error}{self._better_layer(own)}") from error
            known = {
                signal.name: given[signal.name] for signal in method.signals if not signal.depends_on_layer(options)
            }
            with blaming(f"the method {method.id!r}", MethodError):
                maps.append(method.map(eigen_smooth=request.eigen_smooth, signed=True, **given, **options))
        return maps

    def _options_of(self, method: Method, request: Request) -> dict[str, Any]:
        """Those of the options given here and in a request that a method has."""
        given = {**self.options, **request.method_options}
        return {name: value for name, value in given.items() if name in method.options}

    def _blames_layer(self, error: HFCamError, method: Method, own: Adapter) -> bool:
        """Whether an error is due to the target layer, so that it concerns every method that uses it."""
        return not isinstance(error, MethodError) and method.reads_layer and own == self._adapter

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
            self._adapter = self._probed(inputs)
            if self._auto:
                self.method = get_method(self._adapter.method)
        if not self._settled:
            try:
                self._adapter, self._settled = self._settle(inputs), True
            except ModelError:
                return self._adapter  # the forward that follows raises the model's own error
        return self._adapter

    def _probed(self, inputs: Mapping[str, Any]) -> Adapter:
        """The adapter that the structure shows.

        It is found on noise of the pictures' size, so that it does not depend on the first picture; only if there is
        none, on that picture itself.
        """

        def look(given: Mapping[str, Any]) -> Adapter:
            return probed_adapter(self.model, given, self._reshape)

        try:
            return self._on_one_image(noise_like(inputs), look)
        except (ModelError, UnknownArchitecture):
            return self._on_one_image(inputs, look)

    def _settle(self, inputs: Mapping[str, Any]) -> Adapter:
        """The adapter of the caller's layers, as a run on these inputs shows it."""
        named = declared_adapter(self.model, layers=self._layers, reshape=self._reshape)
        assert named is not None
        return self._on_one_image(inputs, lambda given: settle(named, self.model, given))

    def _on_one_image(self, inputs: Mapping[str, Any], look: Callable[[Mapping[str, Any]], Adapter]) -> Adapter:
        """The adapter found in the first image, or in the whole batch if the model takes no single image."""
        try:
            return look(one_image(inputs, 0))
        except ModelError:
            if len(inputs["pixel_values"]) == 1:
                raise
            return look(inputs)

    def _looks(self, method: Method, inputs: Mapping[str, Any]) -> Adapter:
        """Where a method looks: at the caller's layers, or else at those that it asks for."""
        adapter = self._resolve_adapter(inputs)
        if adapter.origin == "caller":
            return adapter
        if (method.id, adapter) not in self._looked:
            self._looked[method.id, adapter] = method.layers(self.model, adapter, one_image(inputs, 0))
        return self._looked[method.id, adapter]

    @door()
    def adapter_for(self, pixel_values: Tensor, model_inputs: Mapping[str, Any]) -> Adapter:
        """Where this CAM looks in these pictures."""
        return self._looks(
            self.method, model_inputs_of(self.model, checked_pixels(pixel_values, model_inputs), model_inputs)
        )

    @property
    def adapter(self) -> Adapter:
        """Where this CAM looks (found with a picture of noise, where only a run can tell and none has happened)."""
        if self._adapter is not None and self.method.layers is target_layers:
            return self._adapter
        return self._looks(self.method, example_inputs(self.model))


def check_options(methods: Sequence[Method], options: Mapping[str, Any]) -> None:
    """Refuse options that none of the methods has, and values that do not fit.

    Raises:
        OptionError: naming the option and those that there are, or the value and what it must be.
    """
    known = {name for method in methods for name in method.options}
    for name in options:
        if name not in known:
            ids = ", ".join(repr(method.id) for method in methods[:3]) + (", ..." if len(methods) > 3 else "")
            listed = f"; known: {', '.join(sorted(known))}" if known else " or any other"
            raise OptionError(f"{ids} has no option {name!r}{listed}")
    for method in methods:
        method.check_options({name: value for name, value in options.items() if name in method.options})


def top_classes(count: int) -> Selector:
    """A selector of each image's `count` highest logits."""

    def select(outputs: Any) -> list[list[Target]]:
        logits = class_logits(outputs)
        best = logits.detach().topk(min(count, logits.shape[1]), dim=1).indices
        return [[as_target(index) for index in column] for column in best.T.tolist()]

    return select


def checked_pixels(pixel_values: Any, others: Mapping[str, Any], name: str = "pixel_values") -> Tensor:
    """The pictures of a call, checked.

    Args:
        pixel_values: What was given.
        others: The other inputs of the call.
        name: What the caller calls the pictures.

    Raises:
        OptionError: they are no floating tensor `[B, C, H, W]` with values, or there are none.
    """
    expected = f"{name} must be a floating tensor [B, C, H, W]"
    if not isinstance(pixel_values, Tensor):
        raise OptionError(f"{expected}, got {type(pixel_values).__name__}; hf_cam.explain takes images")
    if problem := unreadable(pixel_values):
        raise OptionError(f"{expected}, but this one {problem}")
    if not pixel_values.is_floating_point():
        raise OptionError(
            f"{expected}, got {pixel_values.dtype} of shape {tuple(pixel_values.shape)}; scale the values as the "
            "model's processor does, or pass the images to hf_cam.explain"
        )
    if pixel_values.ndim < (3 if are_cut(others) else 4):  # pictures that come cut into patches are [B, N, patch]
        raise OptionError(f"{expected}, got {tuple(pixel_values.shape)}; add the axis of the batch with [None]")
    if len(pixel_values) == 0:
        raise OptionError(f"{name} holds no image")
    return pixel_values


def check_finite(pixel_values: Tensor, name: str = "pixel_values") -> None:
    """Refuse pictures that hold NaN or infinity.

    Args:
        pixel_values: The pictures.
        name: What the caller calls them.

    Raises:
        OptionError: they do.
    """
    if not torch.stack(pixel_values.detach().aminmax()).isfinite().all():  # NaN propagates
        raise OptionError(f"{name} holds values that are not finite; pass torch.nan_to_num({name}), or leave them out")


def _check_graph(model: nn.Module, pixel_values: Tensor) -> None:
    """Refuse to keep a map in a graph that is not recorded.

    Raises:
        OptionError: gradients are switched off, or nothing requires grad.
    """
    if not torch.is_grad_enabled():
        raise OptionError("differentiable=True keeps the map in the graph, and torch.no_grad() records none; leave it")
    if not (pixel_values.requires_grad or any(parameter.requires_grad for parameter in model.parameters())):
        raise OptionError(
            "differentiable=True keeps the map in the graph, but no parameter of the model requires grad, nor does "
            "pixel_values"
        )


def check_names(model: nn.Module, others: Mapping[str, Any], known: Sequence[str], options: Iterable[str] = ()) -> None:
    """Refuse the names that other libraries give to arguments of a call, unless the model has such an input.

    Args:
        model: The model.
        others: What was passed beside the call's own arguments.
        known: The names of those.
        options: Of the method, which the class takes.

    Raises:
        OptionError: naming the argument that is meant.
    """
    for name in others:
        if (meant := meant_by(name, known, {"the class": (*OF_CLASS, *options)})) and not traits_of(model).accepts(
            name
        ):
            raise OptionError(f"the model takes no input {name!r}{meant}")


def _space(model: nn.Module, pixel_values: Tensor) -> tuple[int, ...]:
    """What a map is enlarged to: `(H, W)` of pictures `[B, C, H, W]`, `(D, H, W)` of volumes `[B, C, D, H, W]`.

    The videos of transformers are `[B, D, C, H, W]`.
    """
    *_, height, width = pixel_values.shape
    if pixel_values.ndim == 4:
        return height, width
    return pixel_values.shape[1 if traits_of(model).config is not None else 2], height, width


def _column(targets: Any, batch: int) -> list[Target]:
    """One target per image."""
    if getattr(targets, "ndim", 0) == 1:  # a tensor's or an array's
        targets = targets.tolist()
    if not isinstance(targets, list | tuple):
        return [as_target(targets)] * batch
    if len(targets) != batch:
        raise TargetError(f"{len(targets)} targets for {batch} images; give one per image")
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


def _stopped_at(stop: str, method: Method) -> str:
    return (
        f"{method.id!r} needs gradients, but the quantized part {stop} passes none or wrong ones; load the model "
        "without quantization, or choose 'eigencam', 'fem' or 'scorecam', which need none"
    )


def _enlarged(size: tuple[int, ...], own: Adapter, cells: Sequence[int], rows: int) -> tuple[int, ...]:
    """What maps of `cells` are enlarged to; views or slices that lie in the batch axis have a map each.

    Args:
        size: Of the input.
        own: The adapter.
        cells: The shape of a raw map.
        rows: How many rows of the layer's output belong to an image.
    """
    frames = tuple(cells[:-2])
    folded = any(isinstance(layout, Layout) and layout.axes in FOLDED for layout in own.layouts)
    if folded or (rows > 1 and frames == (rows,)):
        return (*frames, *size[-2:])
    return (*(size[:-2] if frames else ()), *size[-2:])


def _check_works_on_pixels(method: Method, own: Adapter, inputs: Mapping[str, Any]) -> None:
    """Refuse a method that works on the pixels of one picture where the input is none.

    Raises:
        MethodError: the pictures come cut into patches, or are the frames or views of one image.
    """
    if not method.works_on_pixels:
        return
    if are_cut(inputs):
        raise MethodError(
            f"{method.id!r} works on pixels, and this model gets its pictures cut into patches; 'gradcam' does not"
        )
    if any(isinstance(layout, Layout) and layout.axes in (*FOLDED, *VIDEO) for layout in own.layouts):
        raise MethodError(
            f"{method.id!r} works on the pixels of one picture, not of several frames or views; 'gradcam' does not"
        )


def _check_any(defined: Sequence[Any], skipped: Mapping[str, str]) -> None:
    if not defined:
        reasons = "; ".join(dict.fromkeys(skipped.values())) or "none is named"
        raise MethodError(f"no method is defined here: {reasons}")


def _mirrored(inputs: Mapping[str, Any]) -> Tensor:
    """The pictures, left and right exchanged; of those that come cut, the patches of a row and the pixels in each."""
    pixels: Tensor = inputs["pixel_values"]
    return CutPictures.of(inputs).mirrored() if are_cut(inputs) else pixels.flip(-1)


def _unaugmented(maps: Tensor, batch: int) -> Tensor:
    """The mean over the views of `[K, views * B, h, w]`, mirrored ones turned back."""
    views = maps.unflatten(1, (2, len(AUG_FACTORS), batch))
    return torch.stack([views[:, 0], views[:, 1].flip(-1)], 1).flatten(1, 2).mean(1)
