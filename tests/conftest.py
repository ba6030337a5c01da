"""Every test talks to a Hub on this machine: its address must be known before huggingface_hub is imported."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from hub_server import HubServer

SCRATCH = Path(tempfile.mkdtemp(prefix="hf-cam-tests-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
HUB = HubServer(SCRATCH / "hub")
assert "huggingface_hub" not in sys.modules, "huggingface_hub read its settings before this file could set them"
os.environ["HF_ENDPOINT"] = HUB.url
os.environ["HF_HOME"] = str(SCRATCH / "hf_home")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_TOKEN"] = "hf_nobody"
# Scenes are drawn from the pictures beside the tests, also where the whole of Fashion-MNIST is installed.
os.environ["HF_CAM_FASHION_MNIST"] = str(Path(__file__).with_name("fashion-mnist"))
# The models are so small that threads only wait for each other: one is three times as fast on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for proxy in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ.pop(proxy, None)
    os.environ.pop(proxy.upper(), None)
for variable in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE"):
    os.environ.pop(variable, None)

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")

collect_ignore = ["plugin"]  # a package of its own, which would register itself in this process


@pytest.fixture
def hub() -> HubServer:
    """The Hub, up and with an empty list of requests."""
    HUB.requests.clear()
    return HUB


@dataclass(frozen=True)
class InsideServer:
    """A server on this machine that no visitor may make the page ask: its port, and the paths that were asked for."""

    port: int
    seen: list[str] = field(default_factory=list)


@pytest.fixture
def inside() -> Iterator[InsideServer]:
    """The inside server, up and not yet asked for anything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found.seen.append(self.path)
            self.send_error(404)

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    found = InsideServer(server.server_port)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, with a camera that is not there."""
    if not CHROMIUM.is_file():
        reason = f"there is no {CHROMIUM}; install it with: apt-get install chromium"
        if os.environ.get("HF_CAM_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=[*QUIET, *CAMERA])
        yield found
        found.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page, started by the command without a network."""
    from serving import serving

    with serving(tmp_path_factory.mktemp("space")) as served:
        yield served.address
        assert served.process.poll() is None, "the server did not live through the tests"


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they are kept: `$HF_CAM_SCREENSHOTS`, or with pytest's own files."""
    folder = Path(os.environ.get("HF_CAM_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny ViT for 64 x 96 pictures, five labels and its processor."""
    from transformers import ViTForImageClassification, ViTImageProcessor

    from nets import LABELS, WHOLE, tiny
    from pictures import SIZE

    folder = tmp_path_factory.mktemp("models") / "tiny-vit"
    tiny(ViTForImageClassification, LABELS, image_size=SIZE, initializer_range=0.2).save_pretrained(folder)
    ViTImageProcessor(size=WHOLE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT: a model that takes no images."""
    from transformers import BertForSequenceClassification

    from nets import tiny

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    tiny(BertForSequenceClassification).save_pretrained(folder)
    return folder


@pytest.fixture
def vit(vit_folder):
    """The tiny ViT, freshly loaded."""
    from transformers import ViTForImageClassification

    return ViTForImageClassification.from_pretrained(vit_folder).eval()


@pytest.fixture(scope="session")
def picture():
    """An RGB picture, wider than high, of no size that the model knows."""
    import numpy as np
    from PIL import Image

    rows, columns = np.mgrid[:50, :80]
    noise = np.random.default_rng(0).integers(0, 60, (50, 80))
    channels = [rows * 3 + noise, columns * 2 + noise, (rows + columns) % 190 + noise]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


@pytest.fixture(scope="session")
def photo():
    """An RGB picture of soft spots, twice as large as most models take it."""
    from PIL import Image

    from pictures import noise

    return noise(8, 12).resize((192, 128), Image.Resampling.BICUBIC)


@pytest.fixture
def picture_file(picture, tmp_path) -> Path:
    """The picture as a PNG file."""
    path = tmp_path / "picture.png"
    picture.save(path)
    return path
