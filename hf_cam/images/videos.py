"""Read any video that a user may pass, as upright RGB frames of one size."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageSequence
from torch import Tensor

from hf_cam.errors import ImageError, brief
from hf_cam.images.reading import carried, existing, is_data_uri, load_image, opened

ENDINGS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
"""Endings of files that can only be videos. A `.gif` is a video for a video model, and its first frame for others."""
LONGEST_ENDING = 8


@dataclass(frozen=True, eq=False)
class Video:
    """Frames in order; distinguishes a video from a list of images.

    Args:
        frames: Pictures of one size, each of any kind that `load_image` takes; stored as RGB images.

    Raises:
        ImageError: there are no frames, one is not a picture, or their sizes differ.

    >>> Video([np.zeros((48, 64, 3), np.uint8)] * 8)
    Video(8 frames of 64 x 48)
    """

    frames: Sequence[Any] = field(repr=False)

    def __post_init__(self) -> None:
        """Convert the frames to RGB pictures."""
        if isinstance(self.frames, str | Path | Image.Image):
            raise ImageError("a Video takes a list of frames; pass the path of a file directly, without Video")
        if len(self.frames) == 0:
            raise ImageError("the video has no frames")
        frames = tuple(load_image(frame) for frame in self.frames)
        if len(sizes := {frame.size for frame in frames}) > 1:
            listed = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
            raise ImageError(f"the frames of a video must have one size, got {listed}")
        object.__setattr__(self, "frames", frames)

    def __repr__(self) -> str:
        """The number of frames and their size."""
        return f"Video({len(self.frames)} frames of {self.width} x {self.height})"

    @property
    def width(self) -> int:
        """Width of every frame, in pixels."""
        return int(self.frames[0].width)

    @property
    def height(self) -> int:
        """Height of every frame, in pixels."""
        return int(self.frames[0].height)

    def sampled(self, count: int | None) -> Video:
        """`count` evenly spread frames; all of them if None.

        Raises:
            ImageError: the video has fewer frames.
        """
        return self if count is None else Video([self.frames[i] for i in spread(len(self.frames), count)])


def spread(total: int, count: int) -> list[int]:
    """Indices of the middle frames of `count` equal parts of `total` frames.

    >>> spread(12, 4)
    [1, 4, 7, 10]

    Raises:
        ImageError: there are fewer than `count` frames.
    """
    if total < count:
        raise ImageError(f"the video has {total} frame{'s' * (total != 1)}, but the model takes {count}")
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def is_video(source: Any) -> bool:
    """Whether a source can only be a video: a `Video`, an array `[T, H, W, C]`, or the path of a video file."""
    if isinstance(source, np.ndarray | Tensor):
        return source.ndim == 4
    if isinstance(source, str | Path):
        return ending_of(source) in ENDINGS
    return isinstance(source, Video)


def ending_of(source: str | Path) -> str:
    """The ending of the file that a path, a URL or the type of a data URI names, in lower case.

    >>> ending_of("https://example.org/Clip.MP4?size=1"), ending_of("data:video/webm;base64,GkXf")
    ('.mp4', '.webm')
    """
    if is_data_uri(source):
        kind = str(source)[: str(source).find(",")].split(";")[0]
        return f".{kind.rpartition('/')[2].strip().lower()}"
    return Path(str(source).split("?")[0]).suffix.lower()


def may_be_video(source: Any) -> bool:
    """Whether a source may be a video: it can only be one, or it is a GIF or an image with several frames.

    >>> may_be_video("clip.gif"), may_be_video("clip.png"), may_be_video(np.zeros((8, 48, 64, 3), np.uint8))
    (True, False, True)
    """
    gif = isinstance(source, str | Path) and ending_of(source) == ".gif"
    return gif or is_video(source) or (isinstance(source, Image.Image) and getattr(source, "n_frames", 1) > 1)


def load_video(source: Any, count: int | None = None) -> Video:
    """The video at a source.

    Args:
        source: A path, URL or data URI (`.gif`, `.mp4`, `.webm`, ...), a `Video`, or an array or tensor `[T, H, W, C]`
            or `[T, C, H, W]`.
        count: How many evenly spread frames to take; all if None.

    Raises:
        ImageError: the video cannot be found or decoded, is not a video, or has too few frames.
    """
    if isinstance(source, Video):
        return source.sampled(count)
    if isinstance(source, np.ndarray | Tensor) and source.ndim == 4:
        return Video(list(source)).sampled(count)
    if isinstance(source, Image.Image) and getattr(source, "n_frames", 1) > 1:
        return _of_gif(source, count)
    if isinstance(source, str | Path):
        return _of_file(source, count)
    got = f"an array of shape {tuple(source.shape)}" if hasattr(source, "shape") else type(source).__name__
    raise ImageError(
        f"this model takes videos: pass a file, hf_cam.Video(frames) or an array [T, H, W, 3], not {got} (a list "
        "is for several videos)"
    )


def _of_file(source: str | Path, count: int | None) -> Video:
    content = carried(source)
    if content is not None:
        with tempfile.NamedTemporaryFile(suffix=ending_of(source)[:LONGEST_ENDING]) as file:
            file.write(content)
            file.flush()
            return _decoded(Path(file.name), str(source), count)
    return _decoded(existing(source), str(source), count)


def _decoded(path: Path, name: str, count: int | None) -> Video:
    if not is_video(path):
        return opened(path, name, lambda image: _of_gif(image, count))
    # Containers only estimate their number of frames, so count the frames first and then decode the wanted ones.
    with_frames = _read(path, name, None)
    wanted = set(range(with_frames) if count is None else spread(with_frames, count))
    frames: list[np.ndarray] = []
    _read(path, name, lambda i, capture: frames.append(capture.retrieve()[1]) if i in wanted else None)
    return Video([cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in frames])


def _read(path: Path, name: str, see: Callable[[int, Any], None] | None) -> int:
    """Call `see` with the index of each frame of a file, and return their number.

    Raises:
        ImageError: no frame can be decoded.
    """
    capture, total = cv2.VideoCapture(str(path)), 0
    try:
        while capture.isOpened() and capture.grab():
            if see:
                see(total, capture)
            total += 1
    finally:
        capture.release()
    if not total:
        raise ImageError(
            f"{brief(name)} is not a video, or is damaged" if path.stat().st_size else f"{brief(name)} is an empty file"
        )
    return total


def _of_gif(image: Image.Image, count: int | None) -> Video:
    total = getattr(image, "n_frames", 1)
    if total == 1:
        raise ImageError("this model takes a video of several frames, not a single picture")
    wanted = set(range(total) if count is None else spread(total, count))
    return Video([frame.convert("RGB") for i, frame in enumerate(ImageSequence.Iterator(image)) if i in wanted])
