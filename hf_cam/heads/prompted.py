"""Promptable models of masks (SAM and its successors): one mask per prompt, which is points or a box in the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from hf_cam.devices.transfer import on_host
from hf_cam.errors import OptionError, TargetError
from hf_cam.heads.base import Head, custom, numbers_of, region_to_image
from hf_cam.heads.marks import Prompt, as_inputs, as_request, prompts_of
from hf_cam.heads.registry import register_head
from hf_cam.heads.segmentation import NOT_PREDICTED, in_view
from hf_cam.heads.subjects import Subject
from hf_cam.images.geometry import Geometry
from hf_cam.outputs import MASKS, OVERLAPS, field_of
from hf_cam.request import Request
from hf_cam.targets import PromptedMask

PREDICTED_OVERLAP = "predicted overlap (IoU)"


@register_head("prompted-masks", tasks=["MASK_GENERATION"])
class PromptedMaskHead(Head):
    """The logits of a prompt's mask, summed over the region that it predicts.

    Of the masks that the model offers for a prompt, the one with the highest predicted overlap is explained; the index
    of another one as target chooses that, and `top_k` the best few.
    """

    task: ClassVar[str] = "mask-generation"
    method: ClassVar[str | None] = "hirescam"
    takes_marks: ClassVar[bool] = True
    alone: ClassVar[bool] = True  # images have different numbers of prompts

    def check(self, request: Request) -> None:
        """Refuse a request without a prompt, and what does not go with one."""
        super().check(request)
        if not prompts_of(request):
            raise TargetError(
                f"{self.model_name} segments what is marked: pass input_points=, such as [(120, 80)], or input_boxes=, "
                "such as [(20, 30, 180, 140)], in pixels of the image"
            )
        if request.aug_smooth:
            raise OptionError("aug_smooth mirrors the image, but not the points and boxes in it; omit it")
        if numbers_of(request.target, 2) or numbers_of(request.target, 4):
            raise TargetError(
                f"a place is a prompt of {self.model_name}: pass it as input_points= or input_boxes=, not as target="
            )
        if request.target is not None and not callable(request.target):
            self.index(request)

    def classes(self, request: Request) -> Mapping[int, str]:
        """None: a mask has no class."""
        del request
        return {}

    def placed(self, request: Request, geometry: Geometry) -> Request:
        """The request with its prompts in the pixels of the model's input."""
        return as_request(request, [prompt.to_model(geometry) for prompt in prompts_of(request)])

    def inputs(self, request: Request) -> Mapping[str, Any]:
        """The prompts of one image, in one forward."""
        return as_inputs(prompts_of(request))

    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """The best mask of each prompt, or the masks at the target or within `top_k`, prompt by prompt."""
        if callable(request.target):
            return [custom(request.target)]
        masks = on_host(field_of(output, MASKS)).float()
        overlaps = on_host(field_of(output, OVERLAPS)).float()
        prompts = [prompt.to_image(geometry) for prompt in prompts_of(request)] or [Prompt()] * len(masks)
        found = []
        for number, prompt in enumerate(prompts):
            best = overlaps[number].argsort(descending=True).tolist()
            chosen = request.first(best, default=1) if request.target is None else [self._index(request, len(best))]
            found += [
                self._subject(masks[number, index], float(overlaps[number, index]), number, index, prompt, geometry)
                for index in chosen
            ]
        return found

    def _index(self, request: Request, count: int) -> int:
        index = self.index(request)
        if index >= count:
            raise TargetError(f"no mask {index}; the model offers {count} per prompt, from 0")
        return index

    def _subject(
        self, logits: Tensor, overlap: float, number: int, index: int, prompt: Prompt, geometry: Geometry
    ) -> Subject:
        seen = in_view((logits.shape[0], logits.shape[1]), geometry)
        region = (logits > 0) & seen
        present = bool(region.any())
        return Subject(
            PromptedMask(number, index, region if present else seen),
            str(prompt) or f"prompt {number}",
            overlap,
            prompt.box,
            region_to_image(region.float(), geometry),
            () if present else (NOT_PREDICTED,),
            PREDICTED_OVERLAP,
        )
