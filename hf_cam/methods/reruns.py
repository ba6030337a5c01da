"""Signals for which the model, or the part behind the target layer, runs once per channel."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from hf_cam.capture.chunks import in_chunks
from hf_cam.errors import LayoutError, SlowWarning
from hf_cam.maps import normalize, resize
from hf_cam.methods.run import Run
from hf_cam.methods.signals import activations, signal
from hf_cam.methods.variants import scores_of_variants
from hf_cam.models.traits import traits_of
from hf_cam.outputs import sample_of, similarities_of
from hf_cam.request import check_count, check_positive, check_seed
from hf_cam.targets import PromptSimilarity, Target, confidence, target_values

CHUNK_BYTES = 16 * 2**20


@signal(
    "the target's value with all channels, then without each channel, `[B, 1 + C]`",
    cost="one forward of the part behind the target layer per channel",
    replays=True,
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
    own = run.tokens_of(layer)
    gone = torch.eye(1 + channels, channels, dtype=torch.bool, device=activation.device).roll(1, 0)
    size = run.rerun_batch_size or max(1, CHUNK_BYTES // (activation[0].numel() * activation.element_size()))
    with run.tail(layer) as tail:
        if not tail.exact:
            warnings.warn(
                f"the model behind {layer!r} cannot be rerun separately, so each of its {channels} channels takes a "
                "whole forward; a layer nearer to the output may be faster",
                SlowWarning,
                stacklevel=2,
            )

        def without(sample: int, start: int, stop: int) -> Tensor:
            lost = gone[start:stop].unflatten(1, [channels if i == axis else 1 for i in range(1, activation.ndim)])
            variants = activation[sample : sample + 1].repeat(stop - start, *[1] * (activation.ndim - 1))
            variants[:, own] = variants[:, own].masked_fill(lost, 0)
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
    """The targets' values `[B, C]` for the images masked by each channel; see `masked_by`."""
    return masked_by(run, activations(run, layer))


def masked_by(run: Run, channels: Tensor, strength: float = 1.0) -> Tensor:
    """The targets' values `[B, C]` for the images times each of the maps `[B, C, *space]`.

    The maps are enlarged and scaled to [0, 1], then multiplied by `strength`. A constant one becomes a mask of zeros,
    so its image is black, never NaN.
    """

    def masked(sample: int, start: int, stop: int) -> Tensor:
        masks = normalize(resize(channels[sample, start:stop].float(), run.size), len(run.size))[:, None]
        return run.pixels[sample] * (strength * masks).to(run.pixels)

    return scores_of_variants(run, channels.shape[1], masked)


@signal(
    "the target's value for the image masked by each channel plus noise, averaged over draws, `[B, C]`",
    cost="one forward per channel and draw",
    pixels=True,
    forwards_per_channel=lambda draws: 0.9 * draws,
)
def noisy_masked_scores(run: Run, layer: str, draws: int = 35, noise: float = 2.0, seed: int = 0) -> Tensor:
    """The mean of `masked_scores` over channels to which Gaussian noise was added, `[B, C]`.

    Args:
        run: The run.
        layer: The target layer.
        draws: How often noise is drawn; each draw is the same for every channel and picture.
        noise: Its standard deviation, in the units of the activations.
        seed: Seed of the noise.
    """
    check_count("draws", draws)
    check_positive("noise", noise)
    check_seed(seed)
    channels, generator = activations(run, layer), torch.Generator().manual_seed(seed)
    each = [torch.randn(channels.shape[2:], generator=generator) * noise for _ in range(draws)]
    return torch.stack([masked_by(run, channels.float() + one.to(channels.device)) for one in each]).mean(0)


@signal(
    "the target's value for the image masked by each channel, averaged from black to the full mask, `[B, C]`",
    cost="one forward per channel and step",
    pixels=True,
    forwards_per_channel=lambda steps: 0.9 * steps,
)
def scaled_masked_scores(run: Run, layer: str, steps: int = 10) -> Tensor:
    """The mean of `masked_scores` over masks that are scaled by `1 / steps, 2 / steps, ..., 1`, `[B, C]`."""
    check_count("steps", steps)
    channels = activations(run, layer)
    return torch.stack([masked_by(run, channels, (step + 1) / steps) for step in range(steps)]).mean(0)


