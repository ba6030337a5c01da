"""What a data set is: a folder, a glob, a list, a Parquet file or a `datasets` name, by index and by name."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any
from zlib import crc32

from PIL import Image
from PIL.ImageFile import ImageFile

from hf_cam.doors import blaming
from hf_cam.errors import ImageError, OptionError, brief, reason
from hf_cam.evaluation.samples import SUFFIXES
from hf_cam.images.reading import is_file
from hf_cam.models.fingerprint import fingerprint

IMAGES = ("image", "img", "pixel_values", "path", "file_name")
"""Columns in which pictures are looked for, in this order."""
ASKED = ("target", "text")
"""Columns that hold what is asked of each image."""
INSTALL = 'pip install "hf-cam[data]"'
PART = re.compile(r"part-(\d+)-of-(\d+)")
"""The name of the folder of a part of a data set's explanations."""


class Source(ABC):
    """The images of a data set, each with a name that stands once; opened again by name in other processes.

    Args:
        name: What the data set is called in messages.
    """

    name: str
    root: Path | None = None
    """The folder from which names that are relative paths lead to the images; None where names are no paths."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def key(self, index: int) -> str:
        """The name of an image: a path relative to the folder, or the number of a row."""

    def identity(self) -> str:
        """What a manifest calls the data: the same in every process, and another for other data.

        Files may be added to a folder or taken away from it, since their names tell them apart.
        """
        return self.name

    def turn(self, index: int) -> int:
        """The part to which an image belongs, modulo their number: that of a file depends on no other file."""
        return index

    @abstractmethod
    def at(self, index: int) -> dict[str, Any]:
        """The image and, where the data has them, its "target" and "text"; nothing is decoded yet."""


class Files(Source):
    """Image files, named by their paths relative to the folder that holds them all."""

    root: Path

    def __init__(self, name: str, files: Sequence[Path], root: Path) -> None:
        self.name, self.root, self.files = name, root, files

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        """The relative path with slashes; bytes that are no text are written as escapes."""
        return _text(self.files[index].relative_to(self.root).as_posix())

    def turn(self, index: int) -> int:
        """By the name."""
        return crc32(self.key(index).encode())

    def at(self, index: int) -> dict[str, Any]:
        """The path."""
        return {"image": str(self.files[index])}


class Listed(Source):
    """A list of paths, URLs, pictures or arrays in memory; what is no text is named by its number.

    Paths and URLs tell themselves apart, as far as relative ones lie in the same folder; pictures count by what they
    show.
    """

    def __init__(self, images: Sequence[Any]) -> None:
        self.name, self.images, self.root = f"a list of {len(images)} images", images, Path.cwd()

    def identity(self) -> str:
        """The folder of relative paths, and a fingerprint of the pictures."""
        unnamed = [(i, _content(one)) for i, one in enumerate(self.images) if not _is_name(one)]
        below = f" in {self.root}" if any(map(_is_relative, self.images)) else ""
        return f"a list{below}" + (f", {fingerprint(unnamed)}" if unnamed else "")

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        """The path or URL, or else the number."""
        image = self.images[index]
        return _text(str(image)) if _is_name(image) else f"{index:08d}"

    def turn(self, index: int) -> int:
        """By the path or URL, or else by the number."""
        return crc32(self.key(index).encode()) if _is_name(self.images[index]) else index

    def at(self, index: int) -> dict[str, Any]:
        """The entry of the list."""
        return {"image": self.images[index]}


class Table(Source):
    """A `datasets.Dataset`: rows are read one by one, pictures stay encoded."""

    def __init__(self, name: str, dataset: Any, column: str | None) -> None:
        from datasets import Image as ImageFeature

        dataset = dataset.with_format(None)  # the pictures as they are stored, not as a training changes them
        self.name = name
        self.column = _image_column(dataset.column_names, column)
        content = dataset._fingerprint  # noqa: SLF001 - the library has no other name for it
        self._identity = f"{name}, column {self.column}, {dataset.split}, {content}"
        if isinstance(dataset.features[self.column], ImageFeature):
            dataset = dataset.cast_column(self.column, ImageFeature(decode=False))
        self.dataset = dataset.select_columns(
            [self.column, *(one for one in ASKED if one in dataset.column_names and one != self.column)]
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def identity(self) -> str:
        """Name, column, split, and the library's fingerprint of the content."""
        return self._identity

    def key(self, index: int) -> str:
        """The number of the row."""
        return f"{index:08d}"

    def at(self, index: int) -> dict[str, Any]:
        """The row, with its picture as "image"."""
        row = self.dataset[index]
        return {"image": row.pop(self.column), **row}


