"""The rooms of words and audits: what they refuse, what they compute, and walks through them in a real browser."""

import contextvars
import importlib.util
import io
import os
import pickle
import stat
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hf_cam
from hf_cam.errors import HFCamError
from hf_cam.explanation import AGAINST_PICTURE, WITHOUT_PICTURE, Explanation
from hf_cam.interfaces.space import space_folder
from hf_cam.words.answer import Answer
from hf_cam.words.page import html
from hf_cam.zoo import SCENE, demo_model
from hf_cam.zoo.scenes import cheater_scenes
from serving import serving

sys.path.insert(0, str(space_folder()))
import audit_room
import limits
import models
import scratch
import uploads
import words_room

QUESTION = "What is in the picture?"
ANSWER = "A blue trouser, a yellow bag and an orange sneaker."
PLACES = {"trouser": (175, 235), "sneaker": (350, 85), "bag": (318, 232)}
"""The middles of the items in the scene."""

# Words ---------------------------------------------------------------------------------------------------------------


def asked(text=QUESTION, target="", method="auto", path=SCENE, model="demo:llava"):
    return words_room.read_inputs(str(path), model, text, target, method)


NOT_ASKED = {
    "nothing": ({"text": " "}, "Type a question"),
    "a long question": ({"text": "x" * 201}, "201 characters"),
    "a long word": ({"target": "x" * 201}, "201 characters"),
    "a classifier": ({"model": "demo:vit"}, "not a model id such as owner/name or demo:llava"),
    "a path": ({"model": "../../etc/passwd"}, "not a model id"),
    "a Hub id without a network": ({"model": "someone/llava"}, "without a network; it offers demo:llava"),
    "a method of pictures": ({"method": "gradcam"}, "not a method of this page; it offers auto, word-contribution"),
    "no picture": ({"path": ""}, "Choose a picture first"),
}


@pytest.mark.parametrize("kind", NOT_ASKED)
def test_what_cannot_be_asked_is_refused_with_a_sentence(kind):
    changes, sentence = NOT_ASKED[kind]
    with pytest.raises(limits.Refused, match=sentence):
        asked(**changes)


@pytest.mark.parametrize("control", ["path", "model", "text", "target", "method"])
def test_a_control_without_a_value_is_left_out_or_refused(control):
    given = {"path": str(SCENE), "model": "demo:llava", "text": QUESTION, "target": "", "method": "auto"}
    try:
        _, question = words_room.read_inputs(**given | {control: None})
    except limits.Refused:
        assert control in ("path", "model", "text")
    else:
        assert (question.target, question.method) == (None, "auto")


def test_the_room_shows_the_words_of_the_library():
    picture, question = asked()
    found = words_room.answered(picture, question)
    expected = hf_cam.explain(SCENE, "demo:llava", text=QUESTION)
    assert found.answer == expected.answer == ANSWER
    for one, other in zip(found, expected, strict=True):
        assert (one.label, one.span, one.flags) == (other.label, other.span, other.flags)
        np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-4)
    assert found.model == "demo:llava"


def test_the_example_is_right_and_each_noun_lights_up_its_own_item():
    question, answer = words_room.welcome()
    assert (question.text, answer.answer) == (QUESTION, ANSWER)
    for word in answer:
        if word.label in PLACES:
            assert pointed_at(word) == word.label
            assert not word.flags


def pointed_at(word):
    """The item that is the closest to the peak of a word's map."""
    row, column = np.unravel_index(word.heatmap.argmax(), word.heatmap.shape)
    return min(PLACES, key=lambda item: np.hypot(column - PLACES[item][0], row - PLACES[item][1]))


def test_the_button_of_the_room_shows_a_word_that_rests_on_the_picture_at_its_own_item():
    _, answer = words_room.welcome()
    word = words_room.first_shown(answer)
    assert pointed_at(word) == word.label
    faint = [one for one in answer if one.flags]
    assert words_room.first_shown(Answer(faint, answer=answer.answer, image=answer.image)) is faint[0]


