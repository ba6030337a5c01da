"""The page as the command serves it, in a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
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
    """Inside, the page is up as the command serves it; its log and its temporary files lie in the folder."""
    with started([sys.executable, "-m", "hf_cam", "space", *options], folder, **variables) as served:
        yield served


@contextmanager
def started(command: Sequence[str], folder: Path, cwd: Path | None = None, **variables: str) -> Iterator[Served]:
    """Inside, a command that serves the page is up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scratch, log = folder / "tmp", folder / "log.txt"
    scratch.mkdir(exist_ok=True)
    own = {"TMPDIR": str(scratch), "OMP_NUM_THREADS": "2", "GRADIO_SERVER_PORT": str(port)}
    with log.open("a") as out:
        environment = {**os.environ, **own, **variables}
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=cwd)
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


class Visit:
    """One visitor's session, with requests as a browser sends them."""

    numbers = itertools.count()

    def __init__(self, address: str) -> None:
        self.address = address
        self.session = f"visit{next(self.numbers)}{random.randrange(10**9)}"
        self.config = json.loads(self.get("/config"))
        self.parts = {one["id"]: one for one in self.config["components"]}
        self.ids = {one["props"].get("elem_id"): number for number, one in self.parts.items()}

    def get(self, path: str, timeout: float = 120) -> bytes:
        return urllib.request.urlopen(f"{self.address}{path}", timeout=timeout).read()

    def upload(self, content: bytes, name: str = "picture.png") -> dict:
        boundary = "a-boundary-that-is-in-no-picture"
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        request = urllib.request.Request(f"{self.address}/gradio_api/upload", body, kind)
        [path] = json.loads(urllib.request.urlopen(request, timeout=60).read())
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def events(self) -> list[dict]:
        return [one for one in self.config["dependencies"] if one["backend_fn"] and one["targets"]]

    def pressed(self, element: str) -> dict:
        """The event of a button."""
        target = [self.ids[element], "click"]
        return next(one for one in self.events() if target in [list(each) for each in one["targets"]])

    def named(self, name: str) -> dict:
        return next(one for one in self.events() if one["api_name"] == name)

    def values(self, event: dict, **given: object) -> list:
        """What the page would send: given values by a control's id or label, or else those it starts with."""
        found = []
        for number in event["inputs"]:
            properties = self.parts[number]["props"]
            names = [properties.get("elem_id"), properties.get("label")]
            own = [given[name] for name in names if name in given]
            found.append(own[0] if own else properties.get("value"))
        return found

    def send(self, event: dict, data: list, picked: dict | None = None) -> dict:
        """What the server answers in the end."""
        body = {"data": data, "fn_index": event["id"], "session_hash": self.session, "event_data": picked}
        request = urllib.request.Request(
            f"{self.address}/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        mine = json.loads(urllib.request.urlopen(request, timeout=60).read())["event_id"]
        stream = f"{self.address}/gradio_api/queue/data?session_hash={self.session}"
        for line in urllib.request.urlopen(stream, timeout=300):
            if line.startswith(b"data:"):
                message = json.loads(line[5:])
                if message["msg"] == "process_completed" and message["event_id"] == mine:
                    return message
        raise AssertionError("the stream ended without an answer")
