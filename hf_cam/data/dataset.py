"""Explain a data set: one resumable run that writes Parquet, on one machine or on a Ray cluster."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm import tqdm

from hf_cam import __version__
from hf_cam.data.cluster import Cluster, rows_on_ray
from hf_cam.data.explain import Explain
from hf_cam.data.local import explained
from hf_cam.data.rows import Row, bundled, explanations_of
from hf_cam.data.shards import Shards, parts_of, root_of, source_in, stored_rows
from hf_cam.data.sources import INSTALL, Files, Listed, Source, source_of
from hf_cam.doors import door
from hf_cam.errors import HFCamError, OptionError, brief
from hf_cam.explanation import Explanation
from hf_cam.images.drawing import save_picture
from hf_cam.models.fingerprint import fingerprint, model_fingerprint, processor_fingerprint
from hf_cam.request import check_count
from hf_cam.results.bundle import IMAGE, bundles_in

Engine = Literal["local", "ray"]

ROWS_PER_FILE = 256
"""What a kill costs at most."""
OVERLAYS = "overlays"
LONGEST_STEP = 200
"""Bytes of the name of an overlay or of its folder; file systems take 255."""

Drawable = tuple[Row, Any]
"""A row with its picture, the error in its place, or a function that opens it."""


@dataclass(frozen=True)
class Explained:
    """What a run did.

    Args:
        folder: Where the Parquet files are.
        images: How many images stand there now.
        errors: How many of them could not be explained.
        resumed: How many stood there before.
        seconds: What the run took.
    """

    folder: Path
    images: int
    errors: int
    resumed: int
    seconds: float


@door()
def explain_dataset(
    data: Any,
    model: Any,
    *,
    out: str | Path,
    method: str | None = "auto",
    engine: Engine = "local",
    shard: str | tuple[int, int] = "1/1",
    overlays: bool = False,
    check: bool = False,
    on_error: Literal["row", "raise"] = "row",
    batch_size: int = 8,
    rows_per_file: int = ROWS_PER_FILE,
    column: str | None = None,
    split: str | None = None,
    address: str | None = None,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    progress: bool = False,
    **settings: Any,
) -> Explained:
    """Explain all images of a data set and write one row per image to Parquet files, which pandas and others read.

    It can be stopped at any moment, even by `kill -9`: the same call continues, and repeats one file's images at most.
    It tries again what ended in an error, and adds what a folder has got meanwhile. Memory does not grow with the data;
    a file that is no image becomes a row with its error.

    Args:
        data: A folder (with its sub-folders), a glob, a Parquet file, a `datasets` name, folder or object, or a list of
            images.
        model: As in `hf_cam.explain`.
        out: The folder to write to: `part-01-of-01/rows-00000.parquet` and so on; see `hf_cam.data.rows.COLUMNS`.
        method: As in `hf_cam.explain`; None writes predictions without maps.
        engine: "local", or "ray" for a Ray cluster.
        shard: "3/16" takes the third of sixteen parts of the data; each job has its own folder below `out`. The part of
            a file is that of its name, whatever else lies in the folder.
        overlays: Whether to write an overlay per image too, as `overlays/PATH.jpg` in the part's folder; also of
            images that were explained before.
        check: Whether to check each map (98 forwards each).
        on_error: "row" puts the error of an image into its row, "raise" stops.
        batch_size: Images per forward.
        rows_per_file: Images per Parquet file.
        column, split: The column of images and the split, for tables and `datasets`.
        address, actors, gpus_per_actor: For Ray; see `Cluster`.
        progress: Whether to show a progress bar on stderr.
        settings: Others of `hf_cam.explain`, such as `target="tabby"` or `device="cuda"`.

    Raises:
        ImageError: there are no images.
        OptionError: a setting is wrong; the folder was made from other data, with another model or with other settings;
            it is in use, or cannot be written.
        HFCamError: the model cannot be loaded, or explains no image of the first batch.
    """
    check_pyarrow()
    check_count("batch_size", batch_size)
    check_count("rows_per_file", rows_per_file)
    if engine not in ("local", "ray"):
        raise OptionError(f"engine must be 'local' or 'ray', got {brief(engine)}")
    if overlays and method is None:
        raise OptionError("overlays=True needs maps; name a method")
    part, started = part_of(shard), time.perf_counter()
    explain = Explain(model, method=method, check=check, on_error=on_error, batch_size=batch_size, **settings)
    folder = Path(out).expanduser()
    source = source_of(data, column=column, split=split, apart_from=folder)
    if isinstance(source, Files | Listed):  # a table may hold what is asked
        explain.explainer.checked(explain.request, {})
    with Shards(folder, part, _manifest(source, explain)) as shards:
        before = len(shards.done)
        explain.proved = before > 0
        left = _Left(source, part, shards.done)
        found = (
            _with_pictures(source, left, explain, Cluster(address, actors, gpus_per_actor))
            if engine == "ray"
            else explained(source, left, explain)
        )
        with closing(found), tqdm(total=left.all, initial=before, unit="image", disable=not progress) as bar:
            _write(found, shards, rows_per_file, bar, overlays=overlays)
        if overlays:
            _add_overlays(source, left, explain, shards.folder)
        shards.finish()
        seconds = time.perf_counter() - started
        return Explained(shards.folder, len(shards.done), shards.errors, before, seconds)


def part_of(shard: str | tuple[int, int]) -> tuple[int, int]:
    """The part that "3/16" names.

    >>> part_of("3/16")
    (3, 16)

    Raises:
        OptionError: it names none.
    """
    try:
        i, n = (int(number) for number in (shard.split("/") if isinstance(shard, str) else shard))
    except (TypeError, ValueError):
        i, n = 0, 0
    if not 1 <= i <= n:
        raise OptionError(f"shard must be i/n with i from 1 to n, such as 3/16, got {brief(shard)}")
    return i, n


class _Left:
    """The indices of a part's images that have yet to be explained, each name once; nothing but the names is kept."""

    def __init__(self, source: Source, part: tuple[int, int], done: Iterable[str]) -> None:
        self.source, self.part, self.done = source, part, done
        self.all = sum(1 for _ in self.own())

    def __iter__(self) -> Iterator[int]:
        seen = set(self.done)
        for index in self.own():
            key = self.source.key(index)
            if key not in seen:
                seen.add(key)
                yield index

    def own(self) -> Iterator[int]:
        """The indices of all images of the part."""
        i, n = self.part
        return (index for index in range(len(self.source)) if self.source.turn(index) % n == i - 1)


