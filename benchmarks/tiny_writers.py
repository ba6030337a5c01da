"""A tiny random model of every type that transformers lists under image-text-to-text.

Configs are shrunk by the names of their fields; `OWN` contains what a type needs beyond that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers.models.auto import modeling_auto

from benchmarks.tiny_models import SMALL

SIZE = (96, 144)
"""Height and width of the picture."""
SIDE, PATCH, MERGE = 96, 8, 2
IMAGE, VIDEO, START, END, BEGIN = 90, 91, 92, 93, 94
"""Ids of special tokens: the placeholder of a picture, that of a video, what starts and ends a picture, and a text."""
PROMPT, ANSWER = (5, 6, 7, 8), (10, 11, 12, 13)

TINY: dict[str, Any] = SMALL | {
    "vocab_size": 100, "max_position_embeddings": 4096, "head_dim": 16, "num_key_value_heads": 2, "depth": 2,
    "embed_dim": 32, "num_heads": 2, "patch_size": PATCH, "out_hidden_size": 32, "image_size": SIDE,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_num_experts": 4,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "moe_topk": 2, "ffn_dim": 64,
    "projector_hidden_size": 32, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 100,
    "image_token_id": IMAGE, "image_token_index": IMAGE, "video_token_id": VIDEO, "video_token_index": VIDEO,
    "vision_start_token_id": START, "vision_end_token_id": END, "image_start_token_id": START,
    "image_end_token_id": END, "boi_token_id": START, "eoi_token_id": END, "bos_token_id": BEGIN, "eos_token_id": 95,
    "pad_token_id": 0, "decoder_start_token_id": BEGIN, "word_embed_proj_dim": 32, "mlp_hidden_size": 64,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "spatial_merge_size": MERGE, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip


def tiny(config_class: type, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings that make a config of this class tiny, with those of the configs in it."""
    import dataclasses

    own = dict(own or {})
    try:
        default = config_class()
    except Exception:  # noqa: BLE001 - some cannot be made without settings
        default = None
    settings = {
        field.name: TINY[field.name]
        for field in dataclasses.fields(config_class)
        if field.name in TINY and not isinstance(_usual(default, field), list | tuple | bool | dict)
    }
    rope = getattr(default, "rope_parameters", None)
    if isinstance(rope, Mapping) and "mrope_section" in rope:
        settings["rope_parameters"] = {**rope, "mrope_section": [2, 3, 3]}
    for name, inner in config_class.sub_configs.items():
        found = getattr(default, name, None)
        kind = type(found) if found is not None else inner
        if kind is not hf.AutoConfig and dataclasses.is_dataclass(kind):
            given = own.pop(name, {})
            settings[name] = given if isinstance(given, hf.PreTrainedConfig) else tiny(kind, given)
            if inner is hf.AutoConfig and isinstance(settings[name], dict):
                settings[name]["model_type"] = kind.model_type
    return settings | own


def _usual(default: Any, field: Any) -> Any:
    """A field's value in the usual config; the field's own default where that differs by layer."""
    try:
        return getattr(default, field.name, field.default)
    except Exception:  # noqa: BLE001 - configs with settings per layer raise
        return field.default


HYBRID = {"text_config": {"num_hidden_layers": 4}}
TILES = {"image_grid_pinpoints": [[96, 192], [192, 96]], "vision_feature_layer": -1}
POOLED = {"mm_tokens_per_image": 36}


