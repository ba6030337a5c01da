"""Architectures of which no map can lie over the picture, and why."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from torch import nn

from hf_cam.errors import UnknownArchitecture
from hf_cam.models.families import tables
from hf_cam.models.traits import traits_of
from hf_cam.plugins import data_files


@dataclass(frozen=True)
class Refusal:
    """One `[[refusal]]` table: architectures of which no map can lie over the picture, and why.

    Args:
        model_types: Their `config.model_type`.
        reason: Why, in one sentence.
        heads: Patterns of class names.
    """

    model_types: tuple[str, ...]
    reason: str
    heads: tuple[str, ...] = ("*",)

    def refuses(self, model_type: str, head: str) -> bool:
        """True for a model of this `config.model_type` whose class has this name."""
        return model_type in self.model_types and any(fnmatch(head, pattern) for pattern in self.heads)


def refusals() -> tuple[Refusal, ...]:
    """Every refusal of `adapters/*.toml` and of plug-ins."""
    return _refusals(data_files())


@functools.cache
def _refusals(others: tuple[Path, ...]) -> tuple[Refusal, ...]:
    del others
    return tuple(
        Refusal(
            tuple(table["model_types"]),
            table.get("reason", f"{path.name} refuses it"),
            tuple(table.get("heads", Refusal.heads)),
        )
        for path, table in tables("refusal")
    )


def check_not_refused(module: nn.Module) -> None:
    """Refuse an architecture of which no map can lie over the picture.

    Raises:
        UnknownArchitecture: with the reason.
    """
    traits = traits_of(module)
    for refusal in refusals():
        if refusal.refuses(traits.model_type, traits.class_name):
            raise UnknownArchitecture(f"{traits.class_name} ({traits.model_type}) has no map to draw: {refusal.reason}")
