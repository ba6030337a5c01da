"""How heatmaps are drawn: colours by name, opacity, contour lines, legends, transparency, and sheets of several."""

from __future__ import annotations

import sys
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

import hf_cam
from hf_cam.errors import ImageError, OptionError
from hf_cam.explanation import Explanation
from hf_cam.images.colours import table_of
from hf_cam.images.sheet import TALLEST, TILE
from pictures import noise

HEIGHT, WIDTH = 70, 130
GREY = Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128))


def hill() -> np.ndarray:
    """A heatmap that is 1 in the middle and 0 at the edge."""
    return np.outer(np.hanning(HEIGHT), np.hanning(WIDTH)).astype(np.float32) / 0.9995


def found(label: str = "cat", picture: Image.Image = GREY, **fields: Any) -> Explanation:
    heatmap = np.asarray(Image.fromarray(hill()).resize(picture.size))
    return Explanation(label, 0.5, heatmap, heatmap, "gradcam", ("layer",), picture, **fields)


@pytest.mark.parametrize("name", ["jet", "JET", "COLORMAP_JET", "cv2.COLORMAP_JET", cv2.COLORMAP_JET])
def test_a_colour_map_of_opencv_goes_by_its_name_or_its_constant(name: Any) -> None:
    bgr = cv2.applyColorMap(np.array([[0, 200]], np.uint8), cv2.COLORMAP_JET)
    np.testing.assert_array_equal(table_of(name)[[0, 200]], bgr[0, :, ::-1])


@pytest.mark.parametrize("name", ["coolwarm", "RdBu", "rdbu", "RdBu_r", "Greys", "tab10"])
def test_a_colour_map_of_matplotlib_goes_by_its_name(name: str) -> None:
    own = {"rdbu": "RdBu"}.get(name, name)
    np.testing.assert_array_equal(table_of(name)[7], mpl.colormaps[own](7 / 255, bytes=True)[:3])


def test_a_name_with_r_behind_it_has_the_colours_in_reverse() -> None:
    for name in ("turbo", "diverging", "parula", "coolwarm"):
        np.testing.assert_array_equal(table_of(f"{name}_r"), table_of(name)[::-1])


@pytest.mark.parametrize("wrong", ["turboo", "", "no such map", 99, -1, None, True, 1.5, ["jet"]])
def test_another_colour_map_is_refused_and_some_are_named(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"turbo|cv2\.COLORMAP_JET"):
        table_of(wrong)


def test_without_matplotlib_only_its_own_maps_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert table_of("viridis").shape == table_of("bone_r").shape == (256, 3)
    with pytest.raises(OptionError, match="pip install"):
        table_of("PuOr")


def test_an_even_overlay_has_the_same_opacity_everywhere() -> None:
    heatmap = hill()
    even = np.asarray(hf_cam.overlay(GREY, heatmap, 0.4, "bone", even=True), np.float32)
    colours = table_of("bone")[np.rint(np.clip(heatmap, 0, 1) * 255).astype(int)]
    np.testing.assert_allclose(even, 0.6 * 128 + 0.4 * colours, atol=0.51)
    fading = np.asarray(hf_cam.overlay(GREY, heatmap, 0.4, "bone"), np.float32)
    assert (fading[heatmap == 0] == 128).all()
    assert (even[heatmap == 0] != 128).all()
    np.testing.assert_array_equal(even[heatmap > 0.5], fading[heatmap > 0.5])


@pytest.mark.parametrize("even", [False, True])
def test_a_transparent_overlay_holds_the_colours_alone_and_nothing_where_the_map_is_zero(even: bool) -> None:
    heatmap = hill()
    drawn = hf_cam.overlay(GREY, heatmap, 0.8, transparent=True, even=even)
    assert (drawn.mode, drawn.size) == ("RGBA", (WIDTH, HEIGHT))
    alpha = np.asarray(drawn)[..., 3]
    assert (alpha[heatmap == 0] == 0).all()
    assert (alpha[heatmap > 0.5] == round(0.8 * 255)).all()
    laid = Image.alpha_composite(GREY.convert("RGBA"), drawn).convert("RGB")
    plain = hf_cam.overlay(GREY, heatmap, 0.8, even=even)
    off = np.abs(np.asarray(laid, int) - np.asarray(plain, int)).max(-1)
    assert off[heatmap > 0].max() <= 3


