"""What a classifier's head has to say: a class, one logit, a value, or several labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_cam.targets import ClassLogit
from nets import classifier, explained


@pytest.mark.parametrize("bias", [4.0, -4.0])
def test_a_single_logit_is_explained_with_its_sign(photo, bias):
    loaded = classifier({0: "ripe"})
    loaded.model.classifier.bias.data.fill_(bias)
    [found] = explained(loaded, photo)
    assert found.label == ("ripe" if bias > 0 else "not ripe")
    assert found.score > 0.5
    [same] = explained(loaded, photo, target=lambda output: output.logits[0] * np.sign(bias))
    np.testing.assert_allclose(found.heatmap, same.heatmap, atol=1e-6)
    [positive] = explained(loaded, photo, target=0)
    assert positive.label == "ripe"


def test_a_regressor_is_explained_by_its_value(photo):
    loaded = classifier({0: "ripe"}, problem_type="regression")
    loaded.model.classifier.bias.data.fill_(-4.0)
    [found] = explained(loaded, photo)
    with torch.no_grad():
        value = loaded.model(**loaded.inputs([photo])).logits
    assert found.score == pytest.approx(float(value), abs=1e-5)
    [same] = explained(loaded, photo, target=ClassLogit(0))
    np.testing.assert_array_equal(found.heatmap, same.heatmap)


def test_a_multi_label_classifier_scores_each_class_by_its_own_sigmoid(photo):
    loaded = classifier(problem_type="multi_label_classification")
    loaded.model.classifier.bias.data = torch.tensor([2.0, 3.0, 2.5])
    found = explained(loaded, photo, top_k=3)
    with torch.no_grad():
        logits = loaded.model(**loaded.inputs([photo])).logits[0]
    assert [one.score for one in found] == pytest.approx(sorted(logits.sigmoid().tolist(), reverse=True), abs=1e-5)
    assert sum(one.score for one in found) > 1
    [same] = explained(loaded, photo, target=lambda output: output.logits[int(logits.argmax())])
    np.testing.assert_allclose(found[0].heatmap, same.heatmap, atol=1e-6)
