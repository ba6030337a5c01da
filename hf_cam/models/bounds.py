"""Numbers in a config that no real model has: a network of such a size would be built before anything refuses it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hf_cam.errors import ModelError, brief

MOST_PARTS = 2000
"""The largest number of layers, blocks, stages or experts; the deepest published vision models have about 1000."""
MOST = 10**8
"""The largest number of anything else, such as classes, tokens or channels."""
PARTS = re.compile(r"layers|depth|block|stages|experts", re.IGNORECASE)
"""Names of fields that count parts of the network."""


def check_bounds(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a config that describes a network of absurd size.

    Args:
        name: The model, for messages.
        config: The content of its `config.json`.

    Raises:
        ModelError: it does; the message names the field.
    """
    for field, key, number in _numbers(config):
        most = MOST_PARTS if PARTS.search(key) else MOST
        if abs(number) > most:
            raise ModelError(
                f"the config of {brief(name)} says {brief(field)}: {number:.3g}, and none with more than {most:,} is "
                "built; if you trust it, use hf_cam.load(..., trust_config=True)"
            )


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
