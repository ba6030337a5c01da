"""The labelled images that an audit gets, from a folder, a data set or a list, with what marks their objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from hf_cam.doors import PASSING
from hf_cam.errors import ImageError, OptionError, brief, one_line, reason
from hf_cam.evaluation.samples import BOXES, LONGEST_NAME, MASKS, SUFFIXES
from hf_cam.images.reading import opened
from hf_cam.zoo.scenes import CHEATER, cheater_scenes

Entry = Callable[[], Mapping[str, Any]]
MARKS = (*MASKS, *BOXES)
SHOWN = 4
"""How many names an error lists."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """One image of the data.

    Args:
        name: Its path, or its number in the data; numbered where an image is given several times.
        label: The name of its class, or its number, as the data has it.
        entry: The image itself or where it lies, and maybe "mask" or "box".
        marked: Whether there is a mask or box, as far as that is known before it is read.
    """

    name: str
    label: Any
    entry: Entry = field(repr=False)
    marked: bool = False


def labelled(data: Any, masks: Any = None, boxes: Sequence[Any] | None = None) -> list[Labelled]:
    """The images of a folder, a data set or a list.

    Args:
        data: A folder of class folders, "demo:cheater" for the scenes of that model, a `datasets.Dataset` with the
            columns "image" and "label", or a list of pairs `(image, label)` or of dicts with these keys; "mask" and
            "box" are read too.
        masks: A folder of masks with the names of the images, or one mask per image.
        boxes: One box `(x0, y0, x1, y1)` per image, in its pixels.

    Raises:
        ImageError: there are no images.
        OptionError: the data is of another kind, an image has no label, no mask of the folder is of an image, or there
            are not as many masks or boxes as images.
    """
    found = list(_images(data))
    if not found:
        raise ImageError(f"{brief(str(data))} holds no labelled images; an audit takes a folder of class folders")
    marks = _marks([one.name for one in found], masks, boxes)
    names = distinct([one.name for one in found])
    return [replace(_with(one, mark), name=name) for one, mark, name in zip(found, marks, names, strict=True)]


def distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where one stands for several objects of an image.

    >>> distinct(["a.png", "a.png", "b.png"])
    ['a.png', 'a.png (2)', 'b.png']
    """
    taken, count, found = set(names), Counter[str](), list[str]()
    for name in names:
        count[name] += 1
        numbered = name if count[name] == 1 else f"{name} ({count[name]})"
        while numbered != name and numbered in taken:
            count[name] += 1
            numbered = f"{name} ({count[name]})"
        found.append(numbered)
    return found


def listed(names: Sequence[Any]) -> str:
    """The first of some names, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e"])
    "'a', 'b', 'c', 'd' and 1 more"
    """
    first = ", ".join(repr(one_line(str(name), 24)) for name in names[:SHOWN])
    return first + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _images(data: Any) -> Iterator[Labelled]:
    if isinstance(data, str) and data == CHEATER:
        yield from (_of_entry(entry, index) for index, entry in enumerate(cheater_scenes()))
    elif isinstance(data, str | Path):
        yield from _of_folder(Path(data).expanduser())
    elif isinstance(data, Mapping):
        raise OptionError(
            f"an audit takes one labelled data set, not the {type(data).__name__} of {listed(list(data))}; pass one of "
            "its splits, or a list of (image, label)"
        )
    elif hasattr(data, "column_names") and not hasattr(data, "__len__"):
        raise OptionError(
            f"an audit reads its images more than once, which {type(data).__name__} cannot; pass a datasets.Dataset, "
            "such as datasets.Dataset.from_list(list(data))"
        )
    elif hasattr(data, "column_names") and hasattr(data, "features"):
        yield from _of_dataset(data)
    elif isinstance(data, Sequence):
        yield from (_of_entry(entry, index) for index, entry in enumerate(data))
    else:
        raise OptionError(
            f"an audit takes a folder of class folders, a dataset or a list of (image, label), not {brief(data)}"
        )


def _of_folder(folder: Path) -> Iterator[Labelled]:
    if not folder.is_dir():
        raise ImageError(f"there is no folder {brief(str(folder))}; an audit takes a folder of class folders")
    for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(p for p in kind.rglob("*") if p.suffix.lower() in SUFFIXES):
            yield Labelled(str(path), kind.name, partial(dict, image=path))


def _of_dataset(data: Any) -> Iterator[Labelled]:
    columns = set(data.column_names or ())
    if not {"image", "label"} <= columns:
        has = ", ".join(map(str, data.column_names or ()))
        raise OptionError(f"a dataset must have the columns 'image' and 'label', but has: {has}; rename them")
    name = getattr(data.features["label"], "int2str", None)
    for index, given in enumerate(data["label"]):
        label = _label(given, index)
        if name is not None and label == UNKNOWN:
            raise _without_label(index, label)
        yield Labelled(
            str(index), str(label) if name is None else name(label), _row(data, index), bool(columns & {*MARKS})
        )


