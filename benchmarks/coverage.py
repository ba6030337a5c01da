"""How many vision architectures can be explained without further arguments: heads of transformers, networks of timm.

`python -m benchmarks.coverage` builds a tiny random model of every type, computes the map of the first thing that the
model's head finds, given only the model and a picture, and verifies that the layout of the target layer is right.
`--timm` also resolves every network of timm from its config (no weights) and runs one network per module in the same
way. `--write docs/architectures.md` writes the tables. The exit code is 1 if anything fails.

`--words` runs the types of image-text-to-text instead: whether the maps of words lie in the box of the picture that was
disturbed. `--write docs/vision-language.md` writes that table.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

import hf_cam
from benchmarks import word_places
from benchmarks.natural_maps import ASKED, LISTED, natural_map, tensor_map
from benchmarks.tiny_models import TASKS, Case, cases, prepare
from hf_cam.errors import HFCamError, UnknownArchitecture
from hf_cam.layouts import Layout, Size
from hf_cam.models.refused import refusals
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.infer import declared_adapter
from hf_cam.testing import AdapterCheck, check_adapter

Result = Literal["yes", "asked", "refused", "undecided", "failed"]
ERRORS = (HFCamError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, ImportError, NotImplementedError)


@dataclass(frozen=True)
class Row:
    """The result for one architecture.

    Args:
        task: The task of transformers, or "timm".
        name: The model type, or timm's module.
        result: "yes": a map without further arguments, from a layer whose layout was verified; "refused": no map is
            possible, and hf-cam gives the reason; "asked": a verified map, but of a target that the caller has to name;
            "undecided": the network spreads every change over the whole grid, so the layout could not be verified.
        layer, layout, method: Those of the adapter.
        picture: Height and width of the picture, and whether the model accepts only squares.
        note: The source of the layer; for a model without a map, the reason.
        network: The network of timm that was run.
    """

    task: str
    name: str
    result: Result
    layer: str = ""
    layout: str = ""
    method: str = ""
    picture: str = ""
    note: str = ""
    network: str = ""
    tensors: Result | Literal[""] = ""


# transformers --------------------------------------------------------------------------------------------------------


def transformers_rows(tasks: Sequence[str] = tuple(TASKS)) -> Iterator[Row]:
    """One row per type that transformers lists for these tasks."""
    for case in cases(*tasks):
        row = Row(case.task, case.model_type, "refused" if case.refused else "failed")
        yield _refused(case, row) if case.refused else _tried(row, lambda row, case=case: _explained(case, row))


def _refused(case: Case, row: Row) -> Row:
    reason = next(refusal.reason for refusal in refusals() if refusal.refuses(case.model_type, case.model_class))
    return replace(row, note=reason)


def _explained(case: Case, row: Row) -> Row:
    model = case.build()
    inputs = case.inputs(model)
    saliency = natural_map(case, model, inputs)
    checks = check_adapter(model, saliency.adapter, inputs=inputs, score=LISTED.get(case.model_type))
    found = _row(row, saliency.adapter, saliency.method.id, checks, case.size, only_squares=case.only_squares)
    if case.model_type in ASKED:
        return replace(found, result="asked" if found.result == "yes" else found.result, tensors="asked")
    return replace(found, tensors=_of_tensors(model, inputs))


def _of_tensors(model: nn.Module, inputs: Mapping[str, Any]) -> Result:
    try:
        tensor_map(model, inputs)
    except ERRORS:
        return "failed"
    return "yes"


def _tried(row: Row, run: Callable[[Row], Row]) -> Row:
    try:
        return run(row)
    except ERRORS as error:
        return replace(row, result="failed", note=f"{type(error).__name__}: {error}".splitlines()[0][:160])


def _row(
    row: Row, adapter: Adapter, method: str, checks: Sequence[AdapterCheck], size: Size, *, only_squares: bool
) -> Row:
    layouts = {_layout(layout) for layout in adapter.layouts if isinstance(layout, Layout)}
    return replace(
        row,
        result="yes" if all(check.verdict == "confirmed" for check in checks) else "undecided",
        layer=", ".join(f"`{layer}`" for layer in adapter.layers),
        layout=", ".join(sorted(layouts)),
        method=method,
        picture=f"{size[0]} x {size[1]}" + (", squares only" if only_squares else ""),
        note=adapter.origin,
    )


def _layout(layout: Layout) -> str:
    around = [f"{layout.prefix} before" if layout.prefix else "", f"{layout.suffix} behind" if layout.suffix else ""]
    padded = ["padding behind"] if layout.suffix is None else []
    return ", ".join([layout.axes, *filter(None, around), *padded])


# timm ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network of timm, as described by its config and module tree alone.

    Args:
        name: The network's name.
        module: The module of timm that defines it.
        weights: The number of weights.
        adapter: Where to look; None if that takes a forward pass to find out.
    """

    name: str
    module: str
    weights: int
    adapter: Adapter | None


