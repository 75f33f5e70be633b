"""Read tasks cover all samples, in order and in even bytes."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dray.pipelines.ray_data.datasource import Blocks, SampleDatasource
from dray.shards import CallError


class Ranges(SampleDatasource):
    """Notes the tasks that are asked for."""

    def open_task(self, start: int, stop: int, columns: Sequence[str]) -> Callable[[], Blocks]:
        self.columns_read = columns
        self.ranges = [*getattr(self, "ranges", []), (start, stop)]
        return lambda: iter(())


GROUPS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 10_000)), max_size=20)


def source(groups: Sequence[tuple[int, int]]) -> Ranges:
    counts, sizes = np.array(groups, np.int64).reshape(-1, 2).T
    return Ranges(["__key__", "a", "b"], counts, sizes)


@given(GROUPS, st.integers(1, 30), st.integers(0, 200))
def test_tasks_cover_each_sample_once_in_order(groups: list[tuple[int, int]], num_tasks: int, limit: int) -> None:
    """Up to the limit, and no task is empty."""
    found = source(groups).limited(limit)
    tasks = found.get_read_tasks(num_tasks)
    ranges = getattr(found, "ranges", [])
    assert all(start < stop for start, stop in ranges)
    assert all(first[1] == second[0] for first, second in pairwise(ranges))
    assert [number for pair in ranges for number in range(*pair)] == list(range(found.num_samples))
    assert found.num_samples == min(limit, sum(count for count, _ in groups))
    assert [task.metadata.num_rows for task in tasks] == [stop - start for start, stop in ranges]
    assert all(task.read_fn.__name__ == "read_samples" for task in tasks)  # Ray Data names the large ones


def test_tasks_have_even_bytes() -> None:
    """A few large samples make as large a task as many small ones."""
    found = source([(1, 100_000)] * 3 + [(1, 100)] * 500)
    tasks = found.get_read_tasks(2)
    assert [task.metadata.num_rows for task in tasks] == [7, 496]


def test_a_limit_for_each_task_is_kept() -> None:
    """As Ray Data pushes it down."""
    found = source([(10, 1000)] * 4)
    assert [task.metadata.num_rows for task in found.get_read_tasks(2, per_task_row_limit=3)] == [3, 3]


def test_columns_are_those_in_demand() -> None:
    """A column that does not exist is named; without any, keys keep the number of rows."""
    found = source([(10, 1000)])
    assert found.apply_projection({"b": "b"}).columns == ("b",)
    assert found.apply_projection({}).columns == ("__key__",)
    with pytest.raises(CallError, match="no column 'c': the columns are __key__, a, b"):
        found.apply_projection({"c": "c"}).get_read_tasks(1)
