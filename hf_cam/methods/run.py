"""One captured forward with one target per image, from which the signals of methods are computed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, TypeVarTuple

from torch import Tensor, nn

from hf_cam.capture.capture import Capture, capture
from hf_cam.capture.guard import kept
from hf_cam.capture.inputs import noise_like
from hf_cam.capture.replay import Prefix, PrefixOf, Tail, tail_from
from hf_cam.capture.runs import level_of, without_level
from hf_cam.devices.transfer import read
from hf_cam.errors import TargetError
from hf_cam.layouts import Size, images_axis
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.pyramids import Level
from hf_cam.targets import Target, target_values
from hf_cam.threads import cached_property

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

NOISE = (1.0, 10.0, 100.0)
"""Standard deviations of the pictures on which a vanishing gradient is tried again."""


@dataclass(frozen=True)
class Run:
    """One captured forward with one target per image.

    Args:
        model: The model that ran.
        inputs: Its named inputs for B images.
        captured: The outputs of the target layers, and what the watches recorded.
        adapter: The target layers and their layouts.
        targets: One per image.
        size: Height and width of the model's input; for volumes, its depth comes first.
        rerun_batch_size: Variants per forward for signals that rerun the model; chosen automatically by default.
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
        """`make(run, *arguments)`, computed on the first call and cached for all signals of this run."""
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
        return self._if_finite(bool(self._values.isfinite().all()))

    @cached_property
    def _values(self) -> Tensor:
        """The targets' values before it is known whether they are finite."""
        return target_values(self.captured.outputs, self.targets)

    def _if_finite(self, finite: bool) -> Tensor:
        if not finite:
            raise TargetError(
                f"the target's value is not finite ({self._values.tolist()}): the images or the weights contain such "
                "values, or the model's dtype is too narrow"
            )
        return self._values

    def is_nonzero(self, tensor: Tensor) -> bool:
        """Whether a tensor has an entry other than zero, which is read together with whether the scores are finite.

        Raises:
            TargetError: they are not.
        """
        finite, found = read([self._values.isfinite().all(), tensor.any()])
        self.__dict__.setdefault("scores", self._if_finite(finite))
        return found

    def activation(self, layer: str) -> Tensor:
        """The output of a target layer in its own layout, connected to the graph if one was recorded."""
        return self.captured.activations[self.adapter.layers.index(layer)]

    def gradient(self, layer: str) -> Tensor:
        """The gradient of the targets' sum with respect to `activation(layer)`.

        It is itself differentiable if the capture is of second order.

        Raises:
            DetachedError: the targets depend on none of the layers.
        """
        return self._gradients[self.adapter.layers.index(layer)]

    @cached_property
    def _gradients(self) -> tuple[Tensor, ...]:
        # Whether the values are finite is read later, together with what is made of them.
        values = self._values if self._values.requires_grad else self.scores
        return self.captured.gradients(values.sum())

    def reaches_another_level(self, layer: str) -> bool:
        """Whether another level of the same pyramid has a gradient, so that its being zero on this one is a finding."""
        levels = (one for one in self.adapter.layers if level_of(one) and without_level(one) == without_level(layer))
        return any(bool(self.gradient(one).any()) for one in levels)

    def tokens_of(self, layer: str) -> slice:
        """Which tokens of a layer's output are its own: all of them, unless it is one level of a longer sequence."""
        layout = self.adapter.layout_of(layer)
        if not isinstance(layout, Level):
            return slice(None)
        return layout.span(self.activation(layer).shape[1], self.picture_size)

    def to_spatial(self, tensor: Tensor, layer: str) -> Tensor:
        """A tensor in the layout of a layer's output, as `[B, C, *space]`; detached except inside `connected`.

        Raises:
            LayoutError: it does not fit the adapter's layout.
        """
        return self.adapter.spatial(kept(tensor), self.picture_size, layer, images=len(self.targets))

    def images_axis(self, layer: str) -> int:
        """Which axis of a layer's output counts the images.

        Raises:
            LayoutError: none counts them alone, so that no image's part can be replaced.
        """
        layout = self.adapter.layout_of(layer)
        return images_axis(layout, self.activation(layer), self.picture_size, len(self.targets))

    def tail(self, layer: str) -> AbstractContextManager[Tail]:
        """The part of the model behind a target layer, for signals that are declared to replay it.

        Raises:
            LayoutError: no axis of the layer's output counts the images alone.
        """
        prefix: Prefix = self.captured.watched[PrefixOf(layer)]
        return tail_from(prefix, layer, self.inputs, self.captured.outputs, self.images_axis(layer))

    @property
    def pixels(self) -> Tensor:
        """The pictures, `[B, C, *space]`; detached except inside `connected`."""
        pixels: Tensor = self.inputs["pixel_values"]
        return kept(pixels)

    @property
    def picture_size(self) -> Size:
        """Height and width, without the depth."""
        return self.size[-2], self.size[-1]


def vanishes_on_noise(run: Run, gradient: Callable[[Run], Tensor]) -> bool:
    """Whether a gradient that is zero on the images of a run is zero on pictures of noise as well.

    If not, these images hold no evidence for their targets; if so, nothing does, and the layer does not serve.

    Args:
        run: The run; the model runs again at most three times, on weak, strong and very strong noise.
        gradient: From a run to the gradient.
    """
    for strength in NOISE:
        inputs = noise_like(run.inputs, strength)
        with capture(run.model, run.adapter.layers, inputs, watches=tuple(run.captured.watched)) as captured:
            other = replace(run, inputs=inputs, captured=captured)
            try:
                if other.is_nonzero(gradient(other)):
                    return False
            except TargetError:
                continue  # noise gives the target nothing to differentiate
    return True
