"""What `benchmarks/methods.py` makes of its figures; the figures are the benchmark's own business."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nets import make
from unchanged import unchanged


@pytest.fixture(scope="module")
def bench() -> Any:
    for library in ("pytorch_grad_cam", "torchcam"):
        pytest.importorskip(library)
    return importlib.import_module("benchmarks.methods")


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_pieces_merge_and_later_figures_win(bench: Any, tmp_path: Path) -> None:
    case = {"model": "ViT-B/16", "method": "gradcam", "library": "hf-cam"}
    figures = bench.merged(
        write(
            tmp_path / "records.jsonl",
            {**case, "forwards": 1.5, "against": 1.0, "megabytes": None, "fails": ""},
            {**case, "forwards": None, "against": None, "megabytes": 12.0, "fails": ""},
            {**case, "forwards": 1.1, "against": 1.0, "megabytes": None, "fails": ""},
        )
    )
    [found] = figures.values()
    assert (found["forwards"], found["megabytes"]) == (1.1, 12.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"), [(10.0, 1.9, "NOT MET"), (10.0, 2.1, "NOT MET"), (1.0, 12.0, "met")]
)
def test_a_goal_is_judged_against_its_bound(bench: Any, ours: float, theirs: float, verdict: str) -> None:
    figures = {
        ("ViT-B/16", "ablationcam", "hf-cam"): {"forwards": ours, "against": 1.0},
        ("ViT-B/16", "ablationcam", "grad-cam"): {"forwards": theirs, "against": theirs / ours},
    }
    [row] = [row for goal in bench.GOALS for row in goal.verdicts(figures)]
    assert row[1] == "ViT-B/16"
    assert row[3] == verdict
    assert ("<" in row[2]) == (verdict == "NOT MET")


def test_the_most_that_is_allowed_is_judged_the_other_way_round(bench: Any) -> None:
    def verdict(five: float) -> str:
        figures = {
            ("Swin-T", bench.TOP_1, "hf-cam"): {"forwards": 1.0},
            ("Swin-T", bench.TOP_5, "hf-cam"): {"forwards": five},
        }
        [row] = [row for goal in bench.GOALS for row in goal.verdicts(figures)]
        return row[3]

    assert (verdict(1.5), verdict(1.7)) == ("met", "NOT MET")


def test_the_quickest_other_library_is_the_measure(bench: Any) -> None:
    figures = {
        ("Swin-T", "finercam", "grad-cam"): {"against": 2.0},
        ("Swin-T", "finercam", "torchcam"): {"against": 1.1},
    }
    assert bench.faster("finercam")(figures, "Swin-T") == 1.1
    assert bench.faster("fem")(figures, "Swin-T") is None


def test_a_library_that_fails_is_reported_with_its_error(bench: Any) -> None:
    figures = {
        ("ResNet-50", "fullgrad", "hf-cam"): {"forwards": 3.0, "against": 1.0, "megabytes": 5.0},
        ("ResNet-50", "fullgrad", "grad-cam"): {"fails": "ValueError: no"},
    }
    text = "\n".join(bench.report(figures))
    assert "| fullgrad | 3.00 | fails | - | - | - | 5 | - | - |" in text
    assert "- grad-cam, fullgrad, ResNet-50: `ValueError: no`" in text


def test_the_overview_names_the_quickest_other_library(bench: Any) -> None:
    figures = {
        ("Swin-T", "finercam", "hf-cam"): {"forwards": 1.5, "against": 1.0},
        ("Swin-T", "finercam", "grad-cam"): {"against": 2.0},
        ("Swin-T", "finercam", "torchcam"): {"against": 1.1},
        ("Swin-T", "fem", "hf-cam"): {"forwards": 1.0, "against": 1.0},
    }
    lines = bench.overview(figures, ["Swin-T"], ["finercam", "fem", "scorecam"]).splitlines()[2:]
    assert lines == ["| finercam | 1.50 (1.10 x) |", "| fem | 1.00 |", "| scorecam | - |"]


@pytest.mark.parametrize("library", ["hf-cam", "grad-cam", "torchcam"])
def test_a_case_runs_and_leaves_nothing_behind(bench: Any, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SIDE", 64)
    net, x, grey = make("resnet"), torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64)
    monkeypatch.setattr(bench, "TARGET", 2)
    for method in ("gradcam", "scorecam", "refinecam", "finercam"):
        with unchanged(net), bench.case(library, net, method) as run:
            run(x)
        with unchanged(net), pytest.raises(ValueError, match="channel"), bench.case(library, net, method) as run:
            run(grey)  # one channel, which the stem refuses


def test_a_long_call_is_stopped(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net, ran = nn.Linear(2, 2), []
    monkeypatch.setattr(bench, "pictures", lambda count: torch.rand(count, 2))
    net.register_forward_hook(lambda *_: ran.append(1))
    bench.stopped(net, lambda pixels: [net(pixels) for _ in range(100)])
    assert len(ran) == bench.ENOUGH
