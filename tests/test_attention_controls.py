"""Heads, layers, queries, fusion and discarding of the attention methods, each against loops in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_cam.cam import CAM
from hf_cam.errors import HFCamError, OptionError
from hf_cam.methods import get_method
from hf_cam.methods.controls import Heads
from hf_cam.targets import QueryLogit, as_target
from nets import make
from pictures import pictures

FUSE = {"mean": lambda values: sum(values) / len(values), "max": max, "min": min}
SETTINGS: list[dict[str, Any]] = [
    {"head": 1},
    {"head": [1, 0]},
    {"head_fusion": "max"},
    {"head_fusion": "min"},
    {"discard_ratio": 0.4},
    {"head_fusion": "max", "discard_ratio": 0.9},
    {"start_layer": 1},
    {"end_layer": -1},
    {"start_layer": 1, "end_layer": 2},
    {"query": 7},
    {"query": [2, 3]},
    {"head": [0], "start_layer": 1, "query": [0, 5], "discard_ratio": 0.25},
]
GRID = (4, 6)
EAGER = 1e-7
"""The model's own eager attention takes the softmax in float32."""


def eager_vit() -> tuple[list[Tensor], list[Tensor]]:
    """Weights and gradients `[heads, N, N]` of each layer, by the model's own eager attention."""
    net, x = make("vit", torch.float64), pictures(1, dtype=torch.float64)
    net.set_attn_implementation("eager")
    outputs = net(x.clone().requires_grad_(), output_attentions=True)
    gradients = torch.autograd.grad(outputs.logits[0, 1], outputs.attentions)
    return [one[0].detach() for one in outputs.attentions], [one[0] for one in gradients]


def slow_fused(heads: Tensor, head: Any = None, head_fusion: str = "mean", discard_ratio: float = 0.0) -> Tensor:
    """Entry by entry, then the smallest entries one after the other."""
    chosen = range(len(heads)) if head is None else [head] if isinstance(head, int) else head
    matrix = torch.zeros(heads.shape[1:], dtype=torch.float64)
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            matrix[i, j] = FUSE[head_fusion]([float(heads[h, i, j]) for h in chosen])
    places = sorted((float(matrix[i, j]), i, j) for i in range(matrix.shape[0]) for j in range(matrix.shape[1]))
    for _, i, j in places[: int(discard_ratio * len(places))]:
        matrix[i, j] = 0
    return matrix


def row_of(query: Any) -> int:
    return 0 if query is None else query if isinstance(query, int) else 1 + query[0] * GRID[1] + query[1]


def slow_rollout(
    weights: list[Tensor], start_layer: int = 0, end_layer: Any = None, query: Any = None, **how
) -> Tensor:
    total = torch.eye(25, dtype=torch.float64)
    for heads in weights[start_layer:end_layer]:
        mixed = slow_fused(heads, **how) + torch.eye(25, dtype=torch.float64)
        for i in range(25):
            mixed[i] /= float(mixed[i].sum())
        total = mixed @ total
    return total[row_of(query), 1:].reshape(GRID)


def slow_chefer(
    weights: list[Tensor],
    gradients: list[Tensor],
    start_layer: int = 0,
    end_layer: Any = None,
    query: Any = None,
    **how,
) -> Tensor:
    total = torch.eye(25, dtype=torch.float64)
    for heads, slopes in list(zip(weights, gradients, strict=True))[start_layer:end_layer]:
        total = total + slow_fused((heads * slopes).clamp(min=0), **how) @ total
    return (total - torch.eye(25, dtype=torch.float64))[row_of(query), 1:].reshape(GRID)


def raw_of(name: str, method: str, target: Any = 1, **options: Any) -> Tensor:
    cam, x = CAM(make(name, torch.float64), method, **options), pictures(1, dtype=torch.float64)
    return cam.saliency(x, lambda _: [[as_target(target)]]).raw[0][0, 0]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_rollout_follows_its_equation(options: dict[str, Any]) -> None:
    weights, _ = eager_vit()
    torch.testing.assert_close(
        raw_of("vit", "rollout", **options), slow_rollout(weights, **options), atol=EAGER, rtol=0
    )


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_chefer_follows_its_equation(options: dict[str, Any]) -> None:
    expected = slow_chefer(*eager_vit(), **options)
    assert expected.any()
    torch.testing.assert_close(raw_of("vit", "chefer", **options), expected, atol=EAGER, rtol=0)


@pytest.mark.parametrize("layer", [None, 0, 1, -1])
@pytest.mark.parametrize("options", [one for one in SETTINGS if not {"start_layer", "end_layer"} & set(one)], ids=str)
def test_raw_attention_is_a_row_of_one_layer(layer: int | None, options: dict[str, Any]) -> None:
    how, weights = {name: value for name, value in options.items() if name != "query"}, eager_vit()[0]
    matrix = slow_fused(weights[-1 if layer is None else layer], **how)
    expected = matrix[row_of(options.get("query")), 1:].reshape(GRID)
    torch.testing.assert_close(raw_of("vit", "raw-attention", layer=layer, **options), expected, atol=EAGER, rtol=0)


@pytest.mark.parametrize(
    "options", [{"head": 1}, {"head_fusion": "max"}, {"head_fusion": "min", "head": [0, 1]}], ids=str
)
def test_legrad_fuses_the_heads_of_each_layer(options: dict[str, Any]) -> None:
    net, x = make("vit", torch.float64), pictures(1, dtype=torch.float64)
    net.set_attn_implementation("eager")
    outputs = net(x.clone().requires_grad_(), output_attentions=True, output_hidden_states=True)
    tokens, weights = outputs.hidden_states[2], outputs.attentions[1]
    score = net.classifier(net.vit.layernorm(tokens.mean(1)))[0, 1]
    [slopes] = torch.autograd.grad(score, weights)
    expected = slow_fused(slopes[0].clamp(min=0), **options).mean(0)[1:].reshape(GRID)
    found = raw_of("vit", "legrad", start_layer=1, end_layer=2, **options)
    torch.testing.assert_close(found, expected, atol=EAGER, rtol=0)


