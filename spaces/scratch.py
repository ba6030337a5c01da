"""The files of this server: one folder that goes with the server, or at the next start where it was killed."""

from __future__ import annotations

import atexit
import contextlib
import functools
import getpass
import os
import shutil
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

KEPT_SECONDS = 1800
"""How long results can be downloaded."""
IN_USE = "in-use.lock"


@functools.cache
def home() -> Path:
    """The folder of this process, which no other user can read; what killed servers left beside it is deleted."""
    root = Path(tempfile.gettempdir()) / f"hf-cam-space-{_user()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(root / "starting.lock"):  # nobody takes a folder for left over before its owner has locked it
        for folder in root.glob("server-*"):
            _delete_unused(folder)
        own = Path(tempfile.mkdtemp(prefix="server-", dir=root))
        lock = FileLock(own / IN_USE)
        lock.acquire()  # until the process ends, in whatever way
    atexit.register(_leave, own, lock, os.getpid())
    return own


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "someone"


def _delete_unused(folder: Path) -> None:
    with contextlib.suppress(Timeout, OSError), FileLock(folder / IN_USE, timeout=0):
        shutil.rmtree(folder, ignore_errors=True)


def _leave(own: Path, lock: FileLock, owner: int) -> None:
    if os.getpid() == owner:  # not a fork of the server
        lock.release()
        shutil.rmtree(own, ignore_errors=True)


def new_folder(prefix: str) -> Path:
    """An empty folder that is kept as long as the server runs."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=home()))


def fresh_folder() -> Path:
    """An empty folder for files to download; those older than half an hour are deleted."""
    results = home() / "results"
    results.mkdir(exist_ok=True)
    for folder in results.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another visitor's work deletes the same ones
            if folder.stat().st_mtime < time.time() - KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=results))
