"""What the page computes, as plain functions of pictures and settings; the buttons and the API call the same ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jobs import computed, emit, report
from limits import MAX_FOUND, MAX_SIDE, Refused, read_layers, read_picture, read_prompts, read_target
from models import MODELS, checked
from PIL import Image

from hf_cam import Comparison, Evaluation, Explanation
from hf_cam.cam import UNDEFINED
from hf_cam.check import Check, Origin, check
from hf_cam.comparison import quick_methods
from hf_cam.effort import options_of
from hf_cam.errors import HFCamError
from hf_cam.evaluation.table import Record
from hf_cam.explainer import Explainer
from hf_cam.heads import Head
from hf_cam.images.patches import are_cut
from hf_cam.methods import get_method
from hf_cam.metrics import BASELINES, Scorer, Trial, confidence, get_metric
from hf_cam.models.traits import traits_of, unwrap
from hf_cam.request import EffortSetting
from hf_cam.target_layers.infer import example_inputs, infer_adapter
from hf_cam.target_layers.stages import layer_choices

METRICS = ("road", "insertion", "deletion", "confidence-drop")
CURVES = ("road", "insertion", "deletion")
"""The metrics that the page plots; a random map passes the confidence drop, so the page omits that one."""
COMPARED = ("gradcam", "guided-gradcam", "gradient", "randomcam")
"""Compared unless the visitor chooses, the baseline last: no two of their maps agree on the demo models, and each can
be read on the landing photograph. RefineCAM's cannot: a product of four layers' maps, it leaves 1% of it bright.
"""
CLASSES = 5
LIKELY = 0.005
"""Classes that are less likely are not shown unless a number is asked for."""


def on_gpu(work: Callable[..., Any], seconds: int | None = None) -> Callable[..., Any]:
    """The function with a GPU for as long as it runs, on ZeroGPU; in one of the threads that compute elsewhere.

    On ZeroGPU it runs in another process: arguments and results are pickled, and only the message of an error arrives.

    Args:
        work: The function.
        seconds: How long it may take there; ZeroGPU's own limit where not given.
    """
    try:
        from spaces import GPU
    except ImportError:  # also where a folder of this name lies on the path
        return computed(work)
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
    effort: EffortSetting = "fast"
    shrunk: bool = False

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of an explainer's call, without the effort."""
        return {
            "target": self.target,
            "text": self.prompts or None,
            "top_k": self.top_k,
            "aug_smooth": self.aug_smooth,
            "eigen_smooth": self.eigen_smooth,
        }


@dataclass(frozen=True, eq=False)
class Found:
    """What one visit shows.

    Args:
        settings: What was asked for, checked.
        explanations: One per thing found.
        shown: Which of them is shown.
        asked: What was asked for as it stood on the page, to compare with what stands there later.
    """

    settings: Settings
    explanations: tuple[Explanation, ...]
    shown: int = 0
    asked: tuple[Any, ...] = ()

    @property
    def current(self) -> Explanation:
        """The explanation that is shown."""
        return self.explanations[self.shown]

    def choosing(self, index: int) -> Found:
        """The same with another explanation shown."""
        return dataclasses.replace(self, shown=min(index, len(self.explanations) - 1))

    def shows(self, other: Found | None) -> bool:
        """Whether the other shows the very same map."""
        return other is not None and self.current is other.current


