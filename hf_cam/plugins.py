"""Plug-ins: packages that add methods, metrics, signals and adapters through the entry points of the group "hf_cam"."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from hf_cam.errors import PluginWarning
from hf_cam.threads import ForkSafeLock

GROUP = "hf_cam"


class Plugins:
    """The plug-ins of one group of entry points. Each is imported once, which runs its decorators.

    Args:
        group: The name of the group.
    """

    def __init__(self, group: str) -> None:
        self.group = group
        self._begun = False
        self._files: tuple[Path, ...] = ()
        self._lock = ForkSafeLock()  # re-entrant: a plug-in may query a registry while it is imported

    def load(self) -> None:
        """Import every plug-in on the first call; later calls, and calls by a plug-in itself, do nothing.

        A plug-in that cannot be imported is left out with a `PluginWarning`.
        """
        with self._lock:
            if self._begun:
                return
            self._begun = True
            loaded: list[ModuleType] = []
            failed: list[str] = []
            for point in sorted(entry_points(group=self.group), key=lambda point: (point.name, point.value)):
                try:
                    point.load()
                except Exception as error:  # noqa: BLE001  (a third-party module can raise anything)
                    failed.append(f"{_name(point)} cannot be loaded: {type(error).__name__}: {error}")
                else:
                    loaded.append(sys.modules[point.module])
            self._files = tuple(dict.fromkeys(file for module in loaded for file in _files_beside(module)))
        for message in failed:
            warnings.warn(message, PluginWarning, stacklevel=2)

    def data_files(self) -> tuple[Path, ...]:
        """The `*.toml` files next to the plug-ins' modules: in the module's folder and in its `adapters/`."""
        self.load()
        return self._files


def _name(point: EntryPoint) -> str:
    package = f" of {point.dist.name}" if point.dist is not None else ""
    return f"the plug-in {point.name!r} ({point.value}){package}"


def _files_beside(module: ModuleType) -> list[Path]:
    folders = list(getattr(module, "__path__", ()))
    if not folders and module.__file__ is not None:
        folders = [str(Path(module.__file__).parent)]
    return [
        file for folder in folders for part in ("", "adapters") for file in sorted(Path(folder, part).glob("*.toml"))
    ]


_plugins = Plugins(GROUP)
load_plugins = _plugins.load
data_files = _plugins.data_files
