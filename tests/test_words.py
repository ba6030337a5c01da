"""Words of generative vision-language models: the front door, and the maths against independent computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import hf_cam
from benchmarks import word_places
from benchmarks.tiny_writers import ANSWER as LAST
from benchmarks.tiny_writers import writers
from benchmarks.writer_inputs import prepare_of
from hf_cam.errors import HFCamError, ImageError, ModelError, OptionError, TargetError
from hf_cam.explanation import WITHOUT_PICTURE
from hf_cam.images.geometry import Axis, placed
from hf_cam.words.answer import Answer
from hf_cam.words.footprints import FIELDS, Bars, Fields, Footprints, chequered, in_fields, on_raster, shares_of
from hf_cam.words.locate import known_of
from hf_cam.words.place import Place, reacting
from hf_cam.words.tokens import text_of, words_named
from hf_cam.words.writing import cache_holds
from tests.unchanged import half_frozen, unchanged
from tests.writers import QUESTION, llava_processor, photograph, qwen2_vl, tiny_llava, tokenizer

ANSWER = "a red cup and a kettle"


@pytest.fixture(scope="module")
def llava() -> tuple[nn.Module, Any]:
    return tiny_llava(), llava_processor()


def explained(llava: tuple[nn.Module, Any], **settings: Any) -> Answer:
    model, processor = llava
    return hf_cam.explain(
        photograph(), model, processor=processor, **{"text": QUESTION, "generate": {"max_new_tokens": 8}} | settings
    )


def test_each_word_gets_its_place_its_probability_and_a_map_in_the_pictures_pixels(llava: Any) -> None:
    words = explained(llava)
    assert isinstance(words, Answer)
    for word in words:
        start, end = word.span or (0, 0)
        assert words.answer[start:end] == word.label
        assert word.heatmap.shape == (60, 90)
        assert 0 < word.score < 1
        assert word.heatmap.max() == pytest.approx(word.evidence if WITHOUT_PICTURE in word.flags else 1)
        assert 0 <= (word.evidence or 0) <= 1


def test_a_word_cannot_be_checked_and_the_error_names_another_way(llava: Any) -> None:
    with pytest.raises(OptionError, match=r"not the words of an answer.*answer="):
        explained(llava)[0].check()


def test_the_model_is_left_as_it_was(llava: Any) -> None:
    model = half_frozen(tiny_llava(1))
    with unchanged(model):
        explained((model, llava[1]))
    with unchanged(model), pytest.raises(TargetError):
        explained((model, llava[1]), target="lighthouse")


# the last two lie in tiles, and in states that are attended to
@pytest.mark.parametrize("model_type", ["qwen2_vl", "llava_next", "blip"])
def test_what_changes_in_the_maps_lies_in_the_box_of_the_picture_that_is_disturbed(model_type: str) -> None:
    [row] = word_places.rows([model_type])
    assert row.result == "right", row


def test_a_map_that_is_mirrored_does_not_pass_that_check(monkeypatch: pytest.MonkeyPatch) -> None:
    painted = Footprints.painted
    monkeypatch.setattr(Footprints, "painted", lambda self, weights: painted(self, weights).flip(2))
    [row] = word_places.rows(["qwen2_vl"])
    assert row.result == "undecided"


def test_a_model_whose_positions_have_three_axes_is_explained_on_its_cache() -> None:
    model, processor = qwen2_vl()
    words = hf_cam.explain(photograph(), model, processor=processor, text=QUESTION, answer=ANSWER)
    prompt = processor(text=[processor.apply_chat_template(chat(QUESTION))], images=[photograph()], return_tensors="pt")
    tokens = processor.tokenizer(ANSWER, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([prompt["input_ids"], tokens], 1)
    more = {"attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == model.config.image_token_id).long()}
    with torch.no_grad():
        logits = model(**{**prompt, "input_ids": ids, **more}).logits[0, -1 - tokens.shape[1] : -1]
    expected = logits.softmax(1).gather(1, tokens[0, :, None])[:, 0]
    assert [word.score for word in words] == pytest.approx(expected.tolist(), rel=1e-3)
    assert known_of(model, processor).cache_holds
    assert known_of(model, processor).removal == "cache"


# GIT predicts other words in one forward on its cache, and Kosmos-2's forward does not go without a picture.
# PaliGemma's prompt is read in both directions, and so would the answer be in one forward over both.
@pytest.mark.parametrize(
    ("model_type", "holds"),
    [("llava", True), ("qwen3_vl", True), ("glm4v", True), ("paligemma", True), ("git", False), ("kosmos-2", False)],
)
def test_the_cache_is_used_where_it_predicts_what_the_generation_does(model_type: str, holds: bool) -> None:
    [writer] = (one for one in writers() if one.model_type == model_type)
    model = writer.build()
    inputs = prepare_of(writer, model)(word_places.smooth(0))
    length = inputs["input_ids"].shape[1]
    prompt = {
        name: value[:, : -len(LAST)] if value.ndim == 2 and value.shape[1] == length else value
        for name, value in inputs.items()
    }
    assert cache_holds(model, prompt) == holds


def chat(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


def test_a_target_picks_the_words_that_were_said(llava: Any) -> None:
    assert [word.label for word in explained(llava, answer=ANSWER, target="Cup")] == ["cup"]
    assert [word.label for word in explained(llava, answer=ANSWER, target="k.*e")] == ["kettle"]
    assert [word.label for word in explained(llava, answer=ANSWER, target="red cup")] == ["red", "cup"]
    both = explained(llava, answer=ANSWER, target=["kettle", "red"])
    assert [word.label for word in both] == ["kettle", "red"]


def test_the_map_of_a_word_does_not_depend_on_the_other_words_that_are_picked(llava: Any) -> None:
    [alone] = explained(llava, answer=ANSWER, target="cup")
    among = next(word for word in explained(llava, answer=ANSWER) if word.label == "cup")
    assert np.allclose(alone.heatmap, among.heatmap)
    assert alone.evidence == among.evidence


def test_a_pair_contrasts_two_words_at_one_place(llava: Any) -> None:
    [one] = explained(llava, answer=ANSWER, target=("red", "blue"))
    [other] = explained(llava, answer=ANSWER, target=("blue", "red"))
    assert one.label == "red, not blue"
    assert one.span == other.span == (2, 5)
    assert one.score + other.score == pytest.approx(1)
    assert not np.allclose(one.heatmap, other.heatmap)


@pytest.mark.parametrize("method", [*hf_cam.list_word_methods()])
def test_every_method_gives_each_word_a_map(llava: Any, method: str) -> None:
    model, processor = llava
    words = hf_cam.explain(photograph(), model, processor=processor, text=QUESTION, answer=ANSWER, method=method)
    assert {word.method for word in words} == {method}
    assert all(np.isfinite(word.heatmap).all() for word in words)
    assert any(word.heatmap.max() > 0 for word in words)


BAD = [
    ({"text": None}, TargetError, "answers a question: pass text="),
    ({"text": " "}, TargetError, "not empty"),
    ({"answer": "a green lighthouse"}, TargetError, "use words of its vocabulary"),
    ({"answer": ANSWER, "target": "bag"}, TargetError, 'its answer is "a red cup and a kettle"'),
    ({"target": "bag", "generate": {"max_new_tokens": 2}}, TargetError, "was cut off"),
    ({"answer": ANSWER, "target": ("bag", "lamp")}, TargetError, "did not write"),
    ({"answer": ANSWER, "target": 3}, TargetError, "one of its words"),
    ({"top_k": 2}, OptionError, "does not apply to the words"),
    ({"generate": 3}, OptionError, "generate must be a dict"),
    ({"method": "tan"}, HFCamError, "no method"),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_requests_are_refused_in_one_sentence(llava: Any, settings: Any, error: Any, message: str) -> None:
    with unchanged(llava[0]), pytest.raises(error, match=message):
        explained(llava, **settings)


def test_no_picture_and_no_model_are_named(llava: Any) -> None:
    with pytest.raises(ImageError, match="not NoneType; a chat is messages="):
        hf_cam.explain(model=llava[0], text=QUESTION)
    with pytest.raises(ModelError, match="not NoneType; pass it as model="):
        hf_cam.explain(photograph())
    with pytest.raises(ImageError, match="hold no picture"):
        hf_cam.explain(model=llava[0], messages=[{"role": "user", "content": "what?"}])


def test_a_classifier_has_no_use_for_an_answer() -> None:
    with pytest.raises(OptionError, match="writes no text"):
        hf_cam.explain(photograph(), "demo:imagenet", answer="a cup")


def test_words_and_punctuation_are_told_apart() -> None:
    words = tokenizer()
    text = text_of(torch.tensor(words("a red cup , and a bag .")["input_ids"]), words)
    assert [word.label for word in text.words] == ["a", "red", "cup", "and", "a", "bag"]
    assert [word.tokens for word in text.words] == [(0,), (1,), (2,), (4,), (5,), (6,)]
    assert [word.label for word in words_named(text, "a")] == ["a", "a"]


# Several pictures, chats and videos ----------------------------------------------------------------------------------


def test_two_pictures_of_one_question_get_a_map_each(llava: Any) -> None:
    model, processor = llava
    pictures = (photograph(), photograph(1).resize((70, 50)))
    words = hf_cam.explain(pictures, model, processor=processor, text=QUESTION, answer=ANSWER, target="cup")
    assert [word.label for word in words] == ["cup", "cup"]
    assert [word.heatmap.shape for word in words] == [(60, 90), (50, 70)]
    assert max(word.heatmap.max() for word in words) == pytest.approx(1)


def test_a_list_of_pictures_gives_an_answer_for_each(llava: Any) -> None:
    model, processor = llava
    found = hf_cam.explain([photograph(), photograph(1)], model, processor=processor, text=QUESTION, answer=ANSWER)
    assert [answer.answer for answer in found] == [ANSWER, ANSWER]


def test_a_video_gets_a_map_per_frame(llava: Any) -> None:
    model, processor = llava
    video = hf_cam.Video([photograph(), photograph(1)])
    [cup] = hf_cam.explain(video, model, processor=processor, text=QUESTION, answer=ANSWER, target="cup")
    assert cup.heatmap.shape == (2, 60, 90)
    assert len(cup.frames) == 2


TEMPLATE = (
    "{% for message in messages %}{% for item in message['content'] %}"
    "{{ '<image>' if item['type'] == 'image' else ' ' + item['text'] }}{% endfor %}{% endfor %}"
)


def test_a_chat_brings_its_own_pictures(llava: Any) -> None:
    processor = llava_processor()
    processor.chat_template = TEMPLATE
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": photograph()}, {"type": "text", "text": QUESTION}],
        }
    ]
    asked = hf_cam.explain(model=llava[0], processor=processor, messages=chat, answer=ANSWER)
    plain = hf_cam.explain(photograph(), llava[0], processor=processor, text=QUESTION, answer=ANSWER)
    assert all(np.array_equal(one.heatmap, other.heatmap) for one, other in zip(asked, plain, strict=True))


CHATS = [
    ("what?", OptionError, "messages must be a list"),
    ([{"role": "user", "content": [{"type": "image"}]}], ImageError, "without a picture"),
    ([{"role": "user", "content": [{"type": "image", "image": photograph()}]}], ModelError, "no chat template"),
]


@pytest.mark.parametrize(("messages", "error", "message"), CHATS, ids=[message for *_, message in CHATS])
def test_chats_that_cannot_be_put_are_refused(llava: Any, messages: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        hf_cam.explain(model=llava[0], processor=llava[1], messages=messages)


# The tensor door -----------------------------------------------------------------------------------------------------


def prepared(processor: Any) -> Any:
    def prepare(picture: np.ndarray) -> dict[str, Any]:
        made = processor(text=[f"<image>{QUESTION} {ANSWER}"], images=[picture], return_tensors="pt")
        return dict(made)

    return prepare


def test_the_tensor_door_gives_the_maps_of_the_front_door(llava: Any) -> None:
    model, processor = llava
    cam = hf_cam.WordCAM(model, prepared(processor))
    length = prepared(processor)(np.array(photograph()))["input_ids"].shape[1]
    with unchanged(model):
        maps = cam(photograph(), range(length - 6, length))
    words = explained(llava, answer=ANSWER)
    assert maps.shape == (6, 60, 90)
    assert cam.evidence.tolist() == pytest.approx([word.evidence for word in words], rel=1e-3)
    for word, one in zip(words, maps, strict=True):
        assert np.allclose(word.heatmap, one * word.heatmap.max() / one.max(), atol=1e-3)


def test_one_forward_over_it_all_gives_the_maps_from_the_cache(llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = explained(llava, answer=ANSWER)
    monkeypatch.setattr("hf_cam.words.explaining.cached_inputs", lambda *_, **__: None)
    whole = explained(llava, answer=ANSWER)
    assert all(np.allclose(one.raw, other.raw, rtol=1e-3) for one, other in zip(cached, whole, strict=True))


POSITIONS = [
    ([], "positions"),
    ([0], "positions from 1"),
    ([10_000], "positions from 1"),
    ("cup", "positions"),
    ([1.5], "po"),
]


@pytest.mark.parametrize(("answer", "message"), POSITIONS)
def test_positions_that_no_token_has_are_refused(llava: Any, answer: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        hf_cam.WordCAM(llava[0], prepared(llava[1]))(photograph(), answer)


def test_a_model_that_no_picture_reaches_is_refused_with_the_reason(llava: Any) -> None:
    blind = prepared(llava[1])
    first = blind(np.zeros((60, 90, 3), np.uint8))
    with pytest.raises(ModelError, match="no part of the model's forward gets the picture's cells"):
        hf_cam.WordCAM(llava[0], lambda _: first)(photograph(), [1])


# Where cells lie -----------------------------------------------------------------------------------------------------


def bars_of(grid: tuple[int, int], count: int = 4) -> Bars:
    rows, columns = (torch.arange(side).add(0.5).div(side).mul(count).long() for side in grid)
    down, across = (torch.nn.functional.one_hot(one, count).float() for one in (rows, columns))
    return Bars(down.repeat_interleave(grid[1], 0), across.repeat(grid[0], 1))


@pytest.mark.parametrize("grid", [(6, 9), (9, 6), (3, 18), (1, 5)])
def test_the_raster_is_found_whose_rows_and_columns_fit(grid: tuple[int, int]) -> None:
    found = on_raster(Footprints((60, 90), bars_of(grid)), lambda: None)
    assert found is not None
    assert found.grid == grid


def test_tiles_in_turn_are_no_raster() -> None:
    one, other = bars_of((4, 4)), bars_of((4, 4))
    tiles = Bars(torch.cat([one.down, other.down]), torch.cat([one.across, other.across]))
    assert on_raster(Footprints((60, 90), tiles), lambda: None) is None


def test_a_cell_that_reacts_to_all_bars_alike_has_no_footprint() -> None:
    assert shares_of(torch.full((1, 4), 2.0)).sum() == 0
    assert Bars(torch.full((3, 4), 2.0), torch.full((3, 4), 2.0)).locality == 0


def test_a_size_beyond_two_known_ones_is_only_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_llava(2), llava_processor()
    runs: list[int] = []
    from hf_cam.words import locate, place

    states = place.states_at
    for module in (place, locate):
        monkeypatch.setattr(module, "states_at", lambda *args: runs.append(1) or states(*args))
    for size in ((90, 60), (60, 90), (80, 60)):
        runs.clear()
        shown = photograph().resize(size)
        hf_cam.explain(shown, model, processor=processor, text=QUESTION, answer=ANSWER)
    assert len(runs) == 2  # two disturbed pictures; the picture itself passed there as the answer was written
    known = locate.known_of(model, processor)
    assert {found.footprints.grid for found in known.rasters.values()} == {(6, 6)}


def fields_seen(rows: Any, columns: Any) -> Fields:
    """The contrasts of cells whose centres are at these shares of the picture."""
    return Fields(
        torch.tensor([1.0 if FIELDS[int(4 * row), int(4 * column)] else -1.0 for row in rows for column in columns])
    )


@pytest.mark.parametrize("grid", [(6, 9), (9, 6), (4, 9), (12, 12), (24, 10), (7, 31)])
def test_a_raster_is_told_from_all_others_by_two_pictures(grid: tuple[int, int]) -> None:
    rows, columns = ((np.arange(side) + 0.5) / side for side in grid)
    found = in_fields((60, 90), fields_seen(rows, columns), lambda: None)
    assert found is not None
    assert (found.grid, found.prefix) == (grid, 0)
    prefixed = Fields(torch.cat([torch.zeros(1), fields_seen(rows, columns).contrasts]))
    found = in_fields((60, 90), prefixed, lambda: None)
    assert found is not None
    assert (found.grid, found.prefix) == (grid, 1)


@pytest.mark.parametrize("turn", ["rows", "columns", "both", "transposed", "shifted"])
def test_cells_in_another_order_lie_on_no_raster_that_two_pictures_show(turn: str) -> None:
    centres = (np.arange(12) + 0.5) / 12
    orders = {"rows": (centres[::-1], centres), "columns": (centres, centres[::-1]), "both": (centres[::-1],) * 2}
    rows, columns = orders.get(turn, (centres, centres))
    contrasts = fields_seen(rows, columns).contrasts.view(12, 12)
    if turn == "transposed":
        contrasts = contrasts.T
    if turn == "shifted":
        contrasts = contrasts.roll(3, 1)
    assert in_fields((60, 90), Fields(contrasts.flatten()), lambda: None) is None


def test_the_canvas_is_found_that_a_raster_fills() -> None:
    cropped = placed((60, 120), (60, 60), Axis(1.0, 0.0), Axis(1.0, -30.0))
    rows, columns = ((np.arange(12) + 0.5) / 12, 0.25 + (np.arange(12) + 0.5) / 24)
    found = in_fields((60, 120), fields_seen(rows, columns), lambda: cropped)
    assert found is not None
    assert found.geometry == cropped
    even = (np.arange(12) + 0.5) / 12
    found = in_fields((60, 120), fields_seen(even, even), lambda: cropped)
    assert found is not None
    assert found.geometry != cropped


def test_what_is_not_clear_is_left_to_the_bars() -> None:
    centres = (np.arange(5) + 0.5) / 5
    assert in_fields((60, 90), fields_seen(centres, centres), lambda: None) is None  # few cells
    smeared = Fields(0.2 * fields_seen((np.arange(12) + 0.5) / 12, (np.arange(12) + 0.5) / 12).contrasts)
    assert in_fields((60, 90), smeared, lambda: None) is None


def test_cells_that_notice_one_of_both_pictures_are_cells() -> None:
    """As of a model that turns pictures into codes, which faint changes leave as they are."""
    place = Place("", 0, 0, "in the sequence", (1, 6, 2), torch.arange(0))
    clean = torch.zeros(1, 6, 2)
    first, second = clean.clone(), clean.clone()
    first[0, 1:3] = 1
    second[0, 3:5] = 1
    found = reacting(place, clean, [first, second])
    assert found is not None
    assert found[0].cells.tolist() == [1, 2, 3, 4]
    assert [states.sum().item() for states in found[1]] == [0, 4, 4]
    assert reacting(place, clean, [clean, clean]) is None
    assert reacting(place, clean, [clean + 1]) is None, "the text reacts too"
    with pytest.raises(ModelError, match="crops pictures by what they show"):
        reacting(place, clean, [first[:, 1:]])


def test_what_is_no_number_agrees_with_no_raster() -> None:
    assert in_fields((60, 90), Fields(torch.full((36,), float("nan"))), lambda: None) is None
    bars = Bars(torch.full((36, 4), float("nan")), torch.full((36, 4), float("nan")))
    assert on_raster(Footprints((60, 90), bars), lambda: None) is None


def test_two_disturbed_pictures_share_no_field_and_leave_no_pixel_as_it_was() -> None:
    picture = Image.fromarray(word_places.smooth(0))
    given, first, second = (np.array(one).astype(int) for one in (picture, *chequered(picture)))
    changes = [np.abs(one - given).max(-1) for one in (first, second)]
    assert min(one.min() for one in changes) > 0
    assert not ((changes[0] > 6) & (changes[1] > 6)).any()


def test_another_question_about_pictures_of_one_size_needs_no_new_measurement(llava: Any) -> None:
    from hf_cam.words import locate

    explained(llava, answer=ANSWER)
    known = locate.known_of(*llava)
    measured = dict(known.located)
    longer = explained(llava, answer=ANSWER, text=f"{QUESTION} what is in the picture ?")
    assert known.located == measured
    fresh = explained((llava[0], llava_processor()), answer=ANSWER, text=f"{QUESTION} what is in the picture ?")
    assert all(np.allclose(one.raw, other.raw) for one, other in zip(longer, fresh, strict=True))
