"""Every method is as its paper has it: against the equation in float64, and against the package where there is one.

The equations (`benchmarks/equations.py` and `equations_variants.py`) are re-implementations written from the papers. Of
other packages, grad-cam is a development dependency; that of LeGrad's authors is compared if it is installed, with the
open_clip it was made for.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from benchmarks.equations import EQUATIONS, SIZE, make, pictures, raw_map
from benchmarks.papers import GRAD_CAM, OURS, difference, grad_cam, kept, legrad_torch, table, version
from hf_cam import list_methods
from hf_cam.errors import HFCamError, MethodError, OptionError
from hf_cam.methods import Method, get_method
from hf_cam.targets import PromptSimilarity

IN_FLOAT32 = {"fullgrad", "scorecam", "sscam", "iscam", "dff"}
"""Their terms are enlarged or factorized in single precision."""
WITHOUT_A_PAPER = {"randomcam"}


@pytest.mark.parametrize("case", EQUATIONS, ids=" ".join)
def test_agrees_with_the_equation_of_its_paper_in_float64(case: tuple[str, str, str]) -> None:
    ours, theirs = EQUATIONS[case]()
    assert ours.shape == theirs.shape
    assert theirs.std() > 0
    assert difference(ours, theirs) < (1e-6 if case[0] in IN_FLOAT32 else 1e-9)


def test_every_method_with_a_paper_has_an_equation() -> None:
    assert {method for method, _, _ in EQUATIONS} == set(list_methods()) - WITHOUT_A_PAPER


@pytest.mark.parametrize("method", GRAD_CAM)
def test_agrees_with_grad_cam(method: str) -> None:
    assert difference(*grad_cam(method)) < 1e-5


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_legrad_agrees_with_the_package_of_its_authors() -> None:
    if importlib.util.find_spec("legrad") is None or version("open_clip_torch") > "2.23.0":
        pytest.skip("needs legrad-torch and open_clip_torch 2.23.0")
    assert difference(*legrad_torch()) < 1e-5


def test_legrad_reads_the_layers_from_the_given_one_on() -> None:
    net = make("vit")
    every, last = (raw_map(net, "legrad", 1, start_layer=start) for start in (0, -1))
    torch.testing.assert_close(raw_map(net, "legrad", 1, start_layer=2), last)
    torch.testing.assert_close(raw_map(net, "legrad", 1, start_layer=-3), every)
    assert not torch.allclose(every, last)


def test_a_layer_that_legrad_does_not_have_is_refused_and_fewer_layers_than_asked_for_are_all_of_them() -> None:
    with pytest.raises(OptionError, match="start_layer=3 and end_layer=None; there are 3"):
        raw_map(make("vit"), "legrad", 1, start_layer=3)
    every, more = (raw_map(make("vit"), "legrad", 1, start_layer=start) for start in (-3, -12))
    assert torch.equal(every, more)


def test_an_empty_prompt_is_one_of_the_prompts() -> None:
    text = {"input_ids": torch.tensor([[1, 5, 6, 7, 2], [1, 3, 3, 3, 2]])}
    with pytest.raises(HFCamError):
        raw_map(make("siglip"), "legrad", PromptSimilarity(0), text, empty_prompt=2)


def test_an_empty_prompt_needs_a_target_that_is_a_prompt() -> None:
    with pytest.raises(MethodError, match="index of a prompt"):
        raw_map(make("vit"), "legrad", 1, empty_prompt=0)


@pytest.mark.parametrize(("method", "options"), [("legrad", {"start_layer": "two"}), ("libragrad", {"gates": "off"})])
def test_options_of_the_wrong_kind_are_refused(method: str, options: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))!r} of the method {method!r}"):
        get_method(method).check_options(options)


def test_terms_that_are_not_finite_are_refused_by_name() -> None:
    terms = torch.tensor([[[[1.0, torch.inf]]]], dtype=torch.float16)
    with pytest.raises(MethodError, match="the frozen_terms are not finite in float16"):
        get_method("libragrad").map(frozen_terms=lambda gates: terms)


def test_a_departure_is_one_line() -> None:
    for record in list_methods().values():
        assert "\n" not in record.departure
        assert not record.departure or record.departure.endswith("."), record.id


def test_rows_of_packages_that_are_missing_stay_in_the_table() -> None:
    line = "| `randomcam` | a package | a net | 1e-07 |"
    page = f"before\n<!-- agreement -->\n\n{line}\n| `randomcam` | {OURS} | a ViT | 1e-16 |\n<!-- end of agreement -->"
    assert kept(page) == {("randomcam", "a package"): line}
    assert line in table([get_method("randomcam")], kept(page)).splitlines()
    assert isinstance(get_method("randomcam"), Method)


def test_the_pictures_are_not_square() -> None:
    assert pictures().shape == (1, 3, *SIZE)
    assert SIZE[0] != SIZE[1]
