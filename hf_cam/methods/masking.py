"""Methods that hide parts of the picture and ask the model again; they look at no layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from hf_cam.errors import OptionError
from hf_cam.images.fills import Fill, filled
from hf_cam.methods.registry import method
from hf_cam.methods.run import Run
from hf_cam.methods.signals import signal
from hf_cam.methods.tokens import grid_of, scores_of_kept
from hf_cam.methods.variants import scores_of_variants
from hf_cam.request import check_count

PATCH = 7
"""The side of a hidden square, as a divisor of the picture's shorter side."""
TYPICAL = (224, 224)
"""The picture for which a cost in forwards is stated where it depends on the picture's size."""

Cover = Fill | Literal["drop"]
"""What stands in place of hidden pixels; "drop" leaves tokens out of a transformer's sequence."""

Window = tuple[slice, ...]


def windows(size: Sequence[int], patch: int | None = None, stride: int | None = None) -> list[Window]:
    """The squares (in volumes, cubes) that slide over a picture; the last of each row and column ends at the border.

    Args:
        size: Height and width of the picture; of a volume, its depth first.
        patch: Their side in pixels; by default a seventh of the shorter side.
        stride: The distance between neighbours in pixels; by default half of `patch`.

    Raises:
        OptionError: `patch` or `stride` is less than 1, or squares would leave gaps between them.

    >>> windows((4, 6), patch=4, stride=3)
    [(slice(0, 4, None), slice(0, 4, None)), (slice(0, 4, None), slice(3, 6, None))]
    """
    patch = max(2, min(size) // PATCH) if patch is None else patch
    check_count("patch", patch)
    stride = max(1, patch // 2) if stride is None else stride
    check_count("stride", stride)
    if stride > patch:
        raise OptionError(f"stride must be at most patch={patch}, or pixels between the squares are never hidden")

    def along(length: int) -> Iterator[slice]:
        for index in range(1 + max(0, -(-(length - patch) // stride))):
            yield slice(index * stride, min(index * stride + patch, length))

    return list(product(*(tuple(along(length)) for length in size)))


def mean_over_windows(values: Tensor, places: Sequence[Window], size: Sequence[int]) -> Tensor:
    """`[B, *size]`: for each pixel the mean of the values `[B, windows]` of the windows that contain it."""
    total, count = values.new_zeros(len(values), *size), values.new_zeros(*size)
    for index, place in enumerate(places):
        total[(slice(None), *place)] += values[:, index].reshape(-1, *(1,) * len(size))
        count[place] += 1
    return total / count


def without_windows(run: Run, places: Sequence[Window], fill: Cover) -> Tensor:
    """The targets' values `[B, windows]` when each window in turn is hidden.

    Args:
        run: The run.
        places: The windows.
        fill: See `score_drops`.
    """
    pixels = run.pixels
    if isinstance(fill, str) and fill == "drop":
        return scores_of_kept(run, ~torch.stack([inside(place, pixels.shape[2:], grid_of(run)) for place in places]))
    instead = filled(pixels, fill)

    def hidden(sample: int, start: int, stop: int) -> Tensor:
        variants = pixels[sample : sample + 1].repeat(stop - start, *(1,) * (pixels.ndim - 1))
        for variant, place in zip(variants, places[start:stop], strict=True):
            variant[(slice(None), *place)] = instead[sample][(slice(None), *place)]
        return variants

    return scores_of_variants(run, len(places), hidden)


def inside(place: Window, size: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Booleans `[cells]`: the cells of a grid over the picture whose centre lies in a window.

    >>> inside((slice(0, 2), slice(0, 4)), (4, 6), (2, 3)).tolist()
    [True, True, False, False, False, False]
    """
    found = torch.ones((), dtype=torch.bool)
    for part, length, cells in zip(place, size, grid, strict=True):
        centres = (torch.arange(cells) + 0.5) * length / cells
        found = found[..., None] & (centres >= part.start) & (centres < part.stop)
    return found.flatten()


def _forwards(patch: int | None, stride: int | None) -> float:
    return 1 + len(windows(TYPICAL, patch, stride))  # one of them hides nothing


@signal(
    "how far the target's value falls when a square hides the pixel, `[B, 1, H, W]`",
    cost="one forward per position of the square, and one that hides nothing",
    pixels=True,
    layered=False,
    forwards=_forwards,
)
def score_drops(run: Run, layer: str, patch: int | None = None, stride: int | None = None, fill: Cover = 0.0) -> Tensor:
    """`[B, 1, *space]`: the fall of the targets' values, averaged over the squares that hide each pixel.

    A fall within the rounding error of the two values is zero.

    Args:
        run: The run.
        layer: Not used.
        patch, stride: See `windows`.
        fill: What stands in the square, see `hf_cam.images.fills.filled`; or "drop", which leaves the tokens whose
            centre is hidden out of a transformer's sequence.
    """
    del layer
    size = run.pixels.shape[2:]
    places = windows(size, patch, stride)
    # The first window hides nothing: a half-precision model's own score is not that of its float32 copy.
    nothing = (slice(0, 0),) * len(size)
    clean, scores = without_windows(run, [nothing, *places], fill).tensor_split([1], 1)
    rounding = 8 * torch.finfo(scores.dtype).eps * torch.maximum(clean.abs(), scores.abs())
    drops = torch.where((clean - scores).abs() <= rounding, 0, clean - scores)
    wide = drops if drops.dtype == torch.float64 else drops.float()
    return mean_over_windows(wide, places, size)[:, None]


@method(
    "occlusion",
    name="Occlusion",
    paper="Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, arXiv:1311.2901",
    summary="How far the score falls when a sliding square hides each pixel; uses neither a layer nor gradients.",
    departure="Overlapping squares are averaged, and the target's value takes the place of the class probability.",
)
def occlusion(score_drops: Tensor) -> Tensor:
    """`mean(y - y_without_square)` over the squares that hide a pixel, where y is the target's value.

    The paper shows the probability of the class at the position of the square. Here overlapping squares are averaged,
    and the target's own value is used, which for a class is its logit and does not saturate.
    """
    return score_drops
