"""Evaluation, tuning and their command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import hf_cam
from hf_cam.errors import HFCamError, OptionError
from hf_cam.evaluation.plots import draw_bars, draw_curves, mean_curve
from hf_cam.evaluation.samples import Sample, samples_of
from hf_cam.evaluation.table import Evaluation, Record
from hf_cam.interfaces.cli import main
from hf_cam.metrics import BASELINES, get_metric, list_metrics
from hf_cam.metrics.trial import STEPS

QUICK = {"methods": ["hirescam", "randomcam"], "metrics": ["road", "deletion", "energy-inside"], "progress": False}


@pytest.fixture(scope="module")
def samples():
    from benchmarks.scenes import scenes as drawn

    scenes = drawn("test", 3, seed=5)
    return [Sample(s.image, str(i), s.classes == 1 + s.labels[0], s.labels[0]) for i, s in enumerate(scenes)]


@pytest.fixture(scope="module")
def table(samples):
    return hf_cam.evaluate("demo:vit", samples, **QUICK)


def test_the_table_has_one_row_per_map_and_the_method_that_reads_the_model_first(table) -> None:
    assert {row.map for row in table.rows} == {"hirescam", "randomcam", *BASELINES}
    assert table.rows[0].map == table.best("road").map == table.best("energy-inside").map == "hirescam"
    for row in table.rows:
        scores = [record.scores["deletion"] for record in table.records if record.map == row.map]
        assert row.count == len(scores) == 3
        assert row.means["deletion"] == pytest.approx(np.mean(scores))
        assert row.errors["deletion"] == pytest.approx(np.std(scores, ddof=1) / 3**0.5)


def test_localisation_is_judged_in_the_pixels_of_the_image(table, samples) -> None:
    explained = hf_cam.explain(samples[0].image, "demo:vit", target=samples[0].target, method="hirescam")[0]
    inside = explained.heatmap[samples[0].mask].sum() / explained.heatmap.sum()
    [record] = [record for record in table.records if (record.map, record.image) == ("hirescam", "0")]
    assert record.scores["energy-inside"] == pytest.approx(inside, abs=0.02)


def test_the_table_goes_to_markdown_csv_and_pandas(table, tmp_path) -> None:
    markdown = table.to_markdown().splitlines()
    assert markdown[0] == f"| map | road ↑ | deletion ({STEPS} steps) ↓ | energy-inside ↑ | ms per map |"
    assert len(markdown) == 2 + len(table.rows)
    frame = table.to_pandas()
    assert list(frame["map"]) == [row.map for row in table.rows]
    assert table.to_csv(tmp_path / "table.csv") == (tmp_path / "table.csv").read_text()
    assert frame["road"][0] == pytest.approx(table.rows[0].means["road"])


def test_an_evaluation_goes_on_where_it_stopped(samples, tmp_path, monkeypatch) -> None:
    path = tmp_path / "records.jsonl"
    settings = {**QUICK, "metrics": ["complexity"], "resume": path}
    first = hf_cam.evaluate("demo:vit", samples[:1], **settings)
    whole = path.read_text()
    path.write_text(whole + '{"image": "1", "ma')  # killed while it wrote
    second = hf_cam.evaluate("demo:vit", samples[:2], **settings)
    assert path.read_text().startswith(whole)
    assert second.records[: len(first.records)] == first.records
    assert len(second.records) == 2 * len(first.records)

    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr("hf_cam.cam.CAM.saliency", never)
    assert hf_cam.evaluate("demo:vit", samples[:2], **settings).records == second.records
    with pytest.raises(HFCamError, match="other settings \\(seed\\)"):
        hf_cam.evaluate("demo:vit", samples[:2], **settings, seed=3)


def test_each_layer_is_a_row_of_its_own(samples) -> None:
    layers = [f"vit.layers.{i}.layernorm_before" for i in (1, 2)]
    found = hf_cam.evaluate(
        "demo:vit",
        samples[:1],
        methods="hirescam",
        metrics="complexity",
        layers=layers,
        baselines=False,
        progress=False,
    )
    assert sorted(row.layers[0] for row in found.rows) == layers
    assert "layers" in found.to_markdown().splitlines()[0]


@pytest.mark.parametrize("layers", [["vit.layers.4", "vit.layers.4"], [None, "vit.layers.5.layernorm_before"]])
def test_a_layer_that_is_named_twice_is_measured_once(samples, layers) -> None:
    quick = {"methods": "gradcam", "metrics": "complexity", "baselines": False, "progress": False}
    assert [row.count for row in hf_cam.evaluate("demo:vit", samples[:2], layers=layers, **quick).rows] == [2]


@pytest.mark.parametrize("measure", [hf_cam.evaluate, hf_cam.tune])
def test_no_layer_is_refused(samples, measure) -> None:
    with pytest.raises(OptionError, match="layers= names no layer"):
        measure("demo:vit", samples[:1], layers=[], progress=False)


def test_tuning_refuses_several_metrics(samples) -> None:
    with pytest.raises(OptionError, match="chooses by one metric: pass metric="):
        hf_cam.tune("demo:vit", samples[:1], metrics=["road", "insertion"], progress=False)


@pytest.mark.parametrize("turn", [1, -1])
def test_a_layer_that_does_not_serve_leaves_the_others_measured_on_every_image(samples, turn) -> None:
    layers = ["vit.layers.5", "vit.layers.4"][::turn]  # behind the last attention, no patch has a gradient
    quick = {"methods": "gradcam", "metrics": "complexity", "baselines": False, "progress": False}
    found = hf_cam.evaluate("demo:vit", samples, layers=layers, **quick)
    assert [(row.layers, row.count) for row in found.rows] == [(("vit.layers.4",), 3)]
    assert "zero on every cell of 'vit.layers.5'" in found.skipped["gradcam"]


def test_the_table_counts_images_where_a_method_is_not_defined_for_all(samples) -> None:
    def own(output):
        return output.logits[0] - output.logits[1]

    asked = [samples[0], Sample(samples[1].image, "own", target=own)]
    quick = {"methods": ["gradcam", "finercam"], "metrics": "complexity", "baselines": False, "progress": False}
    found = hf_cam.evaluate("demo:vit", asked, **quick)
    assert {row.map: row.count for row in found.rows} == {"gradcam": 2, "finercam": 1}
    assert "contrasts classes" in found.skipped["finercam"]
    assert found.to_markdown().splitlines()[0].startswith("| map | images |")


def test_curves_of_images_of_different_heights_are_drawn_on_one_axis(tmp_path) -> None:
    records = [
        Record(str(i), "gradcam", ("a",), {"insertion": 0.5}, 0.1, {"inserted": curve})
        for i, curve in enumerate(([0.0, 0.5, 1.0], [0.0, 0.2, 0.4, 0.6, 0.8]))
    ]
    found = Evaluation(tuple(records), ("insertion",), steps="rise")
    assert draw_curves(found, tmp_path / "curves.png") == tmp_path / "curves.png"
    np.testing.assert_allclose(mean_curve([record.curves["inserted"] for record in records]), np.linspace(0, 0.9, 5))


def test_a_mean_that_is_not_finite_is_never_the_best() -> None:
    scores = {"first": float("nan"), "low": 0.2, "high": 0.3}
    records = [Record("0", name, (), {"road": score}, 0.1) for name, score in scores.items()]
    found = Evaluation(tuple(records), ("road",))
    assert [row.map for row in found.rows] == ["high", "low", "first"]
    assert found.best("road").map == "high"
    with pytest.raises(OptionError, match="'road' is not finite for any method"):
        Evaluation(tuple(records[:1]), ("road",)).best("road")


EVALUATED = [
    name for name in list_metrics() if not {"attributions", "other_maps"} & set(get_metric(name).needs)
]  # what a map of an image can be judged by


@pytest.mark.parametrize("model", ["vit", "clip", "segformer", "detr", "maskformer"])
def test_every_head_is_judged_by_its_own_target(model: str) -> None:
    from benchmarks.defaults import samples_of as drawn_for
    from benchmarks.scenes import scenes as drawn

    [sample] = drawn_for(model, drawn("test", 5, seed=2)[4:])
    found = hf_cam.evaluate(
        f"demo:{model}", [sample], methods=["layercam"], metrics=EVALUATED, baselines=False, progress=False
    )
    [record] = found.records
    assert set(record.scores) == set(EVALUATED)
    assert np.isfinite(list(record.scores.values())).all()
    assert record.scores["road"] > 0.2  # a map that reads nothing gets 0
    assert record.scores["energy-inside"] > 2 * sample.mask.mean()


def test_images_come_from_folders_lists_and_datasets(tmp_path) -> None:
    import datasets

    picture = Image.fromarray(np.zeros((8, 12, 3), np.uint8))
    (tmp_path / "more").mkdir()
    for name in ("b.png", "more/a.jpg"):
        picture.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    assert [sample.name for sample in samples_of(tmp_path)] == [str(tmp_path / "b.png"), str(tmp_path / "more/a.jpg")]
    boxed = datasets.Dataset.from_dict({"image": [picture], "box": [[2, 1, 5, 4]]}).cast_column(
        "image", datasets.Image()
    )
    [sample] = samples_of(boxed)
    assert sample.mask.sum() == 9
    assert sample.mask[1:4, 2:5].all()
    [sample] = samples_of([{"image": picture, "mask": np.eye(8, 12), "target": 3, "text": ["a bag"]}])
    assert sample.mask.sum() == 8
    assert (sample.target, sample.text) == (3, ["a bag"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"metrics": ["roads"]}, "no metric 'roads'; nearest: 'road'", id="no such metric"),
        pytest.param({"metrics": ["iou"]}, "needs a mask", id="no mask"),
        pytest.param({"metrics": ["completeness-error"]}, "must be called directly", id="not of a map"),
        pytest.param({"methods": ["grdcam"]}, "'gradcam'", id="no such method"),
        pytest.param({"layers": "vit.leyers.0"}, "no layer", id="no such layer"),
    ],
)
def test_bad_settings_are_refused_before_the_model_runs(settings, message) -> None:
    with pytest.raises(HFCamError, match=message):
        hf_cam.evaluate("demo:vit", [np.zeros((9, 9, 3), np.uint8)], **settings)


def test_no_images_are_refused(tmp_path) -> None:
    with pytest.raises(HFCamError, match="holds no pictures"):
        hf_cam.evaluate("demo:vit", tmp_path)
    with pytest.raises(HFCamError, match="no image"):
        hf_cam.evaluate("demo:vit", [])
    with pytest.raises(HFCamError, match="column 'image'"):
        samples_of([{"picture": 1}])


def test_charts_show_every_map(table, tmp_path) -> None:
    for path in (draw_bars(table, tmp_path / "bars.png"), draw_curves(table, tmp_path / "curves.png")):
        picture = np.asarray(Image.open(path).convert("L"))
        assert picture.shape[0] > 200
        assert (picture < 200).mean() > 0.01
    bare = hf_cam.Evaluation((Record("0", "noise", (), {"complexity": 0.5}, 0.1),), ("complexity",))
    assert draw_curves(bare, tmp_path / "none.png") is None


def test_tuning_writes_what_infer_adapter_reads(samples, tmp_path) -> None:
    from transformers import ViTForImageClassification

    from hf_cam.zoo import demo_model

    folder = tmp_path / "mine"
    ViTForImageClassification.from_pretrained(demo_model("vit")).save_pretrained(folder)
    for name in ("preprocessor_config.json",):
        (folder / name).write_text((demo_model("vit") / name).read_text())
    found = hf_cam.tune(
        folder, samples, metric="energy-inside", methods=["hirescam", "randomcam"], save=folder, progress=False
    )
    assert found.adapter.method == "hirescam"
    assert found.written == str(folder / "cam_config.json")
    assert len({row.layers for row in found.table.rows if row.layers}) == 3
    read = hf_cam.infer_adapter(ViTForImageClassification.from_pretrained(folder))
    assert (read.layers, read.layouts, read.method) == (found.adapter.layers, found.adapter.layouts, "hirescam")
    assert hf_cam.explain(samples[0].image, folder)[0].method == "hirescam"
    assert found.score == max(row.means["energy-inside"] for row in found.table.rows)


def test_tuning_takes_the_name_of_one_layer(samples) -> None:
    found = hf_cam.tune("demo:vit", samples[:1], metric="complexity", layers="vit.layers.4", progress=False)
    assert found.adapter.layers == ("vit.layers.4",)


def test_tuning_pushes_to_a_repo_of_the_hub_what_it_chose(hub, samples) -> None:
    import shutil

    from hf_cam.zoo import demo_model

    shutil.copytree(demo_model("vit"), hub.folder("acme/tuned"))
    assert hf_cam.explain(samples[0].image, "acme/tuned")[0].layers != ("vit.layers.4.layernorm_before",)
    found = hf_cam.tune(
        "acme/tuned",
        samples[:1],
        metric="energy-inside",
        methods=["layercam"],
        layers=["vit.layers.4.layernorm_before"],
        push_to_hub="acme/tuned",
        progress=False,
        baselines=False,
    )
    assert found.written.startswith(f"{hub.url}/acme/tuned/commit/")
    stored = json.loads((hub.folder("acme/tuned") / "cam_config.json").read_text())
    assert (stored["method"], stored["layers"]) == ("layercam", ["vit.layers.4.layernorm_before"])
    [explained] = hf_cam.explain(samples[0].image, "acme/tuned")
    assert (explained.method, explained.layers) == ("layercam", ("vit.layers.4.layernorm_before",))


def test_the_command_prints_the_table_and_draws_the_charts(samples, tmp_path, capsys) -> None:
    Image.fromarray(samples[0].image).save(tmp_path / "scene.png")
    out = tmp_path / "out"
    arguments = [
        "evaluate",
        "demo:vit",
        str(tmp_path / "scene.png"),
        "--method",
        "hirescam",
        "--metric",
        "road,deletion",
        "--steps",
        "5",
    ]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| hirescam |" in printed
    assert "deletion (5 steps) ↓" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        "bars.png", "curves.png", "records.jsonl", "table.csv", "table.md"
    ]  # fmt: skip
    assert len(out.joinpath("records.jsonl").read_text().splitlines()) == 1 + 1 + len(BASELINES)
    assert json.loads(out.joinpath("records.jsonl").read_text().splitlines()[0])["settings"]["model"] == "demo:vit"
    assert main(["evaluate", "demo:vit", str(tmp_path / "scene.png"), "--metric", "tea"]) == 2
    assert main([*arguments[:-1], "row", "--out", str(tmp_path / "other")]) == 2
    assert 'or "rise" for one per row' in capsys.readouterr().err


def test_the_command_refuses_an_option_of_another_type(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "scene.png")
    assert main(["evaluate", "no/such-model", str(tmp_path / "scene.png"), "--option", "samples=abc"]) == 2
    assert "must be a whole number, got 'abc'" in capsys.readouterr().err


def test_the_model_is_not_changed_by_an_evaluation(samples) -> None:
    from hf_cam.models.loading import load

    loaded = load("demo:vit")
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    hf_cam.evaluate(
        loaded.model,
        [samples[0].image],
        methods=["hirescam"],
        metrics=["model-randomization", "arcc", "max-sensitivity", "saco", "perturbation-negative"],
        processor=loaded.processor,
        progress=False,
    )
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())


def test_auto_takes_the_method_of_the_committed_page() -> None:
    from pathlib import Path

    from benchmarks.defaults import MODELS
    from hf_cam.explainer import Explainer
    from hf_cam.models.loading import load

    carried, measured = (
        (Path(__file__).parent.parent / "docs" / "defaults.md").read_text(encoding="utf-8").split("<!-- measured -->")
    )
    chosen = json.loads(measured.split("`")[1])
    carried = carried.split("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in carried.splitlines() if line.startswith("| ")]
    families = {family: (best, auto) for family, best, auto, *_ in cells[1:]}
    assert set(families) == set(chosen) == set(MODELS)
    for name, (best, auto) in families.items():
        assert best == chosen[name]
        assert f"| **{best}**" in measured.split(f"### {name}\n")[1].split("###")[0]
        assert Explainer(load(f"demo:{name}"), "auto").cam.method.id == auto


def test_the_page_of_defaults_keeps_the_tables_of_other_models(tmp_path) -> None:
    from benchmarks.defaults import Family, write

    page = tmp_path / "page.md"
    page.write_text(
        'Words.\n\n<!-- measured -->\n\n`{"vit": "a"}`\n\n### vit\n\nold\n\n<!-- end -->\n', encoding="utf-8"
    )
    write(page, Family("clip", "b", "c", "### clip\n\nits table"))
    write(page, Family("vit", "d", "d", "### vit\n\nnew"))
    assert page.read_text(encoding="utf-8") == (
        'Words.\n\n<!-- measured -->\n\n`{"vit": "d", "clip": "b"}`\n\n### vit\n\nnew\n\n### clip\n\nits table\n\n'
        "<!-- end -->\n"
    )


@pytest.mark.parametrize(("steps", "stated"), [(3, "3 steps"), ("rise", "a step per row")])
def test_the_number_of_steps_is_taken_and_stated_in_every_table(samples, steps, stated) -> None:
    settings = {**QUICK, "methods": "hirescam", "metrics": ["deletion", "road"], "baselines": False}
    table = hf_cam.evaluate("demo:vit", samples[:1], **settings, steps=steps)
    assert table.to_markdown().startswith(f"| map | deletion ({stated}) ↓ | road ↑ |")
    assert table.to_csv().splitlines()[0].startswith("map,layers,images,steps,")
    assert table.to_csv().splitlines()[1].split(",")[3] == str(steps)
    [record] = table.records
    pixels = hf_cam.load("demo:vit").pixel_values([Image.fromarray(samples[0].image)])
    assert len(record.curves["deleted"]) == 1 + (pixels.shape[-2] if steps == "rise" else 3)


def test_a_table_without_insertion_and_deletion_states_no_steps() -> None:
    bare = hf_cam.Evaluation((Record("0", "noise", (), {"complexity": 0.5}, 0.1),), ("complexity",), steps=7)
    assert "steps" not in bare.to_markdown() + bare.to_csv()


@pytest.mark.parametrize("steps", [1, 2.5, "rows", True])
def test_what_is_no_number_of_steps_is_refused_before_the_model_is_loaded(samples, steps) -> None:
    with pytest.raises(HFCamError, match="steps must be a whole number"):
        hf_cam.evaluate("no/such-model", samples, steps=steps)
