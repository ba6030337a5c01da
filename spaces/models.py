"""Which models the page offers and accepts, and the few that stay loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import tqdm
from jobs import SLOTS, held, report, stoppable
from limits import Refused
from scale import Builder, Scale
from scratch import new_folder

from hf_cam.errors import HFCamError, ModelError
from hf_cam.heads import ClassificationHead, Head, head_kind, listed_kind
from hf_cam.models.checkpoints import SHORT_NAMES
from hf_cam.models.hub import http
from hf_cam.models.loading import LoadedModel, load
from hf_cam.models.traits import unwrap
from hf_cam.zoo import SCENE, demo_model, demo_models

MAX_WEIGHTS = 2 * 2**30
MAX_TEXT = 20 * 2**20
MAX_INPUT = 3 * 2048 * 2048
MAX_OPERATIONS = 10**13
SMALLEST_NUMBER = 2
"""Bytes per weight in half precision."""
KEPT = 5
"""As many as the first views have."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
TAKEN = re.compile(r"(?!adapter_)[\w.-]+\.(json|txt|model)|chat_template\.jinja|model(-\d{5}-of-\d{5})?\.safetensors")
"""The files that make up a model."""
CODE = {"auto_map", "custom_pipelines"}
"""Config keys that name code to run."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def online() -> bool:
    """Whether models of the Hub are accepted: on a Space, or with `hf-cam space --online`."""
    return bool(os.environ.get("SPACE_ID") or os.environ.get("HF_CAM_SPACE_ONLINE"))


@cache
def installed() -> dict[str, type[Head]]:
    """The models that need no network, with the kind of each one's head; the one for photographs comes first.

    A model whose weights are not installed is left out.
    """
    found: dict[str, type[Head]] = {}
    for name in sorted(demo_models(), key=lambda name: (name != "imagenet", name)):
        try:
            folder = demo_model(name)
        except ModelError:
            continue
        architectures = json.loads((folder / "config.json").read_text())["architectures"]
        found[f"demo:{name}"] = listed_kind(architectures[0]) or ClassificationHead
    return found


@cache
def demos() -> dict[str, type[Head]]:
    """Those whose findings the page explains."""
    return {name: kind for name, kind in installed().items() if not kind.writes}


@cache
def writers() -> dict[str, type[Head]]:
    """Those that write an answer, whose words the page explains."""
    return {name: kind for name, kind in installed().items() if kind.writes}


def offered() -> list[str]:
    """The models in the menu."""
    return [*demos(), *(sorted(set(SHORT_NAMES.values())) if online() else [])]


def sees_scenes(name: str) -> bool:
    """Whether the model was trained on scenes such as `hf_cam.zoo.SCENE` rather than on photographs."""
    return name in demos() and SCENE.parent == Path(demo_model(name.removeprefix("demo:"))).parent


def checked(name: str | None, known: Callable[[], Mapping[str, type[Head]]] = demos) -> str:
    """The model's full name; nothing of the model has been looked at yet.

    Args:
        name: What the visitor chose or typed.
        known: The models that need no network here.

    Raises:
        Refused: it is not a model id, or one of the Hub on a page without a network.
    """
    name = (name or "").strip()
    name = SHORT_NAMES.get(name, name)
    if name in known():
        return name
    _check_id(name, known())
    if not online():
        raise Refused(f"This page runs without a network; it offers {', '.join(known())}.")
    return name


def _check_id(name: str | None, known: Mapping[str, type[Head]]) -> None:
    name = name or ""
    if ".." in name or not HUB_ID.fullmatch(name) or Path(name).exists():
        raise Refused(f"{name[:60]!r} is not a model id such as owner/name or {next(iter(known))}.")


@dataclass(frozen=True)
class Repo:
    """A repo of the Hub, and the files in it that make up the model.

    Args:
        name: `owner/name`.
        commit: The one that was checked; nothing is fetched from a later one.
        files: Their sizes in bytes, by name.
    """

    name: str
    commit: str
    files: dict[str, int]

    @property
    def weights(self) -> dict[str, int]:
        """The files that hold weights."""
        return {file: size for file, size in self.files.items() if file.endswith(".safetensors")}


def safe_repo(name: str) -> Repo:
    """A Hub repo with safetensors weights of an acceptable size; no file has been fetched yet.

    Raises:
        Refused: it has none, or cannot be reached.
    """
    try:
        info = HfApi().model_info(name, files_metadata=True, timeout=10)
    except (HfHubHTTPError, http().HTTPError, OSError, ValueError) as error:
        raise Refused(f"{name} cannot be found or reached on the Hub; is it public and spelt correctly?") from error
    listed = {file.rfilename: file.size for file in info.siblings or ()}
    files = {file: size for file, size in listed.items() if TAKEN.fullmatch(file)}
    sizes = [size for file, size in files.items() if file.endswith(".safetensors")]
    if not sizes and any(file.endswith(PICKLES) for file in listed):
        raise Refused(f"{name} has only pickled weights, which can run code when they are loaded.")
    if not sizes or "config.json" not in files:
        raise Refused(f"{name} holds no model: config.json or weights in safetensors are missing.")
    if None in sizes or sum(sizes) > MAX_WEIGHTS:
        raise Refused(f"The weights of {name} are too large; this page accepts up to {MAX_WEIGHTS / 2**30:.0f} GB.")
    if any(size is None or size > MAX_TEXT for file, size in files.items() if not file.endswith(".safetensors")):
        raise Refused(f"A config or vocabulary of {name} is larger than {MAX_TEXT >> 20} MB.")
    return Repo(name, str(info.sha), files)


def fetch(repo: Repo, folder: Path) -> None:
    """Download the repo's files into a folder: the configs first, and the weights once the configs have passed.

    Raises:
        Refused: it brings its own code, describes a network larger than its weights, or cannot be reached.
    """
    try:
        done = _download(repo, sorted(repo.files.keys() - repo.weights.keys()), folder)
        check_texts(repo, folder)
        check_scale(repo, BUILDER.measure(folder))
        _download(repo, sorted(repo.weights), folder, done)
    except (HfHubHTTPError, http().HTTPError, OSError) as error:
        raise Refused(f"{repo.name} could not be fetched from the Hub; try again later.") from error


def _download(repo: Repo, files: Sequence[str], folder: Path, done: int = 0) -> int:
    """Fetch files, and return the bytes fetched so far."""
    total = sum(repo.files.values())

    class Bar(tqdm):
        """Reports to the visitor; a stop takes effect here."""

        got = 0

        def update(self, n: float | None = 1) -> bool | None:
            self.got += n or 0
            report(min(1, (done + self.got) / total), f"Fetching {repo.name}")
            return super().update(n)

    for file in files:
        report(done / total, f"Fetching {repo.name}")
        hf_hub_download(repo.name, file, revision=repo.commit, local_dir=folder, tqdm_class=Bar)
        done += repo.files[file]
    return done


def check_texts(repo: Repo, folder: Path) -> None:
    """Refuse configs that name code to run or files that are not in the repo.

    Raises:
        Refused: they do, or cannot be read.
    """
    for file in sorted(folder.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise Refused(f"{file.name} of {repo.name} cannot be read.") from error
        if file.name.endswith("config.json") and CODE & set(_keys(content)):
            raise Refused(f"{repo.name} brings its own code, which this page does not run.")
        if file.name.endswith(".index.json"):
            shards = content.get("weight_map") if isinstance(content, dict) else None
            if not isinstance(shards, dict) or not set(map(str, shards.values())) <= repo.weights.keys():
                raise Refused(f"{file.name} of {repo.name} names weights that are not there.")


def _keys(content: Any) -> Iterator[str]:
    """The keys of all objects in a JSON document, however deeply nested."""
    left = [content]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            yield from one
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()


def check_scale(repo: Repo, scale: Scale) -> None:
    """Refuse a network that is larger than its weights, or that would need more memory than this page has.

    Raises:
        Refused: it is.
    """
    if scale.failed:
        raise Refused(f"{repo.name} is not accepted: {scale.failed}.")
    most = sum(repo.weights.values()) // SMALLEST_NUMBER
    if scale.parameters > most:
        parameters = f"{_millions(scale.parameters)} parameters"
        raise Refused(f"{repo.name} describes {parameters}; its weights hold at most {_millions(most)}.")
    if scale.buffer_bytes > MAX_WEIGHTS:
        raise Refused(f"{repo.name} needs {_millions(scale.buffer_bytes)} bytes of buffers, too many for this page.")
    if scale.input_values > MAX_INPUT:
        values = f"{_millions(scale.input_values)} values"
        raise Refused(f"{repo.name} enlarges pictures to {values}; this page accepts up to {_millions(MAX_INPUT)}.")
    if scale.operations > MAX_OPERATIONS:
        times = f"{scale.operations / MAX_OPERATIONS:.0f} times as much"
        raise Refused(f"{repo.name} computes {times} as this page allows.")


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} million"


@dataclass
class Kept:
    """A model that is loaded or being loaded, and the lock that its user holds."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    loaded: LoadedModel | None = None


