"""What the page shows: first views, what is out of date, and what is said of a map."""

import asyncio
import dataclasses
import shutil
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hf_cam
from hf_cam.check import VERDICTS, Check
from hf_cam.evaluation.table import Record
from hf_cam.images import drawing
from hf_cam.interfaces.space import space_folder
from hf_cam.metrics import BASELINES
from hf_cam.zoo import SCENE

sys.path.insert(0, str(space_folder()))
import events
import gradio as gr
import jobs
import limits
import models
import overlays
import scores
import starts
import uploads
import wording
import work

SETTINGS = ("demo:vit", *events.DEFAULTS)


@pytest.fixture(scope="module")
def found():
    """The scene, explained by the tiny ViT."""
    return events.first_view("demo:vit", str(SCENE))


def visible(updates):
    """Whether the note says that what is shown is out of date, and whether what uses it can be pressed."""
    note, *closed = updates
    pressed = {update["interactive"] for update in closed}
    assert len(pressed) == 1
    return note.visible, pressed.pop()


def is_skip(update):
    return isinstance(update, dict) and update == gr.skip()


# What is out of date -------------------------------------------------------------------------------------------------


def test_what_is_shown_is_up_to_date_as_long_as_the_same_is_asked_for(found, tmp_path):
    assert visible(events.settle(found, str(SCENE), *SETTINGS)) == (False, True)
    copy = shutil.copy(SCENE, tmp_path / "another name.png")
    assert visible(events.settle(found, str(copy), *SETTINGS)) == (False, True)
    empty = [setting or None for setting in SETTINGS]  # how the browser sends what is empty
    assert visible(events.settle(found, str(SCENE), *empty)) == (False, True)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, "demo:swin"),
        (1, "bag"),
        (2, "a shoe"),
        (3, "layercam"),
        (4, "vit.layers.3"),
        (5, True),
        (6, True),
        (7, "checked"),
    ],
)
def test_every_setting_that_is_changed_makes_it_out_of_date(found, place, value):
    changed = [*SETTINGS]
    changed[place] = value
    assert visible(events.settle(found, str(SCENE), *changed)) == (True, False)


def test_another_picture_or_none_makes_it_out_of_date(found, tmp_path):
    other = tmp_path / SCENE.name
    Image.open(SCENE).rotate(180).save(other)
    assert visible(events.settle(found, str(other), *SETTINGS)) == (True, False)
    assert visible(events.settle(found, None, *SETTINGS)) == (True, False)
    assert visible(events.settle(None, str(SCENE), *SETTINGS)) == (False, False)


def test_a_picture_that_is_removed_takes_everything_with_it():
    emptied = events.emptied(None)
    assert len(emptied) == len(events.untouched())
    state, gallery, large, slider, says, *_ = emptied
    assert (state, gallery, large.visible, slider, says) == (None, [], False, None, wording.CHOOSE)
    assert all(is_skip(update) for update in events.emptied(str(SCENE)))


def test_a_comparison_or_measures_of_another_map_are_cleared_when_they_arrive(found):
    other = found.choosing(1)
    of_other = events.Made(other, other.explanations)
    comparison, measures = [None, [], ""], [None, ""]
    assert events.kept(found, of_other, None)[:3] == comparison
    assert events.kept(found, None, other)[3:5] == measures
    assert events.kept(None, of_other, other)[:5] == [*comparison, *measures]
    recoloured = dataclasses.replace(found)
    assert all(is_skip(update) for update in events.kept(recoloured, events.Made(found, ()), found))


def test_a_click_belongs_to_what_stands_on_the_page(monkeypatch):
    found = events.first_view("demo:segformer", str(SCENE))
    monkeypatch.setattr(events, "under", lambda *_: None)
    settings = ["demo:segformer", *events.DEFAULTS, 0.5, "turbo"]
    chosen, *_ = events.point(gr.SelectData(None, {"index": [430, 90], "value": None}), str(SCENE), found, *settings)
    assert chosen.settings.target is not None
    assert visible(events.settle(chosen, str(SCENE), *settings[:-2])) == (False, True)


# First views ---------------------------------------------------------------------------------------------------------


def test_every_tab_has_a_first_view_of_a_model_and_a_picture_that_go_together():
    assert set(starts.starts()) == {"classify", "prompt", "detect", "segment"}
    for tab, start in starts.starts().items():
        assert work.tab_of(models.demos()[start.model]) == tab
        assert starts.model_for(start.file, start.model) == start.model
        assert Path(start.file).is_file()


