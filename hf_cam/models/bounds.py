"""Networks of absurd size, refused by the numbers in their config or else while they are built without memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hf_cam.errors import ModelError, brief

MOST_PARTS = 2000
"""The largest number of layers, blocks, stages or experts; the deepest published vision models have about 1000."""
MOST_LABELS = 10**5
"""The largest number of classes, for each of which a config makes a name."""
MOST = 10**8
"""The largest number of anything else, such as tokens or channels."""
MOST_TENSORS = 10_000
"""The largest number of tensors that a network is made of."""
FACTORIES = frozenset(
    {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.linspace}
)
TRUST = "if you trust it, use hf_cam.load(..., trust_config=True)"
PARTS = re.compile(r"layers|depth|block|stages|experts", re.IGNORECASE)
"""Names of fields that count parts of the network."""
LABELS = frozenset({"num_labels", "num_classes"})
"""Names of fields that count classes."""


def check_bounds(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a config that describes a network of absurd size.

    Args:
        name: The model, for messages.
        config: The content of its `config.json`.

    Raises:
        ModelError: it does; the message names the field.
    """
    for field, key, number in _numbers(config):
        most = MOST_PARTS if PARTS.search(key) else MOST_LABELS if key in LABELS else MOST
        if abs(number) > most:
            raise ModelError(
                f"the config of {brief(name)} says {brief(field)}: {number:.3g}, and none with more than {most:,} is "
                f"built; {TRUST}"
            )


class Bounded(TorchFunctionMode):
    """Refuse a network that this machine cannot hold, while its tensors are made on the meta device.

    transformers builds each network there before it reads the weights, so nothing is built twice.

    Args:
        name: The model, for messages.

    Raises:
        ModelError: the network has more bytes than the machine has memory, or more than `MOST_TENSORS` tensors.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.bytes, self.tensors = name, 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in FACTORIES and isinstance(made, Tensor) and made.is_meta:
            self.bytes += made.nbytes
            self.tensors += 1
            if self.bytes > memory():
                size = f"{self.bytes / 1e9:.3g} GB or more, and this machine has {memory() / 1e9:.3g} GB of memory"
                raise ModelError(f"the config of {brief(self.name)} describes a network of {size}; {TRUST}")
            if self.tensors > MOST_TENSORS:
                size = f"more than {MOST_TENSORS:,} tensors"
                raise ModelError(f"the config of {brief(self.name)} describes a network of {size}; {TRUST}")
        return made


def memory() -> int:
    """The machine's memory in bytes; 2**40 where the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**40


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Each whole number in a config, with the path of its field and the last name in it; for a list also the sum."""
    waiting: list[tuple[str, str, Any]] = [(str(key), str(key), value) for key, value in config.items()]
    while waiting:
        path, key, value = waiting.pop()
        if _is_whole(value):
            yield path, key, value
        elif isinstance(value, Mapping):
            waiting += [(f"{path}.{name}", str(name), part) for name, part in value.items()]
        elif isinstance(value, list | tuple):
            yield path, key, sum(filter(_is_whole, value))
            waiting += [(path, key, part) for part in value]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
