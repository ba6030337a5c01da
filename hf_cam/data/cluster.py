"""Explain on a Ray cluster: actors explain batches of indices, and this process receives their rows."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from hf_cam.data.explain import Explain
from hf_cam.data.local import explained_rows
from hf_cam.data.rows import Row
from hf_cam.data.shards import rows_of, table_of
from hf_cam.data.sources import Source
from hf_cam.errors import HFCamError, OptionError, UnexpectedError, reason

STORE = 512 * 2**20
"""Bytes of the object store of a Ray that is started here; only rows pass through it."""
CPUS_PER_ACTOR = 4
TASKS_AHEAD = 2
PATIENCE = 600.0
"""Seconds for which no machine of the cluster can run the model until the run ends: time to start another one."""
LOOK = 2.0
"""Seconds between two looks at the machines while no row comes."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Cluster:
    """How Ray runs the model.

    Args:
        address: Of a running cluster, such as "auto"; None starts Ray on this machine.
        actors: Copies of the model; by default one per GPU, or per four CPUs where there are none.
        gpus_per_actor: May be a fraction; by default 1 where the cluster has GPUs.
    """

    address: str | None = None
    actors: int | None = None
    gpus_per_actor: float | None = None

    def resources(self, available: Mapping[str, float]) -> tuple[int, float, float]:
        """Actors, CPUs and GPUs of each on a cluster with these resources; one CPU stays free for reading.

        >>> Cluster().resources({"CPU": 16, "GPU": 2}), Cluster().resources({"CPU": 2})
        ((2, 4.0, 1.0), (1, 1.0, 0.0))
        """
        cpus, gpus = available.get("CPU", 1), available.get("GPU", 0)
        each = self.gpus_per_actor if self.gpus_per_actor is not None else min(1.0, float(gpus))
        actors = self.actors or max(1, int(gpus / each) if each else int(cpus / CPUS_PER_ACTOR))
        return actors, float(min(CPUS_PER_ACTOR, max(0.5, (cpus - 1) // actors))), each


class Worker:
    """An actor: the rows of images that it gets by index.

    Args:
        source: Where the images are.
        explain: What explains them.
        threads: Of torch.
    """

    def __init__(self, source: Source, explain: Explain, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.source, self.explain = source, explain

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """The rows as one Arrow table: Ray itself would need every batch to have maps of one shape."""
        rows = list(explained_rows(self.source, batch["index"].tolist(), self.explain))
        return {"rows": [_packed(rows)]}


def rows_on_ray(source: Source, indices: Iterable[int], explain: Explain, cluster: Cluster) -> Iterator[Row]:
    """Rows of these images, in any order.

    Raises:
        OptionError: Ray is not installed.
        UnexpectedError: Ray fails, or no machine that is large enough for an actor is left; what was yielded is valid.
            Where one is left, it takes over what a vanished one had begun.
    """
    ray = _ray()
    listed = [{"index": index} for index in indices]
    if not listed:
        return
    with _running(ray, cluster):
        actors, cpus, gpus = cluster.resources(ray.cluster_resources())
        size = explain.batch_size
        found = ray.data.from_items(listed, override_num_blocks=max(1, -(-len(listed) // (size * 4)))).map_batches(
            Worker,
            fn_constructor_kwargs={"source": source, "explain": explain, "threads": max(1, int(cpus))},
            batch_size=size * 4,
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=TASKS_AHEAD),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        try:
            for packed in _while_hosted(iter(found.iter_rows()), lambda: _hosted(ray.nodes(), CPU=cpus, GPU=gpus)):
                yield from rows_of(packed["rows"])
        except ray.exceptions.RayError as error:
            raise _own(error) from error


def _hosted(nodes: Iterable[Mapping[str, Any]], **needed: float) -> bool:
    """Whether a machine that is alive has what an actor needs, used by one or not.

    >>> nodes = [{"Alive": True, "Resources": {"CPU": 1.0}}, {"Alive": False, "Resources": {"CPU": 8.0}}]
    >>> _hosted(nodes, CPU=1, GPU=0), _hosted(nodes, CPU=4, GPU=0)
    (True, False)
    """
    return any(
        node["Alive"] and all(node["Resources"].get(name, 0) >= count for name, count in needed.items())
        for node in nodes
    )


def _while_hosted(items: Iterator[Item], hosted: Callable[[], bool]) -> Iterator[Item]:
    """The items of an iterator that waits for ever where no machine is left to make them.

    Raises:
        UnexpectedError: for `PATIENCE` seconds there was none.
    """
    while (item := _awaited(_fetching(items), hosted)) is not None:
        yield item


def _fetching(items: Iterator[Item]) -> Future[Item | None]:
    """The next item or None, from a thread that nobody waits for at exit."""
    future: Future[Item | None] = Future()

    def fetch() -> None:
        try:
            future.set_result(next(items, None))
        except BaseException as error:  # noqa: BLE001 - raised where the item is awaited
            future.set_exception(error)

    threading.Thread(target=fetch, daemon=True).start()
    return future


def _awaited(future: Future[Item], hosted: Callable[[], bool]) -> Item:
    since: float | None = None
    while not wait((future,), timeout=LOOK).done:
        if hosted():
            since = None
        elif since is None:
            since = time.monotonic()
            logging.getLogger(__name__).warning("no machine of the cluster can run the model; waiting for one")
        elif time.monotonic() - since > PATIENCE:
            raise UnexpectedError(
                f"no machine of the cluster could run the model for {PATIENCE:.0f} s; what is written stays, and the "
                "same command continues once one can"
            )
    return future.result()


def _own(error: BaseException) -> HFCamError:
    """hf-cam's own error that a worker raised, or one that names Ray's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HFCamError):
            return type(cause)(str(cause).splitlines()[-1]) if "\n" in str(cause) else cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return UnexpectedError(f"Ray stopped ({reason(error)}); what is written stays, and the same command continues")


@contextmanager
def _running(ray: Any, cluster: Cluster) -> Iterator[None]:
    """Ray, started here and ended again unless it runs already."""
    if ray.is_initialized():
        yield
        return
    local = {} if cluster.address else {"object_store_memory": STORE, "include_dashboard": False}
    try:
        address = cluster.address or "local"  # not a cluster that runs here for others
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, **local)
    except Exception as error:  # whatever is wrong with an address
        raise OptionError(f"Ray cannot be reached or started ({reason(error)})") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


def _packed(rows: list[Row]) -> bytes:
    import pyarrow as pa

    table, sink = table_of(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise OptionError('the engine "ray" needs the library Ray: pip install "hf-cam[ray]"') from error
    return ray