def _sections(*sections: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": list(sections)}
    return {"text_config": {"rope_parameters": rope}}


INKLING: dict[str, Any] = {
    "vision_config": {"text_hidden_size": 32, "projection_hidden_dim": 32},
    "text_config": {
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "d_rel": 8,
        "unpadded_vocab_size": 100,
    },
}
SAM = {"output_channels": 32, "mlp_dim": 64, "global_attn_indexes": [1], "window_size": 4}
"""A tower after SAM."""
CODES = range(100, 164)
"""Ids of the codes of models that turn pictures into tokens."""


def _chameleon_names() -> dict[str, int]:
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    return {f"IMGIMG{str(number).translate(letters)}Z": code for number, code in enumerate(CODES)}


OWN: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        "audio_token_id": 89, "image_token_offset": CODES[0], "audio_token_offset": CODES[-1] + 1,
        "text_config": {"vocab_size": 300, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "vision_config": {"codebook_size": len(CODES), "latent_channels": 16, "base_channels": 32,
                          "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": []},
        "audio_config": {"codebook_dim": 32, "num_filters": 4, "codebook_size": 32, "decoder_num_layers": 1,
                         "decoder_attention_num_groups": 4},
    },
    "chameleon": {
        "vocab_size": 200, "vocabulary_map": {"<image>": IMAGE, **_chameleon_names()},
        "vq_config": {"num_embeddings": len(CODES), "latent_channels": 16, "base_channels": 32,
                      "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "resolution": SIDE},
    },
    "emu3": {
        "vocabulary_map": {"<image>": IMAGE, "<|extra_200|>": 89,
                           **{f"<|visual token {number:06}|>": code for number, code in enumerate(CODES)}},
        "text_config": {"vocab_size": 200},
        "vq_config": {"codebook_size": len(CODES), "base_channels": 32, "channel_multiplier": [1, 1, 1, 1],
                      "num_res_blocks": 1, "attn_resolutions": [], "embed_dim": 4, "temporal_downsample_factor": 2},
    },
    "cohere_compass": {
        "vision_config": {"deepstack_visual_indexes": [0]},
        "text_config": {"rope_parameters": {name: {"rope_type": "default", "rope_theta": 1e4}
                                            for name in ("full_attention", "sliding_attention")}},
    },
    "deepseek_ocr2": {
        "vision_config": {"sam_config": {**SAM, "image_size": 384, "downsample_channels": [32, 32]}},
        "text_config": {"mlp_layer_types": ["dense", "sparse"], "n_shared_experts": 1},
    },
    "unlimited_ocr": {
        "vision_config": {"sam_config": {**SAM, "image_size": 256, "downsample_channels": (32, 32)},
                          "encoder_config": {"image_size": 64, "patch_size": 8}},
        "text_config": {"mlp_layer_types": ["dense", "sparse"], "n_shared_experts": 1},
    },
    "deepseek_vl_hybrid": {"high_res_vision_config": SAM},
    "dots3_note": {
        "vision_config": {"mlp_layer_types": ["dense", "dense"], "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 16},
        "text_config": {"index_topk": 512, "index_head_dim": 16, "index_n_heads": 2, "num_hidden_layers": 3,
                        "shared_experts_intermediate_size": 32,
                        "per_layer_config": {2: {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 16,
                                                 "kv_lora_rank": 16, "head_dim": 24, "qk_nope_head_dim": 16,
                                                 "v_head_dim": 16, "qk_rope_head_dim": 8}}},
    },
    "fast_vlm": {"vision_config": {"architecture": "test_efficientnet", "hidden_size": 256, "do_pooling": False}},
    "gemma3n": {
        "vision_soft_tokens_per_image": 36,
        "vision_config": {"architecture": "test_efficientnet", "hidden_size": 256},
        "text_config": {"num_kv_shared_layers": 0, "laurel_rank": 8, "layer_types": ["sliding_attention",
                        "full_attention"], "activation_sparsity_pattern": [0.0, 0.0], "intermediate_size": [64, 64]},
        "audio_config": {"conf_num_attention_heads": 2, "conf_num_hidden_layers": 1, "sscp_conv_channel_size": (8, 4)},
    },
    "perception_lm": {"vision_config": {
        "architecture": "vit_pe_core_large_patch14_336", "do_pooling": False,
        "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": (SIDE, SIDE), "patch_size": PATCH,
                       "global_pool": "", "use_post_transformer_norm": False, "init_values": 0.1,
                       "ref_feat_shape": (SIDE // PATCH, SIDE // PATCH)},
    }},
    "glm5_next": {
        "vision_config": {"projection_intermediate_size": 64},
        "text_config": {"qk_rope_head_dim": 0, "index_topk": 512, "index_head_dim": 16, "index_n_heads": 2,
                        "linear_head_dim": 16, "linear_num_heads": 2, "num_hidden_layers": 4},
    },
    "qwen4_exp": {"text_config": {
        "num_hidden_layers": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
        "linear_num_value_heads": 2, "hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1,
        "indexer_head_dim": 16, "indexer_budget": 512, "indexer_compress_ratio": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }},
    "molmo2": {
        "image_patch_id": IMAGE,
        "vision_config": {"image_size": [SIDE, SIDE], "num_position_embeddings": (SIDE // PATCH) ** 2},
        "adapter_config": {"vision_feature_layer": [-1, -2], "text_hidden_size": 32},
    },
    "muse_spark": {
        "out_hidden_size": 32 * MERGE * MERGE, "text_config": {"moe_hidden_size": 32},
        "audio_config": {"num_hidden_layers": 4, "hidden_sizes": (8, 8, 8, 8), "depths": (1, 1, 1, 1)},
    },
    "pp_formulanet": {"vision_config": {
        **SAM, "image_size": 2 * SIDE, "decoder_hidden_size": 32, "post_conv_in_channels": 32,
        "post_conv_mid_channels": 32, "post_conv_out_channels": 32,
    }},
    "udop": {"d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2},
    "kosmos-2.5": {
        "text_config": {"attention_heads": 2, "layers": 2}, "latent_query_num": 16,
        "vision_config": {"head_dim": 16, "max_num_patches": 216},
    },
    "inkling_mm_model": {"vision_config": {"text_hidden_size": 32}, "audio_config": {"text_hidden_size": 32},
                         "text_config": {"swa_num_attention_heads": 2, "swa_num_key_value_heads": 2,
                                         "swa_head_dim": 16, "d_rel": 8}},
    "inkling2": INKLING, "inkling2_loop": {**INKLING, "text_config": {
        **INKLING["text_config"], "num_hidden_layers": 4, "loop_layer_index_start": 1, "loop_layer_index_end": 3,
        "loop_gate_rank": 8, "n_layers_per_attn_res_block": 1,
    }},
    "qwen2_vl": _sections(2, 3, 3), "qwen2_5_vl": _sections(2, 3, 3), "paddleocr_vl": _sections(2, 3, 3),
    "glm46v": _sections(2, 3, 3), "glm4v": _sections(2, 3, 3), "glm_ocr": _sections(2, 3, 3),
    "glmga": _sections(2, 3, 3),
    "qwen2_5_omni_thinker": _sections(2, 3, 3) | {"vision_start_token_id": START},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": START},
    "hunyuan_vl": _sections(2, 3, 3),
    "aria": {"projector_patch_to_query_dict": {144: 36}},
    "gemma3": POOLED, "shieldgemma2": POOLED,
    "t5gemma2": {"encoder": POOLED},
    "idefics3": {"scale_factor": 2}, "smolvlm": {"scale_factor": 2},
    "llava_next": TILES, "llava_next_video": TILES, "llava_onevision": TILES,
    "granite4_vision": TILES | {
        "downsample_rate": "2/4", "deepstack_layer_map": [[-2, 0]], "spatial_target_layers": [0, 1, 2, 3],
        "text_config": {"num_hidden_layers": 4}, "qformer_config": {"cross_attention_frequency": 1},
        "vision_config": {"hidden_size": 64},
    },
    "mllama": {
        "text_config": {"cross_attention_layers": [1], "num_hidden_layers": 2},
        "vision_config": {"num_global_layers": 1, "intermediate_layers_indices": [0], "max_num_tiles": 4,
                          "vision_output_dim": 64, "attention_heads": 2},
    },
    "pix2struct": {"text_config": {"d_kv": 16, "num_heads": 2, "num_layers": 2, "d_ff": 64},
                   "vision_config": {"d_kv": 16, "d_ff": 64, "patch_embed_hidden_size": 768}},
    "nemotron_h_omni": {
        "video_temporal_patch_size": 2, "vision_config": {"video_temporal_patch_size": 2}, "vision_hidden_size": 32,
        "text_config": {"ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2,
                        "chunk_size": 16, "moe_shared_expert_intermediate_size": 32},
    },
    "paligemma": {"projection_dim": 32},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "minicpm_ocr": HYBRID,
    "minicpmv4_6": HYBRID | {"insert_layer_id": 0},
    "minicpmv4_7": HYBRID | {"insert_layer_id": 0},
    "qwen3_5": HYBRID, "qwen3_5_moe": HYBRID, "lfm3_vl": HYBRID,
    "glm4v_moe": _sections(1, 1, 2),
    "lfm2_vl": {"text_config": {"num_hidden_layers": 3, "full_attn_idxs": [1]}},
    "kosmos-2": {"text_config": {"attention_heads": 2, "layers": 2}, "latent_query_num": 8},
    "vision-encoder-decoder": {"decoder": {"is_decoder": True, "add_cross_attention": True}},
    "florence2": {"vision_config": {"embed_dim": [16, 16, 32, 32], "num_heads": [2] * 4, "num_groups": [2] * 4,
                                    "depths": [1] * 4, "projection_dim": 32}},
    "janus": {"vision_config": {"projection_dim": 32},
              "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1]}},
    "kimi_k25": {"projection_hidden_size": 32},
    "hy_v4_vl": _sections(1, 1, 2),
    "muse_glimmer": {"out_hidden_size": 32 * MERGE * MERGE},
    "ernie4_5_vl_moe": {"text_config": {
        "moe_intermediate_size": [32, 32], "moe_k": 2, "moe_num_shared_experts": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
    }},
    "step3p7": {"text_config": {"sliding_window": 64}},
}  # fmt: skip
SPREAD = {
    "granite4_vision": 0.05,
    "lfm3_vl": 0.05,
    "glm_ocr": 0.05,
    "glm4v_moe": 0.05,
    "gemma4": 0.05,
    "gemma4_unified": 0.05,
}
"""Standard deviation of linear layers where 0.15 saturates the model."""
NO_PICTURE = "it does not explain words by a picture"
LEFT_OUT = {
    "evolla": f"{NO_PICTURE}: proteins",
    "mistral4": f"{NO_PICTURE}: text alone",
    "pi0": f"{NO_PICTURE}: robot actions",
    "instructblipvideo": "it takes videos alone",
    "llama4": "its own forward raises in transformers 5.24: MoeCausalLMOutputWithPast has no image_outputs",
    "diffusion_gemma": "its words are not predicted one after the other",
}
"""Types that are not run, with the reason."""


@dataclass(frozen=True)
class Writer:
    """One type.

    Args:
        model_type: Of the config.
        model_class: The name of the class in transformers.
    """

    model_type: str
    model_class: str

    def build(self) -> nn.Module:
        """The model, with random weights large enough for the picture to come through."""
        torch.manual_seed(0)
        kind = getattr(hf, self.model_class)
        model: nn.Module = kind(kind.config_class(**tiny(kind.config_class, OWN.get(self.model_type)))).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and float(parameter.detach().abs().max()) == 0:
                nn.init.normal_(parameter, std=0.1)
            elif parameter.ndim == 1 and re.search("gate|alpha", name.rpartition(".")[2]):
                nn.init.constant_(parameter, 0.5)
        spread = SPREAD.get(self.model_type, 0.15)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=spread)
            elif isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight)
        return model


def writers() -> Iterator[Writer]:
    """Every type of the mapping."""
    for model_type, name in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items():
        yield Writer(model_type, name)
