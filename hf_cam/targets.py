"""Targets, the scalars to explain: any callable from one sample's output to a scalar tensor, and the common ones."""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hf_cam.devices.transfer import on_host, sent
from hf_cam.doors import blaming, unreadable
from hf_cam.errors import TargetError, brief, nearest
from hf_cam.outputs import (
    BOXES,
    DEPTH,
    HEATMAPS,
    LOGITS,
    MASKS,
    SIMILARITIES,
    TEXT,
    detections_of,
    embedding_of,
    field_of,
    parts_of,
    sample_of,
    similarities_of,
    upright,
)
from hf_cam.readings import AS_LOGITS, AS_MAPS, Reading, are_rows

Target = Callable[[Any], Tensor]


@dataclass(frozen=True)
class ClassLogit:
    """The logit of one class; of a model that returns probabilities, its log-probability or log-odds.

    Args:
        index: The class.
        reading: Where the scores stand in the output, and whether they are logits or probabilities.

    >>> ClassLogit(2)(torch.tensor([0.0, 1.0, 5.0]))
    tensor(5.)
    """

    index: int
    reading: Reading = AS_LOGITS

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output: a tensor of logits `[K]` or a record that holds them."""
        return self.reading.logits(output)[self.index]


@dataclass(frozen=True)
class ClassProbability:
    """The probability of one class. Its gradient vanishes when the model is certain, so prefer the logit.

    Args:
        index: The class.
        reading: See `ClassLogit`.
    """

    index: int
    reading: Reading = AS_LOGITS

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output."""
        return self.reading.scores(output)[self.index]


@dataclass(frozen=True)
class BinaryLogit:
    """The single logit of a binary classifier, with its sign flipped for the negative class.

    Args:
        positive: False for the negative class.
        reading: See `ClassLogit`; of a probability, the target is its log-odds.
    """

    positive: bool = True
    reading: Reading = AS_LOGITS

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output `[1]`."""
        logit = self.reading.logits(output).reshape(-1)[0]
        return logit if self.positive else -logit


@dataclass(frozen=True)
class PromptSimilarity:
    """How well an image fits one prompt: its `logits_per_image`, the cosine similarity times the model's scale.

    Args:
        index: Index of the prompt in `text`.
        contrast: Subtract the mean over the other prompts, for what fits this prompt better than them.

    >>> PromptSimilarity(1, contrast=True)({"logits_per_image": torch.tensor([2.0, 5.0, 4.0])})
    tensor(2.)
    """

    index: int
    contrast: bool = False

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output with `logits_per_image` `[P]`."""
        similarities = similarities_of(output)
        chosen = similarities[self.index]
        if not self.contrast:
            return chosen
        if len(similarities) < 2:
            raise TargetError("a contrast needs two or more prompts")
        return chosen - (similarities.sum() - chosen) / (len(similarities) - 1)


@dataclass(frozen=True, eq=False)
class EmbeddingSimilarity:
    """The cosine similarity of the image's embedding to a given one, such as that of another image.

    Args:
        embedding: `[D]`.
    """

    embedding: Tensor

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output.

        Raises:
            TargetError: the two embeddings differ in length.
        """
        own = embedding_of(output)
        if own.shape != self.embedding.shape:
            raise TargetError(
                f"the embedding to compare with is {list(self.embedding.shape)}, but the model's is {list(own.shape)}"
            )
        similarity: Tensor = torch.nn.functional.cosine_similarity(own, self.embedding.to(own), dim=-1)
        return similarity


@dataclass(frozen=True)
class EmbeddingNorm:
    """The length of the image's embedding: what an embedding model finds in an image, compared with nothing.

    >>> EmbeddingNorm()(torch.tensor([3.0, 4.0]))
    tensor(5.)
    """

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output."""
        length: Tensor = torch.linalg.vector_norm(embedding_of(output))
        return length


