"""The evidence of one explanation in a folder that a bug report can carry: pictures, the map, and what made it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hf_cam.errors import ImageError, OptionError, brief, reason
from hf_cam.models.fingerprint import fingerprint, model_fingerprint, processor_fingerprint
from hf_cam.models.traits import traits_of
from hf_cam.results.files import write_whole

if TYPE_CHECKING:
    from hf_cam.check import Check, Origin
    from hf_cam.explanation import Explanation

MANIFEST, OVERLAY, IMAGE, MAP, FRAME = "manifest.json", "overlay.png", "image.png", "map.npz", "frame-{:04d}.png"
FORMAT, NEWEST, UNFINISHED = "hf-cam bundle", 1, "unfinished"
"""The entry of a manifest by which a bundle is known, the number of its newest form, and a mark while it is written."""
PACKAGES = ("hf-cam", "torch", "torchvision", "transformers", "timm", "numpy", "pillow", "opencv-python-headless")


def is_folder(path: str | Path) -> bool:
    """Whether a path means a folder: it is one, ends in a separator, or has no ending.

    >>> is_folder("evidence"), is_folder("evidence.v2/"), is_folder("map.png")
    (True, True, False)
    """
    written = str(path)
    return not Path(path).suffix or written.endswith(("/", os.sep)) or Path(path).expanduser().is_dir()


def write_bundle(explanation: Explanation, folder: Path, overlay: Image.Image, check: Check | None = None) -> Path:
    """Write a bundle; its manifest, which comes last, lists all files with their SHA-256.

    Args:
        explanation: The explanation.
        folder: A new or empty folder, or an older bundle, which is replaced.
        overlay: The picture to look at.
        check: The result of a check.

    Raises:
        ImageError: the folder holds other files, or it cannot be written.
    """
    _check_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / MANIFEST, json.dumps({FORMAT: NEWEST, UNFINISHED: True}).encode())
        for leftover in folder.glob(FRAME.replace("{:04d}", "*")):
            leftover.unlink()
        contents = {OVERLAY: _png(overlay), IMAGE: _png(explanation.image), MAP: _arrays(explanation)}
        contents |= {FRAME.format(i): _png(frame) for i, frame in enumerate(explanation.frames)}
        for name, content in contents.items():
            _write(folder / name, content)
        described = {**manifest_of(explanation, check), "files": {name: _sum(one) for name, one in contents.items()}}
        _write(folder / MANIFEST, json.dumps(described, indent=1).encode())
    except OSError as error:
        raise ImageError(f"{brief(str(folder))} cannot be written: {reason(error)}") from error
    return folder


def manifest_of(explanation: Explanation, check: Check | None = None) -> dict[str, Any]:
    """What an explanation shows and what made it, in values that JSON can hold, without the map."""
    origin, effort = explanation.origin, explanation.effort
    shown = {name: value for name, value in explanation.to_dict().items() if name != "map"}
    checked = effort.check if check is None and effort is not None else check
    return {
        FORMAT: NEWEST,
        "explanation": {**shown, "span": explanation.span, "contribution of the picture": explanation.evidence},
        "image": {"size": list(explanation.image.size), "fingerprint": fingerprint(explanation.image)},
        "model": None if origin is None else _model(origin),
        "processor": None if origin is None else _processor(origin.processor),
        "target": None if origin is None else plain(origin.target),
        "settings": None if origin is None or origin.request is None else plain(origin.request),
        "check": None if checked is None else {**asdict(checked), "in words": str(checked)},
        "effort": None if effort is None else str(effort),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The versions of Python, the platform and the packages that take part."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    from hf_cam import __version__

    return {**found, "hf-cam": __version__}


def plain(value: Any, depth: int = 4) -> Any:
    """A value as JSON can hold it: large or foreign objects by what they are.

    >>> plain({"target": [None, "pug"], "layers": (1, 2.5)})
    {'target': [None, 'pug'], 'layers': [1, 2.5]}
    >>> plain(np.zeros((3, 4)))
    'ndarray [3, 4]'
    """
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if depth and isinstance(value, Mapping):
        return {str(name): plain(one, depth - 1) for name, one in value.items()}
    if depth and isinstance(value, list | tuple):
        return [plain(one, depth - 1) for one in value]
    if depth and is_dataclass(value) and not isinstance(value, type):
        own = {field.name: plain(getattr(value, field.name), depth - 1) for field in fields(value) if field.repr}
        return {"type": type(value).__name__, **own}
    return value.__name__ if isinstance(value, FunctionType | type) else brief(value)


def verified(folder: Path) -> dict[str, Any] | None:
    """The manifest of a bundle whose files are all there and unchanged; None if the folder is no bundle.

    Raises:
        OptionError: a file is missing or was changed, or a newer version of hf-cam wrote the bundle.
    """
    manifest = _manifest(folder)
    if manifest is None:
        return None
    if manifest[FORMAT] != NEWEST:
        raise OptionError(f"{brief(str(folder))} is a bundle of form {manifest[FORMAT]}; a newer hf-cam reads it")
    if UNFINISHED in manifest:
        raise OptionError(f"the bundle {brief(str(folder))} was not written to its end; save the explanation again")
    for name, digest in manifest["files"].items():
        path = folder / Path(name).name
        try:
            same = _sum(path.read_bytes()) == digest
        except OSError as error:
            raise OptionError(f"the bundle {brief(str(folder))} is incomplete: {name} cannot be read") from error
        if not same:
            raise OptionError(f"the bundle {brief(str(folder))} was changed: {name} is not what was written")
    return manifest


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a bundle: `cells`, the map in [0, 1] on the model's grid, `raw`, and `mask` if there is one."""
    with np.load(folder / MAP, allow_pickle=False) as held:
        return {name: held[name] for name in held}


