"""`hf-cam space`: serve the web page locally, or deploy it as a Space."""

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
    """The folder with the files of the Space."""
    package = Path(__file__).parents[1]
    return package / "spaces" if (package / "spaces").is_dir() else package.parent / "spaces"


def serve(host: str, port: int | None, online: bool) -> None:
    """Start the page and block until it is stopped.

    Args:
        host: The address to listen on.
        port: The port; None for the first free one from 7860.
        online: Allow any model on the Hub; otherwise nothing is downloaded.

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
    """Push the folder to a Space, which is created if it does not exist.

    From an installed package, the folder is pushed unchanged, and its requirements name hf-cam. From a checkout, the
    library is pushed too, and its own requirements replace those: the Space then runs this code, released or not.

    Args:
        repo: `USER/NAME`.
        private: Make a newly created Space private.

    Returns:
        The URL of the Space.

    Raises:
        OptionError: the name has no owner.
    """
    from huggingface_hub import HfApi

    if repo.count("/") != 1 or not all(repo.split("/")):
        raise OptionError(f"the name of a Space must be USER/NAME, got {repo!r}")
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
    """The requirements of a project with one of its extras, including the extras that this extra refers to.

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
