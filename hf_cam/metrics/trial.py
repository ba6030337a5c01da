"""The evidence of metrics: maps of a batch, and what the model says of the images that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call
from hf_cam.errors import OptionError
from hf_cam.methods.run import in_chunks, target_values
from hf_cam.metrics.imputation import impute
from hf_cam.metrics.perturbation import kept_above, ranks
from hf_cam.metrics.registry import EVIDENCE, get_metric
from hf_cam.metrics.sanity import shuffled_weights
from hf_cam.models.traits import unwrap
from hf_cam.outputs import SIMILARITIES, field_of, logits_of, probabilities
from hf_cam.targets import BinaryLogit, ClassLogit, PromptSimilarity, Target

CHUNK, CPU_CHUNK = 64, 4  # processors lose more by leaving their caches than they win by a large batch
PERCENTILES = (20, 40, 60, 80)
BLUR = 5.0
CURVES = ("most_first", "least_first", "inserted", "deleted", "deleted_last")


def confidence(target: Target, problem_type: str | None = None, prompts: int = 1) -> Target:
    """What metrics measure of a target: a class's probability, a prompt's share; of anything else the target itself.

    Args:
        target: What is explained.
        problem_type: The config's; labels that do not exclude each other have a sigmoid each.
        prompts: How many the model compares the image with. A lone one has nothing to share with.
    """
    if isinstance(target, ClassLogit):
        return lambda output: probabilities(logits_of(output), problem_type)[target.index]
    if isinstance(target, BinaryLogit):
        return lambda output: target(output).sigmoid()
    if isinstance(target, PromptSimilarity) and not target.contrast and prompts > 1:
        return lambda output: field_of(output, SIMILARITIES).float().softmax(-1)[target.index]
    return target


@dataclass(frozen=True, eq=False)
class Scorer:
    """The confidence of a model in variants of B images.

    Args:
        model: It comes back untouched.
        inputs: Its named inputs for the B images, on its device; `pixel_values` is `[B, C, H, W]`.
        targets: One an image.
        batch_size: Variants a forward, chosen for the device where None; halved where its memory does not hold them.
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    targets: Sequence[Target]
    batch_size: int | None = None

    @property
    def pixels(self) -> Tensor:
        """`[B, C, H, W]`."""
        pixels: Tensor = self.inputs["pixel_values"]
        return pixels

    def __call__(self, variants: Tensor) -> Tensor:
        """`[B, V, C, H, W]`, V variants of each image, to their targets' values `[B, V]`."""
        batch, count = variants.shape[:2]
        flat = variants.flatten(0, 1)
        owners = torch.arange(batch, device=flat.device).repeat_interleave(count)

        def some(_: int, start: int, stop: int) -> Tensor:
            own = owners[start:stop]
            inputs = {name: self._spread(value, own) for name, value in self.inputs.items()}
            outputs = call(unwrap(self.model), {**inputs, "pixel_values": flat[start:stop]})
            return target_values(outputs, [self.targets[i] for i in own.tolist()])

        with borrowed(unwrap(self.model)), torch.no_grad():
            size = self.batch_size or (CPU_CHUNK if flat.device.type == "cpu" else CHUNK)
            return in_chunks(len(flat), size, some, 0).reshape(batch, count).float()

    def _spread(self, value: Any, owners: Tensor) -> Any:
        own = isinstance(value, Tensor) and value.ndim and len(value) == len(self.pixels)
        return value[owners.to(value.device)] if own else value


