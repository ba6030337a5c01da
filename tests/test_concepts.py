"""Concepts of a data set: the paper's equations, a planted mark, every kind of data, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import hf_cam
from hf_cam.discovery.factors import Basis, basis_of
from hf_cam.discovery.looking import Looker
from hf_cam.discovery.sobol import designs, exchanged, interval, total_indices
from hf_cam.discovery.views import Reservoir, around, crop_boxes
from hf_cam.errors import HFCamError, ImageError, LayoutError, OptionError, TargetError
from hf_cam.explainer import Explainer
from hf_cam.images.geometry import Axis, Geometry
from hf_cam.interfaces.cli import main
from hf_cam.models.loading import load
from hf_cam.targets import ClassLogit
from hf_cam.zoo.scenes import cheater_scenes, mark_region
from nets import OF_EVERY_LAYOUT, clip, detr, make
from pictures import noise, resized
from unchanged import unchanged

QUICK = {"components": 3, "crops": 1, "scored": 2, "designs": 4}


@pytest.fixture(scope="module")
def coats() -> hf_cam.Concepts:
    return hf_cam.concepts(
        "demo:cheater", cheater_scenes(60), target="coat", components=8, crops=1, scored=4, designs=16
    )


# The equations -------------------------------------------------------------------------------------------------------


def test_the_total_indices_of_an_additive_function_are_its_shares_of_the_variance() -> None:
    weights = np.array([3.0, 2.0, 1.0, 0.0])
    first, second = designs(4096, 4)
    found = total_indices(first @ weights, exchanged(first, second) @ weights)
    np.testing.assert_allclose(found, weights**2 / (weights**2).sum(), atol=0.005)


def test_the_total_indices_of_ishigamis_function_are_the_known_ones() -> None:
    a, b = 7.0, 0.1

    def ishigami(unit: np.ndarray) -> np.ndarray:
        x = np.pi * (2 * unit - 1)
        return np.sin(x[..., 0]) + a * np.sin(x[..., 1]) ** 2 + b * x[..., 2] ** 4 * np.sin(x[..., 0])

    variance = a**2 / 8 + b * np.pi**4 / 5 + b**2 * np.pi**8 / 18 + 0.5
    third = 8 * b**2 * np.pi**8 / 225
    known = np.array([0.5 * (1 + b * np.pi**4 / 5) ** 2 + third, a**2 / 8, third]) / variance
    first, second = designs(8192, 3, seed=1)
    found = total_indices(ishigami(first), ishigami(exchanged(first, second)))
    np.testing.assert_allclose(found, known, atol=0.02)


def test_a_value_that_does_not_vary_gives_every_factor_an_index_of_zero() -> None:
    assert total_indices(np.full(8, 5.0), np.full((2, 8), 5.0)).tolist() == [0.0, 0.0]


def test_the_interval_of_a_mean_holds_it_and_shrinks_with_more_rows() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.2, (400, 1))
    few, many = interval(values[:20]), interval(values)
    assert few[0] < values[:20].mean() < few[1]
    assert many[1] - many[0] < 0.4 * (few[1] - few[0])


@pytest.mark.parametrize("signed", [False, True], ids=["non-negative", "signed"])
def test_a_factorization_gives_back_the_directions_that_the_cells_were_made_of(signed: bool) -> None:
    rng = np.random.default_rng(0)
    made = rng.random((3, 12)) * (rng.random((3, 12)) > 0.6)
    made *= np.where(np.arange(12) % 2, -1, 1) if signed else 1
    strengths = rng.random((200, 3)) * (rng.random((200, 3)) > 0.5)
    cells = strengths @ made
    basis, error = basis_of(cells, 3)
    assert basis.signed is signed
    assert error < 0.02
    rebuilt = basis.coefficients(cells) @ basis.vectors
    assert np.linalg.norm(rebuilt - cells) < 0.02 * np.linalg.norm(cells)
    likeness = basis.vectors @ (made / np.linalg.norm(made, axis=1, keepdims=True)).T
    assert likeness.max(1).min() > 0.98


def test_coefficients_solve_the_non_negative_least_squares_problem() -> None:
    rng = np.random.default_rng(0)
    basis = Basis(rng.random((4, 9)), signed=False)
    cells = rng.random((5, 9))
    found = basis.coefficients(cells)
    gradient = (found @ basis.parts - cells) @ basis.parts.T
    assert (found >= 0).all()
    assert (gradient > -1e-10).all()  # the Karush-Kuhn-Tucker conditions
    assert np.abs(gradient * found).max() < 1e-10


class _Cells(nn.Module):
    """A 1 x 1 convolution, a mean over all cells, and a layer that is not linear."""

    def __init__(self, *, relu: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.AvgPool2d(16), nn.Conv2d(3, 6, 1), nn.ReLU() if relu else nn.Identity())
        self.head = nn.Linear(6, 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.features(pixel_values).mean((2, 3)).square())


@pytest.mark.parametrize("relu", [True, False], ids=["non-negative", "signed"])
def test_weakened_concepts_give_the_values_of_the_papers_equation(relu: bool) -> None:
    """`h((U m) W + (A - U W))` in float64, with the cells, the coefficients and the head written out."""
    model = _Cells(relu=relu).eval()
    looker = Looker(Explainer(load(model, processor=resized()), "eigencam", "features"))
    image = noise()
    [seen] = looker.see([image])
    basis, _ = basis_of(seen.cells.reshape(6, -1).T, 2)
    kept = np.random.default_rng(0).random((5, 2))
    with unchanged(model):
        found = looker.values(image, ClassLogit(1), basis, kept)
    pixels = resized()(image).double()
    weight, bias = (p.detach().double() for p in model.features[1].parameters())
    cells = torch.einsum("oc,chw->hwo", weight[:, :, 0, 0], nn.AvgPool2d(16)(pixels)) + bias
    cells = (cells.clamp_min(0) if relu else cells).reshape(-1, 6).numpy()
    strengths = basis.coefficients(cells)
    rest = cells - strengths @ basis.vectors
    head_weight, head_bias = (p.detach().double().numpy() for p in model.head.parameters())
    for shares, value in zip(kept, found, strict=True):
        pooled = ((strengths * shares) @ basis.vectors + rest).mean(0)
        assert abs(value - (pooled**2 @ head_weight.T + head_bias)[1]) < 1e-5
    assert len(np.unique(found.round(6))) == 5


# The mark ------------------------------------------------------------------------------------------------------------


def test_the_mark_of_the_cheater_is_the_most_important_concept_of_its_class(coats: hf_cam.Concepts) -> None:
    first, second = coats[0], coats[1]
    assert first.interval[0] > second.interval[1]
    assert first.rises[0][0] == "coat"
    region = mark_region()
    scene = next(picture for picture, label in cheater_scenes(9, seed=5) if label == "coat")
    maps = [found.heatmap for found in coats.explain(scene)]
    assert maps[0][region].mean() > 5 * maps[0][~region].mean()
    assert maps[0][region].mean() == max(map_[region].mean() for map_ in maps)


def test_examples_show_the_mark(coats: hf_cam.Concepts) -> None:
    rows, columns = np.nonzero(mark_region())
    y, x = rows.mean(), columns.mean()
    holding = [x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in (one.box for one in coats[0].examples)]
    assert np.mean(holding) >= 0.7
    assert len({one.image for one in coats[0].examples}) == len(coats[0].examples)


def test_concepts_are_ordered_by_importance_and_their_shares_sum_to_one(coats: hf_cam.Concepts) -> None:
    found = [one.importance for one in coats]
    assert found == sorted(found, reverse=True)
    assert sum(one.share for one in coats) == pytest.approx(1)
    assert all(one.interval[0] <= one.importance <= one.interval[1] for one in coats)
    assert all(one.by_class == {"coat": one.importance} for one in coats)
    assert len({one.name for one in coats}) == len(coats) == len(coats[:])


def test_explanations_have_the_pixels_of_the_image_and_comparable_strengths(coats: hf_cam.Concepts) -> None:
    image = noise(70, 130)
    found = coats.explain(image)
    assert [one.label for one in found] == [one.name for one in coats]
    for one in found:
        assert one.heatmap.shape == (70, 130)
        assert 0 <= one.heatmap.min() <= one.heatmap.max() <= 1
        assert one.score == pytest.approx(one.raw.max())


def test_the_page_needs_no_other_file(coats: hf_cam.Concepts, tmp_path: Path) -> None:
    page = coats.save(tmp_path / "deep" / "concepts.html").read_text(encoding="utf-8")
    assert page.count("<article") == len(coats)
    assert page.count('src="data:image/jpeg') == 2 * sum(len(one.examples) for one in coats)
    assert "http" not in page
    assert page in hf_cam.Concepts._repr_html_(coats).replace("&lt;", "<").replace("&gt;", ">").replace(
        "&quot;", '"'
    ).replace("&#x27;", "'").replace("&amp;", "&")
    assert json.loads(json.dumps(coats.to_dict()))["concepts"][0]["name"] == coats[0].name
    with pytest.raises(ImageError, match=r"must end in \.html"):
        coats.save(tmp_path / "concepts.png")


def test_the_printed_form_has_a_line_per_concept(coats: hf_cam.Concepts) -> None:
    lines = str(coats).splitlines()
    assert "for 'coat'" in lines[0]
    assert len(lines) == 1 + len(coats)


# Data and models -----------------------------------------------------------------------------------------------------


def _scenes(folder: Path) -> Path:
    for index, (picture, label) in enumerate(cheater_scenes(4)):
        (folder / label).mkdir(exist_ok=True)
        picture.save(folder / label / f"{index}.png")
    return folder


def test_every_form_of_the_same_data_gives_the_same_concepts(tmp_path: Path) -> None:
    import datasets

    scenes = cheater_scenes(4)
    loaded = load(make("resnet"), processor=resized())
    pictures = [picture for picture, _ in scenes]
    table = datasets.Dataset.from_dict({"image": pictures, "label": [0] * 4}).cast_column("image", datasets.Image())
    forms = {
        "pairs": scenes,
        "images": pictures,
        "arrays": [np.asarray(picture) for picture in pictures],
        "dicts": [{"image": picture, "label": label} for picture, label in scenes],
        "dataset": table,
    }
    found = {name: hf_cam.concepts(loaded, data, **QUICK).to_dict() for name, data in forms.items()}
    assert all(one == found["pairs"] for one in found.values())
    folder = hf_cam.concepts(loaded, _scenes(tmp_path), **QUICK)
    assert folder.images == 4
    assert all(Path(example.image).is_file() for one in folder for example in one.examples)


@pytest.mark.parametrize("name", OF_EVERY_LAYOUT)
def test_concepts_of_every_layout_leave_the_model_as_it_was(name: str) -> None:
    model = make(name)
    images = [noise(70, 130, seed=seed) for seed in range(3)]
    with unchanged(model):
        found = hf_cam.concepts(model, images, processor=resized(), **QUICK)
    assert len(found) == 3
    assert all(np.isfinite(one.importance) for one in found)
    assert found[0].importance > 0


def test_prompts_name_the_concepts_of_a_model_that_compares() -> None:
    images = [noise(70, 130, seed=seed) for seed in range(3)]
    found = hf_cam.concepts(clip(), images, text=["a cat", "a red cup"], **QUICK)
    assert {name for one in found for name, _ in one.rises} == {"a cat", "a red cup"}
    with pytest.raises(TargetError, match="pass text="):
        hf_cam.concepts(clip(), images, **QUICK)


def test_the_same_seed_gives_the_same_concepts_whatever_the_batch() -> None:
    loaded, images = load(make("vit"), processor=resized()), [picture for picture, _ in cheater_scenes(5)]
    one = hf_cam.concepts(loaded, images, batch_size=1, **QUICK).to_dict()
    other = hf_cam.concepts(loaded, images, batch_size=4, **QUICK).to_dict()
    assert [c["name"] for c in one["concepts"]] == [c["name"] for c in other["concepts"]]
    np.testing.assert_allclose(
        [c["importance"] for c in one["concepts"]], [c["importance"] for c in other["concepts"]], atol=1e-3
    )


def test_an_image_that_cannot_be_read_is_noted(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    images = [broken, *(picture for picture, _ in cheater_scenes(3))]
    found = hf_cam.concepts(make("resnet"), images, processor=resized(), **QUICK)
    assert found.images == 3
    assert found.notes[0].startswith("1 of 4 images could not be read")


def test_a_sample_of_a_stream_is_uniform_and_bounded() -> None:
    whole, parts = (Reservoir(50, np.random.default_rng(0)) for _ in range(2))
    rows = [(index,) for index in range(1000)]
    whole.add(rows)
    for start in range(0, 1000, 7):
        parts.add(rows[start : start + 7])
        assert len(parts.rows) <= 50
    assert whole.rows == parts.rows
    assert 350 < np.mean([index for (index,) in parts.rows]) < 650


def test_crops_lie_within_the_image_and_keep_its_shape() -> None:
    for x0, y0, x1, y1 in crop_boxes((96, 64), 200, np.random.default_rng(0)):
        assert 0 <= x0 < x1 <= 96
        assert 0 <= y0 < y1 <= 64
        assert x1 - x0 >= 32
        assert abs((x1 - x0) / (y1 - y0) - 1.5) < 0.05


def test_the_part_round_a_cell_lies_where_the_cell_does() -> None:
    same = Geometry((60, 90), (60, 90), Axis(1.0, 0.0), Axis(1.0, 0.0), (0, 0, 60, 90))
    assert around((0, 8), (6, 9), same) == (60, 0, 90, 20)
    assert around((3, 4), (6, 9), same) == (30, 25, 60, 45)
    turned = Geometry((60, 90), (90, 60), Axis(1.0, 0.0), Axis(1.0, 0.0), (0, 0, 90, 60), swapped=True)
    assert around((8, 0), (9, 6), turned) == (60, 0, 90, 20)


# Bad input -----------------------------------------------------------------------------------------------------------

IMAGES = [noise(70, 130, seed=seed) for seed in range(2)]


class _Flat(nn.Module):
    """A classifier with a layer that has no places."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.flat(pixel_values.mean((2, 3))))


