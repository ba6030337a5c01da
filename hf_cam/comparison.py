"""Several methods on one image, side by side."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from hf_cam.errors import MethodError
from hf_cam.explainer import Explainer
from hf_cam.explanation import Explanation
from hf_cam.images.drawing import DEFAULT_COLORMAP, save_picture
from hf_cam.images.reading import load_image
from hf_cam.images.videos import may_be_video
from hf_cam.methods import Method, get_method, list_methods
from hf_cam.methods.registry import same_target
from hf_cam.models.loading import Picture, load

TILE, MARGIN, TITLE = 320, 8, 28
RERUNS = "masked_scores"


@dataclass(frozen=True, eq=False)
class Comparison:
    """One image explained by several methods from one forward.

    Args:
        explanations: One a method, for the same target.
        image: The caller's image, upright and in RGB; a sheet of frames, of a video.
    """

    explanations: list[Explanation]
    image: Image.Image = field(repr=False)

    def grid(self, columns: int | None = None, alpha: float = 0.5, colormap: str = DEFAULT_COLORMAP) -> Image.Image:
        """The image and each method's overlay under its name, row by row; about square where `columns` is not given."""
        pictures = [("image", self.image)]
        pictures += [(get_method(e.method).name, e.overlay(alpha, colormap)) for e in self.explanations]
        columns = columns or min(len(pictures), max(2, round((len(pictures) * 1.5) ** 0.5)))
        height = max(1, round(TILE * self.image.height / self.image.width))
        rows = -(-len(pictures) // columns)
        step_x, step_y = TILE + MARGIN, height + TITLE + MARGIN
        sheet = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
        for i, (name, picture) in enumerate(pictures):
            left, top = MARGIN + i % columns * step_x, MARGIN + i // columns * step_y
            draw.text((left, top + 3), name, fill="black", font=font)
            sheet.paste(picture.resize((TILE, height), Image.Resampling.LANCZOS), (left, top + TITLE))
        return sheet

    def save(self, path: str | Path, columns: int | None = None) -> Path:
        """Write the grid as a picture.

        Raises:
            ImageError: the ending is no picture format.
        """
        return save_picture(self.grid(columns), path)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        buffer = io.BytesIO()
        self.grid().save(buffer, format="PNG")
        return buffer.getvalue()


def compare(
    image: Any,
    model: str | Path | nn.Module,
    *,
    methods: Sequence[str] | str | None = None,
    target: Any = None,
    text: str | Sequence[str] | None = None,
    layers: Sequence[str] | str | None = None,
    reshape: Callable[[Tensor], Tensor] | None = None,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    processor: Any = None,
    device: str | torch.device | int | None = None,
    dtype: torch.dtype | str | None = None,
) -> Comparison:
    """Explain one image by several methods with a single forward.

    Args:
        image: A path, URL, PIL image or array.
        model: A Hub id, a folder, `demo:NAME`, or a loaded model.
        methods: Ids of `hf_cam.list_methods()`; where not given, all that are defined for the model but
            Score-CAM, which takes a forward a channel.
        target, text, layers, reshape, aug_smooth, eigen_smooth, processor, device, dtype: As in `hf_cam.explain`.

    Raises:
        MethodError: a method does not exist, none is named, or one is not defined for the target.

    >>> from sklearn.datasets import load_sample_image
    >>> found = compare(load_sample_image("flower.jpg"), "demo:imagenet", methods=["gradcam", "layercam"])
    >>> [explanation.method for explanation in found.explanations]
    ['gradcam', 'layercam']
    """
    source = image if may_be_video(image) else load_image(image)
    explainer = Explainer(load(model, processor=processor, device=device, dtype=dtype), "gradcam", layers, reshape)
    picture = explainer.loaded.opened(source)
    chosen = quick_methods(explainer, picture, target, text) if methods is None else method_ids(methods)
    found = explainer.compare(
        picture, chosen, target=target, text=text, aug_smooth=aug_smooth, eigen_smooth=eigen_smooth
    )
    firsts = [explanations[0] for explanations in found]
    return Comparison(firsts, firsts[0].picture)


def method_ids(methods: str | Sequence[str]) -> list[str]:
    """The ids in "a,b,c" or a list, each once; a lone "auto" stays as it is.

    Raises:
        MethodError: none is named, or one does not exist.
    """
    listed = methods.split(",") if isinstance(methods, str) else methods
    named = list(dict.fromkeys(method.strip() for method in listed if method.strip()))
    if not named:
        raise MethodError("no method is named; `hf-cam methods` lists them")
    if named == ["auto"]:
        return named
    return [get_method(method).id for method in named]


def _particular(method: Method) -> bool:
    """Whether a method is not defined for every target and network: it contrasts classes, or takes biases apart."""
    return method.retarget is not same_target or "gradient_terms" in method.needs


def quick_methods(
    explainer: Explainer | None = None, image: Picture | None = None, target: Any = None, text: Any = None
) -> list[str]:
    """The methods that run no forward a channel, as Score-CAM does for minutes.

    Without a model those that are defined for every one; with a model those made for attention too, where a try on this
    image shows that they are defined.
    """

    def is_defined(method: str) -> bool:
        assert explainer is not None
        assert image is not None
        try:
            explainer.compare(image, [method], target=target, text=text)
        except MethodError:
            return False
        return True

    quick = [method for method in list_methods() if RERUNS not in get_method(method).needs]
    if explainer is not None and image is not None:
        quick = [method for method in quick if not _particular(get_method(method)) or is_defined(method)]
    if explainer is None or image is None or not is_defined("rollout"):
        return [method for method in quick if not get_method(method).needs_attention]
    return quick if is_defined("legrad") else [method for method in quick if method != "legrad"]
