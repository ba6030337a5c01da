"""The files of a model: weights, config and processor from a Hub id, a short name, a folder or `demo:NAME`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from hf_cam.errors import HFCamError, ModelError, brief, reason
from hf_cam.models.bounds import Bounded, check_bounds
from hf_cam.models.hub import http
from hf_cam.models.peft import ADAPTER_CONFIG, PeftAdapter, adapted, adapter_in, fitted_config
from hf_cam.models.quiet import late_bars, no_remarks
from hf_cam.models.traits import architectures, architectures_of_pictures, takes_pictures, transformers_classes
from hf_cam.threads import BUILDING

Read = TypeVar("Read")

SHORT_NAMES = {
    "google/vit-base": "google/vit-base-patch16-224",
    "google/vit-large": "google/vit-large-patch16-224",
    "facebook/deit-base": "facebook/deit-base-distilled-patch16-224",
    "facebook/dinov2-base": "facebook/dinov2-base-imagenet1k-1-layer",
    "facebook/dinov2-small": "facebook/dinov2-small-imagenet1k-1-layer",
    "facebook/convnext-tiny": "facebook/convnext-tiny-224",
    "facebook/convnextv2-tiny": "facebook/convnextv2-tiny-1k-224",
    "microsoft/swin-tiny": "microsoft/swin-tiny-patch4-window7-224",
    "microsoft/swinv2-tiny": "microsoft/swinv2-tiny-patch4-window8-256",
    "microsoft/beit-base": "microsoft/beit-base-patch16-224",
    "microsoft/resnet-50": "microsoft/resnet-50",
    "apple/mobilevit-small": "apple/mobilevit-small",
    "nvidia/segformer-b0": "nvidia/mit-b0",
    "openai/clip-vit-base": "openai/clip-vit-base-patch32",
    "facebook/detr": "facebook/detr-resnet-50",
}
"""Short names of well-known checkpoints, for `hf_cam.explain`, `hf_cam.pipeline` and the command line."""

PROCESSOR_HINT = (
    "pass processor=, such as AutoImageProcessor.from_pretrained(NAME OF THE MODEL THAT IT WAS TRAINED FROM); "
    "a pipeline calls it image_processor="
)
SAFELY: Mapping[str, Any] = {"trust_remote_code": False}
"""For every `from_pretrained` of transformers: a model's own Python never runs, and nobody is asked whether it may."""
OFFLINE_HINT = 'pass a local folder, or model="demo:imagenet", which needs no network'


def resolve_name(model: str | Path) -> str:
    """The folder or Hub id that a folder, Hub id, short name or `demo:NAME` stands for.

    >>> resolve_name("google/vit-base")
    'google/vit-base-patch16-224'

    Raises:
        ModelError: the folder is missing or has no config, or there is no such demo model.
    """
    name = str(model)
    if not name:
        raise ModelError(f"an empty name is that of no model; {OFFLINE_HINT}")
    if name.startswith("demo:"):
        from hf_cam.zoo import demo_model

        return str(demo_model(name.removeprefix("demo:")))
    try:
        folder = Path(name).expanduser()
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such ~user, a surrogate
        raise ModelError(f"{brief(name)} is neither a folder nor a Hub id ({reason(error)}); {OFFLINE_HINT}") from error
    if is_folder:
        if not any((folder / config).is_file() for config in ("config.json", ADAPTER_CONFIG)):
            raise ModelError(
                f"the folder {brief(name)} has no config.json, so it holds no model; save one there with "
                "model.save_pretrained(folder)"
            )
        return str(folder)
    if isinstance(model, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {brief(name)}")
    if is_file:
        raise ModelError(f"{brief(name)} is a file; a model is a folder with a config.json, or a Hub id")
    return SHORT_NAMES.get(name, name)


def load_pretrained(
    name: str, *, dtype: torch.dtype | str | None = None, trust_config: bool = False, **kwargs: Any
) -> nn.Module:
    """The model, in the class that its own config names (trying auto classes in turn could silently load a wrong head).

    The name of a PEFT adapter loads the model that it changes, and the adapter. Python in a checkpoint never runs, and
    pickled weights are not read.

    Args:
        name: A folder or Hub id.
        dtype: Of the weights; by default float32.
        trust_config: Also build a network of a size that no known model has.
        kwargs: Further arguments of `from_pretrained`.

    Raises:
        ModelError: it cannot be found, reached or read, lacks weights, is not a vision model, or describes a network
            of absurd size.
    """
    import transformers

    config, adapter = _config_and_adapter(name, trust_config=trust_config, **_hub_options(kwargs))
    weights = adapter.weights() if adapter else {}
    source, config = _of_base(adapter, str) if adapter else name, fitted_config(config, weights)
    listed = [adapter.class_name] if adapter and adapter.class_name else architectures_of_pictures(config)
    named = transformers_classes(listed)
    loader = named[0] if named else transformers.AutoModelForImageClassification
    if not takes_pictures(loader, config):
        raise ModelError(f"{brief(name)} is a {config.model_type!r} model ({loader.__name__}), which takes no images")
    options = {**kwargs, **SAFELY, "config": config, "dtype": dtype or torch.float32, "output_loading_info": True}
    options["use_safetensors"] = True
    if adapter:  # which may bring its own classifier; a revision is that of the adapter
        options = {**options, "ignore_mismatched_sizes": True, "revision": None}
    with BUILDING, nullcontext() if trust_config else Bounded(name):
        loaded, report = explained(source, lambda: loader.from_pretrained(source, **options))
    untrained = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])} - weights.keys()
    if untrained:
        raise ModelError(
            f"{brief(name)} lacks {len(untrained)} weights of {type(loaded).__name__} "
            f"(such as {brief(min(untrained))}), which would stay random; "
            "use a model that was trained for its task"
        )
    return adapted(loaded, adapter, weights) if adapter else loaded


