"""What a call of a CAM saw at its target layers, for code that works on activations and gradients itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from hf_cam.capture.guard import kept
from hf_cam.layouts import Size
from hf_cam.methods.registry import Method
from hf_cam.methods.run import Run
from hf_cam.target_layers.adapter import Adapter

OF_GRADIENTS = {"gradients", "curvature"}
"""Signals for which the target is differentiated with respect to the layers' outputs."""


@dataclass(frozen=True)
class AtLayers:
    """Activations and gradients by the dotted name of the layer.

    Args:
        activations: Of each target layer.
        gradients: Of the target with respect to them; empty if the method uses none.
    """

    activations: Mapping[str, Tensor] = field(repr=False)
    gradients: Mapping[str, Tensor] = field(repr=False)


@dataclass(frozen=True)
class Captured(AtLayers):
    """What the target layers returned in the forward of one call, and the target's gradients there.

    The tensors are as the layers have them, such as tokens `[B, N, C]`; `spatial` holds them as feature maps. They are
    detached, unless the call keeps its map in the graph. With `aug_smooth=True`, the rows are those of all six views,
    the plain one first.

    Args:
        activations, gradients: See `AtLayers`.
        adapter: The layers and their layouts.
        picture_size: Height and width of the model's input.
        images: The number of images, views included.
    """

    adapter: Adapter = field(repr=False)
    picture_size: Size
    images: int

    @classmethod
    def of(cls, run: Run, method: Method, own: Adapter) -> Captured:
        """What one method saw in a run, at its own target layers."""
        gradients = own.layers if OF_GRADIENTS & set(method.needs) else ()
        return cls(
            {layer: kept(run.activation(layer)) for layer in own.layers},
            {layer: kept(run.gradient(layer)) for layer in gradients},
            own,
            run.picture_size,
            len(run.targets),
        )

    @property
    def spatial(self) -> AtLayers:
        """The same as feature maps `[B, C, h, w]`, `[B, C, d, h, w]` of volumes, without class tokens and the like."""

        def laid(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                layer: self.adapter.spatial(tensor, self.picture_size, layer, images=self.images)
                for layer, tensor in tensors.items()
            }

        return AtLayers(laid(self.activations), laid(self.gradients))
