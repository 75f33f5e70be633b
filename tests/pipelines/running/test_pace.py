"""How tasks are grouped: by the time that they take, never so that a lane is left without work."""

from collections import deque
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from dray.pipelines.running.pace import GROUP_S, TASK_COST_BYTES, Pace


@dataclass(frozen=True, slots=True)
class Sized:
    num_bytes: int


def groups_of(sizes: list[int], num_lanes: int, pace: Pace) -> list[list[Sized]]:
    waiting, groups = deque(map(Sized, sizes)), list[list[Sized]]()
    while waiting:
        groups.append(pace.take(waiting, num_lanes))
    return groups


def measured(seconds: float, sizes: list[int]) -> Pace:
    """After many groups of these sizes that took so long."""
    pace = Pace()
    for _ in range(50):
        pace.record(list(map(Sized, sizes)), seconds)
    return pace


@given(st.lists(st.integers(0, 1 << 32), max_size=200), st.integers(1, 50), st.floats(0, 1e4))
def test_every_task_is_in_one_group_in_order_and_every_lane_gets_work(
    sizes: list[int], num_lanes: int, seconds: float
) -> None:
    """For any sizes and speed, groups hold all tasks, and none has more than a lane's share of those left."""
    groups = groups_of(sizes, num_lanes, measured(seconds, [1]))
    assert [task.num_bytes for group in groups for task in group] == sizes
    left = len(sizes)
    for group in groups:
        assert 1 <= len(group) <= -(-left // num_lanes)
        left -= len(group)


def test_small_tasks_are_grouped_until_a_group_lasts_long_enough() -> None:
    """2,000 tasks of 2 ms each: about as many groups as their time asks for, and shorter ones at the end."""
    groups = groups_of([40_000] * 2000, 4, measured(0.002, [40_000]))
    assert 120 <= max(map(len, groups)) <= GROUP_S / 0.002
    assert len(groups) < 2000 / (GROUP_S / 0.002) + 30


def test_slow_and_large_tasks_stay_alone() -> None:
    """A task that lasts long enough is a group, also among small ones."""
    assert set(map(len, groups_of([40_000] * 100, 4, measured(1.0, [40_000])))) == {1}
    large = 100 * TASK_COST_BYTES
    groups = groups_of([1, large, 1, 1] * 25, 1, measured(GROUP_S, [20 * TASK_COST_BYTES]))
    assert all(len(group) == 1 for group in groups if group[0].num_bytes == large)
    assert any(len(group) > 1 for group in groups)
