"""Metrics against closed forms and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from hf_cam.errors import OptionError
from hf_cam.metrics import (
    average_precision,
    correlation,
    energy_inside,
    intersection_over_union,
    peak_inside,
    pixel_accuracy,
)


def mask() -> torch.Tensor:
    inside = torch.zeros(6, 9, dtype=torch.bool)
    inside[1:3, 2:7] = True
    return inside


def test_the_perfect_map_scores_one_and_its_inverse_nothing() -> None:
    inside = mask()
    perfect, inverse = inside.float(), 1 - inside.float()
    assert energy_inside(perfect, inside) == 1
    assert peak_inside(perfect, inside) == 1
    assert average_precision(perfect, inside) == 1
    assert energy_inside(inverse, inside) == 0
    assert peak_inside(inverse, inside) == 0
    assert average_precision(inverse, inside) == pytest.approx(10 / 54)


def test_an_even_map_scores_the_masks_share() -> None:
    even = torch.full((6, 9), 0.3)
    assert energy_inside(even, mask()) == pytest.approx(10 / 54)
    assert average_precision(even, mask()) == pytest.approx(10 / 54)


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 0.7])
@pytest.mark.parametrize("size", [(64, 96), (37, 53), (224, 320)])
def test_an_even_map_is_nowhere_above_its_mean_and_goes_with_no_other(value, size) -> None:
    even, other, marked = torch.full(size, value), torch.full(size, 0.9), torch.zeros(size, dtype=torch.bool)
    marked[:10] = True
    assert intersection_over_union(even, marked) == 0
    assert pixel_accuracy(even, marked) == pytest.approx(1 - 10 / size[0])
    for one in (other, even, marked.float()):
        assert correlation(even, one) == 0


def test_no_evidence_scores_nothing() -> None:
    zeros = torch.zeros(6, 9)
    assert energy_inside(zeros, mask()) == 0
    everything = torch.ones(6, 9, dtype=torch.bool)
    assert peak_inside(zeros, everything) == 0


def test_average_precision_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(4, 6, 9, generator=generator).mul(5).round()  # many equal values
    masks = torch.rand(4, 6, 9, generator=generator) > 0.7
    expected = [
        average_precision_score(m.flatten().numpy(), s.flatten().numpy()) for s, m in zip(maps, masks, strict=True)
    ]
    np.testing.assert_allclose(average_precision(maps, masks).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("metric", [energy_inside, peak_inside, average_precision])
def test_wrong_shapes_kinds_and_values_are_refused(metric) -> None:
    with pytest.raises(OptionError, match="the same shape"):
        metric(torch.zeros(6, 9), torch.zeros(9, 6, dtype=torch.bool))
    with pytest.raises(OptionError, match="boolean"):
        metric(torch.zeros(6, 9), torch.zeros(6, 9))
    with pytest.raises(OptionError, match="non-negative"):
        metric(torch.full((6, 9), -1.0), mask())
    with pytest.raises(OptionError, match="finite"):
        metric(torch.full((6, 9), torch.nan), mask())
