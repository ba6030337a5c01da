"""Where the picture's cells are in the language model and in the picture; measured once per model and picture size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor, nn

from hf_cam.errors import ModelError
from hf_cam.images.geometry import Geometry
from hf_cam.images.placing import Geometries
from hf_cam.threads import cached_property
from hf_cam.words.footprints import LOCAL, Footprints, chequered, fields_of, footprints_of
from hf_cam.words.place import Kind, Place, find_place, reacting, read, sightings, states_at, text_lengths

Prepare = Callable[[Sequence[Image.Image]], Mapping[str, Any]]
"""From the pictures of one prompt to the forward's inputs."""

SMEARED = 0.25
"""Locality up to which cells do not show a place in the picture."""
CONFIRMED = 2
"""Sizes at which a raster was confirmed before it is only checked at others."""


@dataclass(frozen=True, eq=False)
class Located:
    """The cells of one picture.

    Args:
        place: Where they enter the language model.
        footprints: Where they lie in the picture.
    """

    place: Place
    footprints: Footprints = field(repr=False)

    def __str__(self) -> str:
        """Both in words."""
        return f"{self.place}; {self.footprints}"

    def to_dict(self) -> dict[str, Any]:
        """Both as plain data."""
        place, found = self.place, self.footprints
        return {
            "kind": place.kind,
            "module": place.module,
            "argument": place.argument,
            "cells": len(place.cells),
            "grid": None if found.grid is None else list(found.grid),
            "locality": round(found.seen.locality, 2),
            "picture": list(found.image_size),
        }


@dataclass
class Known:
    """What was measured on one model.

    Args:
        located: By the sizes of the pictures and the shapes of the inputs, with the ids of the text.
        rasters: What was found where a raster agreed with a measurement, at different sizes.
        geometries: How the processor puts pictures on a canvas.
        removal: How the picture is removed; None where that was not needed yet.
        cache_holds: Whether a forward on the generation's cache predicts what the generation does; None likewise.
    """

    located: dict[Any, tuple[list[Located], Tensor | None]] = field(default_factory=dict)
    rasters: dict[Any, Located] = field(default_factory=dict)
    geometries: Geometries = field(default_factory=Geometries)
    removal: str | None = None
    cache_holds: bool | None = None

    @property
    def rule(self) -> Place | None:
        """Where pictures of other sizes entered on a raster, if that was the same place at each; else None."""
        places = [one.place for one in self.rasters.values()]
        same = {(one.module, one.argument, one.turn, one.kind) for one in places}
        return places[0] if len(places) >= CONFIRMED and len(same) == 1 else None


_known: WeakKeyDictionary[nn.Module, dict[int, tuple[Any, Known]]] = WeakKeyDictionary()


def known_of(model: nn.Module, owner: Any) -> Known:
    """What was measured on a model with inputs that one processor or function makes.

    Args:
        model: The caller's model.
        owner: What makes the inputs; it is kept alive, so that no other object gets its identity.
    """
    return _known.setdefault(model, {}).setdefault(id(owner), (owner, Known()))[1]


def expected(known: Known, pictures: Sequence[Image.Image], clean: Mapping[str, Any]) -> Place | None:
    """Where pictures of a size that is new enter if they do as others; None for a known size, or without others.

    Args:
        known, pictures, clean: See `located`.
    """
    return None if _key(pictures, clean) in known.located else known.rule


def located(
    known: Known,
    replica: nn.Module,
    prepare: Prepare,
    pictures: Sequence[Image.Image],
    clean: Mapping[str, Any],
    entered: Tensor | None = None,
) -> list[Located]:
    """The cells of each picture of a prompt.

    Args:
        known: From `known_of`; what is measured is added.
        replica: What runs.
        prepare: From the pictures to the forward's inputs.
        pictures: Of the prompt.
        clean: What `prepare` made of them.
        entered: What a forward over them brought to the place that is expected; it is read again where it is not given.

    Raises:
        ModelError: no place passes the check; with the reason.
    """
    key = _key(pictures, clean)
    before = _moved(*known.located[key], clean) if key in known.located else None
    if before is None:
        parts = (_Measurement(replica, prepare, pictures, index, clean, known) for index in range(len(pictures)))
        before = [_checked(part, known, entered) or _located(part) for part in parts]
        known.located[key] = before, clean.get("input_ids")
        known.rasters |= {one.footprints.image_size: one for one in before if one.footprints.grid is not None}
    return before


def _key(pictures: Sequence[Image.Image], inputs: Mapping[str, Any]) -> Any:
    """The sizes of the pictures and the shapes of what the processor made of them."""
    shapes = tuple(
        (name, tuple(one.shape))
        for name, one in sorted(inputs.items())
        if isinstance(one, Tensor) and one.is_floating_point()
    )
    return tuple(picture.size for picture in pictures), shapes


def _moved(found: list[Located], ids: Tensor | None, inputs: Mapping[str, Any]) -> list[Located] | None:
    """The same cells behind another text: at the same ones among the placeholders; None where there are others."""
    now = inputs.get("input_ids")
    if ids is None or now is None or all(one.place.kind == "attended to" for one in found):
        return found
    if torch.equal(ids, now):
        return found
    if any(one.place.kind != "in the sequence" for one in found):
        return None
    cells = torch.cat([one.place.cells for one in found]).to(ids.device)
    placeholders = ids[0, cells].unique()
    if len(placeholders) != 1:
        return None
    old, new = ((one[0] == placeholders).nonzero()[:, 0] for one in (ids, now))
    if len(old) != len(new):
        return None
    shift = torch.zeros(ids.shape[1], dtype=torch.long, device=ids.device)
    shift[old] = new
    shape = (1, now.shape[1])
    return [
        replace(
            one,
            place=replace(one.place, shape=shape + one.place.shape[2:], cells=shift[one.place.cells.to(ids.device)]),
        )
        for one in found
    ]


