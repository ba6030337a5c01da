"""What it costs to know where pictures of ever new sizes went, and how far off a predicted geometry is.

    python -m benchmarks.geometry [--sizes 200] [--checked 10]

Each processor prepares pictures of many sizes, no two alike, as photographs have them. The first size is measured and
tested; the others are predicted where a rule allows. Times are milliseconds of processor time of one thread, without
the one call of the processor that every picture needs anyway, which stands beside them. Some sizes are measured once
more on their own: the last column is the largest distance, in model pixels, to what was predicted for them. Prints
Markdown; the exit code is 1 where a new size costs more than 5 ms and than half of the processor's own call, or a
prediction is half a pixel off.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from statistics import fmean

import numpy as np
import timm.data
import torch
import transformers as hf
from PIL import Image
from torch import Tensor
from torchvision import transforms

from hf_cam.images.measuring import Preprocess, located
from hf_cam.images.patches import CutPictures, are_cut
from hf_cam.images.placing import Geometries
from hf_cam.images.rules import apart
from hf_cam.layouts import Size

BOUND_MS, BOUND_PIXELS = 5.0, 0.5

PROCESSORS: dict[str, Callable[[], object]] = {
    "ViT: resized": hf.ViTImageProcessor,
    "CLIP: shortest edge, cropped": hf.CLIPImageProcessor,
    "ConvNeXt: shortest edge, cropped": lambda: hf.ConvNextImageProcessor(size={"shortest_edge": 224}),
    "MobileViT: cropped or padded": hf.MobileViTImageProcessor,
    "DETR: bounded edges": hf.DetrImageProcessor,
    "Mask2Former: bounded edges, padded": hf.Mask2FormerImageProcessor,
    "OWLv2: padded to a square": hf.Owlv2ImageProcessor,
    "SAM: longest edge, padded": hf.SamImageProcessor,
    "GLPN: multiples of 32": hf.GLPNImageProcessor,
    "DPT: multiples of 14": lambda: hf.DPTImageProcessor(
        size={"height": 518, "width": 518}, keep_aspect_ratio=True, ensure_multiple_of=14
    ),
    "SigLIP 2: whole patches": hf.Siglip2ImageProcessor,
    "timm: shortest edge, cropped": lambda: timm.data.create_transform(input_size=(3, 224, 224), crop_pct=0.875),
    "torchvision: resized, whitened": lambda: transforms.Compose(
        [transforms.Resize((224, 224)), transforms.ToTensor(), lambda pixels: (pixels - pixels.mean()) / pixels.std()]
    ),
}


def preprocess_of(processor: object) -> Preprocess:
    """A processor as a function of a list of images."""

    def prepared(images: list[Image.Image]) -> Tensor:
        if not hasattr(processor, "model_input_names"):
            return torch.stack([processor(image) for image in images])
        inputs = processor(images=images, return_tensors="pt")
        return CutPictures.of(inputs).pictures() if are_cut(inputs) else inputs["pixel_values"]

    return prepared


def sizes_of(count: int) -> list[Size]:
    """Different heights and widths as photographs have them: 200 to 1200 pixels, up to twice as wide as high or high
    as wide."""
    generator = np.random.default_rng(0)
    sizes: dict[Size, None] = {}
    while len(sizes) < count:
        short = math.exp(generator.uniform(math.log(200), math.log(800)))
        long = short * generator.choice([1.0, 4 / 3, 1.5, 16 / 9, generator.uniform(1, 2)])
        height, width = (short, long) if generator.random() < 0.6 else (long, short)
        sizes[min(round(height), 1200), min(round(width), 1200)] = None
    return list(sizes)


def timed(call: Callable[[], object]) -> tuple[float, object]:
    """Milliseconds of processor time, and what came back."""
    start = time.process_time()
    found = call()
    return 1000 * (time.process_time() - start), found


def row(name: str, sizes: list[Size], checked: int) -> tuple[list[str], bool]:
    """A line of the table, and whether both bounds hold."""
    measured = 0

    def counted(images: list[Image.Image]) -> Tensor:
        nonlocal measured
        measured += 1
        return preprocess(images)

    preprocess = preprocess_of(PROCESSORS[name]())
    geometries, alone, spent, found = Geometries(), [], [], {}
    for height, width in sizes:
        picture = Image.new("RGB", (width, height))
        milliseconds, pixels = timed(lambda picture=picture: preprocess([picture]))
        alone.append(milliseconds)
        size = (pixels.shape[-2], pixels.shape[-1])
        milliseconds, found[height, width] = timed(
            lambda at=(height, width), size=size: geometries.of(counted, at, size)
        )
        spent.append(milliseconds)
    again = sizes[1 :: max(1, len(sizes) // checked)]
    off = max(apart(next(located(preprocess, size, [])).geometry, found[size]) for size in again)
    cells = [f"{fmean(alone):.1f}", f"{spent[0]:.0f}", f"{fmean(spent):.2f}", str(measured), f"{off:.2f}"]
    return [name, *cells], fmean(spent) <= max(BOUND_MS, fmean(alone) / 2) and off <= BOUND_PIXELS


def main() -> int:
    """Print the table; 1 where a bound does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, default=200, help="how many sizes")
    parser.add_argument("--checked", type=int, default=10, help="how many of them to measure once more")
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = ["processor", "its own call", "first size", "new size, mean", "pictures prepared", "off by (pixels)"]
    print("| " + " | ".join(head) + " |\n| :-- |" + " --: |" * (len(head) - 1), flush=True)
    held = True
    for name in PROCESSORS:
        cells, good = row(name, sizes_of(options.sizes), options.checked)
        held &= good
        print("| " + " | ".join(cells) + " |", flush=True)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
