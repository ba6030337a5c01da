"""Methods for transformers: `A` are attention weights `[B, heads, N, M]`, `dA` the target's gradients at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from hf_cam.capture.attention import Attention, AttentionTrace, Readouts
from hf_cam.capture.guard import kept
from hf_cam.capture.local_rules import Gates
from hf_cam.errors import MethodError
from hf_cam.maps import normalize
from hf_cam.methods.controls import Chosen, Fusion, Heads, in_range, rows_read
from hf_cam.methods.registry import method

EMPTY = 0.8
"""The value of the map of a prompt that names nothing from which LeGrad's authors discard a cell."""


@method(
    "raw-attention",
    name="RawAttention",
    tokens_only=True,
    paper="the weights themselves, as shown by Dosovitskiy et al., ViT, ICLR 2021, arXiv:2010.11929",
    summary="Attention weights of the last layer, from the tokens that the target reads.",
    unsigned="attention weights are never negative",
)
def raw_attention(
    attention: AttentionTrace,
    layer: int | None = None,
    head: Chosen = None,
    head_fusion: Fusion = "mean",
    discard_ratio: float = 0.0,
    query: Chosen = None,
) -> Tensor:
    """The weights of one layer in the rows that the target reads, `mean_h A`.

    Args:
        attention: The trace.
        layer: The layer, counted in the encoder, or in the decoder of models with queries; negative from the end. The
            last call, which may be a pool, where not given.
        head, head_fusion, discard_ratio, query: As in `rollout`.

    Raises:
        OptionError: there is no such layer, head or query.
    """
    heads = Heads(head, head_fusion, discard_ratio)
    calls = [cross for _, cross in attention.decoder] or attention.encoder
    call = attention.last if layer is None else in_range(calls, layer, layer + 1 or None)[0]
    return _on_cells(attention, _rows(rows_read(attention, query, call), heads(call.weights)))


@method(
    "rollout",
    name="AttentionRollout",
    tokens_only=True,
    paper="Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020, arXiv:2005.00928",
    summary="Attention weights of all layers, multiplied, from the tokens that the target reads.",
    departure="For DETR, which the paper does not treat, as in the code of Chefer et al.",
    unsigned="attention weights are never negative",
)
def rollout(
    attention: AttentionTrace,
    start_layer: int = 0,
    end_layer: int | None = None,
    head: Chosen = None,
    head_fusion: Fusion = "mean",
    discard_ratio: float = 0.0,
    query: Chosen = None,
) -> Tensor:
    """`prod_l (mean_h A_l + I) / 2`, in the rows that the target reads; each sums to one over all tokens.

    A pool's weights are multiplied in front. In DETR the rows are those of `R_qq^T mean_h(A) R_ii`, with the last
    cross-attention A and the rollouts `R_qq` and `R_ii` of the self-attention among queries and among cells, as in the
    code of Chefer et al. (arXiv:2103.15679).

    Args:
        attention: The trace.
        start_layer, end_layer: The layers of the encoder that count, as in a slice: the first, and the one behind the
            last; negative numbers count from the end.
        head: The number of the head that counts, or a list of several; all where not given.
        head_fusion: "mean" of the heads, or "max" or "min": the largest or smallest value of each entry. Rows of
            `A_l + I` are scaled to the sum 1 in any case.
        discard_ratio: The share of the entries of each fused matrix, its smallest, that are set to zero.
        query: The row that is read in place of those that the target reads: the number of a token (in a model with a
            decoder, of an object query), or `(row, column)` of a cell.

    Raises:
        OptionError: there is no such layer, head or query.
    """
    heads, rows = Heads(head, head_fusion, discard_ratio), rows_read(attention, query)
    if attention.decoder:
        rows = _transposed_rollout(rows, [heads(own.weights) for own, _ in attention.decoder])
    if attention.decoder or attention.pool is not None:
        rows = _rows(rows, heads(attention.last.weights))
    for call in reversed(in_range(attention.encoder, start_layer, end_layer)):
        matrix = heads(call.weights)
        rows = rows / (matrix.sum(-1) + 1)
        rows = rows + _rows(rows, matrix)
    return _on_cells(attention, rows)


