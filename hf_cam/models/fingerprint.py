"""Fingerprints of what a record depends on: the model, the picture as the model gets it, the target and the method."""

from __future__ import annotations

import hashlib
import inspect
import io
import types
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hf_cam.doors import unreadable
from hf_cam.models.traits import traits_of
from hf_cam.registry import place_of

Buffer = bytes | memoryview
PLAIN = (bool, int, float, complex, str, bytes, type(None))
ORIGIN = ("_name_or_path", "transformers_version", "_commit_hash")
"""Where a config comes from."""
PASSING = ("training", "name_or_path")
"""Attributes of a module that do not change what it computes in evaluation mode."""
LENGTH = 32
"""Hexadecimal digits, hence 128 bits."""


def fingerprint(*values: Any) -> str:
    """The same text for the same values, in every process; another one for other values.

    Tensors, arrays and pictures count with all their bytes, dataclasses with their fields. What has no lasting
    identity, such as a function that may read anything, gets a fingerprint that never comes again.

    >>> fingerprint(1, "a") == fingerprint(1, "a") != fingerprint("1", "a")
    True
    """
    found = hashlib.sha256()
    for part in _parts(values):
        found.update(part)
    return found.hexdigest()[:LENGTH]


def model_fingerprint(model: nn.Module) -> str:
    """A fingerprint of everything that a model computes with: its weights, its config and the code of its modules.

    All bytes of all weights are read: about 0.3 s for a ViT-B.
    """
    traits = traits_of(model)
    state = traits.module.state_dict()
    # Buffers that are not saved with the model take part in its forward too.
    unsaved = {name: value for name, value in traits.module.named_buffers() if name not in state}
    modules = [
        (name, code_of(type(module)), module.extra_repr(), _settings(module))
        for name, module in traits.module.named_modules()
    ]
    return fingerprint(state, unsaved, modules, _config(traits.config))


def processor_fingerprint(processor: Any) -> str:
    """A fingerprint of the settings of a processor, or else of its code."""
    if hasattr(processor, "to_json_string"):
        return fingerprint(processor.to_json_string())
    return fingerprint(repr(processor)) if " at 0x" not in repr(processor) else fingerprint(code_of(type(processor)))


def code_of(source: Callable[..., Any]) -> bytes:
    """The name of a function or class and what it, or the class's `forward` or `__call__`, is compiled to.

    It comes again in every process with the same version of Python.
    """
    source = inspect.unwrap(source)
    written = [vars(source).get(name) for name in ("forward", "__call__")] if isinstance(source, type) else [source]
    functions = [inspect.unwrap(one) for one in written if isinstance(one, types.FunctionType)]
    return _tagged(place_of(source), b"".join(_compiled(function.__code__) for function in functions))


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """The plain attributes of a module, such as a scale or a stride, and functions such as an activation."""
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and name not in PASSING}
    functions = types.FunctionType | types.BuiltinFunctionType
    return sorted(
        (name, code_of(value) if isinstance(value, functions) else value)
        for name, value in own.items()
        if isinstance(value, (*PLAIN, tuple, types.FunctionType, types.BuiltinFunctionType))
    )


def _config(config: Any) -> Any:
    """The settings of a transformers config, without where and with which version it was saved."""
    return _without_origin(config.to_dict()) if hasattr(config, "to_dict") else None


def _without_origin(settings: Any) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    return {str(name): _without_origin(value) for name, value in settings.items() if name not in ORIGIN}


def _parts(value: Any) -> Iterable[Buffer]:
    """A value as bytes, each piece with its type and size, so that no two values have the same pieces."""
    if isinstance(value, PLAIN):
        yield _tagged(type(value).__name__, repr(value).encode("utf-8", "surrogatepass"))
    elif isinstance(value, Tensor):
        yield from _of_tensor(value)
    elif isinstance(value, bytearray | memoryview):
        yield _tagged("bytes", repr(bytes(value)).encode())
    elif isinstance(value, np.ndarray | np.generic):
        yield _tagged("array", f"{value.dtype} {value.shape}".encode())
        yield np.ascontiguousarray(value).tobytes() if value.dtype != object else _never_again()
    elif isinstance(value, Image.Image):
        yield _tagged("image", f"{value.mode} {value.size}".encode())
        yield value.tobytes()
    elif isinstance(value, Path | torch.dtype | torch.device | type):
        yield _tagged(type(value).__name__, str(value).encode("utf-8", "surrogatepass"))
    elif isinstance(value, Mapping):
        yield from _of_members("dict", sorted(value.items(), key=lambda item: str(item[0])))
    elif isinstance(value, list | tuple):
        yield from _of_members("list", value)
    elif is_dataclass(value):
        yield code_of(type(value))
        yield from _of_members("fields", [getattr(value, field.name) for field in fields(value)])
    else:
        yield _never_again()


def _of_members(kind: str, members: Iterable[Any]) -> Iterable[Buffer]:
    listed = list(members)
    yield _tagged(kind, str(len(listed)).encode())
    for member in listed:
        yield from _parts(member)


def _of_tensor(tensor: Tensor) -> Iterable[Buffer]:
    yield _tagged("tensor", f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    tensor = tensor.detach()
    if tensor.is_meta:  # weights that lie elsewhere, as accelerate offloads them
        yield _never_again()
    elif type(tensor) in (Tensor, nn.Parameter) and not unreadable(tensor):
        flat = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data if flat.numel() else b""
    else:  # sparse, quantized, or of a class that keeps its values elsewhere
        file = io.BytesIO()
        torch.save(tensor, file)
        yield file.getvalue()


def _compiled(code: types.CodeType) -> bytes:
    def constant(value: Any) -> bytes:
        if isinstance(value, types.CodeType):
            return _compiled(value)
        # A set has another order in every process.
        return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value).encode(
            "utf-8", "surrogatepass"
        )

    return code.co_code + repr(code.co_names).encode() + b"".join(map(constant, code.co_consts))


def _tagged(kind: str, content: bytes) -> bytes:
    return f"{kind}:{len(content)}:".encode() + content


def _never_again() -> bytes:
    return uuid.uuid4().bytes
