"""Which method and layer serve a model best: every map judged by every metric, beside maps that see no model."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hf_cam.cam import CAM
from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call, model_inputs_of, others_of
from hf_cam.comparison import RERUNS, method_ids
from hf_cam.errors import ImageError, LayoutError, MethodError, NoGradientError, OptionError
from hf_cam.explainer import Explainer
from hf_cam.images.geometry import Geometry
from hf_cam.images.reading import load_image
from hf_cam.methods import Method, get_method, list_methods
from hf_cam.metrics import BASELINES, Scorer, Trial, confidence, get_metric
from hf_cam.models.loading import load
from hf_cam.models.traits import unwrap
from hf_cam.outputs import sample_of
from hf_cam.targets import Target

METRICS = ("road", "insertion", "deletion", "confidence-drop", "complexity")
MASK_METRICS = ("energy-inside", "pointing-game", "average-precision")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MASKS, BOXES = ("mask", "segmentation"), ("box", "bbox")


@dataclass(frozen=True, eq=False)
class Sample:
    """One image to evaluate on.

    Args:
        image: Whatever `hf_cam.explain` takes as an image.
        name: What the records call it.
        mask: Where the thing is, `[H, W]` booleans over the image.
        target: What to explain in it; what the model itself says where None.
        text: Its prompts, for models that take text.
    """

    image: Any
    name: str
    mask: np.ndarray | None = None
    target: Any = None
    text: str | Sequence[str] | None = None


@dataclass(frozen=True)
class Record:
    """One map of one image: the id of its method (or baseline), its layers, its scores, seconds and curves."""

    image: str
    map: str
    layers: tuple[str, ...]
    scores: Mapping[str, float]
    seconds: float
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)

    @property
    def key(self) -> tuple[str, str, tuple[str, ...]]:
        """What makes it one of its kind."""
        return self.image, self.map, self.layers


@dataclass(frozen=True)
class Row:
    """One line of the table: a method on its layers, with the mean and standard error of each metric."""

    map: str
    layers: tuple[str, ...]
    count: int
    means: Mapping[str, float]
    errors: Mapping[str, float]
    milliseconds: float


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Args:
        records: One a map and image.
        metrics: The metrics' ids, in the order of the columns.
        skipped: Methods that are not defined for this model, with the reason.
    """

    records: tuple[Record, ...] = field(repr=False)
    metrics: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """One row a method and layer, the best first by the first metric that has a direction."""
        groups: dict[tuple[str, tuple[str, ...]], list[Record]] = {}
        for record in self.records:
            groups.setdefault((record.map, record.layers), []).append(record)
        found = [_row(*key, members, self.metrics) for key, members in groups.items()]
        return sorted(found, key=self._order) if self.metrics else found

    def _order(self, row: Row) -> float:
        judge = next((name for name in self.metrics if get_metric(name).higher_is_better is not None), self.metrics[0])
        sign = -1 if get_metric(judge).higher_is_better else 1
        return sign * row.means.get(judge, float("nan")) if judge in row.means else float("inf")

    def best(self, metric: str) -> Row:
        """The best row of a method (no baseline) by one metric.

        Raises:
            OptionError: the metric was not measured.
        """
        judge = get_metric(metric)
        candidates = [row for row in self.rows if metric in row.means and row.map not in BASELINES]
        if not candidates:
            raise OptionError(f"{metric!r} was not measured; there is: {', '.join(self.metrics)}")
        sign = 1 if judge.higher_is_better else -1
        return max(candidates, key=lambda row: sign * row.means[metric])

    def to_markdown(self) -> str:
        """The table, mean ± standard error; an arrow beside each metric shows which way is better."""
        several = len({row.layers for row in self.rows if row.layers}) > 1
        heads = ["map", *(["layers"] if several else []), *map(_heading, self.metrics), "ms a map"]
        lines = ["| " + " | ".join(heads) + " |", "|---|" + "---|" * several + "--:|" * (len(self.metrics) + 1)]
        for row in self.rows:
            cells = [_cell(row, metric) for metric in self.metrics]
            names = [", ".join(row.layers)] if several else []
            lines.append("| " + " | ".join([row.map, *names, *cells, f"{row.milliseconds:.0f}"]) + " |")
        return "\n".join(lines)

    def to_csv(self, path: str | Path | None = None) -> str:
        """The table as CSV, also written to `path` where given."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self._dicts()[0]) if self.records else ["map"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._dicts())
        if path is not None:
            Path(path).write_text(text.getvalue(), encoding="utf-8")
        return text.getvalue()

    def to_pandas(self) -> Any:
        """The table as a `pandas.DataFrame`.

        Raises:
            OptionError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise OptionError('to_pandas() needs pandas; install it with: pip install "hf-cam[evaluate]"') from error
        return pd.DataFrame(self._dicts())

    def _dicts(self) -> list[dict[str, Any]]:
        return [
            {
                "map": row.map,
                "layers": " ".join(row.layers),
                "images": row.count,
                **{
                    name: value
                    for metric in self.metrics
                    for name, value in (
                        (metric, row.means.get(metric)),
                        (f"{metric} error", row.errors.get(metric)),
                    )
                },
                "milliseconds": row.milliseconds,
            }
            for row in self.rows
        ]


