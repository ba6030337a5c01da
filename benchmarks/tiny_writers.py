"""A tiny random model of every type that transformers lists under image-text-to-text, with inputs for a picture.

Configs are shrunk by the names of their fields; `OWN` contains what a type needs beyond that. Pictures go through the
type's real image processor where it has one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.auto import image_processing_auto, modeling_auto

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
    known = {field.name: field.default for field in dataclasses.fields(config_class)}
    settings = {
        name: TINY[name]
        for name, default in known.items()
        if name in TINY and not isinstance(default, list | tuple | bool | dict)
    }
    try:
        default = config_class()
    except Exception:  # noqa: BLE001 - some cannot be made without settings
        default = None
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


HYBRID = {"text_config": {"num_hidden_layers": 4}}
TILES = {"image_grid_pinpoints": [[96, 192], [192, 96]], "vision_feature_layer": -1}
POOLED = {"mm_tokens_per_image": 36}


def _sections(*sections: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": list(sections)}
    return {"text_config": {"rope_parameters": rope}}


OWN: dict[str, dict[str, Any]] = {
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
    "llava_next": TILES, "llava_next_video": TILES, "granite4_vision": TILES, "llava_onevision": TILES,
    "mllama": {
        "text_config": {"cross_attention_layers": [1], "num_hidden_layers": 2},
        "vision_config": {"num_global_layers": 1, "intermediate_layers_indices": [0], "max_num_tiles": 4,
                          "vision_output_dim": 64, "attention_heads": 2},
    },
    "pix2struct": {"text_config": {"d_kv": 16, "num_heads": 2, "num_layers": 2, "d_ff": 64},
                   "vision_config": {"d_kv": 16, "d_ff": 64, "patch_embed_hidden_size": 768}},
    "nemotron_h_omni": {"video_temporal_patch_size": 2, "vision_config": {"video_temporal_patch_size": 2}},
    "paligemma": {"projection_dim": 32},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "minicpm_ocr": HYBRID,
    "minicpmv4_6": HYBRID,
    "minicpmv4_7": HYBRID,
    "qwen3_5": HYBRID, "qwen3_5_moe": HYBRID, "qwen4_exp": HYBRID, "lfm3_vl": HYBRID,
    "glm4v_moe": _sections(1, 1, 2),
    "lfm2_vl": {"text_config": {"num_hidden_layers": 3, "full_attn_idxs": [1]}},
    "kosmos-2": {"text_config": {"attention_heads": 2, "layers": 2}, "latent_query_num": 8},
    "llama4": {"vision_config": {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}},
    "vision-encoder-decoder": {"decoder": {"is_decoder": True, "add_cross_attention": True}},
    "florence2": {"vision_config": {"embed_dim": [16, 16, 32, 32], "num_heads": [2] * 4, "num_groups": [2] * 4,
                                    "depths": [1] * 4, "projection_dim": 32}},
    "janus": {"vision_config": {"projection_dim": 32},
              "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1]}},
    "kimi_k25": {"projection_hidden_size": 32},
    "hy_v4_vl": _sections(1, 1, 2),
    "muse_glimmer": {"vision_config": {"hidden_size": 32, "intermediate_size": 64}},
    "ernie4_5_vl_moe": _sections(2, 3, 3),
    "step3p7": {"text_config": {"sliding_window": 64}},
}  # fmt: skip
SPREAD = {"glm_ocr": 0.05, "glm4v_moe": 0.05, "gemma4": 0.05, "gemma4_unified": 0.05}
"""Standard deviation of linear layers where 0.15 saturates the model."""
NO_PICTURE = "it does not explain words by a picture"
LEFT_OUT = {
    "evolla": f"{NO_PICTURE}: proteins",
    "mistral4": f"{NO_PICTURE}: text alone",
    "pi0": f"{NO_PICTURE}: robot actions",
    "instructblipvideo": "it takes videos alone",
    "diffusion_gemma": "its words are not predicted one after the other",
    "gemma3n": "its MobileNetV5 tower comes in one size: minutes per forward on a CPU",
    "emu3": "its VQ model is not made tiny by its config: half a minute per forward on a CPU",
    "kosmos-2.5": "its 2,048 picture tokens take minutes per forward on a CPU",
}
"""Types that are not run, with the reason."""
QWEN = ("Qwen2VLImageProcessor", {})
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "aria": ("CLIPImageProcessor", {}),
    "llava_next": ("LlavaNextImageProcessor", {"image_grid_pinpoints": TILES["image_grid_pinpoints"]}),
    "llava_next_video": ("LlavaNextImageProcessor", {"image_grid_pinpoints": TILES["image_grid_pinpoints"]}),
    "llava_onevision": ("LlavaOnevisionImageProcessor", {"image_grid_pinpoints": TILES["image_grid_pinpoints"]}),
    "granite4_vision": ("LlavaNextImageProcessor", {"image_grid_pinpoints": TILES["image_grid_pinpoints"]}),
    "idefics3": ("Idefics3ImageProcessor", {"size": {"longest_edge": 192}, "max_image_size": {"longest_edge": 96}}),
    "smolvlm": ("SmolVLMImageProcessor", {"size": {"longest_edge": 192}, "max_image_size": {"longest_edge": 96}}),
    "glm4v_moe": ("Glm4vImageProcessor", {}), "glm_ocr": ("Glm4vImageProcessor", {}),
    "qwen2_5_omni_thinker": QWEN, "qwen3_omni_moe_thinker": QWEN, "qwen3_vl_moe": QWEN,
    "pix2struct": ("Pix2StructImageProcessor", {"max_patches": 216, "patch_size": {"height": 16, "width": 16}}),
    "deepseek_vl_hybrid": ("DeepseekVLHybridImageProcessor", {"high_res_size": {"height": 96, "width": 96}}),
    "lfm2_vl": ("Lfm2VlImageProcessor", {"encoder_patch_size": 8, "downsample_factor": 2, "tile_size": 96,
                                         "min_image_tokens": 4, "max_image_tokens": 60, "do_image_splitting": False}),
    "video_llava": ("CLIPImageProcessor", {}),
}  # fmt: skip
"""Image processors of types that have none of their own, or take other settings than their size."""


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
            elif parameter.ndim == 1 and "gate" in name.rpartition(".")[2]:
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


def image_processor(model_type: str, config: Any) -> Any:
    """The type's image processor, made for tiny pictures; CLIP's where it has none of its own."""
    names: Any = image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or "CLIPImageProcessor"
    listed = list(names.values()) if isinstance(names, Mapping) else [names] if isinstance(names, str) else list(names)
    own: Mapping[str, Any] = {}
    if model_type in PROCESSORS:
        name, own = PROCESSORS[model_type]
        listed = [name]
    kind = next(getattr(hf, name) for name in listed if name and hasattr(hf, name))
    return kind(**_small_pictures(kind, config) | own)


def _small_pictures(kind: type, config: Any) -> dict[str, Any]:
    default, vision = kind(), getattr(config, "vision_config", None)
    patch = getattr(vision, "patch_size", PATCH)
    given: dict[str, Any] = {}
    size = dict(getattr(default, "size", None) or {})
    if "height" in size:
        given["size"] = {"height": SIDE, "width": SIDE}
    elif set(size) == {"shortest_edge", "longest_edge"}:
        counts = size["longest_edge"] > 10_000
        given["size"] = (
            {"shortest_edge": patch * patch * 4, "longest_edge": SIZE[0] * SIZE[1]}
            if counts
            else {"shortest_edge": SIZE[0], "longest_edge": SIZE[1]}
        )
    elif size:
        given["size"] = {name: SIDE if name == "shortest_edge" else SIZE[1] for name in size}
    if getattr(default, "crop_size", None):
        given["crop_size"] = {"height": SIDE, "width": SIDE}
    for name, value in (("patch_size", patch), ("merge_size", MERGE)):
        old = getattr(default, name, None)
        if isinstance(old, int):
            given[name] = value
        elif isinstance(old, Mapping):
            given[name] = {"height": value, "width": value}
    return given


def prepare_of(writer: Writer, model: nn.Module) -> Callable[[np.ndarray], dict[str, Any]]:
    """From a picture to the inputs of a forward over it, a prompt and an answer."""
    processor = image_processor(writer.model_type, model.config)
    read = _reader(model)
    own = set() if read is None else _named(read)
    accepted = set(inspect.signature(model.forward).parameters) | own
    counted: dict[str, int] = {}

    def prepare(picture: np.ndarray) -> dict[str, Any]:
        made = dict(processor(images=[picture], return_tensors="pt"))
        seen = {name: value for name, value in made.items() if isinstance(value, Tensor) and name in accepted}
        if "count" not in counted:
            counted["count"] = features(model, seen)
        return seen | text_inputs(model, accepted, counted["count"])

    return prepare


def features(model: nn.Module, seen: Mapping[str, Tensor]) -> int:
    """How many placeholders the picture takes in the text; 0 where it takes none."""
    read = _reader(model)
    if read is None:
        return 0
    known = _named(read)
    if "qformer_input_ids" in known:
        return int(model.config.num_query_tokens)
    with torch.no_grad():
        found = read(**{name: value for name, value in seen.items() if name in known})
    found = getattr(found, "pooler_output", found)
    parts = found if isinstance(found, list | tuple) else [found]
    return sum(part.flatten(0, -2).shape[0] for part in parts)


def _reader(model: nn.Module) -> Any:
    """The model's own function from pictures to features; None if it has none."""
    inner = getattr(model, "model", None)
    return getattr(inner, "get_image_features", None) or getattr(model, "get_image_features", None)


