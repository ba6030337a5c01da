"""Draw heatmaps: overlays, outlines, contact sheets of frames, and picture files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from hf_cam.doors import door
from hf_cam.errors import ImageError, OptionError, brief, nearest
from hf_cam.images.reading import load_image

GAP, FRAME_MILLISECONDS = 4, 200

COLORMAPS = {
    name.removeprefix("COLORMAP_").lower(): getattr(cv2, name) for name in dir(cv2) if name.startswith("COLORMAP_")
}

DEFAULT_COLORMAP = "turbo"

# Display of maps of single pixels: the Gaussian's standard deviation, in parts of the shorter side; the fraction of the
# peak below which smoothing has shown that the peak is one of single pixels; and the percentile that is drawn as 1.
SMOOTHING, LONE_PEAK, BRIGHTEST = 0.01, 0.5, 99


@door()
def overlay(image: Any, heatmap: np.ndarray, alpha: float = 0.5, colormap: str = DEFAULT_COLORMAP) -> Image.Image:
    """The heatmap in colours over the image.

    Args:
        image: Anything that `hf_cam.explain` takes as an image.
        heatmap: `[H, W]` in [0, 1], as large as the image.
        alpha: Opacity of the colours in [0, 1]; below 0.5 in the heatmap it falls linearly to 0, so that irrelevant
            parts of the image keep their own colours.
        colormap: Name of an OpenCV colour map, such as "turbo", "jet", "viridis" or "inferno".

    Raises:
        OptionError: the sizes differ, the heatmap is not finite, alpha is not in [0, 1], or there is no such colour
            map.

    >>> overlay(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.float32), alpha=0.0).getpixel((0, 0))
    (0, 0, 0)
    """
    picture, heatmap = load_image(image), np.asarray(heatmap)
    if heatmap.shape != (picture.height, picture.width):
        raise OptionError(
            f"the heatmap is {heatmap.shape[0]} x {heatmap.shape[1]}, "
            f"but the image is {picture.height} x {picture.width}"
        )
    if not np.isfinite(heatmap).all():
        raise OptionError("the heatmap holds values that are not finite; it must lie in [0, 1]")
    if not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise OptionError(f"alpha must lie in [0, 1], got {brief(alpha)}")
    if colormap not in COLORMAPS:
        raise OptionError(f"no colour map {brief(colormap)}; nearest: {nearest(str(colormap), COLORMAPS)}")
    levels = np.rint(np.clip(heatmap, 0, 1) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, COLORMAPS[colormap]), cv2.COLOR_BGR2RGB)
    opacity = alpha * np.clip(2 * heatmap, 0, 1)[..., None]
    mixed = (1 - opacity) * np.asarray(picture, np.float32) + opacity * colours
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def shown(heatmap: np.ndarray) -> np.ndarray:
    """The heatmap as it is drawn: one that consists of single pixels is smoothed and brightened, any other is returned.

    A map of single pixels, such as gradient times input, has a few extreme pixels and is nearly 0 elsewhere, so that
    its colours would hardly be seen. It is recognized by its peak: a Gaussian of 1% of the shorter side (at least one
    pixel) takes more than half of it away. It is then drawn smoothed by this Gaussian, with the 99th percentile of its
    positive pixels as 1; the frames of a video are brightened together.

    Args:
        heatmap: `[H, W]` or `[T, H, W]` in [0, 1].

    >>> smooth = np.outer(np.hanning(60), np.hanning(80)).astype(np.float32)
    >>> shown(smooth) is smooth
    True
    >>> pixels = np.zeros((60, 80), np.float32)
    >>> pixels[::7, ::7] = 0.1
    >>> pixels[30, 40] = 1
    >>> bool(shown(pixels).mean() > 5 * pixels.mean())
    True
    """
    frames = heatmap.reshape(-1, *heatmap.shape[-2:])
    deviation = max(1.0, SMOOTHING * min(frames.shape[-2:]))
    smoothed = np.stack([cv2.GaussianBlur(frame, (0, 0), deviation) for frame in frames])
    if not smoothed.max() < LONE_PEAK * frames.max():  # also where values are not finite, which `overlay` refuses
        return heatmap
    brightest = np.percentile(smoothed[smoothed > 0], BRIGHTEST)
    drawn: np.ndarray = np.clip(smoothed / brightest, 0, 1).astype(np.float32)
    return drawn.reshape(heatmap.shape)


def outlined(picture: Image.Image, box: Sequence[float] | None, mask: np.ndarray | None) -> Image.Image:
    """The picture with a box, or else the edge of a mask, drawn as a white line with a dark rim."""
    if box is None and mask is None:
        return picture
    canvas = np.array(picture)
    thickness = max(1, round(min(picture.size) / 200))
    for colour, width in (((20, 20, 20), 3 * thickness), ((255, 255, 255), thickness)):
        if box is not None:
            x0, y0, x1, y1 = (round(value) for value in box)
            cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), colour, width)
        elif mask is not None:
            edges, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, edges, -1, colour, width)
    return Image.fromarray(canvas)


@door(ImageError)
def save_picture(picture: Image.Image, path: str | Path, **settings: Any) -> Path:
    """Save a picture, creating the folders above it; `settings` go to Pillow's `save`.

    Raises:
        ImageError: the path is a folder, cannot be written, or does not end in a picture format.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ImageError(f"{str(path)!r} is a folder; pass the path of a file, such as {str(path / 'map.png')!r}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, **settings)
    except OSError as error:
        raise ImageError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
    except ValueError as error:
        raise ImageError(f"{path.name!r} does not end in a picture format (.png, .jpg, .webp) or .npy") from error
    return path


def contact_sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Frames of one size, arranged row by row on a roughly square sheet."""
    width, height = pictures[0].size
    columns = min(len(pictures), max(1, round((len(pictures) * height / width) ** 0.5)))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (width + GAP), i // columns * (height + GAP)))
    return sheet


def animation(others: Sequence[Image.Image]) -> dict[str, Any]:
    """Settings for Pillow's `save` that write an animation: the first frame, followed by these others."""
    return {"save_all": True, "append_images": list(others), "duration": FRAME_MILLISECONDS, "loop": 0}
