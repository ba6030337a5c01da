"""The registry of methods, which the classes, the pipeline, the command and the Space all read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hf_cam.devices.transfer import read
from hf_cam.doors import meant_by
from hf_cam.errors import MethodError, OptionError, brief
from hf_cam.maps import at_least_float32, fuse_mean, fuse_signed
from hf_cam.methods.options import annotations_of, described, fits, options_of, picked, required_of
from hf_cam.methods.reductions import channel_sum, first_component, first_kernel_component
from hf_cam.methods.signals import SIGNALS, Signal
from hf_cam.registry import Registry
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.stages import target_layers
from hf_cam.targets import Target

WIDTH = 768
"""Channels of a typical target layer."""

BUDGET = 100.0
"""Forwards up to which a method is taken where the caller names none: by `compare`, `evaluate` and the pages."""

OF_CLASS = ("model", "layers", "reshape", "rerun_batch_size")
"""Arguments of a CAM beside the method's options."""
OF_CALL = ("pixel_values", "targets", "aug_smooth", "eigen_smooth", "signed", "differentiable")
"""Arguments of its call."""

Contributions = TypeVar("Contributions", bound=Callable[..., Tensor])


def same_target(target: Target) -> Target:
    """The caller's target, unchanged."""
    return target


@dataclass(frozen=True)
class Method:
    """One method: what each channel contributes to each cell, and how the channels become one map.

    Args:
        id: The name in `explain(method=...)`.
        name: The class name, as the paper writes it.
        contributions: Pure function of signals, `[B, C, *space] -> [B, C, *space]`; its parameters without a default
            name the signals that it needs, the others are options.
        paper: Authors, title or venue, and arXiv id.
        summary: One sentence.
        reduce: `[B, C, *space] -> [B, *space]`: the sum over channels or a principal component of them; its parameters
            with a default are options too.
        retarget: Maps the caller's target to the one that is differentiated; its parameters with a default are options
            too.
        fuse: Combines the raw maps of several layers, `[..., h, w]` each, into one map in [0, 1] of a given size.
        layers: Chooses the adapter from a model, its inferred adapter and the named inputs of one image, unless the
            caller names layers.
        tokens_only: Whether the map depends on the target only through the tokens that the target reads.
        departure: One line on what it does otherwise than its paper or its authors' code; empty if nothing.
        layer_forwards: The number of forwards that `layers` takes.
        unsigned: Why its map cannot show evidence against the target, as a clause such as "it keeps positive gradients
            alone"; empty if it can. A function of the options on which that depends.
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
    layer_forwards: float = 0.0
    departure: str = ""
    unsigned: str | Callable[..., str] = field(default="", repr=False)

    @property
    def source(self) -> Callable[..., Any]:
        """The registered function."""
        return self.contributions

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the signals that it needs."""
        return required_of(self.contributions)

    @property
    def signals(self) -> tuple[Signal, ...]:
        """The signals that it needs."""
        return tuple(SIGNALS.get(name) for name in self.needs)

    @property
    def options(self) -> dict[str, Any]:
        """Its options and their defaults, those of its signals among them."""
        return {name: default for part in self._parts for name, default in options_of(part).items()}

    @property
    def _types(self) -> dict[str, Any]:
        """The annotated types of its options."""
        return {name: kind for part in self._parts for name, kind in annotations_of(part).items()}

    @property
    def _parts(self) -> tuple[Callable[..., Any], ...]:
        """The functions that have options; where two share one, the default is the later one's."""
        return (*(signal.provide for signal in self.signals), self.contributions, self.reduce, self.retarget)

    @property
    def needs_gradients(self) -> bool:
        """Whether the part of the model behind the target layer is recorded and differentiated."""
        return any(signal.gradients or signal.second_order for signal in self.signals)

    @property
    def differentiates(self) -> bool:
        """True where it follows gradients, also to find its way through attention."""
        return self.needs_gradients or any(signal.attention or signal.watch for signal in self.signals)

    @property
    def needs_attention(self) -> bool:
        """Whether it is defined only for models that attend over all cells of the picture."""
        return any(signal.attention for signal in self.signals)

    @property
    def works_on_pixels(self) -> bool:
        """Whether it is defined only for the pixels of one picture, not for cut patches or frames."""
        return any(signal.pixels for signal in self.signals)

    @property
    def differentiable(self) -> bool:
        """Whether its map may stay in the caller's graph."""
        return self.reduce is not first_kernel_component and all(signal.connected for signal in self.signals)

    def check_differentiable(self) -> None:
        """Refuse to keep a map in the caller's graph that is not made by differentiable operations alone.

        Raises:
            MethodError: naming what is not.
        """
        if self.reduce is first_kernel_component:
            raise MethodError(f"{self.id!r} is not differentiable, because its components are computed outside torch")
        if broken := [signal.name for signal in self.signals if not signal.connected]:
            raise MethodError(
                f"{self.id!r} is not differentiable, because its {', '.join(broken)} leave no graph; 'gradcam', "
                "'hirescam', 'layercam' and the other gradient methods are"
            )

    @property
    def reruns(self) -> bool:
        """Whether the model, or the part behind the target layer, runs again for many variants."""
        return any(signal.reruns for signal in self.signals)

    @property
    def reads_layer(self) -> bool:
        """Whether it uses only the target layer's output and the gradients there."""
        return not any(signal.watch or signal.attention or signal.pixels or signal.reruns for signal in self.signals)

    def cost(self, channels: int = WIDTH, **options: Any) -> float:
        """The number of forwards of the model that the first call takes for one target; see `Signal`.

        Args:
            channels: Of the target layer.
            options: Of the method; those not given have their defaults.

        Raises:
            OptionError: there is no such option, or a value does not fit.
        """
        self.check_options(options)
        given = {**self.options, **options}
        return 1 + self.layer_forwards + sum(signal.price(channels, given) for signal in self.signals)

    def fits(self, budget: float, **options: Any) -> bool:
        """Whether it takes at most `budget` forwards on a layer of 768 channels; options that it has not are ignored.

        Raises:
            OptionError: the value of an option does not fit.

        >>> list_methods()["gradcam"].fits(2), list_methods()["scorecam"].fits(BUDGET)
        (True, False)
        """
        return self.cost(**{name: value for name, value in options.items() if name in self.options}) <= budget

    @property
    def ignores_target(self) -> bool:
        """Whether every target gets the same map."""
        return all(signal.ignores_target for signal in self.signals)

    @property
    def ignores_class(self) -> bool:
        """Whether every class gets the same map; queries and prompts that read different tokens may still differ."""
        return self.ignores_target or self.tokens_only

    @property
    def description(self) -> str:
        """The summary, followed by what the map does not depend on."""
        shared = "target" if self.ignores_target else "class" if self.ignores_class else ""
        return f"{self.summary} Same map for every {shared}." if shared else self.summary

    def why_unsigned(self, options: Mapping[str, Any]) -> str:
        """Why its map has no sign, as a clause; empty if it has one.

        Args:
            options: Of the method.

        >>> list_methods()["eigencam"].why_unsigned({})
        'its map is the same for every target'
        """
        if self.ignores_target:
            return "its map is the same for every target"
        own = self.unsigned
        return own(**picked(options, own)) if callable(own) else own

    def check_signed(self, options: Mapping[str, Any]) -> None:
        """Refuse to show evidence against a target where the method has none.

        Raises:
            MethodError: naming the reason.
        """
        if reason := self.why_unsigned(options):
            raise MethodError(
                f"{self.id!r} has no signed map, because {reason}; 'gradcam', 'hirescam' and 'input-x-gradient' have"
            )

    def check_options(self, options: dict[str, Any]) -> None:
        """Refuse options that the method does not have, and values of another type.

        Raises:
            OptionError: there is no such option, or a value does not fit; the message says what does.
        """
        for option, value in options.items():
            if option not in self.options:
                known = ", ".join(self.options) or "none"
                meant = meant_by(option, (*OF_CLASS, *self.options), {"the call": OF_CALL})
                raise OptionError(f"the method {self.id!r} has no option {option!r}; it has: {known}{meant}")
            expected = self._types.get(option, Any)
            if not fits(value, expected):
                raise OptionError(
                    f"the option {option!r} of the method {self.id!r} must be {described(expected)}, got {brief(value)}"
                )

    def targets(self, targets: Sequence[Target], **options: Any) -> list[Target]:
        """The targets that are differentiated in place of these.

        Raises:
            MethodError: the method is not defined for such a target.
        """
        return [self.retarget(target, **picked(options, self.retarget)) for target in targets]

    def map(self, *, eigen_smooth: bool = False, signed: bool = False, **given: Any) -> Tensor:
        """The map `[B, *space]` in float32 or better, non-negative unless it is signed.

        A cell whose value is within the rounding error of its sum is set to zero, because noise is not evidence.

        Args:
            eigen_smooth: Take the first principal component of the contributions instead of their sum.
            signed: Keep the cells below zero, which speak against the target.
            given: The signals that the method needs, `[B, C, *space]` if they are tensors, and its options.

        Raises:
            MethodError: a signal is not finite.
        """
        signals = {name: given[name] for name in self.needs}
        _check_finite({name: value for name, value in signals.items() if isinstance(value, Tensor)})
        tensors = {
            name: at_least_float32(value) if isinstance(value, Tensor) else value for name, value in signals.items()
        }
        reduce = first_component if eigen_smooth else self.reduce
        contributions = self.contributions(**tensors, **picked(given, self.contributions))
        # A record or a function is known only by what was made of it.
        _check_finite({name: contributions for name, value in signals.items() if not isinstance(value, Tensor)})
        dtypes = [getattr(value, "dtype", contributions.dtype) for value in signals.values()]
        contributions = at_least_float32(contributions)
        reduced = reduce(contributions, **picked(given, reduce))
        reduced = reduced if signed else reduced.clamp_min(0)
        return without_rounding(reduced, contributions, max(dtypes, key=_rounding))

    def fused(self, raw: Sequence[Tensor], size: Sequence[int], *, signed: bool = False) -> Tensor:
        """One map of a size from the raw maps of several layers: in [0, 1] of what speaks for the target.

        Args:
            raw: `[..., h, w]` each.
            size: Height and width; of volumes and videos, the depth or the number of frames comes first.
            signed: A map in [-1, 1], which also shows what speaks against the target.
        """
        if signed:
            return fuse_signed(raw, size)
        return self.fuse([maps.clamp_min(0) for maps in raw], size)