@dataclass(frozen=True)
class QueryLogit:
    """The class logit of one query of a detector; choose the query on the unperturbed image and keep it fixed.

    Args:
        query: The index of the query.
        index: The class; several (the tokens of one phrase) are averaged.

    >>> QueryLogit(1, 2)(torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))
    tensor(5.)
    """

    query: int
    index: int | tuple[int, ...]

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output with logits `[queries, classes]`."""
        chosen = field_of(output, LOGITS)[self.query]
        return chosen[self.index] if isinstance(self.index, int) else chosen[list(self.index)].mean()


Side = Literal["left", "top", "right", "bottom"]
SIDES: tuple[Side, ...] = ("left", "top", "right", "bottom")
"""The sides of a box, in the order of its coordinates."""
COORDINATES = (("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"))
"""Other names of the sides."""


def side_of(name: Any) -> Side:
    """The side of a box that a name stands for.

    >>> side_of("left"), side_of("y1"), side_of("xmax")
    ('left', 'bottom', 'right')

    Raises:
        TargetError: it is none.
    """
    for names in (SIDES, *COORDINATES):
        if name in names:
            return SIDES[names.index(name)]
    raise TargetError(f"a box has the sides {', '.join(SIDES)} (x0, y0, x1, y1), not {brief(name)}")


@dataclass(frozen=True)
class QueryBox:
    """One coordinate of the box that a query of a detector predicts, to explain why the box ends there.

    Args:
        query: The index of the query.
        side: "left", "top", "right" or "bottom"; the coordinate is a share of the model's input.
    """

    query: int
    side: Side

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output with boxes `(centre x, centre y, width, height)`."""
        return side_of_box(upright(field_of(output, BOXES)[self.query]), self.side)


def side_of_box(box: Tensor, side: str) -> Tensor:
    """The coordinate of a side of a box `(centre x, centre y, width, height)`.

    >>> side_of_box(torch.tensor([0.5, 0.5, 0.5, 1.0]), "right")
    tensor(0.7500)

    Raises:
        TargetError: a box has no such side.
    """
    x, y, width, height = box.unbind()
    corners: tuple[Tensor, ...] = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return corners[SIDES.index(side_of(side))]


@dataclass(frozen=True)
class BoxLogit:
    """The log-odds of one detection in torchvision's form, a record of `boxes`, `labels` and `scores`.

    Such lists have no queries, and their order changes with the image, so the detection is the one of this class whose
    box overlaps the given one most. If none overlaps enough, the target is the constant 0, the log-odds of an even
    chance.

    Args:
        box: `(x0, y0, x1, y1)` in the pixels of the model's input.
        label: The class.
        read: From one sample's output to the record.
    """

    box: tuple[float, float, float, float]
    label: int
    read: Callable[[Any], dict[str, Tensor] | None] = detections_of

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output."""
        found, position = _detection_at(self, output)
        if position is None:
            return found["scores"].new_zeros(())
        return torch.logit(found["scores"][position], eps=1e-6)


@dataclass(frozen=True)
class ListedBox:
    """One coordinate of the box of one detection in torchvision's form; see `BoxLogit` and `QueryBox`.

    If no box overlaps the given one enough, the target is the constant coordinate of that.

    Args:
        box, label, read: See `BoxLogit`.
        side: "left", "top", "right" or "bottom"; the coordinate is in the pixels of the model's input.
    """

    box: tuple[float, float, float, float]
    label: int
    side: Side
    read: Callable[[Any], dict[str, Tensor] | None] = detections_of

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output."""
        found, position = _detection_at(self, output)
        corner = SIDES.index(side_of(self.side))
        if position is None:
            return found["boxes"].new_tensor(self.box[corner])
        return found["boxes"][position, corner]


