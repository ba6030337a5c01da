"""Tiny random vision-language models with their processors, made in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

WORDS = (
    "[PAD]", "[UNK]", "<s>", "</s>", "<image>", "a", "and", "what", "is", "in", "the", "picture", "?", "red", "blue",
    "cup", "kettle", "bag", ".", ",",
)  # fmt: skip
QUESTION = "what is in the picture ?"


def tokenizer(words: tuple[str, ...] = WORDS) -> hf.PreTrainedTokenizerFast:
    """One token per word."""
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip


def tiny_llava(seed: int = 0, **text: Any) -> hf.LlavaForConditionalGeneration:
    """LLaVA with a tower of 6 x 6 cells and a language model of two layers."""
    torch.manual_seed(seed)
    vision = hf.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=48, patch_size=8
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": len(WORDS)}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    llama = hf.LlamaConfig(**{**sizes, **heads, **text}, bos_token_id=2, eos_token_id=3, pad_token_id=0)
    config = hf.LlavaConfig(vision_config=vision, text_config=llama, image_token_id=4, vision_feature_layer=-1)
    model = hf.LlavaForConditionalGeneration(config).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.15)
    return model


def llava_processor() -> hf.LlavaProcessor:
    """Squashes a picture to the tower's square."""
    side = {"height": 48, "width": 48}
    pictures = hf.CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False)
    return hf.LlavaProcessor(
        pictures, tokenizer(), patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def photograph(seed: int = 0) -> Image.Image:
    """Noise, 60 high and 90 wide."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 90, 3), np.uint8))
