"""Packing many small shards: in process, and on a Ray cluster of two nodes with one CPU each on this machine.

    python benchmarks/ray_build.py
    python benchmarks/ray_build.py --rounds 9 --shards 500

Only the pack step is timed. Each round runs every contestant, in changing order, on outputs of its own; ratios are
taken inside a round, and the median of the rounds is shown. "singly" sends one shard a task: the difference is what
grouping saves. Small shards on a local disk are bound by fsync: other programs on the same disk change all figures.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import ray
from ray.cluster_utils import Cluster

from dray.pipelines.building.job import TASK_BYTES, PackedShard, PackJob, PackTask
from dray.pipelines.building.pack import pack_shards
from dray.pipelines.inputs.sources import Sources, find_sources
from dray.pipelines.planning.plan import plan
from dray.pipelines.planning.recipe import Recipe
from dray.pipelines.running import pace
from dray.pipelines.running.dispatch import Dispatch
from dray.pipelines.running.parcel import Parcel
from dray.shards.layout import Layout, Location
from dray.shards.storage.store import Store

SUFFIX = "tensor.pyd"
SAMPLES_PER_SHARD = 10
SAMPLE_BYTES = 4_000
NUM_NODES = 2  # of one CPU
MOST_OVERHEAD, MOST_SLOWDOWN = 1.25, 1.1


@dataclass(frozen=True, slots=True)
class Timed:
    """One run: seconds from its start to its end, and of its tasks together."""

    wall: float
    tasks: float


Contestant = Callable[[PackJob, list[PackTask]], Timed]


def main() -> None:
    """Make the files, run the rounds, print the ratios."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder, _cluster():
        sources = _make_inputs(Path(folder, "inputs"), arguments.shards * SAMPLES_PER_SHARD)
        print(f"{arguments.shards:,} shards of {SAMPLES_PER_SHARD} x {SAMPLE_BYTES:,} bytes on {folder}")
        rounds = [_round(sources, Path(folder), number, arguments.shards) for number in range(-1, arguments.rounds)]
        _report(rounds[1:])  # the first starts the workers


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=2_000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--dir", help="where the files go; a folder is made there and deleted")
    return parser.parse_args()


@contextmanager
def _cluster() -> Iterator[None]:
    """A head that runs no task, and the nodes."""
    size = {"object_store_memory": 80 << 20}
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "dashboard_port": 0, **size}
    )
    for _ in range(NUM_NODES):
        nodes.add_node(num_cpus=1, **size)
    ray.init(address=nodes.address, log_to_driver=False)
    nodes.wait_for_nodes()
    try:
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


def _make_inputs(folder: Path, num_samples: int) -> Sources:
    folder.mkdir()
    names = [f"s{number:07d}" for number in range(num_samples)]
    random = Random(0)
    for name in names:
        (folder / f"{name}.{SUFFIX}").write_bytes(random.randbytes(SAMPLE_BYTES))
    return find_sources(Store(folder), names, (SUFFIX,))


def _round(sources: Sources, folder: Path, number: int, num_shards: int) -> dict[Contestant, Timed]:
    planned = plan(sources, Recipe(suffixes=(SUFFIX,), num_shards=num_shards))
    tasks = [
        PackTask(number=at, sources=sources.take(shard.rows), memory_bytes=shard.num_bytes * 5 // 4 + TASK_BYTES)
        for at, shard in enumerate(planned.shards)
    ]
    contestants: list[Contestant] = [_in_process, _grouped, _singly]
    timed = {}
    for contestant in contestants if number % 2 else contestants[::-1]:
        output = Store(folder / f"{contestant.__name__}{number}")
        job = PackJob(inputs=Store(sources.url), location=Location(output, Layout("wds")), transform=None)
        timed[contestant] = contestant(job, tasks)
    return timed


def _in_process(job: PackJob, tasks: list[PackTask]) -> Timed:
    started = time.monotonic()
    for _ in pack_shards(job, tasks):
        pass
    seconds = time.monotonic() - started
    return Timed(seconds, seconds)


def _grouped(job: PackJob, tasks: list[PackTask]) -> Timed:
    started = time.monotonic()
    parcel = Parcel.of(pack_shards, job, None)
    dispatch = Dispatch[PackTask, PackedShard](ray, parcel, "pack", tasks, progress=False)
    for _ in dispatch.results():
        pass
    return Timed(time.monotonic() - started, dispatch.task_seconds)


def _singly(job: PackJob, tasks: list[PackTask]) -> Timed:
    """One shard a Ray task."""
    group_s, pace.GROUP_S = pace.GROUP_S, 0
    try:
        return _grouped(job, tasks)
    finally:
        pace.GROUP_S = group_s


def _report(rounds: list[dict[Contestant, Timed]]) -> None:
    for contestant in rounds[0]:
        wall = statistics.median(timed[contestant].wall for timed in rounds)
        print(f"  {contestant.__name__.strip('_'):11} {wall:6.2f} s")
    for contestant in (_singly, _grouped):
        overhead = statistics.median(NUM_NODES * timed[contestant].wall / timed[contestant].tasks for timed in rounds)
        slowdown = statistics.median(timed[contestant].tasks / timed[_in_process].wall for timed in rounds)
        print(f"{contestant.__name__.strip('_')}:")
        print(f"  wall x {NUM_NODES} cores / summed task time: {overhead:.2f} (target for grouped: {MOST_OVERHEAD})")
        print(f"  summed task time / in process: {slowdown:.2f} (target for grouped: {MOST_SLOWDOWN})")


if __name__ == "__main__":
    main()
