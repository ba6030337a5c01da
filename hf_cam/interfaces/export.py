"""The command `hf-cam export`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_cam.errors import OptionError, brief


def add(commands: Any, method_options: Callable[[Sequence[str] | None], Mapping[str, Any]]) -> None:
    """Add the command to the parser.

    Args:
        commands: Of the parser.
        method_options: From the values of `--option` to options of a method.
    """
    export = commands.add_parser("export", help="export a classifier that returns its logits and a map")
    export.add_argument("model", metavar="MODEL", help="Hub id, folder or demo:NAME")
    export.add_argument("path", metavar="PATH", type=Path, help="file that ends in .onnx or, for torch, in .pt2")
    export.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="default: onnx")
    export.add_argument("--method", default="gradcam", help="one of `hf-cam methods` (default: gradcam)")
    export.add_argument(
        "--option", action="append", metavar="NAME=VALUE", help="option of the method, e.g. gaussian=False; repeatable"
    )
    export.add_argument(
        "--target-input", action="store_true", help="add an input for the classes (default: the top class)"
    )
    export.add_argument("--size", metavar="HxW", help="height and width of the input (default: the processor's)")
    export.add_argument("--dynamic", action="store_true", help="leave height and width of the input open")
    export.add_argument("--layer", action="append", dest="layers", help="dotted name; repeatable (default: inferred)")

    def run(options: argparse.Namespace) -> None:
        from hf_cam.exporting.export import export as exported

        path = exported(
            options.model,
            options.path,
            options.format,
            method=options.method,
            method_options=method_options(options.option),
            target_input=options.target_input,
            size=_size(options.size),
            dynamic=options.dynamic,
            layers=options.layers,
        )
        print(path)

    export.set_defaults(run=run)


def _size(given: str | None) -> tuple[int, int] | None:
    """`"224x320"` as `(224, 320)`.

    Raises:
        OptionError: it is written otherwise.
    """
    if given is None:
        return None
    height, _, width = given.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise OptionError(f"--size takes HEIGHTxWIDTH, such as 224x320, got {brief(given)}")
    return int(height), int(width)
