"""Pictures in a text: data URIs and plain base64, wherever a path is taken."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

import hf_cam
from hf_cam.errors import ImageError, TargetError
from hf_cam.explainer import Explainer
from hf_cam.images.reading import carried
from hf_cam.images.videos import is_video, may_be_video
from hf_cam.interfaces.cli import main
from nets import embedder
from pictures import noise


def encoded(kind: str = "PNG", picture: Image.Image | None = None, **settings) -> str:
    buffer = io.BytesIO()
    (picture or noise()).save(buffer, kind, **settings)
    return base64.b64encode(buffer.getvalue()).decode()


PNG = encoded()
FORMS: dict[str, str] = {
    "a data URI": f"data:image/png;base64,{PNG}",
    "of no type": f"data:;base64,{PNG}",
    "with parameters": f"data:image/png;charset=utf-8;base64,{PNG}",
    "in capitals": f"DATA:image/PNG;BASE64,{PNG}",
    "of the wrong type": f"data:image/jpeg;base64,{PNG}",
    "in percent signs": f"data:image/png;base64,{quote(PNG, safe='')}",
    "without base64": "data:image/png," + quote(base64.b64decode(PNG), safe=""),
    "base64": PNG,
    "in lines": "\n".join(PNG[i : i + 76] for i in range(0, len(PNG), 76)) + "\n",
    "without padding": PNG.rstrip("="),
    "in the alphabet of URLs": PNG.replace("+", "-").replace("/", "_"),
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_a_picture_in_a_text_is_read(text) -> None:
    np.testing.assert_array_equal(np.asarray(hf_cam.load_image(text)), np.asarray(noise()))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("head", ["", "data:image/x;base64,"])
def test_a_picture_of_any_format_is_read(kind, head) -> None:
    assert hf_cam.load_image(head + encoded(kind)).size == noise().size


def test_transformers_reads_the_same_pixels() -> None:
    from transformers.image_utils import load_image

    for text in (FORMS["a data URI"], PNG):
        np.testing.assert_array_equal(np.asarray(hf_cam.load_image(text)), np.asarray(load_image(text)))


def test_a_turned_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[274] = 6  # orientation
    assert hf_cam.load_image(encoded("JPEG", exif=exif)).size == noise().size[::-1]


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = encoded(picture=Image.new("RGB", (1, 1)))[:64].replace("/", "A")
    Image.new("RGB", (9, 5)).save(tmp_path / "plain.png")
    (tmp_path / "plain.png").rename(tmp_path / name)
    assert hf_cam.load_image(name).size == (9, 5)


REFUSED: dict[str, tuple[str, str]] = {
    "cut off": (f"data:image/png;base64,{PNG[: len(PNG) // 2]}", "is damaged or cut off"),
    "base64 cut off": (PNG[: len(PNG) // 2], "is damaged or cut off"),
    "other letters": ("data:image/png;base64,!!!!", "the data URI .* is damaged"),
    "one letter too many": (f"data:image/png;base64,{PNG.rstrip('=')[: len(PNG) // 4 * 4 - 3]}", "is damaged"),
    "no comma": ("data:image/png;base64", r"has the form data:image/png;base64,\.\.\."),
    "nothing": ("data:image/png;base64,", "is an empty file"),
    "a text": ("data:text/plain,hello", "is not an image"),
    "a drawing": ("data:image/svg+xml;base64,PHN2Zy8+", "is not an image"),
    "base64 of something else": (base64.b64encode(bytes(range(256)) * 40).decode(), "cannot be read as a file|no file"),
    "a long word": ("word" * 30, "there is no file 'word"),
}


@pytest.mark.parametrize(("text", "words"), REFUSED.values(), ids=REFUSED)
def test_a_text_without_a_picture_is_refused_in_a_sentence(text, words) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        hf_cam.load_image(text)
    assert len(str(caught.value)) <= 250


@pytest.mark.parametrize("text", ["cat.png", "cat", "abcd", "a/b/c.jpg", "", "no such file at all, only a sentence"])
def test_a_path_is_no_picture(text) -> None:
    assert carried(text) is None


DOORS: dict[str, Callable[[str, object], object]] = {
    "explain": lambda text, folder: hf_cam.explain(text, folder)[0].heatmap,
    "explain, a list": lambda text, folder: hf_cam.explain([text, text], folder)[1][0].heatmap,
    "compare": lambda text, folder: hf_cam.compare(text, folder, methods="hirescam").explanations[0].heatmap,
    "a pipeline": lambda text, folder: hf_cam.pipeline(model=str(folder))(text)[0]["heatmap"],
    "a pipeline, a list": lambda text, folder: hf_cam.pipeline(model=str(folder))([text, text])[1][0]["heatmap"],
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("text", [FORMS["a data URI"], PNG], ids=["data URI", "base64"])
def test_every_door_takes_a_picture_in_a_text(vit_folder, text, door) -> None:
    [expected] = hf_cam.explain(noise(), vit_folder)
    np.testing.assert_allclose(door(text, vit_folder), expected.heatmap, atol=1e-6)


def test_an_evaluation_names_such_a_picture_by_its_number(vit_folder) -> None:
    settings = {"methods": "gradcam", "metrics": "complexity", "baselines": False, "progress": False}
    for images in (FORMS["a data URI"], [FORMS["a data URI"]], [{"image": PNG}]):
        [record] = hf_cam.evaluate(vit_folder, images, **settings).records
        assert record.image == "0"


def test_another_picture_to_compare_with_may_be_a_data_uri() -> None:
    explainer = Explainer(embedder())
    [[expected]] = explainer([noise()], target=noise(seed=1))
    [[found]] = explainer([noise()], target=f"data:image/png;base64,{encoded(picture=noise(seed=1))}")
    np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-6)
    assert found.label == "like the other image"
    with pytest.raises(TargetError, match="a target must be another image"):
        list(explainer([noise()], target="word" * 30))


def test_the_command_names_the_file_image(vit_folder, tmp_path, capsys) -> None:
    small = encoded(picture=noise(20, 30))
    arguments = ["explain", f"data:image/png;base64,{small}", "--model", str(vit_folder), "--out", f"{tmp_path}/out/"]
    assert main(arguments) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["image.png"]
    assert len(capsys.readouterr().out) < 600


def test_the_type_of_a_data_uri_says_what_moves() -> None:
    assert is_video("data:video/mp4;base64,AAAA")
    assert not is_video("data:image/png;base64,AAAA")
    assert may_be_video("data:image/gif;base64,AAAA")


def test_a_moving_picture_in_a_text_is_a_video() -> None:
    frames = [noise(32, 48, seed) for seed in range(4)]
    text = encoded("GIF", frames[0], save_all=True, append_images=frames[1:])
    from hf_cam.images.videos import load_video

    assert len(load_video(f"data:image/gif;base64,{text}").frames) == 4
