"""What a head reports about an image, and what is made of it: several things as one, and the side of a box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hf_cam.targets import SIDES, SumOf, Target, side_of

Box = tuple[float, float, float, float]

PROBABILITY = "probability"
COSINE = "cosine similarity"
TARGET_VALUE = "value of the target"
SUM_OF_TARGETS = "sum of the targets"
CONFIDENCE = "confidence"
"""Kinds of scores; a head may name others."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One thing that a head reports about one image, such as a class or an object.

    Args:
        target: The scalar to explain.
        label: Its name, for people.
        score: The model's confidence in [0, 1]; None for the target's value.
        score_kind: What the score is, in words, such as "probability"; where not given, "confidence", or "value of the
            target" if there is no score.
        box: `(x0, y0, x1, y1)` in the image's pixels.
        mask: `[H, W]` booleans over the image.
        flags: Warnings, such as "below the threshold".
        boxes: The boxes of several objects, if the subject is the sum of their targets.
    """

    target: Target
    label: str
    score: float | None = None
    box: Box | None = None
    mask: np.ndarray | None = field(default=None, repr=False)
    flags: tuple[str, ...] = ()
    score_kind: str = ""
    boxes: tuple[Box, ...] = ()

    @property
    def outlines(self) -> tuple[Box, ...]:
        """All boxes, of one object or of several."""
        return self.boxes or (() if self.box is None else (self.box,))

    @property
    def kind_of_score(self) -> str:
        """What the score of the explanation is, in words."""
        return self.score_kind or (TARGET_VALUE if self.score is None else CONFIDENCE)


LONGEST_SUM = 3
"""How many different names the label of a sum lists."""


def summed(parts: Sequence[Subject]) -> Subject:
    """Several subjects as one, whose target is the sum of theirs and whose score is the average of theirs.

    >>> cat = Subject(len, "cat", 0.5, (0, 0, 4, 6), score_kind="probability")
    >>> dog = Subject(len, "dog", 0.6, score_kind="probability")
    >>> both = summed([cat, replace(cat, score=0.7, box=(4, 0, 9, 6)), dog])
    >>> both.label, round(both.score, 3), both.score_kind, len(both.boxes)
    ('2 x cat + dog', 0.6, 'average probability', 2)
    """
    if len(parts) == 1:
        return parts[0]
    kinds, scores = {part.kind_of_score for part in parts}, [part.score for part in parts if part.score is not None]
    comparable = len(kinds) == 1 and len(scores) == len(parts)
    masks = [part.mask for part in parts if part.mask is not None]
    return Subject(
        SumOf([part.target for part in parts]),
        _names([part.label for part in parts]),
        sum(scores) / len(scores) if comparable else None,
        mask=np.any(masks, 0) if masks else None,
        flags=tuple(dict.fromkeys(flag for part in parts for flag in part.flags)),
        score_kind=f"average {min(kinds)}" if comparable else SUM_OF_TARGETS,
        boxes=tuple(box for part in parts for box in part.outlines),
    )


def of_side(found: Subject, side: str, target: Target) -> Subject:
    """The subject for one side of the box of another; its score is where that side lies in the image."""
    side = side_of(side)
    edge = "left" if side in ("left", "right") else "top"
    return replace(
        found,
        target=target,
        label=f"{side} side of {found.label}",
        score=None if found.box is None else found.box[SIDES.index(side)],
        score_kind=f"pixels from the {edge}",
    )


def _names(labels: Sequence[str]) -> str:
    counts = Counter(labels)
    names = [label if count == 1 else f"{count} x {label}" for label, count in counts.items()]
    more = f" + {len(names) - LONGEST_SUM} more" if len(names) > LONGEST_SUM else ""
    return " + ".join(names[:LONGEST_SUM]) + more
