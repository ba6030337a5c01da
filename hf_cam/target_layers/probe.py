"""The structural probe: find the target layer of an undescribed model from one traced forward."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hf_cam.capture.guard import borrowed
from hf_cam.errors import UnknownArchitecture
from hf_cam.layouts import NCHW, NHWC, TOKENS, TOKENS_FIRST, Layout, Size, token_grids, why_unread
from hf_cam.models.traits import unwrap
from hf_cam.outputs import kind_of
from hf_cam.target_layers.fields import fields, score
from hf_cam.target_layers.noise import Verdict, check_layouts
from hf_cam.target_layers.trace import Produced, Trace, behind, depths, is_avoided, path_shares, trace

MIN_COVERAGE = 0.95
MIN_SHARE = 0.6
TRUNK = 0.99
NEAR = 0.1
"""Depth below which a layer lies near the entrance."""
FAR = 0.2
"""Difference in depth from which one run of a layer that runs several times is preferred to a layer that runs once."""
ROUND = 8  # candidates whose gradients one backward pass fetches
ROUNDS = 3
TOLD = 3  # layers that a refusal names


@dataclass(frozen=True)
class Finding:
    """The layer that the probe chose.

    Args:
        layer: Dotted module name.
        layout: The spatial layout of its output.
        coverage: Share of its cells with a nonzero gradient of the target.
        share: Share of the paths in the autograd graph from target to picture that run through it.
        depth: Where it lies between the picture (0) and the target (1), by the longest path in that graph.
        verdict: The verdict of the noise check; "undecided" also if it was not run, "refuted" only if it refuted every
            candidate.
    """

    layer: str
    layout: Layout
    coverage: float
    share: float
    depth: float
    verdict: Verdict = "undecided"


@dataclass(frozen=True)
class _Candidate:
    layer: str
    side: bool  # the output of a projection or of a part of a side branch, chosen after all others
    again: bool  # named by one run of a layer that runs several times
    layout: Layout
    grid: Size
    channels: int
    share: float
    depth: float
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
        UnknownArchitecture: no layer qualifies, only one near the entrance, behind which others cannot be read, or one
            of only one of several networks.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(1))
    >>> finding = probe(net, {"pixel_values": torch.rand(1, 3, 32, 48)})
    >>> finding.layer, finding.layout.axes
    ('1', 'b c h w')
    """
    with borrowed(unwrap(model)) as module:
        search = _Search(module, inputs, trace(module, inputs, patch), check)
        graph: _Graph | None = None
        for scores in fields(search.traced.output):
            graph = _Graph(search.traced, scores)
            if found := search.best(graph):
                search.refuse_shallow(found, graph)
                search.refuse_partial(found, graph)
                return found
            if search.refuted:
                return search.refuted
        raise UnknownArchitecture(search.why_nothing(graph))


# Candidates ----------------------------------------------------------------------------------------------------------


class _Graph:
    """The autograd graph from one field of the output to the picture."""

    def __init__(self, traced: Trace, scores: Tensor) -> None:
        self.traced, self.scores, self.score = traced, scores, score(scores)
        self.share, self.depth = path_shares(self.score, traced.picture), depths(self.score, traced.picture)
        self.target = get_gradient_edge(scores)
        self.passed: dict[str, str] = {}  # by layer, why it does not serve

    @property
    def classes(self) -> int:
        """How many scores the field holds per image or cell."""
        return self.scores.shape[1 if self.scores.ndim >= 4 else -1] if self.scores.ndim else 1

    def outputs(self) -> Iterator[Produced]:
        """What modules returned on the way, without the field itself."""
        edges = ((one, (one.edge.node, one.edge.output_nr)) for one in self.traced.produced)
        return (one for one, edge in edges if edge != (self.target.node, self.target.output_nr))

    def candidates(self) -> list[_Candidate]:
        """The outputs that can be read as a grid of cells and that nearly all paths run through, first layer first."""
        return [
            _Candidate(
                one.layer,
                one.projection or (share < TRUNK and not one.landmark),
                one.again,
                layout,
                layout.grid(one.shape, self.traced.image_size),
                one.shape[1] if layout.axes == NCHW else one.shape[-1],
                share,
                self.depth(one.edge),
                one.edge,
            )
            for one in self.outputs()
            if (share := self.share(one.edge)) >= MIN_SHARE
            for layout in readings(one.shape, self.traced)
        ]


