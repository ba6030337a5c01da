"""Trace one forward of a model: what its modules returned, how tokens were joined, and the paths between them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hf_cam.capture.inputs import call, picture_name
from hf_cam.capture.levels import first_tensor, is_pyramid, maps_in
from hf_cam.capture.runs import Counter, located, run_name
from hf_cam.layouts import Size, same_stride, token_grids

SMALLEST = 3  # cells per side; smaller maps are meaningless, and too many shapes look like such a grid

_CONVOLUTIONS = (torch.conv2d, F.conv2d)
_POOLS = (torch.max_pool2d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
_JOINS = (torch.cat, torch.concat, torch.concatenate)
_set_grad_enabled = torch._C._set_grad_enabled  # noqa: SLF001 - what every torch.no_grad() calls
_MUTED = (nn.Linear, nn.Identity, nn.Dropout, nn.Dropout2d)


@dataclass(frozen=True)
class Produced:
    """A tensor that modules returned in the traced forward and that depends on the picture.

    Args:
        layer: Name of the module to name it after, with the number of the run if the module runs several times; "" if
            there is none, because each is of a kind that names nothing, such as a bare linear map.
        landmark: True if that module is a norm or a member of a list.
        again: True if that module runs several times.
        projection: True if a bare linear map returned the tensor.
        shape: Shape of the tensor.
        edge: The tensor's edge in the autograd graph.
    """

    layer: str
    landmark: bool
    again: bool
    projection: bool
    shape: tuple[int, ...]
    edge: GradientEdge


@dataclass(frozen=True)
class Returned:
    """What one run of a module returned.

    Args:
        shape: Shape of its first tensor; empty if there is none.
        reads: True if it depends on the picture.
        levels: The shapes of the maps that it consists of, by name; empty if it is not made of maps.
        pyramid: True if these are the levels of a pyramid.
    """

    shape: tuple[int, ...]
    reads: bool
    levels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pyramid: bool = False


@dataclass(frozen=True)
class Trace:
    """The record of one forward.

    Args:
        output: The model's output.
        picture: The leaf that the forward started from, `(B, C, H, W)`.
        produced: Tensors in the order in which they were returned.
        returned: What each module returned, run by run.
        patches: Strides with which the picture was cut, most likely first.
        grids: Rows and columns of the grids that strides or convolutions account for.
        joins: For each length of a token sequence made by `torch.cat`, the tokens before and after the grid.
        scales: The sizes of the scales of a sequence, wherever a module is given them.
    """

    output: Any
    picture: Tensor
    produced: tuple[Produced, ...]
    returned: Mapping[str, Sequence[Returned]]
    patches: tuple[Size, ...]
    grids: frozenset[Size]
    joins: Mapping[int, Size]
    scales: tuple[tuple[Size, ...], ...] = ()

    @property
    def image_size(self) -> Size:
        """Height and width of the picture in pixels."""
        return self.picture.shape[2], self.picture.shape[3]


def trace(model: nn.Module, inputs: Mapping[str, Any], patch: Size | None = None) -> Trace:
    """Run the model once on a picture that requires grad.

    Args:
        model: In evaluation mode, with frozen parameters.
        inputs: Keyword arguments of the forward, among them a picture `(B, C, H, W)`.
        patch: The model's patch in pixels, if known.

    Raises:
        UnknownArchitecture: there is no picture among the inputs.
    """
    name = picture_name(inputs)
    leaf = inputs[name].detach().clone().requires_grad_(True)
    shapes = _ShapeRecorder(leaf, patch)
    seen: dict[tuple[Node, int], _Seen] = {}
    returned: dict[str, list[Returned]] = {}
    bare: set[str] = set()

    def record(layer: str, output: Any) -> None:
        tensor, own = first_tensor(output), returned.setdefault(layer, [])
        reads = tensor is not None and tensor.requires_grad and tensor.is_floating_point()
        maps = maps_in(output)
        shapes_of_maps = {name: tuple(one.shape) for name, one in maps.items()}
        read = reads or any(one.requires_grad for one in maps.values())
        shape = () if tensor is None else tuple(tensor.shape)
        own.append(Returned(shape, read, shapes_of_maps, bool(maps) and is_pyramid(output)))
        if isinstance(output, Tensor):
            bare.add(layer)
        if tensor is not None and reads:
            edge = get_gradient_edge(tensor)
            one = seen.setdefault((edge.node, edge.output_nr), _Seen(own[-1].shape, edge))
            one.runs[layer] = len(own) - 1

    with torch.enable_grad(), hooked(model, record), _scales_given(model) as scales, shapes:
        # A clone, because the model may change its input in place, which a leaf that requires grad does not allow.
        output = call(model, {**inputs, name: leaf.clone()})
    modules = dict(model.named_modules())
    often = {layer for layer, own in returned.items() if len(own) > 1}
    produced = tuple(_named(one, modules, bare, often) for one in seen.values())
    grids, given = frozenset(shapes.grids), tuple(scales)
    return Trace(output, leaf, produced, returned, tuple(shapes.patches), grids, shapes.joins, given)


@contextmanager
def _scales_given(model: nn.Module) -> Iterator[dict[tuple[Size, ...], None]]:
    """The sizes of scales, `spatial_shapes` for short, that any module is given inside the `with` block."""
    found: dict[tuple[Size, ...], None] = {}

    def note(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        named = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | dict(kwargs)
        for name, value in named.items():
            if "shapes" in name and (sizes := _sizes(value)):
                found[sizes] = None

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield found


def _sizes(value: Any) -> tuple[Size, ...]:
    """The sizes in a tensor `[L, 2]` of integers or a list of pairs, for two scales or more; empty for all else."""
    if isinstance(value, Tensor):
        value = value.tolist() if value.ndim == 2 and not value.is_floating_point() and not value.is_meta else ()
    if not isinstance(value, list | tuple) or len(value) < 2:
        return ()
    pairs = [tuple(map(int, pair)) for pair in value if isinstance(pair, list | tuple | torch.Size) and len(pair) == 2]
    return tuple((rows, columns) for rows, columns in pairs) if len(pairs) == len(value) else ()


@dataclass
class _Seen:
    shape: tuple[int, ...]
    edge: GradientEdge
    runs: dict[str, int] = field(default_factory=dict)  # by layer, innermost first


def _named(one: _Seen, modules: Mapping[str, nn.Module], bare: set[str], often: set[str]) -> Produced:
    """A tensor with the name of a module that returned it; one that runs several times names it if no other does."""
    once = [layer for layer in one.runs if layer not in often]
    layer, landmark, projection = _named_by(once, modules, bare)
    if layer:
        return Produced(layer, landmark, False, projection, one.shape, one.edge)
    layer, landmark, again = _named_by([layer for layer in one.runs if layer in often], modules, bare)
    name = run_name(layer, one.runs[layer]) if layer else ""
    return Produced(name, landmark, bool(name), projection or again, one.shape, one.edge)


def _named_by(layers: list[str], modules: Mapping[str, nn.Module], bare: set[str]) -> tuple[str, bool, bool]:
    """Which of the modules that returned a tensor names it, whether that is a landmark, and whether a projection did.

    In order of preference: a member of a list, a norm, another module that returns the bare tensor, a module that
    returns it within a record. Among equals the outermost is chosen, but the innermost of those that return records,
    since the outermost of them is the model itself.
    """

    def rank(layer: str) -> tuple[bool, bool, bool, int]:
        member = isinstance(modules[layer.rpartition(".")[0]], nn.ModuleList | nn.Sequential)
        norm = "norm" in type(modules[layer]).__name__.lower()
        depth = layer.count(".")
        return not member, not norm, layer not in bare, depth if layer in bare else -depth

    admitted = [layer for layer in layers if layer and not isinstance(modules[layer], _MUTED)]
    layer = min(admitted, key=rank, default="")
    projection = any(isinstance(modules[layer], nn.Linear) for layer in layers)
    return layer, bool(layer) and not all(rank(layer)[:2]), projection


class _ShapeRecorder(TorchFunctionMode):
    """Record the shapes that convolutions, pools and joins produce in one forward, and keep autograd enabled."""

    def __init__(self, picture: Tensor, patch: Size | None) -> None:
        super().__init__()
        self.batch, self.channels = picture.shape[:2]
        self.image_size: Size = (picture.shape[2], picture.shape[3])
        self.patches: dict[Size, None] = {}
        self.grids: set[Size] = set()
        self.joins: dict[int, Size] = {}
        if patch is not None:
            self._add_patch(patch)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _set_grad_enabled and args and not args[0]:
            return None  # CLIPSeg runs its towers under no_grad, but paths can be traced only in a graph
        result = func(*args, **kwargs)
        if func in _CONVOLUTIONS:
            self._convolution(result, args, kwargs)
        elif func in _POOLS:
            self._grid(result)
        elif func in _JOINS:
            self._join(result, *args, **kwargs)
        return result

    def _convolution(self, result: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        source = args[0] if args else kwargs["input"]
        if source.ndim == 4 and source.shape[1] == self.channels and source.shape[2] >= self.image_size[0]:
            stride = args[3] if len(args) > 3 else kwargs.get("stride", 1)
            self._add_patch((stride, stride) if isinstance(stride, int) else (stride[0], stride[-1]))
        self._grid(result)

    def _add_patch(self, patch: Size) -> None:
        self.patches[patch] = None
        rows, columns = patch
        while rows <= self.image_size[0] and columns <= self.image_size[1]:
            heights = (self.image_size[0] // rows, -(-self.image_size[0] // rows))
            widths = (self.image_size[1] // columns, -(-self.image_size[1] // columns))
            self.grids.update((h, w) for h in heights for w in widths if min(h, w) >= SMALLEST)
            rows, columns = 2 * rows, 2 * columns

    def _grid(self, result: Any) -> None:
        """Accept the grid as it is: convolutions without padding (Inception) lose a border that no stride explains."""
        if isinstance(result, Tensor) and result.ndim == 4 and result.shape[0] == self.batch:
            grid = (result.shape[2], result.shape[3])
            if min(grid) >= SMALLEST and same_stride(grid, self.image_size):
                self.grids.add(grid)

    def _join(self, result: Tensor, tensors: Any, dim: int = 0, **_: Any) -> None:
        """Note the tokens around the one piece that is the picture: a grid long, or itself the result of a join."""
        if result.ndim != 3:
            return
        axis, first = dim % 3, result.shape[1] == self.batch != result.shape[0]  # tokens first
        if axis != (0 if first else 1):
            return
        lengths = [piece.shape[axis] for piece in tensors]
        of_picture = [
            index
            for index, piece in enumerate(tensors)
            if piece.requires_grad and (lengths[index] in self.joins or self._is_grid(lengths[index]))
        ]
        if len(of_picture) != 1:
            return
        at = of_picture[0]
        prefix, suffix = self.joins.get(lengths[at], (0, 0))
        self.joins[sum(lengths)] = (prefix + sum(lengths[:at]), suffix + sum(lengths[at + 1 :]))

    def _is_grid(self, cells: int) -> bool:
        if not self.patches:  # the picture was cut or shrunk before the first convolution
            return any(rows * columns == cells for rows, columns in self.grids)
        fitting = (grid for patch in self.patches for grid in token_grids(cells, self.image_size, patch))
        return any(grid in self.grids for grid in fitting)


def path_shares(score: Tensor | GradientEdge, picture: Tensor) -> Callable[[GradientEdge], float]:
    """A function from an edge of the autograd graph to the share of all paths from `score` to `picture` through it.

    The share is exact: the number of paths from the score to the edge times that from the edge to the picture, over
    the total. It is 1 on the trunk of a network, less on a side branch, and 0 elsewhere.

    >>> x = torch.ones(2, requires_grad=True)
    >>> branch = x.exp()
    >>> path_shares((x + branch).sum(), x)(get_gradient_edge(branch))
    0.5
    """
    root = score.grad_fn if isinstance(score, Tensor) else score.node
    if root is None:
        return lambda _edge: 0.0
    source = get_gradient_edge(picture).node
    order = _children_first(root)
    to_picture: dict[Node, int] = {}
    for node in order:
        to_picture[node] = 1 if node is source else sum(to_picture[child] for child, _ in _below(node))
    from_score: dict[Node, int] = dict.fromkeys(order, 0)
    from_score[root] = 1
    at_output: dict[tuple[Node, int], int] = {}
    for node in reversed(order):
        for child, output in _below(node):
            from_score[child] += from_score[node]
            at_output[child, output] = at_output.get((child, output), 0) + from_score[node]
    total = to_picture[root]

    def share(edge: GradientEdge) -> float:
        through = at_output.get((edge.node, edge.output_nr), 0) * to_picture.get(edge.node, 0)
        return through / total if total else 0.0

    return share


def _below(node: Node) -> Iterator[tuple[Node, int]]:
    return ((child, output) for child, output in node.next_functions if child is not None)


def _children_first(root: Node) -> list[Node]:
    order: list[Node] = []
    entered = {root}
    stack = [(root, _below(root))]
    while stack:
        node, children = stack[-1]
        child = next((child for child, _ in children if child not in entered), None)
        if child is None:
            order.append(node)
            stack.pop()
        else:
            entered.add(child)
            stack.append((child, _below(child)))
    return order


def is_avoided(edges: Iterable[GradientEdge], score: Tensor, picture: Tensor) -> bool:
    """Whether a path of the autograd graph leads from `score` to `picture` through none of these edges.

    >>> x = torch.ones(2, requires_grad=True)
    >>> branch = x.exp()
    >>> is_avoided([get_gradient_edge(branch)], (x + branch).sum(), x), is_avoided([], branch.sum(), x)
    (True, True)
    """
    blocked, source = {(edge.node, edge.output_nr) for edge in edges}, get_gradient_edge(picture).node
    waiting = [score.grad_fn] if score.grad_fn is not None else []
    entered = set(waiting)
    while waiting:
        for child, output in _below(waiting.pop()):
            if child is source and (child, output) not in blocked:
                return True
            if child not in entered and (child, output) not in blocked:
                entered.add(child)
                waiting.append(child)
    return False


def behind(edge: GradientEdge) -> set[Node]:
    """The nodes of the autograd graph from which an edge is computed, its own among them.

    >>> x = torch.ones(2, requires_grad=True)
    >>> get_gradient_edge(x).node in behind(get_gradient_edge(x.exp().sin()))
    True
    """
    return set(_children_first(edge.node))


def depths(score: Tensor, picture: Tensor) -> Callable[[GradientEdge], float]:
    """A function from an edge of the autograd graph to how deep it lies: 0 at `picture`, 1 at `score`.

    It is the length of the longest path from the picture to the edge, as a share of that to the score.

    >>> x = torch.ones(2, requires_grad=True)
    >>> half = x.exp()
    >>> depths(half.sin().sum(), x)(get_gradient_edge(half))
    0.333...
    """
    if score.grad_fn is None:
        return lambda _edge: 0.0
    source = get_gradient_edge(picture).node
    longest: dict[Node, float] = {source: 0.0}
    for node in _children_first(score.grad_fn):
        reached = [longest[child] for child, _ in _below(node) if child in longest]
        if reached:
            longest[node] = 1 + max(reached)
    total = longest.get(score.grad_fn, 0)
    return lambda edge: longest.get(edge.node, 0) / total if total else 0.0


@contextmanager
def hooked(model: nn.Module, record: Callable[[str, Any], None], layers: set[str] | None = None) -> Iterator[None]:
    """Call `record(layer, output)` after every module inside the `with` block, or after those runs in `layers`."""

    def only(counter: Counter) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if counter.hits():
                record(counter.layer, output)

        return hook

    with ExitStack() as stack:
        for layer in layers or ():
            module, run = located(model, layer)
            stack.callback(module.register_forward_hook(only(Counter(layer, run))).remove)
        for layer, module in () if layers is not None else model.named_modules():
            handle = module.register_forward_hook(lambda _m, _a, output, layer=layer: record(layer, output))
            stack.callback(handle.remove)
        yield
