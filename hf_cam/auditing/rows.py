"""What the model says about each image of an audit, and where its map lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

import numpy as np

from hf_cam.auditing.asking import Asker
from hf_cam.auditing.cases import WHOLE, Case, Opened
from hf_cam.auditing.recognition import target_of
from hf_cam.auditing.regions import to_frame
from hf_cam.errors import DetachedError, HFCamError, ImageError, NoGradientError, OptionError, TargetError
from hf_cam.explanation import Explanation
from hf_cam.request import Request

Frame = Literal["image", "object"]
Tell = Callable[[str, int, int], None]

NOT_FOUND = "(not found)"
"""What is predicted where a detector predicts no box at the object."""
NO_MAP = "no map"
UNMAPPED = (NoGradientError, DetachedError)
"""Why a prediction may have no map: it does not depend on the layer, or not by a gradient."""


@dataclass(frozen=True, eq=False)
class Row:
    """What the model says about one image, and where its map lies.

    Args:
        name: The image's path, or its number in the data; numbered where an image is given several times.
        label: Its class.
        predicted: The class that the model gives it, or its object; "(not found)" where a detector finds none there;
            empty if the image cannot be read.
        score: The model's confidence in that.
        map: `[24, 24]` float16 in [0, 1], over the frame; None if there is none, of which the flags give the reason.
        inside: The share of the map's sum on the object, where a mask or box is given.
        unusual: The distance of the map from its nearest neighbours in the predicted class.
        flags: Those of the explanation.
        error: Why it cannot be read or explained.
        right: Whether the model gives the image its class; of a detector or segmenter, whether it finds the object of
            this class at its place, as in the tests.
        copy: Whether an earlier image of its class is the same, with the same object, so that it is not tested again.
    """

    name: str
    label: str
    predicted: str = ""
    score: float = 0.0
    map: np.ndarray | None = field(default=None, repr=False)
    inside: float | None = None
    unusual: float = 0.0
    flags: tuple[str, ...] = ()
    error: str = ""
    right: bool = False
    copy: bool = False


def rows_of(
    asker: Asker,
    cases: Sequence[Case],
    classes: Mapping[int, str],
    frame: Frame,
    batch_size: int,
    tell: Tell,
) -> Iterator[Row]:
    """One per case, in their order; only one batch of images is held."""
    waiting = iter(cases)
    done, works = 0, False
    seen: set[tuple[int, bytes]] = set()
    while some := list(islice(waiting, batch_size)):
        opened = [_opened(case) for case in some]
        good = [(case, one) for case, one in zip(some, opened, strict=True) if isinstance(one, Opened)]
        results = _explained(asker, [one for _, one in good])
        made = [
            _row(asker, case, classes[case.label], one, result, frame)
            for (case, one), result in zip(good, results, strict=True)
        ]
        works = works or _works(made)
        rows = iter(made)
        for case, one in zip(some, opened, strict=True):
            row = next(rows) if isinstance(one, Opened) else one
            if isinstance(one, Opened) and isinstance(row, Row):
                key = case.label, one.digest
                yield replace(row, copy=key in seen)
                seen.add(key)
            else:
                yield Row(case.name, classes[case.label], error=str(row))
        done += len(some)
        tell("explained", done, len(cases))


def _opened(case: Case) -> Opened | HFCamError:
    try:
        return case.open()
    except HFCamError as error:
        return error


def _works(made: Sequence[Row | HFCamError]) -> bool:
    """Whether the model can be asked: at least one of these images was.

    Raises:
        HFCamError: none was, and it is not due to the images.
    """
    foreign = [one for one in made if isinstance(one, HFCamError) and not isinstance(one, ImageError | OptionError)]
    if foreign and len(foreign) == len(made):
        raise foreign[0]
    return any(isinstance(one, Row) for one in made)


def _explained(asker: Asker, opened: Sequence[Opened]) -> list[Explanation | HFCamError]:
    """The explanation of each image, or why there is none; one by one if they fail together."""
    if not opened:
        return []
    try:
        images, request = [one.image for one in opened], _asked(asker, opened)
        return [found[0] for found in asker.explainer(images, request, batch_size=len(opened))]
    except HFCamError as error:
        if len(opened) == 1:
            return [error]
        return [_explained(asker, [one])[0] for one in opened]


def _asked(asker: Asker, opened: Sequence[Opened]) -> Request:
    """What is explained in images: the most likely class, or the object at its place.

    Raises:
        OptionError: nothing marks an object.
    """
    targets = [target_of(asker.explainer.head, one) for one in opened]
    return replace(asker.request, target=targets, top_k=None) if asker.locates else asker.request


def _row(
    asker: Asker, case: Case, label: str, opened: Opened, found: Explanation | HFCamError, frame: Frame
) -> Row | HFCamError:
    """What the model says about an image, also where there is no map of it; or why it says nothing."""
    if isinstance(found, Explanation):
        return _mapped(asker, case, label, opened, found, frame)
    if isinstance(found, UNMAPPED):
        [[(subject, score)]] = asker.explainer.predict([opened.image], _asked(asker, [opened]))
        right = _is_right(asker, case, opened, subject.label == label)
        return Row(case.name, label, subject.label, score, flags=(f"{NO_MAP}: {found}",), right=right)
    return Row(case.name, label, NOT_FOUND) if asker.locates and isinstance(found, TargetError) else found


def _mapped(asker: Asker, case: Case, label: str, opened: Opened, found: Explanation, frame: Frame) -> Row:
    box = opened.box if frame == "object" else WHOLE
    heatmap = found.heatmap  # drawn whenever it is asked for
    inside = None if opened.inside is None else float(heatmap[opened.inside].sum() / max(heatmap.sum(), 1e-12))
    drawn = to_frame(heatmap, box).astype(np.float16)
    right = _is_right(asker, case, opened, found.label == label)
    return Row(case.name, label, found.label, found.score, drawn, inside, 0.0, found.flags, right=right)


def _is_right(asker: Asker, case: Case, opened: Opened, named: bool) -> bool:
    """Whether the model recognizes the image: names its class, or finds the object of this class at its place."""
    return asker.see(case, opened).right if asker.locates else named


def why_no_map(row: Row) -> str:
    """Why an image has no map, if it should have one."""
    return next((flag.removeprefix(f"{NO_MAP}: ") for flag in row.flags if flag.startswith(NO_MAP)), "")
