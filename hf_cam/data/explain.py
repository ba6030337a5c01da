"""One callable for data sets: a batch in, columns out; for `datasets`, for Ray, and for the command."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import fields, replace
from typing import Any, Literal

import numpy as np
from PIL.ImageFile import ImageFile

from hf_cam.data.rows import COLUMNS, Row, error_row, predicted_row, row_of
from hf_cam.data.sources import ASKED, IMAGES, file_of
from hf_cam.doors import door
from hf_cam.errors import HFCamError, ImageError, OptionError, brief, nearest
from hf_cam.explainer import BATCH, Explainer
from hf_cam.explanation import Explanation
from hf_cam.images.reading import opened
from hf_cam.methods import get_method
from hf_cam.models.loading import LoadedModel, Picture, load
from hf_cam.request import Request, check_count

LOADING = ("processor", "labels", "output", "device", "dtype", "trust_config")
LOOKING = ("layers", "reshape")
ASKING = tuple(field.name for field in fields(Request))

OnError = Literal["row", "raise"]

DECODERS = 2
"""Threads that read the pictures of a batch."""


class Explain:
    """Explains batches of images: a dict of columns in, a dict of columns out.

    It can be passed as it is to `datasets.Dataset.map(batched=True)`, also with `num_proc` and for streams, and to
    `ray.data.Dataset.map_batches`. The model is loaded on the first batch, in the process that works on it; pickled is
    only its name (or the model itself, if it was given).

    Args:
        model: A Hub id, a folder, `demo:NAME`, a loaded model, or what `hf_cam.load` returned.
        method: As in `hf_cam.explain`; None returns the model's predictions without maps.
        column: The column of images: paths, URLs, PIL images, arrays, or `{"bytes": ..., "path": ...}`; by default
            "image" or "path".
        prefix: Put before the names of all columns that are returned, where the data has columns of the same names.
        check: Whether to check each image's first map (98 forwards); the column "check" holds the verdict.
        on_error: "row" puts the error of an image into its row; "raise" stops.
        batch_size: Images per forward.
        settings: Others of `hf_cam.explain`, such as `target="tabby"` or `device="cuda"`. Columns "target" and "text"
            of a batch hold such settings for each image.

    Raises:
        OptionError, MethodError, TargetError: a setting does not exist or has an invalid value.

    >>> from sklearn.datasets import load_sample_image
    >>> explain = Explain("demo:imagenet")
    >>> columns = explain({"image": [load_sample_image("flower.jpg"), "missing.jpg"]})
    >>> columns["error"]
    ['', "there is no file 'missing.jpg'"]
    >>> columns["map_shape"][0].tolist()
    [7, 7]
    """

    @door()
    def __init__(
        self,
        model: Any,
        *,
        method: str | None = "auto",
        column: str | None = None,
        prefix: str = "",
        check: bool = False,
        on_error: OnError = "row",
        batch_size: int = BATCH,
        **settings: Any,
    ) -> None:
        known = (*LOADING, *LOOKING, *ASKING)
        for name in settings:
            if name not in known:
                raise OptionError(f"there is no setting {brief(name)}; nearest: {nearest(name, known)}")
        if on_error not in ("row", "raise"):
            raise OptionError(f"on_error must be 'row' or 'raise', got {brief(on_error)}")
        if check and method is None:
            raise OptionError("check=True needs maps; name a method")
        check_count("batch_size", batch_size)
        if method not in (None, "auto"):
            get_method(method)
        self.model, self.method, self.settings = model, method, settings
        self.column, self.prefix, self.check = column, prefix, check
        self.on_error, self.batch_size = on_error, batch_size
        self.request = Request.of(**{name: settings[name] for name in ASKING if name in settings})
        if self.request.renormalize:
            raise OptionError(
                "a data set keeps maps on the model's grid; omit renormalize= and call .renormalized() on what "
                "hf_cam.load_explanations returns"
            )
        self.proved = False
        """Whether the settings are known beforehand to suit some image, so that errors are those of the images."""
        self._suited = False
        self._explainer: Explainer | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The state to pickle, without what was loaded by name; the same after a batch, as `datasets` caches by it."""
        return {**self.__dict__, "_explainer": None, "_suited": False}

    @property
    def explainer(self) -> Explainer:
        """The model with its method, loaded on first use."""
        if self._explainer is None:
            loaded = load(self.model, **self._given(LOADING))
            self._explainer = Explainer(loaded, self.method or "auto", **self._given(LOOKING))
        return self._explainer

    def load(self) -> LoadedModel:
        """Load the model now, before threads ask for it."""
        return self.explainer.loaded

    @property
    def loaded(self) -> LoadedModel:
        """The model with its preprocessing, loaded on first use."""
        return self.explainer.loaded

    @door()
    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """The columns of a batch, which `hf_cam.data.rows.COLUMNS` describes, and the "path" of each image if given.

        Raises:
            OptionError: there is no column of images, a column that is named does not exist, or one is shorter or
                longer than that of the images.
            HFCamError: an image cannot be explained, and `on_error` is "raise".
        """
        sources = list(batch[self._column_of(batch)])
        for name in ASKED:
            if name in batch and len(batch[name]) != len(sources):
                raise OptionError(
                    f"the column {name!r} has {len(batch[name])} rows, but there are {len(sources)} images"
                )
        self.load()
        with ThreadPoolExecutor(DECODERS) as pool:
            pictures = list(pool.map(self.opened, sources))
        rows = self.rows(pictures, batch.get("target"), batch.get("text"))
        columns = {self.prefix + name: [row[name] for row in rows] for name in COLUMNS}
        return {**({"path": list(batch["path"])} if "path" in batch else {}), **columns}

    def opened(self, source: Any) -> Picture | HFCamError:
        """The picture at a source, decoded, or the error."""
        try:
            source = as_source(source)
            with _LAZY if isinstance(source, ImageFile) else nullcontext():  # it may stand in a batch twice
                return self.loaded.opened(source)
        except HFCamError as error:
            if self.on_error == "raise":
                raise
            return error

    def rows(
        self,
        pictures: Sequence[Picture | HFCamError],
        targets: Sequence[Any] | None = None,
        texts: Sequence[Any] | None = None,
    ) -> list[Row]:
        """One row per picture; a picture that could not be opened, or cannot be explained, is a row with its error.

        Raises:
            HFCamError: with `on_error="raise"`; or no picture of the first batch can be explained although they can be
                opened, so that the settings are at fault.
        """
        found: list[Row | HFCamError] = [_NOT_YET] * len(pictures)
        for members in _groups(texts, len(pictures)):
            opened = {i: one for i in members if not isinstance(one := pictures[i], HFCamError)}
            made = iter(self._together(opened, targets, texts))
            for i in members:
                picture = pictures[i]
                found[i] = picture if isinstance(picture, HFCamError) else next(made)
        errors = [one for one in found if isinstance(one, HFCamError)]
        self._judge(found, errors)
        return [error_row(one) if isinstance(one, HFCamError) else one for one in found]

    def _judge(self, found: Sequence[Row | HFCamError], errors: Sequence[HFCamError]) -> None:
        foreign = [error for error in errors if not isinstance(error, ImageError)]
        if errors and self.on_error == "raise":
            raise errors[0]
        if foreign and len(errors) == len(found) and not (self.proved or self._suited):
            raise foreign[0]
        self._suited = self._suited or len(errors) < len(found)

    def _together(
        self, pictures: Mapping[int, Picture], targets: Sequence[Any] | None, texts: Sequence[Any] | None
    ) -> Iterator[Row | HFCamError]:
        """Rows of pictures of a batch, by their places in it, in one go; or of each by itself where that fails."""
        if not pictures:
            return
        try:
            rows = list(self._made(list(pictures.values()), self._request(targets, texts, list(pictures))))
        except HFCamError as error:
            if len(pictures) == 1:
                yield error
                return
            rows = []
        if rows:
            yield from rows
            return
        for i, picture in pictures.items():
            yield from self._together({i: picture}, targets, texts)

    def _made(self, pictures: Sequence[Picture], request: Request) -> Iterator[Row]:
        if self.method is None:
            yield from map(predicted_row, self.explainer.predict(pictures, request, batch_size=self.batch_size))
            return
        for explanations in self.explainer(pictures, request, batch_size=self.batch_size):
            yield row_of(explanations, self._verdict(explanations[0]))

    def _verdict(self, explanation: Explanation) -> str:
        if explanation.effort is not None:
            return explanation.effort.check.verdict
        return explanation.check().verdict if self.check else ""

    def _request(self, targets: Sequence[Any] | None, texts: Sequence[Any] | None, members: Sequence[int]) -> Request:
        """What is asked of these images, which have one text; where a row has no value, what is asked of all."""
        asked = self.request.of_each(len(members))
        if targets is not None:
            own = [self.request.target if targets[i] is None else _python(targets[i]) for i in members]
            asked = replace(asked, target=own)
        if texts is not None and texts[members[0]] is not None:
            asked = replace(asked, text=Request.of(text=_python(texts[members[0]])).text)
        return asked

    def _given(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: self.settings[name] for name in names if name in self.settings}

    def _column_of(self, batch: Mapping[str, Any]) -> str:
        candidates = IMAGES if self.column is None else (self.column,)
        for name in candidates:
            if name in batch:
                return name
        wanted = "'image' or 'path'" if self.column is None else brief(self.column)
        raise OptionError(f"the data has no column {wanted}, but: {', '.join(batch)}; name its images by column=")


_NOT_YET = HFCamError("not yet explained")
_LAZY = threading.Lock()


def as_source(source: Any) -> Any:
    """What a data set holds for an image, as something that `hf_cam.load_image` takes."""
    if isinstance(source, Mapping) and ("bytes" in source or "path" in source):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes | bytearray | memoryview):
        return opened(io.BytesIO(source), "the image", lambda image: image.copy())
    return str(source) if isinstance(source, np.str_) else file_of(source) or source


def _python(value: Any) -> Any:
    """A value of a column as Python has it: Arrow and Ray hand over numpy's."""
    with suppress(AttributeError):
        value = value.tolist()
    return value


def _groups(texts: Sequence[Any] | None, count: int) -> list[list[int]]:
    """Indices of rows with the same text, in order."""
    if texts is None:
        return [list(range(count))] if count else []
    groups: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        groups.setdefault(repr(_python(text)), []).append(i)
    return list(groups.values())
