"""Pictures that are already cut into patches, the input of NaFlex models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, cat
from torch.nn import functional

from hf_cam.errors import LayoutError
from hf_cam.layouts import Size

RGB = 3


def are_cut(inputs: Mapping[str, Any]) -> bool:
    """Whether a forward's named inputs hold patches, with the rows and columns of each picture in `spatial_shapes`."""
    return isinstance(inputs.get("spatial_shapes"), Tensor)


def cut_alike(inputs: Mapping[str, Any]) -> bool:
    """Whether all pictures of a batch are cut into the same grid."""
    grids = inputs["spatial_shapes"]
    return bool((grids == grids[0]).all())


@dataclass(frozen=True, eq=False)
class CutPictures:
    """Pictures of one size, cut into square patches in raster order, followed by padding.

    Args:
        patches: `[B, N, side * side * 3]`, with N at least the number of cells.
        grid: Rows and columns of patches.
    """

    patches: Tensor
    grid: Size

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> CutPictures:
        """The cut pictures among a forward's named inputs.

        Raises:
            LayoutError: the pictures of the batch are cut into different grids.
        """
        if not cut_alike(inputs):
            grids = inputs["spatial_shapes"].tolist()
            raise LayoutError(f"all pictures of a batch must be cut into one grid, got {grids}; pass them one by one")
        rows, columns = inputs["spatial_shapes"][0].tolist()
        return cls(inputs["pixel_values"], (rows, columns))

    @property
    def side(self) -> int:
        """Side of a patch, in pixels."""
        return math.isqrt(self.patches.shape[2] // RGB)

    @property
    def size(self) -> Size:
        """Height and width of the pictures, in pixels."""
        return self.grid[0] * self.side, self.grid[1] * self.side

    def pictures(self) -> Tensor:
        """The reassembled pictures, `[B, 3, H, W]`."""
        return self._cells().permute(0, 5, 1, 3, 2, 4).reshape(len(self.patches), -1, *self.size)

    def mirrored(self) -> Tensor:
        """The patches of the horizontally mirrored pictures, `[B, N, side * side * 3]`."""
        cells = self.grid[0] * self.grid[1]
        turned = self._cells().flip(2, 4).reshape(len(self.patches), cells, -1)
        return cat([turned, self.patches[:, cells:]], 1)

    def marked(self, where: Tensor) -> Tensor:
        """A boolean mask `[rows, columns]` as `[N, 1]`, False on the padding."""
        return functional.pad(where.flatten(), (0, self.patches.shape[1] - where.numel()))[:, None]

    def _cells(self) -> Tensor:
        """The patches without padding, `[B, rows, columns, side, side, 3]`."""
        rows, columns = self.grid
        kept = self.patches[:, : rows * columns]
        return kept.reshape(len(kept), rows, columns, self.side, self.side, -1)
