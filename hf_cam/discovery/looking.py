"""What a model makes of views of images: a layer's cells, scores, and its values where concepts are weakened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_cam.auditing.recognition import class_scores
from hf_cam.capture.capture import capture
from hf_cam.capture.chunks import in_chunks
from hf_cam.capture.inputs import model_inputs_of, others_of, picture_size
from hf_cam.capture.replay import PrefixOf
from hf_cam.discovery.factors import Basis
from hf_cam.errors import MethodError, OptionError, TargetError, brief
from hf_cam.explainer import Explainer
from hf_cam.heads import ClassificationHead, Subject
from hf_cam.heads.similarity import PromptHead
from hf_cam.images.geometry import Geometry
from hf_cam.methods.reruns import CHUNK_BYTES, places_of_cells
from hf_cam.methods.run import Run
from hf_cam.methods.signals import activations
from hf_cam.models.loading import input_size
from hf_cam.outputs import sample_of
from hf_cam.request import Request
from hf_cam.targets import Target, entries_of, target_values


@dataclass(frozen=True, eq=False)
class Seen:
    """One view as the model sees it.

    Args:
        cells: `[C, h, w]` float32 on the CPU.
        found: What the model finds in it first.
        asked: The target that is asked for; what the model finds if there is none.
        scores: `[K]` in [0, 1], of the classes or prompts.
        geometry: Where the view lies in the model's input.
    """

    cells: np.ndarray
    found: Subject
    asked: Subject
    scores: np.ndarray
    geometry: Geometry


@dataclass(frozen=True, eq=False)
class Looker:
    """A classifier, or a model that compares images with prompts, of which one layer is looked at.

    Args:
        explainer: The model, with the layer.
        text: The prompts, for a model that compares.
    """

    explainer: Explainer
    text: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a model whose scores could not be read.

        Raises:
            OptionError: it is no classifier of images, and does not compare them with prompts.
        """
        head = self.explainer.head
        if not isinstance(head, ClassificationHead | PromptHead) or self.explainer.loaded.takes_videos:
            raise OptionError(
                f"concepts takes classifiers of images and models that compare them with prompts, not "
                f"{head.model_name}; hf_cam.DeepFeatureFactorization factorizes the activations of any model"
            )

    def request(self, target: Any = None) -> Request:
        """What is asked of each image: the first class or prompt that the model finds, or a target."""
        return Request.of(text=self.text or None, target=target, top_k=1 if target is None else None)

    def check(self, target: Any) -> None:
        """Refuse a target that does not exist, and missing prompts, before the model runs.

        Raises:
            TargetError: there is no such class or prompt, or the prompts are missing.
        """
        if entries_of(target) is not None:
            raise TargetError(f"concepts takes one target, got {brief(target)}; call it once for each")
        self.explainer.head.check_all(self.request(target))

    @property
    def names(self) -> Mapping[int, str]:
        """The classes or prompts, by index."""
        return dict(enumerate(self.text)) or self.explainer.head.classes(self.request())

    def see(self, images: Sequence[Image.Image], target: Any = None) -> Iterator[Seen]:
        """What the model sees in each image, in order; images of different sizes one by one."""
        for inputs, members in self.explainer.batches(images) if images else ():
            with self._run(inputs, [_unasked] * len(members)) as (run, layer):
                cells = activations(run, layer)
                if cells.ndim != 4:
                    raise MethodError("concepts are found in single pictures, not in videos, volumes or several views")
                seen = [
                    self._seen(sample_of(run.captured.outputs, index, len(members)), one, image, inputs, target)
                    for index, (one, image) in enumerate(zip(cells.float().cpu().numpy(), members, strict=True))
                ]
            yield from seen

    def _seen(self, output: Any, cells: np.ndarray, image: Any, inputs: Mapping[str, Tensor], target: Any) -> Seen:
        head = self.explainer.head
        geometry = self.explainer.loaded.geometry((image.height, image.width), input_size(inputs))
        found = head.subjects(output, self.request(), geometry)[0]
        asked = found if target is None else head.subjects(output, self.request(target), geometry)[0]
        return Seen(cells, found, asked, class_scores(self.explainer.head, output).cpu().numpy(), geometry)

    def values(self, image: Image.Image, target: Target, basis: Basis, kept: np.ndarray) -> np.ndarray:
        """The target's values `[N]` for one image whose concepts are weakened.

        In every cell, what a concept adds to the activation is multiplied by its share `kept`; what the concepts do not
        explain stays.

        Args:
            image: The image.
            target: From one sample's output to a scalar.
            basis: The concepts, k of them.
            kept: `[N, k]` in [0, 1].
        """
        inputs = self.explainer.loaded.inputs([image])
        with self._run(inputs, (target,), rerun=True) as (run, layer):
            places = places_of_cells(run, layer).flatten(1)
            cells = activations(run, layer)[0].flatten(1).T.float().cpu().numpy()
            strengths = torch.from_numpy(basis.coefficients(cells)).float()
            vectors, lost = torch.from_numpy(basis.vectors).float(), torch.from_numpy(1 - kept).float()
            activation = run.activation(layer).detach().movedim(run.images_axis(layer), 0)

            def weakened(start: int, stop: int) -> Tensor:
                added = torch.einsum("nk,pk,kc->ncp", lost[start:stop], strengths, vectors).to(activation.device)
                variants = activation.float().flatten().repeat(stop - start, 1)
                variants[:, places.flatten()] -= added.flatten(1)
                changed = variants.reshape(-1, *activation.shape[1:]).to(activation.dtype)
                return target_values(tail(changed, 0), [target] * (stop - start)).float()

            size = max(1, CHUNK_BYTES // (activation.numel() * activation.element_size()))
            with run.tail(layer) as tail:
                found: np.ndarray = in_chunks(len(kept), size, weakened).double().cpu().numpy()
        return found

    @contextmanager
    def _run(
        self, inputs: Mapping[str, Any], targets: Sequence[Target], *, rerun: bool = False
    ) -> Iterator[tuple[Run, str]]:
        """A forward of which the layer is captured; with `rerun`, the part behind the layer can run again."""
        loaded, cam = self.explainer.loaded, self.explainer.cam
        others = {**others_of(inputs), **self.explainer.head.inputs(self.request())}
        adapter = cam.adapter_for(inputs["pixel_values"], others)
        layer = adapter.layers[0]
        one = replace(adapter, layers=(layer,), layouts=adapter.layouts[:1])
        full = model_inputs_of(loaded.model, inputs["pixel_values"], others)
        storing = (PrefixOf(layer),) if rerun else ()
        with capture(loaded.model, (layer,), full, gradients=False, storing=storing) as captured:
            yield Run(loaded.model, full, captured, one, targets, picture_size(full)), layer


def _unasked(output: Any) -> Tensor:
    """The target of a run whose value nobody asks for."""
    raise NotImplementedError(type(output))
