"""Writing with Ray Data while workers, actors, nodes and requests fail: the same bytes, and every sample once."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import read_shards, write_shards
from dray.shards import ClusterError, Snapshot, Store
from tests.support.chaos import Chaos

pytestmark = pytest.mark.heavy  # nodes come and go

NUM_ROWS = 2000
SIZE: Any = {"object_store_memory": 80 << 20}
DIES_SOON = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that runs nothing, and two nodes of two CPUs; this process is its driver."""
    head = {"num_cpus": 0, "include_dashboard": False, "dashboard_port": 0, "_system_config": DIES_SOON, **SIZE}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=2, **SIZE)
    ray.init(address=nodes.address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def once(marker: str) -> bool:
    """Whether nobody asked this before, in any process."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def note_of(folder: str, number: int) -> str:
    """Kills the worker that unpickles it, once for each of four rows."""
    if number % 500 == 7 and once(f"{folder}/worker-{number}"):
        os._exit(1)
    return f"no. {number}"


class Note:
    """Text that only a task that stores it unpickles."""

    def __init__(self, folder: str, number: int) -> None:
        self.folder, self.number = folder, number

    def __reduce__(self) -> Any:
        return note_of, (self.folder, self.number)


class Make:
    """An actor that dies once in mid-work."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, batch: Any) -> Any:
        numbers = batch["id"]
        time.sleep(0.05)
        if 1000 in numbers and self.folder and once(f"{self.folder}/actor"):
            os._exit(1)
        notes = np.empty(len(numbers), object)
        for row, number in enumerate(numbers.tolist()):
            notes[row] = Note(self.folder, number) if self.folder else f"no. {number}"
        return {
            "__key__": np.array([f"s{number:05d}" for number in numbers]),
            "x.npy": np.repeat(numbers[:, None], 300, axis=1),
            "note.txt": notes,
        }


def rows(folder: str = "") -> Any:
    """Rows in 40 blocks, through an actor pool."""
    numbers = ray.data.range(NUM_ROWS, override_num_blocks=40)
    return numbers.map_batches(
        Make, fn_constructor_args=[folder], batch_size=50, num_cpus=0.5, compute=ray.data.ActorPoolStrategy(size=2)
    )


def test_after_deaths_and_failed_requests_the_bytes_are_the_same(
    cluster: Cluster, s3: SeaweedServer, chaos: Chaos, tmp_path: Path
) -> None:
    """Requests for a fifth of the shards fail at first; workers that store, an actor and a node are killed."""
    spare = cluster.add_node(num_cpus=2, **SIZE)
    url, options = s3.url("write-faults"), dict(s3.storage_options)
    write_shards(rows(), f"{url}/calm", samples_per_shard=100, storage_options=options)
    failing = chaos.rule("status", code=503, path=r"[05]\.(tar|arrow)", each=True, times=1)
    stored = Store(f"{url}/storm", options)

    def kill_node() -> None:
        while sum(info.name.endswith(".tar") for info in stored.list_folder()) < 3:
            time.sleep(0.1)
        cluster.remove_node(spare, allow_graceful=False)

    killer = threading.Thread(target=kill_node)
    killer.start()
    slow = options | {"endpoint": chaos.endpoint}
    report = write_shards(rows(str(tmp_path)), f"{url}/storm", samples_per_shard=100, storage_options=slow)
    killer.join()
    assert failing.hits >= 8
    assert {path.name for path in tmp_path.iterdir()} == {
        "actor",
        "worker-7",
        "worker-507",
        "worker-1007",
        "worker-1507",
    }
    assert (report.num_samples, report.num_shards) == (NUM_ROWS, 20)
    calm, storm = (Snapshot.open(f"{url}/{name}", storage_options=options) for name in ("calm", "storm"))
    assert [shard.index_digest for shard in calm.shards] == [shard.index_digest for shard in storm.shards]
    for shard in calm.shards:
        name = calm.layout.shard(shard.number)
        assert calm.store.get(name) == storm.store.get(name)
    found = read_shards(f"{url}/storm", storage_options=options).select_columns(["__key__"]).take_all()
    assert sorted(row["__key__"] for row in found) == [f"s{number:05d}" for number in range(NUM_ROWS)]


def test_a_worker_that_always_dies_ends_the_write(cluster: Cluster, tmp_path: Path) -> None:
    """After a few retries, by an error that names the shard; nothing is left."""
    assert cluster.list_all_nodes()

    class Deadly:
        def __reduce__(self) -> Any:
            return os._exit, (1,)

    def deadly(batch: Any) -> Any:
        notes = np.empty(len(batch["id"]), object)
        notes[:] = [Deadly() for _ in notes]
        return {"__key__": np.array([f"s{number}" for number in batch["id"]]), "note.txt": notes}

    with pytest.raises(ClusterError, match="shard 0 was not done after 4 retries"):
        write_shards(ray.data.range(10, override_num_blocks=1).map_batches(deadly), tmp_path, samples_per_shard=10)
    assert not list(tmp_path.glob("*.tar"))
