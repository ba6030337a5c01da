"""An evaluation that goes on: nothing is lost, nothing counts twice, and no figure is that of another evaluation."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import hf_cam
from hf_cam.errors import HFCamError, OptionError
from hf_cam.evaluation.samples import Sample
from hf_cam.interfaces.cli import main
from hf_cam.models.fingerprint import fingerprint, model_fingerprint
from hf_cam.targets import ClassLogit
from pictures import to_tensor

METHODS = ("gradcam", "layercam")
COUNT = len(METHODS) * 2
"""Records of two images."""


class Net(nn.Module):
    """A classifier whose map depends on its weights, a buffer, a plain attribute and its activation."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Conv2d(3, 6, 8, stride=8)
        self.activation: nn.Module = nn.ReLU()
        self.head = nn.Linear(6, 4)
        self.register_buffer("shift", torch.zeros(6, 1, 1), persistent=False)
        self.power = 1.0

    def forward(self, pixel_values: Tensor) -> Tensor:
        maps = self.activation(self.features(pixel_values) + self.shift)
        return self.head(maps.pow(self.power).mean((2, 3)))


def processor(image: Image.Image) -> Tensor:
    return to_tensor(image.resize((48, 32)))


def darker(image: Image.Image) -> Tensor:
    return processor(image) * 0.5


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3)).astype(np.uint8)


SAMPLES = [Sample(image(0), "first", np.eye(40, 60) > 0), Sample(image(1), "second", np.eye(40, 60) > 0)]


def run(path: Path | None, model: nn.Module | None = None, samples: Any = None, **settings: Any) -> hf_cam.Evaluation:
    wanted = {"methods": list(METHODS), "metrics": ["complexity", "energy-inside"], "baselines": False, **settings}
    wanted = {"processor": processor, "layers": "features", "progress": False, **wanted}
    return hf_cam.evaluate(model or Net().eval(), samples or SAMPLES, resume=path, **wanted)


def figures(table: hf_cam.Evaluation) -> list[tuple[Any, ...]]:
    """The records without times and fingerprints."""
    return [(one.image, one.map, one.layers, dict(one.scores)) for one in table.records]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    run(path)
    return path


def test_a_finished_evaluation_is_read_and_not_made_again(finished, monkeypatch) -> None:
    whole, fresh = finished.read_bytes(), figures(run(None))

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("hf_cam.cam.CAM.saliency", never)
    again = run(finished)
    assert figures(again) == fresh
    assert (again.resumed, len(again.records)) == (COUNT, COUNT)
    assert finished.read_bytes() == whole


def test_an_evaluation_without_a_file_resumes_nothing() -> None:
    assert run(None).resumed == 0


# Never the figures of another evaluation -----------------------------------------------------------------------------


def changed(change: Callable[[Net], Any]) -> Callable[[], dict[str, Any]]:
    def settings() -> dict[str, Any]:
        model = Net().eval()
        with torch.no_grad():
            change(model)
        return {"model": model}

    return settings


def one_weight(model: Net) -> None:
    model.head.bias[3] += 0.25


