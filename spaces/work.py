"""What the page computes, as plain functions of pictures and settings; the buttons and the API call the same ones."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jobs import report
from limits import MAX_FOUND, MAX_SIDE, Refused, read_layers, read_picture, read_prompts, read_target
from models import MODELS, checked
from PIL import Image
from scratch import fresh_folder

from hf_cam import Comparison, Evaluation, Explanation, evaluate
from hf_cam.comparison import quick_methods
from hf_cam.errors import HFCamError
from hf_cam.evaluation.samples import Sample
from hf_cam.explainer import Explainer
from hf_cam.heads import Head
from hf_cam.images.drawing import outlined
from hf_cam.methods import get_method
from hf_cam.metrics import BASELINES
from hf_cam.models.traits import unwrap
from hf_cam.target_layers.infer import example_inputs, infer_adapter
from hf_cam.target_layers.stages import layer_choices

METRICS = ("road", "insertion", "deletion", "confidence-drop")
CLASSES = 5
SHOWN = 640


def on_gpu(work: Callable[..., Any], seconds: int | None = None) -> Callable[..., Any]:
    """The function with a GPU for as long as it runs, on ZeroGPU; the function itself elsewhere.

    On ZeroGPU it runs in another process: arguments and results are pickled, and only the message of an error arrives.

    Args:
        work: The function.
        seconds: How long it may take there; ZeroGPU's own limit where not given.
    """
    try:
        from spaces import GPU
    except ImportError:  # also where a folder of this name lies on the path
        return work
    return _with_errors(work, GPU if seconds is None else GPU(duration=seconds))


def _with_errors(work: Callable[..., Any], lend: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(work)
    def answered(*given: Any) -> tuple[Any, str]:
        try:
            return work(*given), ""
        except HFCamError as error:
            return None, str(error)

    lent = lend(answered)

    @functools.wraps(work)
    def asked(*given: Any) -> Any:
        found, refusal = lent(*given)
        if refusal:
            raise Refused(refusal)
        return found

    return asked


@dataclass(frozen=True)
class Settings:
    """What a visitor asks for: the settings of `hf_cam.explain`, checked."""

    model: str
    target: Any = None
    prompts: tuple[str, ...] = ()
    method: str = "auto"
    layers: tuple[str, ...] = ()
    top_k: int | None = None
    aug_smooth: bool = False
    eigen_smooth: bool = False
    shrunk: bool = False

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of an explainer's call."""
        return {
            "target": self.target,
            "text": self.prompts or None,
            "top_k": self.top_k,
            "aug_smooth": self.aug_smooth,
            "eigen_smooth": self.eigen_smooth,
        }


@dataclass(frozen=True, eq=False)
class Found:
    """What one visit shows: the settings, one explanation per thing found, and which of them is shown."""

    settings: Settings
    explanations: tuple[Explanation, ...]
    shown: int = 0

    @property
    def current(self) -> Explanation:
        """The explanation that is shown."""
        return self.explanations[self.shown]


def read_inputs(
    path: str | None,
    model: str | None,
    target: Any,
    prompts: str | None,
    method: str | None,
    layers: str | None,
    aug_smooth: bool,
    eigen_smooth: bool,
    top_k: int | None = None,
) -> tuple[Image.Image, Settings]:
    """The picture and the settings that a visitor gave, checked; nothing has been computed yet.

    Raises:
        Refused: one of them is not acceptable.
    """
    picture, scale = read_picture(path)
    name = checked(model)
    wanted = target if isinstance(target, tuple) else read_target(target, scale)
    kind = MODELS.kind(name)
    lines = read_prompts(prompts) if kind.takes_text else ()
    if kind.takes_text and not lines:
        raise Refused("Type at least one prompt, one per line.")
    method = method or "auto"
    check_methods([method], ["auto", *quick_methods()])
    count = None if wanted is not None else min(top_k or usual_count(kind), MAX_FOUND)
    settings = Settings(
        name, wanted, lines, method, read_layers(layers), count, aug_smooth, eigen_smooth, shrunk=scale < 1
    )
    return picture, settings


