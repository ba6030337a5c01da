"""Backpropagation through linear layers for only the tokens that a gradient reaches, such as the class token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FEW = 0.25
"""Share of all tokens above which picking tokens out costs more than it saves."""
SAMPLE = 16


class _ByTokens(torch.autograd.Function):
    """`F.linear` of tokens `[N, C]` with frozen weights; the backward pass skips tokens whose gradient is zero."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return functional.linear(tokens, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        [weight] = ctx.saved_tensors
        reached = _reached(gradient)
        if reached is None:
            return gradient @ weight, None, None
        found = gradient.new_zeros(len(gradient), weight.shape[1])
        found[reached] = gradient[reached] @ weight
        return found, None, None


def _reached(gradient: Tensor) -> Tensor | None:
    """Indices of the nonzero rows of `[N, C]`; None if they are many, which a sample of the rows usually shows."""
    some = gradient[:: max(1, len(gradient) // SAMPLE)]
    if some.any(1).float().mean() > FEW:
        return None
    reached = gradient.any(1).nonzero().flatten()
    return None if len(reached) > FEW * len(gradient) else reached


def by_tokens(model: nn.Module) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    """For each plain linear layer on the CPU, a forward with the same value and gradient, differentiable once.

    If the head reads only the class token, nearly all tokens after the last attention get no gradient, and autograd
    would multiply those zeros. Layers of any other kind are left to torch.
    """
    if functional.linear is not torch._C._nn.linear:  # noqa: SLF001 - another function stands in for it
        return {}
    if next((parameter.device.type for parameter in model.parameters()), "cpu") not in ("cpu", "meta"):
        return {}  # without a look at each of its layers
    return {
        module: partial(_linear, module)
        for module in model.modules()
        if type(module) is nn.Linear and "forward" not in module.__dict__ and module.weight.device.type == "cpu"
    }


def _linear(module: nn.Linear, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear gives it
    if _is_plain(module, input):
        # Reshape out here: Deformable DETR writes to the result in place, which a view made inside would not allow.
        found: Tensor = _ByTokens.apply(input.flatten(0, -2), module.weight, module.bias)
        return found.view(*input.shape[:-1], -1)
    return functional.linear(input, module.weight, module.bias)


def _is_plain(module: nn.Linear, tokens: Tensor) -> bool:
    """Whether torch would do no more than multiply tokens by a frozen matrix: no subclass, autocast or transform.

    Quantized and other special weights are subclasses of `Tensor`; a weight norm or `functional_call` puts a bare one
    in the place of the parameter.
    """
    weight, bias = module.weight, module.bias
    return (
        tokens.ndim > 2
        and torch.is_grad_enabled()
        and tokens.requires_grad
        and type(tokens) in (Tensor, nn.Parameter)
        and type(weight) is nn.Parameter
        and not weight.requires_grad
        and (bias is None or (type(bias) is nn.Parameter and not bias.requires_grad))
        and tokens.dtype == weight.dtype
        and tokens.device == weight.device
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()  # noqa: SLF001 - vmap has no rule for the function
    )
