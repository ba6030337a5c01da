"""How far each method's map is from its paper: the largest difference, as a share of the map's largest value.

    python -m benchmarks.papers [--methods fem legrad ...] [--markdown docs/methods.md]

Each method is compared with a slow re-implementation in float64, written from the paper's equation (`equations.py` and
`equations_variants.py`), on random signals or on a tiny model with random weights; and with a package in float32, if
that is installed: grad-cam for the methods that read a layer, and that of LeGrad's authors (`pip install --no-deps
legrad-torch open_clip_torch==2.23.0 einops ftfy`; with later versions of open_clip it averages over images instead of
tokens). `--markdown` writes the table into the page, between its marks; rows of packages that are not installed stay as
they are.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import equations_variants  # noqa: F401 - adds its equations
from benchmarks.equations import EQUATIONS, make, pictures
from benchmarks.grad_cam import CLASSES, OF_EITHER_SIGN, Logits, class_targets, package
from benchmarks.pages import write
from hf_cam import CAM, list_methods
from hf_cam.methods import Method

START, END = "<!-- agreement -->", "<!-- end of agreement -->"
OURS = "the equation in float64"
NOTHING = "nothing: it has no paper"
Pair = tuple[Tensor, Tensor]
"""hf-cam's map and the other one."""


@dataclass(frozen=True)
class Row:
    """One comparison: the method with its options, what it was compared with, on what, and the largest difference."""

    method: str
    options: str
    reference: str
    on: str
    difference: float

    def line(self) -> str:
        name = f"`{self.method}`" + (f", `{self.options}`" if self.options else "")
        return f"| {name} | {self.reference} | {self.on} | {f'{self.difference:.0e}' if self.difference else '0'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=[*list_methods()], choices=list_methods())
    parser.add_argument("--markdown", type=Path, help="the page to write the table into")
    options = parser.parse_args()
    if options.markdown and set(options.methods) != set(list_methods()):
        parser.error("--markdown writes the rows of all methods; omit --methods")
    known = kept(options.markdown.read_text(encoding="utf-8")) if options.markdown else {}
    text = table([list_methods()[name] for name in options.methods], known)
    print(text)
    if options.markdown:
        write(options.markdown, "agreement", text)


def table(methods: Sequence[Method], known: dict[tuple[str, str], str]) -> str:
    lines = ["| method | compared with | on | largest difference |", "|---|---|---|--:|"]
    for method in methods:
        found = [*rows(method.id), *packages(method.id)]
        named = {row.reference for row in found}
        lines += [row.line() for row in found]
        lines += [line for (name, reference), line in known.items() if name == method.id and reference not in named]
        if not found:
            lines.append(f"| `{method.id}` | {NOTHING} | | |")
    return "\n".join(lines)


def kept(page: str) -> dict[tuple[str, str], str]:
    """The rows of packages in a page, by method and package."""
    if START not in page:
        return {}
    body = page.split(START)[1].split(END)[0]
    cells = {line: [cell.strip() for cell in line.split("|")] for line in body.splitlines() if line.startswith("| `")}
    ours = (OURS, NOTHING)
    return {(own[1].split("`")[1], own[2]): line for line, own in cells.items() if own[2] not in ours}


def rows(method: str) -> Iterator[Row]:
    """The comparisons with the paper's equation."""
    for (name, options, on), compare in EQUATIONS.items():
        if name == method:
            yield Row(method, options, OURS, on, difference(*compare()))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


# Packages ------------------------------------------------------------------------------------------------------------

GRAD_CAM = [method for method in CLASSES if method not in OF_EITHER_SIGN]


def packages(method: str) -> Iterator[Row]:
    """The comparisons with other packages, as far as they are installed."""
    if method in GRAD_CAM and importlib.util.find_spec("pytorch_grad_cam"):
        yield Row(method, "", f"grad-cam {version('grad-cam')}", "a ResNet, float32", difference(*grad_cam(method)))
    if method == "legrad" and importlib.util.find_spec("legrad") and version("open_clip_torch") <= "2.23.0":
        reference = f"the authors' legrad-torch {version('legrad-torch')}"
        yield Row(method, "start_layer=-2", reference, "open_clip's ViT, float32", difference(*legrad_torch()))


def version(package: str) -> str:
    from importlib.metadata import version as version_of

    return version_of(package)


def grad_cam(method: str) -> Pair:
    net, x = make("resnet", torch.float32), pictures(2, torch.float32)
    with torch.no_grad():
        top = net(x).logits.argmax(-1).tolist()  # with positive logits: see the departure of Ablation-CAM
    cam = CAM(net, method)
    layers = [net.get_submodule(layer) for layer in cam.adapter_for(x, {}).layers]
    with sdpa_kernel(SDPBackend.MATH), contextlib.redirect_stderr(io.StringIO()):
        reference = getattr(package(), CLASSES[method])(Logits(net), layers)
        theirs = reference(input_tensor=x, targets=class_targets(top))
    return cam(x, top), torch.from_numpy(np.asarray(theirs))


def legrad_torch() -> Pair:
    """The authors' wrapper of open_clip, which reads the last two layers unless told otherwise."""
    import open_clip
    from legrad import LeWrapper

    torch.manual_seed(0)
    vision = {"image_size": 64, "patch_size": 16, "width": 32, "layers": 4, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    net = open_clip.CLIP(16, vision, text).eval()
    for parameter in net.visual.parameters():
        parameter.data += torch.randn(parameter.shape) / 10
    x, words = pictures(1, torch.float32)[..., :64], F.normalize(torch.randn(1, 16), dim=-1)
    ours = CAM(Tower(net.visual, words), "legrad", start_layer=-2)(x, lambda output: output[0])
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = LeWrapper(net).compute_legrad(words, x)[0]
    return ours, theirs


class Tower(nn.Module):
    """A tower of pictures, and the cosine of its embedding to one text."""

    def __init__(self, visual: nn.Module, words: Tensor) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("words", words)

    def forward(self, pixel_values: Tensor) -> Any:
        return F.normalize(self.visual(pixel_values), dim=-1) @ self.words.T


if __name__ == "__main__":
    main()
