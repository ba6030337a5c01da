"""Pages that are made from the registries agree with them, and the README's figures with the pages."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_cam import list_methods

DOCS = Path(__file__).parents[1] / "docs"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_methods_is_the_registrys() -> None:
    make = script("make_methods")
    written = make.PAGE.read_text(encoding="utf-8")
    assert written == make.page(written)
    assert all(f"| `{method}` |" in written for method in list_methods())


def test_the_page_of_metrics_is_the_registrys() -> None:
    assert (DOCS / "metrics.md").read_text(encoding="utf-8") == script("make_metrics").page()


@pytest.fixture
def make_readme() -> Any:
    return script("make_readme")


@pytest.fixture
def written(make_readme: Any) -> str:
    return make_readme.README.read_text(encoding="utf-8")


def test_the_figures_of_the_readme_are_those_of_the_pages(make_readme: Any, written: str) -> None:
    assert written == make_readme.readme(written)


def test_a_figure_that_is_changed_in_the_readme_is_put_right(make_readme: Any, written: str) -> None:
    right = make_readme.readme(written)
    for slot in make_readme.SLOT.finditer(right):
        *_, last = re.finditer(r"\d", slot[2])
        place = slot.start(2) + last.start()
        changed = right[:place] + str((int(last[0]) + 1) % 10) + right[place + 1 :]
        assert make_readme.readme(changed) == right, slot[1]


@pytest.mark.parametrize(
    ("page", "figure", "slot"),
    [
        ("architectures", r"(?<=\| depth-estimation \| \d \| )\d", "explained"),
        ("defaults", r"(?<=\| gradcam-elementwise \| \d\.\d \| )[\d.]+", "road"),
        ("inference-cost", r"(?<=\| 8 \| \d{4} ms \| )[\d.]+", "batch-8"),
        ("localization", r"(?<=\| convnext \| gradcam \| )[\d.]+", "localization"),
        ("localization-heads", r"(?<=\| convnext \| gradcam \| )[\d.]+", "verdicts"),
        ("methods", r"(?<=\| gradcam \| )[\d.]+", "costs"),
    ],
)
def test_a_figure_that_changes_on_its_page_changes_in_the_readme(
    page: str, figure: str, slot: str, make_readme: Any, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(make_readme.SLOT.findall(make_readme.readme(written)))
    pages = shutil.copytree(DOCS, tmp_path / "docs")
    monkeypatch.setattr(make_readme, "DOCS", pages)
    text = (pages / f"{page}.md").read_text(encoding="utf-8")
    (pages / f"{page}.md").write_text(re.sub(figure, "9", text, count=1), encoding="utf-8")
    after = dict(make_readme.SLOT.findall(make_readme.readme(written)))
    assert [name for name in before if before[name] != after[name]] == [slot]


def test_no_measured_figure_of_the_readme_stands_outside_the_marks(make_readme: Any, written: str) -> None:
    assert re.findall(r"\d+\.\d+|\d+ (?:MB|labels|scenes|types)\b", make_readme.SLOT.sub("", written)) == []


def test_a_mark_begins_no_line_of_prose_which_would_not_be_rendered(written: str) -> None:
    for line in written.splitlines():
        if line.lstrip().startswith("<!--"):
            assert re.fullmatch(r"<!-- [\w-]+ -->", line)


@pytest.mark.parametrize("wrong", ["", "<!-- costs --><!-- end --><!-- costs -->", "<!-- unheard-of -->"])
def test_marks_that_are_missing_doubled_or_unknown_are_refused(wrong: str, make_readme: Any, written: str) -> None:
    with pytest.raises(ValueError, match="marks of the README"):
        make_readme.readme(written.replace("<!-- costs -->", wrong))


def test_a_method_may_be_missing_from_a_page_only_where_attention_defines_it(make_readme: Any) -> None:
    assert "| chefer | not defined |" in make_readme.compared(["chefer"], [{}])
    with pytest.raises(KeyError, match="gradcam"):
        make_readme.compared(["gradcam"], [{}])
