"""Parts of pages that need no other files: their style, small pictures as data, figures, and frames for notebooks."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SIDE = 160
"""The longer side of a picture in a page, in pixels."""
STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def small(image: Image.Image) -> Image.Image:
    """The image with a longer side of `SIDE` pixels."""
    scale = SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def resized(heat: np.ndarray, like: Image.Image) -> np.ndarray:
    """A map `[h, w]` in the pixels of a picture, clipped to [0, 1]."""
    return np.asarray(np.clip(cv2.resize(heat, like.size, interpolation=cv2.INTER_LINEAR), 0, 1))


def data_uri(picture: Image.Image) -> str:
    """The picture as a JPEG that stands in the page itself."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def figure(uri: str, caption: str) -> str:
    """A picture above its caption; empty without a picture."""
    if not uri:
        return ""
    told = html.escape(caption, quote=True)
    return f'<figure><img src="{uri}" alt="{told}" loading="lazy"><figcaption>{told}</figcaption></figure>'


def in_frame(page: str) -> str:
    """The page in a frame of its own, so that a notebook's styles do not meet it."""
    return f'<iframe srcdoc="{html.escape(page, quote=True)}" width="100%" height="640" style="border:0"></iframe>'
