"""The transformers pipeline tasks "image-cam" and "explain"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import Pipeline, PreTrainedModel
from transformers.pipelines import PIPELINE_REGISTRY

from hf_cam.doors import door, renamed
from hf_cam.errors import ImageError, ModelError, OptionError, TargetError, brief, nearest
from hf_cam.explainer import Explainer, of_chat, opened_for
from hf_cam.explanation import Explanation
from hf_cam.models.checkpoints import SAFELY, explained, load_pretrained, load_processor, resolve_name
from hf_cam.models.loading import LoadedModel, check_output, names_of, processor_of
from hf_cam.models.peft import adapter_in
from hf_cam.models.refused import check_not_refused
from hf_cam.models.traits import check_takes_pictures, traits_of
from hf_cam.request import MARKS, Request, check_count
from hf_cam.targets import entries_of
from hf_cam.words.explaining import listed

TASK, ALIAS = "image-cam", "explain"
DEFAULT_MODEL = ("google/vit-base-patch16-224", "main")
WHERE = ("method", "layers", "reshape")
DECLARED = ("labels", "output")
WHAT = tuple(field.name for field in fields(Request))


OWN = ("target", *MARKS)
"""Settings of which a list of images may have an entry each."""
KNOWN = WHERE + DECLARED + WHAT
CORNERS = ("xmin", "ymin", "xmax", "ymax")
"""The names that transformers gives to the sides of a box."""


@dataclass(frozen=True)
class Asked:
    """An image with targets or prompts of its own.

    Args:
        image: Anything that the pipeline takes as an image.
        settings: By name; a target may be a list of several.
    """

    image: Any
    settings: Mapping[str, Any]


class HeadLoader:
    """Loads a checkpoint in the class that its own config names (a list of auto classes would be tried in turn)."""

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> nn.Module:
        """Load a model; transformers calls this like the `from_pretrained` of an auto class."""
        kwargs.pop("_from_pipeline", None)
        kwargs.pop("code_revision", None)
        return load_pretrained(name, **kwargs)


class ImageCamPipeline(Pipeline):
    """Heatmaps of any vision model, as a transformers pipeline.

    Called with one image (path, URL, PIL image or array), it returns a list of dicts with `label`, `score`,
    `score_kind` (what the score is, such as "probability"), `heatmap` (`[H, W]` float32 in [0, 1], as large as the
    image), `box` or `mask` if the head has them, `boxes` for the sum of several objects, and `effort` if it is
    "checked". With a list, it returns a list of such lists; with a generator or dataset, it yields one list per image.
    It takes `batch_size` and these arguments of `hf_cam.explain`: `target`, `text`, `input_points`, `input_labels`,
    `input_boxes`, `top_k`, `threshold`, `renormalize`, `method`, `method_options`, `layers`, `reshape`, `aug_smooth`,
    `eigen_smooth`, `signed`, `effort`, `labels`, `output`. For a vision-language model, a tuple holds the images of one
    question, `answer` and `generate` are as in `hf_cam.explain`, and `messages` (or the first argument) is a chat in
    place of the image and `text`; the dicts then also have `span` and `evidence`. For a video model, it takes a file, a
    `hf_cam.Video` or an array `[T, H, W, 3]` instead of an image; the heatmap is then `[T, H, W]`, and `frames` holds
    the frames that the model saw.

    >>> import hf_cam
    >>> from sklearn.datasets import load_sample_image
    >>> cam = hf_cam.pipeline("image-cam", model="demo:imagenet")
    >>> cam(load_sample_image("flower.jpg"))[0]["heatmap"].shape
    (427, 640)
    """

    _load_processor = False
    _load_image_processor = None
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = None

    @door(ModelError)
    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        if not isinstance(model, PreTrainedModel):
            raise ModelError(
                f"a pipeline needs a transformers model, got {type(model).__name__}; "
                "hf_cam.explain(image, model, processor=...) takes any module"
            )
        check_takes_pictures(model)
        if kwargs.get("layers") is None:
            check_not_refused(model)
        if traits_of(model).answers_in_words and kwargs.get("processor") is not None:
            kwargs["image_processor"] = kwargs["processor"]
        if kwargs.get("image_processor") is None:
            kwargs["image_processor"] = processor_of(model)
        super().__init__(model, *args, **kwargs)
        self._loaded = LoadedModel(self.model, self.image_processor, traits_of(self.model).id2label, self.tokenizer)
        self._explainer = lru_cache(maxsize=8)(self._make_explainer)

    @door()
    def __call__(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Explain one image, or all in a list, generator, `datasets.Dataset`, image column or `KeyDataset`."""
        if kwargs.get("batch_size") is not None:
            check_count("batch_size", kwargs["batch_size"])
        if isinstance(inputs, list) and inputs and all(isinstance(one, Mapping) and "role" in one for one in inputs):
            kwargs, inputs = {**kwargs, "messages": inputs}, None
        if kwargs.get("messages") is not None:
            kwargs["messages"], inputs = of_chat(kwargs["messages"], inputs)
        if isinstance(inputs, tuple):
            inputs = listed(inputs) if self._loaded.traits.answers_in_words else list(inputs)
        if isinstance(inputs, list) and not inputs:
            return []
        columns = getattr(inputs, "column_names", None)
        if columns is not None:
            inputs = _column_images(inputs)
        elif type(inputs).__module__.startswith("datasets."):
            inputs = (item for item in inputs)  # a column: rows are decoded one by one
        own = {name: kwargs.pop(name) for name in OWN if _is_list(name, kwargs.get(name))}
        if own:
            inputs = _asked(inputs, own)
        return super().__call__(inputs, *args, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        for name in kwargs:
            if name not in KNOWN:
                meant = renamed(name, KNOWN) or f"; nearest: {nearest(name, KNOWN)}"
                raise OptionError(f"{TASK} has no argument {brief(name)}{meant}")
        return {}, kwargs, {}

    @door(ImageError)
    def preprocess(self, image: Any) -> dict[str, Any]:  # type: ignore[override]
        """Decode the image; resizing and normalizing happen per batch, where images of one size are grouped."""
        if isinstance(image, Asked):
            return {"image": opened_for(self._loaded, image.image), "own": dict(image.settings)}
        return {"image": opened_for(self._loaded, image)}

    @door()
    def _forward(self, inputs: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        batched = isinstance(inputs["image"], list)
        images = inputs["image"] if batched else [inputs["image"]]
        own = (inputs["own"] if batched else [inputs["own"]]) if "own" in inputs else []
        for name in OWN:
            if own and name in own[0]:
                kwargs[name] = [settings[name] for settings in own]
            elif _is_list(name, kwargs.get(name)):
                kwargs[name] = [kwargs[name]] * len(images)
        where, declared = ({name: kwargs.pop(name, None) for name in names} for names in (WHERE, DECLARED))
        layers, labels = where["layers"], declared["labels"]
        explainer = self._explainer(
            where["method"] or "auto",
            layers if layers is None or isinstance(layers, str) else tuple(layers),
            where["reshape"],
            None if labels is None else tuple(names_of(labels).items()),
            declared["output"] or "auto",
        )
        return {"explanations": list(explainer(images, batch_size=len(images), **kwargs))}

    def postprocess(self, outputs: Mapping[str, Any]) -> list[dict[str, Any]]:  # type: ignore[override]
        """One dict per explanation."""
        found = outputs["explanations"]
        if found and isinstance(found[0], list):  # not unpacked from a batch
            found = found[0]
        return [_as_dict(explanation) for explanation in found]

    def _make_explainer(self, method: str, layers: Any, reshape: Any, labels: Any, output: Any) -> Explainer:
        names = self._loaded.id2label if labels is None else dict(labels)
        loaded = replace(self._loaded, id2label=names, output=check_output(output))
        return Explainer(loaded, method, layers, reshape)


def _is_list(name: str, given: Any) -> bool:
    """Whether a setting holds several targets, or several prompts: a tuple is a single one."""
    return entries_of(given) is not None if name == "target" else given is not None and not isinstance(given, tuple)


def _asked(inputs: Any, own: Mapping[str, Any]) -> Any:
    """The images with their own targets and prompts: of a list one entry each, and of a single image all.

    Raises:
        TargetError: a list has another length, or the images are not counted beforehand.
    """
    if isinstance(inputs, list):
        requests = Request(**own).for_images(len(inputs))
        settings = ({name: getattr(request, name) for name in own} for request in requests)
        return [Asked(image, one) for image, one in zip(inputs, settings, strict=True)]
    if isinstance(inputs, Iterator) or (hasattr(inputs, "__getitem__") and not isinstance(inputs, str | np.ndarray)):
        name = next(iter(own))
        raise TargetError(
            f"a list as {name} has one entry per image, so it needs a list of images, not {type(inputs).__name__}; "
            f"pass {name}= to the pipeline itself for the same in every image"
        )
    return Asked(inputs, {name: entries_of(given) if name == "target" else given for name, given in own.items()})


def _as_dict(explanation: Explanation) -> dict[str, Any]:
    found = {
        "label": explanation.label,
        "score": explanation.score,
        "score_kind": explanation.score_kind,
        "heatmap": explanation.heatmap,
    }
    if explanation.box is not None:
        found["box"] = dict(zip(CORNERS, explanation.box, strict=True))
    if explanation.boxes:
        found["boxes"] = [dict(zip(CORNERS, box, strict=True)) for box in explanation.boxes]
    if explanation.mask is not None:
        found["mask"] = explanation.mask
    if explanation.frames:
        found["frames"] = list(explanation.frames)
    if explanation.effort is not None:
        found["effort"] = explanation.effort
    if explanation.span is not None:
        found |= {"span": explanation.span, "evidence": explanation.evidence}
    return found


def _column_images(dataset: Any) -> Iterator[Any]:
    """The images of a `datasets.Dataset`, row by row, from the column "image" or the only image column.

    Raises:
        ImageError: it has no image column, or several but none called "image", or it is a dict of splits.
    """
    if isinstance(dataset, Mapping):
        raise ImageError(f"choose a split of the dataset first: {', '.join(map(repr, dataset))}")
    features = dataset.features or {}
    names = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    columns = names or dataset.column_names or ()
    chosen = "image" if "image" in columns else names[0] if len(names) == 1 else None
    if chosen is None:
        held = f"{len(names)} image columns" if names else "no image column"
        raise ImageError(
            f"the dataset has {held} ({', '.join(columns)}); "
            "pass one of them, e.g. dataset['photo'] or KeyDataset(dataset, 'photo')"
        )
    return (row[chosen] for row in _rows(dataset))


def _rows(dataset: Iterable[Any]) -> Iterator[Any]:
    yield from dataset


def register_tasks() -> None:
    """Register `transformers.pipeline("image-cam")` and its alias, unless they are registered already."""
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK, ImageCamPipeline, pt_model=(HeadLoader,), default={"model": DEFAULT_MODEL}, type="image"
        )
        PIPELINE_REGISTRY.task_aliases[ALIAS] = TASK
        # With this attribute, `save_pretrained` would copy this file to the folder and name HeadLoader in the config,
        # where transformers could not find it.
        del ImageCamPipeline._registered_impl  # noqa: SLF001  (transformers offers no switch)


@door(ModelError)
def pipeline(task: str = TASK, model: Any = None, **kwargs: Any) -> Any:
    """`transformers.pipeline` that also accepts short names ("google/vit-base") and `demo:NAME`.

    Args:
        task: "image-cam" or "explain"; any other task is passed on to transformers.
        model: A Hub id, short name, folder, `demo:NAME` or loaded transformers model.
        kwargs: Other arguments of `transformers.pipeline`.

    Raises:
        ModelError: the model cannot be found, reached or loaded.
    """
    import transformers

    if task not in (TASK, ALIAS):
        return transformers.pipeline(task, model=model, **kwargs)
    kwargs = {**kwargs, **SAFELY}
    if not isinstance(model, str | Path | None):
        return transformers.pipeline(task, model=model, **kwargs)
    name = model = resolve_name(DEFAULT_MODEL[0] if model is None else model)
    if adapter_in(name):
        model = load_pretrained(name, dtype=kwargs.pop("dtype", None))
        kwargs = {"image_processor": load_processor(name), **kwargs}
    return explained(name, lambda: transformers.pipeline(task, model=model, **kwargs))


register_tasks()
