"""CONTRIBUTING draws the rooms of the package; imports go down that picture and never up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SKIPPED = ("hf_cam/__init__.py", "hf_cam/_register.py", "hf_cam/__main__.py")  # facades, which name what lies below
LONGEST_FUNCTION = 60
MOST_ROOT_FILES = 23
PROBES_PER_THOUSAND = 5


def drawn_rooms() -> list[tuple[str, list[str]]]:
    """Each line of CONTRIBUTING's picture, topmost first: a folder and the files that it lists."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [picture] = re.findall(r"```text\n(hf_cam/interfaces/.*?)```", text, re.DOTALL)
    rooms: list[tuple[str, list[str]]] = []
    for line in picture.splitlines():
        folder, *files = line.split()
        if folder.endswith("/"):
            rooms.append((folder, files))
        else:
            rooms[-1][1].extend([folder, *files])
    return rooms


ROOMS = drawn_rooms()
LEVELS = {f"{folder}{file}.py": level for level, (folder, files) in enumerate(ROOMS) for file in files}
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "hf_cam").rglob("*.py")
    if "adapters" not in path.parts and "spaces" not in path.parts
)


def level_of(source: str) -> int:
    """The line of the picture that a file stands on; a package's own `__init__` stands with its room."""
    if source in LEVELS:
        return LEVELS[source]
    folder = source.rpartition("/")[0] + "/"
    return next(level for level, (room, _) in enumerate(ROOMS) if room == folder)


def imported(source: str) -> set[str]:
    """Files of the package that a file imports anywhere in it, also inside functions, but not for types alone."""
    found: set[str] = set()
    tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            path = name.replace(".", "/")
            found |= {file for file in (f"{path}.py", f"{path}/__init__.py") if file in SOURCES}
    return found - {source, *SKIPPED}


def test_every_file_stands_in_one_room_of_the_picture() -> None:
    drawn = [f"{folder}{file}.py" for folder, files in ROOMS for file in files]
    assert sorted(drawn) == sorted(
        source for source in SOURCES if source not in SKIPPED and not source.endswith("__init__.py")
    )


@pytest.mark.parametrize("source", [source for source in SOURCES if source not in SKIPPED])
def test_imports_go_down_the_picture(source: str) -> None:
    upward = {other for other in imported(source) if level_of(other) < level_of(source)}
    assert not upward


def test_no_file_imports_itself_through_others() -> None:
    below = {source: imported(source) for source in SOURCES if not source.endswith("__init__.py")}

    def walk(source: str, path: tuple[str, ...]) -> None:
        assert source not in path, " -> ".join((*path, source))
        if source not in done:
            for other in below.get(source, ()):
                walk(other, (*path, source))
            done.add(source)

    done: set[str] = set()
    for source in below:
        walk(source, ())


def test_the_root_stays_small_enough_to_read() -> None:
    assert len(list((ROOT / "hf_cam").glob("*.py"))) <= MOST_ROOT_FILES


def test_no_function_is_long() -> None:
    long = []
    for path in [*(ROOT / "hf_cam").rglob("*.py"), *(ROOT / "spaces").rglob("*.py")]:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        long += [f"{path.name}: {one.name}" for one in functions if code_lines(one) > LONGEST_FUNCTION]
    assert not long


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the `def` to the end, without the docstring."""
    assert node.end_lineno is not None
    first = node.body[0]
    documented = ast.get_docstring(node) is not None
    return node.end_lineno - node.lineno + 1 - ((first.end_lineno or 0) - first.lineno + 1 if documented else 0)


def test_objects_are_seldom_probed() -> None:
    sources = [*(ROOT / "hf_cam").rglob("*.py"), *(ROOT / "spaces").rglob("*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    probes = len(re.findall(r"\b(?:getattr|hasattr)\(", text))
    assert probes <= PROBES_PER_THOUSAND * text.count("\n") / 1000
