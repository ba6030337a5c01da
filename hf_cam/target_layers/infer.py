"""Which adapter a model gets: from the caller, its `cam_config.json`, the catalogue, timm's metadata or the probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.capture import accepts, capture
from hf_cam.capture.guard import unwrap
from hf_cam.errors import HFCamError, LayerError, ModelError, OptionError, UnknownArchitecture, nearest
from hf_cam.layouts import NCHW, NHWC, PREFIXES, TOKENS, AnyLayout, Layout, Reshape, Size, Spatial
from hf_cam.target_layers.adapter import Adapter, find_cam_config, read_cam_config
from hf_cam.target_layers.catalogue import check_not_refused, config_of, from_catalogue, patch_of, timm_model
from hf_cam.target_layers.probe import MIN_COVERAGE, probe
from hf_cam.targets import class_logits


def infer_adapter(
    model: nn.Module | Any,
    *,
    layers: Sequence[str] | str | None = None,
    reshape: Callable[[Tensor], Tensor] | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> Adapter:
    """Where to look in a model, from what the caller says, its `cam_config.json`, the catalogue, timm or the probe.

    Args:
        model: A loaded model, or a transformers config (its module tree is then built without weights).
        layers: Dotted layer names that take the place of the inferred ones.
        reshape: `activation -> [B, C, h, w]`, in place of the inferred layout.
        inputs: The model's keyword inputs, for the probe; made from the config where not given.

    Raises:
        LayerError: a layer in `layers` does not exist.
        UnknownArchitecture: nothing tells where to look.
    """
    module = unwrap(model if isinstance(model, nn.Module) else module_tree(model))
    declared = declared_adapter(module, layers=layers, reshape=reshape)
    if declared is not None and (declared.origin != "timm" or _holds(module, declared, inputs)):
        return declared
    if not isinstance(model, nn.Module):
        module = module_tree(
            model, device="cpu"
        )  # the probe looks at gradients, which take weights, if only random ones
    return _with_reshape(probed_adapter(module, inputs), reshape)


def declared_adapter(
    model: nn.Module,
    *,
    layers: Sequence[str] | str | None = None,
    reshape: Callable[[Tensor], Tensor] | None = None,
) -> Adapter | None:
    """What is known without running the model: the same as `infer_adapter`, but None where only the probe can tell."""
    module = unwrap(model)
    check_takes_pictures(module)
    if reshape is not None and not callable(reshape):
        raise OptionError(f"reshape is a function from an activation to [B, C, h, w], not {type(reshape).__name__}")
    if layers is not None:
        return _callers_adapter(module, layers, reshape)
    check_not_refused(module)
    declared = _from_cam_config(module) or from_catalogue(module) or _from_timm(module)
    return declared and _with_reshape(declared, reshape)


def _with_reshape(adapter: Adapter, reshape: Callable[[Tensor], Tensor] | None) -> Adapter:
    if reshape is None:
        return adapter
    return Adapter(adapter.layers, (Reshape(reshape),) * len(adapter.layers), adapter.method, "caller")


def module_tree(config: Any, device: str = "meta") -> nn.Module:
    """The model that a transformers config describes: every module, on the meta device without weights.

    Raises:
        OptionError: this is no config.
        UnknownArchitecture: the config belongs to no class that looks at images.
    """
    if not hasattr(config, "model_type"):
        raise OptionError(
            f"expected a loaded model or a transformers config, got {type(config).__name__}; "
            "`hf-cam adapter NAME` and Adapter.from_pretrained(NAME) take names"
        )
    failures = []
    for loader in _classes_of(config):
        try:
            with torch.device(device):
                return loader(config)  # type: ignore[no-any-return]
        except (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError, ImportError) as error:
            failures.append(f"{loader.__name__}: {error}")
    raise UnknownArchitecture(
        f"no model can be built from a config of type {config.model_type!r}" + (f" ({failures[0]})" if failures else "")
    )


def _classes_of(config: Any) -> Iterator[type[nn.Module]]:
    """The classes that the config names, else the classifier and the bare model of its type."""
    import transformers
    from transformers.models.auto import modeling_auto

    for name in getattr(config, "architectures", None) or []:
        if (found := getattr(transformers, name, None)) is not None:
            yield found
    for mapping in (modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, modeling_auto.MODEL_MAPPING_NAMES):
        names = mapping.get(config.model_type, ())
        for name in (names,) if isinstance(names, str) else names:
            if (found := getattr(transformers, name, None)) is not None:
                yield found


def check_takes_pictures(model: nn.Module) -> None:
    """Refuse a transformers model of another kind; what other modules take, only a run can tell.

    Raises:
        ModelError: it takes no images.
    """
    from transformers import PreTrainedModel

    module = unwrap(model)
    if isinstance(module, PreTrainedModel) and not takes_pictures(type(module), module.config):
        raise ModelError(f"{type(module).__name__} is a {module.config.model_type!r} model, which takes no images")


def takes_pictures(loader: Any, config: Any) -> bool:
    """Whether a transformers class with this config looks at images."""
    if loader.__name__.startswith("Auto"):
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

        return config.model_type in CLASSIFIERS
    if "image" in (getattr(loader, "input_modalities", None) or ()):
        return True
    return getattr(loader, "main_input_name", "") in ("pixel_values", "pixel_values_videos") or hasattr(
        config, "vision_config"
    )


# What the caller says ------------------------------------------------------------------------------------------------


def _callers_adapter(
    module: nn.Module, layers: Sequence[str] | str, reshape: Callable[[Tensor], Tensor] | None
) -> Adapter:
    if not isinstance(layers, str | Sequence):
        raise OptionError(f"layers is a dotted name or a list of them, not {type(layers).__name__}")
    names = (layers,) if isinstance(layers, str) else tuple(dict.fromkeys(layers))
    if not names:
        raise LayerError("layers= names no layer; leave it out to have one inferred")
    known = dict(module.named_modules())
    for name in names:
        if not isinstance(name, str):
            own = next((dotted for dotted, child in known.items() if child is name), "its dotted name")
            raise OptionError(f"layers= takes dotted names, not modules; pass {own!r}")
        if name not in known or not name:
            raise LayerError(f"the model has no layer {name!r}; nearest: {nearest(name, filter(None, known))}")
    layout: Spatial = Reshape(reshape) if reshape else AnyLayout(_prefixes(module), patch_of(config_of(module)))
    return Adapter(names, (layout,) * len(names), origin="caller", reason="given by the caller")


def _prefixes(module: nn.Module) -> tuple[int, ...]:
    """Prefix counts to try on a layer that the caller chose: the family's own first."""
    try:
        known = from_catalogue(module) or _from_timm(module)
    except HFCamError:
        known = None
    own = tuple(layout.prefix for layout in known.layouts if isinstance(layout, Layout)) if known else ()
    return tuple(dict.fromkeys((*own, *PREFIXES)))


