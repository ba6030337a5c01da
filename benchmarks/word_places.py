"""Whether the maps of words lie where they should, on a tiny random model of any type.

A box of the picture is disturbed. What changes in the maps must lie in the box, and better so than in the box flipped,
turned or shifted. Nothing of the measurement that placed the cells is used: neither its bars nor its noise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.tiny_writers import ANSWER, LEFT_OUT, Writer, writers
from benchmarks.writer_inputs import prepare_of
from hf_cam.errors import MethodError
from hf_cam.words.word_cam import WordCAM

MATCH, RIVAL = 0.25, 0.85
"""Least correlation of the change with the box, and the largest share of it that any rival may have."""
BOXES = ((0.05, 0.55), (0.55, 0.1), (0.6, 0.7))
"""Top and left of boxes in shares of the picture; none is its own mirror image."""
EXTENT = 0.33
POSITIVE = "word-relevance"
"""The method of the maps: few cells of a random model's map change if it is cut at 0, as that of the default is."""
FLOOR = 0.1
"""Weights below this share of a map's mean count as nothing."""
SECTION = re.compile(r"(<!-- types -->\n).*?(<!-- end types -->)", re.DOTALL)

Result = Literal["right", "undecided", "failed", "not built", "left out"]


@dataclass(frozen=True)
class Row:
    """The result for one type.

    Args:
        model_type: The type.
        result: "right": the maps lie where they should; "undecided": the check does not pass, as it may not on a random
            model; "failed": hf-cam refuses the model or fails; "not built": the tiny model or its inputs are not made.
        judged: The verdict; None without one.
        reason: Why there is none.
    """

    model_type: str
    result: Result
    judged: Judged | None = None
    reason: str = ""


@dataclass(frozen=True)
class Judged:
    """The verdict for one model.

    Args:
        match: Mean correlation of the change in the maps with the box.
        rival: The largest mean correlation with the box flipped, turned or shifted.
        method: The method of the maps.
        place: Where the picture's cells enter, in words.
    """

    match: float
    rival: float
    method: str
    place: str

    @property
    def right(self) -> bool:
        """Whether the maps lie where they should."""
        return self.match >= MATCH and self.rival <= RIVAL * self.match


def judged(
    model: nn.Module, prepare: Callable[[np.ndarray], Mapping[str, Any]], answer: list[int], method: str = "auto"
) -> Judged:
    """The verdict on a model's maps over a smooth picture of 96 x 144.

    Args:
        model, prepare, method: See `hf_cam.WordCAM`.
        answer: The positions of the answer's tokens.
    """
    picture, cam = smooth(0), WordCAM(model, prepare, method)
    clean = cam(picture, answer)
    scores = []
    for number, (top, left) in enumerate(BOXES):
        box = _box(picture.shape[:2], top, left)
        other = np.where(box[..., None], smooth(number + 7), picture)
        changed = change(clean, cam(other, answer))
        scores.append([_correlation(changed, moved) for moved in (box, *_rivals(box))])
    match, *rivals = np.mean(scores, 0)
    return Judged(float(match), float(max(rivals)), cam.method, str(cam.located(picture)))


def change(before: Tensor, after: Tensor) -> Tensor:
    """How much each place of maps `[T, H, W]` changed in relation to what it was, less what all of a map did, `[H, W]`.

    Attention and gradients of a random model are large at few cells, whose change hides all others, and a word that
    becomes more or less likely changes its map as a whole.

    >>> change(torch.tensor([[[1.0, 1.0, 1.0]]]), torch.tensor([[[2.0, 2.0, 4.0]]])).gt(0.1)
    tensor([[False, False,  True]])
    """
    floors = FLOOR * before.mean((1, 2), keepdim=True) + torch.finfo(before.dtype).tiny
    ratios = ((after + floors) / (before + floors)).log()
    return (ratios - ratios.flatten(1).median(1).values[:, None, None]).abs().mean(0)


