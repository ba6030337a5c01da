"""The Python blocks of every page run, in one namespace per page, with bundled models in place of those of the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import hf_cam
from hf_cam.images.reading import load_image
from hf_cam.interfaces.demo import PHOTOGRAPHS
from hf_cam.models.checkpoints import resolve_name
from hf_cam.zoo import SCENE

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("google/vit-base-patch16-224", "path/to/checkpoint")
"""Models that the pages name and that no test has."""
NOT_RUN = {
    "docs/guide/marks.md": "names checkpoints on the Hub; tests/test_heads_prompted.py and _keypoints.py run the same",
    "docs/migration/others.md": "sets other libraries' code beside hf-cam's",
    "docs/migration/pytorch-grad-cam.md": "continues a program of the reader's, with a ResNet",
    "docs/tutorials/ten-thousand-images.md": "needs GPUs for Ray, and an account on the Hub",
}
"""Pages whose plain blocks do not run here, and why."""


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "_build" not in page.parts and page.relative_to(ROOT).as_posix() not in NOT_RUN and blocks(page)
]


def own_module() -> dict[str, Any]:
    """A module that returns probabilities of two classes, and its preprocessing."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=4, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 2),
        torch.nn.Softmax(-1),
    )
    processor = hf.AutoImageProcessor.from_pretrained(resolve_name("demo:vit"))
    return {"model": network.eval(), "preprocess": processor}


def given(page: Path) -> dict[str, Any]:
    """The names that a page takes for granted."""
    scene = SCENE if page.stem == "gallery" else load_image(SCENE)
    names = {"hf_cam": hf_cam, "image": scene, "images": [scene]}
    if page.stem == "outputs":
        return names | own_module()
    return names | {"model": hf.AutoModelForImageClassification.from_pretrained(resolve_name("demo:vit"))}


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [coffee] = [photograph for photograph in PHOTOGRAPHS if photograph.name == "coffee"]
    for name in ("cat.jpg", "a.jpg", "b.jpg"):
        coffee.image().save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    namespace = given(page)
    for block in blocks(page):
        for model in ELSEWHERE:
            block = block.replace(model, str(resolve_name("demo:vit")))
        exec(block, namespace)