def timm_networks(names: Iterable[str]) -> Iterator[Network]:
    """Build each network on the meta device, without weights, and resolve where hf-cam would look in it."""
    for name in names:
        with torch.device("meta"):
            net = timm.create_model(name, pretrained=False)
        weights = sum(parameter.numel() for parameter in net.parameters())
        try:
            adapter = declared_adapter(net)
        except HFCamError:
            adapter = None
        yield Network(name, timm.model_entrypoint(name).__module__.rpartition(".")[2], weights, adapter)


def smallest_of_each(networks: Iterable[Network]) -> list[Network]:
    """The smallest network of each module of timm."""
    smallest: dict[str, Network] = {}
    for network in networks:
        if network.module not in smallest or network.weights < smallest[network.module].weights:
            smallest[network.module] = network
    return [smallest[module] for module in sorted(smallest)]


def timm_rows(networks: Iterable[Network]) -> Iterator[Row]:
    """One row per network, run with random weights; only one network is in memory at a time."""
    for network in networks:
        yield _tried(
            Row("timm", network.module, "failed", network=network.name),
            lambda row, network=network: _ran(network, row),
        )
        gc.collect()


def _ran(network: Network, row: Row) -> Row:
    """Run with random weights as timm initializes them, then, if that fails, prepared to resemble trained ones."""
    for prepared in (False, True):
        try:
            found = _run(network, row, prepared=prepared)
        except HFCamError:
            if prepared:
                raise
        else:
            if found.result == "yes" or prepared:
                return found
    raise AssertionError


def _run(network: Network, row: Row, *, prepared: bool) -> Row:
    net, picture, only_squares = build_timm(network.name)
    if prepared:
        prepare(net, {"pixel_values": picture})
    with hf_cam.CAM(net, "auto") as cam:
        targets = (None, [0], [1], [2])  # with random weights, a class may have no evidence
        maps = ((target, cam(picture, targets=target)) for target in targets)
        named, found = next(((target, found) for target, found in maps if found.any()), (None, None))
        adapter, method = cam.adapter_for(picture, {}), cam.method.id
    if found is None or found.shape != (1, *picture.shape[-2:]) or not found.isfinite().all():
        raise UnknownArchitecture("no map that is as large as the picture, finite and not empty")
    if network.adapter is None or _places(network.adapter) != _places(adapter):
        known = network.adapter and _places(network.adapter)
        raise UnknownArchitecture(f"its config alone gives {known}, a forward pass {_places(adapter)}")
    checks = check_adapter(net, adapter, inputs={"pixel_values": picture})
    size = (picture.shape[-2], picture.shape[-1])
    row = replace(row, tensors="yes" if named is None else "asked")
    return _row(row, adapter, method, checks, size, only_squares=only_squares)


LARGEST = 256
WIDTHS = {"xcit": 64}
"""Stacked convolutions may shift a token by nearly half; a shift by a whole one shows only where it wraps around."""
STRETCH = ("crossvit",)
"""Networks that stretch every picture to a square."""


def _places(adapter: Adapter) -> list[tuple[str, str]]:
    described = (_layout(layout) for layout in adapter.layouts if isinstance(layout, Layout))
    return list(zip(adapter.layers, described, strict=True))