# cam_config.json -----------------------------------------------------------------------------------------------------


def _from_cam_config(module: nn.Module) -> Adapter | None:
    name = getattr(config_of(module), "_name_or_path", "") or ""
    path = find_cam_config(str(name)) if name else None
    if path is None:
        return None
    adapter = read_cam_config(path)
    known = dict(module.named_modules())
    for layer in adapter.layers:
        if layer not in known:
            raise LayerError(f"{path} names a layer {layer!r} that the model lacks; nearest: {nearest(layer, known)}")
    return adapter


# timm ----------------------------------------------------------------------------------------------------------------


def _from_timm(module: nn.Module) -> Adapter | None:
    """Timm's own metadata: the last stage that `feature_info` names, `num_prefix_tokens`, `output_fmt`.

    None where the metadata says too little (the probe then looks at the structure).
    """
    net = timm_model(module)
    if net is None:
        return None
    root = "" if net is module else "timm_model."
    names = {name for name, _ in net.named_modules()}
    info = getattr(net, "feature_info", None)
    stages = getattr(info, "info", info)
    stage = stages[-1].get("module", "") if stages else ""
    if isinstance(getattr(net, "num_prefix_tokens", None), int):
        return _from_timm_tokens(net, root, stage, names)
    return (
        None
        if stage not in names
        else Adapter(
            (root + stage,),
            (Layout(NHWC if getattr(net, "output_fmt", "NCHW") == "NHWC" else NCHW),),
            origin="timm",
            reason="the last stage that timm's feature_info names",
        )
    )


def _from_timm_tokens(net: nn.Module, root: str, stage: str, names: set[str]) -> Adapter | None:
    # A head that reads only the class token leaves the patches of the last block's output without gradient.
    layer = f"{stage}.norm1" if getattr(net, "global_pool", "") == "token" else stage
    if layer not in names:
        return None
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    patch = (patch, patch) if isinstance(patch, int) else patch
    layout = Layout(TOKENS, prefix=int(net.num_prefix_tokens), patch=tuple(patch) if patch else None)  # type: ignore[arg-type]
    return Adapter((root + layer,), (layout,), origin="timm", reason="the last block that timm's feature_info names")


