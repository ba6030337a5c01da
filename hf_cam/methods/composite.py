"""Methods made of another method: on a contrasted target, or over several layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_cam.errors import MethodError
from hf_cam.maps import fuse_product
from hf_cam.methods.registry import Method, get_method, method
from hf_cam.outputs import logits_of
from hf_cam.target_layers.stages import stage_ends
from hf_cam.targets import ClassLogit, Target


@dataclass(frozen=True)
class ContrastedLogit:
    """`y_t - alpha sum(p_k y_k) / sum(p_k)`: a class logit against those of its rivals, weighed by their softmax.

    The weights are differentiated too, as in the paper's own code.

    Args:
        index: The class t.
        alpha: How much the rivals count; 0 is the class logit.
        references: The rivals k: their indices, or how many of the classes whose logits are nearest to the target's.
    """

    index: int
    alpha: float
    references: int | Sequence[int]

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output."""
        logits = logits_of(output)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        rivals = self._rivals(logits.detach())
        weights = logits.softmax(-1)[rivals]
        mean = (weights * logits[rivals]).sum() / (weights.sum() + torch.finfo(logits.dtype).tiny)
        return logits[self.index] - self.alpha * mean

    def _rivals(self, logits: Tensor) -> list[int]:
        if not isinstance(self.references, int):
            return list(self.references)
        distances = (logits - logits[self.index]).abs()
        distances[self.index] = torch.inf
        count = min(self.references, len(logits) - 1)
        if count < 1:
            raise MethodError(
                "'finercam' contrasts classes, and this model has a single one; 'gradcam' takes any target"
            )
        return [int(index) for index in distances.topk(count, largest=False).indices]


def contrasted(target: Target, alpha: float = 1.0, references: int | Sequence[int] = 3) -> Target:
    """A class logit against its rivals.

    Raises:
        MethodError: the target is no class.
    """
    if not isinstance(target, ClassLogit):
        raise MethodError("'finercam' contrasts classes, so its target is a class index or label; 'gradcam' takes any")
    return ContrastedLogit(target.index, alpha, references)


@method(
    "finercam",
    name="FinerCAM",
    retarget=contrasted,
    paper="Zhang et al., Finer-CAM, CVPR 2025, arXiv:2501.11309",
    summary="What tells a class from the classes most like it.",
)
def finercam(activations: Tensor, gradients: Tensor, base: str = "gradcam") -> Tensor:
    """The base method's contributions; the contrast lies in the target."""
    return _base_of("finercam", base).contributions(activations=activations, gradients=gradients)


@method(
    "refinecam",
    name="RefineCAM",
    fuse=fuse_product,
    layers=stage_ends,
    paper="Domeniconi et al., How to Evaluate and Refine your CAM, arXiv:2605.14641",
    summary="Product of the maps of every stage's end: as fine as the early ones, as clean as the late ones.",
)
def refinecam(activations: Tensor, gradients: Tensor, base: str = "gradcam++") -> Tensor:
    """The base method's contributions; the maps of the ends of the network's stages are multiplied."""
    return _base_of("refinecam", base).contributions(activations=activations, gradients=gradients)


def _base_of(composite: str, base: str) -> Method:
    found = get_method(base)
    if set(found.needs) != set(get_method(composite).needs):
        raise MethodError(f"{composite!r} builds on a method of activations and gradients alone, and {base!r} is none")
    return found
