"""What a model reports about itself in its config, its forward's signature and its modules; no other file asks it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_cam.errors import ModelError, OptionError
from hf_cam.layouts import Size
from hf_cam.models.families import declared
from hf_cam.threads import cached_property

PASSED_ON = ("output_attentions", "output_hidden_states", "return_dict", "attention_mask", "interpolate_pos_encoding")
"""Inputs that transformers' forwards take without listing them."""
RGB = 3
DEFAULT_SIZE = (224, 224)


def comes_from(module: nn.Module, library: str) -> bool:
    """Whether a module's class, or one that it inherits from, is defined in a library or a file of it."""
    return any(f"{parent.__module__}.".startswith(f"{library}.") for parent in type(module).__mro__)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, `DataParallel`, `DistributedDataParallel` or `ultralytics.YOLO`.

    Its hooks do fire.

    Raises:
        ModelError: TorchScript compiled the model, so that no hook sees its layers.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("a model compiled by torch.jit hides its layers; pass the module that it was compiled from")
    while (inner := _wrapped(model)) is not None:
        model = inner
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    """The module in a wrapper; None if the model is none."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        wrapped: nn.Module = model.module
        return wrapped
    inner: Any = model.__dict__.get("_modules", {}).get("_orig_mod")
    if inner is None and comes_from(model, "ultralytics.engine.model"):
        inner = model.model
    return inner if isinstance(inner, nn.Module) else None


def accepts(module: nn.Module, name: str) -> bool:
    """True if the module's forward has a parameter of this name, by its signature or its `main_input_name`."""
    parameters = inspect.signature(module.forward).parameters
    if name in parameters:
        return True
    wrapped = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
    return wrapped and getattr(module, "main_input_name", None) == name


def picture_place(module: nn.Module, named: Collection[str]) -> str:
    """The parameter of a module's forward that takes the picture; empty for the first, which needs no name.

    It is `pixel_values` or the model's `main_input_name`; else the one required parameter that is not named already,
    or, where all of those left are optional, the one whose name says so.

    Args:
        module: The model.
        named: The names of its other inputs.

    Raises:
        OptionError: there is no such parameter, or more than one.
    """
    parameters = inspect.signature(module.forward).parameters
    if accepts(module, "pixel_values"):
        return "pixel_values"
    free = [one for one in parameters.values() if one.kind in _NAMED and one.name not in named]
    main = getattr(module, "main_input_name", None)
    if main != "input_ids" and main in [one.name for one in free]:
        return str(main)
    required = [one for one in free if one.default is one.empty]
    fitting = required or [one for one in free if _PICTURE.search(one.name)] or free
    if len(fitting) == 1:
        [picture], first = fitting, next(iter(parameters.values()))
        return "" if picture is first and picture.kind is not picture.KEYWORD_ONLY else picture.name
    if not free and any(one.kind is one.VAR_POSITIONAL for one in parameters.values()):
        return ""
    if not free and any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return "pixel_values"
    raise OptionError(
        f"{type(module).__name__}'s forward takes {', '.join(parameters) or 'nothing'}, and "
        + (f"{' and '.join(one.name for one in fitting)} are left" if fitting else "none is left")
        + " for the picture; name every input but the picture: hf_cam.CAM(model)(picture, NAME=...)"
    )


_NAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)
_PICTURE = re.compile(r"imag|img|pixel|pict|photo|video|frame|^(x|inputs?|samples?)$")


def swallows(module: nn.Module, name: str) -> bool:
    """True if the module's forward lists other inputs, but would accept this one in its `**kwargs` and ignore it."""
    parameters = inspect.signature(module.forward).parameters.values()
    listed = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    wrapped = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    return bool(listed) and not wrapped and name not in listed and name not in PASSED_ON


