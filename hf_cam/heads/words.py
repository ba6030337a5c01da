"""Vision-language models that write text about pictures; their words are explained by `hf_cam.words`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from hf_cam.errors import MethodError, OptionError, TargetError
from hf_cam.heads.base import Head
from hf_cam.heads.registry import register_head
from hf_cam.heads.subjects import Subject
from hf_cam.images.geometry import Geometry
from hf_cam.request import Request
from hf_cam.targets import BoxSide, SumOf


@register_head("words", tasks=["IMAGE_TEXT_TO_TEXT"])
class WordHead(Head):
    """Each word that the model writes in answer to a question about the picture."""

    task: ClassVar[str] = "image-text-to-text"
    takes_text: ClassVar[bool] = True
    writes: ClassVar[bool] = True

    def check(self, request: Request) -> None:
        """Refuse a request without a question, and settings that choose among scores of one output."""
        super().check(request)
        if not request.text and request.messages is None:
            raise TargetError(f'{self.model_name} answers a question: pass text=, such as "What is in the picture?"')
        if request.text and request.messages is not None:
            raise OptionError("messages= already holds the question; omit text=")
        for name in ("top_k", "threshold", "aug_smooth", "eigen_smooth", "signed"):
            if getattr(request, name):
                raise OptionError(f"{name} does not apply to the words of an answer; target= picks some of them")
        if request.effort == "checked":
            raise OptionError("effort='checked' does not apply to the words of an answer")

    def check_one(self, request: Request) -> None:
        """Refuse targets that are scalars of one output."""
        if isinstance(request.target, SumOf | BoxSide):
            raise TargetError(
                f"{type(request.target).__name__} does not apply to the words of an answer; target= takes a list of "
                "words, with one map each"
            )
        super().check_one(request)

    def subjects(self, output: Any, request: Request, geometry: Geometry) -> list[Subject]:
        """None: a word has no scalar in the output of one forward over the question.

        Raises:
            MethodError: always, with the way out.
        """
        raise MethodError(self._elsewhere())

    def given(self, inputs: Mapping[str, Any]) -> tuple[Request, Mapping[str, Any]]:
        """None, as above.

        Raises:
            MethodError: always, with the way out.
        """
        raise MethodError(self._elsewhere())

    def _elsewhere(self) -> str:
        return (
            f"{self.model_name} writes text: hf_cam.explain(image, model, text=...) explains its words, and "
            "hf_cam.WordCAM those of given tokens"
        )
