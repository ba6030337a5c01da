"""Run the model once; record and differentiate only what comes after the target layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_cam.capture.guard import borrowed, forwards, is_connected
from hf_cam.capture.inputs import call
from hf_cam.capture.levels import tensor_at, with_tensor_at
from hf_cam.capture.linear import by_tokens
from hf_cam.capture.recorder import is_plain_multi_head, multi_head
from hf_cam.capture.runs import Counter, level_of, located
from hf_cam.errors import DetachedError, LayerError, TargetError
from hf_cam.models.traits import unwrap

Watch = Callable[[nn.Module], AbstractContextManager[Any]]
"""A context manager that records what happens in a module's forward, and yields the record."""


@dataclass(frozen=True)
class Capture:
    """One forward: the model's own output and what the target layers returned in it.

    Args:
        module: The replica of the model that ran.
        outputs: The model's output, connected to `activations` where gradients were asked for.
        activations: One tensor per layer, as the layer returned it.
        second_order: True keeps the gradients differentiable, as they always are in the caller's graph.
        watched: What each watch yielded.
        pixels: The picture that the forward got, where it required grad.
    """

    module: nn.Module
    outputs: Any
    activations: tuple[Tensor, ...]
    second_order: bool = False
    watched: Mapping[Watch, Any] = field(default_factory=dict)
    pixels: Tensor | None = None

    def gradients(self, score: Tensor) -> tuple[Tensor, ...]:
        """Of a scalar, with respect to each layer's output; zeros where it does not depend on it. Repeatable.

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
            score.reshape(()), self.activations, retain_graph=True, create_graph=self.second_order, allow_unused=True
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
    watches: Sequence[Watch] = (),
    storing: Sequence[Watch] = (),
) -> Iterator[Capture]:
    """Run the model on `inputs` and yield what its target layers returned.

    The parameters are frozen, so that the part before the first target layer records nothing. A hook there detaches
    the output and makes it a leaf; from it on autograd records, and `Capture.gradients` differentiates just that tail.
    Everything is undone when the block ends; the gradients must be taken inside it.

    Args:
        model: Any module; a replica of it runs (see `hf_cam.capture.guard.borrowed`).
        layers: Dotted names; "name:1" is the second run of a layer that runs several times.
        inputs: The forward's inputs by name; "pixel_values" is the picture, whatever the forward calls it.
        gradients: False records no graph at all.
        second_order: True where the gradients are to be differentiable, as they always are inside `connected`.
        watches: Context managers around the forward; with one, autograd records from the picture on.
        storing: Other such context managers, which need no graph.

    Raises:
        LayerError: a layer does not exist, did not run, returned no floating tensor, or ran more than once and its name
            does not say which run is meant.
    """
    for layer in layers:
        located(unwrap(model), layer)
    seen: dict[str, Tensor] = {}
    handles: list[torch.utils.hooks.RemovableHandle] = []
    recorded = gradients or bool(watches) or is_connected()
    thrice = second_order and is_connected()
    second_order = second_order or is_connected()
    with borrowed(unwrap(model)) as module:
        places = [located(module, layer) for layer in layers]
        counters = [Counter(layer, run) for layer, (_, run) in zip(layers, places, strict=True)]
        try:
            if watches:
                inputs = {**inputs, "pixel_values": _leaf(inputs["pixel_values"])}
            # Before all other hooks: transformers collects hidden states by hooks of its own, for heads that read every
            # stage, and would hand them a tensor that gradients do not reach. The last that is put in front runs first.
            for counter, (child, _) in zip(counters, places, strict=True):
                handles.append(child.register_forward_hook(_recorder(counter, seen, gradients), prepend=True))
            with ExitStack() as stack:
                stack.enter_context(torch.set_grad_enabled(recorded))
                if second_order:
                    stack.enter_context(TwiceDifferentiable(thrice=thrice))
                elif recorded:
                    stack.enter_context(forwards(by_tokens(module)))
                watched = {watch: stack.enter_context(watch(module)) for watch in (*watches, *storing)}
                outputs = call(module, inputs)
            _remove(handles)  # what is done with the capture may run the model again
            for counter in counters:
                counter.check()
            activations = tuple(seen[layer] for layer in layers)
            yield Capture(module, outputs, activations, second_order, watched, _requiring_grad(inputs))
        finally:
            _remove(handles)


class TwiceDifferentiable(TorchFunctionMode):
    """Run attention with the kernel that has a second derivative (the fused ones have none), in this thread alone.

    Args:
        thrice: Also run norms step by step, because torch's own third derivative of them is wrong (measured in 2.14:
            it misses what their mean and deviation contribute).
    """

    def __init__(self, *, thrice: bool = False) -> None:
        super().__init__()
        self._thrice = thrice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_attention_math(*args, **kwargs)[0]  # noqa: SLF001
        if func is F.multi_head_attention_forward and is_plain_multi_head(args, kwargs):
            with self:
                return multi_head(*args, **kwargs)
        if self._thrice and func is F.layer_norm:
            return _layer_norm(*args, **kwargs)
        if self._thrice and func is F.group_norm:
            return _group_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _layer_norm(
    input: Tensor,  # noqa: A002 - torch's names, by which it may be called
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`F.layer_norm` step by step."""
    axes = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(axes, keepdim=True)
    normed = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def _group_norm(
    input: Tensor,  # noqa: A002 - torch's names, by which it may be called
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`F.group_norm` step by step."""
    groups = input.unflatten(1, (num_groups, -1))
    normed = _layer_norm(groups, groups.shape[2:], eps=eps).reshape(input.shape)
    shape = (-1, *(1,) * (input.ndim - 2))
    normed = normed if weight is None else normed * weight.reshape(shape)
    return normed if bias is None else normed + bias.reshape(shape)


def _leaf(pixels: Tensor) -> Tensor:
    return pixels if pixels.requires_grad else pixels.detach().requires_grad_()


def _requiring_grad(inputs: Mapping[str, Any]) -> Tensor | None:
    pixels = inputs.get("pixel_values")
    return pixels if isinstance(pixels, Tensor) and pixels.requires_grad else None


def _remove(handles: list[torch.utils.hooks.RemovableHandle]) -> None:
    while handles:
        handles.pop().remove()


def _recorder(counter: Counter, seen: dict[str, Tensor], gradients: bool) -> Callable[..., Any]:
    layer, level = counter.layer, level_of(counter.layer)

    def record(module: nn.Module, args: Any, output: Any) -> Any:
        if not counter.hits():
            return None
        tensor = _found(layer, level, output)
        if tensor is None or not tensor.is_floating_point():
            raise LayerError(f"the layer {layer!r} returns no floating tensor ({type(output).__name__})")
        if gradients:
            torch.set_grad_enabled(True)  # also where the model itself runs this part under no_grad, as CLIPSeg does
            if not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_(True)
            elif level is not None:
                tensor = tensor.clone()  # of which no other level is made, so that each has a gradient of its own
        seen[layer] = tensor
        # A clone goes on: the next module may work in place, which would spoil the record and is forbidden on a leaf.
        return with_tensor_at(output, level, tensor.clone())

    return record


def _found(layer: str, level: str | None, output: Any) -> Tensor | None:
    try:
        return tensor_at(output, level)
    except LayerError as error:
        raise LayerError(f"of {layer!r}: {error}") from error
