"""Make transformers know the tasks of this package without importing transformers."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

PIPELINES = "transformers.pipelines"


def register_tasks_on_import() -> None:
    """Register the tasks now if transformers' pipelines are loaded, else as soon as they are."""
    if PIPELINES in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterPipelines) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPipelines())


def _register() -> None:
    # That module registers the tasks when it is run. It may be half-way through its own imports here, where a name
    # could not be imported from it yet.
    importlib.import_module("hf_cam.interfaces.pipelines")


class _AfterPipelines(importlib.abc.MetaPathFinder):
    """Finds nothing itself: it lets the usual finders find transformers' pipelines and registers once they ran."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != PIPELINES:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in list(sys.meta_path) if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, self)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, finder: _AfterPipelines) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        # Only now: looking for the module, or importing it in vain, must not use the finder up.
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _register()
