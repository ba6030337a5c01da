"""Options, the parameters of a function that have a default; and whether a value fits one, by its annotation."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union

from torch import Tensor

BITS = 63
"""Whole numbers beyond 64 bits, with their sign, overflow in torch."""

WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    type(None): "None",
    Tensor: "a tensor",
}


@cache
def required_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's parameters without a default."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.default is parameter.empty)


@cache
def options_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """A function's parameters with a default, and these defaults.

    >>> options_of(lambda activations, seed=0: activations)
    {'seed': 0}
    """
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def picked(given: Mapping[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Those of the given options that a function has."""
    return {name: value for name, value in given.items() if name in options_of(function)}


def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's parameters; none if they cannot be resolved, as in a plug-in that imports them late."""
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        return {}


def fits(value: Any, expected: Any) -> bool:
    """Whether a value is of an annotated type; True for annotations that are not understood here.

    >>> fits(3, float), fits(True, int), fits(2**70, int), fits([1, 2], Sequence[int])
    (True, False, False, True)
    """
    origin, parts = typing.get_origin(expected), typing.get_args(expected)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str | int) and value in parts
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(fits(one, parts[0]) for one in value)
    if expected is int:
        return isinstance(value, Integral) and not isinstance(value, bool) and int(value).bit_length() <= BITS
    if expected is float:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, expected) if expected in WORDS else True


def described(expected: Any) -> str:
    """An annotated type in words.

    >>> described(int | Sequence[int] | None)
    'a whole number, a list (of each a whole number) or None'
    """
    origin, parts = typing.get_origin(expected), typing.get_args(expected)
    if origin in (Union, types.UnionType):
        *first, last = map(described, parts)
        return f"{', '.join(first)} or {last}"
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is Sequence:
        return f"a list (of each {described(parts[0])})"
    return WORDS.get(expected, str(expected))
