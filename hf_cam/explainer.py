"""The front door: an image and a model in, explanations out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_cam.cam import CAM, UNDEFINED, Saliency
from hf_cam.capture.inputs import alone, model_inputs_of, one_image, others_of
from hf_cam.capture.replay import Reader, texts_read_once
from hf_cam.check import Origin
from hf_cam.doors import door
from hf_cam.effort import best_of, candidates, options_of
from hf_cam.errors import MethodError, ModelError, OptionError, TargetError, brief
from hf_cam.explanation import MAY_MISLEAD, NO_EVIDENCE, OUTSIDE_IMAGE, Explanation
from hf_cam.heads import Head, Subject, head_of
from hf_cam.heads.selection import Chosen
from hf_cam.images.geometry import Geometry
from hf_cam.images.patches import are_cut, cut_alike
from hf_cam.images.reading import load_image
from hf_cam.images.videos import Video, may_be_video
from hf_cam.maps import normalize, resize
from hf_cam.methods import Method, get_method
from hf_cam.models.loading import Labels, LoadedModel, Output, Picture, input_size, load
from hf_cam.request import EffortSetting, Request, check_count
from hf_cam.target_layers.infer import declared_adapter
from hf_cam.target_layers.named import Layers
from hf_cam.targets import entries_of

BATCH = 8
"""Images per forward where the caller does not say."""

FAINT = 0.01
"""Share of a map's peak up to which cells count as none of its evidence."""


