"""Signals, which are the arguments of methods: the function that computes each, its requirements and its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hf_cam.capture.biases import BiasedOutputs, biased_outputs
from hf_cam.capture.capture import Capture, Watch, capture
from hf_cam.capture.guard import is_connected, kept
from hf_cam.capture.replay import PrefixOf
from hf_cam.capture.routes import is_batch_first
from hf_cam.errors import DetachedError, LayoutError, MethodError, NoGradientError
from hf_cam.layouts import AnyLayout
from hf_cam.maps import at_least_float32, normalize, resize
from hf_cam.methods.options import picked, required_of
from hf_cam.methods.run import Run, vanishes_on_noise
from hf_cam.registry import Registry
from hf_cam.target_layers.pooled import NOT_POOLED, LinearCall, is_mean_of, linear_calls

Provider = TypeVar("Provider", bound=Callable[..., Any])


@dataclass(frozen=True)
class Signal:
    """An argument of methods, passed to each method with a parameter of this name.

    The cost is counted in forwards of the model in addition to the captured one, including backward passes, as measured
    on ViT-B/16 (docs/methods.md, docs/transformers.md).

    Args:
        name: Name of the parameter.
        meaning: A description with the shape, for the tables.
        provide: Computes it from a run and the name of a target layer: a tensor `[B, ...]` or a record. Its parameters
            with a default are options of every method that needs the signal.
        cost: What causes the cost, for the tables.
        gradients: Whether the part of the model behind the target layers is recorded and differentiated.
        second_order: Whether the gradients themselves are differentiated; implies `gradients`.
        pixels: Whether it works on the pixels of one picture, and so is not defined for pictures cut into patches or
            the frames of a video. With `gradients`, the picture itself requires grad.
        attention: Whether it is defined only where attention runs over all cells of one picture.
        ignores_target: Whether it is the same for every target.
        watch: A context manager around the captured forward; what it yields is `run.captured.watched[watch]`.
        replays: Whether it reruns the part behind the target layer; then `run.tail(layer)` is that part.
        forwards: Cost per target; a function of those options on which it depends.
        forwards_per_channel: Cost per target and channel of the target layer; likewise.
        connected: Whether it stays in the caller's graph where `differentiable=True` asks for that: it is made by
            differentiable operations alone, with `kept` in place of `detach`.
        layered: Whether it depends on the target layer; otherwise it is computed once for several. A function of those
            options on which that depends.
    """

    name: str
    meaning: str
    provide: Callable[..., Any] = field(repr=False)
    cost: str = ""
    gradients: bool = False
    second_order: bool = False
    pixels: bool = False
    attention: bool = False
    ignores_target: bool = False
    watch: Watch | None = field(default=None, repr=False)
    replays: bool = False
    forwards: float | Callable[..., float] = 0.0
    forwards_per_channel: float | Callable[..., float] = 0.0
    connected: bool = False
    layered: bool | Callable[..., bool] = True

    @property
    def id(self) -> str:
        """The name."""
        return self.name

    @property
    def source(self) -> Callable[..., Any]:
        """The function that computes it."""
        return self.provide

    @property
    def reruns(self) -> bool:
        """Whether the model, or the part behind the target layer, runs again for many variants."""
        return self.replays or bool(self.forwards_per_channel) or callable(self.forwards)

    def of(self, run: Run, layer: str, options: Mapping[str, Any]) -> Any:
        """The value for one target layer of a run, with those of the options that the signal has."""
        return self.provide(run, layer, **picked(options, self.provide))

    def depends_on_layer(self, options: Mapping[str, Any]) -> bool:
        """Whether the value differs between target layers, with those of the options that are given."""
        own = self.layered
        return own(**picked(options, own)) if callable(own) else own

    def price(self, channels: int, options: Mapping[str, Any]) -> float:
        """The cost on a layer of so many channels, with options that include every one of the signal's own."""

        def value(own: float | Callable[..., float]) -> float:
            return own(**{name: options[name] for name in required_of(own)}) if callable(own) else own

        return value(self.forwards) + channels * value(self.forwards_per_channel)


SIGNALS = Registry[Signal]("signal", MethodError, r"[a-z][a-z0-9_]*")


