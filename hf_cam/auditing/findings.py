"""The regions that a class is read from, tested by intervention on images that played no part in the search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hf_cam.auditing.asking import Asker, falls
from hf_cam.auditing.cases import WHOLE, Box
from hf_cam.auditing.recognition import Shown
from hf_cam.auditing.regions import Border, Place, blobs, grown, inside_anywhere, inside_share
from hf_cam.auditing.suspects import PEAK, Scan, Shrinking, agreement, distinct, places, scan
from hf_cam.auditing.trials import CLEAR, Regions, Trial, Verdict, tried

Kind = Literal["place", "border", "background", "object", "moving"]

SEARCHED, HELD_OUT, SCANNED = 16, 32, 16
"""Per class: the images in which suspects are searched, those on which they are tested, and the first of those, whose
own evidence is searched because it lies elsewhere in each. If these leave open whether it is read, all are searched."""
SHRUNK_ON = 8
AHEAD = 0.15
"""By how much a border must beat the best place in it, or else the place is the simpler account."""
FOLLOWS = 0.4
"""The least share of other images that take on the class with a fixed region, beyond that of another region."""
EXPLAINED = 0.6
"""Once hiding fixed regions changes this share of the predictions, no moving evidence is searched for."""
MOSTLY, TWICE = 0.5, 2.0
"""The share of the evidence on the objects from which they are read: the first, or the second times what such shapes
reach at random places, whichever is less. Squares round a small object lie off it for the most part."""
AGREED = 0.5
"""The least agreement of the images on where in a place the evidence lies."""
BROAD = 0.35
"""The share of the peak down to which the background's evidence counts."""
NOT_TESTED = "Nothing was tested, so nothing is known of what the model reads."
LEVEL = 0.02
"""The probability up to which evidence on or off the objects is no chance."""
MARKED = 6
"""The fewest images with a mask or a box from which it can be told on which side of the objects evidence lies."""
DRAWS, SAME = 4000, 1e-9
"""How many times all regions are put at random places, and the difference up to which two shares are equal."""


@dataclass(frozen=True)
class Finding:
    """One region that a class might be read from, and whether it is.

    Args:
        label: The predicted class.
        verdict: "reads it", "does not" or "undecided", after correction for the number of tests.
        kind: "place" (of the frame), "border" (a ring along the edge), "object" or "background" (on or off the given
            masks or boxes) or "moving" (at another place in each image, on the object or off it).
        region: `(x0, y0, x1, y1)` in shares of the frame's width and height, of a place; else None.
        share: Of the class's images, those whose strongest evidence lies in the region; in [0, 1].
        images: The number of held-out images of the test, all classified rightly.
        drop: The fall of their accuracy when the region is removed: the share whose class changes under most of the
            ways to replace pixels.
        interval: Its 95 % confidence interval.
        text: The finding in one plain sentence.
        elsewhere: The fall for a region of the same shape elsewhere.
        follows: The share of images of other classes that take on this class once the region is put on them.
        p: The corrected probability of such a difference between the two regions by chance.
        width: Of a border, as a share of the frame's shorter side.
        objects: Whether enough of the class's images have masks or boxes to tell on which side of the objects the
            evidence lies.
    """

    label: str
    verdict: Verdict
    kind: Kind
    region: Box | None
    share: float
    images: int
    drop: float
    interval: tuple[float, float]
    text: str
    elsewhere: float = 0.0
    follows: float = 0.0
    p: float = 1.0
    width: float | None = None
    objects: bool = False


@dataclass(frozen=True, eq=False)
class Suspicion:
    """A region with its trial, before the trials of all classes are corrected together.

    Args:
        label: The class.
        kind: See `Finding`.
        region: A place or a border; None if each image has a region of its own.
        trial: What removing it did.
        share: See `Finding`.
        masks: By the name of an image, the region in it, `[H, W]` booleans.
        objects: See `Finding`.
        located: Whether the model finds objects at their places, so that the region is their context, or they.
        fixed: Whether the evidence lies at one position in all images, and not wherever an object lies.
        frame: What a place is a place of.
    """

    label: str
    kind: Kind
    region: Place | Border | None
    trial: Trial
    share: float
    masks: dict[str, np.ndarray] = field(repr=False)
    objects: bool = False
    located: bool = False
    fixed: bool = True
    frame: str = "picture"

    def verdict(self, trial: Trial) -> Verdict:
        """What follows from a trial of the region."""
        return "undecided" if self.doubt(trial) else trial.verdict

    def doubt(self, trial: Trial) -> str:
        """Why the region is not called read although the class is lost without it; empty if there is no such reason."""
        if trial.verdict != "reads it":
            return ""
        if self.kind in CARRIED and not self.located and (doubt := not_carried(trial)):
            return doubt
        return "" if self.fixed else "its evidence lies at different positions, as objects do"

    def finding(self, trial: Trial) -> Finding:
        """The finding, by the corrected trial."""
        return Finding(
            self.label,
            self.verdict(trial),
            self.kind,
            self.region.box if isinstance(self.region, Place) else None,
            self.share,
            trial.images,
            trial.drop,
            trial.interval,
            sentence(self, trial),
            trial.elsewhere,
            trial.follows,
            trial.p,
            self.region.width if isinstance(self.region, Border) else None,
            self.objects,
        )


