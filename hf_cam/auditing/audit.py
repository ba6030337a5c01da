"""Audit a model on a data set: explain it, search for what its classes are read from, and test that."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import nn

from hf_cam.auditing.asking import Asker, shown
from hf_cam.auditing.cases import Case, cases_of, prompts_of
from hf_cam.auditing.findings import HELD_OUT, NOT_TESTED, SEARCHED, ClassImages, Finding, Suspicion, suspicions
from hf_cam.auditing.labelled import Labelled, labelled
from hf_cam.auditing.recognition import Shown
from hf_cam.auditing.rows import Frame, Row, Tell, rows_of, why_no_map
from hf_cam.auditing.strategies import Strategy, strategies, unusual
from hf_cam.auditing.trials import corrected
from hf_cam.doors import check_arguments, door
from hf_cam.errors import (
    ImageError,
    ModelError,
    OptionError,
    brief,
)
from hf_cam.explainer import BATCH, Explainer
from hf_cam.heads.detection import PromptDetectionHead
from hf_cam.heads.similarity import PromptHead
from hf_cam.methods.registry import get_method
from hf_cam.models.loading import LoadedModel, load
from hf_cam.request import Request, check_count, check_seed

FEWEST = 8
"""Held-out images of a class, classified rightly, from which on it is tested."""
OTHERS = 12
"""Images of other classes that lend their pixels."""
LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Audit:
    """What a model reads in a data set.

    Args:
        model: Its name.
        method: The id of the method of the maps.
        classes: The classes of the data, by the model's names.
        rows: One per image.
        strategies: The groups of images whose maps are alike, per predicted class.
        findings: The tested regions, first those that the model reads, largest fall in accuracy first.
        masks: For each finding, by the name of an image, the region in it.
        notes: Sentences to read first: a model at chance, classes too small to be tested, unreadable images.
        frame: "image", or "object" if places are those of the object's box.
        cases: The data, to show its images again.
    """

    model: str
    method: str
    classes: tuple[str, ...]
    rows: tuple[Row, ...] = field(repr=False)
    strategies: tuple[Strategy, ...] = field(repr=False)
    findings: tuple[Finding, ...]
    masks: tuple[Mapping[str, np.ndarray], ...] = field(repr=False)
    notes: tuple[str, ...]
    frame: Frame = "image"
    cases: tuple[Case, ...] = field(default=(), repr=False)

    @property
    def accuracy(self) -> float:
        """The share of the readable images that the model classifies rightly."""
        read = [row.right for row in self.rows if not row.error]
        return float(np.mean(read)) if read else 0.0

    @property
    def suspicious(self) -> tuple[Finding, ...]:
        """What the model reads that is not known to be the object.

        Evidence that moves counts only if masks or boxes show that it is not the object that moves.
        """
        read = [one for one in self.findings if one.verdict == "reads it" and one.kind != "object"]
        return tuple(one for one in read if one.kind != "moving" or one.objects)

    def __str__(self) -> str:
        """The notes and findings, one sentence per line."""
        read = [one for one in self.findings if one.verdict == "reads it"]
        first = f"{self.model}: accuracy {self.accuracy:.2f} on {sum(not row.error for row in self.rows)} images"
        said = "No region was found that the model reads apart from others."
        none = () if read else (said if self.findings else NOT_TESTED,)
        return "\n".join([f"{first}.", *self.notes, *none, *(one.text for one in self.findings)])

    def save(self, folder: str | Path) -> Path:
        """Write `index.html`, `findings.json`, `findings.parquet`, `images.csv` and `strategies.csv` into a folder.

        Returns:
            The page.

        Raises:
            ImageError: the folder cannot be written.
        """
        from hf_cam.auditing.report import save

        return save(self, folder)

    def _repr_html_(self) -> str:
        """The report, which notebooks show."""
        from hf_cam.auditing.report import framed

        return framed(self)


@door(ModelError)
def audit(
    model: str | Path | nn.Module | LoadedModel,
    data: Any,
    *,
    labels: Mapping[Any, str | int] | None = None,
    masks: Any = None,
    boxes: Sequence[Any] | None = None,
    frame: Frame = "image",
    text: Sequence[str] | None = None,
    method: str = "auto",
    batch_size: int = BATCH,
    held_out: int = HELD_OUT,
    seed: int = 0,
    processor: Any = None,
    device: str | torch.device | int | None = None,
    dtype: torch.dtype | str | None = None,
    trust_config: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Audit:
    """Find out what a classifier, a detector or a segmenter reads, and test it by intervention.

    Every image is explained. In each class, squares are hidden in some images to see where its evidence lies; regions
    at a fixed place, along the border, or on, off and independent of the objects are then tested on other images of
    the class: each is replaced in three ways, and so is a region of the same shape elsewhere, and it is put on images
    of other classes. Of a detector or segmenter, the object of the class that the box or mask of each image marks is
    asked for, and what is hidden is that object or its context.

    Args:
        model: As in `hf_cam.explain`: a classifier, a model that compares images with prompts, a detector or a
            segmenter.
        data: A folder of class folders, a `datasets.Dataset` with the columns "image" and "label", or a list of
            `(image, label)` or of dicts; columns "mask" and "box" mark the objects. Classes are matched by name.
        labels: The model's name or index for a class of the data that is called otherwise: `{folder: class}`; for a
            model that compares, the prompt for a class.
        masks: A folder of masks with the names of the images (or these and "_mask"), in the same folders or in none;
            or one mask `[H, W]` per image.
        boxes: One box `(x0, y0, x1, y1)` per image, in its pixels, in place of masks; detectors and segmenters need one
            of the two.
        frame: In which places are looked for: the image, or the object's mask or box.
        text: The prompts, for a model that compares; where not given, those of `labels`, and else the classes' names.
        method: Of the maps; see `hf_cam.list_methods`.
        batch_size: Images per forward.
        held_out: Images per class on which regions are tested, at most.
        seed: Of what is drawn.
        processor, device, dtype, trust_config: As in `hf_cam.explain`.
        progress: Called with what is done, how far, and out of how much.

    Raises:
        ImageError: there are no images, or none can be read.
        OptionError: the classes do not match, or the model has none.

    Source of the strategies: Lapuschkin et al. (SpRAy), Nature Communications 2019, arXiv:1902.10178.
    """
    images = checked(
        data, masks=masks, boxes=boxes, frame=frame, method=method, batch_size=batch_size, held_out=held_out, seed=seed
    )
    asker, cases, classes = fitted(
        model, images, labels=labels, text=text, method=method, processor=processor, device=device, dtype=dtype,
        trust_config=trust_config,
    )  # fmt: skip
    tell = progress or (lambda *_: None)
    with asker.borrowing() as one:
        rows = list(rows_of(one, cases, classes, frame, batch_size, tell))
        if all(row.error for row in rows):
            raise ImageError(f"none of the {len(rows)} images can be read; the first: {rows[0].error}")
        groups = _strategies(rows, seed)
        found, notes = _suspicions(one, cases, rows, classes, frame, held_out, seed, tell)
    findings, masks_of = _findings(found)
    return Audit(
        _name(asker.explainer.loaded),
        asker.explainer.cam.method.id,
        tuple(dict.fromkeys(classes[case.label] for case in cases)),
        tuple(rows),
        tuple(groups),
        findings,
        masks_of,
        (*_notes(rows, classes, located=asker.locates), *notes),
        frame,
        tuple(cases),
    )


def checked(
    data: Any,
    *,
    masks: Any = None,
    boxes: Any = None,
    frame: Any = "image",
    method: Any = "auto",
    batch_size: Any = BATCH,
    held_out: Any = HELD_OUT,
    seed: Any = 0,
    **others: Any,
) -> list[Labelled]:
    """The images of the data, once all is refused that no audit takes, whatever the model.

    Raises:
        OptionError: an argument is unknown, or has a wrong value.
        ImageError: there are no images.
        MethodError: there is no such method.
    """
    check_arguments(inspect.signature(audit), "audit", (None, data), others)
    if frame not in ("image", "object"):
        raise OptionError(f"frame must be 'image' or 'object', got {brief(frame)}")
    if method != "auto":
        get_method(method)
    check_seed(seed)
    check_count("held_out", held_out)
    check_count("batch_size", batch_size)
    images = labelled(data, masks, boxes)
    if frame == "object" and not any(one.marked for one in images):
        raise OptionError("frame='object' needs to know where the objects are: pass masks= or boxes=, or frame='image'")
    return images


def fitted(
    model: str | Path | nn.Module | LoadedModel,
    images: Sequence[Labelled],
    *,
    labels: Mapping[Any, str | int] | None = None,
    text: Sequence[str] | None = None,
    method: str = "auto",
    processor: Any = None,
    device: str | torch.device | int | None = None,
    dtype: torch.dtype | str | None = None,
    trust_config: bool = False,
    **others: Any,
) -> tuple[Asker, list[Case], Mapping[int, str]]:
    """The model as it is asked, the images with its classes, and these, once all is refused that does not fit them.

    Raises:
        OptionError: the classes do not match, or the model has none, or only one.
        ModelError: the model cannot be loaded, or has no processor.
    """
    del others
    loaded = load(model, processor=processor, device=device, dtype=dtype, trust_config=trust_config)
    explainer = Explainer(loaded, method)
    request, classes = _classes(explainer, images, text, labels)
    asker = Asker(explainer, request)
    cases = cases_of(images, classes, labels)
    if not asker.locates and len(classes) < 2:
        raise OptionError(
            f"an audit compares classes, but there is only {brief(next(iter(classes.values())))}; pass both names of a "
            "single score as labels= of hf_cam.load (['no', 'yes']), or the prompts of other classes in text="
        )
    asker.check(cases)
    return asker, cases, classes


def _name(loaded: LoadedModel) -> str:
    """The model's name: of a folder its last part."""
    name = loaded.traits.name_or_path or type(loaded.module).__name__
    return Path(name).name if Path(name).is_dir() else name


