"""`hf-cam demo`: explain sample photographs from scikit-learn and scikit-image, without a network."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from hf_cam.comparison import quick_methods
from hf_cam.errors import ModelError
from hf_cam.explainer import Explainer
from hf_cam.explanation import Explanation
from hf_cam.images.reading import load_image
from hf_cam.images.style import Style, bar
from hf_cam.methods import get_method
from hf_cam.models.loading import load
from hf_cam.zoo import SCENE

MODEL = "demo:imagenet"


@dataclass(frozen=True)
class Photograph:
    """A picture that an installed package ships, with a description."""

    name: str
    description: str
    read: Callable[[], Any]

    def image(self) -> Image.Image:
        """The upright RGB picture.

        Raises:
            ModelError: the package that ships it is not installed.
        """
        try:
            return load_image(self.read())
        except ImportError as error:
            raise ModelError('the demo needs scikit-image; install it with: pip install "hf-cam[demo]"') from error


def _skimage(name: str) -> Any:
    from skimage import data

    picture = getattr(data, name)()
    return picture[0] if isinstance(picture, tuple) else picture  # the left one of a stereo pair


def _sklearn(name: str) -> Any:
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)


PHOTOGRAPHS = (
    Photograph("coffee", "A cup of espresso", lambda: _skimage("coffee")),
    Photograph("camera", "A man with a camera on a tripod", lambda: _skimage("camera")),
    Photograph("chelsea", "A tabby cat", lambda: _skimage("chelsea")),
    Photograph("rocket", "A rocket on its launch pad", lambda: _skimage("rocket")),
    Photograph("motorcycle", "A motorcycle in a garage", lambda: _skimage("stereo_motorcycle")),
    Photograph("flower", "A flower", lambda: _sklearn("flower.jpg")),
    Photograph("china", "A palace in China", lambda: _sklearn("china.jpg")),
)


@dataclass(frozen=True)
class Showing:
    """One section of the page: the scene, explained with one trained model of the zoo.

    Args:
        model: The model's name, for `demo:NAME`.
        heading: The heading of the section.
        note: What is explained.
        wanted: Keyword arguments of `explain`.
    """

    model: str
    heading: str
    note: str
    wanted: Mapping[str, Any]


SHOWINGS = (
    Showing("vit", "Classes", "the evidence for each of its three most likely labels", {"top_k": 3}),
    Showing(
        "clip",
        "Prompts",
        "where each text fits; the percentages are their shares among the three",
        {"text": ["a sneaker", "a yellow bag", "a blue trouser"]},
    ),
    Showing("detr", "Boxes", "the evidence for each object that it finds", {}),
    Showing("segformer", "Segments", "the evidence for each region", {}),
)


def run_demo(out: Path, report: Callable[[str], None]) -> Path:
    """Explain the scene with four kinds of head and each photograph with several methods, as PNGs and an `index.html`.

    Args:
        out: The folder to write to; it is created if it does not exist.
        report: Called with each line of the report.

    Returns:
        The path of the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    scene = load_image(SCENE)
    scene.save(out / "scene.png")
    shown = [(showing, _show(showing, scene, out, report)) for showing in SHOWINGS]
    explainer = Explainer(load(MODEL), "gradcam")
    rows = []
    for photograph in PHOTOGRAPHS:
        image = photograph.image()
        image.save(out / f"{photograph.name}.png")
        started = time.perf_counter()
        compared, _ = explainer.compare_defined(image, quick_methods())
        explanations = [found[0] for found in compared]
        for explanation in explanations:
            explanation.save(out / f"{photograph.name}-{explanation.method}.png")
        found = explanations[0]
        seconds = time.perf_counter() - started
        report(
            f"{photograph.name:<11} {found.label:<28} {found.score:6.1%}   "
            f"{len(explanations)} maps of {image.width} x {image.height} pixels in {seconds:.1f} s"
        )
        rows.append((photograph, explanations))
    _legend().save(out / "legend.png")
    page = out / "index.html"
    page.write_text(_page(shown, rows), encoding="utf-8")
    report(f"Open {page} to see them.")
    return page


def _show(showing: Showing, scene: Image.Image, out: Path, report: Callable[[str], None]) -> list[Explanation]:
    """Explain the scene with one trained model and save the pictures."""
    [found] = Explainer(load(f"demo:{showing.model}"))([scene], **showing.wanted)
    for i, explanation in enumerate(found):
        explanation.save(out / _scene_file(showing, i))
    report(f"{showing.model:<11} {', '.join(f'{one.label} {one.score:.0%}' for one in found)}")
    return found


def _scene_file(showing: Showing, index: int) -> str:
    return f"scene-{showing.model}-{index + 1}.png"


def _legend(width: int = 256, height: int = 10) -> Image.Image:
    return bar(Style(even=True), (width, height), across=True)


