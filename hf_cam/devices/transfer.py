"""Between a device and the CPU: a value that is read waits for all work in the device's queue, so read many at once."""

from __future__ import annotations

import torch
from torch import Tensor

WHOLE = "_hf_cam_whole"
"""The attribute by which a tensor of one sample leads to that of the batch."""
TOGETHER = 2**28
"""Bytes up to which the tensor of a batch is copied as a whole; a larger one would take the memory of the CPU."""


class Whole:
    """A tensor of a batch, copied to the CPU when the first of its samples is read.

    Args:
        tensor: `[B, ...]`.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._copy: Tensor | None = None

    @property
    def copy(self) -> Tensor:
        """The same values on the CPU, detached."""
        if self._copy is None:
            self._copy = self.tensor.detach().cpu()
        return self._copy


def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """The entries of the tensor of a batch, of which `on_host` copies all at once.

    >>> [one.item() for one in map(on_host, pieces(torch.tensor([3.0, 5.0])))]
    [3.0, 5.0]
    """
    whole, found = Whole(tensor), tensor.unbind()
    for index, piece in enumerate(found):
        setattr(piece, WHOLE, (whole, index))
    return found


def on_host(tensor: Tensor) -> Tensor:
    """The values of a tensor on the CPU, detached; for one of `pieces`, a single copy serves the whole batch."""
    whole, index = getattr(tensor, WHOLE, (None, 0))
    if whole is None or whole.tensor.nbytes > TOGETHER:
        return tensor.detach().cpu()
    entry: Tensor = whole.copy[index]
    return entry


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; to a GPU it goes from pinned memory, which waits for nothing."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def read(flags: list[Tensor]) -> list[bool]:
    """The values of boolean scalars, read at once.

    >>> read([torch.tensor(True), torch.tensor(False)])
    [True, False]
    """
    values: list[bool] = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
    return values
