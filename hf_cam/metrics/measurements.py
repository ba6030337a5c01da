"""Measurements, which are the arguments of metrics: maps, the model's confidence for changed images, and new maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_cam.capture.guard import reweighted
from hf_cam.capture.replica import Replica
from hf_cam.errors import ModelError, OptionError, brief
from hf_cam.metrics.imputation import impute
from hf_cam.metrics.order import kept_above
from hf_cam.metrics.registry import measurement
from hf_cam.metrics.trial import Trial
from hf_cam.models.traits import unwrap

BLUR = 5.0
AT_ONCE = 64
"""Variants of each image that are in memory at a time."""
EXPLAIN = "a function that explains changed images"


@measurement(maps="the map `[B, H, W]` in [0, 1]")
def given_maps(trial: Trial) -> Mapping[str, Tensor]:
    """The maps to evaluate."""
    return {"maps": trial.maps}


@measurement(masks="where the object is, `[B, H, W]` booleans")
def given_masks(trial: Trial) -> Mapping[str, Tensor]:
    """The masks given with the maps."""
    return {"masks": trial.given("masks", "masks of the objects")}


@measurement(scores="the model's confidence in the target, `[B]`")
def scored(trial: Trial) -> Mapping[str, Tensor]:
    """The confidence for the images themselves."""
    return {"scores": trial.model(trial.model.pixels[:, None])[:, 0]}


@measurement(kept_scores="the confidence for the image multiplied by the map, `[B]`")
def scored_kept(trial: Trial) -> Mapping[str, Tensor]:
    """The confidence for the images multiplied by their maps."""
    return {"kept_scores": trial.model(_kept(trial)[:, None])[:, 0]}


@measurement(
    most_first="the confidence with the most relevant pixels imputed, for each percentile, `[B, P]`",
    least_first="the confidence with the least relevant pixels imputed, for each percentile, `[B, P]`",
)
def imputed(trial: Trial) -> Mapping[str, Tensor]:
    """The confidence for both orders and all percentiles, imputed together and scored together."""
    pixels, total = trial.model.pixels, trial.places[0].numel()
    counts = total - torch.tensor(kept_above(trial.percentiles, total), device=pixels.device)
    counts = counts[None, :, None, None]
    missing = torch.cat([trial.places[:, None] < counts, trial.places[:, None] >= total - counts], 1)
    batch, variants = missing.shape[:2]
    repeated = pixels[:, None].expand(batch, variants, *pixels.shape[1:]).flatten(0, 1)
    filled = impute(repeated.float(), missing.flatten(0, 1), trial.noise, trial.seed).to(pixels)
    scores = trial.model(filled.unflatten(0, (batch, variants)))
    most, least = scores.chunk(2, dim=1)
    return {"most_first": most, "least_first": least}


@measurement(
    inserted="the confidence while pixels are uncovered, the most relevant first, `[B, S + 1]`",
    deleted="the confidence while pixels are blanked, the most relevant first, `[B, S + 1]`",
)
def swept(trial: Trial) -> Mapping[str, Tensor]:
    """Insertion and deletion, scored together because they share the unchanged image."""
    pixels, steps, total = trial.model.pixels, trial.step_count, trial.places[0].numel()
    blurred, blank = blur(pixels), torch.zeros_like(pixels)
    counts = [step * total // steps for step in range(1 + steps)]
    inserted = [(count, pixels, blurred) for count in counts]
    deleted = [(count, blank, pixels) for count in counts[1:]]
    scores = _mixed(trial, [*inserted, *deleted])
    return {"inserted": scores[:, : 1 + steps], "deleted": scores[:, steps:]}


@measurement(
    tenths_first="the confidence with 1 to 9 tenths of the pixels blanked, the most relevant first, `[B, 9]`",
    tenths_last="the confidence with 1 to 9 tenths of the pixels blanked, the least relevant first, `[B, 9]`",
)
def blanked_tenths(trial: Trial) -> Mapping[str, Tensor]:
    """Both orders at the nine points of Chefer et al., scored together."""
    pixels, total = trial.model.pixels, trial.places[0].numel()
    blank, counts = torch.zeros_like(pixels), [total * tenth // 10 for tenth in range(1, 10)]
    first = [(count, blank, pixels) for count in counts]
    last = [(total - count, pixels, blank) for count in counts]
    scores = _mixed(trial, [*first, *last])
    return {"tenths_first": scores[:, :9], "tenths_last": scores[:, 9:]}


@measurement(
    group_relevance="the map's sum over each of K groups of pixels, by decreasing relevance, `[B, K]`",
    group_scores="the confidence with one of these groups replaced at a time, `[B, K]`",
)
def grouped(trial: Trial) -> Mapping[str, Tensor]:
    """Groups of equal size in order of relevance; each is replaced by the image's own mean."""
    pixels, total = trial.model.pixels, trial.places[0].numel()
    group = trial.places * trial.groups // total
    members = torch.stack([group == k for k in range(trial.groups)], 1)
    means = pixels.mean((-2, -1), keepdim=True)[:, None]
    scores = trial.model(torch.where(members[:, :, None], means, pixels[:, None]))
    return {"group_relevance": (trial.maps[:, None] * members).sum((-2, -1)), "group_scores": scores}