@dataclass(frozen=True)
class ModelTraits:
    """What one model reports about itself; made by `traits_of`.

    Args:
        module: The model without its wrappers.
        config: Its config, or None.
    """

    module: nn.Module
    config: Any

    # Names -----------------------------------------------------------------------------------------------------------

    @property
    def class_name(self) -> str:
        """The name of the model's class, for messages."""
        return type(self.module.__dict__.get("pair", self.module)).__name__

    @cached_property
    def model_type(self) -> str:
        """`config.model_type`; empty if there is none."""
        return str(self.read("model_type", ""))

    @cached_property
    def name_or_path(self) -> str:
        """The Hub id or folder that the model was loaded from; empty if the config does not contain it."""
        return str(self.read("_name_or_path") or "")

    @cached_property
    def id2label(self) -> dict[int, str]:
        """The class names in the config or in timm's metadata, by index; empty if there are none."""
        named = self.read("id2label") or ({} if self.timm is None else timm_names(self.timm))
        if not named and comes_from(self.module, "ultralytics"):
            named = getattr(self.module, "names", None) or {}
        return {int(index): str(label) for index, label in named.items()}

    @cached_property
    def class_count(self) -> int | None:
        """How many classes the model has, according to its config or its own `num_classes`; 0 if it has none."""
        count = self.read("num_labels", getattr(self.timm or self.module, "num_classes", None))
        return count if isinstance(count, int) else None

    @cached_property
    def problem_type(self) -> str | None:
        """`config.problem_type`: "regression", "multi_label_classification", ..."""
        problem: str | None = self.read("problem_type")
        return problem

    def read(self, name: str, default: Any = None) -> Any:
        """A field of the config, or the default if it has no such field."""
        return getattr(self.config, name, default)

    def declares(self, field: str) -> bool:
        """Whether the data files in `adapters/` set a trait for the model's family."""
        return bool(declared(self.model_type, field))

    # Kinds -----------------------------------------------------------------------------------------------------------

    @cached_property
    def is_transformers(self) -> bool:
        """Whether the model is one of transformers' classes."""
        from transformers import PreTrainedModel

        return isinstance(self.module, PreTrainedModel)

    @cached_property
    def timm(self) -> nn.Module | None:
        """The timm network inside `TimmWrapper...`, the model itself if it is timm's, else None."""
        return timm_model(self.module)

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """The model's `input_modalities`; empty if it has none."""
        return tuple(getattr(self.module, "input_modalities", None) or ())

    @cached_property
    def takes_videos(self) -> bool:
        """Whether this is a transformers model that takes only videos."""
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
        )

        # TimeSformer is listed there, but reports that it takes images.
        return self.model_type in CLASSIFIERS or ("video" in self.modalities and "image" not in self.modalities)

    @property
    def writes(self) -> bool:
        """Whether the model generates text."""
        return hasattr(self.module, "generate")

    @cached_property
    def answers_in_words(self) -> bool:
        """Whether transformers lists the model's class, or one that it inherits from, under image-text-to-text."""
        known = _writers()
        return any(parent.__name__ in known for parent in type(self.module).__mro__)

    @property
    def has_classifier(self) -> bool:
        """Whether the model has a module called `classifier`."""
        return hasattr(self.module, "classifier")

    def accepts(self, name: str) -> bool:
        """See `accepts`."""
        return accepts(self.module, name)

    def swallows(self, name: str) -> bool:
        """See `swallows`."""
        return swallows(self.module, name)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The names of the forward's parameters."""
        return tuple(inspect.signature(self.module.forward).parameters)

    # Pictures --------------------------------------------------------------------------------------------------------

    @cached_property
    def image_size(self) -> Size | None:
        """Height and width given as `image_size` in the config of a model whose position encodings have one size."""
        return _pair(_vision(self.config, "image_size"))

    @cached_property
    def usual_size(self) -> Size:
        """Height and width of the pictures that the model was made for; 224 x 224 by default."""
        size = _vision(self.config, "image_size") or _vision(self.config, "crop_size")
        if isinstance(size, Mapping):
            size = (size.get("height"), size.get("width"))
        return _pair(size) or (_timm_size(self.timm) if self.timm is not None else DEFAULT_SIZE)

    @cached_property
    def channels(self) -> int:
        """Channels of the pictures, from the config or the model's first convolution; 3 if it has none."""
        channels = _vision(self.config, "num_channels")
        kinds = nn.Conv2d | nn.Conv3d
        own = (child.in_channels for child in self.module.modules() if isinstance(child, kinds))
        return channels if isinstance(channels, int) else next(own, RGB)

    @cached_property
    def patch(self) -> Size | None:
        """Height and width in pixels of the patches, from the config."""
        return patch_of(self.config)

    @cached_property
    def cut(self) -> Size | None:
        """`patch`, or else the patch size of the module that cuts the picture, possibly without a convolution."""
        named = list(self.module.named_modules())
        cutters = (child for name, child in named if name.rpartition(".")[2].startswith("patch_embed"))
        rearranging = (_rearranged(child) for _, child in named)
        return self.patch or next(filter(None, (*map(patch_of, cutters), *rearranging)), None)

    @cached_property
    def frames(self) -> int | None:
        """How many frames a video model takes; None if the config does not give them."""
        frames = _vision(self.config, "num_frames") or _vision(self.config, "frames_per_clip")
        return frames if isinstance(frames, int) else None

    @cached_property
    def counts_frames(self) -> bool:
        """Whether the model takes videos, according to its modalities or because its patches extend over time."""
        return "video" in self.modalities or _vision(self.config, "tubelet_size") is not None

    # Words -----------------------------------------------------------------------------------------------------------

    @cached_property
    def longest_text(self) -> int | None:
        """How many tokens the model's text tower can read; None if the config does not give them."""
        length = _text(self.config, "max_position_embeddings")
        return length if isinstance(length, int) else None

    @cached_property
    def vocabulary(self) -> int | None:
        """The size of the text tower's vocabulary; None if there is none."""
        size: int | None = _text(self.config, "vocab_size")
        return size

    @cached_property
    def separates_prompts(self) -> bool:
        """Whether the model was trained with a sigmoid for each prompt, as SigLIP, which has a bias for it."""
        return any(name.endswith("logit_bias") for name, _ in self.module.named_parameters())

    # Parameters ------------------------------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether the model has parameters, all of them on the meta device and not offloaded from it by accelerate."""
        devices = (parameter.device.type for parameter in self.module.parameters())
        return next(devices, "") == "meta" and all(one == "meta" for one in devices) and not self.is_offloaded

    @property
    def is_offloaded(self) -> bool:
        """Whether accelerate fetches weights for each forward, from the CPU's memory or from files."""
        return any(getattr(getattr(module, "_hf_hook", None), "offload", False) for module in self.module.modules())

    @property
    def weight(self) -> torch.Tensor | None:
        """The first floating parameter that holds values; inputs go to its device and dtype."""
        parameters = self.module.parameters()
        return next((one for one in parameters if one.device.type != "meta" and one.is_floating_point()), None)


