"""Files that `hf-cam explain` reads and writes: folders of images, one output per image, and a table."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_cam.errors import OptionError, brief, reason
from hf_cam.results.files import obstacle

if TYPE_CHECKING:
    from hf_cam.explanation import Explanation

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".npy")
PAGES = (".html", ".htm")
LONGEST_STEM = 100
DIFFERENCE = "-difference"
"""What the name of the picture of a difference ends in."""
TABLE = ("image", "label", "score", "score_kind", "box", "method", "flags", "file")
"""Columns of the table that `hf-cam explain --table` writes."""


def listed_images(given: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    """The images, with those of folders in place of the folders; and, for these, their names within the folder.

    Raises:
        ImageError: a folder holds none.
    """
    from hf_cam.evaluation.samples import is_folder, samples_of

    images, within = list[str](), dict[str, Path]()
    for name in given:
        if is_folder(name):
            found = [sample.name for sample in samples_of(name)]
            within |= {image: Path(image).relative_to(Path(name).expanduser()) for image in found}
            images += found
        else:
            images.append(name)
    return images, within


def output_paths(images: Sequence[str], out: str, within: Mapping[str, Path]) -> list[Path]:
    """One path per image: the requested file, or a file in the requested folder that is named like the image.

    Args:
        images: Their names.
        out: The file or folder.
        within: Of images of a folder, their names within it, whose sub-folders are kept.

    Raises:
        OptionError: a single file is requested for several images, the file is not a picture, or another file is in
            the way of a folder.
    """
    path = Path(out).expanduser()
    if file := next((one for one in path.parents if one.exists() and not one.is_dir()), None):
        raise OptionError(f"{brief(out)} cannot be written, as {brief(str(file))} is a file; pass another --out")
    if path.suffix.lower() in PICTURES + PAGES and not path.is_dir() and not out.endswith("/"):
        if len(images) > 1:
            raise OptionError(f"{out!r} is one file, but there are {len(images)} images; pass a folder as --out")
        return [path]
    if len(images) == 1 and path.suffix and not path.is_dir() and not out.endswith("/"):
        raise OptionError(
            f"{out!r} does not end in a picture format ({', '.join(PICTURES)}), or in .html for an answer; for a "
            "folder, add a /"
        )
    paths, taken = list[Path](), set[Path]()
    for image in images:
        address = "" if image[:5].lower() == "data:" else image.split("?")[0].rstrip("/")
        stem = Path(address).stem[:LONGEST_STEM] or "image"
        folder = path / within[image].parent if image in within else path
        names = (stem if i == 1 else f"{stem}-{i}" for i in itertools.count(1))
        paths.append(next(free for name in names if (free := folder / f"{name}.png") not in taken))
        taken.add(paths[-1])
    return paths


def spare(images: Sequence[str], outputs: Sequence[Path], option: str) -> None:
    """Refuse to write where a picture lies that is read.

    What is written for one image may have a number or "-difference" after its name, and a video becomes a GIF.

    Raises:
        OptionError: one of the images may be written over.
    """
    read = {Path(image).expanduser().resolve(): image for image in images if image[:5].lower() != "data:"}
    for path in (output.expanduser().resolve() for output in outputs):
        stem, suffix = re.escape(path.stem), re.escape(path.suffix)
        written = re.compile(rf"{stem}((-\d+)?({suffix}|\.gif)|{DIFFERENCE}\.png)")
        for one, name in read.items():
            if one.parent == path.parent and written.fullmatch(one.name):
                raise OptionError(f"{brief(name)} is read and may be written over; pass another {option}")


def numbered(path: Path, count: int, taken: set[Path]) -> list[Path]:
    """The path itself, or as many with numbers; see `free`.

    >>> [path.name for path in numbered(Path("a.png"), 2, {Path("a"), Path("a-1")})]
    ['a-2.png', 'a-3.png']
    """
    return [path] if count == 1 else list(itertools.islice(free(path, taken), count))


def free(path: Path, taken: set[Path]) -> Iterator[Path]:
    """The path with numbers after its name, but for those that are taken.

    Args:
        path: The path.
        taken: Paths of other images without their suffixes; those that are yielded are added.
    """
    for number in itertools.count(1):
        one = path.with_stem(f"{path.stem}-{number}")
        if one.with_suffix("") not in taken:
            taken.add(one.with_suffix(""))
            yield one


def check_writable(path: Path, option: str) -> None:
    """Refuse a file that cannot be written, before anything is computed.

    Raises:
        OptionError: it is a folder, or a file or a lack of rights is in the way.
    """
    fault = "it is a folder" if path.expanduser().is_dir() else obstacle(path.parent)
    if fault:
        raise OptionError(f"{option}: {brief(str(path))} cannot be written: {fault}; pass another file")


def entry(name: str, explanation: Explanation, path: Path) -> dict[str, Any]:
    """A line of the table."""
    box = "" if explanation.box is None else " ".join(f"{side:.1f}" for side in explanation.box)
    found = (name, explanation.label, explanation.score, explanation.score_kind, box, explanation.method)
    return dict(zip(TABLE, (*found, "; ".join(explanation.flags), path), strict=True))


def write_table(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file.

    Raises:
        OptionError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.DictWriter(file, TABLE)
            writer.writeheader()
            writer.writerows(entries)
    except OSError as error:
        raise OptionError(f"--table: {brief(str(path))} cannot be written ({reason(error)})") from error
