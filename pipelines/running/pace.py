"""How many tasks of a build go into one Ray task: a Ray task costs milliseconds, a small shard takes less."""

from collections import deque
from collections.abc import Sequence
from typing import Protocol, TypeVar

GROUP_S = 0.25  # how long a Ray task should last
TASK_COST_BYTES = 1 << 20  # a task takes as long as reading this many bytes more: opening, creating, fsync
FIRST_S_PER_BYTE = 1 / (32 << 20)  # until something was measured


class Sized(Protocol):
    """Something whose work grows with its bytes."""

    @property
    def num_bytes(self) -> int:
        """Bytes that are read."""
        ...


SizedTask = TypeVar("SizedTask", bound=Sized)


class Pace:
    """Groups tasks so that a group lasts about `GROUP_S`, by the speed of those that have ended."""

    def __init__(self) -> None:
        self._s_per_byte = FIRST_S_PER_BYTE

    def record(self, tasks: Sequence[Sized], seconds: float) -> None:
        """Learn from a group that has ended."""
        if tasks:
            self._s_per_byte = (self._s_per_byte + max(seconds, 1e-6) / sum(map(_cost, tasks))) / 2

    def take(self, waiting: deque[SizedTask], num_lanes: int) -> list[SizedTask]:
        """Remove the next group from the left of `waiting`: at least one task, at most a lane's share of what is left.

        Args:
            waiting: Not empty.
            num_lanes: Groups that are in flight at a time: all of them should have work up to the end.
        """
        most = -(-len(waiting) // num_lanes)
        group = [waiting.popleft()]
        budget = GROUP_S / self._s_per_byte - _cost(group[0])
        while len(group) < most and (budget := budget - _cost(waiting[0])) >= 0:
            group.append(waiting.popleft())
        return group


def _cost(task: Sized) -> int:
    return task.num_bytes + TASK_COST_BYTES
