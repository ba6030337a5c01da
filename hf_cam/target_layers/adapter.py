"""Where to look in a model: its target layers, their spatial layouts, and the default method."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from hf_cam.capture.levels import maps_in, tensor_at
from hf_cam.capture.runs import level_of, without_level
from hf_cam.errors import LayerError, LayoutError, ModelError, brief, reason
from hf_cam.layouts import Layout, Size, Spatial
from hf_cam.models.hub import http
from hf_cam.target_layers.pyramids import Level

CONFIG_NAME = "cam_config.json"
Origin = Literal["caller", "cam_config", "catalogue", "timm", "probe"]


@dataclass(frozen=True)
class Adapter:
    """Where to look in one model.

    Args:
        layers: Dotted names of the target layers, as `model.named_modules()` spells them. If a layer runs several
            times in one forward (tied weights, siamese and recurrent nets), `name:0` is its first run, `name:1` its
            second.
        layouts: The spatial layout of each layer's output, one per layer.
        method: Id of the default method for this family.
        origin: The source: the caller, a `cam_config.json`, the catalogue, timm's metadata or the structural probe.
        reason: Why this layer was chosen, as shown by `hf-cam adapter MODEL`.
        caution: Why maps of this layer are known to mislead in this family; empty if they are not.
        candidates: Ids of the methods that `effort="checked"` tries after the default one, or before it where there is
            a caution, the cheapest first; those that are not defined for a model are passed over.

    >>> import torch
    >>> adapter = Adapter(layers=("blocks.11",), layouts=(Layout("b (h w) c", prefix=1),))
    >>> adapter.to_spatial(torch.zeros(2, 1 + 6 * 4, 8), image_size=(96, 64)).shape
    torch.Size([2, 8, 6, 4])
    """

    layers: tuple[str, ...]
    layouts: tuple[Spatial, ...]
    method: str = "gradcam"
    origin: Origin = "caller"
    reason: str = ""
    caution: str = ""
    candidates: tuple[str, ...] = ("attnlrp", "occlusion")

    def __post_init__(self) -> None:
        """Refuse a record without layers, or without exactly one layout per layer."""
        if not self.layers or len(self.layers) != len(self.layouts):
            raise LayoutError(f"an adapter needs one layout per layer, got {self.layers} and {self.layouts}")

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Possible numbers of tokens before a grid in this model, most likely first."""
        own = (layout.prefix for layout in self.layouts if isinstance(layout, Layout))
        return tuple(dict.fromkeys((*own, 0)))

    def layout_of(self, layer: str) -> Spatial:
        """The layout of a layer's output.

        Raises:
            LayerError: this adapter has no such layer.
        """
        if layer not in self.layers:
            raise LayerError(f"this adapter has no layer {layer!r}; it has {', '.join(map(repr, self.layers))}")
        return self.layouts[self.layers.index(layer)]

    def to_spatial(
        self, activations: Any, image_size: Size, layer: str | None = None, images: int | None = None
    ) -> Tensor | list[Tensor]:
        """A layer's output as `[B, C, h, w]`; as a list of these, one per level, if it holds several scales.

        Args:
            activations: What the layer returned: a tensor, or the maps of a pyramid in a dict, list or tuple.
            image_size: Height and width of the model's input, in pixels.
            layer: The layer that returned them; by default the first. The name of one level gives that level alone.
            images: B, the number of images in the batch, which is checked; None if it is not known.

        Raises:
            LayerError: this adapter has no such layer.
            LayoutError: the shape does not fit, or there is not one grid per image; the message names the layer and the
                remedy.

        >>> import torch
        >>> layers = ("encoder[0]", "encoder[1]")
        >>> adapter = Adapter(layers, (Level((8, 16), 0), Level((8, 16), 1)))
        >>> [tuple(level.shape) for level in adapter.to_spatial(torch.zeros(1, 96 + 24, 8), image_size=(64, 96))]
        [(1, 8, 8, 12), (1, 8, 4, 6)]
        """
        name = self.layers[0] if layer is None else layer
        levels = [own for own in self.layers if level_of(own) and without_level(own) == without_level(name)]
        whole = not isinstance(activations, Tensor) or any(isinstance(self.layout_of(own), Level) for own in levels)
        if whole and levels and (layer == without_level(name) or (layer is None and len(levels) > 1)):
            return [self.spatial(activations, image_size, own, images) for own in levels]
        if not levels and (maps := maps_in(activations)):
            return [self.spatial(one, image_size, name, images) for one in maps.values()]
        return self.spatial(activations, image_size, name, images)

    def spatial(self, activations: Any, image_size: Size, layer: str, images: int | None = None) -> Tensor:
        """The output of one layer, or one level of it, as `[B, C, h, w]`; arguments and errors as in `to_spatial`."""
        tensor = tensor_at(activations, level_of(layer))
        if tensor is None:
            raise LayoutError(f"the output of {layer!r} holds no tensor, but is of type {type(activations).__name__}")
        try:
            return self.layout_of(layer).to_spatial(tensor, image_size, images)
        except LayoutError as error:
            raise LayoutError(
                f"the output of {layer!r}, of shape {tuple(tensor.shape)}, does not have the expected spatial "
                f"layout: {error}. Pass reshape= (a function that returns [B, C, h, w]) or a different layers="
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """The contents of `cam_config.json`.

        Raises:
            LayoutError: a layout is a function, which cannot be saved.
        """
        written = [asdict(layout) for layout in self.layouts if isinstance(layout, Layout | Level)]
        if len(written) != len(self.layouts):
            raise LayoutError("only adapters with declared layouts can be saved; a reshape function cannot")
        return {"layers": list(self.layers), "layouts": written, "method": self.method, "reason": self.reason}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], origin: Origin = "cam_config") -> Adapter:
        """The inverse of `to_dict`.

        Raises:
            LayoutError: keys are missing, unknown or of the wrong type.
        """
        try:
            layers, layouts = data["layers"], data["layouts"]
            method, why = data.get("method", "gradcam"), data.get("reason", "")
            if not isinstance(layers, list | tuple):
                raise TypeError(f"layers must be a list of names, not {brief(layers)}")
            if not isinstance(layouts, list | tuple):
                raise TypeError(f"layouts must be a list with one object per layer, not {brief(layouts)}")
            for text in (*layers, method, why):
                if not isinstance(text, str):
                    raise TypeError(f"layers must be a list of names, and method and reason texts, not {brief(text)}")
            return cls(tuple(layers), tuple(map(_layout, layouts)), method, origin, why)
        except (AttributeError, KeyError, TypeError) as error:
            raise LayoutError(f"not a valid {CONFIG_NAME}: {error}") from error

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `cam_config.json` to a model's folder and return its path."""
        path = Path(folder) / CONFIG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, revision: str | None = None) -> Adapter:
        """Read `cam_config.json` from a folder or a Hub repo.

        Raises:
            ModelError: there is no such file, or the Hub cannot be reached.
        """
        name = str(name_or_path)
        path = find_cam_config(name) if Path(name).is_dir() else _downloaded_cam_config(name, revision)
        if path is None:
            raise ModelError(f"{name!r} has no {CONFIG_NAME}; infer_adapter(model) works without one")
        return read_cam_config(path)

    def push_to_hub(self, repo_id: str, *, token: str | None = None, commit_message: str | None = None) -> str:
        """Upload `cam_config.json` to the model's repo and return the URL of the commit."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, exist_ok=True)
        commit = api.upload_file(
            path_or_fileobj=json.dumps(self.to_dict(), indent=2).encode(),
            path_in_repo=CONFIG_NAME,
            repo_id=repo_id,
            commit_message=commit_message or f"Add {CONFIG_NAME}",
        )
        _hub_cam_config.cache_clear()
        return str(commit.commit_url)


def _layout(written: Any) -> Layout | Level:
    """A layout as it is written in a file.

    Raises:
        TypeError: a value is unknown or of another type.
    """
    if not isinstance(written, Mapping):
        raise TypeError(f"a layout must be an object such as {{'axes': 'b c h w'}}, not {brief(written)}")
    if "strides" in written:
        return _level(written)
    patch = written.get("patch")
    if patch is not None and (
        not isinstance(patch, list | tuple) or len(patch) != 2 or not all(_is_count(side, 1) for side in patch)
    ):
        raise TypeError(f"patch must be two numbers of pixels, not {brief(patch)}")
    for name in ("prefix", "suffix"):
        count = written.get(name, 0)
        if not _is_count(count, 0) and (name, count) != ("suffix", None):
            raise TypeError(f"{name} must be a number of tokens, not {brief(count)}")
    if not isinstance(written.get("axes", ""), str) or not isinstance(written.get("square", False), bool):
        raise TypeError("axes must be a text and square true or false")
    return Layout(**{**written, "patch": tuple(patch) if patch else None})


def _level(written: Mapping[str, Any]) -> Level:
    strides, index = written["strides"], written.get("index")
    if set(written) != {"strides", "index"} or not isinstance(strides, list | tuple) or not _is_count(index, 0):
        raise TypeError(f"a level must be an object such as {{'strides': [8, 16], 'index': 0}}, not {brief(written)}")
    if not all(_is_count(stride, 1) for stride in strides):
        raise TypeError(f"strides must be numbers of pixels, not {brief(strides)}")
    return Level(tuple(strides), written["index"])


def _is_count(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def union(adapters: Sequence[Adapter]) -> Adapter:
    """The first adapter with the layers of all adapters, each layer once."""
    layouts = {layer: layout for one in adapters for layer, layout in zip(one.layers, one.layouts, strict=True)}
    return replace(adapters[0], layers=tuple(layouts), layouts=tuple(layouts.values()))


def read_cam_config(path: Path) -> Adapter:
    """The adapter in a `cam_config.json`.

    Raises:
        LayoutError: the file is not a JSON object of the right form.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LayoutError(f"{path} is not valid JSON: {reason(error)}") from error
    return Adapter.from_dict(data)