def build_timm(name: str) -> tuple[nn.Module, Tensor, bool]:
    """A network of timm with random weights, a noise picture for it, and whether it accepts only squares.

    The picture is at most 256 pixels high. It is 64 pixels narrower than high if the network accepts any size or can be
    built for that one.
    """
    channels, height, width = timm.get_pretrained_cfg(name).input_size
    side = min(height, LARGEST)
    oblong = (side, WIDTHS.get(name.partition("_")[0], side - 64))
    narrow = [] if name.startswith(STRETCH) else [(oblong, True), (oblong, False)]
    failures = []
    for size, own in (*narrow, ((height, width), False)):
        picture = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(1))
        try:
            return _that_takes(picture, name, size if own else None), picture, size[0] == size[1]
        except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError) as error:
            failures.append(f"{size}: {error}")
    raise UnknownArchitecture(f"{name} runs at no size ({'; '.join(failures)})")


def _that_takes(picture: Tensor, name: str, size: Size | None) -> nn.Module:
    """A network that accepts the picture; as a function, so that a network that does not is freed before the next."""
    torch.manual_seed(0)
    net: nn.Module = timm.create_model(name, pretrained=False, **({} if size is None else {"img_size": size})).eval()
    with torch.no_grad():
        net(picture)
    return awake(net)


def awake(net: nn.Module) -> nn.Module:
    """Replace weights initialized to zero, as in some heads, by noise; otherwise the outputs would be constant."""
    for parameter in net.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return net


# Output --------------------------------------------------------------------------------------------------------------


def report(rows: Sequence[Row], title: str) -> str:
    """One line: how many were explained and verified, out of those that can be."""
    counts = {kind: sum(row.result == kind for row in rows) for kind in ("yes", "asked", "refused")}
    line = f"{title}: {counts['yes']} of {len(rows) - counts['refused'] - counts['asked']} explained and verified"
    asked = f"; {counts['asked']} verified with the caller's target" if counts["asked"] else ""
    refused = f"; {counts['refused']} refused with a reason" if counts["refused"] else ""
    return f"{line}{asked}{refused}; tensor door, targets=None: {_of_tensors_alone(rows)}"


def _of_tensors_alone(rows: Sequence[Row]) -> str:
    """`N of N`: how many gave a map of their own tensors, of those of which no target has to be named."""
    tried = [row.tensors for row in rows if row.tensors not in ("", "asked")]
    return f"{tried.count('yes')} of {len(tried)}"


def failures(rows: Iterable[Row]) -> list[str]:
    """One line per row that is neither explained nor refused, or has no map of its own tensors."""
    rows = list(rows)
    unexplained = [row for row in rows if row.result not in ("yes", "asked", "refused")]
    return [f"  {row.result}: {row.task} {row.name} {row.network} {row.note}" for row in unexplained] + [
        f"  no map of tensors: {row.task} {row.name} {row.network}" for row in rows if row.tensors == "failed"
    ]


PAGE = """\
# Where hf-cam looks in every architecture

Written by `python -m benchmarks.coverage --timm --write docs/architectures.md` (transformers {transformers}, timm
{timm}): what hf-cam does, given only a model and a picture, for a tiny random model of every type in transformers'
auto mappings and for the smallest network of every module in timm. Models of mask generation are given a point too.

- **Verified** is "yes" if the model's head found something to explain; the map is as large as the picture, finite and
  not constant; disturbing a box of the picture changes the layer's grid at that place, and no other order of the cells
  fits better; and the scores depend on at least 95 % of the layer's cells.
- **Picture**: height and width. It is not square unless the model accepts only squares.
- **Layer**: numbered as in the tiny model. **Layout**: `b` pictures, `c` channels, `t` frames, `h` rows, `w` columns.
- **Source** of the layer: the catalogue (`adapters/`), timm's metadata, or the structural probe.
- **Tensor door** is "yes" if `hf_cam.GradCAM(model)(**inputs)` with `targets=None` gives a finite map, not constant,
  of what the model itself finds: its top class, surest object, largest segment, best prompt, nearest region, its answer
  or the length of its embedding.
"""


