"""How long the page takes beside the library: `python -m benchmarks.page_speed`.

The page is started by its command, and Explain is pressed over HTTP as a browser does: again and again in one visit,
which has begun before, since the page fills itself when it is opened. The library explains the same
picture with the same settings and draws what the page shows: the overlay, as a picture and as the file to take home.
Page and library take turns, so that whatever else the machine does falls on both. Medians are printed, of each and of
the ratio within a round, for a photograph and for the zoo's scene, and the seconds until the page answers.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import hf_cam
from hf_cam.interfaces.demo import PHOTOGRAPHS
from hf_cam.zoo import SCENE

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from serving import serving

MODELS = {"demo:imagenet": "camera", "demo:vit": "scene", "demo:detr": "scene"}
FOUND = {"demo:imagenet": 5, "demo:vit": 5, "demo:detr": 10}
"""How many things the page explains."""


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(first: Callable[[], object], second: Callable[[], object], rounds: int) -> list[tuple[float, float]]:
    """Seconds of both in each round, without the first two rounds, which load and warm up."""
    return [(seconds(first), seconds(second)) for _ in range(rounds + 2)][2:]


def explain_event(address: str) -> int:
    """The number of what a press on Explain sets off, as the opened page knows it."""
    config = json.loads(urllib.request.urlopen(f"{address}/config", timeout=60).read())
    ids = {one["props"].get("elem_id"): one["id"] for one in config["components"]}
    [event] = [one for one in config["dependencies"] if [ids["go"], "click"] in [list(t) for t in one["targets"]]]
    return int(event["id"])


def press(address: str, event: int, picture: dict[str, object], model: str, session: str) -> None:
    """Press Explain in a visit and wait for all that it fills."""
    data = [picture, model, "", "", "auto", "", False, False, "fast", 0.6, "inferno"]
    body = json.dumps({"data": data, "fn_index": event, "session_hash": session}).encode()
    request = urllib.request.Request(f"{address}/gradio_api/queue/join", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=60).read()
    answer = urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash={session}", timeout=300)
    for line in answer:
        if b"process_completed" in line:
            assert json.loads(line.removeprefix(b"data: "))["success"], line
            return


def uploaded(address: str, file: Path) -> dict[str, object]:
    """The file as the page knows it."""
    bound = "----page-speed"
    head = f'--{bound}\r\nContent-Disposition: form-data; name="files"; filename="{file.name}"\r\n\r\n'.encode()
    request = urllib.request.Request(
        f"{address}/gradio_api/upload",
        head + file.read_bytes() + f"\r\n--{bound}--\r\n".encode(),
        {"Content-Type": f"multipart/form-data; boundary={bound}"},
    )
    [path] = json.loads(urllib.request.urlopen(request, timeout=60).read())
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        files = {"scene": SCENE}
        for photograph in PHOTOGRAPHS:
            files[photograph.name] = Path(scratch) / f"{photograph.name}.png"
            photograph.image().save(files[photograph.name])
        started = time.perf_counter()
        with serving(Path(scratch), OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "")) as served:
            print(f"ready after {time.perf_counter() - started:.1f} s")
            event = explain_event(served.address)
            print("| model | library, ms | page, ms | ratio |\n|---|--:|--:|--:|")
            for model, name in MODELS.items():
                loaded, out = hf_cam.load(model), Path(scratch) / "overlay.png"

                def library(loaded: object = loaded, name: str = name, model: str = model, out: Path = out) -> None:
                    found = hf_cam.explain(files[name], loaded, top_k=FOUND[model])
                    found[0].save(out)
                    for one in found:
                        one.overlay()

                picture = uploaded(served.address, files[name])
                pressed = functools.partial(press, served.address, event, picture, model, session=f"visit-{model}")
                taken = in_turns(library, pressed, rounds)
                own, page = (1000 * statistics.median(times) for times in zip(*taken, strict=True))
                ratio = statistics.median(page / own for own, page in taken)
                print(f"| {model} | {own:.0f} | {page:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
