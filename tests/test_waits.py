"""How often a call reads a value from the device: as often for many images as for a few, because each reading waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

import hf_cam
from nets import classifier, clip, depth, detr, segformer, siglip
from pictures import pictures

READING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
COPYING = ("cpu", "tolist", "numpy")


class Device(TorchDispatchMode):
    """A stand-in for an accelerator, on the CPU: it counts what would wait there.

    What is made of no tensor, and copies by `cpu`, lie on the CPU, and so does what is made of such tensors alone. All
    others lie on the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0
        self.on_cpu = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        name = func._schema.name
        if not self.has(given):
            masked = name.startswith("aten::index") and any(one.dtype == torch.bool for one in given[1:])
            self.waits += name in READING or masked
        found = func(*args, **(kwargs or {}))
        if self.has(given) or name == "aten::lift_fresh":  # of `torch.tensor`
            self.keep(found)
        return found

    def has(self, tensors: list[Tensor]) -> bool:
        """Whether all of these lie on the CPU."""
        return all(one in self.on_cpu for one in tensors)

    def keep(self, found: Any) -> None:
        for one in tree_leaves(found):
            if isinstance(one, Tensor):
                self.on_cpu[one] = True


@contextmanager
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    mode = Device()

    def counted(name: str) -> Callable[..., Any]:
        own = getattr(Tensor, name)

        def copied(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if mode.has([tensor]):
                return own(tensor, *args, **kwargs)
            mode.waits += 1
            found = tensor.clone() if name == "cpu" else own(tensor, *args, **kwargs)
            mode.keep(found)
            return found

        return copied

    with monkeypatch.context() as patch:
        for name in COPYING:
            patch.setattr(Tensor, name, counted(name))
        patch.setattr("hf_cam.capture.capture.by_tokens", lambda module: {})  # which serves layers on the CPU alone
        with mode:
            yield mode


def waits(monkeypatch: pytest.MonkeyPatch, cam: hf_cam.CAM, images: int, *args: Any, **inputs: Any) -> int:
    """Those of the second call."""
    with device(monkeypatch) as mode:
        cam(pictures(images), *args, **inputs)
        mode.waits = 0  # the first call establishes what the output means
        cam(pictures(images), *args, **inputs)
    return mode.waits


class Probabilities(nn.Module):
    """A classifier that ends in a softmax, beside the logits of which it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Any:
        logits = self.head(self.stem(image).relu().mean((2, 3)))
        return {"probs": logits.softmax(1), "features": logits * 2}


TOKENS = {"input_ids": torch.tensor([[0, 3, 4, 2], [0, 5, 6, 2], [0, 7, 8, 2]])}
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], int]] = {
    "a classifier": (lambda: classifier().model, {}, 3),
    "a classifier of probabilities": (Probabilities, {}, 3),
    "prompts": (lambda: clip().model, TOKENS, 3),
    "prompts, each with a sigmoid": (lambda: siglip().model, TOKENS, 3),
    "a segmenter with four target layers": (lambda: segformer().model, {}, 1 + 2 * 4),
    "a detector": (lambda: detr().model, {}, 4),
    "depth": (lambda: depth().model, {}, 3),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_batch_of_any_size_waits_as_often(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, inputs, most = CASES[kind]
    torch.manual_seed(0)
    model = build().eval()
    few, many = (waits(monkeypatch, hf_cam.CAM(model, "gradcam"), images, **inputs) for images in (2, 7))
    assert few == many <= most


def test_targets_in_a_tensor_on_the_device_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cam = hf_cam.CAM(classifier().model)
    found = [waits(monkeypatch, cam, images, torch.arange(images) % 3) for images in (2, 7)]
    assert found[0] == found[1] <= 5


@pytest.mark.parametrize("method", ["eigencam", "hirescam", "layercam", "gradcam++"])
def test_other_methods_wait_as_often_too(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cam = hf_cam.CAM(classifier().model, method)
    few, many = (waits(monkeypatch, cam, images) for images in (2, 7))
    assert few == many <= 3
