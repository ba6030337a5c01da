"""SESS: the maps of many windows of a picture at several scales, fused into one (Tursun et al., arXiv:2207.01769)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import resize

from hf_cam.cam import checked_pixels
from hf_cam.compat.pytorch_grad_cam.base_cam import Array, BaseCAM, OfOtherMaps, Targets, listed
from hf_cam.compat.pytorch_grad_cam.methods import GradCAM
from hf_cam.compat.pytorch_grad_cam.metrics.perturbation_confidence import values_of
from hf_cam.compat.pytorch_grad_cam.utils.image import scale_cam_image
from hf_cam.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, RawScoresOutputTarget
from hf_cam.errors import OptionError, TargetError

BLUR, SIGMA = (11, 11), 5.0


@dataclass(frozen=True)
class Window:
    """A window of the picture at one scale.

    Args:
        pixels: `[1, C, w, w]`.
        left, top: Its corner in the scaled picture.
        height, width: Of the scaled picture.
    """

    pixels: Tensor
    left: int
    top: int
    height: int
    width: int

    def placed(self, own: Array, size: tuple[int, int]) -> Array:
        """The window's map `[w, w]` at its place in the whole picture `size = (H, W)`; 0 elsewhere."""
        whole = np.zeros((self.height, self.width), np.float32)
        whole[self.top : self.top + own.shape[0], self.left : self.left + own.shape[1]] = own
        found: Array = cv2.resize(whole, size[::-1])
        return found


class SESS(OfOtherMaps):
    """A method applied to windows of the picture at several scales; each counts as its window's score.

    Args:
        model, target_layers, reshape_transform: See `BaseCAM`.
        base_method: The class of the method.
        scales: Lengths of the picture's shorter side; by default `num_scales` of them from the window's length on.
        num_scales: The number of scales.
        scale_step_ratio: The step between them, as a share of the window's length.
        window_size: Length of a window's side; by default the picture's shorter side.
        step_size: From one window to the next; by default the window's length.
        pre_filter_ratio: The share of the windows with the lowest scores that is left out, in [0, 1).
        theta: With the pool "mean", only values above this count.
        pool: "mean" over the windows that cover a pixel, or "max".
        smooth: Blur the result.
        use_softmax_scores: Score windows by probabilities; False for models whose output is no vector of logits.
        batch_size: Windows per forward.
        kwargs: Other arguments of the method.

    Raises:
        OptionError: an argument does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        base_method: type[BaseCAM] = GradCAM,
        scales: Sequence[int] | None = None,
        num_scales: int = 12,
        scale_step_ratio: float = 2 / 7,
        window_size: int | None = None,
        step_size: int | None = None,
        pre_filter_ratio: float = 0.0,
        theta: float = 0.0,
        pool: str = "mean",
        smooth: bool = True,
        use_softmax_scores: bool = True,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        if pool not in ("mean", "max"):
            raise OptionError(f"pool must be 'mean' or 'max', got {pool!r}")
        if not 0 <= pre_filter_ratio < 1:
            raise OptionError(f"pre_filter_ratio must lie in [0, 1), got {pre_filter_ratio}")
        if num_scales < 1:
            raise OptionError(f"num_scales must be at least 1, got {num_scales}")
        self.base_cam = base_method(model, target_layers, reshape_transform, **kwargs)
        self.model, self.scales, self.num_scales, self.scale_step_ratio = model, scales, num_scales, scale_step_ratio
        self.window_size, self.step_size, self.pre_filter_ratio = window_size, step_size, pre_filter_ratio
        self.theta, self.pool, self.smooth = theta, pool, smooth
        self.use_softmax_scores, self.batch_size = use_softmax_scores, batch_size

    def forward(self, input_tensor: Tensor, targets: Targets = None, eigen_smooth: bool = False) -> Array:
        """Maps `[B, H, W]` in [0, 1]; see `BaseCAM.forward`.

        Raises:
            TargetError: the number of targets is not the number of images.
            OptionError: a scale is smaller than the window, or `input_tensor` is no batch of floating images.
        """
        pixels = checked_pixels(input_tensor, {}, "input_tensor").detach().to(self.base_cam.device)
        given = listed(targets)
        column: list[Any] = [None] * len(pixels) if given is None else given
        if len(column) != len(pixels):
            raise TargetError(f"{len(column)} targets for {len(pixels)} images: targets= takes one per image")
        each = [self._of_one(pixels[i : i + 1], target, eigen_smooth) for i, target in enumerate(column)]
        return scale_cam_image(each)

    def _of_one(self, pixels: Tensor, target: Any, eigen_smooth: bool) -> Array:
        """The fused map `[H, W]` of one image."""
        if target is None:
            [logits] = values_of(self.model, pixels, [RawScoresOutputTarget()])
            target = ClassifierOutputTarget(int(logits.argmax()))
        windows = list(self._windows(pixels))
        scores = self._scores(windows, target)
        order = np.argsort(scores)[int(len(scores) * self.pre_filter_ratio) :]
        best = scores[order[-1]]
        size = (pixels.shape[-2], pixels.shape[-1])
        total, counts = np.zeros(size, np.float32), np.zeros(size, np.float32)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = torch.cat([windows[i].pixels for i in chosen])
            maps = self.base_cam(batch, [target] * len(chosen), eigen_smooth=eigen_smooth)
            for i, own in zip(chosen, maps, strict=True):
                placed = windows[i].placed(own * (scores[i] / best if best > 0 else 1.0), size)
                above = placed > self.theta
                total = np.maximum(total, placed) if self.pool == "max" else total + placed * above
                counts += above
        fused = total if self.pool == "max" else total / np.maximum(counts, 1)
        return cv2.GaussianBlur(fused, BLUR, SIGMA) if self.smooth else fused

    def _windows(self, pixels: Tensor) -> Iterator[Window]:
        length = self.window_size or min(pixels.shape[-2:])
        step = round(length * self.scale_step_ratio)
        for scale in self.scales or [length + step * i for i in range(self.num_scales)]:
            if scale < length:
                raise OptionError(f"a scale of {scale} is smaller than the window, which has {length} pixels")
            scaled = resize(pixels, scale)
            height, width = scaled.shape[-2:]
            for left, top in sliding_window(height, width, self.step_size or length, length):
                part = scaled[..., top : top + length, left : left + length]
                yield Window(part, left, top, height, width)

    def _scores(self, windows: Sequence[Window], target: Callable[[Any], Tensor]) -> Array:
        """The target's value for each window, of probabilities where asked for; at least 0."""

        def value(output: Tensor) -> Tensor:
            return target(output.softmax(-1) if self.use_softmax_scores else output).reshape(())

        pixels = [window.pixels for window in windows]
        parts = [pixels[i : i + self.batch_size] for i in range(0, len(pixels), self.batch_size)]
        found = [values_of(self.model, torch.cat(part), [value] * len(part)) for part in parts]
        return np.concatenate(found).clip(0)


def sliding_window(height: int, width: int, step_size: int, window_size: int) -> list[tuple[int, int]]:
    """Left and top of the windows that cover a picture; those at the border are moved back into it.

    >>> sliding_window(4, 6, 4, 4)
    [(0, 0), (2, 0)]
    """
    tops, lefts = (_starts(length, step_size, window_size) for length in (height, width))
    return [(left, top) for top in tops for left in lefts]


def _starts(length: int, step: int, window: int) -> list[int]:
    last = max(length - window, 0)
    return [*range(0, last, step), last]
