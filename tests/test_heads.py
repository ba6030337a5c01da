"""What each kind of head has to say: prompts, detections, segments, depths, answers, embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

import hf_cam
from benchmarks.tiny_models import cases
from hf_cam.cam import _mirrored
from hf_cam.capture.inputs import model_inputs_of
from hf_cam.errors import HFCamError, TargetError
from hf_cam.explainer import Explainer
from hf_cam.heads import head_kind, head_of
from hf_cam.images.patches import CutPictures
from hf_cam.interfaces.cli import main
from hf_cam.models.loading import LoadedModel
from hf_cam.request import Request
from hf_cam.targets import (
    BoxLogit,
    ClassLogit,
    EmbeddingSimilarity,
    PixelLogit,
    PromptSimilarity,
    QueryBox,
    QueryLogit,
    RegionLogit,
    SegmentLogit,
)
from hf_cam.zoo import SCENE

SIZE = (64, 96)
LABELS = {0: "cat", 1: "dog", 2: "red cup"}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", ",", "a", "photo", "of", "cat", "dog", "red", "cup", "detect", "what")
BLOCK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = BLOCK | {"vocab_size": len(WORDS), "max_position_embeddings": 16}


def words_tokenizer() -> hf.PreTrainedTokenizerFast:
    """One token a word."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def build(model_class, config, processor, labels=LABELS):
    """A model with random weights, ready to explain."""
    torch.manual_seed(0)
    if labels:
        config.id2label, config.label2id = labels, {label: index for index, label in labels.items()}
    model = model_class(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return LoadedModel(model, processor, dict(labels or {}), words_tokenizer())


def square(processor_class, **settings):
    """A processor that resizes to the model's size."""
    return processor_class(size={"height": SIZE[0], "width": SIZE[1]}, **settings)


def resnet(**settings):
    return hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], **settings)


def detr():
    config = hf.DetrConfig(
        backbone_config=resnet(out_features=["stage4"]),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=6,
    )
    processor = hf.DetrImageProcessor(size={"shortest_edge": 128, "longest_edge": 192})
    return build(hf.DetrForObjectDetection, config, processor)


def clip():
    config = hf.CLIPConfig(
        text_config=TEXT | {"eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0},
        vision_config=BLOCK | {"image_size": 64, "patch_size": 8},
        projection_dim=16,
    )
    processor = hf.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    return build(hf.CLIPModel, config, processor, labels=None)


def siglip():
    config = hf.SiglipConfig(text_config=TEXT, vision_config=BLOCK | {"image_size": 64, "patch_size": 8})
    return build(hf.SiglipModel, config, hf.SiglipImageProcessor(size={"height": 64, "width": 64}), labels=None)


def siglip2(patches: int = 47):
    """Pictures come cut into patches, as many as their shape allows, with padding behind them."""
    vision = BLOCK | {"patch_size": 16, "num_patches": 16}
    config = hf.Siglip2Config(text_config=TEXT | {"bos_token_id": 2, "eos_token_id": 3}, vision_config=vision)
    processor = hf.Siglip2ImageProcessor(patch_size=16, max_num_patches=patches)
    return build(hf.Siglip2Model, config, processor, labels=None)


def segformer():
    config = hf.SegformerConfig(
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=16,
    )
    return build(hf.SegformerForSemanticSegmentation, config, square(hf.SegformerImageProcessor))


def maskformer():
    config = hf.MaskFormerConfig(
        backbone_config=resnet(out_features=["stage1", "stage2", "stage3", "stage4"]),
        decoder_config=hf.DetrConfig(
            backbone_config=resnet(out_features=["stage4"]),
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_queries=5,
        ),
        fpn_feature_size=32,
        mask_feature_size=32,
    )
    processor = square(hf.MaskFormerImageProcessor, size_divisor=32)
    return build(hf.MaskFormerForInstanceSegmentation, config, processor)


def owl():
    config = hf.OwlViTConfig(
        text_config=TEXT, vision_config=BLOCK | {"image_size": 64, "patch_size": 8}, projection_dim=32
    )
    processor = hf.OwlViTImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    return build(hf.OwlViTForObjectDetection, config, processor, labels=None)


def depth():
    config = hf.GLPNConfig(
        hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=16
    )
    return build(hf.GLPNForDepthEstimation, config, hf.GLPNImageProcessor(size_divisor=32), labels=None)


def embedder():
    config = hf.Dinov2Config(**BLOCK | {"image_size": 64, "patch_size": 8})
    return build(hf.Dinov2Model, config, square(hf.BitImageProcessor, do_center_crop=False), labels=None)


@pytest.fixture(scope="module")
def photo():
    """A picture twice the model's size along either axis."""
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((192, 128), Image.Resampling.BICUBIC)


def explained(loaded, image, method="auto", **wanted):
    """What the front door does, for a model that is already loaded."""
    return next(iter(Explainer(loaded, method)([image], **wanted)))


# Which head ----------------------------------------------------------------------------------------------------------


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
def test_the_head_is_told_by_the_models_class_and_by_what_it_inherits_from(make, kind):
    model = make().model
    assert head_kind(model).task == kind
    heir = type("Heir", (type(model),), {})
    assert head_kind(heir(model.config)).task == kind


# Detection -----------------------------------------------------------------------------------------------------------


def test_boxes_and_scores_of_detections_are_those_of_the_models_own_processor(photo):
    loaded = detr()
    found = explained(loaded, photo, top_k=6)
    with torch.no_grad():
        output = loaded.model(**loaded.inputs([photo]))
    expected = loaded.processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(128, 192)])[0]
    for one in found:
        best = (expected["scores"] - one.score).abs().argmin()
        assert one.score == pytest.approx(float(expected["scores"][best]), abs=1e-5)
        assert one.label == LABELS[int(expected["labels"][best])]
        clipped = expected["boxes"][best].clamp(min=torch.zeros(4), max=torch.tensor([192.0, 128, 192, 128]))
        np.testing.assert_allclose(one.box, clipped.numpy(), atol=0.05)
        assert one.heatmap.shape == (128, 192)


