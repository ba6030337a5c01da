"""What the model answers if regions of its images are replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_cam.auditing.cases import Case, Opened
from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call, model_inputs_of
from hf_cam.errors import HFCamError, ModelError, OptionError
from hf_cam.explainer import Explainer
from hf_cam.heads.classification import ClassificationHead
from hf_cam.heads.establish import reading_of
from hf_cam.heads.similarity import PromptHead
from hf_cam.images.geometry import Geometry
from hf_cam.images.patches import are_cut
from hf_cam.images.videos import Video
from hf_cam.metrics.replacement import Replacement, by_mean, by_neighbours, by_others
from hf_cam.models.loading import input_size
from hf_cam.models.traits import unwrap
from hf_cam.outputs import sample_of, similarities_of
from hf_cam.request import Request

CERTAIN = 1e-6
AT_ONCE = 32
"""Changed images per forward."""


@dataclass(frozen=True, eq=False)
class Shown:
    """An image as the model gets it.

    Args:
        case: Where it comes from.
        opened: The image, with what marks its object.
        pixels: `[1, C, h, w]`, on the model's device.
        geometry: Where the image lies in them.
        label: The class that the model gives it.
    """

    case: Case
    opened: Opened
    pixels: Tensor
    geometry: Geometry
    label: int

    def mask(self, region: np.ndarray) -> Tensor:
        """A region `[H, W]` of the image in the model's pixels, `[h, w]` booleans."""
        height, width = self.geometry.model_size
        return self.geometry.mask_to_grid(region, (height, width)) if region.any() else torch.zeros(height, width) > 0


@dataclass(frozen=True, eq=False)
class Asker:
    """A classifier, or a model with one prompt per class, to which changed images are shown.

    Args:
        explainer: The model.
        request: With the prompts, if it takes any.
    """

    explainer: Explainer
    request: Request

    def __post_init__(self) -> None:
        """Refuse what has no classes.

        Raises:
            OptionError: the model is no classifier of images.
        """
        head = self.explainer.head
        if not isinstance(head, ClassificationHead | PromptHead) or self.explainer.loaded.takes_videos:
            raise OptionError(
                f"an audit takes classifiers of images and models that compare them with prompts, not {head.model_name}"
            )

    def show(self, case: Case) -> Shown:
        """Read an image and ask what it is.

        Raises:
            HFCamError: it cannot be read or prepared.
        """
        loaded, opened = self.explainer.loaded, case.open()
        inputs = loaded.inputs([opened.image])
        if are_cut(inputs) or isinstance(opened.image, Video):
            raise OptionError("an audit replaces pixels, and this model takes frames or patches")
        geometry = loaded.geometry((opened.image.height, opened.image.width), input_size(inputs))
        pixels = inputs["pixel_values"]
        label = int(self.probabilities(pixels)[0].argmax())
        return Shown(case, opened, pixels, geometry, label)

    def probabilities(self, pixels: Tensor) -> Tensor:
        """`[N, K]` for images `[N, C, h, w]`: one per class, in [0, 1]."""
        loaded, head = self.explainer.loaded, self.explainer.head
        full = dict(head.inputs(self.request))
        rows: list[Tensor] = []
        with borrowed(unwrap(loaded.model)) as module, torch.no_grad():
            for some in pixels.split(AT_ONCE):
                output = call(module, model_inputs_of(loaded.model, some, full))
                rows += [
                    class_scores(self.explainer, sample_of(output, index, len(some))) for index in range(len(some))
                ]
        return torch.stack(rows).cpu()

    def log_odds(self, pixels: Tensor, label: int) -> Tensor:
        """Of a class, `[N]`."""
        return torch.logit(self.probabilities(pixels)[:, label].double(), CERTAIN)


def class_scores(explainer: Explainer, output: Any) -> Tensor:
    """`[K]` in [0, 1]: the scores of the classes or prompts in one sample's output, two for a binary classifier."""
    if isinstance(explainer.head, PromptHead):
        return similarities_of(output).float().softmax(-1)
    scores = reading_of(explainer.loaded, output).scores(output).float()
    return torch.stack([1 - scores[0], scores[0]]) if len(scores) == 1 else scores


def shown(asker: Asker, cases: Sequence[Case], count: int) -> Iterator[Shown]:
    """The first `count` of the cases that can be read and that the model classifies rightly."""
    for case in cases:
        if count <= 0:
            return
        try:
            found = asker.show(case)
        except ModelError:
            raise
        except HFCamError:
            continue
        if found.label == case.label:
            count -= 1
            yield found


def replacements(others: Sequence[Tensor], seed: int = 0) -> dict[str, Replacement]:
    """The ways to take a region out of an image, by name.

    Args:
        others: Images of other classes, `[1, C, h, w]` each, whose pixels come in its place.
        seed: Seed of the noise.
    """
    ways = {"imputed": by_neighbours(seed), "mean": by_mean}
    return {**ways, "other images": by_others([other[0] for other in others])} if others else ways


def falls(asker: Asker, one: Shown, masks: Sequence[Tensor], replace: Replacement = by_mean) -> Tensor:
    """How far hiding each region `[h, w]` lowers the log-odds of the image's class, `[M]`.

    In shares of what hiding the whole image costs, clipped to [0, 1].
    """
    missing = torch.stack([*masks, torch.ones_like(masks[0])]).to(one.pixels.device)
    changed = torch.cat([replace(one.pixels, some) for some in missing.split(AT_ONCE)])
    scores = asker.log_odds(torch.cat([one.pixels, changed]), one.label)
    whole = (scores[0] - scores[-1]).clamp_min(1.0)
    return ((scores[0] - scores[1:-1]) / whole).clamp(0, 1)
