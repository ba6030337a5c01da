"""The page: what it refuses, what it computes, its API, and a walk through it in a real browser."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hf_cam
from hf_cam.demo import PHOTOGRAPHS
from hf_cam.space import deploy, space_folder
from hf_cam.zoo import SCENE

sys.path.insert(0, str(space_folder()))
import limits
import models
import work

SCENE_MODELS = ("demo:vit", "demo:swin", "demo:convnext", "demo:detr", "demo:segformer", "demo:clip")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of the page, started by the command without a network."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("space") / "log.txt"
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(log.parent / "gradio"), "OMP_NUM_THREADS": "2"}
    with log.open("w") as out:
        command = [sys.executable, "-m", "hf_cam", "space", "--port", str(port)]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(address, timeout=5).read()
                break
            except OSError:
                time.sleep(0.25)
        yield address
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def client(server):
    from gradio_client import Client

    return Client(server, verbose=False)


def ask(client, image, model, endpoint="/explain", **more):
    from gradio_client import handle_file

    return client.predict(image=handle_file(str(image)), model=model, api_name=endpoint, **more)


TYPED = {
    "a long prompt": ({"model": "demo:clip", "prompts": "x" * 10_000}, "10000 letters"),
    "many prompts": ({"model": "demo:clip", "prompts": "\n".join(["a bag"] * 1000)}, "1000 prompts"),
    "no prompt": ({"model": "demo:clip", "prompts": " \n"}, "at least one prompt"),
    "a path": ({"model": "../../etc/passwd"}, "no model id"),
    "dots": ({"model": "owner/..name"}, "no model id"),
    "a URL": ({"model": "http://127.0.0.1/a/b"}, "no model id"),
    "a folder": ({"model": str(SCENE.parent / "vit")}, "no model id"),
    "an unknown demo": ({"model": "demo:nothing"}, "no model id"),
    "a Hub id without a network": ({"model": "google/vit-base-patch16-224"}, "without a network"),
    "a method": ({"model": "demo:vit", "method": "nothing"}, "no method"),
    "a class": ({"model": "demo:vit", "target": "unicorn"}, "unicorn"),
    "a long target": ({"model": "demo:vit", "target": "x" * 10_000}, "10000 letters"),
    "layers": ({"model": "demo:vit", "layers": "no.such.layer"}, "no.such.layer"),
}


@pytest.mark.parametrize("kind", TYPED)
def test_what_makes_no_sense_is_refused_with_a_sentence_and_the_server_lives(client, kind):
    typed, sentence = TYPED[kind]
    with pytest.raises(Exception, match=sentence):
        ask(client, SCENE, **typed)


def test_the_server_reads_no_picture_from_an_inside_address(client):
    seen = []

    class Inside(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_error(404)

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    inside = HTTPServer(("127.0.0.1", 0), Inside)
    threading.Thread(target=inside.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{inside.server_port}/secret.png"
    file = {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(Exception, match=r".+"):
        client.predict(image=file, model="demo:vit", api_name="/explain")
    inside.shutdown()
    inside.server_close()
    assert seen == []


def test_eight_at_once_get_what_the_library_gives(client):
    calls = [*SCENE_MODELS, "demo:vit", "demo:dinov2"]

    def one(model):
        prompts = "yellow bag\nblue trouser" if model == "demo:clip" else ""
        return ask(client, SCENE, model, prompts=prompts, top_k=2)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, calls))
    for model, (described, overlays, heatmaps) in zip(calls, answers, strict=True):
        text = ["yellow bag", "blue trouser"] if model == "demo:clip" else None
        expected = hf_cam.explain(SCENE, model, text=text, top_k=2)
        assert [one["label"] for one in described] == [one.label for one in expected], model
        np.testing.assert_allclose(np.load(heatmaps), np.stack([one.heatmap for one in expected]), atol=2e-3)
        assert len(overlays) == len(expected)


def test_compare_and_metrics_answer_programs(client):
    grid, heatmaps = ask(client, SCENE, "demo:vit", "/compare", methods=["gradcam", "layercam"])
    expected = hf_cam.compare(SCENE, "demo:vit", methods=["gradcam", "layercam"])
    with Image.open(grid) as sheet:
        assert sheet.size == expected.grid().size
    found = np.load(heatmaps)
    for one in expected.explanations:
        np.testing.assert_allclose(found[one.method], one.heatmap, atol=2e-3)
    table = ask(client, SCENE, "demo:vit", "/metrics", method="gradcam")
    assert set(table) >= {"gradcam", "random"}
    for judged in table.values():
        assert set(judged["scores"]) == set(work.METRICS)
        assert {"inserted", "deleted"} <= set(judged["curves"])


def test_the_snippet_makes_the_map_that_is_shown(tmp_path, monkeypatch):
    picture = Image.open(SCENE).convert("RGB").resize((1280, 960))
    picture.save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    read, wish = work.wished("image.png", "demo:detr", "", "", "auto", "", False, False)
    found = work.Found(wish, work.explained(read, wish).explanations, shown=1)
    made: dict = {}
    exec(work.snippet(found, 0.5, "turbo"), made)
    np.testing.assert_array_equal(made["found"][1].heatmap, found.current.heatmap)
    assert found.current.image.size == (1024, 768)
    with Image.open("overlay.png") as overlay:
        assert overlay.size == (1024, 768)


def test_a_target_is_in_the_pixels_of_the_upload():
    assert limits.read_target("100, 50", 0.5) == (50.0, 25.0)
    assert limits.read_target("7", 0.5) == "7"
    assert limits.read_target(" ", 0.5) is None


def test_few_models_stay_loaded_and_the_oldest_goes():
    kept = models.Models(kept=2)
    for name in ("demo:vit", "demo:swin", "demo:vit", "demo:convnext"):
        with kept.lent(name):
            pass
    assert list(kept) == ["demo:vit", "demo:convnext"]


def test_old_downloads_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "SCRATCH", tmp_path)
    old, young = work.fresh_folder(), work.fresh_folder()
    os.utime(old, (0, 0))
    work.fresh_folder()
    assert young.is_dir()
    assert not old.exists()


def test_deploy_pushes_the_folder_as_it_is(hub):
    deploy("someone/page")
    files = [name for name in hub.files("someone/page") if name != ".gitattributes"]
    here = {path.name: path.read_bytes() for path in space_folder().iterdir() if path.is_file()}
    assert sorted(here) == files
    assert all((hub.folder("someone/page") / name).read_bytes() == content for name, content in here.items())


def test_a_space_needs_an_owner():
    with pytest.raises(hf_cam.HFCamError, match="USER/NAME"):
        deploy("name")


def test_the_front_matter_names_a_file_that_is_there():
    head = (space_folder() / "README.md").read_text().split("---")[1]
    fields = dict(line.split(": ", 1) for line in head.strip().splitlines())
    assert (space_folder() / fields["app_file"]).is_file()
    assert fields["sdk"] == "gradio"
    assert (space_folder() / "requirements.txt").read_text().startswith("hf-cam[space]")


CHROMIUM = Path("/usr/bin/chromium")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.is_file():
        told = "there is no /usr/bin/chromium; install it with: apt-get install chromium"
        if os.environ.get("HF_CAM_BROWSER") == "required":
            pytest.fail(told)
        pytest.skip(told)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(QUIET))
        yield found
        found.close()


class Visit:
    """A page in the browser, with what a visitor does there."""

    def __init__(self, browser, server, folder, **options):
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(20_000)
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.folder = folder
        self.page.on("request", lambda request: self._note(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        started = time.perf_counter()
        self.page.goto(server)
        self.page.wait_for_selector("#go")
        self.seconds = time.perf_counter() - started
        self.page.wait_for_selector("#map img")

    def _note(self, url):
        if "127.0.0.1" not in url and not url.startswith(("data:", "blob:")):
            self.outside.append(url)

    def says(self):
        return self.page.inner_text("#says p")

    def changes(self, act):
        """What the sentence says once `act` has changed it."""
        before = self.says()
        act()
        self.page.wait_for_function("b => (document.querySelector('#says p')?.innerText ?? b) !== b", arg=before)
        return self.says()

    def open(self, tab):
        self.page.get_by_role("tab", name=tab, exact=True).click()

    def model(self):
        return self.page.input_value("#model input")

    def source(self, selector="#map img"):
        return [image.get_attribute("src") for image in self.page.query_selector_all(selector)]

    def shoot(self, name):
        self.page.wait_for_timeout(300)
        self.page.screenshot(path=self.folder / f"{name}.png", full_page=True)


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    """Where they are kept: `$HF_CAM_SCREENSHOTS`, or with pytest's own files."""
    folder = Path(os.environ.get("HF_CAM_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.browser
def test_a_visitor_walks_through_the_page(browser, server, screenshots, tmp_path):
    visit = Visit(browser, server, screenshots, viewport={"width": 1280, "height": 1000})
    page = visit.page
    assert visit.seconds < 10  # three on a quiet machine
    assert "cat" in visit.says()
    visit.shoot("classify")

    second = visit.changes(lambda: page.locator("#found button.thumbnail-item").nth(1).click())
    assert second.split(" · ")[0] == page.locator("#found .caption-label").nth(1).inner_text().split(" · ")[0]

    next(photograph for photograph in PHOTOGRAPHS if photograph.name == "coffee").image().save(tmp_path / "cup.png")
    page.click("#picture button[aria-label='Remove Image']")
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "cup.png")
    page.wait_for_selector("#picture img")
    assert "espresso" in visit.changes(lambda: page.click("#go"))

    before, sentence = visit.source(), visit.says()
    page.locator("#alpha input[type=number]").fill("0.9")
    page.keyboard.press("Tab")
    page.wait_for_function("b => document.querySelectorAll('#map img')[1].src !== b[1]", arg=before)
    assert visit.says() == sentence

    (tmp_path / "no.png").write_text("no picture at all")
    page.click("#picture button[aria-label='Remove Image']")
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "no.png")
    page.wait_for_selector("#picture img", state="attached")
    page.click("#go")
    page.get_by_text("The file is no picture that this page reads").wait_for()

    with page.expect_download() as download:
        page.click("#numbers-file")
    assert np.load(download.value.path()).shape == (400, 600)
    with page.expect_download() as download:
        page.click("#overlay-file")
    with Image.open(download.value.path()) as overlay:
        assert overlay.size == (600, 400)
    assert "hf_cam.explain" in page.inner_text("#code")
    assert visit.outside == []
    assert visit.errors == []
    page.close()


