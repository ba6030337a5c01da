"""What visitors upload: files as they came, and pictures in class folders, as a folder or as a zip."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from abc import ABCMeta
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from jobs import report
from limits import MAX_ARCHIVE, MAX_BYTES, MAX_DIRECTORY, MAX_IMAGES, MAX_UNPACKED, Refused, read_picture

from hf_cam.errors import one_line
from hf_cam.evaluation.samples import SUFFIXES

Component = TypeVar("Component")

LONGEST_CLASS = 80
UNUSUAL = "The zip is damaged or of an unusual kind."
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, struct.error)
"""What a damaged or locked zip, or one of a kind that Python does not read, raises."""
END, LOCATOR = b"PK\x05\x06", b"PK\x06\x07"
"""Marks of a zip's last record, and of what comes before it in one of more than 4 GB."""
END_SIZE, LOCATOR_SIZE, LONGEST_COMMENT = 22, 20, 65535


@dataclass(frozen=True)
class Upload:
    """A file as the server received it.

    Args:
        path: Where it lies.
        name: What the visitor calls it; with its class folder, if there is one.
    """

    path: str
    name: str


@dataclass(frozen=True)
class Labelled:
    """A picture with its class.

    Args:
        name: `class/file`, as the visitor calls it.
        label: The class: the folder that the file lay in.
        path: Where it lies, checked, upright, in RGB and no larger than `limits.MAX_SIDE`.
    """

    name: str
    label: str
    path: str


def as_uploaded(component: Component) -> Component:
    """The component that passes on the uploaded file itself: nothing opens it before it has been checked."""
    return _passing(component, lambda payload: payload and payload.path)


def as_uploads(component: Component) -> Component:
    """The component that passes on a list of `Upload`."""

    def uploads(payload: Any) -> list[Upload]:
        files = getattr(payload, "root", payload) or []
        files = files if isinstance(files, list) else [files]
        return [Upload(one.path, one.orig_name or Path(one.path).name) for one in files]

    return _passing(component, uploads)


def _passing(component: Component, pass_on: Callable[[Any], Any]) -> Component:
    """The component with another `preprocess`, also in the copies that gradio makes of it when an event updates it.

    A subclass, since those copies are made from the class; its metaclass is passed over, which would write a stub file
    beside the module.
    """
    base = type(component)
    body = {"preprocess": lambda self, payload: pass_on(payload), "__module__": base.__module__}
    component.__class__ = ABCMeta.__new__(type(base), base.__name__, (base,), body)
    return component


def read_labelled(uploads: Sequence[Upload], classes: Sequence[str], folder: Path) -> list[Labelled]:
    """The pictures with their classes, checked and copied.

    Args:
        uploads: Zips with class folders, or pictures whose names begin with their class folder.
        classes: The class of each file, where the names hold none; else empty.
        folder: Where the pictures are put, under names of our own.

    Raises:
        Refused: there are too many, too large or none, one is no picture or lies in no class folder, or a zip is
            damaged, locked or names files elsewhere.
    """
    if classes and (not isinstance(classes, list) or not all(isinstance(one, str) and one.strip() for one in classes)):
        raise Refused("The classes must be a list with one name per file.")
    if classes and len(classes) != len(uploads):
        raise Refused(f"There are {len(classes)} classes for {len(uploads)} files; give one per file.")
    found: dict[str, Labelled] = {}
    for number, upload in enumerate(uploads):
        given = classes[number].strip() if classes else ""
        for name, path in _unpacked(upload, folder, MAX_IMAGES - len(found)):
            report(len(found) / MAX_IMAGES, "Reading pictures")
            one = _labelled(name, given, path, folder / f"{len(found)}.png")
            unique = one.name if one.name not in found else f"{one.name} ({len(found)})"
            found[unique] = replace(one, name=unique)
    if not found:
        raise Refused("The upload holds no pictures; an audit takes pictures in class folders, as a folder or a zip.")
    return list(found.values())


