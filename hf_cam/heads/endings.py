"""The last operation of a network that gives its output a meaning, read from the autograd graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor

Ending = Literal["softmax", "sigmoid", "log-softmax", "log-sigmoid", "normalized", "unit-length", "linear", "activated"]
"""An operation that squashes scores, a normalization layer, a division by the length, a linear layer (or convolution),
or an activation function after one."""

SQUASHES: tuple[tuple[str, Ending], ...] = (
    ("logsoftmax", "log-softmax"),
    ("logsigmoid", "log-sigmoid"),
    ("softmax", "softmax"),
    ("sigmoid", "sigmoid"),
)
NORMS = ("layernorm", "batchnorm", "groupnorm", "instancenorm", "rmsnorm")
LINEAR = ("addmm", "mm", "bmm", "baddbmm", "convolution", "linear", "mkldnnlinear", "addbmm", "einsum")
ACTIVATIONS = ("relu", "gelu", "silu", "elu", "leakyrelu", "hardtanh", "hardswish", "tanh", "softplus", "mish", "prelu")
COMBINED = ("add", "sub", "rsub", "mul", "div", "cat", "stack", "mean", "sum")
PASSING = (
    "view", "unsafeview", "reshape", "alias", "asstrided", "squeeze", "unsqueeze", "select", "slice", "permute",
    "transpose", "expand", "clone", "tocopy", "split", "unbind", "index", "gather", "flip", "clamp", "nativedropout",
    "adaptiveavgpool", "adaptivemaxpool", "avgpool", "maxpool", "upsample", "constantpad", "amax",
)  # fmt: skip
"""Beginnings of the names of operations that neither squash nor mix channels: views, pooling, resizing, clipping."""


def ending_of(output: Tensor) -> Ending | None:
    """What the network that made this tensor ends in; None if the graph does not show it.

    Views, pooling, resizing, and sums or means of several branches that end alike are looked through.

    >>> import torch
    >>> logits = torch.zeros(2, 3, requires_grad=True) @ torch.ones(3, 4)
    >>> ending_of(logits), ending_of(logits.softmax(1)[:, 0]), ending_of(logits.relu().mean(1))
    ('linear', 'softmax', 'activated')
    """
    found = set(_endings(output.grad_fn, set()))
    return found.pop() if len(found) == 1 else None


def _endings(node: Any, seen: set[Any]) -> Iterator[Ending | None]:
    """The endings of all branches behind a node of the graph; a branch that ends at the input has none."""
    if node is None or node in seen:
        return
    seen.add(node)
    name = _name(node)
    squash = next((ending for part, ending in SQUASHES if part in name), None)
    inputs = [inner for inner, _ in node.next_functions if inner is not None]
    if squash is not None:
        yield squash
    elif name.endswith(NORMS) or (name == "mul" and any(_name(inner) == "rsqrt" for inner in inputs)):
        yield "normalized"
    elif name == "div" and any(_is_length(inner) for inner in inputs):
        yield "unit-length"
    elif name in LINEAR:
        yield "linear"
    elif name in ACTIVATIONS:
        behind = [ending for inner in inputs for ending in _endings(inner, seen)]
        yield from ("activated" if ending == "linear" else ending for ending in behind)
    elif name.startswith(PASSING) or name in COMBINED or name == "t":
        for inner in inputs:
            yield from _endings(inner, seen)
    elif name != "accumulategrad":
        yield None


def _is_length(node: Any) -> bool:
    """Whether a node is a vector's length, possibly kept from zero and expanded (`torch.nn.functional.normalize`)."""
    while _name(node) in ("expand", "clampmin", "clamp", "unsqueeze", "maximum"):
        node = node.next_functions[0][0]
        if node is None:
            return False
    return _name(node) in ("linalgvectornorm", "norm")


def _name(node: Any) -> str:
    """The operation of a node: "softmax" for `SoftmaxBackward0`."""
    return "" if node is None else type(node).__name__.partition("Backward")[0].replace("_", "").lower()
