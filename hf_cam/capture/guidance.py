"""Guided backpropagation: only positive gradients at positive inputs of the activation functions pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_cam.capture.guard import borrowed, forwards
from hf_cam.capture.inputs import call
from hf_cam.errors import DetachedError, MethodError
from hf_cam.models.traits import unwrap

GATES = {
    F.relu,
    F.relu6,
    F.hardtanh,
    F.gelu,
    F.silu,
    F.hardswish,
    F.leaky_relu,
    F.prelu,
    F.rrelu,
    F.elu,
    F.selu,
    F.celu,
    F.softplus,
    F.mish,
    torch.relu,
    torch.relu_,
    torch.selu,
    torch.selu_,
    torch.celu,
    torch.celu_,
    F.hardtanh_,
    F.leaky_relu_,
    F.elu_,
    Tensor.relu,
    Tensor.relu_,
    Tensor.prelu,
}
"""Activations whose gradient is guided: ReLU, for which the method was defined, and what takes its place."""

COMPOSED = {
    "AccurateGELUActivation",
    "ClippedGELUActivation",
    "FastGELUActivation",
    "GELUActivation",
    "GELUTanh",
    "HardMish",
    "HardSwish",
    "LaplaceActivation",
    "Mish",
    "MishActivation",
    "NewGELUActivation",
    "QuickGELU",
    "QuickGELUActivation",
    "ReLUSquaredActivation",
    "Swish",
}
"""Classes of modules that compute such an activation from other operations, in transformers, timm and open_clip."""


class _Guided(torch.autograd.Function):
    """The activation in the forward pass; in the backward pass, only positive gradients at positive inputs.

    Where the activation is clipped, nothing passes.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, function: Callable[[Tensor], Tensor], fired: list[bool]) -> Tensor:
        with torch.enable_grad():
            leaf = value.detach().requires_grad_()
            output = function(leaf.clone())  # which may work in place
            [slope] = torch.autograd.grad(output.sum(), leaf)
        ctx.save_for_backward((value > 0) & (slope != 0))
        ctx.fired = fired
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        [positive] = ctx.saved_tensors
        [gradient] = gradients
        ctx.fired.append(True)
        return gradient.clamp_min(0) * positive, None, None


class _Guide(TorchFunctionMode):
    """Guide every activation function called under this mode, whichever module calls it.

    Args:
        fired: Gets an entry whenever a gradient passes through one.
    """

    def __init__(self, fired: list[bool]) -> None:
        super().__init__()
        self.fired = fired
        self.inside = False  # an activation that is guided as a whole

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self.inside or func not in GATES:
            return func(*args, **kwargs)
        value, rest = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
        return self.guided(value, lambda tensor: func(tensor, *rest, **kwargs))

    def guided(self, value: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The guided function of a value, written over it where the function does that."""
        in_place = list[bool]()

        def noted(tensor: Tensor) -> Tensor:
            output = function(tensor)
            in_place.append(output is tensor)
            return output

        found: Tensor = _Guided.apply(value, noted, self.fired)
        return value.copy_(found) if any(in_place) else found

    def around(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The forward of a module that is an activation as a whole."""

        def around(value: Tensor) -> Tensor:
            def whole(tensor: Tensor) -> Tensor:
                self.inside = True
                try:
                    return forward(tensor)
                finally:
                    self.inside = False

            return self.guided(value, whole)

        return around


def guided_gradient(model: nn.Module, inputs: Mapping[str, Any], score: Callable[[Any], Tensor]) -> Tensor:
    """The guided gradient of a scalar with respect to the pictures, shaped like them; the model is left unchanged.

    Args:
        model: Any vision model.
        inputs: Its named inputs.
        score: From the model's output to the scalar.

    Raises:
        DetachedError: the scalar does not depend on the pictures.
        MethodError: its gradient passes no activation that can be guided.
    """
    with borrowed(unwrap(model)) as module, torch.enable_grad():
        pixels = inputs["pixel_values"].detach().requires_grad_()
        guide = _Guide(fired := list[bool]())
        composed = {one: guide.around(one.forward) for one in module.modules() if type(one).__name__ in COMPOSED}
        with forwards(composed), guide:
            outputs = call(module, {**inputs, "pixel_values": pixels})
        value = score(outputs)
        if not value.requires_grad:
            raise DetachedError("the target does not depend on the picture")
        [gradient] = torch.autograd.grad(value, pixels, allow_unused=True)
    if gradient is not None and not fired:
        raise MethodError(
            "the target's gradient passes no activation function that guided backpropagation can guide; 'gradient' is "
            "the plain gradient"
        )
    return torch.zeros_like(pixels).detach() if gradient is None else gradient.detach()
