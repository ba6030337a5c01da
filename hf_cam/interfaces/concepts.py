"""The command `hf-cam concepts`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command to the parser."""
    concepts = commands.add_parser("concepts", help="find what a layer's activations on a data set are composed of")
    concepts.add_argument("model", metavar="MODEL", help="Hub id, folder or demo:NAME, e.g. demo:cheater")
    concepts.add_argument("data", metavar="DATA", help="folder, glob, Parquet file or name of a data set")
    concepts.add_argument("--target", help="class index, label or prompt whose images are taken (default: all images)")
    concepts.add_argument("--text", action="append", help="prompt, for models that take text; repeatable")
    concepts.add_argument("--components", type=int, default=10, help="number of concepts (default: 10)")
    concepts.add_argument("--crops", type=int, default=2, help="random crops per image, beside itself (default: 2)")
    concepts.add_argument(
        "--scored", type=int, default=32, help="images on which importance is measured, at most (default: 32)"
    )
    concepts.add_argument("--layer", action="append", dest="layers", help="dotted name (default: inferred)")
    concepts.add_argument("--column", help="column of images, for tables (default: image)")
    concepts.add_argument("--split", help="split, for data sets that have several")
    concepts.add_argument("--seed", type=int, default=0, help="seed of what is drawn (default: 0)")
    concepts.add_argument("--device", help='"cpu", "cuda", ... (default: the GPU if there is one)')
    concepts.add_argument(
        "--out", type=Path, default=Path("hf-cam-concepts.html"), help="page (default: hf-cam-concepts.html)"
    )
    concepts.set_defaults(run=_concepts)


NAMES = ("target", "text", "components", "crops", "scored", "layers", "column", "split", "seed", "device")


def _concepts(options: argparse.Namespace) -> None:
    """Find the concepts, print them, write the page."""
    from tqdm import tqdm

    from hf_cam.discovery.concepts import concepts
    from hf_cam.discovery.page import checked

    path = checked(options.out)
    with tqdm(disable=not sys.stderr.isatty(), delay=2) as bar:

        def tell(what: str, done: int, total: int) -> None:
            bar.set_description(what, refresh=False)
            bar.total, bar.n = total, done
            bar.refresh()

        given = {name: getattr(options, name) for name in NAMES}
        found = concepts(options.model, options.data, **given, progress=tell)
    print(found)
    print(found.save(path))
