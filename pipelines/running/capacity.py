"""The capacity of a Ray cluster: how many tasks to send, with how much memory, and why none may start."""

import time
from collections.abc import Sequence
from typing import Any

from dray.pipelines.events import LostNode, report
from dray.pipelines.running.resources import TaskResources

LOOK_EVERY_S = 1.0  # seconds between queries, 1-2 ms each: clusters grow and shrink
TASKS_PER_CPU = 2  # tasks in flight for each that can run: one runs, one waits, which an autoscaler sees
FEWEST = 4  # lower limit of the window; fewer tasks are in flight if fewer are left


class Capacity:
    """The nodes that can run tasks, queried about once a second."""

    def __init__(self, ray: Any, resources: TaskResources) -> None:
        self._ray, self._resources = ray, resources
        self._looked = -LOOK_EVERY_S
        self._nodes: list[dict[str, float]] = []
        self._addresses: dict[str, str] = {}  # id of a node -> its address

    @property
    def window(self) -> int:
        """Maximum number of Ray tasks in flight."""
        self._look()
        window = max(FEWEST, int(TASKS_PER_CPU * sum(map(self._resources.tasks_on, self._nodes))))
        return min(window, self._resources.max_in_flight or window)

    @property
    def largest_bytes(self) -> int:
        """Bytes of memory that the largest node has for tasks; 0 while there is no node."""
        self._look()
        return int(max((node.get("memory", 0) for node in self._nodes), default=0))

    @property
    def _num_cpus(self) -> float:
        self._look()
        return sum(node["CPU"] for node in self._nodes)

    def _look(self) -> None:
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            found = nodes_with_cpus(self._ray)
            self._nodes = [node["Resources"] for node in found]
            self._report_lost({node["NodeID"]: node["NodeManagerAddress"] for node in found})
            self._looked = time.monotonic()

    def _report_lost(self, addresses: dict[str, str]) -> None:
        for node_id in self._addresses.keys() - addresses.keys():
            report(LostNode(f"{self._addresses[node_id]}, id {node_id[:8]}"))
        self._addresses = addresses

    def why_waiting(self, memory_bytes: int) -> str:
        """Returns why tasks with `memory_bytes` of memory may not have started, and how much is free."""
        free = self._ray.available_resources()
        cpus, memory = free.get("CPU", 0), free.get("memory", 0)
        if not self._num_cpus:
            reason = "no node of the cluster offers CPUs: start one"
        elif not any(self._resources.tasks_on(node) >= 1 for node in self._nodes):
            reason = f"no node has what a task takes ({self._resources}): start one, or ask for less"
        elif cpus < self._resources.num_cpus:
            reason = "all CPUs are taken, by these tasks or by other jobs"
        elif memory < memory_bytes:
            reason = "too little memory is free: other jobs have reserved it"
        else:
            reason = "they are at work, or their workers are starting"
        total = self._ray.cluster_resources().get("memory", 0)
        return (
            f"{reason}. A task takes {self._resources} and {memory_bytes / 1e9:.1f} GB of memory; free are "
            f"{cpus:.0f} of {self._num_cpus:.0f} CPUs and {memory / 1e9:.1f} of {total / 1e9:.1f} GB"
        )


def nodes_with_cpus(ray: Any) -> Sequence[dict[str, Any]]:
    """Returns the live nodes that can run a task of one CPU."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def rounded(memory_bytes: int) -> int:
    """Returns bytes rounded up by at most a quarter: Ray starts tasks of equal needs in the same workers."""
    step = 1 << max(0, memory_bytes.bit_length() - 3)
    return -(-memory_bytes // step) * step