UNKNOWN = -1
"""What data sets with names for their labels give an image that has none, as in the test split of a competition."""


def _label(label: Any, index: int) -> Any:
    """A label that can be compared with others.

    Raises:
        OptionError: there is none, or it is no single name or number.
    """
    if label is None:
        raise _without_label(index, label)
    if hasattr(label, "ndim") and np.prod(tuple(label.shape)) == 1:
        return label.item()
    if hasattr(label, "ndim") or not isinstance(label, Hashable):
        raise OptionError(f"the label of entry {index} of the data must be one name or number, got {brief(label)}")
    return label


def _without_label(index: int, label: Any) -> OptionError:
    return OptionError(f"entry {index} of the data has no label ({label}); leave such images out")


def _row(data: Any, index: int) -> Entry:
    def read() -> Mapping[str, Any]:
        try:
            return dict(data[index])
        except PASSING:
            raise
        except Exception as error:  # each decoder has its own
            raise ImageError(f"row {index} of the dataset cannot be read: {reason(error)}") from error

    return read


def _of_entry(entry: Any, index: int) -> Labelled:
    pair = isinstance(entry, tuple | list) and len(entry) == 2
    if pair:
        entry = {"image": entry[0], "label": entry[1]}
    if not isinstance(entry, Mapping) or not {"image", "label"} <= set(entry):
        raise OptionError(f"entry {index} of the data must be a pair (image, label), got {brief(entry)}")
    source = entry["image"]
    name = one_line(str(source), LONGEST_NAME) if isinstance(source, str | Path) else str(index)
    marked = any(entry.get(key) is not None for key in MARKS)
    return Labelled(name, _label(entry["label"], index), lambda: entry, marked)


def _with(image: Labelled, mark: Entry | None) -> Labelled:
    """An image with another mark in place of its own."""
    if mark is None:
        return image
    own = image.entry
    return replace(
        image, entry=lambda: {**{key: one for key, one in own().items() if key not in MARKS}, **mark()}, marked=True
    )


def _marks(names: Sequence[str], masks: Any, boxes: Sequence[Any] | None) -> list[Entry | None]:
    """What reads the mask or the box of each image, where given."""
    if masks is not None and boxes is not None:
        raise OptionError("pass masks= or boxes=, not both")
    if isinstance(masks, str | Path):
        return _mask_files(Path(masks).expanduser(), names)
    for option, key, given in (("masks", MASKS[0], masks), ("boxes", BOXES[0], boxes)):
        if given is not None:
            if isinstance(given, Mapping) or not hasattr(given, "__len__"):
                raise OptionError(f"{option}= must be a list with one entry per image, got {brief(given)}")
            if len(given) != len(names):
                raise OptionError(f"{option}= must have one entry per image, got {len(given)} for {len(names)} images")
            return [None if one is None else partial(dict, {key: one}) for one in given]
    return [None for _ in names]


def _mask_files(folder: Path, names: Sequence[str]) -> list[Entry | None]:
    """What reads the mask of each image, which lies in the image's own folders or directly in this one.

    Raises:
        OptionError: there is no such folder, or it has no mask of any image.
    """
    if not folder.is_dir():
        raise OptionError(f"there is no folder {brief(str(folder))}; masks= takes a folder, or one mask per image")
    files: dict[tuple[str, ...], Path] = {}
    for path in sorted(folder.rglob("*"), key=lambda path: (path.suffix.lower() != ".png", str(path))):
        if path.suffix.lower() in SUFFIXES:
            beside = path.relative_to(folder).parent.parts
            files.setdefault((*beside, path.stem), path)
            files.setdefault((*beside, path.stem.removesuffix("_mask")), path)
    found = [_mask_of(Path(name), files) for name in names]
    if not any(found):
        held = f"it has {brief(next(iter(files.values())).name)}" if files else "it has no pictures"
        raise OptionError(
            f"{brief(str(folder))} holds no mask of the data's images: {held}, and the first image is "
            f"{brief(Path(names[0]).name)}; a mask has the image's name, or that and _mask, in the same folders or in "
            "none"
        )
    return [None if path is None else partial(_read_mask, path) for path in found]


def _mask_of(image: Path, files: Mapping[tuple[str, ...], Path]) -> Path | None:
    """The mask in as many of the image's own folders as possible."""
    above = image.parent.parts
    found = (files.get((*above[start:], image.stem)) for start in range(len(above) + 1))
    return next((path for path in found if path is not None and path != image), None)


def _read_mask(path: Path) -> Mapping[str, Any]:
    """The mask's own values, which reading it as a picture would scale."""

    def read(image: Image.Image) -> Image.Image:
        upright = ImageOps.exif_transpose(image)
        whole = upright.convert("RGBA") if upright.mode in ("P", "PA") else upright.copy()
        whole.format = image.format  # by which lossy ones are known
        return whole

    return {MASKS[0]: opened(path, str(path), read)}
