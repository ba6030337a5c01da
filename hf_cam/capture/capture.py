"""Run the model once; record and differentiate only what comes after the target layers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.guard import borrowed, forwards, unwrap
from hf_cam.capture.linear import by_tokens
from hf_cam.errors import DetachedError, LayerError, LayoutError, TargetError, UnknownArchitecture
from hf_cam.layouts import Size

PASSED_ON = ("output_attentions", "output_hidden_states", "return_dict", "attention_mask", "interpolate_pos_encoding")
"""What transformers' forwards take without listing it."""


@dataclass(frozen=True)
class Shared:
    """An input that belongs to all images of a batch alike, such as tokenised prompts; `call` hands it on.

    Whatever cuts, repeats or reorders the images of a batch leaves it alone.

    Args:
        value: `[P, ...]`, on any device.
        each: True where the forward wants it once for each image, `[B * P, ...]` image by image.
    """

    value: Tensor
    each: bool = False

    def for_batch(self, batch: int) -> Tensor:
        """The tensor that a forward of `batch` images gets.

        >>> Shared(torch.zeros(3, 7), each=True).for_batch(2).shape
        torch.Size([6, 7])
        """
        return self.value.repeat(batch, *[1] * (self.value.ndim - 1)) if self.each else self.value

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Shared:
        """The same on another device or in another dtype."""
        return Shared(self.value.to(device, dtype), self.each)

    def is_floating_point(self) -> bool:
        """Whether it holds floating numbers."""
        return self.value.is_floating_point()


@dataclass(frozen=True)
class Capture:
    """One forward: the model's own output and what the target layers returned in it.

    Args:
        outputs: The model's output, connected to `activations` where gradients were asked for.
        activations: One tensor a layer, batch first, as the layer returned it.
        watched: What the watch saw, where one was set.
        pixels: The picture that a watched forward got, which required grad.
    """

    outputs: Any
    activations: tuple[Tensor, ...]
    watched: Any = None
    pixels: Tensor | None = None

    def gradients(self, score: Tensor, *, second_order: bool = False) -> tuple[Tensor, ...]:
        """Of a scalar, with respect to each layer's output; zeros where it does not depend on it. Repeatable.

        `second_order` keeps the gradients differentiable.

        Raises:
            TargetError: the score is no scalar, or depends on none of the layers.
        """
        if score.numel() != 1:
            raise TargetError(f"a target must be a scalar, got the shape {tuple(score.shape)}")
        if not score.requires_grad:
            raise DetachedError(
                "the target does not depend on the target layer: it is a constant, was detached, or the layer "
                "lies after it"
            )
        found = torch.autograd.grad(
            score.reshape(()), self.activations, retain_graph=True, create_graph=second_order, allow_unused=True
        )
        return tuple(
            torch.zeros_like(activation) if gradient is None else gradient
            for activation, gradient in zip(self.activations, found, strict=True)
        )


@contextmanager
def capture(
    model: nn.Module,
    layers: Sequence[str],
    inputs: Mapping[str, Any],
    *,
    gradients: bool = True,
    second_order: bool = False,
    hooks: Mapping[str, Callable[..., Any]] | None = None,
    watch: Callable[[nn.Module], AbstractContextManager[Any]] | None = None,
) -> Iterator[Capture]:
    """Run the model on `inputs` and yield what its target layers returned.

    The parameters are frozen, so that the part before the first target layer records nothing. A hook there detaches
    the output and makes it a leaf; from it on autograd records, and `Capture.gradients` differentiates just that tail.
    Everything is undone when the block ends; the gradients must be taken inside it.

    Args:
        model: Any module; it comes back as it was (see `hf_cam.capture.guard.borrowed`).
        layers: Dotted names.
        inputs: Keyword arguments of the forward; "pixel_values" goes first where the forward does not know that name.
        gradients: False records no graph at all.
        second_order: True where the gradients are to be differentiable.
        hooks: Further forward hooks, by dotted name, for this forward alone.
        watch: Sees the whole forward, from the picture on, for evidence that is not a target layer's.

    Raises:
        LayerError: a layer does not exist, did not run, ran more than once, or returned no floating tensor.
    """
    module = unwrap(model)
    known = {layer: _submodule(module, layer) for layer in (*layers, *(hooks or {}))}
    seen: dict[str, Tensor] = {}
    handles: list[torch.utils.hooks.RemovableHandle] = []
    with borrowed(module):
        try:
            # Before all other hooks: transformers collects hidden states by hooks of its own, for heads that read every
            # stage, and would hand them a tensor that gradients do not reach. The last that is put in front runs first.
            recorders = [(layer, _recorder(layer, seen, gradients)) for layer in layers]
            for layer, hook in (*recorders, *(hooks or {}).items()):
                handles.append(known[layer].register_forward_hook(hook, prepend=True))
            pixels = None
            if watch is not None:
                pixels = inputs["pixel_values"]
                pixels = pixels if pixels.requires_grad else pixels.detach().requires_grad_()
                inputs = {**inputs, "pixel_values": pixels}
            recorded = gradients or watch is not None
            with (
                torch.set_grad_enabled(recorded),
                forwards(by_tokens(module) if recorded and not second_order else {}),
                (watch or nullcontext)(module) as watched,
            ):
                outputs = call(module, inputs)
            _remove(handles)  # what is done with the capture may run the model again
            if silent := [layer for layer in layers if layer not in seen]:
                raise LayerError(f"the layer {silent[0]!r} did not run in the model's forward")
            yield Capture(outputs, tuple(seen[layer] for layer in layers), watched, pixels)
        finally:
            _remove(handles)


