"""The error for a broken law, and the pictures and models on which laws are checked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_cam.errors import HFCamError

PICTURES = (2, 3, 64, 96)
"""Batch, channels, height and width of the pictures; not square, because a square picture hides a transposed map."""
CLASSES = 4


class LawError(HFCamError, AssertionError):
    """A law does not hold; the message names the law and what breaks it."""


def require(holds: object, subject: str, law: str) -> None:
    """Raise an error if a law does not hold.

    Raises:
        LawError: `holds` is false.
    """
    if not holds:
        raise LawError(f"{subject}: {law}")


def pictures(seed: int = 0) -> Tensor:
    """Pictures of smooth noise, of shape `PICTURES`: neighbouring pixels are similar, as in photographs."""
    batch, channels, height, width = PICTURES
    coarse = torch.rand(batch, channels, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)


def convolutional() -> nn.Module:
    """A tiny ResNet for `PICTURES` with random weights."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=CLASSES)
    model: nn.Module = ResNetForImageClassification(config).eval()
    return model


def transformer() -> nn.Module:
    """A tiny ViT for `PICTURES` with random weights, which are large enough to distinguish classes."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=PICTURES[2:],
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
        num_labels=CLASSES,
    )
    model: nn.Module = ViTForImageClassification(config).eval()
    return model
