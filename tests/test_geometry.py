"""Heatmaps land on the pixels of the caller's image, whatever the processor does, or it is refused with the reason."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from torch import Tensor

from hf_cam.errors import ModelError
from hf_cam.images.geometry import Axis, Geometry, placed
from hf_cam.images.patches import CutPictures, are_cut
from hf_cam.images.placing import Geometries
from processors import CONTRAST, CURVES, HALOS, LINEAR, NEAREST, PLACED, RANDOM, REFUSED, TURNED, landscape, only_shrunk

TRANSFORMERS = {
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
    "multiples of 32": lambda: hf.Mask2FormerImageProcessor(size={"shortest_edge": 96, "longest_edge": 160}),
    "longest edge, padded": lambda: hf.SamImageProcessor(
        size={"longest_edge": 160}, pad_size={"height": 160, "width": 160}
    ),
    "square padding": lambda: hf.Owlv2ImageProcessor(size={"height": 160, "width": 160}),
    "mirrored padding": lambda: hf.ZoeDepthImageProcessor(size={"height": 96, "width": 128}),
    "whole patches": lambda: hf.Siglip2ImageProcessor(patch_size=16, max_num_patches=60),
}
FUNCTIONS = {**LINEAR, **CONTRAST, **CURVES, **PLACED, **TURNED, **NEAREST}
LIGHT, DARK = (245, 250, 60), (4, 20, 10)
PLACES = [
    ((0.65, 0.35), (0.35, 0.65)),
    ((0.55, 0.2), (0.25, 0.6)),
    ((0.3, 0.65), (0.75, 0.25)),
    ((0.4, 0.05), (0.05, 0.45)),
]
SIZES = [(120, 160), (203, 121)]


def of_transformers(name: str):
    processor = TRANSFORMERS[name]()

    def prepared(images: list[Image.Image]) -> Tensor:
        inputs = processor(images=images, return_tensors="pt")
        return CutPictures.of(inputs).pictures() if are_cut(inputs) else inputs["pixel_values"]

    return prepared


def of_function(process):
    return lambda images: torch.stack([process(image) for image in images])


def measured(preprocess, size: tuple[int, int]) -> Geometry:
    return Geometries().of(preprocess, size)


def squares(size: tuple[int, int], at: tuple[float, float], other: tuple[float, float]):
    """Two pictures of the same levels: a light and a dark square that change places; and the squares' middles."""
    height, width = size
    side = max(3, min(size) // 5)
    boxes = [(int(y * (height - side)), int(x * (width - side))) for y, x in (at, other)]
    pictures = []
    for first, second in ((LIGHT, DARK), (DARK, LIGHT)):
        picture = np.full((height, width, 3), (120, 150, 40), np.uint8)
        for (top, left), level in zip(boxes, (first, second), strict=True):
            picture[top : top + side, left : left + side] = level
        pictures.append(Image.fromarray(picture))
    middles = [(top + (side - 1) / 2, left + (side - 1) / 2) for top, left in boxes]
    masks = []  # with the pixels around them, which blur into them
    for top, left in boxes:
        masks.append(mask := np.zeros(size, bool))
        mask[max(top - 2, 0) : top + side + 2, max(left - 2, 0) : left + side + 2] = True
    return pictures, middles, masks


def middles_of(shown: Tensor, geometry: Geometry) -> list[tuple[float, float]]:
    """Row and column of the middle of what is above and of what is below zero, in the model's input."""
    top, left, bottom, right = geometry.seen
    rows, columns = np.mgrid[: shown.shape[0], : shown.shape[1]]
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    found = []
    for sign in (1, -1):
        part = (sign * shown.numpy()).clip(0)
        part = np.where(inside, (part / part.max() - 0.3).clip(0), 0)
        found.append(((part * rows).sum() / part.sum(), (part * columns).sum() / part.sum()))
    return found


def off(preprocess, geometry: Geometry) -> float:
    """The distance in model pixels between where squares come out and where a geometry says; nan if none is in view."""
    worst = []
    visible = geometry.visible()
    for at, other in PLACES:
        pictures, middles, masks = squares(geometry.image_size, at, other)
        if len(worst) == 3 or not all(visible[mask].all() for mask in masks):
            continue
        first, second = (preprocess([picture])[0].float().nan_to_num(0, 0, 0).flatten(0, -3) for picture in pictures)
        strongest = int((first - second).abs().sum((1, 2)).argmax())
        found = middles_of((first - second)[strongest], geometry)
        expected = [geometry.to_model(x, y)[::-1] for y, x in middles]
        worst.append(min(np.abs(np.subtract(found, order)).max() for order in (expected, expected[::-1])))
    return max(worst) if worst else float("nan")


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, size) for name in sorted(FUNCTIONS) for size in (SIZES if name in {**PLACED, **TURNED} else SIZES[1:])],
)
def test_a_square_comes_out_where_the_geometry_says(name: str, size: tuple[int, int]) -> None:
    preprocess = of_function(FUNCTIONS[name])
    geometry = measured(preprocess, size)
    assert off(preprocess, geometry) < (0.8 if name in NEAREST else 0.5)