def test_words_with_hardly_any_evidence_are_named():
    _, answer = words_room.welcome()
    said = words_room.says(answer)
    flagged = [one.label for one in answer if WITHOUT_PICTURE in one.flags]
    assert flagged
    assert said.endswith(f"{words_room.FAINT} {', '.join(flagged)}.")
    rest = [one for one in answer if WITHOUT_PICTURE not in one.flags]
    assert words_room.FAINT not in words_room.says(Answer(rest, answer=answer.answer, image=answer.image))


def test_words_that_the_picture_speaks_against_are_named():
    _, answer = words_room.welcome()
    against = [one.changed(flags=(AGAINST_PICTURE,)) if n in (1, 2) else one for n, one in enumerate(answer)]
    said = words_room.says(Answer(against, answer=answer.answer, image=answer.image))
    assert said.endswith(f"{words_room.AGAINST} {against[1].label}, {against[2].label}.")
    assert words_room.AGAINST not in words_room.says(answer)


def test_a_contrast_is_typed_as_it_is_shown():
    picture, question = asked("What colour is the bag?", "yellow, not blue")
    [word] = words_room.answered(picture, question)
    assert word.label == "yellow, not blue"
    with pytest.raises(HFCamError, match="kettle"):
        words_room.answered(*asked(target="kettle"))


@pytest.mark.parametrize("method", [*hf_cam.list_word_methods()])
def test_every_method_of_the_registry_is_offered_and_answers(method):
    assert method in dict(words_room.method_choices()).values()
    found = words_room.answered(*asked("How many items are there?", method=method))
    assert {one.method for one in found} == {method}


