"""Pages that are made from the registries agree with them, and the README's figures with the pages."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from hf_cam import list_methods

DOCS = Path(__file__).parents[1] / "docs"
DIRECTIVE = re.compile(r"^\.\. (?:auto(?:function|class|data|module)|py:data):: ([\w.]+)$", re.MULTILINE)


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
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
        ("inference-cost", r"(?<=\| 8 \| \d{4} ms \| )[\d.]+", "batch-8"),
        ("methods", r"(?<=\| gradcam \| )[\d.]+", "costs"),
        ("planted", r"(?<=\| `fast` \| )[\d.]+", "planted"),
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


def test_the_gallery_is_the_page_that_its_command_writes_and_has_its_pictures() -> None:
    make = script("make_gallery")
    assert make.PAGE.read_text(encoding="utf-8") == make.page()
    assert sorted(path.name for path in make.PICTURES.iterdir()) == sorted(
        one.file for one in (*make.ROWS, *make.PIECES)
    )


def documented() -> list[str]:
    pages = sorted((DOCS / "api").glob("*.md"))
    return [name for page in pages for name in DIRECTIVE.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("module", ["hf_cam", "hf_cam.metrics", "hf_cam.testing"])
def test_the_api_reference_has_every_public_name_once(module: str) -> None:
    expected = [f"{module}.{name}" for name in importlib.import_module(module).__all__]
    found = documented()
    assert [name for name in expected if found.count(name) != 1] == []


def test_the_api_reference_has_no_name_that_does_not_exist() -> None:
    for name in documented():
        owner, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(owner), attribute), name


def linked_from(page: Path) -> set[str]:
    return set(re.findall(r"\]\(([\w./-]+\.(?:md|html))", page.read_text(encoding="utf-8")))


def pages() -> list[Path]:
    return [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]


def test_every_page_can_be_reached_from_the_home_page() -> None:
    entries = "\n".join(
        page.read_text(encoding="utf-8") for page in (DOCS / "index.md", DOCS / "api" / "index.md")
    ).splitlines()
    listed = {entry.strip() for entry in entries}
    for page in pages():
        name = page.relative_to(DOCS).with_suffix("").as_posix()
        assert name in {"index"} | listed | {f"api/{entry}" for entry in listed}, name


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*pages(), DOCS / "llms.txt"]:
        for link in linked_from(page):
            assert (page.parent / link).with_suffix(".md").is_file(), f"{page.name}: {link}"


def test_no_tutorial_fetches_a_model() -> None:
    for page in pages():
        for cell in re.findall(r"```\{code-cell\} python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for model in re.findall(r"""model=["'](.*?)["']""", cell):
                assert model.startswith("demo:"), f"{page.name}: {model}"


class Anchors(HTMLParser):
    """The ids of a page, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.ids |= {value for key in ("id", "name") if (value := named.get(key))}
        self.links |= {value for key in ("href", "src") if (value := named.get(key))}


def broken_links(site: Path) -> list[str]:
    read = {page: Anchors(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    broken = []
    for page, found in read.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchors = read[target].ids if target in read else set()
            if not target.exists() or (parts.fragment and target in read and unquote(parts.fragment) not in anchors):
                broken.append(f"{page.relative_to(site)}: {link}")
    return broken


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<p id="top"><a href="b.html#here">b</a><a href="#top">a</a></p>')
    (tmp_path / "b.html").write_text('<p id="there"><a href="c.html">c</a><a href="a.html#top">a</a></p>')
    assert sorted(broken_links(tmp_path.resolve())) == ["a.html: b.html#here", "b.html: c.html"]


@pytest.mark.docs
@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_its_links_lead_somewhere() -> None:
    if importlib.util.find_spec("myst_nb") is None:
        if os.environ.get("HF_CAM_DOCS") == "required":
            pytest.fail('the documentation needs: pip install "hf-cam[docs]"')
        pytest.skip('the documentation needs: pip install "hf-cam[docs]"')
    site = DOCS / "_build" / "html"
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-n", "-q", DOCS, site], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    assert broken_links(site.resolve()) == []
