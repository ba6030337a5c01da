"""Signals for which the model, or the part behind the target layer, runs once per channel."""

from __future__ import annotations

import warnings
from functools import partial

import torch
from torch import Tensor, nn

from hf_cam.capture.chunks import images_at_once, in_chunks
from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call
from hf_cam.capture.replay import tail_of
from hf_cam.errors import LayoutError, SlowWarning
from hf_cam.maps import normalize, resize
from hf_cam.methods.run import Run
from hf_cam.methods.signals import activations, signal
from hf_cam.models.traits import unwrap
from hf_cam.targets import target_values

CHUNK_BYTES = 16 * 2**20


@signal(
    "the target's value with all channels, then without each channel, `[B, 1 + C]`",
    cost="one forward, then one of the part behind the target layer per channel",
    forwards=1.0,
    forwards_per_channel=0.08,
)
def ablated_scores(run: Run, layer: str) -> Tensor:
    """The targets' values `[B, 1 + C]`: with all channels of the layer, then with each channel set to zero.

    Only the tail is rerun, in float32 or better, because a channel's effect is a small difference of large values.
    """
    images = run.images_axis(layer)
    activation = run.activation(layer).detach().movedim(images, 0)
    axis = _channel_axis(activation, activations(run, layer))
    channels = activation.shape[axis]
    gone = torch.eye(1 + channels, channels, dtype=torch.bool, device=activation.device).roll(1, 0)
    size = run.rerun_batch_size or max(1, CHUNK_BYTES // (activation[0].numel() * activation.element_size()))
    with tail_of(run.model, layer, run.inputs, images) as tail:
        if not tail.exact:
            warnings.warn(
                f"the model behind {layer!r} cannot be rerun separately, so each of its {channels} channels takes a "
                "whole forward; a layer nearer to the output may be faster",
                SlowWarning,
                stacklevel=2,
            )

        def without(sample: int, start: int, stop: int) -> Tensor:
            lost = gone[start:stop].unflatten(1, [channels if i == axis else 1 for i in range(1, activation.ndim)])
            variants = activation[sample : sample + 1].masked_fill(lost, 0)
            return target_values(tail(variants, sample), [run.targets[sample]] * (stop - start))

        return torch.stack(
            [in_chunks(1 + channels, size, partial(without, sample)) for sample in range(len(activation))]
        )


@signal(
    "the target's value for the image masked by each channel, `[B, C]`",
    cost="one forward per channel",
    pixels=True,
    forwards_per_channel=0.9,
)
def masked_scores(run: Run, layer: str) -> Tensor:
    """The targets' values `[B, C]` for the images masked by each channel, which is enlarged and scaled to [0, 1].

    A constant channel becomes a mask of zeros, so its image is black, never NaN.
    """
    channels = activations(run, layer)
    pixels = run.inputs["pixel_values"]

    def masked(module: nn.Module, sample: int, start: int, stop: int) -> Tensor:
        masks = normalize(resize(channels[sample, start:stop].float(), run.size), len(run.size))[:, None]
        inputs = {
            name: value[sample : sample + 1].expand(stop - start, *value.shape[1:])
            if isinstance(value, Tensor) and value.shape[:1] == pixels.shape[:1]
            else value
            for name, value in run.inputs.items()
        }
        inputs["pixel_values"] = pixels[sample] * masks.to(pixels)
        outputs = call(module, inputs)
        return target_values(outputs, [run.targets[sample]] * (stop - start))

    with borrowed(unwrap(run.model)) as module, torch.no_grad():
        size = run.rerun_batch_size or images_at_once(pixels.device)
        return torch.stack(
            [in_chunks(channels.shape[1], size, partial(masked, module, sample)) for sample in range(len(channels))]
        )


def _channel_axis(activation: Tensor, spatial: Tensor) -> int:
    """The axis of the channels in a layer's output, found by their number.

    Raises:
        LayoutError: there is none, because a reshape function changed the number of channels.
    """
    for axis in (1, activation.ndim - 1) if activation.ndim == spatial.ndim else (activation.ndim - 1,):
        if activation.shape[axis] == spatial.shape[1]:
            return axis
    raise LayoutError(f"no axis of {tuple(activation.shape)} has the {spatial.shape[1]} channels that reshape returns")
