"""Every vision architecture of transformers: found without an argument, and right in space."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_cam
from benchmarks import tiny_models
from benchmarks.coverage import Network, build_timm, failures, smallest_of_each, timm_networks, timm_rows
from benchmarks.natural_maps import LISTED, natural_map
from benchmarks.tiny_models import TASKS, Case, case_of, cases
from hf_cam.capture.inputs import call
from hf_cam.errors import LayoutError, UnknownArchitecture
from hf_cam.layouts import BY_PLACE, NHWC, TIME_FIRST, TIME_LAST, Layout, Reshape
from hf_cam.maps import normalize, resize
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.infer import infer_adapter
from hf_cam.testing import check_adapter
from pictures import pictures

# For mask generation, the types of video models stand for the classes of the others.
HEADS = [
    case
    for case in cases(*TASKS)
    if case.task != "image-feature-extraction" and not (case.task == "mask-generation" and "video" in case.model_type)
]
EXPECTED = {
    "image-classification": 42,
    "zero-shot-image-classification": 12,
    "object-detection": 19,
    "zero-shot-object-detection": 5,
    "semantic-segmentation": 10,
    "instance-segmentation": 2,
    "universal-segmentation": 7,
    "depth-estimation": 8,
    "video-classification": 5,
    "visual-question-answering": 3,
    "mask-generation": 5,
    "keypoint-detection": 1,
    "pose-estimation": 2,
    "keypoint-matching": 3,
}


# Warnings of the models about their own configs: vocabularies of other sizes, classes to be renamed.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [case for case in HEADS if not case.refused], ids=str)
def test_an_architecture_is_explained_without_an_argument_and_lies_in_space_as_found(case: Case) -> None:
    net = case.build()
    inputs = case.inputs(net)
    adapter = natural_map(case, net, inputs).adapter
    for check in check_adapter(net, adapter, inputs=inputs, score=LISTED.get(case.model_type)):
        assert check.verdict == "confirmed"
        assert check.coverage >= 0.95
        assert min(check.grid) >= 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", ["as a number", "as height and width"])
@pytest.mark.parametrize(
    "case", [case for case in HEADS if case.only_squares and case.model_type != "rf_detr"], ids=str
)
def test_what_is_checked_on_a_square_takes_no_other_picture(case: Case, size: str, monkeypatch) -> None:
    if size == "as height and width":
        monkeypatch.setattr(tiny_models, "RECTANGULAR", {case.model_type})
    side = case.size[0]
    oblong = replace(case, picture=(side, side * 3 // 2))
    with pytest.raises((RuntimeError, TypeError, ValueError), match=r"size|shape|expected|operand"):
        call(oblong.build(), oblong.inputs(case.build()))


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_mixes_up_what_is_not_square_is_refused_unless_it_is() -> None:
    case = replace(case_of("object-detection", "rf_detr"), picture=(128, 192))
    net = case.build()
    with pytest.raises(LayoutError, match=r"mixes up rows and columns of a picture that is not square.* 128 x 192"):
        hf_cam.CAM(net)(case.inputs(net)["pixel_values"], targets=lambda output: output.logits.sum())


@pytest.mark.filterwarnings("ignore")
def test_every_level_of_a_multi_scale_encoder_gives_a_map_where_the_caller_names_it() -> None:
    case = case_of("object-detection", "rt_detr")
    net = case.build()
    levels = [f"model.encoder_input_proj.{level}" for level in range(3)]
    cam = hf_cam.CAM(net, "hirescam", layers=levels)
    pixels = case.inputs(net)["pixel_values"]
    found = cam.saliency(pixels, lambda output: [[lambda sample: sample.logits[0, 1]]])
    height, width = case.size
    assert [maps.shape[-2:] for maps in found.raw] == [(height // side, width // side) for side in (8, 16, 32)]
    assert all(maps.any() for maps in found.raw)
    fused = normalize(torch.stack([resize(normalize(maps.clamp_min(0)), case.size) for maps in found.raw]).mean(0))
    torch.testing.assert_close(found.maps, fused)


def test_no_task_has_fewer_architectures_than_were_counted() -> None:
    counts = {task: sum(case.task == task for case in HEADS) for task in EXPECTED}
    for task, count in EXPECTED.items():
        assert counts[task] >= count, task


@pytest.mark.parametrize("case", [case for case in cases() if case.refused], ids=str)
def test_a_model_without_a_map_is_refused_with_the_reason(case: Case) -> None:
    config = CONFIG_MAPPING[case.model_type]()
    config.architectures = [case.model_class]
    with pytest.raises(UnknownArchitecture, match=rf"{case.model_type}\) has no map to draw: "):
        infer_adapter(config)


# What must fail ------------------------------------------------------------------------------------------------------

WRONG = {
    "transposed": lambda maps: maps.transpose(-2, -1).reshape(maps.shape),
    "shifted by a cell": lambda maps: maps.flatten(-2).roll(1, -1).reshape(maps.shape),
    "upside down": lambda maps: maps.flip(-2),
    "mirrored": lambda maps: maps.flip(-1),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    ("task", "model_type"),
    [
        ("image-classification", "vit"),
        ("image-classification", "siglip2"),
        ("zero-shot-image-classification", "clip"),
        ("object-detection", "yolos"),
        ("image-classification", "efficientnet"),
        ("image-classification", "levit"),
        ("image-classification", "mobilevit"),
    ],
)
def test_a_grid_in_another_order_than_claimed_fails_the_check(task: str, model_type: str, wrong: str) -> None:
    case = case_of(task, model_type)
    net = case.build()
    inputs = case.inputs(net)
    right = infer_adapter(net, inputs=inputs)
    layout = Reshape(lambda tokens: WRONG[wrong](right.to_spatial(tokens, case.size)))
    with pytest.raises(LayoutError, match="does not show at the same place"):
        check_adapter(net, Adapter(right.layers, (layout,)), inputs=inputs)


@pytest.mark.parametrize(
    ("model_type", "axes"),
    [("videomae", TIME_LAST), ("vivit", TIME_LAST), ("vjepa2", TIME_LAST)],
)
def test_time_and_space_taken_for_each_other_fail_the_check(model_type: str, axes: str) -> None:
    case = case_of("video-classification", model_type)
    net = case.build()
    inputs = case.inputs(net)
    right = infer_adapter(net, inputs=inputs)
    wrong = Layout(axes, right.layouts[0].prefix, patch=(16, 16))
    with pytest.raises(LayoutError, match="does not show at the same place"):
        check_adapter(net, Adapter(right.layers, (wrong,)), inputs=inputs)


# Layouts of videos and of padded patches -----------------------------------------------------------------------------


def test_videos_and_padded_patches_are_laid_out_value_by_value() -> None:
    video = torch.arange(2 * 3 * 5 * 2 * 4).reshape(2, 3, 5, 2, 4).float()  # [B, C, t, h, w]
    size = (32, 64)
    tokens = video.permute(0, 2, 3, 4, 1).reshape(2, 40, 3)
    front = torch.zeros(2, 1, 3)
    found = Layout(TIME_FIRST, 1, patch=(16, 16)).to_spatial(torch.cat([front, tokens], 1), size)
    assert torch.equal(found, video)
    places = video.permute(0, 3, 4, 2, 1).reshape(2, 40, 3)
    assert torch.equal(Layout(TIME_LAST, patch=(16, 16)).to_spatial(places, size), video)
    assert torch.equal(Layout(BY_PLACE, patch=(16, 16)).to_spatial(places.reshape(16, 5, 3), size), video)
    frames = Layout("(b t) (h w) c", patch=(16, 16)).to_spatial(tokens[:1].reshape(5, 8, 3), size)
    assert torch.equal(frames, video[:1])
    padded = torch.cat([tokens[:, :8], torch.full((2, 7, 3), -1.0)], 1)
    assert torch.equal(Layout("b (h w) c", suffix=None, patch=(16, 16)).to_spatial(padded, size), video[:, :, 0])
    with pytest.raises(LayoutError, match="no whole number of grids"):
        Layout(TIME_FIRST, patch=(16, 16)).to_spatial(tokens[:, 1:], size)
    with pytest.raises(LayoutError, match="no whole number of grids"):
        Layout("b (h w) c", suffix=None, patch=(16, 16)).to_spatial(tokens[:, :7], size)
    with pytest.raises(LayoutError, match="size of a patch"):
        Layout(TIME_FIRST)


# Never seen before ---------------------------------------------------------------------------------------------------


class Instrument(nn.Module):
    """Reads a plate and the settings that it was taken with; its tokens follow those of the settings."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(2, 24, (8, 16), (8, 16))
        self.settings = nn.Linear(3, 24)
        self.mixers = nn.ModuleList(nn.TransformerEncoderLayer(24, 2, 48, 0.0, batch_first=True) for _ in range(2))
        self.verdict = nn.Linear(24, 4)

    def forward(self, plate: torch.Tensor, settings: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = torch.cat([self.settings(settings), self.cut(plate).flatten(2).mT], 1)
        for mixer in self.mixers:
            tokens = mixer(tokens)
        return {"faults": self.verdict(tokens.mean(1))}


class Folded(nn.Module):
    """Keeps its map channels last and folds two rows into the channels on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 4, 4)
        self.second = nn.Linear(4 * 8, 16)
        self.end = nn.LayerNorm(16)
        self.classes = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu().permute(0, 2, 3, 1)
        batch, rows, columns, channels = x.shape
        x = x.reshape(batch, rows // 2, 2, columns // 2, 2, channels).transpose(2, 3).flatten(3)
        return self.classes(self.end(self.second(x)).mean((1, 2)))


def test_an_architecture_of_two_inputs_that_nobody_described_is_explained() -> None:
    torch.manual_seed(0)
    net = Instrument()
    inputs = {"plate": torch.randn(1, 2, 48, 128), "settings": torch.randn(1, 3, 3)}
    adapter = infer_adapter(net, inputs=inputs)
    assert adapter.origin == "probe"
    assert adapter.layouts == (Layout("b (h w) c", prefix=3, patch=(8, 16)),)
    [check] = check_adapter(net, adapter, inputs=inputs)
    assert (check.grid, check.coverage, check.verdict) == ((6, 8), 1, "confirmed")


def test_an_architecture_with_an_odd_layout_is_explained() -> None:
    torch.manual_seed(0)
    net, x = Folded(), pictures(1)
    adapter = infer_adapter(net, inputs={"pixel_values": x})
    assert (adapter.layers, adapter.layouts[0].axes) == (("end",), NHWC)
    [check] = check_adapter(net, adapter, inputs={"pixel_values": x})
    assert (check.grid, check.verdict) == ((8, 12), "confirmed")
    found = hf_cam.CAM(net)(x, targets=[2])
    assert found.shape == (1, 64, 96)
    assert found.max() == 1


def test_patches_that_no_convolution_cuts_are_known_from_the_module_that_cuts_them() -> None:
    class Cutter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch_size, self.proj = 8, nn.Linear(3 * 64, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.proj(nn.functional.unfold(x, 8, stride=8).mT)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), nn.Identity())
    net.patch_embed, net.norm, net.head = Cutter(), nn.LayerNorm(16), nn.Linear(16, 3)
    net.forward = lambda x: net.head(net.norm(net.patch_embed(x)).mean(1))
    [check] = check_adapter(net, inputs={"pixel_values": pictures(1)})
    assert (check.layer, check.grid, check.verdict) == ("norm", (8, 12), "confirmed")


def test_a_grid_that_only_the_answer_lies_on_is_not_looked_at() -> None:
    """Four tokens are joined to one behind the last layer that has a name, as in Llama 4's reader of pictures."""

    class Joins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.norm = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16)
            self.answer = nn.Linear(64, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.patch(x).permute(0, 2, 3, 1))
            batch, rows, columns, channels = x.shape
            x = x.reshape(batch, rows // 2, 2, columns // 2, 2, channels).transpose(2, 3).flatten(3)
            return self.answer(x).flatten(1, 2)

    torch.manual_seed(0)
    [check] = check_adapter(Joins(), inputs={"pixel_values": pictures(1)})
    assert (check.layer, check.grid, check.verdict) == ("norm", (8, 12), "confirmed")


# timm ----------------------------------------------------------------------------------------------------------------


def test_every_drawn_network_of_timm_resolves_from_its_config_alone() -> None:
    names = random.Random(0).sample(timm.list_models(), 12)
    assert not [network.name for network in timm_networks(names) if network.adapter is None]


ODD = {
    "tnt_s_patch16_224": ["blocks.11.norm_out"],
    "vit_small_patch16_18x2_224": ["blocks.16"],
    "vit_base_patch16_xp_224": ["blocks.11.in_norm"],
    "gemma4_vit_167m": ["encoder.blocks.15"],
    "mvitv2_base_cls": ["stages.3.blocks.2.norm1"],
    "mvitv2_tiny": ["norm"],
    "twins_svt_small": ["norm"],
    "samvit_base_patch16_224": ["neck"],
    "cait_xxs24_224": ["blocks_token_only.1.norm1"],
}


def test_what_timms_metadata_does_not_tell_stands_in_the_catalogue() -> None:
    found = {network.name: network.adapter for network in timm_networks(ODD)}
    assert {name: list(adapter.layers) for name, adapter in found.items() if adapter is not None} == ODD


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet", "test_vit", "test_efficientnet", "mobilenetv3_small_050", "efficientvit_b0", "levit_128s",
        "levit_conv_128s", "crossvit_tiny_240", "pit_ti_distilled_224", "coat_lite_tiny", "visformer_tiny",
    ],
)  # fmt: skip
def test_a_network_of_timm_is_explained_and_right_in_space(name: str) -> None:
    assert failures(timm_rows(timm_networks([name]))) == []