@dataclass(frozen=True, eq=False)
class _Measurement:
    """The runs that show where the cells of one picture of a prompt are."""

    replica: nn.Module
    prepare: Prepare
    pictures: Sequence[Image.Image]
    index: int
    clean: Mapping[str, Any]
    known: Known

    @property
    def picture(self) -> Image.Image:
        return self.pictures[self.index]

    def inputs(self, picture: Image.Image) -> Mapping[str, Any]:
        """With another picture in place of this one."""
        others = [*self.pictures]
        others[self.index] = picture
        made = self.prepare(others)
        for name, was in self.clean.items():
            value = made.get(name)
            if isinstance(value, Tensor) and isinstance(was, Tensor) and was.shape != value.shape:
                raise ModelError(
                    f"the processor makes {name} {tuple(value.shape)} of a disturbed picture and {tuple(was.shape)} of "
                    "the picture itself, so where it puts what cannot be measured"
                )
        return made

    @cached_property
    def chequered(self) -> tuple[Image.Image, Image.Image]:
        """Two pictures that differ from this one everywhere, each more so in fields of its own."""
        return chequered(self.picture)

    @cached_property
    def other(self) -> Mapping[str, Any]:
        """With the first of these."""
        return self.inputs(self.chequered[0])

    def located(self, place: Place, clean: Tensor, first: Tensor, *, fine: bool = True) -> Located | None:
        """Where the cells at a place lie; None if nothing reacts there.

        Cells are what reacts to one of both pictures, since a model that turns pictures into codes may not notice the
        faint changes of the other.

        Args:
            place: Where they enter.
            clean: The argument there.
            first: The same with the first of the two pictures.
            fine: Whether cells that are on no raster are measured more closely.
        """
        found = reacting(place, clean, [first, states_at(self.replica, self.inputs(self.chequered[1]), place)])
        if found is None:
            return None
        place, (clean, first, second) = found

        def states(picture: Image.Image) -> Tensor:
            return read(self.replica, self.inputs(picture), place)

        fields = fields_of(first, second, clean)
        return Located(place, footprints_of(self.picture, states, clean, fields, self.geometry, fine=fine))

    def geometry(self) -> Geometry | None:
        """How the processor puts this picture on a canvas; None if it makes none."""
        pixels = self.clean.get("pixel_values")
        if not isinstance(pixels, Tensor) or pixels.ndim < 4 or pixels[..., 0, 0].numel() != 3 * len(self.pictures):
            return None

        def canvas(pictures: Sequence[Image.Image]) -> Tensor:
            made: Tensor = self.prepare([*pictures] * len(self.pictures))["pixel_values"]
            return made.reshape(-1, 3, *made.shape[-2:])[:1]

        return self.known.geometries.of(canvas, (self.picture.height, self.picture.width))


def _checked(part: _Measurement, known: Known, entered: Tensor | None) -> Located | None:
    """The cells where they entered at other sizes, if they lie on a raster there too; else None."""
    if (rule := known.rule) is None:
        return None
    first = states_at(part.replica, part.other, rule)
    if entered is None or entered.shape != first.shape:
        entered = states_at(part.replica, part.clean, rule)
    found = part.located(rule, entered, first, fine=False)
    return None if found is None or found.footprints.grid is None else found


def _reworded(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same picture with the last id of the text changed; so many tokens as before."""
    name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    ids = inputs[name].clone()
    ids[:, -1] = torch.where(ids[:, -1] > 1, ids[:, -1] - 1, ids[:, -1] + 1)
    return {**inputs, name: ids}


def _located(part: _Measurement) -> Located:
    """The first place whose cells are local, or that of states that are attended to."""
    seen = sightings(part.replica, part.clean)
    lengths = text_lengths(part.clean)
    if not lengths:
        raise ModelError("the model's inputs hold no tokens: input_ids or decoder_input_ids are missing")
    passed: list[tuple[float, Located]] = []
    kinds: tuple[Kind, ...] = ("in the sequence", "before the text", "attended to")
    for kind in kinds:
        reworded = sightings(part.replica, _reworded(part.clean)) if kind == "before the text" else None
        place_and_states = find_place(part.replica, seen, part.other, lengths, kind, reworded)
        if place_and_states is None:
            continue
        place, first = place_and_states
        found = part.located(place, states_at(part.replica, part.clean, place), first)
        if found is None:
            continue
        locality = found.footprints.seen.locality
        if locality >= LOCAL:
            return found
        passed.append((locality, found))
    if not passed:
        raise ModelError(
            "no part of the model's forward gets the picture's cells: two pictures lead to the same inputs of the "
            "language model, or all of it reacts to either"
        )
    locality, best = passed[-1] if len(passed) > 1 and passed[-1][0] >= SMEARED else max(passed, key=lambda one: one[0])
    if locality < SMEARED:
        raise ModelError(
            f"each of the {len(best.place.cells)} cells at {best.place.module!r} reacts to all of the picture alike "
            f"(locality {locality:.2f}, where {SMEARED} is needed), so no map over it can be drawn"
        )
    return best