@dataclass(frozen=True, eq=False)
class ClassImages:
    """The images of one class that are looked at closely.

    Args:
        label: The class's name.
        searched: In which suspects are searched.
        held_out: On which they are tested; others than those.
        others: Of other classes.
        by_object: Whether places are those of the object's box.
        located: Whether the model finds objects at their places, so that regions leave them out.
    """

    label: str
    searched: Sequence[Shown]
    held_out: Sequence[Shown]
    others: Sequence[Shown]
    by_object: bool = False
    located: bool = False

    def frames(self, images: Sequence[Shown]) -> list[Box]:
        """The frame of each image."""
        return [one.opened.box if self.by_object else WHOLE for one in images]

    def region_of(self, region: Place | Border) -> Regions:
        """The pixels of a fixed region in an image."""

        def marked(one: Shown) -> np.ndarray:
            found = region.mask(_size(one), one.opened.box if self.by_object else WHOLE)
            return found & ~one.object if self.located else found

        return marked


def _size(one: Shown) -> tuple[int, int]:
    return one.opened.image.height, one.opened.image.width


def suspicions(asker: Asker, images: ClassImages, seed: int = 0) -> list[Suspicion]:
    """Search for the regions that a class is read from, and test each that lies in a held-out image."""
    return [one for one in _tested(asker, images, seed) if one.trial.images]


def _tested(asker: Asker, images: ClassImages, seed: int) -> list[Suspicion]:
    scans = [scan(asker, one) for one in images.searched]
    fixed = _fixed(asker, images, scans, seed)
    gone = _explained(asker, images, fixed, seed)
    if images.located:
        around = _around(asker, images, seed)
        return [*fixed, *(one for one in around if one.kind == "object" or gone < EXPLAINED)]
    return fixed if gone >= EXPLAINED else [*fixed, *_moving(asker, images, scans, seed)]


def _explained(asker: Asker, images: ClassImages, fixed: Sequence[Suspicion], seed: int) -> float:
    """The share of the predictions that change without the fixed regions that are read.

    Where some images have two of which either is enough, hiding one changes little. So whatever else makes other images
    the class is hidden with them.
    """
    if not any(map(_reads, fixed)):
        return 0.0
    found = [one for one in fixed if _reads(one) or (one.fixed and _follows(one.trial, CLEAR))]
    if len(found) == 1:
        return found[0].trial.drop
    hidden = [_hides(images, one.region) for one in found if one.region is not None]

    def together(one: Shown) -> np.ndarray:
        return np.asarray(np.any([of(one) for of in hidden], 0))

    held_out = [one for one in images.held_out if together(one).any()]
    return tried(asker, held_out, images.others, together, seed).drop


def _reads(one: Suspicion) -> bool:
    return one.verdict(one.trial) == "reads it"


def _fixed(asker: Asker, images: ClassImages, scans: Sequence[Scan], seed: int) -> list[Suspicion]:
    """Places, and the border where it is more than the places in it."""
    own, frames = images.searched[:SHRUNK_ON], images.frames(images.searched)
    shrinking = Shrinking(asker, own, frames[: len(own)])
    found = distinct([_shrunk(asker, images, scans, place) for place in places(scans, frames)])
    tested = [_suspicion(asker, images, scans, "place", place, seed) for place in found]
    border, effect = shrinking.border()
    best = max((shrinking.effect(one) for one in found), default=0.0)
    if effect < max(best + AHEAD, 2 * AHEAD):
        return tested
    ring = _suspicion(asker, images, scans, "border", border, seed)
    if not _reads(ring) or _account(ring) < max(map(_account, tested), default=0.0):
        return tested
    return [ring, *(one for one in tested if isinstance(one.region, Place) and not _on_edge(one.region, border))]


def _account(one: Suspicion) -> float:
    """How well a fixed region accounts for the class, in [0, 1]: the model loses it without, and finds it with it."""
    return (one.trial.drop + one.trial.follows) / 2


def _shrunk(asker: Asker, images: ClassImages, scans: Sequence[Scan], place: Place) -> Place:
    """A place shrunk on the images whose evidence lies there most."""
    own = [float(one.effect[images.region_of(place)(one.one)].max(initial=0)) for one in scans]
    chosen = [scans[i].one for i in np.argsort(own)[::-1][:SHRUNK_ON]]
    return Shrinking(asker, chosen, images.frames(chosen)).box(place)


