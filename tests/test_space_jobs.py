"""Long-running work of the page: its progress, how it is stopped, and what it leaves behind."""

import ast
import asyncio
import contextlib
import contextvars
import dataclasses
import gc
import importlib.util
import pickle
import sys
import threading
import time
import types
import weakref

import gradio as gr
import pytest

from hf_cam.comparison import quick_methods
from hf_cam.interfaces.space import space_folder
from hf_cam.zoo import SCENE

sys.path.insert(0, str(space_folder()))
import events
import jobs
import limits
import models
import scores
import scratch
import work


def inputs(model, **changes):
    picture, settings = work.read_inputs(str(SCENE), model, "", "a yellow bag", "auto", "", False, False)
    return picture, dataclasses.replace(settings, **changes)


@pytest.fixture(autouse=True)
def no_open_loop():
    """Gradio's locks open an event loop in the main thread and leave it; `asyncio.run` would drop it unclosed."""
    with contextlib.suppress(RuntimeError):  # there is none
        asyncio.get_event_loop_policy().get_event_loop().close()
    asyncio.set_event_loop(None)


@pytest.fixture
def progress(monkeypatch):
    """What the visitor was shown: shares and steps."""
    shown = []

    class Progress:
        def __call__(self, done, desc):
            shown.append((done, desc))

    monkeypatch.setattr(jobs.gr, "Progress", Progress)
    return shown


def rising(progress):
    shares = [share for share, _ in progress]
    return shares == sorted(shares) and 0 <= shares[0] < shares[-1] <= 1


def test_a_comparison_reports_progress_method_by_method(progress):
    work.compared(*inputs("demo:vit"), ("gradcam", "layercam", "randomcam"))
    assert [step for _, step in progress] == ["GradCAM", "LayerCAM", "RandomCAM"]
    assert rising(progress)


def test_the_trust_curves_report_progress_map_by_map(progress):
    found = work.explained(*inputs("demo:vit"))
    progress.clear()
    work.judged(found, ("road", "deletion"))
    assert len(progress) == 9  # the start, then the map and three baseline maps, each with two metrics
    assert rising(progress)


def test_the_plots_hold_all_maps_and_agree_with_the_table():
    table = work.judged(work.explained(*inputs("demo:vit")), work.CURVES).table
    plots = scores.plots_of(table)
    for frame in plots.values():
        assert set(frame["map"]) == set(scores.MAPS)
        assert frame.notna().all(axis=None)
        assert frame.pixels.between(0, 1).all()
    lines = scores.table_of(table).splitlines()[2:]
    cells = {line.split("|")[1].strip(): line.split("|") for line in lines}
    road = plots["road"]
    for name, line in (("this map", "HiResCAM"), ("random", "random map")):
        assert road[road["map"] == name].score.mean() == pytest.approx(float(cells[line][2]), abs=1e-3)


def test_a_plot_holds_numbers_and_names_all_maps_before_they_are_measured():
    table = work.judged(work.explained(*inputs("demo:vit")), ("deletion",)).table
    early = dataclasses.replace(table, metrics=work.CURVES, records=table.records[:1])
    for metric, frame in scores.plots_of(early).items():
        assert [str(frame[column].dtype) for column in ("pixels", "score")] == ["float64", "float64"]
        assert set(frame["map"]) == set(scores.MAPS)
        assert set(frame.dropna()["map"]) == ({"this map"} if metric == "deletion" else set())


def test_an_unforeseen_error_reaches_the_visitor_as_its_type_and_the_log_in_full(caplog):
    def fails():
        raise KeyError("/a/path/of/this/machine")

    with pytest.raises(gr.Error, match=r"^'That did not work here \(KeyError\)\.'$"):
        asyncio.run(events.as_event(fails)())
    assert "/a/path/of/this/machine" in caplog.text


@pytest.mark.parametrize(
    "press",
    [
        lambda: events.choose(None, 0.5, "turbo", types.SimpleNamespace(index=0)),
        lambda: events.point(types.SimpleNamespace(index=(3, 5)), str(SCENE), None, "demo:detr", *[""] * 9),
        lambda: events.press_compare(None, ["gradcam"], 0.5, "turbo"),
        lambda: events.press_measure(None),
    ],
    ids=["choose", "point", "compare", "trust"],
)
def test_before_there_is_a_map_the_visitor_is_asked_to_press_explain(press):
    with pytest.raises(gr.Error, match="Press Explain first"):
        asyncio.run(events.as_event(press)())


