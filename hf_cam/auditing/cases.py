"""The images of an audit: read one by one, with their classes matched to the model's by name."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from PIL import Image

from hf_cam.auditing.labelled import Entry, Labelled, listed
from hf_cam.errors import OptionError, brief
from hf_cam.evaluation.samples import BOXES, MASKS, inside_of
from hf_cam.images.reading import load_image

Box = tuple[float, float, float, float]
"""`(x0, y0, x1, y1)` in shares of the image's width and height."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
BOX, COCO_BOX = BOXES


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

    @property
    def digest(self) -> bytes:
        """The same for the same pixels with the same object, and for no others."""
        marked = b"" if self.inside is None else np.packbits(self.inside).tobytes()
        pixels = f"{self.image.mode} {self.image.size}".encode() + self.image.tobytes()
        return blake2b(pixels, key=blake2b(marked).digest()).digest()


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
    entry: Entry = field(repr=False)

    def open(self) -> Opened:
        """Read the image and what marks its object.

        Raises:
            ImageError: the image cannot be read.
            OptionError: the mask or box does not fit the image, marks nothing, or is open to two readings.
        """
        entry = self.entry()
        image = load_image(entry["image"])
        if entry.get(COCO_BOX) is not None and all(entry.get(key) is None for key in (*MASKS, BOX)):
            raise OptionError(
                f"{COCO_BOX!r} of image {self.name} may be (x, y, width, height), as in COCO, or corners; pass the box "
                f"as {BOX!r}, (x0, y0, x1, y1) in the pixels of its image"
            )
        inside = inside_of(entry, self.name, (image.height, image.width))
        if inside is None:
            return Opened(image)
        if not inside.any():
            raise OptionError(f"the mask of image {self.name} marks nothing; it must be nonzero on the object, or None")
        return Opened(image, inside, box_of(inside))


def cases_of(
    images: Sequence[Labelled], classes: Mapping[int, str], labels: Mapping[Any, str | int] | None = None
) -> list[Case]:
    """The images with their classes of the model.

    Args:
        images: Those of the data.
        classes: The model's classes, by index.
        labels: The model's name or index for a class of the data that is called otherwise.

    Raises:
        OptionError: a class does not match one of the model's.
    """
    matched = match(labels_in(images), classes, labels)
    return [Case(one.name, matched[one.label], one.entry) for one in images]


def labels_in(images: Sequence[Labelled]) -> list[Any]:
    """The classes of the data, sorted by their names."""
    return sorted({one.label for one in images}, key=str)


def prompts_of(images: Sequence[Labelled], labels: Mapping[Any, str | int] | None) -> list[str]:
    """One prompt per class of the data: what `labels` gives for it, or else its name.

    Raises:
        OptionError: `labels` gives a number.
    """
    given = _by_name(labels)
    prompts = [given.get(str(label), str(label)) for label in labels_in(images)]
    if wrong := [one for one in prompts if not isinstance(one, str)]:
        raise OptionError(f"labels= must give prompts where text= does not, got {brief(wrong[0])}; pass text= as well")
    return [str(prompt) for prompt in dict.fromkeys(prompts)]


def match(
    found: Sequence[Any], classes: Mapping[int, str], labels: Mapping[Any, str | int] | None = None
) -> dict[Any, int]:
    """The model's class for each class of the data, by name and never by position.

    A whole name goes before one of the synonyms in it. `labels` may also give the index of a class.

    Raises:
        OptionError: the model has no names, or a name fits none of its classes or several.

    >>> match(["tabby cat", "pug"], {3: "tabby, tabby cat", 7: "Pug"})
    {'tabby cat': 3, 'pug': 7}
    """
    if not classes:
        raise OptionError("the model has no class names to match the data with; pass them as labels= of hf_cam.load")
    given = _by_name(labels)
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for index, name in classes.items():
        whole.setdefault(_plain(name), []).append(index)
        for part in {*map(_plain, str(name).split(","))}:
            parts.setdefault(part, []).append(index)
    fitting: dict[Any, list[int]] = {}
    for label in found:
        name = given.get(str(label), label)
        named = whole.get(_plain(name)) or parts.get(_plain(name), [])
        fitting[label] = _numbered(given[str(label)], named, classes) if str(label) in given else named
    if wrong := [label for label, indices in fitting.items() if len(indices) != 1]:
        raise _unmatched(wrong, fitting, given, list(classes.values()))
    return {label: indices[0] for label, indices in fitting.items()}


def _by_name(labels: Mapping[Any, str | int] | None) -> dict[str, str | int]:
    """What `labels` gives, by the names of the data's classes.

    Raises:
        OptionError: it is no dict.
    """
    if labels is not None and not isinstance(labels, Mapping):
        raise OptionError(f"labels= must be a dict from names of the data to classes of the model, got {brief(labels)}")
    return {str(label): name for label, name in (labels or {}).items()}


def _numbered(value: str | int, named: list[int], classes: Mapping[int, str]) -> list[int]:
    """The class of an index, which may be a text, as the command passes it; or else those of a name."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return [int(value)] if int(value) in classes else []
    is_index = not named and str(value).isdecimal() and int(value) in classes
    return [int(value)] if is_index else named


def _unmatched(
    wrong: Sequence[Any], fitting: Mapping[Any, list[int]], given: Mapping[str, str | int], names: Sequence[str]
) -> OptionError:
    """Why classes of the data are none of the model's."""
    first = wrong[0]
    if str(first) in given:
        fits = f"the classes {brief(fitting[first])}" if fitting[first] else "no class"
        return OptionError(
            f"{brief(first)} of labels= may not be {brief(given[str(first)])}, which fits {fits} of the model; it has "
            f"{listed(names)}; pass one of them or its index"
        )
    several = next((fitting[label] for label in wrong if fitting[label]), [])
    return OptionError(
        f"{'several classes' if several else 'no class'} of the model fit{'' if several else 's'} {listed(wrong)} of "
        f"the data; the model has {listed(names)}; "
        f"pass labels={{{brief(first)}: {f'INDEX}}, one of {brief(several)}' if several else 'NAME or INDEX}'}"
    )


def _plain(name: Any) -> str:
    return unicodedata.normalize("NFC", str(name)).casefold().replace("_", " ").strip()
