"""Methods that build on another method, with a contrasted target or over several layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_cam.errors import MethodError, OptionError, brief
from hf_cam.maps import fuse_product
from hf_cam.methods.registry import Method, get_method, method
from hf_cam.readings import AS_LOGITS, Reading
from hf_cam.request import check_count
from hf_cam.target_layers.stages import stage_ends
from hf_cam.targets import ClassLogit, Target


@dataclass(frozen=True)
class ContrastedLogit:
    """`y_t - alpha sum(p_k y_k) / sum(p_k)`: a class logit contrasted with its rivals', which are weighted by softmax.

    The weights are differentiated too, as in the paper's own code.

    Args:
        index: The class t.
        alpha: Weight of the rivals; 0 gives the plain class logit.
        references: The rivals k: their indices, or how many to take of the classes with the nearest logits.
        reading: Where the logits are in the output; see `hf_cam.targets.ClassLogit`.
    """

    index: int
    alpha: float
    references: int | Sequence[int]
    reading: Reading = AS_LOGITS

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output."""
        logits = self.reading.logits(output)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        rivals = self._rivals(logits.detach())
        weights = logits.softmax(-1)[rivals]
        mean = (weights * logits[rivals]).sum() / (weights.sum() + torch.finfo(logits.dtype).tiny)
        return logits[self.index] - self.alpha * mean

    def _rivals(self, logits: Tensor) -> list[int]:
        if not isinstance(self.references, int):
            if beyond := [one for one in self.references if one >= len(logits)]:
                raise OptionError(f"references={beyond} name no class; the model has classes 0 to {len(logits) - 1}")
            return list(self.references)
        distances = (logits - logits[self.index]).abs()
        distances[self.index] = torch.inf
        count = min(self.references, len(logits) - 1)
        if count < 1:
            raise MethodError("'finercam' contrasts classes, but this model has only one; 'gradcam' takes any target")
        return [int(index) for index in distances.topk(count, largest=False).indices]


def contrasted(target: Target, alpha: float = 1.0, references: int | Sequence[int] = 3) -> Target:
    """A class logit contrasted with its rivals'.

    Raises:
        MethodError: the target is not a class.
        OptionError: the rivals are no other classes, or there are none.
    """
    if not isinstance(target, ClassLogit):
        raise MethodError("'finercam' contrasts classes, so it needs a class index or label; 'gradcam' takes any")
    return ContrastedLogit(target.index, alpha, _checked_references(references, target.index), target.reading)


def _checked_references(references: int | Sequence[int], own: int) -> int | Sequence[int]:
    """The rivals of a class, checked.

    Raises:
        OptionError: there are none, one is no class, or one is the class itself.
    """
    if not isinstance(references, Sequence):
        check_count("references", count := int(references))  # NumPy's whole numbers, too
        return count
    classes = [int(one) for one in references]
    if not classes or min(classes) < 0:
        raise OptionError(f"references must be class indices from 0, or how many to take, got {brief(references)}")
    if own in classes:
        raise OptionError(f"references must be other classes than the explained one, {own}; leave it out of {classes}")
    return classes


def unsigned_as(base: str = "gradcam") -> str:
    """Why the base method's map has no sign; empty if it has one."""
    return get_method(base).why_unsigned({})


@method(
    "finercam",
    name="FinerCAM",
    retarget=contrasted,
    paper="Zhang et al., Finer-CAM, CVPR 2025, arXiv:2501.11309",
    summary="What distinguishes a class from the most similar classes.",
    unsigned=unsigned_as,
)
def finercam(activations: Tensor, gradients: Tensor, base: str = "gradcam") -> Tensor:
    """The base method's contributions; the contrast lies in the target."""
    return _base_of("finercam", base).contributions(activations=activations, gradients=gradients)


@method(
    "refinecam",
    name="RefineCAM",
    fuse=fuse_product,
    layers=stage_ends,
    layer_forwards=1.0,
    paper="Domeniconi et al., How to Evaluate and Refine your CAM, arXiv:2605.14641",
    summary="Product of the maps from the ends of all stages: as fine as the early ones and as clean as the late ones.",
    unsigned="a product of maps has no sign",
)
def refinecam(activations: Tensor, gradients: Tensor, base: str = "gradcam++") -> Tensor:
    """The base method's contributions; the maps from the ends of the network's stages are multiplied."""
    return _base_of("refinecam", base).contributions(activations=activations, gradients=gradients)


def _base_of(composite: str, base: str) -> Method:
    found = get_method(base)
    if set(found.needs) != set(get_method(composite).needs):
        raise MethodError(f"{composite!r} needs a base method of activations and gradients only, which {base!r} is not")
    return found
