"""Targets, pictures, layouts and layers by grad-cam's names."""

from hf_cam.compat.pytorch_grad_cam.utils import find_layers, image, model_targets, reshape_transforms
from hf_cam.compat.pytorch_grad_cam.utils.image import deprocess_image
from hf_cam.compat.pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

__all__ = ["deprocess_image", "find_layers", "get_2d_projection", "image", "model_targets", "reshape_transforms"]
