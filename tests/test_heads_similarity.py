"""What models that compare have to say: of prompts, of cut pictures, of another image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from benchmarks.tiny_models import cases, words_tokenizer
from hf_cam.cam import _mirrored
from hf_cam.errors import HFCamError, TargetError
from hf_cam.explainer import Explainer
from hf_cam.images.patches import CutPictures
from hf_cam.models.loading import LoadedModel
from hf_cam.targets import EmbeddingSimilarity, PromptSimilarity
from nets import clip, embedder, explained, siglip, siglip2
from pictures import resized


def test_every_prompt_gets_a_map_and_the_scores_are_the_models_own(photo):
    loaded = clip()
    prompts = ["a cat", "a red cup", "a dog"]
    found = explained(loaded, photo, text=prompts)
    assert [one.label for one in found] == prompts
    with torch.no_grad():
        output = loaded.model(**loaded.inputs([photo]), **loaded.tokens(prompts))
    expected = output.logits_per_image.softmax(-1)[0]
    np.testing.assert_allclose([one.score for one in found], expected.numpy(), atol=1e-5)
    assert not np.allclose(found[0].heatmap, found[1].heatmap)


def test_a_lone_prompt_scores_its_cosine_similarity(photo):
    loaded = clip()
    [found] = explained(loaded, photo, text="a cat")
    with torch.no_grad():
        output = loaded.model(**loaded.inputs([photo]), **loaded.tokens(["a cat"]))
    cosine = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
    assert found.score == pytest.approx(max(float(cosine), 0), abs=1e-6)


def test_siglip_scores_each_prompt_by_its_own_sigmoid(photo):
    loaded = siglip()
    found = explained(loaded, photo, text=["a cat", "a dog"])
    tokens = loaded.tokens(["a cat", "a dog"])
    assert tokens["input_ids"].shape == (2, 16)  # padded to full length, as the model was trained
    with torch.no_grad():
        output = loaded.model(**loaded.inputs([photo]), **tokens)
    np.testing.assert_allclose([one.score for one in found], output.logits_per_image.sigmoid()[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_prompts_are_not_mistaken_for_images_where_there_are_as_many(photo, count):
    loaded = clip()
    images = [photo, photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    prompts = ["a cat", "a dog", "a red cup"][:count]
    for method in ("gradcam", "ablationcam", "scorecam"):
        together = list(Explainer(loaded, method)(images, text=prompts))
        for image, found in zip(images, together, strict=True):
            alone = [explained(loaded, image, method=method, text=prompts, target=prompt)[0] for prompt in prompts]
            for one, same in zip(found, alone, strict=True):
                np.testing.assert_allclose(one.heatmap, same.heatmap, atol=2e-3)


def test_a_bare_word_becomes_a_caption(photo):
    loaded = clip()
    [word] = explained(loaded, photo, text="cat")
    [caption] = explained(loaded, photo, text="a photo of a cat")
    assert word.label == "cat"
    np.testing.assert_array_equal(word.heatmap, caption.heatmap)


def test_a_contrast_explains_one_prompt_against_the_others(photo):
    loaded = clip()
    [plain] = explained(loaded, photo, text=["a cat", "a dog"], target=0)
    [against] = explained(loaded, photo, text=["a cat", "a dog"], target=PromptSimilarity(0, contrast=True))
    [other] = explained(
        loaded, photo, text=["a cat", "a dog"], target=lambda o: o.logits_per_image @ torch.tensor([1.0, -1])
    )
    np.testing.assert_allclose(against.heatmap, other.heatmap, atol=1e-5)
    assert not np.allclose(plain.heatmap, against.heatmap)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "pass text="),
        ({"text": []}, "no prompt"),
        ({"text": ["a cat", " "]}, "a text that is not empty"),
        ({"text": "a cat " * 40}, "reads at most 16"),
        ({"text": "a cat", "target": "a dog"}, "one of the prompts"),
        ({"text": "a cat", "target": 3}, "no prompt 3"),
        ({"text": "a cat", "target": PromptSimilarity(0, contrast=True)}, "two or more prompts"),
    ],
)
def test_what_is_no_prompt_is_refused(photo, wanted, message):
    with pytest.raises(HFCamError, match=message):
        explained(clip(), photo, **wanted)


def test_the_biases_of_a_text_tower_are_no_part_of_a_full_gradient(photo):
    [found] = explained(clip(), photo, method="fullgrad", text="a cat")
    assert found.heatmap.any()


# The text is read once -----------------------------------------------------------------------------------------------

COMPARING = [case for case in cases("zero-shot-image-classification") if case.model_type != "videoprism"]


def comparing(case):
    """A tiny model of this type, and the real processor where pictures come cut."""
    cut = hf.Siglip2ImageProcessor(patch_size=16, max_num_patches=40)
    processor = cut if case.model_type == "siglip2" else resized(case.size)
    return LoadedModel(case.build(), processor, {}, words_tokenizer())


def counted(model):
    """How often each table of words was read, by a list that grows."""
    words = next(m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.num_embeddings >= 90)
    runs = []
    words.register_forward_hook(lambda *_: runs.append(1))
    return runs


@pytest.mark.parametrize("case", COMPARING, ids=str)
def test_the_text_is_read_once_however_many_images_there_are(photo, case):
    loaded, prompts = comparing(case), ["a cat", "a red cup"]
    images = [photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), photo.rotate(180)]
    alone = [explained(loaded, image, method="layercam", text=prompts) for image in images]
    runs = counted(loaded.model)
    for found, same in zip(Explainer(loaded, "layercam")(images, text=prompts, batch_size=1), alone, strict=True):
        assert not any("forward" in module.__dict__ for module in loaded.model.modules())
        for one, other in zip(found, same, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)
            np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-5)
    assert len(runs) == 1
    assert explained(loaded, photo, method="layercam", text=["a dog"])[0].label == "a dog"
    assert len(runs) == 2


@pytest.mark.parametrize("method", ["scorecam", "ablationcam", "libracam", "fullgrad", "legrad", "chefer"])
def test_methods_that_run_the_model_again_find_the_same_without_the_text_tower(photo, method):
    loaded, prompts = clip(), ["a cat", "a red cup"]
    images = [photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    alone = [explained(loaded, image, method=method, text=prompts) for image in images]
    tower, runs = loaded.model.text_model.encoder.layers[0], []
    tower.register_forward_hook(lambda *_: runs.append(1))
    together = list(Explainer(loaded, method)(images, text=prompts, batch_size=1))
    assert len(runs) == 1
    for found, same in zip(together, alone, strict=True):
        for one, other in zip(found, same, strict=True):
            np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-4)


# Pictures cut into patches -------------------------------------------------------------------------------------------


def shows_brightness(loaded):
    """Makes a SigLIP 2 whose last tokens are the brightness of their patches and nothing else."""
    vision = loaded.model.vision_model
    for parameter in (*vision.encoder.parameters(), *vision.embeddings.parameters()):
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(vision.embeddings.patch_embedding.weight, 1 / 768)
    torch.nn.init.ones_(vision.embeddings.patch_embedding.bias)
    return loaded


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_cut_pictures_of_any_shape_are_explained_in_their_own_pixels(corner):
    loaded = shows_brightness(siglip2())
    pictures, inside = [], []
    for height, width in ((70, 130), (150, 60), (130, 70)):
        part = np.zeros((height, width), bool)
        top, left = corner[0] * height // 2, corner[1] * width // 2
        part[top : top + height // 2, left : left + width // 2] = True
        pictures.append(Image.fromarray((part * 250).astype(np.uint8)).convert("RGB"))
        inside.append(part)
    together = list(Explainer(loaded, "eigencam")(pictures, text="a cat"))
    for picture, part, [found] in zip(pictures, inside, together, strict=True):
        rows, columns = loaded.inputs([picture])["spatial_shapes"][0].tolist()
        assert found.raw.shape == (rows, columns)
        assert rows * columns < 47  # so that there is padding to leave out
        assert found.heatmap.shape == part.shape
        assert found.heatmap[part].sum() / found.heatmap.sum() > 0.85
        assert found.heatmap[part].mean() > 0.7


def test_mirrored_views_of_a_cut_picture_are_turned_back(photo):
    loaded = shows_brightness(siglip2())
    [plain] = explained(loaded, photo, method="eigencam", text="a cat")
    [smooth] = explained(loaded, photo, method="eigencam", text="a cat", aug_smooth=True)
    np.testing.assert_allclose(smooth.heatmap, plain.heatmap, atol=0.05)
    inputs = loaded.inputs([photo])
    turned = CutPictures.of({**inputs, "pixel_values": _mirrored(inputs)}).pictures()
    torch.testing.assert_close(turned, CutPictures.of(inputs).pictures().flip(-1))


def test_cut_pictures_score_as_the_model_itself_scores_them(photo):
    loaded = siglip2()
    prompts = ["a cat", "a red cup"]
    found = explained(loaded, photo, text=prompts)
    with torch.no_grad():
        output = loaded.model(**loaded.inputs([photo]), **loaded.tokens(prompts))
    np.testing.assert_allclose([one.score for one in found], output.logits_per_image.sigmoid()[0].numpy(), atol=1e-5)
    with pytest.raises(HFCamError, match="cut into patches"):
        explained(loaded, photo, method="scorecam", text="a cat")


# Another image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [embedder, clip])
def test_an_image_is_compared_with_another(photo, make, tmp_path):
    loaded = make()
    other = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    other.save(tmp_path / "other.png")
    [found] = explained(loaded, photo, target=other)
    [named] = explained(loaded, photo, target=str(tmp_path / "other.png"))
    [itself] = explained(loaded, photo, target=photo, method="eigencam")
    assert found.score < itself.score == pytest.approx(1, abs=1e-5)
    assert named.label == "like other.png"
    np.testing.assert_array_equal(found.heatmap, named.heatmap)
    assert found.heatmap.any()


def test_an_embedding_model_asks_for_something_to_compare_with(photo):
    with pytest.raises(TargetError, match="another image"):
        explained(embedder(), photo)


def test_the_embedding_target_is_the_cosine():
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    assert float(EmbeddingSimilarity(other)({"pooler_output": one})) == pytest.approx(24 / 25)
