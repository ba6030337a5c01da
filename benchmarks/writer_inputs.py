"""Inputs of the tiny models of `benchmarks.tiny_writers`: a picture by the type's own image processor, and a text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.auto import image_processing_auto

from benchmarks.tiny_writers import (
    ANSWER,
    BEGIN,
    END,
    IMAGE,
    MERGE,
    PATCH,
    PROMPT,
    SIDE,
    SIZE,
    START,
    TILES,
    Writer,
)

QWEN = ("Qwen2VLImageProcessor", {})
INKLING = ("Inkling2ImageProcessor", {"size": {"height": PATCH * MERGE, "width": PATCH * MERGE}})
LARGE = {"size": {"shortest_edge": 2 * SIDE}, "crop_size": {"height": 2 * SIDE, "width": 2 * SIDE}}
"""Of towers whose cells are 32 pixels wide."""
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
    "fast_vlm": ("CLIPImageProcessor", LARGE), "florence2": ("CLIPImageProcessor", LARGE),
    "gemma3n": ("SiglipImageProcessor", {"size": LARGE["crop_size"]}),
    "pp_formulanet": ("PPFormulaNetImageProcessor", {"size": LARGE["crop_size"]}),
    "emu3": ("Emu3ImageProcessor", {"min_pixels": SIZE[0] * SIZE[1], "max_pixels": SIZE[0] * SIZE[1]}),
    "apertus1p5": ("Apertus1p5ImageProcessor", {"size": {"min_pixels": SIZE[0] * SIZE[1],
                                                         "max_pixels": SIZE[0] * SIZE[1]}, "spatial_factor": 8}),
    "deepseek_ocr2": ("DeepseekOcr2ImageProcessor", {"size": {"height": 384, "width": 384}, "tile_size": 384,
                                                     "crop_to_patches": False}),
    "unlimited_ocr": ("UnlimitedOcrImageProcessor", {"size": {"height": 256, "width": 256}, "tile_size": 256,
                                                     "crop_to_patches": False}),
    "molmo2": ("Molmo2ImageProcessor", {"size": {"height": SIDE, "width": SIDE}, "max_crops": 2,
                                        "overlap_margins": [2, 2], "patch_size": PATCH}),
    "inkling2": INKLING, "inkling2_loop": INKLING,
    "inkling_mm_model": ("InklingImageProcessor", {"size": {"height": PATCH, "width": PATCH}}),
    "dots3_note": ("Qwen2VLImageProcessor", {"temporal_patch_size": 1}),
    "fuyu": ("FuyuImageProcessor", {"patch_size": {"height": PATCH, "width": PATCH},
                                    "size": {"height": SIZE[0], "width": SIZE[1]}}),
    "udop": ("LayoutLMv3ImageProcessor", {"apply_ocr": False, "size": {"height": SIDE, "width": SIDE}}),
    "nemotron_h_omni": ("NemotronH_Omni_Reasoning_V3ImageProcessor", {"patch_size": PATCH, "min_num_patches": 64,
                                                                      "max_num_patches": 216}),
    "kosmos-2.5": ("Kosmos2_5ImageProcessor", {"max_patches": 216, "patch_size": {"height": 16, "width": 16}}),
    "perception_lm": ("PerceptionLMImageProcessor", {"tile_size": SIDE, "max_num_tiles": 4}),
}  # fmt: skip
"""Image processors of types that have none of their own, or take other settings than their size."""


def _of_fuyu(processor: Any, picture: np.ndarray) -> dict[str, Any]:
    """The patches, which the real processor only cuts for its own tokenizer."""
    [images] = processor(images=[picture], return_tensors="pt")["images"]
    return {"pixel_values": processor.patchify_image(images)}


def _of_idefics(processor: Any, picture: np.ndarray) -> dict[str, Any]:
    """The bare pixels that the real processor returns, as the one picture of a text."""
    return {"pixel_values": processor(images=[picture], return_tensors="pt")[:, None]}


PICTURES: dict[str, Callable[[Any, np.ndarray], dict[str, Any]]] = {"fuyu": _of_fuyu, "idefics": _of_idefics}
"""From a processor and a picture to the forward's inputs, where the processor does not return them itself."""


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
    made = PICTURES.get(writer.model_type, _usual)
    counted: dict[str, int] = {}

    def prepare(picture: np.ndarray) -> dict[str, Any]:
        seen = {name: _floats(value) for name, value in made(processor, picture).items() if name in accepted}
        if "count" not in counted:
            counted["count"] = features(model, seen)
        return seen | text_inputs(model, accepted, counted["count"])

    return prepare


def _usual(processor: Any, picture: np.ndarray) -> dict[str, Any]:
    return dict(processor(images=[picture], return_tensors="pt"))


def _floats(value: Any) -> Any:
    """Half precision, which some processors return, in the models' own."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


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
    if (layers := getattr(found, "deepstack_features", None)) and getattr(found, "pooler_output", None) is None:
        found = layers[0][1]
    pooled = getattr(found, "pooler_output", None)
    found = getattr(found, "last_hidden_state", found) if pooled is None else pooled
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
    if "image_attention_mask" in accepted:
        given["image_attention_mask"] = torch.ones(1, ids.shape[1], 1, dtype=torch.long)
    if "bbox" in accepted:
        given["bbox"] = torch.zeros(1, ids.shape[1], 4, dtype=torch.long)
    if getattr(model.config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = torch.tensor([[BEGIN, *PROMPT, *ANSWER]])
    return {name: value for name, value in given.items() if name in accepted}