@measurement(kept_maps="the map of the image multiplied by the map, `[B, H, W]`")
def explained_kept(trial: Trial) -> Mapping[str, Tensor]:
    """The maps of the images multiplied by their maps."""
    return {"kept_maps": trial.given("explain", EXPLAIN)(_kept(trial))}


@measurement(noisy_maps="maps of the image with noise added, `[N, B, H, W]`")
def explained_noisy(trial: Trial) -> Mapping[str, Tensor]:
    """The maps of the images with uniform noise added, the same for each but for the image's own standard deviation."""
    explain, pixels = trial.given("explain", EXPLAIN), trial.model.pixels
    generator = torch.Generator().manual_seed(trial.seed)
    spread = trial.radius * pixels.float().flatten(1).std(1).reshape(-1, *(1,) * (pixels.ndim - 1))
    noises = 2 * torch.rand((trial.samples, 1, *pixels.shape[1:]), generator=generator) - 1
    return {"noisy_maps": torch.stack([explain(pixels + (spread * one.to(spread)).to(pixels)) for one in noises])}


@measurement(randomized_maps="the map with the model's weights shuffled, `[B, H, W]`")
def explained_randomized(trial: Trial) -> Mapping[str, Tensor]:
    """The maps with the model's weights shuffled.

    Raises:
        OptionError: `explain` does not explain the model with hf-cam.
    """
    explain = trial.given("explain", EXPLAIN)
    with reweighted(_shuffled(unwrap(trial.model.model), trial.seed)) as weights:
        maps = explain(trial.model.pixels)
    if not weights.borrowers:
        raise OptionError(
            "explain= does not use hf-cam, so its model kept its weights; call model_randomization(maps, ...) with "
            "maps that you make inside `with shuffled_weights(model) as shuffled`"
        )
    return {"randomized_maps": maps}


@measurement(other_maps="the map of another target, `[B, H, W]`")
def explained_other(trial: Trial) -> Mapping[str, Tensor]:
    """The maps of another target."""
    explain = trial.given("explain_other", "a function that explains another target")
    return {"other_maps": explain(trial.model.pixels)}


@measurement(
    attributions="signed attributions, `[B, ...]`",
    difference="the target's value minus its value on the baseline, `[B]`",
)
def attributed(trial: Trial) -> Mapping[str, Tensor]:
    """Signed attributions, which no trial can compute.

    Raises:
        OptionError: always.
    """
    del trial
    raise OptionError(
        "signed attributions, and the difference that they explain, come from the method itself; call "
        "the metric's function with them"
    )


@contextmanager
def shuffled_weights(model: nn.Module, seed: int = 0) -> Iterator[nn.Module]:
    """A copy of the model in which the values within each parameter are shuffled.

    Each parameter keeps its distribution, so activations stay in their usual range, but loses what it has learned.
    Inside the `with` block hf-cam's maps of the model itself are those of the shuffled weights, too, in this thread.
    The model is never changed.

    Args:
        model: Any module that holds its weights.
        seed: Of the order.

    Yields:
        The copy, for code that runs a model without hf-cam.

    Raises:
        ModelError: some weights are not there, as in an offloaded model.

    >>> net = nn.Linear(2, 2)
    >>> with shuffled_weights(net) as shuffled:
    ...     torch.equal(shuffled.weight.sum(), net.weight.sum())
    True
    """
    with reweighted(_shuffled(unwrap(model), seed)) as weights:
        yield Replica(unwrap(model), weights.values).module


def _shuffled(module: nn.Module, seed: int) -> dict[nn.Parameter, Tensor]:
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            raise ModelError(f"the weights {brief(name)} are not in memory, so they cannot be shuffled; load them all")
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        found[parameter] = parameter.detach().flatten()[order].reshape(parameter.shape)
    return found


def blur(pixels: Tensor, sigma: float = BLUR) -> Tensor:
    """A Gaussian blur, `[B, C, H, W]`."""
    radius = min(int(3 * sigma), min(pixels.shape[-2:]) - 1)
    line = torch.arange(-radius, radius + 1, device=pixels.device, dtype=torch.float32)
    kernel = torch.exp(-(line**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(pixels)
    flat = pixels.reshape(-1, 1, *pixels.shape[-2:])
    flat = functional.conv2d(functional.pad(flat, (0, 0, radius, radius), mode="reflect"), kernel.reshape(1, 1, -1, 1))
    flat = functional.conv2d(functional.pad(flat, (radius, radius, 0, 0), mode="reflect"), kernel.reshape(1, 1, 1, -1))
    return flat.reshape(pixels.shape)


def _kept(trial: Trial) -> Tensor:
    """The images multiplied by their maps."""
    return trial.model.pixels * trial.maps[:, None].to(trial.model.pixels)


def _mixed(trial: Trial, variants: Sequence[tuple[int, Tensor, Tensor]]) -> Tensor:
    """The confidence for mixtures of two versions of the images, `[B, V]`, of which a few are in memory at a time.

    Args:
        trial: The maps, which order the pixels.
        variants: For each: how many of the most relevant pixels come from the first of two versions `[B, C, H, W]`, and
            the two.
    """

    def mixed(count: int, first: Tensor, rest: Tensor) -> Tensor:
        return torch.where((trial.places < count)[:, None], first, rest)

    parts = [variants[start : start + AT_ONCE] for start in range(0, len(variants), AT_ONCE)]
    return torch.cat([trial.model(torch.stack([mixed(*one) for one in part], 1)) for part in parts], 1)
