"""Scores of many variants of each picture, in batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hf_cam.capture.chunks import images_at_once, in_chunks
from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import repeated
from hf_cam.capture.replay import wide_forward
from hf_cam.methods.run import Run
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

    module = unwrap(run.model)
    with borrowed(module), torch.no_grad():
        forward = wide_forward(module, run.inputs, run.captured.outputs)
        size = run.rerun_batch_size or images_at_once(run.pixels.device)
        return torch.stack([in_chunks(count, size, partial(some, sample)) for sample in range(len(run.targets))])
