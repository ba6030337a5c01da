"""Every method's map depends on the model's weights, and on the class unless its record says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.sanity import correlations
from benchmarks.scenes import scenes
from hf_cam.cam import CAM
from hf_cam.interfaces.cli import main
from hf_cam.methods import get_method, list_methods
from hf_cam.metrics import rank_correlation
from hf_cam.models.loading import load
from hf_cam.targets import QueryLogit
from nets import FOR_CLASSES


@pytest.fixture(scope="module")
def loaded():
    return load("demo:vit")


@pytest.fixture(scope="module")
def inputs(loaded):
    return loaded.inputs([Image.fromarray(scene.image) for scene in scenes("test", 4, seed=5)])


def defined(loaded, method: str, inputs) -> tuple[float, float]:
    if get_method(method).reruns:
        inputs = {"pixel_values": inputs["pixel_values"][:1]}
    return correlations(loaded.model, method, inputs)


@pytest.mark.parametrize("method", FOR_CLASSES)
def test_a_map_depends_on_the_weights_and_on_the_class_unless_the_record_says_that_it_does_not(
    method: str, loaded, inputs
) -> None:
    shuffled, other = defined(loaded, method, inputs)
    assert shuffled < 0.9  # else the method shows the picture and not the model
    if get_method(method).ignores_class:
        assert other == pytest.approx(1, abs=1e-5)
    else:
        assert other < 0.95


def test_what_goes_by_the_tokens_that_are_read_differs_between_detections() -> None:
    loaded = load("demo:detr")
    inputs = loaded.inputs([Image.fromarray(scenes("test", 1, seed=5)[0].image)])
    for method in ("raw-attention", "rollout"):
        assert not get_method(method).ignores_target
        one, other = (CAM(loaded.model, method)(**inputs, targets=[QueryLogit(query, 0)]) for query in (0, 5))
        assert rank_correlation(one, other).item() < 0.99


def test_the_command_lists_which_maps_all_targets_or_classes_share(capsys) -> None:
    assert main(["methods"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line[:1].strip()}
    for name in list_methods():
        record = get_method(name)
        assert ("Same map for every target." in lines[name]) is record.ignores_target
        assert ("Same map for every class." in lines[name]) is (record.ignores_class and not record.ignores_target)


def test_the_page_has_a_line_of_every_method() -> None:
    page = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = page.split("<!-- sanity -->")[1].split("<!-- end of sanity -->")[0]
    listed = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert listed == [*list_methods()]
    for line in table.splitlines():
        if line.startswith("| `") and "not defined" not in line.split("|")[2]:
            method, weights, other = (cell.strip(" `") for cell in line.split("|")[1:4])
            assert float(weights) < 0.9
            assert (float(other) > 0.995) is get_method(method).ignores_class, line