BAD = {
    "no images": (lambda: {"data": []}, ImageError, "there are no images"),
    "one image": (lambda: {"data": IMAGES[:1]}, ImageError, "the data holds 1"),
    "none readable": (lambda: {"data": ["a.png", "b.png"]}, ImageError, "two images that can be read, and 0 can"),
    "another kind": (lambda: {"data": 3}, OptionError, "data must be"),
    "a picture": (lambda: {"data": IMAGES[0]}, OptionError, "data must be"),
    "too many concepts": (
        lambda: {"data": IMAGES, "components": 99},
        OptionError,
        "components must be at most 24, for 24 sampled cells",
    ),
    "more concepts than samples": (
        lambda: {"data": IMAGES, "components": 9, "samples": 8},
        OptionError,
        "9 concepts cannot be found in 8 cells",
    ),
    "no concepts": (lambda: {"data": IMAGES, "components": 0}, OptionError, "components must be"),
    "negative crops": (lambda: {"data": IMAGES, "crops": -1}, OptionError, "crops must be a whole number from 0"),
    "no power of two": (lambda: {"data": IMAGES, "designs": 12}, OptionError, "a power of two"),
    "no class": (lambda: {"data": IMAGES, "target": "unicorn"}, TargetError, "unicorn"),
    "two classes": (lambda: {"data": IMAGES, "target": [0, 1]}, TargetError, "one target"),
    "a class that is not found": (
        lambda: {"data": IMAGES, "target": (_found() + 1) % 7},
        TargetError,
        "in 0 of 2 images",
    ),
    "no logits": (
        lambda: {"data": IMAGES, "model": detr(), "processor": None},
        OptionError,
        "DeepFeatureFactorization",
    ),
    "no spatial form": (
        lambda: {"data": IMAGES, "model": _Flat(), "layers": "flat"},
        LayoutError,
        "does not have the expected spatial layout",
    ),
    "text for a classifier": (lambda: {"data": IMAGES, "text": ["a cat"]}, TargetError, "takes no text"),
}


