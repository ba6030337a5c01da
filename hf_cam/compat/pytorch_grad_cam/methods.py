"""grad-cam's methods: each is one of hf-cam's, under the name and with the arguments that it has there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_cam.compat.pytorch_grad_cam.ablation_layer import AblationLayer
from hf_cam.compat.pytorch_grad_cam.base_cam import Array, BaseCAM, OfOtherMaps, Targets, listed
from hf_cam.compat.pytorch_grad_cam.utils.image import scale_cam_image
from hf_cam.compat.pytorch_grad_cam.utils.model_targets import FinerWeightedTarget
from hf_cam.methods.gradient import plusplus_weights, xgradcam_weights
from hf_cam.methods.registry import Method
from hf_cam.outputs import class_logits
from hf_cam.targets import Target

NEAREST = (1, 2, 3)
"""Which classes FinerCAM contrasts a class with, by their rank when sorted by the distance of their logits."""


class GradCAM(BaseCAM, method="gradcam"):
    """Channels weighted by the spatial mean of their gradient (Selvaraju et al., arXiv:1610.02391)."""

    def get_cam_weights(self, input_tensor: Any, target_layer: Any, targets: Any, activations: Any, grads: Any) -> Any:
        """The spatial mean of the gradients, `[B, C]`."""
        return np.mean(grads, axis=tuple(range(2, grads.ndim)))


class GradCAMPlusPlus(BaseCAM, method="gradcam++"):
    """Channels weighted by their positive gradients (Chattopadhyay et al., arXiv:1710.11063)."""

    def get_cam_weights(self, input_tensor: Any, target_layer: Any, targets: Any, activations: Any, grads: Any) -> Any:
        """The weights of equation 19, `[B, C]`."""
        return _weights(plusplus_weights, activations, grads)


class XGradCAM(BaseCAM, method="xgradcam"):
    """Channels weighted by their gradient, itself weighted by the activation (Fu et al., arXiv:2008.02312)."""

    def get_cam_weights(self, input_tensor: Any, target_layer: Any, targets: Any, activations: Any, grads: Any) -> Any:
        """`sum(g_c a_c) / sum(a_c)`, `[B, C]`."""
        return _weights(xgradcam_weights, activations, grads)


class HiResCAM(BaseCAM, method="hirescam"):
    """Gradient times activation, cell by cell (Draelos and Carin, arXiv:2011.08891)."""


class GradCAMElementWise(BaseCAM, method="gradcam-elementwise"):
    """The positive part of gradient times activation, summed over channels."""


class LayerCAM(BaseCAM, method="layercam"):
    """Cells weighted by their own positive gradient (Jiang et al., IEEE TIP 2021)."""


class EigenGradCAM(BaseCAM, method="eigengradcam"):
    """The first principal component of gradient times activation."""


class SegEigenCAM(BaseCAM, method="segeigencam"):
    """The first principal component of absolute gradient times activation (Chung and Ying, 2025)."""


class ShapleyCAM(BaseCAM, method="shapleycam"):
    """Grad-CAM with the curvature of the score taken into account (Cai, arXiv:2501.06261)."""


class EigenCAM(BaseCAM, method="eigencam"):
    """The first principal component of the activations (Muhammad and Yeasin, arXiv:2008.00299)."""


class ScoreCAM(BaseCAM, method="scorecam"):
    """Channels weighted by the score of the image masked by each of them (Wang et al., arXiv:1910.01279)."""


class FullGrad(BaseCAM, method="fullgrad"):
    """Input and every bias, each times its gradient (Srinivas and Fleuret, arXiv:1905.00780).

    `target_layers` is not read.
    """


class KPCA_CAM(BaseCAM, method="kpcacam"):  # noqa: N801 - grad-cam's name
    """The first component of a kernel principal component analysis of the activations (arXiv:2410.00267)."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        kernel: str = "sigmoid",
        gamma: float | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, kernel=kernel, gamma=gamma)


class FEM(BaseCAM, method="fem"):
    """Where channels exceed their mean by k standard deviations (Fuad et al., IPTA 2020)."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        k: float = 2,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, k=k)


class RandomCAM(BaseCAM):
    """Random channel weights in [-1, 1] from numpy's global generator: the baseline that any method must beat."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)

    def get_cam_weights(self, input_tensor: Any, target_layer: Any, targets: Any, activations: Any, grads: Any) -> Any:
        """`[B, C]`, drawn anew in each call."""
        return np.random.uniform(-1, 1, size=activations.shape[:2])  # noqa: NPY002 - np.random.seed fixes it, as there


