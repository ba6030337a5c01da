"""Which method and layer work best for a model: every map measured by every metric, beside baseline maps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam import __version__
from hf_cam.cam import CAM, check_options
from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call, model_inputs_of, others_of
from hf_cam.comparison import method_ids
from hf_cam.doors import callers_own, door
from hf_cam.errors import LayerError, LayoutError, MethodError, NoGradientError, OptionError, TargetError, brief
from hf_cam.evaluation.log import Log
from hf_cam.evaluation.samples import Sample, samples_of
from hf_cam.evaluation.table import Evaluation, Record
from hf_cam.explainer import Explainer
from hf_cam.images.geometry import Geometry
from hf_cam.images.reading import load_image
from hf_cam.methods import Method, get_method
from hf_cam.methods.registry import BUDGET
from hf_cam.metrics import BASELINES, Scorer, Trial, confidence, get_metric
from hf_cam.metrics.trial import STEPS, Steps, check_steps
from hf_cam.models.fingerprint import code_of, fingerprint, model_fingerprint
from hf_cam.models.loading import LoadedModel, input_size, load
from hf_cam.models.traits import unwrap
from hf_cam.outputs import sample_of
from hf_cam.request import Request, check_count, check_seed, listed_names
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.stages import target_layers
from hf_cam.targets import Target, entries_of

METRICS = ("road", "insertion", "deletion", "confidence-drop", "complexity")
MASK_METRICS = ("energy-inside", "pointing-game", "average-precision")


@door()
def evaluate(
    model: str | Path | nn.Module | LoadedModel,
    images: Any,
    *,
    methods: Sequence[str] | str | None = None,
    budget: float = BUDGET,
    metrics: Sequence[str] | str | None = None,
    layers: Sequence[str | Sequence[str]] | str | None = None,
    target: Any = None,
    text: str | Sequence[str] | None = None,
    baselines: bool = True,
    resume: str | Path | None = None,
    seed: int = 0,
    steps: Steps = STEPS,
    method_options: Mapping[str, Any] | None = None,
    rerun_batch_size: int | None = None,
    progress: bool = True,
    on_record: Callable[[Record], None] | None = None,
    processor: Any = None,
    device: str | torch.device | int | None = None,
    dtype: torch.dtype | str | None = None,
) -> Evaluation:
    """Measure the maps of several methods and layers on several images.

    What is explained is `target`, or else the first subject in each image (a classifier's top class, a detector's most
    confident object, ...).

    Args:
        model: A Hub id, a folder, `demo:NAME`, a loaded model, or what `hf_cam.load` returned.
        images: A folder, a list of images or of `Sample`s, or a `datasets.Dataset` with a column "image" and
            optionally "mask" (or "segmentation"; nonzero inside), "box" (or "bbox"; x0, y0, x1, y1), "target" and
            "text".
        methods: Ids from `hf_cam.list_methods()`; by default all within the budget. Methods that are not defined for
            the model are left out, with the reason in `skipped`.
        budget: As in `hf_cam.compare`: the number of forwards per map up to which a method is taken by default.
        metrics: Ids from `hf_cam.metrics.list_metrics()`; by default those that query the model and, if all samples
            have masks, the localization metrics.
        layers: Entries to evaluate separately: a layer's dotted name, or several names to fuse; by default the default
            layer.
        target, text: What to explain, as in `hf_cam.explain`; override those of the samples.
        baselines: Also measure baseline maps, which do not depend on the model.
        resume: A JSONL file, to which each record is added as it is made. A record that it already holds is not made
            again if the weights, the preprocessed image, target, text, method, options, metrics and the version of
            hf-cam are the same. One process at a time can use it.
        seed: Seed for noise, ties and shuffled weights.
        steps: Number of steps of insertion and deletion, which the table states; "rise" takes one per row of pixels of
            the model's input, as RISE does.
        method_options: What only some methods take, such as `{"seed": 3}`.
        rerun_batch_size: Number of variants per forward.
        progress: Show a progress bar.
        on_record: Called with each record as soon as it is made.
        processor, device, dtype: As in `hf_cam.explain`.

    Raises:
        OptionError: there is no such metric, a metric needs masks that are missing, `steps` is no number of steps, or
            the file `resume` is of another evaluation, in use or cannot be written.
        MethodError: there is no such method, or none is defined for the model.
        LayerError: there is no such layer.
        ImageError: an image cannot be read.

    >>> from sklearn.datasets import load_sample_image
    >>> table = evaluate("demo:vit", [load_sample_image("flower.jpg")], methods=["hirescam", "randomcam"],
    ...                  metrics=["confidence-drop"], progress=False)
    >>> sorted(row.map for row in table.rows)
    ['centred-gaussian', 'hirescam', 'noise', 'randomcam', 'sobel']
    """
    samples = samples_of(images)
    request = Request.of(target=target, text=text, method_options=method_options)
    chosen = [get_method(name) for name in method_ids(methods, budget, request)]
    judges = _metrics(metrics, samples)
    check_seed(seed)
    check_steps(steps)
    if rerun_batch_size is not None:
        check_count("rerun_batch_size", rerun_batch_size)
    check_options(chosen, request.method_options)
    loaded = load(model, processor=processor, device=device, dtype=dtype)
    bench = _Bench(
        Explainer(loaded, "gradcam"),
        request,
        chosen,
        _layer_sets(layers),
        judges,
        baselines,
        seed,
        steps,
        rerun_batch_size,
    )
    for sample in samples:
        bench.asked(sample)
    shared = None if resume is None else bench.settings()
    records = []
    with Log(resume, {"model": _name(model), **(shared or {})}) as log:
        for sample in _bar(samples, progress):
            for record in bench.records(sample, None if shared is None else fingerprint(shared), log.find):
                records.append(record)
                if not record.fingerprint or log.find(record.fingerprint) is None:
                    log.add(record)
                    if on_record is not None:
                        with callers_own():
                            on_record(record)
        resumed = sum(record.fingerprint in log.before for record in records)
    if not records:
        raise MethodError("; ".join(bench.skipped.values()) or "nothing was measured")
    return Evaluation(tuple(records), judges, dict(bench.skipped), resumed, steps)


def _metrics(metrics: Sequence[str] | str | None, samples: Sequence[Sample]) -> tuple[str, ...]:
    masked = all(sample.mask is not None for sample in samples)
    if metrics is None:
        return (*METRICS, *(MASK_METRICS if masked else ()))
    names = listed_names("metrics", metrics)
    for name in names:
        needs = get_metric(name).needs
        if "masks" in needs and not masked:
            raise OptionError(f"the metric {name!r} needs a mask or box for every image")
        if {"attributions", "other_maps"} & set(needs):
            raise OptionError(f"{name!r} must be called directly, as hf_cam.metrics.{name.replace('-', '_')}")
    if not names:
        raise OptionError("metrics= names no metric")
    return tuple(dict.fromkeys(names))


def _layer_sets(layers: Sequence[str | Sequence[str]] | str | None) -> list[Sequence[str] | str | None]:
    if layers is None or isinstance(layers, str):
        return [layers]
    if not isinstance(layers, Sequence):
        raise OptionError(f"layers must be names, or lists of names to fuse, got {brief(layers)}")
    if not layers:
        raise OptionError("layers= names no layer; omit it for the default layer")
    return list(layers)


class _Bench:
    """Runs the methods on all layers, and the baselines, image by image."""

    def __init__(
        self,
        explainer: Explainer,
        request: Request,
        methods: Sequence[Method],
        layer_sets: Sequence[Sequence[str] | str | None],
        metrics: tuple[str, ...],
        baselines: bool,
        seed: int,
        steps: Steps,
        rerun_batch_size: int | None,
    ) -> None:
        self.explainer, self.request, self.metrics, self.seed, self.steps = explainer, request, metrics, seed, steps
        self.rerun_batch_size, self.baselines = rerun_batch_size, baselines
        self.cams = [
            CAM(explainer.loaded.model, method.id, layers, **self._options(method))
            for layers in layer_sets
            for method in methods
        ]
        self._left_out: dict[tuple[str, CAM | None], str] = {}

    @property
    def skipped(self) -> dict[str, str]:
        """The ids of the methods that are not defined everywhere, each with the reasons."""
        found: dict[str, list[str]] = {}
        for (name, _), reason in self._left_out.items():
            found.setdefault(name, []).append(reason)
        return {name: "; ".join(dict.fromkeys(reasons)) for name, reasons in found.items()}

    def _options(self, method: Method) -> dict[str, Any]:
        return {name: value for name, value in self.request.method_options.items() if name in method.options}

    def asked(self, sample: Sample) -> Request:
        """What to explain: the caller's target and text, or else the sample's; checked against the model's head."""
        target = sample.target if self.request.target is None else self.request.target
        if entries_of(target) is not None:
            raise TargetError(
                f"one target is measured per image, as target= or Sample(target=...), not {brief(target)}"
            )
        return self.explainer.checked(None, {"target": target, "text": self.request.text or sample.text})

    def settings(self) -> dict[str, Any]:
        """What all records share, as JSON values."""
        request = self.request
        return {
            "hf_cam": __version__,
            "weights": model_fingerprint(self.explainer.loaded.model),
            "metrics": list(self.metrics),
            "target": None if request.target is None else f"{brief(request.target)} {fingerprint(request.target)}",
            "text": list(request.text),
            "options": {name: fingerprint(value) for name, value in request.method_options.items()},
            "seed": self.seed,
            "steps": self.steps,
        }

    def records(self, sample: Sample, shared: str | None, find: Callable[[str], Record | None]) -> Iterator[Record]:
        """The records of one image, those that were made before among them.

        Args:
            sample: The image.
            shared: The fingerprint of what all records share; None if records are made anew.
            find: Returns the record of a fingerprint.
        """
        image = load_image(sample.image)
        loaded = self.explainer.loaded
        pictures = loaded.inputs([image])
        geometry = loaded.geometry((image.height, image.width), input_size(pictures))
        head = self.explainer.head
        asked = self.asked(sample)
        request = head.rounds(asked, pictures)[0]
        inputs = model_inputs_of(
            loaded.model, pictures["pixel_values"], {**others_of(pictures), **head.inputs(request)}
        )
        with borrowed(loaded.module) as module, torch.no_grad():
            outputs = call(module, inputs)
        subject = head.subjects_of_all(sample_of(outputs, 0, 1), request, geometry)[0]
        problem = loaded.traits.problem_type
        measured = confidence(subject.target, problem, len(request.text))
        scorer = Scorer(loaded.model, inputs, [measured], self.rerun_batch_size)
        own = shared and fingerprint(shared, sample.name, pictures, geometry, sample.mask, asked.target, asked.text)
        made = set[tuple[str, tuple[str, ...]]]()
        for name, cam, adapter, explain in self._maps(inputs, subject.target):
            source = cam.method.source if cam else BASELINES[name]
            layers = adapter.layers if adapter else ()
            if (name, layers) in made:  # two entries of layers=, one of which may be the default, are the same
                continue
            made.add((name, layers))
            key = fingerprint(own, name, layers, adapter and adapter.layouts, code_of(source)) if own else ""
            if own and (known := find(key)) is not None:
                yield known
                continue
            try:
                yield replace(self._judged(sample, name, layers, explain, scorer, geometry), fingerprint=key)
            except (MethodError, LayoutError, NoGradientError) as error:
                self._left_out[name, cam] = str(error)

    def _maps(
        self, inputs: Mapping[str, Any], target: Target
    ) -> Iterator[tuple[str, CAM | None, Adapter | None, Callable[[Tensor], Tensor]]]:
        """The id of each map, what makes it unless it is a baseline, where that looks, and a function from pixels."""
        others, module = others_of(inputs), self.explainer.loaded.module
        for cam in self.cams:
            if (cam.method.id, cam) in self._left_out:
                continue

            def explain(pixels: Tensor, cam: CAM = cam) -> Tensor:
                return cam.saliency(pixels, lambda _: [[target]], **others).maps[0].float()

            if (adapter := self._place(cam, inputs)) is not None:
                yield cam.method.id, cam, adapter, explain
        if self.baselines:
            for name, make in BASELINES.items():

                def baseline(pixels: Tensor, make: Callable[[Tensor], Tensor] = make) -> Tensor:
                    with borrowed(module):  # a map that stays the same under other weights, as any baseline's must
                        return make(pixels)

                yield name, None, None, baseline

    def _place(self, cam: CAM, inputs: Mapping[str, Any]) -> Adapter | None:
        """Where a method looks; None if it finds no layer of its own, so that it is skipped.

        Raises:
            LayerError: there is no such layer as the caller names.
        """
        own = cam.method.layers is not target_layers
        try:
            return cam.adapter_for(inputs["pixel_values"], others_of(inputs))
        except (MethodError, LayoutError, LayerError) as error:
            if not own:
                raise
            self._left_out[cam.method.id, cam] = str(error)
            return None

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
        trial = Trial(maps, scorer, explain=explain, steps=self.steps, seed=self.seed)
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


def _name(model: Any) -> str:
    return str(model) if isinstance(model, str | Path) else type(unwrap(model)).__name__


def _bar(samples: Sequence[Sample], shown: bool) -> Iterable[Sample]:
    from tqdm import tqdm

    return tqdm(samples, unit="image", disable=not shown)
