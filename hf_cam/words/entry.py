"""Gradients of words with respect to the picture's cells where they enter the language model, one backward per word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.inputs import call
from hf_cam.errors import NoGradientError
from hf_cam.words.place import Place, swapped_in
from hf_cam.words.scores import Score


@dataclass(frozen=True, eq=False)
class Entry:
    """The picture's cells where they enter, and what the words' scores change with them.

    Args:
        states: `[n, D]`, detached.
        logits: `[T, V]` at the rows that predict the tokens, detached.
        gradients: `[n, D]` for each word; each may be taken once.
    """

    states: Tensor
    logits: Tensor
    gradients: Iterator[Tensor] = field(repr=False)


def entry_of(
    model: nn.Module,
    inputs: Mapping[str, Any],
    score: Score,
    place: Place,
    words: Sequence[Sequence[int]],
    rows: Tensor,
) -> Entry:
    """The cells at a place in a forward over prompt and answer, and the words' gradients there.

    Args:
        model: A replica with frozen parameters.
        inputs: Of the forward.
        score: Of the answer's tokens.
        place: Where the picture enters.
        words: The indices of each word's tokens in the answer.
        rows: `[T]` the rows that predict the tokens, counted from the last position, which is -1.

    Raises:
        NoGradientError: no gradient reaches the place.
    """
    with swapped_in(model, place) as box:
        logits = call(model, inputs)["logits"][0, rows]
    leaf = box.get("leaf")
    with torch.enable_grad():
        values = score.values(logits)
    if leaf is None or not values.requires_grad:
        raise NoGradientError(
            f"no gradient of the words reaches {place.module!r}, where the picture enters the language model; its "
            "kernels may be made for inference alone"
        )

    def gradients() -> Iterator[Tensor]:
        for number, word in enumerate(words):
            total = values[list(word)].sum()
            [found] = torch.autograd.grad(total, leaf, retain_graph=number < len(words) - 1, allow_unused=True)
            yield torch.zeros_like(leaf) if found is None else found

    return Entry(leaf.detach(), logits.detach(), gradients())