def _unpacked(upload: Upload, folder: Path, room: int) -> Iterator[tuple[str, Path]]:
    """Name and place of each picture in an upload."""
    path = Path(upload.path)
    if not zipfile.is_zipfile(path):
        if room < 1:
            raise Refused(f"There are more than {MAX_IMAGES} pictures; this page accepts up to {MAX_IMAGES}.")
        yield upload.name, path
        return
    if path.stat().st_size > MAX_ARCHIVE:
        raise Refused(f"The zip is larger than {MAX_ARCHIVE >> 20} MB.")
    _check_directory(path)
    taken = folder / "picture"
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in _pictures(archive, room):
                taken.write_bytes(archive.read(entry))
                yield entry.filename, taken
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        struct.error,
        NotImplementedError,
        RuntimeError,
    ) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(UNUSUAL) from error
    finally:
        taken.unlink(missing_ok=True)


def _check_directory(path: Path) -> None:
    """Refuse a zip whose list of files is itself too large to be read.

    Raises:
        Refused: it is.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOCATOR_SIZE - END_SIZE - LONGEST_COMMENT))
        tail = file.read()
    without_comment = tail[-END_SIZE:].startswith(END) and tail.endswith(b"\0\0")
    at = len(tail) - END_SIZE if without_comment else tail.rfind(END)
    if not 0 <= at <= len(tail) - END_SIZE or tail[:at][-LOCATOR_SIZE:].startswith(LOCATOR):
        raise Refused(UNUSUAL)
    if struct.unpack_from("<I", tail, at + 12)[0] > MAX_DIRECTORY:
        raise Refused("The zip lists too many files.")


def _pictures(archive: zipfile.ZipFile, room: int) -> list[zipfile.ZipInfo]:
    """The pictures of an archive; nothing is unpacked before all are found acceptable."""
    found = [entry for entry in archive.infolist() if _is_picture(entry)]
    if len(found) > room:
        raise Refused(f"There are more than {MAX_IMAGES} pictures; this page accepts up to {MAX_IMAGES}.")
    for entry in found:
        _check_entry(entry)
    if sum(entry.file_size for entry in found) > MAX_UNPACKED:
        raise Refused(f"The zip unpacks to more than {MAX_UNPACKED >> 20} MB.")
    return found


def _is_picture(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry counts: other files are passed over, and those that systems add without being asked."""
    parts = PurePosixPath(entry.filename).parts
    hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)
    return not entry.is_dir() and not hidden and PurePosixPath(entry.filename).suffix.lower() in SUFFIXES


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = one_line(entry.filename, LONGEST_CLASS)
    parts = entry.filename.replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or ":" in parts[0] or "\\" in entry.filename:
        raise Refused(f"The zip names a file elsewhere: {name!r}.")
    if entry.flag_bits & 1:
        raise Refused("The zip is locked with a password.")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise Refused(f"The zip holds a link instead of a picture: {name!r}.")
    if entry.file_size > MAX_BYTES:
        raise Refused(f"{name!r} is larger than {MAX_BYTES >> 20} MB.")
    if entry.compress_type not in PACKED:
        raise Refused("The zip is packed in an unusual way; pack it with deflate.")


def _labelled(name: str, given: str, path: Path, target: Path) -> Labelled:
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    label = given or (parts[-2] if len(parts) > 1 else "")
    shown = one_line("/".join(parts[-2:]), LONGEST_CLASS)
    if not label or label in (".", "..") or len(label) > LONGEST_CLASS:
        raise Refused(f"{shown!r} lies in no class folder; put each picture into a folder with the name of its class.")
    try:
        picture, _ = read_picture(str(path))
    except Refused as error:
        raise Refused(f"{shown}: {error}") from error
    picture.save(target, compress_level=1)
    return Labelled(f"{one_line(label, LONGEST_CLASS)}/{one_line(parts[-1], LONGEST_CLASS)}", label, str(target))