def check_methods(methods: Sequence[Any], offered: Sequence[str]) -> None:
    """Refuse a method that is not offered.

    Raises:
        Refused: there is one.
    """
    for method in methods:
        if method not in offered:
            raise Refused(f"{str(method)[:60]!r} is not a method of this page; it offers {', '.join(offered)}.")


def usual_count(kind: type[Head]) -> int:
    """How many things are explained unless the visitor gives a number."""
    return CLASSES if tab_of(kind) == "classify" else MAX_FOUND


def tab_of(kind: type[Head]) -> str:
    """The tab for a kind of head."""
    if "detection" in kind.task:
        return "detect"
    if "segmentation" in kind.task:
        return "segment"
    return "prompt" if kind.takes_text else "classify"


def explained(picture: Image.Image, settings: Settings) -> Found:
    """One explanation per thing that the model found."""
    with MODELS.lent(settings.model):
        report(0, f"Running {settings.model}")
        return Found(settings, tuple(_explained(picture, settings)))


@on_gpu
def _explained(picture: Image.Image, settings: Settings) -> list[Explanation]:
    explainer = Explainer(MODELS.held(settings.model), settings.method, settings.layers or None)
    [found] = explainer([picture], **settings.keywords)
    return _without_origin(found)


def _without_origin(found: Iterable[Explanation]) -> list[Explanation]:
    """A visit must not keep alive a model that the page has dropped."""
    return [dataclasses.replace(one, origin=None) for one in found]


def default_methods() -> list[str]:
    """The methods compared unless the visitor chooses: the registry's first, and the baseline that they must beat."""
    return [*[method for method in quick_methods() if method != "randomcam"][:4], "randomcam"]


def compared(picture: Image.Image, settings: Settings, methods: Sequence[str], shown: int = 0) -> Comparison:
    """The same target explained by several methods."""
    if not methods:
        raise Refused("Choose at least one method.")
    check_methods(methods, quick_methods())
    with MODELS.lent(settings.model):
        return Comparison(_compared(picture, settings, tuple(dict.fromkeys(methods)), shown), picture)


@on_gpu
def _compared(picture: Image.Image, settings: Settings, methods: Sequence[str], shown: int) -> list[Explanation]:
    """One call per method, so that the visitor sees the progress."""
    explainer = Explainer(MODELS.held(settings.model), methods[0], settings.layers or None)
    found = []
    for done, method in enumerate(methods):
        report(done / len(methods), get_method(method).name)
        [explanations] = explainer.compare(picture, [method], **settings.keywords)
        found.append(explanations[shown])
    return _without_origin(found)


def judged(picture: Image.Image, settings: Settings, explanation: Explanation) -> Evaluation:
    """How the confidence follows the map, beside baseline maps."""
    with MODELS.lent(settings.model):
        report(0, get_method(explanation.method).name)
        return _judged(picture, settings, dataclasses.replace(explanation, origin=None))


@on_gpu
def _judged(picture: Image.Image, settings: Settings, explanation: Explanation) -> Evaluation:
    target, prompts = narrowed(settings, explanation)
    loaded = MODELS.held(settings.model)
    left = iter([*(name.replace("-", " ") for name in BASELINES), "Done"])
    done = itertools.count(1)
    return evaluate(
        loaded.model,
        [Sample(picture, "picture", target=target)],
        methods=[explanation.method],
        metrics=METRICS,
        layers=[explanation.layers],
        text=prompts or None,
        progress=False,
        on_record=lambda _: report(next(done) / (1 + len(BASELINES)), next(left)),
        processor=loaded.processor,
    )


@functools.lru_cache(maxsize=64)
def layers_of(model: str) -> tuple[str, ...]:
    """The layers that a visitor can choose from, the default layer first."""
    with MODELS.lent(model):
        return _layers_of(model)