def test_an_example_is_explained_by_a_model_that_knows_its_kind():
    landing = next(iter(starts.starts().values()))
    assert starts.model_for(landing.file, "demo:detr") == landing.model
    assert models.sees_scenes(starts.model_for(str(SCENE), landing.model))
    assert starts.model_for(str(SCENE), "demo:swin") == "demo:swin"
    assert starts.model_for(landing.file, "someone/model") == "someone/model"


def test_a_tab_changes_the_model_but_not_the_visitors_own_picture(tmp_path):
    own = tmp_path / "own.png"
    Image.open(SCENE).rotate(180).save(own)
    tabs, at, picture, model, *rest = events.enter("detect", "classify", str(own), 0.5, "turbo")
    assert (tabs.selected, at, model) == ("detect", "detect", "demo:detr")
    assert is_skip(picture)
    assert all(is_skip(update) for update in rest[len(events.DEFAULTS) :])  # the map stays, and is greyed
    here = events.enter("detect", at, str(own), 0.5, "turbo")
    assert all(is_skip(update) for update in here)
    assert len(here) == 4 + len(rest)


def test_the_first_view_of_all_changes_nothing_where_the_visitor_has_moved_on():
    first = next(iter(starts.starts()))
    tabs, at, *rest = events.arrive(first, 0.5, "turbo")
    assert (is_skip(tabs), at) == (True, first)
    late = events.arrive("detect", 0.5, "turbo")
    assert all(is_skip(update) for update in late)
    assert len(late) == 2 + len(rest)


def test_a_tab_of_an_example_opens_with_its_map():
    tabs, at, picture, model, *rest = events.enter("segment", "classify", str(SCENE), 0.5, "turbo")
    assert (tabs.selected, at, picture, model) == ("segment", "segment", str(SCENE), "demo:segformer")
    shown = rest[len(events.DEFAULTS)]
    assert shown.settings.model == "demo:segformer"
    assert visible(events.settle(shown, str(SCENE), model, *events.DEFAULTS)) == (False, True)


# What is said of a map -----------------------------------------------------------------------------------------------


def test_no_class_is_shown_with_nothing_per_cent(found):
    first, second = found.explanations[:2]
    unlikely = dataclasses.replace(found, explanations=(first, second.changed(score=0.004)))
    assert work.likely(unlikely).explanations == (first,)
    hopeless = dataclasses.replace(found, explanations=(first.changed(score=0.001), second.changed(score=0.001)))
    assert len(work.likely(hopeless).explanations) == 1
    prompted = dataclasses.replace(
        unlikely, settings=dataclasses.replace(found.settings, prompts=("a bag", "a shoe"), model="demo:clip")
    )
    assert len(work.likely(prompted).explanations) == 2  # which were asked for
    assert wording.score_of(second.changed(score=0.004)) == "under 1%"


@pytest.mark.parametrize(
    ("kind", "score", "said"),
    [
        ("probability", 0.254, "25%"),
        ("share among the prompts", 1.0, "100%"),
        ("confidence", 0.5, "50%"),
        ("cosine similarity", 0.271, "cosine similarity 0.271"),
        ("predicted value", 0.5, "predicted value 0.5"),
    ],
)
def test_only_probabilities_and_shares_are_percentages(found, kind, score, said):
    assert wording.score_of(found.current.changed(score=score, score_kind=kind)) == said


def test_the_part_that_the_model_saw_is_outlined_and_named():
    cropped = events.welcome().current
    left, top, right, bottom = overlays.seen_box(cropped)
    assert 0 < left < right < cropped.image.width
    assert 0 < top < bottom < cropped.image.height
    plain = np.asarray(overlays.drawn(cropped, 0.5, "turbo")).astype(int)
    outlined = np.asarray(overlays.framed(cropped, overlays.drawn(cropped, 0.5, "turbo"))).astype(int)
    changed = np.argwhere(np.abs(plain - outlined).sum(-1) > 0)
    factor = plain.shape[1] / cropped.image.width
    assert np.abs(changed.min(0) - factor * np.array([top, left])).max() <= 8
    assert "outlined square" in wording.legend(cropped, "inferno")


