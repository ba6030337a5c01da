"""A replica of a model for one call: modules of its own around the same weights, so that the model is never touched."""

from __future__ import annotations

import copy
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

SHARED = frozenset(
    {bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size, Tensor}
)
"""Types of attributes that a replica has in common with its model."""
TABLES = (dict, OrderedDict)
_view = torch.Tensor._make_subclass  # noqa: SLF001
LATE = (types.FunctionType, types.MethodType, partial, weakref.ReferenceType)
"""Types of attributes that may hold modules out of sight; they are bound to the replica after all modules are made."""
PACKS = "support_avx512bf16_for_cpu"
"""An attribute of 4-bit layers of bitsandbytes. Where it is true, a layer packs its own weights, which are the model's,
for a faster product that passes no gradient."""
TORCH = "torch.nn."
"""Where the modules come from that never write to their buffers in evaluation mode."""


class Replica:
    """A copy of a tree of modules that shares its weights and nothing that a forward may assign or write to.

    Attributes, hooks, buffers, lists and dicts are copied; parameters are frozen views of the originals. References
    among the modules, also in bound methods, closures and lists, lead to the copies. Scripted modules stay as they are.

    Args:
        model: The root of the tree.
        weights: Values that stand in for those of the model's parameters.
        frozen: False for a copy with the parameters themselves, through which gradients reach the model.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> copy = Replica(net).module
    >>> copy[0].weight.data_ptr() == net[0].weight.data_ptr(), copy[0].weight.requires_grad
    (True, False)
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[nn.Parameter, Tensor] = MappingProxyType({}),
        *,
        frozen: bool = True,
    ) -> None:
        self._weights, self._frozen = weights, frozen
        self._known: dict[int, Any] = {}
        self.parameters: list[Tensor] = []
        """The model's own parameters that the copies have views of, or have themselves."""
        self._late: list[tuple[Any, Any, Any]] = []  # a container, a key in it, and the original value
        with torch.no_grad():
            self.module: nn.Module = self._module(model)
        for container, key, value in self._late:
            container[key] = self._bound(value)

    def of(self, module: nn.Module) -> nn.Module | None:
        """The copy of a module; None if it is not in the tree."""
        found: nn.Module | None = self._known.get(id(module))
        return found

    def modules(self) -> Iterable[nn.Module]:
        """All copies, also of modules that `nn.Module.modules` does not reach."""
        return [one for one in self._known.values() if isinstance(one, nn.Module)]

    def _module(self, own: nn.Module) -> nn.Module:
        known = self._known
        if (found := known.get(id(own))) is not None:
            return found  # type: ignore[no-any-return]
        if isinstance(own, torch.jit.ScriptModule):
            known[id(own)] = scripted = copy.deepcopy(own).eval() if own.training else own
            self.parameters += own.parameters()
            return scripted
        made: nn.Module = object.__new__(type(own))
        known[id(own)] = made
        table = made.__dict__
        for name, value in own.__dict__.items():
            kind = type(value)
            if kind in SHARED:
                table[name] = value
            elif kind in TABLES:
                table[name] = self._table(value) if value else kind()
            else:
                table[name] = self._value(value, table, name)
        if not type(own).__module__.startswith(TORCH):
            table["_buffers"] = {name: self._buffer(value) for name, value in own._buffers.items()}  # noqa: SLF001
        if PACKS in table:
            table[PACKS] = False
        if "dynamo_ctx" in table:  # a part that torch.compile wrapped: its forward is bound to the original
            table["forward"] = table["_modules"]["_orig_mod"].__call__
        return made

    def _table(self, own: Any) -> Any:
        if (found := self._known.get(id(own))) is not None:
            return found
        self._known[id(own)] = made = type(own)()
        for key, value in own.items():
            kind = type(value)
            made[key] = value if kind in SHARED else self._value(value, made, key)
        return made

    def _value(self, own: Any, container: Any, key: Any) -> Any:
        """The copy of a value that will lie in `container[key]`, which is set again if it must be bound later."""
        kind = type(own)
        if kind is nn.Parameter:
            return self._parameter(own)
        if isinstance(own, nn.Module):
            return self._module(own)
        if kind in LATE:
            self._late.append((container, key, own))
            return own
        if (found := self._known.get(id(own))) is not None:
            return found
        if kind in TABLES:
            return self._table(own)
        if kind is list:
            self._known[id(own)] = items = [None] * len(own)
            for index, value in enumerate(own):
                items[index] = value if type(value) in SHARED else self._value(value, items, index)
            return items
        if kind is set:
            made: Any = {self._value(value, {}, None) for value in own}
        elif kind is tuple:
            made = self._tuple(own)
        else:
            made = self._object(own)
        self._known[id(own)] = made
        return made

    def _tuple(self, own: tuple[Any, ...]) -> tuple[Any, ...]:
        parts = [value if type(value) in SHARED else self._value(value, {}, None) for value in own]
        return own if all(part is value for part, value in zip(parts, own, strict=True)) else tuple(parts)

    def _parameter(self, own: nn.Parameter) -> nn.Parameter:
        if (found := self._known.get(id(own))) is not None:
            return found  # type: ignore[no-any-return]
        self.parameters.append(own)
        if not self._frozen and own not in self._weights:
            return own
        # Of its data, so that a thread that trains the model meanwhile does not invalidate the graph.
        data = (self._weights.get(own, own) if self._weights else own).data  # a tensor's hash is slow
        made: nn.Parameter = _view(nn.Parameter, data)
        if attributes := own.__dict__:
            made.__dict__.update(attributes)
        self._known[id(own)] = made
        return made

    def _object(self, own: Any) -> Any:
        """Frozen, if it is a tensor of its own class; a copy, if one of its attributes is a module; else itself."""
        if isinstance(own, nn.Parameter):
            self.parameters.append(own)
        if isinstance(own, Tensor) and not self._frozen:
            return own
        if isinstance(own, Tensor):
            return nn.Parameter(own.detach(), requires_grad=False) if own.requires_grad and own.is_leaf else own
        attributes = getattr(own, "__dict__", None)
        if type(attributes) is not dict or not any(isinstance(value, nn.Module) for value in attributes.values()):
            return own
        made = copy.copy(own)
        made.__dict__.update(
            {name: self._module(value) for name, value in attributes.items() if isinstance(value, nn.Module)}
        )
        return made

    def _buffer(self, own: Any) -> Any:
        if type(own) is not Tensor or own.is_meta:
            return own
        if (found := self._known.get(id(own))) is None:
            self._known[id(own)] = found = own.clone()
        return found

    def _bound(self, own: Any) -> Any:
        """A function, bound method, partial or weak reference with the copies of the modules that it holds."""
        if (found := self._known.get(id(own))) is not None:
            return found
        if not isinstance(own, LATE):
            return own
        self._known[id(own)] = own  # a closure may hold itself
        made: Any = own
        if isinstance(own, types.MethodType):
            if (owner := self._bound(own.__self__)) is not own.__self__:
                made = types.MethodType(own.__func__, owner)
        elif isinstance(own, partial):
            function, args = self._bound(own.func), tuple(map(self._bound, own.args))
            made = partial(function, *args, **{name: self._bound(value) for name, value in own.keywords.items()})
            made.__dict__.update({name: self._bound(value) for name, value in own.__dict__.items()})
        elif isinstance(own, types.FunctionType):
            made = self._function(own)
        elif (target := own()) is not None and (there := self._known.get(id(target))) is not None:
            made = weakref.ref(there)
        self._known[id(own)] = made
        return made

    def _function(self, own: types.FunctionType) -> Callable[..., Any]:
        cells = [_content(cell) for cell in own.__closure__ or ()]
        bound = [self._bound(content) for content in cells]
        defaults = tuple(map(self._bound, own.__defaults__ or ()))
        named = {name: self._bound(value) for name, value in (own.__kwdefaults__ or {}).items()}
        before = (*cells, *(own.__defaults__ or ()), *(own.__kwdefaults__ or {}).values())
        if all(one is other for one, other in zip((*bound, *defaults, *named.values()), before, strict=True)):
            return own
        closure = tuple(map(types.CellType, bound)) if own.__closure__ else None
        made = types.FunctionType(own.__code__, own.__globals__, own.__name__, defaults or None, closure)
        made.__kwdefaults__ = named or None
        made.__dict__.update(own.__dict__)
        return made


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None
