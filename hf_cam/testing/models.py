"""The law that a model is left unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from hf_cam.testing.laws import require

Result = TypeVar("Result")

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def check_model_untouched(model: nn.Module, call: Callable[[], Result]) -> Result:
    """Run a function and check that it leaves a model unchanged.

    The check compares the identity, values, version, `requires_grad` and `.grad` of every parameter and buffer, each
    module's mode, hooks, attributes and forward, the random states (of GPUs too) and the grad mode.

    Args:
        model: Any module.
        call: A function that uses the model, such as `lambda: GradCAM(model)(pixel_values)`. Its errors pass through.

    Returns:
        What the function returned.

    Raises:
        LawError: something about the model has changed; the message names it.

    >>> net = nn.Linear(2, 2)
    >>> check_model_untouched(net, lambda: net.train().requires_grad_(False))
    Traceback (most recent call last):
    hf_cam.testing.laws.LawError: Linear: requires_grad of 'weight' must be unchanged
    """
    before = _state(model)
    result = call()
    after = _state(model)
    name = type(model).__name__
    require(before.keys() == after.keys(), name, "it must keep its parameters, buffers and modules")
    for key, value in before.items():
        require(_same(value, after[key]), name, f"{key} must be unchanged")
    return result


def _state(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {"the random state": torch.get_rng_state(), "the grad mode": torch.is_grad_enabled()}
    if torch.cuda.is_initialized():
        found |= {f"the random state of GPU {i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[f"the identity of {name!r}"] = id(tensor)
        found[f"requires_grad of {name!r}"] = tensor.requires_grad
        found[f"the gradient of {name!r}"] = None if tensor.grad is None else tensor.grad.clone()
        found[f"the version of {name!r}"] = None if tensor.is_inference() else tensor._version  # noqa: SLF001
        found[f"the values of {name!r}"] = None if tensor.is_meta else tensor.detach().clone()
    for name, module in model.named_modules():
        own = vars(module)
        found[f"the mode of {name!r}"] = module.training
        found[f"the hooks of {name!r}"] = {kind: list(own.get(kind) or ()) for kind in HOOKS}
        found[f"the attributes of {name!r}"] = sorted(own)
        found[f"the forward of {name!r}"] = own.get("forward")
    return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    return type(one) is type(other) and bool(one == other)