def test_the_code_makes_the_page_that_is_shown(tmp_path, monkeypatch):
    Image.open(SCENE).convert("RGB").resize((1280, 960)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    picture, question = asked("What colour is the bag?", "yellow, not blue", "attention-contrast", "image.png")
    shown = words_room.answered(picture, question)
    made: dict = {}
    exec(words_room.snippet(question), made)
    assert (tmp_path / "answer.html").read_text().count("<img") == html(shown).count("<img")
    np.testing.assert_array_equal(made["answer"][0].heatmap, shown[0].heatmap)


def test_text_of_a_model_is_never_markup():
    hostile = '<img src=x onerror="alert(1)"> **b** $x$'
    image, heatmap = Image.new("RGB", (64, 40)), np.zeros((40, 64), np.float32)
    word = Explanation(hostile, 0.5, heatmap, heatmap, "m", ("l",), image, span=(0, len(hostile)), evidence=1.0)
    faint = word.changed(flags=("no evidence",))
    answer = Answer([word, faint], answer=hostile, image=image, model=hostile)
    shown = words_room.show(words_room.Question("demo:llava", hostile), answer)
    assert "<img" not in shown[1]
    assert "**b**" not in shown[1]
    assert shown[2].count("<") == 2  # the frame begins and ends: its page is an attribute
    assert 'sandbox="allow-scripts"' in shown[2]


def test_a_hub_model_answers_and_one_that_is_too_large_or_writes_nothing_is_refused(hub, monkeypatch, vit_folder):
    monkeypatch.setenv("HF_CAM_SPACE_ONLINE", "1")
    hub.folder("someone").mkdir(parents=True, exist_ok=True)
    for name, folder in (("llava", Path(demo_model("llava"))), ("seer", vit_folder)):
        if not hub.folder(f"someone/{name}").exists():
            hub.folder(f"someone/{name}").symlink_to(folder)
    monkeypatch.setattr(words_room, "MODELS", models.Models())
    picture, question = asked(model="someone/llava")
    answer = words_room.answered(picture, question)
    assert (answer.answer, answer.model) == (ANSWER, "someone/llava")
    with pytest.raises(limits.Refused, match="someone/seer writes no answers"):
        words_room.answered(*asked(model="someone/seer"))
    monkeypatch.setattr(models, "MAX_WEIGHTS", 1000)
    monkeypatch.setattr(words_room, "MODELS", models.Models())
    with pytest.raises(limits.Refused, match="someone/llava are too large"):
        words_room.answered(picture, question)


# Labelled pictures ---------------------------------------------------------------------------------------------------


def png(side=24):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side // 2), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(folder, entries, **options):
    """A zip with these entries; the upload is named otherwise than the file."""
    with zipfile.ZipFile(folder / "upload.zip", "w", **options) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return uploads.Upload(str(folder / "upload.zip"), "pictures.zip")


def link():
    entry = zipfile.ZipInfo("coat/link.png")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def patched(upload, mark, offset, content):
    """The zip with other bytes in its last record of a kind."""
    data = bytearray(Path(upload.path).read_bytes())
    at = data.rfind(mark) + offset
    data[at : at + len(content)] = content
    Path(upload.path).write_bytes(data)
    return upload


CENTRAL = b"PK\x01\x02"
ZIPS = {
    "a way out": (lambda f: zipped(f, {"../coat/1.png": png()}), "names a file elsewhere"),
    "a way out further down": (lambda f: zipped(f, {"coat/../../../1.png": png()}), "names a file elsewhere"),
    "an absolute path": (lambda f: zipped(f, {"/etc/coat/1.png": png()}), "names a file elsewhere"),
    "a drive": (lambda f: zipped(f, {"C:/coat/1.png": png()}), "names a file elsewhere"),
    "backslashes": (
        lambda f: patched(zipped(f, {"a+coat/1.png": png()}), CENTRAL, 47, b"\\"),
        "names a file elsewhere",
    ),
    "a link": (lambda f: zipped(f, {link(): "/etc/passwd"}), "holds a link"),
    "no folders": (lambda f: zipped(f, {"1.png": png()}), "lies in no class folder"),
    "no pictures": (lambda f: zipped(f, {"coat/1.txt": b"a", "coat/inner.zip": b"PK"}), "holds no pictures"),
    "nothing": (lambda f: zipped(f, {}), "holds no pictures"),
    "text as a picture": (lambda f: zipped(f, {"coat/1.png": b"text"}), "coat/1.png: The file is not a picture"),
    "too many": (lambda f: zipped(f, {f"coat/{i}.png": b"x" for i in range(101)}), "more than 100 pictures"),
    "a bomb": (
        lambda f: zipped(f, {f"coat/{i}.png": bytes(900_000) for i in range(5)}, compression=zipfile.ZIP_DEFLATED),
        "unpacks to more than 4 MB",
    ),
    "a large file": (
        lambda f: zipped(f, {"coat/1.png": bytes(1_100_000)}, compression=zipfile.ZIP_DEFLATED),
        "larger than 1 MB",
    ),
    "a file larger than it is said to be": (
        lambda f: patched(
            zipped(f, {"coat/1.png": bytes(1_100_000)}, compression=zipfile.ZIP_DEFLATED), CENTRAL, 24, b"\0\1\0\0"
        ),
        "damaged",
    ),
    "a long list": (
        lambda f: zipped(f, {f"{'x' * 200}/{i}.txt": b"" for i in range(100)}),
        "lists too many files",
    ),
    "a list that is longer than it is said to be": (
        lambda f: patched(zipped(f, {"coat/1.png": png()}), b"PK\x05\x06", 12, struct.pack("<I", 3)),
        "damaged",
    ),
    "an unusual packing": (
        lambda f: zipped(f, {"coat/1.png": png()}, compression=zipfile.ZIP_LZMA),
        "packed in an unusual way",
    ),
    "a password": (lambda f: patched(zipped(f, {"coat/1.png": png()}), CENTRAL, 8, b"\1\0"), "locked with a password"),
    "half": (lambda f: patched(zipped(f, {"coat/1.png": png()}), b"\x89PNG", 0, bytes(60)), "damaged"),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_a_hostile_zip_is_refused_with_a_sentence_and_nothing_is_written_elsewhere(kind, tmp_path, monkeypatch):
    for limit, size in {"MAX_BYTES": 2**20, "MAX_UNPACKED": 2**22, "MAX_DIRECTORY": 2**14}.items():
        monkeypatch.setattr(uploads, limit, size)  # the files of the test are a tenth of those that visitors send
    make, sentence = ZIPS[kind]
    upload = make(tmp_path)
    inside = tmp_path / "inside" / "folder"
    inside.mkdir(parents=True)
    before = {path for path in tmp_path.rglob("*") if inside not in path.parents}
    with pytest.raises(limits.Refused, match=sentence) as refusal:
        uploads.read_labelled([upload], [], inside)
    assert {path for path in tmp_path.rglob("*") if inside not in path.parents} == before
    assert str(tmp_path) not in str(refusal.value)
    assert sum(path.stat().st_size for path in inside.rglob("*")) < 2**20


def test_a_zip_of_more_than_4_gb_or_of_too_many_bytes_is_refused_unread(tmp_path, monkeypatch):
    upload = zipped(tmp_path, {"coat/1.png": png()})
    data = Path(upload.path).read_bytes()
    at = data.rfind(b"PK\x05\x06")
    Path(upload.path).write_bytes(data[:at] + b"PK\x06\x07" + bytes(16) + data[at:])
    with pytest.raises(limits.Refused, match="damaged or of an unusual kind"):
        uploads.read_labelled([upload], [], tmp_path)
    monkeypatch.setattr(uploads, "MAX_ARCHIVE", 10)
    with pytest.raises(limits.Refused, match="The zip is larger than"):
        uploads.read_labelled([zipped(tmp_path, {"coat/1.png": png()})], [], tmp_path)


def test_the_class_is_the_folder_in_a_zip_in_a_folder_and_in_a_list(tmp_path):
    entries = {"all/coat/1.png": png(), "all/shirt/1.png": png(30), "__MACOSX/coat/._1.png": b"x", "all/read.me": b"x"}
    upload = zipped(tmp_path, entries)
    inside = tmp_path / "inside"
    inside.mkdir()
    found = uploads.read_labelled([upload, upload], [], inside)
    assert [one.label for one in found] == ["coat", "shirt", "coat", "shirt"]
    assert len({one.name for one in found}) == len({one.path for one in found}) == 4
    assert found[0].name == "coat/1.png"
    (tmp_path / "1.png").write_bytes(png())
    [in_folder] = uploads.read_labelled([uploads.Upload(str(tmp_path / "1.png"), "coat/1.png")], [], inside)
    [in_list] = uploads.read_labelled([uploads.Upload(str(tmp_path / "1.png"), "1.png")], ["coat"], inside)
    assert in_folder.label == in_list.label == "coat"
    with Image.open(found[1].path) as second:
        assert second.size == (30, 15)
    for classes, sentence in ((["coat", "shirt"], "2 classes for 1 files"), ({"a": 1}, "list"), ([None], "list")):
        with pytest.raises(limits.Refused, match=sentence):
            uploads.read_labelled([uploads.Upload(str(tmp_path / "1.png"), "1.png")], classes, tmp_path)


# Audits --------------------------------------------------------------------------------------------------------------


def scenes_on_disk(folder, count):
    """The demo's scenes as uploaded files."""
    found = []
    for number, (picture, label) in enumerate(cheater_scenes(count)):
        picture.save(folder / f"{number}.png")
        found.append(uploads.Upload(str(folder / f"{number}.png"), f"data/{label}/{number}.png"))
    return found


def test_an_audit_of_uploads_uses_the_visitors_names_alone(tmp_path):
    with audit_room.read_task(scenes_on_disk(tmp_path, 9), "demo:cheater", "") as task:
        found = audit_room.audited(task)
        code = audit_room.snippet(task)
    assert found.summary["images"] == 9
    assert set(found.summary["classes"]) == {"coat", "pullover", "shirt"}
    assert any("is not tested" in note for note in found.summary["notes"])
    page, archive = audit_room.saved(found)
    with zipfile.ZipFile(archive) as files:
        names = set(files.namelist())
        contents = b"".join(files.read(name) for name in names)
    assert {"index.html", "findings.json", "images.csv", "strategies.csv"} <= names
    assert "coat/0.png" in Path(page).read_text()
    for machine in (str(tmp_path), str(scratch.home())):
        assert machine.encode() not in contents
        assert machine not in found.page
    assert "hf_cam.audit('demo:cheater', \"pictures\", held_out=12)" in code
    assert not list(Path(scratch.home()).glob("tmp*"))  # the uploaded pictures are gone


@pytest.mark.slow
def test_the_demo_is_found_cheating_and_its_code_finds_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with audit_room.read_task([], "demo:cheater", None) as task:
        found = audit_room.audited(task)
    assert "for &#39;coat&#39;" in found.page or "'coat'" in found.says
    [first, *_] = found.summary["findings"]
    assert (first["label"], first["verdict"]) == ("coat", "reads it")
    made: dict = {}
    exec(audit_room.snippet(task), made)
    assert [one.text for one in made["audit"].findings] == [one["text"] for one in found.summary["findings"]]


NOT_AUDITED = {
    "no pictures": ([], "demo:vit", "", "only demo:cheater has scenes"),
    "a writer": ([], "demo:llava", "", "not a model id"),
    "names": ([], "demo:cheater", "coat", "written as folder = class"),
    "a long name": ([], "demo:cheater", f"a = {'x' * 300}", "304 characters"),
}


@pytest.mark.parametrize("kind", NOT_AUDITED)
def test_what_cannot_be_audited_is_refused_with_a_sentence(kind):
    files, model, names, sentence = NOT_AUDITED[kind]
    with pytest.raises(limits.Refused, match=sentence), audit_room.read_task(files, model, names):
        pytest.fail("it was taken")


def test_a_class_that_the_model_does_not_know_is_refused_until_it_is_named(tmp_path):
    files = [uploads.Upload(one.path, one.name.replace("coat", "mantel")) for one in scenes_on_disk(tmp_path, 6)]
    with pytest.raises(HFCamError, match="mantel"), audit_room.read_task(files, "demo:cheater", "") as task:
        audit_room.audited(task)
    with audit_room.read_task(files, "demo:cheater", "mantel = coat") as task:
        assert "coat" in audit_room.audited(task).summary["classes"]


def test_an_audit_that_takes_too_long_ends_with_a_sentence_and_leaves_no_hook(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_room, "SECONDS", -60)
    with audit_room.read_task(scenes_on_disk(tmp_path, 6), "demo:cheater", "") as task:
        with pytest.raises(limits.Refused, match="took more than"):
            audit_room.audited(task)
        with models.MODELS.lent("demo:cheater") as loaded:
            assert not loaded.module._forward_pre_hooks


def test_names_of_files_are_never_markup(tmp_path):
    hostile = '<img src=x onerror="alert(1)">.png'
    files = [uploads.Upload(one.path, f"{one.name.split('/')[1]}/{hostile}") for one in scenes_on_disk(tmp_path, 6)]
    with audit_room.read_task(files, "demo:cheater", "") as task:
        found = audit_room.audited(task)
    assert "<img src=x" not in found.page
    assert "<img src=x" not in (Path(found.folder) / "report" / "index.html").read_text()
    [_, _, _, _, _, frame] = audit_room.press_audit(files, [], "demo:cheater", "")
    assert frame.count("<") == 2
    assert 'sandbox="allow-same-origin"' in frame


# ZeroGPU -------------------------------------------------------------------------------------------------------------


def test_both_rooms_compute_in_a_process_that_is_lent_a_gpu(monkeypatch, tmp_path):
    lent = []

    def gpu(task=None, duration=60):
        if task is None:
            return lambda task: gpu(task, duration)

        def far(*given):
            lent.append((task.__name__, duration))
            answer = contextvars.Context().run(task, *pickle.loads(pickle.dumps(given)))
            return pickle.loads(pickle.dumps(answer))

        return far

    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=gpu))
    rooms = {}
    for name in ("words_room", "audit_room"):
        spec = importlib.util.spec_from_file_location(f"{name}_on_zero", space_folder() / f"{name}.py")
        rooms[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, rooms[name])
        spec.loader.exec_module(rooms[name])
    found = rooms["words_room"].answered(*rooms["words_room"].read_inputs(str(SCENE), "demo:llava", QUESTION, "", None))
    assert found.answer == ANSWER
    assert words_room.show(words_room.Question("demo:llava", QUESTION), found)
    with rooms["audit_room"].read_task(scenes_on_disk(tmp_path, 6), "demo:cheater", "") as task:
        assert rooms["audit_room"].audited(task).summary["images"] == 6
    assert lent == [("_answered", 60), ("_audited", audit_room.GPU_SECONDS)]


