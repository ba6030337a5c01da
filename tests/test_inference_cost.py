"""The arithmetic of `benchmarks/inference_cost.py`; its figures are the benchmark's own business."""

import importlib

import pytest
import torch
from torch import nn

from hf_cam import infer_adapter


@pytest.fixture(scope="module")
def cost():
    for library in ("pytorch_grad_cam", "torchcam"):
        pytest.importorskip(library)
    return importlib.import_module("benchmarks.inference_cost")


def test_the_ratio_is_taken_pair_by_pair(cost):
    assert cost.median_ratio([(1.0, 2.0), (10.0, 20.0), (1.0, 50.0)]) == 2.0


def test_pairs_keep_their_sides_whoever_goes_first(cost):
    ticks = iter(range(100))
    now = {"time": 0}

    def clock():
        return now["time"]

    def runs_for(length):
        def run(pixels):
            next(ticks)
            now["time"] += length

        return run

    pairs = cost.paired(runs_for(2), runs_for(6), torch.zeros(1), 4, clock)
    assert pairs == [(2, 6)] * 4
    assert next(ticks) == 10  # four pairs and the one that does not count


@pytest.mark.parametrize(("value", "words"), [(1.1, "1.10 <= 1.10 met"), (1.2, "1.20 > 1.10 NOT MET")])
def test_a_verdict_names_the_bound(cost, value, words):
    assert cost.verdict(value, 1.10) == words


def test_a_memory_row_judges_the_shares(cost):
    row = cost.memory_row("net", {"forward": 100.0, "hf-cam": 120.0, "grad-cam": 1000.0, "torchcam": 500.0})
    assert row[1:5] == ["100 MB", "120 MB", "1000 MB", "500 MB"]
    assert [cell.endswith("NOT MET") for cell in row[5:]] == [False, False, True]


@pytest.mark.parametrize("name", ["ViT-B/16", "Swin-T", "ConvNeXt-T", "ResNet-50"])
def test_the_models_have_their_real_size(cost, name):
    millions = {"ViT-B/16": 86.6, "Swin-T": 28.3, "ConvNeXt-T": 28.6, "ResNet-50": 25.6}
    with torch.device("meta"):
        model = cost.MODELS[name]()
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions[name], abs=0.1)
    assert isinstance(model.get_submodule(infer_adapter(model).layers[0]), nn.Module)