def find_cam_config(name: str) -> Path | None:
    """The path of a model's `cam_config.json`, in its folder or fetched from its Hub repo; None if there is none."""
    folder = Path(name)
    if folder.is_dir():
        return folder / CONFIG_NAME if (folder / CONFIG_NAME).is_file() else None
    return _hub_cam_config(name)


@functools.lru_cache(maxsize=256)
def _hub_cam_config(repo_id: str) -> Path | None:
    """The cached file if there is one; else asks the Hub, once per repo and process, and remembers a "no"."""
    from huggingface_hub import get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import build_hf_headers

    try:
        cached = try_to_load_from_cache(repo_id, CONFIG_NAME)
        if cached is not None:
            return Path(cached) if isinstance(cached, str) else None
        # Send a quick HEAD request first: without a network, the client's own download retries for half a minute.
        url = hf_hub_url(repo_id, CONFIG_NAME)
        answer = get_session().head(url, headers=build_hf_headers(), timeout=5, follow_redirects=True)
        found = answer.status_code == 200
        return Path(hf_hub_download(repo_id, CONFIG_NAME)) if found else None
    except (OSError, ValueError, HFValidationError, http().HTTPError):
        return None  # no network, or the name is not a repo id


def _downloaded_cam_config(repo_id: str, revision: str | None) -> Path | None:
    """The current file on the Hub (or the cached one if the Hub cannot be reached); None if the repo has none.

    Raises:
        ModelError: there is no such repo, or the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, CONFIG_NAME, revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(f"{repo_id!r} is neither a folder nor a repo on the Hub") from error
    except (OSError, http().HTTPError) as error:
        raise ModelError(f"{CONFIG_NAME} of {repo_id!r} cannot be fetched: {str(error).splitlines()[0]}") from error
