"""The front door: an image and a model in, explanations out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hf_cam.cam import CAM, Saliency, Selector, top_classes
from hf_cam.capture import first_tensor
from hf_cam.errors import ModelError, OptionError, TargetError
from hf_cam.explanation import NO_EVIDENCE, Explanation
from hf_cam.geometry import Geometry
from hf_cam.guard import unwrap
from hf_cam.images import load_image
from hf_cam.loading import LoadedModel, load
from hf_cam.maps import normalize
from hf_cam.methods import Method, get_method
from hf_cam.targets import ClassLogit, class_logits, find_label, index_of, probabilities


def explain(
    image: Any,
    model: str | Path | nn.Module,
    *,
    target: Any = None,
    text: str | Sequence[str] | None = None,
    method: str = "auto",
    layers: Sequence[str] | str | None = None,
    reshape: Callable[[Tensor], Tensor] | None = None,
    top_k: int = 1,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    batch_size: int | None = None,
    processor: Any = None,
    device: str | torch.device | int | None = None,
    dtype: torch.dtype | str | None = None,
) -> list[Any]:
    """Show what a model looked at.

    Args:
        image: A path, URL, PIL image or array; or a list of them.
        model: A Hub id, a folder, `demo:NAME`, or a loaded model.
        target: A class index, a label text ("tabby" finds "tabby, tabby cat"), or any callable from one sample's output
            to a scalar tensor; the `top_k` classes with the highest logits where not given.
        text: Prompts for models that compare images with text.
        method: An id of `hf_cam.list_methods()`; "auto" takes the one that serves the model's family best.
        layers: Dotted names of the target layers, inferred where not given.
        reshape: `activation -> [B, C, h, w]`, inferred where not given.
        top_k: How many classes to explain.
        aug_smooth: Average over six views of the image.
        eigen_smooth: First principal component of the channels' contributions in place of their sum.
        batch_size: Images a forward, 8 where not given; also the forwards at once of methods that rerun the model.
        processor: The image processor, where it does not come with the model.
        device, dtype: For a model that is loaded here.

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
    several = isinstance(image, list | tuple)
    images = [load_image(source) for source in (image if several else [image])]
    explainer = Explainer(
        load(model, processor=processor, device=device, dtype=dtype), method, layers, reshape, batch_size
    )
    found = list(
        explainer(
            images,
            target=target,
            text=text,
            top_k=top_k,
            aug_smooth=aug_smooth,
            eigen_smooth=eigen_smooth,
            batch_size=8 if batch_size is None else batch_size,
        )
    )
    return found if several else found[0]


