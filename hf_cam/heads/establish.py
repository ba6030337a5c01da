"""What a model's output means, established by one run on one image and by what the network ends in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call, model_inputs_of, others_of
from hf_cam.devices.transfer import on_host
from hf_cam.errors import HFCamError, TargetError
from hf_cam.heads.endings import Ending, ending_of
from hf_cam.maps import at_least_float32
from hf_cam.models.loading import LoadedModel
from hf_cam.outputs import (
    Path,
    are_levels,
    detections_of,
    has_queries,
    is_map,
    is_row,
    map_tensors,
    part_at,
    parts_of,
    sample_of,
    scores_path,
    tensors_of,
)
from hf_cam.readings import Reading, Scale, are_rows

REFUSALS = (HFCamError, ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError,
            ValueError)  # fmt: skip
"""What models and processors raise on an image that does not suit them."""
ROUNDING = 1e-3
SQUASHED: dict[Ending, tuple[Scale, bool]] = {
    "softmax": ("probabilities", True),
    "sigmoid": ("probabilities", False),
    "log-softmax": ("log-probabilities", True),
    "log-sigmoid": ("log-probabilities", False),
}
"""The scale behind an operation, and whether the classes exclude each other."""
EMBEDDED: tuple[Ending, ...] = ("normalized", "unit-length")
BY_CLASS: dict[str, Ending] = {
    "Softmax": "softmax", "Softmax2d": "softmax", "LogSoftmax": "log-softmax", "Sigmoid": "sigmoid",
    "Hardsigmoid": "sigmoid", "LogSigmoid": "log-sigmoid",
}  # fmt: skip
REPLACED = ("Identity", "Dropout")
"""Modules that end a network whose last linear layer was taken away."""


@dataclass(frozen=True)
class Examination:
    """One run on one image.

    Args:
        output: The model's output for it, detached, on the CPU.
        endings: What the network ends in, for each tensor of the output.
        last: The class of the last module without children that ran; empty if there is none.
    """

    output: Any = field(repr=False)
    endings: Mapping[Path, Ending | None]
    last: str


def examined(loaded: LoadedModel) -> Examination | None:
    """The run of a model on its example, made once per loaded model; None if the model does not take the example."""
    if "examination" not in loaded.known:
        try:
            loaded.known["examination"] = _examine(loaded)
        except REFUSALS:
            loaded.known["examination"] = None
    found: Examination | None = loaded.known["examination"]
    return found


def _examine(loaded: LoadedModel) -> Examination:
    inputs = example_of(loaded)
    with borrowed(loaded.module) as module, torch.enable_grad(), _last_of(module) as last:
        pixels = inputs["pixel_values"].detach().requires_grad_()
        output = sample_of(call(module, {**inputs, "pixel_values": pixels}), 0, 1)
        name, made = last[-1] if last else ("", None)
        endings = {path: ending_of(tensor) or _by_class(name, made, tensor) for path, tensor in tensors_of(output)}
    return Examination(map_tensors(output, on_host), endings, name)


def example_of(loaded: LoadedModel) -> dict[str, Any]:
    """The named inputs of the model's example, on its device."""
    inputs = loaded.example_inputs()
    return model_inputs_of(loaded.model, inputs["pixel_values"], others_of(inputs))


@contextmanager
def _last_of(module: nn.Module) -> Iterator[list[tuple[str, Any]]]:
    """The class and the output of the module without children that ran last, as the only entry of a list."""
    last: list[tuple[str, Any]] = []

    def record(leaf: nn.Module, args: Any, output: Any) -> None:
        del args
        last[:] = [(str(getattr(leaf, "original_name", type(leaf).__name__)), output)]  # of a scripted module

    handles = [leaf.register_forward_hook(record) for leaf in module.modules() if not any(leaf.children())]
    try:
        yield last
    finally:
        for handle in handles:
            handle.remove()


def _by_class(name: str, made: Any, tensor: Tensor) -> Ending | None:
    """The ending that the class of the last module stands for, if the tensor is what that module returned."""
    same = isinstance(made, Tensor) and made.numel() == tensor.numel()
    if name in BY_CLASS and same and torch.equal(made.detach().flatten(), tensor.detach().flatten()):
        return BY_CLASS[name]
    return None


# The kind of head ----------------------------------------------------------------------------------------------------


def plain_kind(loaded: LoadedModel) -> str:
    """The id of the head of a module that is registered for none, from what it returns and what it ends in.

    A module embeds images if that can be seen: timm's networks without classes, and what ends in a normalization, in
    the division by its length, or in the place of a last layer that was taken away. What ends in a linear layer counts
    as a classifier.
    """
    if loaded.output == "embedding":
        return "embedding"
    count = loaded.traits.class_count
    if loaded.traits.timm is not None and (count == 0 or _ends_in(loaded.module, count)):
        return "classification" if count else "embedding"
    examination = examined(loaded)
    return "classification" if examination is None else _kind_of(examination, loaded)