def signal(
    meaning: str,
    *,
    cost: str = "",
    gradients: bool = False,
    second_order: bool = False,
    pixels: bool = False,
    attention: bool = False,
    ignores_target: bool = False,
    watch: Watch | None = None,
    replays: bool = False,
    forwards: float | Callable[..., float] = 0.0,
    forwards_per_channel: float | Callable[..., float] = 0.0,
    connected: bool = False,
    layered: bool | Callable[..., bool] = True,
    replace: bool = False,
) -> Callable[[Provider], Provider]:
    """Register a function of `(run, layer)` as the signal of the same name; the function is returned unchanged.

    Args:
        meaning: What the signal is; see `Signal`, also for the arguments from `cost` to `layered`.
        replace: Also replace a signal of the same name that comes from elsewhere.

    >>> SIGNALS.get("curvature").second_order
    True
    """

    def add(provide: Provider) -> Provider:
        record = Signal(
            provide.__name__,
            meaning,
            provide,
            cost,
            gradients,
            second_order,
            pixels,
            attention,
            ignores_target,
            watch,
            replays,
            forwards,
            forwards_per_channel,
            connected,
            layered,
        )
        SIGNALS.add(record, replace)
        return provide

    return add


def captured_for(
    signals: Sequence[Signal], model: nn.Module, layers: Sequence[str], inputs: Mapping[str, Any]
) -> AbstractContextManager[Capture]:
    """The captured forward, recorded as far as these signals require."""
    if any(signal.pixels and signal.gradients for signal in signals):
        inputs = {**inputs, "pixel_values": _differentiated(inputs["pixel_values"])}
    return capture(
        model,
        layers,
        inputs,
        gradients=any(signal.gradients or signal.second_order for signal in signals),
        second_order=any(signal.second_order for signal in signals),
        watches=tuple(dict.fromkeys(signal.watch for signal in signals if signal.watch is not None)),
        storing=tuple(map(PrefixOf, layers)) if any(signal.replays for signal in signals) else (),
    )


def _differentiated(pixels: Tensor) -> Tensor:
    """The pictures, with respect to which the target is differentiated."""
    return pixels if is_connected() and pixels.requires_grad else pixels.detach().requires_grad_()


@signal(
    "the output of the target layer, `[B, C, h, w]`",
    cost="none beyond the captured forward",
    ignores_target=True,
    connected=True,
)
def activations(run: Run, layer: str) -> Tensor:
    """The output of the target layer, `[B, C, *space]`."""
    return run.to_spatial(run.activation(layer), layer)


@signal(
    "the target's gradient with respect to the activations, `[B, C, h, w]`",
    cost="a backward pass from the target to the target layer",
    gradients=True,
    forwards=0.1,
    connected=True,
)
def gradients(run: Run, layer: str) -> Tensor:
    """The gradient of the targets' sum with respect to the activations, `[B, C, *space]`.

    Raises:
        NoGradientError: it is zero on every cell of every image, and of pictures of noise as well. An image without
            evidence alone has a gradient of zeros, and so has one level of a pyramid.
    """
    spatial = run.to_spatial(run.gradient(layer), layer)
    if run.is_nonzero(spatial) or run.reaches_another_level(layer):
        return spatial
    if vanishes_on_noise(run, lambda other: other.to_spatial(other.gradient(layer), layer)):
        raise NoGradientError(f"the target's gradient is zero on every cell of {layer!r}: the target ignores them")
    return spatial


@signal(
    "the picture as the model gets it, `[B, C, H, W]`",
    cost="none",
    pixels=True,
    ignores_target=True,
    connected=True,
    layered=False,
)
def pixels(run: Run, layer: str) -> Tensor:
    """The pictures, `[B, C, *space]`, in the model's own units."""
    del layer
    return run.pixels


@signal(
    "the target's gradient with respect to the picture, `[B, C, H, W]`",
    cost="a backward pass through the whole model",
    gradients=True,
    pixels=True,
    layered=False,
    forwards=1.2,
    connected=True,
)
def pixel_gradients(run: Run, layer: str) -> Tensor:
    """The gradient of the targets' sum with respect to the pictures, `[B, C, *space]`.

    Raises:
        DetachedError: the targets do not depend on the pictures.
    """
    del layer
    score, pixels = run.scores.sum(), run.captured.pixels
    if pixels is None or not score.requires_grad:
        raise DetachedError("the target does not depend on the picture: it is a constant, or was detached on the way")
    # In float16 the gradients of single pixels fall below the smallest number: scale them up on the way.
    scale = 1024.0 if pixels.dtype == torch.float16 else 1.0
    [gradient] = torch.autograd.grad(
        score * scale, pixels, retain_graph=True, create_graph=is_connected(), allow_unused=True
    )
    if gradient is None:
        raise DetachedError("the target does not depend on the picture: it was detached on the way")
    return (gradient if gradient.dtype == torch.float64 else gradient.float()) / scale