def test_a_click_chooses_the_smallest_box_around_it():
    found = work.explained(*inputs("demo:detr"))
    first = found.explanations[0]
    boxes = ((10, 10, 200, 100), (40, 20, 90, 70), (300, 10, 301, 11))
    nested = work.Found(found.settings, tuple(dataclasses.replace(first, box=box) for box in boxes))
    assert [events.under(pixel, nested).shown for pixel in ((50, 30), (20, 90))] == [1, 0]
    assert events.under((30, 150), nested) is None


def test_a_download_reports_progress(hub, vit_folder, progress, monkeypatch):
    monkeypatch.setattr(models.BUILDER, "measure", lambda _: models.Scale())
    hub.folder("someone").mkdir(parents=True, exist_ok=True)
    if not hub.folder("someone/fetched").exists():
        hub.folder("someone/fetched").symlink_to(vit_folder)
    with models.Models().lent("someone/fetched"):
        pass
    assert {step for _, step in progress} == {"Fetching someone/fetched", "Loading someone/fetched"}
    assert rising(progress)


class Watched:
    """A demo model whose every module is counted as it runs."""

    def __init__(self, kept, name="demo:imagenet"):
        with kept.lent(name) as loaded:
            self.loaded, self.lock = loaded, kept._known[name].lock
        self.ran, self.handles = 0, []
        for module in loaded.model.modules():
            self.handles.append(module.register_forward_hook(self._count))

    def _count(self, *_):
        self.ran += 1

    def remove(self):
        for handle in self.handles:
            handle.remove()

    @property
    def hooks(self):
        modules = self.loaded.model.modules()
        return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in modules)


@pytest.fixture
def watched():
    found = Watched(models.MODELS)
    yield found
    found.remove()


@pytest.mark.parametrize("how", ["Stop is pressed", "the program cancels", "the page is closed"])
def test_a_stop_ends_the_computing_and_frees_the_model(how, watched):
    picture, settings = inputs("demo:imagenet")
    hooks, left = watched.hooks, threading.Event()

    def compute():
        try:
            return work.compared(picture, settings, quick_methods())
        finally:
            left.set()

    async def visit():
        task = asyncio.ensure_future(jobs.run(compute, visit="a visit"))
        while not watched.ran:
            await asyncio.sleep(0.01)
        assert watched.lock.locked()
        if how == "the program cancels":
            task.cancel()
        else:  # both call the same function
            events.stopped(types.SimpleNamespace(session_hash="a visit"))
        with pytest.raises((jobs.Stopped, asyncio.CancelledError)):
            await task

    asyncio.run(visit())
    assert left.wait(20)
    with jobs.held(watched.lock, "waiting"):
        ran = watched.ran
    time.sleep(0.3)
    assert watched.ran == ran
    assert watched.hooks == hooks
    assert jobs._running == {}
    assert not any(parameter.requires_grad is False for parameter in watched.loaded.model.parameters())
    assert work.explained(picture, settings).current.heatmap.any()


def test_who_waits_for_a_model_can_stop_waiting(progress):
    picture, settings = inputs("demo:vit")

    async def visit():
        with models.MODELS.lent("demo:vit"):
            task = asyncio.ensure_future(jobs.run(work.explained, picture, settings, visit="another visit"))
            while not progress:
                await asyncio.sleep(0.01)
            jobs.end("a third visit")
            await asyncio.sleep(0.05)
            assert not task.done()
            jobs.end("another visit")
            with pytest.raises(jobs.Stopped):
                await task

    asyncio.run(visit())
    assert set(progress) == {(0, "Waiting for demo:vit")}


def test_many_visitors_threads_share_the_few_that_compute():
    picture, settings = inputs("demo:vit")
    used = set()
    with models.MODELS.lent("demo:vit") as loaded:
        hook = loaded.model.register_forward_pre_hook(lambda *_: used.add(threading.current_thread().name))
    try:
        visits = [threading.Thread(target=work.explained, args=(picture, settings)) for _ in range(8)]
        for visit in visits:
            visit.start()
        for visit in visits:
            visit.join()
    finally:
        hook.remove()
    assert used
    assert used <= {f"computing_{number}" for number in range(jobs.WORKERS)}


def test_more_visitors_than_the_page_computes_for_wait_their_turn(progress, monkeypatch):
    monkeypatch.setattr(models, "SLOTS", threading.BoundedSemaphore(1))
    kept = models.Models()

    def borrow():
        with kept.lent("demo:swin"):
            pytest.fail("there was room for two")

    async def visit():
        with kept.lent("demo:vit"):
            task = asyncio.ensure_future(jobs.run(borrow, visit="a visit"))
            while not progress:
                await asyncio.sleep(0.01)
            jobs.end("a visit")
            with pytest.raises(jobs.Stopped):
                await task

    asyncio.run(visit())
    assert set(progress) == {(0, "Waiting for other visitors")}