def sure_detr():
    """The tiny DETR, made sure of its random findings."""
    loaded = detr()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if "query_position" in name or "decoder" in name or "bbox" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    loaded.model.class_labels_classifier.weight.data *= 20
    return loaded


def test_every_kept_detection_gets_a_map_of_its_own(photo):
    found = explained(sure_detr(), photo)
    assert len(found) >= 2
    assert all(one.score >= 0.5 and one.box is not None and not one.flags for one in found)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert not np.allclose(found[0].heatmap, found[1].heatmap)
    assert {one.method for one in found} == {"hirescam"}


def test_a_detector_that_is_sure_of_nothing_shows_its_best_and_says_so(photo):
    loaded = detr()
    loaded.model.class_labels_classifier.weight.data *= 0.01
    [best] = explained(loaded, photo)
    assert best.flags[0] == "below the threshold"
    assert best.score < 0.5


def test_a_detection_is_named_by_label_query_pixel_or_box(photo):
    loaded = sure_detr()
    every = explained(loaded, photo)
    label = every[0].label
    assert [one.box for one in explained(loaded, photo, target=label)] == [
        one.box for one in every if one.label == label
    ]
    assert explained(loaded, photo, target=every[0].box)[0].box == every[0].box
    x0, y0, x1, y1 = every[0].box
    [there] = explained(loaded, photo, target=f"{(x0 + x1) / 2},{(y0 + y1) / 2}")
    assert there.box[0] <= (x0 + x1) / 2 <= there.box[2]
    [third] = explained(loaded, photo, target=3)
    [same] = explained(loaded, photo, target=QueryLogit(3, list(LABELS.values()).index(third.label)))
    np.testing.assert_array_equal(third.heatmap, same.heatmap)
    [side] = explained(loaded, photo, target=QueryBox(3, "left"))
    assert side.box == third.box
    assert not np.allclose(side.heatmap, third.heatmap)


def two_sneakers():
    """The scene of this package with its sneaker a second time, 166 pixels further left and 249 further down."""
    scene = hf_cam.load_image(SCENE)
    scene.paste(scene.crop((253, 37, 446, 130)), (13, 286))
    return scene


def test_the_maps_of_two_sneakers_tell_them_apart():
    found = [one for one in hf_cam.explain(two_sneakers(), "demo:detr") if one.label == "sneaker"]
    assert len(found) == 2
    for one, other in (found, found[::-1]):
        own, elsewhere = (energy(one.heatmap, box) for box in (one.box, other.box))
        assert own > 0.5
        assert own >= 2 * elsewhere


def energy(heatmap, box):
    """The share of a map's sum that lies in a box."""
    x0, y0, x1, y1 = map(round, box)
    return heatmap[y0:y1, x0:x1].sum() / heatmap.sum()


def test_a_sides_target_asks_why_the_box_ends_there():
    scene = two_sneakers()
    sneaker = next(one for one in hf_cam.explain(scene, "demo:detr") if one.label == "sneaker")
    [left, right] = [
        hf_cam.explain(scene, "demo:detr", target=QueryBox(sneaker.origin.target.query, side))[0]
        for side in ("left", "right")
    ]
    assert left.box == right.box == sneaker.box
    columns = np.arange(scene.width)
    middles = [(one.heatmap.sum(0) * columns).sum() / one.heatmap.sum() for one in (left, right)]
    assert middles[0] != pytest.approx(middles[1], abs=5)


@pytest.mark.parametrize(
    ("target", "message"),
    [("zebra", "no class is called"), (99, "no query 99"), ((500, 3), "no box at the pixel")],
)
def test_a_detection_that_is_not_there_is_refused(photo, target, message):
    with pytest.raises(TargetError, match=message):
        explained(detr(), photo, target=target)


def test_pictures_of_different_sizes_are_not_padded_to_each_other(photo):
    loaded = sure_detr()
    tall = photo.resize((100, 150))
    together = list(Explainer(loaded)([photo, tall], batch_size=2))
    for image, found in zip((photo, tall), together, strict=True):
        alone = explained(loaded, image)
        assert [one.box for one in found] == [one.box for one in alone]
        assert found[0].heatmap.shape == (image.height, image.width)