def without_rounding(reduced: Tensor, contributions: Tensor, dtype: torch.dtype) -> Tensor:
    """`[B, *space]` with 0 for what is within the rounding error of the terms `[B, C, *space]`.

    Args:
        reduced: What was made of the terms.
        contributions: The terms.
        dtype: In which they were computed.
    """
    # The errors of rounding each gradient to 16 bits are independent and add up like the Euclidean norm of the terms.
    # Those of sums over all channels, as in a layer norm's backward pass, are common to the terms.
    order = 2 if torch.finfo(dtype).bits == 16 else 1
    error = _rounding(dtype) * torch.linalg.vector_norm(contributions, order, dim=1)
    return torch.where(reduced.abs() <= error, torch.zeros_like(reduced), reduced)


def _rounding(dtype: torch.dtype) -> float:
    """The relative error to expect in a gradient: 16-bit kernels sum in 32 bits and round once at the end."""
    finfo = torch.finfo(dtype)
    return finfo.eps if finfo.bits == 16 else 8 * finfo.eps


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Checked on the extremes, which propagate NaN: one pass over the values instead of three, and one wait for all."""
    if not tensors:
        return
    finite = read([torch.stack(tensor.aminmax()).isfinite().all() for tensor in tensors.values()])
    for (name, tensor), fine in zip(tensors.items(), finite, strict=True):
        if not fine:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise MethodError(f"the {name} are not finite in {dtype}; run the model in a wider dtype")


def _check_signals(method: Method) -> None:
    """Refuse a function whose parameters without a default are not all signals."""
    if not method.needs:
        raise MethodError(f"{method.id!r} needs no signal: at least one parameter without a default must name a signal")
    for name in method.needs:
        try:
            SIGNALS.get(name)
        except MethodError as error:
            raise MethodError(f"{method.id!r} needs {name!r}: {error}; an option must have a default") from error


METHODS = Registry[Method]("method", MethodError, r"[a-z][a-z0-9+-]*", _check_signals)


def register(method: Method, replace: bool = False) -> Method:
    """Add a method to the registry and return it; registering it again from the same place replaces it.

    Args:
        method: The record.
        replace: Also replace a method of the same id that comes from elsewhere.

    Raises:
        MethodError: the id is malformed or taken, or the function needs a signal that does not exist.
    """
    return METHODS.add(method, replace)


def method(
    method_id: str,
    *,
    name: str,
    paper: str,
    summary: str,
    reduce: Callable[..., Tensor] = channel_sum,
    retarget: Callable[..., Target] = same_target,
    fuse: Callable[[Sequence[Tensor], Sequence[int]], Tensor] = fuse_mean,
    layers: Callable[[nn.Module, Adapter, Mapping[str, Any]], Adapter] = target_layers,
    tokens_only: bool = False,
    layer_forwards: float = 0.0,
    departure: str = "",
    unsigned: str | Callable[..., str] = "",
    replace: bool = False,
) -> Callable[[Contributions], Contributions]:
    """Register a pure function of signals as a method; the function is returned unchanged.

    Args:
        method_id: The name in `explain(method=...)`.
        name, paper, summary, reduce, retarget, fuse, layers, tokens_only, layer_forwards, departure, unsigned: See
            `Method`.
        replace: Also replace a method of the same id that comes from elsewhere.

    Raises:
        MethodError: the id is malformed or taken, or the function needs a signal that does not exist.
    """

    def add(contributions: Contributions) -> Contributions:
        record = Method(
            method_id,
            name,
            contributions,
            paper,
            summary,
            reduce,
            retarget,
            fuse,
            layers,
            tokens_only,
            layer_forwards,
            departure,
            unsigned,
        )
        register(record, replace)
        return contributions

    return add


def get_method(method_id: str) -> Method:
    """The method of this id.

    Raises:
        MethodError: there is none; the message names the nearest ids.
    """
    return METHODS.get(method_id)


def list_methods() -> dict[str, Method]:
    """All methods by id, in the order of registration.

    >>> [*list_methods()][:2]
    ['gradcam', 'hirescam']
    >>> list_methods()["eigencam"].needs, list_methods()["eigencam"].ignores_target
    (('activations',), True)
    """
    return METHODS.records()


def methods_within(budget: float, options: Mapping[str, Any] | None = None) -> list[str]:
    """The ids of the methods that take at most so many forwards, those that are defined only for some models included.

    Args:
        budget: The number of forwards; see `Method.cost`.
        options: Options that change what a method costs, such as `{"samples": 20}`.

    Raises:
        OptionError: the value of an option does not fit a method that has it.

    >>> "gradcam" in methods_within(2), "scorecam" in methods_within(BUDGET)
    (True, False)
    """
    return [method.id for method in list_methods().values() if method.fits(budget, **(options or {}))]