_LENT: ContextVar[LoadedModel | None] = ContextVar("lent", default=None)
"""The model that is lent to this visitor."""


class Models:
    """The most recently used models, each behind a lock: a model computes for one visitor at a time.

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
        """The model, for this visitor alone; other models stay available while it loads, and a stop takes effect."""
        with self._lock:
            entry = self._known.setdefault(name, Kept())
            self._known.move_to_end(name)
            while len(self._known) > self.kept:
                self._known.popitem(last=False)
        with held(entry.lock, f"Waiting for {name}"), held(SLOTS, "Waiting for other visitors"):
            if entry.loaded is None:
                try:
                    entry.loaded = _load(name)
                except BaseException:
                    with self._lock:
                        self._known.pop(name, None)
                    raise
            token = _LENT.set(entry.loaded)
            try:
                with stoppable(unwrap(entry.loaded.model)):
                    yield entry.loaded
            finally:
                _LENT.reset(token)

    def held(self, name: str) -> LoadedModel:
        """The model that is lent to this visitor, also in a process that was forked to compute with it."""
        if lent := _LENT.get():
            return lent
        entry = self._known.setdefault(name, Kept())
        if entry.loaded is None:  # the process is older than the loan
            entry.loaded = _load(name)
        return entry.loaded

    def kind(self, name: str) -> type[Head]:
        """The kind of the model's head; a demo model is not loaded for it."""
        if name in installed():
            return installed()[name]
        with self.lent(name) as loaded:
            return head_kind(loaded.model)


def _load(name: str) -> LoadedModel:
    if name in installed():
        return load(name)
    _check_id(name, installed())
    repo = safe_repo(name)
    folder = new_folder("model-")
    try:
        fetch(repo, folder)
        report(1, f"Loading {name}")
        loaded = load(str(folder))
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, HFCamError):
            raise Refused(str(error).replace(str(folder), name)) from error
        raise
    weakref.finalize(loaded.model, shutil.rmtree, folder, ignore_errors=True)
    return loaded


BUILDER = Builder()
MODELS = Models()
