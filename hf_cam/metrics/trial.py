"""The maps to evaluate, and the model's confidence for variants of their images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_cam.capture.chunks import images_at_once, in_chunks
from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call, repeated
from hf_cam.doors import unreadable
from hf_cam.errors import OptionError, brief
from hf_cam.methods.options import fits
from hf_cam.metrics.order import ranks
from hf_cam.metrics.registry import MEASUREMENTS, get_metric
from hf_cam.models.traits import unwrap
from hf_cam.request import check_count, check_seed
from hf_cam.targets import Target, target_values
from hf_cam.threads import cached_property

PERCENTILES = (20, 40, 60, 80)
RISE: Literal["rise"] = "rise"
Steps = int | Literal["rise"]
STEPS = 24
"""The default number of steps of the insertion and deletion curves: see docs/metrics.md."""
CURVES = ("most_first", "least_first", "inserted", "deleted", "tenths_first", "tenths_last")


def check_steps(steps: Any) -> None:
    """Refuse what is no number of steps.

    Raises:
        OptionError: it is neither "rise" nor a whole number of at least 2.
    """
    whole = isinstance(steps, Integral) and not isinstance(steps, bool)
    if steps != RISE and not (whole and steps >= 2):
        raise OptionError(f'steps must be a whole number from 2 on, or "rise" for one per row, got {brief(steps)}')


@dataclass(frozen=True, eq=False)
class Scorer:
    """A model's confidence for variants of B images.

    Args:
        model: The model, which is left unchanged.
        inputs: Its named inputs for the B images, on its device; `pixel_values` is `[B, C, H, W]`.
        targets: One per image.
        rerun_batch_size: Variants per forward; chosen for the device by default, and halved if memory runs out.
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    targets: Sequence[Target]
    rerun_batch_size: int | None = None

    @property
    def pixels(self) -> Tensor:
        """The pixel values of the images, `[B, C, H, W]`."""
        pixels: Tensor = self.inputs["pixel_values"]
        return pixels

    def __call__(self, variants: Tensor) -> Tensor:
        """The targets' values `[B, V]` for V variants of each image, `[B, V, C, H, W]`."""
        batch, count = variants.shape[:2]
        flat = variants.flatten(0, 1)
        owners = torch.arange(batch, device=flat.device).repeat_interleave(count)

        def some(module: nn.Module, start: int, stop: int) -> Tensor:
            own = owners[start:stop]
            inputs = {**repeated(self.inputs, own), "pixel_values": flat[start:stop]}
            outputs = call(module, inputs)
            return target_values(outputs, [self.targets[i] for i in own.tolist()])

        with borrowed(unwrap(self.model)) as module, torch.no_grad():
            size = self.rerun_batch_size or images_at_once(flat.device)
            return in_chunks(len(flat), size, partial(some, module)).reshape(batch, count).float()


def _check_maps(maps: Any, pixels: Tensor | None) -> None:
    """Refuse maps that are not one finite map per image, as large as it.

    Raises:
        OptionError: naming what there must be.
    """
    if not isinstance(maps, Tensor):
        raise OptionError(f"maps must be a floating tensor [B, H, W], got {type(maps).__name__}; use torch.as_tensor")
    if problem := unreadable(maps):
        raise OptionError(f"maps must be a floating tensor [B, H, W], but this one {problem}")
    planar = pixels is None or pixels.ndim == 4
    if not maps.is_floating_point() or (planar and maps.ndim != 3) or not maps.numel():
        raise OptionError(f"maps must be a floating tensor [B, H, W], got {maps.dtype} of shape {tuple(maps.shape)}")
    if pixels is not None:
        wanted = (len(pixels), *(pixels.shape[-2:] if planar else maps.shape[1:]))
        if tuple(maps.shape) != wanted:
            raise OptionError(f"maps must be {wanted}, one per image of the scorer, got {tuple(maps.shape)}")
    if not maps.isfinite().all():
        raise OptionError("maps hold values that are not finite; pass torch.nan_to_num(maps), or leave the image out")


def _check_masks(masks: Any, maps: Tensor) -> None:
    """Refuse masks that are not one of booleans per map.

    Raises:
        OptionError: naming what there must be.
    """
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool or masks.shape != maps.shape:
        got = f"{masks.dtype} of shape {tuple(masks.shape)}" if isinstance(masks, Tensor) else type(masks).__name__
        raise OptionError(f"masks must be a boolean tensor {tuple(maps.shape)} like the maps, got {got}")


