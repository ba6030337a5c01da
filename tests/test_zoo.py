"""The trained models: they load as any Hub folder does, reload to the byte, and reach their floors."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from PIL import Image
from sklearn.metrics import average_precision_score

import hf_cam
from benchmarks.demo_scene import CLASSES
from benchmarks.scenes import LABELS, PROMPTS, SceneBatch, scenes
from benchmarks.train_zoo import train
from benchmarks.zoo_quality import FLOORS, ZOO, average_precision, choices, mask_iou, match
from benchmarks.zoo_recipes import (
    ANSWER,
    CLASSIFY,
    COMPARE,
    DETECT,
    RECIPES,
    SEGMENT,
    box_loss,
    cell_shares,
    clip_tokenizer,
    normalize,
    patch_prompts,
    prompt_loss,
    relative_boxes,
    resize_positions,
)
from hf_cam.zoo import SCENE

AUTO = {
    CLASSIFY: hf.AutoModelForImageClassification,
    SEGMENT: hf.AutoModelForSemanticSegmentation,
    DETECT: hf.AutoModelForObjectDetection,
    COMPARE: hf.AutoModelForZeroShotImageClassification,
    ANSWER: hf.AutoModelForImageTextToText,
}
NAMES = [name for name in RECIPES if (ZOO / name).is_dir()]
each_model = pytest.mark.parametrize("name", NAMES)


def load(name: str) -> hf.PreTrainedModel:
    auto = hf.AutoModelForUniversalSegmentation if name == "maskformer" else AUTO[RECIPES[name].task]
    model, info = auto.from_pretrained(ZOO / name, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def inputs(name: str, pixels: object) -> dict[str, torch.Tensor]:
    if RECIPES[name].task == ANSWER:
        texts = ["USER: <image>\nWhat do you see? ASSISTANT:"] * (len(pixels) if isinstance(pixels, list) else 1)
        return dict(hf.AutoProcessor.from_pretrained(ZOO / name)(images=pixels, text=texts, return_tensors="pt"))
    found = dict(hf.AutoImageProcessor.from_pretrained(ZOO / name)(images=pixels, return_tensors="pt"))
    if RECIPES[name].task == COMPARE:
        found |= hf.AutoTokenizer.from_pretrained(ZOO / name)(
            ["a red bag", "a sneaker"], padding=True, return_tensors="pt"
        )
    return found


def test_every_recipe_has_a_floor_and_every_folder_a_recipe() -> None:
    assert set(RECIPES) == set(FLOORS)
    assert {path.name for path in ZOO.iterdir() if path.is_dir() and not path.name.startswith("_")} <= {
        *RECIPES,
        "cheater",  # `benchmarks/train_cheater.py` trains it
    }


@each_model
def test_weights_reload_to_the_byte_from_float16_and_compute_in_float32(name: str, tmp_path: Path) -> None:
    model = load(name)
    assert model.dtype == torch.float32
    model.half().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (ZOO / name / "model.safetensors").read_bytes()


@each_model
def test_weights_are_small_enough_to_ship(name: str) -> None:
    assert (ZOO / name / "model.safetensors").stat().st_size < 2_000_000


@pytest.mark.parametrize("name", [name for name in NAMES if RECIPES[name].task not in (COMPARE, ANSWER)])
def test_labels_have_their_names(name: str) -> None:
    names = list(load(name).config.id2label.values())
    assert names == (["background"] if name == "segformer" else []) + list(LABELS)


@each_model
def test_the_processor_repeats_the_normalisation_of_the_training(name: str) -> None:
    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = normalize(images)
    if RECIPES[name].task in (COMPARE, ANSWER):
        expected = F.interpolate(expected, (96, 96), mode="bilinear", antialias=True)
    difference = (inputs(name, list(images))["pixel_values"] - expected).abs().max()
    assert difference <= 1.01 / 127.5  # a resized picture is rounded to whole grey values


@each_model
@pytest.mark.parametrize("size", [(96, 128), (128, 128), (333, 500), (200, 60)])
def test_pictures_of_any_size_pass(name: str, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    with torch.no_grad():
        output = load(name)(**inputs(name, picture))
    [scores] = (output[key] for key in ("logits", "logits_per_image", "class_queries_logits") if key in output)
    assert scores.isfinite().all()


@each_model
def test_the_card_names_the_command_and_the_floor(name: str) -> None:
    card = (ZOO / name / "README.md").read_text()
    assert f"python -m benchmarks.train_zoo {name}" in card
    for floor in FLOORS[name]:
        assert re.search(rf"\| {floor.metric} \| \d\.\d{{3}} \| {floor.minimum:.2f} \|", card)
    assert json.loads((ZOO / name / "config.json").read_text())["architectures"][0] in card


@each_model
def test_the_model_reaches_its_floor_on_scenes_it_never_saw(name: str) -> None:
    count = 192 if RECIPES[name].task == ANSWER else 512
    for floor in FLOORS[name]:
        assert floor.measure(ZOO / name, count, torch.device("cpu")) >= floor.minimum, floor.metric


def test_a_segment_is_explained_by_the_cells_of_its_object_not_by_queries() -> None:
    assert hf_cam.infer_adapter(load("maskformer")).layers == ("model.pixel_level_module.decoder.fpn.layers.1",)
    images = [Image.fromarray(scene.image) for scene in scenes("test", 6, seed=1)]
    energy = [
        explanation.heatmap[explanation.mask > 0.5].sum() / explanation.heatmap.sum()
        for found in hf_cam.explain(images, "demo:maskformer", top_k=2)
        for explanation in found
    ]
    assert len(energy) >= 6
    assert np.mean(energy) > 0.7


@pytest.mark.slow
def test_the_same_command_trains_the_same_weights() -> None:
    first, second = (train(RECIPES["convnext"], torch.device("cpu"), 2, ZOO).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_tokenizer_keeps_words_whole_and_spells_out_the_rest() -> None:
    tokenizer = clip_tokenizer()
    assert tokenizer.tokenize("a red bag") == ["a</w>", "red</w>", "bag</w>"]
    ids = tokenizer("a kettle on the Moon")["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1
    assert "".join(tokenizer.tokenize("a kettle")).replace("</w>", " ").strip() == "a kettle"


@pytest.mark.parametrize("positives", [1, 5, 20])
def test_average_precision_is_that_of_scikit_learn(positives: int) -> None:
    rng = np.random.default_rng(positives)
    truth = rng.permutation(np.arange(40) < positives)
    scores = rng.normal(size=40)
    assert average_precision(scores, truth, positives) == pytest.approx(average_precision_score(truth, scores))


def test_average_precision_counts_what_was_never_found() -> None:
    assert average_precision(np.array([0.9, 0.1]), np.array([True, False]), 2) == pytest.approx(0.5)


def test_a_second_detection_of_one_object_is_wrong() -> None:
    labels, scores = torch.tensor([2, 2, 3]), torch.tensor([0.5, 0.9, 0.8])
    assert match(labels, scores, torch.tensor([2]), overlap=torch.ones(3, 1)) == [
        (2, pytest.approx(0.9), True),
        (3, pytest.approx(0.8), False),
        (2, 0.5, False),
    ]


def test_a_detection_takes_the_item_that_it_overlaps_most() -> None:
    overlap = torch.tensor([[0.6, 0.9], [0.6, 0.4]])
    labels, scores = torch.tensor([2, 2]), torch.tensor([0.9, 0.5])
    assert [correct for _, _, correct in match(labels, scores, torch.tensor([2, 2]), overlap)] == [True, True]
    assert [correct for _, _, correct in match(labels, scores, torch.tensor([2, 3]), overlap)] == [True, False]


def test_masks_overlap_by_what_they_share() -> None:
    halves = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 1, 1]]]).bool()
    assert torch.equal(mask_iou(halves, halves), torch.eye(2))
    assert mask_iou(halves[:1], torch.tensor([[[0, 1, 1, 1]]]).bool()).item() == pytest.approx(1 / 4)
    assert mask_iou(torch.zeros(1, 1, 4).bool(), torch.zeros(1, 1, 4).bool()).item() == 0


def scene_batch() -> SceneBatch:
    """One scene: a red bag on the left half, a plain sneaker on the right half."""
    instances = torch.ones(1, 4, 8, dtype=torch.long)
    instances[..., 4:] = 2
    labels = torch.tensor([[8, 7, -1, -1]])
    return SceneBatch(
        images=torch.zeros(1, 3, 4, 8, dtype=torch.uint8),
        labels=labels,
        colors=torch.tensor([[1, 0, -1, -1]]),
        boxes=torch.zeros(1, 4, 4),
        instances=instances,
        classes=F.pad(labels + 1, (1, 0)).gather(1, instances.flatten(1)).view_as(instances),
    )


def test_of_eight_prompts_one_is_true() -> None:
    batch = scene_batch()
    for seed in range(20):
        asked = choices(batch, 0, np.random.default_rng(seed))
        assert len(set(asked)) == 8
        assert [bool(batch.true_prompts()[0, prompt]) for prompt in asked] == [True] + [False] * 7
        assert PROMPTS[asked[0]] in ("a red bag", "a sneaker")


def test_a_patch_is_asked_for_what_covers_it_with_and_without_its_colour() -> None:
    batch = scene_batch()
    batch.instances[0, :, :2] = 0
    left, middle, right = (
        [PROMPTS[i - 1] if i else "none" for i in row.nonzero()[:, 0]]
        for row in patch_prompts(batch, 4)[0].unflatten(0, (4, 4))[0, [0, 1, 3]]
    )
    assert left == ["none"]
    assert middle == ["a bag", "a red bag"]
    assert right == ["a sneaker"]
    batch.instances[:] = 0
    assert torch.equal(patch_prompts(batch, 2)[0].long(), F.one_hot(torch.zeros(4).long(), 1 + len(PROMPTS)))


def test_the_loss_of_prompts_counts_only_what_is_false_against_what_is_true() -> None:
    truth = torch.tensor([[True, True, False]])
    assert prompt_loss(torch.tensor([[5.0, 9.0, -20.0]]), truth) < 1e-6
    assert prompt_loss(torch.tensor([[0.0, 0.0, 0.0]]), truth).item() == pytest.approx(math.log(2))


def test_boxes_lie_in_shares_of_the_scene() -> None:
    batch = scene_batch()
    batch.boxes[0, 0] = torch.tensor([0.0, 1.0, 4.0, 3.0])
    assert relative_boxes(batch)[0, 0].tolist() == [0.25, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_the_loss_of_boxes_is_their_distance_inside_the_items(offset: float) -> None:
    batch = scene_batch()
    boxes = torch.full((1, 4, 4), 0.5)
    told = torch.logit(torch.full((1, 4, 2, 2), 0.5 + offset))
    assert box_loss(told, batch, boxes).item() == pytest.approx(4 * offset, abs=1e-6)


def test_cells_know_the_share_of_each_value() -> None:
    shares = cell_shares(scene_batch().classes, 11, 2, 2)
    assert shares.shape == (1, 11, 2, 2)
    assert torch.equal(shares[0, 9], torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert torch.equal(shares[0, 8], torch.tensor([[0.0, 1.0], [0.0, 1.0]]))


def test_positions_grow_to_another_grid_and_keep_the_class_token() -> None:
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    small = torch.cat([torch.full((1, 2), 9.0), torch.stack([rows, columns], -1).flatten(0, 1)])
    large = resize_positions(small[None], 12 * 16)[0]
    assert large.shape == (193, 2)
    assert torch.equal(large[0], small[0])
    grid = large[1:].unflatten(0, (12, 16))
    assert torch.allclose(grid[1:-1, 5, 0], torch.arange(0.25, 5, 0.5))
    assert torch.allclose(grid[5, 1:-1, 1], torch.arange(0.25, 7, 0.5))


@pytest.mark.parametrize(
    ("name", "wanted", "found"),
    [
        ("clip", {"text": ["a sneaker"]}, {"a sneaker": "sneaker"}),
        ("clip", {"text": ["a yellow bag", "a blue trouser"]}, {"a yellow bag": "bag", "a blue trouser": "trouser"}),
        ("detr", {}, {"sneaker": "sneaker", "bag": "bag", "trouser": "trouser"}),
        ("segformer", {}, {"sneaker": "sneaker", "bag": "bag", "trouser": "trouser"}),
    ],
)
def test_what_is_named_in_the_scene_is_what_lights_up(name: str, wanted: dict, found: dict[str, str]) -> None:
    classes = np.asarray(Image.open(CLASSES))
    explanations = hf_cam.explain(SCENE, f"demo:{name}", **wanted)
    assert [one.label for one in explanations] == list(found) or {one.label for one in explanations} == set(found)
    for one in explanations:
        mask = classes == 1 + LABELS.index(found[one.label])
        enlarged = np.kron(mask, np.ones((4, 4), bool))
        peak = np.unravel_index(one.heatmap.argmax(), one.heatmap.shape)
        near = np.kron(mask, np.ones((4, 4))) + np.roll(enlarged, (0, 16), (0, 1)) + np.roll(enlarged, (0, -16), (0, 1))
        assert near[peak], (one, peak)
        assert one.heatmap[enlarged].mean() > 3 * one.heatmap[~enlarged].mean()
