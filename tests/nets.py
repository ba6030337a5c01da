"""Tiny models of random weights that several files of tests look at; `benchmarks.tiny_models` holds their settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import transformers as hf
from PIL import Image
from torch import Tensor, nn

from benchmarks.tiny_models import VOCABULARY, settings, words_tokenizer
from hf_cam.explainer import Explainer
from hf_cam.explanation import Explanation
from hf_cam.methods import list_methods
from hf_cam.models.loading import LoadedModel
from hf_cam.testing.metrics import PATCH
from pictures import SIZE

FOR_CLASSES = [method for method in list_methods() if method not in ("cam", "d-rise")]
"""Methods that are defined for every classifier here; "cam" needs a pooling of all cells, "d-rise" detections."""
LABELS = {0: "tabby, tabby cat", 1: "tiger cat", 2: "espresso", 3: "lion, king of beasts", 4: "tripod"}
THINGS = {0: "cat", 1: "dog", 2: "red cup"}
"""Labels that are single words of `VOCABULARY`."""


def tiny(model_class: Any, labels: Mapping[int, str] | None = None, **own: Any) -> Any:
    """A model of this class in evaluation mode, with random weights; `own` are settings of its config."""
    torch.manual_seed(0)
    config_class = model_class.config_class
    if labels:
        own |= {"id2label": dict(labels), "label2id": {label: index for index, label in labels.items()}}
    return model_class(config_class(**settings(config_class.model_type, config_class, **own))).eval()


def spread(model: Any, std: float = 0.1) -> Any:
    """The model with wider weights than the usual start, so that maps are not all but flat."""
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise * std if parameter.ndim > 1 else parameter.data + noise * std / 3
    return model


# Classifiers and towers ----------------------------------------------------------------------------------------------

DEEPER = {"num_hidden_layers": 3, "num_labels": 7}
PLAIN = {"image_size": SIZE, **DEEPER}
TIMM = {"img_size": SIZE, "depth": 3, "embed_dim": 32, "num_heads": 2, "num_classes": 7}
TOWERS = {
    "text_config": {"num_hidden_layers": 3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "vision_config": {"num_hidden_layers": 3, "image_size": 64},
}

NETS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: tiny(hf.ViTForImageClassification, **PLAIN),
    "swin": lambda: tiny(
        hf.SwinForImageClassification, image_size=SIZE, embed_dim=16, depths=[1] * 3, num_heads=[1, 2, 2], num_labels=7
    ),
    "convnext": lambda: tiny(hf.ConvNextForImageClassification, num_labels=7),
    "resnet": lambda: tiny(
        hf.ResNetForImageClassification, hidden_sizes=[8, 16, 32], depths=[1] * 3, layer_type="basic", num_labels=7
    ),
    "deit": lambda: tiny(hf.DeiTForImageClassification, **PLAIN),
    "beit": lambda: tiny(hf.BeitForImageClassification, **PLAIN, out_indices=[1], use_relative_position_bias=True),
    "dinov2": lambda: tiny(hf.Dinov2ForImageClassification, image_size=64, mlp_ratio=2, **DEEPER),
    "dinov2-registers": lambda: tiny(
        hf.Dinov2WithRegistersForImageClassification, image_size=64, mlp_ratio=2, use_swiglu_ffn=True, **DEEPER
    ),
    "dinov3": lambda: tiny(hf.DINOv3ViTModel, num_hidden_layers=3, num_register_tokens=4, use_gated_mlp=True),
    "clip": lambda: tiny(hf.CLIPModel, **TOWERS),
    "siglip": lambda: tiny(hf.SiglipModel, **TOWERS),
    "siglip-mean": lambda: tiny(hf.SiglipForImageClassification, **TOWERS, num_labels=7),
    "yolos": lambda: tiny(
        hf.YolosForObjectDetection,
        image_size=SIZE,
        num_hidden_layers=3,
        num_detection_tokens=5,
        num_labels=3,
        use_mid_position_embeddings=False,
    ),
    "detr": lambda: tiny(
        hf.DetrForObjectDetection,
        backbone_config=hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]),
        encoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        num_queries=5,
        num_labels=3,
    ),
    "timm-vit": lambda: timm.create_model("vit_tiny_patch16_224", **TIMM, qk_norm=True),
    "timm-eva": lambda: timm.create_model("eva02_tiny_patch14_224", **TIMM, patch_size=16),
    "timm-pool": lambda: timm.create_model("vit_base_patch16_siglip_224", **TIMM),
}
"""Classifiers and their likes for pictures of `SIZE`, three blocks or stages deep."""
OF_EVERY_LAYOUT = ("convnext", "resnet", "swin", "vit")
"""Feature maps, tokens of windows, and tokens behind a class token."""


def make(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """One of `NETS`, the same at every call."""
    torch.manual_seed(3)
    return spread(NETS[name]()).to(dtype).eval()


# Models with their real processors, ready to explain -----------------------------------------------------------------

LONGEST = {"shortest_edge": 128, "longest_edge": 192}
SQUARE = {"height": 64, "width": 64}
WHOLE = {"height": SIZE[0], "width": SIZE[1]}
TEXT = {
    "vocab_size": len(VOCABULARY), "max_position_embeddings": 16,
    "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0,
}  # fmt: skip
VISION = {"image_size": 64, "patch_size": 8}


def ready(model_class: Any, processor: Any, labels: Mapping[int, str] | None = THINGS, **own: Any) -> LoadedModel:
    """A tiny model with this processor and a tokenizer of words."""
    model = spread(tiny(model_class, labels, **own))
    return LoadedModel(model, processor, dict(labels or {}), words_tokenizer())


def explained(loaded: LoadedModel, image: Image.Image, method: str = "auto", **wanted: Any) -> list[Explanation]:
    """What the front door does, for a model that is already loaded."""
    return next(iter(Explainer(loaded, method)([image], **wanted)))


def classifier(labels: Mapping[int, str] = THINGS, **own: Any) -> LoadedModel:
    return ready(hf.ViTForImageClassification, hf.ViTImageProcessor(size=WHOLE), labels, image_size=SIZE, **own)


def embedder() -> LoadedModel:
    return ready(hf.Dinov2Model, hf.BitImageProcessor(size=WHOLE, do_center_crop=False), None, **VISION)


def clip() -> LoadedModel:
    processor = hf.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE)
    return ready(hf.CLIPModel, processor, None, text_config=TEXT, vision_config=VISION)


def siglip() -> LoadedModel:
    return ready(hf.SiglipModel, hf.SiglipImageProcessor(size=SQUARE), None, text_config=TEXT, vision_config=VISION)


def siglip2(patches: int = 47) -> LoadedModel:
    """Pictures come cut into patches, as many as their shape allows, with padding behind them."""
    processor = hf.Siglip2ImageProcessor(patch_size=16, max_num_patches=patches)
    return ready(hf.Siglip2Model, processor, None, text_config=TEXT, vision_config={"num_patches": 16})


def detr() -> LoadedModel:
    return ready(hf.DetrForObjectDetection, hf.DetrImageProcessor(size=LONGEST))


def sure_detr() -> LoadedModel:
    """The tiny DETR, made sure of several random findings."""
    loaded = detr()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if "query_position" in name or "decoder" in name or "bbox" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    loaded.model.class_labels_classifier.weight.data *= 20
    return loaded


def owl() -> LoadedModel:
    processor = hf.OwlViTImageProcessor(size=SQUARE, do_center_crop=False)
    return ready(hf.OwlViTForObjectDetection, processor, None, text_config=TEXT, vision_config=VISION)


def segformer() -> LoadedModel:
    return ready(hf.SegformerForSemanticSegmentation, hf.SegformerImageProcessor(size=WHOLE))


def maskformer() -> LoadedModel:
    return ready(hf.MaskFormerForInstanceSegmentation, hf.MaskFormerImageProcessor(size=WHOLE, size_divisor=32))


def depth() -> LoadedModel:
    return ready(hf.GLPNForDepthEstimation, hf.GLPNImageProcessor(size_divisor=32), None)


def vilt() -> LoadedModel:
    return ready(hf.ViltForQuestionAnswering, hf.ViltImageProcessor(size={"shortest_edge": 96}), **TEXT, image_size=64)


def blip() -> LoadedModel:
    processor = hf.BlipImageProcessor(size=WHOLE)
    return ready(hf.BlipForQuestionAnswering, processor, None, text_config=TEXT, vision_config=VISION)


def blip2() -> LoadedModel:
    words = len(VOCABULARY) + 1  # the last stands for the picture
    language = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32, "num_hidden_layers": 1}
    language |= {"num_attention_heads": 2} | TEXT | {"vocab_size": words, "max_position_embeddings": 64}
    return ready(
        hf.Blip2ForConditionalGeneration,
        hf.BlipImageProcessor(size=SQUARE),
        None,
        vision_config=VISION,
        qformer_config={"vocab_size": words, "encoder_hidden_size": 32},
        text_config=hf.OPTConfig(**language),
        image_token_index=words - 1,
    )


# Nets whose maps can be computed by hand -----------------------------------------------------------------------------


class Cubic(nn.Module):
    """Class 0 is the sum of the features' cubes, `[B, 4, h, w]`, class 1 the sum of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 4, 16, stride=16)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return torch.stack([self.features(pixel_values).pow(3).sum((1, 2, 3)), pixel_values.sum((1, 2, 3))], 1)


READ = torch.zeros(24, 32, dtype=torch.bool)
READ[PATCH] = True
"""Where the patch lies that the laws' `PatchReader` reads."""