def _kind_of(examination: Examination, loaded: LoadedModel) -> str:
    output, declared = examination.output, loaded.output != "auto"
    if detections_of(output) is not None:
        return "listed-detection"
    if has_queries(output):
        return "detection"
    for fits, kind in ((is_row, "classification"), (is_map, "semantic-segmentation")):
        if not any(fits(tensor) for _, tensor in tensors_of(output) if tensor.ndim):
            continue
        try:
            path = scores_path(output, fits, _count(loaded))
        except TargetError:
            if kind == "semantic-segmentation" and not are_levels(parts_of(output) or {}):
                return kind  # which lists the candidates
            continue
        if kind == "semantic-segmentation":
            _check_classes_first(part_at(output, path), loaded)
        embeds = not declared and _embeds(examination, path, loaded)
        return "embedding" if embeds else kind
    levels = [ending for path, ending in examination.endings.items()]
    embeds = (levels and set(levels) <= set(EMBEDDED)) or are_levels(parts_of(output) or {})
    return "embedding" if embeds and not declared else "classification"


def _check_classes_first(maps: Tensor, loaded: LoadedModel) -> None:
    """Refuse maps `[h, w, K]`.

    Raises:
        TargetError: the first two axes have the picture's shape, and the last two have not.
    """
    height, width = example_of(loaded)["pixel_values"].shape[-2:]

    def fits(rows: int, columns: int) -> bool:
        return bool(abs(rows * width - columns * height) < max(height, width))  # as close as whole cells come

    first, second, third = maps.shape
    if fits(first, second) and not fits(second, third):
        raise TargetError(
            f"{loaded.traits.class_name} returns maps of the shape {tuple(maps.shape)} with the classes last; let it "
            "return [B, classes, h, w], by .permute(0, 3, 1, 2)"
        )


def _ends_in(module: nn.Module, count: int | None) -> bool:
    """Whether a network's classifier still returns as many scores as the network's attribute promises."""
    found = getattr(module, "get_classifier", lambda: None)()
    if not isinstance(found, nn.Module):
        return True
    weights = (getattr(layer, "weight", None) for layer in found.modules())
    return any(isinstance(weight, Tensor) and len(weight) == count for weight in weights)


def _embeds(examination: Examination, path: Path, loaded: LoadedModel) -> bool:
    tensor, ending = part_at(examination.output, path), examination.endings[path]
    if loaded.id2label and len(loaded.id2label) in (tensor.numel(), len(tensor)):
        return False
    cut_off = examination.last in REPLACED or (is_map(tensor) and len(tensor) > 1)
    if is_row(tensor) and _is_unit(tensor.float()) and all(map(_is_unit, _variants(loaded, path))):
        return True
    return ending in EMBEDDED or (ending == "activated" and cut_off)


def _is_unit(tensor: Tensor) -> bool:
    """Whether numbers have the length 1, other than the probabilities of a classifier that is sure."""
    length = float(torch.linalg.vector_norm(tensor))
    return tensor.numel() > 1 and abs(length - 1) < ROUNDING and not _sums_to_one(tensor.flatten())


def _count(loaded: LoadedModel) -> int | None:
    """How many classes the model has, by its labels, its config or its own attribute; None if none of them gives it."""
    return len(loaded.id2label) or loaded.traits.class_count or None


# The reading ---------------------------------------------------------------------------------------------------------


def reading_of(loaded: LoadedModel, output: Any, *, maps: bool = False) -> Reading:
    """How the scores of classes are read in a model's output.

    Args:
        loaded: The model, with what the caller declares about its output.
        output: One sample of it.
        maps: Whether there is a score for each class and cell.

    Raises:
        TargetError: the scores are not found, or are not what the caller declares.
    """
    path = scores_path(output, is_map if maps else is_row, _count(loaded))
    found = part_at(output, path)
    values = Reading((), maps=maps).values(on_host(found)).float()
    scale, exclusive = _scale(loaded, path, values, found, output)
    return Reading(None if path in ((), ("logits",)) else path, scale, exclusive, maps)


