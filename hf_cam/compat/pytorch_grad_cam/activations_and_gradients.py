"""The outputs of layers and their gradients, for code that runs the model and differentiates by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


class ActivationsAndGradients:
    """Run a model and keep what its target layers return; a backward pass by the caller then adds the gradients.

    Hooks are on the model during a call alone. Each call starts afresh.

    Args:
        model: The model.
        target_layers: Modules of it.
        reshape_transform: Applied to each activation and gradient; None leaves them as they are.
        detach: False keeps both connected to the graph and unshaped.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    >>> kept = ActivationsAndGradients(net, [net[1]], None)
    >>> kept(torch.rand(1, 3, 6, 8)).sum().backward()
    >>> kept.activations[0].shape, kept.gradients[0].shape
    (torch.Size([1, 4, 4, 6]), torch.Size([1, 4, 4, 6]))
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        detach: bool = True,
    ) -> None:
        self.model, self.target_layers = model, list(target_layers)
        self.reshape_transform, self.detach = reshape_transform, detach
        self.activations: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def __call__(self, x: Tensor) -> Any:
        """The model's output."""
        self.clear()
        activations: list[Tensor] = []
        gradients: list[Tensor] = []
        self.activations, self.gradients = activations, gradients

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            activations.append(self._kept(output))
            if isinstance(output, Tensor) and output.requires_grad:
                # The last layer's gradient arrives first.
                output.register_hook(lambda gradient: gradients.insert(0, self._kept(gradient)))

        hooks = [layer.register_forward_hook(keep) for layer in self.target_layers]
        try:
            return self.model(x)
        finally:
            for hook in hooks:
                hook.remove()

    def _kept(self, output: Any) -> Any:
        if not self.detach:
            return output
        return (output if self.reshape_transform is None else self.reshape_transform(output)).detach().cpu()

    def clear(self) -> None:
        """Forget the activations and gradients."""
        self.activations, self.gradients = [], []

    def release(self) -> None:
        """The same as `clear`: no hook outlives a call."""
        self.clear()
