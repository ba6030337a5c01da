"""The result of an explanation: a heatmap in the pixels of the caller's image, with ways to check, show and save it."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, Unpack, cast

import numpy as np
from PIL import Image

from hf_cam.check import Check, Origin, check
from hf_cam.doors import door
from hf_cam.effort import Effort
from hf_cam.errors import ImageError, OptionError, brief
from hf_cam.heads.subjects import CONFIDENCE, Box
from hf_cam.images.drawing import animation, contact_sheet, outlined, overlay, save_picture, shown
from hf_cam.images.geometry import Axis, Geometry
from hf_cam.images.mapped import Evidence, GridMap
from hf_cam.images.patches import are_cut
from hf_cam.images.style import SIGNED, UNSIGNED, Drawing, Scale, Style, with_bar
from hf_cam.methods import get_method
from hf_cam.request import Renormalize, check_renormalize, check_seed
from hf_cam.results.bundle import is_folder, write_bundle

Made = TypeVar("Made")

NO_EVIDENCE = "no evidence"
OUTSIDE_IMAGE = "evidence only outside the image"
MAY_MISLEAD = "may mislead"
FLAGS: Mapping[Evidence, tuple[str, ...]] = {"image": (), "outside": (OUTSIDE_IMAGE,), "none": (NO_EVIDENCE,)}
"""What is wrong with a map, by where it has evidence."""
WITHOUT_PICTURE = "said without the picture"
AGAINST_PICTURE = "the picture speaks against it"
THUMBNAIL = 240
"""The longest side of the pictures that a notebook shows of a list, in pixels."""


class _OnDemand:
    """A field that may be given as a function without arguments, which then makes its value each time it is read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self.name]
        return value() if callable(value) else value

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.name] = value


def _on_demand(*names: str) -> Callable[[type[Made]], type[Made]]:
    """Let these fields of a dataclass be made on demand; the dataclass is complete before, so that they stay fields."""

    def decorated(made: type[Made]) -> type[Made]:
        for name in names:
            setattr(made, name, _OnDemand(name))
        return made

    return decorated