def load_config(name: str, **kwargs: Any) -> Any:
    """The config of a checkpoint; of a PEFT adapter, that of the model that it changes.

    Raises:
        ModelError: there is no config, or it cannot be read.
    """
    config, _ = _config_and_adapter(name, **kwargs)
    return config


def _config_and_adapter(name: str, *, trust_config: bool = False, **hub: Any) -> tuple[Any, PeftAdapter | None]:
    adapter = adapter_in(name) if Path(name).is_dir() else None
    try:
        config = None if adapter else explained(name, lambda: _read_config(name, trust_config, hub), what="config")
    except ModelError as error:
        if (adapter := adapter_in(name, fetch=not _is_out_of_reach(error), **hub)) is None:
            raise
    if adapter:
        config, _ = _of_base(adapter, lambda base: _config_and_adapter(base, trust_config=trust_config))
    listed = architectures(config)
    if not isinstance(listed, list | tuple) or not all(isinstance(one, str) for one in listed):
        raise ModelError(
            f"the config of {brief(name)} lists {brief(listed)} as architectures; it must list class names"
        )
    return config, adapter


def _read_config(name: str, trust_config: bool, hub: Mapping[str, Any]) -> Any:
    """The config, whose numbers are checked before anything is made from them."""
    from transformers import AutoConfig, PreTrainedConfig

    if not trust_config:
        check_bounds(name, PreTrainedConfig.get_config_dict(name, **hub)[0])
    return AutoConfig.from_pretrained(name, **SAFELY, **hub)


def _of_base(adapter: PeftAdapter, read: Callable[[str], Read]) -> Read:
    """What `read` returns for the folder or Hub id of the model that an adapter changes."""
    try:
        return read(resolve_name(adapter.base))
    except ModelError as error:
        raise ModelError(f"{brief(adapter.name)} is a PEFT adapter of {brief(adapter.base)}: {error}") from error


def _hub_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs}


def load_processor(name: str) -> Any:
    """The image processor of a checkpoint, or its video processor if it has no other.

    Raises:
        ModelError: it has neither.
    """
    from transformers import AutoImageProcessor, AutoVideoProcessor

    try:
        return explained(name, lambda: AutoImageProcessor.from_pretrained(name, **SAFELY), what="image processor")
    except ModelError as error:
        try:
            return explained(name, lambda: AutoVideoProcessor.from_pretrained(name, **SAFELY), what="video processor")
        except ModelError:
            if adapter := adapter_in(name):
                return _of_base(adapter, load_processor)
            raise ModelError(f"{error}; {PROCESSOR_HINT}") from error


def load_whole_processor(name: str) -> Any:
    """The processor of a vision-language model, with its tokenizer.

    Raises:
        ModelError: it has none, or it cannot be read.
    """
    from transformers import AutoProcessor

    return explained(name, lambda: AutoProcessor.from_pretrained(name, **SAFELY), what="processor")


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        ModelError: it has none, or the name is empty.
    """
    from transformers import AutoTokenizer

    if not name:
        raise ModelError("the model takes text but has no known tokenizer; pass processor= (from AutoProcessor)")
    return explained(name, lambda: AutoTokenizer.from_pretrained(name, **SAFELY), what="tokenizer")


def explained(name: str, load_it: Callable[[], Any], what: str = "model") -> Any:
    """Run a `from_pretrained`, and turn any exception into a `ModelError` of one sentence."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        with late_bars(), nullcontext() if what == "model" else no_remarks():
            return load_it()
    except HFCamError:
        raise
    except (
        Exception
    ) as error:  # a damaged checkpoint may raise anything: errors of safetensors, of pickle or of the config
        causes = list(_chain(error))
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            raise ModelError(
                f"{brief(name)} is gated: request access on its page and log in with `hf auth login`"
            ) from error
        if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
            raise ModelError(f"there is no model {brief(name)} on the Hub; {OFFLINE_HINT}") from error
        if any(isinstance(cause, HFValidationError) for cause in causes):
            raise ModelError(f"{brief(name)} is neither a folder nor a valid Hub id; {OFFLINE_HINT}") from error
        if any("trust_remote_code" in str(cause) for cause in causes):
            raise ModelError(
                f"{brief(name)} brings its own Python code, which hf-cam never runs; if you trust it, load the model "
                "with transformers and pass the module"
            ) from error
        unreachable = (LocalEntryNotFoundError, OfflineModeIsEnabled, http().HTTPError)
        if any(isinstance(cause, unreachable) for cause in causes):
            raise ModelError(
                f"the Hub cannot be reached and {brief(name)} is not in the cache; {OFFLINE_HINT}"
            ) from error
        raise ModelError(f"the {what} of {brief(name)} cannot be loaded: {_first_sentence(error)}") from error


def _is_out_of_reach(error: ModelError) -> bool:
    """Whether the Hub, or the repo on it, could not be reached: then no other file of it can."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RemoteEntryNotFoundError

    causes = list(_chain(error))
    answered = any(isinstance(cause, RemoteEntryNotFoundError) for cause in causes)
    barred = (OfflineModeIsEnabled, HFValidationError, http().HTTPError)
    return not answered and any(isinstance(cause, barred) for cause in causes)


def _first_sentence(error: BaseException) -> str:
    """The first sentence of a transformers error, without the paragraphs of advice that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "ignore_mismatched_sizes" in lines[0]:
        return "the shapes of its weights do not match its config.json"
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return first.split(". If you were trying to load it")[0].split(". This could be because")[0]


def _chain(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