class ParquetFile(Source):
    """A Parquet file: its row groups are read one at a time."""

    def __init__(self, path: Path, column: str | None) -> None:
        self.path, self.name = path, str(path)
        self._open()
        names = self._file.schema_arrow.names
        self.column = _image_column(names, column)
        self.columns = [self.column, *(name for name in ASKED if name in names and name != self.column)]
        metadata = self._file.metadata
        counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self.starts = [0, *accumulate(counts)]

    def _open(self) -> None:
        import pyarrow.parquet as pq

        try:
            self._file = pq.ParquetFile(self.path)
        except Exception as error:
            raise ImageError(f"{brief(str(self.path))} cannot be read as Parquet: {reason(error)}") from error
        self._group: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_group": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        count: int = self.starts[-1]
        return count

    def identity(self) -> str:
        """Path, column, and a digest of all bytes of the file."""
        with self.path.open("rb") as file:
            return f"{self.path}, column {self.column}, {hashlib.file_digest(file, 'sha256').hexdigest()}"

    def key(self, index: int) -> str:
        """The number of the row."""
        return f"{index:08d}"

    def at(self, index: int) -> dict[str, Any]:
        """The row, with its picture as "image"."""
        number = bisect_right(self.starts, index) - 1
        if self._group is None or self._group[0] != number:
            self._group = number, self._file.read_row_group(number, columns=self.columns)
        [row] = self._group[1].slice(index - self.starts[number], 1).to_pylist()
        return {"image": row.pop(self.column), **row}


def _text(name: str) -> str:
    """A path as text; bytes that are none are written as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_name(image: Any) -> bool:
    """Whether an image of a list is a path or a URL, and not its content."""
    return isinstance(image, str | Path) and len(str(image)) < 4096


def _is_relative(image: Any) -> bool:
    """Whether an image of a list is a path that starts where the process runs."""
    address = isinstance(image, str) and re.match(r"[a-z]+:", image, re.IGNORECASE)
    return _is_name(image) and not address and not Path(image).is_absolute()


def _content(image: Any) -> Any:
    """What tells a picture from others: its file if it is still to be decoded, else its pixels."""
    file = file_of(image)
    return image if file is None else (file, image.size)


def file_of(image: Any) -> str | None:
    """The file of a picture that is still to be decoded, and has no other frames; None for all else.

    Read from there in its place, the picture stays as it is: the next run finds it the same, and pictures that were
    decoded do not gather in the caller's list.
    """
    if not isinstance(image, ImageFile) or not image.filename or not image.tile or getattr(image, "n_frames", 1) > 1:
        return None
    name = os.fsdecode(image.filename)
    return name if is_file(name) else None


def source_of(
    data: Any, *, column: str | None = None, split: str | None = None, apart_from: Path | None = None
) -> Source:
    """The images of a folder (with its sub-folders), a glob, a Parquet file, a list, or a `datasets` name or object.

    Args:
        data: The data set.
        column: The column of images, for tables.
        split: The split, for `datasets`.
        apart_from: A folder of explanations, whose overlays are no data if they lie in a folder of images.

    Raises:
        ImageError: there are no images, or the data cannot be read.
        OptionError: the data is of no such type, there is no such column or split, or a split has to be chosen.
    """
    source = _source(data, column, split)
    for name, given, kinds in (("column", column, Table | ParquetFile), ("split", split, Table)):
        if given is not None and not isinstance(source, kinds):
            raise OptionError(f"{brief(source.name)} has no {name} {brief(given)}; omit {name}=")
    if isinstance(source, Files) and apart_from is not None:
        source.files = _not_written(source.files, apart_from.resolve())
    if not len(source):
        raise ImageError(f"there are no images in {brief(source.name)}")
    return source


def _source(data: Any, column: str | None, split: str | None) -> Source:
    if isinstance(data, str | Path):
        return _named(str(data), column, split)
    if type(data).__module__.partition(".")[0] == "datasets":
        return Table("a data set in memory", _one_split(data, split), column)
    single = isinstance(data, Image.Image | bytes | bytearray | memoryview | Mapping) or _is_array(data)
    if single or not isinstance(data, Iterable):
        raise OptionError(
            "data must be a folder, a glob, a Parquet file, a data set or a list of images, not "
            f"{type(data).__name__}; put a single image into a list"
        )
    return Listed(list(data))


def _is_array(data: Any) -> bool:
    """Whether this is one picture as numbers, and no batch of them."""
    return getattr(data, "ndim", 0) in (2, 3)


def _not_written(files: Sequence[Path], out: Path) -> list[Path]:
    """The files that lie in no part of a folder of explanations, by whatever links they were found."""
    folders = {folder: folder.resolve() for folder in {path.parent for path in files}}
    written = {
        folder
        for folder, place in folders.items()
        if place != out and place.is_relative_to(out) and PART.fullmatch(place.relative_to(out).parts[0])
    }
    return [path for path in files if path.parent not in written]


def _named(name: str, column: str | None, split: str | None) -> Source:
    path = Path(name).expanduser()
    with blaming("reading the data", ImageError):
        if path.is_dir() and any((path / mark).exists() for mark in ("state.json", "dataset_dict.json")):
            return Table(name, _one_split(_datasets().load_from_disk(str(path)), split), column)
        if path.is_dir():
            return _folder(path)
        if path.is_file() and path.suffix.lower() == ".parquet":
            _pyarrow()
            return ParquetFile(path.resolve(), column)
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            path = _absolute(path)
            return Files(str(path), [path], path.parent)
        if glob.has_magic(name):
            return _globbed(path)
    if path.exists():
        raise ImageError(f"{brief(name)} is neither a folder, a picture nor a Parquet file")
    if path.is_absolute() or name.startswith("."):
        raise ImageError(f"there is no folder or file {brief(name)}")
    return _from_hub(name, column, split)


def _folder(path: Path) -> Source:
    root = path.resolve()
    files = sorted(_pictures_below(root))
    if not files:
        raise ImageError(f"the folder {brief(str(path))} holds no pictures ({', '.join(SUFFIXES)})")
    return Files(str(root), files, root)


def _pictures_below(root: Path) -> Iterator[Path]:
    """The pictures of a folder and its sub-folders, also of linked ones, but for links that lead back to where one was.

    Raises:
        ImageError: a sub-folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise ImageError(
            f"the folder {brief(str(error.filename))} cannot be read ({reason(error)}); make it readable, or pass a "
            "glob that leaves it out"
        ) from error

    way: dict[str, tuple[Path, ...]] = {str(root): (root,)}
    for parent, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        above = way.pop(parent)
        below = {one: (above[-1] / one).resolve() for one in folders}
        folders[:] = [one for one in folders if not any(step.is_relative_to(below[one]) for step in above)]
        way |= {os.path.join(parent, one): (*above, below[one]) for one in folders}  # noqa: PTH118 - as os.walk does
        yield from (Path(parent, name) for name in names if _is_picture(name))


