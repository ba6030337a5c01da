"""The concepts of a data set as a page that needs no other files."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from hf_cam.errors import ImageError, brief
from hf_cam.images.pages import STYLE, data_uri, figure, in_frame
from hf_cam.results.files import write_text

if TYPE_CHECKING:
    from hf_cam.discovery.concepts import Concept, Concepts

PAGE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
CLASSES = 6
"""Classes whose importances are listed for a concept."""


def save(concepts: Concepts, path: str | Path) -> Path:
    """Write the page; returns its path.

    Raises:
        ImageError: the path does not end in `.html`, or cannot be written.
    """
    path = checked(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_text(path, page(concepts))
    except OSError as error:
        raise ImageError(f"the page cannot be written to {str(path)!r}: {error.strerror or error}") from error


def checked(path: str | Path) -> Path:
    """The path of a page.

    Raises:
        ImageError: it does not end in `.html`.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".html", ".htm"):
        raise ImageError(f"the concepts are a page, so the path must end in .html, got {brief(str(path))}")
    return path


def framed(concepts: Concepts) -> str:
    """The page in a frame of its own, for notebooks."""
    return in_frame(page(concepts))


def page(concepts: Concepts) -> str:
    """The whole page."""
    value = f"the score of {concepts.target!r}" if concepts.target else "what the model finds in each image"
    facts = (
        f"{len(concepts)} concepts of the layer {concepts.layer}, sampled from {concepts.images} images. Importance "
        f"was measured on {concepts.scored} of them. {concepts.error:.0%} of the activations' norm remains unexplained."
    )
    return PAGE.substitute(
        style=STYLE,
        model=html.escape(concepts.model),
        lead=html.escape(f"For {value}, the concept {concepts[0].name!r} is the most important."),
        facts=html.escape(facts),
        notes="".join(f'<p class="note">{html.escape(note)}</p>' for note in concepts.notes),
        concepts="".join(_articles(concepts)),
    )


def _articles(concepts: Concepts) -> Iterator[str]:
    longest = max(1.0, *(one.interval[1] for one in concepts))
    for one in concepts:
        crops = "".join(figure(data_uri(example.crop), Path(example.image).name) for example in one.examples)
        maps = "".join(figure(data_uri(example.map), Path(example.image).name) for example in one.examples)
        yield (
            f'<article class="finding"><h3>{html.escape(one.name)} '
            f'<span class="kind">importance {one.importance:.2f}</span></h3>{_bar(one, longest)}'
            f'<p class="soft">{html.escape(_about(one))}</p>'
            f'<div class="strip">{crops}</div><div class="strip">{maps}</div></article>'
        )


def _bar(one: Concept, longest: float) -> str:
    low, high = one.interval
    spoken = f"importance {one.importance:.2f}, between {low:.2f} and {high:.2f}"
    return (
        f'<div class="bar" role="img" aria-label="{spoken}">'
        f'<i style="left:{low / longest:.1%};width:{(high - low) / longest:.1%}"></i>'
        f'<b style="left:{one.importance / longest:.1%}"></b></div>'
    )


def _about(one: Concept) -> str:
    low, high = one.interval
    scores = ", ".join(f"{label} {round(rise, 2) + 0.0:+.2f}" for label, rise in one.rises)  # + 0.0: never "-0.00"
    about = (
        f"Interval {low:.2f} to {high:.2f}; {one.share:.0%} of the activations. "
        f"Mean scores where it is strong, relative to the average: {scores}."
    )
    if len(one.by_class) > 1:
        ranked = sorted(one.by_class.items(), key=lambda pair: -pair[1])[:CLASSES]
        about += f" Importance by class: {', '.join(f'{label} {value:.2f}' for label, value in ranked)}."
    return about
