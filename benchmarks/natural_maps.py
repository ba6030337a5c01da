"""The map that a model gives without further arguments, through `Explainer`'s head and method, for a noise picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.tiny_models import Case, words_tokenizer
from hf_cam.cam import CAM, Saliency
from hf_cam.capture.inputs import call
from hf_cam.errors import HFCamError
from hf_cam.explainer import Explainer
from hf_cam.handles import GradCAM
from hf_cam.heads import Head
from hf_cam.images.geometry import Axis, Geometry
from hf_cam.models.loading import LoadedModel
from hf_cam.outputs import embedding_of, sample_of
from hf_cam.request import Request
from hf_cam.targets import EmbeddingSimilarity, Target

PROMPTS = ("a red cup", "a kettle")
PICTURES = 4  # with random weights, a picture may hold no evidence for the target
PROMPTED = {"zero-shot-image-classification": 2, "zero-shot-object-detection": 2, "visual-question-answering": 1}
EMBEDS = "image-feature-extraction"
FROM_TEXT = ("input_ids", "attention_mask", "decoder_input_ids")


def first_segment(output: Mapping[str, Tensor]) -> Tensor:
    """The highest class logit of the first query in a video's first frame."""
    return output["class_queries_logits"].flatten(0, -3)[0, 0].amax()


ASKED: dict[str, Target] = {"videomt": first_segment}
"""Model types that detect objects per frame, for which the caller has to name the target."""


LISTED: dict[str, Target] = {"superpoint": lambda output: output["scores"].sum()}
"""Model types that list what they find, each with the score of all of it: the best alone depends on few cells."""


class NoMapError(HFCamError, ValueError):
    """No noise picture gives a valid map."""


def natural_map(case: Case, model: nn.Module, inputs: Mapping[str, Any]) -> Saliency:
    """The map of the first thing that the model's head finds to explain, by hf-cam's default method.

    Args:
        case: The architecture and its head.
        model: From `case.build()`.
        inputs: From `case.inputs(model)`; text inputs are dropped, because the head supplies its own.

    Returns:
        One map of one picture, `[1, 1, H, W]` (`[1, 1, T, H, W]` for a video), that is as large as the picture, finite
        and not constant.

    Raises:
        NoMapError: a map has the wrong size or is not finite, or the maps of all pictures are constant.
        HFCamError: hf-cam refuses, for example with `NoGradientError` if the target does not depend on the layer.
    """
    pictures = {name: value for name, value in inputs.items() if not _from_text(name)}
    asked = ASKED.get(case.model_type)
    explainer = None if asked else Explainer(LoadedModel(model, None, _labels(model), words_tokenizer()))
    for noise in (pictures["pixel_values"], *(_noise(pictures["pixel_values"], seed) for seed in range(1, PICTURES))):
        given = {**pictures, "pixel_values": noise}
        found = (
            _explained(case, explainer, given)
            if explainer
            else CAM(model, "auto").saliency(**given, select=lambda _: [[asked]])
        )
        frames = noise.shape[1:2] if noise.ndim == 5 else ()
        expected = (1, 1, *frames, *case.size)
        if found.maps.shape != expected:
            raise NoMapError(f"the map has the shape {tuple(found.maps.shape)}, expected the picture's, {expected}")
        if not all(raw.isfinite().all() for raw in (*found.raw, found.maps)):
            raise NoMapError("the map is not finite")
        if found.maps.amax() > found.maps.amin():
            return found
    raise NoMapError(f"the maps of all {PICTURES} pictures are constant")


def tensor_map(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """The map that `GradCAM` gives of a model's own inputs with `targets=None`, its words among them.

    Returns:
        `[1, H, W]` of one picture of noise; it has been checked to be finite and not the same everywhere.

    Raises:
        NoMapError: it is none of that on several pictures.
        HFCamError: where hf-cam refuses.
    """
    pixels = inputs["pixel_values"]
    for noise in (pixels, *(_noise(pixels, seed) for seed in range(1, PICTURES))):
        found = GradCAM(model)(**{**inputs, "pixel_values": noise})
        if found.isfinite().all() and found.amax() > found.amin():
            return found
    raise NoMapError(f"an empty map of each of {PICTURES} pictures")


def _explained(case: Case, explainer: Explainer, pictures: Mapping[str, Any]) -> Saliency:
    head = explainer.head
    target = _like_another(explainer.loaded.model, pictures) if case.task == EMBEDS else None
    texts = PROMPTS[: PROMPTED.get(case.task, 0)]
    point = (0.6 * case.size[1], 0.3 * case.size[0]) if head.takes_marks else None
    [request, *_] = head.rounds(Request(target, texts, input_points=point), pictures)
    head.check(request)
    geometry = Geometry(case.size, case.size, Axis(1, 0), Axis(1, 0), (0, 0, *case.size))
    request = head.placed(request, geometry)

    def select(outputs: Any) -> list[list[Target]]:
        return [[_first(head, sample_of(outputs, 0, 1), request, geometry)]]

    return explainer.cam.saliency(**{**pictures, **head.inputs(request)}, select=select)


def _first(head: Head, output: Any, request: Request, geometry: Geometry) -> Target:
    return head.subjects(output, request, geometry)[0].target


def _like_another(model: nn.Module, pictures: Mapping[str, Any]) -> EmbeddingSimilarity:
    other = {**pictures, "pixel_values": _noise(pictures["pixel_values"], PICTURES)}
    with torch.no_grad():
        return EmbeddingSimilarity(embedding_of(sample_of(call(model, other), 0, 1)))


def _noise(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def _from_text(name: str) -> bool:
    return name in FROM_TEXT or name.startswith(("classes_", "tasks_"))


def _labels(model: nn.Module) -> dict[int, str]:
    count = getattr(model.config, "num_labels", None) or 0
    return {index: f"class {index}" for index in range(count)}
