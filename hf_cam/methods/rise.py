"""RISE and D-RISE: the mean score over random masks that keep a pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.errors import MethodError, OptionError
from hf_cam.images.fills import filled
from hf_cam.maps import at_least_float32, resize
from hf_cam.methods.masking import Cover
from hf_cam.methods.registry import method
from hf_cam.methods.reruns import confident
from hf_cam.methods.run import Run
from hf_cam.methods.signals import signal
from hf_cam.methods.tokens import grid_of, scores_of_kept
from hf_cam.methods.variants import scores_of_variants
from hf_cam.models.traits import traits_of
from hf_cam.outputs import BOXES, LOGITS, field_of, sample_of, upright
from hf_cam.request import check_count, check_seed
from hf_cam.targets import BoxLogit, ClassProbability, QueryBox, QueryLogit, Target

AT_ONCE = 64
PROMPTS = ("input_ids", "classes_input_ids")
"""Inputs of detectors that look for what prompts name."""
DROPPED = 0.55
"""Forwards that a forward takes with half of the tokens left out."""


@dataclass(frozen=True)
class RandomMasks:
    """Coarse random grids that are enlarged and shifted, as in RISE.

    Args:
        grids: `[N, *cells]` of 0 and 1.
        shifts: `[N, axes]`, in pixels.
        size: Height and width of the picture; of a volume, its depth first.
    """

    grids: Tensor
    shifts: Tensor
    size: tuple[int, ...]

    @classmethod
    def drawn(cls, samples: int, cells: int, keep: float, size: Sequence[int], seed: int) -> RandomMasks:
        """Masks whose grid cells are kept with the probability `keep`, shifted by less than the side of a cell."""
        check_count("samples", samples)
        check_count("cells", cells)
        check_seed(seed)
        if not 0 < keep < 1:
            raise OptionError(f"keep must be a probability between 0 and 1, got {keep!r}")
        generator = torch.Generator().manual_seed(seed)
        grids = (torch.rand(samples, *[cells] * len(size), generator=generator) < keep).float()
        steps = [-(-length // cells) for length in size]
        shifts = torch.stack([torch.randint(step, (samples,), generator=generator) for step in steps], 1)
        return cls(grids, shifts, tuple(size))

    @property
    def steps(self) -> list[int]:
        """The side of a cell along each axis, in pixels."""
        return [-(-length // cells) for length, cells in zip(self.size, self.grids.shape[1:], strict=True)]

    def smooth(self, start: int, stop: int) -> Tensor:
        """Masks `[n, *size]` in [0, 1]: the grids enlarged linearly by one cell more than the picture, and cropped."""
        whole = [step * (cells + 1) for step, cells in zip(self.steps, self.grids.shape[1:], strict=True)]
        enlarged = resize(self.grids[start:stop], whole)
        places = [
            tuple(slice(offset, offset + length) for offset, length in zip(shift, self.size, strict=True))
            for shift in self.shifts[start:stop].tolist()
        ]
        # Rounding may take the interpolation a little beyond its ends.
        return torch.stack([mask[place] for mask, place in zip(enlarged, places, strict=True)]).clamp(0, 1)

    def on_grid(self, grid: Sequence[int]) -> Tensor:
        """Booleans `[N, *grid]`: for each cell of another grid over the picture, the nearest of the own grid's."""
        found = self.grids > 0.5
        for axis, (count, length, step) in enumerate(zip(grid, self.size, self.steps, strict=True)):
            cells = self.grids.shape[1 + axis]
            centres = (torch.arange(count) + 0.5) * length / count + self.shifts[:, axis : axis + 1]
            nearest = (centres * cells / (step * (cells + 1))).long().clamp_max(cells - 1)
            shape = [len(nearest), *(count if other == axis else 1 for other in range(len(grid)))]
            spread = [found.shape[0], *found.shape[1:]]
            spread[1 + axis] = count
            found = found.gather(1 + axis, nearest.reshape(shape).expand(spread))
        return found


