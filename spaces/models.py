"""Which models the page offers and takes, and the few that stay loaded."""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from limits import Refused

from hf_cam.errors import ModelError
from hf_cam.heads import ClassificationHead, Head, head_kind, listed_kind
from hf_cam.loading import SHORT_NAMES, LoadedModel, load, load_pretrained, load_processor
from hf_cam.zoo import SCENE, demo_model, demo_models

MAX_WEIGHTS = 2 * 2**30
KEPT = 4
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def online() -> bool:
    """Whether models of the Hub are taken: on a Space, or where `hf-cam space --online` was asked for."""
    return bool(os.environ.get("SPACE_ID") or os.environ.get("HF_CAM_SPACE_ONLINE"))


@cache
def demos() -> dict[str, type[Head]]:
    """The models that need no network and the kinds of their heads, the one for photographs first.

    One whose weights are not installed is left out.
    """
    found = {}
    for name in sorted(demo_models(), key=lambda name: (name != "imagenet", name)):
        try:
            folder = demo_model(name)
        except ModelError:
            continue
        architectures = json.loads((folder / "config.json").read_text())["architectures"]
        found[f"demo:{name}"] = listed_kind(architectures[0]) or ClassificationHead
    return found


def offered() -> list[str]:
    """What the menu lists."""
    return [*demos(), *(sorted(set(SHORT_NAMES.values())) if online() else [])]


def sees_scenes(name: str) -> bool:
    """Whether the model was trained on scenes such as `hf_cam.zoo.SCENE`, and not on photographs."""
    return name in demos() and SCENE.parent == Path(demo_model(name.removeprefix("demo:"))).parent


def checked(name: str | None) -> str:
    """The model's name, where this page takes it.

    Raises:
        Refused: it is no id, has no safe weights, is too large, or cannot be reached.
    """
    name = (name or "").strip()
    name = SHORT_NAMES.get(name, name)
    if name in demos():
        return name
    if ".." in name or not HUB_ID.fullmatch(name) or Path(name).exists():
        raise Refused(f"{name[:60]!r} is no model id; one looks like owner/name, or like {next(iter(demos()))}.")
    if not online():
        raise Refused(f"This page runs without a network and takes {', '.join(demos())}.")
    return name


def safe_revision(name: str) -> str:
    """The commit of a Hub repo that holds nothing but safe weights of bearable size.

    Raises:
        Refused: it does not, or cannot be reached.
    """
    try:
        info = HfApi().model_info(name, files_metadata=True, timeout=10)
        files = {file.rfilename: file.size for file in info.siblings or ()}
        weights = [size for file, size in files.items() if file.endswith(".safetensors")]
        if not weights and any(file.endswith(PICKLES) for file in files):
            raise Refused(f"{name} has pickled weights alone, which can run code when they are opened.")
        if not weights or "config.json" not in files:
            raise Refused(f"{name} holds no model: it has no config.json with weights in safetensors.")
        if None in weights or sum(weights) > MAX_WEIGHTS:
            raise Refused(f"{name} has too large weights; this page takes {MAX_WEIGHTS / 2**30:.0f} GB.")
        config = json.loads(Path(hf_hub_download(name, "config.json", revision=info.sha)).read_text())
    except (HfHubHTTPError, OSError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{name} cannot be found or reached on the Hub; is it public, and spelt right?") from error
    if "auto_map" in config:
        raise Refused(f"{name} brings its own code, which this page does not run.")
    return str(info.sha)


@dataclass
class Kept:
    """A model in memory, or on its way there, and the lock of who uses it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    loaded: LoadedModel | None = None


class Models:
    """The models that were used last, each with a lock: one computes for one visitor at a time.

    Args:
        kept: How many stay in memory.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self._known: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._known))

    @contextmanager
    def lent(self, name: str) -> Iterator[LoadedModel]:
        """The model, for this visitor alone; while it loads, other models go on."""
        with self._lock:
            entry = self._known.setdefault(name, Kept())
            self._known.move_to_end(name)
            while len(self._known) > self.kept:
                self._known.popitem(last=False)
        with entry.lock:
            if entry.loaded is None:
                try:
                    entry.loaded = _load(name)
                except BaseException:
                    with self._lock:
                        self._known.pop(name, None)
                    raise
            yield entry.loaded

    def kind(self, name: str) -> type[Head]:
        """The kind of the model's head; a demo model need not be loaded for it."""
        if name in demos():
            return demos()[name]
        with self.lent(name) as loaded:
            return head_kind(loaded.model)


def _load(name: str) -> LoadedModel:
    if name in demos():
        return load(name)
    model = load_pretrained(name, revision=safe_revision(name), use_safetensors=True).eval()
    return load(model.to("cuda" if torch.cuda.is_available() else "cpu"), processor=load_processor(name))


MODELS = Models()
