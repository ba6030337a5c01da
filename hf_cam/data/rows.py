"""One image's explanations as a row of plain values, and back: what `Explain` returns and what the files hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from hf_cam.errors import OptionError, brief
from hf_cam.explanation import Explanation
from hf_cam.heads.subjects import Subject
from hf_cam.images.geometry import Geometry
from hf_cam.images.mapped import GridMap
from hf_cam.images.reading import load_image
from hf_cam.images.videos import Video, load_video
from hf_cam.results.bundle import FRAME, IMAGE, arrays_of, verified

Row = dict[str, Any]
"""One image: the columns of `COLUMNS`, by name."""

COLUMNS: Mapping[str, str] = {
    "label": "what is explained first: a class name, a prompt, a detected object; empty if there is an error",
    "score": "the model's confidence in it, or the value of a caller's own target; NaN if there is an error",
    "score_kind": "what the score is, such as probability",
    "box": "(x0, y0, x1, y1) in the image's pixels; empty if the head finds no objects",
    "map": "the map in [0, 1], or [-1, 1] if it is signed, on the model's grid as float16, row by row",
    "map_shape": "(h, w) of the map; (t, h, w) for a video",
    "geometry": "how the processor put the image into the model's input: what draws the heatmap from the map",
    "evidence": "where the map has evidence: image, outside (only on padding) or none",
    "check": "the verdict of a check, if one is wanted: supports, undecided or contradicts",
    "details": "what else belongs to the explanation as JSON, such as its method, layers and flags",
    "others": "further explanations of the image (objects, prompts) as a JSON list",
    "error": "why the image could not be explained; empty if it was",
}
"""The columns and what they hold. None of them is ever null, so that each batch alone shows its types."""

NO_GEOMETRY = {
    "image_size": [0, 0],
    "model_size": [0, 0],
    "rows": [0.0, 0.0],
    "columns": [0.0, 0.0],
    "seen": [0, 0, 0, 0],
    "swapped": False,
}


def row_of(explanations: Sequence[Explanation], check: str = "") -> Row:
    """The row of an image that was explained.

    Args:
        explanations: Best first, at least one.
        check: The verdict on the first.
    """
    first, *others = explanations
    map_, described = first.grid_map, first.to_dict(with_map=False)
    cells = map_.cells
    return {
        **_row(first.label, first.score, first.score_kind, first.box),
        "map": cells.astype(np.float16).reshape(-1),
        "map_shape": np.array(cells.shape, np.int32),
        "geometry": map_.geometry.to_dict(),
        "evidence": map_.evidence,
        "check": check,
        "details": json.dumps({name: value for name, value in described.items() if name not in COLUMNS}),
        "others": json.dumps([one.to_dict() for one in others]),
    }


def predicted_row(predictions: Sequence[tuple[Subject, float]]) -> Row:
    """The row of an image that was not explained, only shown to the model: predictions with their scores."""
    subject, score = predictions[0]
    others = [
        {"label": one.label, "score": value, "score_kind": one.kind_of_score, "box": one.box}
        for one, value in predictions[1:]
    ]
    return {**_row(subject.label, score, subject.kind_of_score, subject.box), "others": json.dumps(others)}


def error_row(error: object) -> Row:
    """The row of an image that could not be explained."""
    return {**_row("", float("nan"), "", None), "error": str(error) or type(error).__name__}


def _row(label: str, score: float, score_kind: str, box: Sequence[float] | None) -> Row:
    return {
        "label": label,
        "score": score,
        "score_kind": score_kind,
        "box": np.array(() if box is None else box, np.float32),
        "map": np.zeros(0, np.float16),
        "map_shape": np.zeros(0, np.int32),
        "geometry": NO_GEOMETRY,
        "evidence": "",
        "check": "",
        "details": "{}",
        "others": "[]",
        "error": "",
    }


def explanations_of(row: Mapping[str, Any], source: str | Path) -> list[Explanation]:
    """The explanations in a row; none if it holds an error or a prediction alone.

    Args:
        row: As `row_of` made it.
        source: Where the image is read from each time it is asked for.
    """
    if not len(row["map_shape"]):
        return []
    cells = np.asarray(row["map"], np.float32).reshape(tuple(row["map_shape"]))
    box = row["box"] if len(row["box"]) else None
    first = {**row, **json.loads(row["details"]), "map": cells, "box": box}
    return [explanation_of(one, source) for one in (first, *json.loads(row["others"]))]


def explanation_of(described: Mapping[str, Any], source: Any) -> Explanation:
    """The explanation that `Explanation.to_dict` described.

    Args:
        described: The description.
        source: The image or video, or where it is read from each time it is asked for.
    """
    cells = np.asarray(described["map"], np.float32)
    frames = described.get("frames", len(cells) if cells.ndim == 3 else None)
    video = None if frames is None else partial(load_video, source, frames)
    signed = described.get("signed", bool((cells < 0).any()))
    map_ = GridMap((cells,), Geometry.from_dict(described["geometry"]), None, frames, signed)
    box, boxes = described.get("box"), tuple(cast("Any", tuple(one)) for one in described.get("boxes", ()))
    return Explanation(
        label=described["label"],
        score=float(described["score"]),
        heatmap=cast("np.ndarray", map_.heatmap),
        raw=cells,
        method=described["method"],
        layers=tuple(described["layers"]),
        image=cast("Any", partial(load_image, source) if video is None else lambda: video().frames[0]),
        box=None if box is None else cast("Any", tuple(float(side) for side in box)),
        flags=tuple(described.get("flags", ())),
        frames=() if video is None else cast("Any", lambda: video().frames),
        score_kind=described["score_kind"],
        map=map_,
        boxes=boxes,
    ).renormalized(described.get("renormalize"))


def bundled(folder: Path) -> Explanation:
    """The explanation in a bundle, without its model.

    Raises:
        OptionError: the folder holds none, or one of its files is missing or was changed.
    """
    manifest = verified(folder)
    if manifest is None:
        raise OptionError(f"{brief(str(folder))} holds no bundle; Explanation.save writes one")
    described, arrays = manifest["explanation"], arrays_of(folder)
    paths = [folder / FRAME.format(i) for i in range(len(manifest["files"])) if FRAME.format(i) in manifest["files"]]
    shown = Video(paths) if paths else folder / IMAGE
    found = explanation_of({**described, "map": arrays["cells"], "frames": len(paths) or None}, shown)
    return found.changed(
        raw=arrays["raw"],
        mask=arrays.get("mask"),
        span=None if described["span"] is None else tuple(described["span"]),
        evidence=described["contribution of the picture"],
    )