def test_a_batch_of_detections_is_the_same_one_by_one(photo):
    loaded = sure_detr()
    other = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    together = list(Explainer(loaded)([photo, other], batch_size=2))
    for image, found in zip((photo, other), together, strict=True):
        alone = explained(loaded, image)
        assert len(found) == len(alone)
        for one, same in zip(found, alone, strict=True):
            np.testing.assert_allclose(one.heatmap, same.heatmap, atol=2e-4)


# Prompts -------------------------------------------------------------------------------------------------------------


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


COMPARING = [case for case in cases("zero-shot-image-classification") if case.model_type != "videoprism"]


def comparing(case):
    """A tiny model of this type, and the real processor where pictures come cut."""
    height, width = case.size
    cut = hf.Siglip2ImageProcessor(patch_size=16, max_num_patches=40)

    def to_tensor(image):
        return torch.from_numpy(np.array(image.resize((width, height)))).permute(2, 0, 1) / 255

    return LoadedModel(case.build(), cut if case.model_type == "siglip2" else to_tensor, {}, words_tokenizer())


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


def test_zero_shot_detections_are_those_of_the_models_own_processor(photo):
    loaded = owl()
    prompts = ["a cat", "a red cup"]
    found = explained(loaded, photo, text=prompts, top_k=3)
    with torch.no_grad():
        output = loaded.model(**loaded.inputs([photo]), **loaded.tokens(prompts))
    expected = loaded.processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(128, 192)])[0]
    best = int(expected["scores"].argmax())
    assert found[0].score == pytest.approx(float(expected["scores"][best]), abs=1e-5)
    assert found[0].label == prompts[int(expected["labels"][best])]


# Segmentation --------------------------------------------------------------------------------------------------------


def test_every_predicted_class_gets_the_map_of_its_region(photo):
    loaded = segformer()
    found = explained(loaded, photo)
    with torch.no_grad():
        output = loaded.model(**loaded.inputs([photo]))
    expected = loaded.processor.post_process_semantic_segmentation(output, target_sizes=[(128, 192)])[0].numpy()
    assert {one.label for one in found} == {LABELS[int(index)] for index in np.unique(expected)}
    for one in found:
        index = list(LABELS.values()).index(one.label)
        assert (one.mask == (expected == index)).mean() > 0.99
    areas = [one.mask.sum() for one in found]
    assert areas == sorted(areas, reverse=True)


def test_a_region_sums_the_logits_where_the_class_is_predicted(photo):
    loaded = segformer()
    [found] = explained(loaded, photo, top_k=1)
    index = list(LABELS.values()).index(found.label)
    with torch.no_grad():
        logits = loaded.model(**loaded.inputs([photo])).logits[0]
    region = logits.argmax(0) == index
    [same] = explained(loaded, photo, target=lambda output: output.logits[index][region].sum())
    np.testing.assert_allclose(found.heatmap, same.heatmap, atol=1e-5)
    assert RegionLogit(index, region)({"logits": logits}) == pytest.approx(float(logits[index][region].mean()))


def test_a_pixel_explains_what_is_predicted_there(photo):
    loaded = segformer()
    [found] = explained(loaded, photo, target=(150, 20))
    assert found.mask[20, 150]
    with torch.no_grad():
        logits = loaded.model(**loaded.inputs([photo])).logits[0]
    row, column = 20 * logits.shape[1] // 128, 150 * logits.shape[2] // 192
    index = int(logits[:, row, column].argmax())
    assert found.label == LABELS[index]
    [same] = explained(loaded, photo, target=PixelLogit(index, row, column))
    np.testing.assert_array_equal(found.heatmap, same.heatmap)


def test_a_mask_explains_the_class_that_fills_it(photo):
    loaded = segformer()
    mask = np.zeros((128, 192), bool)
    mask[32:64, 96:160] = True
    [found] = explained(loaded, photo, target=mask)
    with torch.no_grad():
        logits = loaded.model(**loaded.inputs([photo])).logits[0]
    h, w = logits.shape[1:]
    inside = logits[:, h * 32 // 128 : h * 64 // 128, w * 96 // 192 : w * 160 // 192]
    assert found.label == LABELS[int(inside.mean((1, 2)).argmax())]
    np.testing.assert_array_equal(found.mask, mask)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ((500, 3), "outside the image"),
        (np.ones((4, 4), bool), "the mask is 4 x 4"),
        (np.zeros((128, 192), bool), "marks no pixel"),
        ("zebra", "no class is called"),
    ],
)
def test_a_place_that_is_not_in_the_image_is_refused(photo, target, message):
    with pytest.raises(TargetError, match=message):
        explained(segformer(), photo, target=target)


def sure_maskformer():
    loaded = maskformer()
    loaded.model.class_predictor.weight.data *= 30
    return loaded


