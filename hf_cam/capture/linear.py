"""Gradients that reach few tokens, as a class token's do, pass through linear layers for these tokens alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FEW = 0.25
"""Of all tokens; with more of them, picking them out costs more than it saves."""
SAMPLE = 16


class _ByTokens(torch.autograd.Function):
    """`F.linear` of tokens `[N, C]` with frozen weights, whose gradient is not multiplied out where it is zero."""

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
    """The numbers of the rows of `[N, C]` that are not zero; None where they are not few, as a sample tells first."""
    some = gradient[:: max(1, len(gradient) // SAMPLE)]
    if some.any(1).float().mean() > FEW:
        return None
    reached = gradient.any(1).nonzero().flatten()
    return None if len(reached) > FEW * len(gradient) else reached


def by_tokens(model: nn.Module) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    """For each plain linear layer on a processor a forward of the same value and gradient, once differentiable.

    A head that reads the class token alone leaves nearly all tokens behind the last attention without a gradient, and
    autograd would multiply the zeros out.
    """
    return {
        module: partial(_linear, module)
        for module in model.modules()
        if type(module) is nn.Linear and "forward" not in module.__dict__ and module.weight.device.type == "cpu"
    }


def _linear(module: nn.Linear, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear gives it
    recorded = torch.is_grad_enabled() and input.requires_grad and not module.weight.requires_grad
    if recorded and input.ndim > 2 and not torch.is_autocast_enabled("cpu"):
        # The view is taken out here: a view made inside could not be written to in place, as Deformable DETR does.
        found: Tensor = _ByTokens.apply(input.flatten(0, -2), module.weight, module.bias)
        return found.view(*input.shape[:-1], -1)
    return functional.linear(input, module.weight, module.bias)
