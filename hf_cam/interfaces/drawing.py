"""Options of `hf-cam explain` for its targets and pictures. Heavy imports are deferred until it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_cam.errors import OptionError, brief
from hf_cam.interfaces.files import DIFFERENCE, PICTURES, free, numbered

if TYPE_CHECKING:
    from hf_cam.explanation import Explanation

Written = list[tuple["Explanation", Path]]
"""Explanations, each with the file or folder that shows it."""
STYLES = ("even", "contours", "colorbar", "transparent")
OF_SCORES = ("expected", "sum", "colormap", "sheet", "bundle")


def add_targets(explain: argparse.ArgumentParser) -> None:
    """Add the options that put targets together."""
    explain.add_argument("--sum", action="store_true", help="one map for all targets together, e.g. for all cats")
    explain.add_argument(
        "--expected", metavar="TARGET", help="what was expected: its map, beside that of what the model says, and why"
    )
    explain.add_argument("--renormalize", choices=("box",), help="stretch the map inside each box for itself")


def add_pictures(explain: argparse.ArgumentParser) -> None:
    """Add the options for the pictures."""
    group = explain.add_argument_group("pictures")
    group.add_argument("--alpha", type=float, default=0.5, help="opacity of the colours, in [0, 1] (default: 0.5)")
    group.add_argument("--colormap", help="name of OpenCV's or matplotlib's, e.g. coolwarm (default: turbo)")
    group.add_argument("--even", action="store_true", help="the same opacity everywhere (default: weak parts fade)")
    group.add_argument("--contours", action="store_true", help="lines at a quarter, a half and three quarters")
    group.add_argument("--colorbar", action="store_true", help="add a legend of the colours")
    group.add_argument("--transparent", action="store_true", help="the colours alone, on a transparent ground (PNG)")
    group.add_argument("--sheet", action="store_true", help="one labelled picture per image of all that is explained")
    group.add_argument("--bundle", action="store_true", help="a folder per explanation, with all that a report needs")


def target_of(options: argparse.Namespace) -> Any:
    """The target that the options ask for.

    Raises:
        OptionError: two of them contradict each other.
    """
    given = options.target
    if options.expected is not None:
        for name in ("target", "sum", "top_k"):
            if getattr(options, name):
                raise OptionError(f"--expected explains what the model says beside it; omit --{name.replace('_', '-')}")
        return [None, options.expected]
    if options.sum:
        from hf_cam.targets import SumOf

        return SumOf(given)
    return given[0] if len(given or ()) == 1 else given


def check_pictures(options: argparse.Namespace, methods: Sequence[str]) -> None:
    """Refuse options that contradict each other or have an invalid value, before a model is loaded.

    Raises:
        OptionError: naming them.
    """
    from hf_cam.images.style import UNSIGNED, Style

    Style.of(options.alpha, options.colormap, UNSIGNED, drawing_of(options))
    if options.bundle and options.sheet:
        raise OptionError("--sheet makes one picture, and --bundle a folder per explanation; pass one of the two")
    if options.bundle and len(methods) > 1:
        raise OptionError("--bundle holds the map of one method; name a single one with --method")
    if options.bundle and Path(options.out).suffix.lower() in PICTURES and not options.out.endswith("/"):
        raise OptionError(f"--bundle writes folders, but {brief(options.out)} is a file; pass a folder as --out")


def check_words(options: argparse.Namespace) -> None:
    """Refuse options that have no use for the words of an answer.

    Raises:
        OptionError: naming one.
    """
    if Path(options.out).suffix.lower() == ".npy" and not Path(options.out).expanduser().is_dir():
        raise OptionError(f"{brief(options.out)} holds one map, and an answer has one per word; pass .html or .png")
    for name in (*OF_SCORES, *STYLES):
        if getattr(options, name):
            raise OptionError(f"--{name} does not apply to the words of an answer")


def drawing_of(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of a picture beside opacity and colours."""
    return {name: getattr(options, name) for name in STYLES}


def save(
    output: Path, found: Sequence[Explanation], options: argparse.Namespace, taken: set[Path], *, animated: bool
) -> Written:
    """Write the explanations of one image, each to a file of its own or all to one; and their difference, if wanted.

    Args:
        output: The file.
        found: The explanations.
        options: The options.
        taken: See `numbered`.
        animated: Whether videos become animations.
    """
    style = {"alpha": options.alpha, "colormap": options.colormap, **drawing_of(options)}
    if options.sheet:
        from hf_cam.images.drawing import save_picture
        from hf_cam.results.grid import grid

        path = save_picture(grid(list(found), **style), output)
        return [(one, path) for one in found]
    if options.bundle:
        folders = [path.with_suffix("") for path in numbered(output, len(found), taken)]
        return [(one, one.save(f"{folder}/", **style)) for one, folder in zip(found, folders, strict=True)]
    if animated and found[0].frames and not options.transparent:
        output = output.with_suffix(".gif")
    paths = numbered(output, len(found), taken)
    return [(one, one.save(path, **style)) for one, path in zip(found, paths, strict=True)]


def verdict(output: Path, found: Sequence[Explanation], options: argparse.Namespace, taken: set[Path]) -> list[str]:
    """What the model said beside what was expected, in words, with a picture of the difference; empty if not asked."""
    if options.expected is None or len(found) < 2:
        return []
    from hf_cam.results.difference import difference

    both = difference(*found[:2])
    path = output.with_name(f"{output.stem}{DIFFERENCE}.png")
    if path.with_suffix("") in taken:  # an image has that name
        path = next(free(path, taken))
    both.save(path)
    return [f"  {both} -> {path}"]
