"""The page as the command serves it, in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Served:
    """A page that is being served: its address, its process, and the temporary folder that it has to itself."""

    address: str
    process: subprocess.Popen
    scratch: Path

    def kill(self) -> None:
        """As the system does when memory runs out."""
        self.process.kill()
        self.process.wait(20)


@contextmanager
def serving(folder: Path, *options: str, **variables: str) -> Iterator[Served]:
    """Inside, the page is up; its log and its temporary files lie in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scratch, log = folder / "tmp", folder / "log.txt"
    scratch.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "2", **variables}
    with log.open("a") as out:
        command = [sys.executable, "-m", "hf_cam", "space", "--port", str(port), *options]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        served = Served(f"http://127.0.0.1:{port}", process, scratch)
        _wait(served, log)
        yield served
    finally:
        process.terminate()
        process.wait(20)


def _wait(served: Served, log: Path, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while True:
        assert served.process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"no answer in {seconds:.0f} s: {log.read_text()}"
        try:
            urllib.request.urlopen(served.address, timeout=5).read()
        except OSError:
            time.sleep(0.25)
        else:
            return
