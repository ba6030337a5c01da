"""Deep feature factorization: a few concepts of which a layer's cells are composed, and their effects on a target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_cam.errors import MethodError, OptionError
from hf_cam.methods.registry import method
from hf_cam.methods.reruns import places_of_cells
from hf_cam.methods.run import Run
from hf_cam.methods.signals import activations, signal
from hf_cam.request import check_seed
from hf_cam.targets import target_values


def factorize(cells: Tensor, components: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Concepts `[k, C]` and strengths `[B, k, h, w]` whose product is nearest to the positive part of `[B, C, h, w]`.

    Raises:
        OptionError: `components` is not between 1 and the number of cells or of channels, whichever is less.
    """
    from sklearn.decomposition import NMF

    batch, channels, rows, columns = cells.shape
    vectors = cells.float().clamp_min(0).permute(0, 2, 3, 1).reshape(-1, channels).cpu().numpy()
    if not isinstance(components, int) or not 1 <= components <= min(vectors.shape):
        raise OptionError(f"components must be a whole number from 1 to {min(vectors.shape)}, got {components!r}")
    factorization = NMF(components, init="nndsvda", random_state=seed, max_iter=1000, tol=1e-3)
    strengths = factorization.fit_transform(vectors.astype(np.float64))
    found = torch.from_numpy(strengths).reshape(batch, rows, columns, components).permute(0, 3, 1, 2)
    return torch.from_numpy(factorization.components_).float(), found.float().to(cells.device)


@dataclass(frozen=True)
class Concepts:
    """The concepts of each image, strongest cell 1.

    Args:
        strengths: `[B, k, h, w]` in [0, 1].
        effects: `[B, k]`: how far the target's value rises when every cell holds the concept instead of zeros.
    """

    strengths: Tensor
    effects: Tensor


@signal(
    "the concepts of each image, and how far each raises the target's value",
    cost="a factorization, and one forward of the part behind the target layer per concept",
    replays=True,
    forwards=0.6,
)
def concepts(run: Run, layer: str, components: int = 5, seed: int = 0) -> Concepts:
    """The non-negative factorization of each image's cells, and what the model makes of each concept.

    Args:
        run: The run.
        layer: The target layer.
        components: The number of concepts, k; fewer where the layer has fewer cells or channels.
        seed: Seed of the factorization.

    Raises:
        MethodError: the cells are those of a video, a volume or several views.
    """
    check_seed(seed)
    cells = activations(run, layer)
    if cells.ndim != 4:
        raise MethodError("'dff' finds the concepts of one picture, not of a video, a volume or several views")
    if components < 1:
        raise OptionError(f"components must be a whole number from 1, got {components}")
    count = min(components, cells.shape[1], cells[0, 0].numel())
    found = [factorize(cells[i : i + 1], count, seed) for i in range(len(cells))]
    peaks = [strengths[0].amax((1, 2)) for _, strengths in found]
    shown = torch.stack(
        [parts[0] / _or_one(peak)[:, None, None] for (_, parts), peak in zip(found, peaks, strict=True)]
    )
    vectors = torch.stack([own.to(cells.device) * peak[:, None] for (own, _), peak in zip(found, peaks, strict=True)])
    return Concepts(shown, _effects(run, layer, vectors))


def _effects(run: Run, layer: str, vectors: Tensor) -> Tensor:
    """`[B, k]`: how far the target rises when every cell holds a vector of `[B, k, C]` instead of zeros."""
    images, places = run.images_axis(layer), places_of_cells(run, layer)
    activation = run.activation(layer).detach().movedim(images, 0)
    found = []
    with run.tail(layer) as tail:
        for sample, own in enumerate(vectors):
            every = torch.cat([torch.zeros_like(own[:1]), own]).to(activation)
            variants = activation[sample].flatten().repeat(len(every), 1)
            variants[:, places.flatten()] = every.repeat_interleave(places[0].numel(), 1)
            outputs = tail(variants.reshape(-1, *activation.shape[1:]), sample)
            values = target_values(outputs, [run.targets[sample]] * len(every))
            found.append(values[1:] - values[0])
    return torch.stack(found).to(vectors)


def _or_one(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, torch.ones_like(values))


@method(
    "dff",
    name="DFF",
    paper="Collins et al., Deep Feature Factorization, ECCV 2018, arXiv:1806.10206",
    summary="Concepts of which the cells are composed, weighted by how far each raises the score.",
    departure="The paper shows the concepts themselves; their weights, which make one map for a target, are hf-cam's.",
)
def dff(concepts: Concepts) -> Tensor:
    """`e_k s_k`: the strength of each concept in each cell times its effect on the target.

    The paper shows the concepts themselves, as `hf_cam.DeepFeatureFactorization` does; the effect makes one map of them
    for a target.
    """
    return concepts.effects[..., None, None] * concepts.strengths