def test_segments_are_those_of_the_models_own_processor(photo):
    loaded = sure_maskformer()
    found = explained(loaded, photo)
    with torch.no_grad():
        output = loaded.model(**loaded.inputs([photo]))
    expected = loaded.processor.post_process_instance_segmentation(output, threshold=0.5, target_sizes=[(128, 192)])[0]
    known = {(LABELS[one["label_id"]], round(one["score"], 2)) for one in expected["segments_info"]}
    assert found
    for one in found:
        if "below the threshold" not in one.flags:
            assert one.label in {label for label, _ in known}
        assert one.mask.shape == (128, 192)


def test_a_segments_target_joins_its_class_and_its_mask(photo):
    loaded = sure_maskformer()
    [found] = explained(loaded, photo, top_k=1)
    with torch.no_grad():
        output = loaded.model(**loaded.inputs([photo]))
    logits, masks = output.class_queries_logits[0], output.masks_queries_logits[0]
    region = masks[2] > masks[2].median()
    value = SegmentLogit(2, 1, region)({"class_queries_logits": logits, "masks_queries_logits": masks})
    assert float(value) == pytest.approx(float(logits[2, 1] + masks[2][region].mean()), rel=1e-5)
    assert found.heatmap.any()


# Depth ---------------------------------------------------------------------------------------------------------------


def test_the_nearest_region_of_metres_is_where_they_are_fewest(photo):
    loaded = depth()
    [found] = explained(loaded, photo)
    with torch.no_grad():
        metres = loaded.model(**loaded.inputs([photo])).predicted_depth[0]
    near = metres <= metres.quantile(0.1)
    [same] = explained(loaded, photo, target=lambda output: -output.predicted_depth[near].mean())
    np.testing.assert_allclose(found.heatmap, same.heatmap, atol=1e-5)
    assert found.label == "nearest region"
    assert found.mask.mean() == pytest.approx(0.1, abs=0.05)


