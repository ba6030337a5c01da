"""Gradients pass through linear layers for those tokens alone that they reach."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_cam import CAM
from hf_cam.capture.capture import capture
from hf_cam.capture.guard import borrowed, forwards
from hf_cam.capture.linear import by_tokens
from nets import make
from pictures import pictures


class Tokens(nn.Module):
    """Two linear layers on `[B, N, C]` tokens; the score reads the token or tokens that it is told."""

    def __init__(self, read: slice) -> None:
        super().__init__()
        self.first, self.second, self.read = nn.Linear(6, 10), nn.Linear(10, 4, bias=False), read

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(tokens).tanh())[:, self.read].sum()


def gradients(net: Tokens, *, stubbed: bool) -> tuple[torch.Tensor, int]:
    """The score's gradient at the tokens, and how many rows the products of the backward had."""
    tokens = torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with borrowed(net) as net, forwards(by_tokens(net) if stubbed else {}):
        score = net(tokens)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as watch:
        [found] = torch.autograd.grad(score, tokens)
    shapes = [event.input_shapes[0][0] for event in watch.events() if event.name == "aten::mm"]
    assert len(shapes) == 2
    return found, max(shapes)


@pytest.mark.parametrize(("read", "products"), [(slice(0, 1), 3), (slice(7, 9), 6), (slice(0, 50), 150)])
def test_only_the_tokens_that_are_reached_are_multiplied_out_and_nothing_else_changes(
    read: slice, products: int
) -> None:
    torch.manual_seed(0)
    net = Tokens(read)
    expected, whole = gradients(net, stubbed=False)
    found, rows = gradients(net, stubbed=True)
    assert (rows, whole) == (products, 150)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_what_a_linear_layer_returns_may_be_written_to_in_place() -> None:
    layer = nn.Linear(4, 4)
    tokens = torch.randn(2, 5, 4, requires_grad=True)
    with borrowed(layer) as layer, forwards(by_tokens(layer)):
        found = layer(tokens)
        found[:, 0] = 0
        [gradient] = torch.autograd.grad(found.sum(), tokens)
    assert not gradient[:, 0].any()
    assert gradient[:, 1:].any()


@pytest.mark.parametrize("fails", [False, True])
def test_the_layers_run_by_their_own_forward_afterwards(fails: bool) -> None:
    net = Tokens(slice(0, 1))
    own = net.second.forward
    net.second.__dict__["forward"] = own  # as accelerate leaves its own there
    tokens = torch.randn(1, 5, 7 if fails else 6)
    if fails:
        with pytest.raises(RuntimeError), capture(net, ["first"], {"tokens": tokens}):
            pass
    else:
        with capture(net, ["first"], {"tokens": tokens}) as captured:
            assert captured.activations[0].requires_grad
    assert "forward" not in net.first.__dict__
    assert net.second.__dict__["forward"] is own


def test_a_subclass_of_linear_keeps_its_own_forward() -> None:
    class Doubled(nn.Linear):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(given)

    assert by_tokens(nn.Sequential(Doubled(3, 3), nn.Conv2d(3, 3, 1))) == {}


def test_second_derivatives_and_mixed_precision_go_the_usual_way() -> None:
    net, picture = make("vit"), pictures(1)
    assert CAM(net, "shapleycam")(picture, 1).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = CAM(net, "gradcam")(picture, 1)
    plain = CAM(net, "gradcam")(picture, 1)
    assert torch.corrcoef(torch.stack([mixed.flatten(), plain.flatten()]))[0, 1] > 0.9
