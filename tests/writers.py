"""Tiny random vision-language models with their processors, made in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
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


def qwen2_vl() -> tuple[hf.Qwen2VLForConditionalGeneration, hf.Qwen2VLProcessor]:
    """Qwen2-VL, whose positions have three axes, with its whole processor."""
    torch.manual_seed(0)
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    words = tokenizer((*WORDS, *marks))
    words.add_special_tokens({"additional_special_tokens": list(marks)})
    picture, video, start, end = words.convert_tokens_to_ids(list(marks))
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 64, "vocab_size": len(words), "initializer_range": 0.3, "bos_token_id": 2,
            "eos_token_id": 3, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}  # fmt: skip
    vision = {"depth": 2, "embed_dim": 64, "num_heads": 4, "hidden_size": 64}
    ids = {"image_token_id": picture, "video_token_id": video, "vision_start_token_id": start}
    config = hf.Qwen2VLConfig(text_config=text, vision_config=vision, vision_end_token_id=end, **ids)
    pixels = {"size": {"shortest_edge": 28 * 28, "longest_edge": 64 * 28 * 28}}
    template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    processor = hf.Qwen2VLProcessor(
        hf.Qwen2VLImageProcessor(**pixels), words, hf.Qwen2VLVideoProcessor(**pixels), chat_template=template
    )
    return hf.Qwen2VLForConditionalGeneration(config).eval(), processor


def photograph(seed: int = 0) -> Image.Image:
    """Noise, 60 high and 90 wide."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 90, 3), np.uint8))


def byte_level_tokenizer() -> hf.PreTrainedTokenizerFast:
    """Byte-level pairs, whose tokens hold the blank before a word, as those of GPT-2 and its successors."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(WORDS[:5]), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokens.train_from_iterator(["a red cup and a kettle", "what is in the picture ?", "the red bag"] * 4, trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="[PAD]", unk_token="[UNK]", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip


def blip2() -> tuple[hf.Blip2ForConditionalGeneration, hf.Blip2Processor]:
    """BLIP-2, which transformers lists under visual question answering too, with its whole processor."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    language = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32, "num_hidden_layers": 2}
    config = hf.Blip2Config(
        vision_config={**small, "image_size": 48, "patch_size": 8},
        qformer_config={**small, "encoder_hidden_size": 32, "vocab_size": len(WORDS)},
        text_config=hf.OPTConfig(**language, num_attention_heads=2, vocab_size=len(WORDS), pad_token_id=0,
                                 bos_token_id=2, eos_token_id=3, max_position_embeddings=64),
        num_query_tokens=4, image_token_index=4,
    )  # fmt: skip
    model = hf.Blip2ForConditionalGeneration(config).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.15)
    pictures = hf.BlipImageProcessor(size={"height": 48, "width": 48})
    return model, hf.Blip2Processor(pictures, tokenizer(), num_query_tokens=4)