def evaluate(
    model: str | Path | nn.Module,
    images: Any,
    *,
    methods: Sequence[str] | str | None = None,
    metrics: Sequence[str] | str | None = None,
    layers: Sequence[str | Sequence[str]] | str | None = None,
    target: Any = None,
    text: str | Sequence[str] | None = None,
    baselines: bool = True,
    resume: str | Path | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
    on_record: Callable[[Record], None] | None = None,
    processor: Any = None,
    device: str | torch.device | int | None = None,
    dtype: torch.dtype | str | None = None,
) -> Evaluation:
    """Judge the maps of several methods and layers on several images.

    Each image's first subject is explained (a classifier's top class, a detector's surest object, ...), or `target`.

    Args:
        model: A Hub id, a folder, `demo:NAME`, or a loaded model.
        images: A folder, a list of images or of `Sample`s, or a `datasets.Dataset` with a column "image" and, where
            there are any, "mask" (or "segmentation"; not 0 inside), "box" (or "bbox"; x0, y0, x1, y1), "target",
            "text".
        methods: Ids of `hf_cam.list_methods()`; all that run no forward a channel where not given. Those that are not
            defined for the model are left out, with the reason in `skipped`.
        metrics: Ids of `hf_cam.metrics.list_metrics()`; what asks the model, and with masks the localisation metrics
            too, where not given.
        layers: Each entry is evaluated on its own: a layer's dotted name, or several to be fused; the family's if None.
        target, text: What to explain, as in `hf_cam.explain`; in place of the samples' own.
        baselines: Maps that see no model stand beside the methods.
        resume: A JSONL file: each record is added as it is made, and what it holds already is not done again.
        seed: Of noise, ties and shuffled weights.
        batch_size: Variants a forward.
        progress: Show a bar.
        on_record: Called with each record as soon as it is made.
        processor, device, dtype: As in `hf_cam.explain`.

    Raises:
        OptionError: there is no such metric, a metric needs masks that are not there, or `resume` has other settings.
        MethodError, LayerError, ImageError: before the model runs.

    >>> from sklearn.datasets import load_sample_image
    >>> table = evaluate("demo:vit", [load_sample_image("flower.jpg")], methods=["hirescam", "randomcam"],
    ...                  metrics=["confidence-drop"], progress=False)
    >>> sorted(row.map for row in table.rows)
    ['centred-gaussian', 'hirescam', 'noise', 'randomcam', 'sobel']
    """
    samples = samples_of(images)
    chosen = [get_method(name) for name in (every_quick_method() if methods is None else method_ids(methods))]
    judges = _metrics(metrics, samples)
    loaded = load(model, processor=processor, device=device, dtype=dtype)
    bench = _Bench(Explainer(loaded, "gradcam"), chosen, _layer_sets(layers), judges, baselines, seed, batch_size)
    for sample in samples:
        bench.explainer.request(*_asked(sample, target, text), None)
    settings = {"model": _name(model), "metrics": list(judges), "target": repr(target), "text": text, "seed": seed}
    log = _Log(resume, settings)
    for sample in _bar(samples, progress):
        for record in bench.records(sample, target, text, log.done):
            log.add(record)
            if on_record is not None:
                on_record(record)
    if not log.records:
        raise MethodError("; ".join(bench.skipped.values()) or "nothing was measured")
    return Evaluation(tuple(log.records), judges, dict(bench.skipped))


