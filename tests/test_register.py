"""`import hf_cam` is light, and transformers knows the tasks in whatever order things are imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

# Imports what is heavy once, then runs each script in a fork of its own: none of them has seen transformers' pipelines
# or hf_cam before.
FORKS = """
import contextlib, io, json, os, sys, traceback
import cv2, numpy, timm, timm.data, torch, torchvision, huggingface_hub
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel
assert "hf_cam" not in sys.modules and "transformers.pipelines" not in sys.modules
for name, script in json.load(sys.stdin).items():
    sys.stdout.flush()
    if os.fork() == 0:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(script, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc(file=printed)
        print(json.dumps({name: printed.getvalue().strip()}), flush=True)
        os._exit(0)
    os.wait()
"""

KNOWN = """
from transformers.pipelines import PIPELINE_REGISTRY
for task in ("image-cam", "explain"):
    name, described, _ = PIPELINE_REGISTRY.check_task(task)
    assert name == "image-cam", name
    assert described["impl"].__name__ == "ImageCamPipeline", described
assert PIPELINE_REGISTRY.get_supported_tasks().count("image-cam") == 1
print("known")
"""

ORDERS = {
    "hf_cam, then transformers.pipelines": "import hf_cam\nimport transformers.pipelines",
    "transformers.pipelines, then hf_cam": "import transformers.pipelines\nimport hf_cam",
    "transformers.pipeline, lazily": "import transformers\nimport hf_cam\ntransformers.pipeline",
    "our own pipeline first of all": "from hf_cam import pipeline",
    "our own pipeline class": "import hf_cam.interfaces.pipelines",
    "someone looks whether transformers has pipelines": (
        "import importlib.util, hf_cam\nassert importlib.util.find_spec('transformers.pipelines')"
    ),
    "hf_cam reloaded": "import importlib, hf_cam\nimport transformers.pipelines\nimportlib.reload(hf_cam)",
    "hf_cam reloaded before": "import importlib, hf_cam\nimportlib.reload(hf_cam)\nimport transformers.pipelines",
    "an import that fails at first": """
import sys
import hf_cam
sys.modules["transformers.pipelines.base"] = None
try:
    import transformers.pipelines
except ImportError:
    del sys.modules["transformers.pipelines.base"]
else:
    raise AssertionError("transformers.pipelines was to fail")
""",
}

OWN_LOADER = """
import hf_cam, inspect, sys
import transformers.pipelines as pipelines
assert not type(pipelines.__loader__).__module__.startswith("hf_cam"), pipelines.__loader__
assert pipelines.__spec__.loader is pipelines.__loader__
assert "def pipeline" in inspect.getsource(pipelines)
assert not any(type(finder).__module__.startswith("hf_cam") for finder in sys.meta_path)
print("own")
"""


@pytest.fixture(scope="module")
def printed():
    """What each script printed, in an interpreter of its own; a traceback where it failed."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    scripts = {name: script + "\n" + KNOWN for name, script in ORDERS.items()} | {"own loader": OWN_LOADER}
    done = subprocess.run(
        [sys.executable, "-c", FORKS], input=json.dumps(scripts), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name: text for line in done.stdout.splitlines() for name, text in json.loads(line).items()}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_the_tasks_are_known_in_any_order_of_imports(printed, order):
    assert printed[order] == "known"


@pytest.mark.slow
def test_transformers_keeps_its_own_loader(printed):
    assert printed["own loader"] == "own"


def test_importing_the_package_loads_nothing_heavy_and_is_quick():
    script = """
import sys, time
start = time.perf_counter()
import hf_cam
from hf_cam.interfaces import cli
print(time.perf_counter() - start, *sorted({name.partition(".")[0] for name in sys.modules}))
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, *loaded = done.stdout.split()
    assert float(seconds) < 1
    assert time.monotonic() - start < 5
    assert "hf_cam" in loaded
    assert not {"torch", "transformers", "numpy", "PIL", "cv2", "timm", "huggingface_hub"} & set(loaded)


def test_public_names_are_imported_on_first_use():
    import hf_cam

    for name in hf_cam.__all__:
        assert getattr(hf_cam, name) is not None
        assert name in dir(hf_cam)
    with pytest.raises(AttributeError, match="module 'hf_cam' has no attribute 'nothing'"):
        hf_cam.nothing  # noqa: B018
