"""What is one tap away: the example pictures, and first views of several heads."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from models import MODELS, demos, sees_scenes
from scratch import new_folder
from work import tab_of

from hf_cam.errors import ModelError
from hf_cam.interfaces.demo import PHOTOGRAPHS, SHOWINGS
from hf_cam.zoo import SCENE

LANDING = "camera"
"""The photograph that is shown first: its class is sure, its map right, and the check supports it."""
PROMPTS = next("\n".join(showing.wanted["text"]) for showing in SHOWINGS if "text" in showing.wanted)


@dataclass(frozen=True)
class Start:
    """A model and a picture that go together, explained with all settings at their defaults.

    Args:
        name: The caption.
        model: The model's name.
        file: The picture.
    """

    name: str
    model: str
    file: str


@functools.cache
def examples() -> dict[str, str]:
    """The example pictures by their descriptions, as files; they need no network."""
    folder = new_folder("examples-")
    files = {}
    for photograph in PHOTOGRAPHS:
        try:
            photograph.image().save(folder / f"{photograph.name}.jpg", quality=92)
        except ModelError:
            continue
        files[photograph.description] = str(folder / f"{photograph.name}.jpg")
    return {**files, "A scene of clothing": str(SCENE)}


def example_for(model: str) -> str:
    """A picture of the kind that the model was trained on."""
    landing = next((file for file in examples().values() if Path(file).stem == LANDING), str(SCENE))
    return str(SCENE) if sees_scenes(model) else landing


def is_example(picture: str | None) -> bool:
    """Whether the picture on the page is none of the visitor's own."""
    return picture is None or digest(picture) in {digest(file) for file in examples().values()}


def digest(picture: str | None) -> str:
    """What tells pictures apart, wherever a copy lies; empty without one."""
    return _digest(picture, Path(picture).stat().st_size) if picture else ""


@functools.lru_cache(maxsize=256)
def _digest(picture: str, _: int) -> str:
    return hashlib.sha256(Path(picture).read_bytes()).hexdigest()


@functools.cache
def starts() -> dict[str, Start]:
    """A first view per tab: a photograph's classes, and the scenes of the library's demo for the other tabs."""
    first = next(iter(demos()))
    found = {tab_of(demos()[first]): Start("Classes", first, example_for(first))}
    for showing in SHOWINGS:
        model = f"demo:{showing.model}"
        if model in demos():
            found.setdefault(tab_of(demos()[model]), Start(showing.heading, model, example_for(model)))
    return found


def model_for(file: str, model: str) -> str:
    """The model if it goes with the example, or else one that does; of the Hub, any does."""
    if model not in demos() or sees_scenes(model) == (file == str(SCENE)):
        return model
    return next(start.model for start in starts().values() if start.file == file or file != str(SCENE))


def tab_of_model(model: str) -> str:
    """The tab that the model belongs to."""
    return tab_of(MODELS.kind(model))
