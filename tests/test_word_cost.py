"""The subjects of `benchmarks/word_cost.py`; its figures are the benchmark's own business."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import word_cost


@pytest.mark.parametrize("name", [*word_cost.SUBJECTS])
def test_every_subject_prepares_its_own_pictures(name: str) -> None:
    subject = word_cost.SUBJECTS[name]()
    shown = subject.picture(subject.sizes[-1], 1)
    assert shown.size == subject.sizes[-1][::-1]
    inputs = subject.prepare([shown])
    assert inputs["input_ids"].shape[0] == 1


def test_the_page_has_the_columns_that_are_measured() -> None:
    table = word_cost.table([("demo:llava", dict.fromkeys(word_cost.COLUMNS, 1.0))])
    head = table.splitlines()[0]
    assert head in (Path(__file__).parents[1] / "docs" / "words.md").read_text(encoding="utf-8")
