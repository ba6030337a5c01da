"""A folder of Parquet files that grows by whole files, and a manifest of what made them: what a kill cannot break."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from itertools import compress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hf_cam.data.rows import NO_GEOMETRY, Row
from hf_cam.data.sources import INSTALL, PART
from hf_cam.errors import HFCamError, OptionError, brief, reason
from hf_cam.evaluation.log import lock
from hf_cam.images.reading import is_data_uri, is_url
from hf_cam.results.files import write_whole

MANIFEST, LOCK, ROWS = "manifest.json", "lock", re.compile(r"rows-(\d+)\.parquet")
INFORMATIVE = ("root", "complete", "images", "errors")
"""Entries of a manifest that describe and do not distinguish; what decides is in the others."""


class Shards:
    """The files of one part of a data set, `OUT/part-01-of-01/rows-00000.parquet` and so on, for one writer.

    A file appears complete or not at all: it is written beside, brought to the disk and renamed. The lock is the
    operating system's, so that it ends with the process that holds it, however that ends.

    Args:
        out: The folder of the data set.
        part: `(i, n)`: the i-th of n parts, counted from 1.
        settings: What the rows depend on, as JSON values.

    Raises:
        OptionError: another process writes to the folder; it, or another part, was made with other settings; or it
            cannot be written.
    """

    def __init__(self, out: Path, part: tuple[int, int], settings: Mapping[str, Any]) -> None:
        self.out, self.part, self.settings = out, part, dict(settings)
        self.folder = out / f"part-{part[0]:02d}-of-{part[1]:02d}"
        self.done: set[str] = set()
        self.errors = 0
        self._lock: FileIO | None = None
        self._next = 0

    def __enter__(self) -> Self:
        try:
            self._check_parts()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
            self._compare()
            self._take_over()
        except OSError as error:
            self._release()
            raise self._refused(error) from error
        except BaseException:  # an interrupt too, whose traceback a notebook keeps, and with it the lock
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the folder."""
        self._release()

    def write(self, rows: Sequence[Row]) -> None:
        """Add a file with these rows.

        Raises:
            OptionError: it cannot be written; the files that are there stay as they are.
        """
        try:
            _write(self.folder / f"rows-{self._next:05d}.parquet", table_of(rows))
        except OSError as error:
            raise self._refused(error) from error
        self._next += 1
        self.done.update(row["path"] for row in rows)
        self.errors += sum(bool(row["error"]) for row in rows)

    def finish(self) -> None:
        """Note in the manifest that the part is complete."""
        try:
            self._note({"complete": True, "images": len(self.done), "errors": self.errors})
        except OSError as error:
            raise self._refused(error) from error

    def _check_parts(self) -> None:
        for other in parts_of(self.out):
            match = PART.fullmatch(other.name)
            if match and int(match[2]) != self.part[1]:
                raise OptionError(
                    f"{brief(str(self.out))} was begun in {int(match[2])} parts, so images would stand there twice; "
                    "pass another folder, or the same number of parts"
                )
            if other != self.folder and any(stored_files(other)):
                self._compare_with(other)

    def _locked(self) -> FileIO:
        file = FileIO(self.folder / LOCK, "a+")
        try:
            lock(file)
        except BlockingIOError as error:
            file.close()
            raise OptionError(
                f"another process writes to {brief(str(self.folder))}; wait for it, or pass another folder"
            ) from error
        return file

    def _compare(self) -> None:
        """Refuse to add rows to others that were made differently.

        Raises:
            OptionError: naming what differs.
        """
        if any(stored_files(self.folder)):
            self._compare_with(self.folder)
        self._note({"complete": False})

    def _compare_with(self, folder: Path) -> None:
        before = manifest_of(folder)
        if before is None:
            raise OptionError(f"{brief(str(folder))} holds Parquet files, but no manifest; pass another folder")
        names = sorted({*before, *self.settings} - {*INFORMATIVE})
        changed = [name for name in names if before.get(name) != self.settings.get(name)]
        if changed:
            raise OptionError(
                f"{brief(str(folder))} was made with other settings ({', '.join(changed)}); pass another folder"
            )

    def _take_over(self) -> None:
        """Count what is there; files that are not whole, and rows with errors, are done again."""
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink()
        for path in stored_files(self.folder):
            self._next = max(self._next, number_of(path) + 1)
            try:
                table = _read(path, ["path", "error"])
                good = [not error for error in table["error"].to_pylist()]
                kept = None if all(good) else _read(path).filter(good)
            except HFCamError:
                path.rename(path.with_suffix(".damaged"))
                continue
            self.done.update(compress(table["path"].to_pylist(), good))
            if kept is not None:
                _write(path, kept) if len(kept) else path.unlink()

    def _note(self, described: Mapping[str, Any]) -> None:
        noted = json.dumps({**self.settings, **described}, indent=1).encode()
        write_whole(self.folder / MANIFEST, lambda file: file.write(noted))

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _refused(self, error: OSError) -> OptionError:
        return OptionError(
            f"{brief(str(self.folder))} cannot be written ({reason(error)}); what is there stays, and the same command "
            "continues from it"
        )


