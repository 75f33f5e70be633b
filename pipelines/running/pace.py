"""Grouping the tasks of a build into Ray tasks: a Ray task costs milliseconds, a small shard takes less."""

from collections import deque
from collections.abc import Sequence
from typing import Protocol, TypeVar

GROUP_S = 0.25  # target duration of a Ray task, in seconds
TASK_COST_BYTES = 1 << 20  # fixed cost of a task (opening, creating, fsync), in bytes read in the same time
FIRST_S_PER_BYTE = 1 / (32 << 20)  # initial estimate, until a group was measured


class Sized(Protocol):
    """An item whose work grows with its bytes."""

    @property
    def num_bytes(self) -> int:
        """Number of bytes that are read."""
        ...


SizedTask = TypeVar("SizedTask", bound=Sized)


class Pace:
    """Groups tasks so that a group lasts about `GROUP_S`, by the measured speed of earlier groups."""

    def __init__(self) -> None:
        self._s_per_byte = FIRST_S_PER_BYTE

    def record(self, tasks: Sequence[Sized], seconds: float) -> None:
        """Update the estimate by a group that has ended."""
        if tasks:
            self._s_per_byte = (self._s_per_byte + max(seconds, 1e-6) / sum(map(_cost, tasks))) / 2

    def take(self, waiting: deque[SizedTask], num_lanes: int) -> list[SizedTask]:
        """Remove and return the next group of `waiting`: at least one task, at most a lane's share of those left.

        Args:
            waiting: Not empty.
            num_lanes: Number of groups in flight at a time; all should have work up to the end.
        """
        most = -(-len(waiting) // num_lanes)
        group = [waiting.popleft()]
        budget = GROUP_S / self._s_per_byte - _cost(group[0])
        while len(group) < most and (budget := budget - _cost(waiting[0])) >= 0:
            group.append(waiting.popleft())
        return group


def _cost(task: Sized) -> int:
    return task.num_bytes + TASK_COST_BYTES
