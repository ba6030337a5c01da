"""What the model says beside what was expected: two maps, their difference, and the verdict in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hf_cam
from hf_cam.comparison import compared
from hf_cam.errors import ImageError, MethodError, OptionError, TargetError
from hf_cam.explainer import Explainer
from hf_cam.explanation import Explanation
from hf_cam.images.sheet import TILE
from hf_cam.request import Request
from nets import classifier, clip, detr, embedder, explained
from pictures import noise

HEIGHT, WIDTH = 40, 60
GREY = Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128))


def made(label: str, left: int, score: float = 0.5, **fields: Any) -> Explanation:
    """An explanation whose map is a hill, a third as wide as the image, that begins in this column."""
    heatmap = np.zeros((HEIGHT, WIDTH), np.float32)
    heatmap[10:30, left : left + 20] = np.outer(np.hanning(20), np.hanning(20))
    heatmap /= heatmap.max() or 1
    plain = Explanation(label, score, heatmap, heatmap, "gradcam", ("layer",), GREY, score_kind="probability")
    return plain.changed(**fields)


def test_none_in_a_list_of_targets_stands_for_what_the_model_finds(photo: Image.Image) -> None:
    cases: list[tuple[Any, Any, dict[str, Any]]] = [
        (classifier(), "red cup", {}),
        (detr(), 3, {"top_k": 1}),
        (clip(), "a dog", {"text": ("a cat", "a dog"), "top_k": 1}),
    ]
    for loaded, target, settings in cases:
        found = explained(loaded, photo, target=[[None, target]], **settings)
        [predicted] = explained(loaded, photo, **settings)
        [expected] = explained(loaded, photo, target=target, **{**settings, "top_k": None})
        assert [one.label for one in found] == [predicted.label, expected.label]
        np.testing.assert_allclose(found[0].heatmap, predicted.heatmap, atol=1e-4)
        np.testing.assert_allclose(found[1].heatmap, expected.heatmap, atol=1e-4)
        assert "expected" in str(hf_cam.difference(*found))
    with pytest.raises(TargetError, match="embeds images"):
        explained(embedder(), photo, target=[[None, noise(20, 30)]])


def test_the_difference_is_positive_where_the_predicted_map_is_stronger() -> None:
    found = hf_cam.difference(made("cat", 0), made("pug", 40))
    assert found.map.shape == (HEIGHT, WIDTH)
    assert (found.map.min(), found.map.max()) == (-1, 1)
    assert (found.map[10:30, :20] >= 0).all()
    assert (found.map[10:30, 40:] <= 0).all()
    red, _, blue = (np.asarray(found.overlay(1.0))[..., i].astype(int) for i in range(3))
    assert red[20, 10] > blue[20, 10] + 80
    assert blue[20, 50] > red[20, 50] + 80
    assert (red[:9] == 128).all()


@pytest.mark.parametrize(
    ("left", "places", "words"),
    [
        (0, "same", "mark largely the same place (100% of the strongest 10%"),
        (8, "partly", "mark partly the same place"),
        (40, "different", "mark different places (0% of the strongest 10%"),
    ],
)
def test_the_verdict_says_who_said_what_and_whether_the_maps_mark_one_place(left: int, places: str, words: str) -> None:
    found = hf_cam.difference(made("cat", 0, 0.913), made("pug", left, 0.02))
    assert found.places == places
    assert str(found).startswith("The model says 'cat' (0.913 probability); expected was 'pug' (0.02 probability).")
    assert words in str(found)
    assert str(found) == found._repr_html_().replace("&#x27;", "'")[3:-4]


def test_maps_at_one_place_correlate_and_maps_apart_do_not() -> None:
    same, apart = (hf_cam.difference(made("cat", 0), made("pug", left)) for left in (0, 40))
    assert same.overlap == 1
    assert same.correlation == pytest.approx(1)
    assert apart.overlap == 0
    assert -0.5 < apart.correlation < 0


def test_the_verdict_reports_that_the_model_says_what_was_expected() -> None:
    one = hf_cam.difference(made("pug", 0), made("pug", 0))
    assert str(one) == "The model says 'pug' (0.5 probability), as expected."
    two = str(hf_cam.difference(made("pug", 0), made("pug", 40)))
    assert "as expected. The two maps mark different places" in two


def test_an_empty_map_has_no_place_to_compare() -> None:
    nothing = np.zeros((HEIGHT, WIDTH), np.float32)
    found = hf_cam.difference(made("cat", 0), made("pug", 0, heatmap=nothing))
    assert found.places == "unknown"
    assert "The map of 'pug' is empty" in str(found)
    assert "The map of 'cat' is empty" in str(hf_cam.difference(made("cat", 0, heatmap=nothing), made("pug", 0)))
    assert found.grid().width > 3 * TILE


def test_maps_that_cannot_be_compared_are_refused() -> None:
    cat = made("cat", 0)
    other = Image.new("RGB", (WIDTH, HEIGHT), "red")
    wrong: list[tuple[Any, str]] = [
        (made("pug", 0, method="layercam"), "by two methods, GradCAM and LayerCAM"),
        (made("pug", 0, image=other), "of different pictures"),
        (made("pug", 0, heatmap=cat.heatmap[1:]), r"their heatmaps are \(40, 60\) and \(39, 60\)"),
        ([cat, cat], "takes two explanations"),
        (None, "takes two explanations"),
    ]
    for second, message in wrong:
        with pytest.raises(OptionError, match=message):
            hf_cam.difference(cat, second)


def test_a_difference_is_saved_and_shown(tmp_path: Path) -> None:
    found = hf_cam.difference(made("cat", 0), made("pug", 40))
    with Image.open(found.save(tmp_path / "both.png")) as saved:
        assert saved.width > 3 * TILE
    np.testing.assert_array_equal(np.load(found.save(tmp_path / "both.npy")), found.map)
    assert found._repr_png_().startswith(b"\x89PNG")
    assert found.overlay(colorbar=True).width > WIDTH
    assert found.overlay(transparent=True).mode == "RGBA"
    with pytest.raises(ImageError, match="picture format"):
        found.save(tmp_path / "both.xyz")
    with pytest.raises(OptionError, match="contours"):
        found.overlay(contours=[2])


def test_a_difference_of_videos_is_a_sheet_of_frames() -> None:
    frames = tuple(noise(20, 30, seed) for seed in range(4))
    maps = [np.random.default_rng(seed).random((4, 20, 30), np.float32) for seed in range(2)]
    first, second = (
        Explanation(label, 0.5, one, one, "gradcam", ("layer",), frames[0], frames=frames)
        for label, one in zip("ab", maps, strict=True)
    )
    found = hf_cam.difference(first, second)
    assert found.map.shape == (4, 20, 30)
    assert found.overlay().width > 30
    assert 0 <= found.overlap <= 1


# Comparisons of several methods --------------------------------------------------------------------------------------


def test_methods_are_compared_on_what_is_said_and_expected(photo: Image.Image, tmp_path: Path) -> None:
    loaded, methods = classifier(), ["gradcam", "layercam", "eigencam"]
    found = hf_cam.compare(photo, loaded, methods=methods, target=[None, "red cup"])
    assert [one.method for one in found.explanations] == methods * 2
    assert [one.label for one in found.explanations][3:] == ["red cup"] * 3
    assert found.targets == 2
    for one, target in zip(found.explanations[::3], (None, "red cup"), strict=True):
        [alone] = explained(loaded, photo, "gradcam", target=target)
        np.testing.assert_allclose(one.heatmap, alone.heatmap, atol=1e-4)
    rows = found.grid()
    assert 4 * TILE < rows.width < 5 * TILE
    assert found.grid(columns=2).width < 3 * TILE
    with Image.open(found.save(tmp_path / "grid.png", even=True)) as saved:
        assert saved.size == rows.size


def test_a_method_that_one_target_has_no_use_for_is_left_out_for_all(photo: Image.Image) -> None:
    request = Request(target=[None, lambda output: output["logits"].sum()])
    explainer = Explainer(classifier(), "gradcam")
    found = compared(explainer, photo, ["finercam", "gradcam", "layercam"], request, named=False)
    assert list(found.skipped) == ["finercam"]
    assert [one.method for one in found.explanations] == ["gradcam", "layercam"] * 2
    with pytest.raises(MethodError, match="'finercam' contrasts classes"):
        compared(explainer, photo, ["gradcam", "finercam"], request, named=True)
    with pytest.raises(MethodError, match="'finercam' contrasts classes"):
        compared(explainer, photo, ["finercam"], request, named=False)


def test_a_comparison_of_one_target_stays_as_it_was(photo: Image.Image) -> None:
    for target in ("red cup", ["red cup"]):
        found = hf_cam.compare(photo, classifier(), methods=["gradcam", "layercam"], target=target)
        assert [one.label for one in found.explanations] == ["red cup", "red cup"]
        assert found.targets == 1
    with pytest.raises(TargetError, match="list of targets is empty"):
        hf_cam.compare(photo, classifier(), methods=["gradcam"], target=[])
    with pytest.raises(TargetError, match="no class is called"):
        hf_cam.compare(photo, classifier(), methods=["gradcam"], target=[None, "zebra crossing"])