def _detection_at(target: BoxLogit | ListedBox, output: Any) -> tuple[dict[str, Tensor], int | None]:
    """The record in a sample's output, and the detection of the target's class that overlaps its box most, if any.

    Raises:
        TargetError: there is no record.
    """
    from torchvision.ops import box_iou

    found = target.read(output)
    if found is None:
        raise TargetError("the model's output holds no boxes with scores")
    boxes = found["boxes"]
    fit = box_iou(boxes.new_tensor([target.box]), boxes.detach())[0].where(found["labels"] == target.label, 0)
    return found, int(fit.argmax()) if (fit >= SAME_BOX).any() else None


@dataclass(frozen=True, eq=False)
class RegionLogit:
    """The logit of a class in a segmentation, averaged over a region of the output's grid.

    Args:
        index: The class.
        region: `[h, w]` booleans on the grid of the logits; None takes every cell.
        reading: See `ClassLogit`.
    """

    index: int
    region: Tensor | None = None
    reading: Reading = AS_MAPS

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output with logits `[classes, h, w]`."""
        return _mean_over(self.reading.logits(output)[self.index], self.region)


@dataclass(frozen=True)
class PixelLogit:
    """The logit of a class in one cell of a segmentation.

    Args:
        index: The class.
        row, column: The cell, on the grid of the logits.
        reading: See `ClassLogit`.
    """

    index: int
    row: int
    column: int
    reading: Reading = AS_MAPS

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output with logits `[classes, h, w]`."""
        return self.reading.logits(output)[self.index, self.row, self.column]


@dataclass(frozen=True, eq=False)
class SegmentLogit:
    """One segment of a mask-classification head: its query's class logit plus its mean mask logit over a region.

    The class logit alone does not depend on where the segment ends, nor the mask logit alone on what it is.

    Args:
        query: The index of the query.
        index: The class.
        region: `[h, w]` booleans on the grid of the mask logits.
    """

    query: int
    index: int
    region: Tensor | None = None

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output with class logits `[queries, classes]` and masks `[queries, h, w]`."""
        named = field_of(output, LOGITS)[self.query, self.index]
        return named + _mean_over(field_of(output, MASKS)[self.query], self.region)


@dataclass(frozen=True, eq=False)
class PromptedMask:
    """The logits of one mask of a promptable model, summed over a region: usually where the mask was predicted.

    Args:
        prompt: The index of the prompt.
        index: Which of the masks that the model offers for it.
        region: `[h, w]` booleans on the grid of the mask logits; None takes every cell.
    """

    prompt: int
    index: int
    region: Tensor | None = None

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output with masks `[prompts, masks, h, w]`."""
        return _cells(field_of(output, MASKS)[self.prompt, self.index], self.region).float().sum()


@dataclass(frozen=True)
class HeatmapPeak:
    """The value of a keypoint's heatmap in one cell, usually that of its peak.

    Args:
        index: The keypoint.
        row, column: The cell, on the grid of the heatmaps.
    """

    index: int
    row: int
    column: int

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output with heatmaps `[keypoints, h, w]`."""
        return field_of(output, HEATMAPS)[self.index, self.row, self.column]


@dataclass(frozen=True)
class KeypointLogit:
    """The log-odds of one keypoint of a detector that lists them in no fixed order, such as SuperPoint.

    It is the keypoint nearest to a place; where none is near, the constant 0, the log-odds of an even chance.

    Args:
        x, y: The place, as shares of the model's input.
        reach: How far along either axis a keypoint may lie from it, likewise.
    """

    x: float
    y: float
    reach: tuple[float, float]

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output with `keypoints` `[N, 2]`, `scores` `[N]` and `mask` `[N]`."""
        places, scores = output["keypoints"].detach(), output["scores"]
        away = (places - places.new_tensor([self.x, self.y])).abs() / places.new_tensor(self.reach)
        near = (away <= 1).all(-1) & output["mask"].bool()
        if not near.any():
            nothing: Tensor = scores.new_zeros(())
            return nothing
        return torch.logit(scores[away.amax(-1).where(near, torch.inf).argmin()], eps=1e-6)