def read_inputs(
    path: str | None,
    model: str | None,
    target: Any,
    prompts: str | None,
    method: str | None,
    layers: str | None,
    aug_smooth: bool,
    eigen_smooth: bool,
    effort: str | None = "fast",
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
    pains = read_effort(effort)
    usual = 1 if pains == "checked" else usual_count(kind)
    count = None if wanted is not None else min(top_k or usual, MAX_FOUND)
    settings = Settings(
        name, wanted, lines, method, read_layers(layers), count, aug_smooth, eigen_smooth, pains, shrunk=scale < 1
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


def read_effort(effort: str | None) -> EffortSetting:
    """The library's setting of this name; "fast" where none is given.

    Raises:
        Refused: there is none.
    """
    known: dict[str, EffortSetting] = {name: name for name in get_args(EffortSetting)}
    if (effort or "fast") not in known:
        raise Refused(f"{str(effort)[:60]!r} is not an effort of this page; it offers {', '.join(known)}.")
    return known[effort or "fast"]


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
    [found] = explainer([picture], **settings.keywords, effort=settings.effort)
    return _without_origin(found)


def _without_origin(found: Iterable[Explanation]) -> list[Explanation]:
    """A visit must not keep alive a model that the page has dropped."""
    return [one.changed(origin=None) for one in found]


def likely(found: Found) -> Found:
    """Without the classes that would be shown with 0%, unless the first one would."""
    if found.settings.prompts or found.settings.target is not None:
        return found
    kept = tuple(one for one in found.explanations if one.score >= LIKELY)
    return dataclasses.replace(found, explanations=kept or found.explanations[:1])


def compared(picture: Image.Image, settings: Settings, methods: Sequence[str], shown: int = 0) -> Comparison:
    """The same target explained by several methods; those that are not defined here are skipped, with the reason."""
    if not methods:
        raise Refused("Choose at least one method.")
    check_methods(methods, quick_methods())
    with MODELS.lent(settings.model):
        found, skipped = _compared(picture, settings, tuple(dict.fromkeys(methods)), shown)
    if not found:
        raise Refused(next(iter(skipped.values())))
    return Comparison(found, picture, skipped)


@on_gpu
def _compared(
    picture: Image.Image, settings: Settings, methods: Sequence[str], shown: int
) -> tuple[list[Explanation], dict[str, str]]:
    """One call per method, so that the visitor sees the progress."""
    explainer = Explainer(MODELS.held(settings.model), methods[0], settings.layers or None)
    found, skipped = [], {}
    for done, method in enumerate(methods):
        report(done / len(methods), get_method(method).name)
        try:
            [explanations] = explainer.compare(picture, [method], **settings.keywords)
        except UNDEFINED as error:
            skipped[method] = str(error)
        else:
            found.append(explanations[shown])
    return _without_origin(found), skipped


@dataclass(frozen=True, eq=False)
class Judgement:
    """How far a map can be trusted, as far as that is known yet.

    Args:
        method: The id of the map's method.
        table: Its scores and curves beside those of the baseline maps.
        check: The verdict; None if it is not asked for, not yet reached or cannot be reached.
        refusal: Why it cannot be reached.
    """

    method: str
    table: Evaluation
    check: Check | None = None
    refusal: str = ""


def judged(found: Found, metrics: Sequence[str] = METRICS, verdict: bool = False) -> Judgement:
    """How the confidence follows the map that is shown, beside baseline maps; parts are emitted as they are measured.

    Args:
        found: What is shown.
        metrics: Ids of metrics, in the order in which they are measured.
        verdict: Also check the map, after the first metric.
    """
    with MODELS.lent(found.settings.model):
        report(0, get_method(found.current.method).name)
        judgement: Judgement = _judged(found.settings, found.current, found.shown, tuple(metrics), verdict)
        return judgement


@on_gpu
def _judged(
    settings: Settings, explanation: Explanation, shown: int, metrics: Sequence[str], verdict: bool
) -> Judgement:
    origin = _remade(settings, explanation, shown).origin
    assert origin is not None
    trials = _trials(origin, explanation.method, len(settings.prompts))
    known = explanation.effort.check if explanation.effort and verdict else None
    judgement = Judgement(explanation.method, _table(trials, {}, metrics), known)
    scores: dict[str, dict[str, float]] = {name: {} for name in trials}
    steps, done = len(metrics) * len(trials) + verdict, 0
    for metric in metrics:
        for name, trial in trials.items():
            scores[name][metric] = float(trial.measure(metric)[metric][0])
            judgement = dataclasses.replace(judgement, table=_table(trials, scores, metrics))
            report((done := done + 1) / steps, get_metric(metric).name)
            emit(judgement)
        if verdict and metric == metrics[0] and known is None:
            report(done / steps, "Checking the map")
            judgement = _with_verdict(judgement, origin, explanation)
            emit(judgement)
    return judgement


def _remade(settings: Settings, explanation: Explanation, shown: int) -> Explanation:
    """The explanation that is shown, with its origin."""
    explainer = Explainer(MODELS.held(settings.model), explanation.method, settings.layers or None)
    checked = settings.effort == "checked"
    size = explanation.grid_map.geometry.model_size
    options = options_of(explanation.method, size) if checked else {}  # those with which it was kept
    [found] = explainer([explanation.image], **settings.keywords, method_options=options)
    return found[shown]


def _trials(origin: Origin, method: str, prompts: int) -> dict[str, Trial]:
    """The map and the baseline maps, each with what measures it, by id."""
    target = confidence(origin.target, traits_of(origin.model).problem_type, prompts)
    scorer = Scorer(origin.model, origin.inputs, [target])
    own = torch.as_tensor(origin.map)[None].to(scorer.pixels.device).float()
    maps = {method: own, **{name: make(scorer.pixels) for name, make in BASELINES.items()}}
    return {name: Trial(map_, scorer) for name, map_ in maps.items()}


def _table(trials: Mapping[str, Trial], scores: Mapping[str, dict[str, float]], metrics: Sequence[str]) -> Evaluation:
    """What has been measured so far."""
    records = []
    for name in filter(scores.get, trials):
        curves = {curve: values[0].tolist() for curve, values in trials[name].curves().items()}
        records.append(Record("picture", name, (), dict(scores[name]), 0.0, curves))
    return Evaluation(tuple(records), tuple(metrics))


def _with_verdict(judgement: Judgement, origin: Origin, explanation: Explanation) -> Judgement:
    if explanation.frames or are_cut(origin.inputs):
        return dataclasses.replace(judgement, refusal="No pixels can be replaced in what this model takes.")
    return dataclasses.replace(judgement, check=check(origin, explanation.raw))


@functools.lru_cache(maxsize=64)
def layers_of(model: str) -> tuple[str, ...]:
    """The layers that a visitor can choose from, the default layer first."""
    with MODELS.lent(model):
        return _layers_of(model)


@on_gpu
def _layers_of(model: str) -> tuple[str, ...]:
    module = MODELS.held(model).model
    return layer_choices(module, infer_adapter(module), example_inputs(unwrap(module)))


def snippet(found: Found, alpha: float, colormap: str) -> str:
    """Python code that makes the overlay that is shown."""
    settings = found.settings
    checked = settings.effort == "checked"
    given = {
        "model": settings.model,
        "target": settings.target,
        "text": list(settings.prompts) or None,
        "method": settings.method if checked else found.current.method,
        "layers": list(settings.layers if checked else found.current.layers) or None,
        "top_k": settings.top_k,
        "aug_smooth": settings.aug_smooth or None,
        "eigen_smooth": settings.eigen_smooth or None,
        "effort": settings.effort if checked else None,
    }
    options = "".join(f"    {name}={value!r},\n" for name, value in given.items() if value is not None)
    shrink = f"image.thumbnail(({MAX_SIDE}, {MAX_SIDE}))\n" if settings.shrunk else ""
    return (
        f'import hf_cam\n\nimage = hf_cam.load_image("image.png")\n{shrink}'
        f"found = hf_cam.explain(\n    image,\n{options})\n"
        f'found[{found.shown}].save("overlay.png", alpha={alpha:g}, colormap={colormap!r})\n'
    )
