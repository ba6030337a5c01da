"""The data files of `adapters/`: one TOML file per family of architectures."""

from __future__ import annotations

import functools
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any


def data_folder() -> Path:
    """The folder `adapters/`: inside the package if it is installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "adapters" if (package / "adapters").is_dir() else package.parent / "adapters"


@functools.cache
def tables(kind: str) -> tuple[tuple[Path, dict[str, Any]], ...]:
    """Every `[[kind]]` table with the path of its file, file by file."""
    return tuple(
        (path, table)
        for path in sorted(data_folder().glob("*.toml"))
        for table in tomllib.loads(path.read_text(encoding="utf-8")).get(kind, [])
    )


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
