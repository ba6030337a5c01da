"""The command `hf-cam audit`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hf_cam.errors import OptionError, brief

FOUND = 3
"""The exit status with `--fail-on-finding` if something other than the object is read."""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    audit = commands.add_parser("audit", help="find what a model reads in a data set, tested by intervention")
    audit.add_argument("model", metavar="MODEL", help="Hub id, folder or demo:NAME, e.g. demo:cheater")
    audit.add_argument("data", metavar="DATA", help="folder of class folders, or demo:cheater for its scenes")
    audit.add_argument("--out", type=Path, default=Path("hf-cam-audit"), help="folder (default: hf-cam-audit)")
    audit.add_argument(
        "--masks",
        type=Path,
        help="folder of masks named as the images, in the same folders or in none (needed by detectors and segmenters)",
    )
    audit.add_argument(
        "--label",
        action="append",
        metavar="FOLDER=CLASS",
        help="the model's name or index for a class folder, or a prompt for it; repeatable",
    )
    audit.add_argument("--text", action="append", help="prompt, one per class, for models that take text; repeatable")
    audit.add_argument("--frame", choices=("image", "object"), default="image", help="of fixed places (default: image)")
    audit.add_argument("--method", default="auto", help="of the maps; see `hf-cam methods` (default: set by the model)")
    audit.add_argument("--seed", type=int, default=0, help="seed of what is drawn (default: 0)")
    audit.add_argument("--device", help='"cpu", "cuda", ... (default: the GPU if there is one)')
    audit.add_argument(
        "--fail-on-finding", action="store_true", help=f"exit with {FOUND} if the model reads other than the objects"
    )
    audit.set_defaults(run=_audit)


def _audit(options: argparse.Namespace) -> int:
    """Audit, print the findings, write the report."""
    from tqdm import tqdm

    from hf_cam.auditing.audit import audit
    from hf_cam.auditing.report import check_folder

    check_folder(options.out)
    with tqdm(disable=not sys.stderr.isatty(), delay=2) as bar:

        def tell(what: str, done: int, total: int) -> None:
            bar.set_description(what, refresh=False)
            bar.total, bar.n = total, done
            bar.refresh()

        found = audit(
            options.model,
            options.data,
            labels=_labels(options.label),
            masks=options.masks,
            frame=options.frame,
            text=options.text,
            method=options.method,
            seed=options.seed,
            device=options.device,
            progress=tell,
        )
    print(found)
    print(found.save(options.out))
    if options.fail_on_finding and not found.findings:
        raise OptionError("nothing was tested, as the lines above say, so --fail-on-finding cannot pass the model")
    return FOUND if options.fail_on_finding and found.suspicious else 0


def _labels(given: list[str] | None) -> dict[str, str] | None:
    if not given:
        return None
    pairs = [entry.partition("=") for entry in given]
    wrong = next((entry for entry, (folder, _, name) in zip(given, pairs, strict=True) if not (folder and name)), None)
    if wrong is not None:
        raise OptionError(f"--label takes FOLDER=CLASS, got {brief(wrong)}")
    return {folder: name for folder, _, name in pairs}