@signal(
    "the target's weight of each feature that the last linear layer reads, `[B, C]`",
    cost="a backward pass through the last linear layer",
    gradients=True,
    watch=linear_calls,
    forwards=0.1,
    connected=True,
)
def class_weights(run: Run, layer: str) -> Tensor:
    """`[B, C]`: the row of a class in the last linear layer; of other targets, their gradient times its weight.

    Raises:
        MethodError: the last linear layer does not read the mean of the target layer over all cells.
    """
    calls: list[LinearCall] = [call for call in run.captured.watched[linear_calls] if call.output.requires_grad]
    score = run.scores.sum()
    if not calls or not score.requires_grad:
        raise MethodError(NOT_POOLED)
    last = calls[-1]
    [gradient] = torch.autograd.grad(
        score, [last.output], retain_graph=True, create_graph=is_connected(), allow_unused=True
    )
    if gradient is None or not is_mean_of(last.features, activations(run, layer)):
        raise MethodError(NOT_POOLED)
    return gradient @ kept(last.module.weight)


@signal(
    "the target's Hessian at the activations, times the activations, `[B, C, h, w]`",
    cost="a second backward pass, through that gradient",
    second_order=True,
    forwards=0.5,
    connected=True,
)
def curvature(run: Run, layer: str) -> Tensor:
    """The Hessian of the targets' sum times the activations, `[B, C, *space]`; zero on a linear tail.

    Raises:
        MethodError: an operation behind the layer has no second derivative.
    """
    gradient, activation = run.gradient(layer), run.activation(layer)
    product = None
    if gradient.requires_grad:
        try:
            _check_twice_differentiable(gradient)
            own, vector = run.tokens_of(layer), torch.zeros_like(activation)
            vector[:, own] = kept(activation)[:, own]
            [product] = torch.autograd.grad(
                gradient, activation, vector, retain_graph=True, create_graph=is_connected(), allow_unused=True
            )
        except RuntimeError as error:
            if "derivative" not in str(error):
                raise
            reason = str(error).splitlines()[0]
            raise MethodError(
                f"the model behind {layer!r} has no second derivative ({reason}); 'gradcam' needs none"
            ) from error
    return run.to_spatial(torch.zeros_like(activation) if product is None else product, layer)


@signal(
    "the terms of the full-gradient decomposition, `[B, 1 + biases, H, W]`",
    cost="a backward pass through the whole model",
    gradients=True,
    pixels=True,
    layered=False,
    watch=biased_outputs,
    forwards=1.6,
    connected=True,
)
def gradient_terms(run: Run, layer: str) -> Tensor:
    """`[B, 1 + biases, H, W]`: the full-gradient terms that have spatial positions, as FullGrad shows them.

    Absolute values are scaled to [0, 1] per image and layer, enlarged, and summed over channels. The terms do not
    depend on the target layer.
    """
    del layer
    record: BiasedOutputs = run.captured.watched[biased_outputs]
    assert run.captured.pixels is not None
    found = record.decompose(run.scores.sum(), run.captured.pixels)
    layout = AnyLayout(run.adapter.prefixes)
    terms = [_shown(found.pixels, run.size)]
    for name, term in found.biases.items():
        if term.ndim == 3 and term.shape[:2] == (len(term), len(found.pixels)):
            term = term if is_batch_first(record.outputs[name], run.captured.pixels) else term.transpose(0, 1)
        try:
            terms.append(_shown(layout.to_spatial(term, run.picture_size, len(found.pixels)), run.size))
        except LayoutError:
            continue  # of windows, or behind the pooling, so without a place in the picture
    return torch.stack(terms, 1)


def _check_twice_differentiable(gradient: Tensor) -> None:
    """Refuse functions marked as once differentiable, which autograd silently treats as the end of the graph.

    Raises:
        RuntimeError: the gradient's graph contains such a function.
    """
    waiting, known = [gradient.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("the derivative of a function is marked as once differentiable")
        known.add(node)
        waiting += [earlier for earlier, _ in node.next_functions]


def _shown(term: Tensor, size: Sequence[int]) -> Tensor:
    """`[B, C, *space]` to `[B, *size]`: absolute, scaled to [0, 1] over channels and cells, enlarged and summed."""
    strength = normalize(at_least_float32(term).abs().reshape(len(term), 1, -1)).reshape(term.shape)
    return resize(strength.sum(1), size)
