"""What a model must look like afterwards: exactly as before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_cam.testing import models as law


def state(model: nn.Module) -> dict[str, Any]:
    """All that `hf_cam.testing.check_model_untouched` compares, and what a transformers model has beyond that."""
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return law._state(model) | {"attention": attention, "inference": torch.is_inference_mode_enabled()}


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """The same law around a block, in which the test may expect an error."""
    before = state(model)
    yield
    after = state(model)
    assert before.keys() == after.keys()
    for name, was in before.items():
        assert law._same(was, after[name]), name


def half_frozen(model: nn.Module) -> nn.Module:
    """The model with every other parameter frozen and every third module in training: nothing is as by default."""
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    for index, module in enumerate(model.modules()):
        module.training = index % 3 == 0
    return model
