"""Metrics by grad-cam's names; the model runs in evaluation mode and is left unchanged."""

from hf_cam.compat.pytorch_grad_cam.metrics import arcc, cam_mult_image, perturbation_confidence, road

__all__ = ["arcc", "cam_mult_image", "perturbation_confidence", "road"]