@on_gpu
def _layers_of(model: str) -> tuple[str, ...]:
    module = MODELS.held(model).model
    return layer_choices(module, infer_adapter(module), example_inputs(unwrap(module)))


def narrowed(settings: Settings, explanation: Explanation) -> tuple[Any, tuple[str, ...]]:
    """The target and the prompts that select this explanation alone."""
    if settings.target is not None or len(settings.prompts) == 1:
        return settings.target, settings.prompts
    if explanation.box is not None:
        return explanation.box, settings.prompts
    return (None, (explanation.label,)) if settings.prompts else (explanation.label, ())


def snippet(found: Found, alpha: float, colormap: str) -> str:
    """Python code that makes the overlay that is shown."""
    settings = found.settings
    given = {
        "model": settings.model,
        "target": settings.target,
        "text": list(settings.prompts) or None,
        "method": found.current.method,
        "layers": list(found.current.layers),
        "top_k": settings.top_k,
        "aug_smooth": settings.aug_smooth or None,
        "eigen_smooth": settings.eigen_smooth or None,
    }
    options = "".join(f"    {name}={value!r},\n" for name, value in given.items() if value is not None)
    shrink = f"image.thumbnail(({MAX_SIDE}, {MAX_SIDE}))\n" if settings.shrunk else ""
    return (
        f'import hf_cam\n\nimage = hf_cam.load_image("image.png")\n{shrink}'
        f"found = hf_cam.explain(\n    image,\n{options})\n"
        f'found[{found.shown}].save("overlay.png", alpha={alpha:g}, colormap={colormap!r})\n'
    )


def drawn(explanation: Explanation, alpha: float, colormap: str, longest: int = SHOWN) -> Image.Image:
    """The overlay as the page shows it: a small picture is enlarged before the colours are laid over it."""
    return _larger(explanation, longest).overlay(alpha, colormap)


def marked(found: Found) -> Image.Image:
    """The picture with what was found outlined, as the page shows it."""
    picture = enlarged(found.current.image)
    for one in found.explanations:
        larger = _larger(one, SHOWN)
        picture = outlined(picture, larger.box, larger.mask)
    return picture


def _larger(explanation: Explanation, longest: int) -> Explanation:
    """The explanation on an enlarged picture, with its heatmap, box and mask."""
    factor = longest / max(explanation.image.size)
    if factor <= 1:
        return explanation
    image, box, mask = enlarged(explanation.image, longest), explanation.box, explanation.mask
    if mask is not None:
        mask = cv2.resize(mask.astype(np.uint8), image.size, interpolation=cv2.INTER_NEAREST).astype(bool)
    return dataclasses.replace(
        explanation,
        image=image,
        heatmap=np.clip(cv2.resize(explanation.heatmap, image.size, interpolation=cv2.INTER_CUBIC), 0, 1),
        box=None if box is None else tuple(factor * value for value in box),
        mask=mask,
    )


def enlarged(image: Image.Image, longest: int = SHOWN) -> Image.Image:
    """The picture with its longer side at least this long."""
    factor = longest / max(image.size)
    if factor <= 1:
        return image
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def thumbnail(explanation: Explanation, alpha: float, colormap: str, longest: int = 320) -> Image.Image:
    """A small overlay."""
    small = drawn(explanation, alpha, colormap, longest)
    small.thumbnail((longest, longest))
    return small


def saved(explanation: Explanation, alpha: float, colormap: str) -> tuple[str, str, str]:
    """The overlay, the heatmap as a picture, and the heatmap as numbers."""
    folder = fresh_folder()
    overlay = explanation.save(folder / "overlay.png", alpha, colormap)
    numbers = explanation.save(folder / "heatmap.npy")
    picture = folder / "heatmap.png"
    Image.fromarray(np.rint(explanation.heatmap * 255).astype(np.uint8)).save(picture)
    return str(overlay), str(picture), str(numbers)
