"""Heatmaps land on the pixels of the caller's image, for any processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from torchvision import transforms

from hf_cam.errors import ModelError
from hf_cam.images.geometry import Geometry, measure

PROCESSORS = {
    "resize": lambda: hf.ViTImageProcessor(size={"height": 96, "width": 160}),
    "shortest edge, centre crop": lambda: hf.ConvNextImageProcessor(size={"shortest_edge": 128}, crop_pct=0.875),
    "clip": lambda: hf.CLIPImageProcessor(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}),
    "crop with padding": lambda: hf.MobileViTImageProcessor(
        size={"shortest_edge": 96}, crop_size={"height": 128, "width": 128}
    ),
    "longest edge": lambda: hf.DetrImageProcessor(size={"shortest_edge": 96, "longest_edge": 160}),
    "pad to a square": lambda: hf.DetrImageProcessor(
        size={"shortest_edge": 96, "longest_edge": 128}, do_pad=True, pad_size={"height": 160, "width": 160}
    ),
}
SIZES = [(96, 128), (240, 320), (321, 203), (50, 70), (33, 300)]


def geometry_of(name: str, size: tuple[int, int]) -> tuple[Geometry, object]:
    processor = PROCESSORS[name]()
    return measure(lambda images: processor(images=images, return_tensors="pt")["pixel_values"], size), processor


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", sorted(PROCESSORS))
def test_a_bright_square_is_found_where_it_was_drawn(name: str, size: tuple[int, int]) -> None:
    height, width = size
    geometry, processor = geometry_of(name, size)
    for at_y, at_x in ((0.3, 0.4), (0.55, 0.6), (0.5, 0.35)):
        side = max(4, min(size) // 8)
        top, left = int(at_y * height), int(at_x * width)
        picture = np.zeros((height, width, 3), np.uint8)
        picture[top : top + side, left : left + side] = 255
        pixels = processor(images=[Image.fromarray(picture)], return_tensors="pt")["pixel_values"][0].mean(0)
        seen = pixels[geometry.seen[0] : geometry.seen[2], geometry.seen[1] : geometry.seen[3]]
        bright = torch.zeros_like(pixels)
        bright[geometry.seen[0] : geometry.seen[2], geometry.seen[1] : geometry.seen[3]] = (
            seen - seen.min()
        ).clamp_min(0)
        drawn = geometry.to_image(bright).numpy()
        truth = np.zeros(size)
        truth[top : top + side, left : left + side] = 1
        if not geometry.visible()[truth > 0].all():
            continue  # cropped away in part: where its middle lies in the crop says nothing
        ys, xs = np.mgrid[:height, :width]
        centre = (drawn * ys).sum() / drawn.sum(), (drawn * xs).sum() / drawn.sum()
        tolerance = 0.6 + 0.004 * max(size)
        assert abs(centre[0] - (top + (side - 1) / 2)) < tolerance
        assert abs(centre[1] - (left + (side - 1) / 2)) < tolerance


@pytest.mark.parametrize("size", SIZES)
def test_plain_resizing_is_measured_exactly(size: tuple[int, int]) -> None:
    geometry, _ = geometry_of("resize", size)
    assert geometry.model_size == (96, 160)
    assert geometry.seen == (0, 0, 96, 160)
    for axis, image, model in zip((geometry.rows, geometry.columns), size, (96, 160), strict=True):
        scale = model / image
        ends = [axis.scale * at + axis.offset for at in (0, image - 1)]
        expected = [scale * at + (scale - 1) / 2 for at in (0, image - 1)]
        assert np.abs(np.subtract(ends, expected)).max() < 0.5 * max(1, scale)


@pytest.mark.parametrize("name", ["shortest edge, centre crop", "clip"])
def test_pixels_that_were_cropped_away_get_zero(name: str) -> None:
    geometry, _ = geometry_of(name, (240, 400))
    ones = geometry.to_image(torch.ones(7, 7)).numpy()
    assert set(np.unique(ones.round(4))) == {0.0, 1.0}
    columns = ones.any(0)
    assert not columns[:60].any()
    assert not columns[-60:].any()
    assert columns[100:-100].all()
    assert abs(int(columns.argmax()) - int(columns[::-1].argmax())) <= 2


def test_padding_is_no_part_of_the_image() -> None:
    geometry, _ = geometry_of("pad to a square", (240, 320))
    assert geometry.model_size == (160, 160)
    assert geometry.seen == (0, 0, 96, 128)
    grid = torch.zeros(10, 10)
    grid[:6, :8] = 1.0  # the cells over the picture
    assert geometry.to_image(grid).numpy()[:225, :300].min() > 0.85
    assert geometry.visible().all()


def test_a_flip_is_measured_too() -> None:
    flip = transforms.Compose(
        [transforms.Resize((32, 48)), transforms.RandomHorizontalFlip(1.0), transforms.ToTensor()]
    )
    geometry = measure(lambda images: torch.stack([flip(image) for image in images]), (64, 96))
    assert geometry.columns.scale == pytest.approx(-0.5, abs=0.01)
    assert geometry.rows.scale == pytest.approx(0.5, abs=0.01)
    grid = torch.zeros(4, 6)
    grid[:, 0] = 1.0
    drawn = geometry.to_image(grid).numpy()
    assert drawn[:, -4:].min() > 0.9
    assert drawn[:, :48].max() == 0


def test_channels_in_any_order_and_scaling_are_undone() -> None:
    def odd(images):
        array = np.stack([np.asarray(image.resize((48, 32))) for image in images])[..., ::-1].copy()
        return torch.from_numpy(array).permute(0, 3, 1, 2) * torch.tensor([-1.0, 7.0, 0.01])[:, None, None] + 5

    geometry = measure(odd, (64, 96))
    assert geometry.columns.scale == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1), (3, 5), (4000, 31)])
def test_extreme_sizes_are_measured(size: tuple[int, int]) -> None:
    geometry, _ = geometry_of("resize", size)
    drawn = geometry.to_image(torch.ones(6, 10))
    assert drawn.shape == size
    assert drawn.min() > 0.9999


@pytest.mark.parametrize(
    ("process", "match"),
    [
        (lambda images: torch.zeros(len(images), 3, 8, 8), "same values"),
        (lambda images: torch.stack([_shuffled(image) for image in images]), "no resizing, cropping or padding"),
    ],
)
def test_processors_that_move_pixels_otherwise_are_refused(process, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        measure(process, (48, 64))


def _shuffled(image: Image.Image) -> torch.Tensor:
    tensor = transforms.ToTensor()(image)
    return tensor[:, :, torch.randperm(64, generator=torch.Generator().manual_seed(0))]


def test_no_extrapolation_beyond_one() -> None:
    geometry, _ = geometry_of("clip", (240, 400))
    drawn = geometry.to_image(torch.rand(3, 9, 9))
    assert drawn.shape == (3, 240, 400)
    assert drawn.min() >= 0
    assert drawn.max() <= 1.0001


@pytest.mark.parametrize("factor", [2])
def test_processors_that_round_in_eight_bits_are_measured_exactly(factor: int) -> None:
    processor = hf.SegformerImageProcessor(size={"height": 64, "width": 96})
    geometry = measure(
        lambda images: processor(images=images, return_tensors="pt")["pixel_values"], (64 * factor, 96 * factor)
    )
    for axis in (geometry.rows, geometry.columns):
        assert axis.scale == pytest.approx(1 / factor, abs=1e-3)
        assert axis.offset == pytest.approx(1 / factor / 2 - 0.5, abs=0.1 / factor)


def test_positions_boxes_and_masks_go_over_to_the_models_grid_and_back() -> None:
    geometry, _ = geometry_of("pad to a square", (240, 320))  # 96 x 128 in the corner of 160 x 160
    assert geometry.to_grid(0, 0, (10, 10)) == (0, 0)
    assert geometry.to_grid(319, 239, (10, 10)) == (5, 7)
    cropped, _ = geometry_of("clip", (240, 320))
    assert cropped.to_grid(10, 100, (6, 6)) is None
    assert geometry.box_to_image((0.5, 0.5, 1.0, 1.0), of_seen=True) == pytest.approx((0, 0, 320, 240), abs=0.5)
    assert geometry.box_to_image((0.4, 0.3, 0.8, 0.6), of_seen=False) == pytest.approx((0, 0, 320, 240), abs=0.5)
    quarter = np.zeros((240, 320), bool)
    quarter[:120, :160] = True
    region = geometry.mask_to_grid(quarter, (10, 10))
    assert region[:3, :4].all()
    assert region.sum() == 12
    dot = np.zeros((240, 320), bool)
    dot[100:103, 200:203] = True
    assert geometry.mask_to_grid(dot, (10, 10)).nonzero().tolist() == [list(geometry.to_grid(201, 101, (10, 10)))]
