"""Draw heatmaps: overlays in a style, outlines, contact sheets of frames, and picture files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import cv2
import numpy as np
from PIL import Image
from torch import Tensor

from hf_cam.doors import door
from hf_cam.errors import ImageError, OptionError, described
from hf_cam.images.reading import load_image
from hf_cam.images.style import SIGNED, UNSIGNED, Drawing, Style, coloured, with_bar, with_contours

GAP, FRAME_MILLISECONDS = 4, 200
OPAQUE = (".jpg", ".jpeg", ".jfif", ".bmp")
"""Endings of files that hold no transparency."""

# Display of maps of single pixels: the Gaussian's standard deviation, in parts of the shorter side; the fraction of the
# peak below which smoothing has shown that the peak is one of single pixels; and the percentile that is drawn as 1.
SMOOTHING, LONE_PEAK, BRIGHTEST = 0.01, 0.5, 99


@door()
def overlay(
    image: Any,
    heatmap: np.ndarray,
    alpha: float = 0.5,
    colormap: str | int | None = None,
    *,
    signed: bool = False,
    **drawing: Unpack[Drawing],
) -> Image.Image:
    """The heatmap in colours over the image.

    Args:
        image: Anything that `hf_cam.explain` takes as an image.
        heatmap: `[H, W]` in [0, 1], as large as the image; in [-1, 1] if `signed`.
        alpha: Opacity of the colours in [0, 1]; below half of the peak it falls linearly to 0, so that irrelevant parts
            of the image keep their own colours.
        colormap: A name or constant of OpenCV's ("turbo", "jet", `cv2.COLORMAP_BONE`), a name of matplotlib's
            ("coolwarm", "RdBu_r"), or "diverging"; where not given, "turbo", or "diverging" if `signed`.
        signed: Whether the values lie on both sides of 0; the colour in the middle of the map is that of 0.
        drawing: `even=True` colours all pixels with the same opacity; `contours=True` draws the lines where the heatmap
            is a quarter, a half and three quarters, or at a list of values; `colorbar=True` adds a legend at the right;
            `transparent=True` returns the colours alone, in RGBA, transparent where the heatmap is 0.

    Raises:
        OptionError: the sizes differ, the heatmap is not finite, or a setting does not exist or has an invalid value.

    >>> overlay(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.float32), alpha=0.0).getpixel((0, 0))
    (0, 0, 0)
    >>> overlay(np.zeros((4, 6, 3), np.uint8), np.eye(4, 6), transparent=True).getpixel((1, 0))[3]
    0
    """
    picture, heatmap = load_image(image), np.asarray(heatmap)
    style = Style.of(alpha, colormap, SIGNED if signed else UNSIGNED, drawing)
    if heatmap.shape != (picture.height, picture.width):
        raise OptionError(
            f"the heatmap is {' x '.join(map(str, heatmap.shape))}, but the image is {picture.height} x {picture.width}"
        )
    if not np.isfinite(heatmap).all():
        raise OptionError(f"the heatmap holds values that are not finite; it must lie in [{style.scale.low:g}, 1]")
    return with_bar(with_contours(coloured(picture, heatmap, style), heatmap, style), style)


def shown(heatmap: np.ndarray) -> np.ndarray:
    """The heatmap as it is drawn: one that consists of single pixels is smoothed and brightened, any other is returned.

    A map of single pixels, such as gradient times input, has a few extreme pixels and is nearly 0 elsewhere, so that
    its colours would hardly be seen. It is recognized by its peak: a Gaussian of 1% of the shorter side (at least one
    pixel) takes more than half of it away. It is then drawn smoothed by this Gaussian, with the 99th percentile of its
    pixels that are not 0 as 1; the frames of a video are brightened together. Of a signed one, absolute values count.

    Args:
        heatmap: `[H, W]` or `[T, H, W]` in [0, 1] or [-1, 1].

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
    strength = np.abs(smoothed)
    if (
        not strength.max() < LONE_PEAK * np.abs(frames).max()
    ):  # also where values are not finite, which `overlay` refuses
        return heatmap
    brightest = np.percentile(strength[strength > 0], BRIGHTEST)
    drawn: np.ndarray = np.clip(smoothed / brightest, -1, 1).astype(np.float32)
    return drawn.reshape(heatmap.shape)


def outlined(picture: Image.Image, boxes: Sequence[Sequence[float]], mask: np.ndarray | None) -> Image.Image:
    """The picture with boxes, or else the edge of a mask, drawn as a white line with a dark rim."""
    if not boxes and mask is None:
        return picture
    canvas = np.array(picture)
    thickness = max(1, round(min(picture.size) / 200))
    for colour, width in (((20, 20, 20, 255), 3 * thickness), ((255, 255, 255, 255), thickness)):
        for x0, y0, x1, y1 in boxes:
            cv2.rectangle(canvas, (round(x0), round(y0)), (round(x1) - 1, round(y1) - 1), colour, width)
        if mask is not None and not boxes:
            edges, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, edges, -1, colour, width)
    return Image.fromarray(canvas)


@door()
def gradient_picture(gradient: Tensor | np.ndarray) -> Image.Image:
    """A signed gradient in the pixels, such as that of guided backpropagation, as a picture around mid-grey.

    Grey is 0; the strongest half percent of the values are drawn as black or as full brightness of their channel.

    Args:
        gradient: `[C, H, W]` or `[1, C, H, W]` with one or three channels, finite.

    Raises:
        OptionError: it has another shape, or values that are not finite.

    >>> gradient_picture(np.zeros((3, 4, 6))).getpixel((0, 0))
    (128, 128, 128)
    """
    values = gradient.detach().cpu().double().numpy() if isinstance(gradient, Tensor) else np.asarray(gradient, float)
    values = values[0] if values.ndim == 4 and len(values) == 1 else values
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise OptionError(f"a gradient must be [3, H, W] or [1, H, W], of one picture, got {described(gradient)}")
    if not np.isfinite(values).all():
        raise OptionError("the gradient holds values that are not finite")
    largest = np.percentile(np.abs(values), BRIGHTEST + (100 - BRIGHTEST) / 2)
    largest = largest or np.abs(values).max() or 1.0
    shown = np.broadcast_to(values, (3, *values.shape[1:])).transpose(1, 2, 0) / largest
    return Image.fromarray(np.rint(127.5 + 127.5 * np.clip(shown, -1, 1)).astype(np.uint8))


@door(ImageError)
def save_picture(picture: Image.Image, path: str | Path, **settings: Any) -> Path:
    """Save a picture, creating the folders above it; `settings` go to Pillow's `save`.

    Raises:
        ImageError: the path is a folder, cannot be written, or does not end in a picture format.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ImageError(f"{str(path)!r} is a folder; pass the path of a file, such as {str(path / 'map.png')!r}")
    if picture.mode == "RGBA" and path.suffix.lower() in OPAQUE:
        raise ImageError(f"{path.name!r} cannot hold a transparent picture; save it as .png or .webp")
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
    ground = "white" if pictures[0].mode == "RGB" else (255, 255, 255, 0)
    sheet = Image.new(pictures[0].mode, (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), ground)
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (width + GAP), i // columns * (height + GAP)))
    return sheet


def animation(others: Sequence[Image.Image]) -> dict[str, Any]:
    """Settings for Pillow's `save` that write an animation: the first frame, followed by these others."""
    return {"save_all": True, "append_images": list(others), "duration": FRAME_MILLISECONDS, "loop": 0}
