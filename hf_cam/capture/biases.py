"""Where a score comes from in piecewise linear networks: the input and every bias, each times its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_cam.capture.capture import capture
from hf_cam.capture.guard import is_connected, kept
from hf_cam.errors import MethodError, TargetError
from hf_cam.maps import at_least_float32

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)  # noqa: SLF001  (the base of all batch norms)
LINEAR = (nn.modules.conv._ConvNd, nn.Linear)  # noqa: SLF001  (the base of all convolutions)


@dataclass(frozen=True)
class FullGradients:
    """The full-gradient decomposition of a score (Srinivas and Fleuret, NeurIPS 2019, arXiv:1905.00780).

    Args:
        score: The scalar, summed over the batch.
        pixels: The input times its gradient, `[B, C, H, W]`.
        biases: Each bias times the gradient of what it was added to, shaped like the module's output.
    """

    score: Tensor
    pixels: Tensor
    biases: dict[str, Tensor]

    @property
    def error(self) -> float:
        """How far the terms miss the score; rounding alone where all layers are piecewise linear (ReLU, batch norm)."""
        total = self.pixels.sum() + sum(term.sum() for term in self.biases.values())
        return float((total - self.score).abs())


@dataclass(frozen=True)
class BiasedOutputs:
    """What every module with a bias returned in one forward.

    Args:
        modules: Those that add something, by dotted name.
        outputs: What each returned, in the order of the forward.
        repeated: The names of those that ran more than once.
    """

    modules: dict[str, nn.Module]
    outputs: dict[str, Tensor] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)

    def decompose(self, score: Tensor, pixels: Tensor) -> FullGradients:
        """One backward through the whole model.

        Raises:
            MethodError: a module with a bias ran more than once, so that its terms cannot be told apart.
            TargetError: the score does not depend on the picture.
        """
        if self.repeated:
            raise MethodError(
                f"{self.repeated[0]!r} runs more than once, so its bias has no single gradient, and the full-gradient "
                "decomposition is not defined; 'gradcam' and 'layercam' are"
            )
        if not score.requires_grad:
            raise TargetError("the target does not depend on the picture")
        # In float16 the gradients of single pixels fall below the smallest number: scale them up on the way.
        scale = 1024.0 if pixels.dtype == torch.float16 else 1.0
        # What runs beside the picture, such as a text tower, has terms that lie nowhere in it.
        outputs = {name: output for name, output in self.outputs.items() if output.requires_grad}
        leaves = [pixels, *outputs.values()]
        scaled = torch.autograd.grad(
            score * scale, leaves, allow_unused=True, retain_graph=True, create_graph=is_connected()
        )
        wide = [None if gradient is None else at_least_float32(gradient) / scale for gradient in scaled]
        terms = {
            name: gradient * _broadcast(self.modules[name], gradient)
            for name, gradient in zip(outputs, wide[1:], strict=True)
            if gradient is not None
        }
        gradient = torch.zeros_like(pixels) if wide[0] is None else wide[0]
        return FullGradients(at_least_float32(score.detach()), gradient * at_least_float32(kept(pixels)), terms)


@contextmanager
def biased_outputs(module: nn.Module) -> Iterator[BiasedOutputs]:
    """Record what every module with a bias returns in a forward of `module` inside the block.

    Raises:
        MethodError: biases are offloaded, so that their values are there during a forward only.
    """
    biases = {name: bias for name, child in module.named_modules() if (bias := _bias(child)) is not None}
    for name, bias in biases.items():
        if bias.is_meta:
            raise MethodError(
                f"the bias of {name!r} is offloaded, and FullGrad multiplies biases by gradients; load the model "
                "without offloading, or choose another method, such as 'gradcam'"
            )
    record = BiasedOutputs({name: module.get_submodule(name) for name in biases})

    def recorder(name: str) -> Callable[..., Tensor | None]:
        def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
            if name in record.outputs:
                record.repeated.append(name)
                return None
            record.outputs[name] = output
            return output.clone()  # what follows may work in place

        return keep

    # In front, so that a target layer's own recorder gets what goes on from here.
    handles = [child.register_forward_hook(recorder(name), prepend=True) for name, child in record.modules.items()]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def full_gradients(model: nn.Module, inputs: Mapping[str, Any], score: Callable[[Any], Tensor]) -> FullGradients:
    """One forward and one backward through the whole model, which comes back untouched.

    Args:
        model: Any vision model.
        inputs: Its named inputs.
        score: From the model's output to a scalar.

    Raises:
        TargetError: the score does not depend on the picture.
        MethodError: a module with a bias runs more than once.
    """
    with capture(model, (), inputs, watches=(biased_outputs,)) as captured:
        assert captured.pixels is not None
        record: BiasedOutputs = captured.watched[biased_outputs]
        return record.decompose(score(captured.outputs), captured.pixels)


def _bias(module: nn.Module) -> Tensor | None:
    """What a module adds; for a batch norm in evaluation mode also what its running mean comes to."""
    if not isinstance(module, NORMS + LINEAR):
        return None
    bias = getattr(module, "bias", None)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:  # noqa: SLF001
        assert module.running_var is not None
        scale = (module.running_var + module.eps).rsqrt()
        scale = scale if module.weight is None else scale * module.weight
        shift = -module.running_mean * scale
        return kept(shift if bias is None else shift + bias)
    return None if bias is None else kept(bias)


def _broadcast(module: nn.Module, output: Tensor) -> Tensor:
    bias = _bias(module)
    assert bias is not None
    # ConvNeXt's layer norm also works on maps, and says so.
    last = isinstance(module, nn.Linear | nn.LayerNorm) and getattr(module, "data_format", "") != "channels_first"
    return bias if last else bias.reshape(-1, *[1] * (output.ndim - 2))