class Explainer:
    """A loaded model with a method, ready for any number of images; every door goes through it.

    Args:
        loaded: From `hf_cam.loading.load`.
        method, layers, reshape: As in `explain`.
        batch_size: Forwards at once for methods that rerun the model.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        method: str = "auto",
        layers: Sequence[str] | str | None = None,
        reshape: Callable[[Tensor], Tensor] | None = None,
        batch_size: int | None = None,
    ) -> None:
        if batch_size is not None:
            check_count("batch_size", batch_size)
        self.loaded = loaded
        self.cam = CAM(loaded.model, method, layers, reshape, batch_size=batch_size)

    def __call__(
        self,
        images: Sequence[Image.Image],
        *,
        target: Any = None,
        text: str | Sequence[str] | None = None,
        top_k: int = 1,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        batch_size: int = 8,
    ) -> Iterator[list[Explanation]]:
        """Explanations image by image; `images` are upright RGB pictures, as `load_image` returns them."""
        select = self.selector(target, text, top_k)
        check_count("batch_size", batch_size)
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            for inputs, members in self._batches(chunk):
                saliency = self.cam.saliency(**inputs, select=select, aug_smooth=aug_smooth, eigen_smooth=eigen_smooth)
                yield from self.explanations(saliency, members, target)

    def compare(
        self,
        image: Image.Image,
        methods: Sequence[str],
        *,
        target: Any = None,
        text: str | Sequence[str] | None = None,
        top_k: int = 1,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> list[list[Explanation]]:
        """One image by several methods, all from one forward: a list a method, best target first."""
        records = [get_method(method) for method in methods]
        select = self.selector(target, text, top_k)
        inputs = self.loaded.inputs([image])
        found = self.cam.saliencies(records, **inputs, select=select, aug_smooth=aug_smooth, eigen_smooth=eigen_smooth)
        return [next(self.explanations(saliency, [image], target)) for saliency in found]

    def _batches(self, images: Sequence[Image.Image]) -> Iterator[tuple[dict[str, Tensor], Sequence[Image.Image]]]:
        """One batch where the processor gives all images one size, else one image at a time."""
        try:
            yield self.loaded.inputs(images), images
        except ModelError:
            if len(images) == 1:
                raise
            for image in images:
                yield self.loaded.inputs([image]), [image]

    def selector(self, target: Any, text: str | Sequence[str] | None, top_k: int) -> Selector:
        """What to explain, as a function of the model's output.

        Raises:
            TargetError: the target does not exist, or the model has no use for a text.
        """
        if text is not None:
            raise TargetError(f"{type(unwrap(self.loaded.model)).__name__} compares no text; leave text= out")
        check_count("top_k", top_k)
        if target is None:
            return top_classes(top_k)
        if top_k > 1:
            raise OptionError("top_k counts the model's own best classes; leave it out where target= names one")
        chosen = self.target(target)
        return lambda outputs: [[chosen] * _batch_of(outputs)]

    def target(self, target: Any) -> Any:
        """A class index or label text as its logit; a callable as it is."""
        classes = self.loaded.id2label
        if isinstance(target, str):
            if target.strip().isdigit() and target.strip() not in classes.values():
                target = int(target)
            elif not classes:
                raise TargetError(f"the model has no label names; pass a class index in place of {target!r}")
            else:
                return ClassLogit(find_label(target, classes))
        if (index := index_of(target)) is not None:
            if index < 0 or (classes and index >= len(classes)):
                known = f"the model has classes 0 to {len(classes) - 1}" if classes else "classes count from 0"
                raise TargetError(f"no class {index}; {known}")
            return ClassLogit(index)
        if callable(target):
            return target
        raise TargetError(f"a target is a class index, a label text or a callable, not {type(target).__name__}")

    def explanations(
        self, saliency: Saliency, images: Sequence[Image.Image], target: Any
    ) -> Iterator[list[Explanation]]:
        """One list an image, from the maps of a batch."""
        indices, scores = self._classes(saliency, target)
        raw = saliency.raw[0].float().cpu().numpy()
        for i, image in enumerate(images):
            geometry = self.loaded.geometry((image.height, image.width))
            heatmaps = _heatmaps(saliency.method, [layer[:, i] for layer in saliency.raw], geometry)
            yield [
                Explanation(
                    label=self._label(index, target),
                    score=float(scores[k, i]),
                    heatmap=heatmaps[k],
                    raw=raw[k, i],
                    method=saliency.method.id,
                    layers=saliency.adapter.layers,
                    image=image,
                    flags=() if heatmaps[k].any() else (NO_EVIDENCE,),
                )
                for k, index in enumerate(indices[:, i].tolist())
            ]

    def _classes(self, saliency: Saliency, target: Any) -> tuple[Tensor, Tensor]:
        """Class indices (-1 for a caller's own target) and scores, `[K, B]` each."""
        if target is not None and not isinstance(self.target(target), ClassLogit):
            return torch.full_like(saliency.scores, -1, dtype=torch.long), saliency.scores.float()
        logits = class_logits(saliency.outputs)
        problem = getattr(getattr(unwrap(self.loaded.model), "config", None), "problem_type", None)
        chosen = (
            logits.topk(len(saliency.scores), dim=1).indices.T
            if target is None
            else torch.full_like(saliency.scores, self.target(target).index, dtype=torch.long)
        )
        return chosen, probabilities(logits, problem).T.gather(0, chosen)

    def _label(self, index: int, target: Any) -> str:
        if index < 0:
            return getattr(target, "__name__", type(target).__name__)
        return self.loaded.id2label.get(index, str(index))


def check_count(name: str, value: Any) -> None:
    """Refuse a number of things that is none.

    Raises:
        OptionError: it is no whole number from 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name} is a whole number from 1, got {value!r}")


def _batch_of(outputs: Any) -> int:
    tensor = first_tensor(outputs)
    return 1 if tensor is None else len(tensor)


def _heatmaps(method: Method, raw: Sequence[Tensor], geometry: Geometry) -> np.ndarray:
    """`[K, H, W]` float32 in [0, 1] in the image's pixels, from each layer's raw maps `[K, h, w]`."""
    on_grid = normalize(raw[0]) if len(raw) == 1 else method.fuse(raw, geometry.model_size)
    drawn = geometry.to_image(on_grid.float())
    peak = drawn.amax((-2, -1), keepdim=True)
    return (drawn / torch.where(peak > 0, peak, torch.ones_like(peak))).clamp(0, 1).cpu().numpy()
