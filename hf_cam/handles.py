"""One class per method: `GradCAM(model, layers, reshape)` is `CAM(model, "gradcam", layers, reshape)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from hf_cam.cam import CAM
from hf_cam.doors import door
from hf_cam.methods import get_method
from hf_cam.target_layers.named import Layers


class NamedCAM(CAM):
    """A CAM of one method; its subclasses take their documentation from the method's record."""

    method_id: ClassVar[str]

    def __init_subclass__(cls, method_id: str) -> None:
        """Take the summary and the paper from the registry.

        Raises:
            MethodError: there is no such method.
        """
        method = get_method(method_id)
        cls.method_id = method_id
        cls.__doc__ = f"{method.summary}\n\n    {method.paper}\n\n    See `CAM` for the arguments.\n    "

    @door()
    def __init__(
        self,
        model: nn.Module,
        layers: Layers | None = None,
        reshape: Callable[[Tensor], Tensor] | None = None,
        *,
        rerun_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, self.method_id, layers, reshape, rerun_batch_size=rerun_batch_size, **options)


class GradCAM(NamedCAM, method_id="gradcam"): ...


class HiResCAM(NamedCAM, method_id="hirescam"): ...


class GradCAMElementWise(NamedCAM, method_id="gradcam-elementwise"): ...


class GradCAMPlusPlus(NamedCAM, method_id="gradcam++"): ...


class XGradCAM(NamedCAM, method_id="xgradcam"): ...


class ShapleyCAM(NamedCAM, method_id="shapleycam"): ...


class AblationCAM(NamedCAM, method_id="ablationcam"): ...


class ScoreCAM(NamedCAM, method_id="scorecam"): ...


class LayerCAM(NamedCAM, method_id="layercam"): ...


class EigenCAM(NamedCAM, method_id="eigencam"): ...


class EigenGradCAM(NamedCAM, method_id="eigengradcam"): ...


class SegEigenCAM(NamedCAM, method_id="segeigencam"): ...


class KPCACAM(NamedCAM, method_id="kpcacam"): ...


class FEM(NamedCAM, method_id="fem"): ...


class FinerCAM(NamedCAM, method_id="finercam"): ...


class RefineCAM(NamedCAM, method_id="refinecam"): ...


class FullGrad(NamedCAM, method_id="fullgrad"): ...


class RawAttention(NamedCAM, method_id="raw-attention"): ...


class AttentionRollout(NamedCAM, method_id="rollout"): ...


class Chefer(NamedCAM, method_id="chefer"): ...


class LeGrad(NamedCAM, method_id="legrad"): ...


class GradECLIP(NamedCAM, method_id="gradeclip"): ...


class AttnLRP(NamedCAM, method_id="attnlrp"): ...


class LibraCAM(NamedCAM, method_id="libracam"): ...


class LibraGrad(NamedCAM, method_id="libragrad"): ...


class InputGradient(NamedCAM, method_id="gradient"): ...


class InputXGradient(NamedCAM, method_id="input-x-gradient"): ...


class IntegratedGradients(NamedCAM, method_id="integrated-gradients"): ...


class SmoothGrad(NamedCAM, method_id="smoothgrad"): ...


class SmoothGradCAMPlusPlus(NamedCAM, method_id="smoothgradcam++"): ...


class Occlusion(NamedCAM, method_id="occlusion"): ...


class RISE(NamedCAM, method_id="rise"): ...


class DRISE(NamedCAM, method_id="d-rise"): ...


class ReciproCAM(NamedCAM, method_id="recipro-cam"): ...


class ClassActivationMap(NamedCAM, method_id="cam"): ...


class SSCAM(NamedCAM, method_id="sscam"): ...


class ISCAM(NamedCAM, method_id="iscam"): ...


class GuidedGradCAM(NamedCAM, method_id="guided-gradcam"): ...


class DFF(NamedCAM, method_id="dff"): ...


class RandomCAM(NamedCAM, method_id="randomcam"): ...
