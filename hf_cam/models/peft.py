"""Folders and repos that hold a PEFT adapter alone, such as LoRA: the model that it changes, and the two together."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hf_cam.errors import ModelError, brief, reason
from hf_cam.models.hub import http
from hf_cam.threads import unwarned

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts in front of the names of weights."""


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter without its model.

    Args:
        name: Its folder or Hub id.
        base: The name of the model that it changes, as its config gives it.
        class_name: The transformers class of that model; empty if the config does not give it.
        hub: Options of a download of the adapter, such as `revision`.
    """

    name: str
    base: str
    class_name: str
    hub: Mapping[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Its weights by the names that they have in the model: the low-rank ones, and modules that were trained whole.

        Raises:
            ModelError: they are missing or damaged.
        """
        from huggingface_hub import hf_hub_download
        from safetensors.torch import load_file

        folder = Path(self.name)
        try:
            path = folder / WEIGHTS if folder.is_dir() else Path(hf_hub_download(self.name, WEIGHTS, **self.hub))
            found = load_file(path)  # never a pickle
        except Exception as error:  # safetensors and the Hub have their own
            raise ModelError(
                f"the adapter weights of {brief(self.name)} ({WEIGHTS}) cannot be read: {reason(error)}"
            ) from error
        return {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}


def adapter_in(name: str, *, fetch: bool = False, **hub: Any) -> PeftAdapter | None:
    """The adapter that a folder or Hub repo holds instead of a model; None if there is none.

    Args:
        name: A folder or Hub id.
        fetch: Look on the Hub too, not only in folders and the cache.
        hub: Options of a download, such as `revision`.

    Raises:
        ModelError: its config is damaged, or peft is not installed.
    """
    path = _config_path(name, fetch, hub)
    if path is None:
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        base, mapping = config["base_model_name_or_path"], config.get("auto_mapping") or {}
        if not isinstance(base, str) or not base or not isinstance(mapping, Mapping):
            raise TypeError("base_model_name_or_path must be a name")
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ModelError(
            f"the {ADAPTER_CONFIG} of {brief(name)} names no model that the adapter changes: {reason(error)}"
        ) from error
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"{brief(name)} holds a PEFT adapter of the model {brief(base)}, not a model itself; to load both, "
            "install peft with: pip install peft"
        )
    beside = Path(name) / base
    base = str(beside) if beside.is_dir() and not Path(base).is_dir() else base
    return PeftAdapter(name, base, str(mapping.get("base_model_class") or ""), hub)


def _config_path(name: str, fetch: bool, hub: Mapping[str, Any]) -> Path | None:
    folder = Path(name)
    if folder.is_dir():
        complete = (folder / "config.json").is_file() or not (folder / ADAPTER_CONFIG).is_file()
        return None if complete else folder / ADAPTER_CONFIG
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    where = {key: value for key, value in hub.items() if key in ("revision", "cache_dir")}
    try:
        if isinstance(cached := try_to_load_from_cache(name, ADAPTER_CONFIG, **where), str):
            return Path(cached)
        return Path(hf_hub_download(name, ADAPTER_CONFIG, **hub)) if fetch else None
    except (OSError, ValueError, http().HTTPError):
        return None


def fitted_config(config: Any, weights: Mapping[str, Tensor]) -> Any:
    """The config of the model with as many labels as the classifier that comes with the adapter has, if one does."""
    heads = [tensor for name, tensor in weights.items() if name.endswith("classifier.weight") and tensor.ndim == 2]
    if heads and len(heads[-1]) != config.num_labels:
        config.num_labels = len(heads[-1])
    return config


def adapted(model: nn.Module, adapter: PeftAdapter, weights: Mapping[str, Tensor]) -> nn.Module:
    """The model, changed in place by the adapter.

    Args:
        model: A transformers model.
        adapter: What to add to it.
        weights: The adapter's.

    Raises:
        ModelError: the adapter does not fit the model, or lacks weights.
    """
    from peft import PeftModel, get_peft_model_state_dict

    try:
        with unwarned():  # of missing weights, which are refused below
            wrapper = PeftModel.from_pretrained(model, adapter.name, **adapter.hub)
        needed = {name.removeprefix(PREFIX) for name in get_peft_model_state_dict(wrapper)}
    except Exception as error:  # an adapter of a new kind or of another model may raise anything
        raise ModelError(f"the adapter of {brief(adapter.name)} cannot be loaded: {reason(error)}") from error
    missing = sorted(needed - weights.keys())
    if missing:
        raise ModelError(f"the adapter {brief(adapter.name)} lacks {len(missing)} weights, such as {brief(missing[0])}")
    changed: nn.Module = wrapper.get_base_model()
    return changed.eval()
