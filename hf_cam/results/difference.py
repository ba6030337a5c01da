"""What the model says beside what was expected: the difference of two maps of one image, and the verdict in words."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Unpack

import numpy as np
import torch
from PIL import Image

from hf_cam.doors import door
from hf_cam.errors import ImageError, OptionError, described
from hf_cam.explanation import Explanation
from hf_cam.images.drawing import contact_sheet, outlined, overlay, save_picture, shown
from hf_cam.images.sheet import Tile, balanced, sheet
from hf_cam.images.style import SIGNED, Drawing, Style, with_bar
from hf_cam.metrics.verdict import strongest
from hf_cam.results.grid import method_name, tile_of

TOP = 0.1
"""The share of the image whose strongest pixels are compared; unrelated maps have as large a share in common."""
SAME, APART = 0.5, 0.2
"""Shares of the strongest pixels in common from which two maps mark the same place, and below which they do not."""

Places = Literal["same", "partly", "different", "unknown"]


@dataclass(frozen=True, eq=False)
class Difference:
    """Two explanations of one image: of what the model says and of what was expected; `str(...)` is the verdict.

    Args:
        predicted: The first; where its map is stronger, the difference is positive.
        expected: The second.
        overlap: The share of the strongest tenth of the pixels that the two maps have in common, in [0, 1]; NaN if one
            of them is empty. Unrelated maps have 0.1 in common.
        correlation: Pearson's correlation of their pixels, in [-1, 1]; NaN likewise.
    """

    predicted: Explanation
    expected: Explanation
    overlap: float = field(init=False)
    correlation: float = field(init=False)

    def __post_init__(self) -> None:
        """Compare the maps."""
        first, second = self.predicted.heatmap, self.expected.heatmap
        object.__setattr__(self, "overlap", overlap_of(first, second))
        object.__setattr__(self, "correlation", correlation_of(first, second))

    @property
    def map(self) -> np.ndarray:
        """`[H, W]` float32 in [-1, 1]: the predicted heatmap less the expected one; `[T, H, W]` for a video."""
        difference: np.ndarray = self.predicted.heatmap - self.expected.heatmap
        return difference

    @property
    def places(self) -> Places:
        """Whether the two maps mark the same place; "unknown" if one of them marks none."""
        if np.isnan(self.overlap):
            return "unknown"
        return "same" if self.overlap >= SAME else "different" if self.overlap < APART else "partly"

    def __str__(self) -> str:
        """What the model said, what was expected, and whether the two maps mark the same place."""
        said, wanted = _named(self.predicted), _named(self.expected)
        if self.predicted.label == self.expected.label:
            words = [f"The model says {said}, as expected."]
            if not self.map.any():
                return words[0]
        else:
            words = [f"The model says {said}; expected was {wanted}."]
        if self.places == "unknown":
            empty = self.expected if self.predicted.heatmap.any() else self.predicted
            return " ".join([*words, f"The map of {empty.label!r} is empty, so the places cannot be compared."])
        measured = (
            f"{self.overlap:.0%} of the strongest {TOP:.0%} of pixels in common, where {TOP:.0%} is chance; "
            f"correlation {self.correlation:.2f}"
        )
        return " ".join([*words, f"{VERDICTS[self.places]} ({measured})."])

    @door()
    def overlay(
        self, alpha: float = 0.7, colormap: str | int | None = None, *, outline: bool = True, **drawing: Unpack[Drawing]
    ) -> Image.Image:
        """The difference in colours over the image: red where the predicted map is stronger, blue where it is weaker.

        Args:
            alpha: Opacity of the colours in [0, 1].
            colormap: A diverging map; see `hf_cam.overlay`.
            outline: Whether to draw the boxes or the edge of the mask of what was predicted.
            drawing: `even`, `contours`, `colorbar` and `transparent`, as in `hf_cam.overlay`.

        Raises:
            OptionError: a setting does not exist or has an invalid value.
        """
        style, one = Style.of(alpha, colormap, SIGNED, drawing), self.predicted
        plain: Drawing = {**drawing, "colorbar": False}
        values = shown(one.heatmap) - shown(self.expected.heatmap)
        if one.frames:
            pairs = zip(one.frames, values, strict=True)
            drawn = contact_sheet([overlay(*pair, alpha, colormap, signed=True, **plain) for pair in pairs])
        else:
            drawn = overlay(one.image, values, alpha, colormap, signed=True, **plain)
            drawn = outlined(drawn, one.outlines, one.mask) if outline else drawn
        return with_bar(drawn, style)

    @door()
    def grid(self, columns: int | None = None, alpha: float = 0.5, colormap: str | int | None = None) -> Image.Image:
        """The predicted map, the expected map and their difference side by side, with labels, scores and a legend.

        Args:
            columns: How many stand in a row.
            alpha, colormap: Of the two maps, as in `hf_cam.overlay`.

        Raises:
            OptionError: a setting is invalid.
        """
        style, count = Style.of(alpha, colormap, self.predicted.scale, {}), 3
        both = [tile_of(one, one.overlay(alpha, colormap)) for one in (self.predicted, self.expected)]
        titles = ("predicted: ", "expected: ")
        tiles = [
            Tile(tile.picture, title + tile.title, tile.details, tile.warnings)
            for title, tile in zip(titles, both, strict=True)
        ]
        how = f"{self.overlap:.0%} of the strongest {TOP:.0%} in common" if self.places != "unknown" else "one is empty"
        apart = Tile(self.overlay(), "difference", ("red: predicted, blue: expected", how))
        return sheet([*tiles, apart], columns or balanced(count), style)

    @door(ImageError)
    def save(self, path: str | Path) -> Path:
        """Save the grid as a picture, or the difference itself if the path ends in `.npy`.

        Raises:
            ImageError: the path does not end in a picture format, or cannot be written.
        """
        path = Path(path).expanduser()
        if path.suffix == ".npy":
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, self.map)
            return path
        return save_picture(self.grid(), path)

    def _repr_html_(self) -> str:
        """The verdict, which notebooks show."""
        return f"<p>{html.escape(str(self))}</p>"

    def _repr_png_(self) -> bytes:
        """The grid as a PNG, which notebooks display."""
        buffer = io.BytesIO()
        self.grid().save(buffer, format="PNG")
        return buffer.getvalue()


VERDICTS: dict[Places, str] = {
    "same": "The two maps mark largely the same place",
    "partly": "The two maps mark partly the same place",
    "different": "The two maps mark different places",
}


@door()
def difference(predicted: Explanation, expected: Explanation) -> Difference:
    """What the model says beside what was expected: the signed difference of two maps, and a verdict in words.

    Args:
        predicted, expected: Two explanations of one image by one method, such as `hf_cam.explain` returns for
            `target=[None, "pug"]`.

    Raises:
        OptionError: one is no explanation, or they are not of pictures of one size, or of two methods.

    >>> import hf_cam
    >>> from sklearn.datasets import load_sample_image
    >>> found = hf_cam.explain(load_sample_image("flower.jpg"), model="demo:imagenet", target=[None, "bee"])
    >>> difference(*found).map.shape
    (427, 640)
    """
    for one in (predicted, expected):
        if not isinstance(one, Explanation):
            raise OptionError(f"a difference takes two explanations, not {described(one)}; pass found[0], found[1]")
    shapes = [one.heatmap.shape for one in (predicted, expected)]
    if shapes[0] != shapes[1]:
        raise OptionError(f"the explanations are of different pictures: their heatmaps are {shapes[0]} and {shapes[1]}")
    if predicted.image.tobytes() != expected.image.tobytes():
        raise OptionError("the explanations are of different pictures; pass two of one, as for target=[None, 'pug']")
    if predicted.method != expected.method:
        raise OptionError(
            f"the maps are by two methods, {method_name(predicted.method)} and {method_name(expected.method)}, so "
            "their difference shows the methods too; explain both targets by one"
        )
    return Difference(predicted, expected)


def overlap_of(first: np.ndarray, second: np.ndarray) -> float:
    """The share of the strongest tenth of the pixels that two maps have in common; NaN if one of them is empty.

    >>> ramp = np.linspace(0, 1, 200).reshape(10, 20)
    >>> overlap_of(ramp, ramp), overlap_of(ramp, ramp[::-1]), overlap_of(ramp, 0 * ramp)
    (1.0, 0.0, nan)
    """
    if not (np.ptp(first) and np.ptp(second)):
        return float("nan")
    flat = [torch.from_numpy(np.ascontiguousarray(one)).reshape(-1, one.shape[-1]) for one in (first, second)]
    tops = [strongest(one, [TOP])[0] for one in flat]
    return float((tops[0] & tops[1]).sum() / tops[0].sum())


def correlation_of(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of the pixels of two maps; NaN if one of them is the same everywhere."""
    if not (np.ptp(first) and np.ptp(second)):
        return float("nan")
    return float(np.corrcoef(first.ravel().astype(np.float64), second.ravel().astype(np.float64))[0, 1])


def _named(one: Explanation) -> str:
    return f"{one.label!r} ({one.score:.3g} {one.score_kind})"
