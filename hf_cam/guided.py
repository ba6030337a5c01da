"""Guided backpropagation on the unmodified model, and its product with a CAM."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hf_cam.cam import check_finite, check_names, checked_pixels
from hf_cam.capture.guidance import guided_gradient
from hf_cam.capture.inputs import model_inputs_of, others_of
from hf_cam.capture.quantized import gradient_stop
from hf_cam.doors import door
from hf_cam.errors import MethodError
from hf_cam.heads.selection import selection
from hf_cam.methods.pixels import guided_gradcam
from hf_cam.targets import target_values

__all__ = ["GuidedBackprop", "guided_gradcam"]


class GuidedBackprop:
    """The gradient of the target in the picture's own pixels, through only positive gradients and positive inputs.

    The rule was defined for ReLU; for smooth activations of the GELU family, it masks by the sign of the input in the
    same way. No module is replaced: the activations are intercepted during the forward, and the model is left
    unchanged. Note that the result hardly depends on the model's later layers (Adebayo et al., arXiv:1810.03292).

    Paper: Springenberg et al., Striving for Simplicity, ICLR Workshops 2015, arXiv:1412.6806.

    >>> import torch
    >>> from transformers import ResNetConfig, ResNetForImageClassification
    >>> model = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).eval()
    >>> GuidedBackprop(model)(torch.rand(1, 3, 64, 96)).shape
    torch.Size([1, 3, 64, 96])
    """

    @door()
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @door()
    def __call__(
        self,
        pixel_values: Tensor,
        targets: Any = None,
        **model_inputs: Any,
    ) -> Tensor:
        """The guided gradient, `[B, C, H, W]`, signed, in units of the target per unit of the input.

        Args:
            pixel_values: `[B, C, H, W]`, preprocessed as the model expects.
            targets: As in a call of `CAM`; None explains what the model itself finds first.
            model_inputs: Other inputs of the forward.

        Raises:
            TargetError: a target does not depend on the picture, or there is not one target per image.
            MethodError: a quantized part of the model passes no gradient, or the gradient passes no activation that can
                be guided.
        """
        check_names(self.model, model_inputs, ("pixel_values", "targets"))
        check_finite(checked_pixels(pixel_values, model_inputs))
        chosen = selection(self.model, targets, {"pixel_values": pixel_values, **model_inputs}, {})
        inputs = model_inputs_of(self.model, chosen.inputs["pixel_values"], others_of(chosen.inputs))
        if stop := gradient_stop(self.model, inputs):
            raise MethodError(
                f"guided backpropagation needs gradients, but the quantized part {stop} passes none or wrong ones; "
                "load the model without quantization"
            )

        def score(outputs: Any) -> Tensor:
            [column] = chosen.select(outputs)
            return target_values(outputs, column).sum()

        return guided_gradient(self.model, inputs, score)