@pytest.mark.browser
def test_the_tabs_choose_prompts_boxes_and_segments(browser, server, screenshots):
    visit = Visit(browser, server, screenshots, viewport={"width": 1280, "height": 1000})
    page = visit.page

    visit.open("Prompt")
    page.wait_for_selector("#prompts textarea")
    page.fill("#prompts textarea", "a yellow bag\nan orange sneaker")
    visit.changes(lambda: page.click("#go"))
    labels = page.locator("#found .caption-label").all_inner_texts()
    assert sorted(label.split(" · ")[0] for label in labels) == ["a yellow bag", "an orange sneaker"]
    visit.shoot("prompt")

    visit.open("Detect")
    page.wait_for_function("() => document.querySelector('#model input').value === 'demo:detr'")
    assert visit.changes(lambda: page.click("#go")).startswith("bag")
    page.wait_for_selector("#large img")
    visit.shoot("detect")
    box = page.locator("#large img").bounding_box()
    place = {"x": box["width"] * 0.68, "y": box["height"] * 0.2}  # on the sneaker
    assert visit.changes(lambda: page.locator("#large img").click(position=place)).startswith("sneaker")

    visit.open("Segment")
    page.wait_for_function("() => document.querySelector('#model input').value !== 'demo:detr'")
    assert visit.changes(lambda: page.click("#go")).startswith("bag")
    assert visit.changes(lambda: page.locator("#large img").click(position=place)).startswith("sneaker")
    visit.shoot("segment")

    visit.open("Compare")
    page.click("#compare-go")
    page.wait_for_selector("#grid img")
    assert page.locator("#grid .caption-label").first.is_visible()
    visit.shoot("compare")
    visit.open("Trust")
    page.click("#trust-go")
    page.wait_for_selector("#scores table")
    assert "random" in page.inner_text("#scores")
    visit.shoot("trust")

    visit.open("Classify")
    page.wait_for_function("() => document.querySelector('#model input').value === 'demo:imagenet'")
    assert visit.errors == []
    page.close()


@pytest.mark.browser
def test_the_page_fits_a_dark_telephone(browser, server, screenshots):
    visit = Visit(browser, server, screenshots, viewport={"width": 390, "height": 844}, color_scheme="dark")
    visit.shoot("narrow-dark")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    shade = visit.page.evaluate("getComputedStyle(document.querySelector('.gradio-container')).backgroundColor")
    assert max(int(part) for part in shade.strip("rgba()").split(",")[:3]) < 60
    without_words = visit.page.evaluate(
        "[...document.images].filter(i => i.width > 40 && !i.alt).map(i => i.outerHTML)"
    )
    assert without_words == []
    visit.page.close()
