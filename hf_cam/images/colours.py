"""Colour maps by name, of OpenCV, of matplotlib and one of our own, as tables of 256 colours."""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import numpy as np

from hf_cam.errors import OptionError, brief, described, nearest

PREFIX = "COLORMAP_"
OPENCV = {name.removeprefix(PREFIX).lower(): getattr(cv2, name) for name in dir(cv2) if name.startswith(PREFIX)}
"""OpenCV's constants, by their names in lower case."""

DEFAULT_COLORMAP = "turbo"
DIVERGING = "diverging"
"""The name of our own map for signed values: blue below 0, red above, and nearly white at 0."""
ANCHORS = np.array(
    [(33, 63, 154), (92, 146, 214), (244, 244, 244), (226, 112, 88), (160, 22, 40)],
    np.float64,
)
"""Its colours at equal distances."""
BACKWARDS = "_r"
"""The ending of the name of a map whose colours come in reverse order."""
EXAMPLES = ("turbo", "viridis", "jet", "coolwarm", "RdBu_r", DIVERGING)


def table_of(colormap: Any) -> np.ndarray:
    """The colours of a map, `[256, 3]` bytes in RGB, from the colour of 0 to that of 1.

    Where OpenCV and matplotlib have a map of the same name, it is OpenCV's.

    Args:
        colormap: A name of OpenCV's ("turbo", "COLORMAP_JET"), one of its constants (`cv2.COLORMAP_JET`), a name of
            matplotlib's ("coolwarm", "RdBu_r"), or "diverging". With "_r" behind a name the order is reversed.

    Raises:
        OptionError: there is no such map, or it is one of matplotlib's and that is not installed.

    >>> table_of("jet").shape, (table_of("jet_r")[0] == table_of("jet")[-1]).all().item()
    ((256, 3), True)
    """
    if not isinstance(colormap, str | int) or isinstance(colormap, bool):
        raise OptionError(f"a colour map is given by its name, such as 'turbo', not {described(colormap)}")
    return _table(colormap)


@cache
def _table(colormap: str | int) -> np.ndarray:
    if isinstance(colormap, int):
        if colormap not in OPENCV.values():
            raise OptionError(
                f"OpenCV has no colour map {colormap}; pass a constant such as cv2.COLORMAP_JET or a name"
            )
        return _of_opencv(colormap)
    name = colormap.strip().removeprefix("cv2.").removeprefix(PREFIX).lower()
    forwards = name.removesuffix(BACKWARDS)
    if name in OPENCV or name == DIVERGING:
        return _own(name)
    if forwards in OPENCV or forwards == DIVERGING:
        return _own(forwards)[::-1]
    return _of_matplotlib(colormap)


def _own(name: str) -> np.ndarray:
    if name != DIVERGING:
        return _of_opencv(OPENCV[name])
    levels, places = np.linspace(0, 1, 256), np.linspace(0, 1, len(ANCHORS))
    channels = [np.interp(levels, places, channel) for channel in ANCHORS.T]
    table: np.ndarray = np.rint(np.stack(channels, 1)).astype(np.uint8)
    return table


def _of_opencv(constant: int) -> np.ndarray:
    ramp = np.arange(256, dtype=np.uint8)[None]
    table: np.ndarray = cv2.cvtColor(cv2.applyColorMap(ramp, constant), cv2.COLOR_BGR2RGB)[0]
    return table


def _of_matplotlib(name: str) -> np.ndarray:
    """The colours of one of matplotlib's maps, whose names are compared without case if none fits exactly.

    Raises:
        OptionError: there is none, or matplotlib is not installed.
    """
    examples = ", ".join(map(repr, EXAMPLES))
    try:
        from matplotlib import colormaps
    except ImportError as error:
        raise OptionError(
            f"OpenCV has no colour map {brief(name)}; nearest: {nearest(name, OPENCV)}. Those of matplotlib need it: "
            'pip install "hf-cam[evaluate]"'
        ) from error
    alike = {known.casefold(): known for known in colormaps}
    known = name if name in colormaps else alike.get(name.strip().casefold())
    if known is None:
        listed = [*OPENCV, DIVERGING, *colormaps]
        raise OptionError(f"no colour map {brief(name)}; nearest: {nearest(name, listed)}; others: {examples}")
    found: np.ndarray = colormaps[known](np.linspace(0, 1, 256), bytes=True)[:, :3]
    return np.ascontiguousarray(found)
