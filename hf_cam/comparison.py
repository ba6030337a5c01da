"""Several methods on one image, side by side."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from hf_cam.doors import door
from hf_cam.errors import MethodError
from hf_cam.explainer import Explainer
from hf_cam.explanation import Explanation
from hf_cam.images.drawing import DEFAULT_COLORMAP, save_picture
from hf_cam.images.reading import load_image
from hf_cam.images.videos import may_be_video
from hf_cam.methods import get_method
from hf_cam.methods.registry import BUDGET, methods_within
from hf_cam.models.loading import Labels, LoadedModel, Output, load
from hf_cam.request import Request, check_budget, check_count, listed_names
from hf_cam.target_layers.named import Layers

TILE, MARGIN, TITLE = 320, 8, 28


@dataclass(frozen=True, eq=False)
class Comparison:
    """One image explained by several methods from one forward.

    Args:
        explanations: One per method, for the same target.
        image: The caller's image, upright and in RGB; for a video, a sheet of frames.
        skipped: The ids of methods that are not defined for the model, the image or the target, each with the reason.
    """

    explanations: list[Explanation]
    image: Image.Image = field(repr=False)
    skipped: dict[str, str] = field(default_factory=dict, repr=False)

    @door()
    def grid(self, columns: int | None = None, alpha: float = 0.5, colormap: str = DEFAULT_COLORMAP) -> Image.Image:
        """The image and each method's overlay under its name, row by row, in an almost square grid by default."""
        pictures = [("image", self.image)]
        pictures += [(get_method(e.method).name, e.overlay(alpha, colormap)) for e in self.explanations]
        if columns is not None:
            check_count("columns", columns)
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
            ImageError: the file extension is not a picture format.
        """
        return save_picture(self.grid(columns), path)

    def _repr_png_(self) -> bytes:
        """The grid as PNG, for notebooks."""
        buffer = io.BytesIO()
        self.grid().save(buffer, format="PNG")
        return buffer.getvalue()


@door()
def compare(
    image: Any,
    model: str | Path | nn.Module | LoadedModel,
    *,
    methods: Sequence[str] | str | None = None,
    budget: float = BUDGET,
    target: Any = None,
    text: str | Sequence[str] | None = None,
    input_points: Any = None,
    input_labels: Any = None,
    input_boxes: Any = None,
    layers: Layers | None = None,
    reshape: Callable[[Tensor], Tensor] | None = None,
    threshold: float | None = None,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    method_options: Mapping[str, Any] | None = None,
    processor: Any = None,
    labels: Labels | None = None,
    output: Output = "auto",
    device: str | torch.device | int | None = None,
    dtype: torch.dtype | str | None = None,
) -> Comparison:
    """Explain one image by several methods with a single forward.

    Args:
        image: A path, URL, PIL image or array.
        model: A Hub id, a folder, `demo:NAME`, a loaded model, or what `hf_cam.load` returned.
        methods: Ids from `hf_cam.list_methods()`; by default all methods that are defined here and within the budget.
        budget: The number of forwards up to which a method is taken by default (Score-CAM takes one per channel);
            see `hf_cam.methods.Method.cost`. A method that is named in `methods` is taken whatever it costs.
        target, text, input_points, input_labels, input_boxes, layers, reshape, threshold, aug_smooth, eigen_smooth: As
            in `hf_cam.explain`; one target, of several prompts the first.
        processor, labels, output, device, dtype: As in `hf_cam.explain`.
        method_options: As in `hf_cam.explain`; each option is passed to the methods that have it.

    Raises:
        MethodError: a method does not exist, none is named, or one is not defined for the target.

    >>> from sklearn.datasets import load_sample_image
    >>> found = compare(load_sample_image("flower.jpg"), "demo:imagenet", methods=["gradcam", "layercam"])
    >>> [explanation.method for explanation in found.explanations]
    ['gradcam', 'layercam']
    """
    request = Request.of(
        target=target,
        text=text,
        input_points=input_points,
        input_labels=input_labels,
        input_boxes=input_boxes,
        threshold=threshold,
        aug_smooth=aug_smooth,
        eigen_smooth=eigen_smooth,
        method_options=method_options,
    )
    chosen = method_ids(methods, budget, request)
    source = image if may_be_video(image) else load_image(image)
    loaded = load(model, processor=processor, labels=labels, output=output, device=device, dtype=dtype)
    picture = loaded.opened(source)
    explainer = Explainer(replace(loaded, example=picture), "gradcam", layers, reshape)
    if methods is None:
        found, skipped = explainer.compare_defined(picture, chosen, request)
    else:
        found, skipped = explainer.compare(picture, chosen, request), {}
    firsts = [explanations[0] for explanations in found]
    return Comparison(firsts, firsts[0].picture, skipped)


def method_ids(
    methods: str | Sequence[str] | None, budget: float = BUDGET, request: Request | None = None
) -> list[str]:
    """The ids in "a,b,c" or a list, without duplicates, "auto" being allowed as the only entry; or those in a budget.

    Args:
        methods: The ids; None for all methods within the budget.
        budget: The number of forwards; see `hf_cam.methods.Method.cost`.
        request: Its method options may change what a method costs.

    Raises:
        MethodError: none is named, or one does not exist.
        OptionError: these are no names, or the budget is no positive number.
    """
    if methods is None:
        check_budget(budget)
        return methods_within(budget, request.method_options if request else {})
    named = list(dict.fromkeys(listed_names("methods", methods)))
    if not named:
        raise MethodError("no method is named; `hf-cam methods` lists them")
    if named == ["auto"]:
        return named
    return [get_method(method).id for method in named]


def quick_methods() -> list[str]:
    """The ids of the methods within the default budget that need no attention, so that they suit most models."""
    return [name for name in methods_within(BUDGET) if not get_method(name).needs_attention]
