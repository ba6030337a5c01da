"""Methods that hide parts of the picture, against their papers' equations written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.equations_variants import occlusion
from hf_cam.cam import CAM
from hf_cam.errors import OptionError
from hf_cam.images.fills import filled
from hf_cam.methods import get_method
from hf_cam.methods.masking import mean_over_windows, windows
from hf_cam.testing import check_model_untouched
from nets import make
from pictures import SIZE, pictures


def raw_of(net: nn.Module, method: str, x: Tensor, targets: list, **options) -> Tensor:
    [raw] = CAM(net, method, **options).saliency(x, lambda _: [targets]).raw
    return raw[0].clamp_min(0)


# Occlusion ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_occlusion_is_the_mean_fall_of_the_score_over_the_squares_that_hide_a_pixel(name: str) -> None:
    net, x = make(name).double(), pictures(2).double()
    found = raw_of(net, "occlusion", x, [2, 5], patch=24, stride=14, fill=0.5)
    for i, target in enumerate([2, 5]):
        expected = occlusion(net, x[i : i + 1], target, 24, 14, 0.5)
        torch.testing.assert_close(found[i], expected, atol=1e-12, rtol=1e-9)
    assert found.any()


def test_squares_cover_the_picture_and_end_at_its_border() -> None:
    for size in ((64, 96), (7, 11), (3, 5), (4, 6, 9)):
        covered = torch.zeros(size)
        for place in windows(size, 4, 3):
            assert all(part.stop <= length for part, length in zip(place, size, strict=True))
            covered[place] += 1
        assert covered.min() > 0
    assert len(windows((224, 224))) == 13 * 13
    assert windows((5, 5), 9) == [(slice(0, 5), slice(0, 5))]


def test_the_mean_over_squares_counts_those_that_hold_the_pixel() -> None:
    places = windows((1, 3), patch=2, stride=1)
    assert mean_over_windows(torch.tensor([[1.0, 3.0]]), places, (1, 3)).tolist() == [[[1.0, 2.0, 3.0]]]


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        (0.25, lambda x: torch.full_like(x, 0.25)),
        ("mean", lambda x: x.mean((2, 3), keepdim=True).expand_as(x)),
        (torch.tensor([1.0, 2.0, 3.0]), lambda x: torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand_as(x)),
        (pictures(1)[0].flip(-1), lambda x: pictures(1)[0].flip(-1).expand_as(x)),
    ],
    ids=["number", "mean", "colour", "picture"],
)
def test_hidden_pixels_get_what_the_caller_names(fill: object, expected) -> None:
    x = pictures(2)
    torch.testing.assert_close(filled(x, fill), expected(x))
    CAM(make("resnet"), "occlusion", patch=32, stride=32, fill=fill)(x, [0, 1])


def test_a_blur_keeps_flat_pictures_and_flattens_others() -> None:
    x = pictures(2)
    flat = torch.full((1, 3, *SIZE), 0.3)
    torch.testing.assert_close(filled(flat, "blur"), flat)
    assert filled(x, "blur").shape == x.shape
    assert (filled(x, "blur").std((2, 3)) < 0.9 * x.std((2, 3))).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch": 0}, "patch must be a whole number from 1"),
        ({"patch": 4, "stride": 5}, "stride must be at most patch=4"),
        ({"fill": "black"}, "must be a number, 'mean' or 'blur', a tensor or 'drop', got 'black'"),
        ({"fill": torch.zeros(2)}, r"a picture \[3, 64, 96\] or a colour \[3\], got \[2\]"),
    ],
)
def test_occlusion_refuses_what_it_cannot_do(options: dict, words: str) -> None:
    net = make("resnet")
    with pytest.raises(OptionError, match=words):
        check_model_untouched(net, lambda: CAM(net, "occlusion", **options)(pictures(1), 0))


def test_a_cost_follows_the_options_that_it_depends_on() -> None:
    record = get_method("occlusion")
    assert record.cost() == 2 + 13 * 13
    assert record.cost(patch=32, stride=32) == 2 + 7 * 7
    assert not record.fits(100)
    assert record.fits(100, patch=32, stride=32, seed=3)
