"""What models that answer questions have to say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hf_cam
from hf_cam.errors import TargetError
from hf_cam.heads import head_of
from hf_cam.interfaces.cli import main
from hf_cam.request import Request
from nets import THINGS, blip, blip2, explained, vilt


def saved(loaded, folder):
    """The model, its image processor and its tokenizer, as a Hub repo holds them."""
    for part in (loaded.model, loaded.processor, loaded.tokenizer):
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("make", "answer"), [(vilt, "red cup"), (blip, "red cup")])
def test_answers_come_through_explain_the_pipeline_and_the_command(photo, tmp_path, make, answer, capsys):
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
    assert found.label == THINGS[int(logits.argmax())]
    [same] = explained(loaded, photo, text="what cat", target=lambda output: output.logits.max())
    np.testing.assert_allclose(found.heatmap, same.heatmap, atol=1e-5)


def logits_of_blip(model, inputs, question, answer):
    """The logits before each token of the answer but the first, `[N - 1, words]`."""
    seen = model.vision_model(**inputs)[0]
    read = model.text_encoder(**question, encoder_hidden_states=seen)[0]
    return model.text_decoder(answer, encoder_hidden_states=read).logits[0, :-1]


def logits_of_blip2(model, inputs, question, answer):
    """The logits before each token of the answer, `[N, words]`."""
    together = torch.cat([question["input_ids"], answer], 1)
    return model(**inputs, input_ids=together).logits[0, -answer.shape[1] - 1 : -1]


@pytest.mark.parametrize(("make", "logits_of"), [(blip, logits_of_blip), (blip2, logits_of_blip2)])
def test_a_written_answer_is_what_the_model_writes_and_its_score_the_mean_probability_of_its_tokens(
    photo, make, logits_of
):
    loaded = make()
    [found] = explained(loaded, photo, text="what cat")
    assert found.label
    question = head_of(loaded)._question(Request(text=("what cat",)))
    inputs = {**loaded.inputs([photo]), "interpolate_pos_encoding": True}
    with torch.no_grad():
        [written] = loaded.model.generate(**inputs, **question, max_new_tokens=10)
    assert found.label == loaded.tokenizer.decode(written, skip_special_tokens=True).strip()
    for one in (found, *explained(loaded, photo, text="what cat", target="a photo of a dog")):
        answer = loaded.tokens([one.label])["input_ids"]
        with torch.no_grad():
            logits = logits_of(loaded.model, inputs, question, answer)
        tokens = logits.log_softmax(-1).gather(1, answer.mT[-len(logits) :])
        assert one.score == pytest.approx(float(tokens.mean().exp()), abs=1e-5)