def _on_edge(place: Place, border: Border) -> bool:
    x0, y0, x1, y1 = place.box
    return min(x0, y0, 1 - x1, 1 - y1) <= border.width / 2


def _suspicion(
    asker: Asker, images: ClassImages, scans: Sequence[Scan], kind: Kind, region: Place | Border, seed: int
) -> Suspicion:
    where, hidden = images.region_of(region), _hides(images, region)
    held_out = [one for one in images.held_out if hidden(one).any()]  # an object may cover the whole place
    trial = tried(asker, held_out, images.others, hidden, seed)
    inside = [_peak_within(one, where(one.one)) for one in scans]
    masks = {one.case.name: where(one) for one in (*images.searched, *images.held_out)}
    fixed = not isinstance(region, Place) or agreement(scans, images.frames(images.searched), region) >= AGREED
    share = float(np.mean(inside))
    return Suspicion(
        images.label, kind, region, trial, share, masks, located=images.located, fixed=fixed,
        frame="object" if images.by_object else "picture",
    )  # fmt: skip


def _hides(images: ClassImages, region: Place | Border) -> Regions:
    """What is hidden of an image to test a fixed region."""
    return images.region_of(grown(region) if isinstance(region, Place) else region)


def _peak_within(one: Scan, region: np.ndarray) -> bool:
    """Whether the strongest evidence touches the region."""
    return bool((one.region(PEAK) & region).any())


def _moving(asker: Asker, images: ClassImages, searched: Sequence[Scan], seed: int) -> Iterator[Suspicion]:
    """What lies elsewhere in each image: on its object, off it, or independent of it."""
    scans = [scan(asker, one) for one in images.held_out[:SCANNED]]
    found = _wandering(asker, images, searched, scans, seed)
    if found is not None and found.verdict(found.trial) != "does not" and len(images.held_out) > SCANNED:
        scans += [scan(asker, one) for one in images.held_out[SCANNED:]]
        found = _wandering(asker, images, searched, scans, seed)
    if found is not None:
        yield found


def _wandering(
    asker: Asker, images: ClassImages, searched: Sequence[Scan], held_out: Sequence[Scan], seed: int
) -> Suspicion | None:
    """The evidence of these held-out images, of the kind that all images have; None if there is none."""
    scans = [one for one in held_out if one.effect.max() > 0]
    if not scans:
        return None
    seen = [*(one for one in searched if one.effect.max() > 0), *scans]
    kind = kind_of([one.region(PEAK) for one in seen], [one.one for one in seen], seed)
    regions = {one.one.case.name: REGIONS[kind](one) for one in scans}
    kept = [one.one for one in scans if regions[one.one.case.name].any()]
    trial = tried(asker, kept, images.others, _named(regions), seed)
    objects = sum(one.one.opened.inside is not None for one in seen) >= MARKED
    return Suspicion(images.label, kind, None, trial, len(kept) / len(scans), regions, objects)


def _around(asker: Asker, images: ClassImages, seed: int) -> Iterator[Suspicion]:
    """The object itself, and the strongest evidence around it, which lies elsewhere in each image."""
    scans = [scan(asker, one) for one in images.held_out[:SCANNED]]
    ahead = [float(falls(asker, one.one, [one.one.mask(one.one.object)])[0]) >= one.effect.max() for one in scans]
    around = [_off_object(one) for one in scans]
    parts: tuple[tuple[Kind, float, list[np.ndarray]], ...] = (
        ("object", float(np.mean(ahead)), [one.one.object for one in scans]),
        ("background", 1 - float(np.mean(ahead)), around),
    )
    for kind, share, found in parts:
        regions = {one.one.case.name: region for one, region in zip(scans, found, strict=True) if region.any()}
        if regions:
            kept = [one.one for one in scans if one.one.case.name in regions]
            trial = tried(asker, kept, images.others, _named(regions), seed)
            yield Suspicion(images.label, kind, None, trial, share, regions, objects=True, located=True)


def _named(regions: Mapping[str, np.ndarray]) -> Regions:
    """The regions of images by their names."""
    return lambda one: regions[one.case.name]


