"""The concepts of a data set: what a layer's activations are composed of, and how much each part matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from hf_cam.discovery.factors import Basis, basis_of
from hf_cam.discovery.importance import Importance, importance_of
from hf_cam.discovery.looking import Looker
from hf_cam.discovery.naming import rises, unique
from hf_cam.discovery.sampling import Sample, sampled
from hf_cam.discovery.showing import Example, examples_of, maps_of
from hf_cam.discovery.views import images_of
from hf_cam.doors import door
from hf_cam.errors import ImageError, ModelError, OptionError, brief
from hf_cam.explainer import BATCH, Explainer
from hf_cam.explanation import NO_EVIDENCE, Explanation, Explanations
from hf_cam.images.reading import load_image
from hf_cam.models.loading import Labels, LoadedModel, Output, load
from hf_cam.request import Request, check_count, check_seed
from hf_cam.target_layers.named import Layers

STRENGTH = "strength, relative to the data"


@dataclass(frozen=True, eq=False)
class Concept:
    """One concept.

    Args:
        name: The class or prompt whose score is most above average where the concept is strong; numbered if several
            concepts have the same.
        importance: The total Sobol index of the concept for the model's value, averaged over the images: the share of
            the value's variance under random weakening of all concepts in which this one takes part. Indices of
            concepts that act together add up to more than 1.
        interval: The 95% interval of that average, `(low, high)`, from resampled images.
        by_class: The average over the images of each class that the model finds.
        rises: The classes or prompts whose scores are most above average where the concept is strong, and by how much.
        share: Its share of what all concepts add to the sampled cells, in [0, 1].
        examples: The parts of images in which it is strongest, at most one per image.
        vector: `[C]`: its direction in the layer's channels, of length 1 if the activations are non-negative.
    """

    name: str
    importance: float
    interval: tuple[float, float]
    by_class: Mapping[str, float]
    rises: tuple[tuple[str, float], ...]
    share: float
    examples: tuple[Example, ...] = field(repr=False)
    vector: np.ndarray = field(repr=False)


@dataclass(frozen=True, eq=False)
class Concepts(Sequence[Concept]):
    """The concepts of a data set, the most important first.

    Args:
        concepts: They.
        model: The name of the model.
        target: The label of the class or prompt whose images were taken; empty if those of all were.
        layer: The layer that was factorized.
        images: The number of images from which concepts were sampled.
        scored: The number of images on which their importance was measured.
        error: The norm of what the concepts do not explain of the sampled cells, relative to the cells' norm.
        notes: Sentences to read first, such as about images that cannot be read.
    """

    concepts: tuple[Concept, ...]
    model: str
    target: str
    layer: str
    images: int
    scored: int
    error: float
    notes: tuple[str, ...] = ()
    _looker: Looker = field(repr=False, kw_only=True)
    _basis: Basis = field(repr=False, kw_only=True)
    _peaks: np.ndarray = field(repr=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.concepts)

    @overload
    def __getitem__(self, index: int) -> Concept: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Concept, ...]: ...
    def __getitem__(self, index: int | slice) -> Concept | tuple[Concept, ...]:
        return self.concepts[index]

    def __str__(self) -> str:
        """The notes, and one line per concept."""
        of = f" for {self.target!r}" if self.target else ""
        first = f"{self.model}: {len(self)} concepts of {self.layer}{of}, from {self.images} images."
        lines = (
            f"{one.name}: importance {one.importance:.2f} ({one.interval[0]:.2f} to {one.interval[1]:.2f}), "
            f"{one.share:.0%} of the activations"
            for one in self
        )
        return "\n".join([first, *self.notes, *lines])

    @door()
    def explain(self, image: Any) -> Explanations:
        """Where each concept lies in an image: one explanation per concept, in their order.

        The heatmaps are comparable: 1 is the concept's strongest cell in the data set. `score` is the map's peak.

        Args:
            image: A path, URL, PIL image or array.

        Raises:
            ImageError: the image cannot be read.
        """
        picture = load_image(image)
        [seen] = self._looker.see([picture])
        strengths = maps_of(seen.cells, self._basis, self._peaks)
        return Explanations(
            Explanation(
                label=concept.name,
                score=float(map_.max()),
                heatmap=seen.geometry.to_image(torch.from_numpy(map_)).numpy(),
                raw=map_,
                method="concepts",
                layers=(self.layer,),
                image=picture,
                flags=() if map_.any() else (NO_EVIDENCE,),
                score_kind=STRENGTH,
            )
            for concept, map_ in zip(self, strengths, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold: everything but pictures and vectors."""
        return {
            "model": self.model,
            "target": self.target,
            "layer": self.layer,
            "images": self.images,
            "scored": self.scored,
            "error": self.error,
            "notes": list(self.notes),
            "concepts": [
                {
                    "name": one.name,
                    "importance": one.importance,
                    "interval": list(one.interval),
                    "by_class": dict(one.by_class),
                    "rises": [list(pair) for pair in one.rises],
                    "share": one.share,
                    "examples": [{"image": example.image, "box": list(example.box)} for example in one.examples],
                }
                for one in self
            ],
        }

    @door(ImageError)
    def save(self, path: str | Path) -> Path:
        """Write a page that needs no other files: each concept with its importance, its examples and its maps.

        Raises:
            ImageError: the path does not end in `.html`, or cannot be written.
        """
        from hf_cam.discovery.page import save

        return save(self, path)

    def _repr_html_(self) -> str:
        """The page, which notebooks show."""
        from hf_cam.discovery.page import framed

        return framed(self)