def test_gradeclips_heads_add_up_to_its_map() -> None:
    parts = [raw_of("vit", "gradeclip", head=head) for head in (0, 1)]
    torch.testing.assert_close(parts[0] + parts[1], raw_of("vit", "gradeclip"), atol=EAGER, rtol=0)
    torch.testing.assert_close(raw_of("vit", "gradeclip", query=0), raw_of("vit", "gradeclip"), atol=EAGER, rtol=0)
    assert not raw_of("vit", "gradeclip", query=3).any()  # the target does not read it


@pytest.mark.parametrize("method", ["rollout", "chefer", "raw-attention"])
def test_a_query_of_a_decoder_is_an_object_query(method: str) -> None:
    named = [raw_of("detr", method, QueryLogit(2, 1), query=query) for query in (2, 4)]
    torch.testing.assert_close(named[0], raw_of("detr", method, QueryLogit(2, 1)), atol=EAGER, rtol=0)
    assert not torch.allclose(named[0], named[1])


def test_layers_of_raw_attention_are_those_of_the_decoder_where_there_is_one() -> None:
    first, last = (raw_of("detr", "raw-attention", QueryLogit(2, 1), layer=layer) for layer in (0, -1))
    torch.testing.assert_close(last, raw_of("detr", "raw-attention", QueryLogit(2, 1)), atol=EAGER, rtol=0)
    assert not torch.allclose(first, last)


@pytest.mark.parametrize(
    ("name", "method", "options", "reason"),
    [
        pytest.param("vit", "rollout", {"head": 2}, "heads 0 to 1, got 2", id="no such head"),
        pytest.param("vit", "chefer", {"head": []}, "heads 0 to 1", id="no head"),
        pytest.param("vit", "legrad", {"head": -1}, "heads 0 to 1", id="a negative head"),
        pytest.param("vit", "rollout", {"start_layer": 3}, "no layer lies between", id="behind the last layer"),
        pytest.param("vit", "chefer", {"start_layer": 2, "end_layer": 1}, "there are 3", id="layers the wrong way"),
        pytest.param("vit", "legrad", {"start_layer": 3}, "there are 3", id="behind the last readout"),
        pytest.param("vit", "raw-attention", {"layer": 5}, "no layer lies between", id="no such layer"),
        pytest.param("vit", "rollout", {"query": 25}, "tokens 0 to 24", id="no such token"),
        pytest.param("vit", "rollout", {"query": [4, 0]}, "4 x 6 grid", id="no such cell"),
        pytest.param("vit", "rollout", {"query": [1, 2, 3]}, "4 x 6 grid", id="no cell"),
        pytest.param("vit", "rollout", {"discard_ratio": 1.0}, r"\[0, 1\)", id="nothing left"),
        pytest.param("vit", "rollout", {"discard_ratio": -0.1}, r"\[0, 1\)", id="less than nothing"),
        pytest.param("vit", "rollout", {"head_fusion": "sum"}, "'mean' or 'max' or 'min'", id="no such fusion"),
        pytest.param("timm-pool", "raw-attention", {"layer": 0}, "name one of them as query=", id="behind a pool"),
        pytest.param("timm-pool", "rollout", {"query": [0, 0]}, "no cells", id="a pool has no cell"),
    ],
)
def test_settings_that_name_nothing_are_refused(name: str, method: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        CAM(make(name), method, **options)(pictures(1), 1)


def test_a_token_behind_a_pool_may_be_read_by_its_number() -> None:
    found = raw_of("timm-pool", "raw-attention", layer=0, query=[1, 2])
    assert found.sum() == pytest.approx(1)


def test_several_images_are_discarded_each_for_itself() -> None:
    heads = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    how = Heads(discard_ratio=0.5)
    torch.testing.assert_close(how(heads)[1:], how(heads[1:]))
    assert (how(heads) == 0).sum((1, 2)).tolist() == [8, 8]


def test_the_defaults_leave_every_method_as_it_was() -> None:
    for method in ("rollout", "chefer", "raw-attention"):
        options = get_method(method).options
        assert (options["head"], options["head_fusion"], options["discard_ratio"], options["query"]) == (
            None, "mean", 0.0, None,
        )  # fmt: skip


def test_the_command_and_explain_take_them(photo, vit_folder, picture_file, tmp_path) -> None:
    import hf_cam
    from hf_cam.interfaces.cli import main

    options = {"head": 0, "head_fusion": "max", "query": [1, 2]}
    [plain] = hf_cam.explain(photo, model=str(vit_folder), method="rollout")
    [found] = hf_cam.explain(photo, model=str(vit_folder), method="rollout", method_options=options)
    assert abs(found.raw - plain.raw).max() > 0
    given = ["explain", str(picture_file), "--model", str(vit_folder), "--method", "rollout"]
    given += ["--option", "head=0", "--option", "head_fusion=max", "--option", "query=[1,2]"]
    assert main([*given, "--out", str(tmp_path / "map.png")]) == 0
    with pytest.raises(HFCamError, match="head must name"):
        hf_cam.explain(photo, model=str(vit_folder), method="rollout", method_options={"head": 9})
