"""One head: what the model says of an image, and which scalars of it can be explained."""

from typing import Any, ClassVar

from torch import Tensor

import hf_cam
from hf_cam.errors import TargetError
from hf_cam.heads import Head, Request, Subject

DIRECTIONS = ("rows", "columns")


class Direction:
    """How strongly the picture is striped in one direction."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, output: Any) -> Tensor:
        """The scalar, from one sample's output."""
        return output["stripes"][self.index]


@hf_cam.register_head("stripes", models=["StripesModel"])
class StripesHead(Head):
    """The stronger direction, or the one that the caller names."""

    task: ClassVar[str] = "stripe-detection"

    def check(self, request: Request) -> None:
        """Refuse what is no direction."""
        super().check(request)
        if request.target not in (None, *DIRECTIONS):
            raise TargetError(f"a target is one of {', '.join(DIRECTIONS)}, not {request.target!r}")

    def subjects(self, output: Any, request: Request, geometry: Any) -> list[Subject]:
        """One subject."""
        shares = output["stripes"].detach().softmax(-1)
        index = int(shares.argmax()) if request.target is None else DIRECTIONS.index(request.target)
        return [Subject(Direction(index), DIRECTIONS[index], float(shares[index]))]