def kind_of(regions: Sequence[np.ndarray], images: Sequence[Shown], seed: int = 0) -> Kind:
    """Whether regions lie on the objects or avoid them more than the same shapes at random places do.

    The mean share that lies on the objects is compared with that of random places (a randomization test). Most shares
    are 0 and a few are 1, so tests of their ranks or of their median would find that such regions avoid the objects.
    """
    opened = [one.opened for one in images]
    inside = inside_share(regions, opened)
    known = ~np.isnan(inside)
    if known.sum() < MARKED:
        return "moving"
    rng = np.random.default_rng(seed)
    anywhere = [inside_anywhere(region, one) for region, one, k in zip(regions, opened, known, strict=True) if k]
    mean, chance = float(inside[known].mean()), float(np.mean([one.mean() for one in anywhere]))
    drawn = np.mean([rng.choice(one.ravel(), DRAWS) for one in anywhere], 0)
    above, below = (float((side.sum() + 1) / (DRAWS + 1)) for side in (drawn >= mean - SAME, drawn <= mean + SAME))
    if above < LEVEL and mean >= min(MOSTLY, TWICE * chance):
        return "object"
    return "background" if below < LEVEL else "moving"


def _of_object(one: Scan) -> np.ndarray:
    """The part of the object with the strongest evidence."""
    inside = one.one.opened.inside
    if inside is None or not inside.any():
        return one.region()
    parts = blobs(inside.astype(np.float32), 1.0)
    return max(parts, key=lambda part: float(one.effect[part].mean()))


def _off_object(one: Scan) -> np.ndarray:
    """The evidence off the object."""
    inside = one.one.opened.inside
    region = one.region(BROAD)
    return region if inside is None else region & ~inside


REGIONS: dict[Kind, Callable[[Scan], np.ndarray]] = {
    "object": _of_object,
    "background": _off_object,
    "moving": lambda one: one.region(),
}


def not_carried(trial: Trial) -> str:
    """Why a region that is the same in all images is not read: it does not turn other images into the class.

    Hiding one place hides a part of many objects too, but such a part does not make an object of another class.

    >>> from dataclasses import replace
    >>> mark = Trial(32, 0.9, (0.7, 0.97), 0.0, 0.9, 0.0, 1e-6)
    >>> not_carried(mark), not_carried(replace(mark, follows=0.1))
    ('', "a region counts as read from 40 percentage points above another region's 0% on")
    """
    if _follows(trial):
        return ""
    if not trial.pasted:
        return "there are no images of other classes to put it on"
    points, other = f"{100 * FOLLOWS:.0f} percentage points", f"{trial.follows_elsewhere:.0%}"
    return f"a region counts as read from {points} above another region's {other} on"


def _follows(trial: Trial, least: float = FOLLOWS) -> bool:
    """Whether at least this share of other images takes on the class with the region, beyond that of another region."""
    return trial.follows - trial.follows_elsewhere >= least


def sentence(one: Suspicion, trial: Trial) -> str:
    """A finding in plain words."""
    where = region_name(one.kind, one.region.box if isinstance(one.region, Place) else None, one.frame)
    if one.kind == "moving" and not one.objects:
        where += " (maybe the object: masks= would show it)"
    verdict = one.verdict(trial)
    begins = {
        "reads it": f"For {one.label!r}, the model reads {where}",
        "does not": f"For {one.label!r}, the model does not depend on {where}",
        "undecided": f"For {one.label!r}, it is undecided whether the model reads {where}",
    }[verdict]
    low, high = trial.interval
    lost = "objects are no longer found" if one.located else "images are no longer recognized"
    told = (
        f"{begins}: without it, {trial.drop:.0%} of {trial.images} {lost} (95% interval {low:.0%} to {high:.0%}), "
        f"against {trial.elsewhere:.0%} without an equal region elsewhere"
    )
    if trial.pasted:
        told += f"; put on images of other classes, it turns {trial.follows:.0%} of them into {one.label!r}"
    doubt = one.doubt(trial)
    return f"{told}; but {doubt}." if doubt else f"{told}."


CARRIED: tuple[Kind, ...] = ("place", "border")
PLAIN: dict[Kind, str] = {
    "place": "one place of the {}",
    "border": "the border of the {}",
    "object": "the object",
    "background": "the background",
    "moving": "something that lies elsewhere in each picture",
}


def region_name(kind: Kind, box: Box | None, frame: str = "picture") -> str:
    """A region in words, given the box of a place and what it is a place of.

    >>> region_name("border", None), region_name("place", (0.0, 0.4, 0.2, 0.6), "object")
    ('the border of the picture', 'the left edge of the object')
    """
    return (PLAIN[kind] if box is None else place_name(box)).format(frame)


def place_name(box: Box) -> str:
    """A box in words, with `{}` for what it is a place of.

    >>> place_name((0.0, 0.0, 0.2, 0.2)), place_name((0.4, 0.9, 0.6, 1.0)), place_name((0.4, 0.4, 0.6, 0.6))
    ('the upper left corner of the {}', 'the lower edge of the {}', 'the middle of the {}')
    """
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    across = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    down = "upper" if y < 1 / 3 else "lower" if y > 2 / 3 else ""
    if across and down:
        return f"the {down} {across} corner of the {{}}"
    return f"the {down or across} edge of the {{}}" if across or down else "the middle of the {}"
