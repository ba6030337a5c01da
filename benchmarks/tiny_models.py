"""A tiny random model of every vision architecture of transformers, with the inputs that it takes.

Configs are shrunk by the names of their fields; `OWN` contains what a type needs beyond that.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_cam.capture.inputs import call
from hf_cam.models.refused import refusals

TASKS = {
    "image-classification": "IMAGE_CLASSIFICATION",
    "zero-shot-image-classification": "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "object-detection": "OBJECT_DETECTION",
    "zero-shot-object-detection": "ZERO_SHOT_OBJECT_DETECTION",
    "semantic-segmentation": "SEMANTIC_SEGMENTATION",
    "instance-segmentation": "INSTANCE_SEGMENTATION",
    "universal-segmentation": "UNIVERSAL_SEGMENTATION",
    "depth-estimation": "DEPTH_ESTIMATION",
    "video-classification": "VIDEO_CLASSIFICATION",
    "visual-question-answering": "VISUAL_QUESTION_ANSWERING",
    "image-feature-extraction": "IMAGE",
    "mask-generation": "MASK_GENERATION",
    "keypoint-detection": "KEYPOINT_DETECTION",
    "pose-estimation": "POSE_ESTIMATION",
    "keypoint-matching": "KEYPOINT_MATCHING",
}

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99,
    "max_position_embeddings": 64, "projection_dim": 16, "embed_dim": 16,
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 12, "fusion_hidden_size": 16,
    "reassemble_hidden_size": 32, "head_hidden_size": 16, "feature_size": 32, "mask_feature_size": 32,
    "hidden_dim": 32, "encoder_feedforward_dim": 32, "dim_feedforward": 32, "fpn_feature_size": 32,
    "encoder_hidden_dim": 32, "decoder_hidden_size": 16, "embedding_size": 8, "num_groups": 4, "groups_width": 8,
    "two_stage_num_proposals": 12, "image_text_hidden_size": 16, "num_query_tokens": 4, "mask_dim": 32,
    "conv_dim": 32, "number_output_channels": 16, "bottleneck_features": 16, "bin_embedding_dim": 16,
    "num_relative_features": 8, "patch_size": 16, "num_blocks": 1, "encoder_hidden_size": 32, "num_frames": 4,
    "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 32,
    "aspp_out_channels": 16, "neck_out_channels": 16, "stem_out_channels": 8, "stem_channels": 8,
    "depth_multiplier": 0.25, "num_labels": 5, "max_text_len": 32, "pooler_output_size": None,
}  # fmt: skip
PER_STAGE = {
    "hidden_sizes": (8, 8, 16, 32, 32), "neck_hidden_sizes": (8, 8, 16, 32), "depths": (1,) * 5,
    "num_heads": (1, 1, 2, 2), "embed_dims": (8, 8, 16, 32), "stage_in_channels": (8, 16, 32, 32),
    "stage_mid_channels": (8,) * 4, "stage_out_channels": (16, 32, 32, 32), "stage_num_blocks": (1,) * 4,
    "stage_numb_of_layers": (1,) * 4,
}  # fmt: skip
TOKEN_SIZE, STAGED_SIZE = (64, 96), (128, 192)


def shrunk(config_class: type, **own: Any) -> dict[str, Any]:
    """Settings that make a config of this class tiny; `own` takes precedence, also in nested configs by their names."""
    settings: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        value = field.default
        if field.name in SMALL and not isinstance(value, list | tuple | bool):
            settings[field.name] = SMALL[field.name]
        elif field.name in PER_STAGE and isinstance(value, list | tuple):
            settings[field.name] = list(PER_STAGE[field.name][: len(value)])
        elif field.name == "num_attention_heads" and isinstance(value, list | tuple):
            settings[field.name] = [1] * len(value)
    for name, inner in config_class.sub_configs.items():
        if dataclasses.is_dataclass(inner) and inner is not hf.AutoConfig:
            settings[name] = shrunk(inner, **own.pop(name, {}))
    return settings | own


def _resnet(*stages: int, stages_out: bool = True) -> hf.ResNetConfig:
    names = [f"stage{stage}" for stage in stages or (1, 2, 3, 4)]
    return hf.ResNetConfig(
        **shrunk(hf.ResNetConfig), layer_type="basic", **({"out_features": names} if stages_out else {})
    )


def _rt_resnet() -> hf.PreTrainedConfig:
    own = shrunk(hf.RTDetrResNetConfig, hidden_sizes=[8, 8, 16, 32], layer_type="basic")
    return hf.RTDetrResNetConfig(**own, out_features=["stage2", "stage3", "stage4"])


def _hgnet(*stages: int) -> hf.HGNetV2Config:
    own = shrunk(
        hf.HGNetV2Config, stem_channels=[3, 8, 8], stage_in_channels=[8, 16, 32, 32], hidden_sizes=[16, 32, 32, 32]
    )
    return hf.HGNetV2Config(**own, out_features=[f"stage{stage}" for stage in stages or (2, 3, 4)])


def _swin(**own: Any) -> hf.SwinConfig:
    return hf.SwinConfig(
        **shrunk(hf.SwinConfig, embed_dim=16, num_heads=[1, 1, 2, 2], patch_size=4, window_size=4, image_size=64, **own)
    )


def _dinov2(patch: int = 16, **own: Any) -> hf.Dinov2Config:
    own = {"image_size": 64, "patch_size": patch, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], **own}
    return hf.Dinov2Config(**shrunk(hf.Dinov2Config, **own), apply_layernorm=True, reshape_hidden_states=False)


def _dinov3() -> hf.DINOv3ViTConfig:
    own = {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "num_register_tokens": 2, "image_size": 64}
    own |= {"return_class_token": True}
    return hf.DINOv3ViTConfig(**shrunk(hf.DINOv3ViTConfig, **own))


def _bert() -> hf.BertConfig:
    return hf.BertConfig(**shrunk(hf.BertConfig))


RT = {
    "encoder_in_channels": [8, 16, 32], "decoder_in_channels": [32] * 3, "num_denoising": 0, "hidden_expansion": 1.0,
    "decoder_n_points": 2,
}  # fmt: skip
FINE = RT | {"encoder_in_channels": [32, 32, 32], "lqe_hidden_dim": 8}
DEPTH = {"neck_hidden_sizes": [8, 8, 16, 16], "patch_size": 16}

HEADS = {"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2, "decoder_n_points": 2, "group_detr": 1}
OCR = {
    "intraclass_block_config": {
        "reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0],
        **{
            f"{kind}_{ratio}ratio": [kernel, [1, 1], padding]
            for ratio, side in (("long", 7), ("mid", 5), ("short", 3))
            for kind, kernel, padding in (
                ("vertical_long_to_small_conv", [side, 1], [side // 2, 0]),
                ("horizontal_small_to_long_conv", [1, side], [0, side // 2]),
                ("symmetric_conv_long", [side, side], [side // 2, side // 2]),
            )
        },
    },
    "kernel_list": [3, 2, 2],
    "scale_factor_list": [1, 2, 4, 8],
}  # fmt: skip


def _windowed(config_class: type, **own: Any) -> hf.PreTrainedConfig:
    own |= {
        "window_block_indices": [0, 2],
        "out_indices": [2, 4],
        "num_windows": 4 if config_class is hf.LwDetrViTConfig else 2,
    }
    return config_class(**shrunk(config_class, image_size=64, num_hidden_layers=4, **own))


def _tips() -> hf.PreTrainedConfig:
    own = {"num_hidden_layers": 4, "image_size": 64, "out_indices": [1, 2, 3, 4]}
    own |= {"apply_layernorm": True, "reshape_hidden_states": False}
    return CONFIG_MAPPING["tipsv2_vision_model"](**shrunk(CONFIG_MAPPING["tipsv2_vision_model"], **own))


def _beit() -> hf.BeitConfig:
    own = {"num_hidden_layers": 4, "image_size": 64, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
    return hf.BeitConfig(**shrunk(hf.BeitConfig, **own), use_relative_position_bias=True)


def _tile() -> hf.Dinov2Config:
    return hf.Dinov2Config(**shrunk(hf.Dinov2Config, image_size=32, patch_size=8))


def _lcnet() -> hf.PreTrainedConfig:
    channels = [8, 8, 16, 16, 32]
    blocks = [[[3, *channels[stage : stage + 2], 2 if stage else 1, False]] for stage in range(4)]
    names = [f"stage{stage}" for stage in range(1, 5)]
    return CONFIG_MAPPING["pp_lcnet_v4"](block_configs=blocks, stem_channels=[3, 8, 8], out_features=names)


PROMPTED = 64
"""Side of the square that promptable models of masks take."""


def _prompted(**own: Any) -> dict[str, Any]:
    """The settings that promptable models of masks share: an embedding of `PROMPTED // 16` cells a side."""
    prompts = {"hidden_size": 32, "image_size": PROMPTED, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    return {"prompt_encoder_config": prompts, "mask_decoder_config": decoder | own.pop("decoder", {}), **own}


def _sam_vision(**own: Any) -> dict[str, Any]:
    sizes = {"image_size": PROMPTED, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1]}
    return {"output_channels": 32, "num_pos_feats": 16, "initializer_range": 0.05, **sizes, **own}


SAM_SIZES = [[PROMPTED // stride] * 2 for stride in (4, 8, 16)]


def _sam2_vision() -> hf.Sam2VisionConfig:
    own = {"embed_dim_per_stage": [8, 16, 24, 32], "num_attention_heads_per_stage": [1, 1, 1, 2]}
    own |= {"blocks_per_stage": [1, 1, 2, 1], "window_size_per_stage": [8, 4, 4, 2], "global_attention_blocks": [3]}
    own |= {"hidden_size": 8, "window_positional_embedding_background_size": [4, 4]}
    backbone = hf.Sam2HieraDetConfig(**own, image_size=[PROMPTED] * 2)
    return hf.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[32, 24, 16, 8],
        backbone_feature_sizes=SAM_SIZES,
        fpn_hidden_size=32,
    )


def _edgetam_vision() -> hf.PreTrainedConfig:
    arguments = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3], "embed_dim": [16, 16, 32, 32]}
    backbone = hf.TimmWrapperConfig(architecture="repvit_m1", model_args=arguments | {"depth": [1] * 4})
    return CONFIG_MAPPING["edgetam_vision_model"](
        backbone_config=backbone,
        backbone_channel_list=[32, 32, 16, 16],
        backbone_feature_sizes=SAM_SIZES,
        fpn_hidden_size=32,
    )


def _sam3_vision() -> hf.PreTrainedConfig:
    vit = {"image_size": PROMPTED, "pretrain_image_size": PROMPTED, "window_size": 2, "global_attn_indexes": [1]}
    backbone = CONFIG_MAPPING["sam3_vit_model"](**shrunk(CONFIG_MAPPING["sam3_vit_model"], **vit))
    return CONFIG_MAPPING["sam3_vision_model"](
        backbone_config=backbone, backbone_feature_sizes=SAM_SIZES, fpn_hidden_size=32
    )


def _vitpose_backbone() -> hf.PreTrainedConfig:
    kind = CONFIG_MAPPING["vitpose_backbone"]
    return kind(**shrunk(kind, image_size=[96, 64], patch_size=[16, 16]), out_indices=[2])


OWN: dict[str, Any] = {
    "beit": {"out_indices": [1, 2, 3, 4], "num_hidden_layers": 4},
    "data2vec-vision": {"out_indices": [0, 1, 2, 3], "num_hidden_layers": 4},
    "cvt": {"embed_dim": [8, 16, 32], "num_heads": [1, 1, 2], "depth": [1, 2, 3]},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    "mobilevit": {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 32], "patch_size": 2},
    "mobilevitv2": {"width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1], "patch_size": 2},
    "timm_wrapper": {"architecture": "resnet18", "model_args": {"channels": (8, 8, 16, 32)}},
    "focalnet": {"patch_size": 4},
    "swin": {"patch_size": 4, "window_size": 4},
    "swinv2": {"patch_size": 4, "window_size": 4},
    "donut-swin": {"patch_size": 4, "window_size": 4},
    "convnext": {"patch_size": 4},
    "convnextv2": {"patch_size": 4},
    "dinat": {"patch_size": 4, "embed_dim": 16, "num_heads": [1, 1, 2, 2], "kernel_size": 3},
    "pp_ocrv6_small_det": {"layer_list_out_channels": [8, 16, 16, 32], "backbone_config": _lcnet},
    "swin2sr": {"depths": [1, 1], "num_heads": [1, 1], "window_size": 4, "patch_size": 1, "image_size": 64},
    "timm_backbone": {"backbone": "resnet18"},
    "llama4": {
        "intermediate_size": 128,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    },
    "levit": {"hidden_sizes": [32, 32, 32]},
    "videoprism": {"vision_config": {"tubelet_size": [1, 16, 16], "num_spatial_layers": 2, "num_temporal_layers": 1}},
    "pp_lcnet": {"stem_channels": 16},
    "hgnet_v2": {"stem_channels": [3, 8, 8], "hidden_sizes": [16, 32, 32, 32]},
    "align": {
        "projection_dim": 80,
        "vision_config": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    },
    "detr": {"backbone_config": _resnet, "encoder_attention_heads": 8, "decoder_attention_heads": 8},
    "conditional_detr": {"backbone_config": _resnet},
    "dab-detr": {"backbone_config": functools.partial(_resnet, 4)},
    "table-transformer": {"backbone_config": _resnet},
    "deformable_detr": {"backbone_config": functools.partial(_resnet, 2, 3, 4)},
    "rt_detr": RT | {"backbone_config": _rt_resnet},
    "rt_detr_v2": RT | {"backbone_config": _rt_resnet},
    "d_fine": FINE | {"backbone_config": _hgnet},
    "deimv2": FINE | {"backbone_config": _hgnet},
    "pp_doclayout_v2": FINE | {"backbone_config": _hgnet, "class_thresholds": [0.5] * 5, "class_order": list(range(5))},
    "pp_doclayout_v3": FINE
    | {"x4_feat_dim": 16, "mask_feature_channels": [8, 8], "backbone_config": functools.partial(_hgnet, 1, 2, 3, 4)},
    "pp_doclayout_v4": FINE | {"backbone_config": _hgnet},
    "grounding-dino": {"backbone_config": functools.partial(_swin, out_indices=[2, 3, 4]), "text_config": _bert},
    "mm-grounding-dino": {"backbone_config": functools.partial(_swin, out_indices=[2, 3, 4]), "text_config": _bert},
    "upernet": {"backbone_config": _resnet},
    "maskformer": {"backbone_config": _resnet, "decoder_config": lambda: hf.DetrConfig(**settings("detr"))},
    "mask2former": {"backbone_config": functools.partial(_swin, out_features=["stage1", "stage2", "stage3", "stage4"])},
    "oneformer": {"backbone_config": _resnet},
    "depth_anything": DEPTH | {"backbone_config": _dinov2},
    "prompt_depth_anything": DEPTH | {"backbone_config": _dinov2},
    "chmv2": {
        "backbone_config": _dinov3,
        "post_process_channels": [8, 8, 16, 16],
        "reassemble_factors": [4, 2, 1, 0.5],
    },
    "vjepa2": {
        "pred_hidden_size": 32,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 1,
        "num_pooler_layers": 1,
        "crop_size": 64,
        "frames_per_clip": 4,
    },
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "lw_detr": HEADS
    | {"projector_scale_factors": [1.0], "backbone_config": functools.partial(_windowed, hf.LwDetrViTConfig)},
    "rf_detr": HEADS | {"backbone_config": functools.partial(_windowed, hf.RfDetrDinov2Config)},
    "omdet-turbo": {
        "backbone_config": functools.partial(_swin, out_indices=[2, 3, 4]),
        "text_config": lambda: hf.CLIPTextConfig(**shrunk(hf.CLIPTextConfig, hidden_size=48)),
        "encoder_in_channels": [32, 64, 128],
        "vision_features_channels": [32] * 3,
        "text_projection_in_dim": 48,
        "text_projection_out_dim": 48,
        "class_embed_dim": 48,
        "decoder_hidden_dim": 32,
        "decoder_num_heads": 2,
        "decoder_num_layers": 2,
        "decoder_dim_feedforward": 32,
        "encoder_dim_feedforward": 32,
        "task_encoder_hidden_dim": 32,
        "apply_layernorm_after_vision_backbone": False,
    },
    "pp_ocrv5_server_det": OCR | {"backbone_config": functools.partial(_hgnet, 1, 2, 3, 4)},
    "pp_ocrv6_medium_det": OCR | {"backbone_config": functools.partial(_hgnet, 1, 2, 3, 4)},
    "tipsv2_dpt": {"backbone_config": _tips, "neck_hidden_sizes": [8, 8, 16, 16], "num_depth_bins": 8},
    "sapiens2": {"head_config": {"upsample_out_channels": [8, 8], "conv_out_channels": [8]}},
    "zoedepth": {
        "backbone_config": functools.partial(_beit),
        "num_attractors": [4, 4, 2, 1],
        "patch_transformer_hidden_size": 16,
    },
    "depth_pro": {
        "patch_size": 32,
        "intermediate_hook_ids": [1, 0],
        "intermediate_feature_dims": [16, 16],
        "scaled_images_feature_dims": [16, 16, 16],
        "num_fov_head_layers": 1,
        "merge_padding_value": 0,
        **dict.fromkeys(("image_model_config", "patch_model_config", "fov_model_config"), _tile),
    },
    "blip-2": {
        "qformer_config": {"use_qformer_text_input": True},
        "text_config": lambda: hf.OPTConfig(**shrunk(hf.OPTConfig), word_embed_proj_dim=32, ffn_dim=32),
        "image_token_index": 98,
    },
    "videoprism_vision_model": {"tubelet_size": [1, 16, 16], "num_spatial_layers": 2, "num_temporal_layers": 1},
    "vivit": {"tubelet_size": [2, 16, 16]},
    "vilt": {"image_size": 64},
    "owlvit": {"projection_dim": 32},
    "owlv2": {"projection_dim": 32},
    "blip": {"text_config": {"bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}},
    "yolos": {"num_detection_tokens": 6},
    "eomt": {"num_hidden_layers": 3},
    "eomt_dinov3": {"num_hidden_layers": 3},
    "videomt": {"num_hidden_layers": 3},
    "sam": _prompted(vision_config=_sam_vision()),
    "sam_hq": _prompted(vision_config=_sam_vision(), decoder={"vit_dim": 32}),
    "sam2": _prompted() | {"vision_config": _sam2_vision},
    "edgetam": _prompted() | {"vision_config": _edgetam_vision},
    "sam3_tracker": _prompted() | {"vision_config": _sam3_vision},
    "superpoint": {"encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16, "descriptor_decoder_dim": 8},
    "vitpose": {"backbone_config": _vitpose_backbone},
}
OWN |= {"sam2_video": OWN["sam2"], "edgetam_video": OWN["edgetam"], "sam3_video": OWN["sam3_tracker"]}


def settings(model_type: str, config_class: type | None = None, **more: Any) -> dict[str, Any]:
    """Settings that make a config of this type tiny; `more` overrides them."""
    own = {name: value() if callable(value) else value for name, value in OWN.get(model_type, {}).items()}
    return shrunk(config_class or CONFIG_MAPPING[model_type], **own | more)


SIZES: dict[str, tuple[int, int]] = dict.fromkeys(
    (
        "beit", "data2vec-vision", "clip", "deit", "dinov2", "dinov2_with_registers", "ijepa", "metaclip_2", "siglip",
        "siglip2", "vit", "vit_msn", "altclip", "blip", "blip-2", "chinese_clip", "clipseg", "tipsv2", "owlvit",
        "owlv2",
        "yolos", "sapiens2", "eomt", "eomt_dinov3", "videomt", "timesformer", "videomae", "videoprism", "vivit",
        "vjepa2",
        "videoprism_vision_model", "vilt", "tipsv2_dpt", "dpt", "chmv2", "depth_anything", "prompt_depth_anything",
        "zoedepth", "dinov3_vit",
    ),
    TOKEN_SIZE,
)  # fmt: skip
SIZES |= {"swin2sr": (32, 48), "pp_lcnet": (192, 320), "vitpose": (96, 64)}
"""Height and width of the picture; `STAGED_SIZE` for types that are not listed."""
PROMPTABLE = tuple(modeling_auto.MODEL_FOR_MASK_GENERATION_MAPPING_NAMES)
SQUARES: dict[str | tuple[str, str], int] = {
    "levit": 384, "pvt": 256, "rf_detr": 192, "eomt": 96, "eomt_dinov3": 96, "videomt": 96, "aimv2_vision_model": 96,
    "llama4": 96,
    ("zero-shot-image-classification", "blip-2"): 96, ("semantic-segmentation", "data2vec-vision"): 96,
    ("semantic-segmentation", "dpt"): 192, ("depth-estimation", "dpt"): 192,
    **dict.fromkeys(PROMPTABLE, PROMPTED),
}  # fmt: skip
"""Side of the picture for types, or heads of a type, that accept only squares."""
VIDEOS = ("timesformer", "videomae", "videoprism", "videoprism_vision_model", "vivit", "vjepa2", "videomt")
WORDS = 6


@dataclass(frozen=True)
class Case:
    """One architecture with one head.

    Args:
        task: The task of transformers' auto classes.
        model_type: The config's model type.
        model_class: The name of the class in transformers.
        picture: Height and width of the picture; None for those of the type.
    """

    task: str
    model_type: str
    model_class: str
    picture: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.task}: {self.model_type}"

    @property
    def refused(self) -> bool:
        """Whether the catalogue refuses this type."""
        return any(refusal.refuses(self.model_type, self.model_class) for refusal in refusals())

    @property
    def only_squares(self) -> bool:
        """Whether the model accepts only square pictures."""
        return self._side is not None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        if self.picture is not None:
            return self.picture
        side = self._side
        return SIZES.get(self.model_type, STAGED_SIZE) if side is None else (side, side)

    @property
    def _side(self) -> int | None:
        return SQUARES.get((self.task, self.model_type)) or SQUARES.get(self.model_type)

    def build(self) -> nn.Module:
        """The model, with random weights that propagate a disturbance of the picture as trained ones do."""
        torch.manual_seed(0)
        model_class = getattr(hf, self.model_class)
        config = model_class.config_class(**settings(self.model_type, model_class.config_class))
        _set_image_size(config, self)
        if self.model_type == "dinat":
            _replace_natten()
        model = model_class(config).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.05)
        for name, parameter in model.named_parameters():
            if name.endswith("predictions.bias"):  # of a decoder, which otherwise may generate nothing
                nn.init.constant_(parameter[5:6], 20)
        prepare(model, _inputs(self, model))
        return model

    def inputs(self, model: nn.Module) -> dict[str, Any]:
        """Noise pictures and text inputs for this model."""
        return _inputs(self, model)


def prepare(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Give a randomly initialized model two properties of a trained one, without which positions are lost.

    Batch norms get the statistics of their input, because with the initial 0 and 1 a signal dies or explodes. LeViT's
    attention gets position biases that prefer nearby cells: with zeros it averages all cells, and nothing else carries
    positions between its stages.
    """
    for module in model.modules():
        if hasattr(module, "attention_biases") and hasattr(module, "attention_bias_idxs"):
            _prefer_near(module)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = None  # a cumulative average
        norm.reset_running_stats()
        norm.train()
    batch = {name: torch.cat([value] * 4) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    noise = torch.randn(batch["pixel_values"].shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        call(model, {**batch, "pixel_values": noise})
    model.eval()


def _prefer_near(attention: nn.Module) -> None:
    """Set biases that decrease with the distance between two cells, summed over rows and columns."""
    near = attention.attention_bias_idxs
    if hasattr(attention, "resolution"):  # timm's, whose index is row distance times columns plus column distance
        columns = attention.resolution[1]
        distance = near // columns + near % columns
    else:
        coarse, fine = (math.isqrt(count) for count in near.shape)
        apart = (torch.arange(coarse)[:, None] * (fine / coarse) - torch.arange(fine)).abs()  # along one axis
        distance = (apart[:, None, :, None] + apart[None, :, None, :]).reshape(near.shape)
    with torch.no_grad():
        attention.attention_biases[:, near] = -3.0 * distance
    attention.attention_bias_cache = {}


def _replace_natten() -> None:
    """Neighbourhood attention in plain torch, because the package that DiNAT uses for it has to be compiled."""
    from transformers.models.dinat import modeling_dinat

    def neighbours(values: Tensor, kernel: int) -> Tensor:
        rows, columns = (
            (torch.arange(cells) - kernel // 2).clamp(0, cells - kernel)[:, None] + torch.arange(kernel)
            for cells in values.shape[2:4]
        )
        return values[:, :, rows[:, None, :, None], columns[None, :, None, :]].flatten(4, 5)

    def scores(query: Tensor, key: Tensor, _: Tensor, kernel: int, dilation: int) -> Tensor:
        # transformers 5.23 passes (B, W, H, heads, D) and expects (B, heads, H, W, D).
        query, key = query.permute(0, 3, 2, 1, 4), key.permute(0, 3, 2, 1, 4)
        return torch.einsum("bnhwd,bnhwkd->bnhwk", query, neighbours(key, kernel))

    def weighted(attention: Tensor, value: Tensor, kernel: int, dilation: int) -> Tensor:
        value = value.permute(0, 3, 2, 1, 4)
        return torch.einsum("bnhwk,bnhwkd->bnhwd", attention, neighbours(value, kernel))

    modeling_dinat.natten2dqkrpb, modeling_dinat.natten2dav = scores, weighted
    modeling_dinat.requires_backends = lambda *_: None


def cases(*tasks: str) -> Iterator[Case]:
    """Every architecture of the auto mappings, by task."""
    for task in tasks or TASKS:
        names: Mapping[str, Any] = getattr(modeling_auto, f"MODEL_FOR_{TASKS[task]}_MAPPING_NAMES")
        for model_type, classes in names.items():
            yield Case(task, model_type, classes if isinstance(classes, str) else classes[0])


def case_of(task: str, model_type: str) -> Case:
    """This architecture with the head of this task."""
    return next(case for case in cases(task) if case.model_type == model_type)


VOCABULARY = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", ",", "a", "photo", "of", "cat", "dog", "red", "cup", "kettle", "detect",
    "what",
)  # fmt: skip


def words_tokenizer() -> hf.PreTrainedTokenizerFast:
    """One token per word of `VOCABULARY`, between a class token and a separator."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [(word, VOCABULARY.index(word)) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=around)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def _set_image_size(config: Any, case: Case) -> None:
    """Set the picture's height and width if the config accepts both, else its height."""
    for part in (config, getattr(config, "vision_config", None)):
        if part is not None and getattr(part, "image_size", None) is not None:
            part.image_size = case.size if case.model_type in RECTANGULAR else case.size[0]


RECTANGULAR = {"beit", "yolos", "swin", "swinv2", "donut-swin", "videomae", "vivit", "hiera"}
"""Types whose configs accept height and width; others interpolate square positions or accept any size."""


def _interpolates(model: nn.Module) -> bool:
    return "interpolate_pos_encoding" in inspect.signature(model.forward).parameters or any(
        name in type(model).__name__ for name in ("CLIPForImage", "Clip2ForImage")
    )


def _inputs(case: Case, model: nn.Module) -> dict[str, Any]:
    noise = torch.Generator().manual_seed(1)
    height, width = case.size
    words = {"input_ids": torch.arange(2, 2 + WORDS)[None], "attention_mask": torch.ones(1, WORDS, dtype=torch.long)}
    inputs: dict[str, Any] = {"pixel_values": torch.randn(1, 3, height, width, generator=noise)}
    if case.model_type not in RECTANGULAR and height != width and _interpolates(model):
        inputs["interpolate_pos_encoding"] = True
    if case.model_type in VIDEOS:
        inputs["pixel_values"] = torch.randn(1, 4, 3, height, width, generator=noise)
    if case.model_type == "siglip2":
        rows, columns = height // 16, width // 16
        inputs = {
            "pixel_values": torch.randn(1, rows * columns + 8, 3 * 16 * 16, generator=noise),
            "pixel_attention_mask": torch.tensor([[1] * rows * columns + [0] * 8]),
            "spatial_shapes": torch.tensor([[rows, columns]]),
        }
    if case.task in ("zero-shot-image-classification", "zero-shot-object-detection", "visual-question-answering"):
        inputs |= words
    if case.model_type == "siglip" or case.model_type == "siglip2":
        inputs.pop("attention_mask", None)
    if case.model_type == "omdet-turbo":
        inputs = {
            "pixel_values": inputs["pixel_values"],
            "classes_input_ids": words["input_ids"].repeat(3, 1),
            "classes_attention_mask": words["attention_mask"].repeat(3, 1),
            "tasks_input_ids": words["input_ids"],
            "tasks_attention_mask": words["attention_mask"],
            "classes_structure": torch.tensor([3]),
        }
    if case.model_type == "blip-2" and case.task == "visual-question-answering":
        inputs["input_ids"] = torch.tensor([[98] * 4 + [5, 6]])
    if case.model_type == "blip" and case.task == "visual-question-answering":
        inputs["decoder_input_ids"] = torch.tensor([[1]])
    if case.task == "mask-generation":
        inputs["input_points"] = torch.tensor([[[[width * 0.6, height * 0.3]]]])
    if case.model_type == "oneformer":
        inputs["task_inputs"] = torch.ones(1, 77, dtype=torch.long)
    if case.model_type == "prompt_depth_anything":
        inputs["prompt_depth"] = torch.rand(1, 1, height // 4, width // 4, generator=noise)
    return inputs