def _classes(
    explainer: Explainer,
    images: Sequence[Labelled],
    text: Sequence[str] | None,
    labels: Mapping[Any, str | int] | None,
) -> tuple[Request, Mapping[int, str]]:
    """The request, and the classes by index: the model's own, or its prompts."""
    if not isinstance(explainer.head, PromptHead | PromptDetectionHead):
        return Request.of(top_k=1), explainer.loaded.id2label
    request = Request.of(text=prompts_of(images, labels) if text is None else text, top_k=1)
    return request, dict(enumerate(request.text))


def _strategies(rows: list[Row], seed: int) -> list[Strategy]:
    """The groups of each predicted class; rows get their distance from their neighbours."""
    found: list[Strategy] = []
    for label in sorted({row.predicted for row in rows if row.map is not None}):
        own = [index for index, row in enumerate(rows) if row.predicted == label and row.map is not None]
        maps = np.stack([np.asarray(rows[index].map, np.float32) for index in own])
        found += strategies(label, maps, [rows[index].right for index in own], own, seed)
        for index, distance in zip(own, unusual(maps), strict=True):
            rows[index] = Row(**{**vars(rows[index]), "unusual": float(distance)})
    return found


def _suspicions(
    asker: Asker,
    cases: Sequence[Case],
    rows: Sequence[Row],
    classes: Mapping[int, str],
    frame: Frame,
    held_out: int,
    seed: int,
    tell: Tell,
) -> tuple[list[Suspicion], list[str]]:
    """Of every class that has images enough; and why the others are not tested."""
    right: dict[int, list[Case]] = {}
    for case, row in zip(cases, rows, strict=True):
        right.setdefault(case.label, [])
        if row.right and not row.copy:
            right[case.label].append(case)
    rng = np.random.default_rng(seed)
    right = {label: [own[i] for i in rng.permutation(len(own))] for label, own in right.items()}
    found: list[Suspicion] = []
    notes: list[str] = []
    for done, (label, own) in enumerate(right.items(), 1):
        name = classes[label]
        searched = min(SEARCHED, len(own) // 2)
        if len(own) - searched < FEWEST:
            notes.append(
                f"{name!r} is not tested: {len(own)} of its images are recognized, and {2 * FEWEST} are needed."
            )
            continue
        images = _images(asker, name, own, searched, held_out, _others(asker, right, label), frame)
        if len(images.searched) < FEWEST or len(images.held_out) < min(FEWEST, held_out):
            again = len(images.searched) + len(images.held_out)
            notes.append(
                f"{name!r} is not tested: {again} of its images are recognized when they are shown again, and "
                f"{2 * FEWEST} are needed."
            )
            continue
        found += suspicions(asker, images, seed)
        tell("classes tested", done, len(right))
    return found, notes


def _images(
    asker: Asker, name: str, own: Sequence[Case], searched: int, held_out: int, others: list[Shown], frame: Frame
) -> ClassImages:
    first = list(shown(asker, own[:searched], searched))
    rest = list(shown(asker, own[searched:], held_out))
    return ClassImages(name, first, rest, others, frame == "object", asker.locates)


def _others(asker: Asker, right: Mapping[int, Sequence[Case]], label: int) -> list[Shown]:
    """Images of the other classes, in turn."""
    rest = [own for other, own in right.items() if other != label and own]
    turns = [own[k] for k in range(OTHERS) for own in rest if k < len(own)]
    return list(shown(asker, turns[:OTHERS], OTHERS))


def _findings(
    found: Sequence[Suspicion],
) -> tuple[tuple[Finding, ...], tuple[Mapping[str, np.ndarray], ...]]:
    """The findings with corrected verdicts and their masks, those that the model reads first."""
    trials = corrected([one.trial for one in found])
    pairs = [(one.finding(trial), one.masks) for one, trial in zip(found, trials, strict=True)]
    order = {"reads it": 0, "undecided": 1, "does not": 2}
    pairs.sort(key=lambda pair: (order[pair[0].verdict], -pair[0].drop))
    return tuple(one for one, _ in pairs), tuple(masks for _, masks in pairs)


def _notes(rows: Sequence[Row], classes: Mapping[int, str], *, located: bool) -> Iterator[str]:
    """What a reader must know first."""
    read = [row for row in rows if not row.error]
    if not located:
        yield from _of_chance(read, classes)
    elif not (right := sum(row.right for row in read)):
        yield f"The model finds {right} of the {len(read)} marked objects."
    mapped = [row for row in read if row.map is not None]
    unmarked = sum(row.inside is None for row in mapped)
    if not located and 0 < unmarked < len(mapped):
        share = f"{unmarked} of {len(mapped)} images have no mask or box"
        yield f"{share}: what is said of their objects rests on the others."
    if copies := sum(row.copy for row in read):
        yield f"{copies} of {len(read)} images are copies of others, and are not tested again."
    if bare := [row for row in read if why_no_map(row)]:
        yield (
            f"{len(bare)} of {len(read)} images have no map, so that they belong to no strategy; "
            f"the first: {why_no_map(bare[0])}"
        )
    if broken := len(rows) - len(read):
        first = next(row for row in rows if row.error)
        yield f"{broken} of {len(rows)} images could not be read or explained; the first: {first.error}"


def _of_chance(read: Sequence[Row], classes: Mapping[int, str]) -> Iterator[str]:
    """Whether a classifier does better than chance."""
    counts = [sum(row.label == label for row in read) for label in {row.label for row in read}]
    right, guess = sum(row.right for row in read), max(counts) / len(read)
    if len(counts) < 2:
        yield "All images are of one class: without others there is nothing to compare it with."
        guess = 1 / max(len(classes), 2)
    if binomtest(right, len(read), guess, alternative="greater").pvalue > LEVEL:
        yield (
            f"The model is not clearly above chance on this data: it classifies {right} of {len(read)} images rightly, "
            f"and always naming the largest class would give {round(guess * len(read))}."
        )
