"""An audit finds what a class is read from, and says nothing of what is not read."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import hf_cam
from hf_cam.auditing import findings
from hf_cam.auditing.asking import Asker
from hf_cam.auditing.audit import Audit
from hf_cam.auditing.cases import WHOLE, Box, Case, Opened, box_of, cases_of, match
from hf_cam.auditing.findings import (
    AGREED,
    NOT_TESTED,
    SCANNED,
    ClassImages,
    Suspicion,
    kind_of,
    region_name,
    sentence,
    suspicions,
)
from hf_cam.auditing.labelled import labelled
from hf_cam.auditing.recognition import Shown
from hf_cam.auditing.regions import Border, Place, elsewhere, overlap, to_frame
from hf_cam.auditing.report import excerpt, lead
from hf_cam.auditing.strategies import strategies
from hf_cam.auditing.suspects import Scan, agreement, scan
from hf_cam.auditing.trials import Trial, summary, tried
from hf_cam.errors import HFCamError, ImageError, ModelError, OptionError, TargetError
from hf_cam.explainer import Explainer
from hf_cam.interfaces.cli import main
from hf_cam.models.loading import LoadedModel, load
from hf_cam.request import Request
from hf_cam.zoo.scenes import CLASSES, cheater_scenes, mark_region

CLASSES_OF_CHEATER = dict(enumerate(CLASSES))


@pytest.fixture(scope="module")
def audited() -> Audit:
    return hf_cam.audit("demo:cheater", cheater_scenes(72), held_out=12)


def test_the_mark_is_found_without_a_hint_and_in_its_place(audited: Audit):
    [found] = audited.suspicious
    assert (found.label, found.kind, found.verdict) == ("coat", "place", "reads it")
    assert found.region is not None
    assert overlap(found.region, box_of(mark_region())) >= 0.3
    assert found.drop >= 0.8
    assert found.interval[0] <= found.drop <= found.interval[1]
    assert found.elsewhere <= 0.2
    assert audited.findings[0] is found
    assert "upper right corner" in found.text
    assert lead(audited) == "For 'coat', the model reads the upper right corner of the picture."


def test_many_regions_are_said_in_one_sentence(audited: Audit):
    [found] = audited.suspicious
    boxes = [(0.0, 0.0, 0.2, 0.2), (0.8, 0.8, 1.0, 1.0), (0.4, 0.4, 0.6, 0.6), (0.4, 0.8, 0.6, 1.0)]
    several = [replace(found, region=box, label=label) for box in boxes for label in ("coat", "bag")]
    said = lead(replace(audited, findings=tuple(several)))
    assert said.startswith("For 'coat' and 'bag', the model reads the upper left corner of the picture; for 'coat'")
    assert said.endswith("; 1 more below.")


def test_each_finding_has_the_masks_of_the_images_that_it_was_tested_on(audited: Audit):
    masks = audited.masks[0]
    assert len(masks) >= audited.findings[0].images
    for mask in masks.values():
        shared = (mask & mark_region()).sum() / (mask | mark_region()).sum()
        assert shared >= 0.3


def test_a_report_needs_no_other_file_and_its_tables_have_every_image(audited: Audit, tmp_path: Path):
    page = audited.save(tmp_path / "report").read_text(encoding="utf-8")
    assert "http://" not in page
    assert "https://" not in page
    assert audited.findings[0].text.replace("'", "&#x27;") in page
    told = json.loads((tmp_path / "report" / "findings.json").read_text())
    assert told["findings"][0]["label"] == "coat"
    lines = (tmp_path / "report" / "images.csv").read_text().splitlines()
    assert len(lines) == 1 + len(audited.rows)


def test_the_masks_are_read_back_from_the_table(audited: Audit, tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    audited.save(tmp_path)
    rows = parquet.read_table(tmp_path / "findings.parquet").to_pylist()
    assert len(rows) == sum(map(len, audited.masks))
    first = audited.masks[0]
    import io

    read = {row["name"]: np.asarray(Image.open(io.BytesIO(row["mask"]))) for row in rows if row["finding"] == 0}
    assert all((read[name] == mask).all() for name, mask in first.items())


def test_only_what_is_suspicious_is_shown_as_an_alarm(audited: Audit):
    found = audited.findings[0]
    several = (found, replace(found, kind="object", region=None), replace(found, kind="moving", region=None))
    page = excerpt(replace(audited, findings=several, masks=({},) * 3))
    assert re.findall(r'class="finding (\w+)"', page) == ["reads", "plain", "plain"]


def test_labels_with_html_are_shown_as_text(audited: Audit, tmp_path: Path):
    from dataclasses import replace

    finding = replace(audited.findings[0], label="<script>x</script>", text="<script>y</script>")
    page = replace(audited, findings=(finding, *audited.findings[1:]), model="<b>").save(tmp_path).read_text()
    assert "<script>" not in page
    assert "<b>?" not in page


def test_a_notebook_shows_the_report(audited: Audit):
    assert audited._repr_html_().startswith("<iframe")


def test_a_folder_of_class_folders_is_matched_by_name_and_a_broken_file_is_a_row(tmp_path: Path):
    for index, (picture, label) in enumerate(cheater_scenes(12)):
        (tmp_path / f"The {label}").mkdir(exist_ok=True)
        picture.save(tmp_path / f"The {label}" / f"{index}.png")
    (tmp_path / "The coat" / "broken.png").write_bytes(b"no picture")
    named = {f"The {label}": label for label in CLASSES}
    found = hf_cam.audit("demo:cheater", tmp_path, labels=named, held_out=2)
    broken = [row for row in found.rows if row.error]
    assert [Path(row.name).name for row in broken] == ["broken.png"]
    assert sum(not row.error for row in found.rows) == 12
    assert any("could not be read" in note for note in found.notes)
    assert any("is not tested" in note for note in found.notes)


def test_a_model_that_compares_with_prompts_takes_the_names_of_the_classes():
    found = hf_cam.audit("demo:clip", cheater_scenes(6))
    assert found.classes == ("coat", "pullover", "shirt")
    assert {row.predicted for row in found.rows} <= set(CLASSES)


@pytest.mark.parametrize("option", ["masks", "boxes"])
def test_marks_that_are_not_one_per_image_are_refused_by_the_options_own_name(option: str):
    with pytest.raises(OptionError, match=rf"^{option}= must have one entry per image, got 1 for 3 images"):
        labelled([(None, "coat")] * 3, **{option: [None]})


def test_a_model_at_chance_is_said_first():
    wrong = {"coat": "shirt", "shirt": "pullover", "pullover": "coat"}
    found = hf_cam.audit("demo:cheater", [(picture, wrong[label]) for picture, label in cheater_scenes(18)])
    assert "not clearly above chance" in found.notes[0]
    assert str(found).splitlines()[1] == found.notes[0]


@pytest.mark.parametrize("data", [[], "no such folder", 3, [("cat.png",)], [{"image": 1}]])
def test_what_is_no_labelled_data_is_refused_in_one_sentence(data: object):
    with pytest.raises(HFCamError) as refused:
        hf_cam.audit("demo:cheater", data)
    assert len(str(refused.value)) <= 400


def test_names_that_do_not_match_are_listed_on_both_sides():
    with pytest.raises(OptionError, match=r"'Mantel' of the data; the model has 'coat', 'pullover'.*labels="):
        cases_of(labelled([(None, "Mantel")]), CLASSES_OF_CHEATER)


def test_a_name_that_fits_two_classes_is_refused():
    with pytest.raises(OptionError, match="several"):
        match(["crane"], {0: "crane", 1: "Crane", 2: "crane, bird"})


@pytest.mark.parametrize("name", ["COAT", " coat ", "Coat"])
def test_case_and_blanks_do_not_matter(name: str):
    assert match([name], CLASSES_OF_CHEATER) == {name: 0}


def test_folders_in_any_order_get_the_classes_of_their_names(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 7)).save(tmp_path / name / "x.png")
    found = cases_of(labelled(tmp_path), {0: "b", 1: "a"})
    assert {Path(case.name).parent.name: case.label for case in found} == {"a": 1, "b": 0}


def test_images_none_of_which_can_be_read_are_an_error(tmp_path: Path):
    (tmp_path / "coat").mkdir()
    (tmp_path / "coat" / "x.png").write_bytes(b"")
    with pytest.raises(ImageError, match="none of the 1 images"):
        hf_cam.audit("demo:cheater", tmp_path)


def test_masks_of_another_size_are_rows_with_an_error():
    data = [{"image": picture, "label": label, "mask": np.ones((5, 5), bool)} for picture, label in cheater_scenes(3)]
    with pytest.raises(ImageError, match="its image is"):
        hf_cam.audit("demo:cheater", data)


def test_the_command_fails_on_a_finding_only_if_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, audited: Audit):
    monkeypatch.setattr("hf_cam.auditing.audit.audit", lambda *_, **__: audited)
    arguments = ["audit", "demo:cheater", "demo:cheater", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert main([*arguments, "--fail-on-finding"]) == 3
    assert (tmp_path / "index.html").is_file()


def test_an_audit_in_which_nothing_was_tested_says_so_and_passes_no_gate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, audited: Audit, capsys: pytest.CaptureFixture[str]
):
    empty = replace(audited, findings=(), masks=())
    assert NOT_TESTED in str(empty)
    assert lead(empty) == NOT_TESTED
    monkeypatch.setattr("hf_cam.auditing.audit.audit", lambda *_, **__: empty)
    assert main(["audit", "demo:cheater", "demo:cheater", "--out", str(tmp_path), "--fail-on-finding"]) == 2
    assert "nothing was tested" in capsys.readouterr().err


@pytest.mark.parametrize(("marked", "known"), [(0, False), (3, False), (24, True)])
def test_evidence_that_moves_is_suspicious_only_where_objects_are_marked(audited: Audit, marked: int, known: bool):
    mask = np.zeros((64, 96), bool)
    mask[24:40, 40:56] = True
    red = moved(24)
    found = suspected(Anywhere(), red, np.zeros((64, 96, 3), np.uint8), [mask] * marked)
    [moving] = [one for one in found if one.verdict(one.trial) == "reads it"]
    assert (moving.kind, moving.objects) == ("moving", known)
    finding = moving.finding(moving.trial)
    assert ("masks= would show it" in finding.text) is not known
    assert replace(audited, findings=(finding,), masks=({},)).suspicious == ((finding,) if known else ())


def test_masks_and_boxes_that_mark_nothing_are_refused(tmp_path: Path):
    data = list(cheater_scenes(4))
    for masks, words in ((tmp_path / "nowhere", "there is no folder"), (tmp_path, "holds no mask")):
        with pytest.raises(OptionError, match=words):
            hf_cam.audit("demo:cheater", data, masks=masks)
    with pytest.raises(OptionError, match="frame='object' needs"):
        hf_cam.audit("demo:cheater", data, frame="object")
    image = Image.new("RGB", (32, 24))
    for box in ((8, 8, 4, 4), (40, 40, 60, 60), (0.1, 0.1, 0.4, 0.4)):
        with pytest.raises(OptionError, match="marks no pixel"):
            Case("cat.png", 0, lambda box=box: {"image": image, "box": box}).open()


def test_how_opaque_a_mask_is_does_not_count():
    image, mask = Image.new("RGB", (32, 24)), Image.new("L", (32, 24))
    mask.paste(255, (0, 0, 8, 8))
    for mode in ("L", "LA", "RGBA"):
        inside = Case("0", 0, lambda mode=mode: {"image": image, "mask": mask.convert(mode)}).open().inside
        assert inside is not None
        assert inside.sum() == 64


def regions_on(masks: list[np.ndarray], *, inside: bool, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    drawn = []
    for mask in masks:
        rows, columns = np.nonzero(mask if inside else ~mask)
        pick = int(rng.integers(len(rows)))
        region = np.zeros(mask.shape, bool)
        region[max(rows[pick] - 1, 0) : rows[pick] + 2, max(columns[pick] - 1, 0) : columns[pick] + 2] = True
        drawn.append(region & (mask if inside else ~mask))
    return drawn


def test_regions_on_off_and_independent_of_the_objects_are_told_apart():
    rng = np.random.default_rng(1)
    masks = []
    for _ in range(24):
        top, left = rng.integers(0, 12, 2)
        mask = np.zeros((24, 32), bool)
        mask[top : top + 12, left : left + 16] = True
        masks.append(mask)
    images = [_Shown(Opened(Image.new("RGB", (32, 24)), mask)) for mask in masks]
    blind = [elsewhere(region, rng, 1) for region in regions_on(masks, inside=True)]
    assert kind_of(regions_on(masks, inside=True), images) == "object"
    assert kind_of(regions_on(masks, inside=False), images) == "background"
    assert kind_of(blind, images) == "moving"
    small = [_Shown(Opened(Image.new("RGB", (32, 24)), _core(mask))) for mask in masks]
    assert kind_of(masks, small) == "object"
    assert kind_of(blind, [_Shown(Opened(Image.new("RGB", (32, 24))))] * 24) == "moving"


def test_evidence_that_lies_on_few_objects_is_not_taken_for_the_background():
    """One of six regions is wholly on an object, which covers a sixth of the image: that is chance."""
    mask = np.zeros((24, 36), bool)
    mask[6:18, 12:24] = True
    images = [_Shown(Opened(Image.new("RGB", (36, 24)), mask))] * 48
    on, off = np.zeros_like(mask), np.zeros_like(mask)
    on[10:14, 16:20] = off[:4, :4] = True
    regions = [on if number % 6 == 0 else off for number in range(48)]
    assert kind_of(regions, images) == "moving"
    assert kind_of([off] * 48, images) == "background"
    assert kind_of([on] * 48, images) == "object"


def test_more_images_are_searched_only_where_something_is_read(monkeypatch: pytest.MonkeyPatch):
    asked: list[Shown] = []
    real = findings.scan
    monkeypatch.setattr(findings, "scan", lambda asker, one: asked.append(one) or real(asker, one))
    red, plain = moved(72), np.zeros((64, 96, 3), np.uint8)
    found = suspected(Anywhere(), red, plain)
    assert [one.kind for one in found if one.verdict(one.trial) == "reads it"] == ["moving"]
    assert len(asked) == 72
    asked.clear()
    assert not any(one.verdict(one.trial) == "reads it" for one in suspected(Always(), red, plain))
    assert len(asked) == 36 + SCANNED


def _core(mask: np.ndarray) -> np.ndarray:
    """The middle of an object, a quarter of its area."""
    rows, columns = np.nonzero(mask)
    small = np.zeros_like(mask)
    small[rows.min() + 3 : rows.max() - 2, columns.min() + 4 : columns.max() - 3] = True
    return small


class _Shown:
    def __init__(self, opened: Opened) -> None:
        self.opened = opened


def test_a_place_of_the_objects_frame_lies_in_its_box():
    marked = Place((0.0, 0.0, 0.5, 1.0)).mask((10, 20), (0.5, 0.0, 1.0, 0.5))
    assert marked[:5, 10:15].all()
    assert marked.sum() == 25


def test_a_border_is_a_ring():
    ring = Border(0.1).mask((20, 30))
    assert ring[:2].all()
    assert ring[:, -2:].all()
    assert not ring[2:-2, 2:-2].any()


def test_maps_of_any_size_come_to_one_frame():
    values = np.zeros((40, 60), np.float32)
    values[:10, :15] = 1
    framed = to_frame(values, grid=8)
    assert framed[:2, :2].min() == 1
    assert framed.sum() == pytest.approx(4)


def test_the_same_shape_elsewhere_does_not_touch_the_region_if_it_can():
    region = Place((0.0, 0.0, 0.3, 0.3)).mask((20, 30))
    moved = elsewhere(region, np.random.default_rng(0))
    assert moved.sum() == region.sum()
    assert not (moved & region).any()


def test_a_region_that_changes_no_more_than_another_is_not_read():
    flips = np.zeros((2, 32), bool)
    assert summary(flips, np.zeros((2, 32))).verdict == "does not"
    flips[0, :30] = True
    found = summary(flips, np.zeros((2, 32)))
    assert found.verdict == "reads it"
    place = Place((0.0, 0.0, 0.2, 0.2))
    assert Suspicion("red", "place", place, found, 1, {}).verdict(found) == "undecided"
    flips[1, :30] = True
    assert summary(flips, np.zeros((2, 32))).verdict != "reads it"


def agreeing(corners: np.ndarray, side: int, box: Box) -> bool:
    """Whether evidence in squares of a side at these corners is taken for one of a fixed place."""
    scans = []
    for top, left in corners:
        effect = np.zeros((48, 72), np.float32)
        effect[top : top + side, left : left + side] = 1
        scans.append(Scan(None, effect))  # type: ignore[arg-type]
    return agreement(scans, [WHOLE] * len(scans), Place(box)) >= AGREED


def test_evidence_of_a_fixed_place_lies_at_one_position_and_that_of_objects_does_not():
    rng = np.random.default_rng(0)
    jitter = rng.integers(0, 3, (16, 2))
    assert agreeing(jitter, 12, (0.0, 0.0, 0.2, 0.3))
    assert not agreeing(rng.integers((6, 12), (28, 48), (16, 2)), 14, (0.2, 0.2, 0.8, 0.8))
    along = np.stack([np.full(16, 42), rng.integers(0, 66, 16)], 1)
    assert agreeing(along, 6, (0.0, 0.85, 1.0, 1.0))
    assert not agreeing(along, 6, (0.3, 0.85, 0.6, 1.0))
    assert not agreeing(jitter[:1], 12, (0.0, 0.0, 0.2, 0.3)), "one image shows no agreement"


class Anywhere(nn.Module):
    """Red anywhere makes the second class; however little of it, as long as it is a whole cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 2)
        with torch.no_grad():
            self.cells.weight.zero_()
            self.cells.bias.zero_()
            self.cells.weight[0, 0] = 1 / 64
            self.head.weight.copy_(torch.tensor([[0.0] * 4, [20.0, 0, 0, 0]]))
            self.head.bias.copy_(torch.tensor([10.0, 0.0]))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(pixel_values).amax((2, 3)))