def _with_pictures(
    source: Source, indices: _Left, explain: Explain, cluster: Cluster
) -> Generator[Drawable, None, None]:
    """Rows from a cluster, with their pictures opened here when they are asked for."""
    places = {source.key(index): index for index in indices}
    for row in rows_on_ray(source, places.values(), explain, cluster):
        yield row, partial(explain.opened, source.at(places[row["path"]])["image"])


def _write(found: Iterator[Drawable], shards: Shards, count: int, bar: Any, *, overlays: bool) -> None:
    held: list[Row] = []
    for row, picture in found:
        if overlays:
            _save_overlay(shards.folder / OVERLAYS, row, picture)
        held.append(row)
        bar.update()
        if len(held) == count:
            shards.write(held)
            held = []
    if held:
        shards.write(held)


def _save_overlay(folder: Path, row: Row, picture: Any) -> None:
    """Draw and write the overlay of a row; nothing for an error."""
    for explanation in explanations_of(row, "")[:1]:
        opened = picture() if callable(picture) else picture
        if isinstance(opened, HFCamError):
            return
        shown = {"image": opened} if isinstance(opened, Image.Image) else {"frames": opened.frames}
        save_picture(explanation.changed(**shown).overlay(), overlay_path(folder, row["path"]))


def _add_overlays(source: Source, left: _Left, explain: Explain, folder: Path) -> None:
    """Draw the overlays of images that an earlier run explained without."""
    places = {source.key(index): index for index in left.own()}
    for row in stored_rows(folder):
        if row["path"] in places and not overlay_path(folder / OVERLAYS, row["path"]).exists():
            _save_overlay(folder / OVERLAYS, row, partial(explain.opened, source.at(places[row["path"]])["image"]))


def overlay_path(folder: Path, key: str) -> Path:
    """Where the overlay of an image lies: its name with sub-folders, never above the folder; another for each image.

    A name that cannot be a path everywhere is changed, and gets a number that stands for what it was.

    >>> overlay_path(Path("overlays"), "cats/tabby.png").as_posix()
    'overlays/cats/tabby.png.jpg'
    >>> overlay_path(Path("overlays"), "../cats/tabby.png").as_posix()
    'overlays/cats/tabby.png-feec0738.jpg'
    """
    steps = [_step(step) for step in re.split(r"[/\\]", key) if step not in ("", ".", "..")] or ["image"]
    number = "" if "/".join(steps) == key else f"-{fingerprint(key)[:8]}"
    return folder.joinpath(*steps[:-1], f"{steps[-1]}{number}.jpg")


def _step(name: str) -> str:
    """A step of a path that is allowed and short enough everywhere."""
    return re.sub(r'[:*?"<>|\x00-\x1f]', "_", name).encode()[:LONGEST_STEP].decode(errors="ignore")


def _manifest(source: Source, explain: Explain) -> dict[str, Any]:
    """What the rows depend on; their layers may depend on the first image, and so stand in the rows."""
    loaded = explain.load()
    settings = {name: value for name, value in explain.settings.items() if name not in ("processor", "device")}
    return {
        "version": __version__,
        "model": model_fingerprint(loaded.model),
        "processor": processor_fingerprint(loaded.processor),
        "settings": fingerprint(explain.method, explain.check, settings),
        "data": source.identity(),
        "root": str(source.root or ""),
    }


def check_pyarrow() -> None:
    """Refuse to go on without pyarrow.

    Raises:
        OptionError: with the command that installs it.
    """
    try:
        import pyarrow  # noqa: F401, ICN001
    except ImportError as error:
        raise OptionError(f"a data set is written as Parquet, which needs the library pyarrow: {INSTALL}") from error


@door()
def load_explanations(folder: str | Path) -> dict[str, list[Explanation]]:
    """The explanations in a folder, by the path of their image, best first.

    The folder is one that `explain_dataset` wrote, a bundle of evidence that `Explanation.save` wrote, or one with
    bundles below it, where the path is that of a bundle's `image.png`. Images are read again from their files whenever
    they are asked for, and heatmaps are drawn then: 1,000 explanations of a ViT take a few megabytes. Images with an
    error have none. What `explain_dataset` wrote holds the map in [0, 1] alone, which stands in `raw` too.

    Raises:
        OptionError: the folder holds no explanations, or a file in it cannot be read or is not what was written.
    """
    out, found = Path(folder).expanduser(), dict[str, list[Explanation]]()
    parts = parts_of(out)
    if not parts:
        found = {(path / IMAGE).relative_to(out).as_posix(): [bundled(path)] for path in bundles_in(out)}
        if not found:
            raise OptionError(
                f"{brief(str(out))} holds no explanations; hf_cam.explain_dataset and Explanation.save write such "
                "folders"
            )
        return found
    for part in parts:
        root = root_of(part)
        found |= {row["path"]: explanations_of(row, source_in(root, row["path"])) for row in stored_rows(part)}
    return found
