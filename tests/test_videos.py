"""Videos through the front doors: opened, sampled, explained frame by frame, and shown."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image, ImageSequence
from torch import nn

import hf_cam
from benchmarks.tiny_models import Case, case_of, cases, words_tokenizer
from hf_cam.capture.inputs import call, model_inputs_of
from hf_cam.errors import HFCamError, ImageError, MethodError
from hf_cam.explainer import Explainer
from hf_cam.images.videos import load_video, spread
from hf_cam.interfaces.cli import main
from hf_cam.models.loading import LoadedModel, load
from hf_cam.models.traits import traits_of
from pictures import resized

SIDES = (72, 110)
"""Height and width of the frames."""


def frames(count: int = 9) -> np.ndarray:
    """Noise, brighter from frame to frame."""
    noise = np.random.default_rng(0).integers(0, 40, (count, *SIDES, 3))
    return (noise + np.arange(count)[:, None, None, None] * 20).astype(np.uint8)


def write_mp4(path: Path, video: np.ndarray) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, video.shape[2:0:-1])
    assert writer.isOpened()
    for frame in video:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def write_gif(path: Path, video: np.ndarray) -> Path:
    first, *others = (Image.fromarray(frame) for frame in video)
    first.save(path, save_all=True, append_images=others, duration=100)
    return path


# Opening --------------------------------------------------------------------------------------------------------------


def test_frames_are_the_middles_of_equal_parts():
    assert spread(12, 4) == [1, 4, 7, 10]
    assert spread(9, 4) == [1, 3, 5, 7]
    assert spread(5, 5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("write", [write_mp4, write_gif])
def test_a_file_is_sampled_to_the_frames_of_the_array_that_it_holds(tmp_path, write):
    path = write(tmp_path / f"clip.{write.__name__[6:]}", frames(12))
    expected = load_video(frames(12), 4)
    for source in (path, str(path)):
        found = load_video(source, 4)
        assert len(found.frames) == 4
        assert (found.height, found.width) == SIDES
        for one, same in zip(found.frames, expected.frames, strict=True):
            assert np.asarray(one).mean() == pytest.approx(np.asarray(same).mean(), abs=4)
    assert len(load_video(path).frames) == 12


def test_red_stays_red_in_a_decoded_video(tmp_path):
    red = np.zeros((4, *SIDES, 3), np.uint8)
    red[..., 0] = 200
    mean = np.asarray(load_video(write_mp4(tmp_path / "red.mp4", red)).frames[0]).mean((0, 1))
    assert mean[0] > 150 > 60 > mean[2]


def test_arrays_lists_and_tensors_are_the_same_video():
    video = frames(4)
    ways = [
        video,
        torch.from_numpy(video),
        torch.from_numpy(video).permute(0, 3, 1, 2),
        video / 255.0,
        hf_cam.Video(list(video)),
        hf_cam.Video([Image.fromarray(frame) for frame in video]),
    ]
    for way in ways:
        for one, frame in zip(load_video(way).frames, video, strict=True):
            np.testing.assert_array_equal(np.asarray(one), frame)


# Explaining -----------------------------------------------------------------------------------------------------------


def processor_of(case: Case):
    """The real processor of this type, for the tiny model's size."""
    height, width = case.size
    both = {"height": height, "width": width}
    if case.model_type == "vjepa2":
        return hf.VJEPA2VideoProcessor(crop_size=height)
    if case.model_type == "videoprism_vision_model":
        return hf.LlavaOnevisionVideoProcessor(size=both)
    if case.model_type == "vivit":
        return hf.VivitImageProcessor(size=both, crop_size=both)
    return hf.VideoMAEImageProcessor(size={"shortest_edge": height}, crop_size=both)


@pytest.mark.parametrize("case", list(cases("video-classification")), ids=str)
def test_every_model_of_videos_gets_one_map_per_frame(case):
    model = case.build()
    settings = {"processor": processor_of(case), "method": "gradcam-elementwise"}
    [found] = hf_cam.explain(frames(), model, **settings)
    assert traits_of(model).frames == len(found.frames) == 4
    assert found.heatmap.shape == (4, *SIDES)
    assert found.heatmap.dtype == np.float32
    assert found.heatmap.min() >= 0
    assert found.heatmap.max() == pytest.approx(1)
    assert found.heatmap.std((1, 2)).min() > 0
    assert found.raw.ndim == 3
    assert found.frames[1].size == found.image.size == SIDES[::-1]
    [same] = hf_cam.explain(hf_cam.Video(list(frames())), model, target=found.label, **settings)
    np.testing.assert_array_equal(found.heatmap, same.heatmap)
    several = hf_cam.explain([frames(), frames(4)[:, ::-1]], model, **settings)
    np.testing.assert_allclose(several[0][0].heatmap, found.heatmap, atol=1e-4)
    with pytest.raises(HFCamError, match="frames or patches"):
        found.check()


