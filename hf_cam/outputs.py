"""Read a model's output: its parts, the one that holds the scores, boxes, embeddings, and one sample of a batch."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.devices.transfer import on_host, pieces
from hf_cam.errors import TargetError

Path = tuple[str | int, ...]
"""Where a tensor stands in an output: names and positions, from the outside in; `()` is the output itself."""

LOGITS = ("logits", "class_queries_logits", "decoder_class_logits", "pred_logits")

BOXES = ("pred_boxes", "decoder_coord_logits")

MASKS = ("masks_queries_logits", "pred_masks")

HEATMAPS = ("heatmaps",)

OVERLAPS = ("iou_scores",)

SIMILARITIES = ("logits_per_image", "logits_per_video")

DEPTH = ("predicted_depth",)

TEXT = ("last_hidden_state",)

EMBEDDINGS = ("image_embeds", "pooler_output", "last_hidden_state")

FEATURES = ("embeddings", "embedding", "embeds", "features", "feats", "pooled")
"""Names under which other networks return an embedding."""

SCORES = (
    "logits", "class_logits", "cls_logits", "scores", "score", "preds", "pred", "predictions", "prediction", "out",
    "output", "outputs", "probs", "probabilities", "prob", "y_pred", "y_hat",
)  # fmt: skip
"""Names under which networks return their scores, the plainest first."""

ASIDE = ("aux", "loss", "feat", "embed", "hidden", "pool", "attention", "latent", "mask")
"""Parts of names under which networks return something else."""

SHOWN = 4
"""How many candidates a message lists."""


# Structure -----------------------------------------------------------------------------------------------------------


def parts_of(output: Any) -> dict[str | int, Any] | None:
    """The parts of a structured output, by name or position; None if it is a tensor or has no parts.

    >>> list(parts_of({"logits": torch.ones(2), "aux": None}))
    ['logits', 'aux']
    """
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    if isinstance(output, list | tuple):
        return dict(enumerate(output))
    if isinstance(output, Tensor | nn.Module | type):
        return None
    if dataclasses.is_dataclass(output):  # which may have slots in place of a `__dict__`
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if not hasattr(output, "__dict__"):
        return None
    return dict(vars(output)) if any(isinstance(value, Tensor) for value in vars(output).values()) else None


def with_parts(output: Any, parts: Mapping[str | int, Any]) -> Any:
    """A copy of a structured output with other parts under the same names."""
    if isinstance(output, Mapping):
        if hasattr(output, "to_tuple"):
            return _record_with(output, parts)
        try:
            return type(output)(parts)  # type: ignore[call-arg]
        except TypeError:  # a mapping of a class that is made otherwise
            return dict(parts)
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*parts.values())
    if isinstance(output, list | tuple):
        return type(output)(list(parts.values()))
    copied = copy.copy(output)
    for name, value in parts.items():
        object.__setattr__(copied, str(name), value)  # a frozen dataclass has no other way
    return copied


def _record_with(output: Any, parts: Mapping[Any, Any]) -> Any:
    """One of transformers' records with other values in the fields that it has.

    Its initializer looks through all fields once for every field, which would take longer than all else that is done
    with a sample.
    """
    if not isinstance(output, OrderedDict):
        return type(output)(**{str(name): part for name, part in parts.items()})
    made: Any = type(output).__new__(type(output))
    made.__dict__.update(output.__dict__)
    made.__dict__.update(parts)
    for name, part in parts.items():
        OrderedDict.__setitem__(made, name, part)
    return made


def tensors_of(output: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in an output with its place, from the outside in."""
    if isinstance(output, Tensor):
        yield path, output
        return
    for name, part in (parts_of(output) or {}).items():
        yield from tensors_of(part, (*path, name))


def part_at(output: Any, path: Path) -> Any:
    """The part at a place.

    Raises:
        TargetError: there is none.

    >>> part_at(({"scores": torch.ones(2)},), (0, "scores"))
    tensor([1., 1.])
    """
    for name in path:
        parts = parts_of(output)
        if parts is None or name not in parts:
            raise TargetError(f"the model's output has no part {name!r} in {type(output).__name__}")
        output = parts[name]
    return output


def expression(output: Any, path: Path) -> str:
    """A part as Python code writes it.

    >>> expression((torch.ones(1), {"scores": torch.ones(2)}), (1, "scores"))
    "output[1]['scores']"
    """
    code = "output"
    for name in path:
        by_key = isinstance(name, int) or isinstance(output, Mapping)
        code += f"[{name!r}]" if by_key else f".{name}"
        output = part_at(output, (name,))
    return code


