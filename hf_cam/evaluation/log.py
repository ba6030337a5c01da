"""The records of an evaluation, saved to a file as they are made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_cam.errors import OptionError
from hf_cam.evaluation.table import Record


class Log:
    """The records so far, in memory and in a file."""

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self.records: list[Record] = []
        if self.path is None:
            return
        if self.path.is_file() and (lines := self.path.read_text(encoding="utf-8").splitlines()):
            self._read(lines, settings)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write({"settings": settings})
        self._done = {record.key for record in self.records}

    def _read(self, lines: Sequence[str], settings: Mapping[str, Any]) -> None:
        """Read the existing records; if the last line was cut off, its record is made again."""
        try:
            before = json.loads(lines[0])["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(f"{self.path} is not the file of an evaluation") from error
        if before != settings:
            changed = sorted(key for key in settings if before.get(key) != settings[key])
            raise OptionError(f"{self.path} was made with other settings ({', '.join(changed)}); use another file")
        whole = []
        for line in lines[1:]:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            whole.append(line)
            self.records.append(Record(**{**entry, "layers": tuple(entry["layers"])}))
        assert self.path is not None
        self.path.write_text("\n".join([lines[0], *whole]) + "\n", encoding="utf-8")

    def done(self, image: str, name: str, layers: tuple[str, ...]) -> bool:
        """Whether the file already holds a record."""
        return self.path is not None and (image, name, layers) in self._done

    def add(self, record: Record) -> None:
        """Add a record, and append it to the file."""
        self.records.append(record)
        if self.path is not None:
            self._write({**vars(record), "layers": list(record.layers)})

    def _write(self, entry: Mapping[str, Any]) -> None:
        assert self.path is not None
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
