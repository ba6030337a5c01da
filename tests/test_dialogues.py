"""Questions about scenes: every answer is true, every word leads to its item, and packing changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

from benchmarks.dialogues import (
    ASKED,
    TEMPLATE,
    Dialogue,
    Mention,
    answer_ids,
    captions,
    count,
    describe,
    dialogues,
    in_clear_order,
    named_tokens,
    side,
    word_tokenizer,
)
from benchmarks.scenes import COLORS, LABELS, Scene
from benchmarks.words import Case, cells_of, deletions, right_mentions, without
from benchmarks.zoo_recipes import Packed, llava_processor


def scene(*items: tuple[str, str], left: tuple[float, ...] = (70, 10, 40)) -> Scene:
    """Items of 20 pixels by 20, given as colour and noun, at these distances from the left."""
    boxes = np.array([(x, 30, x + 20, 50) for x in left[: len(items)]], np.float32)
    instances = np.zeros((96, 128), np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
        instances[y0:y1, x0:x1] = 1 + number
    labels = tuple(LABELS.index(noun) for _, noun in items)
    colors = tuple(COLORS.index(color) for color, _ in items)
    image = np.full((96, 128, 3), 90, np.uint8)
    return Scene(image, labels, colors, boxes, instances, np.where(instances > 0, 1, 0).astype(np.uint8))


THREE = scene(("red", "bag"), ("", "ankle boot"), ("orange", "t-shirt"))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_description_goes_from_left_to_right() -> None:
    assert describe(THREE, rng()).answer == "An ankle boot, an orange t-shirt and a red bag."


def test_the_side_and_the_number_are_those_of_the_scene() -> None:
    answers = {side(THREE, np.random.default_rng(seed)).answer for seed in range(8)}
    assert answers == {"An ankle boot is on the left.", "A red bag is on the right."}
    assert count(THREE, rng()).answer == "There are three items."
    assert count(scene(("red", "bag")), rng()).answer == "There is one item."


def test_a_colour_is_asked_of_an_item_that_the_question_singles_out() -> None:
    twins = scene(("red", "bag"), ("blue", "bag"), ("", "coat"))
    for seed in range(8):
        asked = dialogues(twins, np.random.default_rng(seed))[1]
        assert asked.question in ("What colour is the coat?", "What color is the coat?")
        assert asked.answer == "The coat is grey."


@pytest.mark.parametrize("kind", range(len(ASKED)))
def test_a_mention_is_the_word_for_its_item(kind: int) -> None:
    for seed in range(6):
        asked = ASKED[kind](THREE, np.random.default_rng(seed))
        for one in asked.mentions:
            word = asked.answer[one.start : one.end]
            label, color = LABELS[THREE.labels[one.item]], COLORS[THREE.colors[one.item]] or "grey"
            assert word == (label if one.kind == "noun" else color)


def test_neighbours_above_one_another_have_no_clear_order() -> None:
    assert in_clear_order(THREE)
    stacked = scene(("red", "bag"), ("", "coat"), left=(40, 43))
    assert not in_clear_order(stacked)
    assert captions([stacked]) == []


def test_words_are_single_tokens_and_others_are_spelled_out() -> None:
    tokenizer = word_tokenizer()
    assert tokenizer.tokenize(" An orange t-shirt.") == ["ĠAn", "Ġorange", "Ġt-shirt", "."]
    assert len(tokenizer.tokenize(" kettle")) > 1
    assert tokenizer.decode(tokenizer(" A naïve kettle!", add_special_tokens=False)["input_ids"]) == " A naïve kettle!"


def test_the_tokens_of_a_mention_spell_its_word() -> None:
    tokenizer, asked = word_tokenizer(), describe(THREE, rng())
    ids = answer_ids(tokenizer, asked.answer)[:-1]
    for mention, backs in named_tokens(tokenizer, asked):
        spelled = tokenizer.decode([ids[len(ids) - back] for back in backs])
        assert spelled.strip() == asked.answer[mention.start : mention.end]


def test_the_chat_template_gives_the_prompt_of_the_training() -> None:
    asked = Dialogue("What do you see?", "A bag.")
    parts = [{"type": "image"}, {"type": "text", "text": asked.question}]
    chat = [{"role": "user", "content": parts}]
    processor = llava_processor()
    assert processor.chat_template == TEMPLATE
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == asked.prompt


def test_packed_dialogues_give_the_logits_of_separate_ones() -> None:
    torch.manual_seed(0)
    processor = llava_processor()
    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {**text, "image_size": 96, "patch_size": 8}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**vision),
        text_config=hf.LlamaConfig(**text, vocab_size=len(processor.tokenizer), initializer_range=0.5),
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=144,
    )
    model = hf.LlavaForConditionalGeneration(config).eval()
    asked = dialogues(THREE, rng())
    alone, answers = [], []
    pixels = None
    with torch.no_grad():
        for one in asked:
            inputs = processor(images=THREE.image, text=f"{one.prompt} {one.answer}</s>", return_tensors="pt")
            pixels, length = inputs["pixel_values"], len(answer_ids(processor.tokenizer, one.answer))
            alone.append(model(**inputs).logits[0, -length - 1 : -1])
            answers.append(inputs["input_ids"][0, -length:])
        packed = Packed.of([asked])
        together = packed.logits(model, torch.stack([*model.model.get_image_features(pixels).pooler_output]))
    assert torch.equal(packed.answers, torch.cat(answers))
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("An ankle boot, an orange t-shirt and a red bag.", ["ankle boot", "orange", "t-shirt", "red", "bag"]),
        ("An ankle boot, a blue t-shirt and a red bag.", ["ankle boot", "t-shirt", "red", "bag"]),
        ("A sandal, an orange shirt and a bag.", ["orange", "bag"]),
        ("A red bag, an orange t-shirt and an ankle boot.", ["orange", "t-shirt"]),
        ("An ankle boot and an orange t-shirt.", []),
        ("", []),
    ],
)
def test_only_words_at_the_place_of_their_item_are_right(answer: str, right: list[str]) -> None:
    found = sorted(right_mentions(THREE, answer), key=lambda one: one.start)
    assert [answer[one.start : one.end] for one in found] == right
    for one in found:
        label, color = LABELS[THREE.labels[one.item]], COLORS[THREE.colors[one.item]]
        assert answer[one.start : one.end] in (label, color)


def test_a_deletion_paints_as_many_cells_over_for_every_map() -> None:
    found = np.zeros((96, 128), np.float32)
    found[:, :32] = 1
    case = Case(THREE, "A bag.", Mention(2, 5, 0, "noun"), {"map": found})
    chosen = deletions(case, rng())
    own = chosen["the item's own cells"]
    assert {cells.sum() for cells in chosen.values()} == {own.sum()}
    assert not (own & chosen["random cells elsewhere"]).any()
    assert (cells_of(case.mask)[own] > 0).all()
    assert (cells_of(found)[chosen["map"]] > 0).all()


def test_painted_cells_take_the_colour_of_the_background_and_others_stay() -> None:
    image = THREE.image.copy()
    image[THREE.instances > 0] = 250
    shown = Scene(image, *(getattr(THREE, name) for name in ("labels", "colors", "boxes", "instances", "classes")))
    cells = cells_of(THREE.instances == 1) > 0
    painted = np.asarray(without(shown, cells))
    assert (painted[THREE.instances == 1] == 90).all()
    assert (painted[THREE.instances == 2] == 250).all()
