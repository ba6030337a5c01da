"""The structural probe: find the target layer of an undescribed model from one traced forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hf_cam.capture.guard import borrowed
from hf_cam.errors import UnknownArchitecture
from hf_cam.layouts import NCHW, NHWC, TOKENS, Layout, Size, token_grids
from hf_cam.models.traits import unwrap
from hf_cam.target_layers.noise import Verdict, check_layouts
from hf_cam.target_layers.trace import Produced, Trace, path_shares, trace

MIN_COVERAGE = 0.95
MIN_SHARE = 0.6
TRUNK = 0.99
ROUND = 8  # candidates whose gradients one backward pass fetches
ROUNDS = 3


@dataclass(frozen=True)
class Finding:
    """The layer that the probe chose.

    Args:
        layer: Dotted module name.
        layout: The spatial layout of its output.
        coverage: Share of its cells with a nonzero gradient of the target.
        share: Share of the paths in the autograd graph from target to picture that run through it.
        verdict: The verdict of the noise check; "undecided" also if it was not run, "refuted" only if it refuted every
            candidate.
    """

    layer: str
    layout: Layout
    coverage: float
    share: float
    verdict: Verdict = "undecided"


@dataclass(frozen=True)
class _Candidate:
    layer: str
    side: bool  # the output of a projection or of a part of a side branch, the last to be chosen
    layout: Layout
    grid: Size
    channels: int
    share: float
    edge: GradientEdge

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]


def probe(model: nn.Module, inputs: Mapping[str, Any], *, patch: Size | None = None, check: bool = True) -> Finding:
    """The deepest layer whose output is spatial and nearly all of whose cells can still influence the target.

    One forward is traced with a graph from the picture on; one backward computes the gradients of the best candidates.
    Nothing about the architecture is assumed, and the model is left unchanged.

    Args:
        model: Any module that maps a picture to scores.
        inputs: Its named inputs, among them the picture `(B, C, H, W)`, at the real input size because grids and
            windows depend on it.
        patch: Height and width of the model's patch in pixels, if the config gives them.
        check: Also disturb the picture (four more forwards without gradients) and check that the layer's output
            changes where the layout predicts.

    Raises:
        UnknownArchitecture: no layer qualifies.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(1))
    >>> finding = probe(net, {"pixel_values": torch.rand(1, 3, 32, 48)})
    >>> finding.layer, finding.layout.axes
    ('1', 'b c h w')
    """
    module = unwrap(model)
    refuted: Finding | None = None
    with borrowed(module):
        traced = trace(module, inputs, patch)
        for found in _covered(traced):
            if not check:
                return found[0]
            verdicts = check_layouts(module, inputs, [(finding.layer, finding.layout) for finding in found])
            for finding, verdict in zip(found, verdicts, strict=True):
                if verdict != "refuted":
                    return replace(finding, verdict=verdict)
            refuted = refuted or replace(found[0], verdict="refuted")
    if refuted is None:
        raise UnknownArchitecture(_why_nothing(module, traced))
    return refuted


def _why_nothing(module: nn.Module, traced: Trace) -> str:
    height, width = traced.image_size
    return (
        f"no layer of {type(module).__name__} returns a map or a token grid of the {height} x {width} input with at "
        f"least {MIN_COVERAGE:.0%} of its cells influencing the output ({len(traced.produced)} outputs examined); "
        "pass the layer and its layout yourself (layers=, reshape=)"
    )


# Target --------------------------------------------------------------------------------------------------------------

_FIELDS = (
    "logits", "logits_per_image", "class_logits", "pred_logits", "predicted_depth", "image_embeds", "pooler_output"
)  # fmt: skip


def _likeliest(name: str) -> int:
    if name in _FIELDS:
        return _FIELDS.index(name)
    return 2 if "logits" in name else len(_FIELDS)


def _fields(output: Any) -> list[Tensor]:
    """The tensors of an output that can serve as scores, most likely first; the next is used if one is constant."""
    if isinstance(output, Mapping):
        names = sorted(output, key=_likeliest)
        values: Sequence[Any] = [output[name] for name in names]
    else:
        values = output if isinstance(output, list | tuple) else [output]
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            usable = value.requires_grad and value.is_floating_point() and value.numel()
            found += [value] if usable else []
        elif isinstance(value, Mapping | list | tuple):
            found += _fields(value)
    return found


def scores(output: Any) -> Iterator[Tensor]:
    """Scalars to differentiate, for any head: for each field of the output, the sum of the best classes' scores."""
    return (_score(field) for field in _fields(output))


def _score(scores: Tensor) -> Tensor:
    """The score of the best class, summed over all other axes; infinite entries, which mask a class, are left out."""
    finite = scores.where(scores.isfinite(), torch.finfo(scores.dtype).min)
    best = finite.amax(dim=1 if scores.ndim >= 4 else -1)
    return best.where(best > torch.finfo(scores.dtype).min, 0).float().sum()