class AblationCAM(BaseCAM, method="ablationcam"):
    """Channels weighted by how far the score falls without them (Desai and Ramaswamy, WACV 2020).

    Args:
        model, target_layers, reshape_transform: See `BaseCAM`.
        ablation_layer: Chooses the channels that count; a channel is always set to zero, as in the paper.
        batch_size: Variants per forward; chosen for the device by default.
        ratio_channels_to_ablate: Share of the channels, taken from both ends of `activations_to_be_ablated`, that get a
            weight. All of them run in any case, which replaying the part behind the layer makes cheap, but for a layer
            that returns a dictionary.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        ablation_layer: AblationLayer | None = None,
        batch_size: int | None = None,
        ratio_channels_to_ablate: float = 1.0,
    ) -> None:
        self.batch_size = batch_size
        self.ablation_layer = AblationLayer() if ablation_layer is None else ablation_layer
        self.ratio_channels_to_ablate = ratio_channels_to_ablate
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)

    def _ablated(self, activations: Array) -> Array:
        return self.ablation_layer.activations_to_be_ablated(activations, self.ratio_channels_to_ablate)

    def _method(self) -> Method:
        method = super()._method()
        if self.ratio_channels_to_ablate == 1.0 or self.method_id is None:
            return method

        @wraps(method.contributions)
        def contributions(activations: Tensor, ablated_scores: Tensor) -> Tensor:
            scores = ablated_scores[:, :1].expand_as(ablated_scores).clone()
            for image, channels in enumerate(activations.cpu().numpy()):
                columns = 1 + torch.as_tensor(self._ablated(channels), dtype=torch.long, device=scores.device)
                scores[image, columns] = ablated_scores[image, columns]
            return method.contributions(activations=activations, ablated_scores=scores)

        return replace(method, contributions=contributions)


class FinerCAM(OfOtherMaps):
    """What distinguishes a class from the most similar classes (Zhang et al., arXiv:2501.11309).

    Args:
        model, target_layers, reshape_transform: See `BaseCAM`.
        base_method: The class of the method that explains the difference.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        base_method: type[BaseCAM] = GradCAM,
    ) -> None:
        self.base_cam = base_method(model, target_layers, reshape_transform)

    def forward(
        self,
        input_tensor: Tensor,
        targets: Targets = None,
        eigen_smooth: bool = False,
        alpha: float = 1,
        comparison_categories: Sequence[int] | None = None,
        target_idx: int | None = None,
    ) -> Array:
        """Maps `[B, H, W]` in [0, 1].

        Args:
            input_tensor: `[B, C, H, W]`.
            targets: One per image; None for the weighted difference of a class and its rivals.
            eigen_smooth: First principal component of the contributions in place of their sum.
            alpha: Weight of the rivals.
            comparison_categories: The rivals by rank, 1 for the class with the nearest logit.
            target_idx: The class; None for each image's top class.
        """

        def differences(outputs: Any) -> Sequence[Target]:
            logits = class_logits(outputs).detach()
            own = logits.amax(1, keepdim=True) if target_idx is None else logits[:, target_idx, None]
            ranked = (logits - own).abs().sort(dim=1, stable=True).indices.tolist()
            ranks = [rank for rank in comparison_categories or NEAREST if rank < logits.shape[1]]
            return [FinerWeightedTarget(row[0], [row[rank] for rank in ranks], alpha) for row in ranked]

        maps = self.base_cam.maps_of_layers(input_tensor, listed(targets) or differences, eigen_smooth)
        if (device := self.base_cam._htcore) is not None:  # noqa: SLF001
            device.mark_step()
        return self.base_cam.aggregate_multi_layers(maps)


class RefineCAM(OfOtherMaps):
    """The product of the maps of several layers, all from one forward (Domeniconi et al., arXiv:2605.14641).

    Args:
        model, target_layers, reshape_transform: See `BaseCAM`.
        base_method: The class of the method that is multiplied.
        kwargs: Other arguments of it.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        base_method: type[BaseCAM] = GradCAMPlusPlus,
        **kwargs: Any,
    ) -> None:
        self.base_cam = base_method(model, target_layers, reshape_transform, **kwargs)

    def forward(self, input_tensor: Tensor, targets: Targets = None, eigen_smooth: bool = False) -> Array:
        """Maps `[B, H, W]` in [0, 1]; see `BaseCAM.forward`."""
        maps = self.base_cam.maps_of_layers(input_tensor, listed(targets), eigen_smooth)
        return scale_cam_image(np.prod([self.base_cam.aggregate_multi_layers([one]) for one in maps], axis=0))


def _weights(formula: Callable[[Tensor, Tensor], Tensor], activations: Any, grads: Any) -> Array:
    return formula(torch.as_tensor(activations), torch.as_tensor(grads)).flatten(1).numpy()