def parts_of(out: Path) -> list[Path]:
    """The folders of the parts of a data set, in order."""
    return sorted(path for path in out.glob("part-*") if PART.fullmatch(path.name))


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a part; None if there is none, or none that can be read."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def root_of(part: Path) -> str:
    """The folder in which the relative paths of a part's rows lie; empty if they are no paths."""
    return str((manifest_of(part) or {}).get("root") or "")


def source_in(root: str, name: str) -> str:
    """Where the image of a row is read from again.

    >>> [source_in("/x", name) for name in ("~a.png", "~/a.png", "https://h/a.png")]
    ['/x/~a.png', '~/a.png', 'https://h/a.png']
    """
    placed = not root or is_url(name) or is_data_uri(name) or name.startswith("~/")
    return name if placed else str(Path(root, name))


def stored_files(folder: Path) -> list[Path]:
    """The files of one part, in the order in which they were written."""
    return sorted((path for path in folder.glob("rows-*.parquet") if ROWS.fullmatch(path.name)), key=number_of)


def number_of(path: Path) -> int:
    """The number in a file's name."""
    match = ROWS.fullmatch(path.name)
    return int(match[1]) if match else -1


def stored_rows(folder: Path) -> Iterator[Row]:
    """The rows of one part, file by file.

    Raises:
        OptionError: a file cannot be read.
    """
    for path in stored_files(folder):
        yield from rows_in(path)


def rows_in(path: Path) -> list[Row]:
    """The rows of one file; of hf-cam 0.2, where the manifest alone names the method and the layers, with these.

    Raises:
        OptionError: it cannot be read.
    """
    rows: list[Row] = _read(path).to_pylist()
    if rows and "details" not in rows[0]:
        manifest = manifest_of(path.parent) or {}
        made = {"method": manifest.get("method") or "", "layers": manifest.get("layers") or []}
        rows = [{**row, "details": json.dumps(made)} for row in rows]
    return rows


def _write(path: Path, table: Any) -> None:
    import pyarrow.parquet as pq

    write_whole(path, lambda file: pq.write_table(table, file, compression="zstd"))


def _read(path: Path, columns: Sequence[str] | None = None) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise OptionError(f"Parquet needs the library pyarrow: {INSTALL}") from error
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns), partitioning=None)
    except Exception as error:  # whatever is wrong with a file
        raise OptionError(f"{brief(str(path))} cannot be read as Parquet: {reason(error)}") from error


def schema() -> Any:
    """The Arrow schema of the files."""
    import pyarrow as pa

    pair, whole = pa.list_(pa.float64()), pa.list_(pa.int32())
    sizes, axes = ("image_size", "model_size", "seen"), ("rows", "columns")
    members = {**dict.fromkeys(sizes, whole), **dict.fromkeys(axes, pair), "swapped": pa.bool_()}
    geometry = pa.struct([(name, members[name]) for name in NO_GEOMETRY])
    text = pa.string()
    return pa.schema(
        [
            ("path", text),
            ("label", text),
            ("score", pa.float64()),
            ("score_kind", text),
            ("box", pa.list_(pa.float32())),
            ("map", pa.list_(pa.float16())),
            ("map_shape", whole),
            ("geometry", geometry),
            ("evidence", text),
            ("check", text),
            ("details", text),
            ("others", text),
            ("error", text),
        ]
    )


def table_of(rows: Sequence[Row]) -> Any:
    """Rows as an Arrow table."""
    import pyarrow as pa

    names = schema()
    return pa.table({field.name: pa.array([row[field.name] for row in rows], field.type) for field in names}, names)


def rows_of(content: bytes) -> Iterator[Row]:
    """The rows of a table in Arrow's stream format."""
    import pyarrow as pa

    with pa.ipc.open_stream(content) as stream:
        for batch in stream:
            yield from batch.to_pylist()
