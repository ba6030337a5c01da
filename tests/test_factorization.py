"""Concepts of a batch: the factors multiply back, lie where they should, and are named by the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_cam import DeepFeatureFactorization
from hf_cam.errors import OptionError
from hf_cam.factorization import factorize
from nets import OF_EVERY_LAYOUT, make
from pictures import SIZE, pictures


def test_the_factors_multiply_back_to_what_they_were_made_of() -> None:
    generator = torch.Generator().manual_seed(0)
    concepts = torch.rand(3, 12, generator=generator)
    strengths = torch.rand(2, 3, 4, 6, generator=generator)
    cells = torch.einsum("bkhw,kc->bchw", strengths, concepts)
    found_concepts, found_strengths = factorize(cells, 3)
    rebuilt = torch.einsum("bkhw,kc->bchw", found_strengths, found_concepts)
    assert (rebuilt - cells).norm() < 0.02 * cells.norm()
    assert found_concepts.min() >= 0
    assert found_strengths.min() >= 0


class _Colours(nn.Module):
    """Three channels of cells are the picture's own red, green and blue; the classes read one each."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.AvgPool2d(8)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.features(pixel_values).mean((2, 3)) * 10


def test_concepts_lie_where_they_are_and_carry_their_class() -> None:
    x = torch.zeros(1, 3, *SIZE)
    x[:, 0, :32, :48], x[:, 1, 32:, :48], x[:, 2, :, 48:] = 1.0, 0.8, 0.6
    found = DeepFeatureFactorization(_Colours(), layers="features", reshape=None)(x, components=3, top_k=1)
    assert sorted(classes[0][0] for classes in found.classes) == [0, 1, 2]
    for concept, heatmap in zip(found.concepts, found.heatmaps[0], strict=True):
        channel = int(concept.argmax())
        inside = x[0, channel] > 0
        assert heatmap[inside].mean() > 0.9
        assert heatmap[~inside].mean() < 0.1
    assert sorted(int(concept.argmax()) for concept in found.concepts) == [0, 1, 2]


@pytest.mark.parametrize("name", OF_EVERY_LAYOUT)
def test_every_layout_is_factorised_and_named(name: str) -> None:
    x = pictures(2)
    found = DeepFeatureFactorization(make(name))(x, components=3, top_k=2)
    assert found.heatmaps.shape == (2, 3, *SIZE)
    assert found.heatmaps.min() >= 0
    assert found.heatmaps.max() <= 1.0001
    assert [len(classes) for classes in found.classes] == [2, 2, 2]
    again = DeepFeatureFactorization(make(name))(x, components=3, top_k=2)
    assert torch.equal(found.heatmaps, again.heatmaps)


def test_the_name_is_the_models_own_answer_to_the_concept() -> None:
    net, x = make("resnet"), pictures(1)
    found = DeepFeatureFactorization(net)(x, components=2, top_k=1)
    strongest = found.concepts * found.strengths.amax((0, 2, 3))[:, None]
    with torch.no_grad():
        expected = net.classifier(strongest[:, :, None, None]).softmax(1)
    for classes, scores in zip(found.classes, expected, strict=True):
        assert classes[0][0] == int(scores.argmax())
        assert classes[0][1] == pytest.approx(float(scores.max()), abs=1e-4)


def test_the_picture_has_a_colour_and_a_name_for_each_concept() -> None:
    net = make("resnet")
    found = DeepFeatureFactorization(net)(pictures(1), components=3)
    grey = np.full((*SIZE, 3), 128, np.uint8)
    picture = found.picture(grey, labels={i: f"class {i}, also called {i}" for i in range(7)})
    assert picture.height >= SIZE[0]
    assert picture.width > SIZE[1] + 40
    assert len(np.unique(np.asarray(picture)[: SIZE[0], : SIZE[1]].reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize("components", [0, -1, 33, 2.0])
def test_impossible_numbers_of_concepts_are_refused(components: int) -> None:
    with pytest.raises(OptionError, match="components"):
        DeepFeatureFactorization(make("resnet"))(pictures(1), components=components)
