"""An audit as files: one page that needs no others, the findings, and tables."""

from __future__ import annotations

import csv
import html
import importlib.util
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING
from urllib.parse import quote

import cv2
import numpy as np
from PIL import Image

from hf_cam.auditing.cases import Case
from hf_cam.auditing.findings import NOT_TESTED, region_name
from hf_cam.auditing.regions import within
from hf_cam.auditing.strategies import Strategy
from hf_cam.doors import door
from hf_cam.errors import HFCamError, ImageError, brief
from hf_cam.images.drawing import outlined, overlay
from hf_cam.images.pages import SIDE, STYLE, data_uri, figure, in_frame, resized, small
from hf_cam.results.files import encodable, obstacle, write_text, write_whole

if TYPE_CHECKING:
    from hf_cam.auditing.audit import Audit
    from hf_cam.auditing.rows import Row

EXAMPLES, UNUSUAL, WRONG, TOLD = 6, 8, 12, 3
MANY = 200
"""So many images are linked from the page; the table has all of them."""
PAGE = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))


@door(ImageError)
def save(audit: Audit, folder: str | Path) -> Path:
    """Write the page, the findings and the tables; returns the page.

    Raises:
        ImageError: the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "findings.json", json.dumps(summary(audit), indent=2, ensure_ascii=False))
        write_text(folder / "images.csv", _table(_image_rows(audit)))
        write_text(folder / "strategies.csv", _table(_strategy_rows(audit)))
        if importlib.util.find_spec("pyarrow"):
            _write_masks(audit, folder / "findings.parquet")
        return write_text(folder / "index.html", page(audit, folder))
    except OSError as error:
        raise ImageError(f"the report cannot be written to {str(folder)!r}: {error.strerror or error}") from error


def check_folder(folder: str | Path) -> None:
    """Refuse a folder for the report that cannot be made or written, before there is anything to write.

    Raises:
        ImageError: it, or what it would lie in, is no folder or may not be written.
    """
    if fault := obstacle(Path(folder)):
        raise ImageError(f"the report cannot be written to {brief(str(folder))}: {fault}; choose another folder")


def summary(audit: Audit) -> dict[str, object]:
    """What `findings.json` holds."""
    return {
        "model": audit.model,
        "method": audit.method,
        "images": len(audit.rows),
        "accuracy": audit.accuracy,
        "classes": list(audit.classes),
        "notes": list(audit.notes),
        "frame": audit.frame,
        "findings": [asdict(one) for one in audit.findings],
    }


def _table(rows: Sequence[dict[str, object]]) -> str:
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _image_rows(audit: Audit) -> list[dict[str, object]]:
    group = {index: number for number, one in enumerate(audit.strategies) for index in one.members}
    return [
        {
            "name": row.name,
            "label": row.label,
            "predicted": row.predicted,
            "right": row.right,
            "score": round(row.score, 6),
            "strategy": group.get(index, ""),
            "inside": "" if row.inside is None else round(row.inside, 4),
            "unusual": round(row.unusual, 5),
            "flags": "; ".join(row.flags),
            "error": row.error,
        }
        for index, row in enumerate(audit.rows)
    ]


def _strategy_rows(audit: Audit) -> list[dict[str, object]]:
    return [
        {
            "strategy": number,
            "label": one.label,
            "images": len(one.members),
            "share": round(one.share, 4),
            "accuracy": round(one.accuracy, 4),
            "spread": round(one.spread, 5),
        }
        for number, one in enumerate(audit.strategies)
    ]


def _write_masks(audit: Audit, path: Path) -> None:
    """One row per finding and examined image; the region is a PNG of one bit per pixel."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("finding", "label", "kind", "verdict", "name", "mask")
    rows = [
        dict(
            zip(names, (number, encodable(one.label), one.kind, one.verdict, encodable(name), _png(mask)), strict=True)
        )
        for number, (one, masks) in enumerate(zip(audit.findings, audit.masks, strict=True))
        for name, mask in masks.items()
    ]
    types = (pa.int32(), pa.string(), pa.string(), pa.string(), pa.string(), pa.binary())
    schema = pa.schema(list(zip(names, types, strict=True)))
    table = pa.Table.from_pylist(rows, schema)
    write_whole(path, lambda file: pq.write_table(table, file))


def _png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()


def framed(audit: Audit) -> str:
    """The page in a frame of its own, so that a notebook's styles do not meet it."""
    return in_frame(encodable(page(audit)))


def page(audit: Audit, folder: Path | None = None) -> str:
    """The whole page; links to images, and to the files beside it, are relative to the folder, if there is one."""
    pictures = Pictures(audit)
    return _page(audit, pictures, _images(audit, pictures, folder))


def excerpt(audit: Audit) -> str:
    """The page without what it reports of single images."""
    return _page(audit, Pictures(audit), "")