def mean_kept(scores: Tensor, masks: Callable[[int, int], Tensor], keep: float, bounded: Sequence[bool]) -> Tensor:
    """`sum(f_i M_i) / (N keep)`, `[B, 1, *size]`, from scores `[B, N]` and masks `[n, *size]` of a range.

    Args:
        scores: Of the masked pictures.
        masks: The masks of a range.
        keep: The probability that a cell is kept.
        bounded: For each image, whether its scores are probabilities; others, whose zero means nothing, are shifted so
            that the lowest is zero.
    """
    scores = at_least_float32(scores)
    zero = torch.tensor([not one for one in bounded], device=scores.device)[:, None]
    scores = scores - torch.where(zero, scores.amin(1, keepdim=True), 0)
    total: Tensor | float = 0.0
    for start in range(0, scores.shape[1], AT_ONCE):
        part = scores[:, start : start + AT_ONCE]
        some = masks(start, start + part.shape[1]).to(part)
        total = total + torch.tensordot(part, some, 1)
    assert isinstance(total, Tensor)
    return (total / (scores.shape[1] * keep))[:, None]


def _forwards(samples: int, fill: Cover) -> float:
    return samples * (DROPPED if isinstance(fill, str) and fill == "drop" else 1.0)


@signal(
    "the target's confidence for randomly masked pictures, averaged over the masks that keep the pixel",
    cost="one forward per mask",
    pixels=True,
    layered=False,
    forwards=_forwards,
)
def mean_of_masked(
    run: Run, layer: str, samples: int = 4000, cells: int = 7, keep: float = 0.5, fill: Cover = 0.0, seed: int = 0
) -> Tensor:
    """`[B, 1, *space]`, or on the grid of tokens `[B, 1, h, w]` where `fill="drop"`.

    Args:
        run: The run.
        layer: Not used.
        samples: The number of masks.
        cells: The number of cells along each side of a mask before it is enlarged.
        keep: The probability that a cell is kept.
        fill: What stands in place of hidden pixels, see `hf_cam.images.fills.filled`; or "drop", which leaves tokens
            out of a transformer's sequence, by binary masks on the grid of tokens.
        seed: Seed of the masks, which are the same for every picture of a batch.
    """
    del layer
    own = [confident(run, index) for index in range(len(run.targets))]
    bounded = [
        one is not given or isinstance(one, ClassProbability) for one, given in zip(own, run.targets, strict=True)
    ]
    return masked_mean(replace(run, targets=own), bounded, samples, cells, keep, fill, seed)


def masked_mean(
    run: Run, bounded: Sequence[bool], samples: int, cells: int, keep: float, fill: Cover, seed: int
) -> Tensor:
    """The mean of the targets' values over the masks that keep each pixel, `[B, 1, *space]`.

    Args:
        run: The run.
        bounded: For each target, whether its values are probabilities; see `mean_kept`.
        samples, cells, keep, fill, seed: See `mean_of_masked`.
    """
    pixels = run.pixels
    masks = RandomMasks.drawn(samples, cells, keep, pixels.shape[2:], seed)
    if isinstance(fill, str) and fill == "drop":
        kept = masks.on_grid(grid_of(run))
        scores = scores_of_kept(run, kept.flatten(1))
        return mean_kept(scores, lambda start, stop: kept[start:stop].float(), keep, bounded)
    instead = filled(pixels, fill)

    def masked(sample: int, start: int, stop: int) -> Tensor:
        own = masks.smooth(start, stop)[:, None].to(pixels)
        return instead[sample] + own * (pixels[sample] - instead[sample])

    return mean_kept(scores_of_variants(run, samples, masked), masks.smooth, keep, bounded)


@method(
    "rise",
    name="RISE",
    paper="Petsiuk et al., RISE, BMVC 2018, arXiv:1806.07421",
    summary="Mean score over random masks that keep the pixel; uses neither a layer nor gradients.",
    departure="The scores of a target without a probability are shifted so that the lowest is zero.",
    unsigned="a mean of scores has no neutral value",
)
def rise(mean_of_masked: Tensor) -> Tensor:
    """`1 / (E[M] N) sum(f(x M_i) M_i)` (eq. 6), where f is the target's probability if it has one.

    As in the paper's own code, the masks multiply the preprocessed picture, so that hidden pixels take the processor's
    mean colour. The scores of a target without a probability are shifted so that the lowest is
    zero, so that a constant added to them changes nothing.
    """
    return mean_of_masked


