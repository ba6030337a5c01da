"""The size of the model that a stranger's config describes, built in a process that may die.

No weights are loaded and nothing is fetched. Run as a program, it reads one folder per line and answers each with a
line of JSON. Every folder is built in its own fork, so that a config that uses up memory or time affects nothing else.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

SECONDS = 10
"""Of CPU time for one model; the wall clock allows ten times as many."""
MEMORY = 2**30
PICTURE = (1024, 768)


@dataclass(frozen=True)
class Scale:
    """The size of the model that a config and its processor describe.

    Args:
        parameters: How many the model has, each counted once.
        buffer_bytes: Bytes of its other tensors.
        input_values: Values in its input for a picture of 1024 x 768 pixels.
        operations: Multiplications and additions per forward pass; 0 where they cannot be counted.
        failed: Why it cannot be built; "" where it can.
    """

    parameters: int = 0
    buffer_bytes: int = 0
    input_values: int = 0
    operations: int = 0
    failed: str = ""


class Builder:
    """The process that builds models; it is started when first needed, and again after it has died.

    Args:
        seconds: CPU time that building one model may take.
    """

    def __init__(self, seconds: int = SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def start(self) -> subprocess.Popen[str]:
        """The running process; a new one takes some seconds until it answers."""
        if self._process is None or self._process.poll() is not None:
            self.stop()
            quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            home = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": ""}
            self._process = subprocess.Popen(  # noqa: S603 - this very file
                [sys.executable, str(Path(__file__)), str(self.seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **quiet, **home},
            )
        return self._process

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            with self._process:  # closes its pipes and waits
                self._process = None

    def measure(self, folder: Path) -> Scale:
        """The scale of the model whose config is in a folder."""
        with self._lock:
            process = self.start()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(f"{json.dumps(str(folder))}\n")
                process.stdin.flush()
                return Scale(**json.loads(process.stdout.readline()))
            except (OSError, ValueError):
                return Scale(failed="it cannot be built")


def build(folder: str) -> Scale:
    """Build the model on the meta device and preprocess one picture."""
    from PIL import Image

    from hf_cam.models.checkpoints import load_config, load_processor
    from hf_cam.target_layers.infer import module_tree

    tree = module_tree(load_config(folder)).eval()
    inputs = load_processor(folder)(images=Image.new("RGB", PICTURE), return_tensors="pt")
    return Scale(
        parameters=sum(parameter.numel() for parameter in tree.parameters()),
        buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in tree.buffers()),
        input_values=sum(math.prod(value.shape) for value in inputs.values()),
        operations=_operations(tree, inputs),
    )


def _operations(tree: Any, inputs: Any) -> int:
    """Counted from shapes alone; 0 for a forward pass that depends on values."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from hf_cam.capture.inputs import call
    from hf_cam.target_layers.infer import example_inputs

    given = {**example_inputs(tree), **inputs}
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            call(tree, {name: value.to("meta") for name, value in given.items()})
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError, AttributeError):
        return 0
    return int(counter.get_total_flops())


def _confined(folder: str, answer: int, seconds: int) -> None:
    """In the fork: build, write the answer and exit, whatever happens."""
    from hf_cam.models.checkpoints import OFFLINE_HINT

    reached: list[str] = []

    def watch(event: str, _: object) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.fork"):
            reached.append(event)
            raise PermissionError(event)

    signal.alarm(10 * seconds)
    _limit(seconds)
    sys.addaudithook(watch)
    try:
        found = build(folder)
    except BaseException as error:  # noqa: BLE001 - a stranger's config may raise anything
        said = " ".join(f"{type(error).__name__} {error}".split())
        reached += ["the Hub"] * (OFFLINE_HINT in said)
        much = "MemoryError" in said or "allocate memory" in said
        found = Scale(failed="it takes too much memory to build" if much else f"it cannot be built ({said[:200]})")
    if reached:
        found = Scale(failed="it tries to reach more than its own files")
    os.write(answer, json.dumps(asdict(found)).encode())
    os._exit(0)


def _limit(seconds: int) -> None:
    """Limit CPU time and, where the system reports it, memory to `MEMORY` bytes more than this process already has."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))


def _answer(folder: str, seconds: int) -> Scale:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _confined(folder, write, seconds)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        said = answer.read()  # until the child exits, which its alarm ensures
    os.waitpid(child, 0)
    return Scale(**json.loads(said)) if said else Scale(failed="it takes too long or too much memory to build")


def serve(lines: IO[str], answers: IO[str], seconds: int) -> None:
    """Answer line by line until the input ends."""
    import torch.utils.flop_counter  # noqa: F401
    import transformers.models.auto.image_processing_auto
    import transformers.models.vit.modeling_vit  # noqa: F401  (every fork would import them for itself)

    import hf_cam.heads  # noqa: F401

    for line in lines:
        answers.write(json.dumps(asdict(_answer(json.loads(line), seconds))) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout, int(sys.argv[1]))