def _globbed(path: Path) -> Source:
    path = _absolute(path)
    names = glob.glob(str(path), recursive=True)  # noqa: PTH207 - the pattern may have any root
    files = sorted({_absolute(Path(name)) for name in names if _is_picture(name)})
    if not files:
        raise ImageError(f"no picture matches {brief(str(path))}")
    root = Path(*path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))])
    return Files(str(path), files, root)


def _absolute(path: Path) -> Path:
    """From the root of the file system, without following links: a link is named by where it lies."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps ".."


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _from_hub(name: str, column: str | None, split: str | None) -> Source:
    datasets = _datasets()
    try:
        return Table(name, _one_split(datasets.load_dataset(name), split), column)
    except (ImageError, OptionError):
        raise
    except Exception as error:  # whatever is wrong with a name or a connection
        raise ImageError(
            f"there is no folder or file {brief(name)}, and as a data set it cannot be loaded ({reason(error)})"
        ) from error


def _one_split(dataset: Any, split: str | None) -> Any:
    """The split of that name, or the only one.

    Raises:
        OptionError: there is none of that name, or several and none is named; or it is a stream.
    """
    if type(dataset).__name__.startswith("Iterable"):
        raise OptionError("a stream has no length to resume by; use dataset.map(hf_cam.Explain(model), batched=True)")
    if isinstance(dataset, dict):
        names = ", ".join(map(repr, dataset))
        if split is None and len(dataset) == 1:
            [split] = dataset
        if split not in dataset:
            raise OptionError(f"choose a split of the data set with split=: {names}")
        return dataset[split]
    if split is not None and split != str(dataset.split):
        raise OptionError(f"the data is one split alone, and has no split {brief(split)}; omit split=")
    return dataset


def _image_column(names: Sequence[str], wanted: str | None) -> str:
    candidates = IMAGES if wanted is None else (wanted,)
    for name in candidates:
        if name in names:
            return name
    missing = "'image'" if wanted is None else brief(wanted)
    raise OptionError(f"the data has no column {missing}, but: {', '.join(names)}; name its images by column=")


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise OptionError(f"a data set by name needs the library datasets: {INSTALL}") from error
    return datasets


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise OptionError(f"Parquet needs the library pyarrow: {INSTALL}") from error
    return pa
