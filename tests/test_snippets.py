"""The Python blocks of every page run, in one namespace per page, with bundled models in place of those of the Hub."""

from __future__ import annotations

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
from pages import ROOT, python_blocks

ELSEWHERE = ("google/vit-base-patch16-224", "path/to/checkpoint")
"""Models that the pages name and that no test has."""
NOT_RUN = {
    "docs/migration/others.md": "test_migration.py runs it",
    "docs/migration/pytorch-grad-cam.md": "test_migration.py runs it",
    "docs/guide/marks.md": "names checkpoints of the Hub; test_heads_prompted.py and _keypoints.py run the same",
    "docs/tutorials/ten-thousand-images.md": "test_ray.py runs its block for Ray, test_dataset.py the one for the Hub",
}
"""Pages whose plain blocks run elsewhere, and where."""


PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "_build" not in page.parts and page.relative_to(ROOT).as_posix() not in NOT_RUN and python_blocks(page)
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
    for block in python_blocks(page):
        for model in ELSEWHERE:
            block = block.replace(model, str(resolve_name("demo:vit")))
        exec(block, namespace)