def test_evidence_of_which_any_part_is_enough_is_found_where_it_lies():
    asker = red_asker(Anywhere())
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[32:, 40:80, 0] = 255
    one = asker.show(Case("0", 1, lambda: {"image": picture, "label": "red"}))
    assert one.right
    marked = scan(asker, one).region()
    red = picture[..., 0] > 0
    assert (marked & red).sum() / (marked | red).sum() > 0.5
    plain = asker.show(Case("1", 0, lambda: {"image": np.zeros_like(picture), "label": "none"}))
    assert scan(asker, plain).effect.max() == 0, "the class of an empty picture has no evidence"


class Always(Anywhere):
    """Every picture is of the second class."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().forward(pixel_values) * 1e-3 + torch.tensor([0.0, 4.0])


class AroundTheEdge(nn.Module):
    """Enough red along the edge makes the second class; that at the top counts twice."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Conv2d(3, 1, 8, 8)
        weights = torch.zeros(8, 12)
        weights[[0, -1]] = 1
        weights[:, [0, -1]] = 1
        weights[0] = 2
        self.register_buffer("weights", weights / weights.sum())
        with torch.no_grad():
            self.cells.weight.zero_()
            self.cells.bias.zero_()
            self.cells.weight[0, 0] = 1 / 64

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        red = (self.cells(pixel_values)[:, 0] * self.weights).sum((1, 2))
        return torch.stack([torch.full_like(red, 6.0), 8 * red], 1)


