"""Maps on the model's grid, with what is needed to draw them in the pixels of the caller's image on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hf_cam.images.geometry import Geometry
from hf_cam.maps import fuse_signed, in_boxes, normalize, normalize_signed, resize

Fuse = Callable[[Sequence[Tensor], Sequence[int]], Tensor]
"""From the positive maps of several layers to one map in [0, 1] of a size."""

Evidence = Literal["image", "outside", "none"]

FAINT = 0.01
"""Share of a map's peak up to which cells count as none of its evidence."""


@dataclass(frozen=True, eq=False)
class GridMap:
    """A map of one image as the target layers have it: a few kilobytes, from which the heatmap can be drawn again.

    Args:
        raw: One `[h, w]` float32 per target layer, before any normalization, negative where a cell speaks against the
            target; `[t, h, w]` for a video.
        geometry: How the processor put the image into the model's input.
        fuse: How the maps of several layers become one; None if there is one layer.
        frames: The number of frames of a video; None for an image.
        signed: Whether the map shows what speaks against the target as well.
        boxes: The boxes of the image, `(x0, y0, x1, y1)`, in each of which the heatmap is stretched for itself, while
            it is 0 outside; empty if it is not stretched.
    """

    raw: tuple[np.ndarray, ...] = field(repr=False)
    geometry: Geometry
    fuse: Fuse | None = None
    frames: int | None = None
    signed: bool = False
    boxes: tuple[tuple[float, float, float, float], ...] = ()

    def turned(self) -> GridMap:
        """The map of what speaks against the target, in place of what speaks for it."""
        return replace(self, raw=tuple(-layer for layer in self.raw), signed=False)

    @property
    def cells(self) -> np.ndarray:
        """`[h, w]` float32 on a grid over the model's input: of one layer its own, of several the input's.

        In [0, 1], or in [-1, 1] if the map is signed. All zeros where the map has no evidence, or none in the part of
        the input that the image fills.
        """
        cells = self._fused()
        return (cells if self._in_view(cells) else torch.zeros_like(cells)).numpy()

    @property
    def evidence(self) -> Evidence:
        """Where the map has evidence: "image", "outside" (only where the model's input is padded), or "none".

        >>> from hf_cam.images.geometry import Axis, Geometry
        >>> same = Geometry((2, 3), (2, 3), Axis(1.0, 0.0), Axis(1.0, 0.0), (0, 0, 2, 3))
        >>> GridMap((np.eye(2, 3, dtype=np.float32),), same).evidence
        'image'
        """
        cells = self._fused()
        if self._in_view(cells):
            return "image"
        return "outside" if cells.any() else "none"

    def _fused(self) -> Tensor:
        size = self.geometry.model_size if self.frames is None else (self.frames, *self.geometry.model_size)
        layers = [torch.from_numpy(layer) for layer in self.raw]
        if self.signed:
            return normalize_signed(layers[0], len(size)) if self.fuse is None else fuse_signed(layers, size).float()
        layers = [layer.clamp_min(0) for layer in layers]
        return normalize(layers[0], len(size)) if self.fuse is None else self.fuse(layers, size).float()

    def _in_view(self, cells: Tensor) -> bool:
        """Whether a map on a grid over the model's input has evidence in a cell that the image touches."""
        touched = (self.geometry.filled((cells.shape[-2], cells.shape[-1])) > 0).to(cells)
        return bool((cells.abs() * touched).amax() > FAINT)

    def heatmap(self) -> np.ndarray:
        """`[H, W]` float32 in the image's pixels, of a video `[T, H, W]`; its peak is 1 unless it is 0.

        In [0, 1], or in [-1, 1] if it is signed; then the peak is that of the absolute values.
        """
        cells = torch.from_numpy(self.cells)
        if self.frames is not None:
            cells = resize(cells, (self.frames, *cells.shape[-2:]))
        drawn = self.geometry.to_image(cells)
        if self.boxes:
            stretched: np.ndarray = in_boxes(drawn, self.boxes).numpy()
            return stretched
        peak = drawn.abs().amax()
        drawn = drawn / torch.where(peak > 0, peak, torch.ones_like(peak))
        heatmap: np.ndarray = drawn.clamp(-1 if self.signed else 0, 1).numpy()
        return heatmap