def plain_rows(loaded: LoadedModel, outputs: Any, batch: int) -> tuple[Reading, Tensor] | None:
    """The logits `[B, K]` of a batch on the CPU, and how they are read, which `reading_of` gives each of the samples.

    None where the samples have to be looked at one by one: the numbers could be something else than logits.
    """
    path: Path = () if isinstance(outputs, Tensor) else ("logits",)
    found = outputs if not path else (parts_of(outputs) or {}).get("logits")
    if not are_rows(found, batch) or "regression" in (loaded.output, loaded.traits.problem_type):
        return None
    values, separate = at_least_float32(on_host(found)), _is_separate(loaded)
    if loaded.output not in ("auto", "logits", "multi-label"):
        return None
    if loaded.output != "logits":
        low, high = values.aminmax(dim=1)
        squashed = (low >= -ROUNDING) & (high <= 1 + ROUNDING)
        if not loaded.traits.is_transformers:
            squashed |= high <= 0
        alike = {values.numel(), values.shape[1]}
        if squashed.any() or any(other != path and one.numel() in alike for other, one in tensors_of(outputs)):
            return None
        if not separate:
            ending = ending_of(found) or _ending_at(loaded, path)
            if ending in ("softmax", "sigmoid"):
                return None
    return Reading(exclusive=not separate), values


def _is_separate(loaded: LoadedModel) -> bool:
    """Whether it is declared that each class has a probability of its own."""
    return loaded.output == "multi-label" or loaded.traits.problem_type == "multi_label_classification"


def _scale(loaded: LoadedModel, path: Path, values: Tensor, raw: Tensor, output: Any) -> tuple[Scale, bool]:
    separate = _is_separate(loaded)
    if loaded.output == "logits" or not values.numel():
        return "logits", not separate
    if loaded.output == "regression" or loaded.traits.problem_type == "regression":
        return "values", False
    if loaded.output == "probabilities":
        if not _in_unit_range(values):
            raise TargetError(
                f"output='probabilities' is declared, but the scores reach from {values.min():.3g} to "
                f"{values.max():.3g}; declare output='logits' or 'multi-label'"
            )
        return "probabilities", _sums_to_one(values)
    if _in_unit_range(values) or (values.amax() <= 0 and not loaded.traits.is_transformers):
        ending = ending_of(raw) or _ending_at(loaded, path)
        if ending in SQUASHED:
            scale, exclusive = SQUASHED[ending]
            one = _sums_to_one(values if scale == "probabilities" else values.exp())
            return scale, not separate and one and (exclusive or _always_sums_to_one(loaded, path))
        if _sums_to_one(values) and _always_sums_to_one(loaded, path):
            return "probabilities", not separate
    elif not separate and (ending := ending_of(raw) or _ending_at(loaded, path)) in ("softmax", "sigmoid"):
        if len(values) == 1:
            return "values", False  # a quantity whose range a sigmoid limits, or the mean over a softmax
        raise TargetError(
            f"the scores of {loaded.traits.class_name} come from a {ending}, but reach from {values.min():.3g} to "
            f"{values.max():.3g}: let it return probabilities in [0, 1], or declare output='logits' or 'regression'"
        )
    return "logits", not (separate or _has_sigmoid(output, path, values))


def _ending_at(loaded: LoadedModel, path: Path) -> Ending | None:
    examination = examined(loaded)
    return None if examination is None else examination.endings.get(path)


def _in_unit_range(values: Tensor) -> bool:
    return bool(values.amin() >= -ROUNDING) and bool(values.amax() <= 1 + ROUNDING)


def _sums_to_one(values: Tensor) -> bool:
    return len(values) > 1 and bool(((values.sum(0) - 1).abs() < ROUNDING).all()) and _in_unit_range(values)


def _always_sums_to_one(loaded: LoadedModel, path: Path) -> bool:
    """Whether the scores also sum to 1 for other images, and differ from one to the next."""
    if "sums to one" not in loaded.known:
        found = _variants(loaded, path)
        differ = any(not torch.allclose(one, found[0]) for one in found[1:])
        loaded.known["sums to one"] = bool(found) and differ and all(map(_sums_to_one, found))
    return bool(loaded.known["sums to one"])


def _variants(loaded: LoadedModel, path: Path) -> list[Tensor]:
    """The scores of several images; none if the model does not take them."""
    try:
        return list(_of_others(loaded, path))
    except REFUSALS:
        return []


def _of_others(loaded: LoadedModel, path: Path) -> Iterator[Tensor]:
    """The scores of the example, of its negative and of noise."""
    inputs = example_of(loaded)
    pixels = inputs["pixel_values"]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)).to(pixels)
    for variant in (pixels, -pixels, noise):
        with borrowed(loaded.module) as module, torch.no_grad():
            output = sample_of(call(module, {**inputs, "pixel_values": variant}), 0, 1)
        yield Reading(path).values(output).float()


def _has_sigmoid(output: Any, path: Path, values: Tensor) -> bool:
    """Whether another part of the output is the sigmoid of the scores: each class has a probability of its own."""
    others = [tensor for other, tensor in tensors_of(output) if other != path and tensor.numel() == values.numel()]
    made = values.sigmoid().flatten()
    return len(values) > 1 and any(
        torch.allclose(on_host(other).float().flatten(), made, atol=1e-5) for other in others
    )
