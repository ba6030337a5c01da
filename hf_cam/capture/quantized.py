"""Quantized parts of a model, and whether gradients pass them: some drop them without a word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call, one_image
from hf_cam.capture.levels import first_tensor
from hf_cam.models.traits import unwrap
from hf_cam.outputs import map_tensors

INTEGER = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
"""Where torch keeps modules that compute with integers."""
FLOATING = ("FloatFunctional", "FXFloatFunctional")
"""Modules among them that compute with floats."""
NAMED = re.compile(r"quant(?!izable)|[48]bit|int[48]|fp[48]", re.IGNORECASE)
"""Names of classes that may quantize what plain weights compute."""
STUBS = "torch.ao.quantization.stubs"
"""Where torch keeps modules that do nothing until a model is converted."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
STEP = 0.1
"""How far the input of a part moves for a difference quotient, in its standard deviations."""
TRUE_ENOUGH = (0.5, 2.0)
"""The slope that the gradient promises, in shares of the measured one: quantized activations move in steps."""


@dataclass(frozen=True)
class _Seen:
    """What a part got in a forward."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def gradient_stop(model: nn.Module, inputs: Mapping[str, Any]) -> str:
    """The name and class of a quantized part that passes no gradient or a wrong one; empty if there is none.

    torch's integer modules pass none. Any other part with quantized weights gets a small test: the slope along a random
    direction by its gradient, against a difference quotient. One part of each kind is tested.

    Args:
        model: Any model; without quantized weights it does not run.
        inputs: Its named inputs, of which the first image is used.
    """
    module = unwrap(model)
    if all(map(_is_plain, module.modules())):
        return ""
    doubtful: dict[tuple[Any, ...], tuple[str, nn.Module]] = {}
    for name, part in module.named_modules():
        if _computes_with_integers(part):
            return f"{name!r} ({type(part).__name__})"
        if kind := tuple(_quantized_weights(part)):
            doubtful.setdefault((type(part), *kind), (name, part))
    if not doubtful:
        return ""
    with borrowed(module) as replica:
        parts = {name: replica.get_submodule(name) for name, _ in doubtful.values()}
        seen = _inputs_of([*parts.values()], replica, one_image(inputs, 0))
        for name, part in parts.items():
            if part in seen and not passes_gradient(part, seen[part].args, seen[part].kwargs):
                return f"{name!r} ({type(part).__name__})"
    return ""


def _is_plain(part: nn.Module) -> bool:
    """Whether a part has plain floating weights and a class of which nothing else is known, as nearly all have.

    This looks at every part in each call; only where it is False is the part looked at more closely.
    """
    for own in (part._parameters, part._buffers, part.__dict__):  # noqa: SLF001
        for one in own.values():
            if isinstance(one, Tensor) and not (type(one) in (nn.Parameter, Tensor) and one.dtype in FLOATS):
                return False
    kind: Any = type(part)
    return _has_plain_class(kind)


@lru_cache(1024)
def _has_plain_class(kind: type[nn.Module]) -> bool:
    named = NAMED.search(kind.__name__) and kind.__module__ != STUBS
    return not (named or issubclass(kind, fx.GraphModule) or kind.__module__.startswith(INTEGER))


def _computes_with_integers(part: nn.Module) -> bool:
    if isinstance(part, fx.GraphModule):
        return "torch.ops.quantized" in part.code
    return type(part).__module__.startswith(INTEGER) and type(part).__name__ not in FLOATING


def _quantized_weights(part: nn.Module) -> Iterator[Any]:
    """What tells that a part's own weights are no plain floats: tensor subclasses, small dtypes, the class's name."""
    own = {**vars(part), **part._parameters, **part._buffers}  # noqa: SLF001
    for name, one in own.items():
        if isinstance(one, Tensor):
            packed = one.element_size() == 1 and one.dtype != torch.bool
            if type(one) not in (Tensor, nn.Parameter) or packed or ("weight" in name and not one.is_floating_point()):
                yield type(one), one.dtype
    if NAMED.search(type(part).__name__) and type(part).__module__ != STUBS:
        yield type(part)


def _inputs_of(parts: list[nn.Module], module: nn.Module, inputs: Mapping[str, Any]) -> dict[nn.Module, _Seen]:
    """What each part gets in its first run in a forward; parts that do not run are missing."""
    seen: dict[nn.Module, _Seen] = {}

    def note(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.setdefault(part, _Seen(map_tensors(args, torch.clone), map_tensors(kwargs, torch.clone)))

    handles = [part.register_forward_pre_hook(note, with_kwargs=True) for part in parts]
    try:
        with torch.no_grad():
            call(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def passes_gradient(part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the gradient of a part's output with respect to its input agrees with a difference quotient.

    Args:
        part: Any module.
        args, kwargs: Arguments of its forward; the first floating tensor among them is the input.

    >>> passes_gradient(nn.Linear(4, 3), (torch.ones(1, 4),), {})
    True
    """
    named: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    place = next((key for key, one in named.items() if isinstance(one, Tensor) and one.is_floating_point()), None)
    if place is None:
        return True  # token ids and the like have no gradient anyway
    given = named[place].detach()

    def output(value: Tensor) -> Tensor:
        changed = {**named, place: value}
        positional = [changed.pop(index) for index in range(len(args))]
        found = first_tensor(part.forward(*positional, **changed))
        assert found is not None
        return found

    noise = torch.randn(given.shape, generator=torch.Generator().manual_seed(0)).to(given)
    step = noise * STEP * (given.float().std(correction=0).to(given) + torch.finfo(given.dtype).eps)
    with torch.no_grad():
        moved = (output(given + step) - output(given - step)).float() / 2
    with torch.enable_grad():
        leaf = given.clone().requires_grad_()
        try:
            value = output(leaf)
        except RuntimeError:  # as of weights that a forward without gradients packed for a kernel without any
            return False
        if not value.requires_grad:
            return False
        [gradient] = torch.autograd.grad((value.float() * moved).sum(), leaf, allow_unused=True)
    if gradient is None:
        return False
    promised, measured = float((gradient.float() * step.float()).sum()), float(moved.pow(2).sum())
    low, high = TRUE_ENOUGH
    return measured == 0 or low * measured <= promised <= high * measured
