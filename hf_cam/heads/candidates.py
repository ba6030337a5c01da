"""Detectors of ultralytics: a table of candidates for each cell, or of detections, instead of queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from hf_cam.errors import TargetError
from hf_cam.heads.detection import SAME_OBJECT, ListedDetectionHead
from hf_cam.heads.registry import register_head
from hf_cam.models.traits import ModelTraits
from hf_cam.outputs import Path, part_at, tensors_of
from hf_cam.readings import log_scores
from hf_cam.targets import BoxLogit, Target, side_of_box

FAINTEST = 0.001
"""Score below which a candidate is no detection."""
ROTATED, BY_ROWS = "OBB", "RTDETR"


def has_table(traits: ModelTraits) -> bool:
    """Whether a model of ultralytics returns upright boxes, candidate by candidate."""
    return not traits.class_name.startswith((ROTATED, BY_ROWS))


@dataclass(frozen=True)
class CandidateLogit:
    """The logit of a class for one candidate of a detector; the candidate is a cell, so it stays where it is.

    Args:
        candidate: The index of the candidate.
        index: The class.
        path: Where the output holds the logits, `[classes, candidates]`; None takes the log-odds of the table's scores.
    """

    candidate: int
    index: int
    path: Path | None = None

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output."""
        if self.path is not None:
            logit: Tensor = part_at(output, self.path)[self.index, self.candidate]
            return logit
        return log_scores(table_of(output)[4 + self.index, self.candidate], "probabilities", exclusive=False)


@dataclass(frozen=True)
class CandidateBox:
    """One coordinate of the box of one candidate of a detector; see `CandidateLogit`.

    Args:
        candidate: The index of the candidate.
        side: "left", "top", "right" or "bottom"; the coordinate is in the pixels of the model's input.
    """

    candidate: int
    side: str

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output."""
        return side_of_box(table_of(output)[:4, self.candidate], self.side)


def logits_path(output: Any, scores: Tensor) -> Path | None:
    """Where one sample's output holds the logits of these scores `[classes, candidates]`; None if it does not."""
    for path, tensor in tensors_of(output):
        if tensor.shape == scores.shape and torch.allclose(tensor.detach().float().sigmoid(), scores, atol=1e-4):
            return path
    return None


def table_of(output: Any) -> Tensor:
    """The table in one sample's output: its first tensor with two axes.

    Raises:
        TargetError: there is none.
    """
    found = next((tensor for _, tensor in tensors_of(output) if tensor.ndim == 2), None)
    if found is None:
        raise TargetError("the detector's output holds no table of candidates; pass target= as a callable")
    return found


def detections_in(output: Any) -> dict[str, Tensor]:
    """The record of boxes, scores and labels of a table of detections, `[N, 6]`: corners, score and class."""
    table = table_of(output)
    return {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5].long()}


@register_head("candidate-detection", models=["ultralytics.nn.tasks.DetectionModel"], when=has_table)
class CandidateDetectionHead(ListedDetectionHead):
    """ultralytics' detectors, which score every cell; candidates for the same object are dropped.

    An index as target is the position of a detection, most confident first.
    """

    threshold: ClassVar[float | None] = 0.25

    def listed(self, output: Any) -> dict[str, Tensor]:
        """The record of boxes, labels, scores and candidates, most confident first."""
        if self._ends_in_detections():
            return detections_in(output)
        table = table_of(output).detach().float()
        scores, labels = table[4 : 4 + self._count()].max(0)
        [kept] = (scores >= min(FAINTEST, float(scores.max()))).nonzero(as_tuple=True)
        x, y, width, height = table[:4, kept]
        boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
        order = batched_nms(boxes, scores[kept], labels[kept], SAME_OBJECT)
        kept = kept[order]
        return {"boxes": boxes[order], "scores": scores[kept], "labels": labels[kept], "candidates": kept}

    def target_of(self, output: Any, listed: dict[str, Tensor], position: int, label: int) -> Target:
        """The logit of one detection."""
        if "candidates" in listed:
            scores = table_of(output).detach().float()[4 : 4 + self._count()]
            return CandidateLogit(int(listed["candidates"][position]), label, logits_path(output, scores))
        x0, y0, x1, y1 = listed["boxes"][position].detach().tolist()
        return BoxLogit((x0, y0, x1, y1), label, detections_in)

    def side(self, target: Target, side: str) -> Target:
        """The coordinate of a side of the box of a candidate."""
        return (
            CandidateBox(target.candidate, side) if isinstance(target, CandidateLogit) else super().side(target, side)
        )

    def _last(self) -> Any:
        return list(self.loaded.module.children())[-1][-1]  # type: ignore[index]

    def _count(self) -> int:
        return int(self._last().nc)

    def _ends_in_detections(self) -> bool:
        """Whether the network itself drops candidates for the same object."""
        return bool(getattr(self._last(), "end2end", False))
