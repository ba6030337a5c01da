"""Pictures in and out of arrays, overlays and scaling, with grad-cam's conventions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import zoom
from torch import Tensor

from hf_cam.errors import OptionError
from hf_cam.factorization import concept_colour
from hf_cam.images.lettering import write

TINY = 1e-7


def preprocess_image(
    img: np.ndarray, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
) -> Tensor:
    """`[1, C, H, W]`, normalized, from a picture `[H, W, C]` of bytes or of floats in [0, 1].

    >>> preprocess_image(np.zeros((4, 6, 3), np.uint8)).shape
    torch.Size([1, 3, 4, 6])
    """
    pixels = torch.from_numpy(np.array(img))
    pixels = (pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels).permute(2, 0, 1)
    return ((pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None])[None]


def deprocess_image(img: np.ndarray) -> np.ndarray:
    """Bytes to show signed values: their mean becomes mid-grey, a standard deviation a tenth of the range."""
    standard = (img - np.mean(img)) / (np.std(img) + 1e-5)
    return np.asarray(np.clip(standard * 0.1 + 0.5, 0, 1) * 255).astype(np.uint8)


def show_cam_on_image(
    img: np.ndarray,
    mask: np.ndarray,
    use_rgb: bool = False,
    colormap: int = cv2.COLORMAP_JET,
    image_weight: float = 0.5,
) -> np.ndarray:
    """The map in colours over the picture, evenly opaque; bytes `[H, W, 3]`.

    Args:
        img: `[H, W, 3]` in [0, 1].
        mask: `[H, W]` in [0, 1].
        use_rgb: True if the picture is in RGB; by default it is in OpenCV's BGR.
        colormap: A constant of OpenCV's.
        image_weight: Share of the picture in the mix, in [0, 1].

    Raises:
        OptionError: the picture or the weight is out of range, or picture and map differ in size.
    """
    if np.max(img) > 1:
        raise OptionError(f"img must lie in [0, 1], but its largest value is {np.max(img)}; divide bytes by 255")
    if not 0 <= image_weight <= 1:
        raise OptionError(f"image_weight must lie in [0, 1], got {image_weight}")
    if np.shape(img)[:2] != np.shape(mask):
        raise OptionError(
            f"img is {list(np.shape(img))} and mask {list(np.shape(mask))}, but both must have one height and width; "
            "resize the picture to the map's"
        )
    colours = cv2.applyColorMap((255 * np.asarray(mask)).astype(np.uint8), colormap)
    colours = np.asarray(cv2.cvtColor(colours, cv2.COLOR_BGR2RGB) if use_rgb else colours, np.float32) / 255
    mixed = (1 - image_weight) * colours + image_weight * img
    return np.asarray(255 * (mixed / (np.max(mixed) or 1))).astype(np.uint8)


def scale_cam_image(cam: Iterable[np.ndarray], target_size: Sequence[int] | None = None) -> np.ndarray:
    """Each map scaled to [0, 1] by its own extremes, then enlarged to `(W, H)`, or `(W, H, D)` for volumes."""
    found = []
    for one in cam:
        shown = one - np.min(one)
        shown = np.asarray(shown / (TINY + np.max(shown)), np.float32)
        if target_size is not None and shown.ndim > 2:
            shown = zoom(shown, np.divide(target_size[::-1], shown.shape))
        elif target_size is not None:
            shown = cv2.resize(shown, tuple(target_size))
        found.append(shown)
    return np.asarray(found, np.float32)


def scale_accross_batch_and_channels(tensor: np.ndarray, target_size: Sequence[int]) -> np.ndarray:
    """`scale_cam_image` of each channel of `[B, C, h, w]`."""
    scaled = scale_cam_image(tensor.reshape(-1, *tensor.shape[2:]), target_size)
    return scaled.reshape(*tensor.shape[:2], *scaled.shape[1:])


def create_labels_legend(concept_scores: np.ndarray, labels: Mapping[int, str], top_k: int = 2) -> list[str]:
    """The best classes of each concept and their scores, one line per class.

    >>> create_labels_legend(np.array([[0.1, 0.9]]), {0: "cat", 1: "dog, hound"}, top_k=1)
    ['dog, hound:0.90']
    """
    best = np.argsort(concept_scores, axis=1)[:, ::-1][:, :top_k]
    return [
        "\n".join(f"{','.join(labels[int(k)].split(',')[:3])}:{scores[k]:.2f}" for k in classes)
        for classes, scores in zip(best, concept_scores, strict=True)
    ]


def show_factorization_on_image(
    img: np.ndarray,
    explanations: np.ndarray,
    colors: Sequence[Sequence[float]] | None = None,
    image_weight: float = 0.5,
    concept_labels: Sequence[str] | None = None,
) -> np.ndarray:
    """Each pixel in the colour of its strongest concept, brighter where that is stronger; bytes `[H, W, 3]`.

    Args:
        img: `[H, W, 3]` in [0, 1], RGB.
        explanations: `[k, H, W]` in [0, 1].
        colors: One colour per concept, RGB in [0, 1]; evenly spaced hues by default.
        image_weight: Share of the picture in the mix.
        concept_labels: One per concept, for a legend as wide as the picture on its right.
    """
    count = len(explanations)
    shades = [concept_colour(i, count) for i in range(count)] if colors is None else np.array(colors)[:, :3] * 255
    colours = np.array(shades, np.float32)[:, :3]
    strongest = explanations.argmax(0)
    strength = explanations.max(0)[..., None]
    hues = colours[strongest] / np.maximum(colours[strongest].max(-1, keepdims=True), 1)
    mixed = np.clip(img * image_weight + hues * strength * (1 - image_weight), 0, 1)
    mixed = np.asarray(255 * mixed).astype(np.uint8)
    return mixed if concept_labels is None else np.hstack([mixed, _legend(mixed.shape, colours, concept_labels)])


def _legend(shape: Sequence[int], colours: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    height, width = shape[:2]
    page = Image.new("RGB", (width, height), "white")
    draw, top = ImageDraw.Draw(page), 4
    size = max(8, min(14, height // (2 * len(labels) + 1)))
    for colour, label in zip(colours, labels, strict=True):
        draw.rectangle((4, top + 2, 16, top + 12), fill=tuple(int(value) for value in colour))
        for line in label.split("\n"):
            write(draw, (22, top), line, size, "black")
            top += size + 4
        top += 2
    return np.asarray(page)