def _holds(module: nn.Module, adapter: Adapter, inputs: Mapping[str, Tensor] | None) -> bool:
    """Whether one forward bears the claim out: spatial as said, and the highest logit depends on nearly every cell."""
    inputs = inputs or sample_inputs(module)
    size = (inputs["pixel_values"].shape[-2], inputs["pixel_values"].shape[-1])
    try:
        with capture(module, adapter.layers, inputs) as captured:
            cells = adapter.to_spatial(captured.activations[0], size)
            if cells.is_meta:
                return True  # no values, hence no gradients to look at
            [gradient, *_] = captured.gradients(class_logits(captured.outputs).amax(1).sum())
            reached = adapter.to_spatial(gradient, size).abs().sum(1) > 0
            return bool(reached.float().mean() >= MIN_COVERAGE)
    except HFCamError:
        return False


# The probe -----------------------------------------------------------------------------------------------------------


def probed_adapter(model: nn.Module, inputs: Mapping[str, Tensor] | None = None) -> Adapter:
    """What the structure alone tells, from one traced forward on `inputs` (noise of the model's own size if None).

    Raises:
        UnknownArchitecture: no layer is spatial and influences the target, or its cells are in no order.
    """
    module = unwrap(model)
    finding = probe(module, inputs or sample_inputs(module), patch=_patch(module))
    if finding.verdict == "refuted":
        raise UnknownArchitecture(
            f"{type(module).__name__} mixes its patches (the likeliest layer, {finding.layer!r}, does not change where "
            "the picture does): no map of it would lie over the picture; name another layer with layers= and reshape="
        )
    return Adapter(
        (finding.layer,),
        (finding.layout,),
        origin="probe",
        reason=f"deepest spatial layer; {finding.coverage:.0%} of its cells reach the target",
    )


def _patch(module: nn.Module) -> Size | None:
    """Of the config, else of the module that cuts the picture, which may do so without a convolution."""
    cutters = (child for name, child in module.named_modules() if name.rpartition(".")[2].startswith("patch_embed"))
    return patch_of(config_of(module)) or next(filter(None, map(patch_of, cutters)), None)


def sample_inputs(module: nn.Module) -> dict[str, Tensor]:
    """A picture of noise, as large as the config or timm names (else 224 x 224), on the model's device.

    A video of noise where the config counts frames, and a few words where the model also reads text.
    """
    config, net = config_of(module), timm_model(module)
    vision = getattr(config, "vision_config", None) or config
    native = getattr(net, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]
    size = getattr(vision, "image_size", None) or getattr(vision, "crop_size", None) or native
    if isinstance(size, Mapping):
        size = (size["height"], size["width"])
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    parameter = next(module.parameters(), torch.zeros(()))
    channels = getattr(vision, "num_channels", 3)
    channels = channels if isinstance(channels, int) else 3
    frames = _frames(module, vision)
    shape = (1, channels, height, width) if frames is None else (1, frames, channels, height, width)
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(shape, generator=generator)
    picture = picture.to(parameter.device, parameter.dtype if parameter.is_floating_point() else torch.float32)
    return {"pixel_values": picture, **_words(module, config)}


def _frames(module: nn.Module, vision: Any) -> int | None:
    """How many frames a model of videos takes; None for one of pictures."""
    if "video" not in (getattr(module, "input_modalities", None) or ()) and not hasattr(vision, "tubelet_size"):
        return None
    frames = getattr(vision, "num_frames", None) or getattr(vision, "frames_per_clip", None)
    return frames if isinstance(frames, int) else None


def _words(module: nn.Module, config: Any) -> dict[str, Tensor]:
    """Token ids and their mask, where the forward takes them beside the picture."""
    text = getattr(config, "text_config", None) or config
    vocabulary = getattr(text, "vocab_size", None)
    if vocabulary is None or not accepts(module, "input_ids"):
        return {}
    device = next(module.parameters(), torch.zeros(())).device
    words = {"input_ids": torch.arange(1, 6, device=device)[None] % vocabulary}
    if accepts(module, "attention_mask"):
        words["attention_mask"] = torch.ones_like(words["input_ids"])
    return words