@door(ModelError)
def concepts(
    model: str | Path | nn.Module | LoadedModel,
    data: Any,
    *,
    target: Any = None,
    text: str | Sequence[str] | None = None,
    components: int = 10,
    crops: int = 2,
    samples: int = 4096,
    scored: int = 32,
    designs: int = 32,
    layers: Layers | None = None,
    reshape: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
    column: str | None = None,
    split: str | None = None,
    processor: Any = None,
    labels: Labels | None = None,
    output: Output = "auto",
    device: str | torch.device | int | None = None,
    dtype: torch.dtype | str | None = None,
    trust_config: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Concepts:
    """Find the concepts of which a model's activations on a data set are composed, and how much it uses each.

    The images and random crops of them go through the model one batch at a time; of their cells a sample is kept and
    factorized, `A = U W` with non-negative `U` and `W`. In each of some images, the concepts are then weakened at
    random, and the part of the model behind the layer runs again: a concept's total Sobol index is its importance.

    Paper: Fel et al. (CRAFT), CVPR 2023, arXiv:2211.10154. Departures: the cells of images and crops are factorized
    instead of the means of crops, so that a concept as small as a watermark is found; signed activations are
    factorized as their positive and negative halves; and what the concepts do not explain of an activation stays where
    the paper drops it, so that without weakening the model's own value comes out. Concepts are not split recursively.

    Args:
        model: As in `hf_cam.explain`: a classifier, or a model that compares images with prompts.
        data: A folder, a glob, a Parquet file, a `datasets.Dataset` or its name, or a list of images, of
            `(image, label)` or of dicts with an "image". Labels are passed over.
        target: A class by index or label, or one of the prompts: only images in which the model finds it are taken, and
            its value is what importance is measured on. By default all images, and in each the value of what the model
            finds there.
        text: The prompts, for a model that compares; they also name the concepts.
        components: The number of concepts, k.
        crops: Random crops per image, beside the image itself.
        samples: The number of cells that are factorized, at most; memory grows with it and not with the data.
        scored: The number of images on which importance is measured, at most.
        designs: Points per Sobol design, a power of two. One image takes `designs * (components + 1)` runs of the part
            of the model behind the layer.
        layers: The layer, as a dotted name or a module; inferred by default.
        reshape: `activation -> [B, C, h, w]`; inferred by default.
        batch_size: Images per forward.
        seed: Of what is drawn.
        column, split: The column of images and the split, for tables.
        processor, labels, output, device, dtype, trust_config: As in `hf_cam.explain`.
        progress: Called with what is done, how far, and out of how much.

    Raises:
        ImageError: there are fewer than two images, or fewer than two that can be read and in which the target is
            found.
        OptionError: the model has no class scores, or there are more components than cells or channels.
        TargetError: there is no such class or prompt, or the prompts are missing.
        LayoutError: the layer's output has no spatial form.

    >>> from sklearn.datasets import load_sample_image
    >>> images = [load_sample_image("flower.jpg"), load_sample_image("china.jpg")]
    >>> found = concepts("demo:vit", images, components=3, scored=1)
    >>> len(found), found[0].importance >= found[1].importance
    (3, True)
    >>> found.explain(images[0])[0].heatmap.shape
    (427, 640)
    """
    counts = {"components": components, "samples": samples, "scored": scored, "batch_size": batch_size}
    _check(counts, crops, designs, seed)
    source = images_of(data, column, split)
    if len(source) < 2:
        raise ImageError(
            "concepts are what several images have in common, and the data holds 1; "
            "hf_cam.DeepFeatureFactorization factorizes the cells of a single image"
        )
    where: dict[str, Any] = {"device": device, "dtype": dtype, "trust_config": trust_config}
    loaded = load(model, processor=processor, labels=labels, output=output, **where)
    looker = Looker(Explainer(loaded, "eigencam", layers, reshape), Request.of(text=text).text)
    looker.check(target)
    tell = progress or (lambda *_: None)
    sample = sampled(looker, source, target, crops, samples, scored, batch_size, seed, tell)
    basis, error = basis_of(sample.cells, components, seed)
    importance = importance_of(looker, source, sample.scored, basis, designs, seed, tell)
    return _ordered(looker, sample, basis, error, importance, examples_of(looker, source, sample, basis, tell))


def _check(counts: Mapping[str, Any], crops: Any, designs: Any, seed: Any) -> None:
    """Refuse settings before anything is loaded.

    Raises:
        OptionError: one has an invalid value.
    """
    for name, value in counts.items():
        check_count(name, value)
    check_seed(seed)
    if isinstance(crops, bool) or not isinstance(crops, int | np.integer) or crops < 0:
        raise OptionError(f"crops must be a whole number from 0, got {brief(crops)}")
    check_count("designs", designs)
    if designs < 2 or designs & (designs - 1):
        raise OptionError(f"designs must be a power of two from 2, such as 32, got {brief(designs)}")
    if counts["components"] > counts["samples"]:
        raise OptionError(
            f"{counts['components']} concepts cannot be found in {counts['samples']} cells; raise samples= or lower "
            "components="
        )


def _ordered(
    looker: Looker,
    sample: Sample,
    basis: Basis,
    error: float,
    importance: Importance,
    examples: Sequence[tuple[Example, ...]],
) -> Concepts:
    """The record, with its concepts in the order of importance."""
    strengths = sample.strengths(basis)
    order = np.argsort(-importance.mean, kind="stable")
    found = [rises(strengths[:, index], sample.scores, looker.names) for index in order]
    shares = strengths.sum(0) / max(float(strengths.sum()), 1e-12)
    named = zip(order, unique([one[0][0] for one in found]), found, strict=True)
    made = tuple(
        Concept(
            name,
            float(importance.mean[index]),
            (float(importance.low[index]), float(importance.high[index])),
            {label: float(values[index]) for label, values in importance.by_class.items()},
            tuple(own),
            float(shares[index]),
            examples[index],
            basis.vectors[index],
        )
        for index, name, own in named
    )
    traits = looker.explainer.loaded.traits
    called = traits.name_or_path or traits.class_name
    return Concepts(
        made,
        Path(called).name if Path(called).is_dir() else called,
        sample.target,
        looker.explainer.cam.adapter.layers[0],
        sample.images,
        len(importance.values),
        error,
        sample.notes,
        _looker=looker,
        _basis=Basis(basis.parts[order], basis.signed),
        _peaks=strengths.max(0)[order],
    )
