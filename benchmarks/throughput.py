"""Images per second of a data set's explanation, compared with the same engine without maps (`method=None`).

    python -m benchmarks.throughput [--models ViT-B/16 ConvNeXt-T] [--images 48] [--sizes 200] [--write]

Models have their real size and random weights; pictures are JPEG files. Both engines decode, run the model at batch 8
and write Parquet; they alternate every 16 images. The clock is the processor time of the whole process with one thread
for torch, which other load on the machine changes little. "ratio" is the time without maps over the time with them, for
all images together, its "median" that of the alternations; the goal is 0.95. `--write` puts the table into
docs/data.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from PIL import Image
from torch import nn

from hf_cam.data.explain import Explain
from hf_cam.data.local import explained_rows
from hf_cam.data.shards import Shards
from hf_cam.data.sources import Source, source_of

PAGE = Path(__file__).parents[1] / "docs" / "data.md"
START, END = "<!-- throughput -->\n", "<!-- end -->"
GOAL, CHUNK, BATCH = 0.95, 16, 8

MODELS: dict[str, Callable[[], tuple[nn.Module, object]]] = {
    "ViT-B/16": lambda: (hf.ViTForImageClassification(hf.ViTConfig(num_labels=1000)), hf.ViTImageProcessor()),
    "ConvNeXt-T": lambda: (
        hf.ConvNextForImageClassification(hf.ConvNextConfig(num_labels=1000)),
        hf.ConvNextImageProcessor(size={"shortest_edge": 224}),
    ),
}


def picture_files(folder: Path, count: int, sizes: int) -> Source:
    """Photograph-like JPEG files: `count` of them in turn of `sizes` different sizes around 640 x 480."""
    drawn = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        height, width = (480, 640) if sizes == 1 else (360 + (number % sizes) * 7 % 241, 500 + (number % sizes) * 3)
        coarse = Image.fromarray(drawn.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg", quality=90)
    return source_of(folder)


def alternations(model: nn.Module, processor: object, source: Source, scratch: Path) -> Iterator[tuple[float, float]]:
    """Seconds of processor time per chunk of images, without and with maps."""
    engines = [Explain(model, method=method, processor=processor, batch_size=BATCH) for method in (None, "auto")]
    chunks = [range(start, min(start + CHUNK, len(source))) for start in range(0, len(source), CHUNK)]
    with Shards(scratch / "none", (1, 1), {}) as without, Shards(scratch / "auto", (1, 1), {}) as with_maps:
        for engine in engines:  # what is established once per model
            list(explained_rows(source, chunks[0][:BATCH], engine))
        for number, chunk in enumerate(chunks):
            spent = [0.0, 0.0]
            for which in (0, 1) if number % 2 else (1, 0):
                started = time.process_time()
                (without, with_maps)[which].write(list(explained_rows(source, chunk, engines[which])))
                spent[which] = time.process_time() - started
            yield spent[0], spent[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--images", type=int, default=48, help="of one size (default: 48)")
    parser.add_argument(
        "--sizes", type=int, default=200, help="as many images, each of a size of its own; 0: none (default: 200)"
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/data.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [
        "| model | pictures | ms per image, no maps | ms per image, maps | ratio | median |",
        "|---|---|---|---|---|---|",
    ]
    met = True
    for name in options.models:
        model, processor = MODELS[name]()
        for count, sizes in ((options.images, 1), (options.sizes, options.sizes)):
            if not count:
                continue
            with tempfile.TemporaryDirectory() as folder:
                source = picture_files(Path(folder) / "pictures", count, sizes)
                spent = list(alternations(model.eval(), processor, source, Path(folder)))
            without, with_maps = (sum(column) for column in zip(*spent, strict=True))
            median = statistics.median(first / second for first, second in spent)
            met = met and without / with_maps >= GOAL
            pictures = f"{count} of one size" if sizes == 1 else f"{count} of {sizes} sizes"
            times = f"{1000 * without / count:.0f} | {1000 * with_maps / count:.0f}"
            lines.append(f"| {name} | {pictures} | {times} | {without / with_maps:.2f} | {median:.2f} |")
            print(lines[-1], flush=True)
    machine = f"{platform.machine()}, one thread, torch {version('torch')}, transformers {version('transformers')}"
    table = "\n".join([*lines, "", f"Measured on {machine}."])
    print(table)
    if options.write:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(START)
        PAGE.write_text(before + START + table + "\n" + rest[rest.index(END) :], encoding="utf-8")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
