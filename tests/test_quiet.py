"""A script prints what it prints itself: nothing of what transformers has to say while a model loads."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from transformers.utils import logging as theirs

from hf_cam.models import quiet
from hf_cam.models.quiet import late_bars, no_remarks

SCRIPT = """
import hf_cam
from hf_cam.zoo import SCENE, demo_model
from transformers import pipeline
print(hf_cam.explain(SCENE, "demo:imagenet")[0].label)
print(hf_cam.explain(SCENE, "demo:llava", text="Where is the bag?").answer)
print(pipeline("image-cam", model=str(demo_model("vit")))(str(SCENE))[0]["label"])
"""


@pytest.mark.slow
def test_a_plain_script_prints_its_own_lines_alone() -> None:
    """The first of these models has a processor that transformers remarks on (its own pipeline loads one itself)."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == ""


@pytest.fixture
def bars() -> Iterator[None]:
    """Bars are on, as they are outside the command."""
    was = theirs.is_progress_bar_enabled()
    theirs.enable_progress_bar()
    yield
    if not was:
        theirs.disable_progress_bar()


def test_a_bar_appears_where_loading_takes_long(bars, monkeypatch, capsys) -> None:
    monkeypatch.setattr(quiet, "BAR_AFTER", 0)
    with late_bars():
        list(theirs.tqdm(range(3), desc="Loading"))
    assert "Loading" in capsys.readouterr().err


def test_bars_of_other_threads_and_afterwards_appear_at_once(bars, capsys) -> None:
    def other() -> None:
        list(theirs.tqdm(range(3), desc="Other"))

    with late_bars():
        list(theirs.tqdm(range(3), desc="Mine"))
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    list(theirs.tqdm(range(3), desc="After"))
    shown = capsys.readouterr().err
    assert "Other" in shown
    assert "After" in shown
    assert "Mine" not in shown


def test_a_hook_for_bars_of_the_callers_is_asked_and_put_back(bars) -> None:
    asked = []

    def hook(factory, args, settings):
        asked.append(settings["desc"])
        return factory(*args, **settings)

    before = theirs.set_tqdm_hook(hook)
    try:
        with late_bars():
            list(theirs.tqdm(range(3), desc="Inside"))
        list(theirs.tqdm(range(3), desc="Outside"))
    finally:
        assert theirs.set_tqdm_hook(before) is hook
    assert asked == ["Inside", "Outside"]


def test_errors_and_other_threads_are_heard_while_a_processor_loads(caplog) -> None:
    log = logging.getLogger("transformers.models.auto.image_processing_auto")
    caplog.set_level(logging.WARNING, logger=log.name)
    heard: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    theirs.add_handler(listener)
    try:
        with no_remarks():
            log.warning("a remark")
            log.error("an error")
            thread = threading.Thread(target=log.warning, args=("of another thread",))
            thread.start()
            thread.join()
        log.warning("afterwards")
    finally:
        theirs.remove_handler(listener)
    assert heard == ["an error", "of another thread", "afterwards"]
    assert not listener.filters