@pytest.mark.parametrize("model_type", ["timesformer", "videomae", "videoprism_vision_model", "vivit"])
def test_a_video_is_compared_with_another(model_type):
    case = case_of("image-feature-extraction", model_type)
    model = case.build()
    settings = {"processor": resized(case.size), "method": "gradcam-elementwise"}
    [found] = hf_cam.explain(frames(), model, target=frames()[:, ::-1, ::-1], **settings)
    assert found.label == "like the other video"
    assert found.heatmap.shape == (4, *SIDES)
    assert found.heatmap.any()
    [itself] = hf_cam.explain(frames(), model, target=frames(), processor=resized(case.size), method="eigencam")
    assert found.score < itself.score == pytest.approx(1, abs=1e-5)


def test_prompts_are_compared_with_a_video_by_their_cosine():
    case = case_of("zero-shot-image-classification", "videoprism")
    height, width = case.size
    processor = hf.LlavaOnevisionVideoProcessor(size={"height": height, "width": width})
    loaded = LoadedModel(case.build(), processor, {}, words_tokenizer())
    video, prompts = loaded.opened(frames()), ["a cat", "a red cup"]
    [found] = Explainer(loaded, "gradcam-elementwise")([video], text=prompts)
    assert [one.heatmap.shape for one in found] == [(4, *SIDES)] * 2
    with torch.no_grad():
        pixels = loaded.inputs([video])["pixel_values"]
        output = call(loaded.model, model_inputs_of(loaded.model, pixels, loaded.tokens(prompts)))
    cosines = torch.nn.functional.cosine_similarity(output.video_embeds, output.text_embeds)
    assert [one.score for one in found] == pytest.approx(cosines.clamp(0).tolist(), abs=1e-5)
    several = list(Explainer(loaded, "gradcam-elementwise")([video, video], text=prompts))
    np.testing.assert_allclose(several[1][0].heatmap, found[0].heatmap, atol=1e-5)


