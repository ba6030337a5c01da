"""Similarity of an image to prompts (the CLIP family) or to another image (any embedding model)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import Shared, call, model_inputs_of
from hf_cam.devices.transfer import on_host
from hf_cam.errors import TargetError, brief
from hf_cam.heads.base import Head, behind_picture, custom
from hf_cam.heads.registry import register_head
from hf_cam.heads.subjects import COSINE, PROBABILITY, Subject
from hf_cam.images.geometry import Geometry
from hf_cam.images.reading import is_data_uri, is_file, is_url
from hf_cam.images.videos import Video, may_be_video
from hf_cam.outputs import embedding_of, sample_of, similarities_of
from hf_cam.request import Request
from hf_cam.targets import EmbeddingNorm, EmbeddingSimilarity, PromptSimilarity, Target, index_of

TEMPLATE = "a photo of a {}"
"""Caption for a bare word, because the models were trained on captions."""

LENGTH, SHARE, SIMILARITY = "length of the embedding", "share among the prompts", "similarity"


def sentence(prompt: str) -> str:
    """The prompt unchanged, or a caption if it is a bare word.

    >>> sentence("kettle"), sentence("a red cup")
    ('a photo of a kettle', 'a red cup')
    """
    return prompt if " " in prompt.strip() else TEMPLATE.format(prompt.strip())


@register_head("embedding", models=["open_clip.*", "timm.models._features.*", "timm.models._features_fx.*"])
class EmbeddingHead(Head):
    """A model without a head: the similarity of its embeddings of the image and of another image."""

    task: ClassVar[str] = "image-feature-extraction"

    def check(self, request: Request) -> None:
        """Refuse a request whose target is neither another image, an embedding nor a callable."""
        super().check(request)
        if request.target is None:
            raise TargetError(
                f"{self.model_name} has no classes, it embeds images: pass as target= another image or an embedding "
                f"[D] to compare with, or a callable from one sample's output to a scalar{self._unless}; "
                "hf_cam.CAM(model)(pixel_values) explains the length of the embedding"
            )
        if not (is_image(request.target) or callable(request.target) or is_embedding(request.target)):
            raise TargetError(
                f"{self.model_name} embeds images: a target must be another image, an embedding [D] or a callable, "
                f"not {brief(request.target)}{self._unless}"
            )

    @property
    def _unless(self) -> str:
        """The way out where a network was only taken for one that embeds, for messages."""
        return "" if self.loaded.traits.is_transformers else "; if it is a classifier, pass output='logits'"

    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """The similarity to the other image or embedding, or the caller's own target."""
        del output, geometry
        target = request.target
        if target is None:
            return [Subject(EmbeddingNorm(), "length of the embedding", score_kind=LENGTH)]
        if is_embedding(target):
            similarity = EmbeddingSimilarity(torch.as_tensor(target).flatten())
            return [Subject(similarity, "like the given embedding", score_kind=COSINE)]
        if not is_image(target):
            return [custom(target)]
        return [Subject(self.similarity(request), f"like {_name(target)}", score_kind=COSINE)]

    def similarity(self, request: Request) -> Target:
        """The cosine similarity to the caller's image."""
        return EmbeddingSimilarity(self._embedding(request))

    def _embedding(self, request: Request) -> Tensor:
        others = self.loaded.given or self.inputs(request)
        inputs = {**others, **self._other(request.target)}
        inputs = model_inputs_of(self.loaded.model, inputs.pop("pixel_values"), inputs)
        with borrowed(self.loaded.module) as module, torch.no_grad():
            outputs = call(module, inputs)
        return embedding_of(sample_of(outputs, 0, 1))

    def _other(self, target: Any) -> dict[str, Tensor]:
        """The inputs of the other image; without a processor, it must be preprocessed already."""
        if self.loaded.processor is not None:
            return self.loaded.inputs([self.loaded.opened(target)])
        if not isinstance(target, Tensor) or not target.is_floating_point():
            raise TargetError(
                f"hf_cam.CAM preprocesses nothing: another image must be a floating tensor [C, H, W], not "
                f"{brief(target)}; hf_cam.explain takes images"
            )
        return {"pixel_values": target if target.ndim > self.loaded.given["pixel_values"].ndim - 1 else target[None]}