def test_contours_lie_where_the_map_crosses_their_values() -> None:
    heatmap = hill()
    lines = (np.asarray(hf_cam.overlay(GREY, heatmap, 0.0, contours=[0.5])) != 128).any(-1)
    assert lines.any()
    assert np.abs(heatmap[lines] - 0.5).max() < 0.2
    three = (np.asarray(hf_cam.overlay(GREY, heatmap, 0.0, contours=True)) != 128).any(-1)
    assert three.sum() > 2 * lines.sum()
    both = hf_cam.overlay(GREY, hill() - hill()[:, ::-1] * 0.5, 0.0, contours=True, signed=True)
    assert both.size == GREY.size


def test_a_legend_stands_at_the_right_of_an_unchanged_overlay() -> None:
    plain, with_legend = found().overlay(), found().overlay(colorbar=True)
    assert with_legend.height == plain.height
    assert with_legend.width > plain.width
    np.testing.assert_array_equal(np.asarray(with_legend)[:, :WIDTH], np.asarray(plain))
    legend = np.asarray(with_legend)[:, WIDTH:].reshape(-1, 3)
    assert (np.abs(legend.astype(int) - table_of("turbo")[255]).max(1) < 30).any()


@pytest.mark.parametrize("size", [(5, 3), (12, 40), (1, 1)])
def test_a_legend_fits_beside_a_tiny_picture(size: tuple[int, int]) -> None:
    drawn = hf_cam.overlay(Image.new("RGB", size), np.ones(size[::-1], np.float32), colorbar=True)
    assert drawn.height == size[1]


def test_signed_values_are_red_above_zero_and_blue_below() -> None:
    values = np.zeros((HEIGHT, WIDTH), np.float32)
    values[10:20], values[40:50] = 1, -1
    red, _, blue = (np.asarray(hf_cam.overlay(GREY, values, 1.0, signed=True))[..., i].astype(int) for i in range(3))
    assert (red[10:20] > blue[10:20] + 80).all()
    assert (blue[40:50] > red[40:50] + 80).all()
    assert (red[values == 0] == 128).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": True}, "alpha"),
        ({"even": "yes"}, "even"),
        ({"colorbar": 1}, "colorbar"),
        ({"contours": [0.5, 1.5]}, "contours"),
        ({"contours": "all"}, "contours"),
        ({"contours": 0}, "contours"),
        ({"colourbar": True}, "colorbar"),
        ({"colormap": "turboo"}, "turbo"),
    ],
)
def test_a_setting_of_a_picture_that_is_wrong_is_refused_at_every_door(setting: dict[str, Any], message: str) -> None:
    doors = (
        lambda: hf_cam.overlay(GREY, hill(), **setting),
        lambda: found().overlay(**setting),
        lambda: found().save("never-written.png", **setting),
        lambda: hf_cam.grid([found()], **setting),
    )
    for door in doors:
        with pytest.raises(OptionError, match=message):
            door()


def test_a_heatmap_of_another_size_or_with_holes_is_refused() -> None:
    for wrong, message in ((hill()[1:], "69 x 130"), (hill()[None], "1 x 70 x 130"), (hill() * np.nan, "finite")):
        with pytest.raises(OptionError, match=message):
            hf_cam.overlay(GREY, wrong)


def test_a_transparent_picture_is_saved_only_where_that_can_be(tmp_path: Any) -> None:
    path = found().save(tmp_path / "map.png", transparent=True)
    with Image.open(path) as saved:
        assert saved.mode == "RGBA"
    with pytest.raises(ImageError, match=r"save it as \.png"):
        found().save(tmp_path / "map.jpg", transparent=True)


def test_a_video_is_drawn_in_every_style() -> None:
    frames = tuple(noise(20, 30, seed) for seed in range(4))
    heatmap = np.linspace(0, 1, 4 * 20 * 30, dtype=np.float32).reshape(4, 20, 30)
    video = Explanation("wave", 0.5, heatmap, heatmap, "gradcam", ("layer",), frames[0], frames=frames)
    assert video.overlay(transparent=True).mode == "RGBA"
    assert video.overlay(colorbar=True).width > video.overlay().width
    assert len(video.frame_overlays(even=True, contours=True)) == 4
    assert hf_cam.grid(video).width > TILE