class ReadsOnePlace(nn.Module):
    """A model of volumes whose only class is the brightness of the left half of one frame."""

    def __init__(self, frame: int) -> None:
        super().__init__()
        self.frame = frame
        self.cells = nn.Conv3d(3, 1, (1, 8, 8), stride=(1, 8, 8))
        nn.init.constant_(self.cells.weight, 1 / 192)
        nn.init.zeros_(self.cells.bias)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        cells = self.cells(pixels)
        return cells[:, :, self.frame, :, : cells.shape[-1] // 2].mean((2, 3))


@pytest.mark.parametrize("frame", [3, 5])
def test_the_map_lies_in_the_frame_and_the_half_that_alone_matter(frame):
    [found] = hf_cam.explain(
        frames(6), ReadsOnePlace(frame), processor=resized(), layers="cells", method="hirescam", target=0
    )
    assert found.heatmap.shape == (6, *SIDES)
    inside = np.zeros(found.heatmap.shape, bool)
    inside[frame, :, : SIDES[1] // 2 + 5] = True  # half a cell of interpolation beyond the half
    assert found.heatmap[inside].sum() / found.heatmap.sum() > 0.99
    assert found.heatmap[frame, :, : SIDES[1] // 2 - 5].min() > 0.5


def test_frames_are_stretched_together_so_that_they_compare():
    class Weighs(ReadsOnePlace):
        def forward(self, pixels):
            return (self.cells(pixels) * torch.tensor([1.0, 2.0, 4.0]).reshape(3, 1, 1)).mean((2, 3, 4))

    video = np.full((3, *SIDES, 3), 100, np.uint8)
    video[:, :, : SIDES[1] // 2] = 0  # where nothing is, a map of HiResCAM is zero
    [found] = hf_cam.explain(
        video, Weighs(0), processor=resized(), layers="cells", method="hirescam", target=lambda output: output[0]
    )
    np.testing.assert_allclose(found.heatmap.max((1, 2)), [0.25, 0.5, 1], atol=0.01)


# Refusing -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videomae(tmp_path_factory) -> Path:
    """A folder with a tiny VideoMAE and its processor."""
    case = case_of("video-classification", "videomae")
    folder = tmp_path_factory.mktemp("videomae")
    case.build().save_pretrained(folder)
    processor_of(case).save_pretrained(folder)
    return folder


def mixed_sizes():
    return hf_cam.Video([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda _: hf_cam.Video([]), "has no frames"),
        (lambda _: mixed_sizes(), "have one size, got 8 x 8, 9 x 8"),
        (lambda _: hf_cam.Video("clip.mp4"), "a list of frames"),
        (lambda _: frames(3), "has 3 frames, but the model takes 4"),
        (lambda _: frames(0), "has no frames"),
        (lambda _: frames()[0], "this model takes videos"),
        (lambda _: [Image.fromarray(frame) for frame in frames()], "a list is for several videos"),
        (lambda folder: folder / "gone.mp4", "there is no file"),
        (lambda folder: write_mp4(folder / "short.mp4", frames(3)), "has 3 frames, but the model takes 4"),
        (lambda folder: write_gif(folder / "short.gif", frames(2)), "has 2 frames, but the model takes 4"),
        (lambda folder: write_gif(folder / "still.gif", frames(1)), "single picture"),
        (lambda folder: written(folder / "empty.mp4", b""), "empty file"),
        (lambda folder: written(folder / "bad.mp4", b"no video"), "not a video, or is damaged"),
        (lambda folder: written(folder / "bad.gif", b"no video"), "is not an image"),
    ],
)
def test_what_is_no_video_is_refused(videomae, tmp_path, source, message):
    with pytest.raises(ImageError, match=message):
        hf_cam.explain(source(tmp_path), videomae)


@pytest.mark.parametrize("method", ["scorecam", "fullgrad", "rollout", "libracam"])
def test_a_method_that_sees_no_frames_is_refused(videomae, method):
    with pytest.raises(MethodError, match="not defined over the frames"):
        hf_cam.explain(frames(), videomae, method=method)


def test_a_comparison_of_a_video_leaves_out_what_sees_no_frames(videomae):
    found = hf_cam.compare(frames(), videomae)
    assert {"gradcam", "eigencam"} <= {explanation.method for explanation in found.explanations}
    blind = {"fullgrad", *(name for name, method in hf_cam.list_methods().items() if method.needs_attention)}
    assert blind <= set(found.skipped)
    assert all("over the frames of a video" in found.skipped[name] for name in blind)
    loaded = load(videomae)
    with pytest.raises(MethodError, match="'rollout' is not defined over the frames"):
        Explainer(loaded).compare_defined(loaded.opened(frames()), ["rollout", "fullgrad"])


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_model_of_images_refuses_a_video_and_takes_a_gifs_first_frame(vit_folder, tmp_path):
    with pytest.raises(ImageError, match="takes images, but got a video"):
        hf_cam.explain(frames(), vit_folder)
    [found] = hf_cam.explain(write_gif(tmp_path / "clip.gif", frames()), vit_folder)
    assert found.heatmap.shape == SIDES
    assert found.frames == ()


# Showing --------------------------------------------------------------------------------------------------------------


def test_an_overlay_is_a_sheet_of_frames_and_a_gif_shows_one_after_the_other(videomae, tmp_path):
    [found] = hf_cam.explain(frames(), videomae)
    sheet = found.overlay()
    assert sheet.size == (2 * SIDES[1] + 4, 2 * SIDES[0] + 4)
    second = sheet.crop((SIDES[1] + 4, 0, 2 * SIDES[1] + 4, SIDES[0]))
    np.testing.assert_array_equal(np.asarray(second), np.asarray(found.frame_overlays()[1]))
    with Image.open(found.save(tmp_path / "clip.gif")) as moving:
        assert [frame.size for frame in ImageSequence.Iterator(moving)] == [SIDES[::-1]] * 4
    with Image.open(found.save(tmp_path / "clip.png")) as still:
        assert still.size == sheet.size
    np.testing.assert_array_equal(np.load(found.save(tmp_path / "clip.npy")), found.heatmap)
    assert found._repr_png_().startswith(b"\x89PNG")


def test_the_pipeline_explains_videos(videomae, tmp_path):
    cam = hf_cam.pipeline("image-cam", model=str(videomae))
    path = write_gif(tmp_path / "clip.gif", frames())
    [found] = cam(str(path))
    assert found["heatmap"].shape == (4, *SIDES)
    assert [frame.size for frame in found["frames"]] == [SIDES[::-1]] * 4
    several = cam([str(path), hf_cam.Video(list(frames(4)))], batch_size=2)
    np.testing.assert_allclose(several[0][0]["heatmap"], found["heatmap"], atol=1e-4)


def test_the_command_writes_a_moving_picture_of_a_video(videomae, tmp_path, capsys):
    path = str(write_mp4(tmp_path / "clip.mp4", frames()))
    assert main(["explain", path, "--model", str(videomae), "--out", str(tmp_path / "out")]) == 0
    assert "(gradcam) -> " in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "clip.gif") as moving:
        assert moving.n_frames == 4
    sheet = str(tmp_path / "sheet.png")
    assert main(["explain", path, "--model", str(videomae), "--out", sheet]) == 0
    assert main(["explain", path, "--model", str(videomae), "--out", sheet, "--method", "gradcam,layercam"]) == 0
    with Image.open(sheet) as picture:
        assert picture.width > SIDES[1]
    short = str(write_mp4(tmp_path / "short.mp4", frames(2)))
    assert main(["explain", short, "--model", str(videomae)]) == 2
    assert "has 2 frames, but the model takes 4" in capsys.readouterr().err


def test_a_folder_with_a_video_processor_alone_is_read(tmp_path):
    case = case_of("video-classification", "vjepa2")
    case.build().save_pretrained(tmp_path)
    processor_of(case).save_pretrained(tmp_path)
    [found] = hf_cam.explain(frames(), tmp_path, method="hirescam")
    assert found.heatmap.shape == (4, *SIDES)