@register_head("prompts", tasks=["ZERO_SHOT_IMAGE_CLASSIFICATION"], models=["hf_cam.models.libraries.PairOfTowers"])
class PromptHead(EmbeddingHead):
    """Image and text towers: how well each prompt fits the image."""

    task: ClassVar[str] = "zero-shot-image-classification"
    # A class token attends to few patches, so the mean of the gradient over all patches hardly describes any of them.
    method: ClassVar[str | None] = "hirescam"
    takes_text: ClassVar[bool] = True

    def given(self, inputs: Mapping[str, Any]) -> tuple[Request, Mapping[str, Any]]:
        """The prompt that fits best, of those that the caller tokenized."""
        return Request(text=given_prompts(inputs), top_k=1), inputs

    def check(self, request: Request) -> None:
        """Refuse a request without prompts, or whose target is not one of them."""
        if is_image(request.target) or is_embedding(request.target):
            Head.check(self, request)
            return
        if not request.text:
            raise TargetError(
                f"{self.model_name} compares images with text: pass text= (prompts such as "
                '"a red cup"), or another image as target='
            )
        Head.check(self, request)
        if request.target is not None and not callable(request.target):
            self._prompt(request)

    def inputs(self, request: Request) -> Mapping[str, Any]:
        """The tokenized prompts, shared by all images."""
        encoded = self.loaded.tokens([sentence(prompt) for prompt in request.text] or [TEMPLATE.format("thing")])
        return {name: Shared(value) for name, value in behind_picture(encoded, self.loaded.traits).items()}

    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """One subject per prompt, in the caller's order, or the `top_k` that fit best."""
        if is_image(request.target) or is_embedding(request.target) or _is_own(request.target):
            return super().subjects(output, request, geometry)
        scores, kind = self._scores(output)
        if isinstance(request.target, PromptSimilarity):
            target = request.target
            return [Subject(target, request.text[target.index], scores[target.index], score_kind=kind)]
        chosen = list(range(len(request.text))) if request.target is None else [self._prompt(request)]
        if request.top_k is not None:
            chosen = sorted(chosen, key=lambda index: -scores[index])[: request.top_k]
        return [
            Subject(PromptSimilarity(index), request.text[index], scores[index], score_kind=kind) for index in chosen
        ]

    def _prompt(self, request: Request) -> int:
        """The index of the prompt that the caller's target gives by index or text."""
        target = request.target
        if isinstance(target, str) and target in request.text:
            return request.text.index(target)
        index = int(target) if isinstance(target, str) and target.strip().isdecimal() else index_of(target)
        if index is None:
            raise TargetError(f"target= must be one of the prompts in text= or its index, not {brief(target)}")
        if not 0 <= index < len(request.text):
            raise TargetError(f"no prompt {index}; text= has {len(request.text)}, counted from 0")
        return index

    def _scores(self, output: Any) -> tuple[list[float], str]:
        """The score of each prompt, and of which kind they are.

        The sigmoid of each prompt if the model was trained with one (SigLIP), else the softmax over the prompts. A
        single prompt has no competitors; its score is its cosine similarity, clipped at 0.
        """
        similarities = on_host(similarities_of(output)).float()
        if "video_embeds" in output:
            return similarities.clamp(0).tolist(), SIMILARITY
        if self.loaded.traits.separates_prompts:
            return similarities.sigmoid().tolist(), PROBABILITY
        if len(similarities) > 1:
            return similarities.softmax(0).tolist(), SHARE
        image, text = output.get("image_embeds"), output.get("text_embeds")
        if image is None or text is None or image.ndim != 1 or image.shape[-1] != text.shape[-1]:
            return similarities[:1].sigmoid().tolist(), PROBABILITY
        image, text = on_host(image).float(), on_host(text).float().reshape(-1, len(image))
        return [float(functional.cosine_similarity(image, text[0], 0).clamp(0))], COSINE


@register_head("video-prompts", tasks=["ZERO_SHOT_IMAGE_CLASSIFICATION"], when=lambda traits: traits.takes_videos)
class VideoPromptHead(PromptHead):
    """VideoPrism: how well each prompt fits the video."""

    alone: ClassVar[bool] = True  # in a batch, prompt embeddings could be mistaken for those of as many videos


def given_prompts(inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """Names for the prompts that a caller passes as tokens `[P, L]`."""
    tokens = inputs.get("input_ids", inputs.get("text"))
    count = len(tokens) if isinstance(tokens, Tensor) else 1
    return tuple(f"prompt {index}" for index in range(count))


def _is_own(target: Any) -> bool:
    return callable(target) and not isinstance(target, PromptSimilarity)


def is_image(target: Any) -> bool:
    """Whether a target is another image or video: a picture, an array, a URL, or the path of a file."""
    if isinstance(target, Image.Image | Path | Video):
        return True
    if isinstance(target, np.ndarray | Tensor):
        return target.ndim in (3, 4)
    return isinstance(target, str) and (is_url(target) or is_data_uri(target) or is_file(target))


def is_embedding(target: Any) -> bool:
    """Whether a target is an embedding: floating numbers `[D]` or `[1, D]`."""
    if isinstance(target, np.ndarray):
        return target.dtype.kind == "f" and target.ndim in (1, 2) and target.size == target.shape[-1] > 1
    floating = isinstance(target, Tensor) and target.is_floating_point()
    return floating and target.ndim in (1, 2) and target.numel() == target.shape[-1] > 1


def _name(target: Any) -> str:
    if isinstance(target, str | Path) and not is_data_uri(target):
        return Path(target).name
    return f"the other {'video' if may_be_video(target) else 'image'}"
