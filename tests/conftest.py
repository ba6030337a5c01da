"""Every test talks to a Hub on this machine: its address must be known before huggingface_hub is imported."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

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
# The models are so small that threads only wait for each other: one is three times as fast on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for proxy in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ.pop(proxy, None)
    os.environ.pop(proxy.upper(), None)
for variable in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE"):
    os.environ.pop(variable, None)


@pytest.fixture
def hub() -> HubServer:
    """The Hub, up and with an empty list of requests."""
    HUB.requests.clear()
    return HUB


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
