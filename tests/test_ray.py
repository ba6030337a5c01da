"""Ray: the same callable in `map_batches`, and the engine "ray"."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hf_cam
from hf_cam.data.cluster import Cluster
from hf_cam.data.shards import parts_of, stored_rows
from hf_cam.errors import HFCamError
from pages import python_blocks
from pictures import noise

if os.environ.get("HF_CAM_RAY") == "required":
    import ray
else:
    ray = pytest.importorskip("ray", reason="needs hf-cam[ray]")

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray's own


@pytest.fixture(scope="module")
def running():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=2, object_store_memory=256 * 2**20, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures" / "sub"
    root.mkdir(parents=True)
    for number in range(10):
        noise(50 + number, 90, number).save(root / f"{number}.png")
    (root / "broken.png").write_bytes(b"no picture")
    return root.parent


def rows_by_path(out: Path) -> dict[str, dict]:
    return {row["path"]: row for part in parts_of(out) for row in stored_rows(part)}


def test_map_batches_takes_the_callable_as_it_is(running, folder) -> None:
    paths = [{"path": str(path)} for path in sorted(folder.rglob("*.png"))]
    found = running.data.from_items(paths).map_batches(
        hf_cam.Explain,
        fn_constructor_kwargs={"model": "demo:vit"},
        batch_size=4,
        compute=running.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    rows = {row["path"]: row for row in found.take_all()}
    assert len(rows) == 11
    for path, row in rows.items():
        if "broken" in path:
            assert "is not an image" in row["error"]
        else:
            [expected] = hf_cam.explain(path, "demo:vit")
            assert row["label"] == expected.label
            assert tuple(row["map_shape"]) == expected.grid_map.cells.shape


def test_the_pages_block_writes_a_table(running, folder, tmp_path) -> None:
    [block] = [block for block in python_blocks("docs/tutorials/ten-thousand-images.md") if "import ray" in block]
    here = {"google/vit-base-patch16-224": "demo:vit", "num_gpus=1": "num_cpus=1", "size=4": "size=1"}
    for there, replacement in (*here.items(), ("/shared", str(tmp_path))):
        assert there in block
        block = block.replace(there, replacement)
    exec(block, {"hf_cam": hf_cam, "paths": [str(path) for path in folder.rglob("*.png")]})
    assert running.data.read_parquet(str(tmp_path / "maps")).count() == 11


def test_the_engine_writes_what_the_local_one_writes_and_resumes(running, folder, tmp_path) -> None:
    done = hf_cam.explain_dataset(
        folder, "demo:vit", out=tmp_path / "ray", engine="ray", rows_per_file=4, overlays=True
    )
    hf_cam.explain_dataset(folder, "demo:vit", out=tmp_path / "local")
    assert (done.images, done.errors) == (11, 1)
    on_ray, local = rows_by_path(tmp_path / "ray"), rows_by_path(tmp_path / "local")
    assert on_ray.keys() == local.keys()
    for path, row in on_ray.items():
        assert row["label"] == local[path]["label"]
        np.testing.assert_allclose(row["map"], local[path]["map"], atol=1e-2)
    assert len(list((tmp_path / "ray").rglob("*.png.jpg"))) == 10
    min((tmp_path / "ray").rglob("*.parquet")).unlink()
    again = hf_cam.explain_dataset(folder, "demo:vit", out=tmp_path / "ray", engine="local", rows_per_file=4)
    assert (again.resumed, again.images) == (6, 11)  # the broken one is tried again


def test_a_setting_that_suits_no_image_ends_in_hf_cams_own_sentence(running, folder, tmp_path) -> None:
    with pytest.raises(HFCamError, match=r"no\.such\.layer"):
        hf_cam.explain_dataset(folder, "demo:vit", out=tmp_path / "out", engine="ray", layers="no.such.layer")


def test_a_worker_that_dies_is_replaced(running, folder, tmp_path) -> None:
    mark = tmp_path / "died"

    def deadly(image):
        if not mark.exists():
            mark.write_text("once")
            os._exit(1)
        import torch
        import torchvision

        return torchvision.transforms.functional.to_tensor(image.resize((128, 96))) - torch.tensor(0.5)

    from hf_cam.data.explain import Explain
    from hf_cam.data.sources import source_of

    source = source_of(folder)
    explain = Explain("demo:vit", processor=deadly)
    rows = list(hf_cam.data.cluster.rows_on_ray(source, range(len(source)), explain, Cluster(actors=1)))
    assert mark.exists()
    assert len(rows) == 11


@pytest.mark.parametrize("head", [1, 0], ids=["another is left", "none is left"])
def test_a_machine_that_vanishes_loses_no_row_and_without_any_the_run_ends_with_a_sentence(tmp_path, head) -> None:
    for number in range(100):  # so that they are not all explained at the first row
        noise(50, 90, number).save(tmp_path / f"{number}.png")
    outcome = subprocess.run(  # a cluster of its own
        [sys.executable, Path(__file__).with_name("vanishing.py"), tmp_path, str(head)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    expected = "100 rows, none twice" if head else "no machine of the cluster could run the model for 5 s"
    assert expected in outcome.stdout.splitlines(), outcome.stderr[-2000:]  # among what Ray prints