def test_a_picture_that_the_model_saw_whole_has_no_outline(found):
    assert overlays.seen_box(found.current) is None
    assert "outlined" not in wording.legend(found.current, "inferno")


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_verdict_is_a_sign_a_word_and_a_colour(verdict):
    said = wording.verdict_of(Check(verdict, 0.9, 0.5, 0.8, 0.1, 0.2, 0.5, 0.5, 0.3, (3, 3), 0.6))
    assert f'class="verdict {verdict}"' in said
    assert wording.SIGNS[verdict] in said
    assert f"Verdict: {verdict}." in said
    assert VERDICTS[verdict] in said


def test_the_page_names_every_baseline_of_the_library():
    assert set(scores.NAMES) == set(scores.MEANINGS) == set(BASELINES)
    assert set(scores.MAPS) == {scores.OWN, *scores.LINES.values()}
    assert all(name in scores.explained_baselines() for name in scores.NAMES.values())


def measured(**by_map):
    """A table of one metric."""
    records = [Record("picture", name, (), {"deletion": score}, 0.0) for name, score in by_map.items()]
    return hf_cam.Evaluation(tuple(records), ("deletion",))


def test_a_map_that_loses_to_a_baseline_is_said_to():
    others = {"sobel": 0.5, "centred-gaussian": 0.6}
    [won] = scores.findings_of(measured(gradcam=0.1, noise=0.4, **others))
    assert won.endswith("lower is better: this map is better than the random map, the edges and the centre.")
    [lost] = scores.findings_of(measured(gradcam=0.5, noise=0.4, **others))
    assert lost.endswith("this map is better than the centre, but is no better than the random map and the edges.")
    [worst] = scores.findings_of(measured(gradcam=0.9, noise=0.4, **others))
    assert worst.endswith("this map is no better than the random map, the edges and the centre.")
    assert scores.findings_of(measured(gradcam=0.1, noise=0.4)) == []  # more is to come


def test_maps_that_look_the_same_and_methods_that_are_missing_are_named(found):
    first = found.current
    said = wording.compared([first, first.changed(method="layercam")], {"finercam": "it contrasts classes"})
    assert "HiResCAM and LayerCAM give almost the same map here." in said
    assert "FinerCAM is missing: it contrasts classes." in said


@pytest.mark.parametrize("kind", [gr.Image, gr.File])
def test_a_component_that_an_event_has_updated_still_passes_on_the_file_unopened(kind):
    component = uploads.as_uploaded(kind(label="a picture"))
    updated = component.__class__(**component.constructor_args)  # as gradio does
    payload = types.SimpleNamespace(path="/no/such/file.png")
    assert component.preprocess(payload) == updated.preprocess(payload) == payload.path
    assert updated.preprocess(None) is None
    assert updated.get_block_name() == kind.__name__.lower()
    assert uploads.as_uploaded(kind()).__class__.__mro__[1] is kind


# What is computed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["demo:vit", "demo:detr", pytest.param("demo:imagenet", marks=pytest.mark.slow)])
def test_the_methods_compared_at_first_differ(model):
    found = events.first_view(model, starts.example_for(model))
    compared = work.compared(found.current.image, found.settings, work.COMPARED)
    assert compared.skipped == {}
    maps = np.corrcoef([one.heatmap.ravel() for one in compared.explanations])
    assert np.triu(maps, 1).max() < 0.7


@pytest.mark.slow
def test_the_methods_compared_at_first_can_all_be_read_on_the_landing_photograph():
    found = events.welcome()
    compared = work.compared(found.current.image, found.settings, work.COMPARED)
    bright = {one.method: (drawing.shown(one.heatmap) > 0.25).mean() for one in compared.explanations}
    assert min(bright.values()) > 0.05, bright


def test_a_method_that_is_not_defined_here_is_left_out_of_a_comparison():
    found = events.first_view("demo:detr", str(SCENE))
    compared = work.compared(found.current.image, found.settings, ["gradcam", "finercam"])
    assert [one.method for one in compared.explanations] == ["gradcam"]
    assert set(compared.skipped) == {"finercam"}
    with pytest.raises(limits.Refused):
        work.compared(found.current.image, found.settings, ["finercam"])


