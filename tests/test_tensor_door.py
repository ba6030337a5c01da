"""The door of tensors explains, with no target, what every head finds; by the same heads as the door of images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hf_cam
from benchmarks.natural_maps import NoMapError, tensor_map
from benchmarks.tiny_models import Case, cases
from hf_cam.errors import HFCamError, ModelError, TargetError
from hf_cam.heads.selection import Selection, identity, selection
from hf_cam.outputs import sample_of
from hf_cam.targets import (
    BoxLogit,
    ClassLogit,
    EmbeddingNorm,
    PromptSimilarity,
    QueryLogit,
    RegionDepth,
    RegionLogit,
    SegmentLogit,
)

KINDS = {
    "image-classification": ("resnet", ClassLogit),
    "zero-shot-image-classification": ("clip", PromptSimilarity),
    "object-detection": ("detr", QueryLogit),
    "zero-shot-object-detection": ("owlvit", QueryLogit),
    "semantic-segmentation": ("segformer", RegionLogit),
    "instance-segmentation": ("maskformer", SegmentLogit),
    "universal-segmentation": ("oneformer", SegmentLogit),
    "depth-estimation": ("glpn", RegionDepth),
    "video-classification": ("timesformer", ClassLogit),
    "image-feature-extraction": ("dinov2", EmbeddingNorm),
}
MORE = [
    ("zero-shot-image-classification", "siglip2"),
    ("zero-shot-image-classification", "videoprism"),
    ("zero-shot-object-detection", "grounding-dino"),
    ("zero-shot-object-detection", "omdet-turbo"),
    ("object-detection", "pp_ocrv5_server_det"),
    ("visual-question-answering", "vilt"),
    ("visual-question-answering", "blip"),
    ("visual-question-answering", "blip-2"),
]


def case_of(task: str, model_type: str) -> Case:
    return next(case for case in cases(task) if case.model_type == model_type)


def chosen(model: nn.Module, inputs: dict[str, Any], targets: Any = None) -> tuple[Selection, Any]:
    """What is chosen of a model's own output, and one sample of that output."""
    found = selection(model, targets, inputs, {})
    with torch.no_grad():
        return found, model(**found.inputs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("task", "model_type"), [*((task, name) for task, (name, _) in KINDS.items()), *MORE], ids="-".join
)
def test_every_kind_of_head_is_explained_without_a_target(task: str, model_type: str) -> None:
    case = case_of(task, model_type)
    model = case.build()
    assert tensor_map(model, case.inputs(model)).amax() > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "kind"), [(task, kind) for task, (_, kind) in KINDS.items()], ids=str)
def test_the_target_is_the_surest_that_the_head_finds(task: str, kind: type) -> None:
    case = case_of(task, KINDS[task][0])
    model = case.build()
    inputs = case.inputs(model)
    found, outputs = chosen(model, inputs)
    [[target]] = found.select(outputs)
    assert isinstance(target, kind)
    sample = sample_of(outputs, 0, 1)
    if isinstance(target, ClassLogit):
        assert target.index == int(sample.logits.argmax())
    elif isinstance(target, QueryLogit):
        scores = sample.logits.softmax(-1)[:, :-1] if task == "object-detection" else sample.logits.sigmoid()
        assert float(scores[target.query].max()) == pytest.approx(float(scores.max()))
    elif isinstance(target, RegionLogit):
        counts = sample.logits.argmax(0).unique(return_counts=True)
        assert target.index == int(counts[0][counts[1].argmax()])