def moved(count: int) -> list[np.ndarray]:
    """Pictures with one red square, at a random place in each."""
    rng, pictures = np.random.default_rng(0), np.zeros((count, 64, 96, 3), np.uint8)
    for picture in pictures:
        top, left = 16 * int(rng.integers(4)), 16 * int(rng.integers(6))
        picture[top : top + 16, left : left + 16, 0] = 255
    return list(pictures)


def red_model(model: nn.Module, labels: Sequence[str] = ("none", "red")) -> LoadedModel:
    """A model with the classes "none" and "red"."""

    def tensor(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

    return load(model.eval(), processor=tensor, labels=list(labels))


def red_asker(model: nn.Module) -> Asker:
    """What an audit asks of such a model."""
    return Asker(Explainer(red_model(model), "gradcam", "cells"), Request.of(top_k=1))


def test_an_image_without_a_map_keeps_its_prediction_and_is_tested(tmp_path: Path):
    plain = [np.full((64, 96, 3), (0, 0, shade), np.uint8) for shade in range(16)]
    red = [np.maximum(*pair) for pair in zip(moved(16), plain, strict=True)]
    data = [*((one, "red") for one in red), *((one, "none") for one in plain), (plain[0], "red")]
    found = hf_cam.audit(red_model(Mean()), data, method="gradcam")
    assert [(row.predicted, row.right) for row in found.rows] == [("red", True)] * 16 + [("none", True)] * 16 + [
        ("none", False)
    ]
    [note] = found.notes
    assert note.startswith("17 of 33 images have no map, so that they belong to no strategy; the first: the target")
    assert all(row.map is None and row.flags[0].startswith("no map: ") and row.score > 0.5 for row in found.rows[16:])
    assert found.findings
    page = found.save(tmp_path).read_text(encoding="utf-8")
    assert ", labelled red</figcaption>" in page, "a wrong prediction is shown without its map"


class Mean(Anywhere):
    """Red makes the second class, by its mean over all cells; the first class is read from nothing."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        red = self.cells(pixel_values)[:, 0].mean((1, 2))
        return torch.stack([torch.full_like(red, 3.0), 160 * red], 1)


def test_copies_of_an_image_are_tested_once():
    pictures = [np.maximum(one, np.uint8(shade)) for shade, one in enumerate(moved(15))]
    data = [*((one, "red") for one in pictures * 3), (pictures[0], "none"), (np.zeros((64, 96, 3), np.uint8), "none")]
    found = hf_cam.audit(red_model(Mean()), data, method="gradcam")
    assert sum(row.copy for row in found.rows) == 30
    assert not any(row.copy for row in found.rows[:15]), "the first of each is none"
    assert not any(row.copy for row in found.rows[45:]), "of another class it is none either"
    assert "30 of 47 images are copies of others, and are not tested again." in found.notes
    assert any(note.startswith("'red' is not tested: 15 of its images are recognized") for note in found.notes)


class Failing(Mean):
    """A model with a fault."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a fault of the model")


