"""The page in production: controls without a value, many visitors, a killed server, and what stays private."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import os
import random
import statistics
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import psutil
import pytest
from PIL import Image

from conftest import HUB
from hf_cam.zoo import SCENE
from serving import Served, Visit, serving

HOSTILE = "<img src=x onerror=alert(1)><b>bold</b>"
LABEL = f"{HOSTILE} & **stars** [link](javascript:alert(2))"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> str:
    """A model on the Hub whose classes are named in HTML and Markdown."""
    from transformers import ViTForImageClassification, ViTImageProcessor

    from nets import tiny
    from pictures import SIZE

    folder = HUB.folder("someone/hostile")
    labels = {number: f"{LABEL} {number}" for number in range(3)}
    named = {"num_labels": 3, "id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    tiny(ViTForImageClassification, image_size=SIZE, initializer_range=0.2, **named).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIZE[0], "width": SIZE[1]}).save_pretrained(folder)
    return "someone/hostile"


@pytest.fixture(scope="module")
def served(tmp_path_factory, hostile):
    with serving(tmp_path_factory.mktemp("load"), "--online") as found:
        yield found


def picture(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (12, 18, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((300, 200), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


# Controls without a value --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_any_control_of_any_event_without_a_value_is_left_out_or_refused_with_a_sentence(served):
    visit = Visit(served.address)
    scene = visit.upload(SCENE.read_bytes(), "scene.png")
    given = {"model": "demo:vit", "picture": scene, "image": scene, "words-picture": scene, "methods": ["gradcam"]}
    given |= {"audit-model": "demo:vit", "words-model": "demo:llava"}
    assert visit.send(visit.pressed("go"), visit.values(visit.pressed("go"), **given))["success"]
    asked, failed = 0, []
    for event in visit.events():
        data = visit.values(event, **given)
        for place in range(len(data)):
            if data[place] in ("demo:cheater", None) or visit.parts[event["inputs"][place]]["type"] == "state":
                continue
            cause = visit.parts.get(event["targets"][0][0], {"type": "page"})  # what is opened is no part of itself
            on_picture = cause["type"] == "image"
            picked = {"index": [5, 5] if on_picture else 0, "value": "", "selected": True}
            answer = visit.send(event, [*data[:place], None, *data[place + 1 :]], picked)
            asked += 1
            said = (answer.get("output") or {}).get("error")
            if not answer["success"] and (not said or "did not work here" in said):
                failed.append((event["api_name"], visit.parts[event["inputs"][place]]["props"].get("label"), said))
    assert asked > 50
    assert failed == []


# Many visitors -------------------------------------------------------------------------------------------------------

VISITORS = 16
SECONDS = float(os.environ.get("HF_CAM_LOAD_SECONDS", "120"))
MODELS = ("imagenet", "vit", "swin", "convnext", "dinov2", "clip", "detr", "segformer", "cheater")


def megabytes(process: psutil.Process) -> float:
    family = [process, *process.children(recursive=True)]
    return sum(one.memory_info().rss for one in family) / 2**20


@pytest.mark.slow
def test_memory_does_not_grow_while_sixteen_visitors_have_models_loaded_and_dropped(tmp_path, capsys):
    answers, wrong, used = [], [], []
    with serving(tmp_path) as served:
        process, end = psutil.Process(served.process.pid), time.monotonic() + SECONDS

        def watch():
            while time.monotonic() < end:
                used.append(megabytes(process))
                time.sleep(1)

        def visitor(number):
            chance, turns = random.Random(number), itertools.count(number)
            while time.monotonic() < end:
                visit = Visit(served.address)  # the last one has closed the page
                try:
                    answer = _a_visit(visit, chance, f"demo:{MODELS[next(turns) % len(MODELS)]}")
                except (OSError, AssertionError) as error:
                    wrong.append(repr(error))
                    continue
                answers.append(answer["success"])
                if not answer["success"]:
                    wrong.append(str(answer["output"]))

        with ThreadPoolExecutor(VISITORS + 1) as pool:
            list(pool.map(lambda work: work(), [watch, *(lambda n=n: visitor(n) for n in range(VISITORS))]))
        start, middle, last = (used[0], *(statistics.median(part) for part in _thirds(used)[1:]))
        with capsys.disabled():
            sys.stdout.write(
                f"\n{len(answers)} answers to {VISITORS} visitors in {SECONDS:.0f} s; "
                f"memory in MB: {start:.0f} at the start, {middle:.0f} in the middle third, {last:.0f} in the last, "
                f"at most {max(used):.0f}\n"
            )
        assert wrong == []
        assert len(answers) >= VISITORS
        assert last < 1.1 * middle


def _thirds(values):
    third = len(values) // 3
    return values[:third], values[third : 2 * third], values[2 * third :]


def _a_visit(visit: Visit, chance: random.Random, model: str) -> dict:
    """A picture is uploaded and explained, in the API or on the page, or a question is asked about it."""
    kind = chance.choice(["explain", "page", "compare", "words"])
    noise = picture(chance.randrange(10**6))  # about which the writer has no words
    image = visit.upload(SCENE.read_bytes() if kind == "words" else noise)
    if kind == "page":
        event = visit.pressed("go")
        answer = visit.send(event, visit.values(event, picture=image, model=model))
    else:
        event = visit.named(kind)
        own = {"image": image, "model": "demo:llava" if kind == "words" else model, "prompts": "a bag", "top_k": 2}
        answer = visit.send(event, visit.values(event, **own, methods=["gradcam", "layercam"]))
    return answer


# A killed server -----------------------------------------------------------------------------------------------------


def folders(served: Served) -> set[str]:
    return {path.name for path in served.scratch.glob("hf-cam-space-*/server-*")}


@pytest.mark.slow
def test_what_a_killed_server_left_is_gone_at_the_next_start_and_what_a_running_one_has_is_not(tmp_path, hostile):
    with serving(tmp_path, "--online") as first:
        visit = Visit(first.address)
        image = visit.upload(SCENE.read_bytes(), "scene.png")
        event = visit.named("explain")
        assert visit.send(event, visit.values(event, image=image, model=hostile, top_k=1))["success"]
        [left] = folders(first)
        files = [path for path in first.scratch.rglob("*") if path.is_file()]
        assert any(path.suffix == ".safetensors" for path in files)
        assert any(path.name == "heatmaps.npy" for path in files)
        children = psutil.Process(first.process.pid).children(recursive=True)
        with serving(tmp_path) as neighbour:
            assert len(folders(neighbour)) == 2
            neighbour.kill()
        first.kill()
        assert not psutil.wait_procs(children, timeout=20)[1]
        assert left in folders(first)
        with serving(tmp_path) as second:
            [only] = folders(second)
            assert only != left
            outside = [path for path in second.scratch.iterdir() if not path.name.startswith("hf-cam-space-")]
            assert [path.name for path in outside if "hf-cam" in path.name or "gradio" in path.name] == []
            second.kill()


# What stays private --------------------------------------------------------------------------------------------------


def status(address: str, path: str) -> int:
    try:
        with urllib.request.urlopen(f"{address}{path}", timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_one_visitor_cannot_read_what_another_was_given(served):
    first, second = Visit(served.address), Visit(served.address)
    image = first.upload(picture(1), "private.png")
    event = first.pressed("go")
    answer = first.send(event, first.values(event, picture=image, model="demo:vit"))
    assert answer["success"]
    written = [path for path in served.scratch.rglob("*") if path.is_file()]
    results = [path for path in written if "results" in path.parts]
    own = [path for path in written if "private.png" in path.name or path.suffix == ".lock" or path.name == "log.txt"]
    assert results
    uploads = Path(image["path"]).parents[1]
    # Results and the server's other files are not served at all, by any spelling; nothing lists what is served.
    for path in [*results, *[one for one in own if uploads not in one.parents], served.scratch.parent / "log.txt"]:
        for spelt in (str(path), f"{uploads}/../results/{path.relative_to(path.parents[1])}", f"/{path}"):
            for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/"):
                assert status(served.address, f"{route}{quote(spelt)}") in (403, 404), (route, spelt)
    for folder in (uploads, Path(image["path"]).parent, served.scratch):
        assert status(served.address, f"/gradio_api/file={folder}") in (403, 404)
    # What is served has a name that nobody can guess: 256 bits from the content and this server's secret.
    names = {Path(path).parent.name for path in _files(answer)} | {Path(image["path"]).parent.name}
    assert all(len(name) == 64 and int(name, 16) for name in names)
    # Another session has neither the state nor the events of the first.
    compare = second.pressed("compare-go")
    refused = second.send(compare, second.values(compare))
    assert "Press Explain first" in refused["output"]["error"]
    for path in ("/gradio_api/queue/data?session_hash=nobody", "/gradio_api/call/explain/nothing"):
        assert b"overlay" not in so_far(second, path)
    for path in ("/monitoring", "/monitoring/summary", "/gradio_api/run-history/records", "/gradio_api/runs"):
        assert status(served.address, path) >= 400, path


def so_far(visit: Visit, path: str, seconds: float = 3) -> bytes:
    """What arrives in a few seconds: a stream may wait for events that never come."""
    try:
        return visit.get(path, timeout=seconds)
    except http.client.IncompleteRead as error:
        return error.partial
    except OSError:
        return b""


def _files(answer: object) -> list[str]:
    """The paths of all files in an answer."""
    if isinstance(answer, dict):
        own = [answer["path"]] if isinstance(answer.get("path"), str) else []
        return own + [path for value in answer.values() for path in _files(value)]
    return [path for value in answer for path in _files(value)] if isinstance(answer, list) else []


@pytest.mark.slow
def test_who_knows_an_event_cannot_read_it_once_it_was_answered(served):
    first = Visit(served.address)
    body = json.dumps({"data": first.values(first.named("words"), image=first.upload(picture(2)))}).encode()
    request = urllib.request.Request(
        f"{served.address}/gradio_api/call/words", body, {"Content-Type": "application/json"}
    )
    event = json.loads(urllib.request.urlopen(request, timeout=30).read())["event_id"]
    assert b"complete" in first.get(f"/gradio_api/call/words/{event}")
    assert b"complete" not in so_far(first, f"/gradio_api/call/words/{event}")


# Words of strangers --------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_labels_and_prompts_in_html_are_shown_as_text(browser, served, hostile):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(90_000)
    alarms = []
    page.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
    page.goto(served.address)
    page.wait_for_selector("#map img")

    def choose(model):
        page.fill("#model input", model)
        page.keyboard.press("Enter")

    def markup():
        return page.evaluate("document.querySelectorAll('img[src=x], a[href^=javascript], #says b').length")

    choose(hostile)
    page.wait_for_timeout(500)
    page.click("#go")
    page.wait_for_function("label => document.querySelector('#says')?.innerText.includes(label)", arg=LABEL)
    page.locator("#found .caption-label").first.wait_for()
    assert HOSTILE in page.locator("#found .caption-label").first.inner_text()
    assert HOSTILE in page.inner_text("#code .cm-content") or "&" not in page.inner_text("#code .cm-content")
    assert markup() == 0

    choose("demo:clip")
    page.wait_for_selector("#prompts textarea")
    image, link = "a bag <img src=x onerror=alert(1)>", "<b>a bag</b> [link](javascript:alert(2))"
    page.fill("#prompts textarea", f"{image}\n{link}")
    page.click("#go")
    page.locator("#found").get_by_text(image).first.wait_for()
    page.locator("#found").get_by_text(link).first.wait_for()
    assert page.inner_text("#says").startswith((image, link))
    assert markup() == 0

    choose("<img src=x onerror=alert(3)>")
    page.click("#go")
    page.get_by_text("'<img src=x onerror=alert(3)>' is not a model id").first.wait_for()
    assert markup() == 0
    assert alarms == []
    page.close()