def test_a_stretched_picture_is_no_grid_of_cells() -> None:
    net, picture, only_squares = build_timm("crossvit_tiny_240")
    assert only_squares
    with pytest.raises(LayoutError, match="fit no grid"):
        hf_cam.CAM(net)(picture[..., :176])


def test_the_smallest_network_stands_for_its_module() -> None:
    networks = [Network("b", "two", 5, None), Network("a", "one", 3, None), Network("c", "two", 4, None)]
    assert [network.name for network in smallest_of_each(networks)] == ["a", "c"]


# The page ------------------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"


def test_the_page_names_every_type_and_counts_its_own_rows() -> None:
    sections = dict(part.split("\n", 1) for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:])
    counted = {
        cells[1].strip(): (*(int(cell or 0) for cell in map(str.strip, cells[2:6])), cells[6].strip())
        for line in PAGE.read_text(encoding="utf-8").split("\n## ")[0].splitlines()
        if line.startswith("| ") and (cells := line.split("|"))[1].strip() in TASKS
    }
    for task in TASKS:
        rows = [line.split(" | ") for line in sections[task].splitlines() if line.startswith("| ")][1:]
        assert [row[0].removeprefix("| ") for row in rows] == [case.model_type for case in cases(task)]
        ends = [row[6] for row in rows]
        asked = sum(end == "yes, with the caller's target" for end in ends)
        doors = [row[7].removesuffix(" |").strip() for row, end in zip(rows, ends, strict=True) if end == "yes"]
        by_tensors = f"{doors.count('yes')} of {len(doors)}"
        assert counted[task] == (len(rows), ends.count("yes"), asked, ends.count("no map"), by_tensors)
        refused = {row[0].removeprefix("| ") for row in rows if row[6] == "no map"}
        assert refused == {case.model_type for case in cases(task) if case.refused}
    modules = [line.split(" | ")[0].removeprefix("| ") for line in sections["timm"].splitlines() if line[:2] == "| "]
    assert modules[1:] == sorted(timm.list_modules())