@_on_demand("heatmap", "image", "frames", "origin")
@dataclass(frozen=True, eq=False)
class Explanation:
    """The explanation of one thing that a model reports about one image.

    Args:
        label: What is explained: a class name, a prompt, a detected object.
        score: The model's confidence in it in [0, 1]; for a caller's own target, its value. `score_kind` names which.
        heatmap: `[H, W]` float32 in [0, 1], in the pixels of `image`; 0 where the model did not see the image. For a
            video `[T, H, W]`, normalized over all frames together so that they can be compared. A signed one lies in
            [-1, 1] and is negative where the image speaks against the target.
        raw: `[h, w]` float32, the first target layer's map on its own grid, before any normalization; `[t, h, w]` for a
            video. Negative where a cell speaks against the target, also if the heatmap is not signed.
        method: Id of the method.
        layers: Dotted names of the target layers.
        image: The caller's image, upright and in RGB; the first frame of a video.
        box: `(x0, y0, x1, y1)` in the image's pixels, if the head finds objects.
        mask: `[H, W]` booleans, if the head finds segments.
        flags: Warnings, such as "no evidence" if the map on the model's grid is the same everywhere, or "evidence only
            outside the image" if all of it lies on padding, or "may mislead: ..." with the reason if maps of this
            family's target layer are known not to show what the model reads.
        origin: The model, the preprocessed image and the target, for `check()`; not pickled.
        frames: The frames of a video that the model saw; empty for an image.
        score_kind: What the score is: "probability", "share among the prompts", "cosine similarity" and so on. Only
            scores of the same kind can be compared.
        effort: With `effort="checked"`, the methods that were tried and the verdict on the map; `str(effort)` says it
            in words.
        span: `(start, end)` of a word in the text that the model wrote; None for everything else.
        evidence: The share of a word's probability that is owed to the picture, in [0, 1]: 0 if the model writes the
            word just as readily while the picture is hidden from it; None for everything else.
        map: The map on the model's grid and its place in the image. An explanation holds this, and `heatmap` is drawn
            from it each time it is read.
        boxes: The boxes of several objects, if the map is that of their sum (`hf_cam.targets.SumOf`); empty for one.
    """

    label: str
    score: float
    heatmap: np.ndarray = field(repr=False)
    raw: np.ndarray = field(repr=False)
    method: str
    layers: tuple[str, ...]
    image: Image.Image = field(repr=False)
    box: Box | None = None
    mask: np.ndarray | None = field(default=None, repr=False)
    flags: tuple[str, ...] = ()
    origin: Origin | None = field(default=None, repr=False)
    frames: tuple[Image.Image, ...] = field(default=(), repr=False)
    score_kind: str = CONFIDENCE
    effort: Effort | None = field(default=None, repr=False)
    span: tuple[int, int] | None = None
    evidence: float | None = None
    map: GridMap | None = field(default=None, repr=False)
    boxes: tuple[Box, ...] = field(default=(), repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """The state to pickle: everything except `origin`, which holds the model."""
        return {**self.__dict__, "origin": None}

    def changed(self, **fields: Any) -> Explanation:
        """A copy with other values of some fields; what is made on demand stays so, unlike in `dataclasses.replace`."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, **fields)
        return copy

    @door()
    def check(self, seed: int = 0, others: Sequence[Any] = ()) -> Check:
        """Test whether the target depends on the pixels that the map marks; `str(check)` explains the verdict in words.

        The verdict rests on what the cell of the peak and the strongest 3% add to random parts of the image, few and
        many. The strongest tenth is also removed, and kept alone, beside as many pixels elsewhere. Pixels are replaced
        in three ways (imputed from their neighbours, by the mean colour, by the pixels of other images); 98 forwards.

        Args:
            seed: Seed for the noise and for ties.
            others: Images whose pixels are put in place of this one's, at best from the same data; paths, URLs, PIL
                images or arrays. A shipped scene where not given.

        Raises:
            ImageError: one of the others cannot be read.
            OptionError: the explanation was pickled and so has no model, or the model takes videos or patches, from
                which no pixels can be removed; or the seed is no whole number.

        >>> import hf_cam
        >>> from sklearn.datasets import load_sample_image
        >>> [flower] = hf_cam.explain(load_sample_image("flower.jpg"), model="demo:imagenet")
        >>> found = flower.check()
        >>> found.drop > found.chance
        True
        """
        check_seed(seed)
        origin = self.origin
        if self.span is not None:
            raise OptionError(
                "a check takes classes, objects and regions, not the words of an answer; explain the image with "
                "answer= and another picture to see whether a word changes"
            )
        if origin is None:
            raise OptionError(
                "this explanation has no model: it was pickled or shows what speaks against the target; explain the "
                "image again"
            )
        if self.frames or are_cut(origin.inputs):
            raise OptionError("a check removes pixels from an image, but this model takes frames or patches instead")
        if not isinstance(others, list | tuple):
            raise OptionError(f"others must be a list of images, got {brief(others)}")
        return check(origin, self.raw, seed, others)

    @property
    def signed(self) -> bool:
        """Whether the heatmap also shows what speaks against the target."""
        return self.map is not None and self.map.signed

    @property
    def scale(self) -> Scale:
        """The range of the heatmap, for its picture."""
        return SIGNED if self.signed else UNSIGNED

    @door()
    def counterfactual(self) -> Explanation:
        """What speaks against the target: the negative part of the map, made positive (Grad-CAM, section 3.3).

        Its label is "against" and the label; it has no model, so that it cannot be checked.

        Raises:
            MethodError: the method has no signed map.
            OptionError: the map on the model's grid is not known.
        """
        get_method(self.method).check_signed({})
        if self.map is None:
            raise OptionError(
                "this explanation holds a heatmap alone, which shows nothing that speaks against the target"
            )
        map_ = self.map.turned()
        kept = tuple(flag for flag in self.flags if flag not in (NO_EVIDENCE, OUTSIDE_IMAGE))
        return self.changed(
            label=f"against {self.label}",
            heatmap=map_.heatmap,
            raw=map_.raw[0],
            flags=(*kept, *FLAGS[map_.evidence]),
            origin=None,
            effort=None,
            map=map_,
        )

    @property
    def grid_map(self) -> GridMap:
        """The map on the model's grid; if only a heatmap was given, that, over an input that is the image itself."""
        if self.map is not None:
            return self.map
        height, width = self.heatmap.shape[-2:]
        same = Geometry((height, width), (height, width), Axis(1.0, 0.0), Axis(1.0, 0.0), (0, 0, height, width))
        return GridMap((self.heatmap,), same, frames=len(self.heatmap) if self.frames else None)

    @property
    def outlines(self) -> tuple[Box, ...]:
        """The box of the object, or the boxes of the several objects whose sum is explained."""
        return self.boxes or (() if self.box is None else (self.box,))

    @door()
    def renormalized(self, renormalize: Renormalize | None = "box") -> Explanation:
        """A copy whose heatmap is stretched to [0, 1] inside each box for itself, and 0 outside.

        `raw` and `map` on the model's grid stay as they are, and so does a check.

        Args:
            renormalize: "box"; None for the explanation as it is.

        Raises:
            OptionError: the explanation has no box.
        """
        check_renormalize(renormalize)
        if renormalize is None:
            return self
        if self.signed:
            raise OptionError("renormalize='box' stretches what speaks for the target; a signed map stays as it is")
        if not self.outlines:
            raise OptionError(f"renormalize='box' needs boxes, and {brief(self.label)} has none; detectors give them")
        map_ = replace(self.grid_map, boxes=self.outlines)
        return self.changed(map=map_, heatmap=cast("np.ndarray", map_.heatmap))

    def to_dict(self, *, with_map: bool = True) -> dict[str, Any]:
        """Plain values that JSON can hold: the map on the model's grid with its geometry, not the image or the mask.

        Args:
            with_map: False leaves out the `map`, which for several target layers is as large as the model's input.

        Returns:
            `label`, `score`, `score_kind`, `box`, `boxes`, `renormalize`, `method`, `layers`, `flags`, `map` (nested
            lists in [0, 1], or in [-1, 1] if it is `signed`, with four decimals), `signed`, `frames` (how many of a
            video the model saw; None for an image), `geometry` (see `Geometry.to_dict`), `evidence` ("image", "outside"
            or "none").
        """
        map_ = self.grid_map
        cells = {"map": map_.cells.astype(np.float64).round(4).tolist()} if with_map else {}
        return {
            "label": self.label,
            "score": self.score,
            "score_kind": self.score_kind,
            "box": None if self.box is None else [float(side) for side in self.box],
            "boxes": [[float(side) for side in box] for box in self.boxes],
            "renormalize": "box" if map_.boxes else None,
            "method": self.method,
            "layers": list(self.layers),
            "flags": list(self.flags),
            **cells,
            "frames": map_.frames,
            "signed": map_.signed,
            "geometry": map_.geometry.to_dict(),
            "evidence": map_.evidence,
        }

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict())

    @door()
    def overlay(
        self,
        alpha: float = 0.5,
        colormap: str | int | None = None,
        *,
        outline: bool = True,
        renormalize: Renormalize | None = None,
        **drawing: Unpack[Drawing],
    ) -> Image.Image:
        """The heatmap in colours over the image, with the boxes or the edge of the mask in white.

        It is as large as the image, unless it has a legend. For a video, it is a contact sheet of the frames, row by
        row. A map of single pixels, such as those of the gradient methods, is smoothed and brightened for the picture,
        so that it can be seen; `heatmap` and `raw` stay as they are. A signed map is drawn in the diverging colours,
        whose middle is zero.

        Args:
            alpha: Opacity of the colours in [0, 1].
            colormap: A name of OpenCV's or matplotlib's, such as "turbo" or "coolwarm"; see `hf_cam.overlay`.
            outline: Whether to draw the boxes or the edge of the mask.
            renormalize: "box" stretches the heatmap inside each box for itself, as `renormalized` does.
            drawing: `even`, `contours`, `colorbar` and `transparent`, as in `hf_cam.overlay`.

        Raises:
            OptionError: a setting does not exist or has an invalid value, or there is no box.
        """
        if renormalize is not None:
            return self.renormalized(renormalize).overlay(alpha, colormap, outline=outline, **drawing)
        style = Style.of(alpha, colormap, self.scale, drawing)
        plain: Drawing = {**drawing, "colorbar": False}
        if self.frames:
            return with_bar(contact_sheet(self.frame_overlays(alpha, colormap, **plain)), style)
        drawn = overlay(self.image, shown(self.heatmap), alpha, colormap, signed=self.signed, **plain)
        return with_bar(outlined(drawn, self.outlines, self.mask) if outline else drawn, style)

    @door()
    def frame_overlays(
        self, alpha: float = 0.5, colormap: str | int | None = None, **drawing: Unpack[Drawing]
    ) -> list[Image.Image]:
        """The overlay of every frame of a video; none for an image."""
        return [
            overlay(frame, heatmap, alpha, colormap, signed=self.signed, **drawing)
            for frame, heatmap in zip(self.frames, shown(self.heatmap) if self.frames else (), strict=True)
        ]

    @property
    def picture(self) -> Image.Image:
        """The image without the heatmap; for a video, a contact sheet of its frames."""
        return contact_sheet(self.frames) if self.frames else self.image

    @door(ImageError)
    def save(
        self,
        path: str | Path,
        alpha: float = 0.5,
        colormap: str | int | None = None,
        *,
        renormalize: Renormalize | None = None,
        check: Check | None = None,
        **drawing: Unpack[Drawing],
    ) -> Path:
        """Save the overlay as a picture, the heatmap itself if the path ends in `.npy`, or a bundle in a folder.

        A video becomes an animation if the path ends in `.gif`, else a contact sheet of its frames.

        A path without an ending, or one that ends in "/", is the folder of a bundle that a bug report can carry:
        `overlay.png`, `image.png`, `map.npz` (the map on the model's grid and before normalization) and
        `manifest.json` with the versions, the model's name and fingerprint, the processor, the target, the settings,
        the score and the check. `hf_cam.load_explanations` reads it. The folder must be new or hold a bundle.

        Args:
            path: The file or folder.
            alpha, colormap, renormalize, drawing: As in `overlay`.
            check: The result of `check`, for a bundle; that of `effort="checked"` where not given.

        Raises:
            ImageError: the path ends in something else than a picture format, the folder holds other files, or it
                cannot be written.
            OptionError: a setting is wrong, or a check is given for a picture.
        """
        if renormalize is not None:
            return self.renormalized(renormalize).save(path, alpha, colormap, check=check, **drawing)
        folder = is_folder(path)
        path = Path(path).expanduser()
        if folder:
            return write_bundle(self, path, self.overlay(alpha, colormap, **drawing), check)
        if check is not None:
            raise OptionError(f"a check goes into a bundle: pass a folder, such as {brief(str(path.with_suffix('')))}")
        if path.suffix == ".npy":
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, self.heatmap)
            return path
        if self.frames and path.suffix.lower() == ".gif":
            first, *others = self.frame_overlays(alpha, colormap, **drawing)
            return save_picture(first, path, **animation(others))
        return save_picture(self.overlay(alpha, colormap, **drawing), path)

    def _repr_png_(self) -> bytes:
        """The overlay as a PNG, which notebooks display."""
        buffer = io.BytesIO()
        self.overlay().save(buffer, format="PNG")
        return buffer.getvalue()


class Explanations(list[Explanation]):
    """The explanations of one image: a list that notebooks show as pictures with labels and scores."""

    def _repr_html_(self) -> str:
        """The overlays side by side, each above its label, score, method and flags."""
        figures = "".join(map(_figure, self))
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{figures}</div>'


def _figure(explanation: Explanation) -> str:
    picture, buffer = explanation.overlay(), io.BytesIO()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(buffer, format="PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    label = html.escape(explanation.label)
    details = [f"{explanation.score:.3f} {explanation.score_kind}", explanation.method, *explanation.flags]
    return (
        f'<figure style="margin:0;max-width:{THUMBNAIL}px"><img src="{source}" alt="{label}">'
        f"<figcaption><b>{label}</b><br>{'<br>'.join(map(html.escape, details))}</figcaption></figure>"
    )
