"""Find and replace layers of a model, at any depth. Replacing changes the model, which is what the caller asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn


def find_layer_predicate_recursive(model: nn.Module, predicate: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """The modules below the model for which the predicate holds, parents before their children.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU()))
    >>> find_layer_predicate_recursive(net, lambda layer: isinstance(layer, nn.ReLU))
    [ReLU()]
    """
    found: list[nn.Module] = []
    for child in model._modules.values():  # noqa: SLF001 - children() leaves out a module's second name
        if child is not None:
            found += [child] * bool(predicate(child))
            found += find_layer_predicate_recursive(child, predicate)
    return found


def find_layer_types_recursive(model: nn.Module, layer_types: Iterable[type]) -> list[nn.Module]:
    """The modules below the model of exactly these types."""
    types = tuple(layer_types)
    return find_layer_predicate_recursive(model, lambda layer: type(layer) in types)


def replace_layer_recursive(model: nn.Module, old_layer: nn.Module, new_layer: nn.Module) -> bool:
    """Put another layer in the place of the first occurrence of one, and return whether there was one."""
    for parent in model.modules():
        for name, child in parent._modules.items():  # noqa: SLF001
            if child is old_layer:
                parent._modules[name] = new_layer  # noqa: SLF001
                return True
    return False


def replace_all_layer_type_recursive(model: nn.Module, old_layer_type: type, new_layer: nn.Module) -> None:
    """Put one layer in the place of every layer of a type."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # noqa: SLF001
            if isinstance(child, old_layer_type):
                parent._modules[name] = new_layer  # noqa: SLF001