@dataclass(frozen=True, eq=False)
class Trial:
    """Maps of B images under judgement; each piece of evidence is made once, and only where a metric asks for it.

    Args:
        maps: `[B, H, W]` in [0, 1].
        scorer: The model's confidence in variants of the images; needed by all but mask metrics.
        masks: `[B, H, W]` booleans: where the thing is.
        explain: From pixel values to maps, for metrics that explain again.
        explain_other: The same for another target.
        percentiles: Of ROAD: above each, pixels are imputed.
        noise: Of ROAD's imputation.
        steps: Of the insertion and deletion curves.
        groups: Of SaCo.
        radius, samples: Of max-sensitivity: the noise as a share of the pixel values' standard deviation, and how many.
        seed: Of ties, noise and shuffled weights.
    """

    maps: Tensor
    scorer: Scorer | None = None
    masks: Tensor | None = None
    explain: Callable[[Tensor], Tensor] | None = None
    explain_other: Callable[[Tensor], Tensor] | None = None
    percentiles: Sequence[float] = PERCENTILES
    noise: float = 0.01
    steps: int = 10
    groups: int = 10
    radius: float = 0.02
    samples: int = 4
    seed: int = 0
    _made: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def measure(self, *metrics: str) -> dict[str, Tensor]:
        """The scores `[B]` of these metrics.

        Raises:
            OptionError: there is no such metric, or what it needs was not given.
        """
        found = {}
        for name in metrics:
            record = get_metric(name)
            found[name] = record.compute(**{need: self.evidence(need) for need in record.needs})
        return found

    def evidence(self, name: str) -> Tensor:
        """One of `EVIDENCE`.

        Raises:
            OptionError: what it is made from was not given.
        """
        if name not in self._made:
            if name not in PROVIDERS:
                raise OptionError(
                    f"{name!r} ({EVIDENCE[name]}) comes from the method itself; call the function with it"
                )
            self._made.update(PROVIDERS[name](self))
        return self._made[name]

    def given(self, name: str, what: str) -> Any:
        """A field that a metric cannot do without; an error where it was left out."""
        value = getattr(self, name)
        if value is None:
            raise OptionError(f"the metric needs {what}; pass {name}=")
        return value

    def curves(self) -> dict[str, Tensor]:
        """The curves that were made, by the names of the evidence."""
        return {name: self._made[name] for name in CURVES if name in self._made}

    @property
    def model(self) -> Scorer:
        """The scorer; an error where none was given."""
        found: Scorer = self.given("scorer", "the model")
        return found

    @cached_property
    def places(self) -> Tensor:
        """The rank of each pixel, `[B, H, W]`; 0 is the most relevant."""
        return ranks(self.maps, self.seed)

    def scored(self) -> dict[str, Tensor]:
        """Of the images themselves."""
        return {"scores": self.model(self.model.pixels[:, None])[:, 0]}

    def kept(self) -> Tensor:
        """The images multiplied by their maps."""
        return self.model.pixels * self.maps[:, None].to(self.model.pixels)

    def scored_kept(self) -> dict[str, Tensor]:
        """Of the images multiplied by their maps."""
        return {"kept_scores": self.model(self.kept()[:, None])[:, 0]}

    def imputed(self) -> dict[str, Tensor]:
        """Both orders, all percentiles and images in one system and one sweep."""
        pixels, total = self.model.pixels, self.places[0].numel()
        counts = total - torch.tensor(kept_above(self.percentiles, total), device=pixels.device)
        counts = counts[None, :, None, None]
        missing = torch.cat([self.places[:, None] < counts, self.places[:, None] >= total - counts], 1)
        batch, variants = missing.shape[:2]
        repeated = pixels[:, None].expand(batch, variants, *pixels.shape[1:]).flatten(0, 1)
        filled = impute(repeated.float(), missing.flatten(0, 1), self.noise, self.seed).to(pixels)
        scores = self.model(filled.unflatten(0, (batch, variants)))
        most, least = scores.chunk(2, dim=1)
        return {"most_first": most, "least_first": least}

    def swept(self) -> dict[str, Tensor]:
        """Insertion and deletion in one sweep; the curves' ends are shared."""
        pixels, total = self.model.pixels, self.places[0].numel()
        first = (self.places[:, None] < self._counts(total, pixels.device))[:, :, None]
        sharp, blurred, blank = pixels[:, None], blur(pixels)[:, None], torch.zeros_like(pixels)[:, None]
        variants = [sharp, blurred, blank, torch.where(first, sharp, blurred), torch.where(first, blank, sharp)]
        scores = self.model(torch.cat(variants, 1))
        [clean, dim, empty, uncovered, blanked] = scores.split([1, 1, 1] + [self.steps - 1] * 2, dim=1)
        return {"inserted": torch.cat([dim, uncovered, clean], 1), "deleted": torch.cat([clean, blanked, empty], 1)}

    def swept_last(self) -> dict[str, Tensor]:
        """Deletion in the reverse order."""
        pixels, total = self.model.pixels, self.places[0].numel()
        last = (self.places[:, None] >= total - self._counts(total, pixels.device))[:, :, None]
        sharp, blank = pixels[:, None], torch.zeros_like(pixels)[:, None]
        return {"deleted_last": self.model(torch.cat([sharp, torch.where(last, blank, sharp), blank], 1))}

    def _counts(self, total: int, device: torch.device) -> Tensor:
        """How many pixels each inner step has taken, `[1, S - 1, 1, 1]`."""
        return (torch.arange(1, self.steps, device=device) * total // self.steps)[None, :, None, None]

    def grouped(self) -> dict[str, Tensor]:
        """Groups of equal size in the order of relevance; each is replaced by the image's own mean."""
        pixels, total = self.model.pixels, self.places[0].numel()
        group = self.places * self.groups // total
        members = torch.stack([group == k for k in range(self.groups)], 1)
        means = pixels.mean((-2, -1), keepdim=True)[:, None]
        scores = self.model(torch.where(members[:, :, None], means, pixels[:, None]))
        return {"group_relevance": (self.maps[:, None] * members).sum((-2, -1)), "group_scores": scores}

    def explained_kept(self) -> dict[str, Tensor]:
        """Of the images multiplied by their maps."""
        return {"kept_maps": self.given("explain", "a method that explains again")(self.kept())}

    def explained_noisy(self) -> dict[str, Tensor]:
        """Of the images with uniform noise."""
        explain, pixels = self.given("explain", "a method that explains again"), self.model.pixels
        generator = torch.Generator().manual_seed(self.seed)
        spread = self.radius * pixels.float().std().item()
        noises = (2 * torch.rand((self.samples, *pixels.shape), generator=generator) - 1) * spread
        return {"noisy_maps": torch.stack([explain(pixels + one.to(pixels)) for one in noises])}

    def explained_randomized(self) -> dict[str, Tensor]:
        """With the model's weights shuffled."""
        explain = self.given("explain", "a method that explains again")
        with shuffled_weights(self.model.model, self.seed):
            return {"randomized_maps": explain(self.model.pixels)}

    def explained_other(self) -> dict[str, Tensor]:
        """Of the other target."""
        explain = self.given("explain_other", "a method that explains another target")
        return {"other_maps": explain(self.model.pixels)}


PROVIDERS: dict[str, Callable[[Trial], Mapping[str, Tensor]]] = {
    "maps": lambda trial: {"maps": trial.maps},
    "masks": lambda trial: {"masks": trial.given("masks", "a mask of the thing")},
    "scores": Trial.scored,
    "kept_scores": Trial.scored_kept,
    "most_first": Trial.imputed,
    "least_first": Trial.imputed,
    "inserted": Trial.swept,
    "deleted": Trial.swept,
    "deleted_last": Trial.swept_last,
    "group_relevance": Trial.grouped,
    "group_scores": Trial.grouped,
    "kept_maps": Trial.explained_kept,
    "noisy_maps": Trial.explained_noisy,
    "randomized_maps": Trial.explained_randomized,
    "other_maps": Trial.explained_other,
}


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