def _submodule(module: nn.Module, layer: str) -> nn.Module:
    try:
        return module.get_submodule(layer)
    except AttributeError as error:
        raise LayerError(f"the model has no layer {layer!r}") from error


def _remove(handles: list[torch.utils.hooks.RemovableHandle]) -> None:
    while handles:
        handles.pop().remove()


def _recorder(layer: str, seen: dict[str, Tensor], gradients: bool) -> Callable[..., Any]:
    def record(module: nn.Module, args: Any, output: Any) -> Any:
        if layer in seen:
            raise LayerError(f"the layer {layer!r} runs more than once in a forward; choose one that runs once")
        tensor = first_tensor(output)
        if tensor is None or not tensor.is_floating_point():
            raise LayerError(f"the layer {layer!r} returns no floating tensor ({type(output).__name__})")
        if gradients:
            torch.set_grad_enabled(True)  # also where the model itself runs this part under no_grad, as CLIPSeg does
            if not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_(True)
        seen[layer] = tensor
        # A clone goes on: the next module may work in place, which would spoil the record and is forbidden on a leaf.
        return with_first_tensor(output, tensor.clone())

    return record


def first_tensor(output: Any) -> Tensor | None:
    """The tensor that a layer's output is about: itself, or the first tensor of a tuple or record."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return next((value for value in values if isinstance(value, Tensor)), None)


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """A layer's output with another tensor in the place of the first."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, Mapping):
        key = next(key for key, value in output.items() if isinstance(value, Tensor))
        return type(output)(**{**output, key: tensor})
    items = list(output)
    items[next(i for i, value in enumerate(items) if isinstance(value, Tensor))] = tensor
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


def call(module: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Run a model on named inputs."""
    args, kwargs = arguments(module, inputs)
    return module(*args, **kwargs)


def arguments(module: nn.Module, inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a forward takes its named inputs; a picture whose name it does not know goes first, unnamed."""
    batch = next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.ndim), 1)
    named = {name: value.for_batch(batch) if isinstance(value, Shared) else value for name, value in inputs.items()}
    if "pixel_values" in named and not accepts(module, "pixel_values"):
        return (named.pop("pixel_values"),), named
    return (), named


def accepts(module: nn.Module, name: str) -> bool:
    """True where the module's forward has a parameter of this name (by its signature or `main_input_name`)."""
    parameters = inspect.signature(module.forward).parameters
    if name in parameters:
        return True
    wrapped = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
    return wrapped and getattr(module, "main_input_name", None) == name


def swallows(module: nn.Module, name: str) -> bool:
    """True where the module's forward lists its inputs, and would take this one in its `**kwargs` and ignore it."""
    parameters = inspect.signature(module.forward).parameters.values()
    listed = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    wrapped = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    return not wrapped and name not in listed and name not in PASSED_ON


def plain_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs cut off from any graph of the caller's, and usable by autograd even if made in inference mode."""
    with torch.inference_mode(False):
        return {
            name: (value.clone() if value.is_inference() else value.detach()) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }


def picture_name(inputs: Mapping[str, Any], axes: Sequence[int] = (4,)) -> str:
    """The input that is the picture: `pixel_values`, or the first floating tensor with so many axes.

    Args:
        inputs: The forward's.
        axes: 4 `(B, C, H, W)`, 5 a video `(B, T, C, H, W)`, 3 cut patches `(B, N, patch)` beside `spatial_shapes`.

    Raises:
        UnknownArchitecture: there is none.
    """
    names = sorted(inputs, key=lambda name: name != "pixel_values")
    for name in names:
        value = inputs[name]
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim in axes:
            return name
    shapes = {name: tuple(value.shape) for name, value in inputs.items() if isinstance(value, Tensor)}
    raise UnknownArchitecture(
        f"the structural probe needs a picture (batch, channels, height, width) among the inputs, got {shapes}; "
        "name the layer and its layout yourself (layers=, reshape=)"
    )


def picture_size(inputs: Mapping[str, Any]) -> Size:
    """Height and width of the picture, in pixels; of patches that come cut and padded, by their `spatial_shapes`.

    >>> picture_size({"pixel_values": torch.zeros(1, 30, 3 * 16 * 16), "spatial_shapes": torch.tensor([[4, 6]])})
    (64, 96)

    Raises:
        LayoutError: the pictures of a batch are cut into different grids.
    """
    grids = inputs.get("spatial_shapes")
    picture = inputs[picture_name(inputs, (3, 4, 5))]
    if not isinstance(grids, Tensor):
        return picture.shape[-2], picture.shape[-1]
    if (grids != grids[0]).any():
        raise LayoutError(f"the pictures of a batch must be cut into one grid, got {grids.tolist()}; pass them alone")
    patch = math.isqrt(picture.shape[-1] // 3)
    rows, columns = grids[0].tolist()
    return rows * patch, columns * patch