@pytest.mark.parametrize("changes", [{"aug_smooth": True}, {"eigen_smooth": True}, {"effort": "checked", "top_k": 1}])
def test_what_is_measured_is_the_map_that_is_shown(changes, monkeypatch):
    picture, settings = work.read_inputs(str(SCENE), "demo:vit", "", "", "auto", "", False, False)
    settings = dataclasses.replace(settings, **changes)
    found = work.Found(settings, work.explained(picture, settings).explanations)
    with models.MODELS.lent("demo:vit"):
        again = work._remade(settings, found.current, 0)
    np.testing.assert_array_equal(again.heatmap, found.current.heatmap)


def test_effort_explains_one_thing_and_brings_its_verdict(monkeypatch):
    picture, settings = work.read_inputs(str(SCENE), "demo:vit", "", "", "auto", "", False, False, "checked")
    found = work.explained(picture, settings)
    assert len(found.explanations) == 1
    assert found.current.effort.check.verdict in wording.effort(found)
    assert "Tried" in wording.effort(found)
    assert "effort='checked'" in work.snippet(found, 0.5, "turbo")
    assert "method='auto'" in work.snippet(found, 0.5, "turbo")
    monkeypatch.setattr(work, "check", lambda *_: pytest.fail("the verdict was there already"))
    assert work.judged(found, ("deletion",), verdict=True).check is found.current.effort.check
    with pytest.raises(limits.Refused, match="not an effort"):
        work.read_inputs(str(SCENE), "demo:vit", "", "", "auto", "", False, False, "heroic")


def test_measures_come_in_one_by_one_and_end_with_everything(found):
    async def parts():
        return [part async for part in jobs.stream(work.judged, found, work.CURVES, True)]

    *came, last = asyncio.run(parts())
    assert len(came) == 3 * 4 + 1  # three metrics of four maps, and the verdict
    known = [sum(len(record.scores) for record in part.table.records) for part in came]
    assert known == [1, 2, 3, 4, *range(4, 13)]
    assert [part.check is not None for part in came] == [False] * 4 + [True] * 9
    assert last.table.records == came[-1].table.records
    shown = events.trusted(came[0], found)
    assert len(shown) == len(events.cleared()[3:]) + len(work.CURVES)
    assert "Checking" in shown[1]


def test_a_stream_ends_where_its_visit_does_and_passes_errors_on():
    def work_on():
        for number in range(1000):
            jobs.emit(number)
            if number == 2:
                jobs.end("a visit")

    def fails():
        jobs.emit("a part")
        raise limits.Refused("no")

    async def parts(act):
        return [part async for part in jobs.stream(act, visit="a visit")]

    with pytest.raises(jobs.Stopped):
        asyncio.run(parts(work_on))
    with pytest.raises(limits.Refused, match="no"):
        asyncio.run(parts(fails))
    assert jobs._running == {}


def test_a_tab_that_the_page_opens_itself_ends_no_work_but_one_with_another_model_does(monkeypatch):
    reached = threading.Event()

    def wait():
        reached.set()
        for _ in range(200):
            jobs.check()
            time.sleep(0.01)
        return "done"

    async def ends(at):
        working = asyncio.ensure_future(jobs.run(wait, visit="a visit"))
        await asyncio.to_thread(reached.wait)
        await jobs.run(events.enter, "classify", at, str(SCENE), 0.5, "turbo", visit="a visit")
        try:
            return await working
        except jobs.Stopped:
            return "ended"

    assert asyncio.run(ends("classify")) == "done"
    assert asyncio.run(ends("detect")) == "ended"


@pytest.mark.slow
def test_the_first_map_of_all_is_supported_and_beats_the_random_map():
    judgement = work.judged(events.welcome(), work.CURVES, verdict=True)
    assert judgement.check.verdict == "supports"
    assert judgement.check.agreement[0] == judgement.check.agreement[1]
    for metric in work.CURVES:
        assert scores.lead(metric, judgement.table)[scores.RANDOM] > 0, metric


def test_what_is_measured_agrees_with_the_librarys_own_evaluation(found):
    table = work.judged(found, ("road", "deletion")).table
    target = found.current.label
    expected = hf_cam.evaluate(
        "demo:vit",
        [SCENE],
        methods=[found.current.method],
        metrics=["road", "deletion"],
        target=target,
        progress=False,
    )
    own = {record.map: record.scores for record in table.records}
    for record in expected.records:
        for metric, score in record.scores.items():
            assert own[record.map][metric] == pytest.approx(score, abs=1e-4)