def traits_of(model: nn.Module) -> ModelTraits:
    """What a model reports about itself.

    >>> from transformers import ViTConfig, ViTModel
    >>> config = ViTConfig(image_size=(64, 96), hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    >>> traits_of(ViTModel(config)).image_size
    (64, 96)
    """
    module = unwrap(model)
    return ModelTraits(module, config_of(module))


def config_of(module: nn.Module) -> Any:
    """The model's config, or None."""
    return getattr(module, "config", None)


def patch_of(config: Any) -> Size | None:
    """Height and width in pixels of the patches, from a config or from the module that cuts them."""
    size, tubelet = _vision(config, "patch_size"), _vision(config, "tubelet_size")
    if size is None and isinstance(tubelet, list | tuple) and len(tubelet) == 3:
        size = tubelet[1:]
    return _pair(size)


def _rearranged(module: nn.Module) -> Size | None:
    """Height and width of the patches that einops' `Rearrange("b c (h p1) (w p2) -> ...")` cuts."""
    lengths = getattr(module, "axes_lengths", None) if comes_from(module, "einops") else None
    return _pair([lengths.get("p1"), lengths.get("p2")]) if isinstance(lengths, Mapping) else None


def count_of(config: Any, name: str) -> int:
    """An integer in the vision part of a config, such as "num_register_tokens"; AttributeError if there is none."""
    return int(getattr(getattr(config, "vision_config", config), name))


def timm_model(module: nn.Module) -> nn.Module | None:
    """The timm network inside `TimmWrapper...`, the model itself if it is timm's, else None."""
    inner = getattr(module, "timm_model", None)
    if isinstance(inner, nn.Module):
        return inner
    return module if hasattr(module, "pretrained_cfg") and hasattr(module, "forward_features") else None