def test_the_depth_of_a_pixel_and_of_a_mask(photo):
    loaded = depth()
    mask = np.zeros((128, 192), bool)
    mask[:64, :64] = True
    [pixel] = explained(loaded, photo, target="30,40")
    [region] = explained(loaded, photo, target=mask)
    assert (pixel.label, region.label) == ("depth at (30, 40)", "depth of the mask")
    with torch.no_grad():
        h, w = loaded.model(**loaded.inputs([photo])).predicted_depth[0].shape
    row, column = 40 * h // 128, 30 * w // 192
    [same] = explained(loaded, photo, target=lambda output: -output.predicted_depth[row, column])
    np.testing.assert_allclose(pixel.heatmap, same.heatmap, atol=1e-5)
    [same] = explained(loaded, photo, target=lambda output: -output.predicted_depth[: h // 2, : w // 3].mean())
    np.testing.assert_allclose(region.heatmap, same.heatmap, atol=1e-5)
    with pytest.raises(TargetError, match="no classes"):
        explained(loaded, photo, target="cat")


# Classification ------------------------------------------------------------------------------------------------------


def tiny_vit(**settings):
    config = hf.ViTConfig(**BLOCK | {"image_size": SIZE, "patch_size": 16} | settings)
    labels = {0: "ripe"} if settings else LABELS
    return build(hf.ViTForImageClassification, config, square(hf.ViTImageProcessor), labels)


@pytest.mark.parametrize("bias", [4.0, -4.0])
def test_a_single_logit_is_explained_with_its_sign(photo, bias):
    loaded = tiny_vit(num_labels=1)
    loaded.model.classifier.bias.data.fill_(bias)
    [found] = explained(loaded, photo)
    assert found.label == ("ripe" if bias > 0 else "not ripe")
    assert found.score > 0.5
    [same] = explained(loaded, photo, target=lambda output: output.logits[0] * np.sign(bias))
    np.testing.assert_allclose(found.heatmap, same.heatmap, atol=1e-6)
    [positive] = explained(loaded, photo, target=0)
    assert positive.label == "ripe"


def test_a_regressor_is_explained_by_its_value(photo):
    loaded = tiny_vit(num_labels=1, problem_type="regression")
    loaded.model.classifier.bias.data.fill_(-4.0)
    [found] = explained(loaded, photo)
    with torch.no_grad():
        value = loaded.model(**loaded.inputs([photo])).logits
    assert found.score == pytest.approx(float(value), abs=1e-5)
    [same] = explained(loaded, photo, target=ClassLogit(0))
    np.testing.assert_array_equal(found.heatmap, same.heatmap)


def test_the_embedding_target_is_the_cosine():
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    assert float(EmbeddingSimilarity(other)({"pooler_output": one})) == pytest.approx(24 / 25)


def test_all_doors_take_prompts(photo):
    loaded = clip()
    found = hf_cam.compare(
        photo,
        loaded.model,
        text="a cat",
        methods=["gradcam", "layercam"],
        processor=hf.CLIPProcessor(loaded.processor, loaded.tokenizer),
    )
    assert [one.label for one in found.explanations] == ["a cat", "a cat"]


@pytest.mark.parametrize(("make", "wanted"), [(clip, {"text": "a cat"}), (detr, {"target": 1}), (segformer, {})])
def test_a_comparison_leaves_out_what_is_not_defined_for_a_head(photo, make, wanted):
    loaded = make()
    processor = hf.CLIPProcessor(loaded.processor, loaded.tokenizer) if make is clip else loaded.processor
    found = hf_cam.compare(photo, loaded.model, processor=processor, **wanted)
    methods = {one.method for one in found.explanations}
    assert {"gradcam", "hirescam", "eigencam"} <= methods
    assert "finercam" not in methods


def test_the_biases_of_a_text_tower_are_no_part_of_a_full_gradient(photo):
    [found] = explained(clip(), photo, method="fullgrad", text="a cat")
    assert found.heatmap.any()


# Questions -----------------------------------------------------------------------------------------------------------


def vilt():
    config = hf.ViltConfig(**TEXT | {"image_size": 64, "patch_size": 16, "max_position_embeddings": 16})
    return build(hf.ViltForQuestionAnswering, config, hf.ViltImageProcessor(size={"shortest_edge": 96}))


WRITES = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}


def blip():
    text = TEXT | WRITES | {"projection_dim": 16, "encoder_hidden_size": 32}
    config = hf.BlipConfig(text_config=text, vision_config=BLOCK | {"image_size": 64, "patch_size": 8})
    return build(hf.BlipForQuestionAnswering, config, square(hf.BlipImageProcessor), labels=None)


def blip2():
    language = {"vocab_size": 20, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32, "num_hidden_layers": 1}
    config = hf.Blip2Config(
        vision_config=BLOCK | {"image_size": 64, "patch_size": 8},
        qformer_config=BLOCK | {"vocab_size": 20, "encoder_hidden_size": 32},
        text_config=hf.OPTConfig(**language, num_attention_heads=2, **WRITES | {"max_position_embeddings": 64}),
        num_query_tokens=4,
        image_token_index=19,
    )
    processor = hf.BlipImageProcessor(size={"height": 64, "width": 64})
    return build(hf.Blip2ForConditionalGeneration, config, processor, labels=None)


def saved(loaded, folder):
    """The model, its image processor and its tokenizer, as a Hub repo holds them."""
    for part in (loaded.model, loaded.processor, loaded.tokenizer):
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("make", "answer"), [(vilt, "red cup"), (blip, "red cup"), (blip2, "red cup")])
def test_answers_go_through_all_doors(photo, tmp_path, make, answer, capsys):
    folder = saved(make(), tmp_path)
    questions = ["what cat", "what red dog"]
    own = hf_cam.explain(photo, folder, text=questions)
    given = hf_cam.explain(photo, folder, text=questions, target=answer)
    assert len(own) == len(given) == 2
    for one in (*own, *given):
        assert one.heatmap.shape == (128, 192)
        assert 0 < one.score <= 1
    assert [one.label for one in given] == [answer, answer]
    again = hf_cam.explain(photo, folder, text=questions[1], target=own[1].label)
    np.testing.assert_allclose(again[0].heatmap, own[1].heatmap, atol=1e-4)
    cam = hf_cam.pipeline("image-cam", model=str(folder))
    [piped] = cam(photo, text=questions[0], target=answer)
    assert piped["label"] == answer
    np.testing.assert_allclose(piped["heatmap"], given[0].heatmap, atol=1e-4)
    photo.save(tmp_path / "photo.png")
    command = ["explain", str(tmp_path / "photo.png"), "--model", str(folder), "--text", questions[0]]
    assert main([*command, "--target", answer, "--out", str(tmp_path / "out.png")]) == 0
    assert f"{answer} {given[0].score:.3f}" in capsys.readouterr().out
    with pytest.raises(TargetError, match="pass text="):
        hf_cam.explain(photo, folder)


def test_a_class_of_answers_is_scored_as_the_model_scores_it(photo):
    loaded = vilt()
    [found] = explained(loaded, photo, text="what cat")
    with torch.no_grad():
        logits = loaded.model(**loaded.inputs([photo]), **loaded.tokens(["what cat"])).logits[0]
    assert found.label == LABELS[int(logits.argmax())]
    [same] = explained(loaded, photo, text="what cat", target=lambda output: output.logits.max())
    np.testing.assert_allclose(found.heatmap, same.heatmap, atol=1e-5)


@pytest.mark.parametrize("make", [blip, blip2])
def test_a_written_answer_is_what_the_model_writes_and_its_likelihood(photo, make):
    loaded = make()
    [found] = explained(loaded, photo, text="what cat")
    assert found.label
    head = head_of(loaded)
    inputs = {**loaded.inputs([photo]), **head._question(Request(text=("what cat",)))}
    with torch.no_grad():
        written = loaded.model.generate(**inputs, interpolate_pos_encoding=True, max_new_tokens=10)[0]
    assert found.label == loaded.tokenizer.decode(written, skip_special_tokens=True).strip()
    [less] = explained(loaded, photo, text="what cat", target="a photo of a dog")
    assert less.score < found.score


# Detectors of what prompts name --------------------------------------------------------------------------------------


