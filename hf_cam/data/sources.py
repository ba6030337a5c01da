"""What a data set is: a folder, a glob, a list, a Parquet file or a `datasets` name, by index and by name."""

from __future__ import annotations

import glob
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from hf_cam.doors import blaming
from hf_cam.errors import ImageError, OptionError, brief, reason
from hf_cam.evaluation.samples import SUFFIXES

ASKED = ("target", "text")
"""Columns that hold what is asked of each image."""
INSTALL = 'pip install "hf-cam[data]"'


class Source(ABC):
    """The images of a data set, each with a name that stands once; opened again by name in other processes.

    Args:
        name: What the data set is called in messages and in the manifest.
    """

    name: str

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def key(self, index: int) -> str:
        """The name of an image: a path relative to the folder, or the number of a row."""

    @abstractmethod
    def at(self, index: int) -> dict[str, Any]:
        """The image and, where the data has them, its "target" and "text"; nothing is decoded yet."""


class Files(Source):
    """Image files, named by their paths relative to the folder that holds them all."""

    def __init__(self, name: str, files: Sequence[Path], root: Path | None) -> None:
        self.name, self.root, self.files = name, root, files

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        """The relative path with slashes; bytes that are no text are written as escapes."""
        path = self.files[index]
        name = (path if self.root is None else path.relative_to(self.root)).as_posix()
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    def at(self, index: int) -> dict[str, Any]:
        """The path."""
        return {"image": str(self.files[index])}


class Listed(Source):
    """A list of paths, URLs, pictures or arrays in memory; what is no text is named by its number."""

    def __init__(self, images: Sequence[Any]) -> None:
        self.name, self.images = f"a list of {len(images)} images", images

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        """The path or URL, or else the number."""
        image = self.images[index]
        return str(image) if isinstance(image, str | Path) and len(str(image)) < 4096 else f"{index:08d}"

    def at(self, index: int) -> dict[str, Any]:
        """The entry of the list."""
        return {"image": self.images[index]}


class Table(Source):
    """A `datasets.Dataset`: rows are read one by one, pictures stay encoded."""

    def __init__(self, name: str, dataset: Any, column: str | None) -> None:
        from datasets import Image as ImageFeature

        self.name = name
        self.column = _image_column(dataset.column_names, column)
        if isinstance(dataset.features[self.column], ImageFeature):
            dataset = dataset.cast_column(self.column, ImageFeature(decode=False))
        self.dataset = dataset.select_columns(
            [self.column, *(one for one in ASKED if one in dataset.column_names and one != self.column)]
        )

    def __len__(self) -> int:
        return len(self.dataset)

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


def source_of(data: Any, *, column: str | None = None, split: str | None = None) -> Source:
    """The images of a folder (with its sub-folders), a glob, a Parquet file, a list, or a `datasets` name or object.

    Args:
        data: The data set.
        column: The column of images, for tables.
        split: The split, for `datasets`.

    Raises:
        ImageError: there are no images, or the data cannot be read.
        OptionError: there is no such column, or a split has to be chosen.
    """
    source = _source(data, column, split)
    if not len(source):
        raise ImageError(f"there are no images in {brief(source.name)}")
    return source


def _source(data: Any, column: str | None, split: str | None) -> Source:
    if isinstance(data, str | Path):
        return _named(str(data), column, split)
    if type(data).__module__.partition(".")[0] == "datasets":
        return Table("a data set in memory", _one_split(data, split), column)
    if isinstance(data, Image.Image) or not isinstance(data, Iterable):
        raise OptionError(
            f"data must be a folder, a glob, a Parquet file, a list or a data set, not {type(data).__name__}"
        )
    return Listed(list(data))


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
            return Files(name, [path.resolve()], path.resolve().parent)
        if glob.has_magic(name):
            return _globbed(path)
    if path.exists():
        raise ImageError(f"{brief(name)} is neither a folder, a picture nor a Parquet file")
    if path.is_absolute() or name.startswith("."):
        raise ImageError(f"there is no folder or file {brief(name)}")
    return _from_hub(name, column, split)


def _folder(path: Path) -> Source:
    root = path.resolve()
    files = [Path(parent, name) for parent, _, names in os.walk(root) for name in names if _is_picture(name)]
    if not files:
        raise ImageError(f"the folder {brief(str(path))} holds no pictures ({', '.join(SUFFIXES)})")
    return Files(str(root), sorted(files), root)


def _globbed(path: Path) -> Source:
    names = glob.glob(str(path), recursive=True)  # noqa: PTH207 - the pattern may have any root
    files = sorted({Path(name).resolve() for name in names if _is_picture(name)})
    if not files:
        raise ImageError(f"no picture matches {brief(str(path))}")
    fixed = [part for part in path.parts if not glob.has_magic(part)]
    root = Path(*path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))]).resolve()
    within = bool(fixed) and all(file.is_relative_to(root) for file in files)
    return Files(str(path), files, root if within else None)


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
    return dataset


def _image_column(names: Sequence[str], wanted: str | None) -> str:
    candidates = ("image", "img", "path", "file_name") if wanted is None else (wanted,)
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