@pytest.mark.parametrize("size", [(96, 128), (240, 320), (321, 203), (50, 70)])
@pytest.mark.parametrize("name", sorted(TRANSFORMERS))
def test_a_square_comes_out_of_processors_of_transformers_where_the_geometry_says(
    name: str, size: tuple[int, int]
) -> None:
    preprocess = of_transformers(name)
    assert off(preprocess, measured(preprocess, size)) < 0.5


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_a_random_processor_is_refused_and_the_generators_are_left_alone(name: str) -> None:
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(ModelError, match=r"random.*GradCAM\(model\)\(pixel_values\)"):
        measured(of_function(RANDOM[name]), (120, 160))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_what_was_found_to_be_random_stays_refused() -> None:
    answers = iter([0.0, 1.0] + 99 * [0.0])
    geometries = Geometries()
    plain = of_function(LINEAR["bilinear"])

    def moody(images):
        return plain(images) + next(answers)

    for _ in range(2):
        with pytest.raises(ModelError, match="random"):
            geometries.of(moody, (120, 160))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_undone_is_refused_with_the_way_out(name: str) -> None:
    process, match = REFUSED[name]
    with pytest.raises(ModelError, match=rf"({match}).*GradCAM\(model\)\(pixel_values\)"):
        measured(of_function(process), (120, 160))


def assert_fills(geometry: Geometry, slack: float) -> None:
    """The image is stretched to 96 x 160: what each axis has to be."""
    assert geometry.model_size == (96, 160)
    for axis, image, model in zip((geometry.rows, geometry.columns), geometry.image_size, (96, 160), strict=True):
        for edge in (0, image):
            assert axis.to_model(edge - 0.5) + 0.5 == pytest.approx(edge * model / image, abs=slack)


@pytest.mark.parametrize("size", [(96, 128), (240, 320), (321, 203), (50, 70), (33, 300)])
def test_plain_resizing_is_measured_exactly(size: tuple[int, int]) -> None:
    geometry = measured(of_transformers("resize"), size)
    assert geometry.seen == (0, 0, 96, 160)
    assert_fills(geometry, 1e-6)


@pytest.mark.parametrize("name", sorted(HALOS))
def test_halos_around_things_do_not_move_them(name: str) -> None:
    assert_fills(measured(of_function(HALOS[name]), (203, 121)), 0.4)


@pytest.mark.parametrize("name", ["shortest edge, centre crop", "clip"])
def test_pixels_that_were_cropped_away_get_zero(name: str) -> None:
    geometry = measured(of_transformers(name), (240, 400))
    ones = geometry.to_image(torch.ones(7, 7)).numpy()
    assert set(np.unique(ones.round(4))) == {0.0, 1.0}
    columns = ones.any(0)
    assert not columns[:60].any()
    assert not columns[-60:].any()
    assert columns[100:-100].all()
    assert abs(int(columns.argmax()) - int(columns[::-1].argmax())) <= 2


def test_a_crop_between_pixels_shows_no_pixel_too_many() -> None:
    geometry = measured(of_function(PLACED["cropped alone"]), (120, 160))
    visible = np.zeros((120, 160), bool)
    visible[12:108, 40:120] = True
    np.testing.assert_array_equal(geometry.visible(), visible)


def test_padding_is_no_part_of_the_image() -> None:
    geometry = measured(of_transformers("pad to a square"), (240, 320))
    assert geometry.model_size == (160, 160)
    assert geometry.seen == (0, 0, 96, 128)
    grid = torch.zeros(10, 10)
    grid[:6, :8] = 1.0  # the cells over the picture
    assert geometry.to_image(grid).numpy()[:225, :300].min() > 0.85
    assert geometry.visible().all()
    filled = geometry.filled((10, 10))
    assert filled[:6, :8].min() == 1
    assert filled.sum() == 48