# The page and its API, as they are served --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("rooms")) as served:
        yield served.address


@pytest.mark.slow
def test_words_and_audits_answer_programs(server, tmp_path):
    from gradio_client import Client, handle_file

    client = Client(server, verbose=False, download_files=str(tmp_path))
    said, page, strip, heatmaps = client.predict(handle_file(str(SCENE)), question=QUESTION, api_name="/words")
    expected = hf_cam.explain(SCENE, "demo:llava", text=QUESTION)
    assert said["answer"] == expected.answer
    assert [one["word"] for one in said["words"]] == [one.label for one in expected]
    np.testing.assert_allclose(np.load(heatmaps), np.stack([one.heatmap for one in expected]), atol=2e-3)
    assert ANSWER in Path(page).read_text()
    with Image.open(strip) as sheet:
        assert sheet.width > sheet.height
    files = scenes_on_disk(tmp_path, 9)
    classes = [one.name.split("/")[1] for one in files]
    found, report, archive = client.predict(
        [handle_file(one.path) for one in files], classes=classes, api_name="/audit"
    )
    assert found["images"] == 9
    assert "0.png" in Path(report).read_text()
    assert zipfile.is_zipfile(archive)
    packed = zipped(tmp_path, {one.name: Path(one.path).read_bytes() for one in files})
    found, *_ = client.predict([handle_file(packed.path)], api_name="/audit")
    assert (found["images"], found["model"]) == (9, "demo:cheater")
    with pytest.raises(Exception, match="only demo:cheater has scenes"):
        client.predict([], model="demo:vit", api_name="/audit")


