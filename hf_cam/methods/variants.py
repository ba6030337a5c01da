"""Scores of many variants of each picture, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from hf_cam.capture.chunks import images_at_once, in_chunks
from hf_cam.capture.guard import borrowed, kept
from hf_cam.capture.inputs import repeated
from hf_cam.capture.replay import wide_forward
from hf_cam.methods.run import Run
from hf_cam.methods.signals import Signal, captured_for
from hf_cam.models.traits import unwrap
from hf_cam.targets import target_values

Make = Callable[[int, int, int], Tensor]
"""From an image's index and a range of variants to these variants, `[stop - start, C, *space]`."""


def scores_of_variants(run: Run, count: int, make: Make) -> Tensor:
    """The targets' values `[B, count]` for variants of each picture; no gradients, and the model is left unchanged.

    A half-precision model runs in float32 where its forward allows it.

    Args:
        run: The run of the unchanged pictures.
        count: The number of variants of each picture.
        make: Makes them, a batch at a time.
    """

    def some(sample: int, start: int, stop: int) -> Tensor:
        owners = torch.full((stop - start,), sample)
        outputs = forward({**repeated(run.inputs, owners), "pixel_values": make(sample, start, stop)})
        return target_values(outputs, [run.targets[sample]] * (stop - start))

    with borrowed(unwrap(run.model)) as module, torch.no_grad():
        forward = wide_forward(module, run.inputs, run.captured.outputs)
        size = run.rerun_batch_size or images_at_once(run.pixels.device)
        return torch.stack([in_chunks(count, size, partial(some, sample)) for sample in range(len(run.targets))])


def mean_of_variants(
    run: Run, layer: str, count: int, make: Make, signals: Sequence[Signal], measure: Callable[[Run], Tensor]
) -> Tensor:
    """The mean over variants of each picture of what a captured forward of them gives, `[B, ...]`.

    Args:
        run: The run of the unchanged pictures.
        layer: The target layer to capture.
        count: The number of variants of each picture.
        make: Makes them, a batch at a time.
        signals: What `measure` needs of the captured forward.
        measure: From a run of `n` variants to `[n, ...]`.
    """
    adapter = replace(run.adapter, layers=(layer,), layouts=(run.adapter.layout_of(layer),))

    def some(sample: int, start: int, stop: int) -> Tensor:
        owners = torch.full((stop - start,), sample)
        inputs = {**repeated(run.inputs, owners), "pixel_values": make(sample, start, stop)}
        targets = [run.targets[sample]] * (stop - start)
        with captured_for(signals, run.model, adapter.layers, inputs) as captured:
            part = Run(run.model, inputs, captured, adapter, targets, run.size, run.rerun_batch_size)
            return kept(measure(part)).sum(0, keepdim=True)

    size = run.rerun_batch_size or images_at_once(run.pixels.device)
    each = [in_chunks(count, size, partial(some, sample)).sum(0) / count for sample in range(len(run.targets))]
    return torch.stack(each)


def noisy(run: Run, samples: int, noise: float, seed: int) -> Make:
    """Makes variants with Gaussian noise, the same for every picture of a batch.

    Args:
        run: The run of the unchanged pictures.
        samples: The number of variants of each picture.
        noise: The standard deviation, as a share of the picture's largest less its smallest value.
        seed: Seed of the noise.
    """
    pixels = run.pixels
    seeds = torch.randint(2**31, (samples,), generator=torch.Generator().manual_seed(seed)).tolist()

    def make(sample: int, start: int, stop: int) -> Tensor:
        picture = pixels[sample]
        drawn = [
            torch.randn(picture.shape, generator=torch.Generator().manual_seed(own), dtype=torch.float32)
            for own in seeds[start:stop]
        ]
        spread = noise * (picture.max() - picture.min())
        return picture + spread * torch.stack(drawn).to(picture)

    return make