def naming(case):
    """A tiny model of this type with its real processor, sure enough of its random findings."""
    height, width = case.size
    tokenizer = words_tokenizer()
    whole = {"height": height, "width": width}
    longest = {"shortest_edge": 128, "longest_edge": 192}
    processors = {
        "owlvit": lambda: hf.OwlViTProcessor(hf.OwlViTImageProcessor(size=whole, do_center_crop=False), tokenizer),
        "owlv2": lambda: hf.Owlv2Processor(hf.Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer),
        "omdet-turbo": lambda: hf.OmDetTurboProcessor(hf.DetrImageProcessor(size=whole), tokenizer),
    }
    grounding = lambda: hf.GroundingDinoProcessor(hf.GroundingDinoImageProcessor(size=longest), tokenizer)  # noqa: E731
    return case.build(), processors.get(case.model_type, grounding)()


def found_by_the_processor(case, model, processor, image, prompts):
    """Boxes `[N, 4]` and scores of the model's own processor; the threshold keeps everything."""
    head = head_of(LoadedModel(model, processor, {}))
    inputs = {
        **head.loaded.inputs([image]),
        **{name: value.value for name, value in head.inputs(Request(text=tuple(prompts))).items()},
    }
    with torch.no_grad():
        output = model(**model_inputs_of(model, inputs.pop("pixel_values"), inputs))
    keep = {"threshold": 0.0, "target_sizes": [(image.height, image.width)]}
    if case.model_type.endswith("dino"):
        keep |= {"input_ids": inputs["input_ids"], "text_threshold": 0.0}
    if case.model_type == "omdet-turbo":
        keep |= {"text_labels": [prompts], "nms_threshold": 1.0}
    [found] = processor.post_process_grounded_object_detection(output, **keep)
    return found["boxes"], found["scores"]


@pytest.mark.parametrize("case", list(cases("zero-shot-object-detection")), ids=str)
@pytest.mark.parametrize("size", [(192, 128), (110, 150)])
def test_what_prompts_name_is_found_where_the_models_own_processor_finds_it(case, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8))
    model, processor = naming(case)
    prompts = ["a cat", "a red cup"]
    found = hf_cam.explain(image, model, processor=processor, text=prompts, top_k=4)
    boxes, scores = found_by_the_processor(case, model, processor, image, prompts)
    whole = torch.tensor([*size, *size])
    for one in found:
        assert one.label in prompts
        assert one.heatmap.shape == (image.height, image.width)
        distance = (boxes.clamp(torch.zeros(4), whole) - torch.tensor(one.box)).abs().amax(1)
        same = distance < 0.5
        assert same.any(), f"{one.box} is none of {boxes.tolist()}"
        # Grounding DINO's processor counts the full stops and special tokens too, which belong to no prompt.
        slack = 0.05 if case.model_type.endswith("dino") else 1e-4
        assert -1e-4 < float((scores[same] - one.score).max()) < slack
    [cup] = hf_cam.explain(image, model, processor=processor, text=prompts, target="a red cup", top_k=1)
    assert cup.label == "a red cup"
    with pytest.raises(TargetError, match="pass text="):
        hf_cam.explain(image, model, processor=processor)


# Segmenters of every kind --------------------------------------------------------------------------------------------


def segmenting(case):
    """A tiny model of this type with the real processor, where it has one, sure of its random findings."""
    height, width = case.size
    both, longest = {"height": height, "width": width}, {"shortest_edge": 128, "longest_edge": 192}
    square_eomt = {"shortest_edge": height, "longest_edge": height}
    processors = {
        "maskformer": lambda: hf.MaskFormerImageProcessor(size=both, size_divisor=32),
        "mask2former": lambda: hf.Mask2FormerImageProcessor(size=both, size_divisor=32),
        "oneformer": lambda: hf.OneFormerProcessor(
            hf.OneFormerImageProcessor(size=both, num_text=2), words_tokenizer(), task_seq_length=77
        ),
        "eomt": lambda: hf.EomtImageProcessor(size=square_eomt, do_pad=True),
        "eomt_dinov3": lambda: hf.EomtImageProcessor(size=square_eomt, do_pad=True),
        "detr": lambda: hf.DetrImageProcessor(size=longest),
    }

    def to_tensor(image):
        return torch.from_numpy(np.array(image.resize((width, height)))).permute(2, 0, 1) / 255

    return case.build(), processors.get(case.model_type, lambda: to_tensor)()


TASKS = ("semantic-segmentation", "instance-segmentation", "universal-segmentation")
SEGMENTERS = [case for case in cases(*TASKS) if case.model_type != "videomt"]


