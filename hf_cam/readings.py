"""How the scores of classes are read in a model's output: where they stand, and which numbers they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor

from hf_cam.devices.transfer import on_host
from hf_cam.outputs import Path, is_map, is_row, part_at, parts_of, scores_path

Scale = Literal["logits", "probabilities", "log-probabilities", "values"]


@dataclass(frozen=True)
class Reading:
    """How the scores of classes are read in one sample's output; the classes are the first axis.

    Args:
        path: Where they stand; None finds them in each output by `hf_cam.outputs.scores_path`.
        scale: Which numbers they are. Of probabilities `p`, what is differentiated is `log(p)` if the classes exclude
            each other, as after a softmax, and otherwise the log-odds `log(p / (1 - p))`: these, not `p`, grow with the
            evidence however sure the model is. "values" are predicted quantities, differentiated as they are.
        exclusive: Whether exactly one class applies; False if each has a probability of its own.
        maps: Whether there is a score for each class and cell, `[K, h, w]`.

    >>> sure = Reading(scale="probabilities")
    >>> sure.scores(torch.tensor([0.25, 0.75])), sure.logits(torch.tensor([0.25, 0.75])).exp()
    (tensor([0.2500, 0.7500]), tensor([0.2500, 0.7500]))
    """

    path: Path | None = None
    scale: Scale = "logits"
    exclusive: bool = True
    maps: bool = False

    def values(self, output: Any) -> Tensor:
        """The numbers as the model returns them, `[K]` or `[K, h, w]`.

        Raises:
            TargetError: there are none, or several candidates.
        """
        found: Tensor = part_at(output, self._place(output))
        return found.flatten() if is_row(found) and not self.maps else found

    def logits(self, output: Any) -> Tensor:
        """The numbers to differentiate: logits, log-odds or log-probabilities, shaped as `values`."""
        values = self.values(output)
        return log_scores(values, self.scale, exclusive=self.exclusive and len(values) > 1)

    def scores(self, output: Any) -> Tensor:
        """The model's confidence in each class, in [0, 1], or the values themselves; shaped as `values`."""
        values = self.values(output)
        return probabilities_of(values, self.scale, exclusive=self.exclusive and len(values) > 1)

    def on_host(self, output: Any) -> tuple[Tensor, Tensor]:
        """`logits` and `scores` on the CPU, detached, in float32 or better."""
        found = on_host(part_at(output, self._place(output)))
        found, here = found if found.dtype == torch.float64 else found.float(), replace(self, path=())
        return here.logits(found), here.scores(found)

    def rows(self, outputs: Any, batch: int) -> Tensor | None:
        """`logits` of every sample of a batch, `[B, K]`; None where they do not stand in one tensor for sure."""
        path = self.path
        if path is None:
            path = () if isinstance(outputs, Tensor) else ("logits",)
        found = outputs if not path else (parts_of(outputs) or {}).get(path[0])
        if self.maps or len(path) > 1 or isinstance(outputs, list) or not are_rows(found, batch):
            return None
        return log_scores(found, self.scale, exclusive=self.exclusive)

    def _place(self, output: Any) -> Path:
        return scores_path(output, is_map if self.maps else is_row) if self.path is None else self.path


AS_LOGITS, AS_MAPS = Reading(), Reading(maps=True)
"""Of logits that are found by `scores_path`, one per class, or one per class and cell."""


def are_rows(found: Any, batch: int) -> TypeGuard[Tensor]:
    """Whether something is a plain tensor with two numbers or more for each sample of a batch."""
    return type(found) is Tensor and found.ndim == 2 and len(found) == batch and found.shape[1] > 1


def log_scores(values: Tensor, scale: Scale, *, exclusive: bool) -> Tensor:
    """Logits unchanged; of probabilities their logarithm if they are exclusive, and otherwise their log-odds.

    >>> log_scores(torch.tensor([0.5, 0.0]), "probabilities", exclusive=False).isfinite()
    tensor([True, True])
    """
    if scale in ("logits", "values"):
        return values
    values = values if values.dtype == torch.float64 else values.float()
    limits = torch.finfo(values.dtype)
    if scale == "probabilities":
        logarithm = values.clamp_min(limits.tiny).log()
        return logarithm if exclusive else logarithm - torch.log1p(-values.clamp_max(1 - limits.eps / 2))
    return values if exclusive else values - torch.log(-torch.expm1(values.clamp_max(-limits.eps / 2)))


def probabilities_of(values: Tensor, scale: Scale, *, exclusive: bool, axis: int = 0) -> Tensor:
    """Scores in [0, 1] from logits, probabilities or log-probabilities; the classes are the first axis, or another.

    Values are returned unchanged.
    """
    values = values if values.dtype == torch.float64 else values.float()
    if scale in ("probabilities", "values"):
        return values
    if scale == "log-probabilities":
        return values.exp()
    return values.softmax(axis) if exclusive else values.sigmoid()
