"""The files of a model: weights, config and processor from a Hub id, a short name, a folder or `demo:NAME`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_cam.errors import HFCamError, ModelError
from hf_cam.models.traits import architectures, takes_pictures, transformers_classes

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

OFFLINE_HINT = 'pass a local folder, or model="demo:imagenet", which needs no network'


def resolve_name(model: str | Path) -> str:
    """The folder or Hub id that a folder, Hub id, short name or `demo:NAME` stands for.

    >>> resolve_name("google/vit-base")
    'google/vit-base-patch16-224'

    Raises:
        ModelError: the folder is missing or has no config, or there is no such demo model.
    """
    name = str(model)
    if name.startswith("demo:"):
        from hf_cam.zoo import demo_model

        return str(demo_model(name.removeprefix("demo:")))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"the folder {name!r} has no config.json, so it holds no model")
        return str(folder)
    if isinstance(model, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {name!r}")
    if folder.is_file():
        raise ModelError(f"{name!r} is a file; a model is a folder with a config.json, or a Hub id")
    return SHORT_NAMES.get(name, name)


def load_pretrained(name: str, *, dtype: torch.dtype | str | None = None, **kwargs: Any) -> nn.Module:
    """The model, in the class that its own config names (trying auto classes in turn could silently load a wrong head).

    Raises:
        ModelError: it cannot be found, reached or read, lacks weights, or is not a vision model.
    """
    import transformers

    known = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs}
    config = load_config(name, **known)
    named = transformers_classes(architectures(config))
    loader = named[0] if named else transformers.AutoModelForImageClassification
    if not takes_pictures(loader, config):
        raise ModelError(f"{name!r} is a {config.model_type!r} model ({loader.__name__}), which takes no images")
    dtype = dtype or torch.float32
    loaded, report = explained(
        name, lambda: loader.from_pretrained(name, config=config, dtype=dtype, output_loading_info=True, **kwargs)
    )
    if report["missing_keys"]:
        raise ModelError(
            f"{name!r} lacks {len(report['missing_keys'])} weights of {type(loaded).__name__} "
            f"(such as {min(report['missing_keys'])!r}), which would stay random; "
            "use a model that was trained for its task"
        )
    return loaded  # type: ignore[no-any-return]


def load_config(name: str, **kwargs: Any) -> Any:
    """The config of a checkpoint.

    Raises:
        ModelError: there is no config, or it cannot be read.
    """
    from transformers import AutoConfig

    return explained(name, lambda: AutoConfig.from_pretrained(name, **kwargs), what="config")


def load_processor(name: str) -> Any:
    """The image processor of a checkpoint, or its video processor if it has no other.

    Raises:
        ModelError: it has neither.
    """
    from transformers import AutoImageProcessor, AutoVideoProcessor

    try:
        return explained(name, lambda: AutoImageProcessor.from_pretrained(name), what="image processor")
    except ModelError as error:
        try:
            return explained(name, lambda: AutoVideoProcessor.from_pretrained(name), what="video processor")
        except ModelError:
            raise error from None


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        ModelError: it has none, or the name is empty.
    """
    from transformers import AutoTokenizer

    if not name:
        raise ModelError("the model takes text but has no known tokenizer; pass processor= (from AutoProcessor)")
    return explained(name, lambda: AutoTokenizer.from_pretrained(name), what="tokenizer")


def explained(name: str, load_it: Callable[[], Any], what: str = "model") -> Any:
    """Run a `from_pretrained`, and turn any exception into a `ModelError` of one sentence."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils import httpx

    try:
        return load_it()
    except HFCamError:
        raise
    except (
        Exception
    ) as error:  # a damaged checkpoint may raise anything: errors of safetensors, of pickle or of the config
        causes = list(_chain(error))
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            raise ModelError(
                f"{name!r} is gated: request access on its page and log in with `hf auth login`"
            ) from error
        if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
            raise ModelError(f"there is no model {name!r} on the Hub; {OFFLINE_HINT}") from error
        if any(isinstance(cause, HFValidationError) for cause in causes):
            raise ModelError(f"{name!r} is neither a folder nor a valid Hub id; {OFFLINE_HINT}") from error
        unreachable = (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError)
        if any(isinstance(cause, unreachable) for cause in causes):
            raise ModelError(f"the Hub cannot be reached and {name!r} is not in the cache; {OFFLINE_HINT}") from error
        raise ModelError(f"the {what} of {name!r} cannot be loaded: {_first_sentence(error)}") from error


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
