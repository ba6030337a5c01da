"""Heads: which scalars of a model's output can be explained, for every task of transformers' auto classes."""

from hf_cam.errors import ModelError, brief

# The order of these imports is the order of registration; if several heads match a model, the last one is used.
from hf_cam.heads.classification import ClassificationHead  # isort: skip
from hf_cam.heads.similarity import EmbeddingHead, PromptHead  # isort: skip
from hf_cam.heads.detection import DetectionHead  # isort: skip
from hf_cam.heads.candidates import CandidateDetectionHead  # isort: skip
from hf_cam.heads.segmentation import MaskHead, SemanticHead  # isort: skip
from hf_cam.heads.depth import DepthHead  # isort: skip
from hf_cam.heads.prompted import PromptedMaskHead  # isort: skip
from hf_cam.heads.keypoints import HeatmapHead, ListedKeypointHead  # isort: skip
from hf_cam.heads.words import WordHead  # isort: skip
from hf_cam.heads.questions import QuestionHead  # isort: skip
from hf_cam.heads.base import Head
from hf_cam.heads.establish import plain_kind
from hf_cam.heads.registry import HEADS, head_kind, listed_kind, register_head, registered_kind
from hf_cam.heads.subjects import Subject
from hf_cam.models.loading import LoadedModel
from hf_cam.request import Request

__all__ = [
    "CandidateDetectionHead",
    "ClassificationHead",
    "DepthHead",
    "DetectionHead",
    "EmbeddingHead",
    "Head",
    "HeatmapHead",
    "ListedKeypointHead",
    "MaskHead",
    "PromptHead",
    "PromptedMaskHead",
    "QuestionHead",
    "Request",
    "SemanticHead",
    "Subject",
    "WordHead",
    "head_kind",
    "head_of",
    "list_heads",
    "listed_kind",
    "register_head",
]


def list_heads() -> list[str]:
    """The ids of all heads, in the order of registration.

    >>> list_heads()[:2]
    ['classification', 'embedding']
    """
    return list(HEADS.records())


def head_of(loaded: LoadedModel, head: str | type[Head] | None = None) -> Head:
    """The head of a loaded model.

    Args:
        loaded: The model.
        head: An id from `list_heads()` or a class of your own, to use instead of the default for the model's class.

    Raises:
        ModelError: there is no such head, or the model detects or segments in videos, frame by frame.
    """
    kind = _kind_for(loaded) if head is None else HEADS.get(head).kind if isinstance(head, str) else head
    if loaded.takes_videos and head is None and not issubclass(kind, ClassificationHead | EmbeddingHead):
        raise ModelError(
            f"{loaded.traits.class_name} detects or segments in videos, which only hf_cam.CAM can explain: "
            "pass it preprocessed frames and a target, a callable from one sample's output to a scalar"
        )
    if not (isinstance(kind, type) and issubclass(kind, Head)):
        raise ModelError(f"a head must be an id or a subclass of hf_cam.heads.Head, not {brief(kind)}")
    return kind(loaded)


def _kind_for(loaded: LoadedModel) -> type[Head]:
    """The kind that the caller declares or that is registered for the class; of another module, it is established."""
    if loaded.output == "embedding":
        return HEADS.get("embedding").kind
    known = registered_kind(loaded.traits)
    if known is not None or loaded.traits.is_transformers:
        return known or head_kind(loaded.model)
    return HEADS.get(plain_kind(loaded)).kind
