"""The snippets of the migration pages run as they stand there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import hf_cam
from pages import ROOT, python_blocks
from pictures import noise

PAGES = sorted((ROOT / "docs" / "migration").glob("*.md"))


class Net(nn.Module):
    """A network whose last stage has the name that these libraries' examples use."""

    def __init__(self) -> None:
        super().__init__()
        self.layer4 = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer4(x).mean((2, 3)))


def given() -> dict[str, Any]:
    """What the pages suppose: a model, a picture, and a tiny ViT with its processor."""
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    pixels = torch.randn(1, 3, 32, 48)
    return {
        "torch": torch,
        "hf_cam": hf_cam,
        "model": Net().eval(),
        "input_tensor": pixels,
        "rgb_img": np.zeros((32, 48, 3), np.float32),
        "picture": noise(32, 48),
        "vit": ViTForImageClassification(config).eval(),
        "vit_pixels": torch.randn(2, 3, 32, 32),
        "processor": ViTImageProcessor(size={"height": 32, "width": 32}),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_snippets_of_a_migration_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = given()
    found = python_blocks(page)
    assert len(found) >= 2
    for code in found:
        exec(compile(code, page.name, "exec"), names)
    if page.stem == "pytorch-grad-cam":
        assert names["visualization"].shape == (32, 48, 3)
        assert (tmp_path / "explained.png").exists()
    else:
        assert names["heatmaps"].shape == (1, 32, 48)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("target_layers", "layers="), ("reshape_transform", "reshape="), ("use_cuda", r"\.to\('cuda'\)")],
)
def test_their_names_of_arguments_are_refused_with_ours(wrong: str, right: str) -> None:
    with pytest.raises(hf_cam.HFCamError, match=right):
        hf_cam.GradCAM(Net(), **{wrong: None})


def test_their_name_of_the_picture_is_refused_with_ours() -> None:
    net = Net().eval()
    with pytest.raises(hf_cam.HFCamError, match="pixel_values="):
        hf_cam.GradCAM(net, net.layer4)(input_tensor=torch.zeros(1, 3, 32, 48))
