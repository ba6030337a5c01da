"""Guided backpropagation: only positive gradients at positive inputs of the activation functions pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call
from hf_cam.errors import DetachedError
from hf_cam.models.traits import unwrap

GATES = {
    F.relu,
    F.relu6,
    F.gelu,
    F.silu,
    F.hardswish,
    F.leaky_relu,
    F.elu,
    F.mish,
    torch.relu,
    torch.relu_,
    Tensor.relu,
    Tensor.relu_,
}
"""Activations whose gradient is guided: ReLU, for which the method was defined, and its smooth replacements."""


class _Guided(torch.autograd.Function):
    """The activation in the forward pass; in the backward pass, only positive gradients at positive inputs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(value > 0)
        return function(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        [positive] = ctx.saved_tensors
        [gradient] = gradients
        return gradient.clamp_min(0) * positive, None


class _Guide(TorchFunctionMode):
    """Guide every activation function called under this mode, whichever module calls it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in GATES:
            return func(*args, **kwargs)
        value, rest = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
        kwargs.pop("inplace", None)
        plain = {F.relu: torch.relu, torch.relu_: torch.relu, Tensor.relu_: torch.relu}.get(func, func)
        rest = () if plain is torch.relu else rest
        return _Guided.apply(value, lambda tensor: plain(tensor, *rest, **kwargs))


def guided_gradient(model: nn.Module, inputs: Mapping[str, Any], score: Callable[[Any], Tensor]) -> Tensor:
    """The guided gradient of a scalar with respect to the pictures, shaped like them; the model is left unchanged.

    Args:
        model: Any vision model.
        inputs: Its named inputs.
        score: From the model's output to the scalar.

    Raises:
        DetachedError: the scalar does not depend on the pictures.
    """
    with borrowed(unwrap(model)) as module, torch.enable_grad():
        pixels = inputs["pixel_values"].detach().requires_grad_()
        with _Guide():
            outputs = call(module, {**inputs, "pixel_values": pixels})
        value = score(outputs)
        if not value.requires_grad:
            raise DetachedError("the target does not depend on the picture")
        [gradient] = torch.autograd.grad(value, pixels, allow_unused=True)
    return torch.zeros_like(pixels).detach() if gradient is None else gradient.detach()
