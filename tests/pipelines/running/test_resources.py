"""What a Ray task asks for: CPUs, memory, custom resources, labels, a window and a time limit, on real nodes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import ray
from ray.cluster_utils import Cluster

from dray.pipelines.running.resources import TaskResources, task_resources
from dray.pipelines.running.tasks import run_tasks
from dray.shards.errors import CallError, ClusterError
from tests.conftest import Dray


@dataclass(frozen=True)
class Nap:
    """A task that reports the node that ran it, and hangs on its first attempts."""

    folder: str
    hangs: int = 0
    num_bytes: int = 1 << 20
    memory_bytes: int = 1 << 20

    def again(self) -> Self:
        return self

    def __str__(self) -> str:
        return "shard 7"


def nap(_: None, tasks: Sequence[Nap]) -> Iterator[dict[str, Any]]:
    for task in tasks:
        started = Path(task.folder, str(time.time_ns()))
        started.touch()
        if len(list(Path(task.folder).iterdir())) <= task.hangs:
            time.sleep(3600)
        context = ray.get_runtime_context()
        yield {"node": context.get_node_id(), "taken": context.get_assigned_resources()}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head with 0 CPUs, and two nodes."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": 0})
    found.add_node(num_cpus=2)
    found.add_node(num_cpus=2, resources={"fast": 2}, labels={"pool": "fast"})
    found.wait_for_nodes()
    yield found
    ray.shutdown()
    found.shutdown()


def run(cluster: Cluster, tasks: list[Nap], **resources: Any) -> list[dict[str, Any]]:
    with task_resources(TaskResources(**resources)):
        return list(run_tasks(nap, None, tasks, cluster.address, progress=False))


def test_a_task_gets_what_it_asks_for(cluster: Cluster, tmp_path: Path) -> None:
    """On the only node that has it."""
    tasks = [Nap(str(tmp_path))] * 4
    found = run(cluster, tasks, num_cpus=2, memory_bytes=100 << 20, resources={"fast": 1}, labels={"pool": "fast"})
    assert len({one["node"] for one in found}) == 1
    assert {(one["taken"]["CPU"], one["taken"]["fast"], one["taken"]["memory"]) for one in found} == {(2, 1, 100 << 20)}


def test_labels_alone_choose_the_node(cluster: Cluster, tmp_path: Path) -> None:
    """No task runs elsewhere, also with a window of one."""
    found = run(cluster, [Nap(str(tmp_path))] * 6, labels={"pool": "fast"}, max_in_flight=1)
    assert len({one["node"] for one in found}) == 1


def test_a_task_that_hangs_is_stopped_and_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    """Its worker is killed after the time limit."""
    (one,) = run(cluster, [Nap(str(tmp_path), hangs=1)], timeout_s=1)
    assert one["taken"]["CPU"] == 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.heavy
def test_a_task_that_always_hangs_is_named_in_the_end(cluster: Cluster, tmp_path: Path) -> None:
    """With its shard and the limit."""
    with pytest.raises(ClusterError, match=r"shard 7 was not done .* time limit of 1 s"):
        run(cluster, [Nap(str(tmp_path), hangs=99)], timeout_s=1)


@pytest.mark.parametrize("name", ["num_cpus", "memory_bytes", "max_in_flight", "timeout_s"])
def test_a_number_that_is_not_positive_is_refused(name: str) -> None:
    numbers: dict[str, Any] = {name: 0}
    with pytest.raises(CallError, match=f"{name}=0: expected a number above 0"):
        TaskResources(**numbers)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task-cpus", "2"], "--task-cpus: of tasks on Ray: give --address"),
        (["--task-memory", "much", "--address", "local"], "--task-memory 'much': expected a number of bytes"),
        (["--task-resource", "fast", "--address", "local"], "--task-resource: expected KEY=VALUE, such as fast=1"),
        (["--task-resource", "fast=x", "--address", "local"], "such as fast=1, found the amount 'x'"),
        (["--task-timeout", "soon", "--address", "local"], "--task-timeout 'soon': expected a time"),
        (
            ["--transform", "m:f", "--transform-version", "1", "--max-in-flight", "3"],
            "does not go with --max-in-flight",
        ),
    ],
)
def test_the_command_refuses_what_it_cannot_do(dray: Dray, tmp_path: Path, words: list[str], message: str) -> None:
    """In the words of the command line, as a wrong call."""
    done = dray("build", tmp_path / "in", tmp_path / "out", "--suffix", "pyd", *words)
    assert done.code == 2
    assert message in done.err
