"""Maps in other processes: spawned ones, data loaders' workers, Ray's actors, and gunicorn's workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_cam.cam import CAM
from nets import spread, tiny
from pictures import SIZE, pictures

TESTS = Path(__file__).parent


def vit() -> nn.Module:
    return spread(tiny(hf.ViTForImageClassification, image_size=SIZE, num_hidden_layers=2, num_labels=5))


def explained(model: nn.Module) -> np.ndarray:
    return CAM(model)(pictures(1), 1).numpy()


class Maps(torch.utils.data.Dataset[Tensor]):
    """A data set whose items are maps, made in the loader's workers."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(explained(self.model)[0])


@pytest.mark.slow
def test_a_loaders_spawned_workers_explain() -> None:
    model = vit()
    expected = explained(model)
    loader = DataLoader(Maps(model), num_workers=2, multiprocessing_context="spawn")
    for maps in loader:
        np.testing.assert_allclose(maps, expected, atol=1e-6)


@pytest.mark.slow
def test_a_pool_of_processes_explains() -> None:
    model = vit()
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for found in pool.map(explained, [model] * 4):
            np.testing.assert_allclose(found, explained(model), atol=1e-6)


def partner(name: str, variable: str) -> Any:
    """A package that only some environments have; `required` as the variable's value makes its absence a failure."""
    if os.environ.get(variable) == "required":
        return import_module(name)
    return pytest.importorskip(name)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_rays_actors_explain() -> None:
    ray = partner("ray", "HF_CAM_RAY")
    model = vit()
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}}
    limits = {"num_cpus": 2, "object_store_memory": 256 * 2**20}
    ray.init("local", **limits, include_dashboard=False, runtime_env=environment, log_to_driver=False)

    class Explaining:
        def __init__(self, given: nn.Module) -> None:
            self.model = given

        def maps(self) -> np.ndarray:
            return explained(self.model)

    try:
        actors = [ray.remote(num_cpus=0.5)(Explaining).remote(model) for _ in range(2)]
        for found in ray.get([actor.maps.remote() for actor in actors * 2], timeout=240):
            np.testing.assert_allclose(found, explained(model), atol=1e-6)
    finally:
        ray.shutdown()


APPLICATION = """
import json, os, threading
from test_processes import explained, vit

model = vit()
expected = explained(model)  # in the master, before it forks
threading.Thread(target=lambda: [explained(model) for _ in range(10**6)], daemon=True).start()

def application(environ, start):
    right = bool(abs(explained(model) - expected).max() < 1e-6)
    body = json.dumps({"right": right, "process": os.getpid()}).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.peers
def test_gunicorns_workers_explain_with_a_model_that_the_master_loaded(tmp_path: Path) -> None:
    partner("gunicorn", "HF_CAM_PEERS")
    (tmp_path / "served.py").write_text(APPLICATION)
    command = [sys.executable, "-W", "ignore", "-m", "gunicorn", "--preload", "--workers", "2", "--timeout", "60"]
    path = os.pathsep.join(map(str, [tmp_path, TESTS, TESTS.parent]))
    port = 20000 + os.getpid() % 20000
    with subprocess.Popen(
        [*command, "--bind", f"127.0.0.1:{port}", "served:application"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    ) as server:
        try:
            answers = [answer_of(f"http://127.0.0.1:{port}/") for _ in range(8)]
        finally:
            server.terminate()
    assert all(answer["right"] for answer in answers)
    assert all(answer["process"] != server.pid for answer in answers)


def answer_of(url: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.loads(answer.read())
        except ConnectionRefusedError:
            pass
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError):
                raise
        assert time.monotonic() < deadline
        time.sleep(0.5)