def test_a_box_is_drawn_on_a_transparent_ground_too() -> None:
    drawn = found(box=(2.0, 3.0, 40.0, 30.0)).overlay(transparent=True)
    assert np.asarray(drawn)[3, 10, 3] == 255


# Several in one picture ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (7, 4, 2), (20, 5, 4)])
def test_a_grid_of_any_number_is_wider_than_high(count: int, columns: int, rows: int) -> None:
    drawn = hf_cam.grid([found()] * count)
    assert columns * TILE < drawn.width < columns * (TILE + 20) + 20
    shown = round(TILE * HEIGHT / WIDTH)
    assert rows * shown < drawn.height < rows * (shown + 90) + 60
    assert drawn.width > drawn.height


def test_a_grid_takes_pictures_of_all_sizes_and_distorts_none() -> None:
    red, tall = Image.new("RGB", (640, 320), "red"), Image.new("RGB", (20, 400), "blue")
    small = Image.new("RGB", (30, 20), (0, 255, 0))
    drawn = np.asarray(hf_cam.grid([found(picture=one) for one in (red, tall, small)], columns=2, alpha=0.0), int)
    sizes = {(255, 0, 0): (TILE, TILE // 2), (0, 0, 255): (TALLEST // 20, TALLEST), (0, 255, 0): (TILE, 213)}
    for colour, size in sizes.items():
        rows, columns = (np.abs(drawn - colour).max(-1) <= 2).nonzero()
        assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == size


def test_a_grid_shows_label_score_method_flags_and_a_legend() -> None:
    plain = np.asarray(hf_cam.grid([found("")]))
    for changed in (found("cat"), found("").changed(score=0.25), found("").changed(method="layercam")):
        other = np.asarray(hf_cam.grid([changed]))
        assert other.shape == plain.shape
        assert (other != plain).any()
    assert hf_cam.grid([found(flags=("below the threshold",))]).height > plain.shape[0]
    assert (np.abs(plain[-40:].astype(int) - table_of("turbo")[255]).max(-1) < 12).any()
    assert hf_cam.grid([found("a long label, " * 40)]).size == plain.shape[1::-1]


def test_a_grid_takes_whatever_explain_and_load_explanations_return() -> None:
    one = found()
    for several in ([one, one], (one, one), [[one], [one]], {"a.png": [one], "b.png": [one]}):
        assert hf_cam.grid(several).size == hf_cam.grid([one, one]).size
    assert hf_cam.grid(one).size == hf_cam.grid([one]).size


@pytest.mark.parametrize("wrong", [[], [[]], {}, None, "cat.png", [found(), GREY], [None], 3])
def test_a_grid_of_something_else_is_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"hf_cam\.explain returns"):
        hf_cam.grid(wrong)


@pytest.mark.parametrize("columns", [0, -2, 1.5, "two", True])
def test_columns_are_a_whole_number(columns: Any) -> None:
    with pytest.raises(OptionError, match="columns must be a whole number"):
        hf_cam.grid([found()], columns)


# Gradients in the pixels ---------------------------------------------------------------------------------------------


def test_a_picture_of_a_gradient_is_grey_where_it_is_zero_and_keeps_its_sign() -> None:
    gradient = torch.zeros(1, 3, HEIGHT, WIDTH)
    gradient[0, 0, :10], gradient[0, 2, 30:40] = 2.0, -2.0
    drawn = np.asarray(hf_cam.gradient_picture(gradient))
    assert drawn.shape == (HEIGHT, WIDTH, 3)
    assert (drawn[:10] == (255, 128, 128)).all()
    assert (drawn[30:40] == (128, 128, 0)).all()
    assert (drawn[50:] == 128).all()
    np.testing.assert_array_equal(drawn, np.asarray(hf_cam.gradient_picture(gradient[0].numpy() * 1e-9)))
    assert hf_cam.gradient_picture(gradient[:, :1]).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (4, 6), (5, 4, 6)])
def test_what_is_no_gradient_of_one_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=r"\[3, H, W\]"):
        hf_cam.gradient_picture(np.zeros(shape))
    with pytest.raises(OptionError, match="finite"):
        hf_cam.gradient_picture(np.full((3, 4, 6), np.nan))
