"""A few concepts that a layer's cells are composed of, with grad-cam's conventions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hf_cam.compat.pytorch_grad_cam.base_cam import BaseCAM
from hf_cam.compat.pytorch_grad_cam.utils.image import (
    create_labels_legend,
    scale_cam_image,
    show_factorization_on_image,
)
from hf_cam.methods.concepts import factorize


def dff(activations: np.ndarray, n_components: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The non-negative factorization of `[B, C, h, w]`, each channel counted from its smallest value.

    Returns:
        The concepts `[C, k]`, in the units of the activations, and their strengths `[B, k, h, w]`, non-negative.

    >>> concepts, strengths = dff(np.random.default_rng(0).random((2, 6, 3, 4), np.float32), 3)
    >>> concepts.shape, strengths.shape
    ((6, 3), (2, 3, 3, 4))
    """
    finite = np.nan_to_num(activations, copy=True)
    offset = finite.min((0, 2, 3))
    concepts, strengths = factorize(torch.from_numpy(finite - offset[:, None, None]), n_components)
    return concepts.T.numpy() + offset[:, None], strengths.numpy()


class DeepFeatureFactorization:
    """Concepts of one layer over a batch, each named by a computation of the caller's.

    Paper: Collins et al., Deep Feature Factorization, ECCV 2018, arXiv:1806.10206.

    Args:
        model: Any vision model; it is left unchanged.
        target_layer: A module of it.
        reshape_transform: `activation -> [B, C, h, w]`; inferred by default.
        computation_on_concepts: From concepts `[k, C]` to what they mean, such as the model's last linear layer.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: nn.Module,
        reshape_transform: Callable[[Any], Tensor] | None = None,
        computation_on_concepts: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model, self.computation_on_concepts = model, computation_on_concepts
        self._cam = _Activations(model, [target_layer], reshape_transform, uses_gradients=False)
        self.activations_and_grads = self._cam.activations_and_grads

    def __call__(self, input_tensor: Tensor, n_components: int = 16) -> tuple[Any, ...]:
        """The concepts `[C, k]`, for each image its maps `[k, H, W]` in [0, 1], and what was computed on the concepts.

        Args:
            input_tensor: `[B, C, H, W]`.
            n_components: The number of concepts, k.

        Raises:
            OptionError: there are fewer cells or channels than concepts.
        """
        self._cam(input_tensor)
        concepts, strengths = dff(self.activations_and_grads.activations[0].cpu().numpy(), n_components)
        size = (input_tensor.shape[-1], input_tensor.shape[-2])
        maps = [scale_cam_image(own, size) for own in strengths]
        if self.computation_on_concepts is None:
            return concepts, maps
        with torch.no_grad():
            vectors = torch.from_numpy(np.float32(concepts).T).to(self._cam.device)
            return concepts, maps, self.computation_on_concepts(vectors).cpu().numpy()


class _Activations(BaseCAM):
    """Run the model for the activations alone."""

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        targets: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Any:
        return activations[:, 0]

    def _ignores_target(self) -> bool:
        return True


def run_dff_on_image(
    model: nn.Module,
    target_layer: nn.Module,
    classifier: Callable[[Tensor], Tensor],
    img_pil: Image.Image,
    img_tensor: Tensor,
    reshape_transform: Callable[[Any], Tensor] | None = None,
    n_components: int = 5,
    top_k: int = 2,
) -> np.ndarray:
    """The picture, its concepts in colours, and a legend of their classes, side by side; bytes `[H, 3 W, 3]`.

    Args:
        model: With `config.id2label`.
        target_layer, reshape_transform: See `DeepFeatureFactorization`.
        classifier: From concepts `[k, C]` to class scores.
        img_pil: The picture that the model saw.
        img_tensor: `[C, H, W]`, of the same size.
        n_components: The number of concepts.
        top_k: How many classes to name for each concept.
    """
    factorization = DeepFeatureFactorization(model, target_layer, reshape_transform, classifier)
    _, [maps], scores = factorization(img_tensor[None], n_components)
    config: Any = model.config
    labels = create_labels_legend(torch.from_numpy(scores).softmax(-1).numpy(), config.id2label, top_k)
    picture = np.asarray(img_pil.convert("RGB"))
    return np.hstack([picture, show_factorization_on_image(picture / 255, maps, None, 0.3, labels)])