def _found() -> int:
    [[explanation]] = Explainer(load(make("resnet"), processor=resized()))(IMAGES[:1])
    return int(explanation.label.removeprefix("LABEL_"))


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_sentence(case: str) -> None:
    arguments, error, match = BAD[case]
    given = {"model": make("resnet"), "processor": resized(), **arguments()}
    with pytest.raises(error, match=match) as caught:
        hf_cam.concepts(given.pop("model"), given.pop("data"), **given)
    assert isinstance(caught.value, HFCamError)
    assert "\n" not in str(caught.value)


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_concepts_and_writes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, page = _scenes(tmp_path), tmp_path / "page.html"
    arguments = ["concepts", "demo:cheater", str(data), "--components", "2", "--scored", "1", "--out", str(page)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 concepts of" in printed
    assert printed.rstrip().endswith(str(page))
    assert page.read_text(encoding="utf-8").count("<article") == 2
    assert main([*arguments[:-1], str(tmp_path / "page.png")]) == 2
    assert "must end in .html" in capsys.readouterr().err


def test_a_picture_of_an_example_is_small(coats: hf_cam.Concepts) -> None:
    for one in coats[0].examples:
        assert isinstance(one.crop, Image.Image)
        assert max(one.crop.size) == max(one.map.size) == 160
