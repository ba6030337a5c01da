"""The words' logits at the picture's positions, from the last hidden states of one forward (a logit lens)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.inputs import call
from hf_cam.errors import MethodError


@dataclass(frozen=True, eq=False)
class Readout:
    """The logits of the answer's tokens elsewhere in the sequence.

    Args:
        at_cells: `[T, n]` logits of each token at the picture's cells.
        at_tokens: `[T, T]` logits of each token, by row, at the rows that predict the tokens, by column.
        tokens: `[T]` ids.
        logits: `[T, V]` at the rows that predict the tokens.
    """

    at_cells: Tensor
    at_tokens: Tensor
    tokens: Tensor
    logits: Tensor


def readout_of(model: nn.Module, inputs: Mapping[str, Any], tokens: Tensor, cells: Tensor, rows: Tensor) -> Readout:
    """The logits of tokens at all positions, from the input of the output layer and that layer's own rows.

    Args:
        model: A replica.
        inputs: Of a forward over the prompt and all tokens but the last.
        tokens: `[T]` ids.
        cells: `[n]` positions of the picture's cells in the sequence.
        rows: `[T]` the rows that predict the tokens, counted from the last position, which is -1.

    Raises:
        MethodError: the model has no linear output layer over one sequence.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Linear):
        raise MethodError("'tam' needs a linear output layer, which this model has not; 'word-contribution' needs none")
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        with torch.no_grad():
            logits = call(model, {**inputs, "logits_to_keep": 0} if "logits_to_keep" in inputs else inputs)["logits"]
    finally:
        handle.remove()
    if not seen or seen[-1].shape[1] <= int(cells.max()):
        raise MethodError("'tam' needs the last states of the whole sequence; 'word-contribution' needs none of them")
    states = seen[-1][0]
    known = torch.nn.functional.linear(states, head.weight[tokens.to(head.weight.device)]).T
    return Readout(known[:, cells.to(known.device)], known[:, rows], tokens.to(known.device), logits[0, rows])
