"""Whether a value fits an option of a method, by the annotation of the parameter."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, Literal, Union

BITS = 63
"""Whole numbers beyond 64 bits, with their sign, overflow in torch."""

WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    type(None): "None",
}


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
