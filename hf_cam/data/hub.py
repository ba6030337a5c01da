"""Push explanations to the Hub as a data set whose viewer shows the overlays."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_cam.data.dataset import OVERLAYS, check_pyarrow, overlay_path
from hf_cam.data.rows import COLUMNS, Row, explanations_of
from hf_cam.data.shards import manifest_of, parts_of, root_of, rows_in, schema, source_in, stored_files, table_of
from hf_cam.doors import door
from hf_cam.errors import HFCamError, ImageError, ModelError, OptionError, brief, reason

CARD = """---
pretty_name: {title}
tags: [hf-cam, explainability]
configs:
- config_name: default
  data_files: data/*.parquet
---

# {title}

What a vision model looked at in {count} images, made with [hf-cam](https://pypi.org/project/hf-cam/) {version} by the
method `{method}`. One row per image:

| column | holds |
|---|---|
| `overlay` | the heatmap over the image; empty if the image could not be explained or read again |
| `path` | the name of the image |
{columns}
"""
LONGEST_SIDE, QUALITY = 512, 85
"""Of the overlays that are drawn for the viewer."""


@door()
def push_explanations(folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Push what `explain_dataset` wrote to the Hub, as a data set with an overlay image per row.

    Overlays are taken from the folder, or drawn from the images where these can still be read; they are made at most
    512 pixels wide and high. The images themselves are not pushed, but an overlay shows them.

    Args:
        folder: The folder that was passed as `out`.
        repo_id: Of the data set, such as "me/my-explanations"; created if it does not exist.
        private: Whether a new data set is private.
        token: Of the Hub; by default the one that is logged in.

    Returns:
        The address of the data set.

    Raises:
        OptionError: the folder holds no explanations.
        ModelError: the Hub refuses, or cannot be reached.
    """
    check_pyarrow()
    out = Path(folder).expanduser()
    parts = parts_of(out)
    files = [(part, path) for part in parts for path in stored_files(part)]
    if not files:
        raise OptionError(f"{brief(str(out))} holds no explanations; hf_cam.explain_dataset writes such a folder")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as scratch:
        data, count, methods = Path(scratch) / "data", 0, set[str]()
        data.mkdir()
        for number, (part, path) in enumerate(files):
            rows = rows_in(path)
            _write(data / f"{number:05d}.parquet", rows, part)
            count += len(rows)
            methods.update(json.loads(row["details"]).get("method", "none") for row in rows if not row["error"])
        (Path(scratch) / "README.md").write_text(_card(repo_id, parts[0], count, methods), encoding="utf-8")
        try:
            api = HfApi(token=token)
            repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
            api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=scratch)
        except Exception as error:  # the Hub's client has many
            raise ModelError(f"the data set {brief(repo_id)} cannot be pushed ({reason(error)})") from error
        return f"{api.endpoint}/datasets/{repo_id}"


def _write(path: Path, rows: Sequence[Row], part: Path) -> None:
    """One file of the data set, with the type of the overlays as `datasets` and the Hub's viewer read it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    drawn = _overlays(rows, part)
    pictures = [None if content is None else {"bytes": content, "path": None} for content in drawn]
    table = table_of(rows).add_column(
        0, "overlay", pa.array(pictures, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    )
    features = {"overlay": {"_type": "Image"}, **{field.name: _feature(field.type) for field in schema()}}
    described = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": described}), path, compression="zstd")


def _feature(kind: Any) -> Any:
    """An Arrow type as `datasets` writes its features."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return {kind.field(i).name: _feature(kind.field(i).type) for i in range(kind.num_fields)}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    names = {"double": "float64", "float": "float32", "halffloat": "float16"}
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}


def _overlays(rows: Sequence[Row], part: Path) -> Iterator[bytes | None]:
    """A JPEG per row; None where there is no map, or no image any more."""
    from hf_cam.images.reading import load_image

    root = root_of(part)
    for row in rows:
        made = overlay_path(part / OVERLAYS, row["path"])
        found = explanations_of(row, source_in(root, row["path"]))
        try:
            picture = load_image(made) if made.is_file() else found[0].overlay() if found else None
        except (ImageError, HFCamError):
            picture = None
        if picture is None:
            yield None
            continue
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        content = io.BytesIO()
        picture.save(content, format="JPEG", quality=QUALITY)
        yield content.getvalue()


def _card(repo_id: str, part: Path, count: int, methods: Iterable[str]) -> str:
    manifest: Mapping[str, Any] = manifest_of(part) or {}
    columns = "\n".join(f"| `{name}` | {holds} |" for name, holds in COLUMNS.items())
    return CARD.format(
        title=repo_id.rpartition("/")[2],
        count=count,
        version=manifest.get("version", ""),
        method=", ".join(sorted(methods)) or "none",
        columns=columns,
    )
