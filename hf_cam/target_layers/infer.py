"""Which adapter a model gets: from the caller, its `cam_config.json`, the catalogue, timm's metadata or the probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hf_cam.capture.capture import capture
from hf_cam.capture.inputs import others_of
from hf_cam.capture.runs import located
from hf_cam.doors import door
from hf_cam.errors import HFCamError, LayerError, ModelError, OptionError, UnknownArchitecture, nearest
from hf_cam.layouts import NCHW, NHWC, PREFIXES, TOKENS, Layout, Reshape
from hf_cam.models.refused import check_not_refused
from hf_cam.models.traits import (
    ModelTraits,
    architectures,
    check_takes_pictures,
    timm_model,
    timm_traits,
    traits_of,
    transformers_classes,
    unwrap,
)
from hf_cam.outputs import class_logits
from hf_cam.target_layers.adapter import Adapter, find_cam_config, read_cam_config
from hf_cam.target_layers.catalogue import from_catalogue
from hf_cam.target_layers.named import Layers, named_adapter, settled
from hf_cam.target_layers.probe import MIN_COVERAGE, probe
from hf_cam.threads import BUILDING

Result = TypeVar("Result")


@door()
def infer_adapter(
    model: nn.Module | Any,
    *,
    layers: Layers | None = None,
    reshape: Callable[[Tensor], Tensor] | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> Adapter:
    """Where to look in a model, from the arguments, its `cam_config.json`, the catalogue, timm's metadata or the probe.

    Args:
        model: A loaded model, or a transformers config (its module tree is then built without weights).
        layers: Dotted names, or modules of the model, to use instead of the inferred layers; `name:1` is the second run
            of a layer that runs several times in a forward.
        reshape: `activation -> [B, C, h, w]`, used instead of the inferred layout.
        inputs: The model's keyword inputs, for the probe; made from the config by default.

    Raises:
        LayerError: a layer in `layers` does not exist.
        ModelError: the model takes no images, or fails on `inputs`.
        UnknownArchitecture: none of these sources gives a layer, or the model does not run on a picture of noise.
    """
    module = unwrap(model if isinstance(model, nn.Module) else module_tree(model))
    declared = declared_adapter(module, layers=layers, reshape=reshape)
    if declared is not None and layers is not None and inputs is not None:
        return settle(declared, module, inputs)
    if declared is not None and declared.origin != "timm":
        return declared
    if declared is not None and _running(module, inputs, lambda: _is_confirmed(module, declared, inputs)):
        return declared
    if not isinstance(model, nn.Module):
        module = module_tree(model, device="cpu")  # the probe needs gradients, and so weights, though random ones do
    return probed_adapter(module, inputs, reshape)


def _running(module: nn.Module, inputs: Mapping[str, Any] | None, run: Callable[[], Result]) -> Result:
    """What `run` returns; the model's own exceptions become one of ours, with theirs as the cause."""
    try:
        return run()
    except HFCamError as error:
        if inputs is not None or not isinstance(error, OptionError):
            raise
        raise UnknownArchitecture(f"{error}; infer_adapter takes them all as inputs=") from error
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        if inputs is not None:
            raise ModelError(
                f"{type(module).__name__} fails on these inputs ({why}); it gets the picture as a tensor "
                f"[B, C, H, W] beside {', '.join(others_of(inputs)) or 'nothing else'}: pass what else it needs by "
                "name, or wrap it in a module whose forward takes a picture"
            ) from error
        raise UnknownArchitecture(
            f"{type(module).__name__} does not run on a picture of noise ({why}), so its structure cannot be seen; "
            "pass inputs= (the forward's inputs by name), or layers= and reshape="
        ) from error


def declared_adapter(
    model: nn.Module,
    *,
    layers: Layers | None = None,
    reshape: Callable[[Tensor], Tensor] | None = None,
) -> Adapter | None:
    """Like `infer_adapter`, but without running the model: None if only the probe can find a layer."""
    module = unwrap(model)
    check_takes_pictures(module)
    if reshape is not None and not callable(reshape):
        raise OptionError(
            f"reshape must be a function from an activation to [B, C, h, w], not {type(reshape).__name__}"
        )
    if layers is not None:
        return named_adapter(module, layers, reshape, _prefixes(module))
    check_not_refused(module)
    declared = _from_cam_config(module) or from_catalogue(module) or _from_timm(module)
    return declared and _with_reshape(declared, reshape)