def page(rows: Sequence[Row], networks: Sequence[Network]) -> str:
    """The rows as a Markdown page, with the counts first."""
    import transformers

    lines = [PAGE.format(transformers=transformers.__version__, timm=timm.__version__)]
    columns = ("types", "verified", "verified, with the caller's target", "refused, with a reason", "tensor door")
    lines += [f"| task | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    by_task = {task: [row for row in rows if row.task == task] for task in dict.fromkeys(row.task for row in rows)}
    for task, own in by_task.items():
        counts = {kind: sum(row.result == kind for row in own) for kind in ("yes", "asked", "refused")}
        name = "timm, the smallest network of each module" if task == "timm" else task
        counted = " | ".join(str(count or "") for count in counts.values())
        lines.append(f"| {name} | {len(own)} | {counted} | {_of_tensors_alone(own)} |")
    if networks:
        resolved = sum(network.adapter is not None for network in networks)
        lines += [
            "",
            f"Of timm's {len(networks)} networks, {resolved} resolve from their config alone, without weights.",
        ]
    for task, own in by_task.items():
        lines += ["", f"## {task}", "", *_table(own)]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row]) -> Iterator[str]:
    network = "network | " if rows[0].network else ""
    columns = ("layer", "layout", "method", "picture", "source", "verified", "tensor door")
    yield f"| {'module' if network else 'type'} | {network}{' | '.join(columns)} |"
    yield "|---" * (1 + len(columns) + bool(network)) + "|"
    for row in rows:
        name = f"{row.name} | {row.network}" if network else row.name
        layout = row.layout and f"`{row.layout}`"
        shown = {"refused": "no map", "asked": "yes, with the caller's target"}.get(row.result, row.result)
        cells = (name, row.layer, layout, row.method, row.picture, row.note, shown, row.tensors)
        yield f"| {' | '.join(cells)} |"


def _words(types: Sequence[str], page: Path | None) -> int:
    """Print or write the table of the types that write words; 1 if hf-cam fails on one that runs."""
    torch.set_num_threads(1)
    found = []
    for row in word_places.rows(types):
        print(f"{row.model_type}: {row.result} {row.judged or row.reason}", flush=True)
        found.append(row)
    print(word_places.report(found))
    if page is not None:
        word_places.write(found, page)
    return int(any(row.result == "failed" for row in found))


def main() -> int:
    """Print the counts; return 1 if anything fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=list(TASKS), help="run only this task; repeatable")
    parser.add_argument("--timm", action="store_true", help="also run the networks of timm")
    parser.add_argument("--only-timm", action="store_true", help="run only the networks of timm")
    parser.add_argument("--words", action="store_true", help="run the types of image-text-to-text alone")
    parser.add_argument("--type", action="append", default=[], help="with --words: run only this type; repeatable")
    parser.add_argument("--write", type=Path, help="write the tables to this Markdown file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if arguments.words:
        return _words(arguments.type, arguments.write)
    rows: list[Row] = []
    networks: list[Network] = []
    for task in () if arguments.only_timm else arguments.task or TASKS:
        own = list(transformers_rows([task]))
        print(report(own, task), *failures(own), sep="\n", flush=True)
        rows += own
    if rows:
        print(report(rows, "transformers, total"), flush=True)
    if arguments.timm or arguments.only_timm:
        networks = list(timm_networks(timm.list_models()))
        unknown = [network.name for network in networks if network.adapter is None]
        print(f"timm networks: {len(networks) - len(unknown)} of {len(networks)} resolve from their config alone")
        print(*(f"  failed: {name}" for name in unknown), sep="\n", flush=True)
        own = list(timm_rows(smallest_of_each(networks)))
        print(report(own, "timm modules"), *failures(own), sep="\n")
        rows += own
    if arguments.write:
        arguments.write.write_text(page(rows, networks), encoding="utf-8")
    return int(bool(failures(rows)) or any(network.adapter is None for network in networks))


if __name__ == "__main__":
    sys.exit(main())
