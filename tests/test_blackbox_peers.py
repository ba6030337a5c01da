"""Values of captum and torchxai-explain for the same definitions.

Neither is installed with hf-cam; in an environment with the extra "peers", `pytest -m peers` runs these tests.
"""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from nets import tiny
from pictures import SIZE

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("index", range(5), ids=["occlusion", "input x gradient", "path", "SmoothGrad", "RISE"])
def test_the_values_are_those_of_the_other_library(index: int) -> None:
    pytest.importorskip("captum")
    pytest.importorskip("torchxai")
    from benchmarks import blackbox

    torch.manual_seed(0)
    net = tiny(hf.ResNetForImageClassification, hidden_sizes=[8, 16, 32], depths=[1] * 3, num_labels=10)
    cases = list(blackbox.cases(net))
    assert len(cases) == 5
    one, other = cases[index].ours(), cases[index].theirs()
    assert one.shape == other.shape == (1, 224, 224) != SIZE
    assert other.any()
    torch.testing.assert_close(one, other, atol=1e-4 * other.abs().max().item(), rtol=1e-4)