def _with_reshape(adapter: Adapter, reshape: Callable[[Tensor], Tensor] | None) -> Adapter:
    if reshape is None:
        return adapter
    return Adapter(adapter.layers, (Reshape(reshape),) * len(adapter.layers), adapter.method, "caller")


def module_tree(config: Any, device: str = "meta") -> nn.Module:
    """The model that a transformers config describes, with all its modules but, on the meta device, no weights.

    Raises:
        OptionError: this is not a config.
        UnknownArchitecture: no model class can be built from the config.
    """
    if not hasattr(config, "model_type"):
        raise OptionError(
            f"expected a loaded model or a transformers config, got {type(config).__name__}; "
            "for a name, use `hf-cam adapter NAME` or Adapter.from_pretrained(NAME)"
        )
    failures = []
    for loader in _classes_of(config):
        try:
            with BUILDING, torch.device(device):
                return loader(config)  # type: ignore[no-any-return]
        except (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError, ImportError) as error:
            failures.append(f"{loader.__name__}: {error}")
    raise UnknownArchitecture(
        f"no model can be built from a config of type {config.model_type!r}" + (f" ({failures[0]})" if failures else "")
    )


def _classes_of(config: Any) -> Iterator[type[nn.Module]]:
    """The classes that the config names, then the classifier and the bare model of its type."""
    from transformers.models.auto import modeling_auto

    yield from transformers_classes(architectures(config))
    for mapping in (modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, modeling_auto.MODEL_MAPPING_NAMES):
        names = mapping.get(config.model_type, ())
        yield from transformers_classes((names,) if isinstance(names, str) else names)


# The caller's arguments ----------------------------------------------------------------------------------------------


def settle(adapter: Adapter, model: nn.Module, inputs: Mapping[str, Any]) -> Adapter:
    """The adapter of the caller's layers once a forward of one image has shown what their names left open.

    Raises:
        LayerError: a layer did not run, or several of its runs depend on the picture and none is named.
        LayoutError: the views of different images alternate in a layer's batch axis.
        ModelError: the model fails on these inputs.
    """
    module = unwrap(model)
    return _running(module, inputs, lambda: settled(adapter, module, inputs, _declared(module)))


def _declared(module: nn.Module) -> Adapter | None:
    """What is declared for a model, or None; also of one that is refused."""
    try:
        return _from_cam_config(module) or from_catalogue(module) or _from_timm(module)
    except HFCamError:
        return None


def _prefixes(module: nn.Module) -> tuple[int, ...]:
    """Numbers of prefix tokens to try on a layer that the caller chose, those of the default layer first."""
    known = _declared(module)
    own = tuple(layout.prefix for layout in known.layouts if isinstance(layout, Layout)) if known else ()
    return tuple(dict.fromkeys((*own, *PREFIXES)))


# cam_config.json -----------------------------------------------------------------------------------------------------


def _from_cam_config(module: nn.Module) -> Adapter | None:
    name = traits_of(module).name_or_path
    path = find_cam_config(name) if name else None
    if path is None:
        return None
    adapter = read_cam_config(path)
    for layer in adapter.layers:
        try:
            located(module, layer)
        except LayerError as error:
            close = nearest(layer, dict(module.named_modules()))
            raise LayerError(f"{path} names a layer {layer!r} that the model lacks; nearest: {close}") from error
    return adapter


# timm ----------------------------------------------------------------------------------------------------------------