@pytest.mark.parametrize("case", SEGMENTERS, ids=str)
def test_every_segmenter_explains_a_class_a_place_and_a_mask(photo, case):
    model, processor = segmenting(case)
    settings = {"processor": processor, "method": "gradcam-elementwise"}
    first, *_ = hf_cam.explain(photo, model, **settings)
    mask = np.zeros((128, 192), bool)
    mask[40:90, 50:120] = True
    rows, columns = first.mask.nonzero()
    place = int(columns[len(columns) // 2]), int(rows[len(rows) // 2])
    for target in (place, mask):
        [found] = hf_cam.explain(photo, model, target=target, **settings)
        assert found.heatmap.shape == found.mask.shape == (128, 192)
        assert found.heatmap.max() == pytest.approx(1)
        assert found.label in model.config.id2label.values()
    if case.task == "semantic-segmentation":
        np.testing.assert_array_equal(found.mask, mask)
        [named] = hf_cam.explain(photo, model, target=first.label, **settings)
        np.testing.assert_allclose(named.heatmap, first.heatmap, atol=1e-5)


def test_one_network_for_three_tasks_is_told_which(photo):
    case = next(case for case in SEGMENTERS if case.model_type == "oneformer")
    model, processor = segmenting(case)
    given = processor([photo], ["semantic"], return_tensors="pt")["task_inputs"]
    head = head_of(LoadedModel(model, processor, {}))
    np.testing.assert_array_equal(head.inputs(Request(text=("semantic",)))["task_inputs"].value, given)
    panoptic = hf_cam.explain(photo, model, processor=processor, method="layercam")
    same = hf_cam.explain(photo, model, processor=processor, method="layercam", text="panoptic")
    np.testing.assert_array_equal(panoptic[0].heatmap, same[0].heatmap)
    with pytest.raises(TargetError, match="panoptic, instance, semantic"):
        hf_cam.explain(photo, model, processor=processor, text="cats")


def test_segments_of_videos_are_left_to_cam():
    case = next(case for case in cases("universal-segmentation") if case.model_type == "videomt")
    with pytest.raises(HFCamError, match=r"hf_cam\.CAM"):
        hf_cam.explain(np.zeros((4, 96, 96, 3), np.uint8), case.build(), processor=lambda image: image)


# torchvision's detectors ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faster_rcnn():
    """A real Faster R-CNN with random weights, for small pictures."""
    from torchvision.models import detection

    torch.manual_seed(0)
    few = {"rpn_post_nms_top_n_test": 40, "box_detections_per_img": 6}
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=128, max_size=192, **few
    )
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=20)  # sure of its random findings
    return model.train()


def whole(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def test_faster_rcnns_list_of_boxes_is_explained_detection_by_detection(photo, faster_rcnn):
    settings = {"processor": whole, "method": "gradcam-elementwise"}
    found = hf_cam.explain(photo, faster_rcnn, layers="backbone.fpn.inner_blocks.0", top_k=6, **settings)
    assert faster_rcnn.training
    with torch.no_grad():
        [expected] = faster_rcnn.eval()([whole(photo)])
    faster_rcnn.train()
    for one in found:
        distance = (expected["boxes"] - torch.tensor(one.box)).abs().amax(1)
        best = int(distance.argmin())
        assert distance[best] < 0.1
        assert one.score == pytest.approx(float(expected["scores"][best]), abs=1e-5)
        assert one.label == str(int(expected["labels"][best]))
        assert one.heatmap.shape == (128, 192)
        assert one.heatmap.any()
    assert len(found) > 1
    assert not np.allclose(found[0].heatmap, found[1].heatmap)
    number = int((expected["boxes"] - torch.tensor(found[0].box)).abs().amax(1).argmin())
    [same] = hf_cam.explain(photo, faster_rcnn, layers="backbone.fpn.inner_blocks.0", target=number, **settings)
    np.testing.assert_allclose(same.heatmap, found[0].heatmap, atol=1e-5)
    with pytest.raises(TargetError, match="no label names"):
        hf_cam.explain(photo, faster_rcnn, layers="backbone.fpn", target="cat", **settings)


def test_faster_rcnn_needs_no_layer_and_takes_a_callers_own(photo, faster_rcnn):
    def score(output):
        return output["scores"][0]

    [found] = hf_cam.explain(photo, faster_rcnn, processor=whole, top_k=1)
    assert found.layers[0].startswith("backbone.")
    assert found.method == "hirescam"
    layer = {"layers": "backbone.body.13", "reshape": lambda activation: activation}
    [own] = hf_cam.explain(photo, faster_rcnn, processor=whole, method="layercam", target=score, **layer)
    cam = hf_cam.CAM(faster_rcnn, "layercam", **layer)(whole(photo)[None], [score])
    assert own.label == "score"
    np.testing.assert_allclose(own.heatmap, cam[0].numpy(), atol=0.03)
    assert own.heatmap.any()


def test_a_detectors_empty_list_is_told(photo, faster_rcnn):
    threshold = faster_rcnn.roi_heads.score_thresh
    faster_rcnn.roi_heads.score_thresh = 1.0
    try:
        with pytest.raises(TargetError, match="finds nothing in this image"):
            hf_cam.explain(photo, faster_rcnn, processor=whole, layers="backbone.fpn.inner_blocks.0")
    finally:
        faster_rcnn.roi_heads.score_thresh = threshold


def test_a_listed_detection_is_found_again_by_its_class_and_its_box():
    output = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [0, 0, 11, 10], [50, 50, 60, 60]]),
        "labels": torch.tensor([2, 1, 1]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
    }
    assert float(BoxLogit((0, 0, 10, 10), 1)(output)) == pytest.approx(float(torch.logit(torch.tensor(0.8))))
    assert float(BoxLogit((0, 0, 10, 10), 3)(output)) == 0
    assert float(BoxLogit((90, 90, 99, 99), 1)(output)) == 0