@pytest.mark.filterwarnings("ignore")
def test_the_best_of_the_callers_own_prompts_is_explained() -> None:
    case = case_of("zero-shot-image-classification", "clip")
    model = case.build()
    inputs = case.inputs(model)
    tokens = inputs["input_ids"]
    inputs |= {"input_ids": torch.cat([tokens, tokens.flip(1), tokens.roll(2, 1)])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    found, outputs = chosen(model, inputs)
    assert found.select(outputs) == [[PromptSimilarity(int(outputs.logits_per_image[0].argmax()))]]
    named, outputs = chosen(model, inputs, 2)
    assert named.select(outputs) == [[PromptSimilarity(2)]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["blip", "blip-2"])
def test_a_written_answer_becomes_labels_of_the_forward(model_type: str) -> None:
    case = case_of("visual-question-answering", model_type)
    model = case.build()
    inputs = case.inputs(model)
    found, outputs = chosen(model, inputs)
    assert "labels" in found.inputs
    [[target]] = found.select(outputs)
    assert float(target(sample_of(outputs, 0, 1))) == pytest.approx(-float(outputs["loss"]))
    own = {**found.inputs}
    assert selection(model, None, own, {}).inputs == own
    with pytest.raises(TargetError, match="scores the answers of a batch together: pass one image at a time"):
        selection(model, None, {**inputs, "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)}, {})
    with pytest.raises(TargetError, match="pass the tokens of one as input_ids="):
        selection(model, None, {"pixel_values": inputs["pixel_values"]}, {})


# What the caller names -----------------------------------------------------------------------------------------------


@pytest.fixture
def segmenter() -> tuple[nn.Module, Tensor]:
    case = case_of("semantic-segmentation", "segformer")
    model = case.build()
    return model, case.inputs(model)["pixel_values"]


@pytest.mark.filterwarnings("ignore")
def test_places_are_pixels_of_the_models_input(segmenter: tuple[nn.Module, Tensor]) -> None:
    model, pixels = segmenter
    found, outputs = chosen(model, {"pixel_values": pixels}, (95, 63))
    height, width = outputs.logits.shape[-2:]
    [[target]] = found.select(outputs)
    assert (target.row, target.column) == (int(63.5 / pixels.shape[-2] * height), int(95.5 / pixels.shape[-1] * width))
    assert target.index == int(outputs.logits[0, :, target.row, target.column].argmax())
    with pytest.raises(TargetError, match="a pixel or a box is a tuple"):
        selection(model, [[95, 63]], {"pixel_values": pixels}, {})
    with pytest.raises(TargetError, match="outside the image"):
        selection(model, (1000, 3), {"pixel_values": pixels}, {}).select(outputs)


@pytest.mark.filterwarnings("ignore")
def test_a_batch_mixes_names_callables_and_what_the_model_finds(vit: nn.Module) -> None:
    pixels = torch.rand(4, 3, 64, 96, generator=torch.Generator().manual_seed(0))

    def own(output: Any) -> Tensor:
        return output.logits[4] - output.logits[0]

    found, outputs = chosen(vit, {"pixel_values": pixels}, ["espresso", own, None, 1])
    [column] = found.select(outputs)
    assert column == [ClassLogit(2), own, ClassLogit(int(outputs.logits[2].argmax())), ClassLogit(1)]
    together = hf_cam.GradCAM(vit)(pixels, targets=["espresso", own, None, 1])
    alone = [hf_cam.GradCAM(vit)(pixels[i : i + 1], targets=[target]) for i, target in enumerate(column)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


def test_callables_ask_no_head(vit: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_cam.heads.selection.head_of", lambda *_: pytest.fail("a head was asked"))
    hf_cam.GradCAM(vit)(torch.rand(1, 3, 64, 96), targets=lambda output: output.logits[0])


def test_guided_backpropagation_explains_what_the_model_finds(vit: nn.Module) -> None:
    pixels = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        best = int(vit(pixels).logits.argmax())
    guided = hf_cam.GuidedBackprop(vit)
    torch.testing.assert_close(guided(pixels), guided(pixels, targets=best))


def test_another_image_is_a_tensor_here() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8)).eval()
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    for other in (torch.rand(3, 64, 96), torch.rand(1, 3, 64, 96)):
        assert hf_cam.GradCAM(net, "0")(pixels, targets=other).shape == (2, 64, 96)
    with pytest.raises(TargetError, match=r"another image must be a floating tensor \[C, H, W\]"):
        hf_cam.GradCAM(net, "0")(pixels, targets="http://localhost/cat.png")


def test_models_that_detect_in_videos_still_need_a_target() -> None:
    case = case_of("universal-segmentation", "videomt")
    model = case.build()
    with pytest.raises(ModelError, match=r"which only hf_cam\.CAM can explain: pass it .* a target, a callable"):
        hf_cam.GradCAM(model)(**case.inputs(model))


def test_listed_detections_are_found_again_by_their_boxes() -> None:
    class Listing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut = nn.Conv2d(3, 2, 16, 16)

        def forward(self, pixels: Tensor) -> list[dict[str, Tensor]]:
            boxes = torch.tensor([[0.0, 0, 48, 64], [48, 0, 96, 64]])
            maps = self.cut(pixels).mean((2, 3)).sigmoid()
            return [{"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": row} for row in maps]

    model = Listing().eval()
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    found = selection(model, (60, 30), {"pixel_values": pixels}, {})
    [column] = found.select(model(pixels))
    assert column == [BoxLogit((48.0, 0.0, 96.0, 64.0), 2)] * 2


def test_the_geometry_of_a_tensor_moves_nothing() -> None:
    geometry = identity((64, 96))
    assert geometry.box_to_image((0.5, 0.5, 0.5, 0.25), of_seen=False) == (24, 24, 72, 40)
    grid = torch.rand(1, 64, 96)
    torch.testing.assert_close(geometry.to_image(grid), grid)


# The benchmark's own check -------------------------------------------------------------------------------------------


def test_a_constant_map_is_no_map(vit: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_cam.CAM, "__call__", lambda *_, **__: torch.ones(1, 64, 96))
    with pytest.raises(NoMapError, match="an empty map of each of 4 pictures"):
        tensor_map(vit, {"pixel_values": torch.rand(1, 3, 64, 96)})
    assert issubclass(NoMapError, HFCamError)