def timm_names(net: nn.Module) -> dict[int, str]:
    """The class names of a timm network, by index: those in its metadata, or else those of its ImageNet subset.

    Empty if it has another number of classes than the weights that the metadata describes.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    config = _timm_config(net)
    count = config.get("num_classes")
    if not count or getattr(net, "num_classes", None) != count:
        return {}
    names = config.get("label_names")
    if not names and (subset := infer_imagenet_subset(dict(config))) is not None:
        names = ImageNetInfo(subset).label_descriptions()
    return dict(enumerate(names)) if names and len(names) == count else {}


@dataclass(frozen=True)
class TimmTraits:
    """The metadata of a timm network.

    Args:
        architecture: timm's name for it; empty if there is none.
        stage: Dotted name of its last stage; empty if `feature_info` has none.
        prefix: Tokens before the grid; None if the network returns maps.
        pools_token: Whether its head reads only the class token.
        channels_last: Whether its maps are `[B, h, w, C]`.
        patch: Height and width of its patches in pixels; None if it has none.
    """

    architecture: str
    stage: str
    prefix: int | None
    pools_token: bool
    channels_last: bool
    patch: Size | None


def timm_traits(net: nn.Module) -> TimmTraits:
    """The metadata of a timm network."""
    info = getattr(net, "feature_info", None)
    stages = getattr(info, "info", info)
    prefix = getattr(net, "num_prefix_tokens", None)
    return TimmTraits(
        architecture=str(_timm_config(net).get("architecture", "")),
        stage=stages[-1].get("module", "") if stages else "",
        prefix=prefix if isinstance(prefix, int) else None,
        pools_token=getattr(net, "global_pool", "") == "token",
        channels_last=getattr(net, "output_fmt", "NCHW") == "NHWC",
        patch=_pair(getattr(getattr(net, "patch_embed", None), "patch_size", None)),
    )


def takes_pictures(loader: Any, config: Any) -> bool:
    """Whether a transformers class with this config takes images."""
    if loader.__name__.startswith("Auto"):
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

        return config.model_type in CLASSIFIERS
    if "image" in (getattr(loader, "input_modalities", None) or ()):
        return True
    main_input = getattr(loader, "main_input_name", "")
    return main_input in ("pixel_values", "pixel_values_videos") or hasattr(config, "vision_config")


def check_takes_pictures(model: nn.Module) -> None:
    """Refuse a transformers model that takes no images; for other modules, only a forward can show it.

    Raises:
        ModelError: the model takes no images.
    """
    traits = traits_of(model)
    if traits.is_transformers and not takes_pictures(type(traits.module), traits.config):
        raise ModelError(f"{traits.class_name} is a {traits.model_type!r} model, which takes no images")


def writes_words(config: Any) -> bool:
    """Whether a config names a class that transformers lists under image-text-to-text.

    >>> from transformers import LlavaConfig, ViTConfig
    >>> writes_words(ViTConfig()), writes_words(LlavaConfig(architectures=["LlavaForConditionalGeneration"]))
    (False, True)
    """
    return any(name in _writers() for name in architectures(config))


def _writers() -> Collection[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as WRITERS

    return tuple(WRITERS.values())


def architectures(config: Any) -> Sequence[str]:
    """The class names that a config lists."""
    return getattr(config, "architectures", None) or ()


def architectures_of_pictures(config: Any) -> Sequence[str]:
    """The class names that a config lists; of a model that segments videos, the class of the same for pictures.

    transformers lists that class under mask generation for the type of the video model, whose checkpoint contains it.

    >>> from transformers import Sam2VideoConfig
    >>> architectures_of_pictures(Sam2VideoConfig(architectures=["Sam2VideoModel"]))
    ['Sam2Model']
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING_NAMES as SEGMENTERS

    listed = architectures(config)
    of_videos = any("Video" in name for name in listed) and config.model_type in SEGMENTERS
    return [SEGMENTERS[config.model_type]] if of_videos else listed


def transformers_classes(names: Sequence[str]) -> list[Any]:
    """The transformers classes with these names, as far as they exist."""
    import transformers

    return [found for name in names if (found := getattr(transformers, name, None)) is not None]


def _vision(config: Any, name: str) -> Any:
    return getattr(getattr(config, "vision_config", None) or config, name, None)


def _text(config: Any, name: str) -> Any:
    return getattr(getattr(config, "text_config", None) or config, name, None)


def _timm_config(net: nn.Module) -> Mapping[str, Any]:
    return getattr(net, "pretrained_cfg", None) or {}


def _timm_size(net: nn.Module) -> Size:
    """Of the pictures that a network was built for; only else of those that its weights were trained on."""
    own = _pair(getattr(getattr(net, "patch_embed", None), "img_size", None))
    _, height, width = _timm_config(net).get("input_size", (RGB, *DEFAULT_SIZE))
    return own or (height, width)


def _pair(size: Any) -> Size | None:
    """Height and width from one number or a pair; None for everything else."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[0], size[1]
    return None