@signal(
    "the target's confidence when only one cell of the activations is kept, for each cell, `[B, 1, h, w]`",
    cost="one forward of the part behind the target layer per cell",
    replays=True,
    forwards=16.0,
)
def cell_scores(run: Run, layer: str, gaussian: bool = True) -> Tensor:
    """`[B, 1, *space]`: the confidence when all other cells of the layer's output are zero; other tokens stay.

    Args:
        run: The run.
        layer: The target layer.
        gaussian: Keep the neighbours too, weighted by a binomial 3 x 3 window whose centre weighs 1/4.
    """
    images = run.images_axis(layer)
    activation = run.activation(layer).detach().movedim(images, 0)
    places = places_of_cells(run, layer)
    space = places.shape[1:]
    weights = cell_weights(space, gaussian).to(activation)
    own = [confident(run, sample) for sample in range(len(activation))]
    size = run.rerun_batch_size or max(1, CHUNK_BYTES // (activation[0].numel() * activation.element_size()))
    cells = torch.full((activation[0].numel(),), len(weights), device=activation.device)
    cells[places.flatten()] = torch.arange(len(weights), device=activation.device).repeat(len(places))
    weights = torch.cat([weights, weights.new_ones(len(weights), 1)], 1)  # what lies in no cell stays
    with run.tail(layer) as tail:

        def alone(sample: int, start: int, stop: int) -> Tensor:
            kept = weights[start:stop].index_select(1, cells).reshape(-1, *activation.shape[1:])
            return target_values(tail(kept.mul_(activation[sample]), sample), [own[sample]] * (stop - start))

        each = [in_chunks(len(weights), size, partial(alone, sample)) for sample in range(len(activation))]
    return torch.stack(each).reshape(len(each), 1, *space)


def places_of_cells(run: Run, layer: str) -> Tensor:
    """`[C, *space]`: where in the layer's flattened output for one image each value of the spatial activations stands.

    Raises:
        LayoutError: a reshape function changes the values.
    """
    activation = run.activation(layer).detach()
    one = activation.movedim(run.images_axis(layer), 0)
    numbers = torch.arange(one[0].numel(), dtype=torch.float64, device=one.device).reshape(1, *one.shape[1:])
    places = run.to_spatial(numbers.expand(one.shape).movedim(0, run.images_axis(layer)), layer)[0].round().long()
    places = places.clamp(0, one[0].numel() - 1)
    if not torch.equal(one[0].flatten()[places], activations(run, layer)[0]):
        raise LayoutError(
            f"the cells of {layer!r} cannot be set one by one, because its reshape function changes values"
        )
    return places


def cell_weights(space: Sequence[int], gaussian: bool) -> Tensor:
    """`[cells, cells]`: the weight of each cell when one of them is kept.

    >>> cell_weights((1, 3), gaussian=True).tolist()
    [[0.25, 0.125, 0.0], [0.125, 0.25, 0.125], [0.0, 0.125, 0.25]]
    """
    found = torch.ones(1, 1)
    for length in space:
        distance = (torch.arange(length)[:, None] - torch.arange(length)).abs()
        near = torch.where(distance == 0, 0.5, torch.where(distance == 1, 0.25, 0.0))
        found = torch.kron(found, near if gaussian else torch.eye(length))
    return found


def confident(run: Run, index: int) -> Target:
    """The confidence that belongs to the target of one image, or else the target itself."""
    target = run.targets[index]
    prompts = 1
    if isinstance(target, PromptSimilarity):
        prompts = len(similarities_of(sample_of(run.captured.outputs, index, len(run.targets))))
    return confidence(target, traits_of(run.model).problem_type, prompts)


def _channel_axis(activation: Tensor, spatial: Tensor) -> int:
    """The axis of the channels in a layer's output, found by their number.

    Raises:
        LayoutError: there is none, because a reshape function changed the number of channels.
    """
    for axis in (1, activation.ndim - 1) if activation.ndim == spatial.ndim else (activation.ndim - 1,):
        if activation.shape[axis] == spatial.shape[1]:
            return axis
    raise LayoutError(f"no axis of {tuple(activation.shape)} has the {spatial.shape[1]} channels that reshape returns")