@dataclass
class _Search:
    """The search for a layer in one traced forward."""

    module: nn.Module
    inputs: Mapping[str, Any]
    traced: Trace
    check: bool
    refuted: Finding | None = None

    def best(self, graph: _Graph) -> Finding | None:
        """The deepest layer that serves, if possible not near the entrance.

        One run of a layer that runs several times is chosen only where it lies far deeper than those that run once.
        """
        readable, classes = graph.candidates(), graph.classes
        once = [replace(candidate, layer="") if candidate.again else candidate for candidate in readable]
        pool = _ranked(_without_class_maps(_in_scope(once), classes))
        found = self._first(pool, graph)
        runs = _ranked([one for one in _in_scope(readable) if one.again])
        scored = [one for one in runs if one.channels != classes]
        found = self._first(scored, graph, found.depth + FAR if found else 0) or found or self._first(runs, graph)
        if found is None or found.depth < NEAR:
            found = self._first(_ranked([candidate for candidate in once if candidate.layer]), graph, NEAR) or found
        return found

    def _first(self, pool: list[_Candidate], graph: _Graph, above: float = 0) -> Finding | None:
        """The first candidate deeper than `above` whose cells influence the target and that no check refutes."""
        left = [candidate for candidate in pool if candidate.depth > above and candidate.layer not in graph.passed]
        for start in range(0, min(len(left), ROUND * ROUNDS), ROUND):
            for finding in self._checked(self._covered(left[start : start + ROUND], graph)):
                if finding.verdict != "refuted":
                    return finding
                self.refuted = self.refuted or finding
                graph.passed[finding.layer] = "it does not change where the picture does"
        return None

    def _covered(self, candidates: list[_Candidate], graph: _Graph) -> list[Finding]:
        edges = [candidate.edge for candidate in candidates]
        gradients = torch.autograd.grad(graph.score, edges, retain_graph=True, allow_unused=True)
        found = []
        for one, gradient in zip(candidates, gradients, strict=True):
            if gradient is None:
                continue
            cells = one.layout.to_spatial(gradient, self.traced.image_size, len(self.traced.picture))
            coverage = cells.ne(0).any(1).float().mean().item()
            if coverage >= MIN_COVERAGE:
                found.append(Finding(one.layer, one.layout, coverage, one.share, one.depth))
            else:
                graph.passed[one.layer] = f"only {coverage:.0%} of its cells influence the output"
        return found

    def _checked(self, found: list[Finding]) -> list[Finding]:
        if not self.check or not found:
            return found
        verdicts = check_layouts(self.module, self.inputs, [(finding.layer, finding.layout) for finding in found])
        return [replace(finding, verdict=verdict) for finding, verdict in zip(found, verdicts, strict=True)]

    # Refusals ---------------------------------------------------------------------------------------------------------

    def refuse_shallow(self, found: Finding, graph: _Graph) -> None:
        """Refuse a layer that is not the deepest, though no deeper one can be read.

        It lies near the entrance, with other layers that work on the picture's cells behind it; or every path behind it
        runs through coarser cells, of which each layer returns only a part.

        Raises:
            UnknownArchitecture: with the deepest of those layers and the reason why each does not serve.
        """
        near = found.depth < NEAR
        if (near or self._is_stage_before(found, graph)) and (behind := self._behind(found.depth, graph)):
            raise UnknownArchitecture(
                f"the deepest layer of {type(self.module).__name__} that can be read is {found.layer!r}, "
                f"{'near the entrance' if near else 'in an early stage'} ({found.depth:.0%} of the way to the output), "
                f"and not one of those behind it: {behind}; pass a layer with layers= and, if need be, its layout with "
                "reshape="
            )

    def refuse_partial(self, found: Finding, graph: _Graph) -> None:
        """Refuse a layer of one network of an ensemble: another reads the picture on its own, and only the score joins.

        Raises:
            UnknownArchitecture: with a layer of the other network, so that the caller can name both.
        """
        outputs = list(graph.outputs())
        edge = next(one.edge for one in outputs if one.layer == found.layer)
        before = behind(edge)
        own = [one.edge for one in outputs if one.edge.node in before]
        if not is_avoided(own, graph.score, self.traced.picture):
            return
        nodes = {one.node for one in own}
        apart = (
            one.layer
            for one in reversed(outputs)
            if one.layer and graph.share(one.edge) and one.edge.node not in before
            if next(readings(one.shape, self.traced), None) and nodes.isdisjoint(behind(one.edge))
        )
        if other := next(apart, None):
            raise UnknownArchitecture(
                f"the score of {type(self.module).__name__} joins networks that read the picture on their own, and "
                f"{found.layer!r} belongs to one of them, {other!r} to another; name a layer of each, such as "
                f"layers={[found.layer, other]}, whose maps are averaged, or explain one network alone"
            )

    def _is_stage_before(self, found: Finding, graph: _Graph) -> bool:
        """Whether every path runs through coarser cells behind a layer, in parts that are layers of their own."""

        def fewest(shape: tuple[int, ...]) -> float:
            grids = (layout.grid(shape, self.traced.image_size) for layout in readings(shape, self.traced))
            return min((rows * columns for rows, columns in grids), default=math.inf)

        outputs = list(graph.outputs())
        cells = fewest(next(one.shape for one in outputs if one.layer == found.layer))
        behind = [one for one in outputs if graph.depth(one.edge) > found.depth and graph.share(one.edge) < MIN_SHARE]
        parts = [one.edge for one in behind if fewest(one.shape) < cells]
        return not is_avoided(parts, graph.score, self.traced.picture)

    def why_nothing(self, graph: _Graph | None) -> str:
        """Why no layer serves."""
        if graph is None:
            return (
                f"what {type(self.module).__name__} returns ({kind_of(self.traced.output)}) holds no floating-point "
                "tensor that is computed from the picture: let it return its scores as a tensor, without argmax, "
                "detach(), item() or numpy()"
            )
        height, width = self.traced.image_size
        behind = self._behind(0, graph)
        return (
            f"no layer of {type(self.module).__name__} returns a map or a token grid of the {height} x {width} input "
            f"with at least {MIN_COVERAGE:.0%} of its cells influencing the output ({len(self.traced.produced)} "
            f"outputs examined{'; ' + behind if behind else ''}); pass the layer and its layout yourself (layers=, "
            "reshape=)"
        )

    def _behind(self, depth: float, graph: _Graph) -> str:
        """The deepest layers behind a depth that work on cells, and why each does not serve."""
        found: dict[str, str] = {}
        for one in reversed(list(graph.outputs())):
            share = graph.share(one.edge)
            inside = any(one.layer.startswith(f"{layer}.") for layer in found)
            if one.layer and not inside and share and graph.depth(one.edge) > depth and self._holds_cells(one.shape):
                found.setdefault(one.layer, graph.passed.get(one.layer) or self._why_not(one, share))
        return "; ".join(f"{layer!r}, {why}" for layer, why in list(found.items())[:TOLD])

    def _holds_cells(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor holds more than one vector per image."""
        return len(shape) > 2 and math.prod(shape) > len(self.traced.picture) * max(shape)

    def _why_not(self, one: Produced, share: float) -> str:
        if next(readings(one.shape, self.traced), None) is None:
            return why_unread(one.shape, self.traced.image_size, len(self.traced.picture))
        return f"only {share:.0%} of the paths to the output run through it"


def _ranked(pool: list[_Candidate]) -> list[_Candidate]:
    """The deepest first, and what lies aside last."""
    return sorted(reversed(pool), key=lambda candidate: candidate.side)  # noqa: C414 - sorting is stable


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


def readings(shape: tuple[int, ...], traced: Trace, *, joined: bool = False) -> Iterator[Layout]:
    """Every layout under which a shape is one of the grids found in the forward.

    Args:
        shape: Shape of a layer's output.
        traced: The forward.
        joined: Also accept any grid of a sequence of tokens that `torch.cat` was seen to make, however small.
    """
    images = len(traced.picture)
    if len(shape) == 4 and shape[0] == images:
        oblong = next((patch for patch in traced.patches if patch[0] != patch[1]), None)
        for axes, grid in ((NCHW, (shape[2], shape[3])), (NHWC, (shape[1], shape[2]))):
            if grid in traced.grids:
                yield Layout(axes, patch=oblong)
    elif len(shape) == 3 and images in shape[:2]:
        axes, tokens = (TOKENS, shape[1]) if shape[0] == images else (TOKENS_FIRST, shape[0])
        prefix, suffix = traced.joins.get(tokens, (0, 0))
        for patch in (*traced.patches, None):
            grids = token_grids(tokens - prefix - suffix, traced.image_size, patch)
            if len(grids) == 1 and (grids[0] in traced.grids or (joined and tokens in traced.joins)):
                yield Layout(axes, prefix, suffix, patch)
                return
