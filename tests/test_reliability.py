"""The page of what one can rely on: written from the results, which name tests and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks import reliability

TESTS = Path(__file__).parent


def test_the_page_is_what_the_command_writes_from_the_results() -> None:
    assert reliability.PAGE.read_text(encoding="utf-8") == reliability.page(reliability.read())


def test_every_promise_was_measured_and_names_tests_and_a_command_that_exist() -> None:
    held = reliability.read()["held"]
    for name, promise in reliability.PROMISES.items():
        assert (TESTS / promise.tested).is_file(), name
        expected = set(reliability.LIBRARIES) if promise.measure else {"hf-cam"}
        assert set(held[name]) == expected, name
        for named in re.findall(r"tests/\w+\.py|benchmarks\.\w+", promise.command):
            assert (TESTS.parent / f"{named.replace('.py', '').replace('.', '/')}.py").is_file(), named


def test_hf_cam_holds_every_case_of_every_promise() -> None:
    for name, counts in reliability.read()["held"].items():
        good, tried = counts["hf-cam"]
        assert good == tried > 0, name


@pytest.mark.parametrize(
    ("counts", "text"), [([1234, 1234], "1,234 of 1,234"), ([1, 2], "**1 of 2**"), (None, "**the process died**")]
)
def test_a_cell_names_the_cases_that_held(counts: list[int] | None, text: str) -> None:
    assert reliability.cell(counts) == text


@pytest.mark.parametrize("name", ["untouched", "after-errors", "inputs"])
def test_a_case_holds_for_hf_cam_and_not_for_a_library_that_breaks_the_promise(name: str) -> None:
    measure = reliability.PROMISES[name].measure
    assert measure is not None
    assert all(measure(reliability.with_hf_cam, 1))

    def breaking(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        model.train(not model.training)
        return pixels[:, 0] * float("nan")

    assert not all(measure(breaking, 1))


@pytest.mark.slow
def test_two_thousand_calls_need_no_more_memory() -> None:
    assert all(reliability.memory(reliability.with_hf_cam, 1))
