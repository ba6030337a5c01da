"""How many vision architectures are explained without an argument: every head of transformers, every network of timm.

`python -m benchmarks.coverage` builds a tiny random model of every type and checks that what hf-cam infers is right in
space; `--timm` resolves every network of timm from its config (no weights) and runs one of each of its modules;
`--write docs/architectures.md` writes the table.
"""

from __future__ import annotations

import argparse
import logging
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import nn

from benchmarks.tiny_models import TASKS, Case, cases
from hf_cam.adapter import Adapter
from hf_cam.catalogue import refusals
from hf_cam.errors import HFCamError
from hf_cam.infer import declared_adapter, infer_adapter
from hf_cam.layouts import Layout
from hf_cam.testing import check_adapter

BASES = "image-feature-extraction"


@dataclass(frozen=True)
class Row:
    """What was found of one architecture; `verified` is "yes", "undecided", "no map" or "failed"."""

    task: str
    name: str
    verified: str
    layer: str = ""
    layout: str = ""
    method: str = ""
    note: str = ""

    @property
    def counts(self) -> bool:
        return self.verified != "failed"


def transformers_rows(tasks: Sequence[str] = tuple(TASKS)) -> Iterator[Row]:
    for case in cases(*tasks):
        yield _refused(case) if case.refused else _checked(case)


def _refused(case: Case) -> Row:
    reason = next(refusal.reason for refusal in refusals() if case.model_type in refusal.model_types)
    return Row(case.task, case.model_type, "no map", note=reason)


def _checked(case: Case) -> Row:
    try:
        model = case.build()
        inputs = case.inputs(model)
        adapter = infer_adapter(model, inputs=inputs)
        checks = check_adapter(model, adapter, inputs=inputs)
    except (HFCamError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, ImportError) as error:
        return Row(case.task, case.model_type, "failed", note=_line(error))
    return _row(case.task, case.model_type, adapter, {check.verdict for check in checks})


def _row(task: str, name: str, adapter: Adapter, verdicts: set[str]) -> Row:
    layouts = {_layout(layout) for layout in adapter.layouts if isinstance(layout, Layout)}
    verified = "yes" if verdicts == {"confirmed"} else "undecided"
    return Row(
        task, name, verified, ", ".join(adapter.layers), ", ".join(sorted(layouts)), adapter.method, adapter.origin
    )


def _layout(layout: Layout) -> str:
    around = [f"{layout.prefix} before" if layout.prefix else "", f"{layout.suffix} behind" if layout.suffix else ""]
    padded = ["padding behind"] if layout.suffix is None else []
    return ", ".join([layout.axes, *filter(None, around), *padded])


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


# timm ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network of timm by its module tree alone."""

    row: Row
    module: str
    weights: int


def timm_networks(names: Iterable[str]) -> Iterator[Network]:
    """Each network's adapter without weights; where timm's metadata says too little, with random ones."""
    for name in names:
        try:
            with torch.device("meta"):
                net = timm.create_model(name, pretrained=False)
            adapter = declared_adapter(net) or infer_adapter(_awake(timm.create_model(name, pretrained=False).eval()))
        except (HFCamError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            yield Network(Row("timm", name, "failed", note=_line(error)), "", 0)
            continue
        weights = sum(parameter.numel() for parameter in net.parameters())
        yield Network(_row("timm", name, adapter, set()), type(net).__module__, weights)


def timm_runs(networks: Iterable[Network]) -> Iterator[Row]:
    """The smallest network of each module, run with random weights."""
    smallest: dict[str, Network] = {}
    for network in networks:
        if network.module and network.weights < smallest.get(network.module, network).weights + 1:
            smallest[network.module] = network
    for network in smallest.values():
        name, module = network.row.name, network.module.rpartition(".")[2]
        torch.manual_seed(0)
        try:
            net = _awake(timm.create_model(name, pretrained=False).eval())
            adapter = infer_adapter(net)
            yield _row(module, name, adapter, {check.verdict for check in check_adapter(net, adapter)})
        except (HFCamError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            yield Row(module, name, "failed", note=_line(error))


def _awake(net: nn.Module) -> nn.Module:
    """With noise in the place of weights that start at zero, as heads do: nothing would depend on anything."""
    for parameter in net.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return net


# Output --------------------------------------------------------------------------------------------------------------


def report(rows: Sequence[Row], by: str | None = None) -> None:
    """`N of N` a task (or of all, under one name), and every failure."""
    tasks = dict.fromkeys(by or row.task for row in rows)
    for task in tasks:
        own = [row for row in rows if (by or row.task) == task]
        verdicts = {kind: sum(row.verified == kind for row in own) for kind in ("yes", "undecided", "no map")}
        detail = ", ".join(f"{count} {kind}" for kind, count in verdicts.items() if count)
        print(f"{task}: {sum(row.counts for row in own)} of {len(own)} ({detail})")
    for row in rows:
        if not row.counts:
            print(f"  failed: {row.task} {row.name}: {row.note}")


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown page."""
    lines = [
        "# Where hf-cam looks in every architecture",
        "",
        "Written by `python -m benchmarks.coverage --write docs/architectures.md`: what hf-cam infers, with no",
        "argument, for a tiny random model of every type of transformers' auto mappings. **Verified**: a disturbed",
        "box of a picture (not square, wherever the model takes that) shows at its own place of the layer's grid,",
        "better than in any other order, and the score depends on at least 95 % of the cells. Undecided: with random",
        "weights the network spreads every disturbance all over. A layer's number is a tiny model's.",
    ]
    for task in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == task]
        explained = sum(row.verified == "yes" for row in own)
        lines += ["", f"## {task}", "", f"{explained} of {len(own)} verified.", ""]
        lines += ["| type | layer | layout | method | who says so | verified |", "|---|---|---|---|---|---|"]
        for row in own:
            if row.verified == "no map":
                lines.append(f"| {row.name} | | | | {row.note} | no map |")
            else:
                lines.append(
                    f"| {row.name} | `{row.layer}` | `{row.layout}` | {row.method} | {row.note} | {row.verified} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=list(TASKS), help="only this task")
    parser.add_argument("--timm", action="store_true", help="the networks of timm")
    parser.add_argument("--sample", type=int, help="with --timm: so many networks, drawn by a fixed seed")
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if arguments.timm:
        names = timm.list_models()
        if arguments.sample:
            names = sorted(random.Random(0).sample(names, arguments.sample))
        networks = list(timm_networks(names))
        resolved = [network.row for network in networks]
        print(f"timm networks: {sum(row.counts for row in resolved)} of {len(resolved)} resolve")
        print(*(f"  failed: {row.name}: {row.note}" for row in resolved if not row.counts), sep="\n", flush=True)
        report(list(timm_runs(networks)), by="timm modules, the smallest network of each")
        return
    rows = list(transformers_rows(arguments.task or tuple(TASKS)))
    report(rows)
    if arguments.write:
        arguments.write.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
