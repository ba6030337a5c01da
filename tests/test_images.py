"""Whatever is handed over as an image comes out upright, in RGB, with the right values."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import hf_cam
from hf_cam import load_image
from hf_cam.errors import ImageError

HEIGHT, WIDTH = 4, 6
RGB = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
GREY = RGB[..., 0]
RAMP16 = np.linspace(0, 65535, HEIGHT * WIDTH).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
RAMP8 = np.rint(RAMP16 / 257).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> Image.Image:
    """The image, written in a format and opened again."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return Image.open(buffer)


def grey(values: np.ndarray) -> np.ndarray:
    """Grey values as RGB."""
    return np.stack([values] * 3, -1)


def palette(**options) -> Image.Image:
    """Two colours, the second everywhere but in one corner."""
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([1, 2, 3, 200, 100, 50])
    image.putpixel((0, 0), 0)
    return encoded(image, **options)


PALETTE = np.full((HEIGHT, WIDTH, 3), (200, 100, 50), np.uint8)
PALETTE[0, 0] = (1, 2, 3)
ALPHA = np.dstack([RGB, np.full((HEIGHT, WIDTH), 7, np.uint8)])

PICTURES = {
    "RGB": (lambda: Image.fromarray(RGB), RGB),
    "greyscale": (lambda: encoded(Image.fromarray(GREY)), grey(GREY)),
    "greyscale with alpha": (lambda: encoded(Image.fromarray(np.dstack([GREY, GREY]), "LA")), grey(GREY)),
    "black and white": (lambda: encoded(Image.fromarray(GREY > 127)), grey(np.where(GREY > 127, 255, 0))),
    "RGBA: alpha is dropped": (lambda: encoded(Image.fromarray(ALPHA)), RGB),
    "palette": (palette, PALETTE),
    "palette with a transparent colour": (lambda: palette(transparency=1), PALETTE),
    "palette with an alpha for each colour": (lambda: palette(transparency=bytes([0, 128])), PALETTE),
    "GIF": (lambda: palette(kind="GIF"), PALETTE),
    "CMYK": (lambda: Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0)), np.full_like(RGB, (0, 255, 255))),
    "CMYK in a TIFF": (
        lambda: encoded(Image.new("CMYK", (WIDTH, HEIGHT), (0, 0, 255, 0)), "TIFF"),
        np.full_like(RGB, (255, 255, 0)),
    ),
    "16-bit PNG": (lambda: encoded(Image.fromarray(RAMP16)), grey(RAMP8)),
    "16-bit PNG, all of it dark": (lambda: encoded(Image.fromarray(RAMP16 // 257)), grey(np.rint(RAMP8 / 257))),
    "16-bit, big end first": (
        lambda: Image.frombytes("I;16B", (WIDTH, HEIGHT), RAMP16.astype(">u2").tobytes()),
        grey(RAMP8),
    ),
    "32-bit integers with 16 in use": (lambda: Image.fromarray(RAMP16.astype(np.int32)), grey(RAMP8)),
    "32-bit integers with 8 in use": (lambda: Image.fromarray(GREY.astype(np.int32)), grey(GREY)),
    "float TIFF in [0, 1]": (lambda: encoded(Image.fromarray((RAMP16 / 65535).astype("f4")), "TIFF"), grey(RAMP8)),
    "float picture in [0, 255]": (lambda: Image.fromarray((RAMP16 / 257).astype("f4")), grey(RAMP8)),
}


@pytest.mark.parametrize(("picture", "expected"), PICTURES.values(), ids=PICTURES)
def test_pictures_of_any_mode_become_rgb(picture, expected):
    loaded = load_image(picture())
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(loaded), expected)


ARRAYS = {
    "uint8": (RGB, RGB),
    "uint8, channels first": (RGB.transpose(2, 0, 1), RGB),
    "uint8, a view with gaps": (np.repeat(RGB, 2, 1)[:, ::2], RGB),
    "grey": (GREY, grey(GREY)),
    "grey with a channel axis": (GREY[..., None], grey(GREY)),
    "grey with a channel axis in front": (GREY[None], grey(GREY)),
    "four channels: alpha is dropped": (ALPHA, RGB),
    "four channels first": (ALPHA.transpose(2, 0, 1), RGB),
    "three rows, channels last": (RGB[:3], RGB[:3]),
    "int64 in [0, 255]": (RGB.astype(np.int64), RGB),
    "uint16": (RAMP16, grey(RAMP8)),
    "uint16 RGB": (RGB.astype(np.uint16) * 257, RGB),
    "float64": (RGB / 255, RGB),
    "float32, channels first": ((RGB / 255).astype(np.float32).transpose(2, 0, 1), RGB),
    "bool": (GREY > 127, grey(np.where(GREY > 127, 255, 0))),
    "tensor": (torch.from_numpy(RGB), RGB),
    "tensor, channels first": (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
    "float tensor in a graph": ((torch.from_numpy(RGB).permute(2, 0, 1) / 255).requires_grad_(), RGB),
    "bool tensor": (torch.from_numpy(GREY > 127)[None], grey(np.where(GREY > 127, 255, 0))),
    "bfloat16 tensor": (torch.ones(3, HEIGHT, WIDTH, dtype=torch.bfloat16), np.full_like(RGB, 255)),
}


@pytest.mark.parametrize(("array", "expected"), ARRAYS.values(), ids=ARRAYS)
def test_arrays_and_tensors_become_rgb(array, expected):
    np.testing.assert_array_equal(np.asarray(load_image(array)), expected)


# How a camera that was held upright would have seen what is stored under each EXIF orientation.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize(("orientation", "upright"), UPRIGHT.items())
def test_the_cameras_orientation_is_applied(orientation, upright, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(RGB).save(path, exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(path)), upright(RGB))


def test_a_turned_photograph_gets_an_upright_heatmap(vit_folder, picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    [turned] = hf_cam.explain(tmp_path / "turned.png", model=vit_folder)
    [plain] = hf_cam.explain(picture, model=vit_folder)
    assert turned.image.size == picture.size
    np.testing.assert_array_equal(turned.heatmap, plain.heatmap)


def test_the_callers_image_stays_as_it_is():
    for make, _ in PICTURES.values():
        image = make()
        before = image.mode, image.copy().tobytes()
        load_image(image)
        assert (image.mode, image.tobytes()) == before


def test_an_array_is_not_shared_with_the_image():
    array = RGB.copy()
    loaded = load_image(array)
    array[:] = 0
    np.testing.assert_array_equal(np.asarray(loaded), RGB)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(RGB).save(tmp_path / "at_home.png")
    np.testing.assert_array_equal(np.asarray(load_image("~/at_home.png")), RGB)


@pytest.mark.parametrize("name", ["plain.png", "with space.png", "häuser.png"])
def test_an_image_is_fetched_from_a_url(hub, name):
    hub.folder("acme/pictures").mkdir(parents=True, exist_ok=True)
    Image.fromarray(RGB).save(hub.folder("acme/pictures") / name)
    loaded = load_image(f"{hub.url}/acme/pictures/resolve/main/{name}")
    np.testing.assert_array_equal(np.asarray(loaded), RGB)


def test_a_download_has_a_limit(hub, monkeypatch):
    hub.folder("acme/pictures").mkdir(parents=True, exist_ok=True)
    (hub.folder("acme/pictures") / "large.png").write_bytes(bytes(3 * 2**20))
    monkeypatch.setattr("hf_cam.images.reading.MAX_DOWNLOAD", 2 * 2**20)
    with pytest.raises(ImageError, match="is larger than 2 MB"):
        load_image(f"{hub.url}/acme/pictures/resolve/main/large.png")
