"""A package that is installed beside hf-cam adds a method, a metric, a head and an adapter, each in one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # several interpreters, one of which installs the package
PLUGIN = Path(__file__).with_name("plugin")

SCRIPT = """
import json, sys
import numpy as np, torch
import hf_cam
assert not any(name.startswith("hf_cam_stripes") for name in sys.modules), "a plug-in waits until it is asked for"
from hf_cam.testing import check_adapter, check_head, check_method, check_metric

picture = np.zeros((40, 60, 3), np.uint8)
picture[::8] = 255
found = {"explained": [e.method for e in hf_cam.explain(picture, "demo:vit", method="rowcam")]}
compared = hf_cam.compare(picture, "demo:vit", methods=["gradcam", "rowcam"])
found["compared"] = [e.method for e in compared.explanations]
found["by default"] = "rowcam" in [e.method for e in hf_cam.compare(picture, "demo:convnext").explanations]
table = hf_cam.evaluate("demo:vit", [picture], methods=["rowcam"], metrics=["evenness"], progress=False)
found["evaluated"] = {row.map: row.means["evenness"] for row in table.rows}
bent = hf_cam.explain(picture, "demo:vit", method="rowcam", method_options={"power": 3.0})[0]
plain = hf_cam.explain(picture, "demo:vit", method="rowcam")[0]
found["options reach it"] = not np.allclose(bent.raw, plain.raw)

from hf_cam_stripes.model import StripesConfig, StripesModel
torch.manual_seed(0)
model = StripesModel(StripesConfig()).eval()
prepare = lambda image: torch.from_numpy(np.array(image.resize((48, 32)))).permute(2, 0, 1) / 255
adapter = hf_cam.infer_adapter(model)
found["adapter"] = [adapter.origin, *adapter.layers]
[own] = hf_cam.explain(picture, model, processor=prepare)
found["head"] = [own.label in ("rows", "columns"), own.method, list(own.heatmap.shape)]
[named] = hf_cam.explain(picture, model, processor=prepare, target="columns")
found["target"] = named.label
found["laws"] = [len(check_method("rowcam")), check_metric("evenness"), len(check_head(model, processor=prepare))]
found["cells"] = [list(check.grid) for check in check_adapter(model)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the plug-in is installed beside the package, found by its entry points."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(folder), str(PLUGIN)], check=True, capture_output=True)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(PLUGIN.parents[1])])}


@pytest.fixture(scope="module")
def seen(installed: dict[str, str]) -> dict[str, object]:
    """What a program sees that uses each part of the plug-in through the doors."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=installed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_its_method_is_explained_compared_and_evaluated_with(seen: dict[str, object]) -> None:
    assert seen["explained"] == ["rowcam"]
    assert seen["compared"] == ["gradcam", "rowcam"]
    assert seen["by default"]
    assert seen["options reach it"]


def test_its_metric_judges_every_map(seen: dict[str, object]) -> None:
    assert seen["evaluated"]["rowcam"] > 0.5 > seen["evaluated"]["noise"]


def test_its_head_and_adapter_serve_its_own_model(seen: dict[str, object]) -> None:
    assert seen["adapter"] == ["catalogue", "body"]
    assert seen["head"] == [True, "rowcam", [40, 60]]
    assert seen["target"] == "columns"


def test_the_public_laws_hold_for_all_of_it(seen: dict[str, object]) -> None:
    assert seen["laws"] == [2, ["right", "noise", "inverse"], 1]
    assert seen["cells"] == [[8, 12]]


def test_the_command_lists_and_uses_it(installed: dict[str, str], tmp_path: Path, picture_file: Path) -> None:
    def hf_cam(*arguments: str) -> str:
        command = [sys.executable, "-m", "hf_cam", *arguments]
        done = subprocess.run(command, env=installed, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "rowcam" in hf_cam("methods")
    out = tmp_path / "rows.png"
    said = hf_cam("explain", str(picture_file), "--model", "demo:vit", "--method", "rowcam", "--out", str(out))
    assert "(rowcam)" in said
    assert out.is_file()