@dataclass(frozen=True, eq=False)
class Trial:
    """Maps of B images to evaluate; each measurement is computed once, and only if a metric needs it.

    Args:
        maps: `[B, H, W]` in [0, 1].
        scorer: The model's confidence for variants of the images; needed by all metrics but those of masks.
        masks: `[B, H, W]` booleans: where the object is.
        explain: Function from pixel values to maps, for metrics that explain changed images.
        explain_other: The same for another target.
        percentiles: ROAD imputes the pixels above each of these.
        noise: Standard deviation of the noise in ROAD's imputation.
        steps: Number of steps of the insertion and deletion curves; "rise" takes one step per row of pixels.
        groups: Number of SaCo's groups.
        radius, samples: Max-sensitivity's noise, as a share of the standard deviation of an image's pixel values, and
            how often it is drawn.
        seed: Seed of ties, noise and shuffled weights.

    Raises:
        OptionError: the maps or masks are no tensors of the images' number and size, a map has values that are not
            finite, or a setting is out of its range.
    """

    maps: Tensor
    scorer: Scorer | None = None
    masks: Tensor | None = None
    explain: Callable[[Tensor], Tensor] | None = None
    explain_other: Callable[[Tensor], Tensor] | None = None
    percentiles: Sequence[float] = PERCENTILES
    noise: float = 0.01
    steps: Steps = STEPS
    groups: int = 10
    radius: float = 0.02
    samples: int = 4
    seed: int = 0
    _made: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what no metric can be measured with."""
        _check_maps(self.maps, None if self.scorer is None else self.scorer.pixels)
        if self.masks is not None:
            _check_masks(self.masks, self.maps)
        shares = list(self.percentiles) if isinstance(self.percentiles, Iterable) else []
        if not shares or not all(fits(one, float) and 0 <= one <= 100 for one in shares):
            raise OptionError(f"percentiles must be some numbers from 0 to 100, got {brief(self.percentiles)}")
        for name in ("noise", "radius"):
            if not fits(value := getattr(self, name), float) or value < 0:
                raise OptionError(f"{name} must be a number from 0, got {brief(value)}")
        check_count("groups", self.groups)
        check_count("samples", self.samples)
        check_seed(self.seed)

    def measure(self, *metrics: str) -> dict[str, Tensor]:
        """The scores `[B]` of these metrics.

        Raises:
            OptionError: there is no such metric, or something that it needs was not given.
        """
        found = {}
        for name in metrics:
            record = get_metric(name)
            found[name] = record.compute(**{need: self.value(need) for need in record.needs})
        return found

    def value(self, name: str) -> Tensor:
        """The measurement of this name.

        Raises:
            OptionError: there is none, or something that it needs was not given.
        """
        if name not in self._made:
            self._made.update(MEASUREMENTS.get(name).provide(self))
        return self._made[name]

    def given(self, name: str, what: str) -> Any:
        """A field that a metric needs.

        Raises:
            OptionError: it was not given.
        """
        value = getattr(self, name)
        if value is None:
            raise OptionError(f"the metric needs {what}; pass {name}=")
        return value

    def curves(self) -> dict[str, Tensor]:
        """The curves that have been computed, by the names of the measurements."""
        return {name: self._made[name] for name in CURVES if name in self._made}

    @property
    def step_count(self) -> int:
        """The number of steps.

        Raises:
            OptionError: `steps` is neither "rise" nor a whole number from 2 to the number of pixels.
        """
        rows, columns = self.maps.shape[-2:]
        if self.steps == RISE:
            return rows
        check_steps(self.steps)
        if self.steps > rows * columns:
            raise OptionError(f"steps={self.steps} is more than the {rows * columns} pixels of the map")
        return int(self.steps)

    @property
    def model(self) -> Scorer:
        """The scorer.

        Raises:
            OptionError: it was not given.
        """
        found: Scorer = self.given("scorer", "the model")
        return found

    @cached_property
    def places(self) -> Tensor:
        """The rank of each pixel, `[B, H, W]`; 0 is the most relevant."""
        return ranks(self.maps, self.seed)
