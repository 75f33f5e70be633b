"""What reading samples with Ray Data has in common: read tasks of even bytes, and only the columns and rows in demand.

The number of read tasks decides about speed. A task costs Ray Data 10 ms and more, so there are as many as keep the
cluster busy, or as make blocks of 64 MiB.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata

from dray.shards.arguments import as_int
from dray.shards.errors import CallError
from dray.shards.storage.store import Store

KEY, SOURCE = "__key__", "__source__"
TASK_BYTES = 64 << 20  # bytes of a read task, if these make more tasks than `TASKS_PER_CPU`
TASKS_PER_CPU = 2
BLOCK_BYTES = 8 << 20  # bytes of parts that are decoded together, images to many times as many; Ray Data joins blocks
KEY_SHARE = 0.01  # approximate part of a sample's bytes that its key has
SAMPLE_BYTES = 512  # what a sample costs besides its bytes, when tasks are cut

Blocks = Iterator[pa.Table]


class SampleDatasource(Datasource):
    """Samples in a fixed order, with the columns and up to the limit that Ray Data asks for.

    Args:
        columns: Names of all columns.
        counts: (m,) number of samples of each of m consecutive groups.
        sizes: (m,) size of each group in bytes.
    """

    def __init__(self, columns: Sequence[str], counts: NDArray[Any], sizes: NDArray[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._projection_map = None  # the base class reads it and does not set it
        self._columns = tuple(columns)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._bytes = np.concatenate([[0.0], np.cumsum(sizes + SAMPLE_BYTES * counts)])
        self.num_samples = int(self._starts[-1])

    def open_task(self, start: int, stop: int, columns: Sequence[str]) -> Callable[[], Blocks]:
        """Returns the function that a worker calls to read the samples from `start` to `stop`."""
        raise NotImplementedError

    def limited(self, num_samples: int) -> Self:
        """Returns the first samples of this source."""
        found = copy(self)
        found.num_samples = min(self.num_samples, num_samples)
        return found

    @property
    def num_bytes(self) -> int:
        """Approximate size of the samples in bytes."""
        return int(self._bytes_up_to(self.num_samples))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in demand.

        Raises:
            CallError: One of them does not exist.
        """
        wanted = self._get_data_columns()
        if wanted is None:
            return self._columns
        if unknown := [name for name in wanted if name not in self._columns]:
            raise CallError(f"no column {unknown[0]!r}: the columns are {', '.join(self._columns)}")
        return tuple(wanted) or (KEY,)  # a block without columns would have no rows

    def supports_projection_pushdown(self) -> bool:
        """See the base class: `select_columns` reaches the read tasks."""
        return True

    def estimate_inmemory_data_size(self) -> int:
        """Returns the approximate size of the columns in demand, in bytes."""
        return int(self.num_bytes * self._share())

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: object = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        """Returns tasks of about equal bytes: `parallelism`, or a limit's share of these; fewer for few samples."""
        share, columns = self._share(), self.columns
        tasks: list[ReadTask] = []
        num_tasks = math.ceil(parallelism * self.num_samples / max(1, int(self._starts[-1])))
        for start, stop in pairwise(self._bounds(max(1, num_tasks))):
            most = stop if per_task_row_limit is None else min(stop, start + per_task_row_limit)
            num_bytes = int(share * (self._bytes_up_to(most) - self._bytes_up_to(start)))
            metadata = BlockMetadata(num_rows=most - start, size_bytes=num_bytes, exec_stats=None, input_files=None)
            read = _with_name(self.open_task(start, most, columns))
            tasks.append(ReadTask(read, metadata, per_task_row_limit=per_task_row_limit))
        return tasks

    def _bounds(self, num_tasks: int) -> list[int]:
        """Returns the first sample of each task and the end of the last one."""
        cuts = np.interp(np.linspace(0, self.num_bytes, num_tasks + 1), self._bytes, self._starts)
        bounds: list[int] = np.unique(np.rint(cuts).astype(np.int64).clip(0, self.num_samples)).tolist()
        return bounds

    def _bytes_up_to(self, sample: int) -> float:
        return float(np.interp(sample, self._starts, self._bytes))

    def _share(self) -> float:
        """Returns the approximate part of the bytes that the columns in demand have."""
        of_all, of_demand = (len(set(names) - {KEY, SOURCE}) for names in (self._columns, self.columns))
        return of_demand / of_all if of_demand else KEY_SHARE


def _with_name(read: Callable[[], Blocks]) -> Callable[[], Blocks]:
    """Returns a function with a name, by which Ray Data warns of a task of more than 1 MiB."""

    def read_samples() -> Blocks:
        return read()

    return read_samples


def read_datasource(
    datasource: SampleDatasource,
    *,
    override_num_blocks: int | None,
    concurrency: int | None,
    ray_remote_args: Mapping[str, Any] | None,
) -> Dataset:
    """Returns a dataset of the samples, read by as many tasks as suit the cluster.

    Args:
        datasource: The samples.
        override_num_blocks: Number of read tasks; None: chosen by bytes and CPUs.
        concurrency: Maximum number of read tasks at a time; None: Ray Data's choice.
        ray_remote_args: Resources and other options of the read tasks.
    """
    _limit_reads()
    if override_num_blocks is None:
        num_blocks = num_read_tasks(datasource)
    else:
        num_blocks = as_int("override_num_blocks", override_num_blocks, 1)
    options = dict(ray_remote_args or {})
    named = {name: options.pop(name) for name in [*options] if name in _NAMED_OPTIONS}
    dataset: Dataset = ray.data.read_datasource(
        datasource,
        override_num_blocks=num_blocks,
        concurrency=concurrency,
        ray_remote_args=options or None,
        **named,
    )
    return dataset


_NAMED_OPTIONS = inspect.signature(ray.data.read_datasource).parameters.keys() - {"parallelism", "read_args"}


def num_read_tasks(datasource: SampleDatasource) -> int:
    """Returns the number of read tasks for this cluster: two for each CPU, or more if they would pass 64 MiB each."""
    wanted = max(TASKS_PER_CPU * num_cpus(), datasource.num_bytes // TASK_BYTES)
    return max(1, min(wanted, datasource.num_samples))


def num_cpus() -> int:
    """Returns the number of CPUs of the cluster. Connects to one, or starts one, as Ray Data does when it runs."""
    connect()
    return int(ray.cluster_resources().get("CPU", 1))


def connect() -> None:
    """Connect to Ray's cluster, or start one, unless this process is connected."""
    if not ray.is_initialized():
        ray.init()


def _limit_reads() -> None:
    try:
        from dray.pipelines.ray_data.limits import install
    except ImportError:  # another Ray has other private names: a limit then reads whole blocks
        return
    install()


def check_shared(store: Store) -> None:
    """Check that workers can read a store.

    Raises:
        CallError: It is the memory of this process.
    """
    if store.url.startswith("memory://"):
        raise CallError(f"{store.url}: Ray's workers cannot read the memory of this process; use a disk or a store")
