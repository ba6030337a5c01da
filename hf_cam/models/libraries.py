"""Models of other libraries that are called in their own ways: ultralytics' networks, open_clip's pairs of towers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from hf_cam.errors import ModelError
from hf_cam.models.traits import comes_from, unwrap

SIDE, STRIDE, GREY = 640, 32, 114
"""How ultralytics prepares images: the longer side, of which multiple both are, and what fills the rest."""
CLIP_VOCABULARY = 49408


class PairOfTowers(nn.Module):
    """A model with `encode_image` and `encode_text`, called as transformers' CLIP is; its modules keep their names.

    Args:
        pair: The model; it is shared, not copied.
    """

    def __init__(self, pair: nn.Module) -> None:
        super().__init__()
        # Its own tables of children and parameters, so that a layer has the name that it has in the model itself.
        for table in ("_modules", "_parameters", "_buffers"):
            self.__dict__[table] = pair.__dict__[table]
        self.__dict__["pair"] = pair

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor | None = None, text: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`logits_per_image` `[B, P]` and the embeddings `[B, D]`, `[P, D]`, of length 1."""
        pair: Any = self.__dict__["pair"]
        image = functional.normalize(pair.encode_image(pixel_values), dim=-1)
        tokens = text if input_ids is None else input_ids
        if tokens is None:
            return {"image_embeds": image}
        texts = functional.normalize(pair.encode_text(tokens), dim=-1)
        bias = getattr(pair, "logit_bias", None)
        logits = pair.logit_scale.exp() * image @ texts.T + (0 if bias is None else bias)
        return {"logits_per_image": logits, "image_embeds": image, "text_embeds": texts}


def adopted(model: nn.Module) -> nn.Module:
    """The model itself, or a pair of image and text towers in a form that can be called by name."""
    module = unwrap(model)
    towers = callable(getattr(module, "encode_image", None)) and callable(getattr(module, "encode_text", None))
    return PairOfTowers(module) if towers and isinstance(getattr(module, "logit_scale", None), Tensor) else model


def library_layers(model: nn.Module) -> tuple[str, ...] | None:
    """The end of the backbone of a network of ultralytics, through which all its detections go; None for any other.

    Its head reads three grids, each for detections of another size, so that no later layer serves all of them.
    """
    module = unwrap(model)
    described = getattr(module, "yaml", None) if comes_from(module, "ultralytics") else None
    if not isinstance(described, dict) or not described.get("backbone"):
        return None
    layer = f"model.{len(described['backbone']) - 1}"
    return (layer,) if any(name == layer for name, _ in module.named_modules()) else None


def library_processor(module: nn.Module) -> Any:
    """The preprocessing that a module's own library has for it; None if it has none."""
    if comes_from(module, "ultralytics"):
        settings = getattr(module, "args", None)
        side = settings.get("imgsz", SIDE) if isinstance(settings, dict) else SIDE
        return partial(letterboxed, side=side if isinstance(side, int) else SIDE)
    pair = module.__dict__.get("pair")
    if pair is not None and comes_from(pair, "open_clip"):
        from open_clip import get_model_preprocess_cfg
        from open_clip.transform import PreprocessCfg, image_transform_v2

        return image_transform_v2(PreprocessCfg(**get_model_preprocess_cfg(pair)), is_train=False)
    return None


def library_tokenizer(module: nn.Module) -> Any:
    """The tokenizer that a pair of towers from open_clip was trained with; None for any other module."""
    pair = module.__dict__.get("pair")
    if pair is None or not comes_from(pair, "open_clip"):
        return None
    return Tokens(pair.context_length, pair.vocab_size)


class Tokens:
    """open_clip's own tokenizer, called as transformers' are.

    Args:
        length: Tokens per text.
        vocabulary: How many tokens the text tower has.
    """

    def __init__(self, length: int, vocabulary: int) -> None:
        self.length, self.vocabulary = length, vocabulary

    def __call__(self, texts: Sequence[str], **settings: Any) -> dict[str, Tensor]:
        """The tokens `[P, L]` as `input_ids`; the settings of other tokenizers have no effect.

        Raises:
            ModelError: the text tower has a vocabulary of another tokenizer.
        """
        del settings
        if self.vocabulary != CLIP_VOCABULARY:
            raise ModelError(
                f"the text tower has {self.vocabulary} tokens, so CLIP's tokenizer does not suit it: pass processor= "
                "with the attribute `tokenizer`, a function from texts to {'input_ids': tokens [P, L]}"
            )
        import open_clip

        return {"input_ids": open_clip.SimpleTokenizer(context_length=self.length)(list(texts))}


def letterboxed(image: Image.Image, side: int = SIDE) -> Tensor:
    """An image `[3, H, W]` in [0, 1] as ultralytics prepares it: scaled to fit, the rest up to the stride grey.

    >>> letterboxed(Image.new("RGB", (300, 200)), side=64).shape
    torch.Size([3, 64, 64])
    """
    share = side / max(image.size)
    width, height = (max(1, round(length * share)) for length in image.size)
    scaled = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    rows, columns = (-(-length // STRIDE) * STRIDE for length in (height, width))
    canvas = np.full((rows, columns, 3), GREY, np.uint8)
    top, left = (rows - height) // 2, (columns - width) // 2
    canvas[top : top + height, left : left + width] = scaled
    return torch.from_numpy(canvas).permute(2, 0, 1).float() / 255