def samples_of(images: Any) -> list[Sample]:
    """Images from a folder, a list, a dataset; see `evaluate`.

    Raises:
        ImageError: there are none.
        OptionError: a dataset without a column "image".
    """
    if isinstance(images, str | Path) and Path(images).expanduser().is_dir():
        files = sorted(p for p in Path(images).expanduser().rglob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise ImageError(f"the folder {str(images)!r} holds no pictures ({', '.join(SUFFIXES)})")
        return [Sample(path, str(path)) for path in files]
    if isinstance(images, str | Path | Image.Image | np.ndarray | Tensor):
        images = [images]
    if not isinstance(images, Iterable):
        raise OptionError(f"images is a folder, a list or a dataset, not {type(images).__name__}")
    found = [_sample(entry, index) for index, entry in enumerate(images)]
    if not found:
        raise ImageError("there is no image to evaluate on")
    return found


def _sample(entry: Any, index: int) -> Sample:
    if isinstance(entry, Sample):
        return entry
    if not isinstance(entry, Mapping):
        return Sample(entry, str(entry) if isinstance(entry, str | Path) else str(index))
    if "image" not in entry:
        raise OptionError(f"a dataset has a column 'image'; this one has: {', '.join(map(str, entry))}")
    image = load_image(entry["image"])
    mask = next((entry[name] for name in MASKS if entry.get(name) is not None), None)
    box = next((entry[name] for name in BOXES if entry.get(name) is not None), None)
    inside = None
    if mask is not None:
        marked: np.ndarray = np.asarray(mask) > 0
        inside = marked.any(-1) if marked.ndim == 3 else marked
    elif box is not None:
        x0, y0, x1, y1 = (round(float(side)) for side in box)
        inside = np.zeros((image.height, image.width), bool)
        inside[max(y0, 0) : y1, max(x0, 0) : x1] = True
    if inside is not None and inside.shape != (image.height, image.width):
        raise OptionError(f"mask {index} is {inside.shape}, its image {(image.height, image.width)}")
    return Sample(image, str(index), inside, entry.get("target"), entry.get("text"))


def _asked(sample: Sample, target: Any, text: Any) -> tuple[Any, Any]:
    """What to explain: the caller's own for all samples, or the sample's."""
    return sample.target if target is None else target, sample.text if text is None else text


def every_quick_method() -> list[str]:
    """The ids of all methods that run no forward a channel, also of those that only some models define."""
    return [name for name in list_methods() if RERUNS not in get_method(name).needs]


def _metrics(metrics: Sequence[str] | str | None, samples: Sequence[Sample]) -> tuple[str, ...]:
    masked = all(sample.mask is not None for sample in samples)
    if metrics is None:
        return (*METRICS, *(MASK_METRICS if masked else ()))
    names = [name.strip() for name in (metrics.split(",") if isinstance(metrics, str) else metrics)]
    for name in names:
        needs = get_metric(name).needs
        if "masks" in needs and not masked:
            raise OptionError(f"the metric {name!r} needs a mask or box for every image")
        if {"attributions", "other_maps"} & set(needs):
            raise OptionError(f"{name!r} is a function to call yourself: hf_cam.metrics.{name.replace('-', '_')}")
    if not names:
        raise OptionError("metrics= names no metric")
    return tuple(dict.fromkeys(names))


def _layer_sets(layers: Sequence[str | Sequence[str]] | str | None) -> list[Sequence[str] | str | None]:
    if layers is None or isinstance(layers, str):
        return [layers]
    return list(layers)


class _Bench:
    """What is evaluated: methods x layers and the baselines, image by image."""

    def __init__(
        self,
        explainer: Explainer,
        methods: Sequence[Method],
        layer_sets: Sequence[Sequence[str] | str | None],
        metrics: tuple[str, ...],
        baselines: bool,
        seed: int,
        batch_size: int | None,
    ) -> None:
        self.explainer, self.methods, self.metrics, self.seed = explainer, methods, metrics, seed
        self.batch_size, self.baselines = batch_size, baselines
        model = explainer.loaded.model
        self.cams = [[CAM(model, method.id, layers) for method in methods] for layers in layer_sets]
        self.skipped: dict[str, str] = {}

    def records(
        self, sample: Sample, target: Any, text: Any, done: Callable[[str, str, tuple[str, ...]], bool]
    ) -> Iterator[Record]:
        image = load_image(sample.image)
        loaded = self.explainer.loaded
        geometry = loaded.geometry((image.height, image.width))
        request = self.explainer.request(*_asked(sample, target, text), None)
        pictures = loaded.inputs([image])
        head = self.explainer.head
        request = head.rounds(request, pictures)[0]
        inputs = model_inputs_of(
            loaded.model, pictures["pixel_values"], {**others_of(pictures), **head.inputs(request)}
        )
        with borrowed(loaded.module), torch.no_grad():
            outputs = call(loaded.module, inputs)
        subject = head.subjects(sample_of(outputs, 0, 1), request, geometry)[0]
        problem = loaded.traits.problem_type
        measured = confidence(subject.target, problem, len(request.text))
        scorer = Scorer(loaded.model, inputs, [measured], self.batch_size)
        for name, layers, explain in self._maps(inputs, subject.target):
            if not done(sample.name, name, layers):
                try:
                    yield self._judged(sample, name, layers, explain, scorer, geometry)
                except (MethodError, LayoutError, NoGradientError) as error:
                    self.skipped[name] = str(error)

    def _maps(
        self, inputs: Mapping[str, Any], target: Target
    ) -> Iterator[tuple[str, tuple[str, ...], Callable[[Tensor], Tensor]]]:
        others = others_of(inputs)
        for cams in self.cams:
            for cam in cams:
                if cam.method.id in self.skipped:
                    continue

                def explain(pixels: Tensor, cam: CAM = cam) -> Tensor:
                    return cam.saliency(pixels, lambda _: [[target]], **others).maps[0].float()

                yield cam.method.id, cam.adapter_for(inputs["pixel_values"], others).layers, explain
        if self.baselines:
            for name, make in BASELINES.items():
                yield name, (), make

    def _judged(
        self,
        sample: Sample,
        name: str,
        layers: tuple[str, ...],
        explain: Callable[[Tensor], Tensor],
        scorer: Scorer,
        geometry: Geometry,
    ) -> Record:
        started = time.perf_counter()
        maps = explain(scorer.pixels)
        if maps.is_cuda:
            torch.cuda.synchronize(maps.device)
        seconds = time.perf_counter() - started
        trial = Trial(maps, scorer, explain=explain, seed=self.seed)
        located = None
        if sample.mask is not None:
            drawn = geometry.to_image(maps.cpu()).clamp(0, 1)
            located = Trial(drawn, masks=torch.from_numpy(sample.mask & geometry.visible())[None])
        scores = {}
        for metric in self.metrics:
            judge = located if located is not None and "masks" in get_metric(metric).needs else trial
            scores[metric] = float(judge.measure(metric)[metric][0])
        curves = {curve: [round(value, 5) for value in found[0].tolist()] for curve, found in trial.curves().items()}
        return Record(sample.name, name, layers, scores, seconds, curves)


class _Log:
    """The records so far, in memory and in a file."""

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self.records: list[Record] = []
        if self.path is None:
            return
        if self.path.is_file() and (lines := self.path.read_text(encoding="utf-8").splitlines()):
            self._read(lines, settings)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write({"settings": settings})
        self._done = {record.key for record in self.records}

    def _read(self, lines: Sequence[str], settings: Mapping[str, Any]) -> None:
        """Take over what is there; a last line that was cut off is done again."""
        try:
            before = json.loads(lines[0])["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(f"{self.path} is no file of an evaluation") from error
        if before != settings:
            changed = sorted(key for key in settings if before.get(key) != settings[key])
            raise OptionError(f"{self.path} was made with other settings ({', '.join(changed)}); name another file")
        whole = []
        for line in lines[1:]:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            whole.append(line)
            self.records.append(Record(**{**entry, "layers": tuple(entry["layers"])}))
        assert self.path is not None
        self.path.write_text("\n".join([lines[0], *whole]) + "\n", encoding="utf-8")

    def done(self, image: str, name: str, layers: tuple[str, ...]) -> bool:
        """Whether a record is there already."""
        return self.path is not None and (image, name, layers) in self._done

    def add(self, record: Record) -> None:
        """Keep a record."""
        self.records.append(record)
        if self.path is not None:
            self._write({**vars(record), "layers": list(record.layers)})

    def _write(self, entry: Mapping[str, Any]) -> None:
        assert self.path is not None
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _row(name: str, layers: tuple[str, ...], members: Sequence[Record], metrics: Sequence[str]) -> Row:
    means, errors = {}, {}
    for metric in metrics:
        values = np.array([record.scores[metric] for record in members if metric in record.scores])
        if len(values):
            means[metric] = float(values.mean())
            errors[metric] = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    milliseconds = float(np.median([record.seconds for record in members])) * 1000
    return Row(name, layers, len(members), means, errors, milliseconds)


def _heading(metric: str) -> str:
    better = get_metric(metric).higher_is_better
    return metric + ("" if better is None else " ↑" if better else " ↓")


def _cell(row: Row, metric: str) -> str:
    return f"{row.means[metric]:.3f} ± {row.errors[metric]:.3f}" if metric in row.means else ""


def _name(model: Any) -> str:
    return str(model) if isinstance(model, str | Path) else type(unwrap(model)).__name__


def _bar(samples: Sequence[Sample], shown: bool) -> Iterable[Sample]:
    from tqdm import tqdm

    return tqdm(samples, unit="image", disable=not shown)