def test_mirrored_padding_is_no_part_of_the_image() -> None:
    geometry = measured(of_function(PLACED["mirrored padding"]), (120, 160))
    assert geometry.model_size == (128, 192)
    assert geometry.seen == (16, 16, 112, 176)


def test_no_extrapolation_beyond_one() -> None:
    geometry = measured(of_transformers("clip"), (240, 400))
    drawn = geometry.to_image(torch.rand(3, 9, 9))
    assert drawn.shape == (3, 240, 400)
    assert drawn.min() >= 0
    assert drawn.max() <= 1.0001


THIN = [(1, 40), (40, 1), (1, 1), (2, 2), (3, 5), (7, 7), (7, 300), (5, 400)]
EXTREMES = {
    "resize": [*THIN, (1, 500), (2000, 31), (1600, 2400)],
    "longest edge, padded": [*THIN, (2000, 31)],  # of (1, 500) it makes a picture without rows, and fails
    "clip": [*THIN, (1, 500), (2000, 31)],
}


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in EXTREMES.items() for size in sizes])
def test_extreme_sizes_are_placed_as_the_processor_places_them(name: str, size: tuple[int, int]) -> None:
    geometry = measured(of_transformers(name), size)
    height, width = size
    scale, offsets = {
        "resize": ((96 / height, 160 / width), (0, 0)),
        "longest edge, padded": (2 * (160 / max(size),), (0, 0)),
        "clip": (2 * (96 / min(size),), [(96 - length * 96 / min(size)) / 2 for length in size]),
    }[name]
    middle = (width - 1) / 2, (height - 1) / 2
    column, row = geometry.to_model(*middle)
    assert row == pytest.approx((middle[1] + 0.5) * scale[0] + offsets[0] - 0.5, abs=0.7)
    assert column == pytest.approx((middle[0] + 0.5) * scale[1] + offsets[1] - 0.5, abs=0.7)
    drawn = geometry.to_image(torch.ones(6, 10))
    assert drawn.shape == size
    if name != "clip":
        assert drawn.min() > 0.9999


def turned(array: np.ndarray, way: tuple[bool, bool, bool]) -> np.ndarray:
    """The last two axes transposed or not, then each mirrored or not."""
    swapped, rows, columns = way
    array = array.swapaxes(-1, -2) if swapped else array
    array = array[..., ::-1, :] if rows else array
    return np.ascontiguousarray(array[..., ::-1] if columns else array)


WAYS = [(swapped, rows, columns) for swapped in (False, True) for rows in (False, True) for columns in (False, True)]