# Candidates ----------------------------------------------------------------------------------------------------------


def _covered(traced: Trace) -> Iterator[list[Finding]]:
    """Rounds of layers whose cells influence the target, best first, for the first output field that has any."""
    for field in _fields(traced.output):
        score = _score(field)
        ranked = iter(_ranked(traced, field, score))
        reached = False
        for _ in range(ROUNDS):
            if findings := _with_gradients(score, list(islice(ranked, ROUND)), traced.image_size):
                reached = True
                yield findings
        if reached:
            return


def _with_gradients(score: Tensor, candidates: list[_Candidate], image_size: Size) -> list[Finding]:
    if not candidates:
        return []
    edges = [candidate.edge for candidate in candidates]
    gradients = torch.autograd.grad(score, edges, retain_graph=True, allow_unused=True)
    found = []
    for candidate, gradient in zip(candidates, gradients, strict=True):
        if gradient is None:
            continue
        coverage = candidate.layout.to_spatial(gradient, image_size).ne(0).any(1).float().mean().item()
        if coverage >= MIN_COVERAGE:
            found.append(Finding(candidate.layer, candidate.layout, coverage, candidate.share))
    return found


def _ranked(traced: Trace, field: Tensor, score: Tensor) -> list[_Candidate]:
    """Candidates in order of preference, before any gradient is computed."""
    share = path_shares(score, traced.picture)
    target = get_gradient_edge(field)
    readable = [
        _Candidate(
            one.layer,
            _aside(one, part),
            layout,
            layout.grid(one.shape, traced.image_size),
            _channels(one, layout),
            part,
            one.edge,
        )
        for one in traced.produced
        if (one.edge.node, one.edge.output_nr) != (target.node, target.output_nr)
        and (part := share(one.edge)) >= MIN_SHARE
        for layout in _readings(one.shape, traced)
    ]
    pool = _without_class_maps(_in_scope(readable), classes=field.shape[1 if field.ndim >= 4 else -1])
    pool.reverse()  # the deepest first
    return sorted(pool, key=lambda candidate: candidate.side)


def _aside(one: Produced, share: float) -> bool:
    return one.projection or (share < TRUNK and not one.landmark)


def _in_scope(readable: list[_Candidate]) -> list[_Candidate]:
    """Named layers on the coarsest grid if the trunk ends there; else (decoders) those before the maps get finer again.

    A grid on which no layer has a name is skipped: only the model's answer lies on it.
    """
    scope: list[_Candidate] = []
    while readable and not scope:
        coarsest = min(candidate.cells for candidate in readable)
        scope = [candidate for candidate in _scope(readable, coarsest) if candidate.layer]
        readable = [candidate for candidate in readable if candidate.cells > coarsest]
    return scope


def _scope(readable: list[_Candidate], coarsest: int) -> list[_Candidate]:
    trunk = [candidate for candidate in readable if candidate.share >= TRUNK]
    if trunk and trunk[-1].cells == coarsest:
        return [candidate for candidate in readable if candidate.cells == coarsest]
    scope: list[_Candidate] = []
    for candidate in readable:
        if scope and candidate.cells > scope[-1].cells:
            break
        scope.append(candidate)
    return scope


def _without_class_maps(pool: list[_Candidate], classes: int) -> list[_Candidate]:
    """Drop the last candidates if their channels are already classes: they are the target itself, before pooling.

    Only a short run is dropped; a long one means that the network pools its last stage and returns the result.
    """
    end = len(pool)
    while end and pool[end - 1].channels == classes:
        end -= 1
    return pool[:end] if len(pool) < 2 * end else pool


def _channels(one: Produced, layout: Layout) -> int:
    return one.shape[1] if layout.axes == NCHW else one.shape[-1]


def _readings(shape: tuple[int, ...], traced: Trace) -> Iterator[Layout]:
    """Every layout under which a shape is one of the grids found in the forward."""
    if shape[0] != traced.picture.shape[0]:
        return  # windows, tiles or frames in the batch axis
    if len(shape) == 4:
        oblong = next((patch for patch in traced.patches if patch[0] != patch[1]), None)
        for axes, grid in ((NCHW, (shape[2], shape[3])), (NHWC, (shape[1], shape[2]))):
            if grid in traced.grids:
                yield Layout(axes, patch=oblong)
    elif len(shape) == 3:
        prefix, suffix = traced.joins.get(shape[1], (0, 0))
        for patch in (*traced.patches, None):
            grids = token_grids(shape[1] - prefix - suffix, traced.image_size, patch)
            if len(grids) == 1 and grids[0] in traced.grids:
                yield Layout(TOKENS, prefix, suffix, patch)
                return
