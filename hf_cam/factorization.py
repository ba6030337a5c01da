"""Deep feature factorization: a few concepts that a batch of images is composed of, and where each one lies."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from hf_cam.cam import CAM, check_names
from hf_cam.capture.capture import capture
from hf_cam.capture.inputs import model_inputs_of, one_image
from hf_cam.capture.replay import tail_of
from hf_cam.doors import door
from hf_cam.errors import HFCamError, LayoutError, MethodError
from hf_cam.heads import ClassificationHead, head_of
from hf_cam.heads.establish import reading_of
from hf_cam.images.lettering import length, write
from hf_cam.images.reading import load_image
from hf_cam.layouts import NCHW, AnyLayout, Layout, Size
from hf_cam.maps import resize
from hf_cam.methods.concepts import factorize
from hf_cam.models.loading import LoadedModel
from hf_cam.models.traits import traits_of
from hf_cam.outputs import sample_of
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.named import Layers

LETTERS = 14
"""The size of names in a legend."""


@dataclass(frozen=True, eq=False)
class Factorization:
    """The concepts of a batch.

    Args:
        concepts: `[k, C]`, non-negative: the channel vector of each concept.
        strengths: `[B, k, h, w]`, non-negative: how much of each concept lies in each cell, before any normalization.
        heatmaps: `[B, k, H, W]` in [0, 1]: the strengths in the model's pixels, relative to each concept's peak in the
            batch.
        classes: For each concept, the best classes and their probabilities when every cell holds only that concept;
            empty if the model has no class logits, or the layout is a function.
    """

    concepts: Tensor = field(repr=False)
    strengths: Tensor = field(repr=False)
    heatmaps: Tensor = field(repr=False)
    classes: list[list[tuple[int, float]]]

    def picture(
        self, image: Any, index: int = 0, labels: dict[int, str] | None = None, alpha: float = 0.6
    ) -> Image.Image:
        """The image with each pixel in the colour of its strongest concept, and a legend of the concepts' classes.

        Args:
            image: The part of the image that the model saw, in any form that `hf_cam.load_image` takes.
            index: The index of the image in the batch.
            labels: Class names by index.
            alpha: Opacity of the colours in [0, 1].
        """
        picture = load_image(image)
        maps = resize(self.heatmaps[index].cpu(), (picture.height, picture.width)).numpy()
        colours = np.array([concept_colour(i, len(maps)) for i in range(len(maps))], np.float32)
        strongest = maps.argmax(0)
        opacity = alpha * np.take_along_axis(maps, strongest[None], 0)[0][..., None]
        mixed = (1 - opacity) * np.asarray(picture, np.float32) + opacity * colours[strongest]
        return _with_legend(Image.fromarray(np.rint(mixed).astype(np.uint8)), colours, self._names(labels))

    def _names(self, labels: dict[int, str] | None) -> list[str]:
        def name(found: list[tuple[int, float]]) -> str:
            return ", ".join(f"{(labels or {}).get(i, str(i)).split(',')[0]} {score:.0%}" for i, score in found)

        return [name(found) for found in self.classes] or [f"concept {i + 1}" for i in range(len(self.concepts))]


class DeepFeatureFactorization:
    """Non-negative matrix factorization of a layer's cells over a batch (scikit-learn's `NMF`).

    Negative activations count as zero. The model itself names the concepts: every cell is set to one concept, and only
    the tail after the layer is rerun.

    Paper: Collins et al., Deep Feature Factorization for Concept Discovery, ECCV 2018, arXiv:1806.10206.

    Args:
        model: Any vision model; it is left unchanged.
        layers: The layer, as a dotted name or a module; inferred by default.
        reshape: `activation -> [B, C, h, w]`; inferred by default.

    >>> from transformers import ResNetConfig, ResNetForImageClassification
    >>> model = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).eval()
    >>> DeepFeatureFactorization(model)(torch.rand(2, 3, 64, 96), components=3).heatmaps.shape
    torch.Size([2, 3, 64, 96])
    """

    @door()
    def __init__(
        self,
        model: nn.Module,
        layers: Layers | None = None,
        reshape: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._cam = CAM(model, "eigencam", layers, reshape)

    @door()
    def __call__(
        self, pixel_values: Tensor, components: int = 5, top_k: int = 2, seed: int = 0, **model_inputs: Any
    ) -> Factorization:
        """Factorize a batch.

        Args:
            pixel_values: `[B, C, H, W]`, preprocessed as the model expects.
            components: The number of concepts, k.
            top_k: How many classes to name for each concept.
            seed: Seed for the initialization of the factorization.
            model_inputs: Other inputs of the forward.

        Raises:
            OptionError: `components` is less than 1, or more than the number of cells or of channels.
        """
        check_names(self._cam.model, model_inputs, ("pixel_values", "components", "top_k", "seed"))
        model, adapter = self._cam.model, self._cam.adapter_for(pixel_values, model_inputs)
        inputs = model_inputs_of(model, pixel_values, model_inputs)
        size: Size = (pixel_values.shape[-2], pixel_values.shape[-1])
        with capture(model, adapter.layers[:1], inputs, gradients=False) as captured:
            cells = adapter.spatial(captured.activations[0], size, adapter.layers[0], len(pixel_values))
        if cells.ndim != 4:
            raise MethodError("concepts are found in single pictures, not in videos, volumes or several views")
        concepts, strengths = factorize(cells, components, seed)
        shown = resize(strengths, size)
        peak = shown.amax((0, 2, 3), keepdim=True)
        heatmaps = shown / torch.where(peak > 0, peak, torch.ones_like(peak))
        # Each concept at its maximum strength in the batch.
        shown_alone = concepts * strengths.amax((0, 2, 3))[:, None]
        return Factorization(concepts, strengths, heatmaps, _named(model, adapter, inputs, shown_alone, top_k))


def _named(
    model: nn.Module, adapter: Adapter, inputs: dict[str, Any], concepts: Tensor, top_k: int
) -> list[list[tuple[int, float]]]:
    """The best classes of each concept `[k, C]`, from the tail of the model with that concept in every cell."""
    layout, pixels = adapter.layouts[0], inputs["pixel_values"]
    with tail_of(model, adapter.layers[0], inputs) as tail:
        if isinstance(layout, AnyLayout):
            layout = layout.reading(tail.activations.shape, (pixels.shape[-2], pixels.shape[-1]))
        if not isinstance(layout, Layout) or layout.suffix is None:
            return []  # a caller's function cannot be inverted, and padding has no concept
        clean = tail.activations[:1].expand(len(concepts), *tail.activations.shape[1:]).clone()
        concepts = concepts.to(clean)
        if layout.axes == NCHW:
            clean[:] = concepts[:, :, None, None]
        elif clean.ndim == 4:
            clean[:] = concepts[:, None, None]
        else:
            clean[:, layout.prefix : clean.shape[1] - layout.suffix] = concepts[:, None]
        try:
            outputs = tail(clean, 0)
        except LayoutError:
            return []
    scores = _scores(model, inputs, [sample_of(outputs, i, len(concepts)) for i in range(len(concepts))])
    if scores is None:
        return []
    best = scores.topk(min(top_k, scores.shape[1]))
    return [
        list(zip(indices, values, strict=True))
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _scores(model: nn.Module, inputs: dict[str, Any], samples: Sequence[Any]) -> Tensor | None:
    """The scores of the classes `[k, K]` in the outputs of `k` images; None if the model is no classifier."""
    loaded = LoadedModel(model, None, traits_of(model).id2label, given=one_image(inputs, 0))
    try:
        if not isinstance(head_of(loaded), ClassificationHead):
            return None
        reading = reading_of(loaded, samples[0])
        scores = [reading.scores(sample) for sample in samples]
    except HFCamError:
        return None
    return torch.stack(scores) if scores[0].ndim == 1 else None


def concept_colour(index: int, count: int) -> tuple[int, int, int]:
    """The colour of a concept: evenly spaced hues of alternating lightness."""
    red, green, blue = colorsys.hls_to_rgb(index / count, 0.55 if index % 2 else 0.45, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _with_legend(picture: Image.Image, colours: np.ndarray, names: Sequence[str]) -> Image.Image:
    line = 24
    width = 40 + max(round(length(name, LETTERS)) for name in names)
    sheet = Image.new("RGB", (picture.width + width, max(picture.height, line * len(names) + 8)), "white")
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for i, (colour, name) in enumerate(zip(colours, names, strict=True)):
        top = 6 + i * line
        draw.rectangle((picture.width + 10, top + 2, picture.width + 24, top + 16), fill=tuple(int(c) for c in colour))
        write(draw, (picture.width + 31, top), name, LETTERS, "black")
    return sheet