@pytest.mark.parametrize("way", WAYS)
def test_mirrored_and_swapped_axes_are_undone_exactly(way: tuple[bool, bool, bool]) -> None:
    def process(image: Image.Image) -> Tensor:
        return torch.from_numpy(turned(np.array(image.resize((96, 64))).transpose(2, 0, 1), way)).float()

    geometry = measured(of_function(process), (128, 192))
    plain = measured(of_function(lambda image: process_plain(image)), (128, 192))
    generator = np.random.default_rng(0)
    grid = generator.random((8, 12)).astype(np.float32)
    maps = torch.from_numpy(turned(grid, way))
    torch.testing.assert_close(geometry.to_image(maps), plain.to_image(torch.from_numpy(grid)))

    mask = np.zeros((128, 192), bool)
    mask[10:50, 100:180] = True
    on_grid = plain.mask_to_grid(mask, (8, 12)).numpy()
    assert 0 < on_grid.sum() < 96
    np.testing.assert_array_equal(geometry.mask_to_grid(mask, maps.shape).numpy(), turned(on_grid, way))

    for x, y in ((3, 2), (100, 20), (191, 127)):
        cell = np.zeros((8, 12), bool)
        cell[y // 16, x // 16] = True
        found = geometry.to_grid(x, y, maps.shape)
        assert found == tuple(np.argwhere(turned(cell, way))[0])

    box = np.zeros((64, 96), bool)
    box[5:25, 50:90] = True
    rows, columns = np.nonzero(turned(box, way))
    height, width = geometry.model_size
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    shares = (left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height
    for of_seen in (False, True):
        assert geometry.box_to_image(shares, of_seen=of_seen) == pytest.approx((100, 10, 180, 50))


def process_plain(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.resize((96, 64))).transpose(2, 0, 1)).float()


def test_mirrored_bars_are_undone_exactly() -> None:
    geometry = measured(of_function(TURNED["bars, turned by 90"]), (60, 120))  # 64 x 128 above, then turned
    assert geometry.model_size == (128, 128)
    assert geometry.seen == (0, 0, 128, 64)
    assert geometry.box_to_image((0.25, 0.5, 0.5, 1.0), of_seen=False) == pytest.approx((0, 0, 120, 60))
    assert geometry.box_to_image((0.5, 0.25, 1.0, 0.5), of_seen=True) == pytest.approx((60, 0, 120, 60))
    assert geometry.to_grid(0, 0, (4, 4)) == (3, 0)
    assert geometry.to_grid(119, 59, (4, 4)) == (0, 1)


def test_positions_boxes_and_masks_go_over_to_the_models_grid_and_back() -> None:
    geometry = measured(of_transformers("pad to a square"), (240, 320))  # 96 x 128 in the corner of 160 x 160
    assert geometry.to_grid(0, 0, (10, 10)) == (0, 0)
    assert geometry.to_grid(319, 239, (10, 10)) == (5, 7)
    cropped = measured(of_transformers("clip"), (240, 320))
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


class Counted:
    """A processor that counts the pictures that it prepares."""

    def __init__(self, preprocess) -> None:
        self.preprocess, self.pictures = preprocess, 0

    def __call__(self, images: list[Image.Image]) -> Tensor:
        self.pictures += len(images)
        return self.preprocess(images)


def photographs(count: int) -> list[tuple[int, int]]:
    """Sizes that differ, in few proportions."""
    generator = np.random.default_rng(1)
    sizes: dict[tuple[int, int], None] = {}
    while len(sizes) < count:
        short = int(generator.integers(170, 400))
        long = round(short * generator.choice([4 / 3, 1.5, 1.9]))
        sizes[(short, long) if generator.random() < 0.5 else (long, short)] = None
    return list(sizes)


@pytest.mark.parametrize("name", sorted(set(TRANSFORMERS) - {"mirrored padding", "square padding"}))
def test_sizes_of_a_known_kind_are_predicted_as_they_would_be_measured(name: str) -> None:
    geometries, processor = Geometries(), Counted(of_transformers(name))
    sizes = photographs(40)  # the few that are measured come early: the last are predicted
    prepared = {size: processor.preprocess([Image.new("RGB", size[::-1])]).shape[-2:] for size in sizes}
    found = {size: geometries.of(processor, size, tuple(prepared[size])) for size in sizes}
    assert processor.pictures < 40
    for size in sizes[-4:]:
        assert off(processor, found[size]) < 0.5


def test_a_known_size_costs_nothing() -> None:
    geometries, processor = Geometries(), Counted(of_transformers("clip"))
    first = geometries.of(processor, (120, 160))
    prepared = processor.pictures
    assert geometries.of(processor, (120, 160)) is first
    assert processor.pictures == prepared


@pytest.mark.parametrize("process", [landscape, only_shrunk, PLACED["longest edge"]])
def test_processors_that_treat_sizes_differently_are_right_at_every_size(process) -> None:
    geometries, preprocess = Geometries(), of_function(process)
    for size in [(300, 400), (330, 400), (210, 350), (400, 300), (90, 120), (80, 140), (140, 80), (99, 60), (500, 320)]:
        assert off(preprocess, geometries.of(preprocess, size)) < 0.5


def test_a_rule_that_fails_later_is_dropped_with_what_it_predicted() -> None:
    later = False

    def process(image: Image.Image) -> Tensor:
        tensor = process_plain(image)
        return tensor.flip(2) if later else tensor

    geometries, preprocess = Geometries(), of_function(process)
    for width in range(200, 260, 2):
        geometry = geometries.of(preprocess, (100, width))
        assert geometry.columns.scale > 0
    later = True
    for width in range(201, 320, 2):  # one of these is measured all the same
        geometries.of(preprocess, (100, width))
    assert geometries.of(preprocess, (100, 220)).columns.scale < 0


def test_a_picture_that_comes_out_in_another_size_than_a_test_picture_is_refused() -> None:
    geometries, preprocess = Geometries(), of_transformers("clip")
    geometries.of(preprocess, (120, 160), (96, 96))
    with pytest.raises(ModelError, match="by what the picture shows"):
        geometries.of(preprocess, (120, 160), (64, 96))
    with pytest.raises(ModelError, match="by what the picture shows"):
        Geometries().of(preprocess, (120, 160), (64, 96))


def test_an_axis_goes_there_and_back() -> None:
    axis = Axis(-0.5, 31.75)
    assert axis.to_image(axis.to_model(12.0)) == pytest.approx(12.0)
    assert placed((64, 96), (32, 48), axis, Axis(0.5, -0.25)).seen == (0, 0, 32, 48)