# In the browser ------------------------------------------------------------------------------------------------------

SERIOUS = ("serious", "critical")
SCREENS = [
    pytest.param({"viewport": {"width": width, "height": height}, "color_scheme": scheme, "has_touch": width < 500})
    for width, height in ((1280, 1000), (390, 844))
    for scheme in ("light", "dark")
]


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    """Where they are kept: `$HF_CAM_SCREENSHOTS`, or with pytest's own files."""
    folder = Path(os.environ.get("HF_CAM_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def page(browser, server):
    """Opens the page in a room, with the options of a screen; no script may fail, and nothing come from elsewhere."""
    opened, errors = [], []

    def open_room(room, **options):
        found = browser.new_page(**{"viewport": {"width": 1280, "height": 1000}, **options})
        found.set_default_timeout(60_000)
        found.on("pageerror", lambda error: errors.append(str(error)))
        found.on("dialog", lambda dialog: errors.append(dialog.message))
        found.on("request", lambda sent: errors.append(sent.url) if is_outside(sent.url) else None)
        found.goto(server)
        found.wait_for_selector("#go")
        found.get_by_role("tab", name=room, exact=True).click()
        opened.append(found)
        return found

    yield open_room
    for one in opened:
        one.close()
    assert errors == []


def is_outside(url):
    return "127.0.0.1" not in url and not url.startswith(("data:", "blob:", "about:", "file:"))


def violations(page, frame=None):
    """What axe-core calls serious or critical, in the page or in a frame of it."""
    import axe_playwright_python.base as axe

    script = Path(axe.__file__).with_name("axe.min.js").read_text()
    where = frame or page
    where.evaluate(script)
    found = where.evaluate("axe.run({ exclude: ['iframe'] }, { resultTypes: ['violations'] })")["violations"]
    return [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in SERIOUS]


def fits(page):
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def lit(frame):
    """The words whose maps are shown."""
    shown = (
        "found => found.map(one => document.querySelector('button[data-word=\"' + one.dataset.word + '\"]').innerText)"
    )
    return frame.locator("img.map.on").evaluate_all(shown)


def inner(page):
    """The frame of the result itself, for scripts."""
    [frame] = [one for one in page.frames if one is not page.main_frame]
    return frame


@pytest.mark.browser
@pytest.mark.parametrize("screen", SCREENS)
def test_words_light_up_the_picture_by_mouse_touch_and_keyboard(page, screen, screenshots):
    opened = page("Words", **screen)
    opened.wait_for_selector("#words-page iframe")
    frame = opened.frame_locator("#words-page iframe")
    frame.get_by_role("button", pressed=True).wait_for()
    words = words_room.welcome()[1]
    assert lit(frame) == frame.get_by_role("button", pressed=True).all_inner_texts()  # from the start
    assert lit(frame) == [words_room.first_shown(words).label]
    frame.get_by_role("button", name="bag").click()
    opened.keyboard.press("Home")
    assert lit(frame) == ["A"]
    opened.keyboard.press("ArrowRight")
    assert lit(frame) == ["blue"]
    flagged = [word.label for word in words if WITHOUT_PICTURE in word.flags]
    assert f"{', '.join(flagged)}." in opened.inner_text("#words-says")
    sneaker = frame.get_by_role("button", name="sneaker")
    if screen["has_touch"]:
        sneaker.tap()
    else:
        sneaker.hover()
    assert lit(frame) == ["sneaker"]
    shade = frame.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    brightness = max(int(part) for part in shade.strip("rgba()").split(",")[:3])
    assert brightness < 60 if screen["color_scheme"] == "dark" else brightness > 200
    assert fits(opened)
    assert inner(opened).evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not opened.is_visible("#go")  # the columns of the other rooms
    width, scheme = screen["viewport"]["width"], screen["color_scheme"]
    opened.screenshot(path=screenshots / f"words-{width}-{scheme}.png", full_page=True)
    assert violations(opened) == []
    assert violations(opened, inner(opened)) == []


@pytest.mark.browser
def test_a_question_is_typed_answered_and_taken_home_and_a_change_greys_the_answer(page, tmp_path):
    opened = page("Words")
    opened.wait_for_selector("#words-page iframe")
    opened.fill("#words-question textarea", "How many items are there?")
    opened.wait_for_selector("#words-result.stale .stale-note")
    opened.keyboard.press("Enter")
    opened.get_by_text("There are three items.").first.wait_for()
    opened.wait_for_selector("#words-result:not(.stale)")
    assert not opened.is_visible("#words-result .stale-note")
    with opened.expect_download() as download:
        opened.click("#words-numbers-file")
    assert np.load(download.value.path()).shape == (4, 384, 512)
    with opened.expect_download() as download:
        opened.click("#words-page-file")
    assert "There" in download.value.path().read_text()
    assert "text='How many items are there?'" in opened.inner_text("#words-code .cm-content")
    opened.get_by_role("button", name="What is on the left?").click()
    opened.wait_for_selector("#words-result.stale")
    opened.get_by_text("More", exact=True).last.click()
    opened.get_by_label("Word").fill("<img src=x onerror=alert(1)>")
    opened.click("#words-go")
    opened.get_by_text("<img src=x onerror=alert(1)>").first.wait_for()  # in the error, as text
    assert opened.locator("img[src=x]").count() == 0
    opened.click("#words-picture button[aria-label='Remove Image']")
    opened.click("#words-go")
    opened.get_by_text("Choose a picture first").wait_for()


def reach(page, selector):
    """With the Tab key alone."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("s => !!document.activeElement.closest(s)", selector):
            return
    pytest.fail(f"the Tab key does not reach {selector}")


@pytest.mark.browser
def test_the_keyboard_is_enough_in_both_rooms(page):
    opened = page("Words")
    opened.wait_for_selector("#words-page iframe")
    opened.focus("#words-tab-button")
    reach(opened, "#words-question")
    opened.keyboard.press("Control+A")
    opened.keyboard.type("What is on the left?")
    reach(opened, "#words-go")
    opened.keyboard.press("Enter")
    opened.get_by_text("A blue trouser is on the left.").first.wait_for()
    reach(opened, "#words-page iframe")
    opened.keyboard.press("Home")
    opened.keyboard.press("ArrowRight")
    assert lit(opened.frame_locator("#words-page iframe"))[0] == "blue"
    opened.focus("#words-tab-button")
    opened.keyboard.press("ArrowRight")
    assert opened.evaluate("document.activeElement.id") == "audit-tab-button"
    opened.keyboard.press("Enter")
    opened.wait_for_selector("#audit-go")
    reach(opened, "#audit-model")
    reach(opened, "#audit-go")


@pytest.mark.browser
@pytest.mark.parametrize("screen", [SCREENS[0], SCREENS[3]])
def test_a_folder_is_audited_and_the_report_is_taken_home(page, screen, screenshots, tmp_path):
    for number, (picture, label) in enumerate(cheater_scenes(51)):
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "data" / label / f"{number}.png")
    opened = page("Audit", **screen)
    assert violations(opened) == []
    opened.get_by_text("Your pictures").click()
    opened.locator("#audit-folder input[type=file]").set_input_files(tmp_path / "data")
    opened.locator("#audit-folder").get_by_text("coat/0").first.wait_for()
    opened.wait_for_selector("#audit-result.stale .stale-note")
    opened.click("#audit-go")
    opened.wait_for_selector("#audit-page iframe", timeout=180_000)
    assert "'coat'" in opened.inner_text("#audit-says")
    frame = opened.frame_locator("#audit-page iframe")
    first = frame.locator("article.finding").first
    first.wait_for()
    assert "the model reads the upper right corner" in first.inner_text()
    assert first.locator("img").count() == 6
    assert frame.locator("section.class").count() == 3
    opened.wait_for_timeout(300)
    spare = "frame => frame.clientHeight - frame.contentDocument.body.offsetHeight"
    assert 0 <= opened.locator("#audit-page iframe").evaluate(spare) < 200  # it is as high as what it shows
    assert fits(opened)
    width, scheme = screen["viewport"]["width"], screen["color_scheme"]
    opened.screenshot(path=screenshots / f"audit-{width}-{scheme}.png", full_page=True)
    assert violations(opened) == []
    with opened.expect_download() as download:
        opened.click("#audit-zip-file")
    zipfile.ZipFile(download.value.path()).extractall(tmp_path / "report")
    opened.goto((tmp_path / "report" / "index.html").as_uri())  # in its frame, where no script runs, axe would not end
    assert opened.locator("article.finding").count()
    assert fits(opened)
    assert violations(opened) == []
