"""The named inputs of a forward: finding the picture among them, passing them to a model, and selecting one image's."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hf_cam.capture.draws import own_draws
from hf_cam.doors import blaming
from hf_cam.errors import ModelError, OptionError, UnknownArchitecture, nearest
from hf_cam.images.patches import CutPictures, are_cut
from hf_cam.layouts import Size
from hf_cam.models.traits import picture_place, traits_of


@dataclass(frozen=True)
class Shared:
    """An input shared by all images of a batch, such as tokenized prompts; `call` unwraps it for the forward.

    Slicing, repeating or reordering the images of a batch leaves it unchanged.

    Args:
        value: `[P, ...]`, on any device.
        each: True if the forward takes one copy per image, `[B * P, ...]`, image by image.
    """

    value: Tensor
    each: bool = False

    def for_batch(self, batch: int) -> Tensor:
        """The tensor that a forward of `batch` images takes.

        >>> Shared(torch.zeros(3, 7), each=True).for_batch(2).shape
        torch.Size([6, 7])
        """
        return self.value.repeat(batch, *[1] * (self.value.ndim - 1)) if self.each else self.value

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Shared:
        """The same input on another device or in another dtype."""
        return Shared(self.value.to(device, dtype), self.each)

    def is_floating_point(self) -> bool:
        """Whether the value is of a floating-point dtype."""
        return self.value.is_floating_point()


SPARING: MutableMapping[nn.Module, bool] = WeakKeyDictionary()
"""Whether a model has left its picture as it was in a forward, so that it needs no copy of it."""


def call(module: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Run a model on named inputs."""
    args, kwargs = arguments(module, inputs)
    with blaming("the model's forward", ModelError), own_draws(module, inputs):
        outputs = module(*args, **kwargs)
    if "pixel_values" in inputs and module not in SPARING:
        copies = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and not _is_given(one, inputs)]
        SPARING[module] = not any(one.is_inference() or one._version for one in copies)  # noqa: SLF001
    return outputs


def _is_given(value: Tensor, inputs: Mapping[str, Any]) -> bool:
    return any(value is one for one in inputs.values())


