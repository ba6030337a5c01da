"""The front door: an image and a model in, explanations out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hf_cam.cam import CAM, UNDEFINED, Saliency
from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call, model_inputs_of, others_of
from hf_cam.capture.replay import Reader, texts_read_once
from hf_cam.check import Origin
from hf_cam.doors import door
from hf_cam.effort import best_of, candidates, options_of
from hf_cam.errors import ImageError, MethodError, ModelError, OptionError, TargetError, brief
from hf_cam.explanation import FLAGS, MAY_MISLEAD, Explanation, Explanations
from hf_cam.heads import Head, Subject, WordHead, head_of
from hf_cam.heads.marks import boxes_of
from hf_cam.heads.selection import Chosen
from hf_cam.images.geometry import Geometry
from hf_cam.images.mapped import GridMap
from hf_cam.images.patches import are_cut, cut_alike
from hf_cam.images.reading import load_image
from hf_cam.images.videos import Video, may_be_video
from hf_cam.methods import Method, get_method
from hf_cam.models.loading import Labels, LoadedModel, Output, Picture, input_size, load
from hf_cam.models.refused import check_not_refused
from hf_cam.outputs import sample_of
from hf_cam.request import EffortSetting, Renormalize, Request, check_count
from hf_cam.target_layers.infer import declared_adapter
from hf_cam.target_layers.named import Layers
from hf_cam.targets import Target, entries_of
from hf_cam.words.explaining import WordExplainer
from hf_cam.words.methods import WORD_METHODS
from hf_cam.words.prompts import chat_of

BATCH = 8
"""Images per forward where the caller does not say."""


@door()
def explain(
    image: Any = None,
    model: str | Path | nn.Module | LoadedModel | None = None,
    *,
    target: Any = None,
    text: str | Sequence[str] | None = None,
    answer: str | None = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    generate: Mapping[str, Any] | None = None,
    input_points: Any = None,
    input_labels: Any = None,
    input_boxes: Any = None,
    method: str = "auto",
    layers: Layers | None = None,
    reshape: Callable[[Tensor], Tensor] | None = None,
    top_k: int | None = None,
    threshold: float | None = None,
    renormalize: Renormalize | None = None,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    signed: bool = False,
    method_options: Mapping[str, Any] | None = None,
    effort: EffortSetting = "fast",
    batch_size: int | None = None,
    processor: Any = None,
    labels: Labels | None = None,
    output: Output = "auto",
    device: str | torch.device | int | None = None,
    dtype: torch.dtype | str | None = None,
    trust_config: bool = False,
) -> list[Any]:
    """Show what a model looked at.

    Args:
        image: A path, URL, PIL image or array; or a list of them. For a model of videos a file (`.gif`, `.mp4`, ...), a
            `hf_cam.Video` of frames or an array `[T, H, W, 3]`; or a list of these. For a vision-language model, a
            tuple of images that one question is about.
        model: A Hub id, a folder, `demo:NAME`, a loaded model, or what `hf_cam.load` returned.
        target: A class index, a label text ("tabby" finds "tabby, tabby cat"), or any callable from one sample's output
            to a scalar tensor. Detectors and segmenters also take a pixel `(x, y)`, a box `(x0, y0, x1, y1)` or a mask
            `[H, W]` of the image, embedding models another image or an embedding `[D]`. A tuple is one target and a
            list several: for a list of images one entry per image, which may itself be a list. An array or tensor of
            one axis counts as a list if it holds whole numbers, and as an embedding if not. By default, what the model
            itself finds, which None stands for in a list: `[None, "pug"]` gives the map of what the model says and that
            of what was expected. `hf_cam.targets.SumOf` gives one map for several targets or for all objects of a
            class, `hf_cam.targets.BoxSide` the evidence for one side of a box. Of a vision-language model's answer, a
            word or a regular expression picks words, and a tuple ("red", "blue") contrasts two at one place.
        text: Prompts for models that compare images with text or look for what a text names; questions for models that
            answer them.
        answer: A text that a vision-language model is forced to write, in place of its own answer.
        messages: A chat as transformers takes it, with the pictures in it, in place of `image` and `text`.
        generate: Settings of a vision-language model's `generate`; by default greedy, and at most 64 tokens.
        input_points: What is marked for a promptable model of masks, such as SAM, in the image's pixels: a point
            `(x, y)`, a list of points (a map each), or a list of lists of points (several per map). For a list of
            images, one entry per image. transformers' nested lists are taken as they are.
        input_labels: For each point 1 if it belongs to the mask (the default), and 0 if it does not.
        input_boxes: A box `(left, top, right, bottom)` or a list of boxes; beside points, one per prompt.
        method: An id of `hf_cam.list_methods()`; "auto" takes the one that serves the model's family best.
        layers: The target layers, as dotted names or modules of the model, inferred where not given; see `hf_cam.CAM`
            for layers that run several times.
        reshape: `activation -> [B, C, h, w]`, inferred where not given.
        top_k: How many of the classes, detections, segments or prompts to explain, the surest first; where not given, a
            classifier's first and everything that other heads find.
        threshold: Score in [0, 1] from which detectors and segmenters show what they found; the head's own where not
            given.
        renormalize: "box" stretches the heatmap to [0, 1] inside each box of a detector for itself; it is 0 outside.
        aug_smooth: Average over six views of the image.
        eigen_smooth: First principal component of the channels' contributions in place of their sum.
        signed: Also show what speaks against the target: heatmaps in [-1, 1], with methods that have a sign.
        method_options: What only some methods take, such as `{"seed": 3}` for "randomcam".
        effort: "fast" takes the method as it is. "checked" tries several if `method` is "auto", keeps the first whose
            strongest pixels matter to the model, and takes a verdict on its map: about 110 forwards if the first does,
            and about 210 if all are tried; `Explanation.effort` says what was done.
        batch_size: Images per forward, 8 where not given. Methods that rerun the model run as many
            variants of an image per forward; a number that suits the device where not given.
        processor: The image processor, where it does not come with the model.
        labels: Class names, where they do not come with the model: a list, or a dict from index to name.
        output: What the model returns: "logits", "probabilities" (already a softmax or sigmoid of them), "multi-label"
            (each class has a sigmoid of its own), "regression" (predicted values) or an "embedding"; "auto"
            establishes it from what the model returns and from what it ends in.
        device, dtype, trust_config: For a model that is loaded here; see `hf_cam.load`.

    Returns:
        A list of `Explanation`, best first; for a list of images a list of such lists. Of a vision-language model, the
        list is an `Answer` with one explanation per word.

    Raises:
        HFCamError: `ImageError`, `ModelError`, `TargetError`, `MethodError`, `LayerError` and so on, before the model
            is touched wherever that can be known.

    >>> import hf_cam
    >>> from sklearn.datasets import load_sample_image
    >>> [flower] = hf_cam.explain(load_sample_image("flower.jpg"), model="demo:imagenet")
    >>> flower.heatmap.shape
    (427, 640)
    """
    chat, image = (None, image) if messages is None else of_chat(messages, image)
    _check_given(image, model)
    assert model is not None
    request = Request.of(
        target=target,
        text=text,
        answer=answer,
        messages=chat,
        generate=generate,
        input_points=input_points,
        input_labels=input_labels,
        input_boxes=input_boxes,
        top_k=top_k,
        threshold=threshold,
        renormalize=renormalize,
        aug_smooth=aug_smooth,
        eigen_smooth=eigen_smooth,
        signed=signed,
        method_options=method_options,
        effort=effort,
    )
    # A damaged image is reported before a model is fetched; whether a file that moves is one, only the model decides.
    sources = [_opened(source) for source in (image if isinstance(image, list | tuple) else [image])]
    where: dict[str, Any] = {"device": device, "dtype": dtype, "trust_config": trust_config}
    loaded = load(model, processor=processor, labels=labels, output=output, **where)
    make = partial(Explainer, method=method, layers=layers, reshape=reshape, rerun_batch_size=batch_size)
    return _found(loaded, image, sources, request, make, batch_size, named=layers is not None)


def _found(
    loaded: LoadedModel,
    image: Any,
    sources: list[Any],
    request: Request,
    make: Callable[[LoadedModel], Explainer],
    batch_size: int | None,
    *,
    named: bool,
) -> list[Any]:
    """The explanations of one image, or a list of them for each of several; `named` where the caller names layers."""
    if not named:
        check_not_refused(loaded.model)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    several = isinstance(image, list | tuple)
    if isinstance(image, tuple) and loaded.traits.answers_in_words:
        several, sources = False, [tuple(sources)]
    images = [opened_for(loaded, source) for source in sources]
    example = images[0] if images and not isinstance(images[0], tuple) else None
    asked = request if several else request.of_each()
    found = list(make(replace(loaded, example=example))(images, asked, batch_size=batch_size or BATCH))
    return found if several else found[0]


def of_chat(messages: Any, image: Any) -> tuple[Any, tuple[Any, ...]]:
    """A chat with bare placeholders, and its pictures.

    Raises:
        OptionError: there is an image beside it, or it is no chat.
        ImageError: there is no picture in it.
    """
    if image is not None:
        raise OptionError("messages= already holds the pictures; omit the image")
    chat, pictures = chat_of(messages)
    return chat, tuple(pictures)


def _check_given(image: Any, model: Any) -> None:
    """Refuse a call without a picture or a model.

    Raises:
        ModelError: there is no model.
        ImageError: there is no picture.
    """
    if model is None:
        raise ModelError(
            "a model must be a Hub id, a folder, 'demo:NAME' or a torch module, not NoneType; pass it as model="
        )
    if image is None:
        raise ImageError(
            "an image must be a path, a URL, a PIL image, an array or a tensor, not NoneType; a chat is messages="
        )


def _opened(source: Any) -> Any:
    """A source, opened unless it may be a video."""
    if isinstance(source, tuple):
        return tuple(map(_opened, source))
    return source if may_be_video(source) else load_image(source)


def opened_for(loaded: LoadedModel, source: Any) -> Any:
    """A source as the model takes it: a tuple holds the pictures of one question."""
    if isinstance(source, tuple) and loaded.traits.answers_in_words:
        return tuple(map(loaded.opened, source))
    return loaded.opened(source)


def _head_named(loaded: LoadedModel, method: str) -> str | None:
    """The head of words, for a method that weighs words or a model that can be asked in them; else its class decides.

    BLIP-2 is also listed under visual question answering, whose head takes methods for images.
    """
    asked = loaded.traits.answers_in_words and getattr(loaded.processor, "tokenizer", None) is not None
    return "words" if method in WORD_METHODS.records() or (method == "auto" and asked) else None


class Explainer:
    """A loaded model with a method, ready for any number of images; every door goes through it.

    Args:
        loaded: From `hf_cam.models.loading.load`.
        method, layers, reshape: As in `explain`.
        rerun_batch_size: Variants of an image per forward, for methods that rerun the model; chosen for the device
            where not given.
        head: An id of `hf_cam.heads.list_heads()` or a class, in place of the head that the model's class gets.
    """

    @door()
    def __init__(
        self,
        loaded: LoadedModel,
        method: str = "auto",
        layers: Layers | None = None,
        reshape: Callable[[Tensor], Tensor] | None = None,
        *,
        rerun_batch_size: int | None = None,
        head: str | type[Head] | None = None,
    ) -> None:
        if layers is None:
            check_not_refused(loaded.model)
        self.loaded = loaded
        self.head = head_of(loaded, _head_named(loaded, method) if head is None else head)
        self._named = method != "auto"
        self.words = WordExplainer(loaded, method) if isinstance(self.head, WordHead) else None
        if self.words is not None:
            method = "auto"
        if method == "auto" and self.head.method and not _measured(loaded.model):
            method = self.head.method
        self.cam = CAM(
            loaded.model, method, layers, reshape, rerun_batch_size=1 if self.head.alone else rerun_batch_size
        )

    @door()
    def __call__(
        self, images: Sequence[Picture], request: Request | None = None, *, batch_size: int = BATCH, **settings: Any
    ) -> Iterator[list[Explanation]]:
        """Explanations image by image.

        Args:
            images: As `LoadedModel.opened` returns them.
            request: What is wanted; a list as target has one entry per image, which may itself be a list.
            batch_size: Images per forward.
            settings: Fields of a `Request` in place of one, such as `target="tabby"`.

        Raises:
            TargetError, OptionError, MethodError: the request does not fit the model, before it runs.
        """
        wanted = self.checked(request, settings, len(images)).for_images(len(images))
        check_count("batch_size", batch_size)
        if self.words is not None:
            yield from map(self.words, images, wanted)
            return
        if self.head.crops and any(request.input_boxes is not None for request in wanted):
            for image, request in zip(images, wanted, strict=True):
                crops = [own([image], part.of_each()) for own, part in self._crops(request)]
                yield Explanations(found for [one] in crops for found in one)
            return
        readers: dict[nn.Module, Reader] = {}
        for start in range(0, len(images), batch_size):
            requests = iter(wanted[start : start + batch_size])
            for inputs, members in self.batches(images[start : start + batch_size]):
                own = list(islice(requests, len(members)))
                if wanted[0].effort == "checked" and (are_cut(inputs) or isinstance(members[0], Video)):
                    raise OptionError("effort='checked' replaces pixels, and this model takes frames or patches")
                with texts_read_once(self.loaded.model, readers) if own[0].text else nullcontext():
                    [found], _ = self._explained([self.cam.method], inputs, members, own)
                    if wanted[0].effort == "checked":
                        found = [self._best(*one) for one in zip(found, members, own, strict=True)]
                yield from map(Explanations, found)

    @door()
    def predict(
        self, images: Sequence[Picture], request: Request | None = None, *, batch_size: int = BATCH, **settings: Any
    ) -> Iterator[list[tuple[Subject, float]]]:
        """What would be explained in each image, with its score, from a forward without maps; arguments as in a call.

        Raises:
            TargetError, OptionError: the request does not fit the model, before it runs.
        """
        if self.words is not None:
            raise OptionError("the words of an answer have no predictions without maps; name a method")
        wanted = self.checked(request, settings, len(images)).for_images(len(images))
        check_count("batch_size", batch_size)
        if self.head.crops and any(request.input_boxes is not None for request in wanted):
            for image, request in zip(images, wanted, strict=True):
                crops = [own.predict([image], part.of_each()) for own, part in self._crops(request)]
                yield [found for [one] in crops for found in one]
            return
        for start in range(0, len(images), batch_size):
            requests = iter(wanted[start : start + batch_size])
            for inputs, members in self.batches(images[start : start + batch_size]):
                yield from self._predicted(inputs, members, list(islice(requests, len(members))))

    def _predicted(
        self, inputs: Mapping[str, Tensor], images: Sequence[Picture], requests: Sequence[Request]
    ) -> list[list[tuple[Subject, float]]]:
        size, count = input_size(inputs), len(images)
        geometries = [self.loaded.geometry((image.height, image.width), size) for image in images]
        requests = [self.head.placed(*one) for one in zip(requests, geometries, strict=True)]
        found: list[list[tuple[Subject, float]]] = [[] for _ in images]
        for part in self.head.rounds(requests[0], inputs):
            own = [replace(part, target=request.target) for request in requests] if count > 1 else [part]
            given = {**others_of(inputs), **self.head.inputs(part)}
            with borrowed(self.loaded.model) as model, torch.no_grad():
                outputs = call(model, model_inputs_of(self.loaded.model, inputs["pixel_values"], given))
                chosen = Chosen(self.head, own, geometries)
                chosen(outputs)
                for i, subjects in enumerate(chosen.subjects):
                    sample = sample_of(outputs, i, count)
                    found[i] += [
                        (one, float(one.target(sample)) if one.score is None else one.score) for one in subjects
                    ]
        return found

    @door()
    def compare(
        self, image: Picture, methods: Sequence[str], request: Request | None = None, **settings: Any
    ) -> list[list[Explanation]]:
        """One image by several methods, all from one forward: a list per method, best target first.

        Args:
            image: As `LoadedModel.opened` returns it.
            methods: Ids of `hf_cam.list_methods()`.
            request, settings: As in a call.

        Raises:
            MethodError: a method does not exist, or is not defined here.
        """
        found, _ = self._compared(image, methods, self.checked(request, settings))
        return found

    @door()
    def compare_defined(
        self, image: Picture, methods: Sequence[str], request: Request | None = None, **settings: Any
    ) -> tuple[list[list[Explanation]], dict[str, str]]:
        """Like `compare`, but only for the methods that are defined here; also the ids of the others with the reason.

        Raises:
            MethodError: a method does not exist, or none is defined.
        """
        return self._compared(image, methods, self.checked(request, settings), skip_undefined=True)

    def checked(self, request: Request | None, settings: Mapping[str, Any], images: int | None = None) -> Request:
        """A request that was checked against the model's head before the model runs.

        Args:
            request: What is wanted.
            settings: Fields of a `Request` in place of one.
            images: The number of images, each of which may have marks of its own; None for the request of one image.

        Raises:
            TargetError: the target does not exist, a text is missing, or the model has no use for one.
            OptionError: a setting does not exist, or both a request and settings are given.
        """
        if request is not None and settings:
            raise OptionError(f"the request holds all settings; put {min(settings)!r} into it")
        wanted = Request.of(**settings) if request is None else request
        for one in wanted.for_images(images) if images is not None and wanted.marking else [wanted]:
            self.head.check_all(one)
        return wanted

    def _crops(self, request: Request) -> list[tuple[Explainer, Request]]:
        """For each box in which a model of poses is to look at one person, an explainer that looks there."""
        boxes = boxes_of(request.input_boxes)
        if not self.head.crops or not boxes:
            return [(self, request)]
        made = []
        for box in boxes:
            own = copy.copy(self)
            own.loaded = self.loaded.cropped(box)
            own.head = type(self.head)(own.loaded)
            made.append((own, replace(request, input_boxes=None)))
        return made

    def _best(self, first: list[Explanation], image: Picture, request: Request) -> list[Explanation]:
        """The explanations of one image, each by the first of the candidates whose strongest pixels matter."""
        inputs = self.loaded.inputs([image])
        height, width = inputs["pixel_values"].shape[-2:]

        def attempt(name: str) -> tuple[Sequence[Explanation], str]:
            if name == self.cam.method.id:
                return first, ""
            own = replace(request, method_options=options_of(name, (height, width)))
            try:
                [[found]], _ = self._explained([get_method(name)], inputs, [image], [own])
            except UNDEFINED as error:
                return (), str(error)
            return found, ""

        methods = candidates(self.cam.method, self.cam.adapter, named=self._named)
        return best_of(first, methods, attempt, (height, width), request.method_options)

    def _compared(
        self, image: Picture, methods: Sequence[str], request: Request, *, skip_undefined: bool = False
    ) -> tuple[list[list[Explanation]], dict[str, str]]:
        if entries_of(request.target) is not None:
            raise TargetError(f"methods are compared on one target, got {brief(request.target)}; explain takes several")
        if request.effort == "checked":
            raise OptionError("effort='checked' chooses among methods; a comparison takes those that are named")
        records = [get_method(method) for method in methods]
        own, request = self._crops(request)[0]
        inputs = own.loaded.inputs([image])
        explained = own._explained  # noqa: SLF001 - of the same class
        found, skipped = explained(records, inputs, [image], [request], skip_undefined=skip_undefined)
        return [explanations for [explanations] in found], skipped

    def batches(self, images: Sequence[Picture]) -> Iterator[tuple[dict[str, Tensor], Sequence[Picture]]]:
        """One batch where every image comes out as it would alone, else one image at a time."""
        try:
            inputs = self.loaded.inputs(images)
            together = len(images) == 1 or (not self.head.alone and self._as_alone(inputs, images))
        except ModelError:
            if len(images) == 1:
                raise
            together = False
        if together:
            yield inputs, images
        else:
            for image in images:
                yield self.loaded.inputs([image]), [image]

    def _as_alone(self, inputs: Mapping[str, Tensor], images: Sequence[Picture]) -> bool:
        """Whether no image of a batch was padded to the size of another, or cut into another grid."""
        if are_cut(inputs):
            return cut_alike(inputs)
        size = tuple(inputs["pixel_values"].shape[-2:])
        return all(self.loaded.geometry((image.height, image.width)).model_size == size for image in images)

    def _explained(
        self,
        methods: Sequence[Method],
        inputs: Mapping[str, Tensor],
        images: Sequence[Picture],
        requests: Sequence[Request],
        *,
        skip_undefined: bool = False,
    ) -> tuple[list[list[list[Explanation]]], dict[str, str]]:
        """By method, image and subject; and the methods that are not defined, with the reason."""
        skipped: dict[str, str] = {}
        if any(isinstance(image, Video) for image in images):
            skipped = {method.id: reason for method in methods if (reason := _blind_to_frames(method))}
            if skipped and not (skip_undefined and len(skipped) < len(methods)):
                raise MethodError(next(iter(skipped.values())))
        size = input_size(inputs)
        geometries = [self.loaded.geometry((image.height, image.width), size) for image in images]
        requests = [self.head.placed(*one) for one in zip(requests, geometries, strict=True)]
        found: dict[str, list[list[Explanation]]] = {method.id: [[] for _ in images] for method in methods}
        for part in self.head.rounds(requests[0], inputs):
            # Only the targets differ from image to image, and only heads that take one image at a time change them.
            own = [replace(part, target=request.target) for request in requests] if len(requests) > 1 else [part]
            chosen = Chosen(self.head, own, geometries)
            full = {**inputs, **self.head.inputs(part)}
            with chosen.explaining():
                saliencies = self.cam.saliencies(
                    [method for method in methods if method.id not in skipped],
                    **full,
                    select=chosen,
                    request=part,
                    skip_undefined=skip_undefined,
                )
            skipped |= saliencies.skipped
            for saliency in map(_on_host, saliencies):
                for i, image in enumerate(images):
                    shown = tuple(saliency.maps.shape[2:])
                    recipe = _Recipe(self.loaded, self.head, image, own[i], saliency.method, shown)
                    found[saliency.method.id][i] += _explanations(
                        saliency, i, image, chosen.subjects[i], geometries[i], recipe
                    )
        return [found[method.id] for method in methods if method.id not in skipped], skipped


@dataclass(frozen=True, eq=False)
class _Recipe:
    """How to make again what the explanations of an image were made from, so that none of them holds the inputs."""

    loaded: LoadedModel
    head: Head
    image: Picture
    request: Request
    method: Method
    size: Sequence[int]

    def origin(self, target: Target, raw: Sequence[np.ndarray]) -> Origin:
        """The origin of the explanation with this target and these raw maps, one per layer."""
        given = {**self.loaded.inputs([self.image]), **self.head.inputs(self.request)}
        inputs = model_inputs_of(self.loaded.model, given["pixel_values"], others_of(given))
        fused = self.method.fused([torch.from_numpy(layer) for layer in raw], self.size)
        shown = fused.to(inputs["pixel_values"].device)
        return Origin(self.loaded.model, inputs, target, shown, self.loaded.processor, self.request, len(raw))


def _on_host(saliency: Saliency) -> Saliency:
    """The record with the raw maps and scores of all images on the CPU, from where each image takes its own."""
    return replace(saliency, raw=tuple(layer.cpu() for layer in saliency.raw), scores=saliency.scores.cpu())


def _explanations(
    saliency: Saliency, i: int, image: Picture, subjects: Sequence[Subject], geometry: Geometry, recipe: _Recipe
) -> list[Explanation]:
    """Of image `i` of a batch, one per subject."""
    signed = recipe.request.signed
    fuse = saliency.method.fuse if len(saliency.raw) > 1 else None
    frames = len(image.frames) if isinstance(image, Video) else None
    layers = [layer[: len(subjects), i].float().cpu().numpy() for layer in saliency.raw]
    # Copies, not views, which would keep the maps of the whole batch.
    maps = [
        GridMap(tuple(layer[k].copy() for layer in layers), geometry, fuse, frames, signed)
        for k in range(len(subjects))
    ]
    return [
        Explanation(
            label=subject.label,
            score=float(saliency.scores[k, i]) if subject.score is None else subject.score,
            heatmap=cast("np.ndarray", map_.heatmap),
            raw=map_.raw[0],
            method=saliency.method.id,
            layers=saliency.adapter.layers,
            image=image.frames[0] if isinstance(image, Video) else image,
            frames=tuple(image.frames) if isinstance(image, Video) else (),
            box=subject.box,
            boxes=subject.boxes,
            mask=subject.mask,
            flags=(*subject.flags, *FLAGS[map_.evidence], *_cautions(saliency)),
            origin=cast("Origin", partial(recipe.origin, subject.target, map_.raw)),
            score_kind=subject.kind_of_score,
            map=map_,
        ).renormalized(recipe.request.renormalize)
        for k, (subject, map_) in enumerate(zip(subjects, maps, strict=True))
    ]


def _blind_to_frames(method: Method) -> str:
    """Why a method is not defined over frames: it uses the pixels or the attention of one picture; empty if it is."""
    if method.needs_attention or method.works_on_pixels:
        return f"{method.id!r} is not defined over the frames of a video; 'gradcam' and 'hirescam' are"
    return ""


def _measured(model: nn.Module) -> bool:
    """Whether the catalogue or the model's own file names the method that serves it best."""
    declared = declared_adapter(model)
    return declared is not None and declared.origin in ("catalogue", "cam_config")


def _cautions(saliency: Saliency) -> tuple[str, ...]:
    """A warning where maps of this family's target layer are known to mislead."""
    caution = saliency.adapter.caution
    return (f"{MAY_MISLEAD}: {caution}",) if caution and saliency.method.reads_layer else ()
