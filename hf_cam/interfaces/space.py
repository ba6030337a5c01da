"""`hf-cam space`: the web page, on this machine or as a Space."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_cam.errors import HFCamError, OptionError

NOT_PUSHED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def space_folder() -> Path:
    """The folder that a Space is made of."""
    package = Path(__file__).parents[1]
    return package / "spaces" if (package / "spaces").is_dir() else package.parent / "spaces"


def serve(host: str, port: int | None, online: bool) -> None:
    """Start the page and stay until it is stopped.

    Args:
        host: The address to listen at.
        port: The first free one from 7860 where None.
        online: Take any model of the Hub; else nothing is fetched.

    Raises:
        HFCamError: gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise HFCamError('the page needs gradio; install it with: pip install "hf-cam[space]"')
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_SERVER_NAME"] = host
    if port is not None:
        os.environ["GRADIO_SERVER_PORT"] = str(port)
    os.environ["HF_CAM_SPACE_ONLINE" if online else "HF_HUB_OFFLINE"] = "1"
    folder = str(space_folder())
    sys.path.insert(0, folder)
    try:
        runpy.run_path(f"{folder}/app.py", run_name="__main__")
    finally:
        sys.path.remove(folder)


def deploy(repo: str, private: bool = False) -> str:
    """Push the folder to a Space, which is made where there is none.

    The folder goes as it is, and asks for hf-cam by name. From a checkout the library goes with it, and what the
    library needs in its place: the Space then runs what is here, whether that was ever released or not.

    Args:
        repo: `USER/NAME`.
        private: For a Space that is made here.

    Returns:
        Its address.

    Raises:
        OptionError: the name has no owner.
    """
    from huggingface_hub import HfApi

    if repo.count("/") != 1 or not all(repo.split("/")):
        raise OptionError(f"a Space is USER/NAME, got {repo!r}")
    api = HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "space"
        shutil.copytree(space_folder(), folder, ignore=NOT_PUSHED)
        checkout = space_folder().parent
        if (checkout / "pyproject.toml").is_file():
            for part in ("hf_cam", "adapters"):
                shutil.copytree(checkout / part, folder / part, ignore=NOT_PUSHED)
            needed = requirements(tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8")), "space")
            (folder / "requirements.txt").write_text("\n".join(needed) + "\n", encoding="utf-8")
        url = api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo, repo_type="space", commit_message="The page of hf-cam")
    return str(url)


def requirements(pyproject: Mapping[str, Any], extra: str) -> list[str]:
    """What a project and one of its extras need from elsewhere, extras of extras included.

    >>> extras = {"a": ["it[b]"], "b": ["gradio>=6"]}
    >>> requirements({"project": {"name": "it", "dependencies": ["torch"], "optional-dependencies": extras}}, "a")
    ['gradio>=6', 'torch']
    """
    project = pyproject["project"]
    found, left = list(project["dependencies"]), [extra]
    for one in left:
        for line in project["optional-dependencies"][one]:
            own = re.fullmatch(rf"{project['name']}\[(.+)\]", line)
            if own:
                left += own[1].split(",")
            else:
                found.append(line)
    return sorted(set(found))
