"""The command `hf-cam dataset`. Heavy imports are deferred until it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Options = Callable[[Sequence[str] | None], Mapping[str, Any]]


def add_dataset(commands: Any, method_options: Options, quietly: Callable[[], None]) -> None:
    """Add the command to a parser's subcommands.

    Args:
        commands: The subcommands.
        method_options: Reads `--option NAME=VALUE`.
        quietly: Switches off what libraries print while a model is loaded.
    """
    add = commands.add_parser("dataset", help="explain a data set into Parquet files; run it again to continue")
    add.add_argument("model", metavar="MODEL", help="Hub id, folder or demo:NAME")
    add.add_argument("data", metavar="DATA", help="folder, glob, Parquet file, or a name or folder of `datasets`")
    add.add_argument("--out", required=True, metavar="FOLDER", help="folder to write to")
    add.add_argument("--method", default="auto", help="see `hf-cam methods`; none: predictions without maps")
    add.add_argument("--option", action="append", metavar="NAME=VALUE", help="option of the method; repeatable")
    add.add_argument("--layer", action="append", dest="layers", help="dotted name; repeatable (default: inferred)")
    add.add_argument("--target", help="class index or label (default: what the model finds)")
    add.add_argument("--text", action="append", help="prompt or question; repeatable")
    add.add_argument("--top-k", type=int, help="number of classes, objects or segments")
    add.add_argument("--check", action="store_true", help="test whether the model reads what each map marks (slow)")
    add.add_argument("--overlays", action="store_true", help="write an overlay per image too")
    add.add_argument("--on-error", choices=("row", "raise"), default="row", help="raise: stop at a broken image")
    add.add_argument("--batch-size", type=int, default=8, help="images per forward (default: 8)")
    add.add_argument("--rows-per-file", type=int, default=256, help="images per Parquet file (default: 256)")
    add.add_argument("--column", help="column of the images, for tables (default: image)")
    add.add_argument("--split", help="split, for a data set with several")
    add.add_argument("--shard", default="1/1", metavar="I/N", help="the i-th of n parts, for schedulers, e.g. 3/16")
    add.add_argument("--engine", choices=("local", "ray"), default="local", help="(default: local)")
    add.add_argument("--address", help='of a Ray cluster, e.g. "auto" (default: start Ray on this machine)')
    add.add_argument("--actors", type=int, help="copies of the model on Ray (default: one per GPU, or per four CPUs)")
    add.add_argument("--gpus-per-actor", type=float, help="may be a fraction (default: 1 where there are GPUs)")
    add.add_argument("--device", help='"cpu", "cuda", ... (default: the GPU if there is one)')

    def run(options: argparse.Namespace) -> None:
        quietly()
        _run(options, method_options)

    add.set_defaults(run=run)


def _run(options: argparse.Namespace, method_options: Options) -> None:
    from hf_cam.data.dataset import explain_dataset

    asked = {
        "target": options.target,
        "text": options.text,
        "top_k": options.top_k,
        "layers": options.layers,
        "device": options.device,
        "method_options": method_options(options.option),
    }
    done = explain_dataset(
        options.data,
        options.model,
        out=options.out,
        method=None if options.method == "none" else options.method,
        engine=options.engine,
        shard=options.shard,
        overlays=options.overlays,
        check=options.check,
        on_error=options.on_error,
        batch_size=options.batch_size,
        rows_per_file=options.rows_per_file,
        column=options.column,
        split=options.split,
        address=options.address,
        actors=options.actors,
        gpus_per_actor=options.gpus_per_actor,
        progress=True,
        **{name: value for name, value in asked.items() if value is not None and value != {}},
    )
    resumed = f", {done.resumed} of them before" if done.resumed else ""
    failed = f"; {done.errors} could not be explained, see the column error" if done.errors else ""
    print(f"{done.images} images in {done.folder}{resumed}{failed}", file=sys.stderr)