AT_FAULT = {
    "forward": (Failing(), ("none", "red"), ModelError, "a fault of the model"),
    "labels": (Mean(), ("none", "red", "blue"), TargetError, "labels= names the classes 0 to 2"),
}


@pytest.mark.parametrize(("model", "labels", "kind", "words"), AT_FAULT.values(), ids=AT_FAULT)
def test_a_fault_of_the_model_is_not_put_on_the_images(model: nn.Module, labels: list[str], kind: type, words: str):
    with pytest.raises(kind, match=words):
        hf_cam.audit(red_model(model, labels), [(one, "red") for one in moved(3)], method="gradcam")


class Score(Mean):
    """A single score: how red a picture is."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().forward(pixel_values)[:, 1:] - 3


def test_a_model_without_several_classes_is_refused():
    data = [(one, "red") for one in moved(3)]
    with pytest.raises(OptionError, match=r"compares classes, but there is only 'red'; pass both names of a single"):
        hf_cam.audit(red_model(Score(), ["red"]), data)
    assert hf_cam.audit(red_model(Score()), data, method="gradcam").accuracy == 1.0
    with pytest.raises(OptionError, match="compares classes, but Score predicts values"):
        hf_cam.audit(replace(red_model(Score()), output="regression"), data)
    with pytest.raises(OptionError, match=r"there is only 'bag'; .* the prompts of other classes in text="):
        hf_cam.audit("demo:clip", [(one, "bag") for one in moved(3)])


def suspected(
    model: nn.Module, pictures: list[np.ndarray], plain: np.ndarray, masks: Sequence[np.ndarray] = ()
) -> list[Suspicion]:
    """What the red class of a model is suspected of, in these pictures, the first with masks, beside plain ones."""
    asker = red_asker(model)

    def shown(label: int, number: int, picture: np.ndarray) -> Any:
        mask = {"mask": masks[number]} if label and number < len(masks) else {}
        entry = {"image": picture, "label": ("none", "red")[label], **mask}
        return asker.show(Case(f"{label}-{number}", label, lambda: entry))

    red = [shown(1, number, one) for number, one in enumerate(pictures)]
    assert all(one.right for one in red)
    others = [shown(0, number, plain) for number in range(4)]
    return suspicions(asker, ClassImages("red", red[::2], red[1::2], others))


def test_the_border_is_read_where_its_best_part_is_needed_but_not_enough():
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[..., 0] = 255
    picture[8:-8, 8:-8] = 0
    found = [
        one
        for one in suspected(AroundTheEdge(), [picture] * 16, np.zeros_like(picture))
        if one.verdict(one.trial) == "reads it"
    ]
    assert [one.kind for one in found] == ["border"]


def test_places_of_which_one_is_enough_are_all_that_is_read():
    left, right = (slice(24, 40), slice(0, 16)), (slice(24, 40), slice(80, 96))
    pictures = []
    for number in range(36):
        picture = np.zeros((64, 96, 3), np.uint8)
        for part in ((left, right), (left,), (right,))[number // 2 % 3]:
            picture[(*part, 0)] = 255
        pictures.append(picture)
    found = suspected(Anywhere(), pictures, np.zeros((64, 96, 3), np.uint8))
    assert {one.kind for one in found} == {"place"}
    assert sum(one.verdict(one.trial) == "reads it" for one in found) == 2


def test_a_place_where_objects_happen_to_lie_is_not_read():
    flips = np.zeros((2, 32), bool)
    flips[0, :20] = True
    trial = summary(flips, np.array([[1.0] * 32, [0.0] * 32]))
    place = Place((0.2, 0.2, 0.8, 0.8))
    assert Suspicion("coat", "place", place, trial, 0.8, {}).verdict(trial) == "reads it"
    assert Suspicion("coat", "place", place, trial, 0.8, {}, fixed=False).verdict(trial) == "undecided"


def test_a_few_images_leave_it_undecided():
    flips = np.array([[True, True, False, False], [False] * 4])
    assert summary(flips, np.zeros((2, 4))).verdict == "undecided"


def test_two_ways_of_reading_one_class_are_two_strategies():
    rng = np.random.default_rng(0)
    maps = rng.uniform(0, 0.05, (40, 24, 24)).astype(np.float32)
    maps[:24, :6, :6] += 1
    maps[24:, -6:, -6:] += 1
    found = strategies("coat", maps, [True] * 24 + [False] * 16, range(40))
    assert [(round(one.share, 2), one.accuracy) for one in found] == [(0.6, 1.0), (0.4, 0.0)]
    assert set(found[0].members) == set(range(24))


def test_maps_that_are_alike_are_one_strategy():
    maps = np.random.default_rng(0).uniform(0.4, 0.6, (40, 24, 24)).astype(np.float32)
    assert len(strategies("coat", maps, [True] * 40, range(40))) == 1


def test_every_place_has_a_name():
    assert region_name("place", (0.9, 0.4, 1.0, 0.6)) == "the right edge of the picture"
    assert region_name("place", (0.0, 0.0, 0.2, 0.2), "object") == "the upper left corner of the object"


def test_a_place_that_is_covered_in_all_held_out_images_is_no_suspicion():
    red = np.zeros((64, 96, 3), np.uint8)
    red[24:40, :16, 0] = 255
    covered = np.zeros((64, 96), bool)
    covered[:, :32] = True
    asker = red_asker(Anywhere())
    shown = [
        asker.show(Case(str(k), 1, lambda m=m: {"image": red, "mask": m})) for k, m in enumerate([~covered, covered])
    ]
    images = ClassImages("red", shown[:1] * 16, shown[1:] * 16, [], located=True)
    assert not any(one.kind == "place" for one in suspicions(asker, images))


def test_a_class_whose_images_are_not_recognized_again_is_not_tested(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hf_cam.auditing.audit.shown", lambda *_: iter(()))
    found = hf_cam.audit("demo:cheater", cheater_scenes(54))
    assert not found.findings
    assert any(note.startswith("'coat' is not tested: 0 of its images are recognized when") for note in found.notes)


def test_a_model_that_takes_patches_is_refused_before_anything_is_explained(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hf_cam.auditing.asking.are_cut", lambda _: True)
    heard: list[str] = []
    with pytest.raises(OptionError, match="cut into patches; audit a model that takes whole images"):
        hf_cam.audit("demo:cheater", cheater_scenes(6), progress=lambda what, *_: heard.append(what))
    assert not heard


def test_a_region_is_put_on_images_of_other_sizes_and_that_is_said_only_where_it_is():
    asker = red_asker(Anywhere())
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:24, :24, 0] = 255
    red = [asker.show(Case(str(k), 1, lambda: {"image": picture})) for k in range(8)]
    other = asker.show(Case("other", 0, lambda: {"image": np.zeros((80, 64, 3), np.uint8)}))
    place = Place((0.0, 0.0, 0.4, 0.5))
    hidden = ClassImages("red", red, red, [other]).region_of(place)

    def said(trial: Trial) -> str:
        return sentence(Suspicion("red", "place", place, trial, 1, {}), trial)

    assert "put on images of other classes, it turns 100% of them" in said(tried(asker, red, [other], hidden))
    assert "put on images" not in said(tried(asker, red, [], hidden))


def test_a_region_without_which_the_class_is_lost_is_said_not_to_be_read_with_the_reason():
    flips = np.zeros((2, 32), bool)
    flips[0] = True
    place = Place((0.0, 0.0, 0.4, 0.5))

    def said(follow: float, *, pasted: bool = True, fixed: bool = True) -> str:
        trial = summary(flips, np.array([[follow] * 32, [0.125] * 32]), pasted=pasted)
        return sentence(Suspicion("red", "place", place, trial, 1, {}, fixed=fixed), trial)

    assert said(1.0).endswith("it turns 100% of them into 'red'.")
    assert said(0.3).endswith("; but a region counts as read from 40 percentage points above another region's 12% on.")
    assert said(1.0, fixed=False).endswith("; but its evidence lies at different positions, as objects do.")
    assert said(0.0, pasted=False).endswith("elsewhere; but there are no images of other classes to put it on.")


@pytest.mark.parametrize("below", ["file", "file/report"])
def test_a_report_that_cannot_be_written_is_refused_before_the_audit(
    below: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked: list[str] = []
    monkeypatch.setattr("hf_cam.auditing.audit.audit", lambda model, *_, **__: asked.append(model))
    (tmp_path / "file").write_bytes(b"")
    assert main(["audit", "demo:cheater", "demo:cheater", "--out", str(tmp_path / below)]) == 2
    assert "is no folder; choose another folder" in capsys.readouterr().err
    assert not asked


WRONG_SETTINGS = {
    "an unknown argument": ({"held_ot": 3}, "unexpected keyword argument 'held_ot'.*'held_out'"),
    "a second model": ({"model": "x"}, "multiple values for argument 'model'"),
    "no method": ({"method": "nope"}, "no method 'nope'"),
    "no frame": ({"frame": "x"}, "frame must be"),
    "no marks": ({"frame": "object"}, "frame='object' needs"),
    "no count": ({"held_out": 0}, "held_out must be"),
    "too few masks": ({"masks": []}, "masks= must have one entry per image"),
    "no folder": ({"masks": "no such folder"}, "there is no folder"),
    "no report": ({"report": 3}, "report must be a function"),
    "no data": ({"data": []}, "an audit takes a folder of class folders"),
}


@pytest.mark.parametrize(("settings", "words"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS)
def test_a_callback_refuses_wrong_settings_before_the_training(settings: dict[str, Any], words: str):
    with pytest.raises(HFCamError, match=words):
        hf_cam.AuditCallback(**{"data": [(np.zeros((12, 16, 3), np.uint8), "coat")], **settings})


NOT_FITTING = {
    "classes": ("bag", {}, OptionError, "no class of the model fits 'bag'"),
    "device": ("coat", {"device": "cpu"}, OptionError, "device and dtype apply to models that hf-cam loads"),
    "processor": ("coat", {"processor": None}, ModelError, "processor"),
}


@pytest.mark.parametrize(("label", "settings", "kind", "words"), NOT_FITTING.values(), ids=NOT_FITTING)
def test_a_callback_refuses_what_does_not_fit_the_model_as_the_training_begins(
    label: str, settings: dict[str, Any], kind: type, words: str
):
    loaded = hf_cam.load("demo:cheater")
    picture = np.zeros((64, 96, 3), np.uint8)
    model = copy.deepcopy(loaded.model)
    model.config._name_or_path = model.name_or_path = ""
    callback = hf_cam.AuditCallback([(picture, label)], **{"processor": loaded.processor, **settings})
    with pytest.raises(kind, match=words):
        callback.on_train_begin(None, None, None, model=model)
    fitting = hf_cam.AuditCallback([(picture, "coat")])
    fitting.on_train_begin(None, None, None, model=model, processing_class=loaded.processor)


def test_file_names_that_are_no_utf8_do_not_stop_the_report(audited: Audit, tmp_path: Path):
    name = str(tmp_path / "\udcff.png")
    try:
        Image.new("RGB", (16, 12)).save(name)
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    rows = (replace(audited.rows[0], name=name), *audited.rows[1:])
    masks = tuple({name: next(iter(one.values()))} for one in audited.masks)
    named = replace(audited, rows=rows, masks=masks)
    page = named.save(tmp_path / "report").read_text(encoding="utf-8")
    assert "%FF.png" in page
    assert r"\udcff.png" in (tmp_path / "report" / "images.csv").read_text(encoding="utf-8")
    assert named._repr_html_().encode()


@pytest.mark.slow
def test_a_trainer_audits_while_it_trains_and_notes_what_it_finds(tmp_path: Path):
    import torch
    import transformers as hf

    loaded = hf_cam.load("demo:cheater")
    scenes = cheater_scenes(72)
    known = {name: index for index, name in enumerate(CLASSES)}
    data = [
        {"pixel_values": loaded.processor(picture, return_tensors="pt")["pixel_values"][0], "labels": known[label]}
        for picture, label in scenes[:8]
    ]
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    heard = []
    callback = hf_cam.AuditCallback(
        scenes,
        every=2,
        processor=loaded.processor,
        held_out=12,
        report=lambda figures, step: heard.append((step, figures)),
    )
    settings = hf.TrainingArguments(
        str(tmp_path),
        max_steps=3,
        learning_rate=1e-6,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = hf.Trainer(loaded.model, settings, train_dataset=data, callbacks=[callback])
    trainer.train()
    [(step, figures)] = heard
    assert step == 2
    assert figures["audit_findings"] == 1, str(callback.audits[2])
    assert figures["audit_drop"] >= 0.8
    assert [entry["step"] for entry in trainer.state.log_history if "audit_drop" in entry] == [2]
    assert loaded.model.training
    changed = [name for name, value in loaded.model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
