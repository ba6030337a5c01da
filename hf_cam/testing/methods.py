"""The laws of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.cam import CAM
from hf_cam.errors import MethodError, OptionError
from hf_cam.methods import Method, get_method
from hf_cam.testing.laws import CLASSES, PICTURES, convolutional, pictures, require, transformer
from hf_cam.testing.models import check_model_untouched

TOLERANCE = 1e-4

FEW: Mapping[str, Any] = {"patch": 16, "stride": 16, "samples": 8, "draws": 2, "steps": 3}
"""Values of options by which methods that run the model many times take few forwards; the laws hold for any."""


def few_forwards(method: str | Method) -> dict[str, Any]:
    """Options with which a method takes few forwards, for checks; empty for most methods.

    >>> few_forwards("occlusion"), few_forwards("gradcam")
    ({'patch': 16, 'stride': 16}, {})
    """
    record = get_method(method) if isinstance(method, str) else method
    return {name: value for name, value in FEW.items() if name in record.options}


def check_method(method: str | Method, models: Sequence[nn.Module] | None = None) -> list[nn.Module]:
    """Check a registered method against the laws that all methods must obey, on few variants of each picture.

    - Its record is complete (a name, a paper and a summary), and unknown options are refused.
    - Its maps are `[B, H, W]`, finite and in [0, 1], on pictures that are not square.
    - A batch gives the same maps as its images one by one, and so does a second call.
    - All classes get the same map if, and only if, the record declares it.
    - Constant activations give a finite map, and activations of zero a map of zeros.
    - The model is left unchanged.

    Args:
        method: Its id or its record.
        models: Classifiers of pictures `[2, 3, 64, 96]` to check it on; by default a tiny ResNet and a tiny ViT.

    Returns:
        The models for which the method is defined.

    Raises:
        LawError: a law does not hold.
        MethodError: there is no such method, or it is defined for none of the models.

    >>> [type(model).__name__ for model in check_method("gradcam")]
    ['ResNetForImageClassification', 'ViTForImageClassification']
    """
    record = get_method(method) if isinstance(method, str) else method
    _check_record(record)
    _check_flat(record)
    defined, refusals = [], []
    for model in models or (convolutional(), transformer()):
        try:
            CAM(model, record.id, **few_forwards(record))(pictures(), 0)
        except MethodError as error:
            refusals.append(str(error))
            continue
        _check_maps(record, model)
        defined.append(model)
    if not defined:
        raise MethodError(f"{record.id!r} is defined for none of the models: {'; '.join(refusals)}")
    return defined


def _check_record(method: Method) -> None:
    require(get_method(method.id) == method, method.id, "the registry must hold this record under its id")
    require(method.name.isidentifier(), method.id, "its name must be a valid class name")
    require(
        method.paper and method.summary.endswith("."),
        method.id,
        "it must name its paper, and its summary must be a sentence",
    )
    try:
        method.check_options({"no such option": 0})
    except OptionError:
        return
    require(False, method.id, "it must refuse options that it does not have")


def _check_flat(method: Method) -> None:
    """Check constant activations, if the method uses only tensors on the layer's grid."""
    if not method.reads_layer:
        return
    shape = (2, 5, 4, 6)
    flat: dict[str, Any] = {name: torch.zeros(shape) for name in method.needs}
    for case, activations in (("zeros", torch.zeros(shape)), ("one value", torch.ones(shape))):
        found = method.map(**{**flat, "activations": activations} if "activations" in flat else flat)
        require(found.isfinite().all(), method.id, f"activations of {case} must give a finite map")
        require(not found.any() or "activations" not in flat or case != "zeros", method.id, "zeros must give zeros")


def _check_maps(method: Method, model: nn.Module) -> None:
    where = f"{method.id} on {type(model).__name__}"
    batch, cam = pictures(), CAM(model, method.id, **few_forwards(method))
    maps = check_model_untouched(model, lambda: cam(batch, [0, 1]))
    require(maps.shape == (PICTURES[0], *PICTURES[2:]), where, f"maps must be [B, H, W], got {tuple(maps.shape)}")
    require(maps.isfinite().all() and maps.min() >= 0 and maps.max() <= 1, where, "maps must be finite and in [0, 1]")
    require(_close(cam(batch, [0, 1]), maps), where, "a second call must give the same maps")
    alone = torch.cat([cam(batch[i : i + 1], i) for i in range(len(batch))])
    require(_close(alone, maps), where, "a batch must give the same maps as its images one by one")
    by_target = [cam(batch, target) for target in range(CLASSES)]
    same = all(_close(other, by_target[0]) for other in by_target[1:])
    require(same == method.ignores_class, where, "classes must share a map if and only if the record declares it")


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= TOLERANCE)