def arguments(module: nn.Module, inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for a forward; the picture, `pixel_values`, goes where the forward takes one.

    It is a copy if the forward writes over its picture, as by `x.sub_(mean)`, or did not run yet.

    Raises:
        OptionError: no parameter of the forward is left for it, or more than one.
    """
    batch = next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.ndim), 1)
    named = {name: value.for_batch(batch) if isinstance(value, Shared) else value for name, value in inputs.items()}
    if "pixel_values" not in named:
        return (), named
    picture = named.pop("pixel_values")
    picture = picture if SPARING.get(module) else picture.clone()
    place = picture_place(module, named)
    return ((), {place: picture, **named}) if place else ((picture,), named)


def plain_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs detached from the caller's graph, and usable by autograd even if they were made in inference mode."""
    with torch.inference_mode(False):
        return {
            name: (value.clone() if value.is_inference() else value.detach()) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }


def picture_name(inputs: Mapping[str, Any], axes: Sequence[int] = (4,)) -> str:
    """The name of the input that holds the picture: `pixel_values`, or the first floating tensor with so many axes.

    Args:
        inputs: The inputs of a forward.
        axes: Numbers of axes to accept: 4 for pictures `(B, C, H, W)`, 5 for videos `(B, T, C, H, W)`, 3 for pictures
            cut into patches `(B, N, patch)` beside `spatial_shapes`.

    Raises:
        UnknownArchitecture: there is none.
    """
    names = sorted(inputs, key=lambda name: name != "pixel_values")
    for name in names:
        value = inputs[name]
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim in axes:
            return name
    shapes = {name: tuple(value.shape) for name, value in inputs.items() if isinstance(value, Tensor)}
    raise UnknownArchitecture(
        f"the structural probe needs a picture (batch, channels, height, width) among the inputs, got {shapes}; "
        "name the layer and its layout yourself (layers=, reshape=)"
    )


def picture_size(inputs: Mapping[str, Any]) -> Size:
    """Height and width of the picture in pixels; taken from `spatial_shapes` if it is cut into patches.

    >>> picture_size({"pixel_values": torch.zeros(1, 30, 3 * 16 * 16), "spatial_shapes": torch.tensor([[4, 6]])})
    (64, 96)

    Raises:
        LayoutError: the pictures of a batch are cut into different grids.
    """
    if are_cut(inputs):
        return CutPictures.of(inputs).size
    picture = inputs[picture_name(inputs, (4, 5))]
    return picture.shape[-2], picture.shape[-1]


SETTINGS = ("targets", "aug_smooth", "eigen_smooth", "signed", "differentiable")
"""Arguments of a CAM's call that are not inputs of the model."""


def model_inputs_of(model: nn.Module, pixel_values: Tensor, others: Mapping[str, Any]) -> dict[str, Any]:
    """The forward's named inputs on the model's device and in its dtype, detached from the caller's graph.

    If the picture is not of the model's native size, the model is asked to interpolate its position encodings.

    Raises:
        OptionError: the forward has no such input, or does not show which of its parameters takes the picture.
        ModelError: the model has no weights.
    """
    traits = traits_of(model)
    for name in others:
        if traits.swallows(name):
            raise OptionError(
                f"the model takes no input {name!r}; nearest: {nearest(name, (*SETTINGS, *traits.inputs))}"
            )
    picture_place(traits.module, others)
    if traits.is_empty:
        raise ModelError(f"{traits.class_name} lies on the meta device and has no weights; load it with its weights")
    inputs = plain_inputs({"pixel_values": pixel_values, **others})
    if (weight := traits.weight) is not None:
        inputs = {
            name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            if isinstance(value, Tensor | Shared)
            else value
            for name, value in inputs.items()
        }
    if traits.accepts("interpolate_pos_encoding") and "interpolate_pos_encoding" not in inputs:
        native = traits.image_size
        if native is not None and native != tuple(pixel_values.shape[-2:]):
            inputs["interpolate_pos_encoding"] = True
    return inputs


def picture_of(model: nn.Module, pixel_values: Any, others: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The picture and the other inputs; the picture may be among them, under the name that the forward gives it.

    Raises:
        OptionError: there is no picture, or it is not clear which of several it is.
    """
    if pixel_values is not None:
        return pixel_values, dict(others)
    main = (str(getattr(traits_of(model).module, "main_input_name", "")), "pixel_values_videos")
    tensors = [name for name, value in others.items() if isinstance(value, Tensor) and value.ndim > 3]
    found = [name for name in main if name in others][:1] or tensors
    if len(found) != 1:
        raise OptionError(
            f"the picture is missing: pass it first or as pixel_values=, a tensor [B, C, H, W]; got "
            f"{', '.join(f'{name} ({type(value).__name__})' for name, value in others.items()) or 'nothing'}"
        )
    return others[found[0]], {name: value for name, value in others.items() if name != found[0]}


def noise_like(inputs: Mapping[str, Any], strength: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """The same inputs with pictures of noise, `strength` being its standard deviation."""
    pixels = inputs["pixel_values"]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return {**inputs, "pixel_values": (noise * strength).to(pixels.device, pixels.dtype)}


def others_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """All inputs except the picture."""
    return {name: value for name, value in inputs.items() if name != "pixel_values"}


def one_image(inputs: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The inputs of one image of a batch."""
    batch = len(inputs["pixel_values"])

    def own(value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch

    return {name: value[index : index + 1] if own(value) else value for name, value in inputs.items()}


def repeated(inputs: Mapping[str, Any], owners: Tensor) -> dict[str, Any]:
    """The inputs of the images with the indices `owners`, `[N]`, which may repeat; what all images share is unchanged.

    >>> repeated({"pixel_values": torch.tensor([[1.0], [2.0]])}, torch.tensor([1, 1, 0]))["pixel_values"].flatten()
    tensor([2., 2., 1.])
    """
    batch = len(inputs["pixel_values"])

    def own(value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch

    return {name: value[owners.to(value.device)] if own(value) else value for name, value in inputs.items()}


def alone(tensor: Tensor) -> Tensor:
    """The tensor without a larger one that it is a view of; a copy if there is one.

    >>> alone(torch.zeros(8, 3)[0]).untyped_storage().nbytes()
    12
    """
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
