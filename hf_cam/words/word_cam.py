"""The tensor door to words: a model, a function that prepares its inputs, and the positions of the answer's tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import plain_inputs
from hf_cam.doors import callers_own, door
from hf_cam.errors import OptionError, TargetError, brief
from hf_cam.images.reading import load_image
from hf_cam.models.traits import traits_of
from hf_cam.words.footprints import blank, disturbed
from hf_cam.words.locate import Known, Located, known_of, located
from hf_cam.words.methods import WORD_METHODS
from hf_cam.words.place import text_lengths
from hf_cam.words.removal import evidence_of, readings_without
from hf_cam.words.scores import Score
from hf_cam.words.weighing import Question, weighed

Prepare = Callable[[np.ndarray], Mapping[str, Any]]


class WordCAM:
    """Which part of a picture made a model predict given tokens, from the inputs of its forward.

    Args:
        model: A generative vision-language model; it is left unchanged.
        prepare: From a picture, uint8 `[H, W, 3]`, to the forward's named inputs with the ids of prompt and answer. It
            is also called with disturbed pictures, and must always make the same of the same one.
        method: An id of `hf_cam.list_word_methods()`; "auto" takes "word-contribution" where the picture's cells
            are in the language model's sequence, and gradient times input elsewhere.

    Raises:
        MethodError: there is no such method.
        OptionError: `prepare` is not callable, or the model is no module.
    """

    @door()
    def __init__(self, model: nn.Module, prepare: Prepare, method: str = "auto") -> None:
        if not isinstance(model, nn.Module):
            raise OptionError(f"WordCAM takes a torch module, not {brief(model)}; hf_cam.explain takes names")
        if not callable(prepare):
            raise OptionError(
                "prepare must be a function from a picture, uint8 [H, W, 3], to the forward's inputs, not "
                f"{brief(prepare)}"
            )
        if method != "auto":
            WORD_METHODS.get(method)
        self.model, self.prepare, self.method = model, prepare, method
        self.evidence: Tensor = torch.zeros(0)
        """`[T]` in [0, 1]: the share of each token's probability that is owed to the picture, of the last call."""

    @door()
    def __call__(self, picture: Any, answer: Sequence[int] | Tensor) -> Tensor:
        """The maps `[T, H, W]` in [0, 1] in the pixels of the picture, one per token; they share one scale.

        Args:
            picture: A path, URL, PIL image or array.
            answer: The positions of the answer's tokens in `input_ids`, or in `decoder_input_ids` of a model that has a
                decoder of its own; from 1, in any order.

        Raises:
            TargetError: there is no such position.
            ModelError: where the picture enters the model cannot be established.
        """
        shown = load_image(picture)
        with borrowed(traits_of(self.model).module) as replica:
            clean = self._inputs([shown])
            ids = _ids(clean)
            positions = _positions(answer, ids.shape[1])
            [found] = located(self._known, replica, self._inputs, [shown], clean)
            question = Question(
                replica, found.place, Score(ids[0, positions]), [[t] for t in range(len(positions))],
                positions - 1 - ids.shape[1], length=ids.shape[1], whole=lambda: {**clean, **_settings(replica)},
                noisy=lambda: {**self._inputs([disturbed(shown)]), **_settings(replica)},
                blank=lambda: {**self._inputs([blank(shown)]), **_settings(replica)},
            )  # fmt: skip
            weighed_cells, without = weighed(self.method, question), readings_without(self._known, question)
        probabilities = question.score.probabilities
        self.evidence = evidence_of(probabilities(weighed_cells.logits), [*map(probabilities, without)])
        maps = found.footprints.painted(weighed_cells.weights)
        return maps / maps.max().clamp_min(torch.finfo(maps.dtype).tiny)

    @door()
    def located(self, picture: Any) -> Located:
        """Where the picture's cells enter the language model, and where they lie in the picture.

        Args:
            picture: A path, URL, PIL image or array.

        Raises:
            ModelError: that cannot be established; with the reason.
        """
        shown = load_image(picture)
        with borrowed(traits_of(self.model).module) as replica:
            [found] = located(self._known, replica, self._inputs, [shown], self._inputs([shown]))
        return found

    @property
    def _known(self) -> Known:
        return known_of(traits_of(self.model).module, self.prepare)

    def _inputs(self, pictures: Sequence[Image.Image]) -> dict[str, Any]:
        [picture] = pictures
        with callers_own():
            made = self.prepare(np.array(picture))
        if not isinstance(made, Mapping):
            raise OptionError(f"prepare must return the forward's named inputs as a dict, not {brief(made)}")
        weight = traits_of(self.model).weight
        inputs = plain_inputs(made)
        if weight is None:
            return inputs
        return {
            name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            if isinstance(value, Tensor)
            else value
            for name, value in inputs.items()
        }


def _ids(inputs: Mapping[str, Any]) -> Tensor:
    """The ids that hold the answer, `[1, L]`.

    Raises:
        TargetError: there are none, or those of several texts.
    """
    name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    ids = inputs.get(name)
    if not isinstance(ids, Tensor) or ids.ndim != 2 or len(ids) != 1 or not text_lengths(inputs):
        raise TargetError(
            f"prepare must return the ids of one prompt and answer, [1, L], as input_ids; got {brief(ids)}"
        )
    return ids


def _positions(answer: Any, length: int) -> Tensor:
    try:
        positions = torch.as_tensor(answer).flatten().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TargetError(f"answer must be the positions of tokens, not {brief(answer)}") from error
    whole = positions.numel() > 0 and not positions.is_floating_point() and positions.dtype != torch.bool
    if not whole or int(positions.min()) < 1 or int(positions.max()) >= length:
        raise TargetError(f"answer must be positions from 1 to {length - 1} of the {length} ids, got {brief(answer)}")
    return positions.long()


def _settings(replica: nn.Module) -> dict[str, Any]:
    return {"use_cache": False} if traits_of(replica).accepts("use_cache") else {}
