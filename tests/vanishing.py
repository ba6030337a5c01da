"""A run on a cluster of two machines, one of which vanishes behind the first row; started by `test_ray.py`."""

import sys

import hf_cam.data.cluster
from hf_cam.data.cluster import Cluster, rows_on_ray
from hf_cam.data.explain import Explain
from hf_cam.data.sources import source_of
from hf_cam.errors import UnexpectedError

STORE = 100 * 2**20


def main(folder: str, head: int) -> str:
    """What came of it, in a sentence."""
    import ray
    from ray.cluster_utils import Cluster as Machines

    machines = Machines(initialize_head=True, head_node_args={"num_cpus": head, "object_store_memory": STORE})
    doomed = machines.add_node(num_cpus=2, object_store_memory=STORE)
    machines.wait_for_nodes()
    ray.init(address=machines.address, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    source, found = source_of(folder), []
    rows = rows_on_ray(source, range(len(source)), Explain("demo:vit", batch_size=1), Cluster(actors=1 + head))
    try:
        for row in rows:
            if not found:
                machines.remove_node(doomed, allow_graceful=False)
            found.append(row["path"])
    except UnexpectedError as error:
        return str(error).partition(";")[0]
    return f"{len(found)} rows, {'none twice' if len(set(found)) == len(found) else 'some twice'}"


if __name__ == "__main__":
    hf_cam.data.cluster.PATIENCE = 5.0
    sys.stdout.write(f"{main(sys.argv[1], int(sys.argv[2]))}\n")