def map_tensors(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure (tensor, record, dict, tuple, list) with a function applied to every tensor in it.

    >>> map_tensors({"a": (torch.ones(2), "text")}, torch.neg)
    {'a': (tensor([-1., -1.]), 'text')}
    """
    return _changed(output, change, lambda items: items)


def _changed(output: Any, change: Callable[[Tensor], Tensor], pick: Callable[[Any], Any]) -> Any:
    """`pick` may replace a structured part by one of its items, which is then left as it is."""
    if isinstance(output, Tensor):
        return change(output)
    parts = parts_of(output)
    if parts is None or (picked := pick(output)) is not output:
        return output if parts is None else picked
    return with_parts(output, {name: _changed(part, change, pick) for name, part in parts.items()})


def sample_of(output: Any, index: int | slice, batch: int) -> Any:
    """One sample (or a slice of samples) of a batched output, of any structure.

    Every tensor whose first axis is the batch is indexed, and so is every list with one entry per image, such as
    torchvision's detectors return.

    >>> sample_of({"logits": torch.zeros(4, 10)}, 1, batch=4)["logits"].shape
    torch.Size([10])
    """

    def cut(tensor: Tensor) -> Tensor:
        return tensor[index] if tensor.ndim and len(tensor) == batch else tensor

    return _changed(output, cut, lambda items: items[index] if _is_listed(items, batch) else items)


def samples_of(output: Any, batch: int) -> list[Any]:
    """Every sample of a batched output, as `sample_of` returns it; `on_host` reads a tensor of all of them at once.

    >>> [sample["logits"].shape for sample in samples_of({"logits": torch.zeros(2, 10)}, batch=2)]
    [torch.Size([10]), torch.Size([10])]
    """
    entries: dict[int, tuple[Tensor, ...]] = {}

    def cut(index: int, tensor: Tensor) -> Tensor:
        if not tensor.ndim or len(tensor) != batch:
            return tensor
        if id(tensor) not in entries:
            entries[id(tensor)] = pieces(tensor)  # which keep the tensor, and with it the id
        return entries[id(tensor)][index]

    def pick(index: int, items: Any) -> Any:
        return items[index] if _is_listed(items, batch) else items

    return [_changed(output, partial(cut, index), partial(pick, index)) for index in range(batch)]


def _is_listed(items: Any, batch: int) -> bool:
    """Whether a list has one entry per image, rather than parts (levels, heads) of the whole batch each."""
    if not isinstance(items, list) or len(items) != batch:
        return False
    if all(isinstance(item, Mapping) and {"boxes", "scores"} <= set(item) for item in items):
        return True
    tensors = [tensor for _, tensor in tensors_of(items)]
    return bool(tensors) and not all(tensor.ndim and len(tensor) == batch for tensor in tensors)


# Scores --------------------------------------------------------------------------------------------------------------


def field_of(output: Any, names: Sequence[str]) -> Tensor:
    """The first of these fields that a model's output has; a bare tensor is returned unchanged.

    Raises:
        TargetError: the output has none of them.
    """
    if isinstance(output, Tensor):
        return output
    parts = parts_of(output) or {}
    for name in names:
        if isinstance(value := parts.get(name), Tensor):
            return value
    raise TargetError(f"the model's output has no {' or '.join(names)} ({_listed(output)})")


def is_row(tensor: Tensor) -> bool:
    """Whether a sample's tensor is one row of numbers: at most one of its sides is longer than 1."""
    return tensor.numel() > 0 and sum(side != 1 for side in tensor.shape) <= 1


def is_map(tensor: Tensor) -> bool:
    """Whether a sample's tensor is a map, `[K, h, w]`."""
    return tensor.ndim == 3 and tensor.shape[0] > 0 and min(tensor.shape[1:]) > 1


def scores_path(output: Any, fits: Callable[[Tensor], bool] = is_row, classes: int | None = None) -> Path:
    """Where the scores stand in an output, as far as that can be established.

    It is the field `logits`, else the outermost tensor under a name such as "scores" or "out", else the only tensor
    that fits, that has as many entries as there are classes, or of which another one is the softmax or sigmoid.

    Args:
        output: Of one sample, or of a batch.
        fits: Whether a tensor can hold scores: `is_row` for classes, `is_map` for maps.
        classes: How many classes there are, if that is known.

    Raises:
        TargetError: no tensor fits, or several do; the message lists them.

    >>> scores_path((torch.ones(64), torch.ones(3)), classes=3)
    (1,)
    """
    if isinstance(output, Tensor) or isinstance((parts_of(output) or {}).get("logits"), Tensor):
        return () if isinstance(output, Tensor) else ("logits",)
    floating = [(path, tensor) for path, tensor in tensors_of(output) if tensor.is_floating_point() and fits(tensor)]
    usable = [(path, tensor) for path, tensor in floating if not _is_aside(path)]
    for name in SCORES:
        named = [path for path, _ in usable if _name_of(path) == name]
        outermost = [path for path in named if len(path) == min(map(len, named))]
        if len(outermost) == 1:
            return outermost[0]
    if not usable:  # PP-LCNet's classifier calls its logits `last_hidden_state`; a real hidden state is no row
        usable = [(path, tensor) for path, tensor in floating if path == ("last_hidden_state",)]
    if any(tensor.ndim for _, tensor in usable):
        usable = [(path, tensor) for path, tensor in usable if tensor.ndim]
    if len(usable) > 1 and classes is not None:
        sized = [(path, tensor) for path, tensor in usable if classes in (tensor.numel(), len(tensor))]
        usable = sized if len(sized) == 1 else usable
    if len(usable) == 2 and (source := _source(usable)) is not None:
        return source
    if len(usable) != 1:
        raise TargetError(_ambiguous(output, usable) if usable else _nothing(output))
    return usable[0][0]


def _name_of(path: Path) -> str:
    return next((name.lower() for name in reversed(path) if isinstance(name, str)), "")


def _source(pair: Sequence[tuple[Path, Tensor]]) -> Path | None:
    """Of two tensors the one of which the other is the softmax or the sigmoid (probabilities and logits)."""
    (path, one), (other_path, other) = pair
    if one.shape != other.shape or one.ndim == 0:
        return None
    for source, raw, made in ((path, one, other), (other_path, other, one)):
        raw, made = on_host(raw).float(), on_host(made).float()
        known = [raw.sigmoid(), *(squash(axis) for squash in (raw.softmax, raw.log_softmax) for axis in (0, -1))]
        if any(torch.allclose(made, squashed, atol=1e-5) for squashed in known):
            return source
    return None


def _is_aside(path: Path) -> bool:
    return any(part in str(name).lower() for name in path for part in ASIDE)


def _ambiguous(output: Any, found: Sequence[tuple[Path, Tensor]]) -> str:
    shown = [f"{expression(output, path)} {list(tensor.shape)}" for path, tensor in found[:SHOWN]]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    sizes = {tensor.shape for _, tensor in found}
    by_count = "; hf_cam.explain also takes the class names as labels=" if len(sizes) == len(found) else ""
    return (
        f"several parts of the model's output could be its scores ({', '.join(shown)[:200]}{more}): "
        f"choose with target=lambda output: {expression(output, found[-1][0])[:60]}"
        f"{'[0]' if found[-1][1].ndim else ''}{by_count}"
    )


def _nothing(output: Any) -> str:
    return (
        f"the model's output has no logits ({_listed(output)}); pass target= as a callable "
        "from one sample's output to a scalar, e.g. lambda output: output.pooler_output.norm()"
    )


def kind_of(output: Any) -> str:
    """What an output is, for a message: the dtype and shape of a tensor, the names of parts, or else the type.

    >>> kind_of(torch.zeros(1, 4).argmax(1)), kind_of({"logits": 1}), kind_of(3.0)
    ('torch.int64 [1]', 'dict with logits', 'float')
    """
    return f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else _listed(output)


def _listed(output: Any) -> str:
    parts = parts_of(output)
    if parts is None or isinstance(output, Tensor):
        return type(output).__name__
    names = [str(name)[:30] for name in list(parts)[: 2 * SHOWN]]
    return f"{type(output).__name__} with {', '.join(names)}{', ...' if len(parts) > len(names) else ''}"


def class_logits(outputs: Any) -> Tensor:
    """The class logits of a batch, `[B, K]`.

    Raises:
        TargetError: the head is not a classifier.
    """
    logits = part_at(outputs, scores_path(outputs, _is_batch_of_rows))
    if not _is_batch_of_rows(logits):
        raise TargetError(
            f"the model's logits have the shape {tuple(logits.shape)}, not [images, classes]; "
            "pass target= as a callable from one sample's output to a scalar"
        )
    rows: Tensor = logits.flatten(1) if logits.ndim > 1 else logits[:, None]
    return rows


def _is_batch_of_rows(tensor: Tensor) -> bool:
    return tensor.ndim > 0 and len(tensor) > 0 and is_row(tensor[0])


def similarities_of(output: Any) -> Tensor:
    """How well each prompt fits, `[P]`; for VideoPrism cosines, as its own scores are shares of a batch of videos."""
    video = output.get("video_embeds") if isinstance(output, Mapping) else None
    if not isinstance(video, Tensor):
        return field_of(output, SIMILARITIES)
    texts = output["text_embeds"].reshape(-1, video.shape[-1])
    return torch.nn.functional.cosine_similarity(video[None], texts, dim=-1)


def embedding_of(output: Any) -> Tensor:
    """An embedding of the whole image from one sample's output: its embedding, pooled output or mean hidden state.

    For a map `[C, h, w]` or tokens `[T, C]`, it is the mean over the places; for several maps, that of the last.

    Returns:
        `[D]`.

    Raises:
        TargetError: the output has none of these.
    """
    parts = {} if isinstance(output, Tensor) else parts_of(output) or {}
    if isinstance(levels := parts.get("feature_maps"), list | tuple):
        return embedding_of(levels[-1])  # from a backbone, finest first
    for name in EMBEDDINGS:
        if isinstance(value := parts.get(name), Tensor):
            return _pooled(value) if name == "last_hidden_state" else value.flatten()
    if parts and (are_levels(parts) or (isinstance(output, list | tuple) and all(map(torch.is_tensor, output)))):
        return _pooled(list(parts.values())[-1])
    tensors = [tensor for _, tensor in tensors_of(output)]
    if len(tensors) == 1:
        return _pooled(tensors[0])
    try:
        return _pooled(field_of(output, FEATURES))
    except TargetError:
        raise TargetError(
            f"the model's output holds no embedding that can be recognized ({_listed(output)}); pass target= as a "
            "callable from one sample's output to a scalar, such as a similarity"
        ) from None


def are_levels(parts: Mapping[str | int, Any], batch: int = 0) -> bool:
    """Whether an output's parts are the levels of a backbone, finest first: maps or tokens without a name for scores.

    Args:
        parts: Of one sample, or of a batch.
        batch: How many axes of each part are the batch's: 0 or 1.

    >>> are_levels({"layer3": torch.ones(8, 8, 6), "layer4": torch.ones(16, 4, 3)}), are_levels({0: torch.ones(5)})
    (True, False)
    """
    fewest = 2 if all(isinstance(name, int) for name in parts) else 3  # axes: tokens come in a list, maps also by name
    levels = [part for part in parts.values() if isinstance(part, Tensor) and part.ndim >= fewest + batch]
    named = any(str(name).lower() in (*SCORES, *LOGITS, *MASKS) for name in parts)
    sizes = [tuple(level.shape[batch:][-2:]) for level in levels]
    coarser = all(min(finer) >= min(next_one) for finer, next_one in itertools.pairwise(sizes))
    return 0 < len(parts) == len(levels) and not named and coarser


def _pooled(value: Tensor) -> Tensor:
    return value.flatten() if is_row(value) else value.mean((1, 2) if value.ndim == 3 else 0)


def has_queries(output: Any) -> bool:
    """Whether one sample's output holds class scores `[Q, K]` and boxes `[Q, 4]` of queries, as DETR's does.

    >>> has_queries({"pred_logits": torch.zeros(100, 92), "pred_boxes": torch.zeros(100, 4)})
    True
    """
    parts = {} if isinstance(output, Tensor) else parts_of(output) or {}
    classes, boxes = ([parts[name] for name in names if name in parts] for names in (LOGITS, BOXES))
    found = [*classes[:1], *boxes[:1]]
    return len(found) == 2 and all(torch.is_tensor(one) and one.ndim == 2 for one in found) and boxes[0].shape[1] == 4


def detections_of(output: Any) -> dict[str, Tensor] | None:
    """The record of `boxes`, `scores` and `labels` in one sample's output, however deep; None if there is none.

    Labels that are missing are 0: a detector of one class.

    >>> sorted(detections_of([{"boxes": torch.zeros(2, 4), "scores": torch.zeros(2)}]))
    ['boxes', 'labels', 'scores']
    """
    parts = {} if isinstance(output, Tensor) else parts_of(output) or {}
    boxes, scores, labels = (parts.get(name) for name in ("boxes", "scores", "labels"))
    if isinstance(boxes, Tensor) and isinstance(scores, Tensor) and boxes.ndim == 2 and boxes.shape[1] == 4:
        known = labels if isinstance(labels, Tensor) else torch.zeros(len(scores), dtype=torch.long)
        return {"boxes": boxes, "scores": scores, "labels": known}
    return next((found for part in parts.values() if (found := detections_of(part)) is not None), None)


def upright(boxes: Tensor) -> Tensor:
    """Boxes `(centre x, centre y, width, height)`, `[..., 4]`, from such boxes or from corners around a centre.

    The boxes of PP-DocLayoutV4, `[..., 10]`, hold the centre and the offsets of the four corners from it, each half a
    unit too large.

    >>> upright(torch.tensor([0.5, 0.5, 0.4, 0.4, 0.6, 0.4, 0.6, 0.7, 0.4, 0.7]))
    tensor([0.5000, 0.5500, 0.2000, 0.3000])
    """
    if boxes.shape[-1] == 4:
        return boxes
    corners = boxes[..., None, :2] + boxes[..., 2:].unflatten(-1, (4, 2)) - 0.5
    low, high = corners.amin(-2), corners.amax(-2)
    return torch.cat([(low + high) / 2, high - low], -1)