def test_a_download_can_be_stopped(hub, vit_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(scratch, "home", lambda: tmp_path)
    hub.folder("someone").mkdir(parents=True, exist_ok=True)
    if not hub.folder("someone/stopped").exists():
        hub.folder("someone/stopped").symlink_to(vit_folder)
    measured = threading.Event()

    def measure(_):
        measured.set()
        jobs.end("a visit")
        return models.Scale()

    monkeypatch.setattr(models.BUILDER, "measure", measure)
    kept = models.Models()

    def fetch():
        with kept.lent("someone/stopped"):
            pytest.fail("it was loaded")

    with pytest.raises(jobs.Stopped):
        asyncio.run(jobs.run(fetch, visit="a visit"))
    assert measured.is_set()
    for _ in range(100):
        if not list(tmp_path.iterdir()) and not list(kept):
            break
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []
    assert list(kept) == []
    assert not any(request.endswith(".safetensors") and "GET" in request for request in hub.requests)


def test_what_a_visit_keeps_holds_no_model_alive(monkeypatch):
    kept = models.Models(kept=1)
    monkeypatch.setattr(work, "MODELS", kept)
    monkeypatch.setattr(events, "MODELS", kept)
    picture, settings = inputs("demo:swin")
    found = work.explained(picture, settings)
    with kept.lent("demo:swin") as loaded:
        gone = weakref.ref(loaded.model)
    with kept.lent("demo:convnext"):
        pass
    del loaded
    gc.collect()
    assert gone() is None
    assert events.show(found, 0.5, "turbo")


# ZeroGPU -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_zero(monkeypatch):
    """`work` as it is on ZeroGPU: what is lent a GPU gets a context of its own, and everything between is pickled."""
    lent = []

    def gpu(task):
        def far(*given):
            lent.append(task.__name__)
            answer = contextvars.Context().run(task, *pickle.loads(pickle.dumps(given)))
            return pickle.loads(pickle.dumps(answer))

        return far

    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=gpu))
    spec = importlib.util.spec_from_file_location("work_on_zero", space_folder() / "work.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "work_on_zero", module)
    spec.loader.exec_module(module)
    return module, lent


def test_all_that_computes_is_lent_a_gpu_and_crosses_to_its_process(on_zero):
    far, lent = on_zero
    picture, settings = far.read_inputs(
        str(SCENE), "demo:clip", "", "a yellow bag\nan orange sneaker", "auto", "", False, False
    )
    found = far.explained(picture, settings)
    near = work.explained(picture, inputs("demo:clip", prompts=settings.prompts)[1])
    assert [one.label for one in found.explanations] == [one.label for one in near.explanations]
    assert (found.current.heatmap == near.current.heatmap).all()
    assert len(far.compared(picture, settings, ("gradcam", "layercam")).explanations) == 2
    assert far.judged(found, ("road",), True).check
    assert far.layers_of("demo:clip")[1:]
    assert lent == ["_explained", "_compared", "_judged", "_layers_of"]


def test_a_refusal_comes_back_from_there_as_its_sentence(on_zero):
    far, _ = on_zero
    picture, settings = inputs("demo:vit", layers=("no.such.layer",))
    with pytest.raises(limits.Refused, match=r"no\.such\.layer"):
        far.explained(picture, far.Settings(**vars(settings)))


def test_zerogpu_is_imported_before_all_that_may_touch_the_gpu():
    nodes = sorted(
        (node for node in ast.walk(ast.parse((space_folder() / "app.py").read_text())) if hasattr(node, "names")),
        key=lambda node: node.lineno,
    )
    names = [getattr(node, "module", None) or node.names[0].name for node in nodes]
    assert [name for name in names if name not in sys.stdlib_module_names] == ["spaces", "scratch", "page"]


# Layers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(models.demos()))
def test_every_layer_in_the_menu_gives_a_map(name):
    layers = work.layers_of(name)
    assert len(layers) >= 2
    picture, settings = inputs(name)
    own = work.explained(picture, settings).current
    assert own.layers[0] == layers[0]
    for layer in layers:
        found = work.explained(picture, dataclasses.replace(settings, layers=(layer,), top_k=1))
        assert found.current.layers == (layer,)
        assert found.current.heatmap.shape == (picture.height, picture.width)
        assert found.current.heatmap.any() or "no evidence" in found.current.flags
