"""The benchmark of localization: its records, its tables and its choice, on maps that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.choice import CHOSEN, Gain, better, comparisons, gains
from benchmarks.localization import QUOTED, is_slow, of_scenes, table, wide
from benchmarks.localized import AT_ONCE, SHARE, Located, append, each, judge, measured, parsed, pending, read
from benchmarks.pages import write
from benchmarks.scenes import Scene

SIZE = (6, 9)


def scene(*labels: int) -> Scene:
    """Each label fills one column."""
    classes = np.zeros(SIZE, np.uint8)
    for column, label in enumerate(labels):
        classes[:, column] = 1 + label
    return Scene(np.zeros((*SIZE, 3), np.uint8), labels, labels, np.zeros((len(labels), 4)), classes, classes)


def record(name: str, number: int, *energies: float, seed: int = QUOTED, model: str = "vit") -> Located:
    return Located(model, name, seed, number, [[energy, 1.0, energy / 2] for energy in energies], 0.01)


def found_in(*records: Located) -> dict:
    found: dict = {}
    for one in records:
        found.setdefault((one.model, one.map, one.seed), {})[one.scene] = one
    return found


def test_a_run_continues_where_it_was_stopped(tmp_path: Path) -> None:
    path, drawn, seen = tmp_path / "runs" / "records.jsonl", [scene(2, 1), scene(3), scene(4, 4)], []
    key = ("vit", "gradcam", 3)
    mapper = each(lambda one, label: seen.append((one[0], label)) or np.ones(SIZE, np.float32))
    assert read(path) == {}
    append(path, measured(key, mapper, pending(read(path), key, drawn[:2])))
    assert seen == [(0, 1), (0, 2), (1, 3)]
    append(path, measured(key, mapper, pending(read(path), key, drawn)))
    assert seen[3:] == [(2, 4)]
    assert sorted(read(path)[key]) == [0, 1, 2]
    assert pending(read(path), key, drawn) == []
    assert len(pending(read(path), ("vit", "gradcam", 1), drawn)) == 3


def test_scenes_are_taken_in_batches_and_each_has_a_record(tmp_path: Path) -> None:
    batches = []

    def mapper(batch):
        batches.append(len(batch))
        return [[np.ones(SIZE, np.float32)] for _ in batch]

    made = list(measured(("vit", "gradcam", 1), mapper, [(n, scene(n % 10)) for n in range(AT_ONCE + 2)]))
    assert batches == [AT_ONCE, 2]
    assert [one.scene for one in made] == list(range(AT_ONCE + 2))


def test_a_map_on_its_object_scores_one_and_a_constant_one_the_share_of_the_mask() -> None:
    mask = scene(2, 5).classes == 3
    assert judge(mask.astype(np.float32), mask) == [1.0, 1.0, 1.0]
    assert judge(np.ones(SIZE, np.float32), mask)[0] == pytest.approx(1 / 9, abs=1e-5)


def test_a_row_of_fewer_scenes_states_their_number_and_has_gradcam_on_the_same_scenes() -> None:
    found = found_in(
        *(record("gradcam", n, n / 4) for n in range(4)),
        *(record("occlusion", n, 0.5, 0.7) for n in range(2)),
        *(record(SHARE, n, 0.25, model="none") for n in range(4)),
    )
    text = table(found, ["vit"], ["gradcam", "occlusion", "chefer"], QUOTED)
    assert "4 scenes of seed 3 with 4 labels" in text
    assert "| none | mask's share of the image | 0.250 ± 0.000 | 0.250 ± 0.000 | 0.250 ± 0.000 | 10 |" in text
    assert "| vit | gradcam | 0.375 ± 0.161 |" in text
    assert "| vit | occlusion, first 2 scenes | 0.600 ± 0.058 |" in text
    assert "| vit | gradcam, first 2 scenes | 0.125 ± 0.125 |" in text
    assert "chefer" not in text


def test_the_wide_table_has_a_column_per_model() -> None:
    found = found_in(*(record("legrad:start_layer=0", n, 0.2, 0.4) for n in range(2)))
    line = "| legrad:start_layer=0 | 0.300 ± 0.058 / 0.150 ± 0.029 | not defined |"
    assert line in wide(found, ["vit", "clip"], ["legrad:start_layer=0"], QUOTED).splitlines()


def test_only_the_first_scenes_of_the_seed_count() -> None:
    found = found_in(record("gradcam", 0, 0.1), record("gradcam", 5, 0.2), record("chefer", 0, 0.1, seed=CHOSEN))
    assert of_scenes(found, QUOTED, 5) == found_in(record("gradcam", 0, 0.1))


@pytest.mark.parametrize(
    ("pairs", "method", "verdict"),
    [
        ([(0.2, 0.1), (0.0, 0.1), (0.0, 0.1)], "layercam", "yes"),
        ([(0.19, 0.1), (0.0, 0.1), (0.0, 0.1)], "layercam", "no"),
        ([(0.5, 0.1), (0.0, 0.1), (-0.11, 0.1)], "layercam", "no"),
        ([(0.5, 0.1), (0.0, 0.1), (0.0, 0.1)], "libracam", "yes, but it costs more"),
        ([(0.5, 0.1), (0.0, 0.1), (0.0, 0.1)], "eigencam", "yes, but one map for every class"),
    ],
)
def test_a_better_method_gains_two_standard_errors_and_loses_less_than_one(
    pairs: list[tuple[float, float]], method: str, verdict: str
) -> None:
    assert better(Gain(10, pairs), method) == verdict


def test_the_choice_compares_label_by_label_on_the_scenes_that_both_have() -> None:
    found = found_in(
        *(record("gradcam", n, 0.1 * n, seed=seed) for n in range(4) for seed in (CHOSEN, QUOTED)),
        *(record("layercam", n, 0.1 * n + 0.2, seed=seed) for n in range(3) for seed in (CHOSEN, QUOTED)),
        *(record("chefer", n, 0.9, seed=CHOSEN) for n in range(3)),
    )
    gain = gains(found, "vit", ("layercam", "gradcam"), CHOSEN, 200)
    assert gain is not None
    assert gain.scenes == 3
    assert gain.pairs[0] == (pytest.approx(0.2), pytest.approx(0))
    [compared] = comparisons(found, "vit", "gradcam", 200)
    assert (compared.other, compared.chosen.leads) == ("layercam", True)
    lines = list(compared.rows())
    assert [line.split("|")[4].strip() for line in lines] == ["3 of seed 1", "3 of seed 3"]  # chefer has no quotation
    assert gains(found, "vit", ("chefer", "gradcam"), QUOTED, 200) is None


def test_options_are_read_and_methods_above_the_budget_are_slow() -> None:
    assert parsed("legrad:start_layer=-2,empty_prompt=None") == ("legrad", {"start_layer": -2, "empty_prompt": None})
    assert parsed("gradeclip:heads=own") == ("gradeclip", {"heads": "own"})
    assert is_slow("occlusion")
    assert not is_slow("occlusion:patch=64,stride=64")
    assert not is_slow("gradcam")
    assert not is_slow("grad-cam's GradCAM")


def test_a_table_takes_the_place_of_the_one_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- one -->\nold\n<!-- end of one -->\nafter <!-- two -->", encoding="utf-8")
    write(page, "one", "new")
    assert page.read_text() == "before\n<!-- one -->\n\nnew\n\n<!-- end of one -->\nafter <!-- two -->"
