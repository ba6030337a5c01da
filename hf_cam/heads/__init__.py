"""Heads: which scalars of a model's output can be explained, for every task of transformers' auto classes."""

from __future__ import annotations

from functools import cache

from torch import nn

from hf_cam.errors import ModelError
from hf_cam.heads.base import Head, Subject
from hf_cam.heads.classification import ClassificationHead
from hf_cam.heads.depth import DepthHead
from hf_cam.heads.detection import (
    DetectionHead,
    ListedDetectionHead,
    PhraseDetectionHead,
    PromptDetectionHead,
    TaskDetectionHead,
)
from hf_cam.heads.questions import QuestionHead, WrittenAnswerHead
from hf_cam.heads.segmentation import MaskHead, SemanticHead, TaskMaskHead, TextHead
from hf_cam.heads.similarity import EmbeddingHead, PromptHead, VideoPromptHead
from hf_cam.models.loading import LoadedModel
from hf_cam.models.traits import ModelTraits, traits_of
from hf_cam.request import Request

__all__ = [
    "ClassificationHead",
    "Head",
    "PromptHead",
    "Request",
    "Subject",
    "head_kind",
    "head_of",
    "listed_kind",
]

TASKS: dict[str, type[Head]] = {
    "IMAGE_CLASSIFICATION": ClassificationHead,
    "VIDEO_CLASSIFICATION": ClassificationHead,
    "ZERO_SHOT_IMAGE_CLASSIFICATION": PromptHead,
    "ZERO_SHOT_OBJECT_DETECTION": PromptDetectionHead,
    "UNIVERSAL_SEGMENTATION": MaskHead,
    "INSTANCE_SEGMENTATION": MaskHead,
    "OBJECT_DETECTION": DetectionHead,
    "SEMANTIC_SEGMENTATION": SemanticHead,
    "DEPTH_ESTIMATION": DepthHead,
    "VISUAL_QUESTION_ANSWERING": QuestionHead,
}
"""transformers' auto mappings (`MODEL_FOR_..._MAPPING_NAMES`) and the head of their models."""


def head_of(loaded: LoadedModel) -> Head:
    """The head of a loaded model.

    Raises:
        ModelError: it finds things in videos, frame by frame.
    """
    kind = head_kind(loaded.model)
    if loaded.takes_videos and not issubclass(kind, ClassificationHead | EmbeddingHead):
        raise ModelError(
            f"{loaded.traits.class_name} finds things in videos, explained through hf_cam.CAM alone: "
            "pass it prepared frames and a target, a callable from one sample's output to a scalar"
        )
    return kind(loaded)


def head_kind(model: nn.Module) -> type[Head]:
    """Which kind of head a model has: by the task under which transformers lists its class, or one it inherits from.

    A transformers model under none of them embeds images; any other module is taken for a classifier, but for
    torchvision's detectors.
    """
    traits = traits_of(model)
    for parent in type(traits.module).__mro__:
        if (kind := _listed().get(parent.__name__)) is not None:
            return _variant(traits, kind)
        if parent.__module__.startswith("torchvision.models.detection."):
            return ListedDetectionHead
    bare = traits.is_transformers and not traits.class_name.startswith("TimmWrapperFor")
    return EmbeddingHead if bare and not traits.has_classifier else ClassificationHead


def listed_kind(architecture: str) -> type[Head] | None:
    """The kind under whose task transformers lists a class, known without loading a model; None where it lists it not.

    >>> listed_kind("ViTForImageClassification").task
    'image-classification'
    """
    return _listed().get(architecture)


def _variant(traits: ModelTraits, kind: type[Head]) -> type[Head]:
    """Detectors with prompts differ in how they take them, answering models in whether they choose or write.

    One segmenter does several tasks, and is told which; detectors of text return a map and no boxes.
    """
    if kind is QuestionHead:
        return WrittenAnswerHead if traits.writes else kind
    if kind is PromptHead and traits.takes_videos:
        return VideoPromptHead
    if kind is MaskHead and traits.accepts("task_inputs"):
        return TaskMaskHead
    if kind is DetectionHead and traits.declares("finds_text"):
        return TextHead
    if kind is not PromptDetectionHead:
        return kind
    if traits.accepts("classes_input_ids"):
        return TaskDetectionHead
    return PhraseDetectionHead if traits.accepts("token_type_ids") else kind


@cache
def _listed() -> dict[str, type[Head]]:
    """Class names of transformers and their heads."""
    from transformers.models.auto import modeling_auto

    found: dict[str, type[Head]] = {}
    for task, kind in TASKS.items():
        for names in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").values():
            for name in (names,) if isinstance(names, str) else names:
                found.setdefault(name, kind)
    return found
