"""What the page says of a map: its sentence, its legend, its verdict."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

import numpy as np
from overlays import seen_box
from work import Found, Judgement

from hf_cam import Explanation
from hf_cam.check import VERDICTS, Check
from hf_cam.heads.subjects import CONFIDENCE
from hf_cam.images.colours import table_of
from hf_cam.methods import get_method

MARKS = frozenset("&<>*_`~[]()!#|\\$")
"""Letters that mean something in Markdown, HTML or formulas."""
SIGNS = {"supports": "✓", "undecided": "?", "contradicts": "✕"}
"""The sign of each verdict, for those who do not see its colour."""
STALE = "Out of date: what is asked for has changed. Press Explain."
PRESS = "Press **Explain**."
CHOOSE = "Upload, paste or photograph a picture, or choose an example."
ALIKE = 0.98
"""The correlation from which two maps look the same."""
STOPS = 8
"""Colours of the legend's bar."""


def as_text(label: str) -> str:
    """A stranger's words in Markdown, where neither their HTML nor their marks act."""
    return "".join(f"&#{ord(letter)};" if letter in MARKS else letter for letter in label)


def score_of(explanation: Explanation) -> str:
    """The score: a probability or a share as a percentage, anything else as a number with what it is.

    A percentage that would be rounded to 0 is "under 1%".
    """
    kind, score = explanation.score_kind, explanation.score
    if not (0 <= score <= 1 and (kind == CONFIDENCE or "probabilit" in kind or "share" in kind)):
        return f"{kind} {score:.3g}"
    return "under 1%" if score < 0.005 else f"{score:.0%}"


def sentence(found: Found) -> str:
    """The label, the score, the method and the layers of the map."""
    current = found.current
    flags = "".join(f" · {flag}" for flag in current.flags)
    layers = ", ".join(f"`{layer}`" for layer in current.layers)
    method = get_method(current.method)
    paper = re.search(r"arXiv:(\d{4}\.\d{4,5})", method.paper)
    name = f"[{method.name}](https://arxiv.org/abs/{paper[1]})" if paper else method.name
    return f"**{as_text(current.label)}** · {score_of(current)} · {name} at {layers}{flags}"


def effort(found: Found) -> str:
    """What `effort="checked"` did and found, as HTML; nothing where the map was taken as it is."""
    done = found.current.effort
    return "" if done is None else f"{verdict_of(done.check)}<p>{html.escape(str(done))}</p>"


def legend(explanation: Explanation, colormap: str) -> str:
    """The bar of colours, and what the outlined square is, as HTML."""
    bar = (
        f'<div class="bar"><span>no evidence</span><i style="background:linear-gradient(90deg,{_stops(colormap)})"></i>'
        "<span>most evidence</span></div>"
    )
    if seen_box(explanation) is None:
        return bar
    return bar + '<p class="seen"><i></i> The model saw only this part of the picture: the outlined square.</p>'


def _stops(colormap: str) -> str:
    """The colours of the bar, from the weakest to the strongest."""
    colours = table_of(colormap)[np.linspace(0, 255, STOPS + 1).astype(int)]
    return ",".join(f"rgb({red} {green} {blue})" for red, green, blue in colours.tolist())


def verdict_of(check: Check) -> str:
    """The verdict in one sentence, with its sign and colour, as HTML."""
    sign, meaning = SIGNS[check.verdict], html.escape(VERDICTS[check.verdict])
    words = f'<span aria-hidden="true">{sign}</span> <b>Verdict: {check.verdict}.</b> {meaning}'
    return f'<p class="verdict {check.verdict}">{words}</p>'


def judgement(found: Judgement) -> str:
    """The verdict and its reasons, as HTML, or that it is still being reached."""
    if found.check is not None:
        reasons = html.escape(str(found.check))
        return f"{verdict_of(found.check)}<details><summary>How it was tested</summary><p>{reasons}</p></details>"
    said = f"No verdict: {found.refusal}" if found.refusal else "Checking the map …"
    return f'<p class="verdict pending">{html.escape(said)}</p>'


def compared(explanations: Sequence[Explanation], skipped: dict[str, str]) -> str:
    """Which of the maps look the same, and which methods are missing and why, as Markdown."""
    names = [get_method(one.method).name for one in explanations]
    flat = [one.heatmap.ravel() for one in explanations]
    pairs = [
        f"{names[i]} and {names[j]} give almost the same map here."
        for j in range(len(flat))
        for i in range(j)
        if flat[i].std() and flat[j].std() and np.corrcoef(flat[i], flat[j])[0, 1] >= ALIKE
    ]
    missing = [f"{get_method(method).name} is missing: {as_text(reason)}." for method, reason in skipped.items()]
    return " ".join([*pairs, *missing])