@door()
def explain(
    image: Any,
    model: str | Path | nn.Module | LoadedModel,
    *,
    target: Any = None,
    text: str | Sequence[str] | None = None,
    method: str = "auto",
    layers: Layers | None = None,
    reshape: Callable[[Tensor], Tensor] | None = None,
    top_k: int | None = None,
    threshold: float | None = None,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
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
            `hf_cam.Video` of frames or an array `[T, H, W, 3]`; or a list of these.
        model: A Hub id, a folder, `demo:NAME`, a loaded model, or what `hf_cam.load` returned.
        target: A class index, a label text ("tabby" finds "tabby, tabby cat"), or any callable from one sample's output
            to a scalar tensor. Detectors and segmenters also take a pixel `(x, y)`, a box `(x0, y0, x1, y1)` or a mask
            `[H, W]` of the image, embedding models another image or an embedding `[D]`. A tuple is one target and a
            list several: for a list of images one entry per image, which may itself be a list. An array or tensor of
            one axis counts as a list if it holds whole numbers, and as an embedding if not. By default, what the model
            itself finds.
        text: Prompts for models that compare images with text or look for what a text names; questions for models that
            answer them.
        method: An id of `hf_cam.list_methods()`; "auto" takes the one that serves the model's family best.
        layers: The target layers, as dotted names or modules of the model, inferred where not given; see `hf_cam.CAM`
            for layers that run several times.
        reshape: `activation -> [B, C, h, w]`, inferred where not given.
        top_k: How many of the classes, detections, segments or prompts to explain, the surest first; where not given, a
            classifier's first and everything that other heads find.
        threshold: Score in [0, 1] from which detectors and segmenters show what they found; the head's own where not
            given.
        aug_smooth: Average over six views of the image.
        eigen_smooth: First principal component of the channels' contributions in place of their sum.
        method_options: What only some methods take, such as `{"seed": 3}` for "randomcam".
        effort: "fast" takes the method as it is. "checked" tries several if `method` is "auto", keeps the first whose
            strongest pixels matter to the model, and takes a verdict on its map: about 50 forwards if the first does,
            and up to 200; `Explanation.effort` says what was done.
        batch_size: Images per forward, 8 where not given. Methods that rerun the model run as many
            variants of an image per forward; a number that suits the device where not given.
        processor: The image processor, where it does not come with the model.
        labels: Class names, where they do not come with the model: a list, or a dict from index to name.
        output: What the model returns: "logits", "probabilities" (already a softmax or sigmoid of them), "multi-label"
            (each class has a sigmoid of its own), "regression" (predicted values) or an "embedding"; "auto"
            establishes it from what the model returns and from what it ends in.
        device, dtype, trust_config: For a model that is loaded here; see `hf_cam.load`.

    Returns:
        A list of `Explanation`, best first; for a list of images a list of such lists.

    Raises:
        HFCamError: `ImageError`, `ModelError`, `TargetError`, `MethodError`, `LayerError` and so on, before the model
            is touched wherever that can be known.

    >>> import hf_cam
    >>> from sklearn.datasets import load_sample_image
    >>> [flower] = hf_cam.explain(load_sample_image("flower.jpg"), model="demo:imagenet")
    >>> flower.heatmap.shape
    (427, 640)
    """
    request = Request.of(
        target=target,
        text=text,
        top_k=top_k,
        threshold=threshold,
        aug_smooth=aug_smooth,
        eigen_smooth=eigen_smooth,
        method_options=method_options,
        effort=effort,
    )
    several = isinstance(image, list | tuple)
    # A damaged image is told before a model is fetched; whether a file that moves is one, only the model knows.
    sources = [source if may_be_video(source) else load_image(source) for source in (image if several else [image])]
    loaded = load(
        model,
        processor=processor,
        labels=labels,
        output=output,
        device=device,
        dtype=dtype,
        trust_config=trust_config,
    )
    images = [loaded.opened(source) for source in sources]
    if batch_size is not None:
        check_count("batch_size", batch_size)
    loaded = replace(loaded, example=images[0] if images else None)
    explainer = Explainer(loaded, method, layers, reshape, rerun_batch_size=batch_size)
    found = list(explainer(images, request if several else request.of_one_image(), batch_size=batch_size or BATCH))
    return found if several else found[0]


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
        self.loaded = loaded
        self.head = head_of(loaded, head)
        self._named = method != "auto"
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
        wanted = self.checked(request, settings).for_images(len(images))
        check_count("batch_size", batch_size)
        readers: dict[nn.Module, Reader] = {}
        for start in range(0, len(images), batch_size):
            requests = iter(wanted[start : start + batch_size])
            for inputs, members in self._batches(images[start : start + batch_size]):
                own = list(islice(requests, len(members)))
                if wanted[0].effort == "checked" and (are_cut(inputs) or isinstance(members[0], Video)):
                    raise OptionError("effort='checked' replaces pixels, and this model takes frames or patches")
                with texts_read_once(self.loaded.model, readers) if own[0].text else nullcontext():
                    [found], _ = self._explained([self.cam.method], inputs, members, own)
                    if wanted[0].effort == "checked":
                        found = [self._best(*one) for one in zip(found, members, own, strict=True)]
                yield from found

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

    def checked(self, request: Request | None, settings: Mapping[str, Any]) -> Request:
        """A request that was checked against the model's head before the model runs.

        Args:
            request: What is wanted.
            settings: Fields of a `Request` in place of one.

        Raises:
            TargetError: the target does not exist, a text is missing, or the model has no use for one.
            OptionError: a setting does not exist, or both a request and settings are given.
        """
        if request is not None and settings:
            raise OptionError(f"the request holds all settings; put {min(settings)!r} into it")
        wanted = Request.of(**settings) if request is None else request
        self.head.check_all(wanted)
        return wanted

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

        return best_of(candidates(self.cam.method, self.cam.adapter, named=self._named), attempt, (height, width))

    def _compared(
        self, image: Picture, methods: Sequence[str], request: Request, *, skip_undefined: bool = False
    ) -> tuple[list[list[Explanation]], dict[str, str]]:
        if entries_of(request.target) is not None:
            raise TargetError(f"methods are compared on one target, got {brief(request.target)}; explain takes several")
        if request.effort == "checked":
            raise OptionError("effort='checked' chooses among methods; a comparison takes those that are named")
        records, inputs = [get_method(method) for method in methods], self.loaded.inputs([image])
        found, skipped = self._explained(records, inputs, [image], [request], skip_undefined=skip_undefined)
        return [explanations for [explanations] in found], skipped

    def _batches(self, images: Sequence[Picture]) -> Iterator[tuple[dict[str, Tensor], Sequence[Picture]]]:
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
            for saliency in saliencies:
                for i, image in enumerate(images):
                    origins = self._origins(saliency, i, full, chosen.subjects[i])
                    found[saliency.method.id][i] += _explanations(
                        saliency, i, image, chosen.subjects[i], geometries[i], origins
                    )
        return [found[method.id] for method in methods if method.id not in skipped], skipped

    def _origins(
        self, saliency: Saliency, i: int, inputs: Mapping[str, Any], subjects: Sequence[Subject]
    ) -> list[Origin]:
        """What each explanation of image `i` was made from."""
        own = one_image(model_inputs_of(self.loaded.model, inputs["pixel_values"], others_of(inputs)), i)
        own = {name: alone(value) if isinstance(value, Tensor) else value for name, value in own.items()}
        return [
            Origin(self.loaded.model, own, subject.target, alone(saliency.maps[k, i]))
            for k, subject in enumerate(subjects)
        ]


def _explanations(
    saliency: Saliency,
    i: int,
    image: Picture,
    subjects: Sequence[Subject],
    geometry: Geometry,
    origins: Sequence[Origin],
) -> list[Explanation]:
    """Of image `i` of a batch, one a subject."""
    frames = len(image.frames) if isinstance(image, Video) else None
    on_grid = _on_grid(saliency.method, [layer[: len(subjects), i] for layer in saliency.raw], geometry, frames)
    in_view = _in_view(on_grid, geometry)
    heatmaps = _heatmaps(on_grid * in_view.view(-1, *(1,) * (on_grid.ndim - 1)), geometry, frames)
    raw = saliency.raw[0][:, i].float().cpu().numpy()
    return [
        Explanation(
            label=subject.label,
            score=float(saliency.scores[k, i]) if subject.score is None else subject.score,
            heatmap=heatmaps[k].copy(),  # not a view, which would keep those of the whole batch
            raw=raw[k].copy(),
            method=saliency.method.id,
            layers=saliency.adapter.layers,
            image=image.frames[0] if isinstance(image, Video) else image,
            frames=tuple(image.frames) if isinstance(image, Video) else (),
            box=subject.box,
            mask=subject.mask,
            flags=(*subject.flags, *_flags(on_grid[k], bool(in_view[k])), *_cautions(saliency)),
            origin=origins[k],
            score_kind=subject.kind_of_score,
        )
        for k, subject in enumerate(subjects)
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


def _on_grid(method: Method, raw: Sequence[Tensor], geometry: Geometry, frames: int | None) -> Tensor:
    """`[K, h, w]` in [0, 1] on a grid over the model's input, from each layer's raw maps `[K, h, w]`.

    Of a video `[K, t, h, w]`; each is stretched over all its frames at once.
    """
    size = geometry.model_size if frames is None else (frames, *geometry.model_size)
    return normalize(raw[0], len(size)) if len(raw) == 1 else method.fuse(raw, size)


def _heatmaps(on_grid: Tensor, geometry: Geometry, frames: int | None) -> np.ndarray:
    """`[K, H, W]` float32 in [0, 1] in the image's pixels, of a video `[K, T, H, W]`."""
    if frames is not None:
        on_grid = resize(on_grid, (frames, *on_grid.shape[-2:]))
    drawn = geometry.to_image(on_grid.float())
    peak = drawn.amax(tuple(range(1, drawn.ndim)), keepdim=True)
    return (drawn / torch.where(peak > 0, peak, torch.ones_like(peak))).clamp(0, 1).cpu().numpy()


def _in_view(on_grid: Tensor, geometry: Geometry) -> Tensor:
    """`[K]` booleans: the maps `[K, ..., h, w]` that have evidence in a cell that the image touches."""
    touched = (geometry.filled((on_grid.shape[-2], on_grid.shape[-1])) > 0).to(on_grid)
    return (on_grid * touched).flatten(1).amax(1) > FAINT


def _cautions(saliency: Saliency) -> tuple[str, ...]:
    """A warning where maps of this family's target layer are known to mislead."""
    caution = saliency.adapter.caution
    return (f"{MAY_MISLEAD}: {caution}",) if caution and saliency.method.reads_layer else ()


def _flags(on_grid: Tensor, in_view: bool) -> tuple[str, ...]:
    """What is wrong with a map on its grid."""
    if in_view:
        return ()
    return (OUTSIDE_IMAGE,) if on_grid.any() else (NO_EVIDENCE,)
