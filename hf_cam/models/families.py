"""The data files of `adapters/`, one TOML file per family of architectures, and those of plug-ins."""

from __future__ import annotations

import functools
import tomllib
import warnings
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hf_cam.errors import PluginWarning
from hf_cam.plugins import data_files


def data_folder() -> Path:
    """The folder `adapters/`: inside the package if it is installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "adapters" if (package / "adapters").is_dir() else package.parent / "adapters"


def tables(kind: str) -> tuple[tuple[Path, dict[str, Any]], ...]:
    """Every `[[kind]]` table with the path of its file, file by file; those of plug-ins come last.

    Of a plug-in's files only tables with `model_types` are taken; one that is no TOML is left out with a
    `PluginWarning`.
    """
    return _tables(kind, data_files())


@functools.cache
def _tables(kind: str, others: tuple[Path, ...]) -> tuple[tuple[Path, dict[str, Any]], ...]:
    own = [(path, table) for path in sorted(data_folder().glob("*.toml")) for table in _read(path).get(kind, [])]
    foreign = [(path, table) for path, data in _readable(others) for table in _list(data.get(kind))]
    return (*own, *((path, table) for path, table in foreign if isinstance(table, dict) and "model_types" in table))


@functools.cache
def _readable(paths: tuple[Path, ...]) -> tuple[tuple[Path, dict[str, Any]], ...]:
    found = []
    for path in paths:
        try:
            found.append((path, _read(path)))
        except (OSError, ValueError) as error:
            warnings.warn(f"the data file {path} of a plug-in cannot be read: {error}", PluginWarning, stacklevel=2)
    return tuple(found)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def declared(model_type: str, field: str) -> Any:
    """The value of a field in the first `[[trait]]` table for a `config.model_type` that has it; None if none has."""
    return next(
        (
            table[field]
            for _, table in tables("trait")
            if field in table and any(fnmatch(model_type, pattern) for pattern in table["model_types"])
        ),
        None,
    )