def _from_timm(module: nn.Module) -> Adapter | None:
    """The adapter from timm's metadata: the last stage in `feature_info`, `num_prefix_tokens`, `output_fmt`.

    None if the metadata is not sufficient (the probe then looks at the structure).
    """
    net = timm_model(module)
    if net is None:
        return None
    timm = timm_traits(net)
    if timm.prefix is None:
        layer, unit = timm.stage, "stage"
        layout = Layout(NHWC if timm.channels_last else NCHW)
    else:
        # If the head reads only the class token, the patches in the last block's output get no gradient.
        layer, unit = f"{timm.stage}.norm1" if timm.pools_token else timm.stage, "block"
        layout = Layout(TOKENS, prefix=timm.prefix, patch=timm.patch)
    if layer not in {name for name, _ in net.named_modules()}:
        return None
    root = "" if net is module else "timm_model."
    reason = f"the last {unit} that timm's feature_info names"
    return Adapter((root + layer,), (layout,), origin="timm", reason=reason)


def _is_confirmed(module: nn.Module, adapter: Adapter, inputs: Mapping[str, Tensor] | None) -> bool:
    """Whether one forward confirms an adapter: the layout fits, and the highest logit depends on nearly every cell."""
    inputs = inputs or example_inputs(module)
    size = (inputs["pixel_values"].shape[-2], inputs["pixel_values"].shape[-1])
    try:
        with capture(module, adapter.layers, inputs) as captured:
            images = len(inputs["pixel_values"])
            layer = adapter.layers[0]
            cells = adapter.spatial(captured.activations[0], size, layer, images)
            if cells.is_meta:
                return True  # no values, hence no gradients to check
            [gradient, *_] = captured.gradients(class_logits(captured.outputs).amax(1).sum())
            reached = adapter.spatial(gradient, size, layer, images).abs().sum(1) > 0
            return bool(reached.float().mean() >= MIN_COVERAGE)
    except HFCamError:
        return False


# The probe -----------------------------------------------------------------------------------------------------------


def probed_adapter(
    model: nn.Module,
    inputs: Mapping[str, Tensor] | None = None,
    reshape: Callable[[Tensor], Tensor] | None = None,
) -> Adapter:
    """The adapter inferred from the structure alone, by one traced forward on `inputs` (by default noise).

    Raises:
        ModelError: the model fails on `inputs`.
        UnknownArchitecture: no layer is both spatial and relevant to the target, its cells are shuffled, or the model
            does not run on a picture of noise.
    """
    module = unwrap(model)
    return _with_reshape(_running(module, inputs, lambda: _probed(module, inputs)), reshape)


def _probed(module: nn.Module, inputs: Mapping[str, Tensor] | None) -> Adapter:
    finding = probe(module, inputs or example_inputs(module), patch=traits_of(module).cut)
    if finding.verdict == "refuted":
        raise UnknownArchitecture(
            f"{type(module).__name__} mixes its patches (the most likely layer, {finding.layer!r}, does not change "
            "where the picture does), so its map would not match the picture; pass another layer with layers= and "
            "reshape="
        )
    return Adapter(
        (finding.layer,),
        (finding.layout,),
        origin="probe",
        reason=f"the deepest spatial layer; {finding.coverage:.0%} of its cells influence the target",
    )


def example_inputs(model: nn.Module) -> dict[str, Tensor]:
    """A noise picture of the size given by the config or by timm (else 224 x 224), on the model's device.

    It is a noise video if the config counts frames; if the model also reads text, a few tokens are added.
    """
    traits = traits_of(model)
    shape: tuple[int, ...] = (traits.channels, *traits.usual_size)
    if traits.counts_frames and traits.frames is not None:
        shape = (traits.frames, *shape)
    picture = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
    parameter = next(traits.module.parameters(), picture)
    picture = picture.to(parameter.device, parameter.dtype if parameter.is_floating_point() else None)
    return {"pixel_values": picture, **_text_inputs(traits, parameter.device)}


def _text_inputs(traits: ModelTraits, device: torch.device) -> dict[str, Tensor]:
    """Token ids and their mask, if the forward takes them beside the picture."""
    if traits.vocabulary is None or not traits.accepts("input_ids"):
        return {}
    tokens = {"input_ids": torch.arange(1, 6, device=device)[None] % traits.vocabulary}
    if traits.accepts("attention_mask"):
        tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])
    return tokens
