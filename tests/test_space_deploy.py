"""A deployed page: what is pushed installs in an environment that has nothing else, and starts there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import hf_cam.interfaces.space
from hf_cam.interfaces.space import deploy, space_folder
from hf_cam.zoo import SCENE
from serving import Visit, started

CHECKOUT = space_folder().parent


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    """A Python without any packages."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """This checkout as a wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(CHECKOUT))
    [found] = folder.glob("*.whl")
    return found


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=alone())
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def alone() -> dict[str, str]:
    """The environment without what leads to this checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def answers(python: Path, pushed: Path, folder: Path) -> bool:
    """Whether the pushed `app.py` starts as on a Space and explains a picture."""
    as_on_a_space = {"SPACE_ID": "someone/page", "PYTHONPATH": "", "GRADIO_ANALYTICS_ENABLED": "False"}
    with started([str(python), "app.py"], folder, pushed, **as_on_a_space) as served:
        visit = Visit(served.address)
        event = visit.named("explain")
        given = {"image": visit.upload(SCENE.read_bytes(), "scene.png"), "model": "demo:vit", "top_k": 1}
        return visit.send(event, visit.values(event, **given))["success"]


@pytest.mark.slow
def test_what_a_checkout_pushes_installs_and_starts(hub, fresh, tmp_path):
    deploy("someone/from-checkout")
    pushed = shutil.copytree(hub.folder("someone/from-checkout"), tmp_path / "space")
    run(str(fresh), "-m", "pip", "install", "--quiet", "--no-compile", "-r", str(pushed / "requirements.txt"))
    assert answers(fresh, pushed, tmp_path)


@pytest.mark.slow
def test_what_an_installed_package_pushes_installs_and_starts(hub, fresh, wheel, tmp_path, monkeypatch):
    """The requirement of hf-cam itself is met by the wheel of this checkout, which no index has yet."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    monkeypatch.setattr(hf_cam.interfaces.space, "space_folder", lambda: tmp_path / "installed" / "hf_cam" / "spaces")
    deploy("someone/from-package")
    pushed = shutil.copytree(hub.folder("someone/from-package"), tmp_path / "space")
    assert not (pushed / "hf_cam").exists()
    [line] = (pushed / "requirements.txt").read_text().split()
    assert line == "hf-cam[space]"
    run(str(fresh), "-m", "pip", "install", "--quiet", f"{line} @ {wheel.as_uri()}")
    assert answers(fresh, pushed, tmp_path)
