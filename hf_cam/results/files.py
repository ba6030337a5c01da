"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from hf_cam.errors import brief, reason


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> Path:
    """Write a file beside its place, bring it to the disk, and then put it there; nobody ever sees half of it.

    Args:
        path: The file; one of that name is replaced.
        write: Writes the content to an open file.

    Raises:
        OSError: it cannot be written; what stood there before stays.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder, "a.txt"), lambda file: file.write(b"whole")).read_bytes()
    b'whole'
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return path


def obstacle(folder: Path) -> str | None:
    """Why nothing can be written to a folder, which need not exist yet; None where nothing seems to be in the way."""
    try:
        whole = folder.expanduser().absolute()
        there = next(path for path in (whole, *whole.parents) if path.exists())
        if not there.is_dir():
            return f"{brief(str(there))} is no folder"
        return None if os.access(there, os.W_OK | os.X_OK) else f"{brief(str(there))} may not be written"
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such ~user
        return reason(error)


def write_text(path: Path, text: str) -> Path:
    """Write a text as UTF-8, whole or not at all; arguments and errors as in `write_whole`."""
    return write_whole(path, lambda file: file.write(encodable(text).encode()))


def encodable(text: str) -> str:
    r"""A text that UTF-8 can hold: bytes of file names that are no UTF-8 are written out.

    >>> encodable("\udcff.png")
    '\\udcff.png'
    """
    return text.encode(errors="backslashreplace").decode()


def _sync(folder: Path) -> None:
    """Have a rename on the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
