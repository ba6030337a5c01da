"""What a model must look like afterwards: exactly as before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def state(model: nn.Module) -> dict[str, Any]:
    """All that a careless caller could leave changed, but for the weights' values."""
    parameters, modules = list(model.parameters()), list(model.modules())
    return {
        "hooks": [len(getattr(module, hooks)) for module in modules for hooks in HOOKS],
        "modes": [module.training for module in modules],
        "forwards": [module.__dict__.get("forward") for module in modules],
        "attention": getattr(getattr(model, "config", None), "_attn_implementation", None),
        "trainable": [parameter.requires_grad for parameter in parameters],
        "without gradient": [parameter.grad is None for parameter in parameters],
        "storage": [(parameter.data_ptr(), parameter.dtype, parameter._version) for parameter in parameters],
        "random": torch.get_rng_state().tolist(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Fails where the model, its mode, its hooks or the caller's torch are not what they were."""
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = state(model)
    yield
    after = state(model)
    for name, was in before.items():
        assert after[name] == was, name
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, values[name]), name


def half_frozen(model: nn.Module) -> nn.Module:
    """The model with every other parameter frozen and every third module in training: nothing is as by default."""
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    for index, module in enumerate(model.modules()):
        module.training = index % 3 == 0
    return model
