"""Several explanations in one labelled picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

from PIL import Image

from hf_cam.doors import door
from hf_cam.errors import OptionError, described
from hf_cam.explanation import Explanation
from hf_cam.images.sheet import Tile, balanced, sheet
from hf_cam.images.style import UNSIGNED, Drawing, Style
from hf_cam.methods import get_method, list_methods
from hf_cam.request import check_count

STRETCHED = "each box stretched for itself"


@door()
def grid(
    explanations: Any,
    columns: int | None = None,
    alpha: float = 0.5,
    colormap: str | int | None = None,
    **drawing: Unpack[Drawing],
) -> Image.Image:
    """One picture of several explanations, each below its label, score, method and flags, with a legend.

    Pictures of different sizes get the same width, except for very tall ones.

    Args:
        explanations: One, a list, or lists of lists as `hf_cam.explain` returns them for several images; also a dict
            as `hf_cam.load_explanations` returns it.
        columns: How many stand in a row; where not given, as many as make the picture wider than high.
        alpha, colormap, drawing: As in `hf_cam.overlay`; the legend is always there, so that `colorbar` has no use.

    Raises:
        OptionError: there is no explanation, something else is among them, or a setting is invalid.

    >>> import hf_cam
    >>> from sklearn.datasets import load_sample_image
    >>> found = hf_cam.explain(load_sample_image("flower.jpg"), model="demo:imagenet", top_k=3)
    >>> hf_cam.grid(found).width
    1008
    """
    found = list(_listed(explanations))
    style = Style.of(alpha, colormap, found[0].scale if found else UNSIGNED, drawing)
    if not found:
        raise OptionError("there is no explanation to draw; pass what hf_cam.explain returns")
    if columns is not None:
        check_count("columns", columns)
    plain: Drawing = {**drawing, "colorbar": False}
    tiles = [tile_of(one, one.overlay(alpha, colormap, **plain)) for one in found]
    return sheet(tiles, columns or balanced(len(tiles)), style)


def tile_of(explanation: Explanation, picture: Image.Image) -> Tile:
    """A picture with the explanation's label, score, method and flags, and whether its boxes are stretched."""
    score = f"{explanation.score:.3g} {explanation.score_kind}"
    stretched = (STRETCHED,) if explanation.grid_map.boxes else ()
    return Tile(picture, explanation.label, (score, method_name(explanation.method), *stretched), explanation.flags)


def method_name(method: str) -> str:
    """The name of a method, or else its id: of methods for words, and of stored explanations."""
    return get_method(method).name if method in list_methods() else method


def _listed(explanations: Any) -> Iterator[Explanation]:
    if isinstance(explanations, Explanation):
        yield explanations
        return
    if isinstance(explanations, Mapping):
        explanations = list(explanations.values())
    if not isinstance(explanations, list | tuple):
        raise OptionError(f"a grid shows explanations, as hf_cam.explain returns them, not {described(explanations)}")
    for one in explanations:
        yield from _listed(one)