@dataclass(frozen=True, eq=False)
class DetectionMatch:
    """How well the best of a detector's proposals matches a given detection: `max(IoU cos(P, P_j) O_j)`.

    Args:
        box: `[4]`, its corners in the units of the proposals.
        scores: `[K]`, its class probabilities.
        read: From one sample's output to the proposals' boxes `[N, 4]`, class probabilities `[N, K]` and objectness
            `[N]`.
    """

    box: Tensor
    scores: Tensor
    read: Callable[[Any], tuple[Tensor, Tensor, Tensor]]

    def __call__(self, output: Any) -> Tensor:
        """The scalar in [0, 1]; 0 if there are no proposals."""
        from torchvision.ops import box_iou

        boxes, scores, objectness = self.read(output)
        if not len(boxes):
            return self.scores.new_zeros(())
        overlap = box_iou(self.box[None].to(boxes), boxes)[0]
        alike = torch.nn.functional.cosine_similarity(self.scores[None].to(scores), scores, dim=-1)
        best: Tensor = (overlap * alike * objectness).amax()
        return best


def matching(target: Target, output: Any, labels: int) -> DetectionMatch:
    """The match with the detection that a target is about.

    Args:
        target: A query's logit or box, or the log-odds of a listed box.
        output: The sample's output for the unchanged picture.
        labels: The number of the model's labels; 0 if it has none.

    Raises:
        MethodError: the target is no detection.
    """
    if isinstance(target, BoxLogit):
        # A list holds one class per box: this class, or another one.
        return DetectionMatch(torch.tensor(target.box), torch.tensor([1.0, 0.0]), _listed(target))
    if not isinstance(target, QueryLogit | QueryBox):
        raise MethodError("'d-rise' explains the detections of a detector; 'rise' takes any target")

    def proposals(found: Any) -> tuple[Tensor, Tensor, Tensor]:
        logits = at_least_float32(field_of(found, LOGITS))
        x, y, width, height = upright(at_least_float32(field_of(found, BOXES))).unbind(-1)
        boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
        if labels and logits.shape[-1] == labels + 1:  # the last class is "no object"
            scores = logits.softmax(-1)[..., :-1]
            return boxes, scores, scores.sum(-1)
        scores = logits.sigmoid()
        return boxes, scores, scores.amax(-1)

    boxes, scores, _ = proposals(output)
    return DetectionMatch(boxes[target.query], scores[target.query], proposals)


def labels_of(model: nn.Module) -> int:
    """The number of a detector's labels; 0 if its classes are prompts, of which a config names none."""
    traits = traits_of(model)
    return 0 if any(traits.accepts(name) for name in PROMPTS) else len(traits.id2label)


def _listed(target: BoxLogit) -> Callable[[Any], tuple[Tensor, Tensor, Tensor]]:
    def proposals(found: Any) -> tuple[Tensor, Tensor, Tensor]:
        listed = target.read(found)
        if listed is None:
            raise MethodError("the model's output holds no boxes with scores")
        own = (listed["labels"] == target.label).float()
        return listed["boxes"].float(), torch.stack([own, 1 - own], -1), listed["scores"].float()

    return proposals


@signal(
    "the match with the detection for randomly masked pictures, averaged over the masks that keep the pixel",
    cost="one forward per mask",
    pixels=True,
    layered=False,
    forwards=_forwards,
)
def mean_match(
    run: Run, layer: str, samples: int = 5000, cells: int = 16, keep: float = 0.5, fill: Cover = 0.0, seed: int = 0
) -> Tensor:
    """`[B, 1, *space]`; the arguments are those of `mean_of_masked`.

    Raises:
        MethodError: a target is no detection.
    """
    del layer
    outputs, labels = run.captured.outputs, labels_of(run.model)
    own = [matching(target, sample_of(outputs, i, len(run.targets)), labels) for i, target in enumerate(run.targets)]
    detached = [replace(one, box=one.box.detach(), scores=one.scores.detach()) for one in own]
    return masked_mean(replace(run, targets=detached), [True] * len(own), samples, cells, keep, fill, seed)


@method(
    "d-rise",
    name="DRISE",
    paper="Petsiuk et al., D-RISE, CVPR 2021, arXiv:2006.03204",
    summary="RISE for one detection: mean match of box and class over random masks that keep the pixel.",
    unsigned="a match has no sign",
)
def d_rise(mean_match: Tensor) -> Tensor:
    """`1 / (E[M] N) sum(s_i M_i)`, where `s = max(IoU cos(P, P_j) O_j)` over the proposals j of a masked picture.

    The objectness O is the probability that a query holds an object, the best class's for heads with a sigmoid per
    class, and the score of a listed box.
    """
    return mean_match
