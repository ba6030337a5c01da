"""Guided fuzzing of what hf-cam decodes: pictures, the JSON files of a model, and targets.

    pip install atheris && python -m benchmarks.fuzzing [--minutes 30] [--findings FOLDER]

Atheris changes bytes so that they reach new branches of hf-cam. Each input must end in a map or in an `HFCamError` of
one sentence; everything else is kept as a finding, one per place in the code, with the bytes that led there. Prints how
many inputs were tried, explained and refused; the exit code is 1 if there is a finding.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import atheris
import numpy as np
from PIL import Image

with atheris.instrument_imports(include=["hf_cam"]):
    import hf_cam
    from hf_cam.errors import LONGEST, HFCamError

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
from transformers.utils import logging as hf_logging

HEIGHT, WIDTH = 32, 48
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "ICO", "PPM")
FILES = ("config.json", "preprocessor_config.json", "cam_config.json")
MOST_BYTES = 4096


def picture() -> Image.Image:
    """Noise, wider than high."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


def saved_model(folder: Path) -> Path:
    """A tiny model with its processor and its `cam_config.json`."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(**sizes, image_size=(HEIGHT, WIDTH), patch_size=16, num_labels=4)
    model = ViTForImageClassification(config)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": HEIGHT, "width": WIDTH}).save_pretrained(folder)
    (folder / "cam_config.json").write_text(json.dumps(hf_cam.infer_adapter(model).to_dict()))
    return folder


class Doors:
    """What takes bytes: each returns maps or pictures, or raises.

    Args:
        scratch: A folder for the model and its changed copy.
    """

    def __init__(self, scratch: Path) -> None:
        self.model = saved_model(scratch / "model")
        self.changed = scratch / "changed"
        shutil.copytree(self.model, self.changed)
        self.upload = scratch / "picture"
        self.loaded = hf_cam.load(self.model)

    def read(self, data: bytes) -> Any:
        """A picture file."""
        self.upload.write_bytes(data)
        return hf_cam.load_image(self.upload)

    def file(self, data: bytes) -> Any:
        """The content of one of the model's JSON files, as it is or with a key of the original changed."""
        name, content = FILES[data[0] % len(FILES)], data[2:].decode("utf-8", "surrogateescape")
        original = (self.model / name).read_text()
        if data[1] % 4:
            values = json.loads(original)
            key, _, value = content.partition("=")
            known = [*values]
            chosen = key if key in values else known[data[1] // 4 % len(known)]
            try:
                values[chosen] = json.loads(value or key)
            except (ValueError, RecursionError):
                values[chosen] = value or key
            content = json.dumps(values)
        path = self.changed / name
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        try:
            return hf_cam.explain(picture(), self.changed)
        finally:
            path.write_text(original)

    def target(self, data: bytes) -> Any:
        """A target and a method's options: JSON, or else a label."""
        text = data.decode("utf-8", "surrogateescape")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        return hf_cam.explain(picture(), self.loaded, target=value)

    def seeds(self, folder: Path) -> None:
        """Inputs to begin with, one file each."""
        for kind in FORMATS:
            buffer = io.BytesIO()
            picture().resize((16, 12)).save(buffer, kind)
            (folder / kind).write_bytes(b"\0" + buffer.getvalue())
        for number, name in enumerate(FILES):
            text = (self.model / name).read_bytes()
            (folder / name).write_bytes(b"\1" + bytes([number, 0]) + text[:MOST_BYTES])
            for key in json.loads(text):
                (folder / f"{name}-{key}").write_bytes(b"\1" + bytes([number, 1]) + f"{key}=-1".encode())
        for value in ("1", '"LABEL_1"', "[0, 2]", "[[0.1, 0.2], [1, 3]]", "1.5", "null", '{"a": 1}', "LABEL_3"):
            (folder / f"target-{value.encode().hex()}").write_bytes(b"\2" + value.encode())


class Record:
    """What became of the inputs.

    Args:
        doors: What to try.
        folder: Where findings go.
        until: When to stop, as `time.monotonic` counts.
    """

    def __init__(self, doors: Doors, folder: Path, until: float) -> None:
        self.tries: list[Callable[[bytes], Any]] = [doors.read, doors.file, doors.target]
        self.folder, self.until = folder, until
        self.counts: collections.Counter[str] = collections.Counter()
        self.places: set[str] = set()

    def __call__(self, data: bytes) -> None:
        """Try one input; its first byte chooses the door."""
        if time.monotonic() > self.until:
            self.finish()
        if len(data) < 4:
            return
        door = self.tries[data[0] % len(self.tries)]
        try:
            door(data[1:])
            self.counts[f"{door.__name__}: result"] += 1
        except HFCamError as error:
            text = str(error)
            self.counts[f"{door.__name__}: refused"] += 1
            if not (0 < len(text) <= LONGEST and text.isprintable()):
                self._found(f"{door.__name__}: a message that is no sentence", text, data)
        except Exception as error:  # noqa: BLE001 - these are what is looked for
            self._found(_place(error, door.__name__), str(error), data)

    def _found(self, place: str, text: str, data: bytes) -> None:
        if place in self.places:
            return
        self.places.add(place)
        (self.folder / f"{len(self.places):03}").write_bytes(data)
        with (self.folder / "findings.txt").open("a") as out:
            out.write(f"{len(self.places):03} {place}: {text[:200]!r}\n")

    def finish(self) -> None:
        """Print the counts and end the process, which atheris never does by itself."""
        for name, count in sorted(self.counts.items()):
            print(f"{name}: {count}")
        print(f"{sum(self.counts.values())} inputs, {len(self.places)} findings in {self.folder}", flush=True)
        os._exit(bool(self.places))


def _place(error: BaseException, door: str) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "hf_cam" in frame.filename] or frames
    return f"{door}: {type(error).__name__} in {own[-1].name}, line {own[-1].lineno}, and {frames[-1].name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--findings", type=Path, default=None)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    hf_logging.disable_progress_bar()
    scratch = Path(tempfile.mkdtemp(prefix="hf-cam-fuzzing-"))
    folder = args.findings or scratch / "findings"
    folder.mkdir(parents=True, exist_ok=True)
    (corpus := scratch / "corpus").mkdir()
    doors = Doors(scratch)
    doors.seeds(corpus)
    record = Record(doors, folder, time.monotonic() + 60 * args.minutes)
    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_len={MOST_BYTES}", "-len_control=0", "-timeout=60", "-rss_limit_mb=8000"],
        record,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
