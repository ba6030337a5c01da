"""Scenes: deterministic, and every truth agrees with the picture and with every other truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import scenes as sc
from benchmarks.excerpt import EXCERPT, PER_LABEL, first_of_each_label, write_items

SIZES = [(96, 128), (128, 128)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of plain rectangles, brighter in the train split than in the test split."""
    folder = tmp_path_factory.mktemp("fashion")
    for split, brightness in (("train", 255), ("test", 155)):
        pictures = torch.zeros(60, 28, 28, dtype=torch.uint8)
        pictures[:, 5:24, 7:22] = brightness
        write_items(sc.Items(pictures, torch.arange(60) % 10), split, folder)
    return folder


def same(a: sc.Scene, b: sc.Scene) -> bool:
    return all(np.array_equal(value, vars(b)[name]) for name, value in vars(a).items())


def test_a_seed_gives_the_same_scenes_again(root: Path) -> None:
    first, second = (sc.scenes("train", 5, 3, root=root) for _ in range(2))
    assert all(map(same, first, second))


def test_another_seed_and_the_other_split_give_other_scenes(root: Path) -> None:
    first = sc.scenes("train", 5, 3, root=root)
    assert not any(map(same, first, sc.scenes("train", 5, 4, root=root)))
    assert not any(map(same, first, sc.scenes("test", 5, 3, root=root)))


def test_fewer_scenes_are_the_first_of_more(root: Path) -> None:
    assert all(map(same, sc.scenes("test", 3, root=root), sc.scenes("test", 70, root=root)))
    assert len(sc.scenes("test", 70, root=root)) == 70


def test_each_split_reads_its_own_pictures(root: Path) -> None:
    assert sc.load_items("train", root).pictures.max() == 255
    assert sc.load_items("test", root).pictures.max() == 155


def test_an_excerpt_is_the_first_pictures_of_each_label_and_reads_back(tmp_path: Path) -> None:
    pictures = torch.randint(0, 256, (60, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60).flip(0) % 10
    write_items(first_of_each_label(sc.Items(pictures, labels), 2), "test", tmp_path)
    found = sc.load_items("test", tmp_path)
    assert torch.equal(found.pictures, pictures[:20])
    assert torch.equal(found.labels, labels[:20])


@pytest.mark.parametrize("split", PER_LABEL)
def test_the_tests_draw_from_the_excerpt_beside_them_which_has_every_label_alike(split: sc.Split) -> None:
    assert sc.ROOT == EXCERPT
    items = sc.load_items(split)
    assert items.labels.bincount().tolist() == [PER_LABEL[split]] * len(sc.LABELS)
    assert len(items.pictures.unique(dim=0)) == len(items.pictures)


def test_the_excerpt_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in EXCERPT.iterdir()) < 300_000


@pytest.mark.parametrize("size", SIZES)
def test_boxes_are_tight_around_the_instance_masks(root: Path, size: sc.Size) -> None:
    for scene in sc.scenes("train", 40, root=root, size=size):
        assert scene.image.shape == (*size, 3)
        for n, (x0, y0, x1, y1) in enumerate(scene.boxes.astype(int)):
            rows, columns = np.nonzero(scene.instances == n + 1)
            assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_class_masks_are_the_instance_masks_with_their_labels(root: Path) -> None:
    for scene in sc.scenes("train", 40, root=root):
        labels = np.array([0, *(1 + label for label in scene.labels)])
        assert np.array_equal(labels[scene.instances], scene.classes)
        assert set(np.unique(scene.instances)) == set(range(len(scene.labels) + 1))


def test_scenes_have_one_to_four_items_and_each_number_occurs(root: Path) -> None:
    assert {len(scene.labels) for scene in sc.scenes("train", 100, root=root)} == {1, 2, 3, 4}


def test_items_hide_little_of_each_other(root: Path) -> None:
    for scene in sc.scenes("train", 100, root=root):
        for n, (x0, y0, x1, y1) in enumerate(scene.boxes.astype(int)):
            inside = scene.instances[y0:y1, x0:x1] == n + 1
            assert inside.mean() > 0.5


def test_items_have_the_tint_that_their_phrase_names(root: Path) -> None:
    tints = np.array(list(sc.TINTS.values())) * 255
    for scene in sc.scenes("train", 40, root=root):
        for n, color in enumerate(scene.colors):
            seen = np.median(scene.image[scene.instances == n + 1], axis=0)
            assert np.abs(tints - seen).sum(1).argmin() == color


def test_phrases_and_captions_are_english() -> None:
    assert [sc.phrase(8, 1), sc.phrase(9, 0), sc.phrase(0, 6)] == ["a red bag", "an ankle boot", "an orange t-shirt"]
    assert sc.caption(["a sneaker"]) == "a sneaker"
    assert sc.caption(["a sneaker", "a dress", "a red bag"]) == "a sneaker, a dress and a red bag"


def test_a_tinted_item_makes_its_prompt_and_the_untinted_prompt_true(root: Path) -> None:
    batch = sc.SceneBlocks("train", root=root)[0]
    for i, truth in enumerate(batch.true_prompts()):
        scene = batch.scene(i)
        expected = {
            sc.phrase(label, c) for label, color in zip(scene.labels, scene.colors, strict=True) for c in (color, 0)
        }
        assert {sc.PROMPTS[j] for j in truth.nonzero()[:, 0].tolist()} == expected


def test_a_batch_has_the_labels_of_its_scenes(root: Path) -> None:
    batch = sc.SceneBlocks("train", root=root)[0]
    for i in range(len(batch)):
        scene = batch.scene(i)
        assert batch.multi_hot()[i].nonzero()[:, 0].tolist() == sorted(set(scene.labels))


def test_a_missing_dataset_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"apt-get install dataset-fashion-mnist.*HF_CAM_FASHION_MNIST"):
        sc.load_items("train", tmp_path / "nowhere")
