"""The records of an evaluation in a file: added as they are made, and found again by what they depend on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hf_cam.errors import HFCamError, OptionError, brief, reason
from hf_cam.evaluation.table import Record

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

INFORMATIVE = ("model",)
"""Settings that are written for people; the weights tell models apart."""


class Log:
    """The records of an evaluation, in memory and, if there is a path, in a JSONL file that is locked meanwhile.

    Each record is on the disk before the next one is made. A file is never rewritten in place: damaged lines are left
    out of a copy, which then takes the file's place.

    Args:
        path: The file; None for memory alone.
        settings: What all records of the evaluation share, as JSON values.

    Raises:
        OptionError: the file is of another kind or of other settings, in use by another process, or cannot be written.
    """

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        if not isinstance(path, str | os.PathLike | None):
            raise OptionError(f"resume= must be the path of a file such as 'records.jsonl', got {brief(path)}")
        self.path = None if path is None else Path(path)
        self.settings = dict(settings)
        self._records: dict[str, Record] = {}
        self._file: FileIO | None = None
        self.before: frozenset[str] = frozenset()

    def __enter__(self) -> Self:
        if self.path is not None:
            try:
                self.path = self.path.expanduser()
                self._file = _opened(self.path)
                self._read(self._file)
            except HFCamError:
                self.close()
                raise
            except (OSError, ValueError, RuntimeError) as error:  # no such ~user
                self.close()
                raise self._refused(error) from error
        self.before = frozenset(self._records)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the file."""
        self.close()

    def close(self) -> None:
        """Close the file, which ends the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def find(self, fingerprint: str) -> Record | None:
        """The record of this fingerprint; None if it has yet to be made."""
        return self._records.get(fingerprint)

    def add(self, record: Record) -> None:
        """Add a record, and append it to the file.

        Raises:
            OptionError: the file cannot be written; the records in it stay as they are.
        """
        if self._file is not None:
            try:
                _append(self._file, _line({**vars(record), "layers": list(record.layers)}))
            except OSError as error:
                raise self._refused(error) from error
        self._records[record.fingerprint] = record

    def _read(self, file: FileIO) -> None:
        """Take over the records that are there; a damaged line costs its own record."""
        file.seek(0)
        content = file.read()
        if not content:
            _append(file, _line({"settings": self.settings}))
            return
        lines, ends_well = content.removesuffix(b"\n").split(b"\n"), content.endswith(b"\n")
        written = [_entry(line) for line in lines]
        records = [_record(entry, self.settings["metrics"]) for entry in written]
        found = [record for record in records if record is not None]
        header = written[0].get("settings")
        whole = isinstance(header, Mapping)
        if not whole and not found:
            raise OptionError(f"{brief(str(self.path))} is not the records file of an evaluation; pass another file")
        if isinstance(header, Mapping):
            self._check_settings(header)
        self._records = {record.fingerprint: record for record in reversed(found)}
        if not whole or not ends_well or len(found) < len(written) - 1:
            kept = [line + b"\n" for line, record in zip(lines, records, strict=True) if record is not None]
            self._file = _replaced(self.path, file, [_line({"settings": self.settings}), *kept])

    def _check_settings(self, before: Mapping[str, Any]) -> None:
        names = sorted({*before, *self.settings} - {*INFORMATIVE})
        changed = [name for name in names if before.get(name) != self.settings.get(name)]
        if changed:
            raise OptionError(
                f"{brief(str(self.path))} was made with other settings ({', '.join(changed)}); pass another file"
            )

    def _refused(self, error: Exception) -> OptionError:
        return OptionError(
            f"the records file {brief(str(self.path))} cannot be read or written ({reason(error)}); what it holds "
            "stays there"
        )


def _opened(path: Path) -> FileIO:
    """The file, open for reading and appending, and locked.

    Raises:
        OptionError: it is no file, or another process holds the lock.
    """
    if path.exists() and not path.is_file():
        raise OptionError(f"{brief(str(path))} is not a file; resume= takes a file such as 'records.jsonl'")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = FileIO(path, "a+")
        try:
            lock(file)
        except BlockingIOError as error:
            file.close()
            raise OptionError(
                f"another process writes its records to {brief(str(path))}; wait for it, or pass another file"
            ) from error
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # meanwhile another process has put a repaired copy in its place


def lock(file: FileIO) -> None:
    """Lock a file until it is closed, where the system and the file system can.

    Raises:
        BlockingIOError: it is locked already.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network file systems have no locks
        return


def _append(file: FileIO, line: bytes) -> None:
    """Add a whole line and have it on the disk, or leave the file as it was."""
    end = os.fstat(file.fileno()).st_size
    try:
        left = memoryview(line)
        while left:
            left = left[file.write(left) or 0 :]
        os.fsync(file.fileno())
    except OSError:
        file.truncate(end)
        raise


def _replaced(path: Path | None, old: FileIO, lines: list[bytes]) -> FileIO:
    """A new file in the place of an old one, locked before it stands there; the old one stays if that fails."""
    assert path is not None
    target = path.resolve()
    aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    new = FileIO(aside, "w+")
    try:
        lock(new)
        shutil.copymode(target, aside)
        _append(new, b"".join(lines))
        aside.replace(target)
    except BaseException:
        new.close()
        aside.unlink(missing_ok=True)
        raise
    old.close()
    return new


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _entry(line: bytes) -> dict[str, Any]:
    """A line of the file as a dict; empty if it is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _record(entry: Mapping[str, Any], metrics: Sequence[str]) -> Record | None:
    """The record in an entry; None if it is none, or not one of these metrics."""
    if set(entry) != {field.name for field in fields(Record)}:
        return None
    texts = (entry["image"], entry["map"], entry["fingerprint"], *_list(entry["layers"]))
    numbers = (entry["seconds"], *_dict(entry["scores"]).values())
    curves = _dict(entry["curves"]).values()
    if set(_dict(entry["scores"])) != set(metrics):
        return None
    if not all(isinstance(text, str) for text in texts) or not all(map(_is_number, numbers)):
        return None
    if not all(isinstance(curve, list) and all(map(_is_number, curve)) for curve in curves):
        return None
    return Record(**{**entry, "layers": tuple(entry["layers"])})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"": None}
