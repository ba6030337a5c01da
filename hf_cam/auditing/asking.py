"""What the model answers if regions of its images are replaced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hf_cam.auditing.cases import Case, Opened
from hf_cam.auditing.recognition import LOCATING, Shown, marked, recognizer_of
from hf_cam.capture.chunks import images_at_once, in_chunks
from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call, model_inputs_of
from hf_cam.errors import HFCamError, ModelError, OptionError
from hf_cam.explainer import Explainer
from hf_cam.images.patches import are_cut
from hf_cam.metrics.replacement import Replacement, by_mean, by_neighbours, by_others
from hf_cam.models.loading import input_size
from hf_cam.models.traits import unwrap
from hf_cam.outputs import sample_of
from hf_cam.request import Request

CERTAIN = 1e-6
FACTOR = 2
"""How many times the usual number of images go through a forward here, where no activations are kept."""

Ends = tuple[Tensor, Tensor]
"""The log-odds of an image's class as it is, and with all of it hidden."""


@dataclass(frozen=True, eq=False)
class Asker:
    """A classifier, a model with one prompt per class, a detector or a segmenter, to which changed images are shown.

    Args:
        explainer: The model.
        request: With the prompts, if it takes any.
        replica: Of the model, if one is borrowed for many questions; else each borrows its own.
        known: The answers that are needed again with every question about an image.
    """

    explainer: Explainer
    request: Request
    replica: nn.Module | None = None
    known: MutableMapping[Shown, Ends] = field(default_factory=WeakKeyDictionary, repr=False)

    def __post_init__(self) -> None:
        """Refuse what has no classes.

        Raises:
            OptionError: an audit does not take such models.
        """
        recognizer_of(self.explainer.head)

    @contextmanager
    def borrowing(self) -> Iterator[Asker]:
        """The same with one replica for all that is asked in the block."""
        with borrowed(unwrap(self.explainer.loaded.model)) as replica:
            yield replace(self, replica=replica)

    @property
    def locates(self) -> bool:
        """Whether the model finds objects at their places, so that all else in an image is their context."""
        return isinstance(self.explainer.head, LOCATING)

    def show(self, case: Case) -> Shown:
        """Read an image and ask whether the model recognizes it.

        Raises:
            HFCamError: it cannot be read or prepared.
        """
        return self.see(case, case.open())

    def see(self, case: Case, opened: Opened) -> Shown:
        """The same for an image that was read.

        Raises:
            HFCamError: it cannot be prepared.
        """
        loaded = self.explainer.loaded
        if self.locates:
            marked(opened)
        inputs = loaded.inputs([opened.image])
        geometry = loaded.geometry((opened.image.height, opened.image.width), input_size(inputs))
        pixels = inputs["pixel_values"]
        found = Shown(case, opened, pixels, geometry, case.label)
        _, [right] = self.answers(pixels, found)
        return replace(found, right=bool(right))

    def check(self, cases: Iterable[Case]) -> None:
        """Refuse a model in whose input no region can be replaced, by the first of the cases that can be read.

        Raises:
            OptionError: it takes patches.
        """
        for case in cases:
            try:
                inputs = self.explainer.loaded.inputs([case.open().image])
            except HFCamError:
                continue
            if are_cut(inputs):
                raise OptionError(
                    f"an audit replaces pixels, but {self.explainer.head.model_name} takes pictures that are cut into "
                    "patches; audit a model that takes whole images"
                )
            return

    def answers(self, pixels: Tensor, one: Shown) -> tuple[Tensor, Tensor]:
        """How sure the model is of an image's class in its variants, and in which of them it recognizes it.

        Args:
            pixels: The variants, `[N, C, h, w]`.
            one: The image.

        Returns:
            Scores `[N]` in [0, 1], and booleans `[N]`.
        """
        loaded, head = self.explainer.loaded, self.explainer.head
        recognize, full = recognizer_of(head), dict(head.inputs(self.request))
        once = borrowed(unwrap(loaded.model)) if self.replica is None else nullcontext(self.replica)
        with once as module, torch.no_grad():

            def some(start: int, stop: int) -> Tensor:
                output = call(module, model_inputs_of(loaded.model, pixels[start:stop], full))
                samples = [sample_of(output, index, stop - start) for index in range(stop - start)]
                found = [recognize(head, sample, one, self.request) for sample in samples]
                return torch.tensor([(answer.score, answer.right) for answer in found], dtype=torch.float64)

            scores, right = in_chunks(len(pixels), FACTOR * images_at_once(pixels.device), some).T
        return scores, right.bool()

    def log_odds(self, pixels: Tensor, one: Shown) -> Tensor:
        """Of an image's class in its variants, `[N]`."""
        return torch.logit(self.answers(pixels, one)[0], CERTAIN)

    def ends(self, one: Shown) -> Ends:
        """The log-odds of an image's class as it is, and with all of it hidden; asked once."""
        if one not in self.known:
            hidden = by_mean(one.pixels, torch.ones_like(one.pixels[:, 0], dtype=torch.bool))
            clean, nothing = self.log_odds(torch.cat([one.pixels, hidden]), one)
            self.known[one] = clean, nothing
        return self.known[one]


def shown(asker: Asker, cases: Sequence[Case], count: int) -> Iterator[Shown]:
    """The first `count` of the cases that can be read and that the model recognizes."""
    for case in cases:
        if count <= 0:
            return
        try:
            found = asker.show(case)
        except ModelError:
            raise
        except HFCamError:
            continue
        if found.right:
            count -= 1
            yield found


def replacements(other: Tensor | None, seed: int = 0) -> dict[str, Replacement]:
    """The ways to take a region out of an image, by name.

    Args:
        other: An image of another class, `[1, C, h, w]`, whose pixels come in its place; None if there is none.
        seed: Seed of the noise.
    """
    ways = {"imputed": by_neighbours(seed), "mean": by_mean}
    return ways if other is None else {**ways, "another image": by_others([other[0]])}


def falls(asker: Asker, one: Shown, masks: Sequence[Tensor]) -> Tensor:
    """How far hiding each region `[h, w]` under the mean colour lowers the log-odds of the image's class, `[M]`.

    In shares of what hiding the whole image costs, clipped to [0, 1].
    """
    clean, nothing = asker.ends(one)
    return ((clean - _without(asker, one, masks)) / (clean - nothing).clamp_min(1.0)).clamp(0, 1)


def stays(asker: Asker, one: Shown, masks: Sequence[Tensor]) -> Tensor:
    """How far each region `[h, w]` alone keeps the log-odds of the image's class above those of nothing, `[M]`.

    In shares of what hiding the whole image costs, clipped to [0, 1].
    """
    clean, nothing = asker.ends(one)
    alone = _without(asker, one, [~mask for mask in masks])
    return ((alone - nothing) / (clean - nothing).clamp_min(1.0)).clamp(0, 1)


def _without(asker: Asker, one: Shown, masks: Sequence[Tensor]) -> Tensor:
    """The log-odds of the image's class with each region hidden, `[M]`."""
    return asker.log_odds(by_mean(one.pixels, torch.stack([*masks]).to(one.pixels.device)), one)
