"""The labelled images of an audit: read one by one, with their classes matched to the model's by name."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_cam.errors import ImageError, OptionError, brief, one_line
from hf_cam.evaluation.samples import BOXES, LONGEST_NAME, MASKS, SUFFIXES, inside_of
from hf_cam.images.reading import load_image
from hf_cam.zoo.scenes import CHEATER, cheater_scenes

Box = tuple[float, float, float, float]
"""`(x0, y0, x1, y1)` in shares of the image's width and height."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
SHOWN = 8
"""How many names an error lists."""


def box_of(marked: np.ndarray) -> Box:
    """The smallest box round the marked cells `[h, w]`, in shares.

    >>> box_of(np.array([[False, True], [False, True]]))
    (0.5, 0.0, 1.0, 1.0)
    """
    rows, columns = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
    height, width = marked.shape
    x0, y0, x1, y1 = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
    return float(x0), float(y0), float(x1), float(y1)


@dataclass(frozen=True, eq=False)
class Opened:
    """An image that was read.

    Args:
        image: It.
        inside: `[H, W]` booleans: the object, from a mask or a box; None if there is neither.
        box: The object's box; the whole image if there is none.
    """

    image: Image.Image
    inside: np.ndarray | None = None
    box: Box = WHOLE


@dataclass(frozen=True, eq=False)
class Case:
    """One labelled image, which is read when it is opened.

    Args:
        name: Its path, or its number in the data.
        label: Index of its class in the model.
        entry: The image itself or where it lies, and maybe "mask" or "box".
    """

    name: str
    label: int
    entry: Callable[[], Mapping[str, Any]] = field(repr=False)

    def is_marked(self) -> bool:
        """Whether a mask or a box is given for its object."""
        entry = self.entry()
        return any(entry.get(key) is not None for key in (*MASKS, *BOXES))

    def open(self) -> Opened:
        """Read the image and what marks its object.

        Raises:
            ImageError: the image cannot be read.
            OptionError: the mask or box does not fit the image.
        """
        entry = self.entry()
        image = load_image(entry["image"])
        inside = inside_of(entry, self.name, (image.height, image.width))
        if inside is None or not inside.any():
            return Opened(image, inside)
        return Opened(image, inside, box_of(inside))


def cases_of(
    data: Any,
    classes: Mapping[int, str],
    labels: Mapping[Any, str] | None = None,
    masks: Any = None,
    boxes: Sequence[Any] | None = None,
) -> list[Case]:
    """The cases of a folder, a data set or a list.

    Args:
        data: A folder of class folders, "demo:cheater" for the scenes of that model, a `datasets.Dataset` with the
            columns "image" and "label", or a list of pairs `(image, label)` or of dicts with these keys; "mask" and
            "box" are read too.
        classes: The model's classes, by index.
        labels: The model's name for a class of the data that is called otherwise.
        masks: A folder of masks with the names of the images, or one mask per image.
        boxes: One box `(x0, y0, x1, y1)` per image, in its pixels.

    Raises:
        ImageError: there are no images.
        OptionError: the data is of another kind, a class does not match one of the model's, or there are not as many
            masks or boxes as images.
    """
    named = list(_named(data))
    if not named:
        raise ImageError(f"{brief(str(data))} holds no labelled images; an audit takes a folder of class folders")
    matched = match(sorted({label for _, label, _ in named}, key=str), classes, labels)
    marks = _marks(named, masks, boxes)
    return [
        Case(name, matched[label], _with(entry, marked))
        for (name, label, entry), marked in zip(named, marks, strict=True)
    ]


def labels_in(data: Any) -> list[str]:
    """The names of the classes in the data, sorted.

    Raises:
        ImageError: the data is a folder that does not exist.
        OptionError: the data is of another kind.
    """
    return sorted({str(label) for _, label, _ in _named(data)})


def match(found: Sequence[Any], classes: Mapping[int, str], labels: Mapping[Any, str] | None = None) -> dict[Any, int]:
    """The model's class for each class of the data, by name and never by position.

    Raises:
        OptionError: the model has no names, or a name fits none of its classes or several.

    >>> match(["tabby cat", "pug"], {3: "tabby, tabby cat", 7: "Pug"})
    {'tabby cat': 3, 'pug': 7}
    """
    if not classes:
        raise OptionError("the model has no class names to match the data with; pass them as labels= of hf_cam.load")
    known: dict[str, list[int]] = {}
    for index, name in classes.items():
        for spelt in {_plain(name), *map(_plain, str(name).split(","))}:
            known.setdefault(spelt, []).append(index)
    wanted = {label: (labels or {}).get(label, label) for label in found}
    fitting = {label: known.get(_plain(name), []) for label, name in wanted.items()}
    wrong = [label for label, indices in fitting.items() if len(indices) != 1]
    if wrong:
        several = any(fitting[label] for label in wrong)
        raise OptionError(
            f"{'several classes' if several else 'no class'} of the model fit{'' if several else 's'} "
            f"{_listed(wrong)} of the data; the model has {_listed(list(classes.values()))}; "
            f"pass labels={{{wrong[0]!r}: NAME}}"[:380]
        )
    return {label: indices[0] for label, indices in fitting.items()}