@method(
    "chefer",
    name="Chefer",
    paper="Chefer et al., Generic Attention-model Explainability, ICCV 2021, arXiv:2103.15679",
    summary="Attention weights times their gradients, accumulated over all layers; in DETR, for a single detection.",
    departure=(
        "In DETR, a row of zeros stays zero where equation 9 divides by 0; the authors' code sets the resulting "
        "NaN of the product to 0."
    ),
    unsigned="it keeps positive gradients alone",
)
def chefer(
    attention_gradients: AttentionTrace,
    start_layer: int = 0,
    end_layer: int | None = None,
    head: Chosen = None,
    head_fusion: Fusion = "mean",
    discard_ratio: float = 0.0,
    query: Chosen = None,
) -> Tensor:
    """`R <- R + mean_h(relu(A dA)) R` layer by layer from `R = I`; the rows of `R - I` that the target reads.

    The queries of a decoder attend to each other, `R_qq <- R_qq + a R_qq` and `R_qi <- R_qi + a R_qi`, and to the
    cells, `R_qi <- R_qi + n(R_qq)^T a n(R_ii)` with `n(R) = (R - I) / rowsum(R - I) + I` (eqs. 8 to 11).

    Args:
        attention_gradients: The trace, with gradients.
        start_layer, end_layer, head, query: As in `rollout`.
        head_fusion, discard_ratio: As in `rollout`, of `relu(A dA)`.

    Raises:
        OptionError: there is no such layer, head or query.
    """
    trace, heads = attention_gradients, Heads(head, head_fusion, discard_ratio)
    rows, encoder = rows_read(trace, query), in_range(trace.encoder, start_layer, end_layer)
    if trace.decoder:
        return _on_cells(trace, _rows(rows, _queries_to_cells(trace, encoder, heads)))
    if trace.pool is not None:
        rows = _rows(rows, _relevance(trace.pool, heads))
    start = rows if trace.pool is None else torch.zeros_like(rows)
    for call in reversed(encoder):
        rows = rows + _rows(rows, _relevance(call, heads))
    return _on_cells(trace, rows - start)


@method(
    "legrad",
    name="LeGrad",
    paper="Bousselham et al., LeGrad, ICCV 2025, arXiv:2404.03214",
    summary="Gradient of each layer's own readout of the target with respect to its attention weights.",
    departure="The last two layers count by default, as in the authors' code; the paper sums over all (start_layer=0).",
    unsigned="it keeps positive gradients alone",
)
def legrad(
    readouts: Readouts,
    start_layer: int = -2,
    end_layer: int | None = None,
    head: Chosen = None,
    head_fusion: Fusion = "mean",
    empty_prompt: int | None = None,
) -> Tensor:
    """`mean_h mean_rows relu(ds_l / dA_l)` for each layer l, where `s_l` is the target read from that layer's output.

    The head gets the layer's mean token in place of the last layer's tokens. A head that pools by attention gets the
    layer's own tokens, and the gradient is taken with respect to the pool's weights.

    Args:
        readouts: Each layer's own readout of the target.
        start_layer: The first layer that counts; negative indices count from the end, as in a slice. The authors' code
            sums over the last two by default (-2), which localizes better here too; the paper sums over all (0).
        end_layer, head: As in `rollout`.
        head_fusion: As in `rollout`, of `relu(ds_l / dA_l)`.
        empty_prompt: The index of a prompt that names nothing, such as "a photo of a", among the prompts. Where the map
            of this prompt, scaled to [0, 1], exceeds 0.8, the map is set to zero, as the authors do for SigLIP.

    Raises:
        MethodError: the target is no prompt.
        OptionError: there is no such layer or head.
    """
    layers, heads = in_range(range(readouts.layers), start_layer, end_layer), Heads(head, head_fusion)

    def strengths(prompt: int | None) -> Tensor:
        calls = (readouts.read(layer, prompt) for layer in layers)
        return torch.stack([readouts.cells(_strength(call, heads)) for call in calls], 1)

    found = strengths(None)
    if empty_prompt is None:
        return found
    empty = normalize(strengths(empty_prompt).sum(1, keepdim=True))
    return found.masked_fill(empty > EMPTY, 0)