def _page(audit: Audit, pictures: Pictures, images: str) -> str:
    readable = sum(not row.error for row in audit.rows)
    return PAGE.substitute(
        style=STYLE,
        model=html.escape(audit.model),
        lead=html.escape(lead(audit)),
        facts=html.escape(
            f"{readable} images of {len(audit.classes)} classes, accuracy {audit.accuracy:.2f}; maps by {audit.method}."
        ),
        notes="".join(f'<p class="note">{html.escape(note)}</p>' for note in audit.notes),
        findings="".join(_findings(audit, pictures)) or "<p>No class has images enough to be tested.</p>",
        classes="".join(_classes(audit, pictures)),
        images=images,
    )


def _images(audit: Audit, pictures: Pictures, folder: Path | None) -> str:
    """The sections on single images, and what lies beside the page."""
    return (
        "<h2>Wrong predictions, the most confident first</h2>\n"
        f'<div class="strip">{"".join(_wrong(audit, pictures)) or "<p>None.</p>"}</div>\n'
        f'<h2>Unusual maps</h2>\n<div class="strip">{"".join(_unusual(audit, pictures))}</div>\n'
        f"<h2>Evidence on the objects</h2>\n{_coverage(audit)}\n{'' if folder is None else _files()}"
        f"<details><summary>All images</summary><ul>{''.join(_links(audit, folder))}</ul></details>"
    )


def _files() -> str:
    """Links to what lies beside the page."""
    tables = ("findings.json", "images.csv", "strategies.csv")
    names = (*tables, "findings.parquet") if importlib.util.find_spec("pyarrow") else tables
    links = "".join(f'<li><a href="{name}">{name}</a></li>' for name in names)
    return f"<h2>Files</h2>\n<ul>{links}</ul>\n"


def lead(audit: Audit) -> str:
    """What was found, in one sentence."""
    if audit.suspicious:
        read: dict[str, dict[str, None]] = {}
        frame = "object" if audit.frame == "object" else "picture"
        for one in audit.suspicious:
            read.setdefault(region_name(one.kind, one.region, frame), {})[repr(one.label)] = None
        told = [f"for {_joined([*names])}, the model reads {where}" for where, names in read.items()]
        more = [f"{len(told) - TOLD} more below"] if len(told) > TOLD else []
        said = "; ".join([*told[:TOLD], *more])
        return f"{said[0].upper()}{said[1:]}."
    if any(one.verdict == "reads it" for one in audit.findings):
        return "No region was found that the model reads other than the objects."
    return "No region was found that the model reads apart from others." if audit.findings else NOT_TESTED


