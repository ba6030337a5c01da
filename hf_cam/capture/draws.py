"""Random numbers of a forward from a generator of its own, so that no other thread's numbers change or repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from hf_cam.threads import HERE

KEY = "_hf_cam_draws"
"""The attribute of a replica in which its model's `Draws` lie."""
SEEDED = torch.Tag.nondeterministic_seeded
aten = torch.ops.aten

Draws = dict[frozenset[str], bool]
"""For the names of the inputs of a forward, whether it draws random numbers."""

_known: WeakKeyDictionary[nn.Module, Draws] = WeakKeyDictionary()


def remember_draws(replica: nn.Module, model: nn.Module) -> None:
    """Let a replica share what is known about the random numbers of its model."""
    replica.__dict__[KEY] = _known.setdefault(model, {})


def has_drawn(replica: nn.Module) -> bool:
    """Whether a forward of the model has drawn random numbers so far."""
    return any(replica.__dict__.get(KEY, {}).values())


@contextmanager
def other_draws(seed: int = 1) -> Iterator[None]:
    """Let forwards inside the `with` block draw other random numbers than usual."""
    call = HERE.call
    before, call.seed = call.seed, seed
    try:
        yield
    finally:
        call.seed = before


def own_draws(module: nn.Module, inputs: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Let a forward draw the same random numbers each time, and leave the generators of the process alone.

    A dispatch mode serves only a model's first forward and those of models that drew numbers in it, because it costs
    time. It belongs to the thread.

    Args:
        module: A replica; any other module draws from the generators of the process.
        inputs: The named inputs of the forward.
    """
    known: Draws | None = module.__dict__.get(KEY)
    names = frozenset(inputs)
    if known is None or known.get(names) is False:
        return nullcontext()
    return _noted(known, names)


@contextmanager
def _noted(known: Draws, names: frozenset[str]) -> Iterator[None]:
    mode = _OwnGenerator(HERE.call.seed)
    torch._C._push_on_torch_dispatch_stack(mode)  # noqa: SLF001 - a `with` sets flags that all threads share
    try:
        yield
    finally:
        if _get_current_dispatch_mode() is mode:  # not where an interrupt has already taken it off
            torch._C._pop_torch_dispatch_stack(None)  # noqa: SLF001
    known[names] = bool(mode.generators)


class _OwnGenerator(TorchDispatchMode):
    """Random functions draw from generators of this mode's own, one per device."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if SEEDED not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if (replaced := REPLACED.get(func)) is not None:
            return replaced(self._generator(args, kwargs), *args, **kwargs)
        if any(argument.name == "generator" for argument in func._schema.arguments):  # noqa: SLF001
            return func(*args, **{**kwargs, "generator": self._generator(args, kwargs)})
        return func(*args, **kwargs)  # fused attention, which draws for dropout alone

    def _generator(self, args: Any, kwargs: Any) -> torch.Generator | None:
        tensor = next((one for one in args if isinstance(one, Tensor)), None)
        device = torch.device(kwargs.get("device") or (tensor.device if tensor is not None else "cpu"))
        if device.type == "meta":
            return None
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]


def _alike(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`rand_like` and its kin, which take no generator, by filling an empty tensor."""

    def filled(generator: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return draw(torch.empty_like(tensor, **kwargs), *args, generator=generator)

    return filled


def _sized(overload: Any) -> Callable[..., Tensor]:
    def drawn(generator: Any, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = overload(*args, **kwargs, generator=generator)
        return found

    return drawn


def _dropout(generator: Any, tensor: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if not train:
        return tensor.clone(), torch.ones_like(tensor, dtype=torch.bool)
    kept = torch.empty_like(tensor).bernoulli_(1 - p, generator=generator)
    return tensor * kept * (0.0 if p == 1 else 1 / (1 - p)), kept.bool()


def _below(tensor: Tensor, high: int, generator: Any) -> Tensor:
    return tensor.random_(0, high, generator=generator)


def _between(tensor: Tensor, low: int, high: int, generator: Any) -> Tensor:
    return tensor.random_(low, high, generator=generator)


REPLACED: dict[Any, Callable[..., Any]] = {
    aten.rand.default: _sized(aten.rand.generator),
    aten.randn.default: _sized(aten.randn.generator),
    aten.randint.default: _sized(aten.randint.generator),
    aten.randint.low: _sized(aten.randint.low_generator),
    aten.randperm.default: _sized(aten.randperm.generator),
    aten.rand_like.default: _alike(Tensor.uniform_),
    aten.randn_like.default: _alike(Tensor.normal_),
    aten.randint_like.default: _alike(_below),
    aten.randint_like.low_dtype: _alike(_between),
    aten.native_dropout.default: _dropout,
}
"""Random functions without an argument for a generator, by others that take one."""
