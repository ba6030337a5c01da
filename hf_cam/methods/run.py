"""One captured forward with one target per image, from which the signals of methods are computed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, TypeVarTuple

from torch import Tensor, nn

from hf_cam.capture.capture import Capture
from hf_cam.errors import TargetError
from hf_cam.layouts import Size
from hf_cam.target_layers.adapter import Adapter
from hf_cam.targets import Target, target_values

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


@dataclass(frozen=True)
class Run:
    """One captured forward with one target per image.

    Args:
        model: What ran.
        inputs: Its named inputs, B images.
        captured: What the target layers returned, and what the watches yielded.
        adapter: The target layers and their spatial layouts.
        targets: One per image.
        size: Height and width of the model's input; behind its depth, for volumes.
        rerun_batch_size: Forwards at once for signals that rerun the model; chosen where None.
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    captured: Capture
    adapter: Adapter
    targets: Sequence[Target]
    size: tuple[int, ...]
    rerun_batch_size: int | None = None
    _made: dict[tuple[Hashable, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, make: Callable[[Run, *Arguments], Result], *arguments: *Arguments) -> Result:
        """`make(run, *arguments)`, computed at the first call and remembered for all signals of this run."""
        key = (make, *arguments)
        if key not in self._made:
            self._made[key] = make(self, *arguments)
        result: Result = self._made[key]
        return result

    @cached_property
    def scores(self) -> Tensor:
        """The targets' values `[B]`, connected to the graph.

        Raises:
            TargetError: a target does not fit the output, or is not finite.
        """
        values = target_values(self.captured.outputs, self.targets)
        if not values.isfinite().all():
            raise TargetError(
                f"the target's value is not finite ({values.tolist()}): the images or the weights hold such values, "
                "or the model's dtype is too narrow"
            )
        return values

    def activation(self, layer: str) -> Tensor:
        """The output of a target layer as the layer returned it; part of the graph if one was recorded."""
        return self.captured.activations[self.adapter.layers.index(layer)]

    def gradient(self, layer: str) -> Tensor:
        """The gradient of the targets' sum at `activation(layer)`; differentiable if the capture is of second order.

        Raises:
            DetachedError: the targets depend on none of the layers.
        """
        return self._gradients[self.adapter.layers.index(layer)]

    @cached_property
    def _gradients(self) -> tuple[Tensor, ...]:
        return self.captured.gradients(self.scores.sum())

    def to_spatial(self, tensor: Tensor, layer: str) -> Tensor:
        """A tensor with the shape of a layer's output as `[B, C, *space]`, detached from the graph.

        Raises:
            LayoutError: it does not have the layout that the adapter declares.
        """
        return self.adapter.to_spatial(tensor.detach(), self.picture_size, layer)

    @property
    def picture_size(self) -> Size:
        """Height and width alone."""
        return self.size[-2], self.size[-1]