def _plain(name: Any) -> str:
    return unicodedata.normalize("NFC", str(name)).casefold().replace("_", " ").strip()


def _listed(names: Sequence[Any]) -> str:
    shown = ", ".join(repr(one_line(str(name), 24)) for name in names[: SHOWN // 2])
    return shown + (f" and {len(names) - SHOWN // 2} more" if len(names) > SHOWN // 2 else "")


Named = tuple[str, Any, Callable[[], Mapping[str, Any]]]


def _named(data: Any) -> Iterator[Named]:
    """Name, label and entry of each image."""
    if isinstance(data, str) and data == CHEATER:
        yield from (_of_entry(entry, index) for index, entry in enumerate(cheater_scenes()))
    elif isinstance(data, str | Path):
        yield from _of_folder(Path(data).expanduser())
    elif hasattr(data, "column_names") and hasattr(data, "features"):
        yield from _of_dataset(data)
    elif isinstance(data, Sequence):
        for index, entry in enumerate(data):
            yield _of_entry(entry, index)
    else:
        raise OptionError(
            f"an audit takes a folder of class folders, a dataset or a list of (image, label), not {brief(data)}"
        )


def _of_folder(folder: Path) -> Iterator[Named]:
    if not folder.is_dir():
        raise ImageError(f"there is no folder {brief(str(folder))}; an audit takes a folder of class folders")
    for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(p for p in kind.rglob("*") if p.suffix.lower() in SUFFIXES):
            yield str(path), kind.name, _at(path)


def _at(path: Path) -> Callable[[], Mapping[str, Any]]:
    return lambda: {"image": path}


def _of_dataset(data: Any) -> Iterator[Named]:
    missing = {"image", "label"} - set(data.column_names or ())
    if missing:
        columns = ", ".join(map(str, data.column_names or ()))
        raise OptionError(f"a dataset must have the columns 'image' and 'label', but has: {columns}; rename them")
    feature = data.features["label"]
    name = feature.int2str if hasattr(feature, "int2str") else str
    for index, label in enumerate(data["label"]):
        yield str(index), name(label), _row(data, index)


def _row(data: Any, index: int) -> Callable[[], Mapping[str, Any]]:
    return lambda: dict(data[index])


def _of_entry(entry: Any, index: int) -> Named:
    pair = isinstance(entry, tuple | list) and len(entry) == 2
    if pair:
        entry = {"image": entry[0], "label": entry[1]}
    if not isinstance(entry, Mapping) or not {"image", "label"} <= set(entry):
        raise OptionError(f"entry {index} of the data must be a pair (image, label), got {brief(entry)}")
    source = entry["image"]
    name = one_line(str(source), LONGEST_NAME) if isinstance(source, str | Path) else str(index)
    return name, entry["label"], lambda: entry


def _marks(named: Sequence[Named], masks: Any, boxes: Sequence[Any] | None) -> list[dict[str, Any]]:
    """For each image its mask or its box, where given."""
    if masks is not None and boxes is not None:
        raise OptionError("pass masks= or boxes=, not both")
    if isinstance(masks, str | Path):
        found = [_mask_file(Path(masks).expanduser(), name) for name, _, _ in named]
        if not any(found):
            raise OptionError(
                f"{brief(str(masks))} holds no mask of the data's images; a mask is a PNG file with the image's name, "
                "in the folder or in that of its class"
            )
        return found
    for option, key, given in (("masks", MASKS[0], masks), ("boxes", BOXES[0], boxes)):
        if given is not None:
            if len(given) != len(named):
                raise OptionError(f"{option}= must have one entry per image, got {len(given)} for {len(named)} images")
            return [{key: one} for one in given]
    return [{} for _ in named]


def _mask_file(folder: Path, name: str) -> dict[str, Any]:
    path = Path(name)
    tried = [folder / path.parent.name / f"{path.stem}.png", folder / f"{path.stem}.png"]
    found = next((one for one in tried if one.is_file()), None)
    return {} if found is None else {MASKS[0]: np.asarray(load_image(found))}


def _with(entry: Callable[[], Mapping[str, Any]], marked: Mapping[str, Any]) -> Callable[[], Mapping[str, Any]]:
    return (lambda: {**entry(), **marked}) if marked else entry
