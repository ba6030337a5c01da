"""Every explanation names what its score is."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from hf_cam.heads import Subject
from nets import blip, classifier, clip, depth, detr, embedder, explained, maskformer, segformer, siglip, vilt


@pytest.mark.parametrize(
    ("loaded", "wanted", "kind"),
    [
        pytest.param(classifier, {}, "probability", id="a class"),
        pytest.param(lambda: classifier({0: "ripe"}), {}, "probability", id="a single logit"),
        pytest.param(
            lambda: classifier({0: "ripe"}, problem_type="regression"), {}, "predicted value", id="a regression"
        ),
        pytest.param(
            lambda: classifier(problem_type="regression"), {}, "predicted value", id="a regression of several values"
        ),
        pytest.param(
            classifier, {"target": lambda output: output.logits[0]}, "value of the target", id="a callable of one's own"
        ),
        pytest.param(clip, {"text": ["a cat", "a dog"]}, "share among the prompts", id="prompts of CLIP"),
        pytest.param(clip, {"text": "a cat"}, "cosine similarity", id="one prompt of CLIP"),
        pytest.param(siglip, {"text": ["a cat", "a dog"]}, "probability", id="prompts of SigLIP"),
        pytest.param(detr, {}, "probability", id="an object"),
        pytest.param(segformer, {}, "mean probability over the region", id="a region"),
        pytest.param(segformer, {"target": (30, 40)}, "probability", id="a pixel"),
        pytest.param(maskformer, {}, "probability", id="a segment"),
        pytest.param(depth, {}, "mean distance, negated", id="depth"),
        pytest.param(vilt, {"text": "what cat"}, "probability", id="an answer from a list"),
        pytest.param(
            blip,
            {"text": "what cat", "target": "red cup"},
            "geometric mean of the tokens' probabilities",
            id="a written answer",
        ),
    ],
)
def test_the_result_names_what_its_score_is(loaded: Any, wanted: dict[str, Any], kind: str, photo: Any) -> None:
    assert {one.score_kind for one in explained(loaded(), photo, **wanted)} == {kind}


def test_the_score_of_another_picture_is_a_cosine_similarity(photo: Any) -> None:
    [found] = explained(embedder(), photo, target=photo.transpose(0))
    assert found.score_kind == "cosine similarity"
    assert -1 <= found.score <= 1


def test_a_head_that_names_no_kind_has_a_confidence_or_the_value_of_its_target() -> None:
    assert Subject(lambda output: output, "thing", 0.5).kind_of_score == "confidence"
    assert Subject(lambda output: output, "thing").kind_of_score == "value of the target"


def test_the_kind_of_score_survives_pickling(photo: Any) -> None:
    [found] = explained(clip(), photo, text="a cat")
    again = pickle.loads(pickle.dumps(found))
    assert again.score_kind == "cosine similarity"
    np.testing.assert_array_equal(again.heatmap, found.heatmap)