OTHERS: dict[str, Callable[[], dict[str, Any]]] = {
    "another seed of the weights": lambda: {"model": Net(1).eval()},
    "one number of one weight": changed(one_weight),
    "weights in double precision": changed(lambda model: model.double()),
    "a buffer that is not saved": changed(lambda model: model.shift.add_(0.5)),
    "a plain attribute": changed(lambda model: setattr(model, "power", 2.0)),
    "another activation": changed(lambda model: setattr(model, "activation", nn.GELU())),
    "another processor": lambda: {"processor": darker},
    "another picture of the same name": lambda: {"samples": [Sample(image(7), "first", SAMPLES[0].mask), SAMPLES[1]]},
    "another mask": lambda: {"samples": [Sample(image(0), "first", np.ones((40, 60), bool)), SAMPLES[1]]},
    "a target for one sample": lambda: {"samples": [Sample(image(0), "first", SAMPLES[0].mask, 3), SAMPLES[1]]},
    "a target for all": lambda: {"target": 2},
    "a target that may read anything": lambda: {"target": lambda logits: logits[2]},
    "another seed": lambda: {"seed": 1},
    "other metrics": lambda: {"metrics": ["entropy", "energy-inside"]},
    "the number of steps": lambda: {"steps": 4},
    "a method's option": lambda: {"methods": ["gradcam", "fem"], "method_options": {"k": 0.5}},
    "another layer": lambda: {"layers": "activation"},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_what_was_measured_otherwise_is_never_returned(finished, change) -> None:
    before = finished.read_bytes()
    fresh = figures(run(None, **change()))
    refused = None
    try:
        found = run(finished, **change())
    except OptionError as error:
        refused = str(error)
    if refused is not None:
        assert "other settings" in refused
        assert finished.read_bytes() == before
        return
    assert figures(found) == fresh
    assert found.resumed < COUNT
    assert finished.read_bytes().startswith(before)


def test_another_version_of_the_package_starts_anew(finished, monkeypatch) -> None:
    monkeypatch.setattr("hf_cam.evaluation.bench.__version__", "99")
    with pytest.raises(OptionError, match=r"other settings \(hf_cam\)"):
        run(finished)


def test_another_option_is_named(tmp_path) -> None:
    settings = {"methods": ["fem"], "method_options": {"k": 0.5}}
    run(tmp_path / "a.jsonl", **settings)
    assert run(tmp_path / "a.jsonl", **settings).resumed == 2
    with pytest.raises(OptionError, match=r"other settings \(options\)"):
        run(tmp_path / "a.jsonl", methods=["fem"], method_options={"k": 1.0})


def test_a_name_in_place_of_a_model_does_not_matter_if_the_weights_are_the_same(tmp_path, vit_folder, picture) -> None:
    import shutil

    shutil.copytree(vit_folder, tmp_path / "copy")
    settings = {"methods": ["gradcam"], "metrics": ["complexity"], "progress": False, "resume": tmp_path / "a.jsonl"}
    first = hf_cam.evaluate(vit_folder, [picture], **settings)
    assert hf_cam.evaluate(tmp_path / "copy", [picture], **settings).resumed == len(first.records)


def test_a_table_holds_what_this_call_asks_for_and_nothing_else_from_the_file(finished) -> None:
    assert figures(run(finished, methods=["layercam"])) == figures(run(None, methods=["layercam"]))
    assert figures(run(finished, samples=SAMPLES[1:])) == figures(run(None, samples=SAMPLES[1:]))
    more = run(finished, methods=["fem", *METHODS])
    assert figures(more) == figures(run(None, methods=["fem", *METHODS]))
    assert (more.resumed, len(more.records)) == (COUNT, COUNT + 2)


def test_two_samples_of_one_name_have_a_record_each(tmp_path) -> None:
    twins = [Sample(image(0), "same", SAMPLES[0].mask), Sample(image(1), "same", SAMPLES[0].mask)]
    for _ in range(2):
        assert figures(run(tmp_path / "a.jsonl", samples=twins)) == figures(run(None, samples=twins))


def test_a_target_of_the_package_is_recognized(tmp_path) -> None:
    for resumed in (0, COUNT):
        assert run(tmp_path / "a.jsonl", target=ClassLogit(1)).resumed == resumed
    with pytest.raises(OptionError, match=r"other settings \(target\)"):
        run(tmp_path / "a.jsonl", target=ClassLogit(2))


FINGERPRINTED = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from hf_cam.models.fingerprint import fingerprint, model_fingerprint
from hf_cam.targets import ClassLogit
from nets import NETS
from test_resume import Net
print(*map(model_fingerprint, (Net().eval(), NETS["vit"](), NETS["resnet"]())))
print(fingerprint({{"a": (1, "b")}}, ClassLogit(3)))
"""


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    root = Path(__file__).parents[1]
    code = FINGERPRINTED.format(root=str(root), tests=str(root / "tests"))
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        found.add(done.stdout)
    [printed] = found
    assert len(set(printed.split())) == 4


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "a number and a truth value": (1, True),
    "a number and a text": (1, "1"),
    "a text and bytes": ("ab", b"ab"),
    "nested otherwise": ((1, 2), ((1,), 2)),
    "joined texts": (["a", "b"], ["ab"]),
    "arrays of other shapes": (np.zeros(4), np.zeros((2, 2))),
    "arrays of other dtypes": (np.zeros(4), np.zeros(4, np.float32)),
    "tensors of other dtypes": (torch.zeros(8), torch.zeros(8, dtype=torch.float64)),
    "tensors in another order": (torch.eye(3), torch.eye(3).flip(0)),
    "sparse tensors": (torch.eye(3).to_sparse(), (2 * torch.eye(3)).to_sparse()),
    "turned pictures": (Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))),
    "targets": (ClassLogit(1), ClassLogit(2)),
    "functions of one code": (lambda: 1, lambda: 1),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_different_values_have_different_fingerprints(one, other) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_running_a_model_does_not_change_its_fingerprint() -> None:
    model = Net().eval()
    before = model_fingerprint(model)
    run(None, model)
    assert model_fingerprint(model) == before


# Damage --------------------------------------------------------------------------------------------------------------


def cut_short(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], lines[at][: len(lines[at]) // 2], *lines[at + 1 :]]


DAMAGES: dict[str, Callable[[list[bytes], int], list[bytes]]] = {
    "cut short": cut_short,
    "binary": lambda lines, at: [*lines[:at], b"\x00\xff\xfe\x80", *lines[at + 1 :]],
    "empty": lambda lines, at: [*lines[:at], b"", *lines[at + 1 :]],
    "null": lambda lines, at: [*lines[:at], b"null", *lines[at + 1 :]],
    "of other keys": lambda lines, at: [*lines[:at], b'{"a": 1}', *lines[at + 1 :]],
    "nested too deep": lambda lines, at: [*lines[:at], b"[" * 100_000, *lines[at + 1 :]],
    "a record with a text for a score": lambda lines, at: [
        *lines[:at],
        json.dumps({**json.loads(lines[at]), "scores": {"complexity": "x"}}).encode(),
        *lines[at + 1 :],
    ],
    "gone": lambda lines, at: [*lines[:at], *lines[at + 1 :]],
}


@pytest.mark.parametrize("at", [0, 1, 2, COUNT], ids=["settings", "first", "inner", "last"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_line_costs_its_own_record_alone(finished, damage, at) -> None:
    fresh, lines = figures(run(None)), finished.read_bytes().splitlines()
    finished.write_bytes(b"\n".join(damage(lines, at)) + b"\n")
    again: list[Any] = []
    found = run(finished, on_record=again.append)
    assert figures(found) == fresh
    assert (len(again), found.resumed) == ((0, COUNT) if at == 0 else (1, COUNT - 1))
    written = [json.loads(line) for line in finished.read_bytes().splitlines()]
    assert sorted(map(str, written[1:])) == sorted(str(json.loads(line)) for line in lines[1:]) or len(again) == 1
    assert len(written) == 1 + COUNT
    assert run(finished).resumed == COUNT


@pytest.mark.parametrize("seed", range(8))
def test_wrong_bytes_anywhere_end_in_a_whole_table_or_a_refusal(finished, seed) -> None:
    rng, content = np.random.default_rng(seed), bytearray(finished.read_bytes())
    for place in rng.integers(0, len(content), 5):
        content[place] = rng.integers(0, 256)
    finished.write_bytes(bytes(content))
    with contextlib.suppress(HFCamError):
        names = [(name, method, metrics) for name, method, _, metrics in figures(run(finished))]
        assert [(name, method, list(scores)) for name, method, scores in names] == [
            (name, method, list(scores)) for name, method, _, scores in figures(run(None))
        ]


@pytest.mark.parametrize("end", range(1, 40, 3))
def test_a_file_that_was_cut_off_anywhere_goes_on(finished, end) -> None:
    whole = finished.read_bytes()
    finished.write_bytes(whole[:-end] + b"\xc3")  # half a letter
    assert run(finished).resumed == COUNT - 1
    finished.write_bytes(whole[:-1])
    assert run(finished).resumed == COUNT


def test_a_record_that_stands_there_twice_counts_once(finished) -> None:
    lines = finished.read_bytes().splitlines(keepends=True)
    finished.write_bytes(b"".join([*lines, *lines[1:], lines[0]]))
    found = run(finished)
    assert len(found.records) == COUNT
    assert [row.count for row in found.rows] == [2, 2]


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond this size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing_of_a_finished_evaluation(finished) -> None:
    whole = finished.read_bytes()
    with full_disk(100):
        assert run(finished).resumed == COUNT
    assert finished.read_bytes() == whole


@pytest.mark.parametrize("spare", [0, 1, 60])
def test_a_full_disk_while_records_are_made_keeps_those_that_are_there(tmp_path, spare) -> None:
    path = tmp_path / "records.jsonl"
    run(path, samples=SAMPLES[:1])
    whole = path.read_bytes()
    with (
        full_disk(len(whole) + spare),
        pytest.raises(OptionError, match=r"cannot be read or written.*what it holds stays"),
    ):
        run(path)
    assert path.read_bytes() == whole
    assert run(path).resumed == len(METHODS)


def test_a_full_disk_while_a_file_is_repaired_leaves_it_as_it_is(finished) -> None:
    damaged = finished.read_bytes()[:-20]
    finished.write_bytes(damaged)
    with full_disk(200), pytest.raises(OptionError, match="cannot be read or written"):
        run(finished)
    assert finished.read_bytes() == damaged
    assert [path.name for path in finished.parent.iterdir()] == ["records.jsonl"]


FOREIGN: dict[str, bytes] = {
    "a text": b"Dear diary,\ntoday ...\n",
    "binary data": np.random.default_rng(0).bytes(300),
    "records of something else": b'{"epoch": 1}\n{"epoch": 2}\n',
    "a list": b"[1, 2, 3]\n",
    "blank lines": b"\n\n",
    "settings of something else": b'{"settings": {"lr": 0.1}}\n{"epoch": 1}\n',
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_refused_and_stays(tmp_path, content) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=r"not the records file of an evaluation|other settings") as caught:
        run(path)
    assert "pass another file" in str(caught.value)
    assert path.read_bytes() == content


PLACES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a folder": (lambda folder: folder, "is not a file; resume= takes a file"),
    "a device": (lambda _: "/dev/null", "is not a file"),
    "a folder that cannot be made": (lambda _: "/proc/no/records.jsonl", "cannot be read or written"),
    "a name that is too long": (lambda folder: folder / ("x" * 5000), "File name too long"),
    "half a letter": (lambda folder: f"{folder}/\ud800", "cannot be read or written"),
    "no such user": (lambda _: "~no-such-user/records.jsonl", "cannot be read or written"),
    "a number": (lambda _: 5, "must be the path of a file such as 'records.jsonl', got 5"),
}


@pytest.mark.parametrize(("place", "words"), PLACES.values(), ids=PLACES)
def test_a_place_that_holds_no_file_is_refused(tmp_path, place, words) -> None:
    with pytest.raises(OptionError, match=words) as caught:
        run(place(tmp_path))
    assert len(str(caught.value)) <= 400


def test_an_empty_file_is_used(tmp_path) -> None:
    (tmp_path / "records.jsonl").touch()
    assert len(run(tmp_path / "records.jsonl").records) == COUNT
    assert run(tmp_path / "records.jsonl").resumed == COUNT


def test_a_link_stays_a_link_when_its_file_is_repaired(finished, tmp_path) -> None:
    link = tmp_path / "link.jsonl"
    link.symlink_to(finished)
    finished.write_bytes(finished.read_bytes()[:-20])
    assert run(link).resumed == COUNT - 1
    assert link.is_symlink()
    assert run(finished).resumed == COUNT


# Two at once ---------------------------------------------------------------------------------------------------------


def test_a_file_in_use_by_another_process_is_refused(finished) -> None:
    before = finished.read_bytes()
    script = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(finished)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OptionError, match=r"another process writes its records to .*; wait for it"):
            run(finished)
        other.communicate("")
    assert finished.read_bytes() == before
    assert run(finished).resumed == COUNT


@pytest.mark.parametrize("damaged", [False, True])
def test_the_lock_holds_while_records_are_made_and_ends_with_them(finished, damaged) -> None:
    finished.write_bytes(finished.read_bytes()[: -20 if damaged else None])

    def attempt(_: Any) -> None:
        with finished.open("a") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(True)

    held: list[bool] = []
    run(finished, methods=["fem"] if not damaged else list(METHODS), on_record=attempt)
    assert held
    with finished.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_lock_ends_with_an_error_too(finished) -> None:
    class StopNow(Exception):
        pass

    def stop(_: Any) -> None:
        raise StopNow

    with pytest.raises(StopNow):
        run(finished, methods=["fem"], on_record=stop)
    assert run(finished, methods=["fem"]).resumed == 1


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_continues_only_if_it_is_told_to(vit_folder, picture_file, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", str(vit_folder), str(picture_file), "--method", "gradcam", "--metric", "complexity"]
    assert main([*arguments, "--out", str(out)]) == 0
    made = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "resumed" not in capsys.readouterr().err
    assert main([*arguments, "--out", str(out)]) == 2
    refused = capsys.readouterr()
    assert "holds the records of an earlier evaluation; pass --resume to continue it, or another folder" in refused.err
    assert refused.err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == made
    assert main([*arguments, "--out", str(out), "--resume"]) == 0
    count = len((out / "records.jsonl").read_text().splitlines()) - 1
    assert f"resumed {count} of {count} records from {out / 'records.jsonl'}\n" in capsys.readouterr().err
    assert main([*arguments, "--out", str(out), "--resume", "--seed", "4"]) == 2
    assert "other settings (seed)" in capsys.readouterr().err


def test_the_command_resumes_where_there_is_nothing_yet(vit_folder, picture_file, tmp_path, capsys) -> None:
    arguments = ["evaluate", str(vit_folder), str(picture_file), "--method", "gradcam", "--metric", "complexity"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--resume"]) == 0
    assert "resumed 0 of " in capsys.readouterr().err