def smooth(seed: int) -> np.ndarray:
    """A picture of 96 x 144 of random colours that run into each other."""
    coarse = np.random.default_rng(seed).random((1, 3, 12, 18)).astype(np.float32)
    fine = functional.interpolate(torch.from_numpy(coarse), size=(96, 144), mode="bicubic").clamp(0, 1)
    pixels: np.ndarray = (fine[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    return pixels


def _box(size: tuple[int, ...], top: float, left: float) -> np.ndarray:
    height, width = size
    box = np.zeros((height, width), bool)
    first, second = int(top * height), int(left * width)
    box[first : first + int(EXTENT * height), second : second + int(EXTENT * width)] = True
    return box


def _rivals(box: np.ndarray) -> list[np.ndarray]:
    height, width = box.shape
    turned = torch.from_numpy(box.T.copy()).float()[None, None]
    transposed = functional.interpolate(turned, size=(height, width))[0, 0].numpy() > 0.5
    shifts = [
        np.roll(box, (height // 3 * down, width // 3 * right), (0, 1)) for down, right in ((1, 0), (0, 1), (1, 1))
    ]
    return [box[::-1], box[:, ::-1], box[::-1, ::-1], transposed, *shifts]


def _correlation(change: Tensor, box: np.ndarray) -> float:
    one, other = change.double(), torch.from_numpy(box.astype(float))
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / (one.norm() * other.norm()).clamp_min(1e-12))


def rows(types: Sequence[str] = ()) -> Iterator[Row]:
    """One row per type of the mapping, or per named type."""
    for writer in writers():
        if types and writer.model_type not in types:
            continue
        left_out = LEFT_OUT.get(writer.model_type)
        yield Row(writer.model_type, "left out", reason=left_out) if left_out else _row(writer)


def _row(writer: Writer) -> Row:
    stage: Result = "not built"
    try:
        model = writer.build()
        prepare = prepare_of(writer, model)
        inputs = prepare(smooth(0))
        with torch.no_grad():
            model(**inputs)
        stage = "failed"
        length = inputs.get("decoder_input_ids", inputs.get("input_ids")).shape[1]
        answer = list(range(length - len(ANSWER), length))
        try:
            found = judged(model, prepare, answer, POSITIVE)
        except MethodError:  # the picture's cells are not in the text
            found = judged(model, prepare, answer)
    except Exception as error:  # noqa: BLE001 - whatever a type raises is its reason
        return Row(writer.model_type, stage, reason=f"{type(error).__name__}: {' '.join(str(error).split())}"[:140])
    return Row(writer.model_type, "right" if found.right else "undecided", found)


def report(found: Sequence[Row]) -> str:
    """The counts in one line."""
    run = [row for row in found if row.result in ("right", "undecided", "failed")]
    right = sum(row.result == "right" for row in run)
    left = sum(row.result == "left out" for row in found)
    return (
        f"right in space: {right} of {len(run)} types that run; {len(found)} types, {left} left out, "
        f"{len(found) - left - len(run)} not built"
    )


def table(found: Sequence[Row]) -> str:
    """As Markdown, the counts first."""
    lines = [
        f"{report(found)}.",
        "",
        "| type | result | match / rival | where the picture enters |",
        "|---|---|---|---|",
    ]
    for row in found:
        verdict = "" if row.judged is None else f"{row.judged.match:.2f} / {row.judged.rival:.2f}"
        place = (row.reason if row.judged is None else row.judged.place).replace("|", "/")
        lines.append(f"| {row.model_type} | {row.result} | {verdict} | {place} |")
    return "\n".join(lines)


def write(found: Sequence[Row], page: Path) -> None:
    """Replace the page's section."""
    text = page.read_text(encoding="utf-8")
    page.write_text(SECTION.sub(lambda part: f"{part[1]}\n{table(found)}\n\n{part[2]}", text), encoding="utf-8")