@method(
    "gradeclip",
    name="GradECLIP",
    paper="Zhao et al., Gradient-based Visual Explanation for Transformer-based CLIP, ICML 2024, PMLR 235:61072",
    summary="What each cell's value adds to the target in the last attention, weighted by key-query similarity.",
    departure=(
        "The model's own forward is explained; the authors' code recomputes the last attention with a single head, "
        "and compares q and k behind the output projection."
    ),
)
def gradeclip(
    attention: AttentionTrace,
    heads: Literal["merged", "own"] = "merged",
    spatial: bool = True,
    head: Chosen = None,
    query: Chosen = None,
) -> Tensor:
    """`relu(sum_c g_c v_ic w_i)` for the last attention, where g is the target's gradient at the output row read.

    `w_i` is the cosine of that row's query and the key of cell i, scaled to [0, 1] over the cells. A later paper, Zhao
    et al., Grad-ECLIP: Gradient-based Visual and Textual Explanations for CLIP, arXiv:2502.18816, extends it to texts.

    Args:
        attention: The trace, with a gradient at its last call.
        heads: "merged" computes the cosine over the channels of all heads, as the authors do; "own" per head, as the
            model attends.
        spatial: False omits `w`.
        head: The number of the head whose values count, or a list of several; all where not given.
        query: As in `rollout`.

    Raises:
        MethodError: `heads` has another value.
        OptionError: there is no such head or query.
    """
    if heads not in ("own", "merged"):
        raise MethodError(f"heads must be 'own' or 'merged', not {heads!r}")
    last = attention.last
    strength = last.weight_gradients  # g . v, [B, heads, N, M]
    if spatial:
        queries, keys = (kept(tensor).to(strength.dtype) for tensor in (last.query, last.key))
        if heads == "merged":
            queries, keys = (tensor.transpose(1, 2).flatten(2)[:, None] for tensor in (queries, keys))
        cosine = torch.nn.functional.normalize(queries, dim=-1) @ torch.nn.functional.normalize(keys, dim=-1).mT
        strength = strength * _stretched(cosine, attention)
    read = (rows_read(attention, query) > 0).to(strength.dtype)
    return _on_cells(attention, _rows(read, Heads(head).of(strength).sum(1)))


@method(
    "attnlrp",
    name="AttnLRP",
    paper="Achtibat et al., AttnLRP, ICML 2024, arXiv:2402.05602",
    summary="Token times gradient at the input of the first block, under rules that conserve the score.",
    departure=(
        "The epsilon rule throughout, without the gamma rules that the authors tune for ViTs; relevance is read at "
        "the first block, not at the pixels."
    ),
)
def attnlrp(halved_terms: Tensor) -> Tensor:
    """`x g` at the tokens that enter the first block, where g follows the rules of AttnLRP."""
    return halved_terms[:, :1]


@method(
    "libragrad",
    name="LibraGrad",
    paper="Mehri et al., LibraGrad, CVPR 2025, arXiv:2411.16760",
    summary="Token times gradient, summed over all blocks, with attention, norms and activations' slopes frozen.",
    departure=(
        "A factor that is a sigmoid or tanh is constant under either rule for gates; the terms of the biases are "
        "left out."
    ),
)
def libragrad(frozen_terms: Callable[[Gates], Tensor], gates: Gates = "halved") -> Tensor:
    """`sum_c x_c g_c` at the tokens between all blocks, g under LibraGrad's rules: HiResCAM, summed over layers.

    Args:
        frozen_terms: From the rule for gated products to the terms of each block.
        gates: In a gated MLP (SwiGLU), "halved" gives each factor of the product half of the gradient, as the authors
            do; "frozen" gives all of it to the factor without an activation.
    """
    return frozen_terms(gates)


