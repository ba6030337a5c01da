"""What stands in place of hidden pixels."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from hf_cam.errors import OptionError, brief

Fill = float | Literal["mean", "blur"] | Tensor
"""A value in the model's own units, each channel's mean over the picture, the picture blurred, or another picture."""

BLUR = 8
"""A blur's window is the shorter side of the picture divided by this number."""


def filled(pixels: Tensor, fill: Fill) -> Tensor:
    """Pictures `[B, C, *space]` with every pixel replaced.

    Args:
        pixels: `[B, C, *space]`, as the model gets them.
        fill: A number (0 is a processor's mean colour), "mean" for each channel's mean over the picture, "blur" for the
            local mean over a square, or a tensor of one picture `[C, *space]` or of one colour `[C]`.

    Raises:
        OptionError: a tensor fits no picture or holds values that are not finite, or there is no such fill.

    >>> import torch
    >>> filled(torch.tensor([[[[1.0, 3.0]]]]), "mean")
    tensor([[[[2., 2.]]]])
    """
    space = tuple(range(2, pixels.ndim))
    if isinstance(fill, Tensor):
        if not fill.isfinite().all():
            raise OptionError("fill= holds values that are not finite; pass torch.nan_to_num(fill), or a number")
        picture = fill.reshape(-1, *(1,) * len(space)) if fill.ndim == 1 else fill
        try:
            return picture.to(pixels).expand_as(pixels)
        except RuntimeError as error:
            raise OptionError(
                f"fill= as a tensor must be a picture {list(pixels.shape[1:])} or a colour [{pixels.shape[1]}], got "
                f"{list(fill.shape)}"
            ) from error
    if fill == "mean":
        return pixels.mean(space, keepdim=True).expand_as(pixels)
    if fill == "blur":
        return _blurred(pixels)
    if isinstance(fill, str):
        raise OptionError(f"fill= must be a number, 'mean', 'blur' or a tensor, got {brief(fill)}")
    return pixels.new_full((), float(fill)).expand_as(pixels)


def _blurred(pixels: Tensor) -> Tensor:
    """The mean over a window around each pixel, axis by axis; beyond the border its pixels repeat."""
    half = max(1, min(pixels.shape[2:]) // (2 * BLUR))
    for axis in range(2, pixels.ndim):
        line = pixels.movedim(axis, -1)
        shape = line.shape
        padded = functional.pad(line.reshape(1, -1, shape[-1]), (half, half), mode="replicate")
        pixels = functional.avg_pool1d(padded, 2 * half + 1, stride=1).reshape(shape).movedim(-1, axis)
    return pixels