# Detectors of every kind ---------------------------------------------------------------------------------------------

BORROWS = {"d_fine": "RTDetr", "rt_detr_v2": "RTDetr", "dab-detr": "ConditionalDetr"}
"""Types without a processor of their own, and whose their checkpoints come with."""


def detecting(case):
    """A tiny model of this type with the real processor."""
    listed = IMAGE_PROCESSOR_MAPPING_NAMES.get(case.model_type, {}).get("torchvision")
    processor = getattr(hf, listed or f"{BORROWS[case.model_type]}ImageProcessor")
    height, width = case.size
    return case.build(), processor(size={"height": height, "width": width})


@pytest.mark.parametrize("case", list(cases("object-detection")), ids=str)
def test_every_detector_is_explained_where_its_own_processor_puts_the_boxes(photo, case):
    image = photo.resize((150, 110))
    model, processor = detecting(case)
    settings = {"processor": processor, "method": "gradcam-elementwise"}
    found = hf_cam.explain(image, model, top_k=3, **settings)
    assert all(one.heatmap.shape == (110, 150) and one.heatmap.any() for one in found)
    if case.model_type.startswith("pp_ocr"):
        return  # a map and no boxes: see below
    inputs = LoadedModel(model, processor, {}).inputs([image])
    with torch.no_grad():
        output = model(**model_inputs_of(model, inputs.pop("pixel_values"), inputs))
    [expected] = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(110, 150)])
    boxes = expected["boxes"].clamp(torch.zeros(4), torch.tensor([150.0, 110, 150, 110]))
    for one in found:
        same = (boxes - torch.tensor(one.box)).abs().amax(1) < 0.5
        assert float((expected["scores"][same] - one.score).abs().min()) < 1e-4


def test_a_detector_of_writing_explains_every_piece_of_it(photo):
    case = next(case for case in cases("object-detection") if case.model_type == "pp_ocrv5_server_det")
    model, processor = detecting(case)
    loaded = LoadedModel(model, processor, {})
    head = head_of(loaded)
    assert head.task == "object-detection"
    shares = torch.full((1, 64, 96), 0.1)
    shares[0, 8:16, 8:40] = 0.9
    shares[0, 40:48, 48:88] = 0.7
    shares[0, 56:60, 8:20] = 0.4  # a piece of text, but none that is kept
    geometry = loaded.geometry((128, 192))
    first, second = head.subjects({"last_hidden_state": shares}, Request(), geometry)
    assert (first.label, second.label) == ("text", "text")
    assert (first.score, second.score) == (pytest.approx(0.9), pytest.approx(0.7))
    np.testing.assert_allclose(first.box, (16, 16, 80, 32), atol=2)
    assert float(first.target({"last_hidden_state": shares})) == pytest.approx(np.log(9), abs=1e-4)
    [there] = head.subjects({"last_hidden_state": shares}, Request((140, 88)), geometry)
    assert there.box == second.box
    [weak] = head.subjects({"last_hidden_state": shares}, Request((20, 116)), geometry)
    assert weak.flags == ("below the threshold",)
    with pytest.raises(TargetError, match="no text at the pixel"):
        head.subjects({"last_hidden_state": shares}, Request((3, 3)), geometry)
    [nothing] = head.subjects({"last_hidden_state": torch.full((1, 64, 96), 0.1)}, Request(), geometry)
    assert nothing.flags == ("below the threshold",)


# Depth, embeddings and batches of every kind -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [case for case in cases("depth-estimation") if case.model_type not in ("dpt", "zoedepth")], ids=str
)
def test_every_estimator_of_depth_explains_what_is_near_a_mask_and_a_pixel(photo, case):
    model = case.build()

    def to_size(image):
        return torch.from_numpy(np.array(image.resize(case.size[::-1]))).permute(2, 0, 1) / 255

    mask = np.zeros((128, 192), bool)
    mask[20:60, 30:100] = True
    found = [
        hf_cam.explain(photo, model, processor=to_size, method="gradcam-elementwise", target=target)[0]
        for target in (None, mask, (50, 30))
    ]
    assert [one.label for one in found] == ["nearest region", "depth of the mask", "depth at (50, 30)"]
    assert all(one.heatmap.shape == (128, 192) and one.heatmap.any() for one in found)
    assert found[0].score >= found[1].score


def test_a_multi_label_classifier_scores_each_class_by_its_own_sigmoid(photo):
    loaded = tiny_vit()
    loaded.model.config.problem_type = "multi_label_classification"
    loaded.model.classifier.bias.data = torch.tensor([2.0, 3.0, 2.5])
    found = explained(loaded, photo, top_k=3)
    with torch.no_grad():
        logits = loaded.model(**loaded.inputs([photo])).logits[0]
    assert [one.score for one in found] == pytest.approx(sorted(logits.sigmoid().tolist(), reverse=True), abs=1e-5)
    assert sum(one.score for one in found) > 1
    [same] = explained(loaded, photo, target=lambda output: output.logits[int(logits.argmax())])
    np.testing.assert_allclose(found[0].heatmap, same.heatmap, atol=1e-6)


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
