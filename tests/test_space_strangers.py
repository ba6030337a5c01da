"""What the page does with what strangers send: files, and models of the Hub."""

import gc
import html
import io
import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_cam.errors import HFCamError
from hf_cam.interfaces.space import space_folder
from hf_cam.zoo import SCENE, demo_model

sys.path.insert(0, str(space_folder()))
import events
import limits
import models
import overlays
import scratch
import wording
import work
from scale import Builder

# Files ---------------------------------------------------------------------------------------------------------------


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def blank(width, height, mode="1"):
    return encoded(Image.new(mode, (width, height)))


def tiff(width, height):
    """A header that promises so many pixels, and no pixels."""
    fields = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 8)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(fields)) + entries + bytes(4)


def gif(side):
    """One frame of so many pixels, in a few bytes."""
    screen = struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    return b"GIF89a" + screen + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\0;"


def png_bomb(side):
    """A few kilobytes that unpack to `side * side` pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(64)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


REFUSED = {
    "text": (b"no picture at all", "not a picture"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not a picture"),
    "an SVG that names an address": (b'<svg><image href="http://169.254.169.254/latest"/></svg>', "not a picture"),
    "empty": (b"", "not a picture"),
    "truncated": (SCENE.read_bytes()[:2000], "damaged"),
    "megapixels": (blank(10_000, 5_001), "up to 50"),
    "a bomb": (blank(20_000, 10_000), "too large|up to 50"),
    "a PNG bomb": (png_bomb(60_000), "too large|up to 50"),
    "a GIF bomb": (gif(65_000), "too large|up to 50"),
    "a TIFF bomb": (tiff(100_000, 100_000), "too large|up to 50"),
    "bytes": (SCENE.read_bytes() + bytes(10 * 2**20), "up to 10 MB"),
    "a line": (blank(1, 5000), "1 x 5000"),
    "a flat line": (blank(5000, 1), "5000 x 1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_bearable_picture_is_refused_with_a_sentence(kind, tmp_path):
    content, sentence = REFUSED[kind]
    (tmp_path / "upload.png").write_bytes(content)
    with pytest.raises(limits.Refused, match=sentence):
        limits.read_picture(str(tmp_path / "upload.png"))


RED, BLUE = (220, 20, 30), (20, 30, 220)


def halves(mode="RGB"):
    """Red above blue, wider than high."""
    picture = Image.new("RGB", (60, 40), RED)
    picture.paste(BLUE, (0, 20, 60, 40))
    return picture.convert(mode)


def turned():
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter to the right
    return encoded(halves(), "JPEG", exif=exif, quality=95)


def deep():
    grey = np.repeat(np.array([[0], [65535]], np.uint16), 30, 1).repeat(20, 0)
    return encoded(Image.fromarray(grey))


TAKEN = {
    "an animation": (
        encoded(halves(), "GIF", save_all=True, append_images=[Image.new("RGB", (60, 40))] * 30),
        (60, 40),
    ),
    "pages": (encoded(halves(), "TIFF", save_all=True, append_images=[Image.new("RGB", (60, 40))] * 3), (60, 40)),
    "a turned photograph": (turned(), (40, 60)),
    "four colours": (encoded(halves("CMYK"), "JPEG", quality=95), (60, 40)),
    "a palette": (encoded(halves("P")), (60, 40)),
    "with alpha": (encoded(halves("RGBA")), (60, 40)),
    "sixteen bits": (deep(), (30, 40)),
    "one pixel": (encoded(Image.new("RGB", (1, 1), RED)), (1, 1)),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_odd_pictures_are_read_as_a_browser_shows_them(kind, tmp_path):
    content, size = TAKEN[kind]
    (tmp_path / "upload.png").write_bytes(content)
    picture, scale = limits.read_picture(str(tmp_path / "upload.png"))
    assert (picture.size, picture.mode, scale) == (size, "RGB", 1)
    first, last = np.array(picture)[0, 0].astype(int), np.array(picture)[-1, -1].astype(int)
    corners = {
        "a turned photograph": (BLUE, RED),
        "sixteen bits": ((0,) * 3, (255,) * 3),
        "one pixel": (RED, RED),
    }.get(kind, (RED, BLUE))
    tolerance = 60 if kind == "a palette" else 12
    assert np.abs([first - corners[0], last - corners[1]]).max() <= tolerance
    read, settings = work.read_inputs(str(tmp_path / "upload.png"), "demo:vit", "", "", "auto", "", False, False)
    explained = work.explained(read, settings).current
    assert explained.heatmap.shape == (size[1], size[0])
    assert max(overlays.drawn(explained, 0.5, "turbo").size) == overlays.SHOWN


# Words ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "label", ["<img src=x onerror=alert(1)>", "**bold** &lt;b&gt;", "[a](javascript:b)", "$x$ `y`"]
)
def test_a_strangers_label_is_shown_as_text(label):
    written = wording.as_text(label)
    assert not set(written.replace("&#", "")) & set("<>*_`[]($")
    assert html.unescape(written) == label


# Controls without a value --------------------------------------------------------------------------------------------

GIVEN = {"path": str(SCENE), "model": "demo:vit", "target": "", "prompts": "", "method": "auto", "layers": ""} | {
    "aug_smooth": False, "eigen_smooth": False, "effort": "fast", "alpha": 0.5, "colormap": "turbo"
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("control", GIVEN)
def test_a_control_without_a_value_is_left_out_or_refused_with_a_sentence(control):
    try:
        assert events.press_explain(**GIVEN | {control: None})
    except HFCamError as error:
        assert str(error)  # noqa: PT017


# Models of the Hub ---------------------------------------------------------------------------------------------------


def publish(hub, name, files):
    folder = hub.folder(f"someone/{name}")
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return f"someone/{name}"


REPOS = {
    "pickled": ({"pytorch_model.bin": b"x", "config.json": {}}, "pickled"),
    "empty": ({"config.json": {}}, "holds no model"),
    "large": ({"model.safetensors": bytes(2000), "config.json": {}}, "weights of .* are too large"),
    "wordy": ({"model.safetensors": b"x", "config.json": {}, "vocab.json": bytes(21 * 2**20)}, "larger than 20 MB"),
    "code": ({"model.safetensors": b"x", "config.json": {"auto_map": {"AutoModel": "m.M"}}}, "own code"),
    "code-inside": ({"model.safetensors": b"x", "config.json": {"text_config": [{"auto_map": {}}]}}, "own code"),
    "processor-code": (
        {"model.safetensors": b"x", "config.json": {}, "preprocessor_config.json": {"auto_map": {}}},
        "own code",
    ),
    "pipelines": ({"model.safetensors": b"x", "config.json": {"custom_pipelines": {}}}, "own code"),
    "damaged": ({"model.safetensors": b"x", "config.json": b"{"}, "cannot be read"),
    "nested": ({"model.safetensors": b"x", "config.json": b"[" * 10**6}, "cannot be read"),
    "elsewhere": (
        {
            "model-00001-of-00001.safetensors": b"x",
            "config.json": {},
            "model.safetensors.index.json": {"weight_map": {"head": "../../other/model.safetensors"}},
        },
        "not there",
    ),
}


@pytest.mark.parametrize("kind", REPOS)
def test_a_repo_of_the_hub_is_refused_before_its_weights_are_fetched(hub, kind, monkeypatch):
    files, sentence = REPOS[kind]
    monkeypatch.setattr(models, "MAX_WEIGHTS", 1000)
    monkeypatch.setattr(models.BUILDER, "measure", lambda _: pytest.fail("built before it was read"))
    name = publish(hub, kind, files)
    with pytest.raises(limits.Refused, match=sentence), models.Models().lent(name):
        pass
    assert not any(request.endswith((".safetensors", ".bin")) for request in hub.requests)


@pytest.fixture(scope="module")
def builder():
    """The process that builds; the first one has died."""
    found = Builder()
    dead = found.start()
    dead.kill()
    dead.wait()
    yield found
    found.stop()


def vit(**changes):
    config = json.loads((Path(demo_model("vit")) / "config.json").read_text())
    return {key: value for key, value in {**config, **changes}.items() if value is not None}


def side(pixels):
    return {"image_processor_type": "ViTImageProcessor", "size": {"height": pixels, "width": pixels}}


DETR = {"model_type": "detr", "architectures": ["DetrForObjectDetection"]}
TIMM = {"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"], "num_classes": 2}
HOSTILE = {
    "wide": (vit(hidden_size=100_000, intermediate_size=400_000), side(64), "million parameters"),
    "deep": (vit(num_hidden_layers=10**6), side(64), "none with more than 2,000 is built"),
    "picture": (vit(image_size=10**6), side(64), "too much memory|million parameters"),
    "labels": (
        vit(num_labels=10**9, id2label=None, label2id=None),
        side(64),
        "none with more than 100,000 is built",
    ),
    "vocabulary": (
        {"model_type": "clip", "architectures": ["CLIPModel"], "text_config": {"vocab_size": 10**12}},
        side(64),
        "none with more than 100,000,000 is built",
    ),
    "enlarging": (vit(), side(100_000), "too much memory"),
    "large input": (vit(), side(4000), "enlarges pictures to 48.0 million"),
    "cells": (vit(patch_size=1, image_size=1024, hidden_size=8), side(1024), "times as much"),
    "another repo": (DETR | {"backbone": "someone/else", "use_timm_backbone": False}, side(64), "more than its own"),
    "timm's own loader": (
        TIMM | {"architecture": "hf-hub:someone/else"},
        side(64),
        "more than its own|cannot be built",
    ),
    "no such network": ({"model_type": "nothing"}, side(64), "cannot be built"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_config_is_judged_before_anything_of_its_size_is_made(hub, kind, builder, monkeypatch):
    config, processor, sentence = HOSTILE[kind]
    monkeypatch.setattr(models, "BUILDER", builder)
    weights = bytes(17_000_000 if kind == "cells" else 1000 if kind != "large input" else 4_000_000)
    name = publish(
        hub,
        f"hostile-{kind}".replace(" ", "-").replace("'", ""),
        {"config.json": config, "preprocessor_config.json": processor, "model.safetensors": weights},
    )
    with pytest.raises(limits.Refused, match=sentence) as refusal, models.Models().lent(name):
        pass
    assert "/tmp" not in str(refusal.value)
    assert not any(request.endswith(".safetensors") for request in hub.requests)


def test_addresses_in_configs_are_not_asked(hub, builder, inside, monkeypatch):
    address = f"http://127.0.0.1:{inside.port}/secret"
    monkeypatch.setattr(models, "BUILDER", builder)
    hostile = [
        TIMM | {"architecture": "resnet18", "pretrained_cfg": {"url": address, "file": address}},
        TIMM | {"architecture": "resnet18", "model_args": {"pretrained": True, "pretrained_cfg": {"url": address}}},
        DETR | {"backbone": address, "use_timm_backbone": True, "use_pretrained_backbone": True},
        vit(_name_or_path=address, tokenizer_file=address, backbone=address),
    ]
    for number, config in enumerate(hostile):
        files = {"config.json": config, "preprocessor_config.json": side(64), "model.safetensors": bytes(23 * 10**6)}
        tokenizer = {"tokenizer_config.json": {"vocab_file": address, "tokenizer_file": address}}
        name = publish(hub, f"address-{number}", files | tokenizer)
        with pytest.raises(limits.Refused), models.Models().lent(name):
            pass
    assert inside.seen == []


def test_honest_models_are_no_larger_than_their_weights_and_a_builder_that_died_is_started_again(builder):
    for name in ("vit", "clip", "detr"):
        folder = Path(demo_model(name))
        found = builder.measure(folder)
        assert found.failed == ""
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        models.check_scale(models.Repo(name, "", {"model.safetensors": size}), found)
    assert builder.measure(Path(demo_model("vit"))).operations > 10**6


def test_a_safe_repo_of_the_hub_is_taken_and_its_files_go_with_the_model(
    hub, vit_folder, builder, monkeypatch, tmp_path
):
    monkeypatch.setenv("HF_CAM_SPACE_ONLINE", "1")
    monkeypatch.setattr(models, "BUILDER", builder)
    monkeypatch.setattr(scratch, "home", lambda: tmp_path)
    hub.folder("someone").mkdir(parents=True, exist_ok=True)
    if not hub.folder("someone/vit").exists():
        hub.folder("someone/vit").symlink_to(vit_folder)
    assert models.checked("someone/vit") == "someone/vit"
    kept = models.Models(kept=1)
    with kept.lent("someone/vit") as loaded:
        assert loaded.model.config.model_type == "vit"
    assert list(tmp_path.glob("model-*/model.safetensors"))
    with kept.lent("demo:vit"):
        pass
    del loaded
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_repo_that_is_not_there_leaves_nothing_behind(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "home", lambda: tmp_path)
    kept = models.Models()
    with pytest.raises(limits.Refused, match="cannot be found"), kept.lent("someone/nothing"):
        pass
    assert list(kept) == []
    assert list(tmp_path.iterdir()) == []
    assert any("someone/nothing" in request for request in hub.requests)


IDS = ("../../etc/passwd", "owner/..name", "owner/../name", "http://127.0.0.1/a", "https://huggingface.co/a/b", "a/b/c")
IDS += ("file:///etc/passwd", "//host/share", "owner/na me", "owner/name@main", "hf-hub:owner/name", "x" * 300)


@pytest.mark.parametrize("name", IDS)
def test_what_is_no_id_of_the_hub_is_refused(name, hub, monkeypatch):
    monkeypatch.setenv("HF_CAM_SPACE_ONLINE", "1")
    with pytest.raises(limits.Refused, match="not a model id"):
        models.checked(name)
    assert hub.requests == []


def test_a_folder_or_link_of_this_machine_is_no_model(tmp_path, monkeypatch, vit_folder):
    monkeypatch.setenv("HF_CAM_SPACE_ONLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "link").symlink_to(vit_folder)
    with pytest.raises(limits.Refused, match="not a model id"):
        models.checked("owner/link")