def _named(read: Any) -> set[str]:
    """The names of a function's parameters, also of one that a decorator hides."""
    found = set(inspect.signature(inspect.unwrap(read)).parameters) | set(inspect.signature(read).parameters)
    return found - {"self", "args", "kwargs"}


def image_id(config: Any) -> int:
    """The id of the picture's placeholder."""
    known = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((one for one in known if isinstance(one, int)), IMAGE)


def text_inputs(model: nn.Module, accepted: set[str], count: int) -> dict[str, Tensor]:
    """The ids of a prompt with the picture's placeholders and of an answer, and what the forward takes beside them."""
    around = ([START], [END]) if count else ([], [])
    image = image_id(model.config)
    ids = torch.tensor([[BEGIN, *around[0], *[image] * count, *around[1], *PROMPT, *ANSWER]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in accepted and count:
            given[name] = (ids == image).long()
    if "qformer_input_ids" in accepted:
        given["qformer_input_ids"] = torch.tensor([[*PROMPT]])
    if "image_embeds_position_mask" in accepted:
        latents = [0, *[1] * model.config.latent_query_num, *[0] * len(PROMPT + ANSWER)]
        given["image_embeds_position_mask"] = torch.tensor([latents])
        ids = torch.tensor([[BEGIN, *[START] * model.config.latent_query_num, *PROMPT, *ANSWER]])
        given |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = torch.tensor([[BEGIN, *PROMPT, *ANSWER]])
    return {name: value for name, value in given.items() if name in accepted}