def bundles_in(folder: Path) -> list[Path]:
    """The folder itself if it is a bundle, else the bundles below it, in order of their names."""
    if _manifest(folder) is not None:
        return [folder]
    return [path.parent for path in sorted(folder.rglob(MANIFEST)) if _manifest(path.parent) is not None]


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and FORMAT in found else None


def _check_free(folder: Path) -> None:
    """Refuse to mix a bundle with other files.

    Raises:
        ImageError: the folder holds some, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ImageError(f"{brief(str(folder))} is a file; pass a folder, or a path that ends in .png")
    if folder.is_dir() and _manifest(folder) is None and any(folder.iterdir()):
        raise ImageError(
            f"{brief(str(folder))} is a folder that holds other files; pass a new folder for a bundle, or the path of "
            f"a picture, such as {brief(str(folder / 'map.png'))}"
        )


def _model(origin: Origin) -> dict[str, Any]:
    traits = traits_of(origin.model)
    weight = traits.weight
    return {
        "name": traits.name_or_path or None,
        "class": traits.class_name,
        "fingerprint": model_fingerprint(origin.model),
        "parameters": sum(parameter.numel() for parameter in traits.module.parameters()),
        "dtype": None if weight is None else str(weight.dtype),
        "device": None if weight is None else str(weight.device),
        "inputs": {name: plain(value) for name, value in origin.inputs.items()},
    }


def _processor(processor: Any) -> dict[str, Any] | None:
    if processor is None:
        return None
    settings = json.loads(processor.to_json_string()) if hasattr(processor, "to_json_string") else None
    name = type(processor).__name__
    return {"class": name, "fingerprint": processor_fingerprint(processor), "settings": settings}


def _arrays(explanation: Explanation) -> bytes:
    held: dict[str, Any] = {"cells": explanation.grid_map.cells, "raw": explanation.raw}
    if explanation.mask is not None:
        held["mask"] = explanation.mask
    file = io.BytesIO()
    np.savez_compressed(file, **held)
    return file.getvalue()


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    write_whole(path, lambda file: file.write(content))


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