def _joined(names: Sequence[str]) -> str:
    shown = list(names[:5]) + ([f"{len(names) - 5} more classes"] if len(names) > 5 else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


class Pictures:
    """The audit's images, read again for the page, each once."""

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        self.by_name = {case.name: index for index, case in enumerate(audit.cases)}
        self.image = cache(self._image)

    def _image(self, index: int) -> Image.Image | None:
        try:
            return self.audit.cases[index].open().image
        except HFCamError:  # it was there when it was explained
            return None

    def with_map(self, index: int) -> str:
        """The image with its map, or without where there is none, as a data URI; empty if it is missing."""
        image, row = self.image(index), self.audit.rows[index]
        if image is None:
            return ""
        if row.map is None:
            return data_uri(small(image))
        heat = _over(np.asarray(row.map, np.float32), self.audit.cases[index], image, self.audit.frame == "object")
        return data_uri(overlay(small(image), resized(heat, small(image))))

    def with_region(self, name: str, mask: np.ndarray) -> str:
        """The image with the region's outline, as a data URI."""
        index = self.by_name.get(name)
        image = None if index is None else self.image(index)
        if image is None:
            return ""
        shown = small(image)
        marked = cv2.resize(np.uint8(mask), shown.size, interpolation=cv2.INTER_NEAREST) > 0
        return data_uri(outlined(shown, (), marked))


def _over(framed_map: np.ndarray, case: Case, image: Image.Image, by_object: bool) -> np.ndarray:
    """A map of the frame, `[H, W]` over the image."""
    heat = np.zeros((image.height, image.width), np.float32)
    x0, y0, x1, y1 = within((0.0, 0.0, 1.0, 1.0), case.open().box) if by_object else (0.0, 0.0, 1.0, 1.0)
    left, right = round(x0 * image.width), max(round(x1 * image.width), round(x0 * image.width) + 1)
    top, bottom = round(y0 * image.height), max(round(y1 * image.height), round(y0 * image.height) + 1)
    heat[top:bottom, left:right] = cv2.resize(framed_map, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    return heat / max(float(heat.max()), 1e-12)


VERDICTS = {"reads it": "reads", "does not": "not", "undecided": "maybe"}
"""How each verdict is coloured; that the object is read is no alarm."""


def _findings(audit: Audit, pictures: Pictures) -> Iterator[str]:
    suspicious = audit.suspicious
    for one, masks in zip(audit.findings, audit.masks, strict=True):
        colour = VERDICTS[one.verdict] if one.verdict != "reads it" or one in suspicious else "plain"
        shown = [figure(pictures.with_region(name, mask), Path(name).name) for name, mask in masks.items()]
        low, high = one.interval
        spoken = f"fall in accuracy {one.drop:.0%}, between {low:.0%} and {high:.0%}"
        bar = (
            f'<div class="bar" role="img" aria-label="{spoken}">'
            f'<i style="left:{low:.1%};width:{high - low:.1%}"></i><b style="left:{one.drop:.1%}"></b>'
            f'<s style="left:{one.elsewhere:.1%}"></s></div>'
        )
        yield (
            f'<article class="finding {colour}"><h3>{html.escape(one.label)} '
            f'<span class="kind">{one.kind}</span> <span class="verdict">{one.verdict}</span></h3>'
            f"<p>{html.escape(one.text)}</p>{bar}"
            f'<div class="strip">{"".join(shown[:EXAMPLES])}</div></article>'
        )


def _classes(audit: Audit, pictures: Pictures) -> Iterator[str]:
    for label in dict.fromkeys(one.label for one in audit.strategies):
        own = [one for one in audit.strategies if one.label == label]
        maps = [np.asarray(row.map, np.float32) for row in audit.rows if row.predicted == label and row.map is not None]
        drawn = f'<div class="strip">{figure(data_uri(_drawn(np.mean(maps, 0))), _of(len(maps)))}</div>'
        yield (
            f'<section class="class"><h3>{html.escape(label)}</h3>{drawn if len(own) > 1 else ""}'
            f"{''.join(_strategy(number, one, pictures) for number, one in enumerate(own, 1))}</section>"
        )


def _of(images: int) -> str:
    """The caption of a mean map."""
    return f"mean map of {images} image{'s' if images != 1 else ''}"


def _drawn(values: np.ndarray) -> Image.Image:
    """A map of the frame on grey."""
    grey = Image.new("RGB", (SIDE, SIDE), (110, 110, 110))
    return overlay(grey, resized(values / max(float(values.max()), 1e-12), grey), alpha=0.9)


def _strategy(number: int, one: Strategy, pictures: Pictures) -> str:
    examples = "".join(
        figure(pictures.with_map(index), Path(pictures.audit.rows[index].name).name)
        for index in one.nearest[: EXAMPLES - 1]
    )
    return (
        f"<h4>Strategy {number}: {one.share:.0%} of the images, accuracy {one.accuracy:.2f}</h4>"
        f'<div class="strip">{figure(data_uri(_drawn(one.map)), _of(len(one.members)))}{examples}</div>'
    )


def _wrong(audit: Audit, pictures: Pictures) -> Iterator[str]:
    wrong = [index for index, row in enumerate(audit.rows) if not row.error and not row.right]
    for index in sorted(wrong, key=lambda index: -audit.rows[index].score)[:WRONG]:
        yield figure(pictures.with_map(index), _answer(audit.rows[index]))


def _unusual(audit: Audit, pictures: Pictures) -> Iterator[str]:
    read = [index for index, row in enumerate(audit.rows) if row.map is not None]
    for index in sorted(read, key=lambda index: -audit.rows[index].unusual)[:UNUSUAL]:
        yield figure(pictures.with_map(index), f"{audit.rows[index].predicted}: {Path(audit.rows[index].name).name}")


def _coverage(audit: Audit) -> str:
    """The share of the evidence on the objects, per class."""
    rows = []
    for label in audit.classes:
        shares = [row.inside for row in audit.rows if row.label == label and row.inside is not None]
        if shares:
            mean, error = float(np.mean(shares)), float(np.std(shares) / np.sqrt(len(shares)))
            rows.append(
                f"<tr><td>{html.escape(label)}</td><td>{mean:.2f} ± {error:.2f}</td><td>{len(shares)}</td></tr>"
            )
    if not rows:
        return "<p>Not measured: no masks or boxes were given.</p>"
    head = "<tr><th>class</th><th>share of the map on the object</th><th>images</th></tr>"
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _links(audit: Audit, folder: Path | None) -> Iterator[str]:
    for row in audit.rows[:MANY]:
        yield f"<li>{_link(row, folder)}: {html.escape(row.error or _answer(row))}</li>"
    if len(audit.rows) > MANY:
        yield f"<li>and {len(audit.rows) - MANY} more in images.csv</li>"


def _answer(row: Row) -> str:
    """What the model says about an image, and where that is wrong."""
    wrong = ", not found at its place" if row.predicted == row.label else f", labelled {row.label}"
    score = f" ({row.score:.2f})" if row.score else ""  # what is not found has none
    return f"{row.predicted}{score}{'' if row.right else wrong}"


def _link(row: Row, folder: Path | None) -> str:
    path = Path(row.name)
    if folder is None or not path.is_file():
        return html.escape(row.name)
    target = quote(os.fsencode(os.path.relpath(path.resolve(), folder.resolve())))
    return f'<a href="{target}">{html.escape(path.name)}</a>'
