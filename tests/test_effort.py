"""`effort="checked"`: several methods are tried, one is kept, and the result says what was done."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import hf_cam
from benchmarks.planted_page import MISLEADS
from hf_cam.effort import PICKING, candidates, effect_of
from hf_cam.errors import OptionError
from hf_cam.interfaces.cli import main
from hf_cam.layouts import Layout
from hf_cam.methods import get_method, list_methods
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.catalogue import catalogue
from nets import NETS
from pictures import SIZE, noise, resized, to_tensor
from unchanged import unchanged

MARK = (slice(8, 24), slice(16, 32))


class Displacing(nn.Module):
    """A classifier that reads bright pixels, but its layer `conv` holds them half a picture away."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.conv.weight, 1 / 3)

    def forward(self, pixel_values):
        height, width = pixel_values.shape[-2:]
        moved = self.conv(pixel_values.roll((height // 2, width // 2), (-2, -1)))
        evidence = (moved - 0.5).relu().sum((1, 2, 3)) / 12 - 4
        return torch.stack([0 * evidence, evidence], 1)


@pytest.fixture(scope="module")
def marked() -> Image.Image:
    """A dark picture, not square, with a bright mark."""
    pixels = np.full((64, 96, 3), 20, np.uint8)
    pixels[MARK] = 255
    return Image.fromarray(pixels)


def explained(image, **settings):
    [found] = hf_cam.explain(image, Displacing(), processor=to_tensor, layers="conv", target=1, **settings)
    return found


def test_a_map_that_misleads_gives_way_to_one_that_the_model_supports(marked) -> None:
    fast, checked = explained(marked), explained(marked, effort="checked")
    assert fast.effort is None
    assert fast.check().verdict == "contradicts"
    assert checked.method == checked.effort.kept == "occlusion"
    assert checked.effort.check.verdict == "supports"
    peak = np.unravel_index(checked.heatmap.argmax(), checked.heatmap.shape)
    assert all(part.start <= place < part.stop for part, place in zip(MARK, peak, strict=True))


def test_the_result_says_what_was_tried_and_what_it_took(marked) -> None:
    effort = explained(marked, effort="checked").effort
    assert [one.method for one in effort.tried] == ["gradcam", "attnlrp", "occlusion"]
    first, undefined, last = effort.tried
    assert first.effect < 0.1 < 0.5 < last.effect
    assert undefined.effect is None
    assert "attention" in undefined.reason
    assert effort.forwards > 100
    for words in ("Tried gradcam (effect", "attnlrp (not defined here)", "kept occlusion", "supports the map"):
        assert words in str(effort)


def test_a_familys_file_names_the_candidates_and_each_is_a_method(marked) -> None:
    for entry in catalogue():
        assert set(entry.candidates) <= set(list_methods()), entry.family
    adapter = Adapter(("conv",), (Layout("b c h w"),), candidates=("layercam", "gradcam"))
    assert candidates(get_method("gradcam"), adapter, named=False) == ["gradcam", "layercam"]
    assert candidates(get_method("gradcam"), adapter, named=True) == ["gradcam"]


def test_where_the_layers_maps_are_known_to_mislead_its_methods_are_tried_last() -> None:
    adapter = Adapter(("conv",), (Layout("b c h w"),), caution="windows")
    assert candidates(get_method("gradcam"), adapter, named=False) == ["attnlrp", "occlusion", "gradcam"]
    assert candidates(get_method("attnlrp"), adapter, named=False) == ["attnlrp", "occlusion"]
    swin = NETS["swin"]()
    [found] = hf_cam.explain(noise(), swin, processor=resized(SIZE), effort="checked")
    assert found.effort.tried[0].method == "occlusion"


def test_a_named_method_is_checked_and_not_replaced(marked) -> None:
    found = explained(marked, method="gradcam", effort="checked")
    assert found.method == found.effort.kept == "gradcam"
    assert len(found.effort.tried) == 1
    assert found.effort.check.verdict == "contradicts"


def test_the_first_method_is_kept_if_the_model_supports_it(marked) -> None:
    class Placing(Displacing):
        def forward(self, pixel_values):
            return super().forward(pixel_values.roll((-32, -48), (-2, -1)))

    [found] = hf_cam.explain(marked, Placing(), processor=to_tensor, layers="conv", target=1, effort="checked")
    assert found.effort.kept == "gradcam"
    assert len(found.effort.tried) == 1
    assert found.effort.check.passed


@pytest.mark.parametrize(
    ("method", "options"),
    [("rise", {"samples": 30}), ("occlusion", {}), ("occlusion", {"patch": 32, "stride": 16}), ("gradcam", {})],
)
def test_the_forwards_of_a_named_method_are_those_of_its_options(marked, method, options) -> None:
    model, seen = Displacing(), []
    model.conv.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    wanted = {"layers": "conv", "target": 1, "method": method, "method_options": options, "effort": "checked"}
    [found] = hf_cam.explain(marked, model, processor=to_tensor, **wanted)
    assert found.effort.forwards == pytest.approx(sum(seen), abs=5)  # a few establish what the model returns


def test_choosing_takes_11_forwards_and_leaves_the_model_as_it_was(marked) -> None:
    origin, seen = explained(marked).origin, []
    hook = origin.model.conv.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    with unchanged(origin.model):
        effect_of(origin)
    hook.remove()
    assert sum(seen) == PICKING


def test_every_subject_and_image_of_a_batch_has_its_own_choice(marked) -> None:
    model = Displacing()
    images, targets = [marked, marked.rotate(180)], [[1, 0], 1]
    found = hf_cam.explain(images, model, processor=to_tensor, layers="conv", target=targets, effort="checked")
    assert [[one.effort.kept for one in per_image] for per_image in found][1] == ["occlusion"]
    assert [len(per_image) for per_image in found] == [2, 1]
    assert found[0][0].effort.kept == "occlusion"
    assert found[0][1].effort.check.verdict != "supports"


@pytest.mark.parametrize("effort", ["slow", None, True, 1])
def test_an_effort_that_is_none_is_refused_with_those_there_are(marked, effort) -> None:
    with pytest.raises(OptionError, match="effort must be 'fast' or 'checked'"):
        explained(marked, effort=effort)


def test_a_family_whose_layer_misleads_carries_a_flag_unless_the_method_uses_no_layer() -> None:
    swin = NETS["swin"]()
    [one] = hf_cam.explain(noise(), swin, processor=resized(SIZE))
    [other] = hf_cam.explain(noise(), swin, processor=resized(SIZE), method="input-x-gradient")
    assert any(flag.startswith("may mislead: attention inside windows") for flag in one.flags)
    assert not any(flag.startswith("may mislead") for flag in other.flags)


READERS = {
    "vit": ("vit", "ViTForImageClassification"),
    "dinov2": ("dinov2_with_registers", "Dinov2WithRegistersForImageClassification"),
    "convnext": ("convnext", "ConvNextForImageClassification"),
    "swin": ("swin", "SwinForImageClassification"),
    "clip": ("clip", "CLIPForImageClassification"),
}


def test_a_family_carries_a_caution_where_its_fast_map_was_measured_to_miss() -> None:
    page = (Path(__file__).parents[1] / "docs" / "planted.md").read_text(encoding="utf-8")
    shares: dict[str, list[float]] = {family: [] for family in READERS}
    for section in re.split(r"eak on the cue, by family\n", page)[1:]:
        lines = section.split("\n## ")[0].splitlines()
        table = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
        fast = next(row for row in table if row[0] == "fast")
        for family, cell in zip(table[0][1:], fast[1:], strict=True):
            shares[family].append(float(cell.split()[0]))
    for family, found in shares.items():
        assert len(found) == 2, family
        [entry] = [entry for entry in catalogue() if entry.matches(*READERS[family])]
        assert bool(entry.caution) is (min(found) < MISLEADS), family


def test_the_pipeline_and_the_command_take_the_effort(vit_folder, picture, picture_file, tmp_path, capsys) -> None:
    [found] = hf_cam.pipeline("image-cam", model=vit_folder)(picture, effort="checked", method="gradcam")
    assert found["effort"].kept == "gradcam"
    out = tmp_path / "map.png"
    arguments = ["explain", picture_file, "--model", vit_folder, "--method", "gradcam", "--effort", "checked"]
    main([*map(str, arguments), "--out", str(out)])
    assert "Tried gradcam" in capsys.readouterr().out
    assert out.is_file()