@method(
    "libracam",
    name="LibraCAM",
    paper="Mehri et al., LibraGrad, CVPR 2025, arXiv:2411.16760 (as its HiResCAM)",
    summary="HiResCAM at the last tokens on which the target depends, under the rules of LibraGrad.",
    departure="As 'libragrad'.",
)
def libracam(frozen_terms: Callable[[Gates], Tensor], gates: Gates = "halved") -> Tensor:
    """`sum_c x_c g_c` at the last tokens on which the target depends, where g follows the rules of LibraGrad.

    These tokens are the last block's output if the head reads the cells, and its input if the head reads a class token.

    Args:
        frozen_terms: From the rule for gated products to the terms of each block.
        gates: As in `libragrad`.
    """
    terms = frozen_terms(gates)
    depends = terms.flatten(2).any(2)  # [B, blocks + 1]: image by image, so that none depends on another
    last = (depends * torch.arange(depends.shape[1], device=depends.device)).amax(1)
    return terms[torch.arange(len(last), device=last.device), last][:, None]


def _transposed_rollout(rows: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """`rows (prod_l n(A_l + I))^T`, `[B, N]`, where n scales each row to the sum 1."""
    for matrix in matrices:
        rows = (rows + _rows(rows, matrix.mT)) / (matrix.sum(-1) + 1)
    return rows


def _strength(call: Attention, heads: Heads) -> Tensor:
    """`mean_rows mean_h relu(dA)`, `[B, M]`."""
    return torch.cat([heads(one.weight_gradients.clamp_min_(0)).mean(1) for one in call.images()])


def _relevance(call: Attention, heads: Heads) -> Tensor:
    """`mean_h relu(A dA)`, `[B, N, M]`."""
    parts = [heads(one.weight_gradients.mul_(one.weights).clamp_min_(0)) for one in call.images()]
    return torch.cat(parts)


def _queries_to_cells(trace: AttentionTrace, encoder: Sequence[Attention], heads: Heads) -> Tensor:
    first = trace.encoder[0].output
    cells = queries = torch.empty(0)
    for start in ("cells", "queries"):
        call = trace.encoder[0] if start == "cells" else trace.decoder[0][0]
        size = call.query.shape[2]
        eye = torch.eye(size, device=first.device, dtype=_relevance(call, Heads()).dtype).expand(len(first), size, size)
        cells, queries = (eye, queries) if start == "cells" else (cells, eye)
    for call in encoder:
        cells = cells + _relevance(call, heads) @ cells
    crossed = torch.zeros(len(first), queries.shape[1], cells.shape[1], device=first.device, dtype=cells.dtype)
    for own, cross in trace.decoder:
        among = _relevance(own, heads)
        queries, crossed = queries + among @ queries, crossed + among @ crossed
        crossed = crossed + _normed(queries).mT @ _relevance(cross, heads) @ _normed(cells)
    return crossed


def _normed(relevance: Tensor) -> Tensor:
    """`(R - I) / row sums + I`."""
    eye = torch.eye(relevance.shape[-1], device=relevance.device, dtype=relevance.dtype)
    gained = relevance - eye
    return gained / gained.sum(-1, keepdim=True).clamp_min(torch.finfo(gained.dtype).tiny) + eye


def _rows(rows: Tensor, matrix: Tensor) -> Tensor:
    """`[B, N] x [B, N, M] -> [B, M]`."""
    return (rows[:, None].to(matrix.dtype) @ matrix)[:, 0]


def _on_cells(trace: AttentionTrace, tokens: Tensor) -> Tensor:
    """`[B, M] -> [B, 1, h, w]`."""
    return trace.cells(tokens)[:, None]


def _stretched(cosine: Tensor, trace: AttentionTrace) -> Tensor:
    """Each row, scaled to [0, 1] by its extremes over the cells."""
    cells = trace.cells(cosine).flatten(-2)
    low, high = cells.amin(-1, keepdim=True), cells.amax(-1, keepdim=True)
    return (cosine - low) / (high - low).clamp_min(torch.finfo(cosine.dtype).eps)
