"""Bad questions, answers, chats, targets and settings for generative models are refused in one sentence."""

from __future__ import annotations

from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn

import hf_cam
from hf_cam.errors import HFCamError, ImageError, ModelError, OptionError, TargetError
from hf_cam.interfaces.cli import main
from hf_cam.words.prompts import prompt_of
from hf_cam.words.settings import settings_of
from hf_cam.words.tokens import check_target, text_of, words_named
from hf_cam.words.writing import written
from tests.unchanged import half_frozen, unchanged
from tests.writers import QUESTION, llava_processor, photograph, tiny_llava, tokenizer

ANSWER = "a red cup and a kettle"
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{% for item in message['content'] %}"
    "{{ '<image>' if item['type'] == 'image' else ' ' + item['text'] }}{% endfor %}{% endif %}{% endfor %}"
)
PICTURE = {"type": "image", "image": photograph()}
BARE = {"type": "image"}
ASKED = {"type": "text", "text": QUESTION}


@pytest.fixture(scope="module")
def processor() -> Any:
    made = llava_processor()
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return half_frozen(tiny_llava())


@pytest.fixture(scope="module")
def folder(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("writer")
    tiny_llava().save_pretrained(path)
    processor.save_pretrained(path)
    photograph().save(path / "photo.png")
    return path


def turn(*items: Any, role: Any = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": list(items)}]


BAD: list[tuple[str, dict[str, Any], type[HFCamError], str]] = [
    ("no picture of a question", {"image": ()}, ImageError, "the tuple of its pictures is empty"),
    ("two questions", {"text": [QUESTION, "what ?"]}, TargetError, "one question at a time, got 2"),
    ("a placeholder in the question", {"text": f"<image> {QUESTION}"}, TargetError, "holds '<image>', which stands"),
    ("half a character to write", {"answer": "a red \ud800 cup"}, TargetError, "answer must be valid Unicode"),
    ("a long question", {"text": "what " * 3000}, TargetError, "take 30.. tokens, and the model has 2048 positions"),
    ("a long answer", {"answer": "a red cup " * 900}, TargetError, "take 27.. tokens, and the model has 2048"),
    ("no word", {"target": " "}, TargetError, "must be one of its words.*not ' '"),
    ("a number as word", {"target": [3]}, TargetError, "must be one of its words.*not 3"),
    ("a word and itself", {"target": ("cup", "cup ")}, TargetError, "two different words"),
    ("a word and none", {"target": ("cup", " ")}, TargetError, "a contrast takes two words"),
    ("several contrasts", {"target": [("cup", "bag"), ("red", "blue")]}, TargetError, "a contrast is explained alone"),
    ("an unsaid word", {"answer": ANSWER, "target": "bag("}, TargetError, f"'bag\\('; its answer is \"{ANSWER}"),
    ("0 tokens", {"generate": {"max_new_tokens": 0}}, OptionError, "'max_new_tokens'.*whole number from 1, got 0"),
    ("-1 tokens", {"generate": {"max_new_tokens": -1}}, OptionError, "'max_new_tokens'.*whole number from 1, got -1"),
    ("half a token", {"generate": {"max_new_tokens": 2.5}}, OptionError, "whole number from 1, got 2.5"),
    ("tokens in words", {"generate": {"max_new_tokens": "three"}}, OptionError, "whole number from 1, got 'three'"),
    ("True tokens", {"generate": {"max_new_tokens": True}}, OptionError, "whole number from 1, got True"),
    ("no beams", {"generate": {"num_beams": 0}}, OptionError, "'num_beams'.*whole number from 1, got 0"),
    ("sampling by a word", {"generate": {"do_sample": "yes"}}, OptionError, "'do_sample'.*True or False, got 'yes'"),
    ("two greedy answers", {"generate": {"num_return_sequences": 2}}, OptionError, "2 answers of one greedy search"),
    ("at least more than at most", {"generate": {"min_new_tokens": 99}}, OptionError, "at least 99 new .* at most 64"),
    ("an unknown setting", {"generate": {"colour": "red"}}, OptionError, "generate={'colour': 'red'} failed.*not used"),
    ("no heat", {"generate": {"do_sample": True, "temperature": 0.0}}, OptionError, "{'temperature': 0.0} failed"),
    ("an input", {"generate": {"input_ids": torch.ones(1, 3).long()}}, OptionError, "holds 'input_ids'.*omit it"),
    ("a chat of none", {"messages": turn(ASKED)}, ImageError, "hold no picture"),
    ("a chat that asks nothing", {"messages": turn(PICTURE)}, TargetError, "hold no question"),
    ("an empty question in a chat", {"messages": turn(PICTURE, {"type": "text", "text": " "})}, TargetError, "not ' '"),
    ("a number in a chat", {"messages": turn(PICTURE, {"type": "text", "text": 3})}, TargetError, "not empty, not 3"),
    ("half a character", {"messages": turn(PICTURE, {"type": "text", "text": "\ud800"})}, TargetError, "valid Unicode"),
    ("a placeholder in a chat", {"messages": turn(PICTURE, {**ASKED, "text": "<image>"})}, TargetError, "omit it"),
    ("a bare text in a chat", {"messages": turn(PICTURE, QUESTION)}, OptionError, "an item of a message must be"),
    ("a film in a chat", {"messages": turn(PICTURE, {"type": "video"}, ASKED)}, OptionError, "got type 'video'"),
    ("a role that is none", {"messages": turn(PICTURE, ASKED, role=3)}, OptionError, "messages must be a list"),
    ("no content", {"messages": [{"role": "user"}]}, OptionError, "content of a message must be"),
    ("a role that is left out", {"messages": turn(PICTURE, ASKED, role="judge")}, ModelError, "template leaves out"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "error", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
@pytest.mark.parametrize("door", ["explain", "pipeline"])
def test_what_cannot_be_asked_is_refused_in_one_sentence(
    model: nn.Module, processor: Any, door: str, settings: dict[str, Any], error: type[HFCamError], message: str
) -> None:
    chat = "messages" in settings
    given = {"text": None if chat else QUESTION, **settings}
    image = given.pop("image", None if chat else photograph())
    given = {name: value for name, value in given.items() if value is not None}
    ask = (
        partial(hf_cam.explain, model=model, processor=processor)
        if door == "explain"
        else transformers.pipeline("image-cam", model=model, processor=processor)
    )
    with unchanged(model), pytest.raises(error, match=message) as raised:
        ask(image, **given)
    assert len(str(raised.value)) <= 400


def test_a_chat_and_a_tuple_of_pictures_give_in_the_pipeline_what_they_give_in_explain(
    model: nn.Module, processor: Any
) -> None:
    cam = transformers.pipeline("image-cam", model=model, processor=processor)
    chat = turn(PICTURE, {"type": "image", "image": photograph(1)}, ASKED)
    asked = hf_cam.explain(model=model, processor=processor, messages=chat, answer=ANSWER, target="cup")
    for found in (
        cam(messages=chat, answer=ANSWER, target="cup"),
        cam(chat, answer=ANSWER, target="cup"),
        cam((photograph(), photograph(1)), text=QUESTION, answer=ANSWER, target="cup"),
    ):
        assert len(found) == len(asked) == 2
        assert all(np.array_equal(one["heatmap"], other.heatmap) for one, other in zip(found, asked, strict=True))


def test_placeholders_of_the_callers_own_are_counted() -> None:
    plain = llava_processor()
    assert prompt_of(plain, f"<image>{QUESTION}", 1).text == f"<image>{QUESTION}"
    with pytest.raises(TargetError, match=r"2 placeholders '<image>' for 1 picture;"):
        prompt_of(plain, f"<image><image>{QUESTION}", 1)


@pytest.mark.parametrize(("items", "pictures"), [((BARE, ASKED), 2), ((BARE, BARE, ASKED), 1), ((ASKED,), 1)])
def test_a_chat_needs_a_placeholder_per_picture(processor: Any, items: Any, pictures: int) -> None:
    with pytest.raises(OptionError, match=rf"have {len(items) - 1} items of type \"image\" for {pictures} picture"):
        prompt_of(processor, "", pictures, turn(*items))


def test_a_chat_that_holds_its_pictures_is_not_put_beside_others(processor: Any) -> None:
    with pytest.raises(OptionError, match=r"passed in the call: explain\(model=..., messages=...\)"):
        prompt_of(processor, "", 1, turn(PICTURE, ASKED))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("target", "named"),
    [("(?i)RED|cup", ["red", "cup"]), ("^a", ["a"]), ("red{1}", ["red"]), ("[[red]+", ["red"]), ("c++", ["c++"])],
)
def test_a_regular_expression_may_begin_with_flags_and_a_text_that_is_none_stands_for_itself(
    target: str, named: list[str]
) -> None:
    words = tokenizer()
    text = text_of(torch.tensor(words("a red cup")["input_ids"]), words)
    if named == ["c++"]:
        with pytest.raises(TargetError, match=r"did not write 'c\+\+'"):
            words_named(text, target)
    else:
        assert [word.label for word in words_named(text, target)] == named


@pytest.mark.parametrize("target", [None, "cup", ["cup", None], ("red", "blue")])
def test_what_names_words_passes(target: Any) -> None:
    check_target(target)


def test_a_setting_of_none_is_not_given() -> None:
    assert settings_of({"max_new_tokens": None, "temperature": None}) == settings_of({})
    assert "max_new_tokens" not in settings_of({"max_length": 90})


def test_the_answer_of_several_beams_begins_after_the_prompt_though_the_search_goes_on(processor: Any) -> None:
    """The best beam ends at once and others go on, so that there are more steps than tokens."""
    model = tiny_llava()
    inputs = dict(processor(text=[f"<image> {QUESTION}"], images=[photograph()], return_tensors="pt"))
    steps = []
    forward = type(model).forward

    @wraps(forward)
    def ending(*args: Any, **kwargs: Any) -> Any:
        found = forward(model, *args, **kwargs)
        steps.append(found.logits.shape[0])
        found.logits[..., 13] += 60.0 if len(steps) == 1 else 0.0
        found.logits[0, :, 3] += 40.0 if len(steps) == 2 else 0.0
        return found

    model.forward = ending  # type: ignore[method-assign]
    settings = {
        "max_new_tokens": 6,
        "num_beams": 2,
        "do_sample": False,
        "early_stopping": "never",
        "length_penalty": 0.0,
    }
    found = written(model, inputs, settings)
    assert len(steps) > 3
    assert found.prompt.tolist() == inputs["input_ids"].tolist()
    assert found.tokens.tolist() == [13]
    assert found.finished


OUT = [
    ("answer.xyz", "does not end in a picture format"),
    ("answer.npy", "holds one map, and an answer has one per word"),
    ("photo.png/answer.html", "photo.png' is a file; pass another --out"),
]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["explain", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert len(err) <= 410
    return err


@pytest.mark.parametrize(("out", "message"), OUT)
def test_an_output_that_cannot_be_is_refused_before_the_model_runs(
    capsys: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, out: str, message: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("hf_cam.words.explaining.written", None)
    assert message in refused(capsys, "photo.png", "--model", ".", "--text", QUESTION, "--out", out)


def test_the_command_writes_a_page_below_new_folders_with_settings_of_the_generation(
    capsys: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    asked = ("photo.png", "--model", ".", "--text", QUESTION)
    out = tmp_path / "new" / "folder" / "answer.html"
    assert main(["explain", *asked, "--answer", ANSWER, "--out", str(out)]) == 0
    assert "kettle" in out.read_text(encoding="utf-8")
    capsys.readouterr()
    for option, message in (
        ("max_new_tokens", "--generate takes NAME=VALUE, as in --generate max_new_tokens=200"),
        ("max_new_tokens=0", "must be a whole number from 1, got 0"),
    ):
        assert message in refused(capsys, *asked, "--generate", option, "--out", str(tmp_path / "no.html"))
    assert not (tmp_path / "no.html").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.xyz", "must end in .html or in a picture format"), ("a.npy", "must end in .html"), (".", "is a folder; pass")],
)
def test_an_answer_is_saved_as_page_or_picture_alone(tmp_path: Path, name: str, message: str) -> None:
    answer = hf_cam.words.answer.Answer([], answer=ANSWER, image=photograph())
    with pytest.raises(ImageError, match=message):
        answer.save(tmp_path / name)
    assert not [*tmp_path.iterdir()]


def test_a_text_model_is_refused() -> None:
    text = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, vocab_size=20
        )
    )
    with pytest.raises(HFCamError, match=r"image|picture"):
        hf_cam.explain(photograph(), text, processor=tokenizer(), text=QUESTION)


def test_a_model_whose_forward_lets_no_gradient_through_is_refused(processor: Any) -> None:
    class Frozen(transformers.LlavaForConditionalGeneration):
        @wraps(transformers.LlavaForConditionalGeneration.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                return super().forward(*args, **kwargs)

    frozen = tiny_llava()
    frozen.__class__ = Frozen
    with unchanged(frozen), pytest.raises(HFCamError, match="gradient") as raised:
        hf_cam.explain(photograph(), frozen, processor=processor, text=QUESTION, answer=ANSWER)
    assert len(str(raised.value)) <= 400


@pytest.mark.parametrize("size", [(1, 1), (200, 1), (1, 200)])
@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_pictures_of_any_size_and_depth_are_explained(
    model: nn.Module, processor: Any, size: tuple[int, int], mode: str
) -> None:
    picture = Image.fromarray(np.full(size[::-1], 40_000, np.uint16)) if mode == "I;16" else Image.new(mode, size)
    [cup] = hf_cam.explain(picture, model, processor=processor, text=QUESTION, answer=ANSWER, target="cup")
    assert cup.heatmap.shape == size[::-1]
    assert np.isfinite(cup.heatmap).all()
