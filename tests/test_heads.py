"""What heads of every kind have in common."""

from __future__ import annotations

import numpy as np
import pytest
import transformers as hf

import hf_cam
from hf_cam.heads import head_kind
from hf_cam.zoo import SCENE
from nets import clip, depth, detr, embedder, maskformer, owl, segformer, siglip


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (detr, "object-detection"),
        (clip, "zero-shot-image-classification"),
        (siglip, "zero-shot-image-classification"),
        (segformer, "semantic-segmentation"),
        (maskformer, "universal-segmentation"),
        (owl, "zero-shot-object-detection"),
        (depth, "depth-estimation"),
        (embedder, "image-feature-extraction"),
    ],
)
def test_the_head_follows_from_the_models_class_or_from_what_that_inherits_from(make, kind):
    model = make().model
    assert head_kind(model).task == kind
    heir = type("Heir", (type(model),), {})
    assert head_kind(heir(model.config)).task == kind


@pytest.mark.parametrize(("make", "wanted"), [(clip, {"text": "a cat"}), (detr, {"target": 1}), (segformer, {})])
def test_a_comparison_leaves_out_what_is_not_defined_for_a_head(photo, make, wanted):
    loaded = make()
    processor = hf.CLIPProcessor(loaded.processor, loaded.tokenizer) if make is clip else loaded.processor
    found = hf_cam.compare(photo, loaded.model, processor=processor, **wanted)
    assert {one.label for one in found.explanations} == {found.explanations[0].label}
    assert found.explanations[0].label == wanted.get("text", found.explanations[0].label)
    methods = {one.method for one in found.explanations}
    assert {"gradcam", "hirescam", "eigencam"} <= methods
    assert "finercam" not in methods


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("demo:detr", {}),
        ("demo:segformer", {}),
        ("demo:clip", {"text": ["a yellow bag", "a sneaker", "trouser"]}),
    ],
)
def test_pictures_of_mixed_sizes_are_explained_together_as_alone(model, wanted):
    scene = hf_cam.load_image(SCENE)
    pictures = [scene, scene.resize((256, 192)), scene.crop((0, 0, 300, 384))]
    together = hf_cam.explain(pictures, model, batch_size=3, **wanted)
    for picture, found in zip(pictures, together, strict=True):
        alone = hf_cam.explain(picture, model, **wanted)
        assert [one.label for one in found] == [one.label for one in alone]
        for one, same in zip(found, alone, strict=True):
            assert one.heatmap.shape == (picture.height, picture.width)
            np.testing.assert_allclose(one.heatmap, same.heatmap, atol=1e-3)
