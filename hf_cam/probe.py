"""The structural probe: where to look in a model that nobody described, from one traced forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hf_cam.capture import call, first_tensor
from hf_cam.errors import LayoutError, UnknownArchitecture
from hf_cam.guard import borrowed, unwrap
from hf_cam.layouts import NCHW, NHWC, TOKENS, Layout, Size, token_grids
from hf_cam.trace import Produced, Trace, hooked, path_shares, picture_name, trace

Verdict = Literal["confirmed", "refuted", "undecided"]

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
        layout: How its output lies in space.
        coverage: Share of its cells that get a nonzero gradient of the target.
        share: Share of the autograd graph's paths from target to picture that run through it.
        verdict: Of the noise check: "undecided" also where it was not run, "refuted" only where no candidate held.
    """

    layer: str
    layout: Layout
    coverage: float
    share: float
    verdict: Verdict = "undecided"


@dataclass(frozen=True)
class _Candidate:
    layer: str
    side: bool  # what a projection or some part of a side branch returns: nobody's idea of a layer's output
    layout: Layout
    grid: Size
    channels: int
    share: float
    edge: GradientEdge

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]


def probe(model: nn.Module, inputs: Mapping[str, Any], *, patch: Size | None = None, check: bool = True) -> Finding:
    """The deepest layer whose output is spatial and whose every cell can still influence the target.

    One forward is traced with a graph from the picture on; one backward fetches the gradients of the best candidates.
    Nothing about an architecture is assumed, and the model comes back untouched.

    Args:
        model: Any module that maps a picture to scores.
        inputs: Its named inputs, among them the picture `(B, C, H, W)`; at the real input size, because grids and
            windows depend on it.
        patch: Height and width of the model's patch in pixels, where its config tells.
        check: Also disturb the picture (four more forwards without gradients) and see whether the layer's output
            changes where its layout says.

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
        f"no layer of {type(module).__name__} returns a map or a token grid of the {height} x {width} input that the "
        f"output depends on in at least {MIN_COVERAGE:.0%} of its cells ({len(traced.produced)} outputs looked at); "
        "name the layer and its layout yourself (layers=, reshape=)"
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
    """The tensors of an output that can be a score, the likeliest first; the next serves where one is constant."""
    if isinstance(output, Mapping):
        names = sorted(output, key=_likeliest)
        values: Sequence[Any] = [output[name] for name in names]
    else:
        values = output if isinstance(output, list | tuple) else [output]
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found += [value] if value.requires_grad and value.is_floating_point() else []
        elif isinstance(value, Mapping | list | tuple):
            found += _fields(value)
    return found


def _score(scores: Tensor) -> Tensor:
    """The best class's score, summed over everything else; entries that mask a class (infinite) are left out."""
    finite = scores.where(scores.isfinite(), torch.finfo(scores.dtype).min)
    best = finite.amax(dim=1 if scores.ndim >= 4 else -1)
    return best.where(best > torch.finfo(scores.dtype).min, 0).float().sum()


# Candidates ----------------------------------------------------------------------------------------------------------


def _covered(traced: Trace) -> Iterator[list[Finding]]:
    """Layers whose cells reach the target, the best first, a round at a time: of the first field that reaches any."""
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
    """Candidates in the order of preference, before any gradient is known."""
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
    if not readable:
        return []
    pool = [candidate for candidate in _in_scope(readable) if candidate.layer]
    pool = _without_class_maps(pool, classes=field.shape[1 if field.ndim >= 4 else -1])
    pool.reverse()  # the deepest first
    return sorted(pool, key=lambda candidate: candidate.side)


def _aside(one: Produced, share: float) -> bool:
    return one.projection or (share < TRUNK and not one.landmark)


def _in_scope(readable: list[_Candidate]) -> list[_Candidate]:
    """At the coarsest grid where the trunk ends there; else (decoders) what comes before a map gets finer again."""
    coarsest = min(candidate.cells for candidate in readable)
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
    """Drop the end of the pool whose channels are classes already: the target itself, spread out in space.

    A short end only; else the network is one that pools its last stage and returns that.
    """
    end = len(pool)
    while end and pool[end - 1].channels == classes:
        end -= 1
    return pool[:end] if len(pool) < 2 * end else pool


def _channels(one: Produced, layout: Layout) -> int:
    return one.shape[1] if layout.axes == NCHW else one.shape[-1]


def _readings(shape: tuple[int, ...], traced: Trace) -> Iterator[Layout]:
    """Every layout in which a shape is one of the grids that the forward explained."""
    if shape[0] != traced.picture.shape[0]:
        return  # windows, tiles or frames in the batch
    if len(shape) == 4:
        for axes, grid in ((NCHW, (shape[2], shape[3])), (NHWC, (shape[1], shape[2]))):
            if grid in traced.grids:
                yield Layout(axes)
    elif len(shape) == 3:
        prefix, suffix = traced.joins.get(shape[1], (0, 0))
        for patch in (*traced.patches, None):
            grids = token_grids(shape[1] - prefix - suffix, traced.image_size, patch)
            if len(grids) == 1 and grids[0] in traced.grids:
                yield Layout(TOKENS, prefix, suffix, patch)
                return


# Noise check ---------------------------------------------------------------------------------------------------------

# Top and left of the disturbed rectangles, as shares of the picture; each is a quarter of it high and wide. A swap of
# the axes moves every one of them. One touches the right border and one the left: there tokens that are shifted by one
# wrap into another row, which tells a shift from the half cell by which strided convolutions miss the centre.
_PLACES = ((0.125, 0.75), (0.625, 0.375), (0.375, 0.0))
_SIDE = 0.25
_MARGIN = 0.9
_NOISE = 0.3  # what matches less than this matches by chance: the network spread the change all over


