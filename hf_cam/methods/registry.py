"""The one table of methods: the class handles, the pipeline, the command and the Space all read it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.errors import MethodError, OptionError, nearest
from hf_cam.maps import fuse_mean
from hf_cam.methods.reductions import channel_sum, first_component
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.stages import target_layers
from hf_cam.targets import Target

ATTENTION = ("attention", "attention_gradients", "readouts", "halved_terms", "frozen_terms")
"""Evidence that only attention over the picture's cells gives."""
EVIDENCE = {
    "activations": "what the target layer returns, `[B, C, h, w]`; one forward",
    "gradients": "of the target with respect to it; the tail of the model backwards",
    "curvature": "the target's Hessian there times the activations; the tail's gradient differentiated again",
    "ablated_scores": "the target without each channel, `[B, 1 + C]`; a run of the tail a channel",
    "masked_scores": "the target of the image seen through each channel alone, `[B, C]`; a forward a channel",
    "gradient_terms": "the terms of the full gradient, `[B, 1 + biases, H, W]`; the whole model backwards",
    "attention": "what each attention did; the target's gradient at the last",
    "attention_gradients": "the same with the target's gradients at all; the whole model backwards",
    "readouts": "each layer's own reading of the target by the model's head",
    "halved_terms": "token times gradient at each block by the rules of AttnLRP; one more forward and backward",
    "frozen_terms": "token times gradient at each block by the rules of LibraGrad; one more forward and backward",
}
"""What methods are functions of, by the names of their parameters, and what making it takes."""

_registry: dict[str, Method] = {}


def same_target(target: Target) -> Target:
    """The caller's own target."""
    return target


@dataclass(frozen=True)
class Method:
    """One method: what each channel contributes to each cell, and how the channels become one map.

    Args:
        id: The name in `explain(method=...)`.
        name: The class name, as the paper writes it.
        contributions: Pure function of the evidence, `[B, C, *space] -> [B, C, *space]`; its parameters without a
            default name the evidence that it needs, the others are options.
        paper: Authors, title or venue, and arXiv id.
        summary: One sentence.
        reduce: `[B, C, *space] -> [B, *space]`: the sum over channels or a principal component of them; its parameters
            with a default are options too.
        retarget: From the caller's target to the one that is differentiated; its parameters with a default are options.
        fuse: The raw maps of several layers, `[..., h, w]` each, and a size, to one map in [0, 1].
        layers: From a model, its inferred adapter and the named inputs of one image to where the method looks, if the
            caller does not say.
    """

    id: str
    name: str
    contributions: Callable[..., Tensor] = field(repr=False)
    paper: str
    summary: str
    reduce: Callable[..., Tensor] = field(default=channel_sum, repr=False)
    retarget: Callable[..., Target] = field(default=same_target, repr=False)
    fuse: Callable[[Sequence[Tensor], Sequence[int]], Tensor] = field(default=fuse_mean, repr=False)
    layers: Callable[[nn.Module, Adapter, Mapping[str, Any]], Adapter] = field(default=target_layers, repr=False)
    tokens_only: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The evidence that it needs, by the names in `EVIDENCE`."""
        return _required(self.contributions)

    @property
    def options(self) -> dict[str, Any]:
        """Its options and their defaults."""
        return {**_defaults(self.contributions), **_defaults(self.reduce), **_defaults(self.retarget)}

    @property
    def needs_attention(self) -> bool:
        """True where it is defined for models alone that attend over all of the picture's cells."""
        return not set(self.needs).isdisjoint(ATTENTION)

    @property
    def ignores_target(self) -> bool:
        """True where every target gets the same map."""
        return self.needs == ("activations",)

    @property
    def ignores_class(self) -> bool:
        """True where every class gets the same map; what reads a query's or a prompt's own tokens may still differ."""
        return self.ignores_target or self.tokens_only

    @property
    def description(self) -> str:
        """The summary, and what the map does not depend on."""
        shared = "target" if self.ignores_target else "class" if self.ignores_class else ""
        return f"{self.summary} Same map for every {shared}." if shared else self.summary

    def check_options(self, options: dict[str, Any]) -> None:
        """Refuse options that the method does not have.

        Raises:
            OptionError: naming the option and the known ones.
        """
        for option in options:
            if option not in self.options:
                known = ", ".join(self.options) or "none"
                raise OptionError(f"the method {self.id!r} has no option {option!r}; it has: {known}")

    def targets(self, targets: Sequence[Target], **options: Any) -> list[Target]:
        """What is differentiated for these targets.

        Raises:
            MethodError: the method is not defined for such a target.
        """
        return [self.retarget(target, **_pick(options, self.retarget)) for target in targets]

    def map(self, *, eigen_smooth: bool = False, **evidence: Any) -> Tensor:
        """The map `[B, *space]` in float32 or better, non-negative.

        Cells whose value is within the rounding error of the sum that made it are zero: noise is not evidence.

        Raises:
            MethodError: the evidence is not finite.

        Args:
            eigen_smooth: Take the first principal component of the contributions in place of their sum.
            evidence: `activations` and `gradients`, `[B, C, *space]` each, as far as the method needs them; options.
        """
        given = {name: evidence[name] for name in self.needs}
        for name, tensor in given.items():
            if isinstance(tensor, Tensor) and not _is_finite(tensor):
                dtype = str(tensor.dtype).removeprefix("torch.")
                raise MethodError(f"the {name} are not finite in {dtype}; run the model in a wider dtype")
        tensors = {
            name: _at_least_float32(value) if isinstance(value, Tensor) else value for name, value in given.items()
        }
        options = {name: value for name, value in evidence.items() if name not in EVIDENCE}
        reduce = first_component if eigen_smooth else self.reduce
        contributions = self.contributions(**tensors, **_pick(options, self.contributions))
        rounding = max(_rounding(getattr(value, "dtype", contributions.dtype)) for value in given.values())
        reduced = reduce(contributions, **_pick(options, reduce)).clamp_min(0)
        # Independent errors of one rounding a term add up like the terms' Euclidean norm.
        error = rounding * contributions.norm(dim=1)
        return torch.where(reduced <= error, torch.zeros_like(reduced), reduced)