def _page(
    shown: Sequence[tuple[Showing, Sequence[Explanation]]], rows: Sequence[tuple[Photograph, Sequence[Explanation]]]
) -> str:
    scenes = "\n".join(_scene_section(showing, explanations) for showing, explanations in shown)
    sections = "\n".join(_section(photograph, explanations) for photograph, explanations in rows)
    return PAGE.substitute(model=html.escape(MODEL), scenes=scenes, sections=sections)


def _scene_section(showing: Showing, explanations: Sequence[Explanation]) -> str:
    figures = [_figure("scene.png", "A yellow bag, an orange sneaker and blue trousers", "The scene", "")]
    for i, explanation in enumerate(explanations):
        alt = f"Where demo:{showing.model} finds evidence for {explanation.label}"
        figures.append(_figure(_scene_file(showing, i), alt, explanation.label, f"{explanation.score:.0%}"))
    return SCENE_SECTION.substitute(
        heading=html.escape(showing.heading),
        model=html.escape(f"demo:{showing.model}"),
        note=html.escape(showing.note),
        figures="".join(figures),
    )


def _section(photograph: Photograph, explanations: Sequence[Explanation]) -> str:
    first = explanations[0]
    label = html.escape(first.label.split(",")[0])
    figures = [_figure(f"{photograph.name}.png", photograph.description, "The photograph", "")]
    for explanation in explanations:
        method = get_method(explanation.method)
        alt = f"{photograph.description}: where {method.name} finds evidence for {first.label}"
        figures.append(_figure(f"{photograph.name}-{explanation.method}.png", alt, method.name, method.summary))
    return SECTION.substitute(
        description=html.escape(photograph.description),
        label=label,
        score=f"{first.score:.0%}",
        figures="".join(figures),
    )


def _figure(file: str, alt: str, name: str, note: str) -> str:
    return FIGURE.substitute(file=file, alt=html.escape(alt), name=html.escape(name), note=html.escape(note))


FIGURE = Template(
    '<figure><img src="$file" alt="$alt" loading="lazy">'
    "<figcaption><b>$name</b> <span>$note</span></figcaption></figure>\n"
)
SECTION = Template(
    "<section><h2>$description <small>predicted: “$label”, $score</small></h2>"
    '<div class="maps">\n$figures</div></section>'
)
SCENE_SECTION = Template(
    "<section><h2>$heading <small><code>$model</code> shows $note</small></h2>"
    '<div class="maps small">\n$figures</div></section>'
)
PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>hf-cam: what the model looked at</title>
<style>
:root { color-scheme: light dark; --ink: #1d2129; --soft: #667085; --paper: #fbfaf8; --card: #fff; --line: #e6e3dd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eceae6; --soft: #9aa3b2; --paper: #14161a; --card: #1c1f25; --line: #2b2f37; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.02em; }
header p { max-width: 62ch; color: var(--soft); margin: 0 0 1rem; }
code { font-size: .9em; background: var(--card); border: 1px solid var(--line); border-radius: 4px; }
code { padding: .05em .35em; }
.legend { display: flex; align-items: center; gap: .6rem; color: var(--soft); font-size: .85rem; white-space: nowrap; }
.legend img { flex: 0 1 160px; min-width: 0; height: 10px; border-radius: 5px; }
section { margin-top: 2.75rem; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
h2 small { font-weight: 400; font-size: .95rem; color: var(--soft); margin-left: .35rem; }
.maps { display: grid; gap: 1rem; align-items: start; }
.maps { grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.maps.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 230px), 1fr)); }
h1.next { margin-top: 4rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
figure img { display: block; width: 100%; height: auto; }
figcaption { padding: .55rem .8rem .65rem; font-size: .85rem; }
figcaption span { color: var(--soft); }
</style>
</head>
<body>
<main>
<header>
<h1>What the model looked at</h1>
<p>One scene, explained with four small models that were trained on such scenes, each in its own terms; no layer was
specified. The scene was chosen because all four models get it right; their accuracy is on their model cards.
A map is only as fine as its model's grid, so it may spill over the edge of a small object.</p>
<div class="legend">no evidence <img src="legend.png" alt="colour scale from none to most"> most evidence</div>
</header>
$scenes
<header>
<h1 class="next">The same photograph, method by method</h1>
<p>Each picture shows where <code>$model</code>, a classifier with ImageNet weights, finds the evidence for its top
class. It sees only the centre of a photograph, so nothing lights up outside.
Its grid has 7 x 7 cells, so the maps are just as coarse, and around an object narrower than a cell (the rocket) they
light up as much as on it. On a network that ends in pooling and a linear layer, as this one does, several methods agree
exactly. RandomCAM is the baseline: a method that looks no better than it shows nothing.</p>
</header>
$sections
</main>
</body>
</html>
"""
)
