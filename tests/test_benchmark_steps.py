"""The benchmark of the steps of insertion and deletion, on curves that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.steps import Curves, Line, apart, compared, kept, save

ROWS = 8


def curves(*late: int) -> Curves:
    """Two methods on as many images: the first uncovers the object at once, the second after so many rows."""
    second = np.stack([(np.arange(ROWS + 1) >= rows).astype(float) for rows in late])
    found = {("insertion", "at once"): np.ones_like(second), ("insertion", "late"): second}
    return Curves(found, ("at once", "late"))


def test_the_scores_are_the_areas_at_that_many_steps() -> None:
    found = curves(2, 2)
    assert found.rows == ROWS
    assert found.scores("insertion", 8)["late"].tolist() == [1 - 1.5 / 8] * 2
    assert found.scores("insertion", 4)["late"].tolist() == [1 - 0.5 / 4] * 2


def test_steps_that_miss_a_difference_turn_the_order_of_no_maps_but_tell_them_apart_no_more() -> None:
    found = curves(2, 1, 2, 1)
    finest = compared(found, "insertion", 8)
    assert finest == Line(best=4, images=4, pairs_kept=1, pairs=1, off=0.0)
    assert finest.suffices
    coarse = compared(found, "insertion", 2)
    assert coarse.off == pytest.approx(abs(1 - 0.5 / 2 - np.mean([1 - 1.5 / 8, 1 - 0.5 / 8])))
    assert not coarse.suffices


def test_models_are_judged_by_their_images_and_pairs_together() -> None:
    one, other = Line(4, 5, 6, 8, 0.006), Line(15, 15, 10, 10, 0.001)
    assert not one.suffices  # 4 of 5 images
    assert Line.of_all([one, other]) == Line(19, 20, 16, 18, 0.006)
    assert Line.of_all([one, other]).suffices


def test_methods_are_apart_by_two_standard_errors() -> None:
    one = np.array([0.5, 0.6, 0.7])
    assert apart({"a": one + 0.1, "b": one}, ("a", "b")) == 1
    assert apart({"a": one, "b": one + 0.1}, ("a", "b")) == -1
    assert apart({"a": one, "b": one[::-1]}, ("a", "b")) == 0


def test_curves_that_were_saved_come_back(tmp_path: Path) -> None:
    own = curves(2, 1)
    save(tmp_path / "runs" / "a net.npz", own)
    back = kept(tmp_path / "runs" / "a net.npz")
    assert back.methods == own.methods
    assert {name: curve.tolist() for name, curve in back.found.items()} == {
        name: curve.tolist() for name, curve in own.found.items()
    }