@dataclass(frozen=True, eq=False)
class RegionDepth:
    """The predicted depth, averaged over a region of the output's grid.

    Args:
        region: `[h, w]` booleans; None takes every cell.
        nearer: -1 if small values are near, so that the target grows as the region comes nearer.
    """

    region: Tensor | None = None
    nearer: int = 1

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output with `predicted_depth` `[h, w]`."""
        return self.nearer * _mean_over(field_of(output, DEPTH).squeeze(0), self.region)


@dataclass(frozen=True, eq=False)
class RegionText:
    """The log-odds of text, averaged over a region of a text detector's probability map.

    Args:
        region: `[h, w]` booleans on the grid of the map.
    """

    region: Tensor

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output with probabilities `[1, h, w]`."""
        return _mean_over(torch.logit(field_of(output, TEXT).squeeze(0), eps=1e-6), self.region)


@dataclass(frozen=True, eq=False)
class SumOf:
    """The sum of several targets: one map for several boxes, classes, prompts or segments, or for all of a class.

    Where a target stands for several things, as a label does for a detector's objects, all of them are summed:
    `SumOf("cat")` has one map for all cats, `SumOf(None)` one for everything that the model finds.

    Args:
        targets: A list, or a single target; each is what `hf_cam.explain` takes for this model. Its members are looked
            up in the model's head, so that a sum that is called by itself takes only class indices and callables.

    Raises:
        TargetError: the list is empty, or holds another list.

    >>> SumOf([0, 2])(torch.tensor([1.0, 5.0, 3.0]))
    tensor(4.)
    """

    targets: Any

    def __post_init__(self) -> None:
        """Refuse a sum of nothing."""
        if not self.parts:
            raise TargetError("SumOf has no targets; SumOf(None) sums over what the model itself finds")
        if any(entries_of(part) is not None for part in self.parts):
            raise TargetError(f"the targets of SumOf must be one list, got {brief(self.targets)}; a box is a tuple")

    @property
    def parts(self) -> tuple[Any, ...]:
        """The members."""
        entries = entries_of(self.targets)
        return (self.targets,) if entries is None else tuple(entries)

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output."""
        for part in self.parts:
            if index_of(part) is None and not callable(part):
                raise TargetError(
                    f"hf_cam.explain and hf_cam.CAM find out what {brief(part)} is in a model; a sum that is called by "
                    "itself takes class indices and callables"
                )
        first, *others = (as_target(part)(output) for part in self.parts)
        return sum((other.to(first) for other in others), first)


@dataclass(frozen=True, eq=False)
class BoxSide:
    """One coordinate of the box of what a target names, to explain why the box ends there.

    The map shows what moves this side to the right or down. The explanation's score is the coordinate in the pixels of
    the image. `QueryBox` and `ListedBox` are the same for a known query or detection.

    Args:
        target: What the detector finds: a label, the index of a query or detection, a pixel or a box, or None for
            everything that it finds.
        side: "left", "top", "right" or "bottom"; also "x0", "y0", "x1", "y1" or "xmin" and so on.

    Raises:
        TargetError: there is no such side, or the target is a list.

    >>> BoxSide("cat", "x0").side
    'left'
    """

    target: Any
    side: str

    def __post_init__(self) -> None:
        """Refuse another side, and name it in one way."""
        object.__setattr__(self, "side", side_of(self.side))
        if entries_of(self.target) is not None or isinstance(self.target, SumOf):
            raise TargetError("BoxSide takes one target; pass a list of several BoxSide, or their SumOf")


def is_ready(target: Any) -> bool:
    """Whether a target is a callable that no head has to look up.

    >>> is_ready(ClassLogit(3)), is_ready(SumOf([ClassLogit(3)])), is_ready(SumOf(["cat"]))
    (True, True, False)
    """
    return all(map(is_ready, target.parts)) if isinstance(target, SumOf) else callable(target)


def _mean_over(values: Tensor, region: Tensor | None) -> Tensor:
    return _cells(values, region).mean()


def _cells(values: Tensor, region: Tensor | None) -> Tensor:
    if region is None:
        return values
    if region.shape != values.shape:
        raise TargetError(f"the region is {tuple(region.shape)}, but the output's grid is {tuple(values.shape)}")
    cells = on_host(region).flatten().nonzero().flatten()
    if not len(cells):
        raise TargetError("the region is empty")
    return values.flatten()[sent(cells, values.device)]


def confidence(target: Target, problem_type: str | None = None, prompts: int = 1) -> Target:
    """The confidence that belongs to a target: a class's probability, a prompt's share, or else the target itself.

    Args:
        target: The explained target.
        problem_type: From the config; labels that are not mutually exclusive have one sigmoid each, and what a
            regression predicts has no probability.
        prompts: The number of prompts that the model compares the image with; a single one has no share.
    """
    predicted = isinstance(target, ClassLogit) and target.reading.scale == "values"
    if problem_type == "regression" or predicted:
        return target
    if isinstance(target, ClassLogit):
        alone = problem_type == "multi_label_classification"
        reading = replace(target.reading, exclusive=False) if alone else target.reading
        return ClassProbability(target.index, reading)
    if isinstance(target, BinaryLogit):
        return lambda output: target(output).sigmoid()
    if isinstance(target, PromptSimilarity) and not target.contrast and prompts > 1:
        return lambda output: field_of(output, SIMILARITIES).float().softmax(-1)[target.index]
    return target


def as_target(target: int | Target) -> Target:
    """The logit of a class index; a callable is returned unchanged.

    Raises:
        TargetError: the target is neither.
    """
    if (index := index_of(target)) is not None:
        if index < 0:
            raise TargetError(f"classes count from 0, so there is no class {index}")
        return ClassLogit(index)
    if callable(target) and not isinstance(target, bool):
        return target
    raise TargetError(f"a target must be a class index or a callable, not {brief(target)}")


def target_values(outputs: Any, targets: Sequence[Target]) -> Tensor:
    """The value of each sample's target, `[B]`, from a batch's output.

    >>> target_values(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [ClassLogit(1), ClassLogit(0)])
    tensor([2., 3.])

    Raises:
        TargetError: a target does not fit the output, or is no scalar.
    """
    rows = _rows_of(outputs, targets)
    if rows is not None:
        return _entries(rows, [target.index for target in targets])  # type: ignore[attr-defined]
    return torch.stack([_value(target, sample_of(outputs, i, len(targets))) for i, target in enumerate(targets)])


def _rows_of(outputs: Any, targets: Sequence[Target]) -> Tensor | None:
    """The numbers `[B, K]` of which every target takes the one at its `index`; None if they differ in anything else."""
    first, rows = targets[0], None
    if type(first) is ClassLogit and all(type(one) is ClassLogit and one.reading == first.reading for one in targets):
        rows = first.reading.rows(outputs, len(targets))
    elif all(type(one) is PromptSimilarity and not one.contrast for one in targets):
        parts = {} if isinstance(outputs, Tensor) else parts_of(outputs) or {}
        found = None if "video_embeds" in parts else parts.get(SIMILARITIES[0])
        rows = found if are_rows(found, len(targets)) else None
    fits = rows is not None and all(0 <= one.index < rows.shape[1] for one in targets)  # type: ignore[attr-defined]
    return rows if fits and rows is not None and not unreadable(rows) and not rows.is_complex() else None


def _entries(rows: Tensor, indices: Sequence[int]) -> Tensor:
    """One number of each row of `[B, K]`."""
    if len(set(indices)) == 1:
        return rows[:, indices[0]]
    return rows.gather(1, sent(torch.tensor(indices), rows.device)[:, None]).squeeze(1)


def _value(target: Target, output: Any) -> Tensor:
    name = getattr(target, "__name__", None) or brief(target)
    try:
        with blaming(f"the target {name}", TargetError):
            value = target(output)
    except (IndexError, AttributeError, KeyError) as error:
        raise TargetError(f"the target {name} does not fit the model's output: {str(error)[:200]}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TargetError(f"a target must return a scalar tensor, {name} returned {got}")
    if problem := unreadable(value):
        raise TargetError(f"a target must return a scalar tensor, what {name} returned {problem}")
    if value.is_complex():
        raise TargetError(
            f"a target must return a real number, {name} returned {value.dtype}; take its .abs() or .real"
        )
    return value.reshape(())


def entries_of(target: Any) -> list[Any] | None:
    """The targets in a list, or in an array or tensor of whole numbers with one axis; None for a single target.

    A tuple is a single target: a pixel or a box. So is a vector of floating numbers: an embedding.

    >>> entries_of(["tabby", "pug"]), entries_of(torch.tensor([3, 5])), entries_of((12, 30))
    (['tabby', 'pug'], [3, 5], None)
    """
    if isinstance(target, list):
        return list(target)
    target = on_host(target) if isinstance(target, Tensor) and target.ndim == 1 else target
    if getattr(target, "ndim", None) == 1 and all(index_of(entry) is not None for entry in target):
        return [index_of(entry) for entry in target]
    return None


def index_of(target: Any) -> int | None:
    """An integer from Python, numpy or a tensor as an `int`; None for everything else."""
    try:
        return None if isinstance(target, bool) else operator.index(target)
    except TypeError:  # numpy arrays and floating tensors also have `__index__`, but it raises
        return None


SAME_BOX = 0.5
"""Overlap (IoU) from which two boxes belong to one object."""


def find_label(label: str, id2label: Mapping[int, str]) -> int:
    """The class index for a label: the whole label, one of its comma-separated names, or a unique part of it.

    The label as it is written goes first; else upper and lower case and the two ways of writing an accent are the same,
    and whole words go before parts of words.

    >>> find_label("tabby", {281: "tabby, tabby cat", 282: "tiger cat"})
    281

    Raises:
        TargetError: no label fits (the nearest are listed), or several do (they are listed with their indices).
    """
    if len(exact := [index for index, text in id2label.items() if text == label]) == 1:
        return exact[0]
    wanted = folded(label)
    labels = {index: folded(text) for index, text in id2label.items()}
    names = {index: [part.strip() for part in text.split(",")] for index, text in labels.items()}
    words = _words(wanted)
    tests: tuple[Callable[[int], bool], ...] = (
        lambda index: labels[index] == wanted,
        lambda index: wanted in names[index],
        lambda index: bool(words) and any(words in _words(part) for part in names[index]),
        lambda index: bool(wanted) and wanted in labels[index],
    )
    for fits in tests:
        found = [index for index in id2label if fits(index)]
        if len(found) == 1:
            return found[0]
        if found:
            examples, more = (
                ", ".join(repr(id2label[index][:40]) for index in found[:5]),
                ", ..." if len(found) > 5 else "",
            )
            indices = ", ".join(map(str, found[:5]))
            raise TargetError(
                f"the label {brief(label)} fits {len(found)} classes ({examples}{more}); "
                f"pass one of their indices, {indices}{more}"
            )
    known = [name.strip()[:40] for text in id2label.values() for name in text.split(",")]
    raise TargetError(f"no class is called {brief(label)}; nearest: {nearest(label[:80], known)}")


def folded(text: str) -> str:
    """A text for comparison: without case, surrounding blanks or a difference between composed and combined accents.

    >>> folded(" Cafe\u0301") == folded("CAF\u00c9")
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).strip()


def _words(text: str) -> str:
    """The words of a text between blanks, so that one text's words are looked up in another's."""
    words = re.sub(r"[\W_]+", " ", text).strip()
    return f" {words} " if words else ""
