"""What stands in for a layer while channels of its output are ablated, and the choice of these channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from hf_cam.compat.pytorch_grad_cam.utils.svd_on_activations import get_2d_projection


class AblationLayer(nn.Module):
    """Return kept activations in which one channel per row is zero.

    grad-cam subtracts 1e7 where the smallest activation is not zero; the paper sets channels to zero, and so does this.

    >>> import torch
    >>> layer = AblationLayer()
    >>> layer.set_next_batch(0, torch.ones(1, 3, 1, 2), 2)
    >>> layer.indices = [0, 2]
    >>> layer(None).sum((2, 3)).tolist()
    [[0.0, 2.0, 2.0], [2.0, 2.0, 0.0]]
    """

    def __init__(self) -> None:
        super().__init__()
        self.indices: Any = []
        self.activations: Any = None

    def objectiveness_mask_from_svd(self, activations: np.ndarray, threshold: float = 0.01) -> np.ndarray:
        """`[h, w]`: the cells of `[C, h, w]` whose first principal component is not near zero."""
        strength = np.abs(get_2d_projection(activations[None])[0])
        span = strength.max() - strength.min()
        found: np.ndarray = (strength - strength.min()) / (span or 1.0) > threshold
        return found

    def activations_to_be_ablated(self, activations: np.ndarray, ratio_channels_to_ablate: float = 1.0) -> np.ndarray:
        """The channels that count: this share of those that lie most in the mask, and as many that lie least in it.

        Args:
            activations: `[C, h, w]` of one image.
            ratio_channels_to_ablate: The share, in [0, 1]; at 1, every channel counts once.
        """
        if ratio_channels_to_ablate == 1.0:
            return self._chosen(np.arange(len(activations)))
        inside = self.objectiveness_mask_from_svd(activations)
        strength = np.abs(activations)
        strength = strength - strength.min((1, 2), keepdims=True)
        with np.errstate(invalid="ignore"):  # a constant channel has no share: NaN, which is sorted to the end
            strength = strength / strength.max((1, 2), keepdims=True)
            share = [(one * inside).sum() / one.sum() for one in strength]
        # Many shares are 1, so that these very operations give grad-cam's order.
        order = np.argsort(np.asarray(share, np.float32))
        count = int(len(order) * ratio_channels_to_ablate)
        return self._chosen(np.concatenate([order[::-1][:count], order[:count]]))

    def _chosen(self, channels: np.ndarray) -> np.ndarray:
        found: np.ndarray = channels.astype(np.int32)
        self.indices = found
        return found

    def set_next_batch(self, input_batch_index: int, activations: Any, num_channels_to_ablate: int) -> None:
        """Keep the activations of one image, once per channel to ablate."""
        one = activations[input_batch_index]
        self.activations = one.unsqueeze(0).repeat(num_channels_to_ablate, *[1] * one.ndim)

    def forward(self, x: Any) -> Any:
        """The kept activations; row i lacks the channel `indices[i]`."""
        del x
        return _without(self.activations, self.indices)


class AblationLayerVit(AblationLayer):
    """The same for tokens `[B, tokens, C]`."""

    def forward(self, x: Any) -> Any:
        """The kept tokens; row i lacks the channel `indices[i]`."""
        del x
        return _without(self.activations.transpose(1, -1), self.indices).transpose(1, -1)


class AblationLayerFasterRCNN(AblationLayer):
    """The same for a dictionary of levels, whose channels are counted level by level."""

    def set_next_batch(
        self, input_batch_index: int, activations: Mapping[str, Tensor], num_channels_to_ablate: int
    ) -> None:
        """Keep the levels of one image, once per channel to ablate."""
        count, one = num_channels_to_ablate, slice(input_batch_index, input_batch_index + 1)
        self.activations = {key: level[one].repeat(count, 1, 1, 1) for key, level in activations.items()}

    def forward(self, x: Any) -> Any:
        """The kept levels; row i lacks the channel `indices[i]`."""
        del x
        levels = {key: level.clone() for key, level in self.activations.items()}
        places = [(key, channel) for key, level in levels.items() for channel in range(level.shape[1])]
        for row in range(len(next(iter(levels.values())))):
            key, channel = places[int(self.indices[row])]
            levels[key][row, channel] = 0
        return levels


def _without(activations: Tensor, channels: Any) -> Tensor:
    found = activations.clone()
    for row in range(len(found)):
        found[row, int(channels[row])] = 0
    return found
