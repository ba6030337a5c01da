"""Several methods on one image, side by side."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from PIL import Image
from torch import Tensor, nn

from hf_cam.doors import door
from hf_cam.errors import ImageError, MethodError
from hf_cam.explainer import Explainer
from hf_cam.explanation import Explanation
from hf_cam.images.drawing import save_picture
from hf_cam.images.reading import load_image
from hf_cam.images.sheet import Tile, balanced, sheet
from hf_cam.images.style import Drawing, Style
from hf_cam.images.videos import may_be_video
from hf_cam.methods import get_method
from hf_cam.methods.registry import BUDGET, methods_within
from hf_cam.models.loading import Labels, LoadedModel, Output, load
from hf_cam.request import Request, check_budget, check_count, listed_names
from hf_cam.results.grid import method_name
from hf_cam.target_layers.named import Layers
from hf_cam.targets import entries_of

WIDEST = 6
"""Up to how many pictures a row holds all methods for one target."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """One image explained by several methods.

    Args:
        explanations: One per method and target: target by target, in the order of the methods.
        image: The caller's image, upright and in RGB; for a video, a sheet of frames.
        skipped: The ids of methods that are not defined for the model, the image or a target, each with the reason.
        targets: The number of targets.
    """

    explanations: list[Explanation]
    image: Image.Image = field(repr=False)
    skipped: dict[str, str] = field(default_factory=dict, repr=False)
    targets: int = 1

    @door()
    def grid(
        self,
        columns: int | None = None,
        alpha: float = 0.5,
        colormap: str | int | None = None,
        **drawing: Unpack[Drawing],
    ) -> Image.Image:
        """The image and each method's overlay under its name, with a legend.

        Args:
            columns: How many stand in a row; where not given, an almost square grid, or for several targets a row per
                target, if it does not get too wide.
            alpha, colormap, drawing: As in `hf_cam.overlay`.

        Raises:
            OptionError: a setting is invalid.
        """
        style = Style.of(alpha, colormap, self.explanations[0].scale, drawing)
        if columns is not None:
            check_count("columns", columns)
        plain: Drawing = {**drawing, "colorbar": False}
        tiles = [self._tile(one, one.overlay(alpha, colormap, **plain)) for one in self.explanations]
        each, image = len(tiles) // self.targets, Tile(self.image, "image")
        if self.targets == 1 or each + 1 > WIDEST or columns is not None:
            return sheet([image, *tiles], columns or balanced(len(tiles) + 1), style)
        rows = [[image, *tiles[start : start + each]] for start in range(0, len(tiles), each)]
        return sheet([tile for row in rows for tile in row], each + 1, style)

    def _tile(self, one: Explanation, picture: Image.Image) -> Tile:
        name = method_name(one.method)
        if self.targets == 1:
            return Tile(picture, name)
        return Tile(picture, name, (f"{one.label}: {one.score:.3g} {one.score_kind}",))

    @door(ImageError)
    def save(self, path: str | Path, columns: int | None = None, **drawing: Any) -> Path:
        """Write the grid as a picture.

        Args:
            path: The file.
            columns, drawing: As in `grid`.

        Raises:
            ImageError: the file extension is not a picture format.
        """
        return save_picture(self.grid(columns, **drawing), path)

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
    signed: bool = False,
    method_options: Mapping[str, Any] | None = None,
    processor: Any = None,
    labels: Labels | None = None,
    output: Output = "auto",
    device: str | torch.device | int | None = None,
    dtype: torch.dtype | str | None = None,
) -> Comparison:
    """Explain one image by several methods with a single forward, or with one per target.

    Args:
        image: A path, URL, PIL image or array.
        model: A Hub id, a folder, `demo:NAME`, a loaded model, or what `hf_cam.load` returned.
        methods: Ids from `hf_cam.list_methods()`; by default all methods that are defined here and within the budget.
        budget: The number of forwards up to which a method is taken by default (Score-CAM takes one per channel);
            see `hf_cam.methods.Method.cost`. A method that is named in `methods` is taken whatever it costs.
        target: As in `hf_cam.explain`. With several targets, such as `[None, "pug"]` for what the model says beside
            what was expected, a method that is not defined for one of them is left out for all.
        text, input_points, input_labels, input_boxes, layers, reshape: As in `hf_cam.explain`; of several prompts the
            first.
        threshold, aug_smooth, eigen_smooth, signed: As in `hf_cam.explain`.
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
        signed=signed,
        method_options=method_options,
    )
    chosen = method_ids(methods, budget, request)
    source = image if may_be_video(image) else load_image(image)
    loaded = load(model, processor=processor, labels=labels, output=output, device=device, dtype=dtype)
    picture = loaded.opened(source)
    explainer = Explainer(replace(loaded, example=picture), "gradcam", layers, reshape)
    return compared(explainer, picture, chosen, request, named=methods is not None)


def compared(explainer: Explainer, image: Any, methods: Sequence[str], request: Request, *, named: bool) -> Comparison:
    """The comparison of several methods on one image, for one or several targets.

    Args:
        explainer: The model.
        image: As `LoadedModel.opened` returns it.
        methods: Ids.
        request: What to explain; of what the model itself finds, the first.
        named: Whether the caller named the methods, so that one that is not defined is an error.

    Raises:
        MethodError: a named method is not defined here, or none is.
    """
    explainer.checked(request, {})
    first = None if entries_of(request.target) is None else 1
    singles = [replace(single, top_k=first) if single.target is None else single for single in request.singly()]
    by_target, skipped = list[dict[str, Explanation]](), dict[str, str]()
    for single in singles:
        left = [method for method in methods if method not in skipped]
        if named:
            found = explainer.compare(image, left, single)
        else:
            found, reasons = explainer.compare_defined(image, left, single)
            skipped |= reasons
        by_target.append({explanations[0].method: explanations[0] for explanations in found})
    kept = [name for name in by_target[-1] if all(name in found for found in by_target)]
    if not kept:
        raise MethodError(f"no method is defined for all targets: {'; '.join(dict.fromkeys(skipped.values()))}")
    listed = [found[name] for found in by_target for name in kept]
    return Comparison(listed, listed[0].picture, skipped, len(singles))


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
