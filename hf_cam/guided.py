"""Guided backpropagation on the unmodified model, and its product with a CAM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_cam.cam import checked_pixels
from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call, model_inputs_of, others_of
from hf_cam.capture.quantized import gradient_stop
from hf_cam.doors import door
from hf_cam.errors import MethodError, TargetError
from hf_cam.heads.selection import selection
from hf_cam.layouts import Size
from hf_cam.maps import normalize, resize
from hf_cam.models.traits import unwrap
from hf_cam.targets import target_values

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


class GuidedBackprop:
    """The gradient of the target in the picture's own pixels, through only positive gradients and positive inputs.

    The rule was defined for ReLU; for smooth activations of the GELU family, it masks by the sign of the input in the
    same way. No module is replaced: the activations are intercepted during the forward, and the model is left
    unchanged. Note that the result hardly depends on the model's later layers (Adebayo et al., arXiv:1810.03292).

    Paper: Springenberg et al., Striving for Simplicity, ICLR Workshops 2015, arXiv:1412.6806.

    >>> from transformers import ResNetConfig, ResNetForImageClassification
    >>> model = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).eval()
    >>> GuidedBackprop(model)(torch.rand(1, 3, 64, 96)).shape
    torch.Size([1, 3, 64, 96])
    """

    @door()
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @door()
    def __call__(
        self,
        pixel_values: Tensor,
        targets: Any = None,
        **model_inputs: Any,
    ) -> Tensor:
        """The guided gradient, `[B, C, H, W]`, signed, in units of the target per unit of the input.

        Args:
            pixel_values: `[B, C, H, W]`, preprocessed as the model expects.
            targets: As in a call of `CAM`; None explains what the model itself finds first.
            model_inputs: Other inputs of the forward.

        Raises:
            TargetError: a target does not depend on the picture, or there is not one target per image.
            MethodError: a quantised part of the model passes no gradient.
        """
        checked_pixels(pixel_values, model_inputs)
        chosen = selection(self.model, targets, {"pixel_values": pixel_values, **model_inputs}, {})
        inputs = model_inputs_of(self.model, chosen.inputs["pixel_values"], others_of(chosen.inputs))
        if stop := gradient_stop(self.model, inputs):
            raise MethodError(
                f"guided backpropagation needs gradients, but the quantised part {stop} passes none or wrong ones; "
                "load the model without quantisation"
            )
        with borrowed(unwrap(self.model)) as module, torch.enable_grad():
            pixels = inputs["pixel_values"].requires_grad_()
            with _Guide():
                outputs = call(module, {**inputs, "pixel_values": pixels})
            [column] = chosen.select(outputs)
            score = target_values(outputs, column).sum()
            if not score.requires_grad:
                raise TargetError("the target does not depend on the picture")
            [gradient] = torch.autograd.grad(score, pixels, allow_unused=True)
        return torch.zeros_like(pixels).detach() if gradient is None else gradient.detach()


def guided_gradcam(guided: Tensor, maps: Tensor) -> Tensor:
    """Guided Grad-CAM: the guided gradient `[B, C, H, W]` times a map `[B, h, w]` in [0, 1], `[B, C, H, W]`.

    Paper: Selvaraju et al., Grad-CAM, ICCV 2017, arXiv:1610.02391.
    """
    size: Size = (guided.shape[-2], guided.shape[-1])
    return guided * resize(normalize(maps), size)[:, None]
