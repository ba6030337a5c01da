"""Write the excerpt of Fashion-MNIST from which the tests draw scenes: `python -m benchmarks.excerpt`.

It contains the first pictures of each label in the test split, for held-out scenes, and a few of the train split. File
names and format are those of the full dataset, so that `benchmarks.scenes` reads both in the same way. The full dataset
is read from `/usr/share/datasets/fashion-mnist`, or from the folder named by `HF_CAM_FASHION_MNIST`.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import torch

from benchmarks.scenes import LABELS, PREFIXES, ROOT, Items, Split, load_items

EXCERPT = Path(__file__).parents[1] / "tests" / "fashion-mnist"
PER_LABEL: dict[Split, int] = {"train": 2, "test": 60}


def first_of_each_label(items: Items, count: int) -> Items:
    """The first `count` pictures of each label, in their original order."""
    of_label = [(items.labels == label).nonzero()[:count, 0] for label in range(len(LABELS))]
    kept = torch.cat(of_label).sort().values
    return Items(items.pictures[kept], items.labels[kept])


def write_items(items: Items, split: Split, root: Path) -> None:
    """Write the two files of one split to the folder `root`, from which `load_items` can read them."""
    _write_idx(root / f"{PREFIXES[split]}-images-idx3-ubyte.gz", items.pictures)
    _write_idx(root / f"{PREFIXES[split]}-labels-idx1-ubyte.gz", items.labels.to(torch.uint8))


def _write_idx(path: Path, array: torch.Tensor) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(gzip.compress(header + array.numpy().tobytes(), mtime=0))


def main(root: Path = ROOT, out: Path = EXCERPT) -> None:
    """Write the excerpts of both splits, from the full dataset in `root`."""
    for split, count in PER_LABEL.items():
        write_items(first_of_each_label(load_items(split, root), count), split, out)


if __name__ == "__main__":
    main()