def check_layouts(model: nn.Module, inputs: Mapping[str, Any], claims: Sequence[tuple[str, Layout]]) -> list[Verdict]:
    """Whether layers' outputs lie in space as claimed: one clean forward, and one for each of three disturbed places.

    What changed, laid out as claimed, must match the disturbed places better than the same change read with its tokens
    shifted, with the axes swapped, or window by window. The comparison is relative: a network spreads a change as it
    pleases.

    Args:
        model: Any module.
        inputs: Its named inputs with the picture `(B, C, H, W)`.
        claims: Layers and the layout claimed for each.

    Raises:
        UnknownArchitecture: there is no picture among the inputs.
    """
    module = unwrap(model)
    name = picture_name(inputs)
    picture = inputs[name].detach()
    size: Size = (picture.shape[2], picture.shape[3])
    with borrowed(module), torch.no_grad():
        layers = {layer for layer, _ in claims}
        clean, drawn = _clean(module, inputs, layers)
        changes: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        for disturbed in _disturbed(picture):
            for layer, activation in _activations(module, {**inputs, name: disturbed}, layers).items():
                changes[layer].append((activation - clean[layer]).float())
    return ["refuted" if layer in drawn else _verdict(changes[layer], layout, size) for layer, layout in claims]


def _clean(module: nn.Module, inputs: Mapping[str, Any], layers: set[str]) -> tuple[dict[str, Tensor], set[str]]:
    """The layers' outputs, and those among the layers that the model draws at random (masked or shuffled patches)."""
    before = _random_states()
    clean = _activations(module, inputs, layers)
    if all(map(torch.equal, before, _random_states())):
        return clean, set()
    again = _activations(module, inputs, layers)
    return clean, {layer for layer in clean if _differ(clean[layer], again[layer])}


def _random_states() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def _differ(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or bool((one - other).abs().max() > 1e-2 * one.abs().max())


def _activations(module: nn.Module, inputs: Mapping[str, Any], layers: set[str]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def record(layer: str, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None:
            seen[layer] = tensor.clone()  # what follows may work in place

    with hooked(module, record, layers):
        call(module, inputs)
    return seen


def _disturbed(picture: Tensor) -> Iterator[Tensor]:
    height, width = picture.shape[2:]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(picture.shape[1:], generator=generator).to(picture) * (picture.std() + 0.1) * 2
    for top, left in _PLACES:
        rows = slice(round(top * height), round((top + _SIDE) * height))
        columns = slice(round(left * width), round((left + _SIDE) * width))
        disturbed = picture.clone()
        disturbed[:, :, rows, columns] += noise[:, rows, columns]
        yield disturbed


def _verdict(changes: Sequence[Tensor], layout: Layout, size: Size) -> Verdict:
    claimed, others = _matches(changes, layout, size)
    rival = max(others, default=0.0)
    if claimed > _NOISE and rival <= _MARGIN * claimed:
        return "confirmed"
    return "refuted" if rival > _NOISE and claimed < _MARGIN * rival else "undecided"


def _matches(changes: Sequence[Tensor], layout: Layout, size: Size) -> tuple[float, list[float]]:
    """How well the change matches the disturbed places, as claimed and in the other readings."""
    try:
        spatial = torch.stack([layout.to_spatial(change, size).square().sum((0, 1)).sqrt().cpu() for change in changes])
    except LayoutError:
        return 0.0, []
    readings = torch.stack([spatial, *_rivals(spatial, layout.axes == TOKENS)])
    claimed, *others = (_centred(readings) @ _centred(_expected(*spatial.shape[1:])[None])[0]).tolist()
    return claimed, others


def _expected(rows: int, columns: int) -> Tensor:
    """The share of each cell that was disturbed: `(places, rows, columns)`."""

    def overlap(start: float, cells: int) -> Tensor:
        edges = torch.arange(cells + 1) / cells
        return (edges[1:].clamp(max=start + _SIDE) - edges[:-1].clamp(min=start)).clamp(min=0) * cells

    return torch.stack([overlap(top, rows)[:, None] * overlap(left, columns) for top, left in _PLACES])


def _centred(maps: Tensor) -> Tensor:
    """Unit vectors of `(count, places, rows, columns)`, without what the places share: some cells always react."""
    maps = maps / maps.sum((2, 3), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    return torch.nn.functional.normalize((maps - maps.mean(1, keepdim=True)).flatten(1), dim=1)


def _rivals(spatial: Tensor, tokens: bool) -> Iterator[Tensor]:
    """The same cells in the orders they could have instead."""
    count, rows, columns = spatial.shape
    flat = spatial.flatten(1)
    if not tokens:
        swapped = spatial.transpose(1, 2)[None]
        yield torch.nn.functional.interpolate(swapped, size=(rows, columns), mode="area")[0]
        return
    yield flat.view(count, columns, rows).transpose(1, 2)
    for shift in (-1, 1):
        yield flat.roll(shift, 1).view_as(spatial)
    for side in (2, 4, 7, 8):
        if rows % side == 0 and columns % side == 0 and side < max(rows, columns):
            tall, wide = rows // side, columns // side
            yield flat.view(count, tall, wide, side, side).transpose(2, 3).reshape_as(spatial)
            yield flat.view(count, side, side, tall, wide).permute(0, 3, 1, 4, 2).reshape_as(spatial)