@cache
def _required(function: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.default is parameter.empty)


@cache
def _defaults(function: Callable[..., Any]) -> Mapping[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def _pick(options: dict[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in _defaults(function)}


def _rounding(dtype: torch.dtype) -> float:
    """The relative error to reckon with in a gradient: 16-bit kernels sum in 32 bits and round once at their end."""
    finfo = torch.finfo(dtype)
    return finfo.eps if finfo.bits == 16 else 8 * finfo.eps


def _is_finite(tensor: Tensor) -> bool:
    """By the extremes, which a NaN passes on: one look at the values in place of three."""
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def register(method: Method) -> Method:
    """Add a method to the registry.

    Raises:
        MethodError: the id is taken or malformed, or the function needs evidence that does not exist.
    """
    if not re.fullmatch(r"[a-z][a-z0-9+-]*", method.id):
        raise MethodError(f"{method.id!r} is no method id: lower-case letters, digits, '+' and '-' only")
    if method.id in _registry:
        raise MethodError(f"a method {method.id!r} is registered already")
    if unknown := set(method.needs) - set(EVIDENCE):
        raise MethodError(f"{method.id!r} needs {sorted(unknown)}; evidence is one of {', '.join(EVIDENCE)}")
    _registry[method.id] = method
    return method


def get_method(method_id: str) -> Method:
    """The method of this id.

    Raises:
        MethodError: there is none; the nearest ids are named.
    """
    if not isinstance(method_id, str) or method_id not in _registry:
        raise MethodError(f"no method {method_id!r}; nearest: {nearest(str(method_id), _registry)}")
    return _registry[method_id]


def list_methods() -> dict[str, Method]:
    """All methods by their ids, in the order of registration: what each needs, its paper, what it ignores.

    >>> [*list_methods()][:2]
    ['gradcam', 'hirescam']
    >>> list_methods()["eigencam"].needs, list_methods()["eigencam"].ignores_target
    (('activations',), True)
    """
    return dict(_registry)
