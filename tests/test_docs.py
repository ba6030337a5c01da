"""Pages that are made from the registries say what these say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

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
    assert written == make.page(written.partition(make.FIGURES)[2])
    assert all(f"| `{method}` |" in written for method in list_methods())
