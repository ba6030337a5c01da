"""The answer of a vision-language model: its text, and one explanation per word."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from hf_cam.doors import door
from hf_cam.errors import ImageError, brief
from hf_cam.explanation import Explanation
from hf_cam.images.drawing import save_picture

PAGES = (".html", ".htm")


class Answer(list[Explanation]):
    """What a model wrote about a picture; a list with one `Explanation` per word.

    Each member has the word as `label`, its probability as `score`, its place in the text as `span`, its map as
    `heatmap` and, as `evidence`, the share of its probability that is owed to the picture.

    Args:
        words: The explanations, in the order of the text.
        answer: The text.
        image: The picture; the first of several.
        model: The name of the model.

    >>> from PIL import Image
    >>> Answer([], answer="A red cup.", image=Image.new("RGB", (64, 48)), model="demo").answer
    'A red cup.'
    """

    def __init__(self, words: Iterable[Explanation], *, answer: str, image: Image.Image, model: str = "") -> None:
        super().__init__(words)
        self.answer = answer
        self.image = image
        self.model = model

    def __repr__(self) -> str:
        """The text, and how many of its words are explained."""
        return f"Answer({self.answer!r}, {len(self)} word{'s' * (len(self) != 1)} explained)"

    @door(ImageError)
    def save(self, path: str | Path) -> Path:
        """Save a self-contained page if the path ends in `.html`, else the words' maps side by side as a picture.

        Raises:
            ImageError: the path ends in neither `.html` nor a picture format, or cannot be written.
        """
        from hf_cam.words.page import html, strip

        path = Path(path).expanduser()
        kind = path.suffix.lower()
        if path.is_dir():
            raise ImageError(f"{brief(str(path))} is a folder; pass a file, such as {brief(str(path / 'answer.html'))}")
        if kind not in (*PAGES, *Image.registered_extensions()):
            raise ImageError(f"{brief(path.name)} must end in .html or in a picture format, such as .png or .jpg")
        if kind not in PAGES:
            return save_picture(strip(self), path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(html(self), encoding="utf-8")
        except OSError as error:
            raise ImageError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
        return path

    def _repr_html_(self) -> str:
        """The page in a frame, which notebooks display."""
        from hf_cam.words.page import framed

        return framed(self)
